"""Other classes than those that a checkpoint was trained for: load it, keep what fits, start the rest."""

import copy
import functools

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from .layers_igpt import IGPTRMSNorm


logger = logging.get_logger(__name__)
# Arguments of `from_pretrained` that say where a checkpoint is found.
WHERE = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


def _refuse_positions(name, info: dict):
    if any(key.endswith("embeddings.position.weight") for key in info["unexpected_keys"]):
        raise ValueError(
            f"{name} was made by an earlier version of igpt_hf, with an embedding for each position: train it again."
        )


class IGPTClassesMixin:
    """What an IGPTPreTrainedModel does to change its classes."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, config=None, ignore_mismatched_sizes=False, **kwargs
    ):
        """As in transformers; with `ignore_mismatched_sizes=True`, load a checkpoint of other classes.

        `num_labels`, `id2label` or `config` then say which; only the prompts of new classes are not loaded (see
        `set_classes`). As many classes, of which none stands in another place, are other names for the same ones. So
        it is with `num_grids` (see `set_grids`).

        Raises:
            ValueError: A checkpoint of an earlier version, with an embedding for each position.
        """
        name, wants_info = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        load = functools.partial(super().from_pretrained, name, *model_args, output_loading_info=True)
        if not ignore_mismatched_sizes or name is None:
            model, info = load(config=config, ignore_mismatched_sizes=ignore_mismatched_sizes, **kwargs)
            _refuse_positions(name, info)
            return (model, info) if wants_info else model
        where = {key: kwargs[key] for key in WHERE if key in kwargs}
        saved = cls.config_class.from_pretrained(name, **where)
        if isinstance(config, PreTrainedConfig):
            wanted, config = config, copy.deepcopy(config)
            config.id2label, config.label2id, config.num_grids = saved.id2label, saved.label2id, saved.num_grids
        else:
            asked = {k: kwargs.pop(k) for k in ("num_labels", "id2label", "label2id", "num_grids") if k in kwargs}
            wanted = cls.config_class.from_pretrained(name if config is None else config, **where, **asked)
            kwargs |= {"id2label": saved.id2label, "label2id": saved.label2id, "num_grids": saved.num_grids}
        model, info = load(config=config, ignore_mismatched_sizes=True, **kwargs)
        _refuse_positions(name, info)
        model.set_grids(wanted.num_grids)
        places = {name: label for label, name in enumerate(saved.class_names)}
        is_moved = any(places.get(name, label) != label for label, name in enumerate(wanted.class_names))
        if wanted.num_labels == saved.num_labels and not is_moved:  # other names for the same classes
            model._name_classes(wanted.class_names)
        elif new := model.set_classes(wanted.class_names):
            logger.warning("%s: the prompts of these classes are new and need training: %s", name, ", ".join(new))
        return (model, info) if wants_info else model

    @torch.no_grad()
    def set_classes(self, names: list[str]) -> list[str]:
        """Change the classes: those that the model knows by name keep their prompt, a new one starts as "any class".

        Args:
            names: Names of the classes, in the order of their labels.

        Returns:
            The names that are new.

        Raises:
            ValueError: No name, or a name twice.
        """
        if not names or len(set(names)) < len(names):
            raise ValueError(f"classes need names that are all different, got {', '.join(names) or 'none'}.")
        config = self.config
        known = {name: label for label, name in enumerate(config.class_names)}
        any_class = config.num_labels
        prompts = torch.tensor([*(known.get(name, any_class) for name in names), any_class])
        self._choose_prompts(torch.cat([prompts + grid * (any_class + 1) for grid in range(config.num_grids)]))
        for norm in self.modules():
            if isinstance(norm, IGPTRMSNorm) and config.class_conditional_norm:
                norm.weight = nn.Parameter(norm.weight[prompts], requires_grad=norm.weight.requires_grad)
        self._name_classes(names)
        config.nats_quantiles = None  # they were those of the old classes
        if self.can_generate():
            self.generation_config.bos_token_id = config.start_token_id
        return [name for name in names if name not in known]

    @torch.no_grad()
    def set_grids(self, num_grids: int):
        """Change on how many grids the model knows images: those that are new start as the first, untrained.

        Raises:
            ValueError: Fewer than 1, or more than `2 * patch_size**2`.
        """
        config, old = self.config, self.config.num_grids
        if num_grids == old:
            return
        config.num_grids = num_grids
        try:
            config.check_sizes()
        except ValueError:
            config.num_grids = old
            raise
        prompts = torch.arange(config.num_prompts).view(num_grids, -1)
        prompts[old:] = prompts[0]
        self._choose_prompts(prompts.flatten())
        config.nats_quantiles = None  # they were those of the old grids

    def _choose_prompts(self, prompts: torch.Tensor):
        """Replace the embeddings of the prompts, the last rows of their table, by some of these, (n,)."""
        embeddings = self.base_model.embeddings
        context, first = embeddings.context, embeddings.first_rows[-1] + self.config.vocab_size
        rows = torch.cat([torch.arange(first), first + prompts]).to(context.weight.device)
        context.weight = nn.Parameter(context.weight[rows], requires_grad=context.weight.requires_grad)
        context.num_embeddings = len(rows)

    def _name_classes(self, names: list[str]):
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: label for label, name in enumerate(names)}
