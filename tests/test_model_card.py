"""The model card: a template in which no fact of the run may be missing."""

import jinja2.meta
import pytest

from igpt_hf.model_card import hardware, make_model_card, template_path, versions


@pytest.fixture
def facts() -> dict:
    """A fact for every name in the template: its own name, unless it must be a number or a list."""
    text = template_path().read_text(encoding="utf-8")
    names = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(text))
    numbers = {"epochs": 30.0, "best_epoch": 17.0, "train_runtime": 613.0, "train_images_per_second": 298.7}
    numbers |= {"monotonic_train_loss": True, "monotonic_validation_loss": False}
    splits = [{"name": "test", "num_images": 1118, "num_measured": 1118, "nats": 54.321, "bits": 0.09996}]
    return {name: f"<{name}>" for name in names} | numbers | {"splits": splits}


def test_every_fact_is_in_the_card(facts):
    text = make_model_card(facts).text
    assert [name for name, fact in facts.items() if fact == f"<{name}>" and fact not in text] == []
    assert "| test | 1118 | 1118 | 54.32 | 0.1000 |" in text
    assert "epoch 17 of 30" in text
    assert "10.2 minutes for 30 epochs, 299 images/s" in text
    assert "{" not in text.replace("{ ", "")


def test_what_went_wrong_is_said_too(facts):
    good = make_model_card(facts | {"monotonic_train_loss": True, "monotonic_validation_loss": True}).text
    bad = make_model_card(facts | {"monotonic_train_loss": False, "monotonic_validation_loss": False}).text
    assert (good.count(": yes"), good.count(": no")) == (2, 0)
    assert (bad.count(": yes"), bad.count(": no")) == (0, 2)


def test_a_missing_fact_raises_and_is_named(facts):
    for name in facts:
        with pytest.raises(ValueError, match=rf"not given: {name}\.$"):
            make_model_card({key: value for key, value in facts.items() if key != name})
    with pytest.raises(ValueError, match="hardware.*versions"):
        make_model_card({key: value for key, value in facts.items() if key not in ("hardware", "versions")})


def test_the_head_of_the_card_is_what_the_hub_reads(facts):
    data = make_model_card(facts).data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "unconditional-image-generation"
    assert "image-gpt" in data["tags"]


def test_the_card_names_the_machine_and_the_versions():
    assert "CPU cores" in hardware() or " x " in hardware()
    for module in ("torch", "transformers", "datasets", "accelerate"):
        assert f"{module} {__import__(module).__version__}" in versions()


def test_the_measured_results_are_in_the_metadata_of_the_hub(facts):
    results = make_model_card(facts | {"data": "some/digits.cdb", "name": "mine"}).data.eval_results
    assert {(r.dataset_name, r.dataset_split, r.metric_type, r.metric_value) for r in results} == {
        ("digits.cdb", "test", "nats_per_image", 54.321),
        ("digits.cdb", "test", "bits_per_pixel", 0.09996),
    }
