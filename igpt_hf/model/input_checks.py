"""Checks of what the model is given; each error says what is wrong and what to pass instead."""

from numbers import Integral

import torch

from .configuration_igpt import IGPTConfig


def check_ids(input_ids: torch.Tensor, config: IGPTConfig, any_grid: bool = False):
    """Raise ValueError unless ids (B, T) are a prompt's, on the first or on `any_grid`, and image tokens'."""
    first, last = config.vocab_size, config.start_token_id
    if any_grid:
        last = first + config.num_prompts - 1
    for name, part, low, high in (
        ("prompt id", input_ids[:, :1], first, last),
        ("token", input_ids[:, 1:], 0, first - 1),
    ):
        wrong = part[(part < low) | (part > high)]
        if len(wrong):
            raise ValueError(f"{name} {wrong[0].item()} is out of range: {low} to {high}.")


def check_sequence(input_ids: torch.Tensor, past_length: int, config: IGPTConfig):
    """Raise ValueError unless ids (B, T) are a whole sequence so far, not longer than one image."""
    if past_length > 0:
        raise ValueError("With a cache, pass `context` too: the neighbors are not in input_ids any more.")
    if input_ids.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"A sequence has at most {config.max_position_embeddings} ids (the prompt and {config.num_image_tokens} "
            f"image tokens), got {input_ids.shape[1]}."
        )


def check_no_padding(attention_mask=None, position_ids: torch.Tensor | None = None):
    """Return the mask if it is a prepared one, with four dimensions or a class of its own, otherwise None.

    Raises:
        ValueError: A mask (B, T) that hides ids, or positions (B, T) that differ between sequences.
    """
    is_padding_mask = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
    if is_padding_mask and not attention_mask.all():
        raise ValueError(
            "attention_mask has zeros, but there is no padding: a batch holds sequences of one length. Leave the mask "
            "out, and pass prompts of another length in a batch of their own."
        )
    # Elsewhere than on the CPU it would take time to look.
    if position_ids is not None and position_ids.device.type == "cpu" and (position_ids != position_ids[:1]).any():
        raise ValueError("position_ids differ from sequence to sequence, but there is no padding: leave them out.")
    return None if is_padding_mask else attention_mask


def check_no_embeddings(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None):
    """Raise ValueError unless a model is given ids, and only those."""
    if input_ids is None or inputs_embeds is not None:
        raise ValueError(
            "pass input_ids: inputs_embeds is not supported, since each position embeds several neighboring tokens."
        )


def check_prompt(input_ids: torch.Tensor, config: IGPTConfig, any_grid: bool = False):
    """Raise ValueError unless ids are prompts, (n, 1), or the beginnings of images, (n, 1 + given tokens)."""
    if input_ids.ndim != 2 or input_ids.shape[1] == 0 or input_ids.shape[1] > config.num_image_tokens:
        raise ValueError(
            f"a prompt has shape (n, 1) or (n, 1 + given tokens), with at most {config.num_image_tokens - 1} "
            f"given tokens; got {tuple(input_ids.shape)}."
        )
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise ValueError(f"a prompt's ids are whole numbers, got {input_ids.dtype}.")
    check_ids(input_ids, config, any_grid)


def check_whole_images(input_ids: torch.Tensor, config: IGPTConfig):
    """Raise ValueError unless ids have the shape of prompts and whole images, (n, 1 + N)."""
    length = config.max_position_embeddings
    if input_ids.ndim != 2 or input_ids.shape[1] != length:
        raise ValueError(
            f"input_ids must have shape (n, {length}): a prompt and the {length - 1} tokens of a whole image; "
            f"got {tuple(input_ids.shape)}."
        )


def as_ids(input_ids) -> torch.Tensor:
    """Ids as a tensor of int64, of an array or lists, too.

    Raises:
        ValueError: Something else, such as images.
    """
    try:
        ids = torch.as_tensor(input_ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"input_ids are the tokens of images, got {type(input_ids).__name__}: pass processor(images)['input_ids']."
        ) from error
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"input_ids are whole numbers, got {ids.dtype}: pass processor(images)['input_ids'].")
    return ids.long()


def to_double(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in float64: on the CPU where the device has none (Apple's MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def check_known(known_tokens, known_masks, config: IGPTConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return known tokens and bits, (n, N) each; raise ValueError unless they are what `prompt` makes of a mask."""
    if known_tokens is None or known_masks is None:
        raise ValueError("known_tokens and known_masks go together: IGPTImageProcessor.prompt makes both of a mask.")
    pair = torch.as_tensor(known_tokens), torch.as_tensor(known_masks)
    for name, bits in zip(("known_tokens", "known_masks"), pair, strict=True):
        if bits.ndim != 2 or bits.shape[1] != config.num_image_tokens or len(bits) != len(pair[0]):
            raise ValueError(
                f"{name} has shape {tuple(bits.shape)}: both are (n, {config.num_image_tokens}), a number of bits for "
                "each token."
            )
        if (
            bits.is_floating_point()
            or bits.dtype == torch.bool
            or not ((bits >= 0) & (bits < config.vocab_size)).all()
        ):
            raise ValueError(f"{name} must hold whole numbers from 0 to {config.vocab_size - 1}, got {bits.dtype}.")
    return pair[0].long(), pair[1].long()


def check_number(name: str, number):
    """Raise ValueError unless an argument is a whole number from 1 on."""
    if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
        raise ValueError(f"{name} must be a whole number from 1 on, got {number!r}.")
