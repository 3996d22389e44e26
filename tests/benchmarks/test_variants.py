"""benchmarks/variants.py: without changes it is the package's model, with each it stays causal and can learn."""

import numpy as np
import pytest
import torch

import variants
from igpt_hf import IGPTConfig


SHAPE = {"image_size": 12, "num_hidden_layers": 4, "num_labels": 3}
DATA = {"shift", "shear"}


@pytest.fixture
def make_variant(monkeypatch):
    """A model with changes and random weights everywhere."""

    def make(*changes: str) -> variants.VariantForCausalImageModeling:
        monkeypatch.setattr(variants.VariantForCausalImageModeling, "changes", frozenset(changes))
        model = variants.VariantForCausalImageModeling(IGPTConfig(**SHAPE))
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        return model

    return make


def test_without_changes_it_is_the_model_of_the_package(make_variant, tiny_model, random_ids):
    model, reference = make_variant(), tiny_model(**SHAPE)
    weights = {name.replace("embeddings.", "embeddings.plain."): x for name, x in reference.state_dict().items()}
    model.load_state_dict(weights)
    ids = random_ids(model.config)
    torch.testing.assert_close(model.log_likelihood(ids), reference.log_likelihood(ids))


@pytest.mark.parametrize("change", sorted(variants.CHANGES.keys() - DATA))
def test_each_change_counts_is_causal_and_reaches_all_weights(make_variant, random_ids, change):
    model, plain = make_variant(change), make_variant()
    ids, cut = random_ids(model.config), 20
    later = ids.clone()
    later[:, cut:] = (later[:, cut:] + 5) % model.config.vocab_size
    logits = model(ids).logits
    torch.testing.assert_close(logits[:, :cut], model(later).logits[:, :cut])
    assert model.num_parameters() != plain.num_parameters() or (logits - plain(ids).logits).abs().max() > 1e-3
    labels = ids.masked_fill(torch.arange(ids.shape[1]) == 0, -100)
    model(ids, labels=labels).loss.backward()
    unused = {name for name, x in model.named_parameters() if x.grad is None or x.grad.abs().max() == 0}
    assert unused <= {"model.layers.0.attention.first_share"}  # the first layer is itself the first


def test_pixels_move_by_one_with_black_coming_in():
    pixels = np.arange(1, 10).reshape(1, 3, 3)
    steps = np.ones((1, 1, 1), int)
    np.testing.assert_array_equal(variants.moved(pixels, steps, 2), [[[0, 1, 2], [0, 4, 5], [0, 7, 8]]])
    np.testing.assert_array_equal(variants.moved(pixels, -steps, 1), [[[4, 5, 6], [7, 8, 9], [0, 0, 0]]])
    rows = np.array([-1, 0, 1]).reshape(1, 3, 1)
    np.testing.assert_array_equal(variants.moved(pixels, rows, 2), [[[2, 3, 0], [4, 5, 6], [0, 7, 8]]])
