"""The result tables: accuracy by source, all metrics, false negatives by generator, detectors against each other.

A table is one registered function; its files, the terminal and its section of the report follow. Numbers are percent;
each table's `frame` has them as shares from 0 to 1.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dfbench.data.sources import Category
from dfbench.evaluation.evaluate import Evaluation, agent_numbers, evaluate
from dfbench.evaluation.metrics import METRICS, Metric, percent
from dfbench.predictions.probabilities import answers
from dfbench.predictions.reader import Detector
from dfbench.table import SUFFIXES, Table, safe_names, terminal_lines, write_csv, write_table

STAND_IN_NOTE = "stand-ins made for the demo; figures say nothing about DFBench"
STAND_IN_MARK = "*"

PAPER_COLUMN = "MoA-DF (paper)"
PAPER_ACCURACY = {
    ("class", "real"): 0.9841,
    ("category", Category.AI_EDITED): 0.9705,
    ("category", Category.AI_GENERATED): 0.9992,
}
"""Accuracy of MoA-DF after fine-tuning that the paper states (arXiv:2506.03007), by level and group."""

PAPER_AGENTS = 3
"""That its MoA-DF fuses."""

SECTIONS = ("headline", "sources", "categories", "generators", "scores", "agreement", "audit")
"""Those of the report that hold tables."""

Content = dict[str, Any]
"""The fields of a `Table` but its name and title; its notes may be left to `notes`."""


@dataclass(frozen=True)
class ResultTable:
    """What a table is called, where it stands, and how it comes about.

    name: of its files. title: `{n}` in it is the number of images. section: one of SECTIONS. is_needed: whether there
    is anything to show. has_intervals: its title says so where there are any. is_folded: in the report. in_terminal:
    printed by the programs. terms: (term, definition) for the glossary of the report.
    """

    name: str
    title: str
    section: str
    build: Callable[[Evaluation], Content]
    is_needed: Callable[[Evaluation], bool] = lambda evaluation: True
    has_intervals: bool = True
    is_folded: bool = False
    in_terminal: bool = False
    terms: tuple[tuple[str, str], ...] = ()

    def make(self, evaluation: Evaluation) -> Table:
        title = self.title.format(n=f"{evaluation.num_images:,}")
        title += " [95 % interval]" if self.has_intervals and evaluation.num_resamples else ""
        return Table(self.name, title, **{"notes": notes(evaluation), **self.build(evaluation)})


TABLES: dict[str, ResultTable] = {}
"""All tables by name, in the order of the terminal and of each section of the report."""


def register(name: str, title: str, section: str, **options):
    """Decorator that makes a function `Evaluation` -> `Content` a result table; options: see `ResultTable`."""

    def add(build: Callable[[Evaluation], Content]) -> Callable[[Evaluation], Content]:
        if name in TABLES or section not in SECTIONS:
            raise ValueError(f"the table {name} is registered already, or there is no section {section}")
        TABLES[name] = ResultTable(name, title, section, build, **options)
        return build

    return add


def make_tables(evaluation: Evaluation) -> dict[str, Table]:
    """{name: table} of every table that has something to show."""
    return {name: table.make(evaluation) for name, table in TABLES.items() if table.is_needed(evaluation)}


# ----------------------------------------------------------------------------------------------------------------
# the tables


@register("accuracy", "Accuracy, in %", "sources", has_intervals=False, in_terminal=True)
def accuracy_table(evaluation: Evaluation) -> Content:
    """Accuracy by source, category, class and over all; on the real test set, the paper's in a column of its own."""
    names, rows, values = list(evaluation.names), [], []
    if evaluation.is_real_test_set:
        names.append(PAPER_COLUMN)
    for (level, group), scores in evaluation.scores.groupby(["level", "group"], sort=False):
        first, shares = scores.iloc[0], list(scores["accuracy"])
        if evaluation.is_real_test_set:
            shares.append(PAPER_ACCURACY.get((level, group), np.nan))
        kind = first["category"] if level == "source" else level
        rows.append([kind, _group(evaluation, first), f"{first['n']:,}", *map(percent, shares)])
        values.append([level, group, first["category"], first["n"], *shares])
    # Columns are named by detectors, whatever those are called: nothing may look one up by its name.
    frame = pd.DataFrame(values, columns=["level", "group", "category", "n", *names])
    levels = [value[0] for value in values]
    sections = tuple(i for i in range(1, len(levels)) if levels[i] != levels[i - 1])
    header = ["level", "group", "n", *names]
    return {"header": header, "rows": rows, "frame": frame, "num_text_columns": 2, "sections": sections}


@register("summary", "All {n} images, in %", "headline", in_terminal=True)
def summary_table(evaluation: Evaluation) -> Content:
    """The metrics over all images: a row for each metric, a column for each detector."""
    overall = evaluation.overall
    metrics = _defined(overall)
    rows = [[metric.title, *(_cell(row, metric) for _, row in overall.iterrows())] for metric in metrics]
    columns = [metric.key + suffix for metric in metrics for suffix in ("", "_low", "_high")]
    frame = pd.DataFrame(
        [[column, *overall[column]] for column in columns], columns=["metric", *evaluation.names], dtype=object
    )
    return {"header": ["metric", *evaluation.names], "rows": rows, "frame": frame}


@register("by_source", "All metrics by source, in %", "sources", is_folded=True)
def source_table(evaluation: Evaluation) -> Content:
    return _score_table(evaluation, "source")


@register("by_category", "All metrics by category, in %", "categories")
def category_table(evaluation: Evaluation) -> Content:
    return _score_table(evaluation, "category")


@register("overall", "All metrics on real, fake and all images, in %", "categories")
def overall_table(evaluation: Evaluation) -> Content:
    return _score_table(evaluation, "class", "overall")


def _score_table(evaluation: Evaluation, *levels: str) -> Content:
    """Counts and all metrics of the groups of some levels, a row for each group and detector."""
    scores = evaluation.scores[evaluation.scores["level"].isin(levels)]
    metrics = _defined(scores)
    rows = [
        [_group(evaluation, row), row["detector"]]
        + [f"{row[count]:,}" for count in ("n", "count_A", "count_B")]
        + [_cell(row, metric) for metric in metrics]
        for _, row in scores.iterrows()
    ]
    header = ["group", "detector", "n", "predicted A", "predicted B", *(metric.title for metric in metrics)]
    return {"header": header, "rows": rows, "frame": scores, "num_text_columns": 2}


@register(
    "false_negative_rate",
    "False-negative rate: share of each generator's images predicted real, in %",
    "generators",
    is_needed=lambda evaluation: len(evaluation.false_negatives) > 0,
    terms=(("False-negative rate", "Share of a generator's images that are predicted real; the paper's evasion."),),
)
def false_negative_table(evaluation: Evaluation) -> Content:
    """The sources of fake images by the share that is predicted real, the highest first."""
    rate, rows = METRICS["accuracy"], []
    for _, shares in evaluation.false_negatives.groupby("rank"):
        first = shares.iloc[0]
        source = first["source"] + (STAND_IN_MARK if first["source"] in evaluation.stand_ins else "")
        cells = [_cell(first, rate, "mean"), *(_cell(row, rate, "false_negative_rate") for _, row in shares.iterrows())]
        rows.append([source, first["category"], str(first["rank"]), f"{first['n']:,}", *cells])
    mean = f"mean of {len(agent_numbers(evaluation.detectors))}"
    header = ["source", "category", "rank", "n", mean, *evaluation.judged]
    return {"header": header, "rows": rows, "frame": evaluation.false_negatives, "num_text_columns": 2}


@register(
    "reweighted",
    "All images under other weights, in %",
    "scores",
    is_needed=lambda evaluation: len(evaluation.reweighted) > 0,
)
def reweighted_table(evaluation: Evaluation) -> Content:
    """The metrics over all images once more, at other shares of real images."""
    frame = evaluation.reweighted
    metrics = _defined(frame)
    rows = [[row["weighting"], row["detector"], *(_cell(row, m) for m in metrics)] for _, row in frame.iterrows()]
    header = ["images weighted to", "detector", *(metric.title for metric in metrics)]
    return {"header": header, "rows": rows, "frame": frame, "num_text_columns": 2}


@register(
    "pairs",
    "Detectors compared, in % (Δ: first minus second)",
    "agreement",
    is_needed=lambda evaluation: len(evaluation.pairs) > 0,
    terms=(
        (
            "McNemar p",
            "Exact and two-sided: how likely a fair coin would split the images that just one of two detectors got "
            "right at least as unevenly.",
        ),
        (
            "Both wrong",
            "Share of images that neither detector of a pair gets right (double fault): what no fusion of the two can "
            "mend by voting.",
        ),
    ),
)
def pair_table(evaluation: Evaluation) -> Content:
    """Detectors two by two: agreement and diversity, McNemar's exact test, paired differences."""
    compared = [metric for metric in METRICS.values() if metric.is_compared]
    rows = [
        [row["first"], row["second"], percent(row["agreement"])]
        + ["–" if np.isnan(row["kappa"]) else f"{row['kappa']:.3f}", percent(row["double_fault"])]
        + [f"{row['only_first_right']:,}", f"{row['only_second_right']:,}", p_value(row["mcnemar_p"])]
        + [_cell(row, metric, f"{metric.key}_difference") for metric in compared]
        for _, row in evaluation.pairs.iterrows()
    ]
    header = ["first", "second", "agreement", "kappa", "both wrong", "only first right", "only second right"]
    header += ["McNemar p", *(f"Δ {metric.title}" for metric in compared)]
    return {"header": header, "rows": rows, "frame": evaluation.pairs, "num_text_columns": 2}


@register(
    "audit_correlations",
    "Rank correlation of P(fake) with size and format (-1 to 1)",
    "audit",
    is_needed=lambda evaluation: evaluation.audit is not None,
    has_intervals=False,
)
def correlation_table(evaluation: Evaluation) -> Content:
    """Rank correlations, and how many images the audit rests on."""
    audit = evaluation.audit
    rows = [
        [row.detector, row.metadata, *("–" if np.isnan(r) else f"{r:+.2f}" for r in (row.all, row.real, row.fake))]
        for row in audit.correlations.itertuples()
    ]
    lines = [
        f"{audit.num_pairs:,} pairs of a real and a fake image have one format and sides within a quarter of an octave"
    ]
    if audit.num_missing:
        lines.append(f"{audit.num_missing:,} images could not be read: their size is not known")
    header = ["detector", "metadata", "all images", "real", "fake"]
    frame = audit.correlations
    return {"header": header, "rows": rows, "frame": frame, "num_text_columns": 2, "notes": tuple(lines)}


def warnings(evaluation: Evaluation) -> list[str]:
    """What makes the figures doubtful."""
    lines = []
    if contradicting := evaluation.contradicting:
        found = ", ".join(f"{source} ({count:,} labelled {label})" for source, label, count in contradicting)
        lines.append(f"labels contradict the catalogue of sources: {found}")
    for detector in evaluation.detectors:
        if not detector.is_finished:
            lines.append(f"{detector.name}: its run has not finished")
    return lines


def notes(evaluation: Evaluation) -> tuple[str, ...]:
    """What a reader must know about the images and detectors behind the figures."""
    lines = [f"{STAND_IN_MARK} {STAND_IN_NOTE}"] if evaluation.stand_ins else []
    lines += warnings(evaluation)
    lines.append(f"{percent(evaluation.share_real)} % of the {evaluation.num_images:,} images are real")
    if evaluation.num_unlabelled:
        lines.append(f"images without a label, left out: {evaluation.num_unlabelled:,}")
    for detector, lost in zip(evaluation.detectors, evaluation.num_lost, strict=True):
        if lost:
            lines.append(f"{detector.name}: {lost:,} images left out that not every detector answered")
        if detector.num_errors:
            lines.append(f"{detector.name}: no answer for {detector.num_errors:,} images, which count nowhere")
        agents = detector.info.get("agents")
        if detector.is_fusion and isinstance(agents, list) and len(agents) < PAPER_AGENTS:
            lines.append(f"{detector.name}: fused from {len(agents)} agents, and the paper's from {PAPER_AGENTS}")
        for key, words in (("fitted_on", "fitted on "), ("metadata_baseline", "")):
            if isinstance(detector.info.get(key), str):
                lines.append(f"{detector.name}: {words}{detector.info[key]}")
    return tuple(lines)


def p_value(p: float) -> str:
    """Four decimals, or "<0.0001"."""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _defined(scores: pd.DataFrame) -> list[Metric]:
    """The metrics that have a number in some row."""
    return [metric for key, metric in METRICS.items() if scores[key].notna().any()]


def _cell(row: pd.Series, metric: Metric, column: str = "") -> str:
    column = column or metric.key
    return metric.show_with_interval(row[column], row[f"{column}_low"], row[f"{column}_high"])


def _group(evaluation: Evaluation, row: pd.Series) -> str:
    is_stand_in = row["level"] == "source" and row["group"] in evaluation.stand_ins
    return row["group"] + (STAND_IN_MARK if is_stand_in else "")


# ----------------------------------------------------------------------------------------------------------------
# where they go


def result_lines(evaluation: Evaluation) -> list[str]:
    """The tables of the terminal; the notes of the last one stand for all."""
    tables = [table.make(evaluation) for table in TABLES.values() if table.in_terminal and table.is_needed(evaluation)]
    short = {metric.title: metric.short_title for metric in METRICS.values() if metric.short_title}
    lines: list[str] = []
    for table in tables:
        rows = [[short.get(title, title), *cells] for title, *cells in table.rows]
        lines += ["", *terminal_lines(replace(table, rows=rows, notes=table.notes if table is tables[-1] else ()))]
    return lines[1:]


def accuracy_lines(detectors: Sequence[Detector]) -> list[str]:
    """The tables of some detectors as terminal lines; without any label, how often each answered A and B."""
    if all((detector.frame["label"] == "").all() for detector in detectors):
        return [
            f"{detector.name}: no labels; {(detector.frame['answer'] == 'A').sum():,} images predicted A (real), "
            f"{(detector.frame['answer'] == 'B').sum():,} predicted B (fake)"
            for detector in detectors
        ]
    return result_lines(evaluate(detectors))


def write_tables(evaluation: Evaluation, folder: Path) -> None:
    """Write every table into `folder` in three formats, and one CSV for each source into `folder/sources/`.

    The latter have each detector's answers on its images, as upstream's `process_results.py` splits its table. What an
    earlier run left there goes: a table of other detectors or sources must not pass for one of these.
    """
    written = [path for table in make_tables(evaluation).values() for path in write_table(table, folder)]
    written += _write_sources(evaluation, folder / "sources")
    old_tables = [path for name in TABLES for path in folder.glob(f"{name}.*") if path.suffix in SUFFIXES]
    old_sources = [path for path in (folder / "sources").glob("*.csv") if _is_source_csv(path)]
    for path in {*old_tables, *old_sources} - set(written):
        path.unlink()


def _is_source_csv(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(200).startswith("image,label,answer_")


def _write_sources(evaluation: Evaluation, folder: Path) -> Iterable[Path]:
    """One CSV for each source: image, label and each detector's answer and P(fake)."""
    folder.mkdir(exist_ok=True)
    predictions = evaluation.grouped.predictions
    frame = pd.DataFrame({"image": predictions.images, "label": predictions.labels})
    for i, name in enumerate(evaluation.names):
        frame[f"answer_{name}"] = answers(predictions.prob[:, i])
        frame[f"prob_B_{name}"] = predictions.prob[:, i, 1]
    groups = dict(list(frame.groupby(predictions.sources, sort=False)))
    names = zip(groups, safe_names(groups), strict=True)
    return [write_csv(folder / f"{name}.csv", groups[source]) for source, name in names]
