"""The loss that is expected over the pixels of gray images: the same on average as that of sampled pixels."""

import datasets
import numpy as np
import pytest
import torch

from helpers.training import logged, new_trainer
from igpt_hf import IGPTConfig
from igpt_hf.data.tokenized import TokenDataset
from igpt_hf.model.tokens import pixels_to_tokens, token_probs
from igpt_hf.training.losses import expected_loss


LEVELS = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
LEVELS[:, :2] = 0  # black for certain
LEVELS[:, 6:] = 255


@pytest.fixture
def gray_split():
    features = datasets.Features(
        label=datasets.ClassLabel(num_classes=3), gray=datasets.List(datasets.Value("uint8"), length=64)
    )
    rows = {"gray": LEVELS.reshape(24, 64).tolist(), "label": [i % 3 for i in range(24)]}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_probability_of_a_token_is_that_of_its_pixels(patch_size):
    white = np.random.default_rng(0).random((1, 2, 4))
    probs = token_probs(white, patch_size)
    assert probs.shape == (1, 8 // patch_size**2, 2 ** (patch_size**2))
    np.testing.assert_allclose(probs.sum(-1), 1)
    expected = np.zeros_like(probs)
    places = np.arange(probs.shape[1])
    for bits in range(2**8):  # all images of eight pixels
        pixels = ((bits >> np.arange(8)) & 1).reshape(1, 2, 4)
        expected[0, places, pixels_to_tokens(pixels, patch_size)[0]] += np.where(pixels, white, 1 - white).prod()
    np.testing.assert_allclose(probs, expected)


def test_the_expected_loss_is_the_mean_of_the_losses_of_all_tokens():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 16, generator=generator)  # the last position predicts nothing
    probs = torch.rand(2, 3, 16, generator=generator).softmax(-1)
    means = [
        sum(probs[b, t, v] * torch.nn.functional.cross_entropy(logits[b, t], torch.tensor(v)) for v in range(16))
        for b in range(2)
        for t in range(3)
    ]
    assert expected_loss(probs)(logits).item() == pytest.approx(sum(means).item() / 6, rel=1e-5)
    assert expected_loss(probs)(logits, num_items_in_batch=12).item() == pytest.approx(
        sum(means).item() / 12, rel=1e-5
    )


def test_of_certain_pixels_the_expected_loss_is_that_of_the_labels():
    tokens = torch.randint(0, 16, (2, 3))
    logits, labels = torch.randn(2, 4, 16), torch.cat([torch.full((2, 1), -100), tokens], dim=1)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 16), labels[:, 1:].reshape(-1))
    probs = torch.nn.functional.one_hot(tokens, 16).float()
    assert expected_loss(probs)(logits).item() == pytest.approx(loss.item(), rel=1e-5)


def test_batches_of_gray_images_have_the_probabilities_of_their_tokens_where_asked_for(gray_split):
    config = IGPTConfig(image_size=8, num_labels=3)
    batch = TokenDataset(gray_split, config, gives_probs=True).__getitems__([3, 1])
    assert batch["token_probs"].shape == (2, 16, 16)
    torch.testing.assert_close(batch["token_probs"].sum(-1), torch.ones(2, 16))
    sampled = batch["token_probs"].gather(-1, batch["input_ids"][:, 1:, None])
    assert (sampled > 0).all()
    assert (batch["token_probs"][:, :4, 0] == 1).all()  # the first row of blocks is black
    assert "token_probs" not in TokenDataset(gray_split, config).__getitems__([3, 1])


def test_a_large_vocabulary_has_no_probabilities(gray_split):
    config = IGPTConfig(image_size=8, patch_size=4, neighborhood_radius=1, num_labels=3)
    assert "token_probs" not in TokenDataset(gray_split, config, gives_probs=True).__getitems__([0])


def test_a_trainer_minimizes_the_expected_loss_of_gray_images(gray_split, tiny_processor, tmp_path):
    splits = {"train": gray_split, "validation": gray_split}
    trainer = new_trainer(tmp_path, splits, tiny_processor, built_in_guidance=1.0)
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.train()
    torch.nn.init.normal_(model.lm_head.weight)
    logits, probs = model(batch["input_ids"], use_cache=False).logits, batch["token_probs"]
    loss = trainer.compute_loss(model, dict(batch))
    assert loss.item() == pytest.approx(expected_loss(probs)(logits).item(), rel=1e-6)
    assert loss.item() != pytest.approx(model(**{k: batch[k] for k in ("input_ids", "labels")}).loss.item(), rel=1e-3)


def test_accumulated_gradients_of_gray_images_are_those_of_the_large_batch(gray_split, tiny_processor, tmp_path):
    splits = {"train": gray_split, "validation": gray_split}
    norms = []
    for size, steps in ((8, 1), (4, 2)):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        trainer = new_trainer(tmp_path / str(size), splits, tiny_processor, max_steps=2, logging_steps=1, **sizes)
        trainer.train()
        norms.append([entry["grad_norm"] for entry in logged(trainer) if "grad_norm" in entry])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_gray_images_train_with_and_without_built_in_guidance(scale, gray_split, tiny_processor, tmp_path):
    splits = {"train": gray_split, "validation": gray_split}
    config = {"class_dropout_prob": 0.3}
    trainer = new_trainer(
        tmp_path, splits, tiny_processor, config=config, built_in_guidance=scale, num_train_epochs=20
    )
    trainer.train()
    nats = [
        entry["eval_validation_nats_per_image"]
        for entry in logged(trainer)
        if "eval_validation_nats_per_image" in entry
    ]
    assert nats[-1] < nats[0] - 5
