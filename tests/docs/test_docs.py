"""The code in the documentation runs, what it claims is true, and the site builds without a warning."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igpt_hf import PRESETS, IGPTConfig, IGPTForCausalImageModeling, IGPTImageProcessor, synthetic_digits


ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [README, *PAGES]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_docs = load_script("check_docs")


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
def test_links_and_pictures_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", TEXTS, ids=names)
def test_commands_name_scripts_and_flags_that_exist(page):
    assert check_docs.wrong_commands(page.read_text("utf-8")) == []


@pytest.mark.parametrize("page", TEXTS, ids=names)
def test_figures_are_those_of_the_committed_results(page):
    assert check_docs.wrong_figures(page.read_text("utf-8")) == []


def test_a_reader_finds_each_promised_flag_and_key():
    assert check_docs.not_found([page.read_text("utf-8") for page in TEXTS]) == []


def test_the_table_of_presets_is_true():
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+) \| (\d+) \| (\d+) \| ([\d,]+) \|$", README.read_text("utf-8"), re.M)
    assert [row[0] for row in rows] == list(PRESETS)
    for name, width, layers, heads, parameters in rows:
        shape = PRESETS[name]
        assert [int(width), int(layers), int(heads)] == list(shape.values()), name
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


@pytest.mark.parametrize(
    ("mark", "expected"),
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
def test_a_mark_is_filled_from_its_file(results, mark, expected):
    text = f"| loss | **—<!-- result: {mark} -->** |"
    filled = check_docs.fill(text, results)
    assert filled == text.replace("—", expected)
    assert check_docs.fill(filled, results) == filled
    assert check_docs.wrong_figures(filled, results) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("loss 52.59<!-- result: run.json#nats .2f -->", "should be 52.58"),
        ("loss 52.58<!-- result: another.json#nats .2f -->", "should be —"),
        ("loss —<!-- result: run.json#nats .2f -->", "should be 52.58"),
        ("loss 52.58<!-- result: run.json#loss .2f -->", "has no loss"),
        ("loss 52.58 <!-- result: run.json#nats .2f -->", "follows no figure"),
        ("loss 52.58", "52.58 has no source"),
        ("right in 98.7% of all", "98.7% has no source"),
        ("it takes 1,143 MB", "1,143 has no source"),
        ("| a | 52.58<!-- result: run.json#nats .2f --> | 414 |", "'414' has no source"),
    ],
)
def test_a_figure_without_backing_is_found(results, text, complaint):
    assert any(complaint in problem for problem in check_docs.wrong_figures(text, results))


def test_a_table_is_made_by_its_script(results):
    script = "def as_table(rows):\n    return ''.join(f\"| {r['name']} | {r['nats']} |\\n\" for r in rows)\n"
    (results / "make.py").write_text(script)
    empty = f"<!-- table: rows.jsonl, {results / 'make.py'}: as_table -->\n\n"
    full = check_docs.fill(empty + "\nmore\n", results)
    assert full == empty + "| a b | 1.0 |\n| c | 2.0 |\n\nmore\n"
    assert check_docs.wrong_figures(full, results) == []
    assert check_docs.wrong_figures(full.replace("2.0", "2.1"), results) != []
    assert check_docs.fill(empty.replace("rows", "others"), results) == empty.replace("rows", "others")
    sourced = "<!-- source: arithmetic -->\n\n| 1.5 |\n\n2.5 nats\n"
    assert check_docs.wrong_figures(sourced, results) == ["2.5 has no source"]


def test_what_is_no_measurement_needs_no_mark(results):
    text = "see [this](a/b-1.5.md), `0.5`, version 5.23.0, 79.17<!-- source: its README -->, $0.5$, 28x28, 2007"
    assert check_docs.wrong_figures(text, results) == []


def test_flags_and_scripts_that_are_not_there_are_found():
    wrong = check_docs.wrong_commands(
        "```bash\npython scripts/sample.py m --numb 3\npython scripts/no.py\nmake tea\n"
        "accelerate launch --num_processes 2 scripts/train.py \\\n  --no_such_flag 1 --hidden_size 16\n```\n"
    )
    assert wrong == [
        "there is no scripts/no.py",
        "scripts/sample.py has no --numb",
        "scripts/train.py has no --no_such_flag",
        "there is no make tea",
    ]


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


def test_the_site_needs_nothing_from_elsewhere(site):
    for page in site.glob("*.html"):
        html = page.read_text("utf-8")
        assert re.findall(r"<(?:script|img|iframe)[^>]*src=[\"']?https?:", html) == [], page
        assert re.findall(r"<link[^>]*rel=[\"']?stylesheet[^>]*href=[\"']?https?:", html) == [], page


def test_every_formula_of_the_site_is_mathml(site):
    for page in PAGES:
        html = (site / f"{page.stem}.html").read_text("utf-8")
        prose = re.sub(r"<(code|pre).*?</\1>", "", html, flags=re.DOTALL)
        assert "arithmatex" not in prose, page
        for formula in re.findall(r"<math.*?</math>", prose, re.DOTALL):
            assert "\\" not in formula, page  # a command that was not understood
    assert (site / "elbo.html").read_text("utf-8").count("<math") > 40


def test_the_api_reference_documents_every_public_name(site):
    import igpt_hf

    html = (site / "api.html").read_text("utf-8")
    undocumented = [name for name in igpt_hf.__all__ if f">{name}<" not in html and f".{name}" not in html]
    assert undocumented == ["PRESETS"]  # a table in README.md


# --- pictures --------------------------------------------------------------------------------------------------------


def test_figures_are_made_from_a_model(workplace, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "make_figures.py", workplace / "runs" / "synthetic", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    with Image.open(tmp_path / "growing.gif") as animation:
        assert animation.n_frames == 196 // 4 + 1
        first = np.array(animation.convert("RGB"))
        animation.seek(animation.n_frames - 1)
        assert (first == 255).all(axis=2).sum() == 0  # nothing is drawn yet
        assert (np.array(animation.convert("RGB")) == 255).all(axis=2).any()
    assert (tmp_path / "real_and_sampled.png").is_file() and (tmp_path / "completions.png").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").iterdir()), ids=lambda path: path.name)
def test_pictures_are_small_enough_for_a_front_page(path):
    assert path.stat().st_size < 500_000


# --- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["Makefile", ".github/workflows/ci.yml", "docs/reliability.md"])
def test_the_tests_that_are_named_are_there(path):
    named = re.findall(r"tests/[\w/]+\.py", (ROOT / path).read_text("utf-8"))
    assert named and [name for name in named if not (ROOT / name).is_file()] == []
