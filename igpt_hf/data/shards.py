"""The shards of a data set that is streamed: parquet files, or files of a Hub data set; no image is read here."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path

from datasets import ClassLabel, IterableDataset, load_dataset
from huggingface_hub import dataset_info

from ..errors import DataError, IGPTError
from .sources.columns import check_label_type, natural_order
from .sources.dispatch import looks_like_path
from .sources.folder import visible_files
from .sources.hub import HUB_ERRORS, split_id
from .sources.parquet import file_splits, num_rows
from .sources.parts import SPLITS, split_name


@dataclass(frozen=True)
class Shard:
    """A part of a data set that is read in one go: a parquet file, or a file of a Hub data set's split."""

    name: str  # what it is, in messages
    version: str  # changes when its content does: size and time of a file, the revision on the Hub
    path: str  # of the parquet file, or the Hub id
    split: str = "train"
    index: int = 0  # of num_shards
    num_shards: int = 1
    configuration: str | None = None  # of the Hub data set
    given: str = "train"  # the split that it came with: train, validation or test

    def open(self) -> IterableDataset:
        """Its rows, of which none is read yet."""
        if os.path.exists(self.path):
            return load_dataset("parquet", data_files=[escape(self.path)], split="train", streaming=True)
        rows = load_dataset(self.path, self.configuration, split=self.split, revision=self.version, streaming=True)
        return rows.shard(self.num_shards, self.index)


@dataclass(frozen=True)
class ShardedSource:
    """Shards with the columns to read and the class names."""

    shards: tuple[Shard, ...]
    image_column: str
    label_column: str
    names: tuple[str, ...]
    labels_are_indices: bool  # into `names`; else each label's text is its name

    @property
    def given(self) -> tuple[str, ...]:
        """The validation and test splits that came with the data; the others are cut from train."""
        return tuple(name for name in SPLITS[1:] if any(shard.given == name for shard in self.shards))


def open_shards(
    source: str,
    image_column: str = "image",
    label_column: str = "label",
    max_images: int | None = None,
    split_rule: str = "auto",
) -> ShardedSource:
    """Find the shards and the class names of a parquet file, a folder of parquet files, or a Hub data set.

    Where the label column is not a ClassLabel it is read once, and only that column, for the names.

    Args:
        source: As `load_splits` takes it, but parquet and the Hub only.
        image_column, label_column: Their columns.
        max_images: Must be None.
        split_rule: `splits` of `load_splits`.

    Raises:
        DataError: There is no such file, it is not parquet, or it lacks a column.
        IGPTError: `max_images` was given, or the Hub has no such dataset.
    """
    if max_images is not None:
        raise IGPTError("--max_images chooses from all images at once, which --streaming never sees: leave one out.")
    source = os.path.expanduser(source)
    shards = _parquet_shards(Path(source)) if os.path.exists(source) else _hub_shards(source)
    shards = _with_splits(shards, source, split_rule)
    features = shards[0].open().features
    for option, column in {"image_column": image_column, "label_column": label_column}.items():
        if features is None or column not in features:
            raise DataError(f"{source} has no column {column!r}. Set --{option} to one of {list(features or [])}.")
    are_indices = isinstance(features[label_column], ClassLabel)
    if are_indices:
        names = features[label_column].names
    else:
        check_label_type(features[label_column], source, label_column)
        values = {str(value) for shard in shards for value in _labels(shard, label_column) if value is not None}
        names = sorted(values, key=natural_order)
    return ShardedSource(tuple(shards), image_column, label_column, tuple(names), are_indices)


def _with_splits(shards: list[Shard], source: str, rule: str) -> list[Shard]:
    """Set the split that each shard was given with; all are for training unless train and another split were given."""
    given = {split_name(shard.split) for shard in shards}
    is_given = rule != "random" and "train" in given and len(given - {None}) > 1
    if rule == "given" and not is_given:
        raise DataError(f"{source} comes without splits, and --splits given needs some. Take auto or random.")
    if not is_given:
        return shards
    return [replace(shard, given=split_name(shard.split)) for shard in shards if split_name(shard.split) is not None]


def _parquet_shards(source: Path) -> list[Shard]:
    paths = visible_files(source, {".parquet"}) if source.is_dir() else [source]
    if source.is_file() and source.suffix.lower() != ".parquet":
        raise DataError(f"--streaming reads parquet files or a Hub data set, not {source}. Leave out --streaming.")
    paths = [path for path in paths if num_rows(path) > 0]
    if not paths:
        raise DataError(
            f"--streaming reads parquet files or a Hub data set, and {source} holds no rows of parquet. Leave out "
            "--streaming for images, arrays and archives."
        )
    split_of = file_splits(paths, source)
    shards = []
    for path in paths:
        state, name = path.stat(), str(path.absolute())
        version = f"{state.st_size} bytes, {state.st_mtime_ns} ns"
        shards.append(Shard(name, version, name, split=split_of[path] or "all"))
    return shards


def _hub_shards(source: str) -> list[Shard]:
    if looks_like_path(source):
        raise DataError(f"{source!r} does not exist. --streaming reads parquet files or a Hub data set 'user/name'.")
    name, configuration = split_id(source)
    try:
        revision = dataset_info(name).sha
        splits = load_dataset(name, configuration, revision=revision, streaming=True)
    except HUB_ERRORS as error:
        raise IGPTError(f"{source!r} was not found here, nor as a data set of the Hub: {error}") from error
    return [
        Shard(f"{source} {split} {index}", revision, name, split, index, rows.num_shards, configuration)
        for split, rows in splits.items()
        for index in range(rows.num_shards)
    ]


def _labels(shard: Shard, column: str) -> Iterator:
    for batch in shard.open().select_columns(column).with_format("arrow").iter(10_000):
        yield from batch.column(column).unique().to_pylist()
