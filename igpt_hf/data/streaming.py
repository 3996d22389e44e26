"""Data that does not fit into memory: shards are tokenized once into a cache on disk, and streamed from there.

1. `open_shards` looks at parquet files or a Hub data set without reading the images: shards and class names.
2. `tokenize_shards` reads each shard once, in parallel processes, and writes its tokens, a byte each, to the cache.
   Which split an image belongs to depends on the split that its shard was given with, the seed, its shard and its row
   alone, so that no pass over all images comes first and a shard is done with as soon as it is read.
3. `TokenStream` streams the training tokens through a shuffle buffer. At most `max_eval_images` validation and
   test images each are held in memory and evaluated exactly.
"""

import hashlib
import inspect
import json
import logging
import math
import shutil
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from glob import escape
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset
from datasets import config as datasets_config
from datasets.utils.file_utils import xopen
from tqdm.auto import tqdm

from ..distributed import end_with_parent
from ..errors import DataError, IGPTError
from ..model import image_decision, image_ink, image_processing_igpt, image_reading, tokens
from ..model.neighborhood import ids_on_grid
from . import decoding, splits, tokenized
from .cache_folders import new_folder
from .decoding import decode_image
from .inspection import MAX_SAMPLE, MAX_SAMPLE_PIXELS
from .shards import Shard, ShardedSource
from .sources.parts import SPLITS
from .splits import FRACTIONS
from .tokenized import tokenize_batch


logger = logging.getLogger(__name__)

READ_ROWS = 256  # encoded images in memory at a time; of decoded ones, which may be large, two
SAMPLED_SHARDS = 20


# --- tokens ---------------------------------------------------------------------------------------------------------


def draw_splits(
    generator: np.random.Generator, num_rows: int, shard_split: str = "train", given: tuple[str, ...] = ()
) -> np.ndarray:
    """Split of the next rows of a shard, 0 train, 1 validation, 2 test: (num_rows,).

    Rows of a train shard are split in proportions of 85/10/5; what is given otherwise is not cut from them.
    """
    if shard_split != "train":
        return np.full(num_rows, SPLITS.index(shard_split))
    validation, test = (0 if name in given else FRACTIONS[name] for name in SPLITS[1:])
    return np.digitize(generator.random(num_rows), [1 - validation - test, 1 - test])


def split_generator(seed: int, shard: Shard) -> np.random.Generator:
    """Random generator of the splits of a shard's rows: it depends on the seed and the shard's name alone."""
    return np.random.default_rng([seed, zlib.crc32(Path(shard.name).name.encode())])


def sample_shards(source: ShardedSource) -> list[PIL.Image.Image]:
    """The first images of up to 20 shards, as many of each: at most 2,000 that can be read."""
    chosen = source.shards[:: math.ceil(len(source.shards) / SAMPLED_SHARDS)]
    images: list[PIL.Image.Image] = []
    num_pixels = 0
    for shard in chosen:
        rows = shard.open().select_columns(source.image_column).cast_column(source.image_column, Image(decode=False))
        for row in rows.take(MAX_SAMPLE // len(chosen)):
            with suppress(DataError):  # which tokenizing will name
                images.append(decode_image(_with_bytes(row[source.image_column], shard)))
                num_pixels += images[-1].width * images[-1].height
            if num_pixels > MAX_SAMPLE_PIXELS:
                return images
    return images


def tokenize_shards(
    source: ShardedSource,
    processor,
    seed: int,
    num_workers: int = 1,
    first_shard: int = 0,
    skip_bad_images: bool = False,
) -> "ShardedTokens":
    """Tokenize all shards that are not in the cache yet, several at a time, and say where the tokens are.

    A shard appears in the cache as a whole or not at all: a run that breaks off goes on with the next shard. Processes
    that share a disk share the work if they begin at different shards.

    Args:
        source: From `open_shards`.
        processor: An `IGPTImageProcessor`.
        seed: Of the split.
        num_workers: Processes that tokenize; 1 stays in this one.
        first_shard: The shard to begin with.
        skip_bad_images: Count and leave out images that cannot be read.

    Raises:
        DataError: An image or a label is bad, or a split is empty.
        IGPTError: `binarize="stochastic"`, which cannot be cached.
    """
    if processor.binarize == "stochastic":
        raise IGPTError(
            "--streaming caches tokens, and --binarize stochastic samples them anew: leave out one of them."
        )
    if not processor.is_decided:
        processor = processor.decide(sample_shards(source))
    folder = _cache_folder(source, processor, seed, skip_bad_images)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    tokenize = partial(_tokenize_shard, source, processor, seed, folder, skip_bad_images)
    order = [(first_shard + step) % len(source.shards) for step in range(len(source.shards))]
    progress = partial(tqdm, total=len(order), desc="Tokenizing", unit=" shards", delay=1, disable=None)
    if num_workers == 1 or len(order) == 1:
        list(progress(map(tokenize, order)))
    else:
        with ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=end_with_parent) as pool:
            list(progress(pool.map(tokenize, order)))
    token = Value(str(_token_type(processor)))
    tokens = List(token, length=processor.num_image_tokens)
    return ShardedTokens.load(folder, Features(tokens=tokens, label=ClassLabel(names=list(source.names))))


def _cache_folder(source: ShardedSource, processor, seed: int, skip_bad_images: bool) -> Path:
    """A folder of its own for all that the tokens depend on: the data, the settings, and the code that makes them."""
    modules = [image_decision, image_ink, image_processing_igpt, image_reading, tokens]
    modules += [decoding, splits, tokenized, inspect.getmodule(ShardedTokens)]
    code = "".join(inspect.getsource(module) for module in modules)
    names = [name for name in inspect.signature(type(processor)).parameters if name != "kwargs"]
    settings = {name: getattr(processor, name) for name in names}  # to_dict() has more, once it has been saved
    parts = [asdict(source), settings, seed, skip_bad_images, code]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]
    return Path(datasets_config.HF_DATASETS_CACHE) / "igpt_hf-tokens" / key


def _tokenize_shard(source: ShardedSource, processor, seed, folder: Path, skip_bad_images: bool, index: int):
    """Write the tokens of one shard, a file for each split, unless they are there already."""
    final = folder / f"shard-{index:05d}"
    if final.exists():
        return
    schema = pa.schema({"tokens": pa.list_(_token_type(processor), processor.num_image_tokens), "label": pa.int64()})
    with new_folder(final, f"unfinished-{index:05d}-") as unfinished:
        writers = [pq.ParquetWriter(unfinished / f"{name}.parquet", schema, compression="zstd") for name in SPLITS]
        for split, tokens, labels in _tokenized_rows(source, processor, seed, skip_bad_images, index):
            for number, writer in enumerate(writers):
                rows = split == number
                column = pa.FixedSizeListArray.from_arrays(pa.array(tokens[rows].ravel()), tokens.shape[1])
                writer.write_table(pa.table([column, pa.array(labels[rows])], schema=schema))
        for writer in writers:
            writer.close()


def _sweep(folder: Path):
    """Delete what killed runs have left of shards: nobody has written to it for a day."""
    for unfinished in folder.glob("unfinished-*"):
        with suppress(OSError):  # another process does the same
            newest = max(path.stat().st_mtime for path in [unfinished, *unfinished.iterdir()])
            if time.time() - newest > 24 * 3600:
                shutil.rmtree(unfinished)


def _token_type(processor) -> pa.DataType:
    return pa.uint8() if processor.vocab_size <= 256 else pa.uint16()


def _tokenized_rows(source: ShardedSource, processor, seed: int, skip_bad_images: bool, index: int) -> Iterator:
    """Batches of a shard: split (n,), tokens (n, num_image_tokens) and labels (n,)."""
    shard, first_row, num_bad = source.shards[index], 0, 0
    generator = split_generator(seed, shard)
    rows = shard.open().select_columns([source.image_column, source.label_column])
    _check_classes(rows.features[source.label_column], source, shard)
    encoded = rows.cast_column(source.image_column, Image(decode=False))
    for batch in encoded.iter(READ_ROWS):
        labels = _class_indices(batch[source.label_column], source, shard, first_row)
        tokens, good = [], []
        for row, image in enumerate(batch[source.image_column], start=first_row):
            try:
                image = decode_image(_with_bytes(image, shard))
            except DataError as error:
                num_bad += 1
                if skip_bad_images:
                    continue
                raise DataError(
                    f"row {row} of {shard.name} {error}. Fix or remove it, or set --skip_bad_images to leave out "
                    "such images."
                ) from error
            tokens.append(tokenize_batch({"image": [image]}, [row], shard.name, processor, "tokens")["tokens"])
            good.append(row - first_row)
        split = draw_splits(generator, len(labels), shard.given, source.given)
        first_row += len(labels)
        if tokens:
            yield split[good], np.concatenate(tokens), labels[good]
    if num_bad:
        logger.warning("Skipped %d of %d images of %s", num_bad, first_row, shard.name)


def _with_bytes(image: dict | None, shard: Shard) -> dict | None:
    """Read an image that is a file of its own in the Hub data set; an address anywhere else is not followed."""
    if image is None or image["bytes"] is not None or f"hf://datasets/{shard.path}@" not in (image["path"] or ""):
        return image
    with xopen(image["path"], "rb") as file:
        return {**image, "bytes": file.read()}


def _check_classes(feature, source: ShardedSource, shard: Shard):
    if source.labels_are_indices and tuple(getattr(feature, "names", ())) != source.names:
        raise DataError(f"{shard.name} has other classes than the first shard: give all shards the same ClassLabel.")


def _class_indices(labels: list, source: ShardedSource, shard: Shard, first_row: int) -> np.ndarray:
    """Class index of each label of consecutive rows: (n,)."""
    index_of = {index if source.labels_are_indices else name: index for index, name in enumerate(source.names)}
    keys = labels if source.labels_are_indices else [str(label) for label in labels]
    for row, (key, label) in enumerate(zip(keys, labels, strict=True), start=first_row):
        if label is None or key not in index_of:
            raise DataError(f"row {row} of {shard.name} has no valid label ({label}). Remove it.")
    return np.array([index_of[key] for key in keys], dtype=np.int64)


@dataclass(frozen=True)
class ShardedTokens:
    """The tokens of a data set on disk: for each split, the parquet files of the shards that have some."""

    files: dict[str, list[str]]
    num_images: dict[str, int]
    features: Features

    @classmethod
    def load(cls, folder: Path, features: Features) -> "ShardedTokens":
        """Look at the files of a cache folder; only their ends are read.

        Raises:
            DataError: A split has no image.
        """
        files: dict[str, list[str]] = {name: [] for name in SPLITS}
        num_images = dict.fromkeys(SPLITS, 0)
        for shard in sorted(folder.glob("shard-*")):
            for name in SPLITS:
                path = shard / f"{name}.parquet"
                count = pq.read_metadata(path).num_rows
                num_images[name] += count
                files[name] += [str(path)] if count else []
        empty = [name for name in SPLITS if num_images[name] == 0]
        if empty:
            raise DataError(f"no image came into {', '.join(empty)}: there are too few. Leave out --streaming.")
        return cls(files, num_images, features)

    def __len__(self) -> int:
        """Images to train on."""
        return self.num_images["train"]

    def head(self, split: str, num_images: int) -> Dataset:
        """The first images of a split's shards, as many of each, in memory: at most `num_images`."""
        per_shard = math.ceil(num_images / len(self.files[split]))
        batches = [next(pq.ParquetFile(path).iter_batches(per_shard)) for path in self.files[split]]
        rows = pa.Table.from_batches(batches)[:num_images].to_pydict()
        return Dataset.from_dict(rows, features=self.features)


def stream_splits(source: ShardedSource, processor, seed: int, max_eval_images: int, **options):
    """What the training needs of a source: `train` as `ShardedTokens`, `validation` and `test` as data sets in memory.

    Returns:
        Images and tokens, as `load_splits` and `tokenize` do. The images are those of the test split alone, made
        of their tokens.
    """
    tokens = tokenize_shards(source, processor, seed, **options)
    parts = {name: tokens.head(name, max_eval_images) for name in ("validation", "test")}
    seen = set(parts["validation"]["label"][:])
    missing = [name for label, name in enumerate(source.names) if label not in seen]
    if missing:
        logger.warning("No validation image shows %s: if shards are sorted, shuffle their rows", ", ".join(missing))
    images = processor.decode(parts["test"].with_format("numpy")["tokens"][:])
    features = Features(image=Image(), label=parts["test"].features["label"])
    test = Dataset.from_dict({"image": images, "label": parts["test"]["label"][:]}, features=features)
    return {"train": tokens, **parts, "test": test}, {"train": tokens, **parts}


# --- streams --------------------------------------------------------------------------------------------------------


class TokenStream(torch.utils.data.IterableDataset):
    """The training images of a `ShardedTokens`, from the disk through a shuffle buffer.

    The order depends on the seed and the epoch alone, and so do class dropout and grids (`TokenDataset`): a
    resumed run reads past what it has had, and several processes each keep their part of every batch.

    Args:
        tokens: From `tokenize_shards`.
        config: The model's configuration. Each image is moved to one of its `num_grids`.
        class_dropout_prob: Fraction of images per epoch with class dropout.
        seed: Of the order, and of class dropout and grids.
        shuffle_buffer: Images in memory from which the next one is sampled; the shards' order is shuffled, too.
    """

    def __init__(self, tokens: ShardedTokens, config, class_dropout_prob: float, seed: int, shuffle_buffer: int):
        files = [escape(path) for path in tokens.files["train"]]
        rows = load_dataset("parquet", data_files=files, split="train", streaming=True)
        self.rows = rows.shuffle(seed=seed, buffer_size=shuffle_buffer)
        self.num_images = len(tokens)
        self.config = config
        self.class_dropout_prob = class_dropout_prob
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # DataLoader workers may outlive an epoch

    def choose_epoch(self, epoch: int):
        """Choose the order of an epoch."""
        self.epoch.fill_(epoch)
        self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Images one by one: `input_ids` and `labels`, both (1 + N,); the prompt's label is -100."""
        generator = np.random.default_rng([self.seed, int(self.epoch)])
        for row in self.rows:
            is_dropped = generator.random() < self.class_dropout_prob
            prompt = self.config.start_token_id if is_dropped else self.config.vocab_size + row["label"]
            ids = torch.tensor([prompt, *row["tokens"]])
            if self.config.num_grids > 1:
                ids = ids_on_grid(ids[None], generator.integers(self.config.num_grids), self.config)[0]
            yield {"input_ids": ids, "labels": torch.cat([torch.tensor([-100]), ids[1:]])}
