"""Image GPT for binary images, after Chen et al. 2020, "Generative Pretraining from Pixels".

A decoder-only transformer reads `[prompt] + image tokens` and predicts the image tokens, one after the other in raster
order. Position t (counted from 0, the prompt) predicts image token t. What differs from the paper's model:

* a token is a block of pixels: the vocabulary is small, the sequence short, and nothing is lost;
* the prompt asks for a class or, as the start token, for any class;
* the input at position t embeds all known tokens around token t, not only the one before it, and the prompt once more
  (`context_ids`): a causal convolution on the grid of tokens;
* attention adds a weighted sum of the values at the same neighbors (`IGPTLocalMixing`), and its scores depend on how
  far apart two positions are in rows and in columns (`apply_rotary`).

From bottom to top: the layers (layers_igpt.py), the block, the base model, the heads. Likelihoods are in
likelihood_igpt.py, sampling in generation_igpt.py, the compiled kernels for small models in kernel_*.py.

Shapes: B images, T positions, C hidden size, K neighbors, N tokens of an image, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .classes_igpt import IGPTClassesMixin
from .configuration_igpt import IGPTConfig
from .generation_igpt import CACHE_NAME, IGPTGenerationMixin
from .input_checks import check_ids, check_no_embeddings, check_no_padding, check_sequence, check_whole_images
from .kernel_dispatch import are_blocks_usable, is_transformed, run_blocks
from .layers_igpt import IGPTMLP, IGPTAttention, IGPTEmbeddings, IGPTHead, IGPTLocalMixing, IGPTRMSNorm
from .likelihood_igpt import IGPTLikelihoodMixin
from .neighborhood import context_ids, prompt_classes, rotary_cos_sin, with_start_token


class IGPTBlock(GradientCheckpointingLayer):
    """Pre-norm block (section 3.2): n = norm(h); a = h + attention(n); h' = a + mlp(norm(a))."""

    def __init__(self, config: IGPTConfig, layer_idx: int):
        super().__init__()
        self.attention_norm = IGPTRMSNorm(config)
        self.attention = IGPTAttention(config, layer_idx)
        self.mlp_norm = IGPTRMSNorm(config)
        self.mlp = IGPTMLP(config)

    def forward(
        self, hidden_states, classes, position_ids, cos_sin, attention_mask=None, past_key_values=None, **kwargs
    ):
        normed = self.attention_norm(hidden_states, classes)
        mixed, _ = self.attention(normed, position_ids, cos_sin, attention_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.mlp_norm(hidden_states, classes))


class IGPTPreTrainedModel(IGPTClassesMixin, PreTrainedModel):
    """Weight initialization and what transformers needs to know about the architecture."""

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
        """The module that turns ids into hidden states, which FSDP takes as one part."""
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


class IGPTModel(IGPTPreTrainedModel):
    """The transformer without a head: ids -> hidden states."""

    def __init__(self, config: IGPTConfig):
        super().__init__(config)
        self.embeddings = IGPTEmbeddings(config)
        self.layers = nn.ModuleList([IGPTBlock(config, index) for index in range(config.num_hidden_layers)])
        self.norm = IGPTRMSNorm(config)
        self.gradient_checkpointing = False  # where transformers sees that there shall be no cache
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
            attention_mask: All ones, since there is no padding; or a prepared mask with four dimensions.
            past_key_values, cache: Keys and values of the positions before; two names for one argument.
            context: `context_ids` of these positions; needed with a cache, when `input_ids` lacks the neighbors.

        Raises:
            ValueError: A mask with zeros, `inputs_embeds`, a cache without `context`, too long a sequence, or, on the
                CPU, an id out of range.
        """
        check_no_embeddings(input_ids, inputs_embeds)
        if not torch.compiler.is_compiling():
            attention_mask = check_no_padding(attention_mask, position_ids)
        past_key_values = past_key_values if cache is None else cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None and self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            raise ValueError("gradient checkpointing runs each block twice: call the model without a cache.")
        asks = (kwargs.get(n, getattr(self.config, n, False)) for n in ("output_hidden_states", "output_attentions"))
        is_plain_call = all(x is None for x in (attention_mask, position_ids, past_key_values, context))
        if is_plain_call and not any(asks) and are_blocks_usable(self, input_ids):
            # The same on the CPU, many times faster: whole sequences, nothing masked, no cache.
            return BaseModelOutputWithPast(last_hidden_state=run_blocks(self, input_ids))
        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None] + past_length
        if context is None:
            context = self._gather_context(input_ids, position_ids[0], past_length)
        hidden_states = self._run_layers(context, position_ids, attention_mask, past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, **{CACHE_NAME: past_key_values})

    def _gather_context(self, input_ids, position_ids, past_length: int) -> torch.Tensor:
        """Check a sequence without a cache, and look up its `context_ids`: (B, T), (T,) -> (B, T, K + 1)."""
        check_sequence(input_ids, past_length, self.config)
        can_look = not (torch.compiler.is_compiling() or is_transformed())
        if input_ids.device.type == "cpu" and can_look:  # elsewhere it would take time
            check_ids(input_ids, self.config, any_grid=True)
        return context_ids(input_ids, position_ids, self.config)

    def _run_layers(self, context, position_ids, attention_mask, past_key_values, **kwargs) -> torch.Tensor:
        """Embeddings, mask, blocks and norm: ids (B, T, K + 1), positions (B or 1, T) -> hidden states (B, T, C)."""
        classes = prompt_classes(context[:, :1, -1], self.config)  # with a cache, only the context has the prompt
        positions = position_ids[0]  # all images have the same length: there is no padding
        hidden_states = self.embeddings(context, positions)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE_NAME: past_key_values},
        )
        cos_sin = rotary_cos_sin(positions, self.config)
        for layer in self.layers:
            hidden_states = layer(hidden_states, classes, positions, cos_sin, mask, past_key_values, **kwargs)
        return self.norm(hidden_states, classes)


class IGPTForCausalImageModeling(IGPTPreTrainedModel, IGPTLikelihoodMixin, IGPTGenerationMixin):
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
        self.loss_type = "ForCausalLM"  # cross-entropy of the next token; transformers cannot tell from the class name
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
        """Predict image tokens: (B, T) ids -> `logits` (B, T, V); `logits[:, t]` predicts `input_ids[:, t + 1]`.

        Args:
            labels: The ids again, not shifted, with -100 where they are given and not predicted (the prompt). With
                labels, `loss` is the mean of nats per token.
        """
        if labels is not None and use_cache is None:
            use_cache = False  # a loss needs no cache, and the compiled blocks keep none
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
        known, old = self.config.class_names, self.classifier
        new = super().set_classes(names)
        self.classifier = nn.Linear(old.in_features, len(names), device=old.weight.device, dtype=old.weight.dtype)
        self._init_weights(self.classifier)
        for label, name in enumerate(names):
            if name in known:
                self.classifier.weight[label] = old.weight[known.index(name)]
                self.classifier.bias[label] = old.bias[known.index(name)]
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
        check_whole_images(input_ids, self.config)
        if labels is not None and labels.shape == input_ids.shape:
            labels = None  # the processor's, which are tokens
        inputs = with_start_token(input_ids, self.config)
        outputs = self.model(input_ids=inputs[:, :-1], use_cache=False, **kwargs)
        logits = self.classifier(outputs.last_hidden_state.mean(dim=1))
        token_logits = self.lm_head(outputs.last_hidden_state).float().transpose(1, 2)  # (B, V, N)
        nats = nn.functional.cross_entropy(token_logits, input_ids[:, 1:].long(), reduction="none").sum(dim=1)
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
