"""What there is of each annotated image, on the disk and in archives; extract what is missing."""

import os
import shutil
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from pathlib import Path
from typing import NamedTuple

from dfbench.data.sources import source_of
from dfbench.errors import InputError
from dfbench.parallel import progress_bar, run_jobs
from dfbench.prepare.hub import archives_of, find_archives
from dfbench.prepare.matching import Misfit, match_images
from dfbench.prepare.report import Reason
from dfbench.prepare.zips import (
    CANNOT_WRITE,
    ONE_NAME_ERRORS,
    OPEN_ARCHIVES,
    Archive,
    Member,
    disk_bytes,
    extract_members,
    read_archive,
)

_JOB_BYTES, JOB_IMAGES = 16 << 20, 256
"""Size of one worker's job: long enough to cost nothing, short enough that a kill loses little and the bar moves."""


@dataclass
class ImageInventory:
    """What there is of each image.

    on_disk: images in place. members: image -> the archive member to extract for it. faults: why others have neither.
    An image on the disk whose size is not its member's counts as not there: it is half of one, or another one.
    spares: image -> its member, for those on the disk from the start, lest they prove to be damaged.
    archives: the zip files that `Member.archive` counts, without their lists of members.
    """

    on_disk: set[str] = field(default_factory=set)
    members: dict[str, Member] = field(default_factory=dict)
    faults: dict[str, tuple[Reason, str]] = field(default_factory=dict)
    spares: dict[str, Member] = field(default_factory=dict)
    archives: list[Archive] = field(default_factory=list)


def take_stock(images: Iterable[str], image_root: Path, downloads: Path, *, quiet: bool = True) -> ImageInventory:
    """Look for each image on the disk and in its source's archives; nothing is written."""
    by_source: dict[str, list[str]] = {}
    for image in images:
        by_source.setdefault(source_of(image), []).append(image)
    found, stock = find_archives(downloads), ImageInventory()
    for source in progress_bar(sorted(by_source), "reading archives", "sources", quiet):
        first = len(stock.archives)
        stock.archives += [read_archive(path, first + i) for i, path in enumerate(archives_of(source, found))]
        _match_source(by_source[source], stock.archives[first:], image_root, stock)
        for archive in stock.archives[first:]:
            archive.members = []  # those that are wanted are in the stock; all of them would take 0.5 GB
    return stock


def _match_source(images: list[str], archives: list[Archive], image_root: Path, stock: ImageInventory) -> None:
    """Put each image of one source into one of the three parts of the stock."""
    members = [member for archive in archives for member in archive.members]
    names = {member.archive: stock.archives[member.archive].path.name for member in members}
    fits = match_images(images, members, names) if members else {}
    is_stocked = False
    unmatched: list[str] = []
    for image in images:
        fit = fits.get(image)
        member = fit if isinstance(fit, Member) and not fit.refusal else None
        size = _size(os.path.join(image_root, image))
        if size is not None and (member is None or size == member.size):
            stock.on_disk.add(image)
            is_stocked = True
            if member is not None:
                stock.spares[image] = member
        elif member is not None:
            stock.members[image] = member
        else:
            unmatched.append(image)
    for image in unmatched:
        stock.faults[image] = _fault(fits.get(image), archives, is_stocked)


def _size(path: str) -> int | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _fault(fit: Member | Misfit | None, archives: list[Archive], is_stocked: bool) -> tuple[Reason, str]:
    """is_stocked: whether other images of the source are on the disk, so that its archive may be gone after use."""
    if isinstance(fit, Member):
        return Reason.REFUSED, f"{fit.path}: {fit.refusal}"
    if fit is not None and fit.is_ambiguous:
        return Reason.AMBIGUOUS, fit.detail
    if broken := [archive for archive in archives if archive.error]:
        return Reason.BROKEN, f"{broken[0].path.name}: {broken[0].error}"
    if fit is not None or archives:
        return Reason.ABSENT, fit.detail if fit else "no image in the archive"
    if is_stocked:
        return Reason.ABSENT, "not on the disk, and no archive to look in"
    return Reason.NO_ARCHIVE, "neither its archive nor any image of its source is there"


# ----------------------------------------------------------------------------------------------------------- extraction


class _Extraction(NamedTuple):
    archive: Path
    image_root: Path
    images: list[str]
    positions: list[int]


def extract_missing(
    stock: ImageInventory, wanted: Collection[str], image_root: Path, *, num_workers: int, quiet: bool
) -> int:
    """Extract the wanted images that are not on the disk, each straight to its path. Returns how many were.

    Updates the stock; one that cannot be extracted becomes a fault. Raises InputError, before anything is written,
    where the disk has no room for all of them.
    """
    _check_space([stock.members[image] for image in wanted if image in stock.members], image_root)
    _make_folders(stock, wanted, image_root)
    members = {image: stock.members[image] for image in wanted if image in stock.members}
    jobs = list(_plan_extraction(members, stock.archives, image_root, num_workers))
    num_bytes, num_extracted = sum(member.size for member in members.values()), 0
    with progress_bar(None, "extracting", "B", quiet, total=num_bytes) as bar:
        for job, results in run_jobs(_extract, jobs, num_workers):
            bar.update(sum(members[image].size for image in job.images))
            for image, trouble in zip(job.images, results, strict=True):
                del stock.members[image]
                if trouble.startswith(CANNOT_WRITE):
                    stock.faults[image] = (Reason.UNWRITABLE, trouble.removeprefix(CANNOT_WRITE))
                elif trouble:
                    stock.faults[image] = (Reason.BROKEN, f"{job.archive.name}: {trouble}")
                else:
                    stock.on_disk.add(image)
                    num_extracted += 1
    return num_extracted


def _make_folders(stock: ImageInventory, wanted: Collection[str], image_root: Path) -> None:
    """Make the folders of the images to extract; where one cannot be, its images become faults."""
    by_folder: dict[str, list[str]] = {}
    for image in wanted:
        if image in stock.members:
            by_folder.setdefault(os.path.dirname(image), []).append(image)
    for folder, images in by_folder.items():
        try:
            (image_root / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in ONE_NAME_ERRORS:
                raise
            for image in images:
                del stock.members[image]
                stock.faults[image] = (Reason.UNWRITABLE, f"its folder: {error.strerror}")


def _check_space(members: Collection[Member], image_root: Path) -> None:
    folder = next(path for path in (image_root.absolute(), *image_root.absolute().parents) if path.exists())
    needed, free = disk_bytes(member.size for member in members), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            image_root,
            found=f"{free / 1e9:.1f} GB free",
            expected=f"{needed / 1e9:.1f} GB for {len(members):,} images",
            remedy="make room, name another --image_root, or fewer --sources or images (--limit_per_source)",
        )


def _plan_extraction(
    members: Mapping[str, Member], archives: list[Archive], image_root: Path, num_workers: int
) -> Iterable[_Extraction]:
    """Jobs in the order in which the archives hold the images, so that the disk reads straight on.

    A few archives take turns where there are several workers: files that are made in one folder wait for each other.
    """
    ordered = sorted(members, key=lambda image: (members[image].archive, members[image].offset))
    by_archive = [
        [
            _Extraction(archives[index].path, image_root, some, [members[image].position for image in some])
            for some in _portions(images, members)
        ]
        for index, images in groupby(ordered, key=lambda image: members[image].archive)
    ]
    num_turns = min(num_workers, OPEN_ARCHIVES)
    for first in range(0, len(by_archive), num_turns):
        for turn in zip_longest(*by_archive[first : first + num_turns]):
            yield from filter(None, turn)


def _portions(images: Iterable[str], members: Mapping[str, Member]) -> Iterable[list[str]]:
    """The images in portions of a job's size."""
    portion, num_bytes = [], 0
    for image in images:
        size = members[image].size
        if portion and (len(portion) == JOB_IMAGES or num_bytes + size > _JOB_BYTES):
            yield portion
            portion, num_bytes = [], 0
        portion.append(image)
        num_bytes += size
    yield portion


def _extract(job: _Extraction) -> list[str]:
    targets = [os.path.join(job.image_root, image) for image in job.images]
    return extract_members(job.archive, list(zip(job.positions, targets, strict=True)))
