"""The layers of an Image GPT: embeddings, local mixing, norm, rotary positions, attention, MLP and head.

Shapes: B images, T positions, S positions so far, H heads, D head size, C = H * D hidden size, K neighbors,
V vocabulary.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_igpt import IGPTConfig
from .kernel_dispatch import LinearOfImages, is_transformed
from .neighborhood import neighbor_index, neighborhood_offsets


class IGPTEmbeddings(nn.Module):
    """Sum of one embedding for each neighbor, one for the prompt, and one each for the row and the column."""

    def __init__(self, config: IGPTConfig):
        super().__init__()
        num_neighbors = len(neighborhood_offsets(config.neighborhood_radius))
        rows = config.vocab_size + 1  # of a neighbor's table: the tokens and "outside"
        # One table holds the K neighbors' tables, then the prompt's; `first_rows` says where each begins.
        self.context = nn.Embedding(num_neighbors * rows + config.num_prompts, config.hidden_size)
        self.grid_size = config.grid_size
        # One row more than the image has, for the position after all tokens.
        self.row = nn.Embedding(config.grid_size + 1, config.hidden_size)
        self.column = nn.Embedding(config.grid_size, config.hidden_size)
        self.first_rows = [k * rows for k in range(num_neighbors)] + [num_neighbors * rows - config.vocab_size]

    def forward(self, context: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """(B, T, K + 1) ids, (T,) positions -> (B, T, C)."""
        rows = context + torch.tensor(self.first_rows, device=context.device)
        # `embedding_bag` would do this in one call, but has no second derivative and bypasses adapters and hooks.
        known = sum(self.context(neighbor) for neighbor in rows.unbind(dim=2))
        return known + self.row(position_ids // self.grid_size) + self.column(position_ids % self.grid_size)


class IGPTLocalMixing(nn.Module):
    """Weighted sum of the values at the neighbors, per channel: a causal depthwise convolution.

    It is the "locally enhanced positional encoding" of CSWin (Dong et al. 2022, section 3.3), made causal. The few
    heads of a small model then need not attend to single neighbors. It reads only values, which attention caches
    anyway.
    """

    def __init__(self, config: IGPTConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(
            torch.zeros(config.hidden_size, len(neighborhood_offsets(config.neighborhood_radius)))
        )

    def forward(self, value: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Values of the sequence so far (B, H, S, D), positions (T,) -> (B, T, H, D)."""
        if len(position_ids) == value.shape[2]:  # all positions at once: training, likelihood, prompts
            return self._convolve(value)
        index, is_inside = neighbor_index(position_ids, self.config)  # (T, K)
        neighbors = value[:, :, index] * is_inside[..., None]  # (B, H, T, K, D)
        weight = self.weight.view(value.shape[1], -1, self.weight.shape[1])  # (H, D, K)
        return torch.einsum("bhtkd,hdk->bthd", neighbors, weight)

    def _convolve(self, value: torch.Tensor) -> torch.Tensor:
        batch, heads, length, size = value.shape
        grid, radius = self.config.grid_size, self.config.neighborhood_radius
        tokens = value.transpose(1, 2).reshape(batch, length, -1)[:, 1:]  # without the prompt: (B, T - 1, C)
        # One row more than the image has, since the last position may predict the token after it.
        tokens = nn.functional.pad(tokens, (0, 0, 0, (grid + 1) * grid - tokens.shape[1]))
        image = tokens.view(batch, grid + 1, grid, -1).permute(0, 3, 1, 2)  # (B, C, rows, columns)
        # In raster order the neighbors come first in the kernel; the token itself and what follows have no weight.
        kernel = nn.functional.pad(self.weight, (0, radius + 1)).view(-1, 1, radius + 1, 2 * radius + 1)
        image = nn.functional.pad(image, (radius, radius, radius, 0))
        mixed = nn.functional.conv2d(image, kernel, groups=kernel.shape[0])  # (B, C, rows, columns)
        return mixed.permute(0, 2, 3, 1).reshape(batch, -1, heads, size)[:, :length]


class IGPTRMSNorm(nn.Module):
    """Root-mean-square norm, as in the paper's code: x / rms(x) * weight.

    With `class_conditional_norm` the weight has a row for each class, and one for any (adaptive norm, as in Perez et
    al. 2018): the class scales channels in each layer, which an embedding that is added once at the input cannot.
    """

    def __init__(self, config: IGPTConfig):
        super().__init__()
        rows = (config.num_labels + 1,) if config.class_conditional_norm else ()
        self.weight = nn.Parameter(torch.ones(*rows, config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, hidden_states: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(B, T, C), the prompts' classes (B, 1), `num_labels` for the start token -> (B, T, C)."""
        if self.weight.ndim == 1:
            return nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.eps)
        gain = nn.functional.embedding(classes, self.weight)  # (B, 1, C)
        return nn.functional.rms_norm(hidden_states, gain.shape[-1:], eps=self.eps) * gain


def apply_rotary(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of channels, p and P + p: (B, H, T, D), `rotary_cos_sin` (2, T, P) -> (B, H, T, D).

    The product of a rotated query and a rotated key depends only on the difference of their angles: positions are
    relative (rotary positions; Su et al. 2021, equation 34). Channels from 2 P on stay as they are.
    """
    (cos, sin), pairs = cos_sin.to(x.dtype), cos_sin.shape[2]
    first, second, rest = x.split([pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Plain attention, softmax(q k^T * scaling + mask) v: (B, H, T, D) each -> (B, T, H, D), and the weights."""
    weights = query @ key.transpose(2, 3) * scaling  # (B, H, T, S)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class IGPTAttention(nn.Module):
    """Causal multi-head self-attention with rotary positions, and with the values of the neighbors mixed in."""

    def __init__(self, config: IGPTConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True  # read, like the next, by transformers' attention functions
        self.num_key_value_groups = 1
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj.is_residual_projection = True
        self.local_mixing = IGPTLocalMixing(config) if config.neighborhood_radius > 0 else None

    def forward(self, hidden_states, position_ids, cos_sin, attention_mask=None, past_key_values=None, **kwargs):
        batch, length, _ = hidden_states.shape
        qkv = self.qkv_proj(hidden_states).view(batch, length, 3, -1, self.head_dim)  # (B, T, C) -> (B, T, 3, H, D)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        query, key = apply_rotary(query, cos_sin), apply_rotary(key, cos_sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        mixed, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        if self.local_mixing is not None:
            mixed = mixed + self.local_mixing(value, position_ids)
        return self.out_proj(mixed.reshape(batch, length, -1)), weights


class IGPTMLP(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, config: IGPTConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.down_proj.is_residual_projection = True
        if config.hidden_act not in ACT2FN:
            raise ValueError(f"unknown hidden_act {config.hidden_act!r}; known: {', '.join(sorted(ACT2FN))}.")
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act(self.up_proj(hidden_states)))


class IGPTHead(nn.Linear):
    """Hidden states (B, T, C) -> logits (B, T, V), without bias."""

    def __init__(self, config: IGPTConfig):
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        self.starts_at_zero = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled():
            return super().forward(hidden_states)
        if is_transformed():
            return super().forward(hidden_states)
        kinds = {(x.device.type, x.dtype) for x in (hidden_states, self.weight)}
        if kinds == {("cpu", torch.float32)} and hidden_states.ndim == 3 and hidden_states.shape[0] > 0:
            return LinearOfImages.apply(hidden_states, self.weight)  # the same, but its gradient is summed in pairs
        return super().forward(hidden_states)
