"""Photographs of drawings: does what the model sees agree with the drawing itself?

    python benchmarks/photographs.py --num 400 --output photographs.json

Each drawing, a few curved strokes of one pen, is photographed on one of three papers, in even or uneven light or with
a shadow. The processor makes binary pixels of the photograph and of the clean drawing, each in a call of its own.
Counted is how often both agree (intersection over union of their ink of at least 0.8), and whether strokes broke.
"""

import io
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from harness import benchmark_parser, write_results
from igpt_hf import IGPTImageProcessor
from igpt_hf.model.image_ink import count_pieces


PAPERS = {"white": (238, 0.0), "cream": (208, 0.02), "gray": (165, 0.04)}  # gray level, and strength of its grain
LIGHTS = ("even", "gradient", "soft shadow", "hard shadow")
SIDES, PENS = (100, 2000), (0.25, 3.0)  # pixels of the image; width of the pen, in pixels of the model
GOOD = 0.8  # intersection over union


def draw_strokes(rng: np.random.Generator, side: int, pen: float) -> Image.Image:
    """One to three curved strokes, black on white: (side, side). `pen` is in pixels of the photograph."""
    scale = 4 if side < 500 else 2 if side < 1000 else 1  # drawn larger, since lines have whole widths
    image = Image.new("L", (side * scale, side * scale), 255)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 4)):
        control = rng.uniform(0.12, 0.88, (4, 2)) * side * scale  # of a cubic Bezier curve
        t = np.linspace(0, 1, 200)[:, None]
        weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
        points, radius = weights @ control, pen * scale / 2
        draw.line([tuple(point) for point in points], fill=0, width=max(1, round(2 * radius)), joint="curve")
        for x, y in points:  # round pens leave no notches
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=0)
    return image.resize((side, side), Image.Resampling.BOX)


def light_on_paper(rng: np.random.Generator, light: str, side: int) -> np.ndarray:
    """How much light falls on each point of the paper: (side, side), at most 1."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, side)] * 2)
    angle = rng.uniform(0, 2 * np.pi)
    across = x * np.cos(angle) + y * np.sin(angle)
    if light == "even":
        return np.ones((side, side))
    if light == "gradient":
        return 1 - rng.uniform(0.3, 0.6) * (across + 1.5) / 3
    width = rng.uniform(0.1, 0.4) if light == "soft shadow" else rng.uniform(0.01, 0.05)
    edge = np.clip((across - rng.uniform(-0.4, 0.4)) / width, -1, 1)
    return 1 - rng.uniform(0.3, 0.6) * (edge + 1) / 2


def photograph(rng: np.random.Generator, drawing: Image.Image, paper: str, light: str) -> Image.Image:
    """A photograph of a drawing: paper with grain, light, a slightly soft lens, noise, and JPEG."""
    side, (level, grain) = drawing.width, PAPERS[paper]
    ink = 1 - np.asarray(drawing) / 255  # (side, side)
    darkness = rng.uniform(0.6, 0.9)
    coarse = rng.normal(0, grain, (max(8, side // 3),) * 2)
    texture = np.asarray(Image.fromarray(coarse.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR))
    pixels = level * (1 + texture) * light_on_paper(rng, light, side) * (1 - darkness * ink)
    blurred = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(side / 2000))
    noisy = np.asarray(blurred) + rng.normal(0, rng.uniform(1, 6), (side, side))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=int(rng.integers(75, 96)))
    return Image.open(buffer)


def compare(processor: IGPTImageProcessor, seed: int) -> dict:
    """One photograph beside its drawing: what it was, and how far both agree."""
    rng = np.random.default_rng(seed)
    side = round(np.exp(rng.uniform(*np.log(SIDES))))
    pen = np.exp(rng.uniform(*np.log(PENS)))
    paper, light = str(rng.choice(list(PAPERS))), str(rng.choice(LIGHTS))
    drawing = draw_strokes(rng, side, pen * side / processor.image_size)
    photo = photograph(rng, drawing, paper, light)
    expected, found = (processor.decode_pixels(processor.tokenize([x]))[0] for x in (drawing, photo))
    return {
        "seed": seed,
        "side": side,
        "pen": pen,
        "paper": paper,
        "light": light,
        "iou": float((expected & found).sum() / max((expected | found).sum(), 1)),
        "pieces": count_pieces(found == 1),
        "pieces_expected": count_pieces(expected == 1),
        "pieces_drawn": count_pieces(np.asarray(drawing.reduce(max(1, side // 200))) < 200),
    }


def main():
    parser = benchmark_parser(__doc__, "photographs.json")
    parser.add_argument("--num", type=int, default=400)
    parser.add_argument("--first_seed", type=int, default=0, help="photographs of other seeds are others")
    args = parser.parse_args()
    began = time.monotonic()
    rows = [compare(IGPTImageProcessor(), seed) for seed in range(args.first_seed, args.first_seed + args.num)]
    results = {
        "num": args.num,
        "good": float(np.mean([row["iou"] >= GOOD for row in rows])),
        "median_iou": float(np.median([row["iou"] for row in rows])),
        "broken": float(np.mean([row["pieces"] > row["pieces_drawn"] for row in rows])),
        "broken_drawings": float(np.mean([row["pieces_expected"] > row["pieces_drawn"] for row in rows])),
        "good_by_light": {x: float(np.mean([r["iou"] >= GOOD for r in rows if r["light"] == x])) for x in LIGHTS},
        "good_by_paper": {x: float(np.mean([r["iou"] >= GOOD for r in rows if r["paper"] == x])) for x in PAPERS},
        "seconds": time.monotonic() - began,
    }
    for row in rows:
        if row["iou"] < GOOD or row["pieces"] > row["pieces_drawn"]:
            print(row)
    write_results(results, args.output)


if __name__ == "__main__":
    main()
