"""transformers' ImageGPT on the same data: pixel by pixel, loadable with transformers alone.

The vocabulary is that of the seed model, 16 ids, but a token is one pixel: 0 is black, 1 white, 2 to 11 ask for one of
ten classes, 12 to 14 are never used, and 15 is the start token, which asks for any class. The head has 15 outputs
(transformers leaves out the start token), so that each pixel's probability is a softmax over 15 ids; probability that
the model gives to ids other than pixels counts against it, in the nats as in transformers' own loss.
"""

from transformers import GenerationConfig, ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTImageProcessorPil

from ..errors import IGPTError
from ..model.configuration_igpt import IGPTConfig


BASELINE_PRESET = "stock-xxs"
MAX_CLASSES = 10
PALETTE = [[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]  # colors of the tokens 0 and 1, scaled to [-1, 1] by the processor


def baseline_layout(num_classes: int, **overrides) -> IGPTConfig:
    """Describe the layout of images for transformers' ImageGPT: a token is a pixel, prompts from 2, start token 15.

    Args:
        num_classes: Of the data.
        overrides: Of `image_size` and `class_dropout_prob`; the shape of the model is fixed.

    Raises:
        IGPTError: More than ten classes, or a setting that this model does not have.
    """
    if num_classes > MAX_CLASSES:
        raise IGPTError(
            f"--preset {BASELINE_PRESET} has prompts for {MAX_CLASSES} classes, the data has {num_classes}."
        )
    fixed = sorted(overrides.keys() - {"image_size", "class_dropout_prob"})
    if fixed:
        raise IGPTError(f"--preset {BASELINE_PRESET} has a fixed shape: leave out --{', --'.join(fixed)}.")
    # 13 class prompts, the last of them unused, put the start token at 2 + 13 = 15.
    return IGPTConfig(patch_size=1, num_labels=13, **overrides)  # type: ignore[call-arg]  # PreTrainedConfig takes it


def baseline_model(layout: IGPTConfig, **labels) -> ImageGPTForCausalImageModeling:
    """Make an untrained ImageGPT of the seed model's size; `generate` yields whole images of pixels 0 and 1.

    Args:
        layout: From `baseline_layout`.
        labels: `id2label` and `label2id`.
    """
    length = layout.max_position_embeddings  # one position more than transformers' example, so that all pixels count
    config = ImageGPTConfig(
        vocab_size=16,
        n_positions=length,
        n_embd=16,
        n_layer=8,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=layout.start_token_id,
        **labels,
    )
    model = ImageGPTForCausalImageModeling(config)
    # It takes the Trainer's num_items_in_batch, but its loss is each batch's mean.
    model.accepts_loss_kwargs = False  # type: ignore[assignment]  # torch types attributes as tensors
    not_pixels = list(range(layout.vocab_size, layout.start_token_id))
    model.generation_config = GenerationConfig(
        bos_token_id=layout.start_token_id, max_length=length, do_sample=True, top_k=0, suppress_tokens=not_pixels
    )
    return model


def baseline_processor(image_size: int) -> ImageGPTImageProcessorPil:
    """Make transformers' image processor: images white on black -> pixels 0 and 1, the nearest of two colors."""
    return ImageGPTImageProcessorPil(clusters=PALETTE, size={"height": image_size, "width": image_size})
