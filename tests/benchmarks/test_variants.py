"""benchmarks/variants.py: each change counts, stays causal, learns and samples."""

import pytest
import torch

import variants
from igpt_hf import IGPTConfig


SHAPE = {"image_size": 12, "num_hidden_layers": 4, "num_labels": 3}


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


@pytest.mark.parametrize("change", variants.CHANGES)
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
    assert [name for name, x in model.named_parameters() if x.grad is None or x.grad.abs().max() == 0] == []


@pytest.mark.parametrize("change", variants.CHANGES)
def test_each_change_samples_the_same_with_a_cache_and_without(make_variant, change):
    model = make_variant(change).eval()
    torch.manual_seed(0)
    cached = model.generate(num_return_sequences=2)
    torch.manual_seed(0)
    assert torch.equal(model.generate(num_return_sequences=2, use_cache=False), cached)
    assert len(cached.unique()) > 2


def test_dense_connections_begin_as_the_model_without_them():
    config = IGPTConfig(**SHAPE)
    model = variants.IGPTModel(config).eval()
    reference = variants.IGPTModel(config).eval()
    variants.replace_modules(model, ["dense"])
    model.load_state_dict(reference.state_dict(), strict=False)
    ids = torch.tensor([[config.vocab_size, *range(16), *range(16), 1, 2, 3]])
    torch.testing.assert_close(model(ids).last_hidden_state, reference(ids).last_hidden_state)


def test_changes_of_different_modules_can_be_combined(make_variant):
    model = make_variant("dense", "positions", "swiglu")
    assert {type(module).__module__ for module in (model.model.embeddings, *model.model.layers)} == {"variants"}
    assert {type(block.mlp) for block in model.model.layers} == {variants.GatedMLP}
