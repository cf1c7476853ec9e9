"""What earlier runs left under the same name: may this one go on with it, and what of it must be done again?"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dfbench.data.annotations import Sample
from dfbench.data.images import ImageError
from dfbench.errors import InputError, shorten
from dfbench.models.base import Prompt
from dfbench.models.checkpoints import IDENTITY_FORMAT
from dfbench.predictions.schema import NOT_FINITE, read_info
from dfbench.predictions.writer import Tables, read_tables, second_cells
from dfbench.scoring.loader import prepare_image

logger = logging.getLogger(__name__)

_COMPARED_OTHERWISE = ("model", "adapter", "questions", "answered")
"""Keys of an identity that need not be equal: the first two say where weights lie, and their fingerprints which they
are; of the others see `_asks_otherwise`."""

_MOST_QUESTIONS = 1_000


@dataclass(frozen=True)
class RunState:
    """What stands on the disk of a run, parts of several processes included, read once.

    tables: lines of the three files. metadata: of the JSON beside them, {} where there is none.
    """

    tables: Tables
    metadata: dict[str, Any]

    @classmethod
    def read(cls, csv_path: Path) -> "RunState":
        """Raises InputError where a file has other columns."""
        return cls(read_tables(csv_path), read_info(csv_path))

    @cached_property
    def cells(self) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """image -> label of its row, image -> error, image -> warning."""
        return second_cells(self.tables)

    @property
    def counts(self) -> dict[str, int]:
        """{"rows", "errors", "warnings": number of images in each of the three files}."""
        return dict(zip(("rows", "errors", "warnings"), map(len, self.tables), strict=True))


def questions_identity(samples: Iterable[Sample]) -> list[str]:
    """Short hashes of the distinct questions, in order; empty where nearly every image has its own."""
    questions = {sample.question for sample in samples}
    if len(questions) > _MOST_QUESTIONS:
        return []
    return sorted(hashlib.blake2b(question.encode(), digest_size=6).hexdigest() for question in questions)


def answered(samples: Iterable[Sample]) -> dict[str, str]:
    """Digests of the images that a run answers for, and of the images with their questions; in whatever order."""
    pairs = sorted((sample.image, sample.question) for sample in samples)
    return {"images": _digest(image for image, _ in pairs), "questions": _digest(f"{i}\0{q}" for i, q in pairs)}


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def check_resume(csv_path: Path, state: RunState, identity: dict[str, Any], samples: Sequence[Sample]) -> None:
    """Raise InputError where the file was begun with another model, engine, dtype, protocol or other annotations."""
    labels, errors, _ = state.cells
    written = labels.keys() | errors.keys()
    if not written or written - {sample.image for sample in samples}:  # `consolidate` names images of another run
        return
    begun = state.metadata.get("identity")
    if not isinstance(begun, dict):
        raise _other(csv_path, "its rows lack the metadata of the run that wrote them")
    if not str(begun.get("model_fingerprint")).startswith(IDENTITY_FORMAT):
        raise InputError(
            f"{csv_path}: an earlier version began it, whose metadata do not tell for certain which weights it scored. "
            f"Name another --output_csv, or --overwrite it."
        )
    for key, value in identity.items():
        if key not in _COMPARED_OTHERWISE and begun.get(key) != value:
            raise _other(csv_path, f"it was begun with {key} {begun.get(key)}, and this run has {value}")
    if _asks_otherwise(begun, identity, [sample for sample in samples if sample.image in written]):
        raise _other(csv_path, "it holds answers to other questions than those of the annotations")
    for sample in samples:
        if (label := labels.get(sample.image, sample.label)) != sample.label:
            found = f"{sample.image} has label {shorten(label)}, and the annotations {shorten(sample.label)}"
            raise _other(csv_path, found)


def _asks_otherwise(begun: dict[str, Any], identity: dict[str, Any], written: Sequence[Sample]) -> bool:
    """Whether the run that was begun asked other questions, as far as its metadata tell."""
    asked, then = begun.get("questions", []), begun.get("answered", {})
    if not isinstance(asked, list) or not isinstance(then, dict):  # edited by hand
        return True
    if identity["questions"] and any(question not in identity["questions"] for question in asked):
        return True
    # Of a run over the same images, finished or not, and of a finished one over fewer, every question is known.
    return any(now["images"] == then.get("images") and now != then for now in (identity["answered"], answered(written)))


def _other(csv_path: Path, reason: str) -> InputError:
    advice = "Repeat the command that began this file, name another --output_csv, or --overwrite it."
    return InputError(f"{csv_path}: {reason}. {advice}")


def mended_images(
    state: RunState, samples: Sequence[Sample], image_root: Path, prompt: Prompt, *, strict: bool
) -> set[str]:
    """Images that could not be prepared then and can be now: the batches that they are in are done again."""
    errors, mended = state.cells[1], set()
    for sample in samples:
        if errors.get(sample.image, NOT_FINITE) != NOT_FINITE:
            with suppress(ImageError):
                prepare_image(sample, image_root, prompt, strict=strict)
                mended.add(sample.image)
    if mended:
        logger.info("%d images that could not be read can be now", len(mended))
    return mended
