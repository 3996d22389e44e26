"""Train on gray images for so many minutes on one GPU, which makes the batches itself.

    python benchmarks/gpu_training.py --data path/to/mnist --binarize stochastic --preset xs --bf16 true
    python benchmarks/gpu_training.py --data path/to/mnist --model_name_or_path mnist-xs --bf16 true --new_images 0.75
    python benchmarks/gpu_training.py --data path/to/mnist --binarize stochastic --use_cpu true --max_minutes 1

A small model keeps a GPU waiting for Python. Here the images lie on the GPU, batches are drawn there, and a batch, its
loss and the gradients are one CUDA graph. The flags are those of scripts/train.py, and so are split, model, loss
(without built-in guidance), optimizer and the pixels of validation images. The learning rates decay over
`--max_minutes` (20 by default), whatever else the machine does: two runs of a command are not alike. On a CPU, as in
the last line, nothing is compiled: it shows that it runs.

`--new_images` is the part of the images that are deformed at random (deformation.py). They have classes of their own
(distribution augmentation; Jun et al. 2020, "Distribution Augmentation for Generative Modeling", section 3): the model
learns what strokes are from many more images, and what the data's are from the data. After training those classes are
cut off. What this gains is not measured yet. The best model by validation is saved, without card and test loss: go on
with `scripts/train.py --model_name_or_path`.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path
from types import MethodType

import torch
from torch import nn
from torch.nn import functional
from transformers import set_seed

from deformation import deform
from harness import warm_up_and_decay, write_results
from igpt_hf import IGPTConfig, IGPTError, IGPTForCausalImageModeling, load_splits
from igpt_hf.cli import run_main
from igpt_hf.data.augmentation import fading
from igpt_hf.data.inspection import sample_images
from igpt_hf.data.tokenized import TokenDataset, tokenize
from igpt_hf.evaluation.typicality import NUM_IMAGES, nats_quantiles
from igpt_hf.model.layers_igpt import IGPTEmbeddings, IGPTLocalMixing
from igpt_hf.model.neighborhood import neighborhood_offsets
from igpt_hf.model.tokens import grid_shift
from igpt_hf.training.arguments import parse_arguments
from igpt_hf.training.initial_model import make_initial_model
from igpt_hf.training.losses import expected_loss
from igpt_hf.training.optimizer import average_weights, muon_of_run, swap_average


MINUTES = 20  # unless --max_minutes says otherwise
CHECK_EVERY = 50  # steps: Python waits for the device, so that it does not run ahead of the clock


def parse_all_arguments():
    """This script's own flags, and those of scripts/train.py: (own, script_args, model_args, args)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=20, help="default: 20")
    parser.add_argument("--new_images", type=float, default=0.0, help="part of the images that are deformed")
    parser.add_argument("--strength", type=float, default=0.15, help="of the deformations; default: 0.15")
    own, others = parser.parse_known_args()
    script_args, model_args, args = parse_arguments(others)
    args.max_minutes = args.max_minutes or MINUTES
    return own, script_args, model_args, args


# --- batches, made on the device -------------------------------------------------------------------------------------


def blocks_of(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """(B, height, width) -> (B, tokens, patch_size**2), in the order of the bits of a token."""
    batch, size, p = len(pixels), pixels.shape[-1], patch_size
    return pixels.view(batch, size // p, p, size // p, p).transpose(2, 3).reshape(batch, -1, p * p)


def probs_of_tokens(blocks: torch.Tensor) -> torch.Tensor:
    """As `igpt_hf.model.tokens.token_probs`, of blocks: (B, tokens, patch_size**2) -> (B, tokens, V)."""
    probs = torch.ones_like(blocks[..., :1])
    for white in blocks.unbind(dim=-1):
        probs = torch.cat([probs * (1 - white[..., None]), probs * white[..., None]], dim=-1)
    return probs


class Batches:
    """Batches of training images: pixels drawn anew, some images deformed, each on one of the model's grids.

    Args:
        split: With columns `gray` and `label`.
        config: Of the model that is trained.
        num_labels: Of the data. Label y of a deformed image is `num_labels + y`, and that of any deformed image
            `2 * num_labels`.
        batch_size: Images of a step.
        strength: Of the deformations; None: no image is deformed.
        device: Where the images are kept.
    """

    def __init__(self, split, config: IGPTConfig, num_labels: int, batch_size: int, strength: float | None, device):
        columns, size = split.with_format("numpy"), config.image_size
        self.gray = torch.from_numpy(columns["gray"][:].astype("uint8")).view(-1, size, size).to(device)
        self.labels = torch.from_numpy(columns["label"][:]).long().to(device)
        self.config, self.num_labels = config, num_labels
        self.batch_size, self.strength = batch_size, strength
        self.bits = 2 ** torch.arange(config.patch_size**2, device=device)
        self.new_images = torch.zeros((), device=device)  # the part of the images that are deformed at the moment
        self.order = torch.empty(0, dtype=torch.long, device=device)

    def next_indices(self) -> torch.Tensor:
        """The images of a step, (B,): each once an epoch, except those that a last, smaller batch would have."""
        if len(self.order) < self.batch_size:
            self.order = torch.randperm(len(self.gray), device=self.gray.device)
        indices, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        return indices

    @torch.no_grad()
    def make(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) -> ids (B, 1 + N), and the probabilities of the tokens (B, N, V)."""
        white, labels = self.gray[indices].float() / 255, self.labels[indices]
        any_label = torch.full_like(labels, self.config.num_labels)
        if self.strength is not None:
            is_new = torch.rand(len(indices), device=white.device) < self.new_images
            white = torch.where(is_new[:, None, None], deform(white, self.strength), white)
            labels = torch.where(is_new, labels + self.num_labels, labels)
            any_label = torch.where(is_new, 2 * self.num_labels, any_label)
        is_dropped = torch.rand(len(indices), device=white.device) < self.config.class_dropout_prob
        grids = torch.randint(self.config.num_grids, (len(indices),), device=white.device)
        for grid in range(1, self.config.num_grids):
            turned = white.flip((1, 2)) if grid >= self.config.patch_size**2 else white
            moved = turned.roll(grid_shift(grid, self.config.patch_size), dims=(1, 2))
            white = torch.where((grids == grid)[:, None, None], moved, white)
        labels = torch.where(is_dropped, any_label, labels)
        prompts = self.config.vocab_size + grids * (self.config.num_labels + 1) + labels
        white = blocks_of(white, self.config.patch_size)
        tokens = ((torch.rand_like(white) < white) * self.bits).sum(dim=-1)
        return torch.cat([prompts[:, None], tokens], dim=1), probs_of_tokens(white)


# --- the model -------------------------------------------------------------------------------------------------------


def with_deformed(model: IGPTForCausalImageModeling) -> IGPTForCausalImageModeling:
    """The same model with a second class for each of its classes, and one for all of these."""
    names = model.config.class_names
    model.set_classes([*names, *(f"{name}, deformed" for name in names), "deformed"])
    return model


def without_deformed(model: IGPTForCausalImageModeling, names: list[str]) -> IGPTForCausalImageModeling:
    """A copy on the CPU that has only these classes."""
    kept = IGPTForCausalImageModeling(copy.deepcopy(model.config))
    kept.load_state_dict(model.state_dict())
    kept.set_classes(names)
    return kept


def embed(self, context: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """`IGPTEmbeddings.forward` as a product with a matrix of ones and zeros.

    Most tokens of an image are black: the gradient of a lookup adds very many rows to the same one.
    """
    rows = context + torch.tensor(self.first_rows, device=context.device)  # (B, T, K + 1)
    ones = torch.zeros(*rows.shape[:2], self.context.num_embeddings, device=rows.device).scatter(2, rows, 1.0)
    with torch.autocast(rows.device.type, enabled=False):
        known = ones @ self.context.weight
    return known + self.row(position_ids // self.grid_size) + self.column(position_ids % self.grid_size)


def mix(self, value: torch.Tensor) -> torch.Tensor:
    """`IGPTLocalMixing._convolve` as a sum of shifted images, of which the compiler makes one loop."""
    batch, heads, length, size = value.shape
    grid, radius = self.config.grid_size, self.config.neighborhood_radius
    tokens = value.transpose(1, 2).reshape(batch, length, -1)[:, 1:]
    tokens = functional.pad(tokens, (0, 0, 0, (grid + 1) * grid - tokens.shape[1]))
    image = functional.pad(tokens.view(batch, grid + 1, grid, -1), (0, 0, radius, radius, radius, 0))
    mixed = 0
    for k, (row, column) in enumerate(neighborhood_offsets(radius)):
        top, left = radius + row, radius + column
        mixed = mixed + image[:, top : top + grid + 1, left : left + grid] * self.weight[:, k]
    return mixed.reshape(batch, -1, heads, size)[:, :length]


def with_plain_sums(model):
    """The same function, with lookups and small convolutions written as products and sums, for the compiler."""
    for module in model.modules():
        if isinstance(module, IGPTEmbeddings):
            module.forward = MethodType(embed, module)
        if isinstance(module, IGPTLocalMixing):
            module._convolve = MethodType(mix, module)
    return model


# --- training --------------------------------------------------------------------------------------------------------


class Gradients:
    """Batch, loss and gradients of a step; on a GPU compiled and recorded once as a CUDA graph, then replayed."""

    def __init__(self, model, batches: Batches, args):
        self.model, self.batches, self.args = model, batches, args
        self.forward, self.make = model, batches.make
        self.indices = batches.next_indices().clone()
        self.graph = None
        self.loss = torch.zeros((), device=args.device)  # of the last step, nats per token
        if args.device.type == "cuda":
            self.forward, self.make = (torch.compile(run, dynamic=False) for run in (model, batches.make))
            self._record()

    def step(self):
        """Make a batch, and leave its gradients in the parameters."""
        self.indices.copy_(self.batches.next_indices())
        if self.graph is not None:
            self.graph.replay()
        else:
            self.model.zero_grad(set_to_none=True)
            self._run()

    def _run(self):
        ids, probs = self.make(self.indices)
        with torch.autocast(self.args.device.type, dtype=torch.bfloat16, enabled=self.args.bf16):
            logits = self.forward(input_ids=ids, use_cache=False).logits
        loss = expected_loss(probs)(logits)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm, foreach=True)
        self.loss = loss.detach()

    def _record(self):
        """Record a step, after three that compile it, as torch's notes on CUDA graphs ask for."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.model.zero_grad(set_to_none=True)
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        self.model.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._run()


@torch.no_grad()
def mean_nats(model, ids: torch.Tensor) -> float:
    """Mean NLL given the class on the first grid, nats per image, in float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    model.eval()
    nats = -sum(model.token_log_likelihoods(part).double().sum().item() for part in ids.split(500)) / len(ids)
    model.train()
    torch.backends.cuda.matmul.allow_tf32 = True
    return nats


def train(model, batches: Batches, evaluated: dict[str, torch.Tensor], own, args, save) -> list[dict]:
    """Train for `--max_minutes`; the EMA weights are evaluated, and given to `save` when they are the best.

    Raises:
        FloatingPointError: The loss is NaN or infinite.
    """
    optimizer = muon_of_run(model, args)
    average_weights(optimizer, args.ema_decay)
    peaks = [group["lr"] for group in optimizer.param_groups]
    gradients = Gradients(model.train(), batches, args)
    history: list[dict] = []
    steps, budget, began = 0, 60 * args.max_minutes, time.monotonic()

    def evaluate():
        if not math.isfinite(loss := gradients.loss.item()):
            raise FloatingPointError(f"the loss is {loss} after {steps} steps: lower the learning rates.")
        swap_average(optimizer)
        row = {name: mean_nats(model, ids) for name, ids in evaluated.items()}
        if row["validation"] < min((old["validation"] for old in history), default=math.inf):
            save(model)
        swap_average(optimizer)
        epochs, minutes = steps * batches.batch_size / len(batches.gray), (time.monotonic() - began) / 60
        history.append({"minutes": minutes, "epochs": epochs, "steps": steps, **row})
        print(json.dumps({name: round(value, 3) for name, value in history[-1].items()}), flush=True)

    while (share := (time.monotonic() - began) / budget) < 1:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * warm_up_and_decay(share)
        if steps % CHECK_EVERY == 0:
            gradients.loss.item()
            batches.new_images.fill_(own.new_images * fading(share, 1))
        gradients.step()
        optimizer.step()
        steps += 1
        if share * own.evaluations >= len(history) + 1:
            evaluate()
    evaluate()
    return history


def pixels_to_evaluate(tokens, config: IGPTConfig, seed: int) -> dict[str, torch.Tensor]:
    """Ids of validation images and as many training images, with the pixels that scripts/train.py evaluates."""
    num = min(len(tokens["train"]), len(tokens["validation"]))
    parts = {
        name: TokenDataset(tokens[name].select(range(num)), config, seed=seed) for name in ("train", "validation")
    }
    return {name: part.__getitems__(range(num))["input_ids"] for name, part in parts.items()}


def main():
    own, script_args, model_args, args = parse_all_arguments()
    set_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    split_seed = script_args.get_split_seed(args.seed)
    splits = load_splits(script_args.data, seed=split_seed, max_images=script_args.max_images)
    start = make_initial_model(splits["train"].features["label"].names, script_args, model_args)
    start.look_at(sample_images(splits["train"]), None)
    if start.processor.binarize != "stochastic":
        raise IGPTError("batches are drawn from gray images here: --binarize stochastic.")
    tokens, names = tokenize(splits, start.processor), start.model.config.class_names
    evaluated = pixels_to_evaluate(tokens, start.model.config, split_seed)
    model = start.model if own.new_images == 0 else with_deformed(start.model)
    model = with_plain_sums(model.to(args.device))
    strength = own.strength if own.new_images > 0 else None
    batch_size = args.per_device_train_batch_size
    batches = Batches(tokens["train"], model.config, len(names), batch_size, strength, args.device)

    def save(model):
        without_deformed(model, names).save_pretrained(args.output_dir)
        start.processor.save_pretrained(args.output_dir)

    print(f"{len(tokens['train'])} training images; {model.num_parameters()} parameters", flush=True)
    history = train(model, batches, evaluated, own, args, save)
    best = IGPTForCausalImageModeling.from_pretrained(args.output_dir).to(args.device)
    best.config.nats_quantiles = nats_quantiles(best, evaluated["validation"][:NUM_IMAGES])
    best.save_pretrained(args.output_dir)
    results = {
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else "CPU",
        "best": min(history, key=lambda row: row["validation"]),
        "history": history,
    }
    write_results(results, Path(args.output_dir) / "run.json")


if __name__ == "__main__":
    run_main(main)
