"""Train with changes of the model that were tried: what docs/ablations.md says of them can be run again.

    python benchmarks/variants.py --model rotary dense --data digits.cdb --num_train_epochs 2    # flags of train.py

A change is a word, and words can be combined. `VariantModel` is the package's model, written out in plain torch with a
branch for each change: without any it computes the same (tests/benchmarks/test_variants.py). It trains and scores
whole images; it has no cache, so that it draws black pictures where train.py asks for samples.
"""

import argparse
import functools
import os
import runpy
import sys
from pathlib import Path


os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as scripts/train.py does

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from igpt_hf.model.kernel_blocks import FRONT, HEAD_SIZE, attend, attend_backward
from igpt_hf.model.kernel_dispatch import query_scale
from igpt_hf.model.kernel_simd import LANES, compile_kernel, is_numba_usable, numba, run_tasks
from igpt_hf.model.modeling_igpt import (
    IGPTMLP,
    IGPTEmbeddings,
    IGPTForCausalImageModeling,
    IGPTLocalMixing,
    IGPTPreTrainedModel,
    IGPTRMSNorm,
    rotate,
)
from igpt_hf.model.neighborhood import context_ids, neighborhood_offsets, rotations
from igpt_hf.model.tokens import pixels_to_tokens, tokens_to_pixels
from igpt_hf.training import initial_model as building
from igpt_hf.training import trainer as training


TRAIN = Path(__file__).resolve().parents[1] / "scripts" / "train.py"
CHANGES = {
    "row-column": "position embedding of row + column, not one for each token",
    "prompt-only": "the class enters at the prompt's position only",
    "pixels": "one embedding for the seven pixels that touch the block together",
    "pairs": "one embedding for the tokens on the left and above together",
    "pixel-logits": "logits from a table, by the seven pixels that touch the block",
    "depthwise-neighbors": "one table of tokens for all neighbors, each channel weighted by the neighbor",
    "pixel-neighbors": "the input is linear in the neighbors' pixels",
    "tied": "the left neighbor's embeddings are the head",
    "unrotated": "no rotary positions",
    "relative-bias": "scores have a bias learned for each head, by the distance in rows and in columns",
    "window": "every other layer sees four rows",
    "qk-norm": "RMSNorm of queries and keys",
    "value-residual": "values are mixed with the first layer's",
    "gated": "attention's output is gated by the input",
    "swiglu": "gated MLP of the same size",
    "class-bias": "blocks add a bias for each class",
    "dense": "each layer reads a weighted sum of all before it",
    "dense-channels": "the same with weights for each channel",
    "loop": "the middle four layers are passed twice",
    "mlp-mixing": "the MLP, too, reads a weighted sum of the neighbors",
    "shift": "half of the training images are shifted by a pixel",
    "shear": "half of the training images are sheared by a pixel",
}
AUGMENTATIONS = {"shift", "shear"}  # change the data only
WINDOW = 4  # rows that a layer with `window` sees


# --- input ----------------------------------------------------------------------------------------------------------


def near_pixels(context: torch.Tensor, config) -> torch.Tensor:
    """Number made of the seven known pixels that touch the 2x2 block to predict: (B, T, K + 1) -> (B, T), 0 to 127."""
    # Bits of a token: 0 1 above 2 3. Pixels outside the image are black (but at the start of a row, the left token is
    # the last of the row above: known as well, if not near).
    touching = {(0, -1): (1, 3), (-1, -1): (3,), (-1, 0): (2, 3), (-1, 1): (2, 3)}
    offsets = neighborhood_offsets(config.neighborhood_radius)
    bits = [(context[..., offsets.index(offset)] >> bit) & 1 for offset, rows in touching.items() for bit in rows]
    return sum(bit << place for place, bit in enumerate(bits))


class VariantEmbeddings(nn.Module):
    """`IGPTEmbeddings`, with changes."""

    def __init__(self, config, changes: frozenset[str]):
        super().__init__()
        self.config, self.changes = config, changes
        size, neighbors = config.hidden_size, len(neighborhood_offsets(config.neighborhood_radius))
        self.plain = IGPTEmbeddings(config)
        if "row-column" in changes:
            self.row = nn.Embedding(config.grid_size + 1, size)
            self.column = nn.Embedding(config.grid_size, size)
            self.plain.position = nn.Embedding(1, size)
        if changes & {"depthwise-neighbors", "pixel-neighbors"}:
            self.plain.context = nn.Embedding(config.num_labels + 1, size)  # the prompt's rows only
        if "depthwise-neighbors" in changes:  # one table for all neighbors, each channel weighted by the neighbor
            self.token = nn.Embedding(config.vocab_size + 1, size)
            self.weight = nn.Embedding(neighbors, size)
        if "pixel-neighbors" in changes:  # linear in the neighbors' pixels
            self.pixel = nn.Embedding(neighbors * (config.patch_size**2 + 1), size)
        if "pixels" in changes:
            self.pixels = nn.Embedding(128, size)
        if "pairs" in changes:
            self.pairs = nn.Embedding((config.vocab_size + 1) ** 2, size)

    def forward(self, context: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(B, T, K + 1) ids, (T,) -> (B, T, C)."""
        changes, config = self.changes, self.config
        neighbors, prompt = context[..., :-1], context[..., -1] - config.vocab_size
        if "depthwise-neighbors" in changes:
            hidden = (self.token(neighbors) * self.weight.weight).sum(2) + self.plain.context(prompt)
            hidden = hidden + self.plain.position(positions)
        elif "pixel-neighbors" in changes:
            bits = (neighbors[..., None] >> torch.arange(config.patch_size**2 + 1)) & 1  # the last: outside
            hidden = bits.flatten(2).float() @ self.pixel.weight + self.plain.context(prompt)
            hidden = hidden + self.plain.position(positions)
        else:
            hidden = self.plain(context, positions * 0 if "row-column" in changes else positions)
        if "row-column" in changes:
            hidden = hidden + self.row(positions // config.grid_size) + self.column(positions % config.grid_size)
        if "prompt-only" in changes:
            told = nn.functional.embedding(prompt, self.plain.context.weight[self.plain.first_rows[-1] + 16 :])
            hidden = hidden - told * (positions > 0)[:, None]
        if "pixels" in changes:
            hidden = hidden + self.pixels(near_pixels(context, config))
        if "pairs" in changes:
            offsets = neighborhood_offsets(config.neighborhood_radius)
            left, above = (context[..., offsets.index(offset)] for offset in ((0, -1), (-1, 0)))
            hidden = hidden + self.pairs(left * (config.vocab_size + 1) + above)
        return hidden


# --- blocks ---------------------------------------------------------------------------------------------------------


def attend_images(qkv, statistics, out, length, first, last):
    """Causal attention of images `first` to `last` - 1; see `igpt_hf.model.kernel_blocks.attend`."""
    rows, heads = out.shape[1], statistics.shape[1] // 2
    scores, columns = np.empty((rows + LANES, LANES), np.float32), np.empty((HEAD_SIZE, LANES), np.float32)
    for image in range(first, last):
        statistic = statistics[image]
        attend(qkv[image], statistic[:heads], statistic[heads:], out[image], scores, columns, length)


def attend_images_backward(qkv, statistics, out, grad, dqkv, length, first, last):
    """The gradients of it: `grad` (B, FRONT + rows, C) -> `dqkv`, like `qkv`."""
    rows, heads = out.shape[1], statistics.shape[1] // 2
    deltas, columns = np.zeros((1, FRONT + rows), np.float32), np.empty((HEAD_SIZE, LANES), np.float32)
    dscores, pairs = np.empty((rows, rows), np.float32), np.empty((rows // 2, LANES), np.float32)
    for image in range(first, last):
        statistic = statistics[image]
        softmax = statistic[:heads], statistic[heads:]
        work = deltas, columns, dscores, pairs, length
        attend_backward(qkv[image], softmax[0], softmax[1], out[image], grad[image], dqkv[image], *work)


@functools.cache
def attention_kernels():
    array, number = numba.float32[:, :, ::1], numba.int64
    forward = compile_kernel(attend_images, (array, array, array, number, number, number))
    return forward, compile_kernel(attend_images_backward, (*[array] * 5, number, number, number))


class CompiledAttention(torch.autograd.Function):
    """Causal attention by the package's kernel: queries, keys, values (B, T, 3 C) -> (B, T, C)."""

    @staticmethod
    def forward(ctx, qkv):
        batch, length, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        rows = -(-length // LANES) * LANES
        padded = qkv.new_zeros(batch, FRONT + rows, 3 * channels)
        padded[:, FRONT : FRONT + length] = qkv * query_scale(channels, HEAD_SIZE)
        statistics = qkv.new_zeros(batch, 2 * channels // HEAD_SIZE, FRONT + rows)
        out = qkv.new_zeros(batch, rows, channels)
        ctx.arrays = [tensor.numpy() for tensor in (padded, statistics, out)]
        run_tasks(functools.partial(attention_kernels()[0], *ctx.arrays, length), batch)
        return out[:, :length]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        batch, length, channels = grad.shape
        padded = grad.new_zeros(batch, ctx.arrays[0].shape[1], channels)
        padded[:, FRONT : FRONT + length] = grad
        dqkv = padded.new_zeros(ctx.arrays[0].shape)
        run_tasks(functools.partial(attention_kernels()[1], *ctx.arrays, padded.numpy(), dqkv.numpy(), length), batch)
        return dqkv[:, FRONT : FRONT + length] * query_scale(channels, HEAD_SIZE)


class VariantAttention(nn.Module):
    """`IGPTAttention` over whole images, with changes."""

    def __init__(self, config, changes: frozenset[str], layer_idx: int):
        super().__init__()
        self.config, self.changes, self.layer_idx = config, changes, layer_idx
        size, heads, grid = config.hidden_size, config.num_attention_heads, config.grid_size
        self.head_dim = size // heads
        self.qkv_proj = nn.Linear(size, 3 * size)
        self.out_proj = nn.Linear(size, size)
        self.out_proj.is_residual_projection = True
        self.local_mixing = IGPTLocalMixing(config)
        if "qk-norm" in changes:
            self.qk_gain = nn.Parameter(torch.full((2, self.head_dim), self.head_dim**0.25))
        if "value-residual" in changes:
            self.first_share = nn.Parameter(torch.zeros(size))
        if "gated" in changes:
            self.gate = nn.Linear(size, size)
            self.gate.starts_at_zero = True
        if "relative-bias" in changes:
            self.row_bias = nn.Parameter(torch.zeros(heads, grid + 1))
            self.column_bias = nn.Parameter(torch.zeros(heads, 2 * grid - 1))

    def forward(self, hidden, positions, first_value=None) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, C) -> the same, and the values (B, T, H, D)."""
        changes, (batch, length, _) = self.changes, hidden.shape
        qkv = self.qkv_proj(hidden).view(batch, length, 3, -1, self.head_dim)
        query, key, value = qkv.unbind(2)  # each (B, T, H, D)
        if "qk-norm" in changes:
            query, key = (
                nn.functional.rms_norm(x, gain.shape, gain) for x, gain in zip((query, key), self.qk_gain, strict=True)
            )
        if "unrotated" not in changes:
            turns = rotations(positions, self.config)
            query, key = (rotate(x.transpose(1, 2), turns).transpose(1, 2) for x in (query, key))
        if "value-residual" in changes and first_value is not None:
            value = value + self.first_share.view(value.shape[2:]) * (first_value - value)
        mixed = self._attend(torch.stack([query, key, value], dim=2), positions)  # (B, T, C)
        if "gated" in changes:
            mixed = mixed * 2 * self.gate(hidden).sigmoid()
        return self.out_proj(mixed), value

    def _attend(self, qkv: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        mask = self._mask(positions)
        if mask is None and is_numba_usable() and self.head_dim == HEAD_SIZE:
            mixed = CompiledAttention.apply(qkv.flatten(2)).unflatten(-1, (-1, self.head_dim))
        else:
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
            mixed = mixed.transpose(1, 2)
        return (mixed + self.local_mixing(value, positions)).flatten(2)

    def _mask(self, positions: torch.Tensor) -> torch.Tensor | None:
        """What is added to the scores, (H or 1, T, T); None for nothing but causality."""
        grid, has_window = self.config.grid_size, "window" in self.changes and self.layer_idx % 2 == 1
        if not has_window and "relative-bias" not in self.changes:
            return None
        rows, columns = ((x[:, None] - x) for x in (positions // grid, positions % grid))  # (T, T)
        is_hidden = positions > positions[:, None]
        if has_window:
            is_hidden = is_hidden | ((rows >= WINDOW) & (positions > 0))  # the prompt stays in view
        mask = torch.zeros(1, *is_hidden.shape).masked_fill(is_hidden, -torch.inf)
        if "relative-bias" in self.changes:
            mask = mask + self.row_bias[:, rows.clamp(min=0)] + self.column_bias[:, columns + grid - 1]
        return mask


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020), with two thirds of the hidden size: the same number of parameters."""

    def __init__(self, config):
        super().__init__()
        size = config.intermediate_size * 2 // 3
        self.up_proj = nn.Linear(config.hidden_size, 2 * size)
        self.down_proj = nn.Linear(size, config.hidden_size)
        self.down_proj.is_residual_projection = True
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = self.up_proj(hidden).chunk(2, dim=-1)
        return self.down_proj(self.act(gate) * up)


class VariantBlock(nn.Module):
    """`IGPTBlock`, with changes."""

    def __init__(self, config, changes: frozenset[str], layer_idx: int):
        super().__init__()
        self.attention_norm, self.mlp_norm = IGPTRMSNorm(config), IGPTRMSNorm(config)
        self.attention = VariantAttention(config, changes, layer_idx)
        self.mlp = GatedMLP(config) if "swiglu" in changes else IGPTMLP(config)
        self.mlp_mixing = IGPTLocalMixing(config) if "mlp-mixing" in changes else None
        told = "class-bias" in changes
        self.class_bias = nn.Parameter(torch.zeros(config.num_labels + 1, config.hidden_size)) if told else None

    def forward(self, hidden, positions, classes, first_value=None) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, C) -> the same, and the values of attention."""
        if self.class_bias is not None:
            hidden = hidden + self.class_bias[classes]
        mixed, value = self.attention(self.attention_norm(hidden, classes), positions, first_value)
        hidden = hidden + mixed
        normed = self.mlp_norm(hidden, classes)
        if self.mlp_mixing is not None:
            heads = normed.unflatten(-1, (-1, self.attention.head_dim)).transpose(1, 2)
            normed = normed + self.mlp_mixing(heads, positions).flatten(2)
        return hidden + self.mlp(normed), value


# --- model ----------------------------------------------------------------------------------------------------------


class VariantModel(IGPTPreTrainedModel):
    """`IGPTModel` over whole images, with changes."""

    def __init__(self, config, changes: frozenset[str]):
        super().__init__(config)
        self.embeddings = VariantEmbeddings(config, changes)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList([VariantBlock(config, changes, index) for index in layers])
        self.norm = IGPTRMSNorm(config)
        # `loop`: the middle half of the layers is passed twice, with the same weights.
        middle = list(layers)[config.num_hidden_layers // 4 : -(config.num_hidden_layers // 4) or None]
        first, last = middle[0], middle[-1] + 1
        self.order = [*layers[:last], *layers[first:]] if "loop" in changes else list(layers)
        # `dense`: each layer reads a weighted sum of all before it, at first the last one (Pagliardini et al. 2024).
        self.depth_weights = None
        if changes & {"dense", "dense-channels"}:
            width = config.hidden_size if "dense-channels" in changes else 1
            sizes = range(2, len(self.order) + 2)
            self.depth_weights = nn.ParameterList([nn.Parameter(torch.eye(n)[-1:].T.repeat(1, width)) for n in sizes])
        self.post_init()

    def forward(self, input_ids: torch.LongTensor, **kwargs) -> BaseModelOutputWithPast:
        """(B, T) ids -> `last_hidden_state` (B, T, C)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        classes = input_ids[:, :1] - self.config.vocab_size
        hidden = self.embeddings(context_ids(input_ids, positions, self.config), positions)
        states, first_value = [hidden], None
        for step, index in enumerate(self.order):
            hidden, value = self.layers[index](hidden, positions, classes, first_value)
            first_value = value if first_value is None else first_value
            if self.depth_weights is not None:
                states.append(hidden)
                hidden = sum(weight * state for weight, state in zip(self.depth_weights[step], states, strict=True))
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden, classes))


class VariantForCausalImageModeling(IGPTForCausalImageModeling):
    """`IGPTForCausalImageModeling` with changes, named by the class attribute."""

    changes: frozenset[str] = frozenset()
    _auto_class = None  # its checkpoints carry no code

    def __init__(self, config):
        super().__init__(config)
        self.changes = type(self).changes
        self.model = VariantModel(config, self.changes)
        if "pixel-logits" in self.changes:
            self.pixel_logits = nn.Parameter(torch.zeros(128, config.vocab_size))
        if "tied" in self.changes:
            self.lm_head = None
            self.scale = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, input_ids, labels=None, use_cache=None, **kwargs) -> CausalLMOutputWithPast:
        """(B, T) ids -> `logits` (B, T, V) and, with labels, `loss`."""
        hidden, config = self.model(input_ids).last_hidden_state, self.config
        if self.lm_head is None:  # the left neighbor's embeddings are the head
            embeddings = self.model.embeddings.plain
            head = embeddings.context.weight[embeddings.first_rows[-2] :][: config.vocab_size]
            logits = (hidden * self.scale) @ head.T
        else:
            logits = self.lm_head(hidden)
        if "pixel-logits" in self.changes:
            positions = torch.arange(input_ids.shape[1])
            logits = logits + self.pixel_logits[near_pixels(context_ids(input_ids, positions, config), config)]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def generate(self, inputs=None, input_ids=None, **kwargs) -> torch.Tensor:
        """Black pictures, for lack of a cache."""
        prompt = inputs if input_ids is None else input_ids
        rest = prompt.new_zeros(len(prompt), self.config.max_position_embeddings - prompt.shape[1])
        return torch.cat([prompt, rest], dim=1)

    def save_pretrained(self, *args, **kwargs):
        PreTrainedModel.save_pretrained(self, *args, **kwargs)


# --- data -----------------------------------------------------------------------------------------------------------


def moved(pixels: np.ndarray, steps: np.ndarray, axis: int) -> np.ndarray:
    """Shift lines of pixels by -1, 0 or 1 with black coming in: (n, ..., length) along `axis`; steps broadcast."""
    padded = np.pad(pixels, [(1, 1) if a == axis % pixels.ndim else (0, 0) for a in range(pixels.ndim)])
    length = pixels.shape[axis]
    shifted = [np.take(padded, range(1 - step, 1 - step + length), axis) for step in (-1, 0, 1)]
    return np.choose(steps + 1, shifted)


class AugmentedTokens(training.TokenDataset):
    """The training split, drawn anew in each epoch: half of the images shifted by a pixel, or sheared."""

    changes: frozenset[str] = frozenset()

    def set_epoch(self, epoch: int):
        super().set_epoch(epoch)
        if self.class_dropout_prob == 0 or self.gray is not None:  # validation and test stay what they are
            return
        self.plain = getattr(self, "plain", self.tokens)
        generator = np.random.default_rng([self.seed, epoch, 1])
        size, n = self.config.image_size, len(self.plain)
        pixels = tokens_to_pixels(self.plain.numpy(), self.config.patch_size, size)
        is_moved = generator.random((n, 1, 1)) < 0.5
        if "shift" in self.changes:
            for axis in (1, 2):
                pixels = moved(pixels, is_moved * generator.integers(-1, 2, (n, 1, 1)), axis)
        if "shear" in self.changes:  # the top third a pixel to one side, the bottom third to the other
            thirds = np.sign(np.arange(size) - size // 2 + 0.5) * (np.abs(np.arange(size) - size / 2 + 0.5) > size / 6)
            side = is_moved * generator.choice([-1, 1], (n, 1, 1))
            pixels = moved(pixels, (side * thirds[:, None]).astype(int), 2)
        self.tokens = torch.from_numpy(pixels_to_tokens(pixels, self.config.patch_size).astype(np.int32))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = "; ".join(f"{name}: {meaning}" for name, meaning in CHANGES.items())
    parser.add_argument("--model", nargs="+", choices=CHANGES, required=True, metavar="CHANGE", help=listed)
    args, flags = parser.parse_known_args()
    VariantForCausalImageModeling.changes = AugmentedTokens.changes = frozenset(args.model)
    if set(args.model) - AUGMENTATIONS:
        building.MODELS["generation"] = VariantForCausalImageModeling
    training.TokenDataset = AugmentedTokens
    sys.argv = [str(TRAIN), *flags]
    runpy.run_path(str(TRAIN), run_name="__main__")


if __name__ == "__main__":
    main()
