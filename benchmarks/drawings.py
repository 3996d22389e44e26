"""How the app's Read tab reads drawings of other sizes and places, and what it calls strange.

    python benchmarks/drawings.py --output drawings.json

Digits that the bundled model has not seen, at the full, half and third size of the canvas, off center: as images,
whose strokes shrink with them, and drawn with the pen of the Read tab, whose strokes do not. Letters, scribbles and
smileys are no digits, though some letters look like one.
"""

import string

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from harness import benchmark_parser, write_results
from igpt_hf import IGPTForCausalImageModeling, IGPTImageProcessor, bundled
from igpt_hf.app.fitting import make_reference, read_drawing
from igpt_hf.app.page import READ_PEN
from igpt_hf.data.synthetic import HEIGHTS, _pen_path, _write, draw_digit


SIDE = 280  # of the canvas
PEN = round(READ_PEN * SIDE)
SIZES = {"full": 1, "half": 1 / 2, "third": 1 / 3}
STRANGE = ("strange", "stranger")


def resized(label: int, seed: int, size: float, rng: np.random.Generator) -> Image.Image:
    """A digit as an image, shrunk, anywhere on the canvas."""
    side = round(SIDE * size)
    image = Image.fromarray(draw_digit(label, np.random.default_rng(seed))).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(image, tuple(rng.integers(0, SIDE - side + 1, 2).tolist()))
    return canvas


def trace(points: np.ndarray) -> Image.Image:
    """A pen's way, (n, 2), in pixels."""
    canvas = Image.new("L", (SIDE, SIDE))
    for x, y in points:
        ImageDraw.Draw(canvas).ellipse((x - PEN / 2, y - PEN / 2, x + PEN / 2, y + PEN / 2), fill=255)
    return canvas


def drawn(label: int, seed: int, size: float, rng: np.random.Generator) -> Image.Image:
    """A digit drawn with the app's pen, anywhere on the canvas."""
    own = np.random.default_rng(seed)
    path = _write(_pen_path(label, own), own) * HEIGHTS[label]
    path = (path - path.min(0)) * SIDE * size * min(1, 0.9 / np.ptp(path, axis=0).max())
    room = SIDE - PEN - np.ptp(path, axis=0)
    return trace(path + PEN / 2 + rng.uniform(0, room))


def letter(text: str, font: str) -> Image.Image:
    canvas = Image.new("L", (SIDE, SIDE))
    face = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{font}.ttf", round(0.8 * SIDE))
    ImageDraw.Draw(canvas).text((SIDE / 2, SIDE / 2), text, fill=255, font=face, anchor="mm")
    return canvas


def scribble(seed: int, num_points: int = 9) -> Image.Image:
    """A smooth line through random points."""
    points = np.random.default_rng(seed).uniform(30, SIDE - 30, (num_points, 2))
    times = np.linspace(0, num_points - 1, 400)
    kernel = np.exp(-((times[:, None] - np.arange(num_points)) ** 2) / 0.5)
    return trace(kernel @ points / kernel.sum(1, keepdims=True))


def smiley(width: int) -> Image.Image:
    canvas = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(canvas)
    draw.ellipse((40, 40, 240, 240), outline=255, width=width)
    draw.arc((90, 100, 190, 200), 20, 160, fill=255, width=width)
    for x in (105, 175):
        draw.ellipse((x - 10, 100, x + 10, 120), fill=255)
    return canvas


def main():
    parser = benchmark_parser(__doc__, "drawings.json")
    parser.add_argument("--per_class", type=int, default=5, help="digits of each class")
    args = parser.parse_args()
    folder = bundled("persian-digits")
    model = IGPTForCausalImageModeling.from_pretrained(folder).eval()
    processor = IGPTImageProcessor.from_pretrained(folder)
    reference = make_reference(model, processor)

    def read(image: Image.Image):
        reading = read_drawing(model, processor, reference, np.asarray(image) >= 128)
        return int(reading.posterior.argmax()), reading.likeness

    results: dict = {"digits": {}, "others": {}}
    labels = np.repeat(range(10), args.per_class)
    for kind, make in {"resized images": resized, "drawn with the pen": drawn}.items():
        rng, at_full = np.random.default_rng(0), None
        for name, size in SIZES.items():
            answers = [read(make(label, 1000 + i, size, rng)) for i, label in enumerate(labels)]
            classes = np.array([one[0] for one in answers])
            at_full = classes if at_full is None else at_full
            results["digits"][f"{kind}, {name} size"] = {
                "number": len(labels),
                "right": int((classes == labels).sum()),
                "as_at_full_size": int((classes == at_full).sum()),
                "strange": sum(one[1] in STRANGE for one in answers),
            }
    others = {
        "smileys": [smiley(width) for width in (8, 11, 16, 24)],
        "scribbles": [scribble(seed) for seed in range(50)],
        "letters with serifs": [letter(text, "DejaVuSerif") for text in string.ascii_letters],
        "letters without serifs": [letter(text, "DejaVuSans") for text in string.ascii_letters],
    }
    for name, images in others.items():
        found = [read(image)[1] for image in images]
        results["others"][name] = {
            "number": len(found),
            "strange": sum(one in STRANGE for one in found),
            "stranger_than_all": found.count("stranger"),
        }
    write_results(results, args.output)


if __name__ == "__main__":
    main()
