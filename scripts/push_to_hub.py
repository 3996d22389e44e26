"""Share a trained model on the Hub: weights, code, card and pictures, in one commit.

    hf auth login                                           # once; or set HF_TOKEN
    python scripts/push_to_hub.py runs/hoda user/persian-digits [--private]

Others then load it in one line, with this package installed or not:

    AutoModelForCausalLM.from_pretrained("user/persian-digits", trust_remote_code=True)

Nothing in the local folder is changed. Checkpoints, logs and the training arguments are not uploaded.
"""

import argparse
import logging
import sys
from pathlib import Path

from transformers import AutoConfig, ImageGPTConfig

from igpt_hf import DataError
from igpt_hf.hub import push_folder
from igpt_hf.loading import load_pretrained


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a trained model")
    parser.add_argument("repo", metavar="user/name", help="where it goes on the Hub; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--message", default="Upload Image GPT", help="of the commit")
    return parser.parse_args()


def main():
    args = parse_arguments()
    logging.basicConfig(format="%(message)s")
    if not args.model.is_dir():
        raise DataError(f"{args.model} is no folder.")
    if not is_stock(args.model):
        load_pretrained(str(args.model))  # an error here is better than a broken repository there
    print(push_folder(args.model, args.repo, args.private, args.message))


def is_stock(folder: Path) -> bool:
    """Whether a folder holds the library's own ImageGPT, trained by `--preset stock-xxs`."""
    return (folder / "config.json").is_file() and AutoConfig.from_pretrained(
        folder
    ).model_type == ImageGPTConfig.model_type


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"error: {error}")
