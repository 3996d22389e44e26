"""What guidance toward the class, and other settings of sampling, do: are samples recognized, and diverse?

    python benchmarks/guidance.py --output guidance.json
    python benchmarks/guidance.py runs/hoda --data RemainingSamples.cdb --seed 42

As many samples of each class for each setting, from the same random numbers. A LeNet that was trained on the training
split judges them, as in `benchmarks/draws.py`; FID and coverage compare them with the validation images in its
features. The last row has these numbers for test images.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from draws import DATA_SEED, data_and_judge, recognized
from harness import write_results
from igpt_hf.evaluation.sample_quality import Images, fidelity
from igpt_hf.hub.bundled import DEFAULT_MODEL, bundled
from igpt_hf.hub.loading import load_pretrained


SETTINGS: dict[str, dict[str, float]] = {
    "as learned": {},
    **{f"guidance {scale}": {"guidance_scale": scale} for scale in (1.25, 1.5, 2.0, 3.0)},
    **{f"temperature {temperature}": {"temperature": temperature} for temperature in (0.9, 0.8)},
    **{f"min_posterior {least}": {"min_posterior": least} for least in (0.9, 0.99)},
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=bundled(DEFAULT_MODEL), help="default: the bundled persian-digits")
    parser.add_argument("--data", default="synthetic", help="as in training")
    parser.add_argument("--seed", type=int, default=DATA_SEED, help="of the split, or of synthetic digits")
    parser.add_argument("--num", type=int, default=3000, help="samples for each setting")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    return parser.parse_args()


def print_row(name: str, row: dict):
    classes = " ".join(f"{100 * share:5.1f}" for share in row["by_class"].values())
    print(
        f"{name:18} {100 * row['recognized']:6.2f}% (+-{100 * row['stderr']:.2f})   FID {row['fid']:6.2f}   "
        f"coverage {row['coverage']:.3f}   by class {classes}"
    )


def main():
    args = parse_arguments()
    model, processor = load_pretrained(args.model)
    data, judge = data_and_judge(args.data, processor, args.seed)
    real = judge.features(data["validation"].pixels)
    labels = np.arange(args.num) % model.config.num_labels
    prompt = processor.prompt(class_labels=labels.tolist())

    def measure(images: Images) -> dict:
        return {**recognized(judge, images), **fidelity(real, judge.features(images.pixels))}

    rows = {}
    for name, settings in SETTINGS.items():
        torch.manual_seed(args.seed)
        samples = Images(processor.decode_pixels(model.generate(**prompt, **settings)), labels)
        rows[name] = measure(samples)
        print_row(name, rows[name])
    rows["test images"] = measure(data["test"])
    print_row("test images", rows["test images"])
    if args.output:
        write_results({"model": str(args.model), "num": args.num, "seed": args.seed, "rows": rows}, args.output)


if __name__ == "__main__":
    main()
