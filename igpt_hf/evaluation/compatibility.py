"""Whether data fits a model, and whether the model may have seen its test split."""

import json
from pathlib import Path

from ..errors import DataError


def check_data(split, config, allow_resize: bool) -> list[int]:
    """Check that a data set, by its training split, fits a model; returns the model's class index of each class.

    Raises:
        DataError: A class that the model does not know or, unless `allow_resize`, images all of one size other than
            the model's.
    """
    try:
        index = [config.label_index(name) for name in split.features["label"].names]
    except ValueError as error:
        raise DataError(f"the data has a class that the model does not know: {error}") from error
    if not allow_resize:
        check_image_size(split["image"], config.image_size)
    return index


def check_two_classes(split):
    """Refuse a split, with a `label` column, with fewer than two classes, before a classifier is fitted.

    Raises:
        DataError: The split is empty or has one class only.
    """
    present = sorted(set(split["label"][:]))
    if len(present) < 2:
        what = split.features["label"].int2str(present[0]) if present else "none at all: it is empty"
        raise DataError(f"the data has one class only ({what}): there is nothing to classify. Give two or more.")


def check_image_size(images, image_size: int):
    """Refuse images that all have one size other than the model's (the first hundred are checked).

    Raises:
        DataError: The images would be resized, and other images scored than were given.
    """
    sizes = {image.size for image in images[:100]}
    if len(sizes) == 1 and sizes != {(image_size, image_size)}:
        width, height = sizes.pop()
        raise DataError(
            f"the images are {width}x{height}, the model's are {image_size}x{image_size}. Score them with a model "
            "of their size, or pass --resize to resize them as training does."
        )


def _results(name: str) -> dict:
    folder = Path(name)
    if folder.name.startswith("checkpoint-") and not (folder / "all_results.json").is_file():
        folder = folder.parent  # the run's
    path = folder / "all_results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def was_trained_on(name: str, data: str) -> bool:
    """Whether the all_results.json of a run says that its model was trained on this source."""
    source = _results(name).get("data")
    return source is not None and (source == data or Path(source).absolute() == Path(data).absolute())


def seen_images_warning(
    name: str,
    data: str,
    seed: int,
    max_images: int | None = None,
    given: tuple[str, ...] = (),
    split: str = "test",
) -> str | None:
    """Say why a split of a source may hold images that the model was trained on; None if it does not.

    Args:
        name: Folder of a run.
        data: The source.
        seed, max_images: Of `load_splits`.
        given: The splits that came with the data, as `load_splits` says.
        split: Which one, test or validation.
    """
    results = _results(name)
    if not was_trained_on(name, data) or "split_seed" not in results:  # not known
        return None
    if data == "synthetic" and results["split_seed"] != seed:  # other digits
        return None
    given_then = results.get("given_splits", [])
    if split in given and split in given_then:  # the same images, whatever the seed
        return None
    if set(given) != set(given_then):
        reason = f"with other splits: give --splits {'auto' if given_then else 'random'}"
    elif results["streaming"]:
        reason = "streamed, and therefore split differently"
    elif results["max_images"] != max_images:
        reason = f"with --max_images {results['max_images']}, and a subset is split differently from the whole"
    elif results["split_seed"] != seed:
        reason = f"split with another seed: give --seed {results['split_seed']}"
    else:
        return None
    return f"{name} was trained on {data}, {reason}. It may have seen images of what is the {split} split here."
