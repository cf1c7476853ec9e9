"""The folder `tables/`: every table in three formats, and one CSV for each source.

`sources/<source>.csv` has the images of one source with every detector's answer, as upstream's `process_results.py`
splits its table.
"""

from collections.abc import Sequence
from pathlib import Path

from dfbench.evaluation.evaluate import Evaluation
from dfbench.predictions.probabilities import answers
from dfbench.table import SUFFIXES, Table, safe_names, write_csv, write_table

TABLE_NAMES = (
    *("summary", "accuracy", "by_source", "by_category", "overall", "evasion", "pairs", "reweighted"),
    "audit_correlations",
)
"""File names of all tables that `process_results.py` may write."""


def write_tables(evaluation: Evaluation, folder: Path, tables: Sequence[Table]) -> None:
    """Write the tables into `folder`, and one CSV for each source into `folder/sources/`.

    What an earlier run left there goes: a table of other detectors or sources must not pass for one of these.
    """
    written = [path for table in tables for path in write_table(table, folder)]
    written += _write_sources(evaluation, folder / "sources")
    old_tables = [path for name in TABLE_NAMES for path in folder.glob(f"{name}.*") if path.suffix in SUFFIXES]
    old_sources = [path for path in (folder / "sources").glob("*.csv") if _is_source_csv(path)]
    for path in {*old_tables, *old_sources} - set(written):
        path.unlink()


def _is_source_csv(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(200).startswith("image,label,answer_")


def _write_sources(evaluation: Evaluation, folder: Path) -> list[Path]:
    """One CSV for each source: image, label and each detector's answer and P(fake)."""
    folder.mkdir(exist_ok=True)
    joined = evaluation.sheet.joined
    frame = joined[["image", "label"]].copy()
    for i, name in enumerate(evaluation.names):
        frame[f"answer_{name}"] = answers(joined[[f"prob_A_{i}", f"prob_B_{i}"]].to_numpy())
        frame[f"prob_B_{name}"] = joined[f"prob_B_{i}"]
    groups = dict(list(frame.groupby(joined["source"], sort=False)))
    names = zip(groups, safe_names(groups), strict=True)
    return [write_csv(folder / f"{name}.csv", groups[source]) for source, name in names]
