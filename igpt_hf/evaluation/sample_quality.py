"""Sample quality: recognizable classes, fidelity, diversity, and no copies of the training images.

The features are those of a small classifier (LeNet, LeCun et al. 1998) fitted on the same training split, since the
usual Inception network has never seen binary glyphs. Every number without an absolute meaning comes with the same
number for as many real images: its floor.
"""

import contextlib
import hashlib
import io
import math
import os
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub import cached_assets_path
from prdc import compute_prdc
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm.auto import tqdm

from ..errors import IGPTError
from ..model.kernel_dispatch import single_thread_of_torch
from .likelihood import accuracy_stderr


MIN_IMAGES = 10  # on each side of a comparison
NEAREST_K = 5  # of precision, recall, density, coverage; what their authors use (Naeem et al. 2020)
RECIPE: dict[str, Any] = {"batch_size": 64, "max_epochs": 30, "max_steps": 1500, "learning_rate": 3e-3}


class Images(NamedTuple):
    """Binary images `pixels` (n, height, width) of 0/1, uint8, and their classes `labels` (n,)."""

    pixels: np.ndarray
    labels: np.ndarray


# --- the classifier -------------------------------------------------------------------------------------------------


class LeNet(nn.Module):
    """Two convolutions, a layer of 84 features, a linear classifier; pixels (n, height, width) -> logits."""

    def __init__(self, image_size: int, num_labels: int):
        super().__init__()
        side = math.ceil(image_size / 4)
        self.extract = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(32 * side**2, 84),
            nn.ReLU(),
        )
        self.classify = nn.Linear(84, num_labels)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.classify(self.extract(pixels[:, None].float()))

    @torch.no_grad()
    def features(self, pixels: np.ndarray) -> torch.Tensor:
        """(n, height, width) -> (n, 84), float64."""
        chunks = torch.from_numpy(pixels).split(512)
        return torch.cat([self.extract(chunk[:, None].float()) for chunk in chunks]).double()

    @torch.no_grad()
    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """(n, height, width) -> classes (n,)."""
        return self.classify(self.features(pixels).float()).argmax(dim=1).numpy()

    def accuracy(self, images: Images) -> float:
        """Fraction of images whose class is predicted."""
        return float((self.predict(images.pixels) == images.labels).mean())


def train_classifier(images: Images, num_labels: int, seed: int, what: str = "classifier") -> LeNet:
    """Train a LeNet with AdamW and one cycle of the learning rate, for 30 epochs but at most 1,500 steps."""
    pixels, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels).long()
    num_batches = math.ceil(len(labels) / RECIPE["batch_size"])
    steps = min(RECIPE["max_steps"], RECIPE["max_epochs"] * num_batches)
    # Small convolutions gain little from a second thread, and take tenfold if others need the same cores.
    with torch.random.fork_rng(), single_thread_of_torch():
        torch.manual_seed(seed)
        model = LeNet(images.pixels.shape[-1], num_labels)
        optimizer = torch.optim.AdamW(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RECIPE["learning_rate"], total_steps=steps)
        for step in tqdm(range(steps), desc=f"Training the {what}", unit="step", delay=2, disable=None):
            if step % num_batches == 0:
                batches = torch.randperm(len(labels)).split(RECIPE["batch_size"])
            index = batches[step % num_batches]
            loss = nn.functional.cross_entropy(model(pixels[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def random_classifier(images: Images, num_labels: int, seed: int) -> LeNet:
    """Make a LeNet with random weights, whose features compare images where there are no classes to learn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LeNet(images.pixels.shape[-1], num_labels).eval()


def cached_classifier(images: Images, num_labels: int, seed: int) -> LeNet:
    """Train the classifier, or fetch it from the user's cache (that of huggingface_hub): one per data and seed."""
    model = LeNet(images.pixels.shape[-1], num_labels)
    key = hashlib.sha256(repr((RECIPE, str(model), seed)).encode())
    for array in images:
        key.update(np.ascontiguousarray(array).tobytes())
    path = cached_assets_path("igpt_hf", namespace="classifiers") / f"{key.hexdigest()[:32]}.safetensors"
    try:
        model.load_state_dict(load_file(path))
        return model.eval()
    except (FileNotFoundError, SafetensorError):  # there is none, or it was damaged
        model = train_classifier(images, num_labels, seed)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    save_file(model.state_dict(), part)
    os.replace(part, path)  # at once: another process may be reading
    return model


# --- measures -------------------------------------------------------------------------------------------------------


def fidelity(real: torch.Tensor, fake: torch.Tensor) -> dict[str, float]:
    """Compare two sets of features, (n, d) each, float64: FID, precision, recall, density and coverage.

    Raises:
        IGPTError: Fewer than ten images on a side.
    """
    if min(len(real), len(fake)) < MIN_IMAGES:
        raise IGPTError(f"comparing needs {MIN_IMAGES} images on each side, got {len(real)} and {len(fake)}.")
    identity = nn.Identity()  # the features are at hand
    identity.num_features = real.shape[1]  # type: ignore[assignment]  # torch types attributes as tensors
    fid = FrechetInceptionDistance(feature=identity)
    fid.update(real, real=True)
    fid.update(fake, real=False)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the numbers of images
        prdc = compute_prdc(real.numpy(), fake.numpy(), nearest_k=NEAREST_K)
    return {"fid": fid.compute().item(), **{name: float(value) for name, value in prdc.items()}}


def two_sample_accuracy(real: np.ndarray, fake: np.ndarray, seed: int) -> tuple[float, float]:
    """Train a classifier of samples against real images on one half, test it on the other: accuracy, stderr.

    The classifier two-sample test (Lopez-Paz & Oquab 2017); 0.5 is chance. Both sets are (n, height, width).
    """
    half = len(real) // 2
    labels = np.repeat([0, 1], half)
    train = Images(np.concatenate([real[:half], fake[:half]]), labels)
    test = Images(np.concatenate([real[half : 2 * half], fake[half : 2 * half]]), labels)
    accuracy = train_classifier(train, 2, seed, what="two-sample classifier").accuracy(test)
    return accuracy, accuracy_stderr(accuracy, len(labels))


def nearest_neighbors(pixels: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the training image that differs in the fewest pixels (Hamming): (n, ...), (m, ...) -> index, distance."""
    flat = torch.from_numpy(train).flatten(1).float()  # (m, height * width)
    index, distance = [], []
    for chunk in torch.from_numpy(pixels).flatten(1).float().split(256):
        different = chunk.sum(1, keepdim=True) + flat.sum(1) - 2 * chunk @ flat.T  # whole numbers: exact
        nearest = different.min(dim=1)
        index.append(nearest.indices)
        distance.append(nearest.values)
    return torch.cat(index).numpy(), torch.cat(distance).numpy().astype(int)


def novelty(samples: np.ndarray, test: np.ndarray, train: np.ndarray) -> dict[str, float | None]:
    """Compare how far samples and real test images are from their nearest training images.

    Returns:
        `novelty`: mean distance of the samples over that of the test images, so that 1 is as new as real images are
        (None if the test split has only copies). The two means, in pixels, and the fractions of exact copies.
    """
    distances = {name: nearest_neighbors(pixels, train)[1] for name, pixels in (("", samples), ("_test", test))}
    report = {}
    for name, distance in distances.items():
        report[f"nearest_training_pixels{name}"] = float(distance.mean())
        report[f"exact_copies{name}"] = float((distance == 0).mean())
    floor = report["nearest_training_pixels_test"]
    return {"novelty": report["nearest_training_pixels"] / floor if floor else None, **report}


# --- all together ---------------------------------------------------------------------------------------------------


def check_sizes(num_samples: int, num_validation: int, num_test: int):
    """Refuse a comparison of too few images, before any work.

    Raises:
        IGPTError: Too few samples or real images.
    """
    if min(num_samples, num_validation, num_test) < MIN_IMAGES:
        raise IGPTError(
            f"--samples {num_samples} are compared with {num_test} test and {num_validation} validation images: at "
            f"least {MIN_IMAGES} of each are needed. Ask for more samples, give more data, or leave --samples out."
        )


def draw_samples(
    model, processor, prior: torch.Tensor, num: int, seed: int, batch_size: int = 256, **generate_arguments
) -> Images:
    """Sample images whose classes have the proportions of `prior` (num_labels,), in random order."""
    quantiles = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        labels = torch.searchsorted(prior.double().cumsum(0), quantiles).clamp(max=len(prior) - 1)
        labels = labels[torch.randperm(num)]
        ids = [
            model.generate(**processor.prompt(class_labels=chunk).to(model.device), **generate_arguments).cpu()
            for chunk in tqdm(labels.split(batch_size), desc="Sampling", unit="batch", delay=2, disable=None)
        ]
    return Images(processor.decode_pixels(torch.cat(ids)), labels.numpy())


def _thin(images: Images, num: int) -> Images:
    """Keep `num` images in their order, in the same proportions of classes."""
    rows = images.labels.argsort(kind="stable")[np.linspace(0, len(images.labels) - 1, num).round().astype(int)]
    return Images(*(array[np.sort(rows)] for array in images))


def sample_report(samples: Images, splits: dict[str, Images], num_labels: int, seed: int) -> dict:
    """Measure samples against the real images of `train`, `validation` and `test`.

    * `sample_accuracy`: fraction of samples that the classifier assigns to the requested class;
      `classifier_test_accuracy` is what it reaches on real images.
    * `fid`, `precision`, `recall`, `density`, `coverage` of the classifier's features, test images against samples;
      with `_real_floor`, test images against validation images. All on `num_compared` images a side, in the same
      proportions of classes, since they depend on that number; and they hold for these features only.
    * `train_on_samples_accuracy`: test accuracy of a classifier that was trained on the samples; beside it
      `train_on_real_accuracy`, of one trained on as many training images.
    * `two_sample_accuracy`: from `two_sample_accuracy`; then what `novelty` returns.

    Where all training images are of one class, the accuracies of classes are None, and the features of `fid` and its
    like are those of a network with random weights (Naeem et al. 2020 found that such features do).

    Raises:
        IGPTError: Too few images.
    """
    train, validation, test = (splits[name] for name in ("train", "validation", "test"))
    num, num_compared = len(samples.labels), min(len(samples.labels), len(validation.labels), len(test.labels))
    check_sizes(num, len(validation.labels), len(test.labels))
    has_classes = len(np.unique(train.labels)) > 1
    classifier = (cached_classifier if has_classes else random_classifier)(train, num_labels, seed)
    accuracy = classifier.accuracy(samples) if has_classes else None
    report: dict[str, Any] = {
        "num_samples": num,
        "classifier_test_accuracy": classifier.accuracy(test) if has_classes else None,
        "sample_accuracy": accuracy,
        "sample_accuracy_stderr": accuracy_stderr(accuracy, num) if has_classes else None,
        "num_compared": num_compared,
    }
    some_test, some_validation, some_samples = (_thin(images, num_compared) for images in (test, validation, samples))
    real, other, fake = (classifier.features(images.pixels) for images in (some_test, some_validation, some_samples))
    report |= fidelity(real, fake)
    report |= {f"{name}_real_floor": value for name, value in fidelity(real, other).items()}
    report["num_trained_on"] = min(num, len(train.labels))
    for name, images in (("samples", samples), ("real", train)):
        report[f"train_on_{name}_accuracy"] = None
        if has_classes:
            images = _thin(images, report["num_trained_on"])
            model = train_classifier(images, num_labels, seed, what=f"classifier on {len(images.labels)} {name}")
            report[f"train_on_{name}_accuracy"] = model.accuracy(test)
    told_apart = two_sample_accuracy(some_test.pixels, some_samples.pixels, seed)
    report["two_sample_accuracy"], report["two_sample_accuracy_stderr"] = told_apart
    return report | novelty(samples.pixels, test.pixels, train.pixels)
