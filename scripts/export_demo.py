"""Put a trained Image GPT into a page that draws wholly in the browser.

    igpt export demo runs/synthetic page    # then open page/index.html

Makes the folder, or replaces the model in a page that is there. Only weights.js depends on the model: configuration,
and weights by name in base64, 4 characters each. docs/demo has such a page.
"""

import argparse
import sys
from pathlib import Path

from transformers.utils import logging as transformers_logging

from igpt_hf import IGPTError
from igpt_hf.hub.export import copy_page, export_page
from igpt_hf.hub.loading import load_pretrained


def main():
    parser = argparse.ArgumentParser(
        prog="igpt export demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a trained model, or its id on the Hub")
    parser.add_argument("page", type=Path, help="folder of the page: a new one, or one that has igpt.js")
    args = parser.parse_args()
    is_new = not args.page.exists()
    if not is_new and not (args.page / "igpt.js").is_file():
        raise IGPTError(f"{args.page} is there, but holds no page (igpt.js): name a new folder.")
    transformers_logging.disable_progress_bar()
    model, _ = load_pretrained(args.model)
    if is_new:
        copy_page(args.page)
    weights = args.page / "weights.js"
    export_page(model, weights)
    print(f"{model.num_parameters():,} weights -> {weights} ({weights.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    try:
        main()
    except (IGPTError, OSError) as error:
        sys.exit(f"error: {error}")
