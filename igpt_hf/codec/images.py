"""Images of any source as the ids that are compressed, and decompressed ids as PNG files."""

import logging
import os
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Image
from tqdm.auto import tqdm

from ..data.decoding import check_images
from ..data.image_files import read_image_files
from ..data.inspection import MAX_EMPTY, doubts_of
from ..data.sources.columns import ONE_CLASS
from ..data.sources.folder import IMAGE_SUFFIXES, visible_files
from ..data.sources.parts import ReadOptions, split_name
from ..data.splits import open_images, source_name
from ..data.tokenized import TokenDataset, tokenize
from ..errors import DataError, IGPTError


MAX_NAME_BYTES = 200  # disks allow 255, and an index may be added
logger = logging.getLogger(__name__)


def read_images(
    model, processor, sources: list, options: ReadOptions | None = None, skip_bad_images: bool = False
) -> torch.Tensor:
    """Read image files and whole sources, in their order, as the model sees them: ids (n, 1 + N).

    Args:
        model, processor: A model and its processor.
        sources: Image files, whose class is not known, and anything that `load_splits` takes.
        options: Columns and class folders of the sources.
        skip_bad_images: Leave out files and images that cannot be read, with a warning, instead of refusing them.

    Returns:
        The prompt of an image is its class or, where it has none that the model knows, the start token.

    Raises:
        DataError: A source, a file or an image cannot be read; the message names it. Or no image is left.
    """
    parts = []
    for source in sources:
        is_image = isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() in IMAGE_SUFFIXES
        is_image = is_image and Path(source).is_file()
        if is_image:
            parts.append(_read_files(model.config, processor, [Path(source)], skip_bad_images))
        else:
            parts.append(_read_source(model.config, processor, source, options or ReadOptions(), skip_bad_images))
    ids = torch.cat(parts)
    if len(ids) == 0:
        raise DataError(f"no image can be read from {', '.join(map(source_name, sources))}.")
    return ids


def _read_files(config, processor, paths: list[Path], skip_bad_images: bool) -> torch.Tensor:
    """Image files, with the start token: (n, 1 + N)."""
    rows = [file.tokens for file in read_image_files(paths, processor, skip_bad_images)]
    tokens = torch.stack(rows) if rows else torch.empty(0, config.num_image_tokens, dtype=torch.long)
    return torch.cat([torch.full((len(tokens), 1), config.start_token_id), tokens], dim=1)


def _read_source(config, processor, source, options: ReadOptions, skip_bad_images: bool) -> torch.Tensor:
    """All images of a source, (n, 1 + N)."""
    dataset, name = open_images(source, options).dataset, source_name(source)
    others = _beside_class_folders(source, dataset)
    rows, _ = check_images(dataset, np.arange(len(dataset)), name, skip_bad_images, one_frame=True)
    if len(rows) == 0:
        return _read_files(config, processor, others, skip_bad_images)
    dataset = dataset.select(rows)
    for doubt in doubts_of(dataset, processor):
        logger.warning("%s: %s", name, doubt)
    tokens = TokenDataset(tokenize(DatasetDict({name: dataset}), processor)[name], config)
    ids = tokens.__getitems__(list(range(len(tokens))))["input_ids"]
    _check_lost(dataset, ids, name)
    class_names = dataset.features["label"].names
    prompts = [config.start_token_id] * len(class_names)
    for label, class_name in enumerate(class_names):
        if class_name in config.class_names:
            prompts[label] = config.vocab_size + config.label_index(class_name)
        elif class_name != ONE_CLASS:
            logger.warning("%s: the model has no class %r; its images are stored without a class", name, class_name)
    ids[:, 0] = torch.tensor(prompts)[torch.as_tensor(dataset["label"][:])]
    if others:
        logger.warning("%s: the %d images in no class folder are stored without a class", name, len(others))
    return torch.cat([ids, _read_files(config, processor, others, skip_bad_images)])


def _check_lost(dataset: Dataset, ids: torch.Tensor, name: str):
    """Refuse to store nothing in the place of what is on many images."""
    empty = (ids[:, 1:] == 0).all(dim=1).nonzero()[:, 0].tolist()
    lost = sum(_is_drawn_on(image) for image in dataset.select(empty)["image"])
    if lost > MAX_EMPTY * len(ids):
        raise DataError(
            f"{name}: to the model, {lost} of {len(ids)} images are empty, and what is on them would be lost. It was "
            "trained on images of another kind: change these, or train on such images."
        )


def _is_drawn_on(image) -> bool:
    return any(low < high for low, high in image.convert("RGBA").getextrema())


def _beside_class_folders(source, dataset: Dataset) -> list[Path]:
    """The images of a folder that lie in none of its class folders, which training leaves out."""
    if not (isinstance(source, (str, os.PathLike)) and Path(source).is_dir()):
        return []
    files = visible_files(Path(source), IMAGE_SUFFIXES)
    if not files:  # of parquet or arrays, whose bytes need not be read for this
        return []
    used = {image["path"] for image in dataset.cast_column("image", Image(decode=False))["image"]}
    return [path for path in files if str(path.absolute()) not in used]


def write_images(config, processor, ids: torch.Tensor, folder: str | os.PathLike):
    """Write images as PNG files, in a folder per class: `FOLDER/CLASS/00000.png`; those without a class, `FOLDER/`.

    The number is the image's place in the file. White is the foreground, and the files say so: the model's processor
    reads them back as the same ids.

    Args:
        config, processor: Of the model.
        ids: (n, 1 + N).
        folder: New, or empty.

    Raises:
        IGPTError: The folder holds something.
    """
    check_folder(folder)
    names = [*folder_names(config.class_names), ""]
    digits = max(5, len(str(len(ids) - 1)))
    for prompt in ids[:, 0].unique().tolist():
        (Path(folder) / names[prompt - config.vocab_size]).mkdir(parents=True, exist_ok=True)
    for index, row in enumerate(tqdm(ids, desc="Writing", unit=" images", delay=2, disable=None)):
        name = names[row[0].item() - config.vocab_size]
        processor.decode(row)[0].save(Path(folder) / name / f"{index:0{digits}}.png")


def check_folder(folder: str | os.PathLike):
    """Raise IGPTError if a folder to write into holds something already, or is a file."""
    if Path(folder).is_file() or (Path(folder).is_dir() and any(Path(folder).iterdir())):
        raise IGPTError(f"{folder} exists and is not empty: name a new folder.")


def is_class_folder(name: str) -> bool:
    """Whether a folder can have a class's name, and is then read again as that class."""
    can_exist = name == Path(name).name and not set(name) & set("\\\0") and 0 < len(name.encode()) <= MAX_NAME_BYTES
    is_data = split_name(name) is not None or Path(name).suffix.lower() in IMAGE_SUFFIXES
    return can_exist and not name.startswith(".") and not is_data


def folder_names(class_names: list[str]) -> list[str]:
    """Names of the classes' folders, all different: their own, or their index where that could not be a folder's name.

    Disks that do not tell "a" from "A" are served, too.
    """
    folders: list[str] = []
    for label, name in enumerate(class_names):
        is_safe = is_class_folder(name)
        folder = name if is_safe else str(label)
        taken = {other.casefold() for other in folders + ([] if is_safe else class_names)}
        while folder.casefold() in taken:
            folder += f"-{label}"
        folders.append(folder)
    return folders
