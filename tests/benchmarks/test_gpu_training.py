"""What gpu_training.py makes on a GPU is what the package makes on a CPU."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from deformation import SUPERSAMPLING, deform, inverse, places_of_pixels, random_matrices, shrinking_matrix
from gpu_training import Batches, blocks_of, probs_of_tokens, with_deformed, with_plain_sums, without_deformed
from helpers.paths import BENCHMARKS
from helpers.scripts import run_python
from igpt_hf import IGPTConfig, IGPTForCausalImageModeling, synthetic_digits
from igpt_hf.hub.loading import load_pretrained
from igpt_hf.model import modeling_igpt
from igpt_hf.model.neighborhood import ids_on_grid
from igpt_hf.model.tokens import pixels_to_tokens, token_probs


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """Gray levels of 20 digits, (20, 28, 28), 0 or 1."""
    images, _ = synthetic_digits(20, seed=0)
    return torch.from_numpy(images).float() / 255


def random_model(num_labels: int = 10) -> IGPTForCausalImageModeling:
    torch.manual_seed(0)
    config = IGPTConfig(num_labels=num_labels, num_hidden_layers=2)
    model = IGPTForCausalImageModeling(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def random_ids(model, num: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(16, (num, 197), generator=generator)
    ids[:, 0] = 16 + torch.arange(num)
    return ids


def test_tokens_and_their_probabilities_are_those_of_the_package(digits):
    gray = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))
    assert np.allclose(probs_of_tokens(blocks_of(gray, 2)), token_probs(gray.numpy(), 2))
    tokens = (blocks_of(digits, 2) * 2 ** torch.arange(4)).sum(dim=-1)
    assert (tokens.numpy() == pixels_to_tokens(digits.numpy().astype(np.uint8), 2)).all()


def test_batches_are_on_the_grids_that_their_prompts_say(digits):
    config = IGPTConfig(num_grids=8, class_dropout_prob=0.2)
    rows = {"gray": (255 * digits).byte().flatten(1).tolist(), "label": [i % 10 for i in range(20)]}
    batches = Batches(Dataset.from_dict(rows), config, 10, 20, strength=None, device="cpu")
    ids, probs = batches.make(torch.arange(20))
    tokens = torch.from_numpy(pixels_to_tokens(digits.numpy().astype(np.uint8), 2)).long()
    grids = (ids[:, 0] - 16) // 11
    assert {grid // 4 for grid in grids.tolist()} == {0, 1}  # upright and turned
    for i, grid in enumerate(grids.tolist()):
        on_first = torch.cat([ids[i, :1] - 11 * grid, tokens[i]])[None]
        assert torch.equal(ids_on_grid(on_first, grid, config)[0], ids[i])
        assert torch.equal(probs[i].argmax(dim=1), ids[i, 1:])  # pixels are certain
        assert (ids[i, 0] - 16) % 11 in (i % 10, 10)


def test_products_and_sums_are_the_same_function_with_the_same_gradients(monkeypatch):
    monkeypatch.setattr(modeling_igpt, "are_blocks_usable", lambda *args: False)  # the modules, not the kernels
    plain, changed = random_model(), with_plain_sums(random_model())
    ids = random_ids(plain)
    for model in (plain, changed):
        model(input_ids=ids, labels=ids).loss.backward()
    for one, other in zip(plain.parameters(), changed.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_without_strength_a_shape_stays_and_with_it_its_size_and_place_do(digits):
    assert ((deform(digits, 0.0) > 0.5) != (digits > 0.5)).float().mean() < 0.005
    torch.manual_seed(0)
    deformed = deform(digits, 0.15)
    assert (deformed - digits).abs().mean() > 0.02
    assert deformed.min() >= 0
    assert deformed.max() <= 1
    for before, after in zip(digits, deformed, strict=True):
        assert np.abs(center_of_mass(before) - center_of_mass(after)).max() < 1
        assert abs(longest_side(before) - longest_side(after)) <= 3  # it is bent after it was fitted


def center_of_mass(image: torch.Tensor) -> np.ndarray:
    places = places_of_pixels(28, "cpu")  # -1 to 1
    return (14 * (image.flatten() @ places) / image.sum()).numpy()


def longest_side(image: torch.Tensor) -> int:
    rows, columns = np.nonzero(image.numpy() > 0.5)
    return max(np.ptp(rows), np.ptp(columns))


def test_matrices_are_inverted_and_shrinking_keeps_gray_levels():
    matrices = random_matrices(5, 0.3, "cpu")
    assert torch.allclose(matrices @ inverse(matrices), torch.eye(2).expand(5, 2, 2), atol=1e-5)
    assert torch.allclose(shrinking_matrix(28, "cpu") @ torch.full((28 * SUPERSAMPLING,), 0.3), torch.full((28,), 0.3))


def test_the_deformed_classes_are_cut_off_and_the_others_stay_as_they_are():
    model = random_model()
    names = model.config.class_names
    with_deformed(model)
    ids = random_ids(model)
    for _ in range(2):  # the model itself does not change
        kept = without_deformed(model, names)
        assert kept.config.num_labels == 10
        assert model.config.num_labels == 21
        assert torch.equal(kept.log_likelihood(ids), model.log_likelihood(ids))


@pytest.mark.slow
def test_a_short_run_saves_its_best_model(tmp_path):
    command = [BENCHMARKS / "gpu_training.py", "--data", "synthetic", "--max_images", 200, "--binarize", "stochastic"]
    command += ["--use_cpu", "true", "--num_hidden_layers", 2, "--max_minutes", 0.1, "--evaluations", 2]
    command += ["--per_device_train_batch_size", 8, "--class_dropout_prob", 0.3, "--new_images", 0.5]
    run_python(*command, "--output_dir", tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    nats = [row["validation"] for row in run["history"]]
    assert len(nats) >= 2
    assert nats[-1] < nats[0]
    assert run["best"]["validation"] == min(nats)
    model, processor = load_pretrained(str(tmp_path))
    assert (model.config.num_labels, model.config.class_dropout_prob) == (10, 0.3)
    assert (processor.binarize, processor.margin) == ("stochastic", 2)
    assert len(model.config.nats_quantiles) == 101


def test_images_that_are_not_sampled_are_refused(tmp_path):
    command = [BENCHMARKS / "gpu_training.py", "--data", "synthetic", "--max_images", 60, "--use_cpu", "true"]
    done = run_python(*command, "--output_dir", tmp_path, check=False)
    assert done.returncode != 0
    assert "error: " in done.stderr and "--binarize stochastic" in done.stderr
