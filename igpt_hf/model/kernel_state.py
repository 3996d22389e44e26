"""Keys and values of the sequences of a `Decoder`, for the compiled kernel `extend_sequences`."""

import contextlib
import functools
import math
import mmap

import numpy as np
import torch

from .kernel_dispatch import model_arguments, run_tasks
from .kernel_packing import gain_rows, padded
from .kernel_sampling import QKV_BIAS, extension_kernel
from .kernel_simd import LANES


float32 = np.float32


def lazy_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros that cost no memory until they are used; in large pages of memory, where the system has them.

    A sequence's keys and values lie far apart: with small pages, most of the time would go into looking up addresses.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # Windows, macOS
        return np.zeros(shape, float32)
    memory = mmap.mmap(-1, max(1, 4 * math.prod(shape)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # not every Linux kernel has them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, float32, math.prod(shape)).reshape(shape)


class KernelState:
    """Keys and values of B sequences on the CPU, for a `Decoder`: the kernel `extend_sequences`.

    They lie in pages of LANES positions, as in PagedAttention (Kwon et al. 2023): sequences that go on from one share
    its full pages, and only the page that is being filled is copied.
    """

    def __init__(self, model, batch: int, max_batch: int):
        self.config, self.arguments, self.threads = model.config, model_arguments(model), torch.get_num_threads()
        self.num_blocks = padded(self.config.num_image_tokens) // LANES
        self.caches: list[np.ndarray] = []
        self.pages = torch.zeros(batch, self.num_blocks, dtype=torch.long)
        self._grow(max_batch)

    def _grow(self, batch: int):
        """Make room for the pages of `batch` sequences; those that there are keep their places."""
        layers, channels = self.arguments[0][QKV_BIAS].shape
        old, shapes = self.caches, ((layers, channels // 3, LANES), (layers, LANES, channels // 3))
        self.caches = [lazy_zeros((batch * self.num_blocks, *shape)) for shape in shapes]
        for new, cache in zip(self.caches, old, strict=False):
            new[: len(cache)] = cache

    def _free_pages(self, blocks: int, num: int) -> torch.Tensor:
        """Pages that no sequence uses for its first `blocks` blocks, (num,)."""
        is_free = torch.ones(len(self.caches[0]), dtype=torch.bool)
        is_free[self.pages[:, :blocks]] = False
        return is_free.nonzero()[:num, 0]

    def extend(self, ids: torch.LongTensor, begin: int, end: int) -> torch.Tensor:
        """Run positions `begin` to `end` - 1 of sequences (B, 1 + N): the logits of the last, (B, V)."""
        used, blocks = padded(begin) // LANES, padded(end) // LANES
        self.pages[:, used:blocks] = self._free_pages(used, len(ids) * (blocks - used)).view(len(ids), -1)
        logits = torch.empty(len(ids), self.config.vocab_size, dtype=torch.float32)
        sequences = (ids.numpy(), gain_rows(ids, self.config).numpy())
        caches = (tuple(cache.reshape(-1) for cache in self.caches), self.pages.numpy())
        arguments = (*self.arguments, sequences, caches, logits.numpy(), begin, end)
        run_tasks(functools.partial(extension_kernel(), *arguments), len(ids), self.threads)
        return logits

    def select(self, index: torch.LongTensor, length: int):
        """Sequence i becomes what sequence index[i] was, of which `length` positions are known.

        Of several, the first takes over the page that is being filled, and the others copy it.
        """
        num_pages, full = len(self.caches[0]), length // LANES
        if len(index) * self.num_blocks > num_pages:
            self._grow(max(len(index), 2 * num_pages // self.num_blocks))
        self.pages = self.pages[index]
        order = index.argsort(stable=True)
        others = order[1:][index[order].diff() == 0]
        if length % LANES and len(others):
            sources, targets = self.pages[others, full], self._free_pages(full + 1, len(others))
            self.pages[others, full] = targets
            for cache in self.caches:
                cache[targets.numpy()] = cache[sources.numpy()]
