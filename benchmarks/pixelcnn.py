"""A class-conditional gated PixelCNN for binary images: the baseline of exact likelihoods at our size.

    python benchmarks/pixelcnn.py --data RemainingSamples.cdb --minutes 5 --output runs/pixelcnn.json

After van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders" (sections 2.2 to 2.4): a vertical
stack of convolutions sees the rows above, a horizontal one the pixels on the left and, through a 1x1 convolution, the
vertical stack; each layer multiplies a tanh by a sigmoid, both shifted by a bias of the class. The data, their split
and their binarization are those of scripts/train.py. Trained by AdamW with a linear decay over the minutes that it is
given and a moving average of the weights, as ours is; the best evaluation on validation is kept, and test read once.
"""

import copy
import json
import os
import time


os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as scripts/train.py does

import torch
from torch import nn
from tqdm.auto import tqdm

from harness import benchmark_parser, warm_up_and_decay, write_results
from igpt_hf import IGPTImageProcessor, load_splits
from igpt_hf.data.tokenized import tokenize
from igpt_hf.distributed import use_all_cores
from igpt_hf.training.optimizer import average_weights, swap_average


EMA_DECAY = 0.998
EVALUATIONS = 10


class GatedLayer(nn.Module):
    """One layer of both stacks (figure 2 of the paper): (B, C, rows, columns) each -> the same.

    Args:
        inputs: Channels that come in: 1 for the image, which the pixel to predict must be hidden of.
        channels: That go out.
        size: Of the (masked) square of the convolution, odd.
    """

    def __init__(self, inputs: int, channels: int, size: int, num_labels: int):
        super().__init__()
        self.is_first, self.reach = inputs == 1, size // 2
        self.vertical = nn.Conv2d(inputs, 2 * channels, (self.reach + 1, size))
        # The mask is in the shape of the kernel: the pixel itself is seen from the second layer on.
        self.horizontal = nn.Conv2d(inputs, 2 * channels, (1, self.reach + (not self.is_first)))
        self.down = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.class_bias = nn.Embedding(num_labels, 4 * channels)
        nn.init.zeros_(self.class_bias.weight)

    def forward(self, above: torch.Tensor, left: torch.Tensor, labels: torch.Tensor):
        """The stacks before -> after; `above` knows the rows up to its own, `left` the rows before and its left."""
        reach = self.reach
        vertical = self.vertical(nn.functional.pad(above, (reach, reach, reach, 0)))  # (B, 2C, rows, columns)
        seen = nn.functional.pad(vertical, (0, 0, 1, -1))  # a row down: row i is told of the rows before it
        horizontal = self.horizontal(nn.functional.pad(left, (reach, -1 if self.is_first else 0, 0, 0)))
        horizontal = horizontal + self.down(seen)
        bias_above, bias_left = self.class_bias(labels)[:, :, None, None].chunk(2, dim=1)
        above = gate(vertical + bias_above)
        mixed = self.out(gate(horizontal + bias_left))
        return above, mixed if self.is_first else left + mixed


def gate(x: torch.Tensor) -> torch.Tensor:
    """tanh of one half of the channels times sigmoid of the other (equation 2): (B, 2C, ...) -> (B, C, ...)."""
    first, second = x.chunk(2, dim=1)
    return first.tanh() * second.sigmoid()


class GatedPixelCNN(nn.Module):
    """p(x | class) = product over pixels, in raster order, of p(pixel | pixels before, class)."""

    def __init__(self, channels: int = 16, layers: int = 6, size: int = 3, first_size: int = 7, num_labels: int = 10):
        super().__init__()
        first = GatedLayer(1, channels, first_size, num_labels)
        others = [GatedLayer(channels, channels, size, num_labels) for _ in range(layers - 1)]
        self.layers = nn.ModuleList([first, *others])
        self.hidden = nn.Conv2d(channels, 2 * channels, 1)
        self.head = nn.Conv2d(2 * channels, 1, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, rows, columns) of 0/1, (B,) -> logits of a pixel being 1, (B, rows, columns)."""
        above = left = (2 * pixels[:, None] - 1).contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            above, left = layer(above, left, labels)
        return self.head(self.hidden(left.relu()).relu())[:, 0]

    def nats(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Exact -ln p(image | class): (B, rows, columns), (B,) -> (B,), float64 sums."""
        logits = self(pixels, labels)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, pixels, reduction="none")
        return losses.flatten(1).double().sum(1)


@torch.no_grad()
def mean_nats(model: GatedPixelCNN, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Of a split, nats per image."""
    chunks = zip(pixels.split(128), labels.split(128), strict=True)
    return torch.cat([model.nats(chunk.float(), told) for chunk, told in chunks]).mean().item()


def load(data: str, seed: int, margin: int, max_images: int | None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Splits of binary pixels (n, 28, 28), uint8, and labels (n,), as scripts/train.py makes them."""
    splits = load_splits(data, seed=seed, max_images=max_images)
    tokens = tokenize(splits, IGPTImageProcessor(patch_size=1, margin=margin))
    result = {}
    for name, split in tokens.items():
        columns = split.with_format("torch")[:]
        result[name] = (columns["tokens"].byte().view(-1, 28, 28), columns["label"])
    return result


def train(model: GatedPixelCNN, splits, args) -> dict:
    """Train for `args.minutes` of wall clock, evaluations included; leaves the best weights in the model."""
    pixels, labels = splits["train"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    average_weights(optimizer, EMA_DECAY)
    generator = torch.Generator().manual_seed(args.seed)
    best, history, steps, order = {"validation": float("inf")}, [], 0, torch.empty(0, dtype=torch.long)
    began, budget = time.monotonic(), 60 * args.minutes
    progress = tqdm(total=round(budget), desc="Training", unit="s", disable=None)

    def evaluate():
        swap_average(optimizer)
        history.append(mean_nats(model, *splits["validation"]))
        if history[-1] < best["validation"]:
            best.update(validation=history[-1], weights=copy.deepcopy(model.state_dict()))
        swap_average(optimizer)
        progress.write(f"{share:4.0%}  validation {history[-1]:7.2f} nats/image")

    while (share := (time.monotonic() - began) / budget) < 1:
        progress.update(round(share * budget) - progress.n)
        if len(order) < args.batch_size:
            order = torch.randperm(len(pixels), generator=generator)
        index, order = order[: args.batch_size], order[args.batch_size :]
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * warm_up_and_decay(share)
        loss = model.nats(pixels[index].float(), labels[index]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        steps += 1
        if share >= (len(history) + 1) / EVALUATIONS:
            evaluate()
    evaluate()  # as in train.py, the last evaluation comes after the time
    progress.close()
    seconds = time.monotonic() - began
    model.load_state_dict(best["weights"])
    return {"images_seen": steps * args.batch_size, "train_runtime": seconds, "validation_history": history}


def main():
    parser = benchmark_parser(__doc__, "runs/pixelcnn.json")
    parser.add_argument("--data", default="synthetic", help="as in train.py")
    parser.add_argument("--minutes", type=float, default=5.0, help="wall clock of the training, evaluations included")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--size", type=int, default=3, help="of the convolutions from the second layer on")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=4e-3)
    parser.add_argument("--max_grad_norm", type=float, default=100.0, help="of the sum over pixels")
    parser.add_argument("--margin", type=int, default=2, help="as in train.py")
    parser.add_argument("--max_images", type=int)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--num_threads", type=int)
    args = parser.parse_args()
    use_all_cores(args.num_threads)
    splits = load(args.data, args.seed, args.margin, args.max_images)
    torch.manual_seed(args.seed)
    model = GatedPixelCNN(args.channels, args.layers, args.size, num_labels=int(splits["train"][1].max()) + 1)
    model = model.to(memory_format=torch.channels_last)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters} parameters, {len(splits['train'][0])} training images")
    results = {"num_parameters": parameters, **train(model, splits, args)}
    for name in ("validation", "test"):
        results[f"{name}_nats_per_image"] = mean_nats(model, *splits[name])
    results |= {key: value for key, value in vars(args).items() if key != "output"}
    print(json.dumps(results, indent=2))
    write_results(results, args.output)


if __name__ == "__main__":
    main()
