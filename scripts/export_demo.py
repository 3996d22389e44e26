"""Put a trained Image GPT into the page that draws wholly in the browser.

    python scripts/export_demo.py runs/synthetic docs/demo    # then open docs/demo/index.html

Replaces the page's weights.js: configuration, and weights by name in base64, 4 characters each. A page for another
model begins as a copy of docs/demo, which has no other part that depends on the model.
"""

import argparse
import sys
from pathlib import Path

from transformers.utils import logging as transformers_logging

from igpt_hf import DataError
from igpt_hf.export import export_page
from igpt_hf.loading import load_pretrained


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a trained model, or its id on the Hub")
    parser.add_argument("page", type=Path, help="folder of the page: docs/demo or a copy of it")
    args = parser.parse_args()
    if not (args.page / "igpt.js").is_file():
        raise DataError(f"{args.page} holds no igpt.js: copy docs/demo there first.")
    transformers_logging.disable_progress_bar()
    model, _ = load_pretrained(args.model)
    weights = args.page / "weights.js"
    export_page(model, weights)
    print(f"{model.num_parameters():,} weights -> {weights} ({weights.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    try:
        main()
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
