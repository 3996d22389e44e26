"""What guidance toward the class, and other settings of sampling, do: are samples recognized, and diverse?

    python benchmarks/guidance.py --output guidance.json
    python benchmarks/guidance.py runs/hoda --data RemainingSamples.cdb --seed 42

As many samples of each class for each setting, from the same random numbers. A LeNet that was trained on the training
split judges them, as in `benchmarks/draws.py`; FID and coverage compare them with the validation images in its
features. `nats` is the mean NLL of the validation images by the predictions that are sampled from: near no guidance it
changes little, and what is recognized much. The last row has these numbers for test images.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from draws import DATA_SEED, data_and_judge, recognized
from harness import write_results
from igpt_hf.evaluation.sample_quality import Images, fidelity
from igpt_hf.hub.bundled import DEFAULT_MODEL, bundled
from igpt_hf.hub.loading import load_pretrained
from igpt_hf.model.neighborhood import with_start_token


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


@torch.no_grad()
def nats_per_image(model, ids: torch.Tensor, guidance_scale: float = 1.0, temperature: float = 1.0) -> float:
    """Mean NLL of images with their class, (n, 1 + N), by the predictions that `generate` would sample from."""
    total = 0.0
    for batch in ids.split(128):
        start = with_start_token(batch, model.config)
        of_class, of_any = (model(x[:, :-1], use_cache=False).logits.log_softmax(-1) for x in (batch, start))
        guided = (of_any + guidance_scale * (of_class - of_any)) / temperature
        total += cross_entropy(guided.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return total / len(ids)


def print_row(name: str, row: dict):
    classes = " ".join(f"{100 * share:5.1f}" for share in row["by_class"].values())
    nats = f"{row['nats']:6.2f}" if "nats" in row else " " * 6
    print(
        f"{name:18} {nats}   {100 * row['recognized']:6.2f}% (+-{100 * row['stderr']:.2f})   FID {row['fid']:6.2f}   "
        f"coverage {row['coverage']:.3f}   by class {classes}"
    )


def main():
    args = parse_arguments()
    model, processor = load_pretrained(args.model)
    data, judge = data_and_judge(args.data, processor, args.seed)
    ids = processor(data["validation"].pixels, class_labels=data["validation"].labels)["input_ids"]
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
        if "min_posterior" not in settings:  # which has no predictions of its own
            rows[name]["nats"] = nats_per_image(model, ids, **settings)
        print_row(name, rows[name])
    rows["test images"] = measure(data["test"])
    print_row("test images", rows["test images"])
    if args.output:
        name = Path(args.model).name  # where the package lies is nobody's business
        write_results({"model": name, "num": args.num, "seed": args.seed, "rows": rows}, args.output)


if __name__ == "__main__":
    main()
