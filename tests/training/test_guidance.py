"""Guidance that is built into a model while it is trained."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from helpers.training import BY_FOUR_STEPS, assert_equal_weights, new_trainer, random_split
from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.training.guidance import built_in_guidance_loss


SCALE = 1.3


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = IGPTForCausalImageModeling(IGPTConfig(image_size=8, num_hidden_layers=1, num_labels=3))
    torch.nn.init.normal_(model.lm_head.weight)
    return model


@pytest.fixture
def batch(model):
    ids = torch.randint(0, model.config.vocab_size, (6, 17))
    ids[:, 0] = torch.tensor([16, 17, 18, 19, 19, 16])  # 19: any class
    labels = ids.clone()
    labels[:, 0] = -100
    return {"input_ids": ids, "labels": labels}


def token_loss(model):
    return partial(model.loss_function, vocab_size=model.config.vocab_size)


def test_guided_predictions_have_the_loss_of_the_likelihood_of_those_without_guidance(model, batch):
    plain = model(**batch, use_cache=False)
    any_class = batch["input_ids"].clone()
    any_class[:, 0] = model.config.start_token_id
    others = model(any_class, use_cache=False).logits
    # As `generate` with guidance_scale does; after the start token nothing changes.
    guided = others + SCALE * (plain.logits - others)
    loss = built_in_guidance_loss(model, batch, model, SCALE, token_loss(model))
    assert loss(SimpleNamespace(logits=guided), batch["labels"]).item() == pytest.approx(plain.loss.item(), rel=1e-5)
    assert loss(plain, batch["labels"]).item() != pytest.approx(plain.loss.item(), rel=1e-5)


def test_images_with_class_dropout_have_their_plain_loss(model, batch):
    batch = {name: ids[3:5] for name, ids in batch.items()}
    plain = model(**batch, use_cache=False)
    loss = built_in_guidance_loss(model, batch, model, SCALE, token_loss(model))(plain, batch["labels"])
    assert torch.equal(loss, plain.loss)
    gradients = [torch.autograd.grad(x, model.lm_head.weight, retain_graph=True)[0] for x in (loss, plain.loss)]
    assert torch.allclose(*gradients, rtol=1e-5)


def test_the_prediction_of_any_class_learns_nothing_from_images_of_a_class(model, batch):
    batch = {name: ids[:3] for name, ids in batch.items()}
    loss = built_in_guidance_loss(model, batch, model, SCALE, token_loss(model))
    loss(model(**batch, use_cache=False), batch["labels"]).backward()
    prompts = model.model.embeddings.context.weight.grad[-4:]
    assert prompts[:3].abs().amax(dim=1).min() > 0
    assert not prompts[3].any()


def test_guidance_begins_after_three_fifths_of_the_steps(tiny_processor, tmp_path):
    splits = {"train": random_split(48), "validation": random_split(21, seed=1)}
    settings = {"num_train_epochs": 4, **BY_FOUR_STEPS}  # 24 steps
    runs = {}
    for scale in (1.0, SCALE):
        trainer = new_trainer(tmp_path / str(scale), splits, tiny_processor, built_in_guidance=scale, **settings)
        trainer.train()
        runs[scale] = [
            load_file(tmp_path / str(scale) / f"checkpoint-{step}" / "model.safetensors") for step in (12, 24)
        ]
    assert_equal_weights(runs[1.0][0], runs[SCALE][0])
    head = "lm_head.weight"
    assert not torch.equal(runs[1.0][1][head], runs[SCALE][1][head])


@pytest.mark.parametrize("config", [{"num_labels": 1}, {"class_dropout_prob": 0.0}])
def test_without_classes_or_without_class_dropout_nothing_is_built_in(tiny_processor, tmp_path, config):
    splits = {"train": random_split(16, config.get("num_labels", 3)), "validation": random_split(9, seed=1)}
    trainer = new_trainer(tmp_path, splits, tiny_processor, config=config, built_in_guidance=SCALE)
    trainer.state.max_steps = trainer.state.global_step = 10
    assert not trainer.has_guidance
    trainer.model.config.num_labels, trainer.model.config.class_dropout_prob = 3, 0.2
    assert trainer.has_guidance
