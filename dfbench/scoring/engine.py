"""Prepared batches -> two logits each -> rows on the disk.

The GPU is kept busy: workers decode and collate ahead, pinned memory is copied on a stream of its own while it
computes, and the results of one batch are fetched and written while the next one runs.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dfbench.errors import InputError
from dfbench.models.base import Scorer, blame
from dfbench.predictions.schema import NOT_FINITE, format_rows
from dfbench.predictions.writer import RecordWriter
from dfbench.scoring.batching import PlannedBatch
from dfbench.scoring.loader import Preparation, PreparedBatch, load_batches

logger = logging.getLogger(__name__)


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
    preparation: Preparation,
    load_scorer: Callable[[], Scorer],
    writer: RecordWriter,
    *,
    workers: int,
    pin_memory: bool = False,
    num_done: int = 0,
    quiet: bool = False,
) -> Outcome:
    """Score planned batches in order and write each. num_done: images done before, for the progress bar.

    The model is loaded (`load_scorer`) while the workers prepare the first images. An image that cannot be prepared, or
    whose logits are not finite, becomes a row of the errors CSV. Where the GPU runs out of memory, batches go through
    it in twice as many pieces from then on; a single image that does not fit raises InputError.
    """
    outcome, position, batches = Outcome(), 0, preparation.batches
    scorer: Scorer | None = None
    total = num_done + sum(len(batch.samples) for batch in batches)
    hidden = quiet or not sys.stderr.isatty()
    with tqdm(total=total, initial=num_done, unit="img", desc="scoring", smoothing=0.05, disable=hidden) as bar:
        while position < len(batches):
            # Workers are forked here: at first before the model and CUDA exist in this process.
            left = replace(preparation, batches=batches[position:], pieces=outcome.pieces)
            prepared = load_batches(left, workers, pin_memory=pin_memory)
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
            f"{left[0].samples[0].image}: not enough GPU memory for a single image. What is scored is kept: free "
            f"memory on the GPU, or use a larger one, and repeat the command."
        )
    logger.warning("out of GPU memory: going on with batches of 1/%d of the token budget", outcome.pieces)


Rows = tuple[list[tuple[str, ...]], list[tuple[str, str]], list[tuple[str, str]]]
"""What a batch adds to the three files: rows, errors, warnings."""


def _scored(prepared: Iterator[PreparedBatch], scorer: Scorer, outcome: Outcome) -> Iterator[Rows]:
    """Rows of one batch after the other, each fetched while the next runs on the GPU; keeps the outcome's clocks."""
    began = first = None  # when the first batch was through the model, and that batch
    before = outcome.seconds
    running: tuple[PreparedBatch, list[PendingLogits]] | None = None
    previous: PendingLogits | None = None
    copies = torch.cuda.Stream(scorer.device) if scorer.device.type == "cuda" else None
    for batch in chain(prepared, [None]):  # None: fetch what is still running
        launched: list[PendingLogits] = []
        try:
            for pack in batch.packs if batch else ():
                with _first_pass(scorer) if previous is None else nullcontext():
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


def _first_pass(scorer: Scorer) -> AbstractContextManager:
    """A config that does not go with its weights may show in the forward pass alone."""
    return blame(scorer.prompt.checkpoint, "its model cannot be run", "Download the whole folder again.")


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
            end, start = self._previous_end, self.start
            self.idle_before = max(0.0, end.elapsed_time(start) / 1e3 if self._stream else start - end)
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
