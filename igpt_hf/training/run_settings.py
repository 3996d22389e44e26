"""What a run is: the flags that a resumed one must share with its checkpoint.

Others may change, such as the number of epochs or a learning rate.
"""

import json
from pathlib import Path

from ..errors import IGPTError
from .arguments import ScriptArguments


SETTINGS = "run_settings.json"  # in each checkpoint
OF_DATA = """
task data image_column label_column labels_from splits max_images threshold invert ink widen_strokes margin binarize
streaming augment model_name_or_path
""".split()
IMAGES_PER_STEP = "per_device_train_batch_size, times accumulation and processes,"
PATHS = ("data", "model_name_or_path")  # a folder may have moved: names are compared


def run_settings(script_args: ScriptArguments, model_args, args) -> dict:
    """The flags that decide on data, model and optimizer, from those of `parse_arguments`; what was not given is None.

    The EMA is there or not: its decay may change.
    """
    return {
        **{name: getattr(script_args, name) for name in OF_DATA},
        "seed": args.seed,
        "split_seed": script_args.get_split_seed(args.seed),
        IMAGES_PER_STEP: args.images_per_step,
        **vars(model_args),
        "use_muon": args.use_muon,
        "optim": None if args.use_muon else args.optim.value,
        "ema_decay": "above 0" if args.ema_decay > 0 else 0,
    }


def check_same_run(checkpoint: str, settings: dict | None):
    """Refuse to resume a checkpoint with other data, another model or another optimizer.

    Args:
        checkpoint: Its folder. One of an earlier version, without the file, is not checked.
        settings: Of the run that resumes it; None: nothing is compared.

    Raises:
        IGPTError: It names the flags that differ.
    """
    path = Path(checkpoint, SETTINGS)
    if settings is None or not path.is_file():
        return
    then = json.loads(path.read_text(encoding="utf-8"))
    differ = [name for name in then.keys() & settings.keys() if _compared(name, then) != _compared(name, settings)]
    if differ:
        flags = "; ".join(f"--{name} was {then[name]} and is {settings[name]}" for name in sorted(differ))
        raise IGPTError(
            f"{checkpoint} is of a run with other flags: {flags.replace('None', 'not given')}. Resume with the flags "
            f"of the run, or begin another one with its weights: --model_name_or_path {checkpoint}, another "
            "--output_dir."
        )


def _compared(name: str, settings: dict):
    value = settings[name]
    if name in PATHS and value is not None:
        return [Path(part.strip()).name for part in value.split(",")]
    return value
