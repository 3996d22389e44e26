"""Streaming: the same images as without, in constant memory, cached, shared among processes, resumed exactly."""

import inspect
import io
import os
import shutil
import time
import weakref
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from safetensors.torch import load_file
from transformers import set_seed

from helpers.scripts import FILES, LAUNCH, results_of, run
from helpers.training import arguments, assert_equal_weights
from igpt_hf import DataError, IGPTConfig, IGPTError, IGPTForCausalImageModeling, IGPTImageProcessor
from igpt_hf.data import shards as shards_module
from igpt_hf.data import streaming
from igpt_hf.data.shards import Shard, open_shards
from igpt_hf.data.streaming import TokenStream, stream_splits, tokenize_shards
from igpt_hf.model.tokens import tokens_on_grid
from igpt_hf.training.trainer import make_trainer


NUM_SHARDS, ROWS = 4, 150
# Of random pixels, it cannot be said which are ink.
PROCESSOR = IGPTImageProcessor(
    image_size=8, num_labels=3, threshold=0.5, ink="light", levels=(0, 255), widen_strokes=False
)
CONFIG = {"image_size": 8, "num_hidden_layers": 1, "num_labels": 3, "class_dropout_prob": 0.3}


def random_images(n: int, seed: int) -> np.ndarray:
    """Random 8x8 images, black and white; (n, 8, 8)."""
    return np.random.default_rng(seed).integers(0, 2, (n, 8, 8), dtype=np.uint8) * 255


def write_shard(path, images, labels, label_feature):
    features = datasets.Features(image=datasets.Image(), label=label_feature)
    datasets.Dataset.from_dict({"image": list(images), "label": labels}, features=features).to_parquet(path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(NUM_SHARDS):
        labels = [row % 3 for row in range(ROWS)]
        names = datasets.ClassLabel(names=["cat", "dog", "eel"])
        write_shard(folder / f"{shard}.parquet", random_images(ROWS, shard), labels, names)
    return folder


@pytest.fixture(autouse=True, scope="module")
def no_pause():
    """The library sleeps for seconds after it has read from several shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)  # datasets 4.0 has none
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setattr(streaming.datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "igpt_hf-tokens"


def tokens_of(shards, seed: int = 1, **options):
    return tokenize_shards(open_shards(str(shards)), PROCESSOR, seed, **options)


def rows_of(tokens) -> dict[str, set[tuple]]:
    """All (label, tokens) of each split."""
    rows = {}
    for name, files in tokens.files.items():
        loaded = datasets.Dataset.from_parquet(files)
        rows[name] = {(row["label"], *row["tokens"]) for row in loaded}
    return rows


def test_every_image_is_tokenized_once_and_lands_in_one_split(shards):
    rows = rows_of(tokens_of(shards))
    images = np.concatenate([random_images(ROWS, shard) for shard in range(NUM_SHARDS)])
    expected = {(row % ROWS % 3, *tokens) for row, tokens in enumerate(PROCESSOR.tokenize(images).tolist())}
    assert len(expected) == NUM_SHARDS * ROWS
    assert rows["train"] | rows["validation"] | rows["test"] == expected
    assert sum(map(len, rows.values())) == len(expected)
    for name, share in (("train", 0.85), ("validation", 0.10), ("test", 0.05)):
        assert abs(len(rows[name]) - share * len(expected)) < 4 * (share * (1 - share) * len(expected)) ** 0.5


def test_the_split_depends_on_the_seed_and_an_image_keeps_its_split_when_shards_are_added(shards, tmp_path):
    rows = rows_of(tokens_of(shards))
    assert rows_of(tokens_of(shards)) == rows
    assert rows_of(tokens_of(shards, seed=2))["test"] != rows["test"]
    (tmp_path / "fewer").mkdir()
    for shard in (1, 3):
        os.link(shards / f"{shard}.parquet", tmp_path / "fewer" / f"{shard}.parquet")
    fewer = rows_of(tokens_of(tmp_path / "fewer"))
    assert all(fewer[name] < rows[name] for name in rows)


def test_tokens_are_bytes_and_cached_and_a_run_that_broke_off_goes_on_with_the_next_shard(shards, cache, monkeypatch):
    tokens = tokens_of(shards)
    assert tokens.head("train", 5).features["tokens"] == datasets.List(datasets.Value("uint8"), length=16)
    (folder,) = cache.iterdir()
    assert sorted(os.listdir(folder)) == [f"shard-{i:05d}" for i in range(NUM_SHARDS)]
    for name in ("train", "validation", "test"):
        (folder / "shard-00002" / f"{name}.parquet").unlink()
    (folder / "shard-00002").rmdir()
    opened = []
    tokenized_rows = streaming._tokenized_rows
    monkeypatch.setattr(streaming, "_tokenized_rows", lambda *a: opened.append(a[-1]) or tokenized_rows(*a))
    assert tokens_of(shards, first_shard=3).num_images == tokens.num_images
    assert opened == [2]
    tokenize_shards(open_shards(str(shards)), IGPTImageProcessor(image_size=8, num_labels=3, invert="always"), 1)
    assert len(list(cache.iterdir())) == 2  # other settings, other tokens
    assert not list(cache.glob("*/unfinished-*"))


def test_labels_of_any_kind_become_classes(tmp_path):
    for name, values, feature in (("text", ["b", "a10", "a9"], "string"), ("numbers", [30, 7, 7], "int64")):
        (tmp_path / name).mkdir()
        for shard in range(2):
            labels = [values[(row + shard) % 3] for row in range(90)]
            write_shard(
                tmp_path / name / f"{shard}.parquet", random_images(90, shard), labels, datasets.Value(feature)
            )
        source = open_shards(str(tmp_path / name))
        assert source.names == (("a9", "a10", "b") if name == "text" else ("7", "30"))
        rows = set().union(*rows_of(tokenize_shards(source, PROCESSOR, 1)).values())
        tokens = PROCESSOR.tokenize(random_images(90, 0)).tolist()
        assert {(source.names.index(str(values[row % 3])), *tokens[row]) for row in range(90)} < rows


def test_what_is_no_class_without_streaming_is_none_with_it(tmp_path):
    write_shard(tmp_path / "0.parquet", random_images(9, 0), [0.5] * 9, datasets.Value("float32"))
    with pytest.raises(DataError, match="Column 'label' of .* is not a label: .*float32"):
        open_shards(str(tmp_path))


def test_a_hub_data_set_is_read_shard_by_shard_at_the_revision_that_was_found(shards, monkeypatch):
    """No network: the Hub's answers are stood in for by the same files."""
    asked = []

    def load(name, configuration=None, split=None, revision=None, streaming=None, data_files=None):
        if name == "parquet":
            return datasets.load_dataset(name, data_files=data_files, split=split, streaming=True)
        asked.append(revision)
        files = sorted(str(path) for path in shards.glob("*.parquet"))
        splits = datasets.load_dataset("parquet", data_files={"a": files[:3], "b": files[3:]}, streaming=True)
        return splits if split is None else splits[split]

    monkeypatch.setattr(shards_module, "load_dataset", load)
    monkeypatch.setattr(shards_module, "dataset_info", lambda name: type("Info", (), {"sha": "abc"}))
    tokens = tokenize_shards(open_shards("user/digits"), PROCESSOR, 1)
    assert sum(tokens.num_images.values()) == NUM_SHARDS * ROWS
    assert set(asked) == {"abc"}


def test_an_image_that_is_a_file_of_the_hub_data_set_is_read_and_no_other_address_is(monkeypatch):
    read = []
    monkeypatch.setattr(streaming, "xopen", lambda address, mode: read.append(address) or io.BytesIO(b"an image"))
    shard = Shard("user/digits train 0", "abc", "user/digits")
    own = "zip://a.png::hf://datasets/user/digits@abc/all.zip"
    assert streaming._with_bytes({"bytes": None, "path": own}, shard)["bytes"] == b"an image"
    for path in ("https://example.org/a.png", "hf://datasets/user/other@abc/a.png", "/etc/passwd", None):
        image = {"bytes": None, "path": path}
        assert streaming._with_bytes(image, shard) is image
    assert streaming._with_bytes({"bytes": b"here", "path": own}, shard)["bytes"] == b"here"
    assert read == [own]


def test_two_decoded_images_at_most_are_in_memory_at_a_time(shards, monkeypatch):
    decoded, decode_image = [], streaming.decode_image

    def decode(image):
        assert all(picture() is None for picture in decoded[:-1])
        picture = decode_image(image)
        decoded.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(streaming, "decode_image", decode)
    tokens_of(shards)
    assert len(decoded) == NUM_SHARDS * ROWS


def test_names_that_look_like_patterns_are_names(shards, tmp_path, monkeypatch):
    folder = tmp_path / "digits[v2]*"
    shutil.copytree(shards, folder)
    monkeypatch.setattr(streaming.datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache[1]")
    tokens = tokens_of(folder)
    assert sum(tokens.num_images.values()) == NUM_SHARDS * ROWS
    config = IGPTConfig(**CONFIG)
    stream = TokenStream(tokens, config, class_dropout_prob=0.0, seed=1, shuffle_buffer=5)
    assert len(list(stream)) == len(tokens)


def test_what_a_killed_run_left_of_a_shard_is_deleted_after_a_day(shards, cache):
    tokens_of(shards)
    (folder,) = cache.iterdir()
    for name, age in (("unfinished-00001-old", 2 * 24 * 3600), ("unfinished-00001-new", 60)):
        (folder / name).mkdir()
        (folder / name / "train.parquet").write_bytes(b"PAR1")
        for path in (folder / name / "train.parquet", folder / name):
            os.utime(path, (time.time() - age,) * 2)
    tokens_of(shards)
    assert [path.name for path in folder.glob("unfinished-*")] == ["unfinished-00001-new"]


# --- the stream -----------------------------------------------------------------------------------------------------


def test_an_epoch_has_each_training_image_once_in_an_order_of_its_own(shards):
    tokens, config = tokens_of(shards), IGPTConfig(**CONFIG)

    def epoch(number, seed=1):
        stream = TokenStream(tokens, config, class_dropout_prob=0.3, seed=seed, shuffle_buffer=50)
        stream.choose_epoch(number)
        assert len(stream) == len(tokens)
        return [tuple(row["input_ids"].tolist()) for row in stream]

    first = epoch(0)
    assert first == epoch(0)
    assert sorted(row[1:] for row in first) == sorted(row[1:] for row in rows_of(tokens)["train"])
    assert len({row[1:] for row in first}) == len(tokens)
    for other in (epoch(1), epoch(0, seed=2)):
        assert [row[1:] for row in other] != [row[1:] for row in first]
        assert {row[1:] for row in other} == {row[1:] for row in first}
    untold = [{row[1:] for row in rows if row[0] == config.start_token_id} for rows in (first, epoch(1), epoch(1))]
    assert untold[0] != untold[1] == untold[2]
    places = [[row[0] == config.start_token_id for row in rows] for rows in (first, epoch(1))]
    assert places[0] != places[1]
    untold = np.mean([row[0] == config.start_token_id for row in first])
    assert abs(untold - 0.3) < 4 * (0.3 * 0.7 / len(tokens)) ** 0.5


def test_a_stream_moves_images_to_the_grids_that_their_prompts_say(shards):
    tokens, config = tokens_of(shards), IGPTConfig(**CONFIG, num_grids=8)
    stream = TokenStream(tokens, config, class_dropout_prob=0.0, seed=1, shuffle_buffer=50)
    originals = np.array([row[1:] for row in rows_of(tokens)["train"]])
    moved = [set(map(tuple, tokens_on_grid(originals, grid, config).tolist())) for grid in range(8)]
    grids = []
    for row in stream:
        grids.append((row["input_ids"][0].item() - config.vocab_size) // (config.num_labels + 1))
        assert tuple(row["input_ids"][1:].tolist()) in moved[grids[-1]]
        assert torch.equal(row["labels"][1:], row["input_ids"][1:])
    assert set(grids) == set(range(8))


def train(folder, shards, resume: str | None = None):
    args = arguments(folder, eval_strategy="steps", save_strategy="steps", eval_steps=40, save_steps=40,
                     per_device_train_batch_size=8, save_total_limit=None)  # fmt: skip
    _, tokens = stream_splits(open_shards(str(shards)), PROCESSOR, args.seed, max_eval_images=40)
    set_seed(args.seed)
    model = IGPTForCausalImageModeling(IGPTConfig(**CONFIG))
    trainer = make_trainer(model, args, tokens, PROCESSOR, shuffle_buffer=50)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def streamed_run(shards, tmp_path_factory):
    """Two epochs, of 64 steps or so."""
    folder = tmp_path_factory.mktemp("streamed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming.datasets_config, "HF_DATASETS_CACHE", folder / "cache")
        return train(folder / "run", shards)


@pytest.mark.slow
def test_an_epoch_of_a_stream_is_an_epoch_of_the_trainer(streamed_run):
    steps = -(-len(streamed_run.train_dataset) // 8)
    assert streamed_run.state.global_step == 2 * steps
    assert streamed_run.state.epoch == 2
    sizes = {name: len(part) for name, part in streamed_run.eval_dataset.items()}
    assert sizes["train"] == sizes["validation"] <= 40


@pytest.mark.parametrize("step", [40, 80])
def test_a_resumed_stream_gives_the_weights_of_an_uninterrupted_one_bit_by_bit(streamed_run, shards, tmp_path, step):
    before = f"{streamed_run.args.output_dir}/checkpoint-{step}"
    resumed = train(tmp_path / "run", shards, resume=before)
    assert resumed.state.global_step == streamed_run.state.global_step
    last = f"checkpoint-{resumed.state.global_step}/model.safetensors"
    weights = [load_file(f"{trainer.args.output_dir}/{last}") for trainer in (streamed_run, resumed)]
    assert_equal_weights(*weights)


def test_two_processes_share_out_the_batches_of_one(shards):
    """As accelerate cuts a stream for several processes, where each reads all of it."""
    tokens, config = tokens_of(shards), IGPTConfig(**CONFIG)

    def stream():
        return TokenStream(tokens, config, class_dropout_prob=0.3, seed=1, shuffle_buffer=50)

    whole = [row["input_ids"].tolist() for row in stream()]
    parts = [
        [row["input_ids"].tolist() for row in IterableDatasetShard(stream(), 4, num_processes=2, process_index=index)]
        for index in range(2)
    ]
    for start in range(0, len(whole) // 8 * 4, 4):
        assert parts[0][start : start + 4] + parts[1][start : start + 4] == whole[2 * start : 2 * start + 8]


def test_validation_images_come_from_all_shards(shards):
    tokens = tokens_of(shards)
    head = {tuple(row) for row in tokens.head("validation", 8)["tokens"]}
    assert len(head) == 8
    for file in tokens.files["validation"]:
        assert head & {tuple(row) for row in datasets.Dataset.from_parquet(file)["tokens"]}


def test_test_images_are_made_of_their_tokens(shards):
    splits, tokens = stream_splits(open_shards(str(shards)), PROCESSOR, 1, max_eval_images=10)
    assert PROCESSOR.tokenize(splits["test"]["image"][:]).tolist() == tokens["test"]["tokens"][:]
    assert len(splits["train"]) == len(tokens["train"])


def test_the_cache_is_found_again_by_a_processor_that_has_been_saved(shards, tmp_path):
    source, processor = open_shards(str(shards)), IGPTImageProcessor(image_size=8, num_labels=3)
    before = streaming._cache_folder(source, processor, 0, False)
    processor.save_pretrained(tmp_path)
    assert streaming._cache_folder(source, processor, 0, False) == before
    other = IGPTImageProcessor(image_size=8, num_labels=3, margin=1)
    assert streaming._cache_folder(source, other, 0, False) != before


@pytest.mark.slow
def test_the_script_streams_with_two_processes_that_tokenize(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    flags = ["--image_size", 8, "--num_hidden_layers", 1, "--num_train_epochs", 1, "--disable_tqdm", "true"]
    command = [*LAUNCH, "--streaming", "true", "--data", shards, "--output_dir", tmp_path / "run", "--num_threads", 2]
    log = run(*command, *flags, "--max_eval_images", 30, "--margin", 0, "--invert", "never").stderr
    tokens = tokens_of(shards, seed=42)
    assert f"{len(tokens)} train, {min(30, tokens.num_images['validation'])} validation" in log
    results = results_of(tmp_path / "run")
    assert 0.9 < results["test_bits_per_pixel"] < 1.1  # the pixels are tosses of a coin
    assert {path.name for path in (tmp_path / "run").iterdir()} >= FILES
    folders = (tmp_path / "cache" / "igpt_hf-tokens").iterdir()
    (written,) = (path for path in folders if not tokens.files["train"][0].startswith(str(path)))  # the run's own
    for part in ("train", "test"):
        first, second = (tokens.files[part], sorted(map(str, written.glob(f"shard-*/{part}.parquet"))))
        assert [Path(a).read_bytes() for a in first] == [Path(b).read_bytes() for b in second]


# --- bad input ------------------------------------------------------------------------------------------------------


def test_a_bad_image_is_named_or_left_out(tmp_path, caplog):
    encoded = [{"bytes": b"no image", "path": None}, *({"bytes": None, "path": str(tmp_path / "a.png")},) * 120]
    PROCESSOR.decode(PROCESSOR.tokenize(random_images(1, 0)))[0].save(tmp_path / "a.png")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat"]))
    table = datasets.Dataset.from_dict({"image": encoded, "label": [0] * 121}, features=features)
    table.to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"row 0 of .*bad.parquet cannot be decoded.*--skip_bad_images"):
        tokens_of(tmp_path / "bad.parquet")
    assert sum(tokens_of(tmp_path / "bad.parquet", skip_bad_images=True).num_images.values()) == 120
    assert "Skipped 1 of 121 images" in caplog.text
    with pytest.raises(DataError, match="row 0 of"):  # the cache is not that of others
        tokens_of(tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda shards: open_shards(str(shards / "nothing")), "does not exist"),
        (lambda shards: open_shards(__file__), "reads parquet files or a Hub data set, not"),
        (lambda shards: open_shards(str(shards), label_column="class"), r"no column 'class'. Set --label_column"),
        (lambda shards: open_shards(str(shards), max_images=5), "--max_images"),
        (
            lambda shards: tokenize_shards(
                open_shards(str(shards)), IGPTImageProcessor(image_size=8, binarize="stochastic"), 1
            ),
            "--binarize stochastic",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused(shards, make, words):
    with pytest.raises(IGPTError, match=words):
        make(shards)


@pytest.mark.parametrize("name", ["animals.zip", "animals.csv"])
def test_a_source_that_is_not_sharded_is_refused_in_words(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"reads parquet files or a Hub data set, not .*{name}. Leave out --streaming"):
        open_shards(str(tmp_path / name))
    with pytest.raises(DataError, match="holds no rows of parquet. Leave out --streaming for images, arrays and"):
        open_shards(str(tmp_path))


def test_shards_of_a_given_split_stay_in_it(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    images, classes = random_images(40, 0), datasets.ClassLabel(names=["cat"])
    for name, part in (("train-0", images[:30]), ("train-1", images[30:35]), ("test-0", images[35:])):
        write_shard(folder / f"{name}.parquet", part, [0] * len(part), classes)
    source = open_shards(str(folder))
    assert source.given == ("test",)
    tokens = tokenize_shards(source, PROCESSOR, seed=1)
    assert tokens.num_images["test"] == 5 and sum(tokens.num_images.values()) == 40
    assert np.array_equal(tokens.head("test", 9).with_format("numpy")["tokens"][:], PROCESSOR.tokenize(images[35:]))
    assert open_shards(str(folder), split_rule="random").given == ()
    (folder / "test-0.parquet").unlink()
    assert open_shards(str(folder)).given == ()
    with pytest.raises(DataError, match="comes without splits, and --splits given needs some"):
        open_shards(str(folder), split_rule="given")


def test_too_few_images_for_a_split_by_chance_are_refused(tmp_path):
    write_shard(tmp_path / "few.parquet", random_images(3, 0), [0, 0, 0], datasets.ClassLabel(names=["cat"]))
    with pytest.raises(DataError, match="no image came into .*Leave out --streaming"):
        tokens_of(tmp_path / "few.parquet")


def test_shards_with_other_classes_are_refused(tmp_path):
    for name in ("cat", "dog"):
        write_shard(tmp_path / f"{name}.parquet", random_images(9, 0), [0] * 9, datasets.ClassLabel(names=[name]))
    with pytest.raises(DataError, match=r"dog.parquet has other classes"):
        tokens_of(tmp_path)


@pytest.mark.parametrize(
    "module",
    [
        "image_decision",
        "image_ink",
        "image_processing_igpt",
        "image_reading",
        "tokens",
        "decoding",
        "splits",
        "tokenized",
        "streaming",
    ],
)
def test_tokens_are_made_anew_after_an_edit_of_code_that_makes_them(shards, monkeypatch, module):
    source, processor = open_shards(str(shards)), IGPTImageProcessor(image_size=8)
    before, getsource = streaming._cache_folder(source, processor, 1, False), inspect.getsource
    edited = lambda code: getsource(code) + "# edited" * code.__name__.endswith(f".{module}")  # noqa: E731
    monkeypatch.setattr(streaming.inspect, "getsource", edited)
    assert streaming._cache_folder(source, processor, 1, False) != before
