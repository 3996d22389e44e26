"""Fill the model card's template with the facts of a run."""

import os
import platform
from pathlib import Path

import accelerate
import datasets
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData


def template_path() -> Path:
    """Where the template lies: inside the installed package, or at the top of the repository."""
    here = Path(__file__).resolve().parent
    return next(path for path in (here / "model_card.md", here.parent / "model_card.md") if path.is_file())


def hardware() -> str:
    """Name the processor, or the accelerators, that this process runs on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads"


def versions() -> str:
    """Versions of the libraries that a result depends on."""
    modules = (torch, transformers, datasets, accelerate)
    return ", ".join(f"{module.__name__} {module.__version__}" for module in modules)


def make_model_card(facts: dict) -> ModelCard:
    """Render the template; `facts` holds all that it names (a missing one raises)."""
    template = _strict(facts)
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="unconditional-image-generation",
        tags=["image-gpt", "binary-images", "autoregressive", "exact-likelihood", "igpt_hf"],
        model_name=facts["name"],
        eval_results=_eval_results(facts),
    )
    return ModelCard.from_template(card_data, template_str=template, **facts)


def _eval_results(facts: dict) -> list[EvalResult]:
    """What was measured on the test split, in the Hub's form (`model-index`)."""
    test = next(split for split in facts["splits"] if split["name"] == "test")
    about = {
        "task_type": "unconditional-image-generation",
        "dataset_type": Path(facts["data"]).stem,
        "dataset_name": Path(facts["data"]).name,
        "dataset_split": "test",
    }
    return [
        EvalResult(**about, metric_type="nats_per_image", metric_value=round(test["nats"], 3)),
        EvalResult(**about, metric_type="bits_per_pixel", metric_value=round(test["bits"], 5)),
    ]


def _strict(facts: dict) -> str:
    """The template's text, once it is sure that every fact it names is there."""
    import jinja2.meta

    text = template_path().read_text(encoding="utf-8")
    named = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(text))
    missing = sorted(named - facts.keys())
    if missing:
        raise ValueError(f"the model card needs facts that were not given: {', '.join(missing)}.")
    return "---\n{{ card_data }}\n---\n\n" + text


__all__ = ["hardware", "make_model_card", "template_path", "versions"]
