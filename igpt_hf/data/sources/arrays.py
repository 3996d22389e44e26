"""Arrays in memory as a source."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, Features, Image
from PIL.PngImagePlugin import PngInfo
from tqdm.auto import tqdm

from ...model.image_reading import WHITE_FOREGROUND


def from_arrays(
    images: Sequence[np.ndarray] | np.ndarray, labels: Sequence[int] | np.ndarray, names: list[str]
) -> Dataset:
    """Images, n uint8 arrays (height, width), white on black, are stored as PNG that says so of itself."""
    encoded = []
    polarity = PngInfo()
    for key, value in WHITE_FOREGROUND.items():
        polarity.add_text(key, value)
    for image in tqdm(images, desc="Encoding images", unit=" images", delay=1, disable=None):
        buffer = io.BytesIO()
        PIL.Image.fromarray(image).save(buffer, format="PNG", pnginfo=polarity)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    return from_encoded(encoded, list(labels), names)


def from_encoded(encoded: list[dict[str, Any]], labels: list[int], names: list[str]) -> Dataset:
    features = Features(image=Image(), label=ClassLabel(names=names))
    return Dataset.from_dict({"image": encoded, "label": labels}, features=features)
