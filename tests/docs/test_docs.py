"""The code in the documentation runs, what it claims is true, and the site builds without a warning."""

import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.paths import ROOT, UTILS
from helpers.scripts import load_utility
from igpt_hf import PRESETS, IGPTConfig, IGPTForCausalImageModeling, IGPTImageProcessor, synthetic_digits


README, TRAINING = ROOT / "README.md", ROOT / "docs" / "training.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [README, *PAGES]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


check_docs = load_utility("check_docs")


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- code ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with what the pages speak of: a model in runs/synthetic, a folder of class folders in digits/."""
    folder = tmp_path_factory.mktemp("reader")
    config = IGPTConfig(num_hidden_layers=1, id2label={label: str(label) for label in range(10)})
    IGPTForCausalImageModeling(config).save_pretrained(folder / "runs" / "synthetic")
    IGPTImageProcessor(num_labels=10).save_pretrained(folder / "runs" / "synthetic")
    for index, (image, label) in enumerate(zip(*synthetic_digits(60, seed=0), strict=True)):
        path = folder / "digits" / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in TEXTS if BLOCK.search(page.read_text("utf-8"))], ids=names)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, monkeypatch, workplace):
    import torch

    monkeypatch.chdir(workplace)
    default, namespace = torch.get_default_dtype(), {}
    try:
        for block in BLOCK.findall(page.read_text("utf-8")):
            exec(compile(block, str(page), "exec"), namespace)
    finally:
        torch.set_default_dtype(default)


def test_every_fenced_block_says_what_it_is():
    for page in TEXTS:
        fences = re.findall(r"^```(.*)$", page.read_text("utf-8"), re.MULTILINE)
        assert len(fences) % 2 == 0, page
        assert set(fences[::2]) <= {"python", "bash", "text"} and set(fences[1::2]) <= {""}, page


# --- links, commands, figures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TEXTS, ids=names)
def test_links_and_images_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", [*TEXTS, *check_docs.OTHERS], ids=names)
def test_commands_name_scripts_and_flags_that_exist(page):
    assert check_docs.wrong_commands(page.read_text("utf-8")) == []


@pytest.mark.parametrize("page", TEXTS, ids=names)
def test_names_of_the_package_exist(page):
    assert check_docs.wrong_names(page.read_text("utf-8")) == []


@pytest.mark.parametrize("page", TEXTS, ids=names)
def test_figures_are_those_of_the_committed_results(page):
    assert check_docs.wrong_figures(page.read_text("utf-8")) == []


def test_a_reader_finds_each_promised_flag_and_key():
    assert check_docs.not_found([page.read_text("utf-8") for page in TEXTS]) == []


def test_the_table_of_presets_is_true():
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\d,]+) \|$", TRAINING.read_text("utf-8"), re.M
    )
    assert [row[0] for row in rows] == list(PRESETS)
    for name, width, layers, heads, mlp, parameters in rows:
        shape = PRESETS[name]
        assert [int(width), int(layers), int(heads), int(mlp)] == list(shape.values()), name
        import torch

        with torch.device("meta"):
            model = IGPTForCausalImageModeling(IGPTConfig(**shape))
        assert f"{model.num_parameters():,}" == parameters, name


# --- the check itself ------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path) -> Path:
    (tmp_path / "run.json").write_text(
        '{"nats": 52.584, "speed": {"1": 5.0, "64": 1234.5}, "seconds": 1560, "no": null, "share": 0.987}'
    )
    (tmp_path / "rows.jsonl").write_text('{"name": "a b", "nats": 1.0}\n{"name": "c", "nats": 2.0}\n')
    return tmp_path


def page(text: str, *lines: str) -> str:
    """A page with a list of figures."""
    return text + "\n\n<!-- figures\n" + "".join(line + "\n" for line in lines) + "-->\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("run.json#nats .2f", "52.58"),
        ("run.json#speed/64 ,.0f", "1,234"),
        ("run.json#speed/max ,.1f", "1,234.5"),
        ("run.json#seconds minutes", "26"),
        ("run.json#share .1%", "98.7%"),
        ("run.json#no .2f", "—"),
        ("rows.jsonl#name=a b/nats .1f", "1.0"),
        ("another.json#nats .2f", "—"),
    ],
)
def test_a_listed_figure_is_filled_from_its_file(results, source, expected):
    text = page("The loss is **—**.", f"— = {source}")
    filled = check_docs.fill(text, results)
    assert filled == text.replace("—", expected)
    assert check_docs.fill(filled, results) == filled
    assert check_docs.wrong_figures(filled, results) == []


def test_filling_replaces_each_occurrence_in_the_text_and_nothing_else(results):
    text = page(
        "51.00 nats, not 151.00 or 51.001 and `51.00`; again 51.00, in 25 minutes.",
        "51.00 = run.json#nats .2f",
        "25 = run.json#seconds minutes",
        "151.00 = source: arithmetic",
        "51.001 = source: arithmetic",
    )
    assert check_docs.fill(text, results) == page(
        "52.58 nats, not 151.00 or 51.001 and `51.00`; again 52.58, in 26 minutes.",
        "52.58 = run.json#nats .2f",
        "26 = run.json#seconds minutes",
        "151.00 = source: arithmetic",
        "51.001 = source: arithmetic",
    )


def test_filling_exchanges_figures_that_have_become_each_other(results):
    text = page("2.0 and 1.0 nats", "2.0 = rows.jsonl#name=a b/nats .1f", "1.0 = rows.jsonl#name=c/nats .1f")
    assert check_docs.fill(text, results).startswith("1.0 and 2.0 nats")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (page("25 minutes for 25 images", "25 = run.json#seconds minutes"), "25 stands 2 times"),
        (page("a minute", "25 = run.json#seconds minutes"), "25 stands 0 times"),
        (page("1.5 nats", "1.5 = run.json#nats .1f", "1.5 = rows.jsonl#name=c/nats .1f"), "2.0 and 52.6"),
        (page("1.5 nats", "1.5 = run.json#nats .1f", "1.5 = source: arithmetic"), "1.5 and 52.6"),
    ],
)
def test_filling_refuses_where_it_is_not_clear_which_number_is_meant(results, text, complaint):
    with pytest.raises(LookupError, match=complaint):
        check_docs.fill(text, results)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (page("loss 52.59", "52.59 = run.json#nats .2f"), "52.59 should be 52.58"),
        (page("loss 52.58", "52.58 = another.json#nats .2f"), "should be —"),
        (page("loss —", "— = run.json#nats .2f"), "should be 52.58"),
        (page("loss 52.58", "52.58 = run.json#loss .2f"), "has no loss"),
        (page("no loss", "52.58 = run.json#nats .2f"), "52.58 is listed, but not on the page"),
        (page("`52.58`", "52.58 = run.json#nats .2f"), "52.58 is listed, but not on the page"),
        (page("loss 152.58%", "52.58 = run.json#nats .2f"), "52.58 is listed, but not on the page"),
        (page("loss 52.58", "52.58 = run.json"), "is not a line of a list"),
        (page("loss 52.58", "52.58 run.json#nats .2f"), "is not a line of a list"),
        ("loss 52.58", "52.58 has no source"),
        (page("loss 52.58 or 52.59", "52.58 = run.json#nats .2f"), "52.59 has no source"),
        ("right in 98.7% of all", "98.7% has no source"),
        ("it takes 1,143 MB", "1,143 has no source"),
        (page("| a | 52.58 | 414 |", "52.58 = run.json#nats .2f"), "'414' has no source"),
        ("loss 52.58\n\n<!-- figures\n52.58 = run.json#nats .2f\n", "does not end"),
        ("<!-- begin results: nobody -->\n\n| 1.0 |\n\n<!-- end results -->", "no table is named nobody"),
        ("| 1.0 |\n\n<!-- end results -->", "without the other"),
    ],
)
def test_a_figure_without_backing_is_found(results, text, complaint):
    assert any(complaint in problem for problem in check_docs.wrong_figures(text, results))


def test_a_table_is_made_from_the_results(results, monkeypatch):
    text = "| a | loss |\n|---|---|\n| one | **{run.json#nats .2f}** |\n| two | {rows.jsonl#name=c/nats .1f} |\n"
    monkeypatch.setattr(check_docs, "TABLES", results)
    (results / "both.md").write_text(text)
    empty = "<!-- begin results: both -->\n\n\n<!-- end results -->\n\nmore\n"
    full = check_docs.fill(empty, results)
    rows = text.replace("{run.json#nats .2f}", "52.58").replace("{rows.jsonl#name=c/nats .1f}", "2.0")
    assert full == f"<!-- begin results: both -->\n\n{rows}\n<!-- end results -->\n\nmore\n"
    assert check_docs.fill(full, results) == full
    assert check_docs.wrong_figures(full, results) == []
    wrong = check_docs.wrong_figures(full.replace("2.0", "2.1"), results)
    assert wrong == ["the table both is not what the results make of it"]


def test_every_table_stands_on_a_page():
    used = [match["name"] for text in TEXTS for match in check_docs.BLOCK.finditer(text.read_text("utf-8"))]
    templates = [path.stem for path in check_docs.TABLES.glob("*.md")]
    assert sorted(used) == sorted([*templates, *check_docs.ABLATIONS])


def test_the_text_of_a_page_has_no_comments():
    for path in TEXTS:
        text = check_docs.LIST.sub("", check_docs.BLOCK.sub("", path.read_text("utf-8")))
        assert set(re.findall("<!-- (?!index: |begin layouts|end layouts).*", text)) == set(), path


def test_what_is_no_measurement_needs_no_source(results):
    text = page(
        "see [this](a/b-1.5.md), `0.5`, version 5.23.0, 79.17, $0.5$, 28x28, 2007", "79.17 = source: its README"
    )
    assert check_docs.wrong_figures(text, results) == []


def test_flags_and_scripts_that_are_not_there_are_found():
    wrong = check_docs.wrong_commands(
        "```bash\npython scripts/sample.py m --numb 3\npython scripts/no.py\nmake tea\nmake test-tea\n"
        "accelerate launch --num_processes 2 scripts/train.py \\\n  --no_such_flag 1 --hidden_size 16\n```\n"
    )
    assert wrong == [
        "there is no scripts/no.py",
        "scripts/sample.py has no --numb",
        "scripts/train.py has no --no_such_flag",
        "there is no make tea",
        "there is no make test-tea",
    ]


def test_files_and_names_that_are_not_there_are_found():
    text = "`igpt_hf/errors.py`, `tests/scripts/test_cli.py`, `igpt_hf.errors.DataError` and `igpt_hf.plots`"
    assert check_docs.wrong_commands(text) == check_docs.wrong_names(text) == []
    wrong = "`igpt_hf/error.py`, `tests/test_cli.py`, `igpt_hf.errors.Data` and `igpt_hf.plot`"
    assert check_docs.wrong_commands(wrong) == ["there is no igpt_hf/error.py", "there is no tests/test_cli.py"]
    assert check_docs.wrong_names(wrong) == ["there is no igpt_hf.errors.Data", "there is no igpt_hf.plot"]


def test_commands_of_igpt_are_checked_like_their_scripts():
    wrong = check_docs.wrong_commands(
        "```bash\nigpt sample m --numb 3\nigpt draw m\nigpt export demo m page --size 3\n```\n"
        "`igpt train --num_processes 2 -- --data x --no_such_flag 1` and `igpt` and `igpt COMMAND --help`\n"
    )
    assert wrong == [
        "there is no igpt draw",
        "scripts/sample.py has no --numb",
        "scripts/export_demo.py has no --size",
        "scripts/train.py has no --no_such_flag",
    ]


# --- the site --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_needs_nothing_from_elsewhere(site):
    for page in site.glob("*.html"):
        html = page.read_text("utf-8")
        assert re.findall(r"<(?:script|img|iframe)[^>]*src=[\"']?https?:", html) == [], page
        assert re.findall(r"<link[^>]*rel=[\"']?stylesheet[^>]*href=[\"']?https?:", html) == [], page


@pytest.mark.slow
def test_every_formula_of_the_site_is_mathml(site):
    for page in PAGES:
        html = (site / f"{page.stem}.html").read_text("utf-8")
        prose = re.sub(r"<(code|pre).*?</\1>", "", html, flags=re.DOTALL)
        assert "arithmatex" not in prose, page
        for formula in re.findall(r"<math.*?</math>", prose, re.DOTALL):
            assert "\\" not in formula, page  # a command that was not understood
    assert (site / "elbo.html").read_text("utf-8").count("<math") > 40


@pytest.mark.slow
def test_the_font_of_the_site_has_every_character_of_its_formulas(site):
    from fontTools.ttLib import TTFont

    font = TTFont(ROOT / "docs" / "fonts" / "noto-sans-math.woff2")
    assert "MATH" in font  # without it no bracket or root grows with what it holds
    formulas = "".join(re.findall(r"<math.*?</math>", (site / "elbo.html").read_text("utf-8"), re.DOTALL))
    shown = set(unescape(re.sub(r"<[^>]+>", "", formulas))) - set("\n")
    assert {hex(ord(character)) for character in shown if ord(character) not in font.getBestCmap()} == set()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_code_fits_into_its_page_and_search_works_from_disk(site, open_page, width):
    for name in ("ablations", "elbo"):
        page = open_page((site / f"{name}.html").as_uri(), width)
        too_wide = "[...document.querySelectorAll('pre > code')].filter(code => code.scrollWidth > code.clientWidth)"
        assert page.evaluate(f"{too_wide}.length") == 0
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator(".md-search__input" if width == 1280 else "label.md-header__button[for=__search]").click()
    page.keyboard.type("guidance", delay=50)
    page.locator(".md-search-result__item").first.wait_for(timeout=20_000)


@pytest.mark.slow
def test_the_notebook_is_a_page_with_its_pictures(site):
    html = (site / "notebook.html").read_text("utf-8")
    pictures = re.findall(r'<img[^>]*src="(notebook/[^"]+)"', html)
    cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text("utf-8"))["cells"]
    outputs = [out for cell in cells for out in cell.get("outputs", ()) if "image/png" in out.get("data", {})]
    assert len(pictures) == len(outputs) > 4 and all((site / picture).is_file() for picture in pictures)
    assert 'href="quickstart.ipynb"' in html  # to download it
    assert 'href="notebook.html"' in (site / "index.html").read_text("utf-8")


@pytest.mark.slow
def test_the_api_reference_documents_every_public_name(site):
    import igpt_hf

    html = (site / "api.html").read_text("utf-8")
    undocumented = [name for name in igpt_hf.__all__ if f">{name}<" not in html and f".{name}" not in html]
    assert undocumented == ["PRESETS"]  # a table in docs/training.md


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_figures_are_made_from_a_model(workplace, tmp_path):
    command = [sys.executable, UTILS / "make_figures.py", workplace / "runs" / "synthetic", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    with Image.open(tmp_path / "growing.gif") as animation:
        assert animation.n_frames == 196 // 4 + 1
        first = np.array(animation.convert("RGB"))
        animation.seek(animation.n_frames - 1)
        assert (first == 255).all(axis=2).sum() == 0  # nothing is drawn yet
        assert (np.array(animation.convert("RGB")) == 255).all(axis=2).any()
    assert (tmp_path / "real_and_sampled.png").is_file() and (tmp_path / "completions.png").is_file()


def test_the_shapes_of_the_gallery_are_a_folder_per_class_and_the_same_each_time(tmp_path, monkeypatch):
    make_shapes, images = load_utility("make_shapes"), []
    for name in ("once", "again"):
        monkeypatch.setattr(sys, "argv", ["make_shapes.py", str(tmp_path / name), "--num", "2"])
        make_shapes.main()
        paths = sorted((tmp_path / name).rglob("*.png"))
        assert len({path.parent.name for path in paths}) == 16 and len(paths) == 32
        images.append(np.stack([np.asarray(Image.open(path)) for path in paths]) > 127)
    assert np.array_equal(*images)
    inked = images[0].mean(axis=(1, 2))
    assert 0.02 < inked.min() and inked.max() < 0.6


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").iterdir()), ids=lambda path: path.name)
def test_images_are_small_enough_for_a_front_page(path):
    assert path.stat().st_size < 500_000


# --- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["Makefile", ".github/workflows/ci.yml", "docs/reliability.md"])
def test_the_tests_that_are_named_are_there(path):
    named = re.findall(r"tests/[\w/]+\.py", (ROOT / path).read_text("utf-8"))
    assert named and [name for name in named if not (ROOT / name).is_file()] == []
