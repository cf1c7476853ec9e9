"""What an earlier run left under the same name: may this one go on with it, and what of it must be done again?"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dfbench.data.annotations import Sample
from dfbench.errors import InputError, shorten
from dfbench.io import write_json
from dfbench.predictions.schema import NOT_FINITE, info_path, read_info
from dfbench.predictions.writer import consolidate, read_tables, remove_results, second_cells

logger = logging.getLogger(__name__)

_COMPARED_OTHERWISE = ("model", "adapter", "questions", "answered")
"""Keys of an identity that need not be equal: the first two say where weights lie, and their fingerprints which they
are; of the others see `_asks_otherwise`."""

_MOST_QUESTIONS = 1_000


def questions_identity(samples: Iterable[Sample]) -> list[str]:
    """Short hashes of the distinct questions, in order; empty where nearly every image has its own."""
    questions = {sample.question for sample in samples}
    if len(questions) > _MOST_QUESTIONS:
        return []
    return sorted(hashlib.blake2b(question.encode(), digest_size=6).hexdigest() for question in questions)


def begin(
    csv_path: Path,
    identity: dict[str, Any],
    samples: Sequence[Sample],
    batches: Sequence[Sequence[str]],
    *,
    usable: Callable[[Sample], bool],
    overwrite: bool,
) -> None:
    """Bring what earlier runs left into order for this one: parts merged, what is not done dropped.

    usable: whether an image can be prepared now. A batch with an image that could not be then and can be now is done
    again. The caller holds the lock of the file (`only_run`). Raises InputError where the file was begun with another
    model, dtype, protocol, or other annotations.
    """
    if overwrite:
        remove_results(csv_path)
    rows, errors, _ = second_cells(read_tables(csv_path))
    _check(csv_path, identity, samples, rows, errors)
    again = (sample for sample in samples if errors.get(sample.image, NOT_FINITE) != NOT_FINITE)
    mended = {sample.image for sample in again if usable(sample)}
    if mended:
        logger.info("%d images that could not be read can be now", len(mended))
    done = consolidate(csv_path, batches, [sample.image for sample in samples], again=mended)
    if 0 < len(done) < len(batches):
        logger.info("resuming: %d of %d batches are done", len(done), len(batches))
    write_json(info_path(csv_path), {"identity": identity, "finished": False})


def answered(samples: Iterable[Sample]) -> dict[str, str]:
    """Digests of the images that a run answers for, and of the images with their questions; in whatever order."""
    pairs = sorted((sample.image, sample.question) for sample in samples)
    return {"images": _digest(image for image, _ in pairs), "questions": _digest(f"{i}\0{q}" for i, q in pairs)}


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def _check(
    csv_path: Path,
    identity: dict[str, Any],
    samples: Sequence[Sample],
    rows: dict[str, str],
    errors: dict[str, str],
) -> None:
    strangers = (rows.keys() | errors.keys()) - {sample.image for sample in samples}
    if strangers or not (rows or errors):  # `consolidate` names strangers
        return
    begun = read_info(csv_path).get("identity")
    if not isinstance(begun, dict):
        raise _other(csv_path, "rows without the metadata of the run that wrote them", "rows of this very run")
    for key, value in identity.items():
        if key not in _COMPARED_OTHERWISE and begun.get(key) != value:
            raise _other(csv_path, f"a run with {key} {begun.get(key)}", f"{key} {value}, as this run has")
    written = [sample for sample in samples if sample.image in rows or sample.image in errors]
    if _asks_otherwise(begun, identity, written):
        raise _other(csv_path, "answers to other questions", "those of the annotations at hand")
    for sample in samples:
        label = rows.get(sample.image, sample.label)
        if label != sample.label:
            found = f"label {shorten(label)} of {sample.image}"
            raise _other(csv_path, found, f"{shorten(sample.label)}, as in the annotations at hand")


def _asks_otherwise(begun: dict[str, Any], identity: dict[str, Any], written: Sequence[Sample]) -> bool:
    """Whether the run that was begun asked other questions, as far as its metadata tell."""
    if identity["questions"] and set(begun.get("questions", ())) - set(identity["questions"]):
        return True
    # Of a run over the same images, finished or not, and of a finished one over fewer, every question is known.
    then = begun.get("answered", {})
    return any(now["images"] == then.get("images") and now != then for now in (identity["answered"], answered(written)))


def _other(csv_path: Path, found: str, expected: str) -> InputError:
    remedy = "repeat the command that began this file, name another --output_csv, or --overwrite it"
    return InputError(csv_path, found=found, expected=expected, remedy=remedy)
