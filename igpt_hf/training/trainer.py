"""The Trainer of transformers for Image GPTs: `IGPTTrainer`, and `make_trainer`, which wires it.

Added to transformers' Trainer: Muon, EMA weights, sealed checkpoints, a stop at the first NaN or infinite loss, and
the exact likelihood per image as the metric that selects the best model.
"""

import contextlib
import json
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback

from ..data.augmentation import NewImages
from ..data.streaming import ShardedTokens, TokenStream
from ..data.tokenized import LabelDataset, TokenDataset, collate
from ..errors import IGPTError
from ..hub.push import push_folder, retry_hub_request
from ..model.configuration_igpt import IGPTConfig
from ..model.modeling_igpt import IGPTForCausalImageModeling, IGPTForImageClassification
from .arguments import IGPTTrainingArguments
from .callbacks import (
    EpochCallback,
    EvaluationLines,
    MovedRun,
    OneLineProgress,
    PatientEarlyStopping,
    SampleSheetCallback,
    Stopwatch,
)
from .checkpoints import last_complete_checkpoint, sealed_checkpoint
from .guidance import built_in_guidance_loss
from .losses import expected_loss
from .metrics import classification_metrics, likelihood_metrics, nats_per_image
from .optimizer import average_weights, muon_of_run, swap_average
from .run_settings import SETTINGS


logger = logging.getLogger(__name__)

FEW_STEPS = 500
GUIDED_FROM = 0.6  # from this part of the training on, guidance is built in: the start token is learned by then


class IGPTTrainer(Trainer):
    """The Trainer, with Muon if `--use_muon`, that stops at the first NaN or infinite loss.

    With `--ema_decay`, the EMA weights are evaluated, saved and kept as the best model. A checkpoint's
    model.safetensors holds the EMA weights, its optimizer.pt the weights themselves, and a resume swaps them back.
    """

    args: IGPTTrainingArguments
    run_settings: dict | None = None  # what checkpoints say of the run

    @property
    def learns_guidance(self) -> bool:
        """Whether guidance is built in late in this training: if a class and any class are learned, by likelihood."""
        config: Any = self.model.config
        return (
            self.args.built_in_guidance > 1
            and isinstance(self.model, IGPTForCausalImageModeling)
            and (config.num_labels > 1 and config.class_dropout_prob > 0)
            and (self.compute_loss_func is None and self.label_smoother is None)
        )

    @property
    def has_guidance(self) -> bool:
        """Whether guidance is built in at this step."""
        return self.learns_guidance and self.state.global_step >= GUIDED_FROM * self.state.max_steps

    def compute_loss(self, model, inputs, *args, **kwargs):
        """The mean NLL per token, with `token_probs` expected over them (`expected_loss`); late in a training with
        `--built_in_guidance`, that of `built_in_guidance_loss`."""
        probs = inputs.pop("token_probs", None)
        is_guided = model.training and self.has_guidance
        if (probs is None and not is_guided) or self.compute_loss_func is not None or self.label_smoother is not None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        vocab_size = self.model.config.vocab_size
        loss = partial(self.model.loss_function, vocab_size=vocab_size) if probs is None else expected_loss(probs)
        if is_guided:
            scale = self.args.built_in_guidance
            self.compute_loss_func = built_in_guidance_loss(model, inputs, self.model, scale, loss)
        else:
            self.compute_loss_func = lambda outputs, labels, **kwargs: loss(outputs.logits, labels, **kwargs)
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self.compute_loss_func = None

    def training_step(self, *args, **kwargs):
        self.last_loss = super().training_step(*args, **kwargs)
        return self.last_loss

    def _get_grad_norm(self, *args, **kwargs):
        """Raises FloatingPointError, in all processes, before a NaN or infinite loss or gradient reaches the weights;
        the message names the last complete checkpoint."""
        norm = super()._get_grad_norm(*args, **kwargs)
        scales = self.accelerator.scaler is not None  # fp16: the scaler leaves out steps of infinite gradients
        if not (math.isfinite(self.last_loss) and (scales or math.isfinite(norm))):
            step = self.state.global_step + 1
            last = last_complete_checkpoint(self.args.output_dir) if step > 1 else None  # at first, another run's
            raise FloatingPointError(
                f"the training loss is {float(self.last_loss)} and the gradient's norm {float(norm)} at step {step}. "
                f"Last complete checkpoint: {last or 'none'}. Lower --learning_rate; resume or start "
                "anew."
            )
        return norm

    def init_hf_repo(self, *args, **kwargs):
        repo = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        retry_hub_request(lambda: super(IGPTTrainer, self).init_hf_repo(*args, **kwargs), repo, self.args.hub_token)

    def push_to_hub(self, commit_message: str = "End of training", **kwargs) -> str | None:
        """Upload what scripts/push_to_hub.py uploads, with the run's own card instead of transformers'.

        Raises IGPTError where the Hub refuses or cannot be reached; the folder stays as it is.
        """
        if self.hub_model_id is None:
            self.init_hf_repo()
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        return push_run(self.args, self.hub_model_id, commit_message)

    def save_state(self):
        """Write trainer_state.json, with what the callbacks know at the end: `end_reached` reads it."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        super().save_state()

    def _run_epoch(self, **kwargs):
        # A resumed run may have taken its last step already, or have had its patience or its --max_minutes.
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if not self.control.should_training_stop:
            super()._run_epoch(**kwargs)

    has_own_optimizer = False  # whether the optimizer was made here, not given

    def create_optimizer(self, model=None):
        """Make the optimizer, a new one for each training.

        One of an earlier `train()`, or of an attempt that ran out of memory (`--auto_find_batch_size`), has momentum
        and averages that are not this training's.
        """
        args = self.args
        if self.is_fsdp_enabled and args.use_muon:
            raise IGPTError("Muon needs whole matrices, and FSDP shards them: --use_muon false.")
        if self.has_own_optimizer:
            self.optimizer = None
        self.has_own_optimizer = self.optimizer is None
        if self.optimizer is None and args.use_muon:
            self.optimizer = muon_of_run(self.model if model is None else model, args)
        super().create_optimizer(model)
        if args.ema_decay > 0:
            average_weights(self.optimizer, args.ema_decay)
        return self.optimizer

    has_ema_weights = False  # whether the model holds the EMA weights at the moment

    @contextlib.contextmanager
    def ema_weights(self):
        """Inside, the model holds the EMA weights. After training it holds the best of them, and keeps them."""
        swaps = (
            self.args.ema_decay > 0 and self.is_in_train and self.state.global_step > 0 and not self.has_ema_weights
        )
        if swaps:
            swap_average(self.optimizer)
            self.has_ema_weights = True
        try:
            yield
        finally:
            if swaps:
                swap_average(self.optimizer)
                self.has_ema_weights = False

    def get_eval_dataloader(self, *args, **kwargs):
        """The likelihood is that of all images: `--dataloader_drop_last` is for training only."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluate(self, *args, **kwargs):
        with self.ema_weights():
            return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        with sealed_checkpoint(self) as folder, self.ema_weights():
            super()._save_checkpoint(*args, **kwargs)
            if self.args.should_save and self.run_settings is not None:
                (folder / SETTINGS).write_text(json.dumps(self.run_settings, indent=2), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.args.auto_find_batch_size and not self.is_fsdp_enabled:
            self._load_from_checkpoint(checkpoint)  # an attempt that ran out of memory has changed the weights
        if self.args.ema_decay > 0:
            swap_average(self.optimizer)

    def _finalize_training(self, *args, **kwargs):
        if self.args.ema_decay > 0 and not (self.args.load_best_model_at_end and self.state.best_model_checkpoint):
            swap_average(self.optimizer)  # there is no best model to load
        return super()._finalize_training(*args, **kwargs)


def push_run(args: IGPTTrainingArguments, repo: str | None = None, message: str = "End of training") -> str:
    """Upload the finished run in output_dir as `--push_to_hub` asks for; returns the commit's address.

    Raises IGPTError where the Hub refuses or cannot be reached.
    """
    folder = Path(args.output_dir)
    about: dict[str, Any] = {"private": args.hub_private_repo, "revision": args.hub_revision, "token": args.hub_token}
    return push_folder(folder, repo or args.hub_model_id or folder.absolute().name, message=message, **about)


def few_steps_hint(args: IGPTTrainingArguments, num_images: int) -> str | None:
    """Suggest smaller batches if a run would take too few steps to learn much; None otherwise.

    Args:
        args: Of the run.
        num_images: To train on.
    """
    per_step = args.images_per_step
    steps = math.ceil(args.num_train_epochs * math.ceil(num_images / per_step))
    if steps >= FEW_STEPS or per_step <= 8 or args.max_steps > 0:
        return None
    return (
        f"{num_images} images in batches of {per_step} make {steps} steps in all, which is too few to learn much: try "
        "--per_device_train_batch_size 8 --num_train_epochs 60 (early stopping ends it sooner)."
    )


def _training_data(split, dataset: type, config, seed: int, *, shuffle_buffer: int, new_images, gives_probs: bool):
    """What is trained on."""
    if isinstance(split, ShardedTokens):
        return TokenStream(split, config, config.class_dropout_prob, seed, shuffle_buffer)
    options = {"new_images": new_images, "gives_probs": gives_probs}
    if dataset is TokenDataset:
        options["num_grids"] = config.num_grids
    return dataset(split, config, config.class_dropout_prob, seed=seed, **options)


def _evaluation_data(splits, dataset: type, config, seed: int) -> dict:
    """The validation split, and a fixed part of the training split, no larger, that is measured alike."""
    train, validation = splits["train"], splits["validation"]
    num = min(len(validation), len(train))
    part = train.head("train", num) if isinstance(train, ShardedTokens) else train.select(range(num))
    return {"train": dataset(part, config, seed=seed), "validation": dataset(validation, config, seed=seed)}


def make_trainer(
    model,
    args: IGPTTrainingArguments,
    splits,
    processor,
    *,
    callbacks=(),
    layout: IGPTConfig | None = None,
    shuffle_buffer: int = 10_000,
    new_images: NewImages | None = None,
    evaluation_seed: int | None = None,
) -> Trainer:
    """Wire a Trainer: tokenized splits in, exact nats per image of train and validation at each evaluation.

    The training loss is measured like the validation loss, in eval mode on a fixed part of the training split.

    Args:
        model: For images, for their classes, or the one of `igpt_hf.training.imagegpt_baseline`.
        args: Of the run.
        splits: From `igpt_hf.data.tokenized.tokenize`; the training split may be `ShardedTokens`, to be streamed.
        processor: Saved along with the model.
        callbacks: In addition to early stopping, the stopwatch and the epochs' class dropout.
        layout: Layout of images in tokens; needed if the model's configuration is not an `IGPTConfig`.
        shuffle_buffer: Images of a stream that are shuffled at a time.
        new_images: Each epoch's training images, instead of those of the training split.
        evaluation_seed: Of the pixels of gray images that are evaluated; by default that of `args`. Runs that share it
            are compared on the same pixels: another sample of them moves a mean of 6,000 images by 0.1 nats.
    """
    config = model.config if layout is None else layout
    is_classifier = isinstance(model, IGPTForImageClassification)
    dataset = LabelDataset if is_classifier else TokenDataset
    options: dict[str, Any] = {"shuffle_buffer": shuffle_buffer, "new_images": new_images}
    options["gives_probs"] = isinstance(model, IGPTForCausalImageModeling)
    train = _training_data(splits["train"], dataset, config, args.seed, **options)
    evaluation_seed = args.seed if evaluation_seed is None else evaluation_seed
    if isinstance(train, TokenStream):
        args.accelerator_config.dispatch_batches = False  # each process reads for itself, and keeps its part
    trainer = IGPTTrainer(
        model,
        args,
        data_collator=collate,
        train_dataset=train,
        eval_dataset=_evaluation_data(splits, dataset, config, evaluation_seed),
        processing_class=processor,
        preprocess_logits_for_metrics=None if is_classifier else nats_per_image,
        compute_metrics=classification_metrics if is_classifier else likelihood_metrics(config.num_pixels),
        callbacks=[
            EpochCallback(train),
            Stopwatch(),
            MovedRun(),
            PatientEarlyStopping(args.early_stopping_patience),
            *callbacks,
        ],
    )
    for callback in filter(lambda callback: isinstance(callback, SampleSheetCallback), callbacks):
        callback.trainer = trainer
    has_bars = trainer.pop_callback(ProgressCallback) is not None  # not with --disable_tqdm
    trainer.pop_callback(PrinterCallback)
    trainer.add_callback(OneLineProgress if has_bars else EvaluationLines)
    return trainer
