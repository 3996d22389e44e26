"""Images to tokens and back: a token is a lossless block of binary pixels.

With `patch_size=2` a block has four pixels, so there are 2**4 = 16 tokens and a 28x28 image is 196 of them. Bit k of a
token, least significant first, is pixel k of its block in raster order; blocks follow in raster order too:

    pixels of a block    bits      token
         1 0             1 + 4*0
         1 1             ...       1*1 + 0*2 + 1*4 + 1*8 = 13

Because the blocks partition the image and every block has its own token, nothing is lost: `decode` is the exact
inverse of `tokenize`, and a likelihood over tokens is a likelihood over pixels.
"""

import copy
import inspect
import math
from collections.abc import Mapping
from numbers import Integral

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .image_decision import FULL_RANGE, INKS, Survey, decide_shrinking, spread, usual_margin
from .image_ink import draw_whole, even_out_light
from .image_reading import GrayImage, as_list, has_light_border, read_image, to_marked_image
from .image_upload import binarize_upload, fit_upload, is_like_data, like_data
from .masks import known_tokens
from .tokens import TokenGrid, pixels_to_tokens, tokens_to_pixels


MAX_LOOKED_AT, MAX_SHRUNK = 2000, 100  # images that `decide` looks at, and those that it shrinks


class IGPTImageProcessor(TokenGrid, BaseImageProcessor):
    """Turn images of any size and mode into binary tokens with their prompt, and tokens back into images.

    Args:
        image_size: Height and width of the binary images, in pixels; a multiple of `patch_size`.
        patch_size: Height and width of the block of pixels that one token stands for (1 to 4).
        num_labels: Number of classes. Prompt id `vocab_size + label` asks for a class, `vocab_size + num_labels` for
            any class (the start token).
        threshold: A pixel is foreground where its gray level, in [0, 1], is at least this; "auto" is 0.5 between the
            two `levels`; "local" evens out the light that falls on photographs first.
        invert: Make images white on black: "never", "always", or "auto", which does what `ink` says.
        margin: Pixels kept free around a crop, an image whose ink reaches all four edges, so that tightly cropped
            digits look like digits on a canvas (MNIST's have a margin of 4). An image that has the size `image_size`
            already stays as it is.
        binarize: "threshold", or "stochastic": each pixel is 1 with probability equal to its gray level (the
            protocol of dynamically binarized MNIST).
        ink: What of an image becomes white: "dark", "light" or "opacity". With "opacity" an image without transparent
            pixels has a light or a dark border, and ink is the opposite. Boolean arrays, whole numbers that are all
            0 or 1, and images made by this package are white on black already.
        levels: The gray levels, from 0 to 255, that become 0 and 1 of `threshold`; those outside are cut off.
        widen_strokes: Make strokes that would be thinner than one pixel as wide as one before an image shrinks.
        ink_margin: Pixels that are usually free around the ink of the data, for `fit_upload`; None: `margin`.

    The last four, and `threshold` "auto", are decided by `decide` for a whole data set, and saved with the rest. As
    long as `ink`, `levels` or `widen_strokes` is undecided ("auto", None), each call decides, over all its images
    together.

    Raises:
        ValueError: A size, threshold or mode out of its range.

    Example:
        >>> processor = IGPTImageProcessor()
        >>> tokens = processor.tokenize(image)                           # (1, 196), uint8
        >>> processor.decode(tokens)[0]                                  # the binary image again
        >>> processor(image, class_labels=[3])["input_ids"].shape        # (1, 1 + 196)
    """

    model_input_names = ["input_ids"]

    def __init__(
        self,
        image_size: int = 28,
        patch_size: int = 2,
        num_labels: int = 10,
        threshold: float | str = "auto",
        invert: str = "auto",
        binarize: str = "threshold",
        margin: int = 0,
        ink: str = "auto",
        levels: tuple[float, float] | None = None,
        widen_strokes: bool | None = None,
        ink_margin: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_labels = num_labels
        self.check_sizes()
        if threshold not in ("auto", "local") and (isinstance(threshold, str) or not 0 < threshold <= 1):
            raise ValueError(f"threshold is a gray level in (0, 1], 'auto' or 'local', got {threshold}.")
        if invert not in ("auto", "never", "always"):
            raise ValueError(f"invert must be 'auto', 'never' or 'always', got {invert!r}.")
        if not 0 <= margin < image_size / 2:
            raise ValueError(f"margin must lie between 0 and half of image_size={image_size}, got {margin}.")
        if binarize not in ("threshold", "stochastic"):
            raise ValueError(f"binarize must be 'threshold' or 'stochastic', got {binarize!r}.")
        if ink not in INKS:
            raise ValueError(f"ink must be one of {', '.join(INKS)}, got {ink!r}.")
        if levels is not None and (len(levels) != 2 or not levels[0] < levels[1]):
            raise ValueError(f"levels are two gray levels from 0 to 255, the darker first, got {levels}.")
        self.threshold = threshold
        self.invert = invert
        self.binarize = binarize
        self.margin = margin
        self.ink = ink
        self.levels = levels if levels is None else tuple(levels)
        self.widen_strokes = widen_strokes
        self.ink_margin = ink_margin

    @classmethod
    def from_dict(cls, image_processor_dict, **kwargs):
        """Make a processor of saved settings; what `from_pretrained` is given beside them is checked like these."""
        settings = {name: kwargs.pop(name) for name in inspect.signature(cls).parameters if name in kwargs}
        return super().from_dict({**image_processor_dict, **settings}, **kwargs)

    # --- one decision for a data set --------------------------------------------------------------------------------

    @property
    def is_decided(self) -> bool:
        """Whether the tokens of an image no longer depend on the images it comes with."""
        return None not in (self.levels, self.widen_strokes) and (self.ink, self.invert) != ("auto", "auto")

    @property
    def chosen_ink(self) -> str:
        """What of an image becomes white: what `invert` says, or else `ink`."""
        return {"never": "light", "always": "dark", "auto": self.ink}[self.invert]

    def decide(self, images) -> "IGPTImageProcessor":
        """Decide over a whole data set what is not decided yet: a copy whose tokens do not depend on the batch.

        Args:
            images: Anything that `to_gray` takes. Of more than 2,000, as many are looked at, evenly spaced.
        """
        if self.is_decided:
            return self
        images = as_list(images, self.image_size)
        rows = spread(range(len(images)), MAX_LOOKED_AT)
        decided, survey = copy.copy(self), Survey(read_image(images[row], row) for row in rows)
        if self.ink == "auto":
            decided.ink = {"always": "dark", "never": "light", "auto": survey.find_ink()}[self.invert]
        if self.levels is None:
            is_local, is_given = self.threshold == "local", not isinstance(self.threshold, str)
            decided.levels = FULL_RANGE if is_local else survey.find_levels(decided.ink, only_pairs=is_given)
        large = [row for row, side in zip(rows, survey.sides, strict=True) if side > self.image_size]
        decided = decide_shrinking(decided, [read_image(images[row], row) for row in spread(large, MAX_SHRUNK)])
        if self.ink_margin is None:
            some = [read_image(images[row], row) for row in spread(rows, MAX_SHRUNK)]
            decided.ink_margin = usual_margin(decided, some)
        return decided

    def replace(self, **settings) -> "IGPTImageProcessor":
        """A copy with other settings, which are not checked."""
        other = copy.copy(self)
        vars(other).update(settings)
        return other

    def fit_binary(self, image: GrayImage) -> np.ndarray:
        """Fit one image that was read -> (image_size, image_size), booleans, by threshold."""
        return self.fit_ink(self.to_ink(image))

    def fit_ink(self, ink: Image.Image) -> np.ndarray:
        """`fit_binary` of what `to_ink` returns."""
        return self.fit(ink, self.is_crop(ink)) >= self.level * 255

    @property
    def level(self) -> float:
        """Gray level, in [0, 1], from which on a pixel is white."""
        return 0.5 if isinstance(self.threshold, str) else self.threshold

    # --- images -> gray -> binary -> tokens -------------------------------------------------------------------------

    def to_gray(self, images) -> np.ndarray:
        """Fit images to `image_size`, white on black: anything image-like -> (n, image_size, image_size), uint8 gray.

        Gray and color become gray, ink becomes light (see `ink`), larger images shrink to fit with an antialiasing
        filter and keep their aspect ratio, smaller ones are centered.

        Args:
            images: One image or many, as PIL images, paths, arrays or tensors:

                * one image: a PIL image, a path, (height, width) or (height, width, channels);
                * many: a list of images, where (channels, height, width) is an image too; an array (n, height, width),
                  (n, height, width, channels) or (n, channels, height, width).

                1, 2, 3 or 4 channels are gray, gray with alpha, RGB or RGBA. Booleans and zeros and ones are binary
                (1 = white foreground), other integers are levels from 0 to 255, floats are levels from 0 to 1.

        Raises:
            ValueError: Something that is not an image, with its position; or an ambiguous array, with what to pass
                instead: (3, height, width) that is not binary integers may be one color image, and
                (n, image_size**2) flattened images.
        """
        images = as_list(images, self.image_size)
        decided = self.decide(images)
        inks = (decided.read(image, index) for index, image in enumerate(images))
        return np.stack([decided.fit(ink, decided.is_crop(ink)) for ink in inks])

    def read(self, image, index: int = 0) -> Image.Image:
        """Read one image of any kind -> its ink, light on dark, in the size of `to_ink`.

        The processor has decided; `index` is the image's position among others, for messages.
        """
        return self.to_ink(read_image(image, index))

    def is_crop(self, ink: Image.Image) -> bool:
        """Whether the ink reaches all four edges; an image of `image_size` already is not a crop."""
        if ink.size == (self.image_size, self.image_size):
            return False
        width, height = ink.size
        edges = ((0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height))
        return all(ink.crop(edge).getextrema()[1] >= self.level * 255 for edge in edges)

    def fit(self, ink: Image.Image, is_crop: bool) -> np.ndarray:
        """Shrink what `read` returns if it is too large, and center it -> (image_size, image_size), uint8.

        A crop leaves the margin free.
        """
        fitted = self._shrink(ink, is_crop)
        if self.widen_strokes and fitted.size != ink.size:
            fitted = draw_whole(ink, fitted, self.level * 255)
        return self._center(fitted)

    def _shrink(self, image: Image.Image, is_crop: bool) -> Image.Image:
        scale = (self.image_size - 2 * self.margin * is_crop) / max(image.size)
        if scale >= 1:
            return image
        width, height = (max(1, round(side * scale)) for side in image.size)
        return image.resize((width, height), Image.Resampling.BILINEAR)

    def _center(self, image: Image.Image) -> np.ndarray:
        canvas = np.zeros((self.image_size, self.image_size), np.uint8)
        top, left = (self.image_size - image.height) // 2, (self.image_size - image.width) // 2
        canvas[top : top + image.height, left : left + image.width] = np.asarray(image)
        return canvas

    def fit_mask(self, image, mask: np.ndarray, index: int) -> np.ndarray:
        """Place a mask as `fit` places its image: (h, w) -> (image_size, image_size), booleans.

        A pixel is unknown where any unknown pixel has a part in it. What surrounds the image on the canvas is known.
        """
        read = read_image(image, index)
        width, height = read.gray.size
        if mask.shape != (height, width):
            raise ValueError(
                f"mask {index} has {mask.shape[1]}x{mask.shape[0]} pixels and its image {width}x{height}: "
                "a mask has the size of its image."
            )
        ink = self.to_ink(read)
        fitted = self._shrink(ink, self.is_crop(ink))
        unknown = Image.fromarray(mask.astype(np.float32)).resize(fitted.size, Image.Resampling.BILINEAR)
        return self._center(Image.fromarray(np.asarray(unknown) > 0)) > 0

    def to_ink(self, image: GrayImage) -> Image.Image:
        """The ink of an image, light on dark, in its own size; that of large photographs is smaller."""
        gray, ink = image.gray, self.chosen_ink
        if image.is_own or (self.invert == "auto" and image.is_white):
            ink = "light"
        elif ink == "opacity" and image.opacity is not None:
            gray, ink = image.opacity, "light"
        elif ink == "opacity":
            ink = "dark" if has_light_border(gray) else "light"
        if image.opacity is not None and gray is not image.opacity:  # lay it over paper
            gray = Image.composite(gray, Image.new("L", gray.size, 255 if ink == "dark" else 0), image.opacity)
        if self.levels != FULL_RANGE:
            low, high = self.levels
            gray = gray.point([round(255 * min(max((level - low) / (high - low), 0), 1)) for level in range(256)])
        if ink == "dark":
            gray = gray.point([255 - level for level in range(256)])
        return even_out_light(gray) if self.threshold == "local" and max(gray.size) > self.image_size else gray

    def fit_upload(self, image) -> Image.Image:
        """Fit one image that somebody gives a trained model: a binary image of `image_size`, white on black.

        An image like those of the data is read like them. One on which that finds no ink, or a background that is ink,
        is read by itself; so is a photograph, which is also cropped to its ink, with the data's margin around it.

        Raises:
            ValueError: No ink is left, or more than one image was given.
        """
        return fit_upload(self, image)

    def is_like_data(self, image) -> bool:
        """Whether one image is read well by what was decided for the data.

        It is where some of it is ink, unless it is one even sheet, and most of its border is none: that is how the
        data's own ink is found, too.
        """
        return is_like_data(self, image)

    def tokenize_upload(self, image) -> np.ndarray:
        """Tokens of one image that somebody gives a trained model, the same at each call: (1, num_image_tokens).

        Those of the data, where `is_like_data`; else those of `fit_upload`.

        Raises:
            ValueError: No ink is left, or more than one image was given.
        """
        return self.tokenize(like_data(self, image), np.random.default_rng(0))

    def binarize_upload(self, image, mask):
        """Binarize one image of which a part is unknown, in its own size, where it is not `is_like_data`.

        Only the known pixels count. An image like the data is returned as it is: `prompt` takes both.

        Args:
            image: Of any kind.
            mask: As in `prompt`: true (white) where a pixel is unknown.
        """
        return binarize_upload(self, image, mask)

    def binarize_gray(self, gray: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """Binarize gray levels 0..255 by threshold or, with `binarize="stochastic"`, at random: same shape, 0/1."""
        if self.binarize == "stochastic":
            generator = generator or np.random.default_rng()
            return (generator.random(gray.shape, dtype=np.float32) * 255 < gray).astype(np.uint8)
        return (gray >= self.level * 255).astype(np.uint8)

    def tokenize(self, images, generator: np.random.Generator | None = None) -> np.ndarray:
        """Turn images into tokens: anything that `to_gray` takes -> (n, num_image_tokens), unsigned integers.

        `generator` samples the pixels where `binarize="stochastic"`.
        """
        return pixels_to_tokens(self.binarize_gray(self.to_gray(images), generator), self.patch_size)

    def __call__(self, images, class_labels=None, return_tensors: str | None = "pt") -> BatchFeature:
        """Turn images into the model's training input: `input_ids` and `labels`, both (n, 1 + num_image_tokens).

        Args:
            images: Anything that `to_gray` takes.
            class_labels: One class index per image, or None for the start token. The prompt's label is -100: it is
                given, not predicted.
            return_tensors: "pt", "np" or None.
        """
        tokens = torch.from_numpy(self.tokenize(images).astype(np.int64))
        prompt = self._prompt_ids(_label_list(class_labels), len(tokens))
        data = {
            "input_ids": torch.cat([prompt, tokens], dim=1),
            "labels": torch.cat([torch.full_like(prompt, -100), tokens], dim=1),
        }
        return BatchFeature({key: value.numpy() for key, value in data.items()}, tensor_type=return_tensors)

    def preprocess(self, images, class_labels=None, return_tensors: str | None = "pt") -> BatchFeature:
        """Do what calling the processor does; transformers' image processors have both names."""
        return self(images, class_labels=class_labels, return_tensors=return_tensors)

    # --- prompts ----------------------------------------------------------------------------------------------------

    def prompt(
        self,
        class_labels=None,
        images=None,
        keep_rows: int | None = None,
        return_tensors: str | None = "pt",
        mask=None,
    ) -> BatchFeature:
        """Make the prompt of `model.generate`: `input_ids` (n, 1), or (n, 1 + given tokens) to complete images.

        Args:
            class_labels: Class index or indices, one per image wanted; None asks for any class.
            images: Images of which a part is given. One image is used for all labels, one label for all images.
            keep_rows: How many rows of pixels, from the top, are given; a multiple of `patch_size`.
            mask: Instead of `keep_rows`: true (white) where a pixel is unknown and to be filled in; booleans (h, w)
                or (n, h, w), a PIL image, or a list of those. It has the size of its image, and is fitted with it.
                One mask is used for all images, one image for all masks. The prompt then has `known_tokens` and
                `known_masks`, (n, N), beside `input_ids`.

        The same images make the same prompt: with `binarize="stochastic"`, too.

        Raises:
            ValueError: A label or a number of rows out of range, a mask of another size or type or without unknown
                pixels, or lists of different lengths.
        """
        labels = _label_list(class_labels)
        data: dict[str, torch.Tensor] = {}
        if images is None:
            if keep_rows is not None or mask is not None:
                name = "mask" if keep_rows is None else f"keep_rows={keep_rows}"
                raise ValueError(f"{name} says how much of `images` is given: pass images too.")
        elif mask is None:
            data["given"] = self._given_tokens(images, keep_rows)
        elif keep_rows is None:
            data["known_tokens"], data["known_masks"] = known_tokens(self, images, mask)
        else:
            raise ValueError("mask and keep_rows both say how much of `images` is given: leave out one of the two.")
        num_labels, num_images = len(labels or [None]), len(next(iter(data.values()), [None]))
        count = max(num_labels, num_images)
        if num_images not in (1, count):
            raise ValueError(f"{num_images} images and {num_labels} class labels: give as many, or one of either.")
        data = {name: ids.repeat(count // len(ids), 1) for name, ids in data.items()}
        prompts = self._prompt_ids(labels, count)
        data["input_ids"] = torch.cat([prompts, data.pop("given")], dim=1) if "given" in data else prompts
        return BatchFeature({name: ids.numpy() for name, ids in data.items()}, tensor_type=return_tensors)

    def _given_tokens(self, images, keep_rows: int | None) -> torch.Tensor:
        if not isinstance(keep_rows, Integral) or keep_rows % self.patch_size or not 0 < keep_rows < self.image_size:
            raise ValueError(
                f"keep_rows must be a multiple of patch_size={self.patch_size} between {self.patch_size} and "
                f"{self.image_size - self.patch_size}, got {keep_rows}."
            )
        given = self.tokenize(images, np.random.default_rng(0))[:, : keep_rows // self.patch_size * self.grid_size]
        return torch.from_numpy(given.astype(np.int64))

    def _prompt_ids(self, labels: list | None, count: int) -> torch.Tensor:
        """Class indices -> prompt ids (count, 1); None -> start tokens."""
        if labels is None:
            return torch.full((count, 1), self.start_token_id)
        for label in labels:
            if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < self.num_labels:
                raise ValueError(
                    f"class label {label!r} is not one of the {self.num_labels} classes, 0 to {self.num_labels - 1}; "
                    "None asks for any class, and model.config.label_index(name) is the label of a class by its name."
                )
        if len(labels) not in (1, count):
            raise ValueError(f"{len(labels)} class labels for {count} images: give as many, or one for all.")
        return (torch.tensor(labels, dtype=torch.long) + self.vocab_size)[:, None].repeat(count // len(labels), 1)

    # --- tokens -> images -------------------------------------------------------------------------------------------

    def decode(self, ids) -> list[Image.Image]:
        """Turn tokens back into images, exactly: ids -> list of PIL images (mode "L", 0 and 255).

        Args:
            ids: (n, 1 + num_image_tokens) as `generate` returns them, or (n, num_image_tokens) without the prompt.

        Raises:
            ValueError: A wrong number of tokens per image, or an id that is not an image token.
        """
        return [to_marked_image(pixels * 255) for pixels in self.decode_pixels(ids)]

    def decode_pixels(self, ids) -> np.ndarray:
        """Turn tokens back into binary pixels, exactly: ids as in `decode` -> (n, image_size, image_size), 0/1."""
        if isinstance(ids, Mapping):
            raise ValueError(f"ids are an array, a tensor or a list: pass one of {', '.join(ids)}, not all together.")
        if isinstance(ids, (list, tuple)) and len({np.shape(row) for row in ids}) > 1:
            raise ValueError("ids have different lengths: decode images with a prompt and without apart.")
        ids = np.atleast_2d(ids.cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids))
        if ids.ndim != 2 or ids.shape[1] not in (self.num_image_tokens, self.num_image_tokens + 1):
            raise ValueError(
                f"ids must have shape (n, {self.num_image_tokens}), or (n, {self.num_image_tokens + 1}) with the "
                f"prompt, for {self.image_size}x{self.image_size} images; got {ids.shape}."
            )
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids are whole numbers, got {ids.dtype}.")
        tokens = ids[:, -self.num_image_tokens :]
        outside = np.argwhere((tokens < 0) | (tokens >= self.vocab_size))
        if len(outside):
            row, column = outside[0]
            raise ValueError(
                f"id {tokens[row, column]} at token {column} of image {row} is not an image token: they run from 0 to "
                f"{self.vocab_size - 1}. Is the prompt in the wrong place, or patch_size={self.patch_size} another?"
            )
        return tokens_to_pixels(tokens, self.patch_size, self.image_size)


def _label_list(class_labels) -> list | None:
    """One class index or many, of any type -> Python numbers; None stays None. The values are not checked."""
    if class_labels is None:
        return None
    if isinstance(class_labels, (np.ndarray, np.generic, torch.Tensor)):
        class_labels = class_labels.tolist()
    is_one = isinstance(class_labels, (str, bytes)) or not hasattr(class_labels, "__iter__")
    labels = [class_labels] if is_one else list(class_labels)
    if not labels:
        raise ValueError("no class labels were given: the list is empty; None asks for any class.")
    return [label.item() if hasattr(label, "item") and math.prod(label.shape) == 1 else label for label in labels]


IGPTImageProcessor.register_for_auto_class()  # checkpoints carry its code

__all__ = ["IGPTImageProcessor"]
