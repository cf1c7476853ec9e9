"""What there is of each annotated image, on the disk and in archives; extract what is missing."""

import os
import shutil
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dfbench.data.sources import source_of
from dfbench.errors import InputError
from dfbench.parallel import progress_bar, run_jobs
from dfbench.prepare.hub import archives_of, find_archives
from dfbench.prepare.matching import match_images
from dfbench.prepare.reasons import Fault, Reason
from dfbench.prepare.zips import OPEN_ARCHIVES, Archive, Member, extract_members, read_archive

JOB_IMAGES = 128
"""Images of one worker's job: long enough to cost nothing, short enough that the progress bar moves."""


@dataclass
class ImageInventory:
    """What there is of each image.

    on_disk: images in place; one whose size is not its member's is not: it is half of one, or another one.
    members: image -> the archive member to extract for it, now or once it proves to be damaged.
    faults: why others cannot be used. archives: those of all sources.
    """

    on_disk: set[str] = field(default_factory=set)
    members: dict[str, Member] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    archives: list[Archive] = field(default_factory=list)

    def to_extract(self, wanted: Iterable[str]) -> list[str]:
        """The wanted images that are in an archive only."""
        return [image for image in wanted if image not in self.on_disk and image not in self.faults]


def take_inventory(images: Iterable[str], image_root: Path, downloads: Path, *, quiet: bool = True) -> ImageInventory:
    """Look for each image on the disk and in its source's archives; nothing is written."""
    by_source: dict[str, list[str]] = {}
    for image in images:
        by_source.setdefault(source_of(image), []).append(image)
    found, inventory = find_archives(downloads), ImageInventory()
    for source in progress_bar(sorted(by_source), "reading archives", "sources", quiet):
        _take_source(by_source[source], archives_of(source, found), image_root, inventory)
    return inventory


def _take_source(images: list[str], paths: list[Path], image_root: Path, inventory: ImageInventory) -> None:
    """Add the images and archives of one source to the inventory."""
    listed = [read_archive(path) for path in paths]
    members = [member for _, members in listed for member in members]
    matches = match_images(images, members) if members else {}
    unmatched: list[str] = []
    is_extracted = False
    for image in images:
        match = matches.get(image)
        member = match if isinstance(match, Member) and not match.refusal else None
        if member is not None:
            inventory.members[image] = member
        size = _size(os.path.join(image_root, image))
        if size is not None and (member is None or size == member.size):
            inventory.on_disk.add(image)
            is_extracted = True
        elif member is None:
            unmatched.append(image)
    archives = [archive for archive, _ in listed]
    inventory.archives += archives
    for image in unmatched:
        inventory.faults[image] = _fault(matches.get(image), archives, is_extracted)


def _size(path: str) -> int | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _fault(match: Member | Fault | None, archives: list[Archive], is_extracted: bool) -> Fault:
    """is_extracted: whether other images of the source are on the disk, so that its archive may be gone after use."""
    if isinstance(match, Member):
        return Reason.REFUSED, f"{match.path}: {match.refusal}"
    broken = [archive for archive in archives if archive.error]
    if match is not None and (match[0] is Reason.AMBIGUOUS or not broken):
        return match
    if broken:
        return Reason.BROKEN, f"{broken[0].path.name}: {broken[0].error}"
    if archives:
        return Reason.ABSENT, "no image in the archive"
    if is_extracted:
        return Reason.ABSENT, "not on the disk, and no archive to look in"
    return Reason.NO_ARCHIVE, "neither its archive nor any image of its source is there"


class _Job(NamedTuple):
    archive: Path
    image_root: Path
    images: list[str]
    positions: list[int]


def extract_missing(
    inventory: ImageInventory, wanted: Collection[str], image_root: Path, *, num_workers: int, quiet: bool
) -> int:
    """Extract the wanted images that are not on the disk, each straight to its path. Returns how many were.

    Updates the inventory; one that cannot be extracted becomes a fault. Raises InputError, before anything is written,
    where the disk has no room for all of them.
    """
    images = inventory.to_extract(wanted)
    size_of = {image: inventory.members[image].size for image in images}
    _check_space(size_of.values(), image_root)
    jobs = _plan_jobs(images, inventory, image_root, num_workers)
    with progress_bar(None, "extracting", "B", quiet, total=sum(size_of.values())) as bar:
        for job, faults in run_jobs(_extract, jobs, num_workers):
            bar.update(sum(size_of[image] for image in job.images))
            inventory.faults |= {image: fault for image, fault in zip(job.images, faults, strict=True) if fault}
            inventory.on_disk.update(image for image in job.images if image not in inventory.faults)
    return sum(image in inventory.on_disk for image in images)


def _check_space(sizes: Collection[int], image_root: Path) -> None:
    folder = next(path for path in (image_root.absolute(), *image_root.absolute().parents) if path.exists())
    needed = sum(-(-size // 4096) * 4096 for size in sizes)  # a file takes whole blocks of the disk
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{image_root}: {free / 1e9:.1f} GB free, but {len(sizes):,} images take {needed / 1e9:.1f} GB. Make room, "
            "name another --image_root, or fewer --sources or images (--limit_per_source)."
        )


def _plan_jobs(images: Iterable[str], inventory: ImageInventory, image_root: Path, num_workers: int) -> list[_Job]:
    """Jobs in the order in which the archives hold the images, so that the disk reads straight on.

    A few archives take turns where there are several workers: files that are made in one folder wait for each other.
    """
    by_archive: dict[Path, list[tuple[int, int, str]]] = {}
    for image in images:
        member = inventory.members[image]
        by_archive.setdefault(member.archive, []).append((member.offset, member.position, image))
    num_turns, jobs = min(num_workers, OPEN_ARCHIVES), []
    for number, (archive, members) in enumerate(sorted(by_archive.items())):
        members.sort()
        for start in range(0, len(members), JOB_IMAGES):
            _, positions, names = map(list, zip(*members[start : start + JOB_IMAGES], strict=True))
            jobs.append((number // num_turns, start, _Job(archive, image_root, names, positions)))
    return [job for *_, job in sorted(jobs, key=lambda job: job[:2])]


def _extract(job: _Job) -> list[Fault | None]:
    targets = [os.path.join(job.image_root, image) for image in job.images]
    return extract_members(job.archive, list(zip(job.positions, targets, strict=True)))
