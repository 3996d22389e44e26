"""The models in the box: found by name, whole, small, without code; and how they are made."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.paths import UTILS
from igpt_hf import IGPTError, IGPTForCausalImageModeling, IGPTImageProcessor, bundled
from igpt_hf.hub.bundled import DEFAULT_MODEL, FOLDER


FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.fixture(scope="module")
def make_bundled():
    spec = importlib.util.spec_from_file_location("make_bundled", UTILS / "make_bundled.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tiny_model, tiny_processor, tmp_path) -> Path:
    """What a finished run leaves, code and figures included."""
    folder = tmp_path / "run"
    tiny_model().save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    card = "---\nlicense: mit\n---\n\n# run\n\n![Samples](samples.png)\n\n*The first ten samples of each class.*\n\n"
    card += (
        '## Results\n\n48.5 nats\n\n## Use\n\nfrom_pretrained("run")\n\n![Completions](completions.png)\n\n## Data\n'
    )
    (folder / "README.md").write_text(card)
    return folder


def test_the_bundled_models_are_whole_small_and_carry_no_code():
    assert DEFAULT_MODEL in bundled()
    for name in bundled():
        assert sorted(path.name for path in Path(bundled(name)).iterdir()) == FILES
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 2.2e6  # compressed in the wheel, below 2 MB


@pytest.mark.parametrize("name", bundled())
def test_a_bundled_model_has_float32_weights_and_the_classes_of_its_processor(name):
    model = AutoModelForCausalLM.from_pretrained(bundled(name))
    processor = IGPTImageProcessor.from_pretrained(bundled(name))
    assert type(model) is IGPTForCausalImageModeling and model.dtype == torch.float32
    assert (processor.num_labels, processor.image_size) == (model.config.num_labels, model.config.image_size)
    assert f'bundled("{name}")' in (Path(bundled(name)) / "README.md").read_text("utf-8")


def test_the_default_model_knows_the_digits_that_the_package_draws():
    from igpt_hf import synthetic_digits

    model = IGPTForCausalImageModeling.from_pretrained(bundled(DEFAULT_MODEL))
    processor = IGPTImageProcessor.from_pretrained(bundled(DEFAULT_MODEL))
    images, labels = synthetic_digits(50, seed=20_240)  # of no training
    ids = processor(images // 255, class_labels=labels.tolist())["input_ids"]
    assert -model.log_likelihood(ids).mean() < 53  # nats/image; 543 for a coin toss at each pixel
    assert (model.class_posterior(ids).argmax(1) == torch.from_numpy(labels)).double().mean() > 0.9


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(IGPTError, match=f"'nowhere'; there are: .*{DEFAULT_MODEL}"):
        bundled("nowhere")


def test_a_checkpoint_is_bundled_without_its_code_and_figures(make_bundled, checkpoint, tmp_path):
    folder = tmp_path / "bundled" / "tiny-run"
    (folder / "of-an-earlier-model").mkdir(parents=True)
    assert any(checkpoint.glob("*.py"))
    make_bundled.make_bundled(checkpoint, folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    for name in ("config.json", "preprocessor_config.json"):
        assert "auto_map" not in json.loads((folder / name).read_text())
    card = (folder / "README.md").read_text()
    assert "# tiny-run\n\n## Results\n\n48.5 nats\n\n## Use\n" in card and card.endswith("```\n\n## Data\n")
    assert 'bundled("tiny-run")' in card and '"run"' not in card and "![" not in card
    before, after = (IGPTForCausalImageModeling.from_pretrained(path) for path in (checkpoint, folder))
    ids = torch.tensor([[17, *range(16)]])
    assert torch.equal(before.log_likelihood(ids), after.log_likelihood(ids))


def test_the_card_says_what_the_data_is_instead_of_where_it_was(make_bundled):
    where = "## Data\n\n`mnist`, files of the model's trainer: 60000 images\n"
    assert make_bundled.make_card(where, "digits", "MNIST") == "## Data\n\nMNIST: 60000 images\n"
    assert make_bundled.make_card(where, "digits") == where
    metadata = "    dataset:\n      name: mnist, files of the model's trainer\n"
    named = make_bundled.make_card(metadata, "digits", "MNIST ([paper](https://example.org))")
    assert named == "    dataset:\n      name: MNIST (paper)\n"


def test_what_is_no_finished_run_or_not_float32_is_not_bundled(make_bundled, checkpoint, tmp_path):
    (checkpoint / "README.md").unlink()
    with pytest.raises(IGPTError, match=r"run has no README.md"):
        make_bundled.make_bundled(checkpoint, tmp_path / "bundled")
    IGPTForCausalImageModeling.from_pretrained(checkpoint).to(torch.bfloat16).save_pretrained(checkpoint)
    with pytest.raises(IGPTError, match="bfloat16"):
        make_bundled.make_bundled(checkpoint, tmp_path / "bundled")
    assert not (tmp_path / "bundled").exists()
