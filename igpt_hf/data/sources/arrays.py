"""Arrays as a data set of PNG images in memory."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, Features, Image
from PIL.PngImagePlugin import PngInfo
from tqdm.auto import tqdm

from ...model.image_reading import WHITE_ONES


def from_arrays(
    images: Iterable[np.ndarray], labels: Sequence[int] | np.ndarray, names: list[str], is_marked: bool = True
) -> Dataset:
    """Encode images, n uint8 arrays (height, width) or (height, width, channels), as PNG.

    Args:
        images: They may come one by one.
        labels: Class index of each.
        names: Of the classes.
        is_marked: The images say of themselves that they are white on black, unless `--invert` says otherwise.
    """
    encoded = []
    polarity = PngInfo()
    for key, value in WHITE_ONES.items():
        polarity.add_text(key, value)
    for image in tqdm(images, total=len(labels), desc="Encoding images", unit=" images", delay=1, disable=None):
        buffer = io.BytesIO()
        PIL.Image.fromarray(image).save(buffer, format="PNG", pnginfo=polarity if is_marked else None)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    features = Features(image=Image(), label=ClassLabel(names=names))
    return Dataset.from_dict({"image": encoded, "label": list(labels)}, features=features)
