"""The page in docs/demo in a real browser, opened from its folder: the same numbers as torch, and it draws."""

import base64
import itertools
import json
import os
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.browser import draw_stroke, serious_findings
from helpers.paths import DOCS
from igpt_hf import IGPTConfig, IGPTForCausalImageModeling, IGPTImageProcessor, bundled
from igpt_hf.hub.export import page_script


DERIVED = ("vocab_size", "num_labels")  # from patch_size, from id2label
PAGE = DOCS / "demo"
# Logits after each token of several sequences; half way each becomes a copy of another one.
LOGITS = """([sequences, index]) => {
    const igpt = defineModel(), model = new igpt.ImageGPT(CHECKPOINT);
    const decoder = new igpt.Decoder(model, sequences.map(ids => ids[0]));
    return sequences[0].slice(1).map((_, t) => {
        if (t === Math.floor((sequences[0].length - 1) / 2)) decoder.reorder(index);
        const rows = igpt.splitRows(decoder.logits(), decoder.count).map(row => [...row]);
        decoder.push(sequences.map(ids => ids[1 + t]));
        return rows;
    });
}"""
SAMPLES = """requests => {
    const igpt = defineModel(), model = new igpt.ImageGPT(CHECKPOINT);
    return requests.map(({seed, ...request}) => {
        const sampling = defineSampling(igpt).sampleImage(model, {...request, random: igpt.randomNumbers(seed)});
        for (;;) { const {done, value} = sampling.next(); if (done) return value; }
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


def write_page(model, folder: Path) -> str:
    """The address of a page with this model."""
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    (folder / "weights.js").write_text(page_script(model))
    return (folder / "index.html").as_uri()


def wait_until_drawn(page):
    page.wait_for_selector("body[data-state=done]")


@torch.no_grad()
def assert_same_logits(page, model, ids: torch.Tensor):
    """Compare with torch the logits of three sequences that become copies of others half way."""
    index, half = [2, 2, 0], (ids.shape[1] - 1) // 2
    copied = torch.cat([ids[index, : half + 1], ids[:, half + 1 :]], dim=1)
    logits = torch.tensor(page.evaluate(LOGITS, [ids.tolist(), index])).transpose(0, 1)  # (3, N, V)
    expected = torch.cat(
        [
            model(input_ids=ids[:, :half]).logits,
            model(input_ids=copied[:, :-1]).logits[:, half:],
        ],
        dim=1,
    )
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_the_page_is_small_and_needs_no_other_place():
    num_weights = IGPTForCausalImageModeling.from_pretrained(bundled("persian-digits")).num_parameters()
    assert (PAGE / "weights.js").stat().st_size < 4 * num_weights + 6000
    for path in PAGE.iterdir():
        assert "http" not in path.read_text().replace("xmlns='http://www.w3.org/2000/svg'", ""), path.name


def test_its_logits_are_those_of_torch(open_page, committed):
    torch.manual_seed(0)
    ids = committed.generate(torch.tensor([[committed.config.vocab_size + label] for label in (3, 5, 10)]))
    assert_same_logits(open_page((PAGE / "index.html").as_uri()), committed, ids)


@pytest.mark.parametrize(
    "overrides",
    [
        {"neighborhood_radius": 0},
        {"patch_size": 1, "neighborhood_radius": 1, "image_size": 6},
        {"patch_size": 3, "image_size": 9, "neighborhood_radius": 1, "num_labels": 1},
        {"num_attention_heads": 8, "num_hidden_layers": 1, "intermediate_size": 21, "rms_norm_eps": 1e-2},
        {"hidden_size": 30, "num_attention_heads": 3, "class_conditional_norm": True, "num_labels": 40},
    ],
)
def test_it_reads_shapes_from_the_checkpoint(overrides, open_page, tiny_model, random_ids, tmp_path):
    model = tiny_model(**overrides)
    page = open_page(write_page(model, tmp_path))
    assert_same_logits(page, model, random_ids(model.config))
    wait_until_drawn(page)
    page.click("#complete")
    page.wait_for_selector("#completion[data-state=done]")
    assert page.locator("#answers figure").count() > 0
    assert page.is_visible("#classes") == (model.config.num_labels > 1)
    assert page.evaluate("document.documentElement.scrollWidth") == 1280


def test_weights_that_it_does_not_know_are_an_error(browser, tmp_path):
    model = read_page(PAGE / "weights.js")
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(16))
    page = browser.new_page()
    page.goto(write_page(model, tmp_path))
    page.wait_for_selector("#error:not([hidden])")
    message = page.inner_text("#error")
    page.close()
    assert "lm_head.bias" in message


def test_it_draws_the_digit_that_is_asked_for(open_page, committed):
    """With no seeds chosen, the model itself reads nearly all as what they are, as torch does."""
    page = open_page((PAGE / "index.html").as_uri())
    requests = [{"label": label, "temperature": 0.8, "minPosterior": 0.9, "seed": 0} for label in range(5)]
    images = page.evaluate(SAMPLES, requests)
    tokens = torch.tensor([image["tokens"] for image in images])
    ids = torch.cat([torch.full((5, 1), committed.config.start_token_id), tokens], dim=1)
    posterior = committed.class_posterior(ids)
    torch.testing.assert_close(
        torch.tensor([image["posterior"] for image in images]).double(), posterior, atol=1e-4, rtol=0
    )
    assert all(image["own"] >= 0.9 or image["tries"] == 10 for image in images)
    assert (posterior.argmax(dim=1) == torch.arange(5)).sum() >= 4


def test_images_of_any_class_are_drawn_again_until_their_class_is_clear(open_page):
    page = open_page((PAGE / "index.html").as_uri())
    requests = [{"label": None, "temperature": 1.6, "minPosterior": least, "seed": 3} for least in (0, 0.999)]
    plain, clear = page.evaluate(SAMPLES, requests)
    assert max(plain["posterior"]) < 0.999 and plain["tries"] == 1
    assert clear["own"] == max(clear["posterior"])
    assert clear["own"] >= 0.999 or clear["tries"] == 10


def test_samples_follow_the_probabilities(open_page, tiny_model, tmp_path):
    """Fractions of the first token among 2000 samples, beside torch's probabilities."""
    model = tiny_model()
    page = open_page(write_page(model, tmp_path))
    first = page.evaluate(
        """() => { const igpt = defineModel(), model = new igpt.ImageGPT(CHECKPOINT), random = igpt.randomNumbers(5);
           const probabilities = igpt.softmax(new igpt.Decoder(model, [model.promptId(1)]).logits(), 0.7);
           return Array.from({length: 2000}, () => igpt.sampleIndex(probabilities, random())); }"""
    )
    fractions = torch.bincount(torch.tensor(first), minlength=16) / len(first)
    with torch.no_grad():
        expected = (model(input_ids=torch.tensor([[17]])).logits[0, 0] / 0.7).softmax(0)
    assert (fractions - expected).abs().max() < 0.04


NAMES = dict(enumerate("0123456789"))


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory) -> Path:
    """A page whose model is of the same size as the committed one but for its depth."""
    folder = tmp_path_factory.mktemp("page")
    write_page(tiny_model(image_size=28, num_hidden_layers=1, num_labels=10, id2label=NAMES), folder)
    return folder


@pytest.fixture(scope="module")
def served(tiny_model, tmp_path_factory):
    """The address of a page from a server; its images are small, since most are read as another digit, ten times."""
    folder = tmp_path_factory.mktemp("served")
    write_page(tiny_model(num_labels=10, id2label=NAMES), folder)
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)])
def test_a_person_draws_a_digit(width, height, open_page, served):
    page = open_page(served, width, height)
    wait_until_drawn(page)
    page.locator("#classes label", has_text="7").click()
    wait_until_drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    assert re.match(r"\d+\.\d nats · read as 7 with >?\d+\.\d% · (try \d+ · )?\d+ ms", page.inner_text("#status"))
    assert page.get_attribute("#picture", "aria-label") == "7, drawn by the model in white on dark; seed 6"
    assert page.locator("#history button").count() == 2

    image = "document.getElementById('picture').toDataURL()"
    seven = page.evaluate(image)
    page.click("#draw")
    wait_until_drawn(page)
    assert page.evaluate(image) != seven
    page.fill("#seed", "6")
    page.press("#seed", "Enter")
    wait_until_drawn(page)
    assert page.evaluate(image) == seven  # the same seed, the same image
    page.click("#again")
    page.locator("#classes label", has_text="any").click()
    wait_until_drawn(page)
    assert page.evaluate(image) != seven
    top = page.locator("#history").bounding_box()["height"]
    page.locator("#history button").nth(1).click()
    wait_until_drawn(page)
    assert page.evaluate(image) == seven and page.is_checked("#again")  # all settings are those of that time
    assert page.locator("#history button").count() == 4  # 4, two 7s and any: the same one is there once
    assert page.locator("#history button").first.evaluate("button => button === document.activeElement")
    for _ in range(4):
        page.click("#draw")
        wait_until_drawn(page)
    assert page.locator("#history").bounding_box()["height"] == pytest.approx(
        top, abs=0.5
    )  # a second row moves nothing
    assert page.is_visible(".project a")
    page.click("#slow")
    page.wait_for_function("document.getElementById('growth').textContent.includes('block')")
    page.click("#slow")
    wait_until_drawn(page)
    page.click("#use")
    assert page.evaluate("document.activeElement.id") == "pad"


def test_persian_digits_have_both_their_names_everywhere(open_page):
    page = open_page((PAGE / "index.html").as_uri())
    wait_until_drawn(page)
    names = [f"{chr(0x6F0 + digit)}\u00a0{digit}" for digit in range(10)]
    assert page.locator("#classes label").all_inner_texts() == [*names, "any"]
    assert "read as ۴\u00a04 with" in page.inner_text("#status")
    assert page.locator("#pad-class option").all_inner_texts() == ["any", *names]
    complete(page)
    assert page.locator("a[href$='.md']").count() == 0  # from disk no browser lays them out
    assert {text.split(" (")[0] for text in page.locator("#answers figcaption").all_inner_texts()} <= set(names)
    assert set(page.locator("#posterior li span:first-child").all_inner_texts()) <= set(names)


def test_the_first_digit_is_there_in_a_second(open_page):
    """On an idle machine; where several processes share a core, so many times a second."""
    page = open_page((PAGE / "index.html").as_uri())
    wait_until_drawn(page)
    assert page.evaluate("performance.now()") < 1000 * max(1, os.getloadavg()[0])


def test_temperature_and_odd_seeds(open_page, tiny_model, tmp_path):
    page = open_page(write_page(tiny_model(), tmp_path))
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


def test_a_seed_that_was_typed_is_drawn_by_the_button_too(open_page, tiny_model, tmp_path):
    page = open_page(write_page(tiny_model(), tmp_path))
    wait_until_drawn(page)
    page.fill("#seed", "42")
    page.click("#draw")
    wait_until_drawn(page)
    assert page.input_value("#seed") == "42"
    page.click("#draw")
    assert page.input_value("#seed") == "43"
    wait_until_drawn(page)


def test_while_an_image_grows_there_is_none_to_complete(open_page, tiny_model, tmp_path):
    page = open_page(write_page(tiny_model(), tmp_path))
    wait_until_drawn(page)
    page.evaluate("DURATION.fast = 60000")
    page.click("#draw")
    page.wait_for_function("document.getElementById('growth').textContent.includes('block')")
    assert page.is_disabled("#use")
    page.evaluate("DURATION.fast = 0")
    page.click("#draw")
    wait_until_drawn(page)
    assert page.is_enabled("#use")


def test_a_computation_that_fails_says_so_and_ends(browser, tiny_model, tmp_path):
    page = browser.new_page()
    page.goto(write_page(tiny_model(), tmp_path))
    wait_until_drawn(page)
    page.evaluate(
        """() => new Promise((fail) => {
            const { engine } = pageParts.complete;
            engine.ask("complete", { seed: 1 }, null, null, fail); // without an image
            pageParts.complete.engine = { ask: (...args) => args[4](), cancel() {} };
        })"""
    )
    page.click("#complete")
    assert "The model of this page does not run: TypeError" in page.inner_text("#error")
    assert page.inner_text("#complete") == "Complete" and page.inner_text("#completion-status") == ""
    page.close()


def test_equal_answers_of_different_classes_keep_their_classes(open_page, tiny_model, tmp_path):
    page = open_page(write_page(tiny_model(), tmp_path))
    answers = [{"tokens": [1, 2], "label": label} for label in (2, 3, 3, 3)]
    groups = page.evaluate("answers => groupAnswers(answers)", answers)
    assert [(group["label"], group["num"]) for group in groups] == [(3, 3), (2, 1)]


# --- completion -----------------------------------------------------------------------------------------------------

RUNS = """([num, settings]) => {
    const igpt = defineModel(), {complete} = defineCompletion(igpt), model = new igpt.ImageGPT(CHECKPOINT);
    const random = igpt.randomNumbers(7);
    return Array.from({length: num}, () => {
        const run = complete(model, {...settings, random});
        for (;;) { const {done, value} = run.next(); if (done) return value; }
    });
}"""
MASKS = {  # true where a pixel of 4x4 is unknown: eight of them, so that there are 256 completions
    "right half known": np.tile([True, True, False, False], (4, 1)),
    "lower half known": np.repeat([True, True, False, False], 4).reshape(4, 4),
    "scattered": np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0]], bool),
}
IMAGE = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 1], [1, 1, 0, 0]], bool)


@pytest.fixture(scope="module")
def small(tiny_model):
    """A model of 4x4 images with random weights, far from uniform."""
    model = tiny_model(image_size=4, num_hidden_layers=1, neighborhood_radius=1)
    torch.nn.init.normal_(model.lm_head.weight, generator=torch.Generator().manual_seed(3))
    return model


def exact_completions(model, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """All images with the known pixels of IMAGE, as tokens (256, 4), and p(image | class), (256, 3)."""
    images = np.repeat(IMAGE[None], 2 ** mask.sum(), axis=0)
    images[:, mask] = list(itertools.product([False, True], repeat=int(mask.sum())))
    ids = IGPTImageProcessor(image_size=4, num_labels=3)(list(images), class_labels=[0] * len(images))["input_ids"]
    return ids[:, 1:], model.class_log_likelihoods(ids).exp()


@pytest.mark.parametrize("name", MASKS)
def test_completions_agree_with_exact_sums(name, open_page, small, tmp_path):
    mask = MASKS[name]
    tokens, p = exact_completions(small, mask)
    page = open_page(write_page(small, tmp_path))
    prompt = IGPTImageProcessor(image_size=4, num_labels=3).prompt(class_labels=[1], images=IMAGE, mask=mask)
    settings = {"tokens": prompt["known_tokens"][0].tolist(), "masks": prompt["known_masks"][0].tolist()}

    few = page.evaluate(RUNS, [300, settings | {"numParticles": 9, "numAnswers": 1}])
    estimates = np.exp([run["logEvidence"] for run in few])
    assert abs(estimates.mean() - p.sum(0).mean().item()) < 3 * estimates.std() / 300**0.5 + 1e-12

    many = page.evaluate(RUNS, [1, settings | {"numParticles": 3000, "numAnswers": 1}])[0]
    expected = p.sum(0) / p.sum()
    torch.testing.assert_close(torch.tensor(many["posterior"]).double(), expected, atol=0.04, rtol=0)

    runs = page.evaluate(RUNS, [1000, settings | {"label": 1, "numParticles": 24, "numAnswers": 1}])
    place = {tuple(row): i for i, row in enumerate(tokens.tolist())}  # of completions that keep what is known
    answers = torch.tensor([place[tuple(run["answers"][0]["tokens"])] for run in runs])
    exact = p[:, 1] / p[:, 1].sum()
    draws = torch.multinomial(exact.expand(20, -1), 1000, replacement=True)
    distance, *of_draws = (
        (torch.bincount(x, minlength=256) / 1000 - exact).abs().sum().item() / 2 for x in (answers, *draws)
    )
    assert distance < 1.5 * sum(of_draws) / len(of_draws)


def stroke(page, *points):
    """Draw on the pad; points are fractions of its sides."""
    draw_stroke(page, page.locator("#pad"), points, steps=4)


def on_pad(page) -> tuple[np.ndarray, np.ndarray]:
    """Ink and hidden pixels of the pad, (28, 28) each."""
    state = page.evaluate("[...pageParts.complete.pad.ink, ...pageParts.complete.pad.hidden]")
    ink, hidden = np.array(state, bool).reshape(2, 28, 28)
    return ink, hidden


def complete(page):
    page.click("#complete")
    page.wait_for_selector("#completion[data-state=done]")


@pytest.mark.parametrize("width, height", [(1280, 800), (390, 844)])
def test_a_person_completes_a_drawing(width, height, open_page, folder):
    page = open_page((folder / "index.html").as_uri(), width, height)
    page.select_option("#particles", "32")
    wait_until_drawn(page)
    ink, hidden = on_pad(page)
    assert ink.any() and hidden[:, 14:].all() and not hidden[:, :14].any()  # an example to begin with
    page.click("#clear")
    stroke(page, (0.5, 0.1), (0.5, 0.9))
    drawn, hidden = on_pad(page)
    assert drawn[4:24, 13:15].all() and not drawn[:, :10].any() and not hidden.any()
    page.locator("#tools label", has_text="Eraser").click()
    stroke(page, (0.4, 0.9), (0.6, 0.9))
    assert not on_pad(page)[0][25].any()
    page.locator("#tools label", has_text="Hide").click()
    stroke(page, (0.5, 0.7), (0.5, 0.9))
    assert on_pad(page)[1][20:25, 14].all()
    page.locator("#tools label", has_text="Show").click()
    stroke(page, (0.5, 0.7), (0.5, 0.9))
    assert not on_pad(page)[1].any()
    for _ in range(3):
        page.click("#undo")
    assert (on_pad(page)[0] == drawn).all()
    for region, num in (("middle", None), ("lower", 392), ("nothing", 0), ("right", 392)):
        page.click(f"[data-region={region}]")
        assert num is None or on_pad(page)[1].sum() == num

    complete(page)
    assert 1 <= page.locator("#answers figure").count() <= 8
    assert "Most likely" in page.inner_text("#completion-status") and page.locator("#posterior li").count() == 5
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.select_option("#pad-class", "1")
    assert page.locator("#answers figure").count() == 0  # they answered another question
    complete(page)
    assert set(page.locator("#answers figcaption").all_inner_texts()) <= {"1", *(f"1 ({n}×)" for n in range(2, 9))}
    assert page.is_hidden("#posterior-part")
    page.select_option("#particles", "256")
    page.click("#complete")
    page.wait_for_selector("#progress:not([hidden])")
    page.click("#complete")
    assert page.inner_text("#completion-status") == "Stopped."
    page.click("[data-region=nothing]")
    complete(page)
    assert "nothing to fill in" in page.inner_text("#completion-status")


def test_the_pad_is_drawn_on_by_keys(open_page, folder):
    page = open_page((folder / "index.html").as_uri())
    wait_until_drawn(page)
    page.click("#clear")
    page.locator("#use").focus()
    while page.evaluate("document.activeElement.id") != "pad":  # the pad is reached by Tab, and left by it
        page.keyboard.press("Tab")
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", "Space", "Shift+ArrowDown", "Shift+ArrowDown"):
        page.keyboard.press(key)
    ink, _ = on_pad(page)
    assert ink[13:16, 12].all() and not ink[:, :10].any()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "tool"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(scheme, width, open_page, tiny_model, tmp_path):
    page = open_page(write_page(tiny_model(), tmp_path), width)
    page.emulate_media(color_scheme=scheme)
    wait_until_drawn(page)
    complete(page)
    assert serious_findings(page, preload=False) == []
