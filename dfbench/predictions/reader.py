"""Whole per-image CSVs (`dfbench.predictions.schema`) as tables: read ours and upstream's shapes, join, write."""

import csv
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dfbench.data.annotations import normalize_key
from dfbench.data.sources import LABELS, Category, category_of, source_of
from dfbench.errors import InputError, shorten
from dfbench.io import write_csv, write_json
from dfbench.predictions.probabilities import answers
from dfbench.predictions.schema import COLUMNS, errors_path, info_path, read_info

UPSTREAM_QWEN = ("image_path", "predicted_reply", "true_label", "logprob_A", "logprob_B", "prob_A", "prob_B")
UPSTREAM_INTERNVL = ("imgname", "answer", "output", "prob_A", "prob_B")
"""Upstream's own two shapes. In the second, `answer` is the label."""

_UPSTREAM_MISSING = ("N/A", "", "-1.0", "-1")
_SUM_TOLERANCE = 1.5e-4
"""How far prob_A + prob_B may be from 1: 1e-4 where both are rounded to four digits, as in upstream's Qwen script."""

_LOGIT_TOLERANCE = 1e-3
"""How far prob_A may be from the softmax of logits that another program rounded."""

_LONGEST_NAME = 80

_FAST_TYPES = {"image": str, "label": str, "answer": str} | dict.fromkeys(COLUMNS[3:], np.float32)


@dataclass
class Detector:
    """One detector's answers.

    frame: columns image, label, answer (str), logit_A, logit_B (float32, NaN where there are none), prob_A, prob_B
        (float32),
        source, category (str); one row an image, in file order.
    info: the metadata JSON, {} where there is none.
    num_errors: images without an answer (rows of the errors CSV, or missing values in upstream's shapes).
    """

    name: str
    frame: pd.DataFrame
    path: Path | None = None
    info: dict[str, Any] = field(default_factory=dict)
    num_errors: int = 0


# ----------------------------------------------------------------------------------------------------------------
# reading


def read_detector(path: Path | str) -> Detector:
    """Read one per-image CSV: ours, or either of upstream's two, told apart by the column names.

    Raises InputError, naming file, row and column, for missing columns, no rows, duplicate keys, a label or answer
    other than A or B, a value that is no probability, and pairs that do not sum to 1 or contradict the answer.
    """
    path = Path(path)
    try:
        frame, num_errors = _parse(_read_table(path, _FAST_TYPES), path)
    except (ValueError, InputError):
        # Four times slower, but the cells are there as they stand in the file, to be quoted.
        frame, num_errors = _parse(_read_table(path, str), path)
    frame["source"] = sources_of(frame["image"])
    frame["category"] = categories_of(frame["source"], frame["label"])
    return Detector(path.stem, frame, path, read_info(path), num_errors)


def read_detectors(paths: Sequence[Path | str]) -> list[Detector]:
    """Several per-image CSVs under different names: `detector` in the metadata, or else the file's.

    Where two share a name, that of the folder is put before it.

    Raises InputError as `read_detector` does, and where a file is named twice.
    """
    paths = [Path(path) for path in paths]
    for i, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:i]]:
            raise InputError(path, found="the same file twice", expected="different files", remedy="name it once")
    detectors = [read_detector(path) for path in paths]
    for detector in detectors:
        name = detector.info.get("detector")
        detector.name = name.strip()[:_LONGEST_NAME] if isinstance(name, str) and name.strip() else detector.name
    stems = [detector.name for detector in detectors]
    for detector in detectors:
        if stems.count(detector.name) > 1:
            detector.name = f"{detector.path.resolve().parent.name}/{detector.name}"
    for i, detector in enumerate(detectors):
        if detector.name in [other.name for other in detectors[:i]]:
            detector.name = str(detector.path)
    return detectors


def sources_of(images: pd.Series) -> list[str]:
    """The source of each image; only one look for each folder."""
    folders = [image.rpartition("/")[0] for image in images]
    known = {folder: source_of(f"{folder}/x" if folder else "x") for folder in set(folders)}
    return [known[folder] for folder in folders]


def categories_of(sources: Iterable[str], labels: Iterable[str]) -> list[Category]:
    """The category of each image out of its source and label; only one look for each pair of the two."""
    pairs = list(zip(sources, labels, strict=True))
    known = {pair: category_of(*pair) for pair in set(pairs)}
    return [known[pair] for pair in pairs]


def _read_table(path: Path, dtype: type | dict[str, type]) -> pd.DataFrame:
    """The CSV, indexed by line number (the header is line 1). Raises ValueError where a cell does not fit `dtype`."""
    if path.is_dir() or not path.exists():
        what = "a folder" if path.is_dir() else "no such file"
        raise InputError(
            path, found=what, expected="a per-image CSV", remedy="run evaluate_logit.py first or name another file"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # more cells in every row than columns
            table = pd.read_csv(
                path,
                dtype=dtype,
                keep_default_na=False,
                na_values={} if dtype is str else {"logit_A": [""], "logit_B": [""]},
                encoding="utf-8-sig",
                skip_blank_lines=False,
                index_col=False,
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            path, found=reason, expected=f"a CSV with {','.join(COLUMNS)}", remedy="write it again"
        ) from None
    table.index = pd.RangeIndex(2, len(table) + 2)
    if table.empty:
        raise InputError(path, found="no rows", expected="one row an image", remedy="run evaluate_logit.py first")
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
        path,
        found=f"the columns {shorten(','.join(table.columns))}",
        expected=",".join(COLUMNS),
        remedy="write this file with evaluate_logit.py, or rename its columns",
    )


def _from_ours(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    frame = pd.DataFrame(
        {"image": _keys(table["image"], path), "label": _letters(table["label"], path, empty_allowed=True)}
    )
    frame["answer"] = _letters(table["answer"], path)
    for column in ("logit_A", "logit_B"):
        frame[column] = _numbers(table[column], path, empty_allowed=True)
    _add_probabilities(frame, table, path)
    wrong = frame["answer"] != answers(frame[["prob_A", "prob_B"]].to_numpy())
    if wrong.any():
        row = wrong.idxmax()
        pair = f"prob_A {table['prob_A'][row]}, prob_B {table['prob_B'][row]}"
        raise _bad_cell(
            path, row, "answer", f"{frame['answer'][row]} with {pair}", "the letter of the larger one, B for a tie"
        )
    _check_logits(frame, path)
    return frame.reset_index(drop=True)


def _check_logits(frame: pd.DataFrame, path: Path) -> None:
    """Logits and probabilities say the same, or there are no logits."""
    logits = frame[["logit_A", "logit_B"]].to_numpy(np.float64)
    given = np.isfinite(logits)
    prob_a = 1 / (1 + np.exp(np.clip(logits[:, 1] - logits[:, 0], -500, 500)))
    off = given.all(axis=1) & (np.abs(prob_a - frame["prob_A"].to_numpy(np.float64)) > _LOGIT_TOLERANCE)
    wrong = pd.Series(off | (given.any(axis=1) != given.all(axis=1)), frame.index)
    if wrong.any():
        row = wrong.idxmax()
        found = f"{frame['logit_A'][row]} and {frame['logit_B'][row]} with prob_A {frame['prob_A'][row]}"
        raise _bad_cell(path, row, "logit_A, logit_B", found, "two logits whose softmax is prob_A, or two empty cells")


def _from_upstream(table: pd.DataFrame, path: Path, *, image: str, label: str) -> tuple[pd.DataFrame, int]:
    """Either of upstream's shapes as ours. Rows without an answer (three spellings, or 0.0 twice) are only counted."""
    pair = table[["prob_A", "prob_B"]].apply(lambda column: column.str.strip())
    missing = pair.isin(_UPSTREAM_MISSING).any(axis=1)
    zeros = pair.apply(pd.to_numeric, errors="coerce").eq(0).all(axis=1)
    table = table[~(missing | zeros)]
    if table.empty:
        raise InputError(
            path, found="no row with probabilities", expected="one row an image", remedy="score the images again"
        )
    frame = pd.DataFrame(
        {"image": _keys(table[image], path), "label": _letters(table[label], path, empty_allowed=True)}
    )
    frame["answer"] = ""
    frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
    _add_probabilities(frame, table, path)
    frame["answer"] = answers(frame[["prob_A", "prob_B"]].to_numpy())
    return frame.reset_index(drop=True), int((missing | zeros).sum())


def _add_probabilities(frame: pd.DataFrame, table: pd.DataFrame, path: Path) -> None:
    for column in ("prob_A", "prob_B"):
        frame[column] = _numbers(table[column], path)
        outside = ~frame[column].between(0, 1)
        if outside.any():
            row = outside.idxmax()
            raise _bad_cell(path, row, column, table[column][row], "a probability from 0 to 1")
    off = (frame["prob_A"].astype(np.float64) + frame["prob_B"] - 1).abs() > _SUM_TOLERANCE
    if off.any():
        row = off.idxmax()
        found = f"{table['prob_A'][row]} and {table['prob_B'][row]}"
        raise _bad_cell(path, row, "prob_A, prob_B", found, "two probabilities that sum to 1")


def _keys(column: pd.Series, path: Path) -> pd.Series:
    keys = pd.Series([normalize_key(key) for key in column], column.index, name=column.name)
    empty = keys == ""
    if empty.any():
        raise _bad_cell(path, empty.idxmax(), str(column.name), "no image", "the image's path as in the annotations")
    twice = keys.duplicated()
    if twice.any():
        row = twice.idxmax()
        first = (keys == keys[row]).idxmax()
        raise _bad_cell(path, row, str(column.name), f"{keys[row]} again (first in row {first})", "one row an image")
    return keys


def _letters(column: pd.Series, path: Path, *, empty_allowed: bool = False) -> pd.Series:
    allowed = LABELS + (("",) if empty_allowed else ())
    if column.isin(allowed).all():
        return column
    letters = column.str.strip()
    wrong = ~letters.isin(allowed)
    if wrong.any():
        raise _bad_cell(path, wrong.idxmax(), str(column.name), shorten(column[wrong.idxmax()]), "A (real) or B (fake)")
    return letters


def _numbers(column: pd.Series, path: Path, *, empty_allowed: bool = False) -> pd.Series:
    """Finite float32 numbers; NaN for empty cells where they are allowed."""
    is_text = column.dtype == object
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float32) if is_text else column
    wrong = ~np.isfinite(numbers)
    if empty_allowed:
        wrong &= (column.str.strip() != "") if is_text else ~np.isnan(column)
    if wrong.any():
        raise _bad_cell(path, wrong.idxmax(), str(column.name), shorten(column[wrong.idxmax()]), "a number")
    return numbers


def _bad_cell(path: Path, row: int, column: str, found: str, expected: str) -> InputError:
    return InputError(
        f"{path}: row {row}, column {column}",
        found=found,
        expected=expected,
        remedy="correct this row or score the image again",
    )


def _count_errors(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return max(0, sum(1 for _ in csv.reader(file)) - 1)


def join(detectors: Sequence[Detector], *, partial: bool = False) -> pd.DataFrame:
    """The images that every detector answered: columns image, label, source, category and `logit_A_i`, `logit_B_i`,
    `prob_A_i`, `prob_B_i` (float32, i counting the detectors from 0), in the first one's order.

    Labels are taken from whichever file has them. Raises InputError where files disagree about a label, share no image,
    or (unless `partial`) where one lacks images that another has.
    """
    keys = [pd.Index(detector.frame["image"]) for detector in detectors]
    common, union = keys[0], keys[0]
    for key in keys[1:]:
        common, union = common.intersection(key, sort=False), union.union(key, sort=False)
    names = [str(detector.path or detector.name) for detector in detectors]
    if len(common) == 0:
        raise InputError(
            ", ".join(names),
            found="no image in common",
            expected="the same images",
            remedy="score the same annotations",
        )
    if len(common) < len(union) and not partial:
        lost = "; ".join(
            f"{name} lacks {len(union) - len(key)}"
            for name, key in zip(names, keys, strict=True)
            if len(key) < len(union)
        )
        example = next(image for image in union if image not in set(common))
        raise InputError(
            ", ".join(names),
            found=f"different images ({lost} of {len(union)}, such as {example})",
            expected="the same images in each",
            remedy="finish the scoring runs, or join what is common with --partial",
        )
    order = keys[0][keys[0].isin(common)]
    joined = pd.DataFrame({"image": order})
    labels = np.full(len(order), "", dtype=object)
    for i, detector in enumerate(detectors):
        rows = detector.frame.set_index("image").loc[order]
        theirs = rows["label"].to_numpy(dtype=object)
        clash = (labels != "") & (theirs != "") & (labels != theirs)
        if clash.any():
            at = int(clash.argmax())
            raise InputError(
                f"{names[i]}: image {order[at]}",
                found=f"label {theirs[at]}, but {labels[at]} in an earlier file",
                expected="one label an image",
                remedy="score the same annotations",
            )
        labels = np.where(labels == "", theirs, labels)
        for column in COLUMNS[3:]:
            joined[f"{column}_{i}"] = rows[column].to_numpy()
    joined.insert(1, "label", labels)
    joined.insert(2, "source", sources_of(joined["image"]))
    joined.insert(3, "category", categories_of(joined["source"], labels))
    return joined


# ----------------------------------------------------------------------------------------------------------------
# writing


def write_detector(path: Path, frame: pd.DataFrame, info: dict[str, Any], *, extra: Sequence[str] = ()) -> None:
    """Write a per-image CSV (the columns COLUMNS of `frame`, then `extra`) and its metadata, each put in place at once.

    Numbers are written as `files.write_csv` says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, frame[[*COLUMNS, *extra]])
    write_json(info_path(path), info)
