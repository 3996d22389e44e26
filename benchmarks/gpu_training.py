"""Train on gray images for so many minutes on one GPU, which makes the batches itself.

    python benchmarks/gpu_training.py --data path/to/mnist --preset xs --minutes 20 --bf16 --new_images 0.75
    python benchmarks/gpu_training.py --data path/to/mnist --device cpu --no_compile --minutes 0.5 --batch_size 8

A small model keeps a GPU waiting for Python. Here the images lie on the GPU, batches are drawn there, and a batch, its
loss and the gradients are one CUDA graph. Model, loss and optimizer are those of scripts/train.py; so are the split
and the pixels of validation images. The learning rates decay over the minutes, whatever else the machine does. The
second command, on a CPU, only shows that it runs.

`--new_images` is the part of the images that are deformed at random (deformation.py). They have classes of their own
(distribution augmentation; Jun et al. 2020, "Distribution Augmentation for Generative Modeling", section 3): the model
learns what strokes are from many more images, and what the data's are from the data. After training those classes are
cut off. The best model by validation is saved as scripts/train.py saves it, without a card: go on from it with
`scripts/train.py --model_name_or_path`.
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

from deformation import deform
from harness import benchmark_parser, write_results
from igpt_hf import IGPTConfig, IGPTForCausalImageModeling, IGPTImageProcessor, load_splits
from igpt_hf.data.inspection import sample_images
from igpt_hf.data.tokenized import TokenDataset, tokenize
from igpt_hf.model.layers_igpt import IGPTEmbeddings, IGPTLocalMixing
from igpt_hf.model.neighborhood import neighborhood_offsets
from igpt_hf.training.arguments import LEARNING_RATES
from igpt_hf.training.losses import expected_loss
from igpt_hf.training.optimizer import MuonAdamW, average_weights, swap_average


MARGIN = 2  # of tight crops, as in train.py
WARMUP = 0.02  # share of the time
FADE = (0.6, 0.9)  # shares of the time between which deformed images become fewer, from --new_images down to none
MAX_GRAD_NORM = 1.0
CHECK_EVERY = 50  # steps: Python waits for the device, so that it does not run ahead of the clock


def parse_arguments() -> argparse.Namespace:
    parser = benchmark_parser(__doc__, "runs/gpu")
    parser.add_argument("--data", required=True, help="as in train.py; pixels are white with their gray level")
    parser.add_argument("--split_seed", type=int, default=42)
    parser.add_argument("--max_images", type=int)
    parser.add_argument("--preset", default="xs", help="as in train.py; also of the learning rates")
    parser.add_argument("--start", type=Path, help="a model's folder: begin with its weights")
    parser.add_argument("--minutes", type=float, default=20, help="of training, evaluations included")
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, help="default: the preset's")
    parser.add_argument("--muon_learning_rate", type=float, help="default: the preset's")
    parser.add_argument("--weight_decay", type=float, default=0.1)
    parser.add_argument("--ema_decay", type=float, default=0.999)
    parser.add_argument("--class_dropout", type=float, default=0.1)
    parser.add_argument("--new_images", type=float, default=0.0, help="part of the images that are deformed")
    parser.add_argument("--strength", type=float, default=0.15, help="of the deformations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="matrix products and attention; weights stay float32")
    parser.add_argument("--no_compile", dest="compile", action="store_false")
    parser.add_argument("--device", default="cuda")
    return parser.parse_args()


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
    """Batches of training images: pixels drawn anew, some images deformed.

    Args:
        split: With columns `gray` and `label`.
        config: Of the model that is trained.
        num_labels: Of the data. Label y of a deformed image is `num_labels + y`, and that of any deformed image
            `2 * num_labels`.
        args: Of the command line.
    """

    def __init__(self, split, config: IGPTConfig, num_labels: int, args):
        columns, size = split.with_format("numpy"), config.image_size
        self.gray = torch.from_numpy(columns["gray"][:]).view(-1, size, size).to(args.device)
        self.labels = torch.from_numpy(columns["label"][:]).long().to(args.device)
        self.config, self.num_labels, self.args = config, num_labels, args
        self.bits = 2 ** torch.arange(config.patch_size**2, device=args.device)
        self.new_images = torch.full((), args.new_images, device=args.device)  # the part of them at the moment
        self.order = torch.empty(0, dtype=torch.long, device=args.device)

    def next_indices(self) -> torch.Tensor:
        """The images of a step, each once an epoch: (B,)."""
        size = self.args.batch_size
        if len(self.order) < size:
            self.order = torch.randperm(len(self.gray), device=self.args.device)
        indices, self.order = self.order[:size], self.order[size:]
        return indices

    @torch.no_grad()
    def make(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) -> ids (B, 1 + N), and the probabilities of the tokens (B, N, V)."""
        white, labels = self.gray[indices].float() / 255, self.labels[indices]
        any_label = torch.full_like(labels, self.config.num_labels)
        if self.args.new_images > 0:
            is_new = torch.rand(len(indices), device=white.device) < self.new_images
            white = torch.where(is_new[:, None, None], deform(white, self.args.strength), white)
            labels = torch.where(is_new, labels + self.num_labels, labels)
            any_label = torch.where(is_new, 2 * self.num_labels, any_label)
        is_dropped = torch.rand(len(indices), device=white.device) < self.args.class_dropout
        prompts = self.config.vocab_size + torch.where(is_dropped, any_label, labels)
        white = blocks_of(white, self.config.patch_size)
        tokens = ((torch.rand_like(white) < white) * self.bits).sum(dim=-1)
        return torch.cat([prompts[:, None], tokens], dim=1), probs_of_tokens(white)


# --- the model -------------------------------------------------------------------------------------------------------


def make_model(names: list[str], args) -> IGPTForCausalImageModeling:
    """The model to train: with twice as many classes and one more, if there are deformed images."""
    if args.start is None:
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
        model = IGPTForCausalImageModeling(IGPTConfig.from_preset(args.preset, **labels))
    else:
        model = IGPTForCausalImageModeling.from_pretrained(args.start)
    model.config.class_dropout_prob = args.class_dropout
    if args.new_images > 0:
        model.set_classes([*names, *(f"{name}, deformed" for name in names), "deformed"])
    return with_plain_sums(model.to(args.device))


def without_deformed(model: IGPTForCausalImageModeling, names: list[str]) -> IGPTForCausalImageModeling:
    """A copy on the CPU that has only the classes of the data."""
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
    """Batch, loss and gradients of a step; on a GPU one CUDA graph, which is recorded once and replayed."""

    def __init__(self, model, batches: Batches, args):
        self.model, self.batches, self.args = model, batches, args
        self.forward = torch.compile(model, dynamic=False) if args.compile else model
        self.make = torch.compile(batches.make, dynamic=False) if args.compile else batches.make
        self.indices = batches.next_indices().clone()
        self.graph = None
        self.loss = torch.zeros((), device=args.device)  # of the last step, nats per token
        if args.device == "cuda":
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
        with torch.autocast(self.args.device, dtype=torch.bfloat16, enabled=self.args.bf16):
            logits = self.forward(input_ids=ids, use_cache=False).logits
        loss = expected_loss(probs)(logits)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM, foreach=True)
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


def make_optimizer(model, args) -> MuonAdamW:
    """Muon and AdamW, with EMA weights; their peak rates are `initial_lr` of the parameter groups."""
    rates = {"learning_rate": 1e-2, "muon_learning_rate": 2e-2} | LEARNING_RATES.get(args.preset, {})
    lr = args.learning_rate or rates["learning_rate"]
    muon_lr = args.muon_learning_rate or rates["muon_learning_rate"]
    optimizer = MuonAdamW(model, lr, muon_lr, weight_decay=args.weight_decay)
    average_weights(optimizer, args.ema_decay)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


@torch.no_grad()
def mean_nats(model, ids: torch.Tensor) -> float:
    """Mean NLL given the class, nats per image."""
    model.eval()
    nats = -model.log_likelihood(ids, batch_size=500).mean().item()
    model.train()
    return nats


def train(model, batches: Batches, evaluated: dict[str, torch.Tensor], args, save) -> list[dict]:
    """Train for `args.minutes`; the EMA weights are evaluated, and given to `save` when they are the best.

    Raises:
        FloatingPointError: The loss is NaN or infinite.
    """
    optimizer = make_optimizer(model, args)
    gradients = Gradients(model.train(), batches, args)
    history: list[dict] = []
    steps, budget, began = 0, 60 * args.minutes, time.monotonic()

    def evaluate():
        if not math.isfinite(loss := gradients.loss.item()):
            raise FloatingPointError(f"the loss is {loss} after {steps} steps: lower the learning rates.")
        swap_average(optimizer)
        row = {name: mean_nats(model, ids) for name, ids in evaluated.items()}
        if row["validation"] < min((old["validation"] for old in history), default=math.inf):
            save(model)
        swap_average(optimizer)
        epochs, minutes = steps * args.batch_size / len(batches.gray), (time.monotonic() - began) / 60
        history.append({"minutes": minutes, "epochs": epochs, "steps": steps, **row})
        print(json.dumps({name: round(value, 3) for name, value in history[-1].items()}), flush=True)

    while (share := (time.monotonic() - began) / budget) < 1:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * min(share / WARMUP, (1 - share) / (1 - WARMUP))
        if steps % CHECK_EVERY == 0:
            gradients.loss.item()
            part = min(max((FADE[1] - share) / (FADE[1] - FADE[0]), 0.0), 1.0)
            batches.new_images.fill_(args.new_images * part)
        gradients.step()
        optimizer.step()
        steps += 1
        if share * args.evaluations >= len(history) + 1:
            evaluate()
    evaluate()
    return history


def main():
    args = parse_arguments()
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    splits = load_splits(args.data, seed=args.split_seed, max_images=args.max_images)
    processor = IGPTImageProcessor(binarize="stochastic", margin=MARGIN).decide(sample_images(splits["train"]))
    tokens = tokenize(splits, processor)
    names = splits["train"].features["label"].names
    model = make_model(names, args)
    evaluated = {}
    for name in ("train", "validation"):  # as many images of each, and the pixels that scripts/train.py evaluates
        part = tokens[name].select(range(min(len(tokens["train"]), len(tokens["validation"]))))
        dataset = TokenDataset(part, model.config, seed=args.split_seed)
        evaluated[name] = dataset.__getitems__(range(len(part)))["input_ids"]

    def save(model):
        without_deformed(model, names).save_pretrained(args.output)
        processor.save_pretrained(args.output)

    print(f"{len(tokens['train'])} training images; {model.num_parameters()} parameters", flush=True)
    history = train(model, Batches(tokens["train"], model.config, len(names), args), evaluated, args, save)
    results = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU",
        "best": min(history, key=lambda row: row["validation"]),
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "history": history,
    }
    write_results(results, args.output / "run.json")


if __name__ == "__main__":
    main()
