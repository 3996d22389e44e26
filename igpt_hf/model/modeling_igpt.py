"""Image GPT for binary images, after Chen et al. 2020, "Generative Pretraining from Pixels".

A decoder-only transformer reads `[prompt] + image tokens` and predicts the image tokens, one after the other in raster
order. Position t (counted from 0, the prompt) predicts image token t. What differs from the paper's model:

* a token is a block of pixels, so that the vocabulary is small and the sequence short, and nothing is lost;
* the prompt asks for a class or, as the start token, for any class;
* the input at position t embeds all known tokens around token t, not only the one before it, and the prompt once more
  (`context_ids`): a causal convolution on the grid of tokens;
* attention adds a weighted sum of the values at the same neighbors (`IGPTLocalMixing`), and its scores depend on how
  far apart two positions are in rows and in columns (`rotate`).

Shapes: B images, T positions, H heads, D head size, C = H * D hidden size, K neighbors, V vocabulary.
"""

import copy
import functools
import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_igpt import IGPTConfig
from .kernel_dispatch import (
    LinearOfImages,
    are_blocks_usable,
    is_sampler_usable,
    is_transformed,
    run_blocks,
    sample_images,
)
from .neighborhood import context_ids, neighbor_index, neighborhood_offsets, rotations


logger = logging.get_logger(__name__)
# Arguments of `from_pretrained` that say where a checkpoint is found.
WHERE = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
# transformers 5.24 renamed the cache, in what `generate` hands to a model and in what a model returns. Both names are
# taken as arguments; this is the one that the installed version uses.
CACHE_NAME = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


class IGPTEmbeddings(nn.Module):
    """Sum of one embedding for each neighbor, one for the prompt, and one for the position."""

    def __init__(self, config: IGPTConfig):
        super().__init__()
        num_neighbors = len(neighborhood_offsets(config.neighborhood_radius))
        rows = config.vocab_size + 1  # of a neighbor's table: the tokens and "outside"
        # One table holds all: the K neighbors' tables, then the prompt's. `first_rows` is where each begins.
        self.context = nn.Embedding(num_neighbors * rows + config.num_labels + 1, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.first_rows = [k * rows for k in range(num_neighbors)] + [num_neighbors * rows - config.vocab_size]

    def forward(self, context: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """(B, T, K + 1) ids, (T,) positions -> (B, T, C)."""
        rows = context + torch.tensor(self.first_rows, device=context.device)
        # `embedding_bag` would do this in one call, but has no second derivative and passes by adapters and hooks.
        return sum(self.context(column) for column in rows.unbind(dim=2)) + self.position(position_ids)


class IGPTLocalMixing(nn.Module):
    """Weighted sum of the values at the neighbors, each channel for itself: a causal depthwise convolution.

    It is the "locally enhanced positional encoding" of CSWin (Dong et al. 2022, section 3.3) made causal, and spares
    the few heads of a small model the work of looking at the neighbors one by one. All that it reads is the values,
    which the cache of attention holds anyway.
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
        # A row more than the image has, since the last position predicts the token after it.
        tokens = nn.functional.pad(tokens, (0, 0, 0, (grid + 1) * grid - tokens.shape[1]))
        image = tokens.view(batch, grid + 1, grid, -1).permute(0, 3, 1, 2)  # (B, C, rows, columns)
        # In raster order the neighbors come first in the kernel; the token itself and what follows have no weight.
        kernel = nn.functional.pad(self.weight, (0, radius + 1)).view(-1, 1, radius + 1, 2 * radius + 1)
        image = nn.functional.pad(image, (radius, radius, radius, 0))
        mixed = nn.functional.conv2d(image, kernel, groups=kernel.shape[0])  # (B, C, rows, columns)
        return mixed.permute(0, 2, 3, 1).reshape(batch, -1, heads, size)[:, :length]


class IGPTRMSNorm(nn.Module):
    """Root-mean-square norm, as in the paper's code: x / rms(x) * weight.

    With `class_conditional_norm` the weight has a row for each prompt (adaptive norm, as in Perez et al. 2018): the
    class turns channels up and down in each layer, which an embedding that is added once at the input cannot.
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


def rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn pairs of channels, p and P + p, by their positions' `rotations`: (B, H, T, D), (2, T, P) -> (B, H, T, D).

    The product of a query and a key that are turned so depends on the difference of their angles: where both look is
    relative (rotary positions; Su et al. 2021, equation 34). Channels from 2 P on stay as they are.
    """
    (cos, sin), pairs = turns.to(x.dtype), turns.shape[2]
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
        self.is_causal = True  # read, as is the next, by the library's attention functions
        self.num_key_value_groups = 1
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj.is_residual_projection = True
        self.local_mixing = IGPTLocalMixing(config) if config.neighborhood_radius > 0 else None

    def forward(self, hidden_states, position_ids, turns, attention_mask=None, past_key_values=None, **kwargs):
        batch, length, _ = hidden_states.shape
        qkv = self.qkv_proj(hidden_states).view(batch, length, 3, -1, self.head_dim)  # (B, T, C) -> (B, T, 3, H, D)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        query, key = rotate(query, turns), rotate(key, turns)
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


class IGPTBlock(GradientCheckpointingLayer):
    """Pre-norm block (section 3.2): n = norm(h); a = h + attention(n); h' = a + mlp(norm(a))."""

    def __init__(self, config: IGPTConfig, layer_idx: int):
        super().__init__()
        self.attention_norm = IGPTRMSNorm(config)
        self.attention = IGPTAttention(config, layer_idx)
        self.mlp_norm = IGPTRMSNorm(config)
        self.mlp = IGPTMLP(config)

    def forward(
        self, hidden_states, classes, position_ids, turns, attention_mask=None, past_key_values=None, **kwargs
    ):
        normed = self.attention_norm(hidden_states, classes)
        mixed, _ = self.attention(normed, position_ids, turns, attention_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.mlp_norm(hidden_states, classes))


class IGPTPreTrainedModel(PreTrainedModel):
    """Weight initialization and what the library needs to know about the architecture."""

    config_class = IGPTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image",)
    output_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["IGPTBlock"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": IGPTBlock, "attentions": IGPTAttention}

    def get_input_embeddings(self) -> IGPTEmbeddings:
        """What turns ids into hidden states: the module that FSDP takes as one part."""
        return self.base_model.embeddings

    def set_input_embeddings(self, value: nn.Module):
        """Replace that module, by one that takes what `IGPTEmbeddings.forward` takes."""
        self.base_model.embeddings = value

    def resize_token_embeddings(self, *args, **kwargs):
        """Refuse: the tokens are all that a block of pixels can be, 2**(patch_size**2)."""
        raise ValueError(
            f"the vocabulary follows from patch_size={self.config.patch_size} and cannot be resized: make a new "
            "model for another patch_size; `set_classes` changes the classes that prompts ask for."
        )

    def get_submodule(self, target: str) -> nn.Module:
        """As in torch, but refuse what peft looks for when it is to train a prompt or a prefix of free vectors."""
        if target == "embeddings.word_embeddings":
            raise ValueError(
                "prompt tuning and prefix tuning do not fit this model: each position sees the tokens around it on "
                "the grid, and free vectors have no place there. Train a new class (`set_classes`), or use LoRA."
            )
        return super().get_submodule(target)

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """What a forward pass takes: two images without foreground, of any class."""
        input_ids = torch.zeros(2, self.config.max_position_embeddings, dtype=torch.long, device=self.device)
        input_ids[:, 0] = self.config.start_token_id
        return {"input_ids": input_ids}

    # --- classes ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, config=None, ignore_mismatched_sizes=False, **kwargs
    ):
        """As in the library; with `ignore_mismatched_sizes=True`, another number of classes costs only their prompts.

        `num_labels`, `id2label` or `config` may then ask for other classes than the checkpoint has: see `set_classes`.
        """
        name = pretrained_model_name_or_path
        load = functools.partial(
            super().from_pretrained, name, *model_args, ignore_mismatched_sizes=ignore_mismatched_sizes
        )
        if not ignore_mismatched_sizes or name is None:
            return load(config=config, **kwargs)
        where = {key: kwargs[key] for key in WHERE if key in kwargs}
        saved = cls.config_class.from_pretrained(name, **where)
        if isinstance(config, PreTrainedConfig):
            wanted, config = config, copy.deepcopy(config)
            config.id2label, config.label2id = saved.id2label, saved.label2id
        else:
            asked = {key: kwargs.pop(key) for key in ("num_labels", "id2label", "label2id") if key in kwargs}
            wanted = cls.config_class.from_pretrained(name if config is None else config, **where, **asked)
            kwargs |= {"id2label": saved.id2label, "label2id": saved.label2id}
        result = load(config=config, **kwargs)
        model = result[0] if kwargs.get("output_loading_info") else result
        names = [str(wanted.id2label[label]) for label in range(wanted.num_labels)]
        if wanted.num_labels == saved.num_labels:  # other names for the same classes
            model._name_classes(names)
        elif new := model.set_classes(names):
            logger.warning("%s: the prompts of these classes are new, and want training: %s", name, ", ".join(new))
        return result

    @torch.no_grad()
    def set_classes(self, names: list[str]) -> list[str]:
        """Change the classes; one whose name the model knows keeps its prompt, a new one begins as "any class".

        Args:
            names: Of the classes, in the order of their labels.

        Returns:
            The names that are new.

        Raises:
            ValueError: No name, or one that comes twice.
        """
        if not names or len(set(names)) < len(names):
            raise ValueError(f"classes need names, each another one, got {', '.join(names) or 'none'}.")
        config, context = self.config, self.base_model.embeddings.context
        known = self._labels_by_name()
        any_class = config.num_labels
        first = context.num_embeddings - config.num_labels - 1  # the row of the first class's prompt
        prompts = torch.tensor([*(known.get(name, any_class) for name in names), any_class])
        rows = torch.cat([torch.arange(first), first + prompts]).to(context.weight.device)
        context.weight = nn.Parameter(context.weight[rows], requires_grad=context.weight.requires_grad)
        context.num_embeddings = len(rows)
        for norm in self.modules():
            if isinstance(norm, IGPTRMSNorm) and config.class_conditional_norm:
                norm.weight = nn.Parameter(norm.weight[prompts], requires_grad=norm.weight.requires_grad)
        self._name_classes(names)
        if self.can_generate():
            self.generation_config.bos_token_id = config.start_token_id
        return [name for name in names if name not in known]

    def _name_classes(self, names: list[str]):
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: label for label, name in enumerate(names)}

    def _labels_by_name(self) -> dict[str, int]:
        return {str(self.config.id2label[label]): label for label in range(self.config.num_labels)}

    # --- saving and initialization ----------------------------------------------------------------------------------

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save the weights, the configuration and the code, so that others can load them with `trust_remote_code`."""
        module = __name__.rpartition(".")[2]
        self.config.auto_map = {name: f"{module}.{kind.__name__}" for name, kind in AUTO_CLASSES.items()}
        saved_class = type(self)
        if saved_class.__name__.startswith("FSDP"):  # a class that torch has made of this one: its code is not ours
            self.__class__ = saved_class.__bases__[-1]
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.__class__ = saved_class

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Matrices keep the variance of their input, N(0, 1 / fan_in); those that write into the residual stream
        start smaller by sqrt(2 * layers) (Radford et al. 2019, section 2.3); the head starts at zero, as in the
        paper's code, so that the first loss is exactly ln(vocab_size) nats per token."""
        if isinstance(module, nn.Linear):
            std = module.in_features**-0.5
            if getattr(module, "is_residual_projection", False):
                std /= math.sqrt(2 * self.config.num_hidden_layers)
            if getattr(module, "starts_at_zero", False):
                std = 0.0
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, IGPTLocalMixing):
            init.zeros_(module.weight)
        else:
            super()._init_weights(module)


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
            return LinearOfImages.apply(hidden_states, self.weight)  # the same, whose gradient is summed in pairs
        return super().forward(hidden_states)


def check_ids(input_ids: torch.Tensor, config: IGPTConfig):
    """Raise ValueError unless ids (B, T) are a prompt's and image tokens'."""
    first, last = config.vocab_size, config.start_token_id
    for name, part, low, high in (
        ("prompt id", input_ids[:, :1], first, last),
        ("token", input_ids[:, 1:], 0, first - 1),
    ):
        wrong = part[(part < low) | (part > high)]
        if len(wrong):
            raise ValueError(f"{name} {wrong[0].item()} is out of range: {low} to {high}.")


def is_padding_mask(attention_mask) -> bool:
    """Whether a mask says which ids to read, (B, T); prepared masks have four dimensions, or a class of their own."""
    return isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2


def check_no_padding(attention_mask=None, position_ids: torch.Tensor | None = None):
    """Raise ValueError if a mask (B, T) hides ids, or if positions (B, T) begin at another place in each sequence."""
    if is_padding_mask(attention_mask) and not attention_mask.all():
        raise ValueError(
            "attention_mask has zeros, but there is no padding: a batch holds sequences of one length. Leave the mask "
            "out, and pass prompts of another length in a batch of their own."
        )
    if position_ids is None or position_ids.device.type != "cpu":  # elsewhere it would take time
        return
    if (position_ids != position_ids[:1]).any():
        raise ValueError("position_ids differ from sequence to sequence, but there is no padding: leave them out.")


def check_no_embeddings(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None):
    """Raise ValueError unless a model is given ids, and only those."""
    if input_ids is None or inputs_embeds is not None:
        raise ValueError(
            "pass input_ids: inputs_embeds is not supported, since each position embeds several neighboring tokens."
        )


class IGPTModel(IGPTPreTrainedModel):
    """The transformer without a head: ids -> hidden states."""

    def __init__(self, config: IGPTConfig):
        super().__init__(config)
        self.embeddings = IGPTEmbeddings(config)
        self.layers = nn.ModuleList([IGPTBlock(config, index) for index in range(config.num_hidden_layers)])
        self.norm = IGPTRMSNorm(config)
        self.gradient_checkpointing = False  # where the library sees that there shall be no cache
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        context: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Compute hidden states: (B, T) ids -> `last_hidden_state` (B, T, C).

        Args:
            input_ids: `[prompt] + image tokens` or, with a cache, the newest of them.
            attention_mask: All ones: there is no padding. Or a prepared mask with four dimensions.
            past_key_values, cache: Keys and values of the positions before; two names for one argument.
            context: What `context_ids` finds for these positions; needed only with a cache that is not empty, since
                then `input_ids` no longer holds the neighbors.

        Raises:
            ValueError: A mask with zeros, `inputs_embeds`, a cache without `context`, a sequence longer than one
                image, or, on the CPU, one that does not begin with a prompt's id or has an id that is no image token.
        """
        check_no_embeddings(input_ids, inputs_embeds)
        if not torch.compiler.is_compiling():
            check_no_padding(attention_mask, position_ids)
            if is_padding_mask(attention_mask):
                attention_mask = None  # it hides nothing
        past_key_values = past_key_values if cache is None else cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None and self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            raise ValueError("gradient checkpointing computes each block twice, and a cache takes no token twice: "
                             "call the model without a cache.")  # fmt: skip
        asks = (kwargs.get(n, getattr(self.config, n, False)) for n in ("output_hidden_states", "output_attentions"))
        is_plain_call = all(x is None for x in (attention_mask, position_ids, past_key_values, context))
        if is_plain_call and not any(asks) and are_blocks_usable(self, input_ids):
            # The same on the CPU, many times faster: whole sequences, nothing masked, no cache.
            return BaseModelOutputWithPast(last_hidden_state=run_blocks(self, input_ids))
        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None] + past_length
        position_ids_1d = position_ids[0]  # all images have the same length: there is no padding
        if context is None:
            if past_length > 0:
                raise ValueError("With a cache, pass `context` too: the neighbors are not in input_ids any more.")
            if input_ids.shape[1] > self.config.max_position_embeddings:
                raise ValueError(
                    f"A sequence has at most {self.config.max_position_embeddings} ids (the prompt and "
                    f"{self.config.num_image_tokens} image tokens), got {input_ids.shape[1]}."
                )
            can_look = not (torch.compiler.is_compiling() or is_transformed())
            if input_ids.device.type == "cpu" and can_look:  # elsewhere it would take time
                check_ids(input_ids, self.config)
            context = context_ids(input_ids, position_ids_1d, self.config)

        classes = context[:, :1, -1] - self.config.vocab_size  # (B, 1): with a cache, only the context has the prompt
        hidden_states = self.embeddings(context, position_ids_1d)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE_NAME: past_key_values},
        )
        turns = rotations(position_ids_1d, self.config)
        for layer in self.layers:
            hidden_states = layer(hidden_states, classes, position_ids_1d, turns, mask, past_key_values, **kwargs)
        hidden_states = self.norm(hidden_states, classes)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, **{CACHE_NAME: past_key_values})


# Arguments of transformers' `generate` that would be ignored, spoil the image, or fail without saying why.
UNSUPPORTED = {
    "tokens are sampled one at a time, and none are drafted": (
        *("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "speculation_type"),
    ),
    "each position embeds several neighboring tokens, so the ids of the whole sequence are needed": (
        *("inputs_embeds", "prefill_chunk_size"),
    ),
    "guidance is away from the start token": ("negative_prompt_ids", "negative_prompt_attention_mask"),
    "all images have the same number of tokens, with neither an end token nor padding": (
        *("eos_token_id", "pad_token_id", "exponential_decay_length_penalty"),
    ),
    "a token is a part of an image, and there is no text": ("stop_strings", "token_healing"),
    "a token's position is its place in the image": ("position_ids",),
    "the prompt's ids are none that can be sampled": ("encoder_repetition_penalty",),
    "transformers 5 no longer has this way of decoding": (
        *("penalty_alpha", "dola_layers", "constraints", "force_words_ids", "num_beam_groups", "diversity_penalty"),
    ),
}


class IGPTForCausalImageModeling(IGPTPreTrainedModel, GenerationMixin):
    """Image GPT with a head that predicts the next image token: exact likelihoods and samples.

    Example:
        >>> model = IGPTForCausalImageModeling(IGPTConfig.from_preset("xxs"))
        >>> ids = model.generate()                          # one image: (1, 1 + 196)
        >>> nats = -model.log_likelihood(ids)               # (1,)
    """

    def __init__(self, config: IGPTConfig):
        super().__init__(config)
        self.model = IGPTModel(config)
        self.lm_head = IGPTHead(config)
        self.loss_type = "ForCausalLM"  # cross-entropy of the next token; the library cannot tell from the class name
        self.post_init()
        self.generation_config = GenerationConfig(
            bos_token_id=config.start_token_id, max_length=config.max_position_embeddings, do_sample=True, top_k=0
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        context: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        inputs_embeds: torch.FloatTensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Predict image tokens: (B, T) ids -> `logits` (B, T, V); `logits[:, t]` speaks of `input_ids[:, t + 1]`.

        Args:
            labels: The ids again, -100 where they are given, not predicted (the prompt). Not shifted: that is done
                here. With labels, `loss` is the mean of nats per token.
        """
        if labels is not None and use_cache is None:
            use_cache = False  # nobody goes on from here, and the compiled blocks keep no cache
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            context=context,
            use_cache=use_cache,
            inputs_embeds=inputs_embeds,
            cache=cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
        )

    def adjust_generation_fn(self, *args, **kwargs):
        """A checkpoint without generation_config.json, such as a classifier's, draws like any other."""
        own = self.generation_config
        super().adjust_generation_fn(*args, **kwargs)
        if getattr(self.generation_config, "_from_model_config", False):
            self.generation_config = own

    # --- likelihood -------------------------------------------------------------------------------------------------

    def token_log_likelihoods(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """Log-probability of each image token given those before it and the prompt: (B, 1 + N) -> (B, N), in nats.

        Raises:
            ValueError: Ids that are not one prompt and the tokens of one image.
        """
        self._check_whole_images(input_ids)
        logits = self(input_ids=input_ids[:, :-1], use_cache=False).logits
        log_probs = logits.float().log_softmax(-1)  # (B, N, V)
        return log_probs.gather(-1, input_ids[:, 1:, None]).squeeze(-1)

    @torch.no_grad()
    def log_likelihood(self, input_ids: torch.LongTensor, batch_size: int = 128) -> torch.Tensor:
        """Exact log-likelihood of whole images given their prompt: (n, 1 + N) -> (n,), natural log, float64.

        The chain rule: ln p(x | prompt) = sum over tokens of ln p(token | tokens before, prompt) (equation 1). Nats
        per image are the negative of this; bits per pixel divide them by `num_pixels * ln 2`.
        """
        chunks = [chunk.to(self.device, torch.long) for chunk in input_ids.split(batch_size) if len(chunk)]
        sums = [self.token_log_likelihoods(chunk).double().sum(-1) for chunk in chunks]
        return torch.cat(sums) if sums else torch.empty(0, dtype=torch.float64, device=self.device)

    @torch.no_grad()
    def class_log_likelihoods(self, input_ids: torch.LongTensor, batch_size: int = 128) -> torch.Tensor:
        """Exact log-likelihood of each image under each class prompt: (n, 1 + N) -> (n, num_labels), float64.

        The prompt that `input_ids` comes with does not matter.
        """
        columns = []
        input_ids = input_ids.long()
        for label in range(self.config.num_labels):
            prompt = torch.full_like(input_ids[:, :1], self.config.vocab_size + label)
            columns.append(self.log_likelihood(torch.cat([prompt, input_ids[:, 1:]], dim=1), batch_size))
        return torch.stack(columns, dim=1)

    def class_posterior(self, input_ids: torch.LongTensor, prior=None, batch_size: int = 128) -> torch.Tensor:
        """Probability of each class given the image, by Bayes' rule: (n, 1 + N) -> (n, num_labels), float64.

        p(y | x) = p(x | y) p(y) / sum over classes of the same.

        Args:
            prior: p(y), (num_labels,); uniform by default.

        Raises:
            ValueError: A prior of another length, or one that is not a distribution.
        """
        log_joint = self.class_log_likelihoods(input_ids, batch_size)
        if prior is not None:
            prior = torch.as_tensor(prior, dtype=torch.float64, device=log_joint.device)
            is_distribution = prior.shape == (self.config.num_labels,) and bool((prior >= 0).all())
            if not (is_distribution and abs(prior.sum() - 1) <= 1e-6):
                raise ValueError(f"prior must be {self.config.num_labels} probabilities that sum to 1, got {prior}.")
            log_joint = log_joint + prior.log()
        return log_joint.softmax(dim=1)

    def _check_whole_images(self, input_ids: torch.Tensor):
        length = self.config.max_position_embeddings
        if input_ids.ndim != 2 or input_ids.shape[1] != length:
            raise ValueError(
                f"input_ids must have shape (n, {length}): a prompt and the {length - 1} tokens of a whole image; "
                f"got {tuple(input_ids.shape)}."
            )
        check_ids(input_ids, self.config)

    # --- sampling ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, inputs=None, generation_config=None, logits_processor=None, **kwargs):
        """Sample images; everything that `transformers.GenerationMixin.generate` takes, with its meaning.

        Without arguments one image is sampled: (1, 1 + N). Prompts come from `IGPTImageProcessor.prompt`. A sequence
        always has the length of one prompt and one image, unless `max_time` or `stopping_criteria` end it before.

        Small models on the CPU sample through a compiled kernel (`sample_images`), hundreds of times faster, unless an
        argument asks for what only the library's loop has (beams, scores, streamers, a cache of your own,
        `use_cache=False`, ...). The distribution is the same; for one seed the samples of the two differ.

        Args:
            inputs, input_ids: Prompts, (n, 1) or (n, 1 + given tokens): a tensor, an array or lists.
            guidance_scale: Classifier-free guidance (Ho & Salimans 2022): each step samples from
                p(any) * (p(class) / p(any))**scale, normalized. 1 is no guidance, more is more typical of the class.

        Raises:
            ValueError: A prompt id or token out of range, a prompt that is a whole image already, an attention mask
                with zeros, a length that is not that of one image, guidance with beams, or an argument that is
                `UNSUPPORTED`.
        """
        self._check_supported(generation_config, kwargs)
        ids = self._prompt(inputs, kwargs)
        self._check_length(1 if ids is None else ids.shape[1], generation_config, kwargs)
        if logits_processor is None and (settings := self._kernel_settings(generation_config, kwargs)) is not None:
            start = settings.pop("bos_token_id")
            if ids is None:
                ids = torch.full((1, 1), start)
            ids = ids.repeat_interleave(settings.pop("num_return_sequences"), dim=0)
            return sample_images(self, ids, **settings)

        scale = self._setting("guidance_scale", generation_config, kwargs)
        kwargs["guidance_scale"] = 1.0  # the library's own guidance would not start from the start token
        if scale is not None and scale != 1:
            if (self._setting("num_beams", generation_config, kwargs) or 1) > 1:
                raise ValueError("guidance_scale works with samples, not with num_beams: leave out one of the two.")
            logits_processor = LogitsProcessorList(logits_processor or [])
            logits_processor.append(IGPTGuidanceLogitsProcessor(self, scale))
        return super().generate(ids, generation_config, logits_processor, **kwargs)

    def _check_supported(self, generation_config, kwargs):
        """Refuse what the library's loop would do wrong with an image."""
        for reason, names in UNSUPPORTED.items():
            for name in names:
                value = self._setting(name, generation_config, kwargs)
                if value is not None and value is not False:
                    raise ValueError(f"{name} is not supported: {reason}.")
        if self._setting("cache_implementation", generation_config, kwargs) == "paged":
            raise ValueError(
                'cache_implementation="paged" is not supported: leave it out to sample images in batches.'
            )

    def _prompt(self, inputs, kwargs) -> torch.LongTensor | None:
        """Take the prompt, and the mask that may come with it, out of the arguments: ids (n, 1 + given) or None."""
        mask = kwargs.pop("attention_mask", None)
        if mask is not None:
            check_no_padding(torch.as_tensor(mask))
        named = kwargs.pop("input_ids", None)
        if inputs is not None and named is not None:
            raise ValueError("inputs and input_ids are two names for the prompt: leave out one of the two.")
        ids = named if inputs is None else inputs
        if ids is None:
            return None
        if not isinstance(ids, torch.Tensor):
            ids = torch.as_tensor(ids, device=self.device)
        self._check_prompt(ids)
        return ids.long()

    def _setting(self, name: str, generation_config, kwargs):
        """An argument of `generate`, or what the given configuration says, or the model's own; None: nobody does."""
        sources = (
            kwargs.get(name),
            getattr(generation_config, name, None),
            getattr(self.generation_config, name, None),
        )
        return next((value for value in sources if value is not None), None)

    def _kernel_settings(self, generation_config, kwargs) -> dict | None:
        """Settings for `sample_images`, or None where an argument asks for what only the library's loop has."""
        asked = {name: value for name, value in kwargs.items() if value is not None}
        settings = self.generation_config.to_diff_dict()
        if generation_config is not None:
            settings.update(generation_config.to_diff_dict())
        settings.update(asked)
        for name in ("transformers_version", "_from_model_config"):
            settings.pop(name, None)
        if settings.pop("max_length", None) != self.config.max_position_embeddings:
            return None
        defaults = {"do_sample": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        defaults |= {"guidance_scale": 1.0, "num_return_sequences": 1, "bos_token_id": self.config.start_token_id}
        if not settings.keys() <= defaults.keys() or not is_sampler_usable(self):
            return None
        settings = defaults | settings
        in_range = settings["temperature"] > 0 and settings["top_k"] >= 0 and 0 < settings["top_p"] <= 1
        if not (in_range and 0 <= settings["min_p"] <= 1 and math.isfinite(settings["guidance_scale"])):
            return None  # the library has errors for these
        if not settings["do_sample"] and settings["num_return_sequences"] > 1:
            return None  # the library has an error for that
        return settings

    def _check_prompt(self, ids: torch.Tensor):
        if ids.ndim != 2 or ids.shape[1] == 0 or ids.shape[1] > self.config.num_image_tokens:
            raise ValueError(
                f"a prompt has shape (n, 1) or (n, 1 + given tokens), with at most {self.config.num_image_tokens - 1} "
                f"given tokens; got {tuple(ids.shape)}."
            )
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"a prompt's ids are whole numbers, got {ids.dtype}.")
        check_ids(ids, self.config)

    def _check_length(self, given: int, generation_config, kwargs):
        """Refuse a length that is not that of one prompt and one image."""
        whole = self.config.max_position_embeddings
        for name, expected in (("max_length", whole), ("max_new_tokens", whole - given)):
            length = self._setting(name, generation_config, kwargs)
            if length is not None and length != expected:
                raise ValueError(
                    f"{name}={length}, but what is sampled is one whole image: leave {name} out (it is {expected})."
                )

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        """Look up the context while the whole sequence is at hand; the library then slices what is new."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        new = inputs["input_ids"].shape[1]
        cache = kwargs.get(CACHE_NAME)
        past = cache.get_seq_length() if cache is not None else 0
        if past + new != input_ids.shape[1]:
            raise ValueError(
                f"generate needs the whole sequence, also with a cache of your own: the cache holds {past} positions, "
                f"and input_ids has {input_ids.shape[1]} ids, of which {new} are new."
            )
        positions = torch.arange(input_ids.shape[1] - new, input_ids.shape[1], device=input_ids.device)
        inputs["context"] = context_ids(input_ids, positions, self.config)
        return inputs


class IGPTGuidanceLogitsProcessor(LogitsProcessor):
    """Classifier-free guidance: scores -> uncond + scale * (cond - uncond), in log-probabilities (B, V).

    The unconditional branch is the same model with the start token as prompt; it keeps its own cache.
    """

    def __init__(self, model: IGPTForCausalImageModeling, scale: float):
        self.model, self.scale = model, scale
        self.cache = DynamicCache(config=model.config)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        past = self.cache.get_seq_length()
        start = torch.full_like(input_ids[:, :1], self.model.config.start_token_id)
        ids = torch.cat([start, input_ids[:, 1:]], dim=1)
        positions = torch.arange(past, ids.shape[1], device=ids.device)
        context = context_ids(ids, positions, self.model.config)
        outputs = self.model(
            input_ids=ids[:, past:], past_key_values=self.cache, context=context, use_cache=True, logits_to_keep=1
        )
        unconditional = outputs.logits[:, -1].float().log_softmax(-1)
        return unconditional + self.scale * (scores.log_softmax(-1) - unconditional)


# --- classification -------------------------------------------------------------------------------------------------


@dataclass
class IGPTImageClassifierOutput(ImageClassifierOutput):
    """What `IGPTForImageClassification` returns: `logits` (B, num_labels), `nats` (B,) and, with labels, `loss`."""

    nats: torch.FloatTensor | None = None


class IGPTForImageClassification(IGPTPreTrainedModel):
    """Image GPT with a class head on the average of the final hidden states (section 3.3, fine-tuning).

    It keeps the head that predicts tokens: fine-tuning minimizes the joint objective L_GEN + L_CLF, which does better
    than L_CLF alone. Its weights start from those of an `IGPTForCausalImageModeling`.

    Example:
        >>> model = IGPTForImageClassification.from_pretrained("runs/hoda")  # the class head is new
        >>> model(input_ids=processor(images)["input_ids"]).logits.argmax(-1)  # (n,)
    """

    accepts_loss_kwargs = False  # the Trainer divides the loss itself where it accumulates gradients

    def __init__(self, config: IGPTConfig):
        super().__init__(config)
        self.model = IGPTModel(config)
        self.lm_head = IGPTHead(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def set_classes(self, names: list[str]) -> list[str]:
        """Change the classes, and with them the class head: a row stays or is new, as its prompt does."""
        known, old = self._labels_by_name(), self.classifier
        new = super().set_classes(names)
        self.classifier = nn.Linear(old.in_features, len(names), device=old.weight.device, dtype=old.weight.dtype)
        self._init_weights(self.classifier)
        for label, name in enumerate(names):
            if name in known:
                self.classifier.weight[label] = old.weight[known[name]]
                self.classifier.bias[label] = old.bias[known[name]]
        return new

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,  # not used: an image is read at once
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> IGPTImageClassifierOutput:
        """Classify whole images: (B, 1 + N) ids -> `logits` (B, num_labels), `nats` (B,) = -ln p(image | start token).

        The prompt is replaced by the start token, so that no class can leak in. The last token is predicted, not read.

        Args:
            labels: Class indices, (B,). With them, `loss` is L_GEN, in nats per token, plus L_CLF, in nats per image.
                The processor's `labels`, (B, 1 + N), are ignored.

        Raises:
            ValueError: Ids that are not one prompt and the tokens of one image.
        """
        check_no_embeddings(input_ids, inputs_embeds)
        if input_ids.shape[1] != self.config.max_position_embeddings:
            raise ValueError(
                f"input_ids must have shape (n, {self.config.max_position_embeddings}): a prompt and the tokens of a "
                f"whole image; got {tuple(input_ids.shape)}."
            )
        if labels is not None and labels.shape == input_ids.shape:
            labels = None  # the processor's, which are tokens
        start = torch.full_like(input_ids[:, :1], self.config.start_token_id)
        inputs = torch.cat([start, input_ids[:, 1:-1]], dim=1)
        outputs = self.model(input_ids=inputs, use_cache=False, **kwargs)
        logits = self.classifier(outputs.last_hidden_state.mean(dim=1))
        token_logits = self.lm_head(outputs.last_hidden_state).float().transpose(1, 2)  # (B, V, N)
        nats = nn.functional.cross_entropy(token_logits, input_ids[:, 1:], reduction="none").sum(dim=1)
        loss = None
        if labels is not None:
            generative = nats.mean() / self.config.num_image_tokens
            loss = generative + nn.functional.cross_entropy(logits.float(), labels)
        return IGPTImageClassifierOutput(
            loss=loss, logits=logits, nats=nats, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# Checkpoints carry the code of these classes, with the modules that it imports.
AUTO_CLASSES = {
    "AutoModel": IGPTModel,
    "AutoModelForCausalLM": IGPTForCausalImageModeling,
    "AutoModelForImageClassification": IGPTForImageClassification,
}
IGPTConfig.register_for_auto_class()
for _name, _kind in AUTO_CLASSES.items():
    _kind.register_for_auto_class(_name)

__all__ = ["IGPTForCausalImageModeling", "IGPTForImageClassification", "IGPTModel", "IGPTPreTrainedModel"]
