"""Which archive member is the image that an annotation row names.

The annotations say `DFBench/LIVE/gblur/img1.jpg`; the archive may hold `databaserelease2/gblur/img1.bmp`. A row and a
member fit as far as their paths agree from the right, the extension aside: sub-folder and stem first, the stem alone
only where nothing else could be meant. Upper and lower case count as equal, unless two members differ in nothing else.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dfbench.prepare.zips import IMAGE_SUFFIXES, JPEG_SUFFIXES, Member, split_suffix


class Misfit(NamedTuple):
    """Why a row got no member. is_ambiguous: there are several, or one that other rows claim as much."""

    is_ambiguous: bool
    detail: str


class _Fit(NamedTuple):
    """A member and how many of the row's folders, from the right, it shares."""

    num_folders: int
    member: Member


class _Name(NamedTuple):
    """What tells namesakes apart: the end of a path, less the extension, in its own case; the extension in lower."""

    tail: str
    suffix: str


def match_images(
    images: Iterable[str], members: Iterable[Member], archives: Mapping[int, str] | None = None
) -> dict[str, Member | Misfit]:
    """For each image (keys of one source: `DFBench/SOURCE/...`) its member, or why there is none.

    A member belongs to one image at most. A refused member is returned only where no other one fits.
    archives: names of the archives that `Member.archive` counts, to tell members of several apart in messages.
    """
    images = list(images)
    index = _Index(members, max((image.count("/") for image in images), default=0), archives or {})
    fits: dict[str, _Fit | Misfit] = {image: index.find(image) for image in images}
    for rivals in _rivals(fits):
        _settle(rivals, fits)
    return {image: fit.member if isinstance(fit, _Fit) else fit for image, fit in fits.items()}


def fold(path: str) -> tuple[str, str]:
    """(path without its image extension, that extension), both made equal for what counts as equal."""
    folded = path.casefold() if path.isascii() else unicodedata.normalize("NFC", path).casefold()
    stem, suffix = split_suffix(folded)
    return (stem, suffix) if suffix in IMAGE_SUFFIXES else (folded, "")


class _Index:
    """Members by every tail of their path: `img1`, `gblur/img1`, `databaserelease2/gblur/img1`."""

    def __init__(self, members: Iterable[Member], depth: int, archives: Mapping[int, str]) -> None:
        """depth: the most folders that a row has; longer tails are never asked for."""
        self._archives = archives
        self._choices: dict[tuple[int, int, _Name], _Fit | Misfit] = {}
        self._by_tail: dict[str, list[Member]] = defaultdict(list)
        self._refused_by_tail: dict[str, list[Member]] = defaultdict(list)
        self._folders: set[str] = set()
        for member in members:
            by_tail = self._refused_by_tail if member.refusal else self._by_tail
            path = fold(member.path)[0]
            for tail in _tails(path, depth):
                by_tail[tail].append(member)
            if "/" in path and not member.refusal:
                self._folders.update(_tails(path.rpartition("/")[0], depth))

    def find(self, image: str) -> _Fit | Misfit:
        path = fold(image)[0]
        tails = list(_tails(path, path.count("/")))
        for by_tail in (self._by_tail, self._refused_by_tail):
            for num_folders in reversed(range(len(tails))):
                if candidates := by_tail.get(tails[num_folders]):
                    if self._is_elsewhere(path, num_folders):
                        return Misfit(
                            False, f"its folder is in the archive, but only {candidates[0].path} has its name"
                        )
                    return self._choose(image, num_folders, candidates)
        return Misfit(False, "no image of this name in the archive")

    def _choose(self, image: str, num_folders: int, candidates: list[Member]) -> _Fit | Misfit:
        """The best candidate; where many rows and many members are namesakes, the rows are answered together."""
        if len(candidates) == 1:
            return _Fit(num_folders, candidates[0])
        ours = _name(image, num_folders)
        key = (id(candidates), num_folders, ours)  # the list lives as long as this index
        if key not in self._choices:
            best = _best(ours, num_folders, candidates)
            is_one = len({(member.size, member.crc) for member in best}) == 1
            self._choices[key] = _Fit(num_folders, best[0]) if is_one else self._ambiguity(best)
        return self._choices[key]

    def _ambiguity(self, members: list[Member]) -> Misfit:
        paths = [member.path for member in members[:3]]
        if len({member.archive for member in members}) > 1:
            paths = [f"{self._archives.get(member.archive, member.archive)}: {member.path}" for member in members[:3]]
        return Misfit(True, f"{len(members)} images fit: {', '.join(paths)}{', ...' if len(members) > 3 else ''}")

    def _is_elsewhere(self, path: str, num_folders: int) -> bool:
        """Whether the archive has the row's own sub-folder, of which only the last `num_folders` parts fit.

        Then the image would have to be in there: a namesake in another folder is another image.
        """
        inner = path.split("/")[2:-1]  # below DFBench/SOURCE, which archives may or may not have
        return num_folders < len(inner) and "/".join(inner[-num_folders - 1 :]) in self._folders


def _tails(path: str, depth: int) -> Iterable[str]:
    """`a/b/c` -> `c`, `b/c`, `a/b/c`, with at most `depth` folders."""
    end = len(path)
    for _ in range(depth + 1):
        end = path.rfind("/", 0, end)
        yield path[end + 1 :]
        if end < 0:
            return


def _best(ours: _Name, num_folders: int, candidates: list[Member]) -> list[Member]:
    """The candidates that are as good as every other one in each respect; all where there is none."""
    likenesses = [_likeness(ours, num_folders, member) for member in candidates]
    if len({fold(member.path)[0] for member in candidates}) > 1:
        # Extensions in the annotations are not to be relied on: they do not tell one folder from another.
        likenesses = [(same_case, 0) for same_case, _ in likenesses]
    # Where unpacking in DFBench/SOURCE (or above) would put a member at the very path, it is the one that is meant.
    is_whole = [member.path.count("/") == num_folders for member in candidates]
    ranks = [(whole, *likeness) for whole, likeness in zip(is_whole, likenesses, strict=True)]
    ideal = tuple(map(max, zip(*ranks, strict=True)))
    return [member for member, rank in zip(candidates, ranks, strict=True) if rank == ideal] or candidates


def _likeness(ours: _Name, num_folders: int, member: Member) -> tuple[bool, int]:
    """Whether upper and lower case agree as well, and the extension: 2 for the same, 1 for another spelling of it."""
    theirs = _name(member.path, num_folders)
    is_same, is_alike = theirs.suffix == ours.suffix, _spelled(theirs.suffix) == _spelled(ours.suffix)
    return theirs.tail == ours.tail, 2 if is_same else int(is_alike)


def _name(path: str, num_folders: int) -> _Name:
    stem, suffix = split_suffix(path)
    return _Name("/".join(stem.split("/")[-num_folders - 1 :]), suffix.lower())


def _spelled(suffix: str) -> str:
    return ".jpg" if suffix in JPEG_SUFFIXES else ".tif" if suffix == ".tiff" else suffix


def _rivals(fits: dict[str, _Fit | Misfit]) -> list[list[str]]:
    """Groups of images that claim the same member."""
    claims: dict[tuple[int, int], list[str]] = defaultdict(list)
    for image, fit in fits.items():
        if isinstance(fit, _Fit):
            claims[fit.member.archive, fit.member.position].append(image)
    return [images for images in claims.values() if len(images) > 1]


def _settle(rivals: list[str], fits: dict[str, _Fit | Misfit]) -> None:
    """Leave a member to the image that it fits best; where two are equal, to none of them."""
    ranks = {}
    for image in rivals:
        num_folders, member = fits[image]
        ranks[image] = (num_folders, *_likeness(_name(image, num_folders), num_folders, member))
    best = max(ranks.values())
    winners = [image for image in rivals if ranks[image] == best]
    path = member.path
    for image in rivals:
        is_winner = ranks[image] == best
        if is_winner and len(winners) > 1:
            fits[image] = Misfit(True, f"{len(winners)} rows fit {path}: {', '.join(winners[:3])}")
        elif not is_winner:
            fits[image] = Misfit(False, f"no image of this name in the archive but {path}, which is {winners[0]}")
