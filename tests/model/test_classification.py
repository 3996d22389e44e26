"""The classifier: no label leaks in, the loss is the joint objective, its weights start from a generator's."""

import math

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification, pipeline

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling, IGPTForImageClassification
from igpt_hf.data.tokenized import LabelDataset, collate
from igpt_hf.training.arguments import IGPTTrainingArguments
from igpt_hf.training.callbacks import PatientEarlyStopping
from igpt_hf.training.metrics import classification_metrics
from igpt_hf.training.trainer import make_trainer


class Prediction:
    """What the Trainer hands to `compute_metrics`."""

    def __init__(self, predictions, label_ids):
        self.predictions, self.label_ids = predictions, label_ids


@pytest.fixture(params=[False, True], ids=["", "class-conditional norm"])
def pretrained(tiny_model, tmp_path, request):
    """A generator's weights on disk, and the classifier that starts from them."""
    generator = tiny_model(class_conditional_norm=request.param)
    generator.save_pretrained(tmp_path / "generator")
    torch.manual_seed(0)
    return generator, IGPTForImageClassification.from_pretrained(tmp_path / "generator").eval()


@torch.no_grad()
def test_the_prompt_changes_nothing_since_the_model_puts_the_start_token_there(pretrained, random_ids):
    _, model = pretrained
    ids = random_ids(model.config, n=4)
    other = ids.clone()
    other[:, 0] = 16 + (ids[:, 0] - 16 + 1) % 3
    first, second = model(input_ids=ids), model(input_ids=other)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.nats, second.nats)
    assert first.logits.shape == (4, 3)
    assert first.loss is None


@torch.no_grad()
def test_it_starts_from_the_generators_weights_and_tells_the_same_nats(pretrained, random_ids):
    generator, model = pretrained
    ids = random_ids(generator.config, n=4)
    ids[:, 0] = generator.config.start_token_id
    assert torch.allclose(model(input_ids=ids).nats.double(), -generator.log_likelihood(ids), rtol=1e-5)
    hidden = generator.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    assert torch.allclose(model(input_ids=ids).logits, model.classifier(hidden.mean(dim=1)), atol=1e-6)


def test_the_loss_is_the_sum_of_nats_per_token_and_the_cross_entropy_of_the_classes(pretrained, random_ids):
    _, model = pretrained
    ids, labels = random_ids(model.config, n=5), torch.tensor([0, 1, 2, 1, 0])
    outputs = model(input_ids=ids, labels=labels)
    classes = -outputs.logits.log_softmax(-1)[torch.arange(5), labels].mean()
    assert torch.allclose(outputs.loss, outputs.nats.mean() / model.config.num_image_tokens + classes)
    outputs.loss.backward()
    untouched = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert untouched == []


@torch.no_grad()
def test_what_the_processor_makes_is_taken_as_it_is(pretrained, tiny_processor):
    _, model = pretrained
    batch = tiny_processor(np.eye(8, dtype=np.uint8))
    assert batch["labels"].shape == batch["input_ids"].shape
    outputs = model(**batch)
    assert outputs.loss is None
    assert torch.equal(outputs.logits, model(input_ids=batch["input_ids"]).logits)
    classify = pipeline("image-classification", model=model, image_processor=tiny_processor)
    best = classify(Image.fromarray(np.eye(8, dtype=np.uint8) * 255))[0]
    assert best["label"] == model.config.id2label[outputs.logits.argmax().item()]


def test_tokens_without_a_prompt_are_refused(pretrained, random_ids):
    _, model = pretrained
    with pytest.raises(ValueError, match=r"shape \(n, 17\): a prompt and the 16 tokens.*got \(3, 16\)"):
        model(input_ids=random_ids(model.config)[:, 1:])


def test_it_is_saved_with_its_code_and_loaded_by_the_auto_class(pretrained, random_ids, tmp_path):
    _, model = pretrained
    model.save_pretrained(tmp_path / "classifier")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "classifier").eval()
    assert type(again) is IGPTForImageClassification
    for folder in ("classifier", "generator"):  # either may be loaded as the other, by its code alone
        auto_map = AutoConfig.from_pretrained(tmp_path / folder).auto_map
        assert auto_map["AutoModelForImageClassification"] == "modeling_igpt.IGPTForImageClassification"
        assert auto_map["AutoModelForCausalLM"] == "modeling_igpt.IGPTForCausalImageModeling"
    assert (tmp_path / "classifier" / "modeling_igpt.py").is_file()
    ids = random_ids(model.config)
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    generator = IGPTForCausalImageModeling.from_pretrained(tmp_path / "classifier")
    assert torch.equal(generator.lm_head.weight, model.lm_head.weight)


@pytest.fixture(scope="module")
def split():
    """Sixteen images of 8x8 pixels, random, in three classes in turn."""
    tokens = np.random.default_rng(0).integers(0, 16, (16, 16))
    features = datasets.Features(
        label=datasets.ClassLabel(num_classes=3), tokens=datasets.List(datasets.Value("uint8"), length=16)
    )
    return datasets.Dataset.from_dict({"tokens": tokens.tolist(), "label": np.arange(16) % 3}, features=features)


def test_the_data_set_of_a_classifier_hands_out_classes(split):
    config = IGPTConfig(image_size=8, num_labels=3)
    batch = collate(LabelDataset(split, config, class_dropout_prob=1.0).__getitems__([5, 0, 4]))
    assert batch["labels"].tolist() == [2, 0, 1]
    assert batch["input_ids"].shape == (3, 17)


def test_metrics_are_means_over_the_images():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5]])
    result = classification_metrics(Prediction((logits.numpy(), [1.0, 2.0, 3.0, 6.0]), [0, 1, 1, 1]))
    assert result["accuracy"] == 0.75
    assert result["nats_per_image_unconditional"] == 3
    assert math.isclose(result["accuracy_stderr"], 0.25)  # sample deviation 0.5, over the root of 4
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 1])).item()
    assert math.isclose(result["cross_entropy"], expected, rel_tol=1e-6)


def test_two_half_batches_make_the_step_of_a_whole_one(split, tiny_processor, tmp_path):
    """The Trainer must divide the loss itself: this model does not know the number of items in the whole batch."""
    weights = []
    for batch, steps in ((16, 1), (8, 2)):
        args = IGPTTrainingArguments(
            output_dir=str(tmp_path / str(batch)),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=1,
            **{"use_cpu": True, "disable_tqdm": True, "use_muon": False, "ema_decay": 0, "optim": "sgd"},
            **{"learning_rate": 1.0, "warmup_steps": 0, "eval_strategy": "no", "save_strategy": "no"},
            **{"load_best_model_at_end": False, "early_stopping_patience": 1, "max_grad_norm": 0},
        )
        torch.manual_seed(0)
        model = IGPTForImageClassification(IGPTConfig(image_size=8, num_hidden_layers=1, num_labels=3))
        before = model.classifier.weight.detach().clone()
        trainer = make_trainer(model, args, {"train": split, "validation": split}, tiny_processor)
        trainer.pop_callback(PatientEarlyStopping)  # nothing is evaluated here
        trainer.train()
        weights.append(model.classifier.weight.detach() - before)
    assert weights[0].abs().max() > 1e-3
    assert torch.allclose(*weights, rtol=1e-3, atol=1e-6)
