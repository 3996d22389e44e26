"""Configuration of the Image GPT for binary images, and its presets."""

from typing import TYPE_CHECKING

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .tokens import TokenGrid


if TYPE_CHECKING:  # never run, but transformers copies the file named here into a checkpoint
    from .pipeline_igpt import BinaryImageGenerationPipeline  # noqa: F401


# Shapes only: everything else is shared. The last three are the paper's (Chen et al. 2020, section 3.4). The MLP is
# five times as wide as the residual stream in the smallest, four times in the others.
PRESETS: dict[str, dict[str, int]] = {
    "xxs": {"hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2, "intermediate_size": 80},
    "xxs-wide": {"hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 128},
    "xs": {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 256},
    "s": {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1024},
    "igpt-s": {"hidden_size": 512, "num_hidden_layers": 24, "num_attention_heads": 8, "intermediate_size": 2048},
    "igpt-m": {"hidden_size": 1024, "num_hidden_layers": 36, "num_attention_heads": 8, "intermediate_size": 4096},
    "igpt-l": {"hidden_size": 1536, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 6144},
}
MAX_CLASSES_WITH_GAINS = 32  # a gain for each class costs 272 parameters a class in xxs


@strict
class IGPTConfig(TokenGrid, PreTrainedConfig):
    """Configuration of an Image GPT (Chen et al. 2020, "Generative Pretraining from Pixels") for binary images.

    The defaults are the reference model: `IGPTConfig.from_preset("xxs")`. The vocabulary is not a setting: it follows
    from the size of the block of pixels that a token stands for.

    Args:
        image_size: Height and width of the images in pixels, a multiple of `patch_size`.
        patch_size: Height and width of a token's block of pixels; 2 gives the vocabulary of 2**(2*2) = 16.
        hidden_size: Width of the residual stream (the paper's d).
        num_hidden_layers: Number of blocks (the paper's L).
        num_attention_heads: Number of attention heads.
        intermediate_size: Width of the MLP's hidden layer; None stands for `5 * hidden_size`, as in `xxs`.
        hidden_act: Activation of the MLP; the default, z sigmoid(1.702 z), is that of the paper's code.
        neighborhood_radius: The input at each position embeds the known tokens within this many rows and columns of
            the token that is predicted; 0 leaves only the token before it (the paper's model).
        class_conditional_norm: Whether each norm has one gain vector for each class, and one for any class, instead
            of one for all: adaptive RMSNorm. Costs (2 * num_hidden_layers + 1) * num_labels * hidden_size
            parameters. By default, with up to 32 classes.
        num_grids: On how many grids of blocks the model knows images, 1 to 2 * patch_size**2: the blocks of each
            further grid begin at other pixels, and the second half of the grids is that of images turned by 180
            degrees (`move_to_grid`). The likelihood of an image is the mean over the grids. (Not to be confused with
            `grid_size`, the tokens in a row.)
        class_dropout_prob: In training, the fraction of images whose class prompt is replaced by the start token.
        attention_dropout: Dropout of the attention weights.
        rms_norm_eps: Added to the mean square in RMSNorm.
        initializer_range: Standard deviation of the initial embeddings. Matrices start at fan_in**-0.5.
        use_cache: Whether `generate` keeps keys and values.
        num_labels: Number of classes (or give `id2label`); 10 by default.

    Attributes:
        nats_quantiles: Percentiles 0, 1, ..., 100 of the nats of the validation images, class unknown, since the end
            of the training: how typical an image is (`igpt score`). None if they were not measured.

    Raises:
        huggingface_hub.errors.StrictDataclassError: A value of the wrong type, or sizes that do not fit together.

    Example:
        >>> config = IGPTConfig(image_size=28, patch_size=2)
        >>> config.vocab_size, config.num_image_tokens, config.start_token_id
        (16, 196, 26)
    """

    model_type = "igpt"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # two versions' names

    image_size: int = 28
    patch_size: int = 2
    hidden_size: int = 16
    num_hidden_layers: int = 8
    num_attention_heads: int = 2
    intermediate_size: int | None = None
    hidden_act: str = "quick_gelu"
    neighborhood_radius: int = 2
    class_conditional_norm: bool | None = None
    num_grids: int = 1
    class_dropout_prob: float | int = 0.2
    attention_dropout: float | int = 0.0
    rms_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.1
    use_cache: bool = True
    tie_word_embeddings: bool = False
    nats_quantiles: list[float] | None = None

    def __post_init__(self, **kwargs):
        if self.id2label is None and (self.label2id or kwargs.get("label2id")):
            names = self.label2id or kwargs["label2id"]
            self.id2label = {label: name for name, label in names.items()}
        if self.id2label is None:
            kwargs.setdefault("num_labels", 10)
        if self.intermediate_size is None:
            self.intermediate_size = 5 * self.hidden_size
        super().__post_init__(**kwargs)
        if self.class_conditional_norm is None:
            self.class_conditional_norm = self.num_labels <= MAX_CLASSES_WITH_GAINS

    def to_diff_dict(self) -> dict:
        """What a checkpoint keeps: all that is no default, and the classes, whose default is not transformers'."""
        classes = {"id2label": self.id2label, "label2id": self.label2id}
        return super().to_diff_dict() | {name: dict(value) for name, value in classes.items() if value is not None}

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "IGPTConfig":
        """Make the configuration of a preset ("xxs", "xxs-wide", "xs", "s", "igpt-s", ...), with changes if given.

        Raises:
            ValueError: An unknown preset; the message lists the known ones.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known presets: {', '.join(PRESETS)}.")
        sizes = dict(PRESETS[name])
        if "hidden_size" in overrides:  # keep the preset's ratio of MLP to width
            sizes["intermediate_size"] = sizes["intermediate_size"] * overrides["hidden_size"] // sizes["hidden_size"]
        return cls(**{**sizes, **overrides})

    def validate_architecture(self):
        """Check that the sizes fit together; called at construction."""
        self.check_sizes()
        if self.num_attention_heads <= 0 or self.hidden_size <= 0 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a positive multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if self.num_hidden_layers <= 0 or self.intermediate_size <= 0:
            raise ValueError("num_hidden_layers and intermediate_size must be positive.")
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings must be False: the head and the tables of tokens differ in shape.")
        if not 0 <= self.neighborhood_radius < self.grid_size:
            raise ValueError(
                f"neighborhood_radius must lie between 0 and {self.grid_size - 1}, got {self.neighborhood_radius}."
            )
        if self.num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, got {self.num_labels}.")
        if sorted(self.id2label) != list(range(self.num_labels)) or len(set(self.class_names)) < self.num_labels:
            raise ValueError(f"id2label gives labels from 0 on different names; got {self.id2label}.")
        for name in ("rms_norm_eps", "initializer_range"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("class_dropout_prob", "attention_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}.")

    def label_index(self, name: str) -> int:
        """Index of the class with this name.

        Raises:
            ValueError: There is no such class; the message lists those that there are.
        """
        if name not in self.class_names:
            raise ValueError(f"{name!r} is not a class of this model ({', '.join(self.class_names)}).")
        return self.class_names.index(name)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their labels."""
        return [str(self.id2label[label]) for label in range(self.num_labels)]

    @property
    def num_pixels(self) -> int:
        """Pixels per image."""
        return self.image_size**2

    @property
    def max_position_embeddings(self) -> int:
        """Length of a whole sequence: the prompt and the image."""
        return 1 + self.num_image_tokens

    @property
    def custom_pipelines(self) -> dict:
        """Where `transformers.pipeline` finds a checkpoint's own pipeline, for those who trust its code.

        Where the package is installed there is no entry: its own pipeline is registered, and no trust is needed.
        """
        if not __name__.startswith("transformers_modules."):
            return {}
        implementation = {"impl": "pipeline_igpt.BinaryImageGenerationPipeline", "pt": ["AutoModelForCausalLM"]}
        return {"binary-image-generation": {**implementation, "type": "image"}}

    @custom_pipelines.setter
    def custom_pipelines(self, value):
        """Nothing to keep: `Pipeline.save_pretrained` sets what is known already."""


__all__ = ["PRESETS", "IGPTConfig"]
