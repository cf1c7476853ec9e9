"""The result tables: accuracy by source, all metrics, evasion of the generators, detectors against each other.

Numbers are percent; each table's `frame` has them as shares from 0 to 1.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from dfbench.data.sources import Category
from dfbench.evaluation.evaluate import Evaluation, agent_numbers, evaluate
from dfbench.evaluation.frames import COMPARED_METRICS
from dfbench.predictions.reader import Detector
from dfbench.table import Table, terminal_lines

STAND_IN_NOTE = "stand-ins made for the demo; figures say nothing about DFBench"
STAND_IN_MARK = "*"

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_fake": "F1 (fake)",
    "f1_real": "F1 (real)",
    "f1_macro": "F1 (macro)",
    "auroc": "AUROC",
    "auroc_vs_other_class": "AUROC vs other class",
    "average_precision": "average precision",
    "eer": "EER",
    "tpr_at_fpr_1": "TPR at 1 % FPR",
    "tpr_at_fpr_5": "TPR at 5 % FPR",
    "brier": "Brier score",
    "ece": "calibration error",
}
"""What tables call each of `answer_sheet.METRICS`, in the order of the tables."""

PAPER_COLUMN = "MoA-DF (paper)"
PAPER_ACCURACY = {
    ("class", "real"): 0.9841,
    ("category", Category.AI_EDITED): 0.9705,
    ("category", Category.AI_GENERATED): 0.9992,
}
"""Accuracy of MoA-DF after fine-tuning that the paper states (arXiv:2506.03007), by level and group."""


_SHORT_TITLES = {
    "balanced accuracy": "balanced acc.",
    "average precision": "avg. precision",
    "calibration error": "calibration err.",
}
"""So that four detectors with their intervals fit into the width of a terminal."""


def percent(share: float) -> str:
    """0.98414 -> "98.41"; an en dash where the number is not defined."""
    return "–" if pd.isna(share) else f"{100 * share:.2f}"


def with_interval(share: float, low: float, high: float) -> str:
    """ "98.41 [98.20,98.62]"; only the number where it has no interval."""
    if pd.isna(low):
        return percent(share)
    low_text, high_text = (percent(bound).replace("100.00", "100") for bound in (low, high))  # four fit a terminal
    return f"{percent(share)} [{low_text},{high_text}]"


def all_tables(evaluation: Evaluation) -> list[Table]:
    """Every table that has something to show, in the order of the report."""
    tables = [
        summary_table(evaluation),
        accuracy_table(evaluation),
        score_table(evaluation, ["source"], "by_source", "All metrics by source, in %"),
        score_table(evaluation, ["category"], "by_category", "All metrics by category, in %"),
        score_table(evaluation, ["class", "overall"], "overall", "All metrics on real, fake and all images, in %"),
        evasion_table(evaluation),
        pair_table(evaluation),
        reweighted_table(evaluation),
    ]
    return [table for table in tables if table.rows]


def accuracy_table(evaluation: Evaluation) -> Table:
    """Accuracy by source, category, class and over all; on the real test set, the paper's in a column of its own."""
    names, heads, shares = list(evaluation.names), [], []
    for (level, group), scores in evaluation.scores.groupby(["level", "group"], sort=False):
        heads.append([level, group, scores["category"].iloc[0], scores["n"].iloc[0]])
        shares.append(list(scores["accuracy"]))
        if evaluation.is_real_test_set:
            shares[-1].append(PAPER_ACCURACY.get((level, group), float("nan")))
    names += [PAPER_COLUMN] if evaluation.is_real_test_set else []
    rows = [
        [
            category if level == "source" else level,
            group + _mark(evaluation, level, group),
            f"{n:,}",
            *map(percent, row),
        ]
        for (level, group, category, n), row in zip(heads, shares, strict=True)
    ]
    # Columns are named by detectors, whatever those are called: nothing may look one up by its name.
    frame = pd.DataFrame(
        [head + row for head, row in zip(heads, shares, strict=True)],
        columns=["level", "group", "category", "n", *names],
    )
    sections = tuple(i for i in range(1, len(heads)) if heads[i][0] != heads[i - 1][0])
    return Table(
        "accuracy", "Accuracy, in %", ["level", "group", "n", *names], rows, notes(evaluation), 2, sections, frame
    )


def summary_table(evaluation: Evaluation) -> Table:
    """The metrics over all images: a row for each metric, a column for each detector."""
    overall = evaluation.scores[evaluation.scores["level"] == "overall"]
    metrics = [metric for metric in TITLES if overall[metric].notna().any()]
    rows = [[TITLES[metric], *(_cell(row, metric) for _, row in overall.iterrows())] for metric in metrics]
    columns = [metric + suffix for metric in metrics for suffix in ("", "_low", "_high")]
    frame = pd.DataFrame(
        [[column, *overall[column]] for column in columns], columns=["metric", *evaluation.names], dtype=object
    )
    title = f"All {evaluation.num_images:,} images, in %" + _interval_title(evaluation)
    return Table("summary", title, ["metric", *evaluation.names], rows, notes(evaluation), 1, (), frame)


def score_table(evaluation: Evaluation, levels: Sequence[str], name: str, title: str) -> Table:
    """Counts and all metrics of the groups of some levels, a row for each group and detector."""
    scores = evaluation.scores[evaluation.scores["level"].isin(levels)]
    metrics = [metric for metric in TITLES if scores[metric].notna().any()]
    rows = [
        [row["group"] + _mark(evaluation, row["level"], row["group"]), row["detector"]]
        + [f"{row[count]:,}" for count in ("n", "count_A", "count_B")]
        + [_cell(row, metric) for metric in metrics]
        for _, row in scores.iterrows()
    ]
    header = ["group", "detector", "n", "called A", "called B", *(TITLES[metric] for metric in metrics)]
    return Table(name, title + _interval_title(evaluation), header, rows, notes(evaluation), 2, (), scores)


def evasion_table(evaluation: Evaluation) -> Table:
    """The sources of fake images by the share that is called real, the most evasive first."""
    rows = []
    for _, shares in evaluation.evasion.groupby("rank") if len(evaluation.evasion) else ():
        first = shares.iloc[0]
        head = [first["source"] + _mark(evaluation, "source", first["source"]), first["category"], str(first["rank"])]
        cells = [_cell(first, "mean"), *(_cell(row, "evasion") for _, row in shares.iterrows())]
        rows.append([*head, f"{first['n']:,}", *cells])
    mean = f"mean of {len(agent_numbers(evaluation.detectors))}"
    header = ["source", "category", "rank", "n", mean, *evaluation.judged]
    title = "Evasion: share of each generator's images called real, in %" + _interval_title(evaluation)
    return Table("evasion", title, header, rows, notes(evaluation), 2, (), evaluation.evasion)


def pair_table(evaluation: Evaluation) -> Table:
    """Detectors two by two: agreement and diversity, McNemar's exact test, paired differences."""
    rows = [
        [row["first"], row["second"], percent(row["agreement"]), _number(row["kappa"]), percent(row["double_fault"])]
        + [f"{row['only_first_right']:,}", f"{row['only_second_right']:,}", p_value(row["mcnemar_p"])]
        + [_cell(row, f"{metric}_difference") for metric in COMPARED_METRICS]
        for _, row in evaluation.pairs.iterrows()
    ]
    header = [
        "first",
        "second",
        "agreement",
        "kappa",
        "both wrong",
        "only first right",
        "only second right",
        "McNemar p",
    ]
    header += [f"Δ {TITLES[metric]}" for metric in COMPARED_METRICS]
    title = "Detectors compared, in % (Δ: first minus second)" + _interval_title(evaluation)
    return Table("pairs", title, header, rows, notes(evaluation), 2, (), evaluation.pairs)


def reweighted_table(evaluation: Evaluation) -> Table:
    """The metrics over all images once more, at other shares of real images."""
    frame = evaluation.reweighted
    metrics = [metric for metric in TITLES if len(frame) and frame[metric].notna().any()]
    rows = [
        [row["weighting"], row["detector"], *(_cell(row, metric) for metric in metrics)] for _, row in frame.iterrows()
    ]
    header = ["images weighted to", "detector", *(TITLES[metric] for metric in metrics)]
    title = "All images under other weights, in %" + _interval_title(evaluation)
    return Table("reweighted", title, header, rows, notes(evaluation), 2, (), frame)


def notes(evaluation: Evaluation) -> tuple[str, ...]:
    """What a reader must know about the images and detectors behind the figures."""
    lines = [f"{STAND_IN_MARK} {STAND_IN_NOTE}"] if evaluation.stand_ins else []
    lines.append(f"{percent(evaluation.share_real)} % of the {evaluation.num_images:,} images are real")
    if evaluation.num_unlabelled:
        lines.append(f"images without a label, left out: {evaluation.num_unlabelled:,}")
    for detector, lost in zip(evaluation.detectors, evaluation.num_lost, strict=True):
        if lost:
            lines.append(f"{detector.name}: {lost:,} images left out that not every detector answered")
        if detector.num_errors:
            lines.append(f"{detector.name}: no answer for {detector.num_errors:,} images, which count nowhere")
        if detector.info.get("finished") is False:
            lines.append(f"{detector.name}: its run has not finished")
        for key, words in (("fitted_on", "fitted on "), ("probe", "")):
            if isinstance(detector.info.get(key), str):
                lines.append(f"{detector.name}: {words}{detector.info[key]}")
    return tuple(lines)


def p_value(p: float) -> str:
    """Four decimals, or "<0.0001"."""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3f}"


def _cell(row: pd.Series, metric: str) -> str:
    return with_interval(row[metric], row[f"{metric}_low"], row[f"{metric}_high"])


def _interval_title(evaluation: Evaluation) -> str:
    return " [95 % interval]" if evaluation.num_draws else ""


def _mark(evaluation: Evaluation, level: str, group: str) -> str:
    return STAND_IN_MARK if level == "source" and group in evaluation.stand_ins else ""


def accuracy_lines(detectors: Sequence[Detector]) -> list[str]:
    """Accuracy and summary of some detectors as terminal lines; without any label, how often each answered A and B."""
    if all((detector.frame["label"] == "").all() for detector in detectors):
        return [
            f"{detector.name}: no labels; {(detector.frame['answer'] == 'A').sum():,} images called A (real), "
            f"{(detector.frame['answer'] == 'B').sum():,} called B (fake)"
            for detector in detectors
        ]
    return result_lines(evaluate(detectors))


def result_lines(evaluation: Evaluation) -> list[str]:
    """The two tables for the terminal: accuracy by group, and every metric over all images."""
    accuracy = replace(accuracy_table(evaluation), notes=())  # those of the summary say the same
    summary = summary_table(evaluation)
    rows = [[_SHORT_TITLES.get(title, title), *cells] for title, *cells in summary.rows]
    return [*terminal_lines(accuracy), "", *terminal_lines(replace(summary, rows=rows))]
