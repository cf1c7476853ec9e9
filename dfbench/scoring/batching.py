"""Before a run: the size of each image's prompt, and which images share a batch.

The plan depends on the annotations, the images' sizes and the budget alone, so that a resumed run forms the same
batches.
"""

import heapq
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from dfbench.data.annotations import Sample
from dfbench.data.images import ImageError, load_image, read_header
from dfbench.models.base import Prompt, SequenceSize
from dfbench.models.packed.packing import PackShape

UNKNOWN = SequenceSize(0, 0, 0)
"""Of an image that cannot be used: decoding it will say why."""


@dataclass(frozen=True)
class PlannedBatch:
    """Images that go through the model together, in annotation order, and the size of each one's prompt."""

    samples: tuple[Sample, ...]
    sizes: tuple[SequenceSize, ...]

    @property
    def total(self) -> SequenceSize:
        return SequenceSize(*(sum(parts) for parts in zip(*self.sizes, strict=True)))


@dataclass(frozen=True)
class Plan:
    """All batches of a run, in annotation order, and the shape that fits each of them."""

    batches: list[PlannedBatch]
    shape: PackShape

    @property
    def packing_efficiency(self) -> float:
        """Share of the shape's tokens that are prompts, 0 to 1."""
        return sum(batch.total.tokens for batch in self.batches) / max(1, self.shape.tokens * len(self.batches))


def measure_sizes(
    samples: Sequence[Sample], image_root: Path, prompt: Prompt, *, threads: int = 16
) -> list[SequenceSize]:
    """The size of each prompt, from the headers of the image files alone (if the protocol depends on it at all)."""

    def sizes_of(chunk: Sequence[Sample]) -> list[tuple[int, int] | None]:
        return [_size_of(image_root / sample.image) for sample in chunk]

    if not prompt.depends_on_size:
        sizes = {question: prompt.sequence_size(question, 1, 1) for question in {sample.question for sample in samples}}
        return [sizes[sample.question] for sample in samples]
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # Pillow's, as in images.py
        chunks = (samples[start : start + 256] for start in range(0, len(samples), 256))
        sizes = chain.from_iterable(pool.map(sizes_of, chunks))
        return [_sequence_size(sample, size, image_root, prompt) for sample, size in zip(samples, sizes, strict=True)]


def _size_of(path: Path) -> tuple[int, int] | None:
    try:
        return read_header(path)[:2]
    except ImageError:
        return None


def _sequence_size(sample: Sample, size: tuple[int, int] | None, image_root: Path, prompt: Prompt) -> SequenceSize:
    try:
        # What is damaged in its header may still be decoded as far as it goes.
        width, height = size or load_image(image_root / sample.image).rgb.size
        return prompt.sequence_size(sample.question, width, height)
    except ImageError:
        return UNKNOWN


OPEN_BATCHES = 8
"""So many batches are open side by side: small images go where large ones left room."""


def make_plan(
    samples: Sequence[Sample], sizes: Sequence[SequenceSize], *, token_budget: int, batch_size: int | None
) -> Plan:
    """Put each image, in order, into the first open batch with room for it: up to `token_budget` tokens, their share of
    tiles or patches, and `batch_size` images. An image that exceeds the budget has a batch to itself.
    """
    vision_a_token = sum(size.vision for size in sizes) / max(1, sum(size.tokens for size in sizes))
    # Batches of small and of large images differ in patches a token; a little room lets both budgets be used up.
    vision_budget = token_budget * vision_a_token * 1.02 + 1
    batches: list[_OpenBatch] = []
    open_batches: list[_OpenBatch] = []
    for index, size in enumerate(sizes):
        for batch in open_batches:
            fits = batch.tokens + size.tokens <= token_budget and batch.vision + size.vision <= vision_budget
            if fits and len(batch.members) != batch_size:
                break
        else:
            if len(open_batches) == OPEN_BATCHES:
                open_batches.remove(max(open_batches, key=lambda batch: batch.tokens))
            batch = _OpenBatch()
            batches.append(batch)
            open_batches.append(batch)
        batch.members.append(index)
        batch.tokens += size.tokens
        batch.vision += size.vision
    planned = [
        PlannedBatch(tuple(samples[i] for i in batch.members), tuple(sizes[i] for i in batch.members))
        for batch in batches
    ]
    return Plan(planned, fitting_shape(planned))


@dataclass
class _OpenBatch:
    """A batch that takes more images: their indices, and what they add up to."""

    members: list[int] = field(default_factory=list)
    tokens: int = 0
    vision: int = 0


def fitting_shape(batches: Sequence[PlannedBatch]) -> PackShape:
    """The smallest shape that holds each of the batches, images that cannot be used left out."""
    totals = [batch.total for batch in batches]
    usable = [[size for size in batch.sizes if size != UNKNOWN] for batch in batches]
    kinds = {size[:2] for sizes in usable for size in sizes}
    return PackShape(
        tokens=max(total.tokens for total in totals),
        prompts=max(map(len, usable)),
        max_seqlen=max((tokens for tokens, _ in kinds), default=0),
        vision=max(total.vision for total in totals),
        max_vision=max((vision for _, vision in kinds), default=0),
        windows=max(total.windows for total in totals),
        uniform=len(kinds) == 1,
    )


def shard(batches: Sequence[int], sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal batches (indices) out to ranks so that their sizes sum to nearly the same: the largest first, to whoever
    has least. Each rank's share is in ascending order.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for index in sorted(batches, key=lambda index: (-sizes[index], index)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(index)
        heapq.heappush(loads, (load + sizes[index], rank))
    return [sorted(share) for share in shares]
