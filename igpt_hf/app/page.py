"""Try a trained model in a browser: it samples images, completes half an image, and classifies drawings (Gradio).

`build_app` lays out the page; the functions of answers.py answer.
"""

import functools
from pathlib import Path
from typing import Any

import gradio as gr

from .answers import (
    ANY,
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_SEED,
    MAX_TEMPERATURE,
    class_choices,
    complete,
    generate,
    read,
    waiting,
)


QUEUE_SIZE = 32
CANVAS_SCALE = 10  # pixels of the drawing area for each pixel of an image
FOLDER = Path(__file__).parent

MOVE_LINE = "rows => document.getElementById('kept').style.setProperty('--kept', rows / SIZE)"
UPLOAD = '<label>Upload<input type="file" accept=".png,.jpg,.jpeg,.webp,.gif,.bmp"></label>'


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


def in_words(function):
    """Show the text of a ValueError on the page."""

    @functools.wraps(function)
    def answer(*args):
        try:
            return function(*args)
        except ValueError as error:
            raise gr.Error(str(error), duration=8, print_exception=False) from error

    return answer


def add_settings(config, count: int) -> list:
    """The fields of `Settings`, in its order."""
    choices = class_choices(config)
    if len(choices) > 12:
        label: gr.Dropdown | gr.Radio = gr.Dropdown(choices, value=ANY, label="Class")
    else:
        label = gr.Radio(choices, value=ANY, label="Class", elem_classes="classes")
    how_many = gr.Slider(1, MAX_IMAGES, value=count, step=1, label="How many")
    with gr.Accordion("More settings", open=False):
        temperature = gr.Slider(
            0.1, MAX_TEMPERATURE, value=1, step=0.1, label="Temperature", info="low: typical, high: adventurous"
        )
        guidance = gr.Slider(
            0, MAX_GUIDANCE, value=1, step=0.25, label="Guidance", info="above 1: more typical of its class"
        )
        seed = gr.Number(
            0, minimum=0, maximum=MAX_SEED, precision=0, label="Seed", info="the same seed, the same images"
        )
    return [label, how_many, temperature, guidance, seed]


def template(name: str) -> str:
    """A file of this folder."""
    return FOLDER.joinpath(name).read_text(encoding="utf-8")


def drawing_area(title: str, image_size: int, kept_rows: int | None = None) -> gr.HTML:
    """A canvas to draw on; with `kept_rows` images can be uploaded too, and a line shows which rows are kept."""
    line = upload = ""
    if kept_rows is not None:
        line = f'<div class="pad-line" id="kept" style="--kept: {kept_rows / image_size}"></div>'
        upload = UPLOAD
    pad = template("pad.html").format(title=title, canvas=CANVAS_SCALE * image_size, line=line, upload=upload)
    return gr.HTML(html_template=pad, js_on_load=template("app.js"), apply_default_css=False)


def build_app(model, processor) -> gr.Blocks:
    """The page: three tabs, whose requests wait in one queue, so that one at a time has the model."""
    config, size = model.config, model.config.image_size
    about = {"parameters": model.num_parameters(), "side": size, "patch": config.patch_size}
    introduction = template("introduction.html").format(**about)
    # Seeds set the one generator of random numbers.
    alone: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}

    def answer(function):
        return in_words(functools.partial(function, model, processor))

    with gr.Blocks(title="A tiny Image GPT", analytics_enabled=False) as app:
        gr.HTML(introduction, elem_id="introduction")
        with gr.Tab("Generate"), gr.Row():
            with gr.Column(scale=2, min_width=300):
                settings = add_settings(config, count=9)
                button = gr.Button("Draw", variant="primary")
            with gr.Column(scale=3, min_width=300):
                images = gr.HTML(waiting("Choose a class and press <b>Draw</b>."))
            button.click(answer(generate), settings, images, api_name="generate", **alone)
        with gr.Tab("Complete"), gr.Row():
            with gr.Column(scale=2, min_width=300):
                drawing = drawing_area("Draw the upper part, or upload an image", size, kept_rows=processor.half_rows)
                keep_rows = gr.Slider(
                    processor.patch_size,
                    size - processor.patch_size,
                    value=processor.half_rows,
                    step=processor.patch_size,
                    label="Rows that are kept",
                    info=f"above the line, of {size}",
                )
                keep_rows.change(None, keep_rows, js=MOVE_LINE.replace("SIZE", str(size)))
                settings = add_settings(config, count=8)
                button = gr.Button("Complete", variant="primary")
            with gr.Column(scale=3, min_width=300):
                completions = gr.HTML(waiting("Draw the upper part and press <b>Complete</b>."))
            inputs = [drawing, keep_rows, *settings]
            button.click(answer(complete), inputs, completions, api_name="complete", **alone)
        with gr.Tab("Read"), gr.Row():
            with gr.Column(scale=2, min_width=300):
                drawing = drawing_area("Draw one, about as large as the area", size)
                button = gr.Button("Read", variant="primary")
            with gr.Column(scale=3, min_width=300):
                reading = gr.HTML(waiting("Draw something and press <b>Read</b>."))
            button.click(answer(read), drawing, reading, api_name="read", **alone)
    return app.queue(max_size=QUEUE_SIZE, api_open=False)


def warm_up(model, processor):
    """Sample and score one image, so that the compiled kernels are loaded before the first person comes."""
    generate(model, processor, ANY, 1, 1.0, 1.0, 0)


def launch(model, processor, **arguments) -> gr.Blocks:
    """Serve the page; `arguments` are those of `gradio.Blocks.launch` (server_port, prevent_thread_lock, ...)."""
    warm_up(model, processor)
    app = build_app(model, processor)
    app.launch(theme=make_theme(), css_paths=FOLDER / "app.css", footer_links=["gradio"], ssr_mode=False, **arguments)
    return app
