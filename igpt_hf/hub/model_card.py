"""The model cards of generators (model_card.md) and classifiers (classifier_card.md), filled with a run's facts."""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import datasets
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData


TASK = "unconditional-image-generation"  # the nearest of the Hub's tasks


def template_path() -> Path:
    """Where the template lies: inside the installed package, or at the top of the repository."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package / "model_card.md", package.parent / "model_card.md") if path.is_file())


@dataclass
class DataFacts:
    """What the card says of the data: a name without local folders, and under which terms it may be used."""

    name: str
    license: str
    metadata: dict[str, Any]  # `license` and, for a data set of the Hub, `datasets`


def about_data(source: str) -> DataFacts:
    """Say what is known of a source, as `load_splits` takes it; of files that others made, the terms are not known."""
    if source == "synthetic":
        name = "`synthetic`, synthetic Persian digits made by igpt_hf"
        return DataFacts(name, "Apache-2.0, as the package that makes them", {"license": "apache-2.0"})
    paths = source.split(",")
    if all(path.strip().lower().endswith(".cdb") for path in paths):
        files = ", ".join(f"`{Path(path.strip()).name}`" for path in paths)
        terms = "free for research only, for anything else ask its makers (http://farsiocr.ir)"
        other = {"license": "other", "license_name": "research-only", "license_link": "http://farsiocr.ir"}
        return DataFacts(f"HODA, handwritten Persian digits ({files})", terms, other)
    path = Path(source).expanduser()
    if not path.exists():  # images' and labels' file, or an id
        path = Path(paths[0].strip()).expanduser()
    if not path.exists():  # `load_splits` took it for an id, too
        dataset = source.partition(":")[0]  # without its configuration
        page = f"https://huggingface.co/datasets/{dataset}"
        terms = f"unknown here, see its page or ask its makers ({page})"
        return DataFacts(f"[{source}]({page})", terms, {"license": "unknown", "datasets": [dataset]})
    name = path.resolve().name
    return DataFacts(f"`{name}`, files of the model's trainer", "unknown, ask whoever made it", {"license": "unknown"})


def hardware(device: torch.device | None = None, num_processes: int = 1) -> str:
    """Name the accelerators or the processor that a run uses."""
    if device is not None and device.type == "cuda":
        return f"{num_processes} x {torch.cuda.get_device_name(device)}"
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    model = models[0] if models else platform.machine()
    return f"{os.cpu_count()} CPU cores ({model}), {num_processes} x {torch.get_num_threads()} threads"


def versions() -> str:
    """Versions of the packages that a result depends on."""
    modules = (torch, transformers, datasets, accelerate)
    return ", ".join(f"{module.__name__} {module.__version__}" for module in modules)


def make_model_card(facts: dict) -> ModelCard:
    """Render the template.

    Args:
        facts: All that the template names, but for `data` and `data_license`, which follow from `source`.

    Raises:
        ValueError: A fact is missing.
    """
    template = _strict(facts)
    data = about_data(facts["source"])
    facts = {**facts, "data": data.name, "data_license": data.license}
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["image-gpt", "binary-images", "autoregressive", "exact-likelihood", "igpt_hf"],
        model_name=facts["name"],
        eval_results=_eval_results(facts, data),
        **data.metadata,
    )
    return ModelCard.from_template(card_data, template_str=template, **facts)


def make_classifier_card(facts: dict) -> ModelCard:
    """Render classifier_card.md.

    Args:
        facts: A classifier's results, its `name`, `model_id`, `source`, `start`, and `rows` of the table.
    """
    data = about_data(facts["source"])
    facts = {**facts, "data": data.name, "data_license": data.license}
    tags = ["image-gpt", "binary-images", "igpt_hf"]
    card_data = ModelCardData(
        library_name="transformers", pipeline_tag="image-classification", tags=tags, **data.metadata
    )
    template = Path(__file__).with_name("classifier_card.md").read_text(encoding="utf-8")
    return ModelCard.from_template(card_data, template_str=template, **facts)


def _eval_results(facts: dict, data: DataFacts) -> list[EvalResult]:
    """What was measured on the test split, in the Hub's form (`model-index`)."""
    test = next(split for split in facts["splits"] if split["name"] == "test")
    source = Path(facts["source"].split(",")[0]).expanduser().resolve()
    about: dict[str, Any] = {
        "task_type": TASK,
        "dataset_type": data.metadata.get("datasets", [source.stem])[0],
        "dataset_name": re.sub(r"[`\[]|\]\(.*", "", data.name),
        "dataset_split": "test",
    }
    nats, bits = round(test["nats"], 3), round(test["bits"], 5)
    return [
        EvalResult(
            **about, metric_type="nats_per_image", metric_name="Nats per image, given the class", metric_value=nats
        ),
        EvalResult(
            **about, metric_type="bits_per_pixel", metric_name="Bits per pixel, given the class", metric_value=bits
        ),
    ]


def _strict(facts: dict) -> str:
    """The template's text, once it is sure that every fact it names is there."""
    import jinja2.meta

    text = template_path().read_text(encoding="utf-8")
    named = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(text))
    missing = sorted((named - {"data", "data_license"} | {"source"}) - facts.keys())
    if missing:
        raise ValueError(f"the model card needs facts that were not given: {', '.join(missing)}.")
    return "---\n{{ card_data }}\n---\n\n" + text
