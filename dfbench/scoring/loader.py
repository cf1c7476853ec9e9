"""Planned batches -> model inputs, decoded and collated ahead of the model in worker processes."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from dfbench.data.annotations import Sample
from dfbench.data.images import ImageError, load_image
from dfbench.errors import InputError
from dfbench.models.base import ModelInputs, Prompt, SequenceSize
from dfbench.models.packed.packing import PackShape
from dfbench.parallel import noted_signals
from dfbench.scoring.batching import PlannedBatch, fitting_shape


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


@dataclass
class Preparation(Dataset):
    """Item i is planned batch i, decoded and collated into `pieces` packs: the work of the worker processes.

    shape: pad every pack to it (compiled code needs one shape), or to a smaller one if there are more pieces; None for
    shapes that follow the batch. strict: a truncated image is an error.
    """

    batches: Sequence[PlannedBatch]
    image_root: Path
    prompt: Prompt
    shape: PackShape | None = None
    pieces: int = 1
    strict: bool = False

    def __post_init__(self) -> None:
        if self.shape and self.pieces > 1:
            self.shape = fitting_shape([piece for batch in self.batches for piece in split_batch(batch, self.pieces)])

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> PreparedBatch:
        batch = PreparedBatch([sample.image for sample in self.batches[index].samples])
        for piece in split_batch(self.batches[index], self.pieces):
            pairs = ((s, self._prepare(s, size, batch)) for s, size in zip(piece.samples, piece.sizes, strict=True))
            ready = [(sample, inputs) for sample, inputs in pairs if inputs]
            if ready:
                samples, inputs = map(list, zip(*ready, strict=True))
                batch.packs.append(Pack(samples, self.prompt.collate(inputs, self.shape)))
        return batch

    def _prepare(self, sample: Sample, size: SequenceSize, batch: PreparedBatch) -> ModelInputs | None:
        """One image's model inputs, or None and a row of the batch's errors."""
        try:
            inputs, warning = prepare_image(sample, self.image_root, self.prompt, strict=self.strict)
            if self.prompt.size_of_inputs(inputs)[:2] != size[:2]:
                raise ImageError("file changed while the run was going on")
        except ImageError as error:
            batch.errors.append((sample.image, str(error)))
            return None
        if warning:
            batch.warnings.append((sample.image, warning))
        return inputs


def prepare_image(sample: Sample, image_root: Path, prompt: Prompt, *, strict: bool) -> tuple[ModelInputs, str]:
    """One image's model inputs, and its warning (see `DecodedImage`). Raises ImageError (`strict`: if truncated)."""
    image = load_image(image_root / sample.image, strict=strict)
    return prompt.prepare(sample.question, image.rgb), image.warning


def split_batch(batch: PlannedBatch, pieces: int) -> list[PlannedBatch]:
    """A planned batch as up to `pieces` smaller ones, in order, of about the same number of images."""
    size = -(-len(batch.samples) // pieces)
    starts = range(0, len(batch.samples), size)
    return [PlannedBatch(batch.samples[i : i + size], batch.sizes[i : i + size]) for i in starts]


def load_batches(dataset: Preparation, workers: int, *, pin_memory: bool) -> Iterator[PreparedBatch]:
    """The batches in order, out of worker processes that start at once. Raises InputError where one was killed."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=2 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    with _own_signals() if workers else nullcontext():
        return guarded(iter(loader), workers)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Workers that start inside leave Ctrl-C to us, who hear it when all have started: half of them could not be ended.

    And we do without torch's handler for a worker that was killed, which would raise in the middle of whatever runs
    then, such as the loading of weights. Its batch tells, when it is asked for.
    """
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return
    child_ended = signal.getsignal(signal.SIGCHLD)
    try:
        with noted_signals(signal.SIGINT) as interrupts:
            yield
    finally:
        signal.signal(signal.SIGCHLD, child_ended or signal.SIG_DFL)
    if interrupts:
        signal.raise_signal(signal.SIGINT)


def guarded(batches: Iterator[PreparedBatch], workers: int) -> Iterator[PreparedBatch]:
    """The batches; that the system killed a worker becomes one line instead of a traceback."""
    try:
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:
        # What is raised inside of a worker says "Caught ..." and is a bug of ours. The rest is what the loader meets
        # when a worker is gone: a signal, a connection that broke off in the middle of a batch.
        if workers == 0 or str(error).startswith("Caught "):
            raise
        reason = (str(error).splitlines() or ["a connection broke off"])[0]
        raise InputError(
            f"image workers: one of them is gone ({reason}). What is scored is kept: repeat the command with fewer "
            f"--workers."
        ) from None
