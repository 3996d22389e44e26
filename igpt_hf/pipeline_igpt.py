"""The `binary-image-generation` pipeline: a class, or half a picture, in; pictures out."""

import os

from PIL import Image
from transformers import AutoModelForCausalLM, Pipeline, set_seed
from transformers.pipelines import PIPELINE_REGISTRY


class BinaryImageGenerationPipeline(Pipeline):
    """Draw binary images with an Image GPT.

    ```python
    draw = pipeline("binary-image-generation", model="runs/hoda")
    draw()                                      # a picture of any class
    draw(4)                                     # of class 4; or draw("cat"), by the class's name
    draw([0, 1, 2], batch_size=3, seed=7)       # three pictures, repeatable
    draw(picture, keep_rows=14, class_label=4)  # the upper 14 rows kept, the rest drawn anew
    draw(4, num_return_sequences=5)             # five pictures
    ```

    Each picture is a PIL image (mode "L", 0 and 255). One input gives one picture, a list of inputs a list of
    pictures, and with `num_return_sequences` above 1 each is a list itself. Other arguments go to `model.generate`:
    `temperature`, `top_p`, `guidance_scale`, ...
    """

    _load_image_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_processor = False
    _load_video_processor = False
    _pipeline_calls_generate = True

    def _sanitize_parameters(self, keep_rows=None, class_label=None, **generate_kwargs):
        known = {"keep_rows": keep_rows, "class_label": class_label}
        return {name: value for name, value in known.items() if value is not None}, generate_kwargs, {}

    def __call__(self, inputs=None, seed: int | None = None, batch_size: int | None = None, **kwargs):
        """Draw pictures.

        Args:
            inputs: None for any class, a class index or name, a picture to complete (PIL image, path or array), or a
                list of these.
            seed: Makes the result repeatable; the global random state is set, as by `transformers.set_seed`.
            batch_size: How many of a list are drawn at a time; up to 256 unless said.
            keep_rows: With a picture: how many rows of pixels are kept from the top; half of them unless said.
            class_label: With a picture: the class, by index or name, that the rest is to be of.

        Raises:
            ValueError: A class that there is none of, or rows that do not fit.
        """
        if seed is not None:
            set_seed(seed)
        if isinstance(inputs, list):
            are_classes = {self._is_class(item) for item in inputs}
            if len(are_classes) > 1:
                raise ValueError("a list holds either classes or pictures to complete: prompts of one length.")
            batch_size = batch_size or min(256, len(inputs))
        return super().__call__(inputs, batch_size=batch_size, **kwargs)

    def preprocess(self, inputs, keep_rows: int | None = None, class_label=None):
        """One input -> its prompt, `input_ids` (1, 1 + given tokens)."""
        processor = self.image_processor
        is_class = self._is_class(inputs)
        label = self._class_index(inputs if is_class else class_label)
        labels = None if label is None else [label]
        if is_class:
            return processor.prompt(class_labels=labels)
        rows = processor.grid_size // 2 * processor.patch_size if keep_rows is None else keep_rows
        return processor.prompt(class_labels=labels, images=inputs, keep_rows=rows)

    def _is_class(self, item) -> bool:
        """Whether an input asks for a class, or for any; a text is a path if there is such a file."""
        return item is None or isinstance(item, int) or (isinstance(item, str) and not os.path.isfile(item))

    def _class_index(self, label) -> int | None:
        if not isinstance(label, str):
            return label  # an index, or None for any class; the processor checks it
        names = {str(name): index for index, name in self.model.config.id2label.items()}
        if label not in names:
            raise ValueError(f"{label!r} is no class ({', '.join(names)}), and no file.")
        return names[label]

    def _forward(self, model_inputs, **generate_kwargs):
        generate_kwargs = self._prepare_generate_kwargs(generate_kwargs)
        ids = self.model.generate(**model_inputs, **generate_kwargs)
        return {"ids": ids.view(len(model_inputs["input_ids"]), -1, ids.shape[1])}  # (B, pictures of each, 1 + N)

    def postprocess(self, model_outputs):
        """Tokens (1, n, 1 + N) -> a picture or, if n > 1, a list of them."""
        pictures: list[Image.Image] = self.image_processor.decode(model_outputs["ids"].flatten(0, 1))
        return pictures[0] if len(pictures) == 1 else pictures


PIPELINE_REGISTRY.register_pipeline(
    "binary-image-generation",
    pipeline_class=BinaryImageGenerationPipeline,
    pt_model=AutoModelForCausalLM,
    type="image",
)

__all__ = ["BinaryImageGenerationPipeline"]
