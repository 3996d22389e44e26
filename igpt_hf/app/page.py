"""Try a trained model in a browser: it samples images, completes any part of one, and reads drawings (Gradio).

`build_app` lays out the page; answers.py answers.
"""

import functools
import html
import secrets
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import IGPTError
from ..hub.bundled import SURE
from .answers import (
    ANY,
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_TEMPERATURE,
    NUM_COMPLETIONS,
    TEMPERATURE,
    Answers,
    Settings,
    class_choices,
)
from .elements import data_uri, refusal, waiting


QUEUE_SIZE = 32
CANVAS_SCALE = 10  # pixels of the drawing area for each pixel of an image
READ_PEN = 0.04  # sides of the drawing area: strokes of small drawings stay apart; the model sees them wider
NEW_SEEDS = 10**6
SHORT_NAME = 6  # characters: six buttons with such names fit side by side on a telephone
TABS = ("generate", "complete", "read")
# Answers wait for each other in any case: so they do without a thread each.
ALONE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
KEEP_LINK = "() => history.replaceState(null, '', document.querySelector('.permalink').href)"
# Answers to a drawing that has changed since are pale, until there are others: a refusal is none, nor is the answer to
# a question that was asked before the drawing changed again. `changes` counts, `asked` keeps the count of a question.
MARK_OLD = """() => {
    const { dataset } = document.querySelector('#completions');
    Object.assign(dataset, { old: true, changes: +(dataset.changes ?? 0) + 1 });
}"""
MARK_ASKED = """() => {
    const { dataset } = document.querySelector('#completions');
    dataset.asked = dataset.changes ?? 0;
}"""
MARK_NEW = """(wrong) => {
    const { dataset } = document.querySelector('#completions');
    if (!wrong && dataset.asked == (dataset.changes ?? 0)) delete dataset.old;
}"""
FOLDER = Path(__file__).parent


def make_theme() -> gr.themes.Base:
    """Paper, ink and Persian blue; the system's own fonts, so that nothing is fetched."""
    blue = gr.themes.Color(
        *"""#eef1fd #dbe2fb #bac6f6 #8fa2ee #5f79e2 #1c39bb #1a34a9 #152c92 #12257a #0e1d60
        #0a1546""".split()
    )
    paper = gr.themes.Color(
        *"""#fffdf8 #f4efe4 #e7dfcf #d5cab5 #a39c8f #77736f #565464 #3a3a52 #252741 #1b1e33
        #12142a""".split()
    )
    return gr.themes.Base(
        primary_hue=blue,
        secondary_hue=blue,
        neutral_hue=paper,
        radius_size=gr.themes.sizes.radius_lg,
        font=["system-ui", "-apple-system", "Segoe UI", "DejaVu Sans", "sans-serif"],
        font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"],
    ).set(
        body_background_fill="*neutral_100",
        body_text_color_subdued="*neutral_600",
        block_background_fill="*neutral_50",
        block_border_width="1px",
        button_primary_background_fill="*primary_500",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
        slider_color="*primary_500",
        checkbox_label_background_fill_selected="*primary_500",
        checkbox_label_background_fill_selected_dark="*primary_500",
        checkbox_label_text_color_selected="white",
    )


# --- the page -------------------------------------------------------------------------------------------------------


def template(name: str) -> str:
    """A file of this folder."""
    return FOLDER.joinpath(name).read_text(encoding="utf-8")


def in_template(text: str) -> str:
    """Text for an `html_template`, which Gradio evaluates: what would be code there is written as HTML's numbers."""
    return html.escape(text).translate({ord(letter): f"&#{ord(letter)};" for letter in "\\`${}"})


def drawing_area(title: str, answers: Answers, pen: float, has_mask: bool = False) -> gr.HTML:
    """A canvas to draw on, as wide a pen as `pen` sides of it; with `has_mask` a part of it can be hidden."""
    size, patch = answers.config.image_size, answers.config.patch_size
    canvas, veil, tools, more = CANVAS_SCALE * size, "", "", ""
    label = "Drawing area, for a mouse, a pen or a finger. With a keyboard: upload an image"

    def fit(drawing: str) -> str:
        try:
            return answers.fit(drawing)
        except ValueError as error:
            return str(error)

    if has_mask:
        veil = f'<canvas class="pad-veil" width="{canvas}" height="{canvas}" aria-hidden="true"></canvas>'
        tools = "".join(
            f'<button type="button" data-tool="{name.lower()}">{name}</button>' for name in ("Hide", "Reveal")
        )
        examples = "".join(
            f'<button type="button"><img src="{data_uri(image)}" alt="Example: {in_template(name)}"></button>'
            for name, image in answers.examples
        )
        half = answers.processor.half_rows
        more = template("pad_mask.html").format(step=patch, most=size - patch, half=half, examples=examples)
        label += ", or start from an example, and choose how many rows are kept"
    pad = template("pad.html").format(
        title=title, size=size, pen=pen, canvas=canvas, label=f"{label}.", veil=veil, mask_tools=tools, more=more
    )
    return gr.HTML(html_template=pad, js_on_load=template("app.js"), apply_default_css=False, server_functions=[fit])


def class_field(config) -> gr.Dropdown | gr.Radio:
    choices = class_choices(config)
    if len(choices) > 12:
        return gr.Dropdown(choices, value=ANY, label="Class")
    is_short = all(len(text) <= SHORT_NAME for text, _ in choices)
    return gr.Radio(choices, value=ANY, label="Class", elem_classes=["classes", "short"] if is_short else "classes")


def seed_field(visible: bool = True) -> tuple[gr.Row, gr.Number, gr.Button]:
    """A row of the seed of the images and the button that uses it again, with the settings as they are now."""
    with gr.Row(elem_classes="seed", visible=visible) as row:
        seed = gr.Number(None, precision=0, label="Seed", scale=3, min_width=100)
        again = gr.Button("Again with this seed", scale=2, min_width=100)
    return row, seed, again


def new_seed(seed, last_seed):
    """A seed that somebody has typed since the last images, or else a new one."""
    return secrets.randbelow(NEW_SEEDS) if seed in (None, last_seed) else seed


class Page:
    """The page's events: requests wait in one queue, so that one at a time has the model."""

    def __init__(self, answers: Answers):
        self.answers, self.config = answers, answers.config

    @property
    def kinds(self) -> str:
        """What there is to draw, in words."""
        names = [in_template(name) for name in self.config.class_names]
        return f"one of its {len(names)} classes ({names[0]} to {names[-1]})" if len(names) > 1 else "one"

    def draw_anew(self, last_seed, label, num, seed, *others):
        return self.draw(last_seed, label, num, new_seed(seed, last_seed), *others)

    def draw(self, _, *settings):
        settings = Settings(*settings)
        return self.answers.generate(settings), settings.seed, settings.seed

    def complete_anew(self, last_seed, drawing, label, seed):
        return self.complete(last_seed, drawing, label, new_seed(seed, last_seed))

    def complete(self, _, drawing, label, seed):
        images = self.answers.complete(drawing, Settings(label, NUM_COMPLETIONS, seed))
        return images, seed, seed, gr.Row(visible=True)

    def guess(self, drawing):
        return self.answers.guess(drawing), gr.Row(visible=False)  # no seed that could be used again

    def prepare_reading(self):
        """Find out what the model's samples are like before the first stroke asks for it."""
        _ = self.answers.reference

    def restore(self, request: gr.Request):
        """The tab and the images that the address asks for, or new ones; and what is wrong with the address."""
        query, text = dict(request.query_params), ""
        usual: dict[str, Any] = {"label": ANY, "num": 9, "seed": secrets.randbelow(NEW_SEEDS)}
        usual |= {"temperature": TEMPERATURE, "is_sure": True}
        try:
            settings = Settings.from_query(query, self.config, **usual)
        except ValueError as error:
            settings, text = Settings(**usual), str(error)
        tab = gr.Tabs(selected=query["tab"]) if query.get("tab") in TABS else gr.skip()
        if query.get("tab") == "read":
            self.prepare_reading()
        return tab, settings.seed, *settings, self.answers.generate(settings), refusal(text)


def in_words(function, num_outputs: int):
    """Show the text of a ValueError on the page, and leave the answers as they are; a success takes it away."""

    @functools.wraps(function)
    def answer(*args):
        try:
            return *function(*args), ""
        except ValueError as error:
            return *[gr.skip()] * num_outputs, refusal(str(error))

    return answer


def add_generate_tab(page: Page) -> list:
    """Returns what `Page.restore` sets."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            label = class_field(page.config)
            num = gr.Slider(1, MAX_IMAGES, value=9, step=1, label="How many")
            with gr.Accordion("More settings", open=False):
                temperature = gr.Slider(
                    0.1,
                    MAX_TEMPERATURE,
                    value=TEMPERATURE,
                    step=0.1,
                    label="Temperature",
                    info="low: less varied, high: adventurous",
                )
                guidance = gr.Slider(
                    0, MAX_GUIDANCE, value=1, step=0.25, label="Guidance", info="above 1: more typical of its class"
                )
                is_sure = gr.Checkbox(
                    True,
                    label="Only recognizable ones",
                    info=f"Sampled again, up to ten times, if the model itself gives the class less than {SURE:.1%}.",
                )
            button = gr.Button("Draw", variant="primary")
        with gr.Column(scale=3, min_width=300):
            _, seed, again = seed_field()
            last_seed = gr.State()
            wrong = gr.HTML("", elem_classes="wrong")
            images = gr.HTML(waiting("Choose a class and press <b>Draw</b>."), elem_classes="answers")
    settings = [label, num, seed, temperature, guidance, is_sure]
    inputs, outputs = [last_seed, *settings], [images, seed, last_seed, wrong]
    for event, function in (
        (button.click, page.draw_anew),
        (again.click, page.draw),
        (seed.submit, page.draw),
    ):
        done = event(in_words(function, 3), inputs, outputs, api_name="generate", show_progress_on=images, **ALONE)
        done.then(None, js=KEEP_LINK)
    return [last_seed, *settings, images, wrong]


def add_complete_tab(page: Page):
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            pen = page.answers.stroke_width / page.config.image_size
            drawing = drawing_area("Draw, and <span>hide</span> what is unknown", page.answers, pen, has_mask=True)
        with gr.Column(scale=3, min_width=300):
            label = class_field(page.config)
            with gr.Row(equal_height=True):
                button = gr.Button("Complete", variant="primary", min_width=120)
                ask = gr.Button("What could this be?", min_width=120)
            row, seed, again = seed_field(visible=False)  # until there is something to repeat
            last_seed = gr.State()
            wrong = gr.HTML("", elem_classes="wrong")
            images = gr.HTML(
                waiting("Draw something, and press <b>Complete</b>."), elem_id="completions", elem_classes="answers"
            )
    settings, outputs = [last_seed, drawing, label, seed], [images, seed, last_seed, row, wrong]
    for event, function in (
        (button.click, page.complete_anew),
        (again.click, page.complete),
        (seed.submit, page.complete),
    ):
        event(None, js=MARK_ASKED)
        done = event(in_words(function, 4), settings, outputs, api_name="complete", show_progress_on=images, **ALONE)
        done.success(None, wrong, js=MARK_NEW)
    outputs = [images, row, wrong]
    ask.click(None, js=MARK_ASKED)
    done = ask.click(in_words(page.guess, 2), drawing, outputs, api_name="guess", show_progress_on=images, **ALONE)
    done.success(None, wrong, js=MARK_NEW)
    drawing.input(None, js=MARK_OLD)


def add_read_tab(page: Page):
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            drawing = drawing_area(
                f"Draw {page.kinds}, of any size and anywhere, or upload an image", page.answers, READ_PEN
            )
            wrong = gr.HTML("", elem_classes="wrong")
        with gr.Column(scale=3, min_width=300):
            reading = gr.HTML(waiting("Draw something: it is read after each stroke."))

    def read(drawing):
        return (page.answers.read(drawing),)

    drawing.input(
        in_words(read, 1),
        drawing,
        [reading, wrong],
        api_name="read",
        trigger_mode="always_last",
        show_progress="hidden",
        **ALONE,
    )


def build_app(model, processor) -> gr.Blocks:
    """The page: three tabs."""
    page, config = Page(Answers(model, processor)), model.config
    name = html.escape(Path(config.name_or_path).name) or "this model"
    about = {"name": name, "parameters": model.num_parameters(), "side": config.image_size, "patch": config.patch_size}
    with gr.Blocks(title="A tiny Image GPT", analytics_enabled=False) as app:
        gr.HTML(template("introduction.html").format(**about), elem_id="introduction")
        with gr.Tabs() as tabs:
            with gr.Tab("Generate", id="generate"):
                restored = add_generate_tab(page)
            with gr.Tab("Complete", id="complete"):
                add_complete_tab(page)
            with gr.Tab("Read", id="read") as tab:
                add_read_tab(page)
        tab.select(page.prepare_reading, api_name=False, show_progress="hidden", **ALONE)
        app.load(page.restore, None, [tabs, *restored], api_name=False, **ALONE)
    return app.queue(max_size=QUEUE_SIZE, api_open=False)


def launch(model, processor, **arguments) -> gr.Blocks:
    """Serve the page, without waiting: `block_thread()` of the result does.

    Args:
        arguments: Those of `gradio.Blocks.launch` (server_port, ...).

    Raises:
        IGPTError: A proxy stands between this machine and itself.
    """
    app = build_app(model, processor)
    arguments |= {"ssr_mode": False, "share": False, "quiet": True, "prevent_thread_lock": True}
    style: dict[str, Any] = {"theme": make_theme(), "css_paths": FOLDER / "app.css", "js": template("page.js")}
    try:
        app.launch(**style, footer_links=["gradio"], **arguments)
    except ValueError as error:  # its advice is a public link, by a service of others
        raise IGPTError(
            "the page cannot be reached at 127.0.0.1: where a proxy is set, add NO_PROXY=127.0.0.1,localhost."
        ) from error
    return app
