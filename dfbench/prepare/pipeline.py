"""From the released annotations and archives to images in place and clean annotations: all of `prepare_dataset.py`.

Two passes over the annotations: the first keeps the images' keys and what is wrong with rows; once the images have been
matched, extracted and checked, the second one writes the rows that are left, in their released order.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dfbench.data.annotations import AnnotationWriter, Sample, iter_samples
from dfbench.data.sources import FAKE, REAL, source_of
from dfbench.data.splits import Subset, choose_images
from dfbench.errors import InputError
from dfbench.parallel import progress_bar
from dfbench.prepare.extract import ImageInventory, extract_missing, take_stock
from dfbench.prepare.hub import SPLITS, TEST, TRAIN, VAL, Target, find_released, is_clean, keep_released
from dfbench.prepare.report import FileSummary, LeftOut, Reason, Report
from dfbench.prepare.validate import Survey, survey
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
    """A pair of released files and the targets that it is for. split_of: chosen image -> its clean file."""

    targets: list[Target]
    surveys: dict[str, Survey]
    split_of: dict[str, str]

    def images(self, split: str) -> list[str]:
        return list(self.surveys[split].row_of) if split in self.surveys else []


def prepare(plan: Plan) -> Report:
    """Match, extract, check and write (see `Plan`). What is wrong with single rows and images is in the report.

    Raises InputError where nothing can be done: no annotations, broken ones, no room on the disk.
    """
    label_of: dict[str, str] = {}
    releases = survey_releases(plan, label_of)
    stock = take_stock(label_of, plan.image_root, plan.downloads, quiet=plan.quiet)
    for release in releases:
        choose(release, stock, label_of, plan.subset)
    wanted = {image for release in releases for image in release.split_of}
    if plan.verify_only:
        _count_as_missing(stock, wanted)
    else:
        extract_missing(stock, wanted, plan.image_root, num_workers=plan.num_workers, quiet=plan.quiet)
    truncated = check(plan, stock, wanted)
    written = [] if plan.verify_only else write_clean(releases, stock.faults, plan.quiet)
    return _report(plan, releases, stock, wanted, truncated, written)


def survey_releases(plan: Plan, label_of: dict[str, str]) -> list[Release]:
    """Find and read the released files of every target, each file once. Fills label_of (image -> A or B)."""
    releases: dict[tuple[Path, ...], Release] = {}
    surveys: dict[Path, Survey] = {}
    for target in plan.targets:
        paths = find_released(target, plan.targets, plan.downloads)
        for split in (TEST, TRAIN):  # the test file first: training rows may not repeat its images
            if split in paths and paths[split] not in surveys:
                test_images = surveys[paths[TEST]].row_of if split == TRAIN and TEST in paths else ()
                surveys[paths[split]] = survey(
                    paths[split], split, label_of, sources=plan.sources, test_images=test_images, quiet=plan.quiet
                )
        release = Release([], {split: surveys[path] for split, path in paths.items()}, {})
        releases.setdefault(tuple(paths.values()), release).targets.append(target)
    _check_surveys(plan, list(surveys.values()))
    return [release for release in releases.values() if release.surveys]


def _check_surveys(plan: Plan, surveys: Sequence[Survey]) -> None:
    if not surveys:
        raise InputError(
            plan.downloads,
            found="no released annotations, here or in the folders of the models",
            expected="img_train_shuffled.json or .jsonl, img_test.json or .jsonl",
            remedy="add --download, or name the folder they are in with --archives",
        )
    present = {source_of(image) for each in surveys for image in each.row_of}
    present |= {source_of(row.image) for each in surveys for row in each.left_out if row.image}
    known = set().union(*(each.sources for each in surveys))
    if absent := sorted(plan.sources - present) or (["any source"] if not present else []):
        raise InputError(
            ", ".join(str(each.path) for each in surveys),
            found=f"no row of {', '.join(absent)}",
            expected=f"some of {_names(known)}" if known else "rows of the published sources",
            remedy="correct --sources, or download the annotations again",
        )


def _names(sources: Collection[str], most: int = 40) -> str:
    """Sources for a message, by name; a broken file may have one in each row."""
    return ", ".join(sorted(sources)[:most]) + (", ..." if len(sources) > most else "")


def choose(release: Release, stock: ImageInventory, label_of: dict[str, str], subset: Subset) -> None:
    """Pick the images of each clean file among those that are on the disk or in an archive."""
    train, test = ([image for image in release.images(split) if image not in stock.faults] for split in (TRAIN, TEST))
    release.split_of = choose_images(train, test, label_of, subset)


def check(plan: Plan, stock: ImageInventory, wanted: Collection[str]) -> list[str]:
    """Open the wanted images on the disk; what was there before and is damaged is extracted again and opened again.

    Updates the stock. Returns the images that lack their end.
    """
    options = {"num_workers": plan.num_workers, "quiet": plan.quiet}
    truncated = set(check_images(stock, wanted, plan.image_root, decode=plan.decode, **options))
    if not plan.verify_only:
        suspects = truncated.union(image for image in wanted if image in stock.faults)
        if repaired := repair_images(stock, suspects, plan.image_root, **options):
            again = check_images(stock, repaired, plan.image_root, decode=plan.decode, **options)
            truncated = truncated - repaired | set(again)
    return sorted(truncated)


def _count_as_missing(stock: ImageInventory, wanted: Collection[str]) -> None:
    for image in wanted:
        if member := stock.members.pop(image, None):
            detail = f"{stock.archives[member.archive].path.name}: {member.path} is not on the disk, or not whole"
            stock.faults[image] = (Reason.NOT_EXTRACTED, detail)


# -------------------------------------------------------------------------------------------------- clean annotations


def write_clean(releases: Sequence[Release], unusable: Collection[str], quiet: bool = True) -> list[dict[str, Any]]:
    """Write the clean files of every target: chosen images, less the unusable ones. Returns path and counts of each.

    A released file that lies where a clean one goes is kept under another name. A file that would have no rows is not
    written, and what an earlier run left there is removed: training must not find the validation file of another split.
    Where a whole released file has no row of use, as without its archives, all that an earlier run left stays.
    """
    written = []
    for release in releases:
        for each in release.surveys.values():
            split_of = {image: release.split_of.get(image) for image in each.row_of if image not in unusable}
            splits = [split for split in SPLITS if split in set(split_of.values())]
            if not splits:
                continue
            _make_room(release.targets, splits, each.split, releases)
            for suffix in dict.fromkeys(target.suffix for target in release.targets):
                alike = [target for target in release.targets if target.suffix == suffix]
                written += _write(each, split_of, splits, alike, quiet)
    return written


def _make_room(targets: Sequence[Target], splits: Collection[str], source: str, releases: Sequence[Release]) -> None:
    """Move released files out of the clean ones' way, to be read there; remove clean ones that nothing replaces."""
    for target in targets:
        for split in (TRAIN, VAL) if source == TRAIN else (TEST,):
            path = target.path(split)
            if split in splits:
                kept = keep_released(path)
                for each in (each for release in releases for each in release.surveys.values() if each.path == path):
                    each.path = kept
            elif path.exists() and is_clean(path):
                path.unlink()


def _write(
    each: Survey, split_of: Mapping[str, str | None], splits: Sequence[str], targets: Sequence[Target], quiet: bool
) -> list[dict[str, Any]]:
    """The clean files out of one released file, the same for all targets: training and validation, or test."""
    counts = {split: Counter() for split in splits}
    is_fitting = all(target.suffix == each.path.suffix for target in targets)
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(AnnotationWriter(*(target.path(split) for target in targets)))
            for split in splits
        }
        for place, sample in progress_bar(iter_samples(each.path), f"writing from {each.path.name}", "rows", quiet):
            if isinstance(sample, InputError) or each.row_of.get(sample.image) != place.row:
                continue
            if split := split_of.get(sample.image):
                counts[split][sample.label] += 1
                writers[split].write(sample if is_fitting else _without_placeholder(sample))
    return [
        {"path": str(target.path(split)), "rows": number.total(), "real": number[REAL], "fake": number[FAKE]}
        for target in targets
        for split, number in counts.items()
    ]


def _without_placeholder(sample: Sample) -> Sample:
    """A row of the other released shape, less its leading `<image>`: each model puts it where its own prompt has it."""
    return replace(sample, question=sample.question.removeprefix("<image>").removeprefix("\n"))


# --------------------------------------------------------------------------------------------------------------- report


def _report(
    plan: Plan,
    releases: Sequence[Release],
    stock: ImageInventory,
    wanted: Collection[str],
    truncated: list[str],
    written: list[dict[str, Any]],
) -> Report:
    summaries = [[_summarize(each, stock.faults) for each in release.surveys.values()] for release in releases]
    available = stock.on_disk | set(stock.members)
    archives = [
        {"path": str(a.path), "bytes": a.num_bytes, "images": a.num_images, "skipped": a.num_skipped, "error": a.error}
        for a in stock.archives
    ]
    options = asdict(plan.subset) | {"sources": sorted(plan.sources), "decode": plan.decode}
    return Report(summaries, options, archives, truncated, written, len(available - set(wanted)))


def _summarize(each: Survey, faults: Mapping[str, tuple[Reason, str]]) -> FileSummary:
    faulty = [LeftOut(row, image, *faults[image]) for image, row in each.row_of.items() if image in faults]
    usable = Counter(source_of(image) for image in each.row_of if image not in faults)
    return FileSummary(each.path, each.split, each.num_rows, usable, sorted(each.left_out + faulty))
