"""The app: what its functions answer, and a person at it, in a real browser, on a desktop and on a phone."""

import base64
import io
import os
import re
import runpy
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import psutil
import pytest
import torch
from huggingface_hub import ModelCard
from packaging.requirements import Requirement
from PIL import Image, ImageDraw

from helpers.paths import SCRIPTS


pytest.importorskip("gradio", reason="there is no gradio: pip install -e '.[demo]'")

from igpt_hf import IGPTConfig, IGPTForCausalImageModeling, IGPTImageProcessor, bundled  # noqa: E402
from igpt_hf.app.answers import ANY, MAX_IMAGES, Settings, complete, data_uri, generate, read, to_pixels  # noqa: E402
from igpt_hf.app.page import launch  # noqa: E402
from igpt_hf.data.synthetic import draw_digit  # noqa: E402


SCRIPT = SCRIPTS / "app.py"
HAS_INK = """() => {
    const canvas = document.querySelector(".pad canvas");
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return data.some((x, i) => i % 4 < 3 && x > 200);
}"""
SETTINGS = Settings(label=3, num=2, temperature=1.0, guidance=1.0, seed=0)


@pytest.fixture(scope="module")
def model() -> IGPTForCausalImageModeling:
    """Of the size of the reference model, with random weights."""
    model = IGPTForCausalImageModeling(IGPTConfig.from_preset("xxs")).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


@pytest.fixture(scope="module")
def processor() -> IGPTImageProcessor:
    return IGPTImageProcessor(margin=2)


@pytest.fixture(scope="module")
def address(model, processor):
    app = launch(model, processor, prevent_thread_lock=True, quiet=True)
    yield app.local_url
    app.close(verbose=False)


def digit(label: int = 7) -> Image.Image:
    """A drawn digit, as large as the drawing area."""
    picture = Image.fromarray(draw_digit(label, np.random.default_rng(label)))
    return picture.resize((280, 280), Image.Resampling.NEAREST)


def images_in(html: str) -> list[np.ndarray]:
    codes = re.findall(r"data:image/png;base64,([^\"]+)", html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in codes]


def test_an_uploaded_photograph_is_cropped_to_its_ink_and_a_drawing_stays_where_it_is(processor):
    trained = processor.decide([digit(label) for label in range(4)]).replace(ink_margin=4)
    light = 120 + 100 * np.linspace(0, 1, 280)[None] + np.random.default_rng(0).normal(0, 3, (280, 280))
    ink = Image.new("L", (280, 280), 0)
    ImageDraw.Draw(ink).ellipse((20, 30, 120, 130), outline=255, width=14)
    photo = Image.fromarray((light * (1 - 0.8 * np.asarray(ink) / 255)).clip(0, 255).astype(np.uint8))
    rows = np.flatnonzero(to_pixels(trained, photo).any(axis=1))
    assert (rows[0], rows[-1]) == (4, 23)
    rows = np.flatnonzero(to_pixels(trained, ink).any(axis=1))
    assert (rows[0], rows[-1]) == (3, 12)
    with pytest.raises(ValueError, match="nothing is left of the image"):
        to_pixels(trained, Image.new("L", (280, 280), 200))


# --- what the functions answer --------------------------------------------------------------------------------------


def test_generate_draws_as_many_as_asked_and_the_same_for_one_seed(model, processor):
    images = images_in(generate(model, processor, *SETTINGS._replace(num=3)))
    again = images_in(generate(model, processor, *SETTINGS._replace(num=3)))
    other = images_in(generate(model, processor, *SETTINGS._replace(num=3, seed=1)))
    assert [x.shape for x in images] == [(28, 28)] * 3
    assert np.array_equal(images, again)
    assert not np.array_equal(images, other)


def test_any_class_is_asked_for_by_the_start_token(model, processor):
    torch.manual_seed(5)
    ids = model.generate(torch.full((2, 1), model.config.start_token_id))
    images = images_in(generate(model, processor, *SETTINGS._replace(label=ANY, seed=5)))
    assert np.array_equal(np.array(images) > 0, processor.decode_pixels(ids) > 0)


def test_complete_keeps_the_rows_that_are_given(model, processor):
    given, *answers = images_in(complete(model, processor, data_uri(digit()), 10, *SETTINGS._replace(num=4)))
    seen = np.asarray(digit().resize((28, 28), Image.Resampling.NEAREST))
    assert np.array_equal(given[:10, :, 0], seen[:10])
    assert (given[:10, :, 1] == 255).all() and (given[10:, :, 1] == 0).all()  # what is not given is not shown
    assert len(answers) == 4
    for answer in answers:
        assert np.array_equal(answer[:10], seen[:10])
    assert not np.array_equal(answers[0], answers[1])


def test_complete_takes_dark_ink_on_light_paper(model, processor):
    light = Image.eval(digit(), lambda level: 255 - level)
    images = [images_in(complete(model, processor, data_uri(x), 14, *SETTINGS))[1] for x in (digit(), light)]
    assert np.array_equal(*images)


def test_read_shows_the_posterior_and_a_surprise_that_adds_up(model, processor):
    picture = digit()
    answer = read(model, processor, data_uri(picture))
    seen, heat = images_in(answer)
    assert heat.shape == (28, 28, 3)
    ids = processor(seen > 0)["input_ids"]
    posterior = model.class_posterior(ids)[0]
    shares = [float(x) for x in re.findall(r'class="share">([\d.]+)%', answer)]
    assert shares == pytest.approx((100 * posterior).tolist(), abs=0.06)
    nats = -model.class_log_likelihoods(ids)[0, posterior.argmax()].item()
    assert f"its surprise: {nats:.1f} nats" in answer


def test_read_moves_the_drawing_to_the_middle(model, processor):
    small = digit().resize((120, 120))
    canvases = []
    for corner in ((0, 0), (150, 160)):
        canvas = Image.new("L", (280, 280))
        canvas.paste(small, corner)
        canvases.append(images_in(read(model, processor, data_uri(canvas)))[0])
    assert np.array_equal(*canvases)
    rows, columns = np.nonzero(canvases[0])
    assert abs(rows.min() - (27 - rows.max())) <= 1 and abs(columns.min() - (27 - columns.max())) <= 1


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num": MAX_IMAGES + 1}, "number of images must be a whole number from 1 to 16, not 17"),
        ({"num": 1.5}, "whole number"),
        ({"num": None}, "not None"),
        ({"label": 10}, "class must be"),
        ({"label": -2}, "class must be"),
        ({"temperature": 0}, "temperature must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"guidance": 100}, "Guidance must be"),
        ({"seed": 2**32}, "seed must be"),
    ],
)
def test_settings_out_of_bounds_are_refused_in_words(wrong, message, model, processor):
    with pytest.raises(ValueError, match=message):
        generate(model, processor, *SETTINGS._replace(**wrong))
    with pytest.raises(ValueError, match=message):
        complete(model, processor, data_uri(digit()), 14, *SETTINGS._replace(**wrong))


@pytest.mark.parametrize(
    "drawing, message",
    [
        (None, "draw something first"),
        (data_uri(Image.new("L", (280, 280))), "draw something first"),
        ("http://127.0.0.1/picture.png", "a PNG as a data: address"),
        ("data:image/png;base64," + 600_000 * "A", "at most 500,000 characters"),
        ("data:image/png;base64,AAAA", "could not be read as a PNG"),
        (data_uri(digit())[:150], "could not be read as a PNG"),
        (data_uri(Image.new("L", (3000, 3000))), "at most 2000 pixels a side"),
    ],
)
def test_drawings_that_are_none_are_refused_in_words(drawing, message, model, processor):
    with pytest.raises(ValueError, match=message):
        read(model, processor, drawing)


def test_rows_that_are_empty_or_too_many_are_refused(model, processor):
    low = Image.new("L", (280, 280))
    low.paste(255, (100, 200, 150, 250))
    with pytest.raises(ValueError, match="The upper 14 rows are empty"):
        complete(model, processor, data_uri(low), 14, *SETTINGS)
    with pytest.raises(ValueError, match="number of rows must be a number from 2 to 26, not 28"):
        complete(model, processor, data_uri(digit()), 28, *SETTINGS)
    with pytest.raises(ValueError, match="multiple of patch_size"):
        complete(model, processor, data_uri(digit()), 13, *SETTINGS)


# --- the script -----------------------------------------------------------------------------------------------------


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as any_socket:
        any_socket.bind(("127.0.0.1", 0))
        return any_socket.getsockname()[1]


@pytest.mark.slow
def test_the_script_answers_within_20_seconds(model, processor, tmp_path, unused_port):
    model.save_pretrained(tmp_path / "runs" / "synthetic")
    processor.save_pretrained(tmp_path / "runs" / "synthetic")
    command = [sys.executable, str(SCRIPT), "--port", str(unused_port)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        page = wait_for(f"http://127.0.0.1:{unused_port}/", process)
        spent = psutil.Process(process.pid).cpu_times()
    finally:
        process.terminate()
        process.wait()
    assert "A tiny Image GPT" in page
    assert spent.user + spent.system < 20  # the clock would count what else the machine does


def test_without_a_model_the_script_shows_the_bundled_one(monkeypatch):
    shown = []
    monkeypatch.setattr("igpt_hf.app.page.launch", lambda *given, **options: shown.extend(given))
    monkeypatch.setattr(sys, "argv", ["app.py"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert shown[0].name_or_path == bundled("persian-digits")


def test_a_model_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv, message in (
        ([str(tmp_path)], "error: .* holds no trained model"),
        (["/nowhere"], "error: there is no folder /nowhere"),
    ):
        monkeypatch.setattr(sys, "argv", ["app.py", *argv])
        with pytest.raises(SystemExit, match=message):
            runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.slow
def test_a_space_runs_without_this_repository(model, processor, tmp_path, monkeypatch, unused_port, capsys):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    space = tmp_path / "space"
    monkeypatch.setattr(sys, "argv", ["app.py", str(tmp_path / "model"), "--space", str(space)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "docs/space.md" in capsys.readouterr().out
    assert (
        ModelCard.load(space / "README.md").data.to_dict().items() >= {"sdk": "gradio", "app_file": "app.py"}.items()
    )
    names = {Requirement(line).name for line in (space / "requirements.txt").read_text().splitlines()[1:]}
    assert {"torch", "transformers", "numba", "pillow"} <= names and "gradio" not in names

    with pytest.raises(SystemExit, match="error: .*not an empty folder"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    environment = os.environ | {"GRADIO_SERVER_PORT": str(unused_port), "PYTHONPATH": ""}
    environment["NUMBA_DISABLE_JIT"] = "1"  # a new copy of the package would compile its kernels anew
    show = "import igpt_hf, runpy; assert igpt_hf.__file__.startswith(PLACE); runpy.run_path(PLACE + '/app.py')"
    command = [sys.executable, "-c", show.replace("PLACE", repr(str(space)))]
    process = subprocess.Popen(command, cwd=space, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert "A tiny Image GPT" in wait_for(f"http://127.0.0.1:{unused_port}/", process)
    finally:
        process.kill()
        process.wait()


def wait_for(url: str, process: subprocess.Popen, seconds: float = 120) -> str:
    for _ in range(int(seconds / 0.2)):
        assert process.poll() is None, process.stderr.read()
        try:
            return urllib.request.urlopen(url, timeout=10).read().decode()
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"no answer from {url} in {seconds} s")


# --- a person at it -------------------------------------------------------------------------------------------------


def draw_seven(page):
    """Draw with the mouse, in one stroke, across the drawing area that is on the screen."""
    canvas = page.locator(".pad canvas:visible")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    corners = ((0.3, 0.2), (0.5, 0.8), (0.7, 0.2))
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=10)
    page.mouse.up()


def press(page, name: str):
    page.get_by_role("button", name=name, exact=True).click()


def shown(page) -> list[np.ndarray]:
    page.locator(".images:visible").wait_for()
    return images_in(page.locator(".images:visible").inner_html())


def seconds_to_draw(page, label: str) -> float:
    """From the press of the button until other images are there."""
    page.get_by_role("radio", name=label).check()
    inner = "document.querySelector('.images')?.innerHTML"
    old = page.evaluate(inner)
    before = time.perf_counter()
    press(page, "Draw")
    page.wait_for_function(f"old => {inner} && {inner} !== old", arg=old)
    return time.perf_counter() - before


@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)])
class TestPerson:
    def test_generates(self, width, height, address, open_page, tmp_path):
        page = open_page(address, width, height)
        page.get_by_label("number input for How many").fill("16")
        assert min(seconds_to_draw(page, label) for label in "357") < 3  # the best of three: the machine may be busy
        assert len(shown(page)) == 16
        page.wait_for_timeout(600)
        page.screenshot(path=tmp_path / "growing.png", full_page=True)
        page.wait_for_timeout(1200)
        page.screenshot(path=tmp_path / "generated.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out

    def test_completes(self, width, height, address, open_page, tmp_path):
        page = open_page(address, width, height)
        page.get_by_role("tab", name="Complete").click()
        draw_seven(page)
        press(page, "Complete")
        given, *answers = shown(page)
        assert len(answers) == 8
        assert given[:14, :, 0].any()
        assert all(np.array_equal(answer[:14], given[:14, :, 0]) for answer in answers)
        page.wait_for_timeout(1500)
        page.screenshot(path=tmp_path / "completed.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") == width

    def test_reads(self, width, height, address, open_page, tmp_path):
        page = open_page(address, width, height)
        page.get_by_role("tab", name="Read").click()
        draw_seven(page)
        press(page, "Read")
        seen, heat = shown(page)
        rows, columns = np.nonzero(seen)
        assert rows.max() - rows.min() > 14 and columns.max() - columns.min() > 9
        assert page.locator(".bars:visible .share").count() == 10
        page.wait_for_timeout(300)
        page.screenshot(path=tmp_path / "read.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_people_who_press_at_once_get_what_they_asked_for(model, processor, address, open_page):
    """Requests wait for each other: no one's seed is disturbed by another's draws."""
    # Before anybody presses: the app samples in this process, by the same generator of random numbers.
    expected = [images_in(generate(model, processor, label, 9, 1.0, 1.0, 0)) for label in range(4)]
    pages = [open_page(address) for _ in range(4)]
    for label, page in enumerate(pages):
        page.get_by_role("radio", name=str(label)).check()
    for page in pages:
        press(page, "Draw")
    for page, images in zip(pages, expected, strict=True):
        assert np.array_equal(shown(page), images)


def test_a_person_uploads_a_picture(address, open_page, tmp_path):
    picture = draw_digit(7, np.random.default_rng(7))
    Image.fromarray(picture).save(tmp_path / "seven.png")
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "huge.png").write_bytes(bytes(5_000_000))
    page = open_page(address)
    page.get_by_role("tab", name="Complete").click()
    pad, upload = page.locator(".pad:visible"), page.locator(".pad input[type=file]")

    upload.set_input_files(tmp_path / "notes.png")
    pad.get_by_text("notes.png is not an image that this browser can read").wait_for()
    upload.set_input_files(tmp_path / "huge.png")
    pad.get_by_text("huge.png has 5.0 MB; at most 4 MB, please.").wait_for()
    upload.set_input_files(tmp_path / "seven.png")
    page.wait_for_function(HAS_INK)
    press(page, "Complete")
    given, *answers = shown(page)
    assert np.array_equal(given[:14, :, 0], picture[:14])


def test_a_person_is_told_what_is_wrong_and_can_undo(address, open_page):
    page = open_page(address)
    page.get_by_role("tab", name="Read").click()
    message = page.get_by_text("There is nothing here yet: draw something first.")
    press(page, "Read")
    message.wait_for()
    page.get_by_test_id("toast-close").click()
    message.wait_for(state="hidden")
    draw_seven(page)
    press(page, "Undo")
    press(page, "Read")
    message.wait_for()
    draw_seven(page)
    press(page, "Read")
    assert len(shown(page)) == 2
