"""Which archive member is the image that an annotation row names.

The annotations say `DFBench/LIVE/gblur/img1.jpg`; the archive may hold `databaserelease2/gblur/img1.bmp`. A row and a
member match as far as their paths agree from the right, the extension aside: sub-folder and stem first, the stem alone
only where nothing else could be meant. Upper and lower case count as equal, unless two members differ in nothing else.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dfbench.data.images import IMAGE_SUFFIXES, split_suffix
from dfbench.prepare.reasons import Fault, Reason
from dfbench.prepare.zips import Member


class _Match(NamedTuple):
    """A member and how many of the row's folders, from the right, it shares."""

    num_folders: int
    member: Member


def match_images(images: Iterable[str], members: Iterable[Member]) -> dict[str, Member | Fault]:
    """For each image (keys of one source: `DFBench/SOURCE/...`) its member, or why there is none: absent, ambiguous.

    A member belongs to one image at most. A refused member is returned only where no other one matches as well.
    """
    images = list(images)
    index = _Index(members, max((image.count("/") for image in images), default=0))
    matches: dict[str, _Match | Fault] = {image: index.find(image) for image in images}
    by_member: dict[tuple[Path, int], list[str]] = defaultdict(list)
    for image, match in matches.items():
        if isinstance(match, _Match):
            by_member[match.member.archive, match.member.position].append(image)
    for rows in by_member.values():
        if len(rows) > 1:
            _resolve_duplicates(rows, matches)
    return {image: match.member if isinstance(match, _Match) else match for image, match in matches.items()}


def fold(path: str) -> str:
    """A path without its image extension, made equal for what counts as equal: case, and how accents are encoded."""
    folded = path.casefold() if path.isascii() else unicodedata.normalize("NFC", path).casefold()
    stem, suffix = split_suffix(folded)
    return stem if suffix in IMAGE_SUFFIXES else folded


class _Index:
    """Members by every tail of their path: `img1`, `gblur/img1`, `databaserelease2/gblur/img1`."""

    def __init__(self, members: Iterable[Member], depth: int) -> None:
        """depth: the most folders that a row has; longer tails are never asked for."""
        self._by_tail: dict[str, list[Member]] = defaultdict(list)
        self._folders: set[str] = set()
        for member in members:
            path = fold(member.path)
            for tail in _tails(path, depth):
                self._by_tail[tail].append(member)
            if "/" in path:
                self._folders.update(_tails(path.rpartition("/")[0], depth))

    def find(self, image: str) -> _Match | Fault:
        path = fold(image)
        tails = list(_tails(path, path.count("/")))
        for num_folders in reversed(range(len(tails))):
            if candidates := self._by_tail.get(tails[num_folders]):
                if self._is_elsewhere(path, num_folders):
                    return Reason.ABSENT, f"its folder is in the archive, but only {candidates[0].path} has its name"
                return _choose(image, num_folders, candidates)
        return Reason.ABSENT, "no image of this name in the archive"

    def _is_elsewhere(self, path: str, num_folders: int) -> bool:
        """Whether the archive has the row's own sub-folder, of which only the last `num_folders` parts match.

        Then the image would have to be in there: one of the same name in another folder is another image.
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


def _choose(image: str, num_folders: int, candidates: list[Member]) -> _Match | Fault:
    """The candidate that is as good as every other one in each respect; copies of one image count as one."""
    candidates = [member for member in candidates if not member.refusal] or candidates
    if len(candidates) == 1:
        return _Match(num_folders, candidates[0])
    # Extensions in the annotations are not to be relied on: they do not tell one folder from another.
    is_one_path = len({fold(member.path) for member in candidates}) == 1
    ranks = []
    for member in candidates:
        same_case, same_suffix = _likeness(image, num_folders, member)
        # Where unpacking in DFBench/SOURCE (or above) would put a member at the very path, it is the one that is meant.
        ranks.append((member.path.count("/") == num_folders, same_case, same_suffix and is_one_path))
    ideal = tuple(map(max, zip(*ranks, strict=True)))
    best = [member for member, rank in zip(candidates, ranks, strict=True) if rank == ideal] or candidates
    if len({(member.size, member.crc) for member in best}) == 1:
        return _Match(num_folders, best[0])
    in_several = len({member.archive for member in best}) > 1
    paths = [f"{member.archive.name}: {member.path}" if in_several else member.path for member in best[:3]]
    return Reason.AMBIGUOUS, f"{len(best)} images match: {', '.join(paths)}{', ...' if len(best) > 3 else ''}"


def _likeness(image: str, num_folders: int, member: Member) -> tuple[bool, bool]:
    """Whether a row and a member that match agree in upper and lower case as well, and in the extension."""
    (ours, our_suffix), (theirs, their_suffix) = split_suffix(image), split_suffix(member.path)
    same_case = ours.split("/")[-num_folders - 1 :] == theirs.split("/")[-num_folders - 1 :]
    return same_case, our_suffix.lower() == their_suffix.lower()


def _resolve_duplicates(rows: list[str], matches: dict[str, _Match | Fault]) -> None:
    """Leave a member to the row that it matches best; where two are equal, to none of them."""
    ranks = {}
    for image in rows:
        num_folders, member = matches[image]
        ranks[image] = (num_folders, *_likeness(image, num_folders, member))
    best = max(ranks.values())
    winners = [image for image in rows if ranks[image] == best]
    for image in rows:
        if ranks[image] < best:
            detail = f"no image of this name in the archive but {member.path}, which is {winners[0]}"
            matches[image] = Reason.ABSENT, detail
        elif len(winners) > 1:
            matches[image] = Reason.AMBIGUOUS, f"{len(winners)} rows match {member.path}: {', '.join(winners[:3])}"
