"""From the released annotations and archives to images in place and clean annotations: all of `prepare_dataset.py`.

Two passes over the annotations: the first keeps the images' keys and what is wrong with rows; once the images have been
matched, extracted and checked, the second one writes the rows that are left, in their released order.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dfbench.data.annotations import AnnotationWriter, Sample, iter_samples
from dfbench.data.sources import FAKE, REAL
from dfbench.data.splits import SPLITS, TEST, TRAIN, VAL, Subset, assign_splits
from dfbench.errors import InputError
from dfbench.parallel import progress_bar
from dfbench.prepare.extract import ImageInventory, extract_missing, take_inventory
from dfbench.prepare.hub import Target, find_released, is_clean, keep_released
from dfbench.prepare.reasons import Reason
from dfbench.prepare.report import Report
from dfbench.prepare.validate import AnnotationFile, validate
from dfbench.prepare.verify import check_images, repair_images


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    downloads: folder with the archives and, unless they lie in the targets' folders, the released annotations.
    image_root: folder that receives `DFBench/SOURCE/...`. targets: where clean annotations go.
    sources: the only ones wanted; all where empty. decode: check every pixel, not headers only.
    verify_only: write nothing at all.
    """

    downloads: Path
    image_root: Path
    targets: tuple[Target, ...]
    sources: frozenset[str] = frozenset()
    subset: Subset = field(default_factory=Subset)
    decode: bool = False
    verify_only: bool = False
    num_workers: int = 1
    quiet: bool = False


@dataclass
class Release:
    """The released training and test file in one shape, and the targets for it. split_of: chosen image -> its split."""

    targets: list[Target]
    files: dict[str, AnnotationFile]
    split_of: dict[str, str] = field(default_factory=dict)


def prepare(plan: Plan) -> Report:
    """Match, extract, check and write (see `Plan`). What is wrong with single rows and images is in the report.

    Raises InputError where nothing can be done: no annotations, broken ones, no room on the disk.
    """
    label_of: dict[str, str] = {}
    releases = validate_releases(plan, label_of)
    inventory = take_inventory(label_of, plan.image_root, plan.downloads, quiet=plan.quiet)
    for release in releases:
        choose(release, inventory, label_of, plan.subset)
    wanted = {image for release in releases for image in release.split_of}
    num_not_chosen = sum(image not in wanted and image not in inventory.faults for image in label_of)
    options = {"num_workers": plan.num_workers, "quiet": plan.quiet}
    if plan.verify_only:
        _mark_not_extracted(inventory, wanted)
    else:
        extract_missing(inventory, wanted, plan.image_root, **options)
    truncated = check_images(inventory, wanted, plan.image_root, decode=plan.decode, **options)
    if not plan.verify_only:
        truncated = repair_images(inventory, truncated, plan.image_root, decode=plan.decode, **options)
    for release in releases:
        for file in release.files.values():
            file.leave_out(inventory.faults)
    written = [] if plan.verify_only else write_clean(releases, plan.quiet)
    files = [list(release.files.values()) for release in releases]
    asked = asdict(plan.subset) | {"sources": sorted(plan.sources), "decode": plan.decode}
    return Report(files, asked, inventory.archives, sorted(truncated), written, num_not_chosen)


def validate_releases(plan: Plan, label_of: dict[str, str]) -> list[Release]:
    """Find and read the released files in the shapes that the targets read. Fills label_of (image -> A or B)."""
    releases, files = [], {}
    for suffix in dict.fromkeys(target.suffix for target in plan.targets):
        paths = find_released(suffix, plan.targets, plan.downloads)
        for split in (TEST, TRAIN):  # the test file first: training rows may not repeat its images
            if split in paths and paths[split] not in files:
                test_images = files[paths[TEST]].row_of if split == TRAIN and TEST in paths else ()
                files[paths[split]] = validate(
                    paths[split], split, label_of, sources=plan.sources, test_images=test_images, quiet=plan.quiet
                )
        if paths:
            targets = [target for target in plan.targets if target.suffix == suffix]
            releases.append(Release(targets, {split: files[path] for split, path in paths.items()}))
    if not files:
        raise InputError(
            f"{plan.downloads}: no released annotations (img_train_shuffled.json or .jsonl, img_test.json or .jsonl), "
            "nor in the folders of the models. Add --download, or name their folder with --archives."
        )
    _check_sources(plan.sources, files.values())
    return releases


def _check_sources(sources: Collection[str], files: Collection[AnnotationFile]) -> None:
    known = set().union(*(file.sources for file in files))
    if absent := sorted(sources - known) or ([] if known else ["any source"]):
        names = ", ".join(sorted(known)[:40]) or "no readable row"  # a broken file may name a source in each row
        raise InputError(
            f"{', '.join(str(file.path) for file in files)}: no row of {', '.join(absent)}; there is {names}. "
            "Correct --sources, or download the annotations again."
        )


def choose(release: Release, inventory: ImageInventory, label_of: dict[str, str], subset: Subset) -> None:
    """Pick the images of each clean file among those that are on the disk or in an archive."""
    rows = (release.files[split].row_of if split in release.files else () for split in (TRAIN, TEST))
    train, test = ([image for image in each if image not in inventory.faults] for each in rows)
    release.split_of = assign_splits(train, test, label_of, subset)


def _mark_not_extracted(inventory: ImageInventory, wanted: Collection[str]) -> None:
    for image in inventory.to_extract(wanted):
        member = inventory.members[image]
        detail = f"{member.archive.name}: {member.path} is not on the disk, or not whole"
        inventory.faults[image] = (Reason.NOT_EXTRACTED, detail)


def write_clean(releases: Sequence[Release], quiet: bool = True) -> list[dict[str, Any]]:
    """Write the clean files of every target: the usable rows of the chosen images. Returns path and counts of each.

    A released file that lies where a clean one goes is kept under another name. A file that would have no rows is not
    written, and what an earlier run left there is removed: training must not find the validation file of another split.
    Where a whole released file has no row of use, as without its archives, nothing is written and all that an earlier
    run left stays: training rows of this run beside test rows of another would go unnoticed.
    """
    jobs = [
        (file, release, set(map(release.split_of.get, file.row_of)))
        for release in releases
        for file in release.files.values()
    ]
    if not all(chosen.intersection(SPLITS) for *_, chosen in jobs):
        return []
    written = []
    for file, release, chosen in jobs:
        splits = [split for split in SPLITS if split in chosen]
        _make_room(release.targets, splits, file.split, releases)
        written += _write(file, release, splits, quiet)
    return written


def _make_room(targets: Sequence[Target], splits: Collection[str], source: str, releases: Sequence[Release]) -> None:
    """Move released files out of the clean ones' way, to be read there; remove clean ones that nothing replaces."""
    for target in targets:
        for split in (TRAIN, VAL) if source == TRAIN else (TEST,):
            path = target.path(split)
            if split in splits:
                files = [file for each in releases for file in each.files.values()]
                moved = [file for file in files if file.path.resolve() == path.resolve()]
                kept = keep_released(path)
                for file in moved:
                    file.path = kept
            elif path.exists() and is_clean(path):
                path.unlink()


def _write(file: AnnotationFile, release: Release, splits: Sequence[str], quiet: bool) -> list[dict[str, Any]]:
    """The clean files out of one released file, the same for all targets: training and validation, or test."""
    counts = {split: Counter() for split in splits}
    is_fitting = all(target.suffix == file.path.suffix for target in release.targets)
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(AnnotationWriter(*(target.path(split) for target in release.targets)))
            for split in splits
        }
        for place, sample in progress_bar(iter_samples(file.path), f"writing from {file.path.name}", "rows", quiet):
            if isinstance(sample, str) or file.row_of.get(sample.image) != place.row:
                continue
            if split := release.split_of.get(sample.image):
                counts[split][sample.label] += 1
                writers[split].write(sample if is_fitting else _without_placeholder(sample))
    return [
        {"path": str(target.path(split)), "rows": number.total(), "real": number[REAL], "fake": number[FAKE]}
        for target in release.targets
        for split, number in counts.items()
    ]


def _without_placeholder(sample: Sample) -> Sample:
    """A row of the other released shape, less its leading `<image>`: each model puts it where its own prompt has it."""
    return replace(sample, question=sample.question.removeprefix("<image>").removeprefix("\n"))
