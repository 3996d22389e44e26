"""A tiny training run: random tokens, a model of one layer, and what must be equal between two runs."""

import datasets
import numpy as np
import torch
from transformers import set_seed

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.training.arguments import IGPTTrainingArguments
from igpt_hf.training.trainer import make_trainer


BY_FOUR_STEPS = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 4, "save_steps": 4}
BY_FOUR_STEPS |= {"save_total_limit": None, "logging_steps": 1}
RANDOM_PARTS = {"class_dropout_prob": 0.5, "attention_dropout": 0.1}


def random_split(n: int, num_classes: int = 3, num_tokens: int = 16, vocab_size: int = 16, seed: int = 0):
    """Rows as `igpt_hf.data.tokenized.tokenize` makes them."""
    tokens = np.random.default_rng(seed).integers(0, vocab_size, (n, num_tokens))
    names = [str(label) for label in range(num_classes)]
    features = datasets.Features(
        label=datasets.ClassLabel(names=names),
        tokens=datasets.List(datasets.Value("uint8" if vocab_size <= 256 else "uint16"), length=num_tokens),
    )
    rows = {"tokens": tokens.tolist(), "label": [i % num_classes for i in range(n)]}
    return datasets.Dataset.from_dict(rows, features=features)


def arguments(folder, **overrides) -> IGPTTrainingArguments:
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
    }
    return IGPTTrainingArguments(**settings | overrides)


def new_trainer(folder, splits, processor, callbacks=(), config=None, **overrides):
    """A Trainer of a tiny model that starts with the same weights each time."""
    args = arguments(folder, **overrides)
    set_seed(args.seed)
    settings = {"image_size": 8, "num_hidden_layers": 1, "num_labels": 3, **(config or {})}
    return make_trainer(
        IGPTForCausalImageModeling(IGPTConfig(**settings)), args, splits, processor, callbacks=callbacks
    )


def assert_equal_weights(first: dict, second: dict):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def logged(trainer) -> list[dict]:
    """What the Trainer logged, without times."""
    slow = ("runtime", "per_second", "train_loss", "total_flos")
    entries = [{k: v for k, v in e.items() if not k.endswith(slow)} for e in trainer.state.log_history]
    return [entry for entry in entries if entry.keys() - {"step", "epoch"}]
