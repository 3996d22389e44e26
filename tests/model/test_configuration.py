"""The configuration: presets, derived sizes, save and load, and errors that say what is wrong."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from igpt_hf import PRESETS, IGPTConfig, IGPTForCausalImageModeling, IGPTModel


def test_the_reference_model_is_tiny_with_a_vocabulary_of_exactly_16():
    config = IGPTConfig()
    assert config.to_dict() == IGPTConfig.from_preset("xxs").to_dict()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 8, 2)
    assert (config.image_size, config.patch_size, config.vocab_size, config.num_image_tokens) == (28, 2, 16, 196)
    assert (config.start_token_id, config.max_position_embeddings, config.num_pixels) == (26, 197, 784)
    model = IGPTForCausalImageModeling(config)
    assert model.lm_head.out_features == 16
    assert model.num_parameters() < 40_000


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("xxs", (16, 8, 2, 80)),
        ("xxs-wide", (32, 8, 4, 128)),
        ("igpt-s", (512, 24, 8, 2048)),  # Chen et al. 2020, section 3.4
        ("igpt-m", (1024, 36, 8, 4096)),
        ("igpt-l", (1536, 48, 16, 6144)),
    ],
)
def test_a_preset_has_its_shape(name, shape):
    config = IGPTConfig.from_preset(name)
    sizes = config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size
    assert sizes == shape


def test_the_mlp_of_a_preset_is_as_many_times_as_wide_at_another_hidden_size():
    assert IGPTConfig.from_preset("xs", hidden_size=32).intermediate_size == 4 * 32
    assert IGPTConfig.from_preset("xxs", hidden_size=32).intermediate_size == 5 * 32
    assert IGPTConfig.from_preset("xs", hidden_size=32, intermediate_size=48).intermediate_size == 48


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_be_changed_and_stays_as_it_was(name):
    before = dict(PRESETS[name])
    config = IGPTConfig.from_preset(name, num_hidden_layers=1, image_size=32, num_labels=5)
    assert (config.num_hidden_layers, config.image_size, config.num_labels) == (1, 32, 5)
    assert config.hidden_size == before["hidden_size"]
    assert PRESETS[name] == before


@pytest.mark.parametrize("patch_size", [1, 2, 3, 4])
def test_sizes_follow_from_the_patch(patch_size):
    config = IGPTConfig(image_size=24, patch_size=patch_size, num_labels=7)
    assert config.vocab_size == 2 ** (patch_size * patch_size)
    assert config.num_image_tokens * math.log2(config.vocab_size) == 24 * 24 == config.num_pixels
    assert config.start_token_id == config.vocab_size + 7


def test_a_saved_configuration_is_the_same_when_loaded(tmp_path):
    config = IGPTConfig(
        image_size=12, patch_size=3, hidden_size=24, num_attention_heads=3, intermediate_size=40, class_dropout_prob=0,
        neighborhood_radius=1, attention_dropout=0.5, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    for loaded in (IGPTConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is IGPTConfig
        assert loaded.to_json_string() == config.to_json_string()
        assert (loaded.num_labels, loaded.id2label[1], loaded.start_token_id) == (2, "dog", 514)


@pytest.mark.parametrize("num_labels", [1, 2, 3, 10])
def test_any_number_of_unnamed_classes_is_kept(tmp_path, num_labels):
    """Two are transformers' default, which it leaves out."""
    IGPTConfig(num_labels=num_labels).save_pretrained(tmp_path)
    for loaded in (IGPTConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert loaded.num_labels == num_labels
        assert loaded.class_names == [f"LABEL_{label}" for label in range(num_labels)]
    IGPTConfig(id2label={0: "a", 1: "b"}).save_pretrained(tmp_path)  # without the inverse
    assert IGPTConfig.from_pretrained(tmp_path).class_names == ["a", "b"]


def test_names_may_be_given_by_label2id_alone():
    config = IGPTConfig(label2id={"b": 1, "a": 0, "c": 2})
    assert (config.num_labels, config.class_names) == (3, ["a", "b", "c"])


def test_five_classes_are_saved_and_loaded_without_a_warning(tmp_path, library_warnings):
    IGPTConfig(num_labels=5).save_pretrained(tmp_path)
    assert IGPTConfig.from_pretrained(tmp_path).num_labels == 5
    assert not library_warnings.records


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"image_size": 29}, ["image_size", "multiple of patch_size=2", "29"]),
        ({"image_size": 0}, ["image_size", "positive", "0"]),
        ({"image_size": -28}, ["image_size", "positive", "-28"]),
        ({"patch_size": 5}, ["patch_size", "1, 2, 3 or 4", "5"]),
        ({"patch_size": 0}, ["patch_size", "1, 2, 3 or 4", "0"]),
        ({"hidden_size": 15}, ["hidden_size=15", "multiple of num_attention_heads=2"]),
        ({"hidden_size": 0}, ["hidden_size=0", "positive"]),
        ({"num_attention_heads": 0}, ["num_attention_heads=0"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "positive"]),
        ({"intermediate_size": -4}, ["intermediate_size", "positive"]),
        ({"neighborhood_radius": -1}, ["neighborhood_radius", "between 0 and 13", "-1"]),
        ({"neighborhood_radius": 14}, ["neighborhood_radius", "between 0 and 13", "14"]),
        ({"class_dropout_prob": 1.5}, ["class_dropout_prob", "probability", "1.5"]),
        ({"attention_dropout": -0.1}, ["attention_dropout", "probability", "-0.1"]),
        ({"attention_dropout": math.nan}, ["attention_dropout", "probability", "nan"]),
        ({"tie_word_embeddings": True}, ["tie_word_embeddings must be False"]),
        ({"num_labels": 0}, ["num_labels", "at least 1", "0"]),
        ({"id2label": {1: "a", 2: "b"}}, ["id2label", "from 0 on", "{1: 'a', 2: 'b'}"]),
        ({"id2label": {0: "a", 1: "a"}}, ["id2label", "different names", "{0: 'a', 1: 'a'}"]),
        ({"rms_norm_eps": -1e-5}, ["rms_norm_eps", "positive", "-1e-05"]),
        ({"initializer_range": 0}, ["initializer_range", "positive", "0"]),
        ({"hidden_size": "16"}, ["hidden_size", "expected int", "'16'"]),
        ({"num_hidden_layers": 8.0}, ["num_hidden_layers", "expected int", "8.0"]),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_what_is_allowed(bad, words):
    with pytest.raises(StrictDataclassError) as error:
        IGPTConfig(**bad)
    assert [word for word in words if word not in str(error.value)] == []


def test_whole_numbers_will_do_where_numbers_are_wanted():
    assert IGPTConfig(rms_norm_eps=1, initializer_range=1).rms_norm_eps == 1


def test_norms_are_class_conditional_unless_there_are_many_classes():
    assert IGPTConfig().class_conditional_norm
    assert IGPTConfig(num_labels=32).class_conditional_norm
    assert not IGPTConfig(num_labels=33).class_conditional_norm
    assert IGPTConfig(num_labels=33, class_conditional_norm=True).class_conditional_norm
    assert not IGPTConfig(class_conditional_norm=False).class_conditional_norm


def test_class_conditional_norms_cost_a_gain_for_each_further_prompt():
    plain, model = (IGPTForCausalImageModeling(IGPTConfig(class_conditional_norm=on)) for on in (False, True))
    assert model.num_parameters() - plain.num_parameters() == 17 * 10 * 16  # norms, further prompts, channels
    for norm in (model.model.layers[0].mlp_norm, model.model.norm):
        assert norm.weight.shape == (11, 16) and (norm.weight == 1).all()


def test_an_unknown_activation_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown hidden_act 'sllu'; known: .*silu"):
        IGPTModel(IGPTConfig(hidden_act="sllu"))


def test_an_unknown_preset_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="'xxl'.*xxs, xxs-wide, xs, s, igpt-s, igpt-m, igpt-l"):
        IGPTConfig.from_preset("xxl")


@pytest.mark.parametrize(("name", "millions"), [("igpt-s", 76), ("igpt-m", 455), ("igpt-l", 1362)])
def test_the_paper_presets_have_the_size_that_the_paper_says(name, millions):
    config = IGPTConfig.from_preset(name, patch_size=3, image_size=96)
    with torch.device("meta"):  # shapes without memory
        model = IGPTForCausalImageModeling(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert (config.vocab_size, config.num_image_tokens) == (512, 1024)
    assert model.lm_head.weight.shape == (512, config.hidden_size)
    blocks = sum(parameter.numel() for parameter in model.model.layers.parameters())
    assert blocks / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(("preset", "millions"), [("igpt-s", 76), ("igpt-m", 455), ("igpt-l", 1362)])
def test_the_large_presets_have_the_parameters_of_the_paper_at_its_vocabulary(preset, millions):
    """512 colors and 32x32 positions; here those of 3x3 blocks of 96x96 pixels, without the neighborhood."""
    with torch.device("meta"):
        config = IGPTConfig.from_preset(preset, patch_size=3, image_size=96, neighborhood_radius=0)
        model = IGPTForCausalImageModeling(config)
        binary = IGPTForCausalImageModeling(IGPTConfig.from_preset(preset))  # 16 tokens, 196 positions
    assert (config.vocab_size, config.num_image_tokens) == (512, 1024)
    assert model.num_parameters() == pytest.approx(1e6 * millions, rel=0.01)
    assert binary.num_parameters() == pytest.approx(1e6 * millions, rel=0.01)
