"""Whole per-image CSVs (`dfbench.predictions.schema`) as `Detector`s: read ours and upstream's shapes, write."""

import csv
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dfbench.data.annotations import normalize_key
from dfbench.data.sources import LABELS
from dfbench.errors import InputError, plain_line, shorten
from dfbench.io import atomic_write, csv_cells, write_csv, write_json
from dfbench.predictions.probabilities import answers, probabilities
from dfbench.predictions.schema import COLUMNS, FUSION, SCORING, check_input_csvs, errors_path, info_path, read_info
from dfbench.predictions.writer import remove_results

UPSTREAM_QWEN = ("image_path", "predicted_reply", "true_label", "logprob_A", "logprob_B", "prob_A", "prob_B")
UPSTREAM_INTERNVL = ("imgname", "answer", "output", "prob_A", "prob_B")
"""Upstream's own two shapes. In the second, `answer` is the label."""

_PROB, _LOGITS = ["prob_A", "prob_B"], ["logit_A", "logit_B"]
_UPSTREAM_MISSING = ("N/A", "", "-1.0", "-1")
_SUM_TOLERANCE = 1.5e-4
"""How far prob_A + prob_B may be from 1: 1e-4 where both are rounded to four digits, as in upstream's Qwen script."""

_LOGIT_TOLERANCE = 1e-3
"""How far prob_A may be from the softmax of logits that another program rounded."""

_FLOAT32_ROUNDING = 1.5e-7
"""How far two float32 numbers that sum to 1 are from it, as decimals."""

_LONGEST_NAME = 80
_LONGEST_LINE = 1 << 16

_FAST_TYPES = {"image": str, "label": str, "answer": str} | dict.fromkeys(COLUMNS[3:], np.float32)


@dataclass
class Detector:
    """One detector's answers.

    frame: columns image, label, answer (str), logit_A, logit_B (float32, NaN where there are none), prob_A, prob_B
        (float32); one row an image, in file order.
    info: the metadata JSON, {} where there is none.
    num_errors: images without an answer (rows of the errors CSV, or missing values in upstream's shapes).
    """

    name: str
    frame: pd.DataFrame
    path: Path | None = None
    info: dict[str, Any] = field(default_factory=dict)
    num_errors: int = 0

    def __str__(self) -> str:
        """What messages call it: its file, or its name where it comes from none."""
        return str(self.path or self.name)

    @property
    def is_fusion(self) -> bool:
        return FUSION in self.info

    @property
    def is_finished(self) -> bool:
        """False where the run that writes it was stopped or is under way; of a fusion, that of one of its agents."""
        return self.info.get("finished") is not False

    @property
    def is_early_exited(self) -> bool:
        """Whether it ran with `--only_undecided`: it answered the images alone that the others leave open."""
        return bool(self.info.get("only_undecided"))


# ----------------------------------------------------------------------------------------------------------------
# reading


def read_detector(path: Path | str) -> Detector:
    """Read one per-image CSV: ours, or either of upstream's two, told apart by the column names.

    Raises InputError, naming file, row and column, for missing columns, no rows, duplicate keys, a label or answer
    other than A or B, a value that is no probability, pairs that do not sum to 1 or contradict the answer, and a file
    that was cut off.
    """
    path = Path(path)
    check_input_csvs([path])
    info = read_info(path)
    _refuse_cut(path, info)
    try:
        frame, num_errors = _parse(_read_table(path, _FAST_TYPES), path)
    except (ValueError, InputError):
        # Four times slower, but the cells are there as they stand in the file, to be quoted.
        frame, num_errors = _parse(_read_table(path, str), path)
    rows = info.get("rows")
    if _is_ours(info) and type(rows) is int and rows != len(frame):
        raise InputError(
            f"{path}: the file has {len(frame):,} rows, and by {info_path(path).name} {rows:,} were written. Repeat "
            f"the command that wrote it or, if they were taken out on purpose, correct `rows` there."
        )
    return Detector(plain_line(path.stem), frame, path, info, num_errors)


def read_detectors(paths: Sequence[Path | str | Detector]) -> list[Detector]:
    """Several per-image CSVs under different names: `detector` in the metadata, or else the file's.

    Where two share a name, that of the folder is put before it. What is a `Detector` already stays as it is. Raises
    InputError as `read_detector` does, and where a file is named twice.
    """
    detectors, seen = [], set()
    for path in paths:
        if isinstance(path, Detector):
            detectors.append(path)
            continue
        if (place := os.path.realpath(path)) in seen:
            raise InputError(f"{path}: the same file is named twice. Name it once.")
        seen.add(place)
        detector = read_detector(path)
        name = detector.info.get("detector")
        detector.name = (plain_line(name) if isinstance(name, str) else "")[:_LONGEST_NAME] or detector.name
        detectors.append(detector)
    names = [detector.name for detector in detectors]
    for detector in detectors:
        if names.count(detector.name) > 1 and detector.path:
            detector.name = plain_line(f"{detector.path.resolve().parent.name}/{detector.name}")
    for i, detector in enumerate(detectors):
        taken = {other.name for other in detectors[:i]}
        if detector.name in taken:
            detector.name = plain_line(str(detector))
        if detector.name in taken:
            detector.name = f"{detector.name} ({i + 1})"
    return detectors


def _is_ours(info: dict[str, Any]) -> bool:
    return SCORING in info or FUSION in info


def _refuse_cut(path: Path, info: dict[str, Any]) -> None:
    """Raise InputError where a file ends inside its last row.

    Our programs end each row with a line break. Other files often lack the last one: of these, a row with too few
    cells was cut, and one whose last cell, a probability, has fewer digits than the other and does not complete it
    to 1, as closely as that one is rounded.
    """
    with path.open("rb") as file:
        header = csv_cells(file.readline().decode("utf-8-sig", "replace").rstrip("\r\n"))
        file.seek(max(0, path.stat().st_size - _LONGEST_LINE))
        line = re.split(rb"[\r\n]", file.read())[-1].decode(errors="replace")
    if not line:
        return
    cells = csv_cells(line)
    if _is_ours(info) or len(cells) < len(header) or (header[-1:] in (_PROB[:1], _PROB[1:]) and _is_cut(header, cells)):
        raise InputError(f"{path}: the last row ends in {shorten(line[-20:])}: the file was cut off. Write it again.")


def _is_cut(header: list[str], cells: list[str]) -> bool:
    """Whether the last cell, one of the two probabilities, seems to lack digits."""
    row = dict(zip(header, cells, strict=False))
    try:
        last, other = (Decimal(row[column].strip()) for column in (header[-1], _PROB[header[-1] == _PROB[0]]))
        if not (0 <= last <= 1 and 0 <= other <= 1):
            return False
    except (KeyError, ArithmeticError):  # what is no number is named when the rows are read
        return False
    _, digits, exponent = other.as_tuple()
    rounded = max(10.0**exponent, 10.0 ** -len(digits), _FLOAT32_ROUNDING)
    return last.as_tuple().exponent > exponent and abs(float(last + other) - 1) > 1.5 * rounded


def _read_table(path: Path, dtype: type | dict[str, type]) -> pd.DataFrame:
    """The CSV, indexed by line number (the header is line 1). Raises ValueError where a cell does not fit `dtype`."""
    if b"\0" in path.read_bytes():  # pandas would cut the cell off there
        raise InputError(f"{path}: there are zero bytes in it, as a crash of the machine leaves them. Write it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # more cells in every row than columns
            table = pd.read_csv(
                path,
                dtype=dtype,
                keep_default_na=False,
                na_values={} if dtype is str else {column: [""] for column in _LOGITS},
                encoding="utf-8-sig",
                skip_blank_lines=False,
                index_col=False,
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: this is no CSV with {','.join(COLUMNS)} ({reason}). Write it again.") from None
    table.index = pd.RangeIndex(2, len(table) + 2)
    if table.empty:
        raise InputError(f"{path}: the file has no rows. Run evaluate_logit.py first.")
    return table


def _parse(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, int]:
    """(image, label, answer, logits and probabilities; number of images without an answer) out of any known shape."""
    columns = set(table.columns)
    if columns >= set(COLUMNS):
        return _from_ours(table, path), _count_errors(errors_path(path))
    if columns >= set(UPSTREAM_QWEN):
        return _from_upstream(table.astype(str), path, image="image_path", label="true_label")
    if columns >= set(UPSTREAM_INTERNVL):
        return _from_upstream(table.astype(str), path, image="imgname", label="answer")
    raise InputError(
        f"{path}: the columns are {shorten(','.join(table.columns))}; expected {','.join(COLUMNS)}. Write this file "
        f"with evaluate_logit.py, or rename its columns."
    )


def _from_ours(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    frame = pd.DataFrame(
        {"image": _keys(table["image"], path), "label": _letters(table["label"], path, empty_allowed=True)}
    )
    frame["answer"] = _letters(table["answer"], path)
    for column in _LOGITS:
        frame[column] = _numbers(table[column], path, empty_allowed=True)
    _add_probabilities(frame, table, path)
    row = _first(frame["answer"] != answers(frame[_PROB].to_numpy()))
    if row:
        pair = f"prob_A {table['prob_A'][row]} and prob_B {table['prob_B'][row]}"
        expected = "the letter of the larger one, B for a tie"
        raise _bad_cell(path, row, "answer", f"{frame['answer'][row]} with {pair}", expected)
    _check_logits(frame, path)
    return frame.reset_index(drop=True)


def _check_logits(frame: pd.DataFrame, path: Path) -> None:
    """Logits and probabilities say the same, or there are no logits."""
    logits = frame[_LOGITS].to_numpy()
    given = np.isfinite(logits)
    off = np.abs(probabilities(logits)[:, 0] - frame["prob_A"].to_numpy(np.float64)) > _LOGIT_TOLERANCE
    wrong = (given.all(axis=1) & off) | (given.any(axis=1) != given.all(axis=1))
    row = _first(pd.Series(wrong, frame.index))
    if row:
        found = f"{frame['logit_A'][row]} and {frame['logit_B'][row]} with prob_A {frame['prob_A'][row]}"
        raise _bad_cell(path, row, "logit_A, logit_B", found, "two logits whose softmax is prob_A, or two empty cells")


def _from_upstream(table: pd.DataFrame, path: Path, *, image: str, label: str) -> tuple[pd.DataFrame, int]:
    """Either of upstream's shapes as ours. Rows without an answer (three spellings, or 0.0 twice) are only counted."""
    pair = table[_PROB].apply(lambda column: column.str.strip())
    zeros = pair.apply(pd.to_numeric, errors="coerce").eq(0).all(axis=1)
    missing = pair.isin(_UPSTREAM_MISSING).any(axis=1) | zeros
    table = table[~missing]
    if table.empty:
        raise InputError(f"{path}: no row has probabilities. Score the images again.")
    frame = pd.DataFrame(
        {"image": _keys(table[image], path), "label": _letters(table[label], path, empty_allowed=True), "answer": ""}
    )
    frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
    _add_probabilities(frame, table, path)
    frame["answer"] = answers(frame[_PROB].to_numpy())
    return frame.reset_index(drop=True), int(missing.sum())


def _add_probabilities(frame: pd.DataFrame, table: pd.DataFrame, path: Path) -> None:
    for column in _PROB:
        frame[column] = _numbers(table[column], path)
        row = _first(~frame[column].between(0, 1))
        if row:
            raise _bad_cell(path, row, column, table[column][row], "a probability from 0 to 1")
    row = _first((frame["prob_A"].astype(np.float64) + frame["prob_B"] - 1).abs() > _SUM_TOLERANCE)
    if row:
        found = f"{table['prob_A'][row]} and {table['prob_B'][row]}"
        raise _bad_cell(path, row, "prob_A, prob_B", found, "two probabilities that sum to 1")


def _keys(column: pd.Series, path: Path) -> pd.Series:
    keys = pd.Series([normalize_key(key) for key in column], column.index)
    row = _first(keys == "")
    if row:
        raise _bad_cell(path, row, column.name, "empty", "the image's path as in the annotations")
    row = _first(keys.duplicated())
    if row:
        first = _first(keys == keys[row])
        raise _bad_cell(path, row, column.name, f"{keys[row]} again (first in row {first})", "one row an image")
    return keys


def _letters(column: pd.Series, path: Path, *, empty_allowed: bool = False) -> pd.Series:
    allowed = LABELS + (("",) if empty_allowed else ())
    if column.isin(allowed).all():
        return column
    letters = column.str.strip()
    row = _first(~letters.isin(allowed))
    if row:
        raise _bad_cell(path, row, column.name, shorten(column[row]), "A (real) or B (fake)")
    return letters


def _numbers(column: pd.Series, path: Path, *, empty_allowed: bool = False) -> pd.Series:
    """Finite float32 numbers; NaN for empty cells where they are allowed."""
    is_text = column.dtype == object
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float32) if is_text else column
    wrong = ~np.isfinite(numbers)
    if empty_allowed:
        wrong &= (column.str.strip() != "") if is_text else ~np.isnan(column)
    row = _first(wrong)
    if row:
        raise _bad_cell(path, row, column.name, shorten(column[row]), "a number")
    return numbers


def _first(wrong: pd.Series) -> int:
    """The number of the first row that is wrong; 0, which is no row's number, where none is."""
    return int(wrong.idxmax()) if wrong.any() else 0


def _bad_cell(path: Path, row: int, column: object, found: str, expected: str) -> InputError:
    return InputError(
        f"{path}, row {row}: {column} is {found}; expected {expected}. Correct this row or score the image again."
    )


def _count_errors(path: Path) -> int:
    if not path.is_file():
        return 0
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            return max(0, sum(1 for _ in csv.reader(file)) - 1)
    except csv.Error as error:
        raise InputError(f"{path}: this is no CSV of images and their errors ({error}). Move it away.") from None


# ----------------------------------------------------------------------------------------------------------------
# writing


def write_detector(path: Path, detector: Detector, *, clear: bool = False) -> None:
    """Write a per-image CSV and its metadata, each put in place at once. Columns beyond COLUMNS come after them.

    clear: delete what else lies beside a CSV that stood there. Numbers are written as `io.write_csv` says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    extra = [column for column in detector.frame if column not in COLUMNS]
    with atomic_write(path) as temporary:
        write_csv(temporary, detector.frame[[*COLUMNS, *extra]])
        if clear:
            remove_results(path)
        # Before the CSV: rows without metadata could be anybody's, and would not be replaced again.
        write_json(info_path(path), detector.info)
