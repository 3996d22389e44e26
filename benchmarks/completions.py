"""Complete parts of real images: is every known pixel kept, does a classifier see the class, how many answers differ?

    python benchmarks/completions.py                                          # bundled model, synthetic digits
    python benchmarks/completions.py runs/hoda --data digits.cdb --output completions.json

The first images of a split, each given in six ways: one half, all but a hole, or each pixel with probability 1/2. The
class is told, and each answer comes from a run of its own. A LeNet, trained on the same training images, judges the
answers; its accuracy on the whole images is beside it. From the scattered half of the pixels, the class is also read
by Bayes' rule.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from harness import write_results
from igpt_hf import load_splits
from igpt_hf.data.tokenized import tokenize
from igpt_hf.evaluation.likelihood import accuracy_stderr
from igpt_hf.evaluation.sample_quality import Images, cached_classifier
from igpt_hf.hub.bundled import DEFAULT_MODEL, bundled
from igpt_hf.hub.loading import load_pretrained


SEED = 0
SCATTERED = "scattered half known"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=bundled(DEFAULT_MODEL), help="default: the bundled persian-digits")
    parser.add_argument("--data", default="synthetic", help="as in igpt train")
    parser.add_argument("--split", default="test", choices=["validation", "test"], help="the images to complete")
    parser.add_argument("--num", type=int, default=200, help="this many images, the first")
    parser.add_argument("--answers", type=int, default=8, help="to each image and mask")
    parser.add_argument("--num_particles", type=int, help="of each answer; default: as generate")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    return parser.parse_args()


def input_ids(split, config) -> torch.Tensor:
    """A tokenized split -> (n, 1 + N), each image with its class as the prompt."""
    labels = torch.tensor(split["label"])[:, None]
    return torch.cat([config.vocab_size + labels, torch.tensor(split["tokens"])], dim=1)


def make_masks(num: int, size: int) -> dict[str, np.ndarray]:
    """Masks of each kind, true where a pixel is unknown: (num, size, size)."""
    rows, columns = np.mgrid[:size, :size]
    half, middle = size // 2, slice(2 * size // 7, 5 * size // 7)  # a hole of 12 x 12 in 28 x 28
    hole = np.zeros((size, size), bool)
    hole[middle, middle] = True
    kinds = {
        "upper half known": rows >= half,
        "lower half known": rows < half,
        "left half known": columns >= half,
        "right half known": columns < half,
        "hole": hole,
    }
    masks = {name: np.broadcast_to(mask, (num, size, size)) for name, mask in kinds.items()}
    return masks | {SCATTERED: np.random.default_rng(SEED).random((num, size, size)) < 0.5}


def measure(model, processor, classifier, images: Images, masks: np.ndarray, args) -> dict:
    """Complete each image; how many answers are recognized and distinct, and the median seconds an image."""
    recognized, distinct, seconds = [], [], []
    particles = {} if args.num_particles is None else {"num_particles": args.num_particles}
    for pixels, label, mask in zip(tqdm(images.pixels, disable=None), images.labels, masks, strict=True):
        prompt = processor.prompt(class_labels=[int(label)], images=pixels, mask=mask)
        began = time.perf_counter()
        answers = model.generate(**prompt, num_return_sequences=args.answers, **particles)
        seconds.append(time.perf_counter() - began)
        answers = processor.decode_pixels(answers)
        if (answers != pixels)[:, ~mask].any():
            raise AssertionError("a known pixel was not kept")
        recognized.append((classifier.predict(answers) == label).mean())
        distinct.append(len(np.unique(answers, axis=0)))
    return {
        "recognized": float(np.mean(recognized)),
        "recognized_stderr": float(np.std(recognized) / len(recognized) ** 0.5),  # answers to an image are alike
        "distinct": float(np.mean(distinct)),
        "seconds_per_image": float(np.median(seconds)),
    }


def main():
    args = parse_arguments()
    model, processor = load_pretrained(args.model)
    splits = tokenize(load_splits(args.data), processor)
    ids = {name: input_ids(splits[name], model.config) for name in ("train", args.split)}
    data = {name: Images(processor.decode_pixels(rows), np.array(splits[name]["label"])) for name, rows in ids.items()}
    classifier = cached_classifier(data["train"], model.config.num_labels, SEED)
    images = Images(*(array[: args.num] for array in data[args.split]))
    torch.manual_seed(SEED)

    results: dict = {"num_images": len(images.labels), "answers": args.answers}
    results["whole_images_recognized"] = classifier.accuracy(data[args.split])
    masks = make_masks(len(images.labels), model.config.image_size)
    for name, kind in masks.items():
        results[name] = measure(model, processor, classifier, images, kind, args)
        print(f"{name:22} " + "  ".join(f"{key} {value:.4g}" for key, value in results[name].items()), flush=True)

    posterior = model.class_posterior(ids[args.split][: args.num], mask=masks[SCATTERED]).argmax(1).numpy()
    accuracy = float((posterior == images.labels).mean())
    results["bayes_accuracy_of_scattered_half"] = accuracy
    results["bayes_accuracy_stderr"] = accuracy_stderr(accuracy, len(images.labels))
    shown = {"classifier, whole images": results["whole_images_recognized"], "Bayes, scattered half": accuracy}
    print("  ".join(f"{name} {value:.4f}" for name, value in shown.items()))
    if args.output:
        write_results(results, args.output)


if __name__ == "__main__":
    main()
