"""The model card: a template in which no fact of the run may be missing."""

import jinja2.meta
import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from igpt_hf.hub.model_card import about_data, hardware, make_model_card, template_path, versions


@pytest.fixture
def facts() -> dict:
    """A fact for every name in the template: its own name, unless it must be a number, a list or what is looked up."""
    text = template_path().read_text(encoding="utf-8")
    names = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(text)) - {"data", "data_license"}
    numbers = {
        "epochs": 30.0,
        "best_epoch": 17.0,
        "num_grids": 4,
        "train_runtime": 613.0,
        "train_images_per_second": 298.7,
    }
    numbers |= {"num_labels": 3, "num_grids": 4, "monotonic_train_loss": True, "monotonic_validation_loss": False}
    test = {"name": "test", "num_images": 1118, "num_measured": 1118, "nats": 54.321, "bits": 0.09996, "stderr": 0.5}
    looked_up = {"is_imagegpt": False, "source": "synthetic", "splits": [test], "is_best": True}
    looked_up |= {"new_digits_each_epoch": True}
    return {name: f"<{name}>" for name in names} | numbers | looked_up


def test_every_fact_is_in_the_card(facts):
    text = make_model_card(facts).text
    assert [name for name, fact in facts.items() if fact == f"<{name}>" and fact not in text] == []
    assert "| test | 1118 | 1118 | 54.32 ± 0.50 | 0.1000 |" in text
    assert "epoch 17 of 30" in text
    assert "The best of <num_evaluations> evaluations" in text
    assert "Not the best of <num_evaluations>" in make_model_card(facts | {"is_best": False}).text
    assert "<num_images> images, <split_description>; training seed <seed>" in text
    assert "| training images | drawn anew in each epoch |" in text
    assert "drawn anew" not in make_model_card(facts | {"new_digits_each_epoch": False}).text
    assert "built-in guidance" not in make_model_card(facts | {"built_in_guidance": None}).text
    assert "| augmentation |" not in make_model_card(facts | {"augment": 0.0}).text
    assert text.count("4 grids") == 1 and "take the mean likelihood over 4." in text
    assert "grid" not in make_model_card(facts | {"num_grids": 1}).text
    assert "10.2 minutes, 299 images/s" in text
    assert "{{" not in text
    assert "{%" not in text


def test_the_code_of_a_model_of_one_class_asks_for_that_class(facts):
    one, three = (make_model_card(facts | {"num_labels": num}).text for num in (1, 3))
    assert "images of 1 class (" in one and "class_labels=[0, 0, 0]" in one and "draw([0, 0, 0], seed=1)" in one
    assert (
        "images of 3 classes (" in three and "class_labels=[0, 0, 1]" in three and "draw([0, 0, 1], seed=1)" in three
    )


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


SOURCES = {
    "synthetic": ("apache-2.0", None, "Apache-2.0"),
    "/home/me/a.cdb,b.CDB": ("other", None, "research only"),
    "some/digits": ("unknown", ["some/digits"], "ask its makers"),
    "some/digits:gray": ("unknown", ["some/digits"], "ask its makers"),
    "{folder},labels.npy": ("unknown", None, "ask whoever made it"),
    "{folder}": ("unknown", None, "ask whoever made it"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_data_and_its_license_are_said_as_far_as_they_are_known(facts, tmp_path, source):
    license, ids, words = SOURCES[source]
    card = make_model_card(facts | {"source": source.replace("{folder}", str(tmp_path))})
    assert (card.data.license, card.data.datasets) == (license, ids)
    assert words in card.text
    assert "/home" not in str(card)
    assert str(tmp_path) not in str(card)
    if source.endswith("CDB"):
        assert "`a.cdb`, `b.CDB`" in card.text
        assert (card.data.license_name, card.data.license_link) == ("research-only", "http://farsiocr.ir")


def test_other_files_are_not_taken_for_hoda(tmp_path):
    (tmp_path / "digits.parquet").write_bytes(b"")
    assert about_data(str(tmp_path / "digits.parquet")).metadata == {"license": "unknown"}


@pytest.mark.parametrize("source", SOURCES)
def test_the_head_of_the_card_is_what_the_hub_reads(facts, tmp_path, source):
    make_model_card(facts | {"source": source, "name": "mine"}).save(tmp_path / "README.md")
    metadata = metadata_load(tmp_path / "README.md")
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "unconditional-image-generation"
    assert "image-gpt" in metadata["tags"]
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "mine"
    assert {(r.dataset_split, r.metric_type, r.metric_value) for r in results} == {
        ("test", "nats_per_image", 54.321),
        ("test", "bits_per_pixel", 0.09996),
    }
    assert ModelCardData(**metadata).to_dict() == metadata
    assert str(ModelCard.load(tmp_path / "README.md").data) == str(ModelCardData(**metadata))


def test_the_stock_model_is_loaded_with_transformers_alone(facts):
    ours, stock = (make_model_card(facts | {"is_imagegpt": is_imagegpt}).text for is_imagegpt in (False, True))
    assert "from igpt_hf import" in ours
    assert "igpt_hf import" not in stock
    assert "trust_remote_code" not in stock
    assert "ImageGPTForCausalImageModeling.from_pretrained" in stock


def test_the_card_names_the_machine_and_the_versions():
    assert f"2 x {torch.get_num_threads()} threads" in hardware(torch.device("cpu"), num_processes=2)
    for module in ("torch", "transformers", "datasets", "accelerate"):
        assert f"{module} {__import__(module).__version__}" in versions()


def test_the_results_are_those_of_the_data_by_its_name(facts):
    for source, name, kind in (
        ("some/digits.cdb", "HODA, handwritten Persian digits (digits.cdb)", "digits"),
        ("some/digits", "some/digits", "some/digits"),
    ):
        results = make_model_card(facts | {"source": source}).data.eval_results
        assert {(result.dataset_name, result.dataset_type) for result in results} == {(name, kind)}
