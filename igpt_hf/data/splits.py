"""Image sources of every kind -> DatasetDict(train, validation, test) of pictures and class labels.

The pictures stay as they came (any size, any mode): preparing them is the image processor's work.
"""

import io
import logging
import os
import re
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetsError
from PIL.PngImagePlugin import PngInfo
from tqdm.auto import tqdm

from ..errors import DataError
from ..model.image_processing_igpt import WHITE_FOREGROUND
from .sources.hoda import read_cdb
from .synthetic import CLASS_NAMES, synthetic_digits


logger = logging.getLogger(__name__)

VALIDATION_SHARE, TEST_SHARE = 0.10, 0.05  # the rest, 85%, is for training
MIN_IMAGES_PER_CLASS = 3  # one for each of the three splits
MAX_PIXELS = 50_000_000  # a larger picture is refused before it is decoded: it could fill the memory
# Others are refused: Pillow runs an interpreter for EPS, and the rest of its decoders are seldom used and tested.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm"}
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing", "eval"}
CHECK_BATCH = 32  # images that a thread checks at a time: one by one, handing them over would take longest
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# What Pillow's decoders raise on damaged files (found by flipping bytes in twelve formats, and in its sources).
DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, RuntimeError, EOFError, LookupError, TypeError, ArithmeticError),
    *(struct.error, zlib.error, PIL.Image.DecompressionBombError),
)
HUB_ERRORS = (DatasetsError, OSError, ValueError, RuntimeError, ImportError)


def load_splits(
    source: str | os.PathLike = "synthetic",
    *,
    seed: int = 42,
    image_column: str = "image",
    label_column: str = "label",
    max_images: int | None = None,
    skip_bad_images: bool = False,
    num_synthetic: int = 20_000,
) -> DatasetDict:
    """Load a source and split it 85/10/5, class by class, shuffled with the seed.

    ```python
    splits = load_splits("path/to/RemainingSamples.cdb", seed=42)
    splits["train"][0]  # {"image": <PIL image>, "label": 7}
    splits["train"].features["label"].names  # ["0", ..., "9"]
    ```

    Args:
        source: in this order: the word `synthetic` (digits drawn by the package; `./synthetic` for a folder of that
            name); `.cdb` files, comma separated; a folder of one folder per class; a parquet file or a folder of
            them; else a Hub dataset id `user/name`, of which all splits are taken together.
        seed: of the synthetic digits, of the subset and of the split.
        image_column: parquet and Hub only.
        label_column: parquet and Hub only; text and whole numbers become classes too.
        max_images: keep a random subset of at most so many images, with the classes in the same proportions.
        skip_bad_images: leave out (and count in the log) the images that cannot be decoded, instead of raising.
        num_synthetic: how many digits to draw for `synthetic`.

    Returns:
        `train`, `validation` and `test` with the columns `image` (PIL) and `label` (ClassLabel).

    Raises:
        DataError: if there is no such source, an image or a label is bad, or a class has fewer than 3 images.
    """
    source = os.path.expanduser(source)
    if source == "synthetic" and max_images is not None:
        num_synthetic = min(num_synthetic, max_images)
    dataset = _open_source(source, seed, image_column, label_column, num_synthetic)
    if len(dataset) == 0:
        raise DataError(f"{source} holds no images.")
    labels = np.array(dataset["label"][:], dtype=np.int64)  # (n,)
    names = dataset.features["label"].names

    rows = np.arange(len(labels)) if max_images is None else _subset(labels, names, max_images, seed)
    rows = _readable_rows(dataset, rows, source, skip_bad_images)
    return DatasetDict({split: dataset.select(part) for split, part in _split(labels, rows, names, seed).items()})


def tokenize(splits: DatasetDict, processor: Any) -> DatasetDict:
    """Turn the pictures into what the model reads, once: columns `tokens` (a list of fixed length) and `label`.

    With `processor.binarize == "stochastic"` the tokens are drawn anew in each epoch, so that the column is `grey`
    instead: the fitted picture, a byte per pixel. The result is held in memory, never taken from a cache of an earlier
    run, which could not know that the processor's code has changed.

    Args:
        splits: as `load_splits` returns them.
        processor: its `tokenize(images)` turns a list of n PIL images into an array (n, num_tokens), its `to_grey`
            into (n, image_size, image_size).

    Raises:
        DataError: if the processor refuses an image; the message gives its split and index.
    """
    column = "grey" if processor.binarize == "stochastic" else "tokens"
    tokenized = DatasetDict()
    for name, split in splits.items():
        first = _tokenize_batch(split[:1], [0], name, processor, column)[column]  # (1, length)
        tokenized[name] = split.map(
            _tokenize_batch,
            batched=True,
            batch_size=25,  # decoded pictures in memory at a time: photographs are large
            with_indices=True,
            fn_kwargs={"split_name": name, "processor": processor, "column": column},
            remove_columns=["image"],
            features=Features(
                {"label": split.features["label"], column: List(Value(first.dtype.name), length=first.shape[1])}
            ),
            keep_in_memory=True,
            desc=f"Tokenizing {name}",
        )
        if column == "tokens":
            _warn_of_empty_images(tokenized[name], name)
    return tokenized


def _tokenize_batch(
    batch: dict[str, list], indices: list[int], split_name: str, processor: Any, column: str
) -> dict[str, Any]:
    def prepare(images):
        return processor.tokenize(images) if column == "tokens" else processor.to_grey(images).reshape(len(images), -1)

    try:
        return {column: prepare(batch["image"])}
    except (ValueError, TypeError):
        for index, image in zip(indices, batch["image"], strict=True):  # which one was it?
            try:
                prepare([image])
            except (ValueError, TypeError) as error:
                raise DataError(f"{split_name} image {index} cannot be tokenized: {error}") from error
        raise


def _warn_of_empty_images(split: Dataset, name: str):
    empty = int((split.with_format("numpy")["tokens"][:].max(axis=1) == 0).sum())
    if empty:
        logger.warning(
            "%d of %d %s images are black after binarisation: lower --threshold, or set --invert",
            *(empty, len(split), name),
        )


# Sources: each function returns a Dataset with the columns `image` (Image) and `label` (ClassLabel).


def _open_source(source: str, seed: int, image_column: str, label_column: str, num_synthetic: int) -> Dataset:
    if source == "synthetic":
        images, labels = synthetic_digits(num_synthetic, seed)
        return _from_arrays(images, labels, list(CLASS_NAMES))
    paths = [source] if os.path.exists(source) else source.split(",")
    if all(path.strip().lower().endswith(".cdb") for path in paths):
        return _open_cdb([os.path.expanduser(path.strip()) for path in paths])
    if os.path.isdir(source):
        return _open_folder(Path(source), image_column, label_column)
    if os.path.isfile(source):
        return _open_parquet(source, [Path(source)], image_column, label_column)
    if _looks_like_path(source):
        raise DataError(
            f"{source!r} does not exist. A source is 'synthetic', .cdb files (comma separated), a folder of class "
            "folders, parquet, or a Hub dataset id such as 'user/name'."
        )
    return _open_hub(source, image_column, label_column)


def _looks_like_path(source: str) -> bool:
    """Whether `source` can only be a path: 'a/b' may be a Hub id, and so may 'a/b-v1.5', but not 'a/b.png'."""
    return HUB_ID.fullmatch(source) is None or re.search(r"\.[A-Za-z]\w*$", source) is not None


def _open_cdb(paths: list[str]) -> Dataset:
    images, labels = [], []
    for path in paths:
        file_images, file_labels = read_cdb(path)
        images += file_images
        labels += file_labels.tolist()
    values = sorted(set(labels))
    return _from_arrays(images, [values.index(label) for label in labels], [str(value) for value in values])


def _from_arrays(images: Sequence[np.ndarray], labels: Sequence[int], names: list[str]) -> Dataset:
    """Images, n uint8 arrays (height, width), white on black, are stored as PNG that says so of itself."""
    encoded = []
    polarity = PngInfo()
    for key, value in WHITE_FOREGROUND.items():
        polarity.add_text(key, value)
    for image in tqdm(images, desc="Encoding images", unit=" images", delay=1, disable=None):
        buffer = io.BytesIO()
        PIL.Image.fromarray(image).save(buffer, format="PNG", pnginfo=polarity)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    return _from_encoded(encoded, list(labels), names)


def _from_encoded(encoded: list[dict[str, Any]], labels: list[int], names: list[str]) -> Dataset:
    features = Features(image=Image(), label=ClassLabel(names=names))
    return Dataset.from_dict({"image": encoded, "label": labels}, features=features)


def _open_folder(folder: Path, image_column: str, label_column: str) -> Dataset:
    """A folder of class folders, or else of parquet files."""
    subfolders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    subfolders.sort(key=lambda path: _natural_order(path.name))
    class_files = {path.name: _visible_files(path, IMAGE_SUFFIXES) for path in subfolders}
    if any(class_files.values()):
        return _open_class_folders(folder, class_files)
    parquet_files = _visible_files(folder, {".parquet"})
    if parquet_files:
        return _open_parquet(str(folder), parquet_files, image_column, label_column)
    if _visible_files(folder, IMAGE_SUFFIXES):
        raise DataError(f"{folder} has images but no class folders: move the images into one folder per class.")
    raise DataError(f"{folder} holds no images: expected one folder of images per class, or parquet files.")


def _open_class_folders(folder: Path, class_files: dict[str, list[Path]]) -> Dataset:
    """Only paths are kept: the images stay on disk until they are used."""
    if {name.lower() for name in class_files} <= SPLIT_NAMES:
        raise DataError(
            f"The folders in {folder} are named after splits ({', '.join(class_files)}), not classes. Give one of "
            "them as the source, or merge their class folders: igpt_hf makes the splits itself."
        )
    ignored = sorted(set(_visible_files(folder)).difference(*class_files.values()))
    if ignored:
        logger.warning("Ignored %d files that are no images in a class folder, such as %s", len(ignored), ignored[0])
    encoded = [{"bytes": None, "path": str(path.absolute())} for files in class_files.values() for path in files]
    labels = [label for label, files in enumerate(class_files.values()) for _ in files]
    try:
        return _from_encoded(encoded, labels, list(class_files))
    except UnicodeEncodeError as error:
        raise DataError(f"The name of {error.object!r} is not UTF-8: rename it.") from error


def _visible_files(folder: Path, suffixes: set[str] | None = None) -> list[Path]:
    """All files below a folder, sorted, without hidden files and what is in hidden folders."""
    paths = (path for path in sorted(folder.rglob("*")) if suffixes is None or path.suffix.lower() in suffixes)
    is_hidden = re.compile(r"(^|[/\\])\.").search
    return [path for path in paths if not is_hidden(str(path.relative_to(folder))) and path.is_file()]


def _natural_order(name: str) -> tuple[list[str | int], str]:
    """Sort key that counts: '9' < '10', 'a2' < 'a10'."""
    parts = re.split(r"(\d+)", name)  # text, digits, text, ...
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _open_parquet(source: str, paths: list[Path], image_column: str, label_column: str) -> Dataset:
    paths = [path for path in paths if _num_parquet_rows(path) > 0]  # from_parquet fails on a file without rows
    if not paths:
        raise DataError(f"{source} holds no images: it has no rows.")
    try:
        dataset = Dataset.from_parquet([escape(str(path)) for path in paths])
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{source} cannot be loaded: {error.__cause__ or error}. Are all files alike?") from error
    return _standardize(dataset, source, image_column, label_column)


def _num_parquet_rows(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no parquet file, and other files must be .cdb: {error}") from error


def _open_hub(source: str, image_column: str, label_column: str) -> Dataset:
    """All splits of a Hub dataset together."""
    try:
        dataset = concatenate_datasets(list(load_dataset(source).values()))
    except HUB_ERRORS as error:
        raise DataError(
            f"{source!r} is no file or folder here, and could not be loaded as a Hub dataset. Check the id, the "
            f"connection, and for a private dataset `hf auth login`. The reason was: {error}"
        ) from error
    return _standardize(dataset, source, image_column, label_column)


def _standardize(dataset: Dataset, source: str, image_column: str, label_column: str) -> Dataset:
    """Keep the two columns, renamed to `image` and `label` and cast to Image and ClassLabel."""
    for option, column in {"image_column": image_column, "label_column": label_column}.items():
        if column not in dataset.column_names:
            raise DataError(f"{source} has no column {column!r}. Set {option} to one of {dataset.column_names}.")
    labels, names = _class_labels(dataset, source, label_column)
    feature = dataset.features[image_column]
    if isinstance(feature, List) and isinstance(feature.feature, Value):
        raise DataError(
            f"Column {image_column!r} of {source} holds flat lists of numbers, not images: make them lists of rows."
        )
    images = dataset.select_columns(image_column).rename_columns({image_column: "image"})
    try:
        images = images.cast_column("image", Image())
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(f"Column {image_column!r} of {source} holds no images: {error}. Set image_column.") from error
    return images.add_column("label", labels, feature=ClassLabel(names=names))


def _class_labels(dataset: Dataset, source: str, column: str) -> tuple[list[int], list[str]]:
    """Class index of each row, and the class names; text and whole numbers become names in natural order."""
    feature, values = dataset.features[column], dataset[column][:]
    is_class_label = isinstance(feature, ClassLabel)
    missing = [
        row
        for row, value in enumerate(values)
        if value is None or (is_class_label and not 0 <= value < feature.num_classes)
    ]
    if missing:
        raise DataError(
            f"{len(missing)} rows of {source} have no valid label in column {column!r}, the first is row {missing[0]} "
            f"({values[missing[0]]}). Remove these rows."
        )
    if is_class_label:
        used = sorted(set(values))  # a data set that somebody has filtered may have names without rows
        if len(used) < feature.num_classes:
            unused = ", ".join(name for label, name in enumerate(feature.names) if label not in used)
            logger.warning("%s has no images of %s: these classes are left out", source, unused)
        return [used.index(value) for value in values], [feature.names[label] for label in used]
    if not isinstance(feature, Value) or re.fullmatch(r"(large_)?string|u?int\d+|bool", feature.dtype) is None:
        raise DataError(f"Column {column!r} of {source} is no label: {feature}, not text or whole numbers.")
    names = sorted({str(value) for value in values}, key=_natural_order)
    index_of = {name: index for index, name in enumerate(names)}
    return [index_of[str(value)] for value in values], names


# Rows: which images to keep, and the split that each goes to.


def _subset(labels: np.ndarray, names: list[str], max_images: int, seed: int) -> np.ndarray:
    """Sorted rows of a random subset with the proportions of the classes; a larger one contains a smaller one."""
    if max_images < MIN_IMAGES_PER_CLASS * len(names):
        minimum = MIN_IMAGES_PER_CLASS * len(names)
        raise DataError(f"max_images={max_images} is too small: {len(names)} classes need at least {minimum} images.")
    rng = np.random.default_rng(seed)
    order = np.zeros(len(labels))  # where each image stands in its shuffled class: 0 is first, 1 would be last
    for label in range(len(names)):
        members = rng.permutation(np.flatnonzero(labels == label))
        order[members] = np.arange(len(members)) / len(members)
        order[members[:MIN_IMAGES_PER_CLASS]] = -1  # never left out
    return np.sort(np.argsort(order, kind="stable")[:max_images])


def _readable_rows(dataset: Dataset, rows: np.ndarray, source: str, skip_bad_images: bool) -> np.ndarray:
    """Decode every image of `rows` once; returns the rows that are good, or raises DataError at the first bad one."""
    encoded = dataset.select(rows).cast_column("image", Image(decode=False))
    problems = _find_problems(encoded, stop_at_first=not skip_bad_images)
    if not problems:
        return rows

    position, problem = next(iter(problems.items()))
    image = encoded[position]["image"]
    is_file = image is not None and image["bytes"] is None and image["path"] is not None
    message = f"{image['path'] if is_file else f'row {rows[position]} of {source}'} {problem}"
    if not skip_bad_images:
        raise DataError(f"{message}. Mend or remove it, or set skip_bad_images to leave out such images.")
    logger.warning("Skipped %d of %d images; the first: %s", len(problems), len(rows), message)
    return np.delete(rows, list(problems))


def _find_problems(encoded: Dataset, stop_at_first: bool) -> dict[int, str]:
    """Decode all images, in threads; returns what is wrong with the bad ones, by row."""

    def check(start: int) -> list[str | None]:
        return [_problem(image) for image in encoded[start : start + CHECK_BATCH]["image"]]

    starts, problems = range(0, len(encoded), CHECK_BATCH), {}
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(encoded), desc="Checking images", unit=" images", delay=1, disable=None) as progress,
    ):
        batches = pool.map(check, starts)
        for start, batch in zip(starts, batches, strict=True):
            problems |= {start + index: problem for index, problem in enumerate(batch) if problem is not None}
            progress.update(len(batch))
            if problems and stop_at_first:
                batches.close()  # cancels the batches that have not begun
                break
    return problems


def _problem(encoded: dict[str, Any] | None) -> str | None:
    """Why an image, {"bytes", "path"} as the data set stores it, cannot be decoded; None if it can."""
    try:
        decode_image(encoded)
    except DataError as problem:
        return str(problem)
    return None


def decode_image(encoded: dict[str, Any] | None) -> PIL.Image.Image:
    """Decode an image, {"bytes", "path"} as a data set stores it.

    Raises:
        DataError: It is null, damaged, too large or of another format than `FORMATS`; the message says which, and
            wants the image's name before it.
    """
    if encoded is None or (encoded["bytes"] is None and encoded["path"] is None):
        raise DataError("is null")
    try:
        file = encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])
        with PIL.Image.open(file, formats=FORMATS) as image:  # only the header is read here
            width, height = image.size
        if width * height <= MAX_PIXELS:
            return Image().decode_example(encoded)
    except DECODE_ERRORS as error:
        raise DataError(f"is no image that can be decoded ({type(error).__name__}: {error})") from error
    raise DataError(f"has {width}x{height} pixels, more than {MAX_PIXELS:,}")


def _split(labels: np.ndarray, rows: np.ndarray, names: list[str], seed: int) -> dict[str, np.ndarray]:
    """Share out each class's rows 85/10/5, at least one to each split; returns shuffled rows by split."""
    counts = np.bincount(labels[rows], minlength=len(names))
    small = [
        f"{name!r} has {count}" for name, count in zip(names, counts, strict=True) if count < MIN_IMAGES_PER_CLASS
    ]
    if small:
        raise DataError(
            f"Each class needs at least {MIN_IMAGES_PER_CLASS} images, one for each split, but class "
            f"{', '.join(small)}. Add images or remove the class."
        )
    rng = np.random.default_rng(seed)
    parts = {"train": [], "validation": [], "test": []}
    for label, count in enumerate(counts):
        num_validation, num_test = max(1, round(VALIDATION_SHARE * count)), max(1, round(TEST_SHARE * count))
        members = rng.permutation(rows[labels[rows] == label])
        validation, test, train = np.split(members, [num_validation, num_validation + num_test])
        parts["train"].append(train)
        parts["validation"].append(validation)
        parts["test"].append(test)
    return {split: rng.permutation(np.concatenate(members)) for split, members in parts.items()}
