"""The per-image CSV: one row for each image that a detector answered.

`dfbench.predictions.writer` writes it batch by batch, `dfbench.predictions.reader` reads it.

Columns (`COLUMNS`), UTF-8, comma-separated, one header line:

- `image`: the key, the path in the annotation file (`DFBench/Kolors/000002.jpg`).
- `label`: A (real), B (fake), empty where unknown.
- `answer`: the letter of the larger probability; a tie is B.
- `logit_A`, `logit_B`: float32 logits of the two letters; both empty for a detector that has none.
- `prob_A`, `prob_B`: softmax of the two, in [0, 1], summing to 1.

An image without an answer has no row here: it stands in `<name>.errors.csv` (`image,error`). One that was answered with
reservations (a truncated file) stands in `<name>.warnings.csv` (`image,warning`) as well. `<name>.json` says how the
file came about. Numbers carry as many digits as float32 needs to be read back exactly.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfbench.errors import InputError
from dfbench.io import read_json_object
from dfbench.predictions.probabilities import answers, probabilities

COLUMNS = ("image", "label", "answer", "logit_A", "logit_B", "prob_A", "prob_B")
ERROR_COLUMNS = ("image", "error")
WARNING_COLUMNS = ("image", "warning")

SCORING, FUSION = "identity", "fusion"
"""Keys of the metadata by which a CSV is known as one that a scoring run wrote, or that was fused."""

NOT_FINITE = "logits are not finite"
"""The one error that is the model's and not the image file's."""


def check_input_csvs(csv_paths: Iterable[Path]) -> None:
    """Raise InputError where one of these is no file: at once, before anything that takes time is imported or read."""
    for path in csv_paths:
        if not path.is_file():
            what = "this is a folder" if path.is_dir() else "no such file"
            raise InputError(f"{path}: {what}. Run evaluate_logit.py first, or name another per-image CSV.")


def check_output_csv(csv_path: Path, inputs: Iterable[Path] = (), *, mark: str, overwrite: bool = False) -> None:
    """Raise InputError where a per-image CSV cannot be written to this path, or would take something else's place: one
    of the files that are read (`inputs`), a `.json` beside it that no run of ours wrote, and, unless `overwrite`, what
    another program wrote.

    mark: the program's own, SCORING or FUSION. Scoring goes on with rows whose metadata are missing, and looks at them.
    """
    if csv_path.suffix != ".csv" or csv_path.is_dir():
        what = "this is a folder" if csv_path.is_dir() else "this is no CSV"
        raise InputError(f"{csv_path}: {what}; expected a name that ends in .csv. Name another --output_csv.")
    read = {os.path.realpath(path) for path in inputs}
    for path in (csv_path, info_path(csv_path), errors_path(csv_path), warnings_path(csv_path)):
        if os.path.realpath(path) in read:
            raise InputError(f"{path}: this file is read as well and would be overwritten. Name another --output_csv.")
    try:
        csv_path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{csv_path.parent}: this folder cannot be made ({error.strerror}). Name another --output_csv."
        ) from None
    info = info_path(csv_path)
    keys = read_metadata(info).keys() if info.exists() else None
    if keys is not None and keys.isdisjoint((SCORING, FUSION, "detector")):
        raise InputError(
            f"{info}: no run wrote this file, and the metadata of {csv_path.name} would overwrite it. "
            f"Name another --output_csv."
        )
    is_foreign = mark not in keys if keys is not None else mark == FUSION and csv_path.exists()
    if is_foreign and not overwrite:
        raise taken(csv_path, f"its scores are those of {_writer(keys or ())}")


def _writer(keys: Collection[str]) -> str:
    return "a scoring run" if SCORING in keys else "a fusion" if FUSION in keys else "another program"


def taken(csv_path: Path, found: str) -> InputError:
    """The error of an output that holds results of something else, in words."""
    return InputError(f"{csv_path}: {found}. Name another --output_csv, or replace them with --overwrite.")


def errors_path(csv_path: Path) -> Path:
    """`results/a.csv` -> `results/a.errors.csv`."""
    return csv_path.with_name(f"{csv_path.stem}.errors.csv")


def warnings_path(csv_path: Path) -> Path:
    """`results/a.csv` -> `results/a.warnings.csv`."""
    return csv_path.with_name(f"{csv_path.stem}.warnings.csv")


def info_path(csv_path: Path) -> Path:
    """`results/a.csv` -> `results/a.json`."""
    return csv_path.with_suffix(".json")


def read_info(csv_path: Path) -> dict[str, Any]:
    """The metadata beside a per-image CSV, {} where there is none."""
    path = info_path(csv_path)
    return read_metadata(path) if path.exists() else {}


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a run. Raises InputError where the file holds anything but a JSON object."""
    return read_json_object(path, expected="the metadata of a run, a JSON object", remedy="move it away")


def format_float(value: float) -> str:
    """The shortest decimal that reads back as the same float32."""
    return str(np.float32(value))


def format_rows(images: Sequence[str], labels: Sequence[str], logits: np.ndarray) -> list[tuple[str, ...]]:
    """CSV rows of scored images: logits float32 (N, 2), columns A and B."""
    pairs = probabilities(logits)
    cells = [[format_float(value) for value in row] for row in np.concatenate([logits, pairs], axis=1)]
    return [(*row[:3], *row[3]) for row in zip(images, labels, answers(pairs), cells, strict=True)]
