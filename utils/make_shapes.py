"""Draw the data set of the gallery: twelve invented letters and four kinds of masks, a folder per class.

    python utils/make_shapes.py shapes
    igpt train --data shapes --output_dir runs/shapes --num_train_epochs 12 --per_device_train_batch_size 16

A letter is a few strokes between points that are the same in each drawing but for a little jitter, slant and stretch,
as in Omniglot's alphabets. A mask is filled, with an outline that wobbles: one cell, two cells, a ring, a branch.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


SIDE = 64  # pixels
LETTERS = "abcdefghijkl"


def letter(forms: np.random.Generator):
    """Invent a letter: two or three strokes (n, 2) through distinct points of a 3 by 3 grid."""
    lengths = [forms.integers(2, 5) for _ in range(forms.integers(2, 4))]
    grid = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), axis=-1).reshape(9, 2) * 0.36
    return [grid[forms.choice(9, length, replace=False)] for length in lengths]


def draw_letter(strokes, rng: np.random.Generator) -> Image.Image:
    """Draw a letter as one more writer would."""
    image = Image.new("L", (SIDE, SIDE))
    matrix = np.eye(2) + 0.08 * rng.standard_normal((2, 2))
    width = int(rng.integers(5, 8))
    for stroke in strokes:
        points = ((stroke + 0.025 * rng.standard_normal(stroke.shape)) @ matrix + 0.5) * SIDE
        ImageDraw.Draw(image).line([tuple(point) for point in points], fill=255, width=width, joint="curve")
        for x, y in points[[0, -1]]:
            ImageDraw.Draw(image).circle((x, y), width / 2, fill=255)
    return image


def outline(center, radius: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """A closed curve around a center whose radius wobbles: points in pixels."""
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    amplitudes, phases = 0.1 * rng.standard_normal(4), rng.uniform(0, 2 * np.pi, 4)
    waves = np.cos(np.outer(angles, np.arange(2, 6)) + phases) @ (amplitudes / np.arange(1, 5))
    radii = SIDE * radius * (1 + waves)
    x, y = np.array(center) * SIDE
    return list(zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True))


def draw_mask(kind: str, rng: np.random.Generator) -> Image.Image:
    """Draw a mask of a kind."""
    image = Image.new("L", (SIDE, SIDE))
    pen, center = ImageDraw.Draw(image), 0.5 + 0.05 * rng.standard_normal(2)
    if kind == "one cell":
        pen.polygon(outline(center, rng.uniform(0.2, 0.35), rng), fill=255)
    elif kind == "ring":
        pen.polygon(outline(center, rng.uniform(0.3, 0.38), rng), fill=255)
        pen.polygon(outline(center, rng.uniform(0.12, 0.2), rng), fill=0)
    else:
        angle = rng.uniform(0, 2 * np.pi)
        step = np.array([np.cos(angle), np.sin(angle)])
        if kind == "two cells":
            for side in (-1, 1):
                pen.polygon(outline(center + side * 0.22 * step, rng.uniform(0.12, 0.19), rng), fill=255)
        else:
            for turn in (0, rng.uniform(1.7, 2.5), rng.uniform(3.8, 4.6)):
                tip = center + 0.42 * np.array([np.cos(angle + turn), np.sin(angle + turn)])
                pen.line([tuple(center * SIDE), tuple(tip * SIDE)], fill=255, width=int(rng.integers(5, 9)))
    return image


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the folders of the classes")
    parser.add_argument("--num", type=int, default=300, help="images of each class")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    forms, rng = np.random.default_rng(args.seed), np.random.default_rng(args.seed + 1)
    classes = {f"letter {name}": (draw_letter, letter(forms)) for name in LETTERS}
    classes |= {kind: (draw_mask, kind) for kind in ("one cell", "two cells", "ring", "branch")}
    for name, (draw, what) in classes.items():
        (args.output / name).mkdir(parents=True, exist_ok=True)
        for i in range(args.num):
            draw(what, rng).save(args.output / name / f"{i}.png")
    print(f"{len(classes)} classes of {args.num} images -> {args.output}")


if __name__ == "__main__":
    main()
