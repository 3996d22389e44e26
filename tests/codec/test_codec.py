"""The codec: what comes back is what went in, in as many bits as the likelihood says, or an error."""

import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from igpt_hf import DataError, IGPTError
from igpt_hf.codec import coder
from igpt_hf.codec.coder import compress, decompress
from igpt_hf.codec.container import COMPILED, HEADER_SIZE, TORCH, pack, unpack
from igpt_hf.codec.images import folder_names, read_images, write_images
from igpt_hf.codec.rounding import exp2, integer_probabilities


pytest.importorskip("constriction", reason="there is no constriction: pip install -e '.[codec]'")


@pytest.fixture
def with_torch(monkeypatch):
    """As where there is no numba."""
    for module in ("igpt_hf.codec.coder", "igpt_hf.model.decoder"):
        monkeypatch.setattr(f"{module}.is_sampler_usable", lambda model: False)


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


@pytest.fixture(scope="module")
def ids(model, random_ids):
    return random_ids(model.config, n=7)


@pytest.fixture(scope="module")
def data(model, ids):
    return compress(model, ids, batch_size=3)


def changed(data: bytes, **fields) -> bytes:
    """The file with other values in its header, and the checksum that fits them."""
    header, payload = unpack(data)
    return pack(header._replace(**fields), payload)


# --- rounding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0, 1, 50, 1000])
@pytest.mark.parametrize("vocab", [2, 16, 2**16])
def test_probabilities_are_rounded_to_whole_numbers_that_sum_to_one(vocab, scale):
    logits = torch.randn(20, vocab, generator=torch.Generator().manual_seed(0)) * scale
    rounded = integer_probabilities(logits.numpy())
    assert rounded.dtype == np.int64 and (rounded >= 1).all() and (rounded.sum(axis=1) == 2**24).all()
    exact = logits.double().softmax(-1).numpy()
    assert np.abs(rounded / 2**24 - exact).max() < 2 * vocab / 2**24


def test_rounding_takes_only_what_every_processor_rounds_alike():
    """The integers of fixed logits, by decimal arithmetic: were they to change, old files could not be read."""
    rounded = integer_probabilities((np.arange(16, dtype=np.float32)[None] - 5) / 3)
    assert rounded[0, ::5].tolist() == [32200, 170482, 902615, 4778893]
    x = -np.random.default_rng(0).exponential(20, 1000)
    np.testing.assert_allclose(exp2(x), np.exp2(x), rtol=2**-26)


def test_constriction_writes_the_words_that_old_files_have():
    """The classes 0 to 9 and the tokens 0 to 15, with the probabilities of the test above."""
    stream = coder.import_range_coder()
    probabilities = integer_probabilities((np.arange(16, dtype=np.float32)[None] - 5) / 3).repeat(16, axis=0)
    encoder = stream.queue.RangeEncoder()
    encoder.encode(np.arange(10, dtype=np.int32), stream.model.Uniform(10))
    encoder.encode(np.arange(16, dtype=np.int32), stream.model.Categorical(perfect=False), probabilities - 1.0)
    assert encoder.get_compressed().tolist() == [0x032915F4, 0xF8AF1E4B, 0xC6693020, 0x73BCD503]


# --- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arithmetic", [COMPILED, TORCH])
@pytest.mark.parametrize(("patch_size", "by_class"), [(1, False), (2, True), (3, False)])
def test_images_come_back_exactly(request, tiny_model, random_ids, patch_size, by_class, arithmetic):
    if arithmetic == TORCH:
        request.getfixturevalue("with_torch")
    sizes = {"image_size": 4 * patch_size, "patch_size": patch_size, "neighborhood_radius": 1}
    model = tiny_model(**sizes, class_conditional_norm=by_class)
    ids = random_ids(model.config, n=5)
    ids[3, 0] = model.config.start_token_id
    assert torch.equal(decompress(model, compress(model, ids, batch_size=2)), ids)


def test_a_file_has_the_bits_of_the_likelihood_and_of_the_class(model, random_ids):
    ids = random_ids(model.config, n=300)
    for prompts, bits_of_class in ((ids[:, 0], math.log2(3)), (torch.full((300,), model.config.start_token_id), 0)):
        ids[:, 0] = prompts
        bits = -model.log_likelihood(ids).sum().item() / math.log(2) + 300 * bits_of_class
        payload = 8 * (len(compress(model, ids)) - HEADER_SIZE)
        assert bits - 1 < payload < 1.0005 * bits + 64  # the coder ends with a word or two


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_file_does_not_depend_on_threads_or_on_what_is_computed_at_once(model, ids, data, threads, batch_size):
    torch.set_num_threads(threads)
    assert compress(model, ids, batch_size=3) == data
    assert torch.equal(decompress(model, data, batch_size), ids)
    assert torch.get_num_threads() == threads


def test_the_compiled_probabilities_are_the_same_in_every_batch(model, ids):
    if not coder.is_sampler_usable(model):
        pytest.skip("there is no numba here")

    def probabilities(step_size):
        seen = []

        def code(position, rounded):
            seen.append(rounded)
            return ids[:, 1 + position].numpy()

        coder.run_batch(model, ids[:, :1], code, batch_size=7, step_size=step_size)
        return np.stack(seen)

    assert all((probabilities(size) == probabilities(7)).all() for size in (1, 2, 5))


def test_torch_computes_batches_of_one_size_on_one_thread(with_torch, model, ids, monkeypatch):
    seen, make = set(), coder.Decoder

    def decoder(model, prompts):
        seen.add((len(prompts), torch.get_num_threads()))
        return make(model, prompts)

    monkeypatch.setattr(coder, "Decoder", decoder)
    torch.set_num_threads(2)
    data = compress(model, ids, batch_size=3)  # 3 + 3 + 1
    assert torch.equal(decompress(model, data, batch_size=1), ids)
    assert seen == {(3, 1)}


# --- errors, never other pixels -------------------------------------------------------------------------------------


def test_a_file_that_was_cut_anywhere_is_refused(model, data):
    for length in range(len(data)):
        with pytest.raises(DataError, match="not a file of igpt compress|ends"):
            decompress(model, data[:length])
    with pytest.raises(DataError, match="has something after its end"):
        decompress(model, data + b"\0")


def test_a_file_with_any_bit_flipped_is_refused(model, data):
    for place in range(len(data)):
        for bit in (0, 7):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(DataError):
                decompress(model, bytes(damaged))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "version 2, this igpt_hf reads 1"),
        ({"precision": 16}, "rounded to 16 bits, this igpt_hf rounds to 24"),
        ({"model_digest": bytes(16)}, "another model"),
        ({"probe": 0}, "sums round differently"),
        ({"ids_checksum": 0}, "sums round differently"),
    ],
)
def test_another_version_rounding_model_or_sum_is_named(model, data, fields, message):
    with pytest.raises(DataError, match=message):
        decompress(model, changed(data, **fields))


def test_the_least_change_of_a_model_is_another_model(tiny_model, data):
    with pytest.raises(DataError, match="written with another model"):
        decompress(tiny_model(seed=1), data)
    model = tiny_model()
    weight = model.lm_head.weight.data
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    with pytest.raises(DataError, match="written with another model"):
        decompress(model, data)
    model = tiny_model()
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    with pytest.raises(DataError, match="written with another model"):
        decompress(model, data)


def test_the_other_arithmetic_is_refused_with_the_remedy(model, data):
    here = coder._arithmetic(model)
    remedy = "Install numba" if here == TORCH else "NUMBA_DISABLE_JIT=1"
    with pytest.raises(DataError, match=f"round differently. .*{remedy}"):
        decompress(model, changed(data, arithmetic=1 - here))


def test_sums_that_round_differently_are_noticed_before_anything_is_decoded(model, data, monkeypatch):
    monkeypatch.setattr(coder, "integer_probabilities", lambda logits: integer_probabilities(logits * 1.00001))
    monkeypatch.setattr(coder, "import_range_coder", lambda: pytest.fail("decoded"))
    with pytest.raises(DataError, match="sums round differently"):
        decompress(model, data)


def test_sums_that_the_known_image_does_not_show_are_noticed_by_the_checksum(model, data, monkeypatch):
    def other_sums(logits):
        return integer_probabilities(logits if len(logits) == 1 else logits * 1.1)

    monkeypatch.setattr(coder, "integer_probabilities", other_sums)
    with pytest.raises(DataError, match="sums round differently"):
        decompress(model, data)


def test_a_device_that_does_not_compute_the_same_twice_writes_nothing(with_torch, model, ids, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(coder, "integer_probabilities", lambda x: integer_probabilities(x * (1 + 0.01 * rng.random())))
    with pytest.raises(IGPTError, match="did not compute the same probabilities twice"):
        compress(model, ids)


def test_what_cannot_be_compressed_is_refused(tiny_model, ids):
    model = tiny_model()
    with pytest.raises(IGPTError, match="no images"):
        compress(model, ids[:0])
    with pytest.raises(IGPTError, match="batch_size must be between 1 and 65535, got 0"):
        compress(model, ids, batch_size=0)
    with pytest.raises(IGPTError, match="batch_size must be at least 1, got 0"):
        decompress(model, compress(model, ids.tolist()), batch_size=0)
    with pytest.raises(
        IGPTError, match=r"training mode, where dropout changes its probabilities: call model.eval\(\)"
    ):
        compress(tiny_model(attention_dropout=0.1).train(), ids)
    with pytest.raises(ValueError, match="whole image"):
        compress(model, ids[:, :5])
    with pytest.raises(ValueError, match="token 16 is out of range"):
        compress(model, ids.clamp(min=16))
    model.lm_head.weight.data[0, 0] = math.nan
    with pytest.raises(IGPTError, match="NaN"):
        compress(model, ids)


def test_without_constriction_the_error_says_what_to_install(model, ids, monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(IGPTError, match=r"pip install 'igpt_hf\[codec\]'"):
        compress(model, ids)


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def zoo(tiny_model):
    return tiny_model(id2label={0: "cat", 1: "dog", 2: "eel"})


def test_images_are_written_so_that_they_are_read_again(zoo, tiny_processor, ids, tmp_path):
    known = ids[ids[:, 0].argsort(stable=True)]  # as a folder is read: class by class
    write_images(zoo.config, tiny_processor, known, tmp_path / "all")
    assert torch.equal(read_images(zoo, tiny_processor, [tmp_path / "all"]), known)
    files = sorted((tmp_path / "all").rglob("*.png"), key=lambda path: path.name)
    assert [path.parent.name for path in files] == [["cat", "dog", "eel"][row[0] - 16] for row in known]
    ids = read_images(zoo, tiny_processor, [files[0], tmp_path / "all"])
    assert ids[:, 0].tolist() == [zoo.config.start_token_id, *known[:, 0].tolist()]
    assert torch.equal(ids[0, 1:], known[0, 1:])
    write_images(zoo.config, tiny_processor, ids[:1], tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["00000.png"]
    with pytest.raises(IGPTError, match="is not empty"):
        write_images(zoo.config, tiny_processor, ids, tmp_path / "one")


def test_classes_that_the_model_does_not_know_are_said_to_be_left_out(zoo, tiny_processor, tmp_path, caplog):
    for name in ("cat", "newt"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")
    prompts = read_images(zoo, tiny_processor, [tmp_path])[:, 0]
    assert prompts.tolist() == [16, zoo.config.start_token_id]
    assert "the model has no class 'newt'" in caplog.text


def test_images_beside_the_class_folders_are_kept_without_a_class(zoo, tiny_processor, tmp_path, caplog):
    (tmp_path / "cat").mkdir()
    for path in ("cat/0.png", "b.png", "a.png"):
        Image.new("L", (8, 8)).save(tmp_path / path)
    (tmp_path / "._b.png").write_bytes(b"of another system")
    (tmp_path / "notes.txt").write_text("mine")
    prompts = read_images(zoo, tiny_processor, [tmp_path])[:, 0]
    assert prompts.tolist() == [16, zoo.config.start_token_id, zoo.config.start_token_id]
    assert "the 2 images in no class folder are stored without a class" in caplog.text


def test_images_that_cannot_be_read_are_left_out_where_asked(zoo, tiny_processor, tmp_path, caplog):
    (tmp_path / "cat").mkdir()
    for path in ("cat/0.png", "a.png"):
        Image.new("L", (8, 8)).save(tmp_path / path)
    for path in ("cat/1.png", "b.png"):
        (tmp_path / path).write_bytes(b"\x89PNG, cut off")
    with pytest.raises(DataError, match=r"cat/1\.png.*--skip_bad_images"):
        read_images(zoo, tiny_processor, [tmp_path])
    assert len(read_images(zoo, tiny_processor, [tmp_path], skip_bad_images=True)) == 2
    assert "1.png" in caplog.text and "b.png" in caplog.text
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    assert len(read_images(zoo, tiny_processor, files, skip_bad_images=True)) == 1
    with pytest.raises(DataError, match=r"no image can be read from .*b\.png"):
        read_images(zoo, tiny_processor, files[1:], skip_bad_images=True)
    (tmp_path / "cat" / "0.png").unlink()
    assert len(read_images(zoo, tiny_processor, [tmp_path], skip_bad_images=True)) == 1  # none of the classes' is left


def test_a_file_of_several_frames_is_refused(zoo, tiny_processor, tmp_path):
    frames = [Image.new("L", (8, 8), level) for level in (0, 255)]
    frames[0].save(tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    for source in (tmp_path / "two.tif", tmp_path):
        with pytest.raises(DataError, match=r"two\.tif has 2 frames"):
            read_images(zoo, tiny_processor, [source])


def test_a_photograph_with_a_preview_is_one_image(zoo, tiny_processor, tmp_path):
    picture = Image.new("L", (8, 8))
    picture.paste(255, (2, 2, 6, 6))
    picture.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[picture], quality=95)
    assert Image.open(tmp_path / "phone.jpg").n_frames == 2
    assert len(read_images(zoo, tiny_processor, [tmp_path / "phone.jpg"])) == 1


def test_a_scan_of_the_other_polarity_is_compressed_as_the_model_should_see_it(zoo, tiny_processor, tmp_path, caplog):
    picture = Image.new("L", (8, 8))
    picture.paste(255, (2, 2, 4, 6))
    (tmp_path / "cat").mkdir()
    picture.save(tmp_path / "light.png")
    ImageOps.invert(picture).save(tmp_path / "dark.png")
    ImageOps.invert(picture).save(tmp_path / "cat" / "0.png")
    trained = tiny_processor.decide([picture])
    light, dark = read_images(zoo, trained, [tmp_path / "light.png", tmp_path / "dark.png"])
    assert torch.equal(light, dark)
    read_images(zoo, trained, [tmp_path / "cat"])  # a whole source is read as it is, with a warning
    assert "1 of 1 images have a background of ink" in caplog.text


def test_a_file_that_is_not_an_image_is_named(model, tiny_processor, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG, cut off")
    for source in (tmp_path / "broken.png", tmp_path):
        with pytest.raises(DataError, match="broken.png"):
            read_images(model, tiny_processor, [source])


@pytest.mark.parametrize("name", ["../up", "a/b", "..", ".", "", "a\\b", "/tmp", "long" * 60])
def test_the_name_of_a_class_leads_to_no_other_folder(name):
    assert folder_names(["a", "سه", "c", name]) == ["a", "سه", "c", "3"]


@pytest.mark.parametrize("name", [".notdef", "Train", "val", "00000.png"])
def test_a_class_whose_folder_would_be_read_as_something_else_is_written_by_its_index(
    tiny_model, tiny_processor, ids, tmp_path, name
):
    model = tiny_model()
    model.set_classes(["a", name, "test"])
    written = torch.cat([torch.tensor([[16], [17], [18]]), ids[:3, 1:]], dim=1)
    write_images(model.config, tiny_processor, written, tmp_path / "images")
    assert sorted(path.parent.name for path in tmp_path.glob("images/*/*.png")) == ["1", "2", "a"]
    assert torch.equal(
        read_images(model, tiny_processor, [tmp_path / "images"])[:, 1:].sort(0)[0], ids[:3, 1:].sort(0)[0]
    )


def test_each_class_has_a_folder_of_its_own():
    assert folder_names(["a/b", "0", "A", "a", "0-0-0"]) == ["0-0", "0", "A", "a-3", "0-0-0"]
