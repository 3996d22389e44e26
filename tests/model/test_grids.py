"""Several grids of blocks: each shows all of an image, and the likelihood is the mean over them."""

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from helpers.paths import SCRIPTS
from helpers.scripts import run_python
from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.data.tokenized import TokenDataset
from igpt_hf.model.neighborhood import ids_on_grid, with_start_token
from igpt_hf.model.tokens import move_to_grid, pixels_to_tokens, token_probs, tokens_on_grid, tokens_to_pixels


PICTURE = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 1], [1, 1, 0, 0]], np.uint8)


@pytest.fixture
def model(tiny_model):
    """Of 4x4 images on eight grids, with random weights."""
    model = tiny_model(image_size=4, num_hidden_layers=1, neighborhood_radius=1, num_grids=8)
    torch.nn.init.normal_(model.lm_head.weight, generator=torch.Generator().manual_seed(3))  # far from uniform
    return model


def some_ids(config, n=5, label=1):
    tokens = torch.randint(0, config.vocab_size, (n, config.num_image_tokens))
    return torch.cat([torch.full((n, 1), config.vocab_size + label), tokens], dim=1)


def test_the_grid_with_the_fewest_ancestors_is_reported(model, monkeypatch, caplog):
    ancestors = iter([50.0, 50.0, 1.0, *[50.0] * 5])

    def run_particles(model, prompts, *args):
        yield prompts, torch.zeros(len(prompts)), torch.full((len(prompts),), next(ancestors))

    monkeypatch.setattr("igpt_hf.model.likelihood_igpt.run_particles", run_particles)
    model.log_likelihood(some_ids(model.config), mask=np.eye(4, dtype=bool))
    assert "5 of 5 runs: the particles at the end descend from effectively 1.0 of" in caplog.text


def test_the_blocks_of_each_grid_begin_at_another_pixel():
    corner = np.zeros((1, 6, 6), np.uint8)
    corner[0, 0, 0] = 1
    for patch_size in (2, 3):
        places = [tuple(np.argwhere(move_to_grid(corner, g, patch_size)[0])[0]) for g in range(patch_size**2)]
        assert places[:2] == [(0, 0), (1, 1)]
        assert sorted(places) == [(row, column) for row in range(patch_size) for column in range(patch_size)]
        turned = [move_to_grid(corner[:, ::-1, ::-1], patch_size**2 + g, patch_size) for g in range(patch_size**2)]
        assert [tuple(np.argwhere(image[0])[0]) for image in turned] == places


def test_tokens_on_a_grid_are_those_of_the_moved_pixels_and_can_be_moved_back():
    config = IGPTConfig(image_size=4, neighborhood_radius=1, num_grids=8)
    tokens = pixels_to_tokens(PICTURE[None], 2)
    for grid in range(8):
        moved = tokens_on_grid(tokens, grid, config)
        np.testing.assert_array_equal(moved, pixels_to_tokens(move_to_grid(PICTURE[None], grid, 2), 2))
        undone = tokens_to_pixels(moved, 2, 4)
        row, column = [(0, 0), (1, 1), (0, 1), (1, 0)][grid % 4]
        undone = np.roll(undone[0], (-row, -column), (0, 1))
        np.testing.assert_array_equal(undone if grid < 4 else undone[::-1, ::-1], PICTURE)


def test_the_probabilities_of_all_images_sum_to_one(model):
    tokens = torch.cartesian_prod(*[torch.arange(16)] * 4)
    ids = torch.cat([torch.full((len(tokens), 1), 17), tokens], dim=1)
    assert model.log_likelihood(ids, batch_size=8192).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("patch_size", [2, 3])
def test_the_likelihood_is_the_mean_of_those_on_the_grids(tiny_model, patch_size):
    num_grids = 2 * patch_size**2
    sizes = {"image_size": 2 * patch_size, "patch_size": patch_size, "num_grids": num_grids, "neighborhood_radius": 1}
    model = tiny_model(num_hidden_layers=1, **sizes)
    config, ids = model.config, some_ids(model.config)
    grids = [ids_on_grid(ids, grid, config) for grid in range(num_grids)]
    on_grids = torch.stack([model.token_log_likelihoods(moved).double().sum(1) for moved in grids])
    assert (on_grids.std(0) > 0.01).all()
    exact = on_grids.exp().mean(0).log()
    torch.testing.assert_close(model.log_likelihood(ids), exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.class_log_likelihoods(ids)[:, 1], exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.class_posterior(ids), model.class_log_likelihoods(ids).softmax(1))
    assert model.log_likelihood(ids[:0]).shape == (0,)
    assert model.class_log_likelihoods(ids[:0]).shape == (0, config.num_labels)


def test_ids_of_any_integers_have_the_same_likelihood(tiny_model):
    model = tiny_model(image_size=4, num_hidden_layers=1, neighborhood_radius=1, num_grids=8, num_labels=100)
    ids = some_ids(model.config)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(model.log_likelihood(ids.to(dtype)), model.log_likelihood(ids))


def test_prompts_of_other_grids_are_refused_where_images_are_on_the_first(model):
    """`log_likelihood` takes images on the first grid: a training batch would be scored as another image."""
    ids = ids_on_grid(some_ids(model.config), 1, model.config)
    with pytest.raises(ValueError, match="prompt id 21 is out of range: 16 to 19"):
        model.log_likelihood(ids)
    with pytest.raises(ValueError, match="prompt id 21 is out of range"):
        model.log_likelihood(ids, mask=np.zeros((4, 4), bool))
    with pytest.raises(ValueError, match="prompt id 21 is out of range"):
        model.generate(ids[:, :1])
    assert model.token_log_likelihoods(ids).shape == (5, 4)


def test_the_likelihood_of_a_part_sums_over_the_unknown_pixels(model):
    ids = torch.cat([torch.tensor([[17]]), torch.from_numpy(pixels_to_tokens(PICTURE[None], 2)).long()], dim=1)
    mask = np.zeros((4, 4), bool)
    mask[0, 1] = mask[2, 2] = True
    pictures = np.stack([PICTURE] * 4)
    pictures[:, [0, 2], [1, 2]] = [[0, 0], [0, 1], [1, 0], [1, 1]]
    all_ids = torch.cat([ids[:, :1].expand(4, 1), torch.from_numpy(pixels_to_tokens(pictures, 2)).long()], dim=1)
    exact = model.log_likelihood(all_ids).logsumexp(0).item()
    torch.manual_seed(0)
    estimate = model.log_likelihood(ids, mask=mask, num_particles=4096).item()
    assert estimate == pytest.approx(exact, abs=0.05)
    assert abs(exact - model.log_likelihood(ids).item()) > 0.2


def test_the_start_token_stays_on_the_grid_of_the_prompt(model):
    config = model.config
    ids = ids_on_grid(some_ids(config), 2, config)
    assert (with_start_token(ids, config)[:, 0] == config.start_token_id + 2 * (config.num_labels + 1)).all()
    with pytest.raises(ValueError, match=f"prompt id {16 + config.num_prompts} is out of range"):
        model.token_log_likelihoods(torch.cat([ids[:, :1] * 0 + 16 + config.num_prompts, ids[:, 1:]], dim=1))


def test_the_compiled_kernel_computes_what_the_modules_do_on_every_grid(tiny_model):
    pytest.importorskip("numba")
    model = tiny_model(hidden_size=16, num_attention_heads=2, num_grids=8)
    ids = torch.cat([ids_on_grid(some_ids(model.config, 2), grid, model.config) for grid in range(8)])
    with torch.no_grad():
        fast = model(input_ids=ids, use_cache=False).logits
        slow = model(input_ids=ids, use_cache=True).logits  # a cache: the modules
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(fast[0], fast[-2], atol=1e-3)


def test_new_grids_start_as_the_first_one_and_a_checkpoint_keeps_them(tiny_model, tmp_path):
    model = tiny_model()
    ids = some_ids(model.config)
    before = model.token_log_likelihoods(ids)
    model.set_grids(2)
    prompt = model.config.num_labels + 1
    torch.testing.assert_close(model.token_log_likelihoods(ids), before)
    moved = torch.cat([ids[:, :1] + prompt, ids[:, 1:]], dim=1)
    torch.testing.assert_close(model.token_log_likelihoods(moved), before)
    with torch.no_grad():
        model.base_model.embeddings.context.weight[-prompt:] += 1
    likelihoods = model.log_likelihood(ids)
    model.save_pretrained(tmp_path)
    loaded = IGPTForCausalImageModeling.from_pretrained(tmp_path)
    assert loaded.config.num_grids == 2
    torch.testing.assert_close(loaded.log_likelihood(ids), likelihoods)
    names = loaded.config.class_names
    loaded.set_classes([*names[1:], "new"])  # the known ones keep their prompts on both grids
    ids[:, 0] -= 1
    torch.testing.assert_close(loaded.log_likelihood(ids), likelihoods)
    loaded.set_grids(1)
    torch.testing.assert_close(loaded.token_log_likelihoods(ids), before)


def test_a_number_of_grids_that_a_block_does_not_have_is_refused(tiny_model):
    model = tiny_model()
    with pytest.raises(ValueError, match="num_grids must lie between 1 and 2 \\* patch_size\\*\\*2 = 8, got 9"):
        model.set_grids(9)
    assert model.config.num_grids == 1
    with pytest.raises(StrictDataclassError, match="num_grids must lie between 1 and 2 .* = 8, got 0"):
        IGPTConfig(num_grids=0)


def test_training_images_come_on_grids_that_change_with_the_epoch_and_evaluated_ones_do_not():
    config = IGPTConfig(image_size=4, neighborhood_radius=1, num_labels=3, num_grids=4)
    gray = np.random.default_rng(0).choice([0, 255], (64, 4, 4)).astype(np.uint8)  # pixels are certain
    features = datasets.Features(
        label=datasets.ClassLabel(num_classes=3), gray=datasets.List(datasets.Value("uint8"), length=16)
    )
    rows = {"gray": gray.reshape(64, 16).tolist(), "label": [i % 3 for i in range(64)]}
    split = datasets.Dataset.from_dict(rows, features=features)
    still = TokenDataset(split, config).__getitems__(list(range(64)))["input_ids"]
    dataset = TokenDataset(split, config, num_grids=4, gives_probs=True)
    grids = []
    for epoch in (0, 1, 0):
        dataset.choose_epoch(epoch)
        batch = dataset.__getitems__(list(range(64)))
        grids.append((batch["input_ids"][:, 0] - 16) // 4)
        for i, grid in enumerate(grids[-1].tolist()):
            assert torch.equal(batch["input_ids"][i], ids_on_grid(still[i : i + 1], grid, config)[0])
            moved = move_to_grid(gray[i : i + 1], grid, 2) / np.float32(255)
            np.testing.assert_array_equal(batch["token_probs"][i], token_probs(moved, 2)[0])
        assert torch.equal(batch["labels"][:, 1:], batch["input_ids"][:, 1:])
    assert torch.equal(grids[0], grids[2]) and not torch.equal(grids[0], grids[1])
    assert torch.bincount(grids[0], minlength=4).min() > 5
    for i in range(8):  # a batch that has no image on most grids
        assert torch.equal(dataset[i]["input_ids"], batch["input_ids"][i])


@pytest.mark.parametrize("before, after", [(1, 8), (8, 1), (4, 8)])
def test_a_checkpoint_is_loaded_with_other_grids(tiny_model, tmp_path, before, after):
    model = tiny_model(num_grids=before)
    model.save_pretrained(tmp_path)
    ids = some_ids(model.config)
    for how in ({"num_grids": after}, {"config": IGPTConfig(**{**model.config.to_diff_dict(), "num_grids": after})}):
        loaded = IGPTForCausalImageModeling.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **how)
        assert loaded.config.num_grids == after
        torch.testing.assert_close(loaded.token_log_likelihoods(ids), model.token_log_likelihoods(ids))


def test_the_same_number_of_grids_changes_nothing(tiny_model):
    model = tiny_model(nats_quantiles=[1.0, 2.0])
    model.set_grids(1)
    assert model.config.nats_quantiles == [1.0, 2.0]


@pytest.mark.slow
def test_a_checkpoint_is_trained_on_more_grids(tmp_path):
    train = [SCRIPTS / "train.py", "--data", "synthetic", "--max_images", 200, "--use_cpu", "true", "--max_steps", 2]
    start = ["--model_name_or_path", tmp_path / "one"]
    run_python(*train, "--output_dir", tmp_path / "one")
    run_python(*train, *start, "--num_grids", 4, "--output_dir", tmp_path / "four")
    assert IGPTConfig.from_pretrained(tmp_path / "four").num_grids == 4
    classify = run_python(*train, *start, "--num_grids", 4, "--task", "classification", check=False)
    assert classify.returncode == 1 and "--num_grids is for --task generation" in classify.stderr
    for begin in ([], start):
        wrong = run_python(*train, *begin, "--num_grids", 9, "--output_dir", tmp_path / "five", check=False)
        assert wrong.returncode == 1 and "Traceback" not in wrong.stderr
        assert "num_grids must lie between 1 and 2 * patch_size**2 = 8, got 9" in wrong.stderr
