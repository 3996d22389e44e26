"""What the page answers: settings and drawings in, HTML out. Without Gradio."""

import base64
import functools
import html
import io
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from ..evaluation.surprise import surprise_maps
from ..evaluation.typicality import percentiles
from ..hub.bundled import SURE
from ..model.image_decision import is_photograph
from ..model.image_upload import by_itself
from .elements import bars, columns_for, data_uri, downloads, figure, grid, percent, say, scale, waiting
from .fitting import Reading, Reference, fit_drawing, make_reference, read_drawing, stroke_width


MAX_IMAGES, MAX_SEED, MAX_TEMPERATURE, MAX_GUIDANCE = 16, 2**32 - 1, 2.0, 5.0
TEMPERATURE = 0.8  # with which the page begins
MAX_CANVAS_BYTES = 2_000_000
MAX_CANVAS_SIDE = 2000
NUM_EXAMPLES = 5
NUM_COMPLETIONS = 7  # with what is given, two rows
ANY = -1  # stands for no class
PERSIAN = ("persian", "hoda", "synthetic")  # names of folders of models of Persian digits
VERDICTS = {
    "stranger": "Stranger than anything I was trained on",
    "strange": "Strange beside 99 of 100 images that I know",
    "simpler": "Simpler than anything I was trained on",
    "simple": "Simpler than 99 of 100 images that I know",
}
NATS = "<b>Nats</b> measure how much a whole image surprises the model: −ln of its probability. Fewer: more likely."


# --- requests -------------------------------------------------------------------------------------------------------


class NothingDrawnError(ValueError):
    """The sheet is empty."""


def class_choices(config) -> list[tuple[str, int]]:
    """(text, class index) of each class, and of any; a Persian digit stands before the name of one.

    A model's folder tells whether its digits are Persian.
    """
    choices, is_persian = [], any(word in Path(config.name_or_path).name.lower() for word in PERSIAN)
    for label, name in sorted(config.id2label.items()):
        is_digit = is_persian and name.isascii() and name.isdigit() and len(name) == 1
        choices.append((f"{chr(0x6F0 + int(name))}  {name}" if is_digit else name, label))
    return [*choices, ("any", ANY)]


def check_range(name: str, value, low: float, high: float, is_whole: bool = False):
    """Raises ValueError, in words, unless `value` is a number from `low` to `high`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (is_whole and value != int(value)):
        kind, given = "whole number" if is_whole else "number", "empty" if value is None else value
        raise ValueError(f"{name} must be a {kind} from {low:,} to {high:,}, not {given}.")


class Settings(NamedTuple):
    """What images are asked for; the first three are those of completions, too.

    Attributes:
        label: Index of the class; `ANY` for any class.
        num: How many images.
        seed: The same seed gives the same images.
        temperature, guidance: As `generate` takes them.
        is_sure: Whether images that the model itself would not read as their class are sampled again.
    """

    label: int
    num: int
    seed: int
    temperature: float = 1.0
    guidance: float = 1.0
    is_sure: bool = False

    def check(self, config):
        """Raise ValueError if a value is out of its range, whoever sent it."""
        check_range("The class", self.label, ANY, config.num_labels - 1, is_whole=True)
        check_range("The number of images", self.num, 1, MAX_IMAGES, is_whole=True)
        check_range("The seed", self.seed, 0, MAX_SEED, is_whole=True)
        check_range("The temperature", self.temperature, 0.1, MAX_TEMPERATURE)
        check_range("Guidance", self.guidance, 0, MAX_GUIDANCE)

    def to_query(self, config) -> str:
        """The query of an address that asks for the same images."""
        values = self._asdict() | {"label": self.class_name(config), "is_sure": int(self.is_sure)}
        return urlencode({"class": values.pop("label"), **values})

    @classmethod
    def from_query(cls, query: dict[str, str], config, **defaults) -> "Settings":
        """Read what `to_query` writes.

        Raises:
            ValueError: A value that is no number or out of its range, or a class that the model does not have.
        """
        values = {}
        for name in (name for name in cls._fields if name in query):
            try:
                value = float(query[name])
            except ValueError as error:
                raise ValueError(f"The link is damaged: {name}={query[name]} is no number.") from error
            values[name] = int(value) if value.is_integer() else value
        if query.get("class", "any") != "any":
            values["label"] = config.label_index(query["class"])
        settings = cls(**defaults | values)
        settings.check(config)
        return settings._replace(is_sure=bool(settings.is_sure))

    def class_name(self, config) -> str:
        return "any" if self.label == ANY else config.class_names[self.label]


def open_drawing(drawing: str | None) -> Image.Image:
    """What the drawing area sends, a PNG as a data: address -> the image.

    Raises:
        ValueError: It is not such a PNG.
    """
    prefix = "data:image/png;base64,"
    if not drawing:
        raise NothingDrawnError("There is nothing here yet: draw something first.")
    if not isinstance(drawing, str) or not drawing.startswith(prefix) or len(drawing) > MAX_CANVAS_BYTES:
        raise ValueError(f"A drawing is a PNG as a data: address of at most {MAX_CANVAS_BYTES:,} characters.")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(drawing[len(prefix) :])), formats=["PNG"])
        if max(image.size) > MAX_CANVAS_SIDE:
            raise ValueError(f"A drawing has at most {MAX_CANVAS_SIDE} pixels a side.")
        return image.convert("RGBA")
    except (OSError, SyntaxError) as error:  # PIL raises the second on broken PNG files
        raise ValueError("The drawing could not be read as a PNG.") from error


def flatten(image: Image.Image) -> Image.Image:
    """The gray levels of an image that may be transparent, on a ground that contrasts with what is opaque."""
    gray, alpha = image.convert("L"), image.getchannel("A")
    levels = np.asarray(gray)[np.asarray(alpha) >= 128]
    ground = 255 if len(levels) and levels.mean() < 128 else 0
    return Image.composite(gray, Image.new("L", image.size, ground), alpha)


def find_ink(processor, gray: Image.Image) -> np.ndarray:
    """The ink of a gray image, dark or light: booleans, in its own size; a photograph fitted to the model.

    Raises:
        NothingDrawnError: There is none.
    """
    low, high = gray.getextrema()
    if high - low < 64:  # type: ignore[operator]  # PIL: or pairs, of several bands
        raise NothingDrawnError("There is nothing here yet: draw something first.")
    if is_photograph(gray):
        return np.asarray(processor.fit_upload(gray)) > 0
    return np.asarray(by_itself(processor).decide([gray]).read(gray)) >= 128


def how_many_differ(images: np.ndarray) -> str:
    """In words, how many different ones there are among images (n, height, width)."""
    num = len(np.unique(images, axis=0))
    return {1: "all the same", len(images): "all different"}.get(num, f"{num} of them different")


# --- answers --------------------------------------------------------------------------------------------------------


def alone(method):
    """While one thread answers, the others wait: seeds set the one generator of random numbers."""

    @functools.wraps(method)
    def locked(self, *args):
        with self.lock:
            return method(self, *args)

    return locked


class Answers:
    """The answers of one model, one at a time.

    Attributes:
        examples: Images to start from, samples of some classes, with their names.
        stroke_width: Of the examples, in pixels.
        reference: What its samples are like, class by class, found out at the first reading.
    """

    def __init__(self, model, processor):
        self.model, self.processor, self.config = model, processor, model.config
        self.lock = threading.RLock()
        self.names = {label: text for text, label in class_choices(model.config)}

    @functools.cached_property
    def examples(self) -> list[tuple[str, Image.Image]]:
        num = min(NUM_EXAMPLES, self.config.num_labels)
        labels = np.arange(1, num + 1) * self.config.num_labels // num - 1  # the last of them is the last class
        with torch.random.fork_rng():
            torch.manual_seed(1)
            prompt = self.processor.prompt(class_labels=labels)
            ids = self.model.generate(**prompt, temperature=TEMPERATURE, min_posterior=SURE)
        names = [self.config.class_names[label] for label in labels]
        return list(zip(names, self.processor.decode(ids), strict=True))

    @property
    def stroke_width(self) -> float:
        masks = [np.asarray(image) > 0 for _, image in self.examples]
        return float(np.median([stroke_width(mask) for mask in masks if mask.any()] or [1]))

    @functools.cached_property
    @alone
    def reference(self) -> Reference:
        return make_reference(self.model, self.processor)

    @alone
    def generate(self, settings: Settings) -> str:
        """Sample images."""
        settings.check(self.config)
        torch.manual_seed(int(settings.seed))
        labels = self._labels(settings)
        if labels is None and settings.is_sure:  # a class for each, so that it can be recognized
            labels = torch.randint(self.config.num_labels, (int(settings.num),)).tolist()
        prompt = self.processor.prompt(class_labels=labels)["input_ids"]
        scales = {"temperature": float(settings.temperature), "guidance_scale": float(settings.guidance)}
        least = {"min_posterior": SURE} if settings.is_sure else {}
        ids = self.model.generate(prompt.expand(int(settings.num), -1), **scales, **least)
        blank = Image.new("LA", (self.config.image_size,) * 2)
        name = settings.class_name(self.config)
        files = downloads(
            self.processor.decode_pixels(ids),
            self.processor,
            f"class-{name}-seed-{int(settings.seed)}",
            link=settings.to_query(self.config),
        )
        what = "of any class" if settings.label == ANY else f"of class {html.escape(self.names[int(settings.label)])}"
        intro = say(f"{len(ids)} {'image' if len(ids) == 1 else 'images'} {what}, seed {int(settings.seed)}.")
        sheet = self._sheet(ids, blank, is_named=settings.label == ANY, is_sure=settings.is_sure)
        return intro + sheet + files + f'<p class="note">{NATS}</p>'

    @alone
    def complete(self, drawing, settings: Settings) -> str:
        """Keep what of a drawing is opaque, and sample the rest."""
        settings.check(self.config)
        pixels, hidden = self._known_part(drawing)
        prompt = self.processor.prompt(class_labels=self._labels(settings), images=pixels, mask=hidden)
        torch.manual_seed(int(settings.seed))
        ids = self.model.generate(**prompt, num_return_sequences=int(settings.num))
        given = Image.fromarray(pixels * 255).convert("LA")
        given.putalpha(Image.fromarray((~hidden).astype(np.uint8) * 255))  # what is not given is transparent
        start = figure(given, "given", "What is given; the unknown part is blank.")
        drawn = self.processor.decode_pixels(ids)
        files = downloads(drawn, self.processor, f"completions-seed-{int(settings.seed)}", ~hidden)
        num_empty = int((drawn == pixels).all(axis=(1, 2)).sum())
        text = f"{len(ids)} completions, {how_many_differ(drawn)}, seed {int(settings.seed)}."
        intro = say(text + (f" In {num_empty} of them the hidden part stays blank." if num_empty else ""))
        return intro + self._sheet(ids, given, [start]) + files + f'<p class="note">{NATS}</p>'

    @alone
    def guess(self, drawing) -> str:
        """The class of a drawing of which a part is hidden, by Bayes' rule."""
        pixels, hidden = self._known_part(drawing)
        torch.manual_seed(0)
        posterior = self.model.class_posterior(self.processor(pixels)["input_ids"], mask=hidden)[0]
        best = int(posterior.argmax())
        name, share = html.escape(self.names[best]), percent(posterior[best].item())
        text = f"From the visible part, most likely <b>{name}</b> ({share})."
        return say(text) + bars([self.names[label] for label in range(len(posterior))], posterior.tolist())

    @alone
    def read(self, drawing) -> str:
        """The class of a drawing, by Bayes' rule, how strange it is, and how surprising each of its pixels is."""
        try:
            ink = find_ink(self.processor, flatten(open_drawing(drawing)))
            if not ink.any():
                raise NothingDrawnError
        except NothingDrawnError:
            return waiting("There is nothing here yet: draw something, or upload an image.")
        reading = read_drawing(self.model, self.processor, self.reference, ink)
        ids, posterior, nats, _ = reading
        surprise = surprise_maps(self.model, ids)["pixels"][0]
        colors = colormaps["magma"](np.sqrt(surprise / max(surprise.max(), 1)))[..., :3]  # or one pixel outshines all
        seen = figure(
            self.processor.decode(ids)[0], "what the model sees", "The drawing, fitted as the model sees it."
        )
        surprised = figure(
            Image.fromarray((colors * 255).astype(np.uint8)),
            f"its surprise, given the class: {surprise.sum():.1f} nats, up to {surprise.max():.1f} in one pixel",
            "The same, bright where a pixel surprises the model.",
        )
        usual = scale(nats, self.config.nats_quantiles) if self.config.nats_quantiles else ""
        shares = bars([self.names[label] for label in range(len(posterior))], posterior.tolist())
        return (
            say(self._verdict(reading)) + usual + shares + grid([seen, surprised], 2) + f'<p class="note">{NATS}</p>'
        )

    @alone
    def fit(self, drawing) -> str:
        """Fit an upload as the data is, cropped and thickened where needed -> its image as a data: address.

        An image of the model's size stays as it is.

        Raises:
            ValueError: Nothing is left of it.
        """
        image = flatten(open_drawing(drawing))
        fitted = self.processor.fit_upload(image)
        if image.size == fitted.size or is_photograph(image):  # which is cropped and thickened already
            return data_uri(fitted)
        ids, _ = fit_drawing(self.model, self.processor, self.reference, find_ink(self.processor, image))
        return data_uri(self.processor.decode(ids)[0])

    def _labels(self, settings: Settings) -> list[int] | None:
        return None if settings.label == ANY else [int(settings.label)]

    def _known_part(self, drawing) -> tuple[np.ndarray, np.ndarray]:
        """A drawing -> its pixels, 0/1, and which of them are hidden: (image_size, image_size) each.

        Raises:
            ValueError: Nothing is hidden, or all that is drawn.
        """
        size = (self.config.image_size,) * 2
        image = open_drawing(drawing)
        *_, alpha = image.split()
        hidden = np.asarray(alpha.resize(size, Image.Resampling.BOX)) < 128
        gray = image.convert("L").resize(size, Image.Resampling.BOX)
        pixels = ((np.asarray(gray) >= 128) & ~hidden).astype(np.uint8)
        if not hidden.any():
            raise ValueError("Nothing is hidden: paint over the unknown part with Hide, or keep fewer rows.")
        if not pixels.any():
            raise NothingDrawnError("Nothing is visible: draw something, reveal a part, or start from an example.")
        return pixels, hidden

    def _sheet(
        self,
        ids: torch.Tensor,
        given: Image.Image,
        first: Sequence[str] = (),
        is_named: bool = False,
        is_sure: bool = False,
    ) -> str:
        """Images that grow over what is given, with their nats.

        Args:
            first: Figures before them.
            is_named: Write the class beside the nats; of images of any class, always what they read as.
            is_sure: Say of which images the model is not sure, after all tries.
        """
        is_any = bool((ids[:, 0] == self.config.start_token_id).all())
        labels = ids[:, 0] - self.config.vocab_size
        if is_any or is_sure:
            posterior = self.model.class_posterior(ids)  # (n, num_labels)
            labels = posterior.argmax(1) if is_any else labels
            is_unsure = (posterior.gather(1, labels[:, None])[:, 0] < SURE).tolist()
        figures = list(first)
        rows = zip(self.processor.decode(ids), labels.tolist(), -self.model.log_likelihood(ids), strict=True)
        for index, (image, label, nats) in enumerate(rows):
            caption = f"{html.escape(self.names[label])}: " if is_any or is_named else ""
            caption += f"{nats:.1f} nats" + (", unsure" if is_sure and is_unsure[index] else "")
            name, verb = self.config.class_names[label], "reads as" if is_any else "was asked to be"
            alt = f"A sampled image that {verb} {name}."
            figures.append(figure(image, caption, alt, given, self.config.patch_size))
        return grid(figures, columns_for(len(figures)))

    def _verdict(self, reading: Reading) -> str:
        """What it reads, and whether it is like the images that the model was trained on."""
        best = int(reading.posterior.argmax())
        name = f"<b>{html.escape(self.names[best])}</b>"
        if reading.likeness in VERDICTS:
            return f"{VERDICTS[reading.likeness]}. The closest class is {name}."
        name += f" ({percent(reading.posterior[best].item())})"
        if reading.likeness is None:
            return f"I read {name}."
        rank = percentiles(torch.tensor([reading.nats]), self.config.nats_quantiles)[0]
        return f"I read {name}. More surprising than {rank:.0f}% of the validation images."
