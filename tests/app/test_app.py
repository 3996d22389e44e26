"""The app as a person has it: its script, its Space, and its page in a real browser, on a desktop and on a phone."""

import html
import os
import runpy
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import psutil
import pytest
from huggingface_hub import ModelCard
from packaging.requirements import Requirement
from PIL import Image

from helpers.app import digit, images_in
from helpers.browser import draw_stroke, serious_findings
from helpers.paths import SCRIPTS


gradio = pytest.importorskip("gradio", reason="there is no gradio: pip install -e '.[demo]'")

from igpt_hf import IGPTError, IGPTForCausalImageModeling, IGPTImageProcessor, bundled  # noqa: E402
from igpt_hf.app.page import in_template, launch  # noqa: E402


SCRIPT = SCRIPTS / "app.py"


@pytest.fixture(scope="module")
def model() -> IGPTForCausalImageModeling:
    return IGPTForCausalImageModeling.from_pretrained(bundled("persian-digits")).eval()


@pytest.fixture(scope="module")
def processor() -> IGPTImageProcessor:
    return IGPTImageProcessor.from_pretrained(bundled("persian-digits"))


@pytest.fixture(scope="module")
def address(model, processor):
    app = launch(model, processor)
    yield app.local_url
    app.close(verbose=False)


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
    model.class_posterior(model.generate())  # kernels are compiled once per machine
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


def test_without_a_model_the_script_shows_the_bundled_one(monkeypatch, unused_port):
    shown = []

    class App:
        local_url = "here"

        def block_thread(self):
            pass

    monkeypatch.setattr("igpt_hf.app.page.launch", lambda *given, **options: shown.extend(given) or App())
    monkeypatch.setattr(sys, "argv", ["app.py", "--port", str(unused_port)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert shown[0].name_or_path == bundled("persian-digits")


def test_port_0_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app.py", "--port", "0"])
    with pytest.raises(SystemExit, match="--port 0 cannot be used: name one from 1 to 65535"):
        runpy.run_path(str(SCRIPT), run_name="__main__")


def test_a_busy_port_is_answered_with_the_flag(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["app.py", "--port", str(port)])
        with pytest.raises(SystemExit, match=rf"error: --port {port} cannot be used .*name another, such as --port"):
            runpy.run_path(str(SCRIPT), run_name="__main__")


def test_a_page_out_of_reach_is_no_reason_for_a_public_link(model, processor, monkeypatch):
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    with gradio.Blocks() as empty:
        pass
    monkeypatch.setattr("igpt_hf.app.page.build_app", lambda *given: empty)
    with pytest.raises(IGPTError, match="NO_PROXY=127.0.0.1,localhost") as error:
        launch(model, processor)
    assert "share" not in str(error.value)


def test_a_model_that_is_not_there_is_named(tmp_path, monkeypatch, unused_port):
    monkeypatch.chdir(tmp_path)
    for argv, message in (
        ([str(tmp_path)], "error: .* holds no trained model"),
        (["/nowhere"], "error: there is no folder /nowhere"),
    ):
        monkeypatch.setattr(sys, "argv", ["app.py", "--port", str(unused_port), *argv])
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


@pytest.mark.parametrize("name", ["\\upsilon", "a`b`", "${document.body}", "{{value}}", "<i>&"])
def test_names_of_classes_are_no_code_in_a_template(name):
    """Gradio evaluates templates as JavaScript."""
    text = in_template(name)
    assert html.unescape(text) == name
    assert not set("\\`${}<>") & set(text)


def test_the_corner_of_an_upload_changes_no_pen_and_other_pointers_do_not_draw(address, open_page, tmp_path):
    corner = Image.new("L", (28, 28))
    corner.paste(255, (0, 0, 10, 3))
    corner.save(tmp_path / "corner.png")
    page = open_page(f"{address}?tab=complete")
    page.locator(".pad:visible input[type=file]").set_input_files(tmp_path / "corner.png")
    wait_for_drawing(page)
    canvas = page.locator(".pad-area canvas:first-child:visible")
    dot = """(canvas, [x, y, settings]) => {
        const box = canvas.getBoundingClientRect();
        settings.forEach(([kind, id], i) => {
            const at = { clientX: box.x + x * box.width + 4 * i, clientY: box.y + y * box.height };
            canvas.dispatchEvent(new PointerEvent(kind, { ...at, ...id }));
        });
        return canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1).data[0];
    }"""
    page.locator("[data-tool=pen]:visible").click()
    canvas.evaluate("canvas => (canvas.setPointerCapture = () => {})")  # there is no such pointer
    first, second = {"pointerId": 1, "button": 0}, {"pointerId": 2, "button": 0}
    assert canvas.evaluate(dot, [0.7, 0.7, [["pointerdown", first]]]) > 200  # a dot of white ink
    assert canvas.evaluate(dot, [0.3, 0.7, [["pointerdown", second], ["pointermove", second]]]) < 50
    assert canvas.evaluate(dot, [0.5, 0.7, [["pointerup", second]]]) < 50  # no line between the two fingers
    assert canvas.evaluate(dot, [0.7, 0.8, [["pointermove", first], ["pointerup", first]]]) > 200
    right = {"pointerId": 1, "button": 2}
    assert canvas.evaluate(dot, [0.2, 0.2, [["pointerdown", right], ["pointermove", right]]]) < 50


# --- a person at it -------------------------------------------------------------------------------------------------


def draw_seven(page, size: float = 1.0, corner: tuple[float, float] = (0.0, 0.0)):
    """Draw with the mouse, in one stroke; sizes and places are fractions of the drawing area on the screen."""
    ends = [(corner[0] + size * x, corner[1] + size * y) for x, y in ((0.3, 0.06), (0.5, 0.9), (0.7, 0.06))]
    draw_stroke(page, page.locator(".pad-area canvas:first-child:visible"), ends, steps=10)


def press(page, name: str):
    page.get_by_role("button", name=name, exact=True).locator("visible=true").click()


HAS_DRAWING = """() => [...document.querySelectorAll('.pad canvas:not(.pad-veil)')].some(canvas => {
    const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return canvas.offsetParent && new Set(new Uint32Array(data.buffer)).size > 1;
})"""


def wait_for_drawing(page):
    """Wait until something is on the pad: an example is decoded after its button is pressed."""
    page.wait_for_function(HAS_DRAWING)


def shown(page) -> list[np.ndarray]:
    page.locator(".images:visible").wait_for()
    return images_in(page.locator(".images:visible").inner_html())


def wait_for_others(page, old: str):
    """Wait until other answers are there than `old`, the text above them."""
    page.wait_for_function(
        "old => [...document.querySelectorAll('.answer')].some(x => x.offsetParent && x.textContent !== old)", arg=old
    )


def sentence(page) -> str:
    return page.locator(".answer:visible").text_content()


@pytest.mark.parametrize("width, height", [(1280, 800), (390, 844)])
def test_every_tab_can_be_used_by_everybody(width, height, address, open_page, tmp_path):
    page = open_page(address, width, height)
    assert len(shown(page)) == 9
    for tab in ("Generate", "Complete", "Read"):
        page.get_by_role("tab", name=tab).click()
        if tab == "Complete":
            page.get_by_role("button", name="Example: 3").click()
            wait_for_drawing(page)
            press(page, "Complete")
            assert len(shown(page)) == 8
            box = page.locator(".images:visible").bounding_box()
            assert width == 390 or (box["y"] + box["height"] <= height and page.evaluate("scrollY") == 0)
        if tab == "Read":
            draw_seven(page)
            assert len(shown(page)) == 2
        assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
        assert serious_findings(page) == []
        page.screenshot(path=tmp_path / f"{tab}-light.png", full_page=True)
    page.emulate_media(color_scheme="dark")
    page.locator("body.dark").wait_for()
    assert serious_findings(page) == []
    page.screenshot(path=tmp_path / "Read-dark.png", full_page=True)


def test_a_person_draws_anew_and_again_with_the_seed_and_shares_a_link(address, open_page):
    page = open_page(address)
    first = shown(page)
    page.get_by_role("radio", name="3").locator("visible=true").check()
    page.get_by_label("number input for How many").fill("4")
    old = sentence(page)
    press(page, "Draw")
    wait_for_others(page, old)
    drawn, seed = shown(page), page.get_by_label("Seed").locator("visible=true").input_value()
    assert len(drawn) == 4 and not np.array_equal(drawn[0], first[0])
    assert sentence(page) == f"4 images of class ۳  3, seed {seed}." == page.locator("#live").text_content()
    page.wait_for_function("seed => location.search.includes(`seed=${seed}`)", arg=seed)
    assert "class=3" in page.url
    other = open_page(page.url)  # the link, and a refresh
    assert np.array_equal(shown(other), drawn)
    old = sentence(page)
    press(page, "Draw")
    wait_for_others(page, old)
    assert not np.array_equal(shown(page), drawn)
    for typed, button in ((seed, "Draw"), ("7", "Again with this seed"), (seed, "Again with this seed")):
        page.get_by_label("Seed").locator("visible=true").fill(typed)
        press(page, button)
        page.locator("[data-say]:visible").get_by_text(f"seed {typed}.").wait_for()
        assert np.array_equal(shown(page), drawn) == (typed == seed)
    for wrong, given in (("-5", "-5"), ("", "empty")):
        page.get_by_label("Seed").locator("visible=true").fill(wrong)
        press(page, "Again with this seed")
        text = f"The seed must be a whole number from 0 to 4,294,967,295, not {given}."
        page.get_by_role("alert").get_by_text(text).wait_for()
    page.get_by_label("Seed").locator("visible=true").fill(seed)
    press(page, "Again with this seed")
    page.locator(".refusal:visible").wait_for(state="detached")
    with page.expect_download() as download:
        page.get_by_role("link", name="growing GIF").click()
    assert download.value.suggested_filename == f"class-3-seed-{seed}.gif"
    broken = open_page(f"{address}?num=99&seed=3")
    broken.get_by_role("alert").get_by_text("whole number from 1 to 16, not 99").wait_for()


def test_a_person_hides_any_part_and_asks_what_it_could_be(address, open_page):
    page = open_page(address)
    page.get_by_role("tab", name="Complete").click()
    press(page, "Complete")
    wrong = page.locator(".refusal:visible")
    wrong.wait_for()
    assert wrong.text_content() == "There is nothing here yet: draw something first."
    page.get_by_role("button", name="Example: 3").click()
    page.get_by_role("slider", name="Upper rows kept").fill("26")
    press(page, "Hide")
    draw_seven(page)  # a stripe that is unknown
    press(page, "Reveal")
    draw_seven(page, size=0.3, corner=(0.35, 0.1))
    press(page, "Complete")
    given, *answers = shown(page)
    assert wrong.count() == 0  # a success takes the refusal away
    known = given[..., 1] == 255
    assert len(answers) == 7 and 400 < known.sum() < 700 and not known[26:].any()
    assert all(np.array_equal(answer[known], given[known, 0]) for answer in answers)
    press(page, "What could this be?")
    page.locator(".bars:visible").wait_for()
    assert "most likely" in sentence(page)
    press(page, "Clear")
    press(page, "Complete")
    wrong.wait_for()
    press(page, "Undo")
    press(page, "Complete")
    wrong.wait_for(state="detached")
    page.reload()
    page.get_by_role("button", name="Complete", exact=True).wait_for()  # the tab is kept


def test_answers_to_a_drawing_that_has_changed_are_pale(address, open_page):
    page = open_page(f"{address}?tab=complete")
    old, seed = page.locator("#completions[data-old]"), page.get_by_label("Seed").locator("visible=true")
    page.get_by_role("button", name="Example: 3").click()
    wait_for_drawing(page)
    press(page, "Complete")
    shown(page)
    old.wait_for(state="detached")
    page.get_by_role("button", name="Example: 7").click()
    old.wait_for()
    press(page, "What could this be?")
    page.locator(".bars:visible").wait_for()
    old.wait_for(state="detached")
    assert seed.count() == 0  # what could be used again has no seed
    press(page, "Complete")
    seed.wait_for()
    press(page, "Clear")
    old.wait_for()
    press(page, "Complete")  # a refusal is no answer
    page.locator(".refusal:visible").wait_for()
    page.wait_for_timeout(300)
    assert old.count() == 1


def test_undo_takes_back_how_many_rows_are_kept(address, open_page):
    page = open_page(f"{address}?tab=complete")
    rows = page.get_by_role("slider", name="Upper rows kept")
    rows.fill("18")
    assert page.locator(".pad-rows output:visible").text_content() == "18"
    press(page, "Undo")
    assert rows.input_value() == "14" == page.locator(".pad-rows output:visible").text_content()


def test_a_stroke_that_the_model_does_not_see_is_explained(address, open_page):
    page = open_page(f"{address}?tab=complete")
    message = page.locator(".pad:visible .pad-message")
    draw_seven(page, size=0.3, corner=(0.35, 0.6))
    hidden = message.get_by_text("What you drew is hidden: Reveal shows it to the model.")
    hidden.wait_for()
    for corner in ((0.35, 0.1), (0.35, 0.1), (0.6, 0.35)):  # seen; on what is there already; partly seen
        draw_seven(page, size=0.3, corner=corner)
        message.wait_for(state="hidden")
    draw_seven(page, size=0.6, corner=(0.35, 0.62))  # beyond the edge
    hidden.wait_for()


def test_a_person_is_read_after_each_stroke_whatever_the_size(address, open_page):
    page = open_page(f"{address}?tab=read")
    nothing = page.locator(".waiting:visible").get_by_text("There is nothing here yet")
    for size, corner in ((1, (0, 0)), (0.5, (0.45, 0.05)), (0.33, (0.1, 0.6))):
        draw_seven(page, size, corner)
        page.locator(".bars:visible").wait_for()
        assert sentence(page).startswith("I read ۷  7")
        seen, _ = shown(page)
        rows = np.flatnonzero(seen.any(axis=1))
        assert rows[0] <= 2 and rows[-1] >= 25  # as large as the data
        press(page, "Clear")
        nothing.wait_for()
    press(page, "Undo")
    page.locator(".bars:visible").wait_for()
    press(page, "Eraser")
    draw_seven(page, 0.33, (0.1, 0.6))
    nothing.wait_for()


def test_a_person_uploads_an_image(address, open_page, tmp_path):
    seven = digit(7).resize((28, 28), Image.Resampling.NEAREST)
    seven.save(tmp_path / "seven.png")
    (tmp_path / "notes.png").write_text("no image")
    (tmp_path / "huge.png").write_bytes(bytes(21_000_000))
    Image.new("L", (300, 300), 200).save(tmp_path / "blank.png")
    page = open_page(f"{address}?tab=complete")
    upload, message = page.locator(".pad:visible input[type=file]"), page.locator(".pad:visible .pad-message")
    for name, text in (
        ("notes.png", "notes.png is not an image that this browser can read"),
        ("huge.png", "huge.png has 21.0 MB; at most 20 MB, please."),
        ("blank.png", "blank.png: nothing is left of the image"),
    ):
        upload.set_input_files(tmp_path / name)
        message.get_by_text(text).wait_for()
    upload.set_input_files(tmp_path / "seven.png")
    message.wait_for(state="hidden")
    press(page, "Complete")
    given, *_ = shown(page)
    assert np.array_equal(given[:14, :, 0], np.asarray(seven)[:14])
    page.get_by_role("tab", name="Read").click()
    upload.set_input_files(tmp_path / "blank.png")
    message.get_by_text("blank.png has one color all over: there is nothing to read.").wait_for()
    upload.set_input_files(tmp_path / "seven.png")
    message.wait_for(state="hidden")
    page.locator(".bars:visible").wait_for()
    assert sentence(page).startswith("I read ۷  7")


def test_a_keyboard_reaches_tabs_classes_and_examples(address, open_page):
    page = open_page(address)
    shown(page)
    page.get_by_role("tab", name="Generate").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent").strip() == "Complete"
    example = page.get_by_role("button", name="Example: 1")
    example.focus()
    page.keyboard.press("Enter")
    wait_for_drawing(page)
    page.get_by_role("radio", name="any").locator("visible=true").focus()
    page.keyboard.press("ArrowLeft")
    nine = page.get_by_role("radio", name="9").locator("visible=true")
    assert nine.is_checked()
    page.keyboard.press("Shift+Tab")  # one stop for all classes, the chosen one
    page.keyboard.press("Tab")
    assert nine.evaluate("radio => radio === document.activeElement")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent").strip() == "Complete"
    page.get_by_role("button", name="Complete", exact=True).focus()
    page.keyboard.press("Enter")
    assert len(shown(page)) == 8


def test_people_who_press_at_once_get_what_they_asked_for(address, open_page):
    """Requests wait for each other: no one's seed is disturbed by another's draws."""
    links = [f"{address}?class={label}&num=4&seed=5" for label in (1, 2)]
    expected = [shown(open_page(link)) for link in links]
    pages = [open_page(link) for link in links]  # each draws when it opens
    for page, images in zip(pages, expected, strict=True):
        assert np.array_equal(shown(page), images)
