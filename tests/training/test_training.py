"""Training: exact numbers, the same weights after a resume, and no file of another run lost."""

import math
import shutil
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState, set_seed

from helpers.training import (
    BY_FOUR_STEPS,
    RANDOM_PARTS,
    arguments,
    assert_equal_weights,
    logged,
    new_trainer,
    random_split,
)
from igpt_hf import (
    PRESETS,
    DataError,
    IGPTConfig,
    IGPTError,
    IGPTForCausalImageModeling,
    IGPTImageProcessor,
    load_splits,
    tokenize,
)
from igpt_hf.data.augmentation import NewImages
from igpt_hf.data.tokenized import TokenDataset, collate
from igpt_hf.distributed import use_all_cores
from igpt_hf.model.tokens import tokens_to_pixels
from igpt_hf.plots import sample_sheet
from igpt_hf.training.arguments import LEARNING_RATES, METRICS, IGPTTrainingArguments, parse_arguments, unused_flags
from igpt_hf.training.callbacks import SampleSheetCallback, Stopwatch
from igpt_hf.training.checkpoints import last_complete_checkpoint
from igpt_hf.training.metrics import LossHistory, classification_metrics, likelihood_metrics, nats_per_image
from igpt_hf.training.optimizer import MuonAdamW
from igpt_hf.training.results import best_evaluation
from igpt_hf.training.stopping import end_reached
from igpt_hf.training.trainer import few_steps_hint, make_trainer


@pytest.fixture(scope="module")
def splits():
    """48 images are 6 steps of 8; 21 do not fill their last batch."""
    return {"train": random_split(48), "validation": random_split(21, seed=1), "test": random_split(8, seed=2)}


# --- data -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_the_prompts_and_the_tokens_in_the_order_asked_for(splits):
    config = IGPTConfig(image_size=8, num_labels=3)
    data = TokenDataset(splits["train"], config)
    batch = collate(data.__getitems__([5, 0, 5]))
    assert batch["input_ids"].shape == (3, 17)
    assert batch["input_ids"][:, 0].tolist() == [16 + 2, 16 + 0, 16 + 2]
    assert batch["labels"][:, 0].tolist() == [-100] * 3
    assert batch["input_ids"][1, 1:].tolist() == splits["train"][0]["tokens"]
    assert torch.equal(batch["labels"][:, 1:], batch["input_ids"][:, 1:])
    assert batch["use_cache"] is False
    assert torch.equal(data[5]["input_ids"], batch["input_ids"][0])
    assert len(data) == 48


@pytest.mark.parametrize("patch_size", [1, 2, 3, 4])
def test_tokens_of_every_patch_size_pass_unchanged(patch_size):
    config = IGPTConfig(image_size=12, patch_size=patch_size, neighborhood_radius=1, num_labels=3)
    split = random_split(20, num_tokens=config.num_image_tokens, vocab_size=config.vocab_size)
    batch = TokenDataset(split, config).__getitems__(range(20))
    assert batch["input_ids"][:, 1:].tolist() == split["tokens"][:]


def test_class_dropout_depends_on_seed_epoch_and_index_alone(splits):
    config = IGPTConfig(image_size=8, num_labels=3)

    def untold(epoch, seed=1, dropout=0.3, order=None):
        data = TokenDataset(splits["train"], config, class_dropout_prob=dropout, seed=seed)
        data.choose_epoch(epoch)
        torch.rand(epoch)  # no draw from the global state may matter
        order = range(48) if order is None else order
        drawn = {index: data[index]["input_ids"][0].item() == config.start_token_id for index in order}
        return [drawn[index] for index in range(48)]

    assert untold(2) == untold(2) == untold(2, order=reversed(range(48)))
    assert untold(0) != untold(1) != untold(2)
    assert untold(2) != untold(2, seed=2)
    assert not any(untold(2, dropout=0))
    assert all(untold(2, dropout=1))


def test_class_dropout_has_its_rate():
    n, rate = 30_000, 0.1
    config = IGPTConfig(image_size=2, neighborhood_radius=0, num_labels=3)
    split = random_split(n, num_tokens=1)
    data = TokenDataset(split, config, class_dropout_prob=rate)
    prompts = data.__getitems__(range(n))["input_ids"][:, 0]
    share = (prompts == config.start_token_id).double().mean().item()
    assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / n)
    told = prompts[prompts != config.start_token_id]
    assert set(told.tolist()) == {16, 17, 18}


@pytest.fixture(scope="module")
def gray_split():
    """Gray 8x8 images, as `igpt_hf.data.tokenized.tokenize` leaves them for binarize="stochastic"."""
    levels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=3))
    rows = {"image": [PIL.Image.fromarray(picture) for picture in levels], "label": [i % 3 for i in range(30)]}
    processor = IGPTImageProcessor(image_size=8, num_labels=3, binarize="stochastic", invert="never")
    splits = datasets.DatasetDict(validation=datasets.Dataset.from_dict(rows, features=features))
    return levels, tokenize(splits, processor)["validation"], processor


@pytest.mark.parametrize("persistent", [False, True])
def test_each_evaluation_sees_the_same_pixels(gray_split, tmp_path, persistent):
    _, split, processor = gray_split
    model = IGPTForCausalImageModeling(IGPTConfig(image_size=8, num_labels=3, num_hidden_layers=1))
    torch.nn.init.normal_(model.lm_head.weight)  # which begins at zero: all images would be equally likely
    args = arguments(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=persistent)
    trainer = make_trainer(model, args, {"train": split, "validation": split, "test": split}, processor)
    first, again, once_more = (trainer.evaluate() for _ in range(3))
    key = "eval_validation_nats_per_image"
    assert first[key] == again[key] == once_more[key]


def test_pixels_drawn_by_chance_are_new_in_each_epoch_and_the_same_in_each_run(gray_split):
    levels, split, processor = gray_split
    config = IGPTConfig(image_size=8, num_labels=3)

    def pixels(epoch, seed=1):
        data = TokenDataset(split, config, seed=seed)
        if epoch is not None:  # validation and test are not told of epochs
            data.choose_epoch(epoch)
        return processor.decode_pixels(data.__getitems__(range(30))["input_ids"])

    assert np.array_equal(pixels(None), pixels(None))
    assert np.array_equal(pixels(3), pixels(3))
    assert not np.array_equal(pixels(3), pixels(4))
    assert not np.array_equal(pixels(3), pixels(3, seed=2))
    n, probability = 300, levels / 255
    share = np.mean([pixels(epoch) for epoch in range(n)], axis=0)
    deviation = (share - probability) / np.sqrt(probability * (1 - probability) / n + 1e-12)
    assert abs(deviation[(levels > 20) & (levels < 235)]).max() < 4.5  # the largest of 1,600 standard normal numbers


def test_runs_with_one_evaluation_seed_are_measured_on_the_same_pixels_and_trained_on_their_own(gray_split, tmp_path):
    _, split, processor = gray_split
    config = IGPTConfig(image_size=8, num_labels=3, num_hidden_layers=1)

    def pixels(seed, **options):
        splits = {"train": split, "validation": split}
        model = IGPTForCausalImageModeling(config)
        args = arguments(tmp_path / str(seed), seed=seed)
        trainer = make_trainer(model, args, splits, processor, **options)
        data = [trainer.train_dataset, trainer.eval_dataset["train"], trainer.eval_dataset["validation"]]
        return [processor.decode_pixels(part.__getitems__(range(30))["input_ids"]).tolist() for part in data]

    (train, *evaluated), (other_train, *other_evaluated) = pixels(1, evaluation_seed=42), pixels(2, evaluation_seed=42)
    assert evaluated == other_evaluated
    assert train != other_train
    assert pixels(1)[1:] != pixels(2)[1:]
    assert pixels(42)[1:] == evaluated


# --- metrics --------------------------------------------------------------------------------------------------------


def test_nats_of_each_image_are_exact_though_the_last_batch_is_uneven(splits, tiny_model, tiny_processor, tmp_path):
    model = tiny_model()
    trainer = make_trainer(model, arguments(tmp_path), splits, tiny_processor)
    metrics = trainer.evaluate(trainer.eval_dataset["validation"], metric_key_prefix="v")
    ids = trainer.eval_dataset["validation"].__getitems__(range(21))["input_ids"]
    nats = -model.log_likelihood(ids)
    assert metrics["v_nats_per_image"] == pytest.approx(nats.mean().item(), rel=1e-6)
    assert metrics["v_nats_per_image_stderr"] == pytest.approx((nats.std() / math.sqrt(21)).item(), rel=1e-5)
    assert metrics["v_bits_per_pixel"] == pytest.approx(nats.mean().item() / 64 / math.log(2), rel=1e-6)
    assert ids[:, 0].max() < model.config.start_token_id  # all classes are told


def test_no_image_is_left_out_of_an_evaluation(splits, tiny_model, tiny_processor, tmp_path):
    trainer = make_trainer(tiny_model(), arguments(tmp_path, dataloader_drop_last=True), splits, tiny_processor)
    assert len(splits["validation"]) % trainer.args.per_device_eval_batch_size
    ids = trainer.eval_dataset["validation"].__getitems__(range(len(splits["validation"])))["input_ids"]
    metrics = trainer.evaluate(trainer.eval_dataset["validation"], metric_key_prefix="v")
    assert metrics["v_nats_per_image"] == pytest.approx(-trainer.model.log_likelihood(ids).mean().item(), rel=1e-6)
    assert trainer.args.dataloader_drop_last


def test_nats_are_summed_per_image_over_what_is_predicted():
    logits = torch.zeros(2, 4, 16)
    logits[1, 0, 5] = math.log(16)  # 5 has probability 16 / 31 at the first place of the second image
    labels = torch.tensor([[-100, 1, 2, 3], [-100, 5, 2, -100]])
    expected = [3 * math.log(16), math.log(31 / 16) + math.log(16)]
    assert nats_per_image(logits, labels).tolist() == pytest.approx(expected, rel=1e-6)
    metrics = likelihood_metrics(num_pixels=4)(type("Prediction", (), {"predictions": np.array([2.0, 4.0])}))
    assert metrics == pytest.approx(
        {"nats_per_image": 3, "nats_per_image_stderr": 1, "bits_per_pixel": 3 / 4 / math.log(2)}
    )


def evaluation(step, **nats) -> list[dict]:
    return [{"step": step, "epoch": step / 10, f"eval_{split}_nats_per_image": value} for split, value in nats.items()]


@pytest.mark.parametrize(
    ("train", "validation", "best", "monotonic"),
    [
        ([5, 4, 3], [6, 5, 4], 2, (True, True)),
        ([5, 4, 3, 2, 9], [6, 5, 4, 4.5, 4.6], 2, (True, True)),  # what follows the best does not count
        ([5, 5, 3], [6, 5, 4], 2, (False, True)),
        ([5, 4, 3], [6, 7, 4], 2, (True, False)),
        ([5, 4], [3, 4], 0, (True, True)),
    ],
)
def test_the_history_knows_the_best_evaluation_and_whether_losses_fell_up_to_it(train, validation, best, monotonic):
    log = [{"step": 3, "epoch": 0.3, "loss": 9.9}]
    for step, (a, b) in enumerate(zip(train, validation, strict=True), start=1):
        log += evaluation(10 * step, train=a, validation=b)
    log += [{"step": 99, "epoch": 9.9, "test_nats_per_image": 1.0}, *evaluation(100, validation=0.1)]  # no pair
    history = LossHistory.from_log(log)
    assert history.epochs == list(range(1, len(train) + 1))
    assert (history.train, history.validation, history.best) == (train, validation, best)
    assert (history.is_monotonic("train"), history.is_monotonic("validation")) == monotonic


# --- optimizer ------------------------------------------------------------------------------------------------------


def small_steps(model, optimizer, n: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        ids = torch.randint(16, (8, 17), generator=generator)
        ids[:, 0] = 16
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids.where(ids < 16, -100), use_cache=False).loss.backward()
        optimizer.step()


def test_muon_and_adamw_share_out_all_parameters_each_to_one_of_them(tiny_model):
    model = tiny_model()
    optimizer = MuonAdamW(model, lr=0.01, muon_lr=0.02)
    groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert sorted(groups[0] + groups[1]) == sorted(id(p) for p in model.parameters())
    muon = {name for name, p in model.named_parameters() if id(p) in groups[0]}
    assert muon == {
        f"model.layers.{layer}.{name}.weight"
        for layer in range(2)
        for name in ("attention.qkv_proj", "attention.out_proj", "mlp.up_proj", "mlp.down_proj")
    }


def test_one_step_moves_all_parameters(tiny_model):
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    small_steps(model, MuonAdamW(model, lr=0.01, muon_lr=0.02), 1)
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_a_frozen_parameter_stays_as_it_is(tiny_model):
    model = tiny_model()
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before = frozen.clone()
    small_steps(model, MuonAdamW(model, lr=0.01, muon_lr=0.02), 1)
    assert torch.equal(frozen, before)


@pytest.mark.parametrize("trained", ["lm_head", "layers"])
def test_what_is_frozen_may_leave_one_of_the_two_optimizers_nothing_to_train(tiny_model, trained):
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    small_steps(model, MuonAdamW(model, lr=0.01, muon_lr=0.02), 1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != (trained in name)


def test_a_saved_optimizer_goes_on_bit_by_bit(tiny_model, tmp_path):
    model = tiny_model()
    optimizer = MuonAdamW(model, lr=0.01, muon_lr=0.02, weight_decay=0.1)
    small_steps(model, optimizer, 3)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    small_steps(model, optimizer, 3, seed=1)

    state = torch.load(tmp_path / "state.pt")
    other = tiny_model(seed=7)
    restored = MuonAdamW(other, lr=0.5, muon_lr=0.5)
    other.load_state_dict(state["model"])
    restored.load_state_dict(state["optimizer"])
    small_steps(other, restored, 3, seed=1)
    assert_equal_weights(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("part", [0, 1], ids=["muon", "adamw"])
@pytest.mark.parametrize("reload", [False, True])
def test_a_schedule_reaches_both_parts(tiny_model, part, reload):
    model = tiny_model()
    optimizer = MuonAdamW(model, lr=0.01, muon_lr=0.02)
    if reload:
        optimizer.load_state_dict(optimizer.state_dict())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _: float(part == 0), lambda _: float(part == 1)])
    assert [group["lr"] for group in optimizer.param_groups] == [0.02 * (part == 0), 0.01 * (part == 1)]
    before = {p: p.detach().clone() for group in optimizer.param_groups for p in group["params"]}
    small_steps(model, optimizer, 1)
    schedule.step()
    for index, group in enumerate(optimizer.param_groups):
        assert {torch.equal(p, before[p]) for p in group["params"]} == {index != part}


@pytest.mark.parametrize("use_muon", [True, False])
def test_the_trainer_uses_the_optimizer_and_the_rates_asked_for(splits, tiny_processor, tmp_path, use_muon):
    rates = {"learning_rate": 0.003, "muon_learning_rate": 0.07}
    others = {"adam_beta1": 0.81, "adam_beta2": 0.93, "adam_epsilon": 3e-7, "weight_decay": 0.013}
    trainer = new_trainer(tmp_path, splits, tiny_processor, use_muon=use_muon, **rates, **others)
    trainer.create_optimizer_and_scheduler(num_training_steps=12)
    assert isinstance(trainer.optimizer, MuonAdamW) == use_muon
    rates = [group["initial_lr"] for group in trainer.optimizer.param_groups]
    assert rates == ([0.07, 0.003] if use_muon else [0.003, 0.003])
    *_, adamw = trainer.optimizer.parts if use_muon else [trainer.optimizer]
    assert {group["betas"] for group in adamw.param_groups} == {(0.81, 0.93)}
    assert {group["eps"] for group in adamw.param_groups} == {3e-7}
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.013
    trained = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in trainer.model.parameters())


# --- trainer --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(splits, tiny_processor, tmp_path_factory):
    """Two epochs of six steps without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = new_trainer(folder, splits, tiny_processor, config=RANDOM_PARTS, **BY_FOUR_STEPS)
    trainer.train()
    return trainer


@pytest.mark.parametrize("hidden_size", [16, 144], ids=["in_kernels", "in_modules"])
def test_two_steps_of_training_make_better_guesses_than_chance(splits, tiny_processor, tmp_path, hidden_size):
    trainer = new_trainer(tmp_path, splits, tiny_processor, config={"hidden_size": hidden_size}, max_steps=2)
    weights = trainer.model.model.layers[0].mlp.up_proj.weight
    before = weights.detach().clone()
    trainer.train()
    losses = [entry["eval_train_loss"] for entry in trainer.state.log_history if "eval_train_loss" in entry]
    assert losses and 0 < losses[-1] < math.log(16)  # of 16 tokens, each as likely: the head starts at zero
    assert not torch.equal(weights, before)


@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one_bit_by_bit(
    splits, tiny_processor, whole_run, tmp_path, step
):
    checkpoint = f"checkpoint-{step}"
    shutil.copytree(f"{whole_run.args.output_dir}/{checkpoint}", tmp_path / checkpoint)
    resumed = new_trainer(tmp_path, splits, tiny_processor, config=RANDOM_PARTS, **BY_FOUR_STEPS)
    torch.rand(100)
    resumed.train(resume_from_checkpoint=str(tmp_path / checkpoint))
    last = "checkpoint-12/model.safetensors"
    assert_equal_weights(load_file(f"{whole_run.args.output_dir}/{last}"), load_file(tmp_path / last))
    assert logged(resumed) == logged(whole_run)
    assert_equal_weights(whole_run.model.state_dict(), resumed.model.state_dict())  # the best


def test_drawing_samples_does_not_change_the_training(splits, tiny_processor, whole_run, tmp_path):
    sheets = SampleSheetCallback(lambda model: sample_sheet(model, tiny_processor, per_class=2))
    trainer = new_trainer(tmp_path, splits, tiny_processor, [sheets], config=RANDOM_PARTS, **BY_FOUR_STEPS)
    trainer.train()
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "step-000004.png",
        "step-000008.png",
        "step-000012.png",
    ]
    assert logged(trainer) == logged(whole_run)


def test_the_data_set_is_told_of_each_epoch(splits, whole_run):
    expected = TokenDataset(splits["train"], whole_run.model.config, class_dropout_prob=0.5, seed=whole_run.args.seed)
    expected.choose_epoch(1)  # the last of two
    batches = [data.__getitems__(range(48))["input_ids"] for data in (whole_run.train_dataset, expected)]
    assert torch.equal(*batches)


def test_both_losses_are_measured_at_the_same_steps_on_as_many_images(whole_run):
    history = LossHistory.from_log(whole_run.state.log_history)
    assert history.epochs == pytest.approx([4 / 6, 8 / 6, 2])
    assert {name: len(data) for name, data in whole_run.eval_dataset.items()} == {"train": 21, "validation": 21}
    of_train = whole_run.eval_dataset["train"].__getitems__(range(21))["input_ids"]
    assert of_train[:, 0].max() < whole_run.model.config.start_token_id  # all classes are told, also in training
    assert whole_run.state.best_metric == history.validation[history.best]
    best = -whole_run.model.log_likelihood(of_train).mean().item()
    assert best == pytest.approx(history.train[history.best], rel=1e-6)


def test_the_evaluation_that_is_reported_is_that_of_the_model_that_is_kept(
    splits, tiny_processor, tmp_path, whole_run
):
    history = LossHistory.from_log(whole_run.state.log_history)
    assert history.steps == [4, 8, 12]
    assert best_evaluation(whole_run, history) == history.best
    for loads_best, best, kept in ((True, None, 2), (False, "a/checkpoint-8", 2), (True, "a/checkpoint-8", 1)):
        args = SimpleNamespace(load_best_model_at_end=loads_best)
        state = SimpleNamespace(best_model_checkpoint=best, global_step=12)  # None: the best was not saved
        assert best_evaluation(SimpleNamespace(args=args, state=state), history) == kept


@pytest.mark.parametrize(
    ("flags", "num_images", "words"),
    [
        ("", 108, "108 images in batches of 32 make 200 steps"),
        ("--num_train_epochs 2 --gradient_accumulation_steps 2", 640, "batches of 64 make 20 steps"),
        ("--per_device_train_batch_size 8", 108, None),
        ("--max_steps 5", 108, None),  # on purpose
        ("", 19_000, None),
    ],
)
def test_few_steps_are_said_to_be_few(flags, num_images, words):
    hint = few_steps_hint(parse_arguments(flags.split())[2], num_images)
    assert hint is None if words is None else words in hint


@pytest.mark.parametrize(
    ("flags", "metric", "greater"),
    [
        ("", "eval_validation_nats_per_image", False),
        ("--metric_for_best_model validation_nats_per_image", "eval_validation_nats_per_image", False),
        ("--task classification", "eval_validation_accuracy", True),
        ("--task classification --metric_for_best_model eval_validation_accuracy", "eval_validation_accuracy", True),
        ("--task classification --metric_for_best_model validation_accuracy", "eval_validation_accuracy", True),
        ("--metric_for_best_model validation_loss --greater_is_better true", "eval_validation_loss", True),
    ],
)
def test_the_metric_says_whether_more_of_it_is_better(flags, metric, greater):
    args = parse_arguments(flags.split())[2]
    assert (args.metric_for_best_model, args.greater_is_better) == (metric, greater)


def test_accumulated_small_batches_equal_a_large_one(splits, tiny_processor, tmp_path):
    settings = {"use_muon": False, "optim": "sgd", "learning_rate": 0.5, "num_train_epochs": 1, "max_grad_norm": 0}
    weights = []
    for batch, accumulation in ((8, 1), (2, 4)):
        trainer = new_trainer(
            tmp_path / str(batch), splits, tiny_processor, **settings,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        weights.append(dict(trainer.model.named_parameters()))
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-6), name
    assert not torch.allclose(weights[0]["lm_head.weight"], start["lm_head.weight"], atol=1e-3)


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_after_evaluations_without_a_better_loss(
    splits, tiny_processor, tmp_path, patience, library_warnings
):
    rates = {"learning_rate": 0.0, "muon_learning_rate": 0.0}  # the second evaluation is as good as the first
    trainer = new_trainer(
        tmp_path, splits, tiny_processor, num_train_epochs=9, early_stopping_patience=patience, **rates
    )
    trainer.train()
    assert trainer.state.epoch == 1 + patience
    assert "early stopping" not in library_warnings.text


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_training_stops_when_its_minutes_are_over_and_goes_on_from_there(splits, tiny_processor, tmp_path, strategy):
    def train(folder, **overrides):
        flags = {"eval_strategy": strategy, "save_strategy": strategy, "eval_steps": 4, "save_steps": 4}
        trainer = new_trainer(tmp_path / folder, splits, tiny_processor, **flags, **overrides)
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(tmp_path / folder))
        steps = [log["step"] for log in trainer.state.log_history if "eval_validation_nats_per_image" in log]
        return trainer, steps

    stopped, evaluations = train("limited", max_minutes=1e-9)
    assert (stopped.state.global_step, evaluations) == (1, [1])
    again, evaluations = train("limited", max_minutes=1e-9)  # it has had its time
    assert (again.state.global_step, evaluations) == (1, [1])
    _, evaluations = train("limited", max_minutes=10)
    _, evaluations_of_whole = train("whole")
    assert evaluations == [1, *evaluations_of_whole]
    last = [load_file(tmp_path / folder / "checkpoint-12" / "model.safetensors") for folder in ("limited", "whole")]
    assert_equal_weights(*last)


def test_patience_0_never_stops(splits, tiny_processor, tmp_path):
    rates = {"learning_rate": 0.0, "muon_learning_rate": 0.0}  # no evaluation is better than the first
    trainer = new_trainer(tmp_path, splits, tiny_processor, num_train_epochs=4, early_stopping_patience=0, **rates)
    trainer.train()
    assert trainer.state.epoch == 4


def test_a_run_is_not_warned_of_what_was_asked_for(splits, tiny_processor, tmp_path, library_warnings):
    """transformers warns where the best model is not loaded, and where epochs are shorter than a second."""
    settings = {"load_best_model_at_end": False, "save_total_limit": 2, "num_train_epochs": 4}
    trainer = new_trainer(tmp_path, splits, tiny_processor, **settings)
    trainer.train()
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert f"checkpoint-{trainer.state.global_step}" in left and len(left) == 2
    assert [record for record in library_warnings.records if record.name.startswith("transformers")] == []


@pytest.mark.parametrize("length", [{"max_steps": 5}, {"num_train_epochs": 1.5}], ids=str)
def test_a_run_that_has_taken_its_last_step_takes_no_other_when_it_is_resumed(
    splits, tiny_processor, tmp_path, length
):
    whole = new_trainer(tmp_path, splits, tiny_processor, **length)
    whole.train()
    steps = whole.state.global_step
    assert steps == length.get("max_steps", 9)  # both in the middle of an epoch
    resumed = new_trainer(tmp_path, splits, tiny_processor, **length)
    resumed.train(resume_from_checkpoint=last_complete_checkpoint(tmp_path))
    assert resumed.state.global_step == steps
    assert_equal_weights(whole.model.state_dict(), resumed.model.state_dict())
    assert logged(resumed) == logged(whole)


@pytest.mark.slow
def test_a_second_training_of_one_trainer_is_that_of_a_new_one_with_the_same_weights(splits, tiny_processor, tmp_path):
    trainer = new_trainer(tmp_path / "one", splits, tiny_processor)
    trainer.train()
    other = new_trainer(tmp_path / "other", splits, tiny_processor)
    other.model.load_state_dict(trainer.model.state_dict())
    trainer.train()
    other.train()
    assert_equal_weights(trainer.model.state_dict(), other.model.state_dict())
    assert logged(trainer) == logged(other)


@pytest.mark.slow
def test_a_second_training_has_its_patience_and_its_minutes_again(splits, tiny_processor, tmp_path):
    rates = {"learning_rate": 0.0, "muon_learning_rate": 0.0}
    trainer = new_trainer(tmp_path, splits, tiny_processor, num_train_epochs=9, early_stopping_patience=2, **rates)
    for _ in range(2):
        trainer.train()
        assert trainer.state.epoch == 3
    stopwatch = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Stopwatch))
    stopwatch.seconds_before = 1e9
    trainer.train()
    assert stopwatch.seconds < 1e3


class OutOfMemory(TrainerCallback):
    """The first step of the first attempt does not fit into memory."""

    happened = False

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.happened:
            self.happened = True
            raise RuntimeError("CUDA out of memory.")


@pytest.mark.slow
def test_a_smaller_batch_after_running_out_of_memory_trains_as_if_it_had_been_asked_for(
    splits, tiny_processor, tmp_path
):
    crashed = new_trainer(tmp_path / "a", splits, tiny_processor, [OutOfMemory()], auto_find_batch_size=True)
    crashed.train()
    size = crashed._train_batch_size  # nine tenths of 8, or with an older accelerate the half
    assert size in (7, 4)
    asked = new_trainer(tmp_path / "b", splits, tiny_processor, per_device_train_batch_size=size)
    asked.train()
    assert_equal_weights(crashed.model.state_dict(), asked.model.state_dict())
    assert logged(crashed) == logged(asked)


class Averages(TrainerCallback):
    """The averaged weights before the first step."""

    def __init__(self):
        self.seen = {}

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.seen:
            with self.trainer.ema_weights():
                self.seen = {name: weight.clone() for name, weight in self.trainer.model.state_dict().items()}


@pytest.mark.slow
def test_running_out_of_memory_after_a_resume_loses_neither_the_weights_nor_their_average(
    splits, tiny_processor, tmp_path
):
    new_trainer(tmp_path, splits, tiny_processor, num_train_epochs=1).train()
    averages = Averages()
    callbacks = [OutOfMemory(), averages]
    settings = {"auto_find_batch_size": True, "save_total_limit": None}
    resumed = new_trainer(tmp_path, splits, tiny_processor, callbacks, **settings)
    averages.trainer = resumed
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    expected = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert_equal_weights({name: averages.seen[name] for name in expected}, expected)


class Poison(TrainerCallback):
    """Make a weight not a number after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                model.lm_head.weight[0, 0] = math.nan


@pytest.mark.parametrize(("step", "checkpoint"), [(1, "none"), (7, "checkpoint-6")])
def test_a_loss_that_is_not_a_number_stops_and_names_the_step_and_the_checkpoint(
    splits, tiny_processor, tmp_path, step, checkpoint
):
    trainer = new_trainer(tmp_path, splits, tiny_processor, [Poison(step)], logging_steps=1)
    with pytest.raises(FloatingPointError, match=f"nan at step {step + 1}.*complete checkpoint: .*{checkpoint}"):
        trainer.train()


def test_a_gradient_that_is_not_a_number_stops_before_it_gets_into_the_weights(splits, tiny_processor, tmp_path):
    trainer = new_trainer(tmp_path, splits, tiny_processor)
    weight = trainer.model.lm_head.weight
    weight.register_hook(lambda grad: grad * math.nan if trainer.state.global_step == 5 else grad)
    with pytest.raises(FloatingPointError, match=r"training loss is \d.* norm nan at step 6.*checkpoint: none"):
        trainer.train()  # step 6 would have saved a checkpoint
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


# --- arguments ------------------------------------------------------------------------------------------------------


def test_flags_of_all_three_kinds_are_parsed_and_unset_fields_leave_the_preset_alone():
    of_data = ["--data", "digits.cdb", "--max_images", "600", "--skip_bad_images"]
    of_config = ["--preset", "xs", "--hidden_size", "32", "--class_dropout_prob", "0"]
    of_training = ["--learning_rate", "1e-3", "--use_muon", "false", "--output_dir", "there", "--warmup_steps", "10"]
    data, config, args = parse_arguments([*of_data, *of_training, *of_config])
    assert (data.data, data.max_images, data.skip_bad_images) == ("digits.cdb", 600, True)
    assert (config.preset, config.hidden_size, config.class_dropout_prob) == ("xs", 32, 0)
    assert config.num_hidden_layers is None
    assert (args.learning_rate, args.use_muon, args.output_dir, args.warmup_steps) == (1e-3, False, "there", 10)


def test_every_field_of_the_configuration_is_a_flag():
    _, config, args = parse_arguments([])
    missing = {name for name in IGPTConfig.__annotations__ if name not in vars(config) | vars(args)}
    assert missing == {"tie_word_embeddings", "nats_quantiles"}  # the head is never tied; quantiles are measured


def test_flags_win_over_the_yaml_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: a.cdb\nlearning_rate: 1.0e-3\nuse_muon: false\nseed: 3\nhidden_size: 24\n# a comment\n")
    data, config, args = parse_arguments(["--seed", "5", "--config", str(path), "--data", "b.cdb"])
    assert (data.data, config.hidden_size) == ("b.cdb", 24)
    assert (args.seed, args.learning_rate, args.use_muon) == (5, 1e-3, False)
    assert args.num_train_epochs == IGPTTrainingArguments.num_train_epochs


def test_null_in_the_yaml_file_is_none(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("save_total_limit: null\nhidden_size: null\n")
    for flags in (["--config", str(path)], [f"--config={path}"]):
        _, config, args = parse_arguments(flags)
        assert args.save_total_limit is None
        assert config.hidden_size is None


def test_flags_are_not_to_be_shortened_and_evaluation_not_to_be_left_out(tmp_path, capsys):
    for flags in (
        ["--learning_rat", "0.1"],
        ["--conf", "run.yaml"],
        ["--eval_strategy", "no", "--save_strategy", "no"],
    ):
        with pytest.raises((SystemExit, ValueError)) as error:
            parse_arguments(flags)
        assert flags[0] in str(error.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--max_minutes 0", "--max_minutes 0.0 leaves no time to train"),
        ("--num_train_epochs 0", "--num_train_epochs 0.0 cannot be trained"),
        ("--num_train_epochs -1", "--num_train_epochs -1.0 cannot be trained"),
        ("--num_train_epochs inf", "--num_train_epochs inf cannot be trained"),
        ("--max_steps 0", "--max_steps 0 leaves nothing to train"),
        ("--max_steps -2", "--max_steps -2 leaves nothing to train"),
        ("--early_stopping_patience -1", "--early_stopping_patience must be at least 0, got -1"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size must be at least 1, got 0"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps must be at least 1, got 0"),
        ("--learning_rate nan", "--learning_rate must be at least 0, got nan"),
        ("--ema_decay 1", "--ema_decay must be below 1"),
        ("--num_threads 0", "--num_threads must be at least 1, got 0"),
        ("--eval_delay 3 --num_train_epochs 2", "--eval_delay 3.0 is later than the end"),
        ("--eval_delay 9 --eval_strategy steps --save_strategy steps --max_steps 8", "--eval_delay 9.0 is later"),
        ("--eval_strategy no", "--eval_strategy no leaves nothing to choose"),
        ("--eval_strategy steps", "--eval_strategy steps and --save_strategy epoch: .* both must be the same"),
        ("--seed -1", "--seed must be at least 0, got -1"),
        ("--split_seed 4294967296", "--split_seed must be at most 4294967295, got 4294967296"),
        ("--num_threads 100000", "--num_threads must be at most 1024, got 100000"),
        ("--label_smoothing_factor 1.5", "--label_smoothing_factor must be at most 1, got 1.5"),
        ("--augment inf", "--augment must be finite, got inf"),
        ("--augment_fade_from 0.9", "--augment_fade_from must be at most 0.85, got 0.9"),
        ("--built_in_guidance inf", "--built_in_guidance must be finite, got inf"),
        ("--warmup_steps inf", "--warmup_steps must be finite, got inf"),
        ("--remove_unused_columns true", "--remove_unused_columns true would remove what"),
        ("--label_names foo bar", "--label_names foo bar names no part of a batch"),
        ("--output_dir=", "--output_dir is empty: name a folder"),
        ("--push_to_hub true --hub_strategy every_save", "--hub_strategy every_save would upload the whole folder"),
        ("--report_to clearml", "--report_to clearml: clearml is not installed"),
        ("--prediction_loss_only true", "nothing to choose the best model by"),
        ("--metric_for_best_model eval_loss", "eval_loss is not measured; there are validation_nats_per_image, "),
        ("--metric_for_best_model accuracy", "eval_accuracy is not measured; .* validation_loss, train_nats_per_imag"),
        ("--task classification --metric_for_best_model loss", "eval_loss is not measured; .* validation_accuracy, "),
    ],
)
def test_what_cannot_be_trained_or_chosen_by_is_refused_at_the_start(flags, message):
    with pytest.raises(IGPTError, match=message) as error:
        parse_arguments(flags.split())
    assert not isinstance(error.value, DataError)  # that is for files and images


def test_the_metrics_to_choose_by_are_those_that_are_measured(splits, tiny_processor, tmp_path):
    trainer = new_trainer(tmp_path, splits, tiny_processor)
    measured = trainer.evaluate()
    assert {f"eval_{split}_{name}" for split in ("train", "validation") for name in METRICS["generation"]} <= set(
        measured
    )
    of_classifier = SimpleNamespace(predictions=(np.zeros((2, 3)), np.zeros(2)), label_ids=np.zeros(2, dtype=int))
    assert set(METRICS["classification"]) - {"loss"} == {
        name for name in classification_metrics(of_classifier) if not name.endswith("stderr")
    }


@pytest.mark.parametrize(
    ("flags", "warnings"),
    [
        ("", []),
        ("--eval_steps 20", ["--eval_steps has no effect without --eval_strategy steps."]),
        ("--eval_steps=20 --eval_strategy steps --save_strategy steps --save_steps 20", []),
        (
            "--save-steps 500",
            ["--save_steps has no effect without --save_strategy steps."],
        ),  # the default, but asked for
        ("--max_steps 9 --num_train_epochs 2", ["--num_train_epochs has no effect beside --max_steps."]),
        ("--optim sgd", ["--optim has no effect without --use_muon false."]),
        ("--use_muon false --muon_learning_rate 1", ["--muon_learning_rate has no effect without --use_muon true."]),
        ("--preset stock-xxs --use_muon true", ["--use_muon has no effect with --preset stock-xxs."]),
        ("--shuffle_buffer 9", ["--shuffle_buffer has no effect without --streaming true."]),
        (
            "--built_in_guidance 2 --class_dropout_prob 0",
            ["--built_in_guidance has no effect where no class or no likelihood is learned, or no class dropped."],
        ),
        ("--built_in_guidance 1 --class_dropout_prob 0", []),
        ("--hub_model_id a/b", ["--hub_model_id has no effect without --push_to_hub true."]),
    ],
)
def test_flags_that_change_nothing_are_named(tmp_path, flags, warnings):
    assert unused_flags(*parse_arguments(flags.split()), flags.split()) == warnings
    words = [word for flag in flags.replace("=", " ").split("--")[1:] for word in [flag.split()]]
    (tmp_path / "run.yaml").write_text(
        "".join(f"{name.replace('-', '_')}: {value}\n" for name, value in words) or "{}"
    )
    from_file = ["--config", str(tmp_path / "run.yaml")]
    assert unused_flags(*parse_arguments(from_file), from_file) == warnings


LONG_ENOUGH = {"max_steps": -1, "num_train_epochs": 30, "early_stopping_patience": 5, "max_minutes": None}


@pytest.mark.parametrize(
    ("asked", "end"),
    [
        ({}, None),
        ({"num_train_epochs": 4}, "epochs"),
        ({"num_train_epochs": 3}, "epochs"),
        ({"num_train_epochs": 4.5}, None),
        ({"max_steps": 24}, "max_steps"),
        ({"max_steps": 25, "num_train_epochs": 4}, None),  # max_steps counts where it is given
        ({"early_stopping_patience": 3}, "early_stopping"),
        ({"early_stopping_patience": 4}, None),
        ({"early_stopping_patience": 0}, None),
        ({"max_minutes": 2}, "max_minutes"),
        ({"max_minutes": 2.1}, None),
        ({"num_train_epochs": 4, "early_stopping_patience": 3, "max_minutes": 2}, "epochs"),
    ],
)
def test_the_end_of_a_run_is_the_first_that_was_asked_for(asked, end):
    """A run of 24 steps in 4 epochs and 2 minutes, whose last 3 evaluations were no better."""
    callbacks = {
        "PatientEarlyStopping": {"args": {}, "attributes": {"early_stopping_patience_counter": 3}},
        "Stopwatch": {"args": {}, "attributes": {"seconds_before": 120.0}},
    }
    state = TrainerState(global_step=24, epoch=4.0)
    state.stateful_callbacks = callbacks
    assert end_reached(SimpleNamespace(**LONG_ENOUGH | asked), state) == end


def test_an_unknown_flag_is_named_wherever_it_comes_from(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("color: red\n")
    for argv in (["--config", str(path)], ["--color", "red"]):
        with pytest.raises((SystemExit, IGPTError)) as error:
            parse_arguments(argv)
        assert "color" in str(error.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("", "flag: value"),
        ("- a\n- b\n", "flag: value"),
        ("model:\n  size: 3\n", "flag: value"),
        ("seed: [3\n", "flag: value"),
    ],
)
def test_a_yaml_file_that_is_missing_or_no_list_of_flags_is_refused(tmp_path, text, words):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(IGPTError, match=rf"run.yaml.*{words}"):
        parse_arguments(["--config", str(path)])


def test_the_threads_asked_for_are_used_and_else_shared_among_the_processes(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    assert use_all_cores(3) == 3 == torch.get_num_threads()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert use_all_cores() == 2 == torch.get_num_threads()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert use_all_cores() == 1


def test_gray_pictures_are_drawn_anew_in_each_epoch_and_the_same_for_the_same_epoch():
    config = IGPTConfig(image_size=8)
    gray = np.full((40, 64), 102, dtype=np.uint8)  # 0.4 of full gray
    gray[:, 0], gray[:, 1] = 0, 255
    split = datasets.Dataset.from_dict({"gray": gray, "label": [0] * 40})
    dataset = TokenDataset(split, config, seed=3)

    def tokens(epoch):
        dataset.choose_epoch(epoch)
        return dataset.__getitems__(range(40))["input_ids"][:, 1:]

    first = tokens(0)
    pixels = tokens_to_pixels(first.numpy(), config.patch_size, config.image_size).reshape(40, 64)
    assert (pixels[:, 0] == 0).all()
    assert (pixels[:, 1] == 1).all()
    assert abs(pixels[:, 2:].mean() - 0.4) < 0.05
    assert not torch.equal(tokens(1), first)
    assert torch.equal(tokens(0), first)


# --- images that are new in each epoch ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_on_new_images_that_is_resumed_within_an_epoch_with_a_worker_ends_like_one_that_is_not(tmp_path):
    digits = load_splits("synthetic", num_synthetic=60)
    processor = IGPTImageProcessor(image_size=8)
    new_images = NewImages(digits["train"], processor, seed=1, draws_digits=True, strength=0.04)

    def trainer(name, **options):
        args = arguments(tmp_path / name, **BY_FOUR_STEPS, **options)
        set_seed(args.seed)
        model = IGPTForCausalImageModeling(IGPTConfig(image_size=8, num_hidden_layers=1))
        return make_trainer(model, args, tokenize(digits, processor), processor, new_images=new_images)

    whole = trainer("whole")
    whole.train()
    assert whole.state.global_step == 2 * 5  # of 40 images: step 4 is within the first epoch
    assert torch.equal(whole.train_dataset.epoch, torch.tensor(1))
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    resumed = trainer("resumed", dataloader_num_workers=1, dataloader_persistent_workers=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-4"))
    assert logged(resumed) == logged(whole)
    assert_equal_weights(whole.model.state_dict(), resumed.model.state_dict())


def test_augmented_images_cannot_be_streamed():
    with pytest.raises(IGPTError, match="--augment .*--streaming"):
        parse_arguments(["--data", "x", "--streaming", "true", "--augment", "0.04"])


@pytest.mark.parametrize(("flags", "draws"), [("", True), ("--max_images 60", False), ("--data digits.cdb", False)])
def test_synthetic_digits_are_drawn_anew_unless_fewer_are_asked_for(flags, draws):
    assert parse_arguments(flags.split())[0].draws_digits is draws


# --- the learning rates of presets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "rates"),
    [
        ("", (1e-2, 2e-2)),
        ("--preset xs", (5e-3, 2e-2)),
        ("--preset=s", (2e-3, 1e-2)),
        ("--preset s --learning_rate 0.01", (1e-2, 1e-2)),
        ("--preset stock-xxs", (1e-2, 2e-2)),
    ],
)
def test_a_preset_has_its_learning_rates_and_a_flag_wins(flags, rates):
    args = parse_arguments(flags.split())[2]
    assert (args.learning_rate, args.muon_learning_rate) == rates


def test_a_preset_of_the_yaml_file_has_its_learning_rates_and_the_files_lines_win(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: s\nmuon_learning_rate: 0.03\n")
    args = parse_arguments(["--config", str(path)])[2]
    assert (args.learning_rate, args.muon_learning_rate) == (2e-3, 3e-2)


@pytest.mark.parametrize("content", [None, "[1]", "no JSON", '{"hidden_size": 17}'])
def test_a_checkpoint_has_the_learning_rates_of_the_preset_of_its_size_and_one_of_none_the_defaults(content, tmp_path):
    for preset, name in (("xs", "mnist-xs"), ("s", tmp_path / "s"), ("xxs", tmp_path / "other")):
        if preset == "s":
            IGPTConfig.from_preset("s").save_pretrained(name)
        elif preset == "xxs" and content is not None:
            name.mkdir()
            (name / "config.json").write_text(content)
        args = parse_arguments(["--model_name_or_path", str(name)])[2]
        rates = {name: getattr(args, name) for name in ("learning_rate", "muon_learning_rate")}
        assert rates == {"learning_rate": 1e-2, "muon_learning_rate": 2e-2} | LEARNING_RATES[preset]


def test_every_preset_has_learning_rates():
    assert list(LEARNING_RATES) == list(PRESETS)
