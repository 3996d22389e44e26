"""When a compiled kernel replaces the model's modules, what it is given, and its gradients."""

import functools

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.activations import ACT2FN

from .kernel_blocks import FRONT, HEAD_SIZE, LOG2_E, float32, make_kernels
from .kernel_sampling import make_kernel
from .kernel_simd import (
    LANES,
    is_numba_usable,
    run_tasks,
)
from .neighborhood import context_ids, neighbor_index, rotations


MAX_CHANNELS, MAX_VOCAB_SIZE = 64, 512  # beyond, torch's matrix products are as fast, and gradients of tables large
TASKS = 32  # at most so many groups of images, each with gradients of its own
MATRICES = (2, 5, 7, 9)  # among the weights: of query, key and value; of the output; up; down
SLOPES = {"quick_gelu": 1.702, "silu": 1.0, "swish": 1.0}  # act(x) = x sigmoid(slope x)


def pairwise_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum over the first dimension, of pairs, then of pairs of pairs, ...: (n, ...) -> (...); overwrites x.

    The sums of two halves, 2**k long each, add up to the sum of the whole to the last bit: where batches are split
    over processes, a step is the same.
    """
    distance = 1
    while distance < len(x):
        x[: len(x) - distance : 2 * distance] += x[distance :: 2 * distance]
        distance *= 2
    return x[0]


class Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, model, input_ids, gain_rows, places, context, turns, eps, slope, *weights):
        (batch, length), channels = input_ids.shape, weights[0].shape[2]
        keeps, layers, rows = any(ctx.needs_input_grad), len(weights[2]), -(-length // LANES) * LANES
        kept = (batch, layers) if keeps else (0, 0)
        states = weights[0].new_empty(kept[0], layers + 1, rows, channels)
        attendeds = states.new_empty(*kept, rows, channels)
        statistics = states.new_empty(*kept, 2 * channels // HEAD_SIZE, FRONT + rows)
        out = states.new_empty(batch, length, channels)
        ctx.save_for_backward(*weights)
        ctx.model, ctx.input_ids = model, input_ids
        ctx.arrays = [tensor.numpy() for tensor in (input_ids, gain_rows, states, attendeds, statistics)]
        ctx.scaled = tuple(weight.detach().numpy() for weight in scale_queries(weights, HEAD_SIZE))
        ctx.settings = (places.numpy(), context.numpy(), turns.numpy(), float32(eps), float32(slope))
        arrays = (*ctx.arrays, out.numpy(), ctx.scaled, *ctx.settings, keeps)
        run_tasks(functools.partial(make_kernels()[0], *arrays), batch)
        return out

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # create_graph: the gradient shall have a gradient, which the kernel's has not
            wanted = ctx.needs_input_grad[-len(ctx.saved_tensors) :]
            return *[None] * 8, *module_gradients(ctx.model, ctx.input_ids, ctx.saved_tensors, wanted, grad)
        grads = [grad.new_zeros(min(len(grad), TASKS), *weight.shape) for weight in ctx.scaled]
        transposed = tuple(np.ascontiguousarray(ctx.scaled[i].transpose(0, 2, 1)) for i in MATRICES)
        arrays = (*ctx.arrays, ctx.scaled, transposed, *ctx.settings, grad.contiguous().numpy())
        run_tasks(functools.partial(make_kernels()[1], *arrays, tuple(x.numpy() for x in grads)), len(grads[0]))
        return *[None] * 8, *map(pairwise_sum, scale_queries(grads, HEAD_SIZE))


def module_gradients(model, input_ids, weights, wanted: list[bool], grad) -> list[torch.Tensor | None]:
    """What `Blocks.backward` returns for its weights, but computed by the model's modules, and with a graph.

    Args:
        weights: What `stacked_weights` returned.
        wanted: For which of them.
        grad: d loss / d `last_hidden_state`, (B, T, C).
    """
    positions = torch.arange(input_ids.shape[1])
    context = context_ids(input_ids, positions, model.config)  # a call with it is left to the modules
    with sdpa_kernel(SDPBackend.MATH):  # the only attention of torch that has a second derivative
        parameters = named_weights(model, weights)
        out = functional_call(model, parameters, (input_ids,), {"context": context, "use_cache": False})
    inputs = [weight for weight, is_wanted in zip(weights, wanted, strict=True) if is_wanted]
    grads = iter(torch.autograd.grad(out.last_hidden_state, inputs, grad, create_graph=True))
    return [next(grads) if is_wanted else None for is_wanted in wanted]


class LinearOfImages(torch.autograd.Function):
    """A linear layer without bias, (B, T, inputs) -> (B, T, outputs); see `pairwise_sum` for its weight's gradient."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, pairwise_sum(grad.mT @ x)


# The parameters of a block, in the order of `stacked_weights`.
BLOCK_WEIGHTS = (
    *("attention.qkv_proj.weight", "attention.qkv_proj.bias", "attention.local_mixing.weight"),
    *("attention.out_proj.weight", "attention.out_proj.bias"),
    *("mlp.up_proj.weight", "mlp.up_proj.bias", "mlp.down_proj.weight", "mlp.down_proj.bias"),
    *("attention_norm.weight", "mlp_norm.weight"),
)


def stacked_weights(model) -> tuple[torch.Tensor, ...]:
    """The weights of an IGPTModel, each kind as one tensor, as `blocks_forward` takes them but for `scale_queries`.

    Autograd leads back to the parameters.
    """
    layers, embeddings = model.layers, model.embeddings

    def matrices(modules):
        return torch.stack([module.weight.mT for module in modules])

    def vectors(modules):
        return torch.stack([module.bias for module in modules])[:, None]

    def gains(norms):
        return torch.stack([norm.weight.view(-1, norm.weight.shape[-1]) for norm in norms])

    attentions, mlps = [layer.attention for layer in layers], [layer.mlp for layer in layers]
    qkv, out = [x.qkv_proj for x in attentions], [x.out_proj for x in attentions]
    up, down = [x.up_proj for x in mlps], [x.down_proj for x in mlps]
    if attentions[0].local_mixing is None:
        mixing = torch.zeros(len(layers), 0, out[0].in_features)
    else:
        mixing = matrices([x.local_mixing for x in attentions])
    return (
        *(embeddings.context.weight[None], embeddings.position.weight[None]),
        *(matrices(qkv), vectors(qkv), mixing, matrices(out), vectors(out)),
        *(matrices(up), vectors(up), matrices(down), vectors(down)),
        *(gains([x.attention_norm for x in layers]), gains([x.mlp_norm for x in layers]), gains([model.norm])),
    )


def named_weights(model, weights: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    """Undo `stacked_weights`: an IGPTModel's parameters, by name."""
    table, position, *stacked, last_gain = weights
    named = {"norm.weight": last_gain, "embeddings.context.weight": table, "embeddings.position.weight": position}
    for name, layers in zip(BLOCK_WEIGHTS, stacked, strict=True):
        is_matrix = "norm" not in name  # of which the stack holds the transpose
        named |= {f"layers.{index}.{name}": weight.mT if is_matrix else weight for index, weight in enumerate(layers)}
    return {name: named[name].reshape(parameter.shape) for name, parameter in model.named_parameters()}


def query_scale(channels: int, head_size: int) -> torch.Tensor:
    """Factors of query, key and value (3 C,): log2(e) / sqrt(head size) for the queries, and 1."""
    scale = torch.ones(3 * channels)
    scale[:channels] = head_size**-0.5 * LOG2_E
    return scale


def scale_queries(weights, head_size: int) -> tuple[torch.Tensor, ...]:
    """Multiply the scale of the scores into the queries' matrix and bias: of `stacked_weights`, or of gradients.

    d loss / d weight is the same multiple of d loss / d (scaled weight): one function serves both.
    """
    table, position, qkv_w, qkv_b, *rest = weights
    scale = query_scale(qkv_w.shape[-2], head_size)
    return table, position, qkv_w * scale, qkv_b * scale, *rest


def gain_rows(input_ids: torch.Tensor, config) -> torch.Tensor:
    """Which row of a norm's gains each prompt takes: (B, T) ids -> (B,)."""
    return (input_ids[:, 0] - config.vocab_size) * config.class_conditional_norm


def neighbor_rows(length: int, config) -> torch.Tensor:
    """Rows of the neighbors in query, key and value, (T, K); row 0, of zeros, stands for those outside."""
    if config.neighborhood_radius == 0:
        return torch.zeros(length, 0, dtype=torch.long)
    places, is_inside = neighbor_index(torch.arange(length), config)
    return torch.where(is_inside, FRONT + places, 0)


def context_rows(length: int, first_rows: list[int], config) -> torch.Tensor:
    """The table that `embed` reads, (T, K + 1, 2)."""
    places, is_inside = neighbor_index(torch.arange(length), config, wraps=True)
    rows = torch.tensor(first_rows[:-1]) + torch.where(is_inside, 0, config.vocab_size)
    neighbors = torch.stack([torch.where(is_inside, places, -1), rows], dim=2)
    prompt = torch.tensor([0, first_rows[-1]]).expand(length, 1, 2)
    return torch.cat([neighbors, prompt], dim=1)


def turn_rows(length: int, config) -> torch.Tensor:
    """The table that `turn` reads, (2, T, LANES)."""
    cos, sin = rotations(torch.arange(length), config)  # (T, HEAD_SIZE / 2) each
    signed = torch.stack([torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)])
    return signed.repeat(1, 1, LANES // HEAD_SIZE)


def are_blocks_usable(model, input_ids: torch.Tensor) -> bool:
    """Whether `run_blocks` computes what an IGPTModel's modules would: small, and nothing but themselves."""
    config = model.config
    return (
        is_numba_usable()
        and not is_transformed()
        and input_ids.device.type == "cpu"
        and are_in_range(input_ids, config)
        and config._attn_implementation == "sdpa"
        and config.hidden_size == HEAD_SIZE * config.num_attention_heads <= MAX_CHANNELS
        and config.hidden_size % LANES == config.intermediate_size % LANES == 0
        and config.hidden_act in SLOPES
        and (config.vocab_size <= MAX_VOCAB_SIZE or not torch.is_grad_enabled())  # a gradient for each group of images
        and not (model.training and (config.attention_dropout or model.layers[0].gradient_checkpointing))
        and is_plain(model, config)
    )


def is_transformed() -> bool:
    """Whether a transformation of torch.func (grad, vmap, ...) is at work; it can follow torch's operations only."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def are_in_range(input_ids: torch.Tensor, config) -> bool:
    """Whether ids (B, T) are those of prompts and tokens; the kernels do not check what they look up."""
    if input_ids.dtype != torch.long or not 0 < input_ids.shape[1] <= config.max_position_embeddings:
        return False
    prompts, tokens = input_ids[:, 0], input_ids[:, 1:]
    are_prompts = (prompts >= config.vocab_size) & (prompts <= config.start_token_id)
    return bool(are_prompts.all() and ((tokens >= 0) & (tokens < config.vocab_size)).all())


def run_blocks(model, input_ids: torch.LongTensor) -> torch.Tensor:
    """All of an IGPTModel, from the first position on: ids (B, T) -> `last_hidden_state`, float32 (B, T, C)."""
    config, length = model.config, input_ids.shape[1]
    tables = neighbor_rows(length, config), context_rows(length, model.embeddings.first_rows, config)
    constants = (*tables, turn_rows(length, config), config.rms_norm_eps, SLOPES[config.hidden_act])
    weights = stacked_weights(model)
    rows = gain_rows(input_ids, config)
    return Blocks.apply(model, input_ids.contiguous(), rows, *constants, *weights)


def is_plain(model: nn.Module, config) -> bool:
    """Whether all modules are the model's own, float32 on the CPU, and no hook or wrapper changes what they do.

    Hooks that the library leaves behind once it was asked for hidden states or attentions do nothing by themselves.
    """
    kinds = (nn.Linear, nn.Embedding, nn.ModuleList, type(ACT2FN[config.hidden_act]))

    def is_changed(module) -> bool:
        left_behind = "transformers.utils.output_capturing"
        hooks = [hook for hook in module._forward_hooks.values() if getattr(hook, "__module__", None) != left_behind]
        others = (module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        return bool(hooks) or any(others) or "forward" in vars(module)

    def is_table_whole() -> bool:  # what lies beyond it would be read too
        embeddings = model.base_model.embeddings
        return embeddings.context.weight.shape[0] == embeddings.first_rows[-1] + config.start_token_id + 1

    return (
        all(
            (type(module) in kinds or type(module).__module__.rpartition(".")[2] == "modeling_igpt")
            and not is_changed(module)
            and all(
                x is None or (x.dtype == torch.float32 and x.device.type == "cpu") for x in module._parameters.values()
            )
            for module in model.modules()
        )
        and is_table_whole()
    )


MAX_HIDDEN_SIZE = 128  # beyond, torch's matrix products win; a vocabulary may have MAX_VOCAB_SIZE, `pick` sorts slowly
DEFAULTS = (1.0, 0, 1.0, 0.0, 1.0)  # temperature, top_k, top_p, min_p, guidance_scale


def padded(size: int) -> int:
    """The next multiple of LANES."""
    return -(-size // LANES) * LANES


@torch.no_grad()
def padded_weights(model) -> tuple[np.ndarray, ...]:
    """The weights as `complete_images` takes them: those of `scale_queries` and of the head, padded with zeros."""

    def pad(weight, inputs, outputs, parts=1):
        """(L, i, parts * o) -> (L, inputs, parts * outputs)"""
        weight = weight.unflatten(2, (parts, -1))
        missing = (0, outputs - weight.shape[3], 0, 0, 0, inputs - weight.shape[1])
        return nn.functional.pad(weight, missing).flatten(2).contiguous().numpy()

    config = model.config
    scaled = scale_queries(stacked_weights(model.model), config.hidden_size // config.num_attention_heads)
    table, position, qkv_w, qkv_b, mixing, out_w, out_b, up_w, up_b, down_w, down_b, *gains = scaled
    width, inner, outputs = (padded(n) for n in (config.hidden_size, config.intermediate_size, config.vocab_size))
    return (
        *(pad(table, table.shape[1], width), pad(position, position.shape[1], width)),
        *(pad(qkv_w, width, width, 3), pad(qkv_b, 1, width, 3), pad(mixing, mixing.shape[1], width)),
        *(pad(out_w, width, width), pad(out_b, 1, width), pad(up_w, width, inner), pad(up_b, 1, inner)),
        *(pad(down_w, inner, width), pad(down_b, 1, width), *(pad(gain, gain.shape[1], width) for gain in gains)),
        pad(model.lm_head.weight.T[None], width, outputs),
        np.zeros((1, 1, outputs), float32),
    )


def is_sampler_usable(model) -> bool:
    """Whether `sample_images` can take this model: numba is here, and the model small and nothing but itself."""
    config = model.config
    return (
        is_numba_usable()
        and config.hidden_size <= MAX_HIDDEN_SIZE
        and config.vocab_size <= MAX_VOCAB_SIZE
        and config.hidden_act in SLOPES
        and not (model.training and config.attention_dropout)
        and is_plain(model, config)
        and model.lm_head.bias is None
    )


def sample_images(
    model,
    input_ids: torch.Tensor,
    *,
    do_sample: bool = True,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    guidance_scale: float = 1.0,
    noise: torch.Tensor | None = None,
    return_log_probs: bool = False,
):
    """Sample images: prompts and given tokens (B, 1 + given) -> (B, 1 + N), int64.

    The settings have the meaning that they have for the library's `generate`. All randomness is one draw from torch's
    generator of the CPU: `torch.manual_seed` makes samples repeatable, and the first of a larger batch are the same.

    Args:
        noise: Uniform numbers in [0, 1) instead of that draw, float64 (B, N - given).
        return_log_probs: Return also the log-probability of each token by the model as it is, float64 (B, N).

    Raises:
        ValueError: Ids out of range, a prompt that is a whole image, or a temperature that is not positive.
        RuntimeError: Probabilities that are not numbers, because some weights are not.
    """
    model._check_prompt(input_ids)
    if do_sample and temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; do_sample=False takes the likeliest.")
    config, batch, given = model.config, len(input_ids), input_ids.shape[1] - 1
    steps = config.num_image_tokens - given
    if noise is None:
        noise = (torch.rand if do_sample else torch.zeros)(batch, steps, dtype=torch.float64)
    settings = (temperature if do_sample else 0.0, top_k, top_p, min_p, guidance_scale)
    settings = tuple(float(default if x is None else x) for x, default in zip(settings, DEFAULTS, strict=True))
    ids = nn.functional.pad(input_ids.long(), (0, steps)).contiguous()
    log_probs = torch.empty(batch, config.num_image_tokens, dtype=torch.float64)

    positions = torch.arange(config.num_image_tokens)
    places, is_inside = neighbor_index(positions, config)
    context = context_rows(len(positions), model.model.embeddings.first_rows, config)
    turns = rotations(positions, config).numpy()
    starts = torch.full_like(ids[:, :1], config.start_token_id)
    rows = torch.stack([gain_rows(ids, config), gain_rows(starts, config)], dim=1)
    arguments = (
        *(padded_weights(model), (torch.where(is_inside, places, 0).numpy(), context.numpy(), turns)),
        (config.num_attention_heads, config.hidden_size, config.vocab_size),
        (float32(config.rms_norm_eps), float32(SLOPES[config.hidden_act])),
        *(config.start_token_id, ids.numpy(), rows.numpy(), given, noise.numpy(), settings, log_probs.numpy()),
    )
    run_tasks(functools.partial(make_kernel(), *arguments), batch)
    if log_probs.isnan().any():
        raise RuntimeError("The probabilities of the next token are not numbers: some weights are not.")
    return (ids, log_probs) if return_log_probs else ids


__all__ = [
    "LinearOfImages",
    "MAX_VOCAB_SIZE",
    "are_blocks_usable",
    "is_plain",
    "is_sampler_usable",
    "is_transformed",
    "run_blocks",
    "sample_images",
]
