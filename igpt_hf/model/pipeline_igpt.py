"""The `binary-image-generation` pipeline: a class or the upper part of an image in, images out."""

import os
from numbers import Integral

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, Pipeline, set_seed
from transformers.pipelines import PIPELINE_REGISTRY


class BinaryImageGenerationPipeline(Pipeline):
    """Sample binary images with an Image GPT.

    ```python
    draw = pipeline("binary-image-generation", model="runs/hoda")
    draw()                                      # an image of any class
    draw(4)                                     # of class 4; or draw("cat"), by the class's name
    draw([0, 1, 2], batch_size=3, seed=7)       # three images, repeatable
    draw(image, keep_rows=14, class_label=4)    # the upper 14 rows kept, the rest sampled
    draw(image, mask_image=mask)                # what is white in the mask sampled, the rest kept
    draw(4, num_return_sequences=5)             # five images
    ```

    Each result is a PIL image (mode "L", 0 and 255). One input gives one image, a list of inputs a list of
    images, and with `num_return_sequences` above 1 each is a list itself. Other arguments go to `model.generate`:
    `temperature`, `top_p`, `guidance_scale`, ...
    """

    _load_image_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_processor = False
    _load_video_processor = False

    def _sanitize_parameters(self, keep_rows=None, class_label=None, mask_image=None, **generate_kwargs):
        count = generate_kwargs.get("num_return_sequences")
        if count is not None and count < 1:
            raise ValueError(f"num_return_sequences must be at least 1, got {count}.")
        if generate_kwargs.get("return_dict_in_generate"):
            raise ValueError("return_dict_in_generate does not go with the pipeline, which returns images alone.")
        known = {"keep_rows": keep_rows, "class_label": class_label, "mask_image": mask_image}
        return {name: value for name, value in known.items() if value is not None}, generate_kwargs, {}

    def __call__(self, inputs=None, seed: int | None = None, batch_size: int | None = None, **kwargs):
        """Sample images.

        Args:
            inputs: None for any class, a class index or name, an image to complete (PIL image, path or array), or a
                list or tuple of these; a generator or a torch dataset of these yields images as you iterate.
            seed: Makes the result repeatable; the global random state is set, as by `transformers.set_seed`.
            batch_size: How many are sampled at a time; by default up to 256 of a list, and one of a generator.
            keep_rows: With an image: how many rows of pixels are kept from the top; half of them by default.
            class_label: With an image: the class of the completed image, by index or name.
            mask_image: With an image, instead of `keep_rows`: white where a pixel is unknown and to be filled in; a
                PIL image or booleans (height, width) of the image's size. In a list, it holds for all images.

        Raises:
            ValueError: An unknown class, a number of rows that does not fit, or an invalid input.
        """
        if seed is not None:
            set_seed(seed)
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        if isinstance(inputs, list):
            are_classes = {self._is_class(item) for item in inputs}
            if len(are_classes) > 1:
                raise ValueError(
                    "a list holds either classes or images to complete, so that all prompts have one length."
                )
            if not inputs:
                return []
            batch_size = min(256, len(inputs)) if batch_size is None else batch_size
        return super().__call__(inputs, batch_size=batch_size, **kwargs)

    def preprocess(self, inputs, keep_rows: int | None = None, class_label=None, mask_image=None):
        """One input -> its prompt, `input_ids` (1, 1 + given tokens) or, with a mask, all that `prompt` returns."""
        processor = self.image_processor
        is_class = self._is_class(inputs)
        label = self._class_index(inputs if is_class else class_label)
        labels = None if label is None else [label]
        if is_class:
            if keep_rows is not None or class_label is not None or mask_image is not None:
                raise ValueError(
                    "keep_rows, mask_image and class_label go with an image to complete, not with a class."
                )
            return processor.prompt(class_labels=labels)
        if mask_image is not None:
            image = processor.binarize_upload(inputs, mask_image)
            return processor.prompt(class_labels=labels, images=image, keep_rows=keep_rows, mask=mask_image)
        rows = processor.half_rows if keep_rows is None else keep_rows
        return processor.prompt(class_labels=labels, images=processor.fit_upload(inputs), keep_rows=rows)

    def _is_class(self, item) -> bool:
        """Whether an input asks for a class, or for any; a string that names no class is a path if it exists."""
        if isinstance(item, str) and (item in self.model.config.class_names or not os.path.isfile(item)):
            return True
        if item is None or isinstance(item, Integral):
            return True
        if isinstance(item, Image.Image | np.ndarray | torch.Tensor | os.PathLike | str):
            return False
        raise ValueError(
            f"an input is None, a class (index or name), an image (PIL, path, array), or a list of them; got {item!r}"
        )

    def _class_index(self, label) -> int | None:
        if not isinstance(label, str):  # an index, or None for any class; the processor checks it
            return int(label) if isinstance(label, Integral) and not isinstance(label, bool) else label
        try:
            return self.model.config.label_index(label)
        except ValueError as error:
            raise ValueError(f"{error} And there is no such file.") from error

    def _forward(self, model_inputs, **generate_kwargs):
        ids = self.model.generate(**model_inputs, **generate_kwargs)
        return {"ids": ids.view(len(model_inputs["input_ids"]), -1, ids.shape[1])}  # (B, images of each, 1 + N)

    def postprocess(self, model_outputs):
        """Tokens (1, n, 1 + N) -> an image or, if n > 1, a list of them."""
        images: list[Image.Image] = self.image_processor.decode(model_outputs["ids"].flatten(0, 1))
        return images[0] if len(images) == 1 else images


PIPELINE_REGISTRY.register_pipeline(
    "binary-image-generation",
    pipeline_class=BinaryImageGenerationPipeline,
    pt_model=AutoModelForCausalLM,
    type="image",
)

__all__ = ["BinaryImageGenerationPipeline"]
