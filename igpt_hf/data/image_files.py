"""Image files that somebody gives a trained model one by one: `igpt score` and `igpt compress`."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..errors import DataError
from ..model.image_upload import like_data
from .decoding import decode_image
from .sources.folder import IMAGE_SUFFIXES


logger = logging.getLogger(__name__)

OTHER_COMMANDS = "igpt evaluate and igpt compress take arrays, tables and archives"


class ReadFile(NamedTuple):
    """An image file as a model reads it.

    Attributes:
        path: Of the file.
        tokens: (N,).
        is_like_data: Whether it was read by what was decided for the training data; else by itself.
    """

    path: Path
    tokens: torch.Tensor
    is_like_data: bool


def read_image_file(path: Path, processor) -> ReadFile:
    """Read one file; the pixels of gray images, where they are sampled, are the same each time.

    Raises:
        DataError: It is no image, has several frames, or nothing is left of it; the message names it.
    """
    try:
        image = decode_image({"path": str(path), "bytes": None}, one_frame=True)
    except DataError as problem:
        hint = "" if path.suffix.lower() in IMAGE_SUFFIXES else f": {OTHER_COMMANDS}"
        raise DataError(f"{path} {problem}{hint}.") from problem
    try:
        seen = like_data(processor, image)
        tokens = processor.tokenize(seen, np.random.default_rng(0))[0]
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return ReadFile(path, torch.from_numpy(tokens.astype(np.int64)), seen is image)


def read_image_files(paths: list[Path], processor, skip_bad_images: bool = False) -> list[ReadFile]:
    """Read files in their order; with `skip_bad_images`, leave out those that cannot be read, with a warning for each.

    Raises:
        DataError: A file cannot be read, and `skip_bad_images` is not given.
    """
    read: list[ReadFile] = []
    for path in tqdm(paths, desc="Reading", unit=" images", delay=2, disable=None):
        try:
            read.append(read_image_file(path, processor))
        except DataError as error:
            if not skip_bad_images:
                raise DataError(f"{error} --skip_bad_images leaves out such files.") from error
            logger.warning("Skipped %s", error)
    return read
