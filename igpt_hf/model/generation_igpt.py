"""Sampling of images: transformers' `generate` with an image's checks, the compiled sampler, and guidance."""

import copy
import functools
import logging
import math
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPast

from .completion import NUM_PARTICLES, run_particles, warn_of_few_ancestors
from .decoder import Decoder
from .input_checks import check_known, check_no_padding, check_number, check_prompt
from .kernel_blocks import blocks_forward, forward_kernel
from .kernel_dispatch import is_sampler_usable, sample_images
from .kernel_simd import compiled_beside
from .neighborhood import context_ids, with_start_token


# transformers 5.24 renamed the cache, in what `generate` hands to a model and in what a model returns. Both names are
# taken as arguments; this is the one that the installed version uses.
CACHE_NAME = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
# Arguments of transformers' `generate` that would be ignored, spoil the image, or fail without saying why.
UNSUPPORTED = {
    "tokens are sampled one at a time, and none are drafted": (
        "assistant_model",
        "prompt_lookup_num_tokens",
        "assistant_early_exit",
        "use_mtp",
        "speculation_type",
    ),
    "each position embeds several neighboring tokens, so the ids of the whole sequence are needed": (
        "inputs_embeds",
        "prefill_chunk_size",
    ),
    "guidance is away from the start token": ("negative_prompt_ids", "negative_prompt_attention_mask"),
    "all images have the same number of tokens, with neither an end token nor padding": (
        "eos_token_id",
        "forced_eos_token_id",
        "pad_token_id",
        "exponential_decay_length_penalty",
    ),
    "a token is a part of an image, and there is no text": ("stop_strings", "token_healing"),
    "a token's position is its place in the image": ("position_ids",),
    "the prompt's ids are none that can be sampled": ("encoder_repetition_penalty",),
    "transformers 5 no longer has this way of decoding": (
        "penalty_alpha",
        "dola_layers",
        "constraints",
        "force_words_ids",
        "num_beam_groups",
        "diversity_penalty",
    ),
}


MAX_TRIES = 10  # of `min_posterior`
logger = logging.getLogger(__name__)
# Arguments that only process scores or end the loop: `decode` follows them as transformers' own loop does.
FOLLOWED = {"streamer", "stopping_criteria", "max_time", "suppress_tokens", "bad_words_ids", "sequence_bias"}
FOLLOWED |= {"typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "renormalize_logits"}
# With a mask, answers are samples of the model's own distribution: only these values do not change that.
NEUTRAL = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "guidance_scale": 1.0}


class IGPTGenerationMixin(GenerationMixin):
    """`generate` for images; "GenerationMixin" in a base's name tells transformers that a model can generate."""

    @torch.no_grad()
    def generate(self, inputs=None, generation_config=None, logits_processor=None, **kwargs):
        """Sample images; everything that `transformers.GenerationMixin.generate` takes, with the same meaning.

        Without arguments one image is sampled: (1, 1 + N). Prompts come from `IGPTImageProcessor.prompt`. A sequence
        always has the length of one prompt and one image, unless `max_time` or `stopping_criteria` end it before.

        Small models on the CPU sample with a compiled kernel (`sample_images`), hundreds of times faster. With logits
        processors, stopping criteria or streamers a compiled `Decoder` is stepped, and what only transformers' loop
        has (beams, scores, a cache of your own, `use_cache=False`, ...) takes that. The distribution is the same, but
        where `sample_images` is used one seed gives different samples.

        Args:
            inputs, input_ids: Prompts, (n, 1) or (n, 1 + given tokens): a tensor, an array or lists.
            known_tokens, known_masks: The known pixels of images, (n, N), which `prompt` makes of a mask: they are
                kept, and the others are filled in by sequential Monte Carlo (completion.py). Arguments that change the
                distribution (`temperature`, `guidance_scale`, ...) do not go with them.
            num_particles: With a mask, the particles from which each answer is chosen. Each answer has a run of its
                own, so that answers are independent; more particles bring their distribution closer to
                p(image | known pixels, prompt).
            min_posterior: Sample again where the model's own Bayes rule (`class_posterior`) gives the class that was
                asked for less than this probability: samples of p(image | class, posterior >= min_posterior). After
                ten tries the best of them is kept, and a warning says how many are still below. Samples of any class
                are left as they are.
            guidance_scale: Classifier-free guidance (Ho & Salimans 2022): each step samples from
                p(any) * (p(class) / p(any))**scale, normalized. 1 is no guidance, more is more typical of the class.

        Raises:
            ValueError: A prompt id or token out of range, a prompt that is a whole image already, an attention mask
                with zeros, a length that is not that of one image, guidance with beams, or an argument that is
                `UNSUPPORTED`.
        """
        self._check_supported(generation_config, kwargs)
        num = self._setting("num_return_sequences", generation_config, kwargs)
        check_number("num_return_sequences", 1 if num is None else num)
        ids = self._prompt(inputs, kwargs)
        self._check_length(1 if ids is None else ids.shape[1], generation_config, kwargs)
        if (min_posterior := kwargs.pop("min_posterior", None)) is not None:
            return self._generate_again(min_posterior, ids, generation_config, logits_processor, kwargs)
        part = {name: kwargs.pop(name, None) for name in ("known_tokens", "known_masks", "num_particles")}
        if any(value is not None for value in part.values()):
            return self._complete(ids, generation_config, kwargs | {"logits_processor": logits_processor}, **part)
        if logits_processor is None and (settings := self._kernel_settings(generation_config, kwargs)) is not None:
            start = settings.pop("bos_token_id")
            if ids is None:
                ids = torch.full((1, 1), start)
            ids = ids.repeat_interleave(settings.pop("num_return_sequences"), dim=0)
            return sample_images(self, ids, **settings)
        return self._follow_steps(ids, generation_config, logits_processor, kwargs)

    def _follow_steps(self, ids, generation_config, logits_processor, kwargs):
        """Sample by transformers' loop, with guidance, or by steps of a decoder where that serves."""
        scale = self._setting("guidance_scale", generation_config, kwargs)
        if scale is not None and scale != 1:
            kwargs.pop("guidance_scale", None)
            if generation_config is None:
                kwargs["guidance_scale"] = 1.0  # transformers' own guidance would not use the start token
            else:  # transformers wants settings in one place
                generation_config = copy.deepcopy(generation_config)
                generation_config.guidance_scale = 1.0
            if (self._setting("num_beams", generation_config, kwargs) or 1) > 1:
                raise ValueError("guidance_scale works with samples, not with num_beams: leave out one of the two.")
            logits_processor = LogitsProcessorList(logits_processor or [])
            logits_processor.append(IGPTGuidanceLogitsProcessor(self, scale))
        if self._is_followed(generation_config, kwargs):
            # transformers hands its streamer to no loop but its own.
            kwargs["custom_generate"] = functools.partial(decode, streamer=kwargs.get("streamer"))
        return super().generate(ids, generation_config, logits_processor, **kwargs)

    def _complete(self, ids, generation_config, kwargs, known_tokens, known_masks, num_particles) -> torch.LongTensor:
        """Fill in the unknown pixels of images: prompts (n, 1) -> (n * num_return_sequences, 1 + N)."""
        num_particles = NUM_PARTICLES if num_particles is None else num_particles
        check_number("num_particles", num_particles)
        if known_tokens is None and known_masks is None:
            raise ValueError("num_particles goes with a mask: IGPTImageProcessor.prompt(images=..., mask=...).")
        tokens, masks = (bits.to(self.device) for bits in check_known(known_tokens, known_masks, self.config))
        settings = self._merged_settings(generation_config, kwargs)
        start, num = settings.pop("bos_token_id", self.config.start_token_id), settings.pop("num_return_sequences", 1)
        for name, value in settings.items():
            if name not in ("max_length", "max_new_tokens") and value not in (None, NEUTRAL.get(name)):
                raise ValueError(
                    f"{name}={value} does not go with a mask: answers are samples of the model's own distribution "
                    f"given the known pixels. Leave {name} out, or give upper rows alone (keep_rows)."
                )
        ids = torch.full((1, 1), start) if ids is None else ids
        if ids.shape[1] != 1:
            raise ValueError(f"with a mask, input_ids are prompts alone, (n, 1); got {tuple(ids.shape)}.")
        prompts, tokens, masks = repeat_rows(num, ids.to(self.device), tokens, masks)
        answers, _, ancestors = zip(*run_particles(self, prompts, tokens, masks, num_particles), strict=True)
        warn_of_few_ancestors(torch.cat(ancestors), num_particles)
        whole = self.config.max_position_embeddings
        # All settings again: otherwise those of `generation_config` would come back.
        finish = functools.partial(self.generate, **NEUTRAL, num_return_sequences=1)
        return torch.cat([ids if ids.shape[1] == whole else finish(ids) for ids in answers])

    def _generate_again(self, min_posterior, ids, generation_config, logits_processor, kwargs) -> torch.LongTensor:
        """Sample where p(class | image) is below `min_posterior` up to `MAX_TRIES` times: ids (n * num, 1 + N)."""
        if not 0 <= min_posterior <= 1:
            raise ValueError(f"min_posterior is a probability, got {min_posterior}.")
        if not self._setting("do_sample", generation_config, kwargs):
            raise ValueError("min_posterior samples again, which changes nothing with do_sample=False.")
        if self._setting("return_dict_in_generate", generation_config, kwargs):
            raise ValueError(
                "return_dict_in_generate does not go with min_posterior, which returns the samples alone."
            )
        if ids is None:
            ids = torch.full((1, 1), self._setting("bos_token_id", generation_config, kwargs), device=self.device)
        num = self._setting("num_return_sequences", generation_config, kwargs) or 1
        rows = {"input_ids": ids}
        known = {name: kwargs.pop(name, None) for name in ("known_tokens", "known_masks")}
        rows |= {name: torch.as_tensor(bits) for name, bits in known.items() if bits is not None}
        rows = dict(zip(rows, repeat_rows(num, *rows.values()), strict=True))
        kwargs["num_return_sequences"] = 1
        labels = rows["input_ids"][:, 0].cpu() - self.config.vocab_size
        best = torch.full((len(labels),), -1.0, dtype=torch.float64)  # these two on the CPU: MPS has no float64
        samples = torch.zeros(len(labels), self.config.max_position_embeddings, dtype=torch.long, device=self.device)
        for _ in range(MAX_TRIES):
            wanted = (best < min_posterior).nonzero()[:, 0]
            if len(wanted) == 0:
                return samples
            some = {name: x[wanted.to(x.device)] for name, x in rows.items()}
            with compiled_beside(forward_kernel, blocks_forward) if is_sampler_usable(self) else nullcontext():
                new = self.generate(None, generation_config, logits_processor, **some, **kwargs)
            if new.shape[1] != samples.shape[1]:
                raise ValueError("min_posterior compares whole images: leave out what ends them early.")
            any_class = torch.ones(len(new), 1, dtype=torch.float64)  # the start token's column
            posterior = torch.cat([self.class_posterior(new).cpu(), any_class], dim=1)
            posterior = posterior.gather(1, labels[wanted, None])[:, 0]
            is_better = posterior > best[wanted]
            best[wanted[is_better]] = posterior[is_better]
            is_better, wanted = is_better.to(self.device), wanted.to(self.device)
            samples[wanted[is_better]] = new[is_better]
        num_below = int((best < min_posterior).sum())
        if num_below:
            logger.warning(
                "%d of %d samples: the model gives their class a probability below min_posterior=%g after %d tries; "
                "the best of these is kept.",
                num_below,
                len(best),
                min_posterior,
                MAX_TRIES,
            )
        return samples

    def _check_supported(self, generation_config, kwargs):
        """Refuse arguments with which transformers' loop would spoil an image."""
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
        if isinstance(ids, Mapping):
            raise ValueError("a prompt's ids and masks are arguments of their own: write generate(**prompt).")
        ids = torch.as_tensor(ids)
        check_prompt(ids, self.config)
        return ids.to(self.device, torch.long)

    def _setting(self, name: str, generation_config, kwargs):
        """An argument of `generate`, or what the given configuration says, or the model's own; None if none has it."""
        sources = (
            kwargs.get(name),
            getattr(generation_config, name, None),
            getattr(self.generation_config, name, None),
        )
        return next((value for value in sources if value is not None), None)

    def _merged_settings(self, generation_config, kwargs) -> dict:
        """All that is asked for: arguments before the given configuration before the model's own."""
        settings = self.generation_config.to_diff_dict()
        if generation_config is not None:
            settings.update(generation_config.to_diff_dict())
        settings.update({name: value for name, value in kwargs.items() if value is not None})
        for name in ("transformers_version", "_from_model_config"):
            settings.pop(name, None)
        return settings

    def _is_followed(self, generation_config, kwargs) -> bool:
        """Whether `decode` can take the place of transformers' loop, and is faster."""
        known = FOLLOWED | NEUTRAL.keys() | {"max_length", "max_new_tokens", "num_return_sequences", "bos_token_id"}
        return self._merged_settings(generation_config, kwargs).keys() <= known and is_sampler_usable(self)

    def _kernel_settings(self, generation_config, kwargs) -> dict | None:
        """Settings for `sample_images`, or None where an argument needs transformers' loop."""
        settings = self._merged_settings(generation_config, kwargs)
        if settings.pop("max_length", None) != self.config.max_position_embeddings:
            return None
        defaults = {"do_sample": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        defaults |= {"guidance_scale": 1.0, "num_return_sequences": 1, "bos_token_id": self.config.start_token_id}
        if not settings.keys() <= defaults.keys() or not is_sampler_usable(self):
            return None
        settings = defaults | settings
        in_range = settings["temperature"] > 0 and settings["top_k"] >= 0 and 0 < settings["top_p"] <= 1
        if not (in_range and 0 <= settings["min_p"] <= 1 and math.isfinite(settings["guidance_scale"])):
            return None  # transformers has errors for these
        if not settings["do_sample"] and settings["num_return_sequences"] > 1:
            return None  # transformers has an error for that
        return settings

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
        """Look up the context while the whole sequence is at hand; transformers then keeps only the new ids."""
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

    def adjust_generation_fn(self, *args, **kwargs):
        """Keep the model's settings for a checkpoint without generation_config.json, such as a classifier's."""
        own = self.generation_config
        super().adjust_generation_fn(*args, **kwargs)
        if getattr(self.generation_config, "_from_model_config", False):
            self.generation_config = own


def repeat_rows(num: int, prompts: torch.Tensor, *known: torch.Tensor) -> list[torch.Tensor]:
    """Repeat each row `num` times, one row of prompts or of known pixels for all of the other: (n or 1, ...) each."""
    rows = [prompts, *known]
    count = max(map(len, rows))
    if any(len(x) not in (1, count) for x in rows):
        raise ValueError(f"{len(prompts)} prompts and {len(known[0])} masked images: give as many, or one of either.")
    return [x.expand(count, -1).repeat_interleave(num, dim=0) for x in rows]


def decode(
    model, input_ids, logits_processor, stopping_criteria, generation_config, streamer=None, **kwargs
) -> torch.LongTensor:
    """transformers' loop for one sample or greedy search, `GenerationMixin._sample`, over a compiled `Decoder`.

    Args:
        model, input_ids, ...: As transformers hands them to a `custom_generate`.
    """
    decoder, is_done = Decoder(model, input_ids), torch.zeros(len(input_ids), dtype=torch.bool)
    while not is_done.all():
        scores = logits_processor(decoder.input_ids, decoder.logits().clone())
        if generation_config.do_sample:
            tokens = torch.multinomial(scores.softmax(-1), num_samples=1)[:, 0]
        else:
            tokens = scores.argmax(-1)
        decoder.push(tokens)
        if streamer is not None:
            streamer.put(tokens)
        is_done |= stopping_criteria(decoder.input_ids, None)
    if streamer is not None:
        streamer.end()
    return decoder.input_ids


class IGPTGuidanceLogitsProcessor(LogitsProcessor):
    """Classifier-free guidance: scores -> uncond + scale * (cond - uncond), in log-probabilities (B, V).

    The unconditional branch is the same model with the start token as prompt, in a `Decoder` of its own.
    """

    def __init__(self, model: PreTrainedModel, scale: float):
        self.model, self.scale = model, scale
        self.decoder: Decoder | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.decoder is None:
            self.decoder = Decoder(self.model, with_start_token(input_ids, self.model.config))
        self.decoder.push(input_ids[:, self.decoder.length :])
        unconditional = self.decoder.logits().log_softmax(-1)
        guided = unconditional + self.scale * (scores.log_softmax(-1) - unconditional)
        return guided.masked_fill(scores == -torch.inf, -torch.inf)  # tokens that other processors forbid
