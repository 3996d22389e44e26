"""The model's weights and tables, in the form that the compiled kernels take."""

import torch
from torch import nn

from .kernel_blocks import HEAD_SIZE, LOG2_E, PAD_ROWS, BlockWeights
from .kernel_sampling import HALF
from .kernel_simd import LANES
from .neighborhood import neighbor_index, prompt_classes, rotary_cos_sin


# Names of a block's parameters, by the field of `BlockWeights` that stacks them.
BLOCK_PARAMETERS = {
    "qkv_weight": "attention.qkv_proj.weight",
    "qkv_bias": "attention.qkv_proj.bias",
    "mixing_weight": "attention.local_mixing.weight",
    "out_weight": "attention.out_proj.weight",
    "out_bias": "attention.out_proj.bias",
    "up_weight": "mlp.up_proj.weight",
    "up_bias": "mlp.up_proj.bias",
    "down_weight": "mlp.down_proj.weight",
    "down_bias": "mlp.down_proj.bias",
    "attention_gain": "attention_norm.weight",
    "mlp_gain": "mlp_norm.weight",
}


def stacked_weights(model) -> BlockWeights:
    """The weights of an IGPTModel, each kind as one tensor, as `blocks_forward` takes them except for `scale_queries`.

    Autograd leads back to the parameters.
    """
    layers, embeddings = model.layers, model.embeddings
    attentions, mlps = [layer.attention for layer in layers], [layer.mlp for layer in layers]

    def matrices(modules):
        return torch.stack([module.weight.mT for module in modules])

    def vectors(modules):
        return torch.stack([module.bias for module in modules])[:, None]

    def gains(norms):
        return torch.stack([norm.weight.view(-1, norm.weight.shape[-1]) for norm in norms])

    if attentions[0].local_mixing is None:
        mixing = torch.zeros(len(layers), 0, model.config.hidden_size, dtype=torch.float32)
    else:
        mixing = matrices([x.local_mixing for x in attentions])
    return BlockWeights(
        context_table=embeddings.context.weight[None],
        row_table=embeddings.row.weight[None],
        column_table=embeddings.column.weight[None],
        qkv_weight=matrices([x.qkv_proj for x in attentions]),
        qkv_bias=vectors([x.qkv_proj for x in attentions]),
        mixing_weight=mixing,
        out_weight=matrices([x.out_proj for x in attentions]),
        out_bias=vectors([x.out_proj for x in attentions]),
        up_weight=matrices([x.up_proj for x in mlps]),
        up_bias=vectors([x.up_proj for x in mlps]),
        down_weight=matrices([x.down_proj for x in mlps]),
        down_bias=vectors([x.down_proj for x in mlps]),
        attention_gain=gains([x.attention_norm for x in layers]),
        mlp_gain=gains([x.mlp_norm for x in layers]),
        last_gain=gains([model.norm]),
    )


def named_weights(model, weights: BlockWeights) -> dict[str, torch.Tensor]:
    """Undo `stacked_weights`: an IGPTModel's parameters, by name."""
    named = {
        "norm.weight": weights.last_gain,
        "embeddings.context.weight": weights.context_table,
        "embeddings.row.weight": weights.row_table,
        "embeddings.column.weight": weights.column_table,
    }
    for field, name in BLOCK_PARAMETERS.items():
        is_transposed = field.endswith("_weight")
        for index, weight in enumerate(getattr(weights, field)):
            named[f"layers.{index}.{name}"] = weight.mT if is_transposed else weight
    return {name: named[name].reshape(parameter.shape) for name, parameter in model.named_parameters()}


def query_scale(channels: int, head_size: int) -> torch.Tensor:
    """Factors of query, key and value (3 C,): log2(e) / sqrt(head size) for the queries, and 1."""
    scale = torch.ones(3 * channels, dtype=torch.float32)
    scale[:channels] = head_size**-0.5 * LOG2_E
    return scale


def scale_queries(weights: BlockWeights, head_size: int) -> BlockWeights:
    """Multiply the scale of the scores into the queries' matrix and bias: of `stacked_weights`, or of gradients.

    d loss / d weight is the same multiple of d loss / d (scaled weight): one function serves both.
    """
    scale = query_scale(weights.context_table.shape[-1], head_size)
    return weights._replace(qkv_weight=weights.qkv_weight * scale, qkv_bias=weights.qkv_bias * scale)


def padded(size: int, multiple: int = LANES) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def pad_channels(weight: torch.Tensor, dim: int) -> torch.Tensor:
    """Add zeros to a dimension, up to a multiple of LANES."""
    shape = list(weight.shape)
    shape[dim] = padded(shape[dim]) - shape[dim]
    return torch.cat([weight, weight.new_zeros(shape)], dim)


def pad_heads(weight: torch.Tensor, dim: int, heads: int, size: int) -> torch.Tensor:
    """Add zeros to a dimension, (parts, heads, size): to each head up to a multiple of HALF, and then to each part."""
    parts = weight.unflatten(dim, (-1, heads, size)).movedim(dim + 2, -1)
    parts = nn.functional.pad(parts, (0, padded(size, HALF) - size)).movedim(-1, dim + 2).flatten(dim + 1, dim + 2)
    return pad_channels(parts, dim + 1).flatten(dim, dim + 1)


def output_blocks(weight: torch.Tensor) -> torch.Tensor:
    """Matrices (L, inputs, outputs) as `linear_row` takes them: each block of LANES outputs is (inputs, LANES)."""
    return weight.unflatten(2, (-1, LANES)).transpose(1, 2).flatten(1)


def gain_rows(input_ids: torch.Tensor, config) -> torch.Tensor:
    """Which row of a norm's gains each prompt takes: (B, T) ids -> (B,)."""
    return prompt_classes(input_ids[:, 0], config) * config.class_conditional_norm


def neighbor_rows(length: int, config) -> torch.Tensor:
    """Rows of the neighbors in query, key and value, (T, K); row 0, of zeros, stands for those outside."""
    if config.neighborhood_radius == 0:
        return torch.zeros(length, 0, dtype=torch.long)
    places, is_inside = neighbor_index(torch.arange(length), config)
    return torch.where(is_inside, PAD_ROWS + places, 0)


def context_rows(length: int, first_rows: list[int], config) -> torch.Tensor:
    """The table that `embed` reads, (T, K + 1, 2)."""
    places, is_inside = neighbor_index(torch.arange(length), config, wraps=True)
    rows = torch.tensor(first_rows[:-1]) + torch.where(is_inside, 0, config.vocab_size)
    neighbors = torch.stack([torch.where(is_inside, places, -1), rows], dim=2)
    prompt = torch.tensor([0, first_rows[-1]]).expand(length, 1, 2)
    return torch.cat([neighbors, prompt], dim=1)


def rotary_table(length: int, config) -> torch.Tensor:
    """The table that the kernel `apply_rotary` reads, (2, T, LANES)."""
    cos, sin = rotary_cos_sin(torch.arange(length), config)  # (T, HEAD_SIZE / 2) each
    signed = torch.stack([torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)])
    return signed.repeat(1, 1, LANES // HEAD_SIZE)
