"""Share a trained model on the Hub: weights, code, card and figures, in one commit.

    hf auth login                                           # once; or set HF_TOKEN
    igpt push runs/hoda user/persian-digits [--private]

Others then load it in one line, with this package installed or not:

    AutoModelForCausalLM.from_pretrained("user/persian-digits", trust_remote_code=True)

Nothing in the local folder is changed. Checkpoints, logs and the training arguments are not uploaded.
"""

import json
import logging
from pathlib import Path

from transformers import ImageGPTConfig

from igpt_hf import IGPTError, IGPTForCausalImageModeling, IGPTForImageClassification
from igpt_hf.cli import command_parser, hide_library_bars, run_main
from igpt_hf.hub.loading import load_pretrained
from igpt_hf.hub.push import push_folder


def parse_arguments():
    parser = command_parser("push", __doc__)
    parser.add_argument("model", type=Path, help="folder of a trained model")
    parser.add_argument("repo", metavar="user/name", help="the repository on the Hub; created if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--message", default="Upload Image GPT", help="of the commit")
    return parser.parse_args()


def main():
    args = parse_arguments()
    logging.basicConfig(format="%(message)s")
    hide_library_bars()
    if not args.model.is_dir():
        raise IGPTError(f"{args.model} is not a folder.")
    if not is_imagegpt(args.model):
        load_pretrained(str(args.model), model_class(args.model))  # an error here is better than a broken repository
    print(push_folder(args.model, args.repo, args.private, args.message))


def is_imagegpt(folder: Path) -> bool:
    """Whether a folder holds transformers' ImageGPT, trained by `--preset stock-xxs`."""
    return _settings(folder).get("model_type") == ImageGPTConfig.model_type


def model_class(folder: Path) -> type:
    """The class of the model in a folder: it generates, unless its configuration says that it classifies."""
    classifies = IGPTForImageClassification.__name__ in (_settings(folder).get("architectures") or [])
    return IGPTForImageClassification if classifies else IGPTForCausalImageModeling


def _settings(folder: Path) -> dict:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # `load_pretrained` says what is wrong
        return {}


if __name__ == "__main__":
    run_main(main)
