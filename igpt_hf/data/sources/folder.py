"""A folder of images: one folder per class, or none; with train/ and test/ above the classes, or without."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image

from ...errors import DataError
from .columns import ONE_CLASS, class_indices, natural_order
from .parts import ReadOptions, SourceImages, rows_of_parts, split_name


logger = logging.getLogger(__name__)


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm"}


def open_class_folders(folder: Path, files: list[Path], options: ReadOptions) -> SourceImages:
    """Images of class folders, or of one class; only paths are kept: the images stay on disk until they are used.

    Args:
        folder: With the images, at any depth.
        files: All files in it, sorted, without hidden ones, some of them images.
        options: `labels_from` says which folder's name is the class where folders are nested.

    Raises:
        DataError: Folders are nested, and `labels_from` was not given.
    """
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    folder, relative = below_one_folder(folder, images)
    tops = {parts[0] for parts in relative.values() if len(parts) > 1}
    has_splits = bool(tops) and all(map(split_name, tops))
    depth = 1 if has_splits else 0  # of the folders that hold the class folders
    below = {path: parts[depth:-1] for path, parts in relative.items() if len(parts) > depth}
    if any(below.values()):  # else there are no class folders
        below = {path: folders for path, folders in below.items() if folders}
    holders = [folder / top for top in sorted(tops)] if has_splits else [folder]
    _warn_of_others(folder, holders, below, [path for path in files if path not in below])

    classes = _class_names(folder, below, options.labels_from)
    part_of = {path: relative[path][0] if has_splits else "" for path in below}
    order = sorted(below, key=lambda path: (part_of[path], natural_order(classes[path])))
    sizes = {part: list(part_of.values()).count(part) for part in sorted(set(part_of.values()))}
    dataset = from_paths(order, [classes[path] for path in order])
    return SourceImages(dataset, rows_of_parts(sizes, str(folder)))


def _class_names(folder: Path, below: dict[Path, tuple[str, ...]], labels_from: str | None) -> dict[Path, str]:
    """The class of each image; `below` has the names of the folders that it lies in, the class's among them."""
    if not any(below.values()):
        return dict.fromkeys(below, ONE_CLASS)
    top = {path: folders[0] for path, folders in below.items()}
    if all(len(folders) == 1 for folders in below.values()) or labels_from == "top":
        return top
    parent = {path: folders[-1] for path, folders in below.items()}
    if len(set(parent.values())) < len(set(below.values())):  # two folders of one name are two classes
        parent = {path: "/".join(folders) for path, folders in below.items()}
    if labels_from == "parent":
        return parent

    def example(names: dict[Path, str]) -> str:
        found = sorted(set(names.values()), key=natural_order)
        return f"{len(found)} classes, {', '.join(map(repr, found[:3]))}{', ...' if len(found) > 3 else ''}"

    raise DataError(
        f"{folder} has folders in folders. The class may be the top folder ({example(top)}) or the parent folder of "
        f"each image ({example(parent)}): set labels_from to top or parent."
    )


def _warn_of_others(folder: Path, holders: list[Path], used: Iterable[Path], others: list[Path]):
    """Name the folders without images in `holders`, and the files that are not used."""
    direct = {path.parent for path in used}
    with_images = direct.union(*(path.parents for path in direct))
    folders = [path for holder in holders for path in sorted(holder.iterdir()) if path.is_dir()]
    empty = [path.name for path in folders if path not in with_images and not path.name.startswith(".")]
    if empty:
        logger.warning("Passed over folders without images in %s: %s", folder, ", ".join(empty))
    passed_over = [holder / name for holder in holders for name in empty]
    ignored = [path for path in others if not any(map(path.is_relative_to, passed_over))]
    stray = [path for path in ignored if path.suffix.lower() in IMAGE_SUFFIXES]
    if stray:
        logger.warning("Images in no class folder, which have no class: %d, such as %s", len(stray), stray[0])
    if rest := [path for path in ignored if path.suffix.lower() not in IMAGE_SUFFIXES]:
        logger.warning("Ignored %d files that are not images, such as %s", len(rest), rest[0])


def from_paths(paths: list[Path], labels: list[str]) -> Dataset:
    """Images that stay on disk, with their classes.

    Raises:
        DataError: A file's name is not UTF-8.
    """
    indices, names = class_indices(labels)
    encoded = [{"bytes": None, "path": str(path.absolute())} for path in paths]
    features = Features(image=Image(), label=ClassLabel(names=names))
    try:
        return Dataset.from_dict({"image": encoded, "label": indices}, features=features)
    except UnicodeEncodeError as error:
        raise DataError(f"The name of {error.object!r} is not UTF-8: rename it.") from error


def below_one_folder(folder: Path, paths: Iterable[Path]) -> tuple[Path, dict[Path, tuple[str, ...]]]:
    """The folder or, as in archives, the one in it that holds all of the paths' folders; and their parts below it."""
    relative = {path: path.relative_to(folder).parts for path in paths}
    while len({parts[0] for parts in relative.values()}) == 1 and all(len(parts) > 2 for parts in relative.values()):
        folder /= next(iter(relative.values()))[0]
        relative = {path: parts[1:] for path, parts in relative.items()}
    return folder, relative


def visible_files(folder: Path, suffixes: set[str] | None = None) -> list[Path]:
    """All files below a folder, sorted, without hidden ones and what is in hidden folders; links are followed once."""
    paths: list[Path] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [Path(parent, name) for name in files if not name.startswith(".")]
    return [path for path in sorted(paths) if (suffixes is None or path.suffix.lower() in suffixes) and path.is_file()]
