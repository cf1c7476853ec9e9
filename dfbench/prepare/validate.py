"""Rows of a released annotation file: which can be used at all, whatever images there are, and why others cannot."""

import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dfbench.data.annotations import Sample, iter_samples
from dfbench.data.images import IMAGE_SUFFIXES, split_suffix
from dfbench.data.sources import CATALOGUE, contradicts_catalogue, source_of
from dfbench.parallel import progress_bar
from dfbench.prepare.reasons import Fault, Reason
from dfbench.prepare.zips import is_junk

_TEXT_SUFFIXES = (".txt", ".csv", ".mat", ".json", ".xml", ".db", ".xlsx", ".md", ".html")


class LeftOut(NamedTuple):
    """One annotation row that is not in the clean files. `row` counts from 1; an unreadable row has no `image`."""

    row: int
    image: str
    reason: Reason
    detail: str


@dataclass
class AnnotationFile:
    """One released file.

    row_of: image -> row number, in file order: the rows that can be used, as far as is known. Questions are not kept;
        whoever needs them reads the file again.
    num_rows: rows of the sources asked for, unreadable ones included.
    sources: all that the file has rows of.
    """

    path: Path
    split: str
    row_of: dict[str, int] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    num_rows: int = 0
    sources: set[str] = field(default_factory=set)

    def leave_out(self, faults: Mapping[str, Fault]) -> None:
        """Move the rows of these images from the usable ones to those left out."""
        self.left_out += [LeftOut(row, image, *faults[image]) for image, row in self.row_of.items() if image in faults]
        self.left_out.sort()
        self.row_of = {image: row for image, row in self.row_of.items() if image not in faults}

    def count_usable(self) -> Counter[str]:
        """source -> number of usable rows."""
        return Counter(map(source_of, self.row_of))


def validate(
    path: Path,
    split: str,
    label_of: dict[str, str],
    *,
    sources: Collection[str] = (),
    test_images: Collection[str] = (),
    quiet: bool = True,
) -> AnnotationFile:
    """Read a released file once.

    label_of: image -> A or B for every image seen in any file so far; added to, and what later rows may not contradict.
    sources: the only ones to look at, all where empty. test_images: images that no training row may have.
    Raises InputError where the file itself is unusable.
    """
    file = AnnotationFile(path, split)
    for place, sample in progress_bar(iter_samples(path), f"reading {path.name}", "rows", quiet):
        if isinstance(sample, str):
            file.num_rows += 1
            file.left_out.append(LeftOut(place.row, "", Reason.BAD_ROW, sample))
            continue
        source = sample.source
        file.sources.add(source)
        if sources and source not in sources:
            continue
        file.num_rows += 1
        image = sys.intern(sample.image)  # the same keys stand in several files
        if fault := _fault(sample, label_of, file.row_of, test_images):
            file.left_out.append(LeftOut(place.row, image, *fault))
        else:
            file.row_of[image] = place.row
            label_of[image] = sys.intern(sample.label)
    return file


def _fault(
    sample: Sample, label_of: dict[str, str], row_of: dict[str, int], test_images: Collection[str]
) -> Fault | None:
    image, label = sample.image, sample.label
    known = CATALOGUE.get(sample.source)
    if not is_safe_target(image):
        if is_junk(image) or image.lower().endswith(_TEXT_SUFFIXES):
            return Reason.JUNK, "no image, by its name"
        return Reason.UNSAFE, "not the path of an image below DFBench/SOURCE/"
    if not label or contradicts_catalogue(sample.source, label):
        return Reason.MISLABELLED, f"label {label or 'missing'}, where {known.label if known else 'A or B'} is right"
    if label_of.get(image, label) != label:
        return Reason.CONTRADICTED, f"label {label}, but {label_of[image]} in an earlier row"
    if image in row_of:
        return Reason.REPEATED, f"as in row {row_of[image]}"
    if image in test_images:
        return Reason.IN_BOTH, "kept as a test row"
    return None


def is_safe_target(image: str) -> bool:
    """Whether an image may be written at this key below the image root: inside `DFBench/SOURCE/`, named as an image."""
    folder, _, name = image.rpartition("/")
    suffix = split_suffix(name)[1].lower()
    return _is_safe_folder(folder) and name[:1] not in ("", ".") and (suffix in IMAGE_SUFFIXES or not suffix)


@lru_cache(maxsize=4096)
def _is_safe_folder(folder: str) -> bool:
    parts = folder.split("/")
    is_hidden = any(part in ("", "__MACOSX") or part.startswith(".") for part in parts)
    return len(parts) >= 2 and parts[0] == "DFBench" and not is_hidden
