"""Tokenized splits: images become tokens once, and are served in whole batches."""

import logging
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, List, Value

from ..errors import DataError
from ..model.neighborhood import ids_on_grid
from ..model.tokens import move_to_grid, pixels_to_tokens, token_probs
from .augmentation import NewImages
from .inspection import sample_images


MAX_PROBS = 512  # larger vocabularies would make large batches of probabilities: only the sampled tokens are learned


class TokenDataset(torch.utils.data.Dataset):
    """A split as tensors, read a batch at a time.

    With `class_dropout_prob` the class prompt of an image is sometimes the start token, so that one model learns to be
    conditional and unconditional (classifier-free guidance, Ho & Salimans 2022, algorithm 1). If the split holds gray
    images, each pixel is white with the probability of its gray level. What is sampled depends on the seed, the epoch
    and the image's index alone: a resumed run, or one on more processes, samples the same.

    Args:
        split: Rows with `tokens` or `gray`, and `label`, as `igpt_hf.data.tokenized.tokenize` makes them.
        config: The model's configuration.
        class_dropout_prob: Fraction of images per epoch with class dropout.
        seed: Of class dropout, of the pixels of gray images and of the grids.
        new_images: Take each epoch's images from there, with the labels of the split.
        num_grids: Move each image to one of so many grids, chosen anew in each epoch.
        gives_probs: Give the batches of gray images `token_probs` too, (B, N, V): the probability of each token, which
            the loss needs to be expected over all pixels (training/losses.py), not only over those that were sampled.
    """

    def __init__(
        self,
        split,
        config,
        class_dropout_prob: float = 0.0,
        seed: int = 0,
        new_images: NewImages | None = None,
        num_grids: int = 1,
        gives_probs: bool = False,
    ):
        columns = split.with_format("numpy")
        self.new_images = new_images
        self.gray = self.tokens = None
        if new_images is None and "gray" in split.column_names:
            self.gray = columns["gray"][:].astype(np.uint8)
        elif new_images is None:
            self.tokens = torch.from_numpy(columns["tokens"][:].astype(np.int32))
        is_gray = self.gray is not None or (new_images is not None and new_images.processor.binarize == "stochastic")
        self.gives_probs = gives_probs and is_gray and config.vocab_size <= MAX_PROBS
        self.prompts = torch.from_numpy(columns["label"][:]).long() + config.vocab_size
        self.config = config
        self.class_dropout_prob = class_dropout_prob
        self.num_grids = num_grids
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # DataLoader workers may outlive an epoch
        self.sampled_epoch: int | None = None

    def choose_epoch(self, epoch: int):
        """Choose an epoch: its class dropout, and its pixels of gray or new images.

        Not named `set_epoch`, which accelerate's DataLoader calls whenever it is iterated: one that is kept
        (`--dataloader_persistent_workers`) would evaluate other pixels each time.
        """
        self.epoch.fill_(epoch)

    def _sample(self, epoch: int):
        """Sample the class dropout of an epoch, from gray images the pixels, and the grids."""
        generator = np.random.default_rng([self.seed, epoch])
        self.is_dropped = torch.from_numpy(generator.random(len(self.prompts)) < self.class_dropout_prob)
        if self.gray is not None:
            pixels = (generator.random(self.gray.shape, dtype=np.float32) * 255 < self.gray).astype(np.uint8)
            pixels = pixels.reshape(-1, self.config.image_size, self.config.image_size)
            self.tokens = torch.from_numpy(pixels_to_tokens(pixels, self.config.patch_size).astype(np.int32))
        self.grids = generator.integers(self.num_grids, size=len(self.prompts))
        self.sampled_epoch = epoch

    def _images(self, indices: list[int]) -> tuple[torch.Tensor, np.ndarray | None]:
        """Tokens of the chosen epoch's images, (B, N), and their gray levels, (B, height, width), if there are any."""
        if self.new_images is not None:
            tokens, gray = self.new_images.tokens_and_gray(self.sampled_epoch, list(indices))
            return torch.from_numpy(tokens.astype(np.int64)), gray
        size = self.config.image_size
        gray = None if self.gray is None else self.gray[np.asarray(indices)].reshape(-1, size, size)
        return self.tokens[torch.as_tensor(indices)].long(), gray

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """A batch: `input_ids` and `labels`, both (B, 1 + N); the prompt's label is -100."""
        if self.sampled_epoch != (epoch := int(self.epoch)):
            self._sample(epoch)
        index, (tokens, gray) = torch.as_tensor(indices), self._images(indices)
        prompts = self.prompts[index].where(~self.is_dropped[index], self.config.start_token_id)[:, None]
        ids = torch.cat([prompts, tokens], dim=1)
        for grid in range(1, self.num_grids):
            chosen = self.grids[indices] == grid
            ids[chosen] = ids_on_grid(ids[chosen], grid, self.config)
            if gray is not None:
                gray[chosen] = move_to_grid(gray[chosen], grid, self.config.patch_size)
        batch = {"input_ids": ids, "labels": torch.cat([torch.full_like(prompts, -100), ids[:, 1:]], dim=1)}
        if self.gives_probs:
            batch["token_probs"] = torch.from_numpy(token_probs(gray / np.float32(255), self.config.patch_size))
        return batch


class LabelDataset(TokenDataset):
    """A split for `IGPTForImageClassification`: the labels are classes. The model itself leaves the prompts out."""

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """A batch: `input_ids` (B, 1 + N) and `labels` (B,)."""
        classes = self.prompts[torch.as_tensor(indices)] - self.config.vocab_size
        return {"input_ids": super().__getitems__(indices)["input_ids"], "labels": classes}


def collate(batch: dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """`TokenDataset` hands out whole batches already, a stream does not; no cache is built to train or evaluate."""
    if isinstance(batch, list):
        batch = torch.utils.data.default_collate(batch)
    return {**batch, "use_cache": False}  # type: ignore[dict-item]  # default_collate has no types


logger = logging.getLogger(__name__)


def tokenize(splits: DatasetDict, processor: Any) -> DatasetDict:
    """Turn the images into what the model reads, once: columns `tokens` (a list of fixed length) and `label`.

    With `processor.binarize == "stochastic"` the tokens are sampled anew in each epoch, so that the column is `gray`
    instead: the fitted image, a byte per pixel. The result is held in memory, never taken from a cache of an earlier
    run, which could not know that the processor's code has changed.

    Args:
        splits: as `load_splits` returns them.
        processor: its `tokenize(images)` turns a list of n PIL images into an array (n, num_tokens), its `to_gray`
            into (n, image_size, image_size). What it leaves open is decided by the training images.

    Raises:
        DataError: if the processor refuses an image; the message gives its split and index.
    """
    if not processor.is_decided:
        processor = processor.decide(sample_images(next(iter(splits.values()))))
    column = "gray" if processor.binarize == "stochastic" else "tokens"
    tokenized = DatasetDict()
    for name, split in splits.items():
        first = tokenize_batch(split[:1], [0], name, processor, column)[column]  # (1, length)
        tokenized[name] = split.map(
            tokenize_batch,
            batched=True,
            batch_size=25,  # decoded images in memory at a time: photographs are large
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


def tokenize_batch(
    batch: dict[str, list], indices: list[int], split_name: str, processor: Any, column: str
) -> dict[str, Any]:
    def prepare(images):
        return processor.tokenize(images) if column == "tokens" else processor.to_gray(images).reshape(len(images), -1)

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
            "%d of %d %s images are empty once they are binary: igpt data shows them beside what the model sees",
            empty,
            len(split),
            name,
        )
