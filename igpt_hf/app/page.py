"""Play with a trained model in a browser: it samples, completes half an image, and classifies a drawing (Gradio).

The functions that answer are plain: settings in, HTML out. `build_app` lays out the page and wires them.
"""

import base64
import functools
import html
import io
import math
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageChops

from ..evaluation.surprise import surprise_maps
from ..model.image_decision import is_photograph


MAX_PICTURES, MAX_SEED, MAX_TEMPERATURE, MAX_GUIDANCE = 16, 2**32 - 1, 2.0, 5.0
MAX_CANVAS_BYTES = 500_000
QUEUE_SIZE = 32
CANVAS_SCALE = 10  # pixels of the drawing area for each pixel of an image
MAX_CANVAS_SIDE = 2000
ANY = -1  # stands for no class
FOLDER = Path(__file__).parent

INTRODUCTION = """
<h1>A tiny Image GPT</h1>
<p>This model of {parameters:,} numbers generates binary images of {side}×{side} pixels, one block of {patch}×{patch}
after the other, and knows exactly how likely each of them is. Let it draw, give it half an image to complete, or draw
one yourself and see what it reads.</p>
"""

PAD = """
<div class="pad">
  <div class="pad-title">{title}</div>
  <div class="pad-area"><canvas width="{canvas}" height="{canvas}" aria-label="{title}"></canvas>{line}</div>
  <div class="pad-tools">
    <button type="button" data-tool="pen">Pen</button>
    <button type="button" data-tool="eraser">Eraser</button>
    <button type="button" class="pad-undo">Undo</button>
    <button type="button" class="pad-clear">Clear</button>
    {upload}
  </div>
  <p class="pad-message" role="alert"></p>
</div>
"""
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


# --- what is asked --------------------------------------------------------------------------------------------------


def class_choices(config) -> list[tuple[str, int]]:
    """(text, class index) of each class, and of any; a Persian digit stands before the name of a digit."""
    choices = []
    for label, name in sorted(config.id2label.items()):
        is_digit = name.isascii() and name.isdigit() and len(name) == 1
        choices.append((f"{chr(0x6F0 + int(name))}  {name}" if is_digit else name, label))
    return [*choices, ("any", ANY)]


def check_range(name: str, value, low: float, high: float, is_whole: bool = False):
    """Raises ValueError, in words, unless `value` is a number from `low` to `high`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (is_whole and value != int(value)):
        raise ValueError(f"{name} must be a {'whole ' * is_whole}number from {low} to {high}, not {value}.")


def check_settings(config, label, count, temperature, guidance, seed):
    """Raises ValueError, in words, if a setting is out of its bounds, whoever sent it."""
    check_range("The class", label, ANY, config.num_labels - 1, is_whole=True)
    check_range("The number of images", count, 1, MAX_PICTURES, is_whole=True)
    check_range("The temperature", temperature, 0.1, MAX_TEMPERATURE)
    check_range("Guidance", guidance, 0, MAX_GUIDANCE)
    check_range("The seed", seed, 0, MAX_SEED, is_whole=True)


def read_canvas(drawing: str | None) -> Image.Image:
    """What the drawing area sends, a PNG as a data: address -> a gray image.

    Raises:
        ValueError: There is nothing on it, or it is not such an image.
    """
    prefix = "data:image/png;base64,"
    if not drawing:
        raise ValueError("There is nothing here yet: draw something first.")
    if not isinstance(drawing, str) or not drawing.startswith(prefix) or len(drawing) > MAX_CANVAS_BYTES:
        raise ValueError(f"A drawing is a PNG as a data: address of at most {MAX_CANVAS_BYTES:,} characters.")
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(drawing[len(prefix) :])), formats=["PNG"])
        if max(picture.size) > MAX_CANVAS_SIDE:
            raise ValueError(f"A drawing has at most {MAX_CANVAS_SIDE} pixels a side.")
        gray = picture.convert("L")
    except (OSError, SyntaxError) as error:  # PIL raises the second on broken PNG files
        raise ValueError("The drawing is not a PNG that can be read.") from error
    low, high = gray.getextrema()
    if high - low < 64 or high <= 128:  # type: ignore[operator]  # PIL: or pairs, of several bands
        raise ValueError("There is nothing here yet: draw something first.")
    return gray


def center_ink(gray: Image.Image) -> Image.Image:
    """Move what is drawn, white on dark, to the middle of the canvas, as the digits of the training data stand."""
    left, top, right, bottom = gray.point(lambda level: 255 * (level > 128)).getbbox()
    shift = (gray.width - left - right) // 2, (gray.height - top - bottom) // 2
    return ImageChops.offset(gray, *shift)  # what leaves on one side is blank, and comes back on the other


def to_pixels(processor, gray: Image.Image) -> np.ndarray:
    """A gray image of any size -> binary pixels, white on black, (image_size, image_size).

    A photograph is cropped to its ink; a drawing shrinks as it is: a margin is for crops, and a canvas has its own.

    Raises:
        ValueError: No ink is left.
    """
    small = gray.resize((processor.image_size,) * 2, Image.Resampling.BOX)
    fitted = processor.fit_upload(gray if is_photograph(gray) else small)
    return processor.decode_pixels(processor.tokenize(fitted))[0]


# --- what is answered -----------------------------------------------------------------------------------------------


def data_uri(picture: Image.Image) -> str:
    """An image as an address that holds it: a PNG in base64."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def figure(picture: Image.Image, caption: str, known_rows: int | None = None, patch_size: int = 1) -> str:
    """An image with its caption, as HTML; with `known_rows` it grows, a row of blocks at a time, below these."""
    motion = ""
    if known_rows is not None:
        steps = (picture.height - known_rows) // patch_size
        hidden = 100 * (1 - known_rows / picture.height)
        motion = f' class="grow" style="--hidden: {hidden:.1f}%; animation-timing-function: steps({steps})"'
    image = f'<img src="{data_uri(picture)}" alt="{html.escape(caption)}"{motion}>'
    return f'<figure><div class="frame">{image}</div><figcaption>{caption}</figcaption></figure>'


def picture_grid(figures: list[str]) -> str:
    columns = math.ceil(math.sqrt(len(figures)))
    template = f"repeat({columns}, minmax(0, {200 if columns > 1 else 380}px))"
    return f'<div class="pictures" style="grid-template-columns: {template}">{"".join(figures)}</div>'


def bar(name: str, share: float, is_best: bool) -> str:
    percent = f"{100 * share:.1f}%"
    filled = f'<div class="bar{" best" * is_best}" style="width: {percent}"></div>'
    return f"""<div class="name">{html.escape(name)}</div><div class="track">{filled}</div>
        <div class="share">{percent}</div>"""


def waiting(text: str) -> str:
    return f'<div class="waiting">{text}</div>'


def sample(
    model, prompt_ids: torch.Tensor, temperature: float, guidance: float, seed: int
) -> tuple[torch.Tensor, list]:
    """Prompts (n, 1 + given) -> ids (n, 1 + N) and nats of each whole image given its class."""
    torch.manual_seed(int(seed))
    ids = model.generate(prompt_ids, temperature=float(temperature), guidance_scale=float(guidance))
    return ids, (-model.log_likelihood(ids)).tolist()


def generate(model, processor, label, count, temperature, guidance, seed) -> str:
    """Sample `count` images of a class, or of any (-1)."""
    check_settings(model.config, label, count, temperature, guidance, seed)
    prompt = processor.prompt(class_labels=None if label == ANY else [int(label)])["input_ids"]
    ids, nats = sample(model, prompt.expand(int(count), -1), temperature, guidance, seed)
    pictures = zip(processor.decode(ids), nats, strict=True)
    return picture_grid([figure(x, f"{value:.1f} nats", 0, processor.patch_size) for x, value in pictures])


def complete(model, processor, drawing, keep_rows, label, count, temperature, guidance, seed) -> str:
    """Keep the upper rows of what is drawn or uploaded, and draw the rest `count` times."""
    check_settings(model.config, label, count, temperature, guidance, seed)
    check_range("The number of rows", keep_rows, processor.patch_size, processor.image_size - processor.patch_size)
    pixels, rows = to_pixels(processor, read_canvas(drawing)), int(keep_rows)
    if not pixels[:rows].any():
        raise ValueError(f"The upper {rows} rows are empty: draw there, or keep more of them.")
    labels = None if label == ANY else [int(label)]
    prompt = processor.prompt(class_labels=labels, images=pixels, keep_rows=rows)["input_ids"]
    ids, nats = sample(model, prompt.expand(int(count), -1), temperature, guidance, seed)
    given = Image.fromarray(pixels * 255).convert("LA")
    is_given = np.indices(pixels.shape)[0] < rows
    given.putalpha(Image.fromarray(is_given.astype(np.uint8) * 255))  # the rest is not there
    figures = [figure(given, f"given: {rows} rows")]
    pictures = zip(processor.decode(ids), nats, strict=True)
    figures += [figure(x, f"{value:.1f} nats", rows, processor.patch_size) for x, value in pictures]
    return picture_grid(figures)


def read(model, processor, drawing) -> str:
    """The class of what is drawn, by Bayes' rule, and how surprising each of its pixels is."""
    ids = processor(to_pixels(processor, center_ink(read_canvas(drawing))))["input_ids"]
    posterior = model.class_posterior(ids)[0]
    best = posterior.argmax().item()
    ids[:, 0] = model.config.vocab_size + best
    surprise = surprise_maps(model, ids)["pixels"][0]
    names = {label: text for text, label in class_choices(model.config)}
    bars = "".join(bar(names[label], share, label == best) for label, share in enumerate(posterior.tolist()))
    heat = Image.fromarray((colormaps["magma"](surprise / max(surprise.max(), 1))[..., :3] * 255).astype(np.uint8))
    seen = figure(processor.decode(ids)[0], "what the model sees")
    surprised = figure(heat, f"its surprise: {surprise.sum():.1f} nats, up to {surprise.max():.1f} in one pixel")
    return (
        f'<p class="answer">It reads <b>{html.escape(names[best])}</b>.</p><div class="bars">{bars}</div>'
        f"{picture_grid([seen, surprised])}"
    )


# --- the page -------------------------------------------------------------------------------------------------------


def in_words(function):
    """Shows a ValueError to the person at the page, as the text it carries."""

    @functools.wraps(function)
    def answer(*args):
        try:
            return function(*args)
        except ValueError as error:
            raise gr.Error(str(error), duration=8, print_exception=False) from error

    return answer


def add_settings(config, count: int) -> list:
    """The settings that drawing and completing share: class, how many, temperature, guidance, seed."""
    choices = class_choices(config)
    if len(choices) > 12:
        label: gr.Dropdown | gr.Radio = gr.Dropdown(choices, value=ANY, label="Class")
    else:
        label = gr.Radio(choices, value=ANY, label="Class", elem_classes="classes")
    pictures = gr.Slider(1, MAX_PICTURES, value=count, step=1, label="How many")
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
    return [label, pictures, temperature, guidance, seed]


def drawing_area(title: str, image_size: int, kept_rows: int | None = None) -> gr.HTML:
    """A canvas to draw on; with `kept_rows` images can be uploaded too, and a line shows what is kept."""
    line = upload = ""
    if kept_rows is not None:
        line = f'<div class="pad-line" id="kept" style="--kept: {kept_rows / image_size}"></div>'
        upload = UPLOAD
    template = PAD.format(title=title, canvas=CANVAS_SCALE * image_size, line=line, upload=upload)
    return gr.HTML(html_template=template, js_on_load=FOLDER.joinpath("app.js").read_text(), apply_default_css=False)


def build_app(model, processor) -> gr.Blocks:
    """The page: three tabs, whose requests wait in one queue, so that one at a time has the model."""
    config, size = model.config, model.config.image_size
    introduction = INTRODUCTION.format(parameters=model.num_parameters(), side=size, patch=config.patch_size)
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
                pictures = gr.HTML(waiting("Choose a class and press <b>Draw</b>."))
            button.click(answer(generate), settings, pictures, api_name="generate", **alone)
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
