"""The binary-image-generation pipeline, used as its docstring says."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

import igpt_hf  # noqa: F401  registers the task
from igpt_hf import IGPTImageProcessor


NAMES = {0: "cat", 1: "dog", 2: "eel"}


@pytest.fixture(scope="module")
def draw(tiny_model, tiny_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model(id2label=NAMES, label2id={name: index for index, name in NAMES.items()}).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return pipeline("binary-image-generation", model=str(folder))


def same(a, b) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_nothing_a_class_or_its_name_gives_one_picture(draw):
    for arguments in ([], [None], [1], ["dog"]):
        picture = draw(*arguments, seed=1)
        assert isinstance(picture, Image.Image)
        assert (picture.size, picture.mode) == ((8, 8), "L")
    assert same(draw(1, seed=3), draw("dog", seed=3))


def test_the_seed_decides(draw):
    assert same(draw(2, seed=5), draw(2, seed=5))
    assert not same(draw(2, seed=5), draw(2, seed=6))


def test_a_list_gives_a_picture_each_whatever_the_batches(draw):
    assert all(map(same, draw([0, 1, 2], seed=7), draw([0, 1, 2], seed=7)))
    pictures = draw([0, "dog", None, 2], seed=7)
    assert len(pictures) == 4
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    assert [len(draw([0, 1, 2], seed=7, batch_size=size)) for size in (1, 2, 3)] == [3, 3, 3]


def test_several_pictures_of_one_class_come_as_a_list(draw):
    assert [len(pictures) for pictures in draw([0, 1], num_return_sequences=3, seed=1)] == [3, 3]
    assert len(draw(0, num_return_sequences=2)) == 2


def test_a_completion_keeps_the_upper_rows(draw, tmp_path):
    picture = Image.fromarray(np.pad(np.full((4, 3), 255, np.uint8), ((2, 2), (3, 2))))  # a border that is black
    picture.save(tmp_path / "half.png")
    processor = IGPTImageProcessor(image_size=8)
    kept = processor.decode_pixels(processor.tokenize(picture))[0]
    for rows, given in ((2, {"keep_rows": 2}), (4, {}), (4, {"class_label": "eel"})):
        for image in (picture, str(tmp_path / "half.png")):
            completed = np.asarray(draw(image, seed=4, **given)) // 255
            assert np.array_equal(completed[:rows], kept[:rows])
    assert len(draw([picture, picture], seed=2)) == 2


def test_a_completion_keeps_what_is_black_in_the_mask(draw):
    pixels, unknown = np.random.default_rng(0).random((2, 8, 8)) < 0.5
    for mask in (unknown, Image.fromarray(unknown)):
        completed = draw(pixels, mask_image=mask, class_label="eel", num_return_sequences=3, num_particles=4, seed=1)
        assert ((np.stack(completed) > 127) == pixels)[:, ~unknown].all()
    both = draw([pixels, pixels], mask_image=unknown, num_particles=4, batch_size=2)
    assert ((np.stack(both) > 127) == pixels)[:, ~unknown].all()
    with pytest.raises(ValueError, match="keep_rows, mask_image and class_label go with an image"):
        draw(1, mask_image=unknown)
    with pytest.raises(ValueError, match="mask and keep_rows both say"):
        draw(pixels, mask_image=unknown, keep_rows=2)


def test_settings_of_generate_are_passed_on(draw):
    greedy = [draw(0, do_sample=False, seed=seed) for seed in (1, 2)]
    assert same(*greedy)


def test_settings_given_to_the_pipeline_hold_for_each_call_unless_it_has_its_own(draw):
    cold = pipeline("binary-image-generation", model=draw.model, image_processor=draw.image_processor, temperature=0.1)
    assert same(cold(0, seed=1), draw(0, seed=1, temperature=0.1))
    assert same(cold(0, seed=1, temperature=2.0), draw(0, seed=1, temperature=2.0))
    assert not same(cold(0, seed=1), draw(0, seed=1, temperature=2.0))


def test_a_tuple_is_drawn_like_a_list(draw):
    assert all(map(same, draw((0, "dog", None), seed=7), draw([0, "dog", None], seed=7)))
    assert draw(()) == []


def test_a_generator_yields_a_picture_each(draw):
    pictures = list(draw((item for item in (0, "dog", None)), seed=7))
    assert len(pictures) == 3
    assert all(map(same, pictures, draw([0, "dog", None], seed=7, batch_size=1)))
    assert len(list(draw((label for label in (0, 1, 2)), batch_size=2))) == 3


def test_what_cannot_be_drawn_is_refused_in_words(draw):
    with pytest.raises(
        ValueError, match=r"'fox' is not a class of this model \(cat, dog, eel\). And there is no such file"
    ):
        draw("fox")
    with pytest.raises(ValueError, match="class label 3 is not one of the 3 classes"):
        draw(3)
    with pytest.raises(ValueError, match="keep_rows must be a multiple of patch_size=2"):
        draw(np.eye(8), keep_rows=3)
    with pytest.raises(ValueError, match="either classes or images"):
        draw([0, Image.new("L", (8, 8))])
    for nothing in (3.5, {"a": 1}, b"cat", [[0]], [(0, 1)]):
        with pytest.raises(ValueError, match="an input is None, a class .index or name., an image"):
            draw(nothing)
    for setting in ({"keep_rows": 4}, {"class_label": 1}):
        with pytest.raises(ValueError, match="go with an image to complete, not with a class"):
            draw(0, **setting)
    with pytest.raises(ValueError, match="num_return_sequences must be at least 1, got 0"):
        draw(0, num_return_sequences=0)
    with pytest.raises(ValueError, match="batch_size"):
        draw([0, 1], batch_size=0)


def test_an_empty_list_gives_no_picture(draw):
    assert draw([]) == []


def test_numbers_of_numpy_and_arrays_and_tensors_are_inputs_too(draw):
    assert same(draw(np.int64(1), seed=3), draw(1, seed=3))
    picture = np.pad(np.ones((4, 3), bool), ((2, 2), (3, 2)))
    completed = [draw(item, seed=3) for item in (Image.fromarray(picture), picture, torch.from_numpy(picture))]
    assert same(completed[0], completed[1])
    assert same(completed[1], completed[2])


def test_the_name_of_a_class_is_not_a_path(draw, tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "dog", format="PNG")
    monkeypatch.chdir(tmp_path)
    assert same(draw("dog", seed=3), draw(1, seed=3))
