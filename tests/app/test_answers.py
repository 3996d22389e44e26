"""What the app answers to settings and drawings, in HTML."""

import base64
import io
import re
import threading
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from helpers.app import SIDE, digit, hide, images_in, placed
from igpt_hf import IGPTConfig, IGPTForCausalImageModeling, IGPTImageProcessor, bundled
from igpt_hf.app.answers import ANY, MAX_IMAGES, Answers, Settings, class_choices
from igpt_hf.app.elements import data_uri
from igpt_hf.app.fitting import crop, stroke_width


SETTINGS = Settings(label=3, num=2, seed=0)
ROWS, COLUMNS = np.indices((SIDE, SIDE)) // 10  # of the model's pixels


@pytest.fixture(scope="module")
def answers() -> Answers:
    folder = bundled("persian-digits")
    return Answers(IGPTForCausalImageModeling.from_pretrained(folder), IGPTImageProcessor.from_pretrained(folder))


# --- generate -------------------------------------------------------------------------------------------------------


def test_generate_draws_as_many_as_asked_and_the_same_for_one_seed(answers):
    images = images_in(answers.generate(SETTINGS._replace(num=3)))
    again = images_in(answers.generate(SETTINGS._replace(num=3)))
    other = images_in(answers.generate(SETTINGS._replace(num=3, seed=1)))
    assert [x.shape for x in images] == [(28, 28)] * 3
    assert np.array_equal(images, again)
    assert not np.array_equal(images, other)


def test_any_class_is_asked_for_by_the_start_token(answers):
    torch.manual_seed(5)
    ids = answers.model.generate(torch.full((2, 1), answers.config.start_token_id))
    images = images_in(answers.generate(SETTINGS._replace(label=ANY, seed=5)))
    assert np.array_equal(np.array(images) > 0, answers.processor.decode_pixels(ids) > 0)


def test_recognizable_images_have_the_class_that_their_alternative_text_names(answers):
    html = answers.generate(Settings(label=ANY, num=16, seed=1, is_sure=True))
    named = [int(x) for x in re.findall(r'alt="A sampled image that was asked to be (\d)\."', html)]
    ids = answers.processor(np.stack(images_in(html)) > 0)["input_ids"]
    posterior = answers.model.class_posterior(ids)[torch.arange(16), named]
    assert (posterior >= 0.9).all() and len(set(named)) > 4


def test_images_can_be_taken_along_as_png_and_as_a_growing_gif(answers):
    html = answers.generate(SETTINGS._replace(num=3, seed=8))
    png, gif = (
        Image.open(io.BytesIO(base64.b64decode(code)))
        for code in re.findall(r'download="class-3-seed-8.\w+" href="data:image/\w+;base64,([^"]+)', html)
    )
    images = images_in(html)
    assert np.array_equal(np.asarray(png)[16:240:8, 16:240:8], images[0])  # a gap of two pixels around each
    assert (gif.format, gif.n_frames) == ("GIF", 196 // 4 + 1)
    first = np.asarray(gif.convert("RGB"))
    assert not (first == 255).all(axis=2).any()  # nothing is drawn yet
    gif.seek(gif.n_frames - 1)
    assert np.array_equal(np.asarray(gif.convert("L"))[4:116:4, 4:116:4], images[0])


def test_digits_have_persian_names_too_where_the_model_says_that_they_are_persian():
    config = IGPTConfig(id2label={label: str(label) for label in range(10)})
    for folder, text in (("igpt_hf/bundled/persian-digits", "۴  4"), ("runs/hoda", "۴  4"), ("persian/mnist-xs", "4")):
        config.name_or_path = folder
        assert class_choices(config)[4] == (text, 4)


def test_images_of_any_class_say_which_it_is_and_of_which_the_model_is_not_sure(answers, monkeypatch):
    asked = SETTINGS._replace(label=ANY, num=4, is_sure=True)
    html = answers.generate(asked)
    names = [text for text, label in class_choices(answers.config) if label != ANY]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert len(captions) == 4 and all(caption.split(": ")[0] in names for caption in captions)
    assert all(re.fullmatch(r"[\d.]+ nats", caption.split(": ")[1]) for caption in captions)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", answers.generate(asked._replace(label=3)))
    assert all(re.fullmatch(r"[\d.]+ nats", caption) for caption in captions)
    uniform = torch.full((4, 10), 0.1)
    monkeypatch.setattr(answers.model, "class_posterior", lambda *args, **kwargs: uniform)
    assert re.findall(r"<figcaption>(.*?)</figcaption>", answers.generate(asked))[0].endswith("nats, unsure")
    assert "unsure" not in answers.generate(asked._replace(is_sure=False))


def test_a_link_holds_what_was_asked_for(answers):
    asked = Settings(label=4, num=5, seed=77, temperature=0.5, guidance=1.5, is_sure=True)
    query = re.search(r'class="permalink" href="\?([^"]+)"', answers.generate(asked))[1].replace("&amp;", "&")
    assert Settings.from_query(dict(parse_qsl(query)), answers.config) == asked
    usual = {"label": ANY, "num": 9, "seed": 1}
    assert Settings.from_query({"tab": "read"}, answers.config, **usual) == Settings(**usual)
    for wrong, message in (
        ({"num": "17"}, "not 17"),
        ({"seed": "x"}, "link is damaged: seed=x is no number"),
        ({"seed": "inf"}, "The seed must be a whole number .*, not inf"),
        ({"class": "x"}, "'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            Settings.from_query(wrong, answers.config, **usual)


def test_names_of_classes_are_text_not_html(tiny_model, tiny_processor):
    names = ["<i>&", '">"', "c"]
    model = tiny_model(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    named = Answers(model, tiny_processor.replace(num_labels=3))
    drawing = Image.new("L", (SIDE, SIDE))
    drawing.paste(255, (SIDE // 4, 0, SIDE // 2, SIDE))
    pages = [named.generate(Settings(label=label, num=2, seed=0)) for label in (ANY, 0, 1)]
    pages += [named.read(data_uri(drawing)), named.guess(data_uri(hide(drawing, ROWS >= 14)))]
    for page in pages:
        assert "<i>" not in page and '">"' not in page
    assert all("&lt;i&gt;&amp;" in page for page in pages[3:])


def test_one_question_waits_for_another(answers, monkeypatch):
    """An upload is fitted outside the page's queue; it would disturb the random numbers of what is sampled."""
    generate, waiting = answers.model.generate, []

    def meanwhile(*args, **kwargs):
        thread = threading.Thread(target=answers.fit, args=[data_uri(digit())])
        thread.start()
        thread.join(0.2)
        waiting.append(thread)
        assert thread.is_alive()
        return generate(*args, **kwargs)

    monkeypatch.setattr(answers.model, "generate", meanwhile)
    answers.generate(SETTINGS)
    waiting[0].join(60)
    assert not waiting[0].is_alive()


# --- complete -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [ROWS >= 10, COLUMNS >= 14, (abs(ROWS - 14) < 5) & (abs(COLUMNS - 14) < 5)])
def test_complete_keeps_what_is_given(hidden, answers):
    html = answers.complete(data_uri(hide(digit(), hidden)), SETTINGS._replace(label=7, num=3, seed=1))
    given, *completions = images_in(html)
    seen, known = np.asarray(digit())[::10, ::10], ~hidden[::10, ::10]
    assert np.array_equal(given[..., 1] == 255, known)  # what is not given is not shown
    assert np.array_equal(given[known, 0], seen[known])
    assert len(completions) == 3
    for completion in completions:
        assert np.array_equal(completion[known], seen[known])
    assert not np.array_equal(completions[0], completions[1])


def shares_in(html: str) -> list[float]:
    """Percentages of the bars, in the order of the classes."""
    return [float(x) for x in re.findall(r'class="share">(?:&[lg]t;)?([\d.]+)%', html)]


@pytest.mark.parametrize(
    "hidden, words",
    [
        (
            (ROWS >= 14) & (COLUMNS < 2),
            "3 completions, all the same, seed 1. In 3 of them the hidden part stays blank.",
        ),
        (ROWS >= 14, "3 completions, all different, seed 1."),
    ],
)
def test_completions_that_are_the_same_or_blank_are_said_to_be(hidden, words, answers):
    html = answers.complete(data_uri(hide(digit(), hidden)), SETTINGS._replace(label=7, num=3, seed=1))
    assert f'<p class="answer" data-say>{words}</p>' in html


def test_what_a_half_seen_digit_could_be(answers):
    html = answers.guess(data_uri(hide(digit(3), ROWS >= 14)))
    assert np.argmax(shares_in(html)) == 3 and "most likely <b>۳  3</b>" in html


@pytest.mark.parametrize(
    "drawing, message",
    [
        (digit(), "Nothing is hidden"),
        (hide(digit(), ROWS >= 0), "Nothing is visible"),
        (hide(placed(digit(), 0.4, (90, 160)), ROWS >= 14), "Nothing is visible"),
    ],
)
def test_there_must_be_something_given_and_something_hidden(drawing, message, answers):
    for answer in (lambda x: answers.complete(x, SETTINGS), answers.guess):
        with pytest.raises(ValueError, match=message):
            answer(data_uri(drawing))


def test_an_upload_is_cropped_and_thickened_as_the_data_is(answers):
    light = 120 + 100 * np.linspace(0, 1, SIDE)[None] + np.random.default_rng(0).normal(0, 3, (SIDE, SIDE))
    ink = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(ink).ellipse((20, 30, 120, 130), outline=255, width=14)
    photo = Image.fromarray((light * (1 - 0.8 * np.asarray(ink) / 255)).clip(0, 255).astype(np.uint8))
    fitted = images_in(f'<img src="{answers.fit(data_uri(photo))}"')[0]
    assert np.array_equal(fitted, np.asarray(answers.processor.fit_upload(photo)))
    rows = np.flatnonzero(fitted.any(axis=1))
    assert (rows[0], rows[-1]) == (0, 27)  # synthetic digits fill their images
    with pytest.raises(ValueError, match="nothing is left of the image"):
        answers.fit(data_uri(Image.new("L", (SIDE, SIDE), 200)))


@pytest.mark.parametrize("width", [3, 8, 24])
@pytest.mark.parametrize("size", [(400, 300), (300, 300)])
def test_a_line_drawing_of_any_polarity_fills_the_image_with_strokes_of_the_models_width(size, width, answers):
    seven = Image.new("L", size, 255)  # a thin V, which is a Persian seven
    points = [(0.2 * size[0], 0.2 * size[1]), (0.5 * size[0], 0.8 * size[1]), (0.8 * size[0], 0.2 * size[1])]
    ImageDraw.Draw(seven).line(points, 0, width, joint="curve")
    clear = Image.new("RGBA", size)
    clear.paste((0, 0, 0, 255), mask=ImageOps.invert(seven))
    fitted = [
        images_in(f'<img src="{answers.fit(data_uri(image))}"')[0] > 0
        for image in (seven, ImageOps.invert(seven), clear)
    ]
    for one in fitted:
        assert np.abs(fitted[0] ^ one).mean() < 0.02
        assert max(crop(one).shape) > 0.8 * 28
        assert stroke_width(one) > 0.7 * answers.reference.stroke_width
        posterior = answers.model.class_posterior(answers.processor(one)["input_ids"])[0]
        assert posterior.argmax() == 7


def test_an_upload_of_the_models_size_stays_as_it_is(answers):
    image = Image.fromarray(np.asarray(digit(4))[::10, ::10])
    assert np.array_equal(images_in(f'<img src="{answers.fit(data_uri(image))}"')[0], np.asarray(image))


# --- read -----------------------------------------------------------------------------------------------------------


def test_read_shows_the_posterior_and_a_surprise_that_adds_up(answers):
    html = answers.read(data_uri(digit()))
    seen, heat = images_in(html)
    assert heat.shape == (28, 28, 3)
    ids = answers.processor(seen > 0)["input_ids"]
    posterior = answers.model.class_posterior(ids)[0]
    assert shares_in(html) == pytest.approx((100 * posterior).clamp(0.1, 99.9).tolist(), abs=0.06)
    nats = -answers.model.class_log_likelihoods(ids)[0, posterior.argmax()].item()
    assert f"its surprise, given the class: {nats:.1f} nats" in html and "I read <b>۷  7</b>" in html


def test_an_empty_sheet_says_that_there_is_nothing(answers):
    for drawing in (None, data_uri(Image.new("L", (SIDE, SIDE), 25))):
        html = answers.read(drawing)
        assert "There is nothing here yet" in html and images_in(html) == []


def test_strange_drawings_are_said_to_be_strange_in_both_directions(answers, monkeypatch):
    smiley = Image.new("L", (SIDE, SIDE))
    draw = ImageDraw.Draw(smiley)
    draw.ellipse((40, 40, 240, 240), outline=255, width=11)
    draw.arc((90, 100, 190, 200), 20, 160, fill=255, width=11)
    for x in (105, 175):
        draw.ellipse((x - 10, 100, x + 10, 120), fill=255)
    assert "Stranger than anything I was trained on" in answers.read(data_uri(smiley))
    assert "Strange" not in answers.read(data_uri(digit()))
    quantiles = answers.config.nats_quantiles
    monkeypatch.setattr(answers.config, "nats_quantiles", [x + 100 for x in quantiles])
    assert "Simpler than anything I was trained on" in answers.read(data_uri(digit()))
    monkeypatch.setattr(answers.config, "nats_quantiles", None)  # of a model from before they were stored
    assert "I read <b>۷  7</b> (&gt;99.9%)." in answers.read(data_uri(digit()))


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num": MAX_IMAGES + 1}, "number of images must be a whole number from 1 to 16, not 17"),
        ({"num": 1.5}, "whole number"),
        ({"num": None}, "not empty"),
        ({"label": 10}, "class must be"),
        ({"label": -2}, "class must be"),
        ({"temperature": 0}, "temperature must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"guidance": 100}, "Guidance must be"),
        ({"seed": 2**32}, "seed must be"),
    ],
)
def test_settings_out_of_bounds_are_refused_in_words(wrong, message, answers):
    with pytest.raises(ValueError, match=message):
        answers.generate(SETTINGS._replace(**wrong))
    with pytest.raises(ValueError, match=message):
        answers.complete(data_uri(hide(digit(), ROWS >= 14)), SETTINGS._replace(**wrong))


@pytest.mark.parametrize(
    "drawing, message",
    [
        ("http://127.0.0.1/picture.png", "a PNG as a data: address"),
        ("data:image/png;base64," + 2_000_000 * "A", "at most 2,000,000 characters"),
        ("data:image/png;base64,AAAA", "could not be read as a PNG"),
        (data_uri(digit())[:150], "could not be read as a PNG"),
        (data_uri(Image.new("L", (3000, 3000))), "at most 2000 pixels a side"),
    ],
)
def test_drawings_that_are_none_are_refused_in_words(drawing, message, answers):
    for answer in (answers.read, answers.guess, answers.fit):
        with pytest.raises(ValueError, match=message):
            answer(drawing)
