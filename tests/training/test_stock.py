"""The stock ImageGPT: trained by the same script, and of use to anyone who has transformers alone."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import set_seed

from helpers.paths import SCRIPTS
from helpers.scripts import run_python
from igpt_hf import IGPTError, IGPTImageProcessor, load_splits, tokenize
from igpt_hf.training.arguments import IGPTTrainingArguments
from igpt_hf.training.imagegpt_baseline import baseline_layout, baseline_model, baseline_processor
from igpt_hf.training.trainer import make_trainer


WITHOUT_THE_PACKAGE = r"""
import json, re, sys
sys.modules["igpt_hf"] = None  # as if it were not installed
from pathlib import Path
from PIL import Image
from transformers import set_seed

path, pictures = Path(sys.argv[1]), sorted(Path(sys.argv[2]).glob("*.png"))
[code] = re.findall(r"```python\n(.*?)```", (path / "README.md").read_text(encoding="utf-8"), re.DOTALL)
exec(code)  # makes model, processor, images and nats
of_the_card = [images.shape, images.dtype.name, nats.shape]

pixels = processor([Image.open(picture).convert("RGB") for picture in pictures], return_tensors="pt")["input_ids"]
prompts = torch.tensor([[2 + int(picture.stem.split("-")[1])] for picture in pictures])
ids = torch.cat([prompts, pixels], dim=1)
with torch.no_grad():
    log_probs = model(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])
    labels = ids.clone()
    labels[:, 0] = -100
    loss = model(ids, labels=labels).loss.item()

set_seed(0)
drawn = model.generate(torch.tensor([[2], [3], [15]]))
side = processor.size["height"]
colors = np.rint(127.5 * (np.array(processor.clusters)[drawn[:, 1:]] + 1)).reshape(3, side, side, 3)
print(json.dumps({
    "of_the_card": of_the_card,
    "nats": -log_probs.double().sum().item() / len(ids),
    "loss": loss * pixels.shape[1],
    "shape": list(drawn.shape),
    "of_any_class": list(model.generate().shape),
    "ids": sorted(set(drawn[:, 1:].flatten().tolist())),
    "colors": sorted({tuple(color) for color in colors.reshape(-1, 3).tolist()}),
    "names": [model.config.id2label[label] for label in range(10)],
}))
"""


@pytest.fixture(scope="module")
def splits():
    return load_splits("synthetic", max_images=60)


@pytest.fixture(scope="module")
def stock_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "stock"
    flags = ["--preset", "stock-xxs", "--image_size", "8", "--max_images", "60", "--num_train_epochs", "1"]
    flags += ["--num_threads", "1", "--per_device_train_batch_size", "8", "--output_dir", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *flags])
        runpy.run_path(str(SCRIPTS / "train.py"), run_name="__main__")
    return folder


@pytest.mark.slow
def test_a_stock_run_is_of_use_with_transformers_alone_and_has_the_nats_it_says(stock_run, splits, tmp_path):
    processor = IGPTImageProcessor(image_size=8, patch_size=1)
    for index, picture in enumerate(processor.decode(processor.tokenize(splits["test"]["image"][:]))):
        picture.save(tmp_path / f"{index:03d}-{splits['test']['label'][index]}.png")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    done = run_python("-c", WITHOUT_THE_PACKAGE, stock_run, tmp_path, cwd=tmp_path, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    results = json.loads((stock_run / "all_results.json").read_text())
    assert found["nats"] == pytest.approx(results["test_nats_per_image"], rel=1e-6)
    assert found["loss"] == pytest.approx(results["test_nats_per_image"], rel=1e-5)
    assert (found["shape"], found["of_any_class"]) == ([3, 65], [1, 65])
    assert found["of_the_card"] == [[3, 8, 8, 3], "uint8", [3]]
    assert found["ids"] == [0, 1]  # an untrained model gives the 13 others much of its probability
    assert found["colors"] == [[0, 0, 0], [255, 255, 255]]
    assert found["names"] == [str(digit) for digit in range(10)]
    assert not list(stock_run.glob("*.py"))


@pytest.mark.slow
def test_a_stock_run_leaves_the_files_of_any_run(stock_run):
    files = {"model.safetensors", "config.json", "generation_config.json", "preprocessor_config.json", "README.md"}
    files |= {"all_results.json", "loss_curve.png", "samples.png", "completions.png"}
    assert {path.name for path in stock_run.iterdir()} >= files
    config = json.loads((stock_run / "config.json").read_text())
    shape = {name: config[name] for name in ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions")}
    assert shape == {"vocab_size": 16, "n_embd": 16, "n_layer": 8, "n_head": 2, "n_positions": 65}
    assert config["architectures"] == ["ImageGPTForCausalImageModeling"]


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_big_batch(splits, tmp_path):
    layout = baseline_layout(10, image_size=8)
    tokens = tokenize(splits, IGPTImageProcessor(image_size=8, patch_size=1, num_labels=layout.num_labels))
    weights = []
    for batch, accumulation in ((8, 1), (2, 4)):
        args = IGPTTrainingArguments(
            *(str(tmp_path / str(batch)),),
            **{"use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 1, "use_muon": False},
            **{"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "warmup_steps": 0, "weight_decay": 0.0},
            **{"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "ema_decay": 0.0},
        )
        set_seed(0)
        trainer = make_trainer(baseline_model(layout), args, tokens, baseline_processor(8), layout=layout)
        trainer.train()
        weights.append(trainer.model.state_dict())
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-6), name


def test_more_than_ten_classes_and_another_shape_are_refused(tmp_path, monkeypatch):
    with pytest.raises(IGPTError, match="prompts for 10 classes, the data has 11"):
        baseline_layout(11)
    flags = ["--preset", "stock-xxs", "--max_images", "60", "--hidden_size", "32", "--patch_size", "2"]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags, "--output_dir", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="error: --preset stock-xxs has a fixed shape: leave out --hidden_size, --pa"):
        runpy.run_path(str(SCRIPTS / "train.py"), run_name="__main__")
