"""The scoring run: planned batches -> prepared in worker processes -> two logits each -> rows on the disk.

The GPU is kept busy: workers decode and pack ahead, pinned memory is copied on a stream of its own while it computes,
and the results of one batch are fetched and written while the next one runs.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dfbench.data.annotations import Sample
from dfbench.data.images import ImageError, load_image
from dfbench.errors import InputError
from dfbench.models.base import ModelInputs, Prompt, Scorer, SequenceSize
from dfbench.models.packed.packing import PackShape
from dfbench.predictions.schema import NOT_FINITE, format_rows
from dfbench.predictions.writer import RecordWriter
from dfbench.scoring.batching import PlannedBatch, fitting_shape

logger = logging.getLogger(__name__)

TRUNCATED = "file is truncated; decoded as far as it goes"


@dataclass
class Pack:
    """What goes through the model at once. inputs: see `Prompt.collate`."""

    samples: list[Sample]
    inputs: dict[str, Any]


@dataclass
class PreparedBatch:
    """One planned batch out of a worker: packs of what could be prepared, and (image, reason) of what could not."""

    images: list[str]
    packs: list[Pack] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    def pin_memory(self) -> "PreparedBatch":
        """Called by DataLoader: page-locked memory is copied to the GPU while it computes."""
        for pack in self.packs:
            pack.inputs = {name: value.pin_memory() for name, value in pack.inputs.items()}
        return self


class Preparation(Dataset):
    """Item i is planned batch i, decoded and packed into `pieces` packs: the work of the CPU processes."""

    def __init__(
        self,
        batches: Sequence[PlannedBatch],
        image_root: Path,
        prompt: Prompt,
        *,
        shape: PackShape | None = None,
        pieces: int = 1,
        strict: bool = False,
    ) -> None:
        """shape: fill every pack up to it (compiled code needs one shape); None for shapes that follow the batch."""
        self.batches, self.image_root, self.prompt, self.strict = batches, image_root, prompt, strict
        self.shape, self.pieces = shape, pieces
        if shape and pieces > 1:
            self.shape = fitting_shape([piece for batch in batches for piece in split_batch(batch, pieces)])

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> PreparedBatch:
        batch = PreparedBatch([sample.image for sample in self.batches[index].samples])
        for piece in split_batch(self.batches[index], self.pieces):
            ready = [
                (s, p) for s, c in zip(piece.samples, piece.sizes, strict=True) if (p := self._prepare(s, c, batch))
            ]
            if ready:
                samples, prepared = map(list, zip(*ready, strict=True))
                batch.packs.append(Pack(samples, self.prompt.collate(prepared, self.shape)))
        return batch

    def _prepare(self, sample: Sample, cost: SequenceSize, batch: PreparedBatch) -> ModelInputs | None:
        """One image's prompt, or None and a row of the batch's errors."""
        try:
            prepared, truncated = prepare_image(sample, self.image_root, self.prompt, strict=self.strict)
            if self.prompt.size_of_inputs(prepared)[:2] != cost[:2]:
                raise ImageError("file changed while the run was going on")
        except ImageError as error:
            batch.errors.append((sample.image, str(error)))
            return None
        if truncated:
            batch.warnings.append((sample.image, TRUNCATED))
        return prepared


def prepare_image(sample: Sample, image_root: Path, prompt: Prompt, *, strict: bool) -> tuple[ModelInputs, bool]:
    """One image's prompt, and whether its file lacks its end. Raises ImageError (`strict`: for the latter as well)."""
    image = load_image(image_root / sample.image, strict=strict)
    return prompt.prepare(sample.question, image.rgb), image.truncated


def split_batch(batch: PlannedBatch, pieces: int) -> list[PlannedBatch]:
    """A planned batch as up to `pieces` smaller ones, in order, of about the same number of images."""
    size = -(-len(batch.samples) // pieces)
    starts = range(0, len(batch.samples), size)
    return [PlannedBatch(batch.samples[i : i + size], batch.sizes[i : i + size]) for i in starts]


@dataclass
class Outcome:
    """What a run did: images it scored, its clocks, and in how many pieces its batches went through the model.

    entered: when it began, by `time.monotonic`.
    startup: seconds until the first batch's result: loading the weights, compiling, the first images.
    seconds: from then on. waited: those of them in which the model idled. num_timed: images scored in them.
    """

    entered: float = field(default_factory=time.monotonic)
    num_scored: int = 0
    num_timed: int = 0
    startup: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    pieces: int = 1

    @property
    def images_per_second(self) -> float:
        """Speed after start-up; of a run of a single batch, start-up included."""
        if self.num_timed:
            return self.num_timed / self.seconds
        return self.num_scored / self.startup if self.startup else 0.0

    @property
    def wait_share(self) -> float:
        return self.waited / self.seconds if self.seconds else 0.0


def score_batches(
    batches: Sequence[PlannedBatch],
    prepare: Callable[..., Preparation],
    load_scorer: Callable[[], Scorer],
    writer: RecordWriter,
    *,
    workers: int,
    pin_memory: bool = False,
    num_done: int = 0,
    quiet: bool = False,
) -> Outcome:
    """Score planned batches in order and write each.

    prepare: (batches, pieces=) -> Preparation. num_done: images done before, for the progress bar.
    The model is loaded (`load_scorer`) while the workers prepare the first images. An image that cannot be prepared, or
    whose logits are not finite, becomes a row of the errors CSV. Where the GPU runs out of memory, batches go through
    it in twice as many pieces from then on; a single image that does not fit raises InputError.
    """
    outcome, position = Outcome(), 0
    scorer: Scorer | None = None
    prepared: Iterator[PreparedBatch | None] | None = None
    total = num_done + sum(len(batch.samples) for batch in batches)
    hidden = quiet or not sys.stderr.isatty()
    with tqdm(total=total, initial=num_done, unit="img", desc="scoring", smoothing=0.05, disable=hidden) as bar:
        while position < len(batches):
            # Workers are forked here: at first before the model and CUDA exist in this process.
            prepared = _until_none(prepare(batches[position:], pieces=outcome.pieces), workers, pin_memory)
            if scorer is None:
                scorer = load_scorer()
                bar.unpause()
            out_of_memory = False
            try:
                for rows, errors, warnings in _scored(prepared, scorer, outcome):
                    writer.write(rows, errors, warnings)
                    position += 1
                    outcome.num_scored += len(rows)
                    bar.update(len(rows) + len(errors))
                    bar.set_postfix(waiting=f"{outcome.wait_share:.0%}", refresh=False)
            except torch.OutOfMemoryError:
                out_of_memory = True
            if out_of_memory:  # out here, where no traceback holds on to the tensors of the pass that failed
                prepared = None  # its workers end
                if scorer.device.type == "cuda":
                    torch.cuda.synchronize(scorer.device)  # what the failed pass still reads is not given away
                torch.cuda.empty_cache()
                _halve(outcome, batches[position:])
    return outcome


def _halve(outcome: Outcome, left: Sequence[PlannedBatch]) -> None:
    outcome.pieces *= 2
    if outcome.pieces >= 2 * max(len(batch.samples) for batch in left):
        raise InputError(
            left[0].samples[0].image,
            found="not enough GPU memory for a single image",
            expected="memory for the model and one image",
            remedy="what is scored is kept: free memory on the GPU, or use a larger one, and repeat the command",
        )
    logger.warning("out of GPU memory: going on with batches of 1/%d of the token budget", outcome.pieces)


def _until_none(dataset: Preparation, workers: int, pin_memory: bool) -> Iterator[PreparedBatch | None]:
    """The batches out of worker processes, which start at once, then None.

    A worker that the system killed becomes one line instead of a traceback.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=2 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    return _guarded(iter(loader), workers)


def _guarded(batches: Iterator[PreparedBatch], workers: int) -> Iterator[PreparedBatch | None]:
    try:
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:
        # What is raised inside of a worker says "Caught ..." and is a bug of ours. The rest is what the loader meets
        # when a worker is gone: a signal, a connection that broke off in the middle of a batch.
        if workers == 0 or str(error).startswith("Caught "):
            raise
        raise InputError(
            "image workers",
            found=(str(error).splitlines() or ["a connection that broke off"])[0],
            expected="workers that live",
            remedy="what is scored is kept: repeat the command with fewer --workers",
        ) from None
    yield None


Rows = tuple[list[tuple[str, ...]], list[tuple[str, str]], list[tuple[str, str]]]
"""What a batch adds to the three files: rows, errors, warnings."""


def _scored(prepared: Iterator[PreparedBatch | None], scorer: Scorer, outcome: Outcome) -> Iterator[Rows]:
    """Rows of one batch after the other, each fetched while the next runs on the GPU; keeps the outcome's clocks."""
    began = first = None  # when the first batch was through the model, and that batch
    before = outcome.seconds
    running: tuple[PreparedBatch, list[PendingLogits]] | None = None
    previous: PendingLogits | None = None
    copies = torch.cuda.Stream(scorer.device) if scorer.device.type == "cuda" else None
    for batch in prepared:
        launched: list[PendingLogits] = []
        try:
            for pack in batch.packs if batch else ():
                previous = PendingLogits(scorer, pack.inputs, previous, copies)
                launched.append(previous)
        except torch.OutOfMemoryError:
            if running is not None:
                yield _rows(*running)
            raise
        if began is None and launched:
            launched[-1].wait()  # this once, for a clock that starts when the GPU does the next batch
            began, first = time.monotonic(), batch
            outcome.startup = outcome.startup or began - outcome.entered
        if running is not None:
            rows = _rows(*running)
            if began is not None and running[0] is not first:
                outcome.num_timed += len(rows[0])
                outcome.seconds = before + time.monotonic() - began
                outcome.waited += sum(pending.idle_before for pending in running[1])
            yield rows
        running = (batch, launched) if batch else None


class PendingLogits:
    """The logits of one pack: launched on construction, fetched later, so that the GPU has its next work meanwhile.

    copies: the CUDA stream that inputs are copied on, None on a CPU.
    idle_before: seconds between the end of the previous pack's work and the start of this one's, after `fetch`.
    """

    def __init__(
        self,
        scorer: Scorer,
        inputs: dict[str, Any],
        previous: "PendingLogits | None",
        copies: "torch.cuda.Stream | None",
    ) -> None:
        self._previous_end = previous.end if previous else None
        self._stream = torch.cuda.current_stream(scorer.device) if copies else None
        self.idle_before = 0.0
        with torch.cuda.stream(copies) if copies else nullcontext():
            moved = {name: value.to(scorer.device, non_blocking=True) for name, value in inputs.items()}
        if self._stream:
            self._stream.wait_stream(copies)
        self._moved = moved  # held until the GPU has read them: their memory belongs to the other stream
        self.start = self._mark()
        self._logits = scorer.logits(moved).to("cpu", non_blocking=True)
        self.end = self._mark()

    def _mark(self) -> Any:
        if not self._stream:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def wait(self) -> None:
        """Return when the logits are there."""
        if self._stream:
            self.end.synchronize()
            self._moved = None

    def fetch(self) -> np.ndarray:
        """float32 (B, 2)."""
        self.wait()
        if self._previous_end is not None:
            between = (
                self._previous_end.elapsed_time(self.start) / 1e3 if self._stream else self.start - self._previous_end
            )
            self.idle_before = max(0.0, between)
        return self._logits.numpy()


def _rows(batch: PreparedBatch, pending: Sequence[PendingLogits]) -> Rows:
    """The rows of one batch, in its own order."""
    rows, errors = [], list(batch.errors)
    for pack, logits in zip(batch.packs, [one.fetch() for one in pending], strict=True):
        finite = np.isfinite(logits).all(axis=1)
        errors += [(s.image, NOT_FINITE) for s, ok in zip(pack.samples, finite, strict=True) if not ok]
        kept = [sample for sample, ok in zip(pack.samples, finite, strict=True) if ok]
        rows += format_rows([sample.image for sample in kept], [sample.label for sample in kept], logits[finite])
    errors.sort(key=lambda pair: batch.images.index(pair[0]))
    lost = {image for image, _ in errors}
    return rows, errors, [pair for pair in batch.warnings if pair[0] not in lost]
