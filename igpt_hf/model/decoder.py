"""A decoder that is stepped from outside: sequences that grow token by token, with their keys and values."""

import torch
from transformers.cache_utils import DynamicCache

from .input_checks import check_prompt
from .kernel_dispatch import is_sampler_usable
from .kernel_state import KernelState
from .neighborhood import context_ids


class CacheState:
    """Keys and values in transformers' cache, for a `Decoder`: any device, any size, the model's own forward."""

    def __init__(self, model, batch: int, max_batch: int):
        self.model, self.cache = model, DynamicCache(config=model.config)

    def extend(self, ids: torch.LongTensor, begin: int, end: int) -> torch.Tensor:
        """Run positions `begin` to `end` - 1 of sequences (B, 1 + N): the logits of the last, (B, V)."""
        context = context_ids(ids[:, :end], torch.arange(begin, end, device=ids.device), self.model.config)
        outputs = self.model(
            input_ids=ids[:, begin:end], past_key_values=self.cache, context=context, use_cache=True, logits_to_keep=1
        )
        return outputs.logits[:, -1].float()

    def select(self, index: torch.LongTensor, length: int):
        """Sequence i becomes what sequence index[i] was, of which `length` positions are known."""
        if length > 0:
            self.cache.reorder_cache(index)


class Decoder:
    """B sequences that grow token by token; whoever holds it decides on the tokens.

    Small models on the CPU run compiled, others in torch with transformers' cache; the logits are the same to 1e-5.
    Positions are computed when their logits are asked for: what was pushed at once is computed in one pass.

    Args:
        model: An `IGPTForCausalImageModeling`.
        input_ids: Prompts, (B, 1), or the beginnings of images, (B, 1 + given tokens).
        max_batch: The most sequences that `reorder` will make, if known: room for them is kept from the start.

    Raises:
        ValueError: Ids out of range, or whole images.

    Example:
        >>> decoder = Decoder(model, processor.prompt(class_labels=[3])["input_ids"])
        >>> while decoder.length <= model.config.num_image_tokens:
        ...     decoder.push(decoder.logits().argmax(-1))        # the likeliest token
        >>> decoder.input_ids.shape                              # (1, 1 + N)
    """

    def __init__(self, model, input_ids: torch.LongTensor, max_batch: int | None = None):
        check_prompt(input_ids, model.config, any_grid=True)
        batch, self.length = input_ids.shape
        missing = model.config.max_position_embeddings - self.length
        self._ids = torch.nn.functional.pad(input_ids.long(), (0, missing)).contiguous()
        self._state = (KernelState if is_sampler_usable(model) else CacheState)(model, batch, max_batch or batch)
        self.is_compiled = isinstance(self._state, KernelState)
        self._logits: torch.Tensor | None = None
        self._computed = 0  # positions whose keys and values are kept

    @property
    def input_ids(self) -> torch.LongTensor:
        """The sequences so far, (B, 1 + tokens)."""
        return self._ids[:, : self.length]

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """Logits of the next token, float32 (B, V).

        Raises:
            ValueError: The images are complete.
        """
        if self.length == self._ids.shape[1]:
            raise ValueError(f"the images are complete: all {self.length - 1} tokens are there.")
        if self._logits is None:
            self._logits = self._state.extend(self._ids, self._computed, self.length)
            self._computed = self.length
        return self._logits

    def push(self, tokens: torch.LongTensor):
        """Append a token to each sequence, (B,), or several, (B, n).

        Raises:
            ValueError: Tokens of another shape, or more than an image has. Their values are not checked.
        """
        tokens = tokens[:, None] if tokens.ndim == 1 else tokens
        if len(tokens) != len(self._ids) or self.length + tokens.shape[1] > self._ids.shape[1]:
            raise ValueError(
                f"{tuple(tokens.shape)} tokens for {len(self._ids)} sequences with {self._ids.shape[1] - self.length} "
                "tokens to come: give each sequence as many, and not more."
            )
        self._ids[:, self.length : self.length + tokens.shape[1]] = tokens
        if tokens.shape[1] > 0:
            self.length += tokens.shape[1]
            self._logits = None

    def reorder(self, index: torch.LongTensor):
        """Sequence i becomes what sequence index[i] was, (any number,): beams, particles, copies of one prompt.

        Raises:
            ValueError: An index of no sequence, or none at all.
        """
        if index.dtype != torch.long or len(index) == 0 or not 0 <= index.min() <= index.max() < len(self._ids):
            raise ValueError(f"index must hold whole numbers from 0 to {len(self._ids) - 1}, got {index.tolist()}.")
        self._state.select(index, self._computed)
        self._ids = self._ids[index]
        self._logits = None if self._logits is None else self._logits[index]
