"""Models outside PyTorch: the ONNX step beside the model itself, and what the exporters refuse."""

import re
import runpy
import shutil
import sys

import pytest
import torch

from helpers.paths import DOCS, ROOT, SCRIPTS
from igpt_hf import IGPTError, IGPTImageProcessor
from igpt_hf.hub import export
from igpt_hf.hub.export import DecodingStep, copy_page, empty_cache, page_script, upper_bytes


def run_steps(step, ids: torch.Tensor, config) -> torch.Tensor:
    """Logits (B, N, V) of whole images, one step after the other."""
    keys = values = empty_cache(config, len(ids))
    logits = []
    for length in range(1, ids.shape[1]):
        step_logits, keys, values = step(ids[:, :length], keys, values)
        logits.append(step_logits)
    assert keys.shape[3] == values.shape[3] == ids.shape[1] - 1
    return torch.stack(logits, dim=1)


@pytest.fixture
def script(monkeypatch):
    def main(name: str, *argv):
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    return main


@torch.no_grad()
@pytest.mark.parametrize("conditional", [False, True])
def test_the_step_yields_the_logits_of_the_whole_sequence(tiny_model, random_ids, conditional):
    model = tiny_model(class_conditional_norm=conditional)
    ids = random_ids(model.config)
    steps = run_steps(DecodingStep(model), ids, model.config)
    torch.testing.assert_close(steps, model(input_ids=ids[:, :-1]).logits, atol=1e-5, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_onnxruntime_yields_the_logits_of_torch(script, tiny_model, tiny_processor, random_ids, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="there is no onnxruntime: pip install -e '.[test]'")
    pytest.importorskip("onnxscript", reason="there is no onnxscript: pip install -e '.[test]'")
    model = tiny_model(class_conditional_norm=True)
    model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    script("export_onnx.py", tmp_path / "model", "--output", tmp_path / "step.onnx")
    assert "one decoding step" in capsys.readouterr().out

    session = onnxruntime.InferenceSession(tmp_path / "step.onnx", providers=["CPUExecutionProvider"])

    def step(ids, keys, values):
        inputs = {"input_ids": ids.numpy(), "keys": keys.numpy(), "values": values.numpy()}
        return [torch.from_numpy(x) for x in session.run(None, inputs)]

    for n in (1, 3):  # batch sizes other than the example's
        ids = random_ids(model.config, n=n)
        logits = run_steps(step, ids, model.config)
        torch.testing.assert_close(logits, model(input_ids=ids[:, :-1]).logits, atol=1e-4, rtol=0)


def test_three_bytes_keep_a_weight_to_a_relative_error_of_2_to_the_minus_16():
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 20, 1000)
    bits = [int.from_bytes(upper_bytes(weights)[i : i + 3], "big") << 8 for i in range(0, 3000, 3)]
    read = torch.tensor(bits, dtype=torch.int64).to(torch.uint32).view(torch.float32)
    assert ((read - weights) / weights).abs().max() <= 2**-16


def test_what_the_page_cannot_draw_is_refused(tiny_model, tmp_path):
    with pytest.raises(IGPTError, match="gelu"):
        page_script(tiny_model(hidden_act="gelu"))
    model = tiny_model()
    model.lm_head.weight.data[0, 0] = torch.nan
    with pytest.raises(IGPTError, match="lm_head.weight"):
        page_script(model)
    assert not (tmp_path / "weights.js").exists()


def test_the_page_of_a_model_is_a_new_folder_and_another_model_may_replace_it(script, tiny_model, tmp_path):
    page, models = tmp_path / "page", [tmp_path / "first", tmp_path / "second"]
    written = []
    for seed, folder in enumerate(models):
        tiny_model(seed).save_pretrained(folder)
        IGPTImageProcessor(image_size=8, num_labels=3).save_pretrained(folder)
        script("export_demo.py", folder, page, "--subject", f"letters {seed}")
        assert f'"subject":"letters {seed}"' in (page / "weights.js").read_text()
        written.append((page / "weights.js").read_text())
    assert {path.name for path in page.iterdir()} == {path.name for path in (DOCS / "demo").iterdir()}
    assert written[0] != written[1]


def test_a_page_elsewhere_has_no_dead_links(monkeypatch, tmp_path):
    assert "../index.md" in (DOCS / "demo" / "index.html").read_text()
    for name, project in (("plain", None), ("linked", "https://example.org/docs")):
        monkeypatch.setattr(export, "PROJECT", project)
        copy_page(tmp_path / name)
        targets = re.findall('href="([^"#]*)"', (tmp_path / name / "index.html").read_text())
        pages = {target for target in targets if not target.startswith(("data:", "style.css"))}
        expected = {f"{project}/index.html", f"{project}/quickstart.html"} if project else set()
        assert pages == expected


def test_the_links_of_the_page_are_to_pages_of_the_site(tmp_path):
    pytest.importorskip("griffe", reason="there is no mkdocstrings: pip install -e '.[docs]'")
    shutil.copytree(DOCS / "demo", tmp_path / "demo")
    runpy.run_path(str(ROOT / "utils" / "docs_site.py"))["on_post_build"]({"site_dir": tmp_path})
    targets = re.findall(r'href="(\.\./[^"]*)"', (tmp_path / "demo" / "index.html").read_text())
    assert set(targets) == {"../index.html", "../quickstart.html"}
    assert all((DOCS / "demo" / target).with_suffix(".md").is_file() for target in targets)


def test_export_scripts_say_what_is_wrong(script, tmp_path):
    with pytest.raises(SystemExit, match="error: .*holds no page"):
        script("export_demo.py", tmp_path, tmp_path)
    with pytest.raises(SystemExit, match="error: .*does not exist"):
        script("export_onnx.py", tmp_path, "--output", tmp_path / "nowhere" / "step.onnx")
    with pytest.raises(SystemExit, match="error: .*holds no trained model"):
        script("export_onnx.py", tmp_path, "--output", tmp_path / "step.onnx")
