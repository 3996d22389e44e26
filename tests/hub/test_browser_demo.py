"""The page in docs/demo in a real browser, opened from its folder: the same numbers as torch, and it draws."""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.paths import DOCS
from igpt_hf import IGPTConfig, IGPTForCausalImageModeling
from igpt_hf.hub.export import export_page


DERIVED = ("vocab_size", "num_labels")  # from patch_size, from id2label
PAGE = DOCS / "demo"
LOGITS = """ids => {
    const sequence = model.begin(ids[0] - model.config.vocab_size);
    return ids.slice(1).map(token => {
        const logits = [...model.step(sequence)];
        sequence.ids.push(token);
        return logits;
    });
}"""


def read_page(path: Path) -> IGPTForCausalImageModeling:
    """The model whose weights a page has."""
    checkpoint = json.loads(path.read_text().removeprefix("const CHECKPOINT = ").removesuffix(";\n"))
    settings = {name: value for name, value in checkpoint["config"].items() if name not in DERIVED}
    settings["id2label"] = {int(label): name for label, name in settings["id2label"].items()}
    model = IGPTForCausalImageModeling(IGPTConfig(**settings)).eval()
    triples = np.frombuffer(base64.b64decode(checkpoint["weights"]), np.uint8).reshape(-1, 3)
    bits = np.concatenate([triples, np.zeros_like(triples[:, :1])], axis=1)
    weights = torch.from_numpy(bits.copy().view(">f4").ravel().astype(np.float32))
    shapes = checkpoint["tensors"]
    parts = weights.split([int(np.prod(shape)) for shape in shapes.values()])
    tensors = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    model.load_state_dict(tensors)
    return model


@pytest.fixture(scope="module")
def committed() -> IGPTForCausalImageModeling:
    return read_page(PAGE / "weights.js")


def copy_page(folder: Path) -> Path:
    for name in ("index.html", "style.css", "igpt.js", "page.js"):
        shutil.copy(PAGE / name, folder)
    return folder


def wait_until_drawn(page):
    page.wait_for_selector("body[data-state=done]")


@torch.no_grad()
def logits_of(model, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids[:, :-1]).logits[0]


def test_the_page_is_small_and_needs_no_other_place():
    assert (PAGE / "weights.js").stat().st_size < 150_000
    for path in PAGE.iterdir():
        assert "http" not in path.read_text().replace("xmlns='http://www.w3.org/2000/svg'", ""), path.name


def test_its_logits_are_those_of_torch(open_page, committed):
    torch.manual_seed(0)
    ids = committed.generate(torch.tensor([[committed.config.vocab_size + 3]]))
    page = open_page((PAGE / "index.html").as_uri())
    logits = torch.tensor(page.evaluate(LOGITS, ids[0].tolist()))
    assert logits.shape == (196, 16)
    torch.testing.assert_close(logits, logits_of(committed, ids), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"neighborhood_radius": 0},
        {"patch_size": 1, "neighborhood_radius": 1, "image_size": 6},
        {"num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 20, "rms_norm_eps": 1e-2},
        {"class_conditional_norm": True},
    ],
)
def test_it_reads_shapes_from_the_checkpoint(overrides, open_page, tiny_model, random_ids, tmp_path):
    model = tiny_model(**overrides)
    export_page(model, copy_page(tmp_path) / "weights.js")
    page = open_page((tmp_path / "index.html").as_uri())
    ids = random_ids(model.config, n=1)
    logits = torch.tensor(page.evaluate(LOGITS, ids[0].tolist()))
    torch.testing.assert_close(logits, logits_of(model, ids), atol=1e-3, rtol=0)


def test_weights_that_it_does_not_know_are_an_error(browser, tmp_path):
    model = read_page(PAGE / "weights.js")
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(16))
    export_page(model, copy_page(tmp_path) / "weights.js")
    page = browser.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "index.html").as_uri())
    page.close()
    assert "lm_head.bias" in errors[0]


def test_it_draws_the_digit_that_is_asked_for(open_page, committed):
    page = open_page((PAGE / "index.html").as_uri())
    labels = list(range(10)) * 2
    draw = "([label, seed]) => model.sample({label, temperature: 0.8, random: randomNumbers(seed)}).tokens"
    tokens = torch.tensor([page.evaluate(draw, [label, seed]) for seed, label in enumerate(labels)])
    ids = torch.cat([torch.full((len(labels), 1), committed.config.start_token_id), tokens], dim=1)
    guesses = committed.class_posterior(ids).argmax(dim=1)
    assert (guesses == torch.tensor(labels)).sum() >= 17


def test_samples_follow_the_probabilities(open_page, tiny_model, tmp_path):
    """Shares of the first token among 2000 samples, beside torch's probabilities."""
    model = tiny_model()
    export_page(model, copy_page(tmp_path) / "weights.js")
    page = open_page((tmp_path / "index.html").as_uri())
    first = page.evaluate(
        """() => { const random = randomNumbers(5), logits = model.step(model.begin(1));
           return Array.from({length: 2000}, () => draw(softmax(logits, 0.7), random())); }"""
    )
    shares = torch.bincount(torch.tensor(first), minlength=16) / len(first)
    with torch.no_grad():
        expected = (model(input_ids=torch.tensor([[17]])).logits[0, 0] / 0.7).softmax(0)
    assert (shares - expected).abs().max() < 0.04


@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)])
def test_a_person_draws_a_digit(width, height, open_page, tmp_path):
    page = open_page((PAGE / "index.html").as_uri(), width, height)
    wait_until_drawn(page)
    page.locator("#digits label", has_text="7").click()
    page.wait_for_selector("body[data-state=drawing]")
    page.wait_for_timeout(300)
    page.screenshot(path=tmp_path / "growing.png")
    wait_until_drawn(page)
    page.screenshot(path=tmp_path / "drawn.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    assert "nats" in page.inner_text("#status")
    assert page.locator("#history canvas").count() == 2

    picture = "document.getElementById('picture').toDataURL()"
    seven = page.evaluate(picture)
    page.click("#draw")
    wait_until_drawn(page)
    assert page.evaluate(picture) != seven
    page.fill("#seed", "1")
    page.press("#seed", "Enter")
    wait_until_drawn(page)
    assert page.evaluate(picture) == seven  # the same seed, the same picture


def test_a_digit_is_drawn_in_less_than_two_seconds(open_page):
    page = open_page((PAGE / "index.html").as_uri())
    wait_until_drawn(page)
    milliseconds = page.evaluate(
        """() => new Promise(resolve => {
            const start = performance.now();
            document.getElementById("draw").click();
            new MutationObserver(() => resolve(performance.now() - start))
                .observe(document.body, {attributeFilter: ["data-state"]});
        })"""
    )
    assert 500 < milliseconds < 2000  # it grows, and is not just there


def test_temperature_and_odd_seeds(open_page):
    page = open_page((PAGE / "index.html").as_uri())
    page.evaluate("DURATION.fast = 0")
    nats = []
    for temperature in ("0.2", "1.6"):
        page.locator("#temperature").fill(temperature)
        wait_until_drawn(page)
        nats.append(float(page.inner_text("#status").split()[0]))
    assert nats[0] < nats[1]
    for typed, taken in (("-3", "0"), ("99999999999", "4294967295"), ("", "0"), ("2.7", "2")):
        page.fill("#seed", typed)
        page.press("#seed", "Enter")
        wait_until_drawn(page)
        assert page.input_value("#seed") == taken
