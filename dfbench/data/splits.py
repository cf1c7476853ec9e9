"""Which of the available images go into the clean training, validation and test files.

Every choice goes by a hash of the image's key, so it is the same on every machine and in every order of rows.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dfbench.data.annotations import Sample
from dfbench.data.sources import FAKE, REAL, source_of
from dfbench.errors import InputError

TRAIN, VAL, TEST = SPLITS = ("train", "val", "test")
"""The clean files. The release has no validation rows: they are split off the training rows."""


def key_hash(image: str) -> bytes:
    """A hash of an image's key that is the same on every machine, for stable random choices."""
    return hashlib.sha256(image.encode()).digest()


def split_validation(samples: Iterable[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """(training, validation), both in the given order; which images are held out, `choose_validation` says."""
    samples = list(samples)
    held_out = choose_validation((sample.image for sample in samples), fraction)
    training = [sample for sample in samples if sample.image not in held_out]
    return training, [sample for sample in samples if sample.image in held_out]


def choose_validation(images: Iterable[str], fraction: float) -> set[str]:
    """The images to hold out for validation: of each source the `fraction` (0 to 1) with the smallest hash of the key.

    The choice depends on the keys alone, so it survives shuffling. Each source with at least two images keeps one or
    more for training; a fraction above 0 takes at least one of each such source.
    """
    held_out: set[str] = set()
    if fraction > 0:
        for members in _by_source(images).values():
            count = min(max(1, round(fraction * len(members))), len(members) - 1)
            held_out.update(sorted(members, key=key_hash)[:count])
    return held_out


@dataclass(frozen=True)
class Subset:
    """What to choose.

    val_fraction: share of each source's training rows that are held out for validation, 0 to 1.
    limit_per_source: most training rows (validation included) and most test rows of a source; 0 for all.
    balance: as many fake as real images in each file; the larger side is cut evenly over its sources.
    seed: another one gives another subset; the validation images stay out of training whatever it is.
    """

    val_fraction: float = 0.01
    limit_per_source: int = 0
    balance: bool = False
    seed: int = 0


def assign_splits(
    train: Sequence[str], test: Sequence[str], label_of: Mapping[str, str], subset: Subset
) -> dict[str, str]:
    """Image -> split, for every image that is chosen. train and test share no image.

    Held-out images are picked before a limit applies: what validates a small run is never trained on in a large one.
    """
    held_out = choose_validation(train, subset.val_fraction)
    images = {TRAIN: [image for image in train if image not in held_out], VAL: list(held_out), TEST: list(test)}
    if limit := subset.limit_per_source:
        num_val = min(max(1, round(subset.val_fraction * limit)), limit - 1) if subset.val_fraction else 0
        for split, count in ((TRAIN, limit - num_val), (VAL, num_val), (TEST, limit)):
            by_source = _by_source(images[split])
            images[split] = _take(by_source, dict.fromkeys(by_source, count), subset.seed)
    if subset.balance:
        images = {split: _balance(split, members, label_of, subset.seed) for split, members in images.items()}
    return {image: split for split, members in images.items() for image in members}


def _by_source(images: Iterable[str]) -> dict[str, list[str]]:
    by_source = defaultdict(list)
    for image in images:
        by_source[source_of(image)].append(image)
    return by_source


def _take(by_source: Mapping[str, list[str]], counts: Mapping[str, int], seed: int) -> list[str]:
    """Of each source as many images as `counts` says, those with the smallest hash of seed and key."""
    return [
        image
        for source, images in by_source.items()
        for image in sorted(images, key=lambda image: key_hash(f"{seed}/{image}"))[: counts[source]]
    ]


def _balance(split: str, images: list[str], label_of: Mapping[str, str], seed: int) -> list[str]:
    sides = [[image for image in images if label_of[image] == label] for label in (REAL, FAKE)]
    smaller, larger = sorted(sides, key=len)
    if images and not smaller:
        raise InputError(
            f"--balance: the {split} images have one label only. Name sources of both kinds, or leave --balance out."
        )
    by_source = _by_source(larger)
    shares = share_evenly({source: len(members) for source, members in by_source.items()}, len(smaller))
    return smaller + _take(by_source, shares, seed)


def share_evenly(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Shares of `total` among sources: as equal as their sizes allow, none above its size.

    A source smaller than an equal share gives all it has, and the others make up for it. total: at most the sizes' sum.
    """
    shares = {}
    for num_done, source in enumerate(sorted(sizes, key=lambda source: (sizes[source], source))):
        shares[source] = min(sizes[source], total // (len(sizes) - num_done))
        total -= shares[source]
    return shares
