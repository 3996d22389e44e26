"""Copy a trained checkpoint into the package, as one of its models in the box.

    python utils/make_bundled.py runs/synthetic persian-digits    # igpt_hf.bundled("persian-digits")
    python utils/make_bundled.py runs/mnist-xxs mnist-xxs --data "MNIST's training images"

The copy has the weights, the settings and the card, but none of the code: the package has it. A model of that name is
replaced. Train only on data that may be given away: synthetic digits, MNIST.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from igpt_hf import IGPTError
from igpt_hf.cli import run_main
from igpt_hf.hub import bundled
from igpt_hf.hub.loading import load_pretrained
from igpt_hf.training.file_names import CONFIGS, MODEL_FILES


POINTERS_TO_CODE = ("auto_map", "custom_pipelines")
USE = """\
## Use

```python
from igpt_hf import IGPTForCausalImageModeling, IGPTImageProcessor, bundled

model = IGPTForCausalImageModeling.from_pretrained(bundled("{name}"))
processor = IGPTImageProcessor.from_pretrained(bundled("{name}"))
ids = model.generate(**processor.prompt(class_labels=[0, 0, 1]))
processor.decode(ids)[0].show()
nats = -model.log_likelihood(ids)
```

"""


def make_card(text: str, name: str, data: str | None = None) -> str:
    """The run's card with the model's new name and use, and without figures, which are not bundled.

    `data` is what it says of the images, instead of the name of their folder.
    """
    if data is not None:
        text = re.sub(r"^`[^`]*`, files of the model's trainer: ", f"{data}: ", text, flags=re.MULTILINE)
        name_alone = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", data)  # without links
        text = re.sub(r"^( +name: ).*, files of the model's trainer$", rf"\g<1>{name_alone}", text, flags=re.MULTILINE)
    text = re.sub(r"^(# |- name: ).*$", rf"\g<1>{name}", text, flags=re.MULTILINE)
    text = re.sub(r"^## Use\n.*?(?=^## )", lambda _: USE.format(name=name), text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^(?:!\[.*\]\(.*\)|\*The first ten samples.*)\n\n", "", text, flags=re.MULTILINE)


def make_bundled(checkpoint: Path, folder: Path, data: str | None = None):
    """Write the files of a bundled model.

    Raises:
        IGPTError: The checkpoint is incomplete, or its weights are not float32, which the CPU kernels want.
    """
    model, _ = load_pretrained(str(checkpoint))
    if model.dtype != torch.float32:
        raise IGPTError(f"{checkpoint} has weights of {model.dtype}: save them as float32.")
    missing = [name for name in MODEL_FILES if not (checkpoint / name).is_file()]
    if missing:
        raise IGPTError(f"{checkpoint} has no {', '.join(missing)}: name the output_dir of a finished run.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(checkpoint / "model.safetensors", folder / "model.safetensors")  # not its mode
    for name in CONFIGS:
        settings = json.loads((checkpoint / name).read_text(encoding="utf-8"))
        settings = {key: value for key, value in settings.items() if key not in POINTERS_TO_CODE}
        (folder / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    card = make_card((checkpoint / "README.md").read_text(encoding="utf-8"), folder.name, data)
    (folder / "README.md").write_text(card, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="output_dir of a finished run")
    parser.add_argument("name", help="of the bundled model")
    parser.add_argument("--data", help="what the card says of the images, instead of the name of their folder")
    args = parser.parse_args()
    if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", args.name) is None:
        raise IGPTError(f"{args.name!r} is no name of a model: take lower case letters, digits and dashes.")
    transformers_logging.disable_progress_bar()
    folder = bundled.FOLDER / args.name
    make_bundled(args.checkpoint, folder, args.data)
    print(f"-> {folder}; all bundled models: {sum_of_sizes(bundled.FOLDER) / 1e6:.2f} MB")


def sum_of_sizes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    run_main(main)
