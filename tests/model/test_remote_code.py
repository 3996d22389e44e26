"""A checkpoint carries its code: it loads where the package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import pipeline

from igpt_hf import (
    BinaryImageGenerationPipeline,
    IGPTConfig,
    IGPTForCausalImageModeling,
    IGPTForImageClassification,
    IGPTImageProcessor,
)
from igpt_hf.model import modeling_igpt


CODE = """
import json, sys
for package in sys.argv[3:]:
    sys.modules[package] = None  # as if it were not installed
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, pipeline, set_seed
# From the package itself, transformers up to 5.15 gives it only where there is torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
path = sys.argv[1]
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(path, **trust)
model = AutoModelForCausalLM.from_pretrained(path, **trust)
base = AutoModel.from_pretrained(path, **trust)
processor = AutoImageProcessor.from_pretrained(path, **trust)
set_seed(0)
ids = model.generate(**processor.prompt(class_labels=[0, 1, 2]))
result = {
    "names": [type(x).__name__ for x in (config, model, base, processor)],
    "modules": [type(x).__module__.split(".")[0] for x in (config, model, base, processor)],
    "ids": ids.tolist(),
    "beams": model.generate(**processor.prompt(class_labels=[0, 1]), num_beams=2, do_sample=False).tolist(),
    "nats": (-model.log_likelihood(ids)).tolist(),
    "pixels": processor.decode_pixels(ids).tolist(),
    "same_weights": torch.equal(base.norm.weight, model.model.norm.weight),
}
model.save_pretrained(sys.argv[2])
processor.save_pretrained(sys.argv[2])
draw = pipeline("binary-image-generation", model=path, **trust)
result["drawn"] = [draw(1, seed=0).size, len(draw([0, None]))]
inferred = pipeline(model=sys.argv[2], **trust)  # the task is that of the only pipeline there
result["pipelines"] = [type(draw).__name__, type(inferred).__name__]
again = AutoModelForCausalLM.from_pretrained(sys.argv[2], **trust)
result["again"] = (-again.log_likelihood(ids)).tolist()
other = AutoModelForCausalLM.from_pretrained(path, num_labels=5, ignore_mismatched_sizes=True, **trust)
table, before = (x.model.embeddings.context.weight for x in (other, model))
result["other_classes"] = [torch.equal(table[:207], before[:207]), torch.equal(table[-1], before[-1]),
                           other.generation_config.bos_token_id, other.generate(num_beams=2)[0, 0].item()]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tiny_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("blocked", [["igpt_hf"], ["igpt_hf", "numba"]], ids=" and ".join)
def test_a_checkpoint_works_the_same_without_the_package(checkpoint, tmp_path, blocked):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(checkpoint), str(tmp_path / "again"), *blocked],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["names"] == ["IGPTConfig", "IGPTForCausalImageModeling", "IGPTModel", "IGPTImageProcessor"]
    assert set(result["modules"]) == {"transformers_modules"}
    assert result["same_weights"]
    assert result["drawn"] == [[8, 8], 2]
    assert result["other_classes"] == [True, True, 21, 21]
    assert result["pipelines"] == ["BinaryImageGenerationPipeline"] * 2
    model = IGPTForCausalImageModeling.from_pretrained(checkpoint)
    processor = IGPTImageProcessor.from_pretrained(checkpoint)
    torch.manual_seed(0)
    loop = {"cache_implementation": "dynamic"} if "numba" in blocked else {}  # what samples without the kernel
    ids = model.generate(**processor.prompt(class_labels=[0, 1, 2]), **loop)
    assert result["ids"] == ids.tolist()
    beams = model.generate(**processor.prompt(class_labels=[0, 1]), num_beams=2, do_sample=False)
    assert result["beams"] == beams.tolist()
    nats = -model.log_likelihood(ids)
    assert torch.allclose(torch.tensor(result["nats"], dtype=torch.float64), nats, atol=1e-4)
    assert torch.allclose(torch.tensor(result["again"], dtype=torch.float64), nats, atol=1e-4)
    assert result["pixels"] == processor.decode_pixels(ids).tolist()


def test_where_the_package_is_installed_nobody_has_to_trust_the_code_in_a_checkpoint(checkpoint, tmp_path):
    draw = pipeline("binary-image-generation", model=str(checkpoint))
    assert type(draw) is BinaryImageGenerationPipeline
    draw.save_pretrained(tmp_path)
    assert pipeline("binary-image-generation", model=str(tmp_path))(1).size == (8, 8)


def test_the_code_in_a_checkpoint_imports_nothing_that_only_training_needs(checkpoint):
    files = {path.name for path in checkpoint.glob("*.py")}
    assert {"configuration_igpt.py", "modeling_igpt.py", "image_processing_igpt.py", "pipeline_igpt.py"} <= files
    for path in checkpoint.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not any(f"import {name}" in text for name in ("datasets", "evaluate", "matplotlib", "igpt_hf")), path


def test_a_checkpoint_carries_the_files_of_the_model_folder_and_no_others(checkpoint):
    folder = Path(modeling_igpt.__file__).parent
    expected = {path.name: path.read_bytes() for path in folder.glob("*.py") if path.name != "__init__.py"}
    assert {path.name: path.read_bytes() for path in checkpoint.glob("*.py")} == expected


CLASSIFIER = """
import json, sys
sys.modules["igpt_hf"] = None  # as if it were not installed
import torch
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.no_grad():
    logits = model(input_ids=torch.tensor(json.loads(sys.argv[2]))).logits
print(json.dumps([type(model).__module__.split(".")[0], logits.tolist()]))
"""


@pytest.mark.slow
def test_a_classifier_works_the_same_without_the_package(tmp_path, random_ids):
    torch.manual_seed(0)
    model = IGPTForImageClassification(IGPTConfig(image_size=8, num_hidden_layers=2, num_labels=3)).eval()
    torch.nn.init.normal_(model.classifier.weight)
    ids = random_ids(model.config)
    model.save_pretrained(tmp_path / "classifier")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", CLASSIFIER, str(tmp_path / "classifier"), json.dumps(ids.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    module, logits = json.loads(done.stdout.splitlines()[-1])
    assert module == "transformers_modules"
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(logits), model(input_ids=ids).logits, rtol=0, atol=1e-4)
