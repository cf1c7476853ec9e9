"""Which images to look at: those of a folder, or those that annotation files name, by source."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dfbench.data.annotations import read_annotations
from dfbench.data.images import IMAGE_SUFFIXES, split_suffix
from dfbench.data.sources import source_of
from dfbench.data.splits import key_hash
from dfbench.errors import InputError, shorten
from dfbench.paths import REPOSITORY

LOOSE_IMAGES = "images"
"""Name of the source of images that lie in no folder."""

Images = Mapping[str, Sequence[str]]
"""Source -> keys of its images (paths below the image root, POSIX), in the order of the CSV.

A key found in a folder may be one that no line of a UTF-8 file can hold, which Linux does not ask of its file names;
then it differs from its `printable` form.
"""


def find_images(image_root: Path) -> Images:
    """All images below `<image_root>/DFBench`, or below `image_root` where there is no such folder.

    A source is a folder right below that one, with all that its sub-folders hold; hidden ones are left out. What counts
    as an image is what has one of IMAGE_SUFFIXES, even a link to nothing or a pipe; other files are passed over in
    silence. Raises InputError where there is no image at all, and OSError for a folder that cannot be read.
    """
    base = image_root / "DFBench"
    if not base.is_dir():
        if not image_root.is_dir() or image_root.resolve() == REPOSITORY:
            raise InputError(
                f"{image_root}: no folder DFBench with images in it. Get the data set with scripts/prepare_dataset.py, "
                "or name a folder of images with --image_root."
            )
        base = image_root
    images = {}
    for folder in sorted(entry for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        images[printable(folder.name)] = sorted(_walk(folder, image_root))
    images[LOOSE_IMAGES] = sorted([*images.get(LOOSE_IMAGES, []), *_loose(base, image_root)])
    if not any(images.values()):
        raise InputError(
            f"{base}: no image ({', '.join(sorted(IMAGE_SUFFIXES))}). Unpack the data set with "
            "scripts/prepare_dataset.py, or correct --image_root."
        )
    return {source: keys for source, keys in images.items() if keys}


def _walk(folder: Path, image_root: Path) -> Iterator[str]:
    for path, folders, files in os.walk(folder, onerror=_fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from _image_keys(Path(path), files, image_root)


def _loose(folder: Path, image_root: Path) -> Iterator[str]:
    """The images that lie in a folder itself."""
    path, _, files = next(os.walk(folder, onerror=_fail))
    yield from _image_keys(Path(path), files, image_root)


def _fail(error: OSError) -> None:
    """`os.walk` would pass over what it cannot read."""
    raise error


def _image_keys(folder: Path, names: Iterable[str], image_root: Path) -> Iterator[str]:
    below_root = folder.relative_to(image_root)
    for name in names:
        if split_suffix(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
            yield (below_root / name).as_posix()


def printable(key: str) -> str:
    """A key as one line of UTF-8: line breaks, and bytes that are no UTF-8, as escapes."""
    return key.encode(errors="backslashreplace").decode().replace("\r", "\\r").replace("\n", "\\n")


def annotated_images(paths: Iterable[Path]) -> Images:
    """The images that annotation files name, by source, sorted and each once.

    Raises InputError as read_annotations, and for a path that climbs out of a folder with `..`.
    """
    images = defaultdict(set)
    for path in paths:
        for sample in read_annotations(path):
            if ".." in sample.image.split("/"):
                raise InputError(
                    f"{path}: the image {shorten(sample.image)} is not below --image_root. Correct or remove this row."
                )
            images[source_of(sample.image) or LOOSE_IMAGES].add(sample.image)
    return {source: sorted(images[source]) for source in sorted(images)}


def choose_images(images: Images, sources: Sequence[str] | None = None, limit: int | None = None) -> Images:
    """Only the named sources, and of each at most `limit` images, picked by a hash of the key (the same everywhere).

    Raises InputError for a source that has no image.
    """
    if missing := sorted(set(sources or ()) - set(images)):
        raise InputError(
            f"--sources: no image of {', '.join(missing)}; there are {', '.join(images)}. "
            "Correct --sources or --image_root."
        )
    return {
        source: sorted(sorted(keys, key=lambda key: key_hash(printable(key)))[:limit]) if limit else keys
        for source, keys in images.items()
        if not sources or source in sources
    }
