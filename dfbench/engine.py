"""The scoring run: samples -> prepared batches -> two logits each -> per-image CSV, resumable at any moment."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dfbench.annotations import Sample
from dfbench.errors import InputError
from dfbench.images import ImageError, load_image
from dfbench.models.base import Prompt, Scorer
from dfbench.records import format_rows
from dfbench.resume import RecordWriter

TRUNCATED = "file is truncated; decoded as far as it goes"


@dataclass
class PreparedBatch:
    """One batch out of a worker: what could be prepared, packed, and what could not.

    images: all of the batch. samples: those that are in `tensors`, in order. errors, warnings: (image, reason).
    """

    images: list[str]
    samples: list[Sample] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    errors: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    def pin_memory(self) -> "PreparedBatch":
        """Called by DataLoader: page-locked tensors are copied to the GPU while it computes."""
        self.tensors = {name: tensor.pin_memory() for name, tensor in self.tensors.items()}
        return self


class Batches(Dataset):
    """Item i is batch i, decoded and prepared: the work of the CPU processes."""

    def __init__(
        self, batches: Sequence[Sequence[Sample]], image_root: Path, prompt: Prompt, *, strict: bool = False
    ) -> None:
        self.batches, self.image_root, self.prompt, self.strict = batches, image_root, prompt, strict

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> PreparedBatch:
        batch, prepared = PreparedBatch([sample.image for sample in self.batches[index]]), []
        for sample in self.batches[index]:
            try:
                image = load_image(self.image_root / sample.image, strict=self.strict)
                prepared.append(self.prompt.prepare(sample.question, image.rgb))
            except ImageError as error:
                batch.errors.append((sample.image, str(error)))
                continue
            batch.samples.append(sample)
            if image.truncated:
                batch.warnings.append((sample.image, TRUNCATED))
        if prepared:
            batch.tensors = self.prompt.collate(prepared)
        return batch


@dataclass
class Outcome:
    """What a run did: images scored now, seconds they took (model loading left out), and the counts on the disk."""

    num_scored: int
    seconds: float
    num_rows: int
    num_errors: int
    num_warnings: int

    @property
    def images_per_second(self) -> float:
        return self.num_scored / self.seconds if self.seconds else 0.0


def split_batches(samples: Sequence[Sample], batch_size: int) -> list[list[Sample]]:
    """Consecutive batches in annotation order. They depend on nothing else, so a resumed run forms the same ones."""
    return [list(samples[i : i + batch_size]) for i in range(0, len(samples), batch_size)]


def score_samples(
    batches: Sequence[Sequence[Sample]],
    image_root: Path,
    prompt: Prompt,
    load_scorer: Callable[[], Scorer],
    writer: RecordWriter,
    *,
    workers: int,
    pin_memory: bool = False,
    strict: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Score the batches that `writer` does not hold yet, in order.

    The model is loaded (`load_scorer`) only where something is left to score. An image that cannot be prepared, or
    whose logits are not finite, becomes a row of the errors CSV.
    """
    start = writer.num_done_batches
    num_scored, seconds = 0, 0.0
    if start < len(batches):
        dataset = Batches(batches[start:], image_root, prompt, strict=strict)
        # Workers are forked here, before the model and CUDA exist in this process, and prepare images while it loads.
        prepared = iter(_loader(dataset, workers, pin_memory))
        scorer = load_scorer()
        began = time.monotonic()
        with _progress(batches, writer, quiet) as bar:
            for batch in _surviving(prepared):
                num_scored += _score_batch(batch, scorer, writer)
                bar.update(len(batch.images))
        seconds = time.monotonic() - began
    return Outcome(num_scored, seconds, writer.num_rows, writer.num_errors, writer.num_warnings)


def _loader(dataset: Batches, workers: int, pin_memory: bool) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )


def _surviving(batches: Iterator[PreparedBatch]) -> Iterator[PreparedBatch]:
    """The loader's batches; a worker that the system killed becomes one line instead of a traceback."""
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "image workers",
            found=str(error).splitlines()[0],
            expected="workers that live",
            remedy="what is scored is kept: repeat the command with fewer --workers",
        ) from None


def _score_batch(batch: PreparedBatch, scorer: Scorer, writer: RecordWriter) -> int:
    """Score and write one batch; how many images got an answer."""
    errors, rows = list(batch.errors), []
    if batch.samples:
        tensors = {name: tensor.to(scorer.device, non_blocking=True) for name, tensor in batch.tensors.items()}
        logits = scorer.logits(tensors).cpu().numpy()
        finite = np.isfinite(logits).all(axis=1)
        errors += [(s.image, "logits are not finite") for s, ok in zip(batch.samples, finite, strict=True) if not ok]
        kept = [sample for sample, ok in zip(batch.samples, finite, strict=True) if ok]
        rows = format_rows([sample.image for sample in kept], [sample.label for sample in kept], logits[finite])
    errors.sort(key=lambda pair: batch.images.index(pair[0]))
    lost = {image for image, _ in errors}
    writer.write(rows, errors, [pair for pair in batch.warnings if pair[0] not in lost])
    return len(rows)


def _progress(batches: Sequence[Sequence[Sample]], writer: RecordWriter, quiet: bool) -> tqdm:
    done = sum(len(batch) for batch in batches[: writer.num_done_batches])
    return tqdm(
        total=sum(map(len, batches)),
        initial=done,
        unit="img",
        desc="scoring",
        smoothing=0.05,
        disable=quiet or not sys.stderr.isatty(),
    )
