"""Metrics and their bootstrap draws as frames: scores by group, evasion, pairs of detectors, other weightings.

Intervals are Wilson's for accuracy (and evasion, its complement), and percentiles of the draws for the rest. `values`
are (M, G, D): answer_sheet.METRICS x groups x detectors; `draws` have the draws as a first axis before that.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from dfbench.evaluation import metrics
from dfbench.evaluation.bootstrap import METRICS, AnswerSheet

LEVEL = 0.95
"""Of all intervals."""

COMPARED_METRICS = ("accuracy", "balanced_accuracy", "auroc")


def interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) percentiles over the first axis. NaN where a number is not defined in most of the draws."""
    if len(draws) == 0:
        return np.full(draws.shape[1:], np.nan), np.full(draws.shape[1:], np.nan)
    defined = np.isfinite(draws).mean(axis=0) > 0.5
    filled = np.where(defined, draws, 0)
    low, high = np.nanquantile(filled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.where(defined, low, np.nan), np.where(defined, high, np.nan)


def score_frame(sheet: AnswerSheet, names: Sequence[str], values: np.ndarray, draws: np.ndarray) -> pd.DataFrame:
    """A row for each group and detector, group by group: counts, all METRICS with their bounds, and a note."""
    counts = sheet.counts()
    right = counts.right_real + counts.right_fake
    whole = {
        "n": counts.num_images,
        "n_real": counts.num_real,
        "n_fake": counts.num_fake,
        "count_A": counts.num_images - counts.num_called_fake,
        "count_B": counts.num_called_fake,
        "correct": right,
    }
    table = pd.DataFrame(
        {
            "detector": list(names) * len(sheet.groups),
            **{
                key: np.repeat([getattr(group, attribute) for group in sheet.groups], len(names))
                for key, attribute in (("level", "level"), ("group", "name"), ("category", "category"))
            },
            **{key: value.ravel().astype(int) for key, value in whole.items()},
        }
    )
    low, high = interval(draws)
    low[0], high[0] = metrics.wilson_interval(right, counts.num_images, LEVEL)
    for row, metric in enumerate(METRICS):
        for suffix, part in (("", values), ("_low", low), ("_high", high)):
            table[metric + suffix] = part[row].ravel()
    table["note"] = [_note(*pair) for pair in zip(table["n_real"], table["n_fake"], strict=True)]
    return table


def _note(num_real: int, num_fake: int) -> str:
    """Why some metrics of a group are empty."""
    if num_real and num_fake:
        return ""
    return f"only {'real' if num_real else 'fake'} images: metrics that compare the two classes are not defined"


def evasion_frame(
    sheet: AnswerSheet,
    names: Sequence[str],
    judged: Sequence[int],
    agents: Sequence[int],
    values: np.ndarray,
    draws: np.ndarray,
) -> pd.DataFrame:
    """A row for each source of fake images and judged detector: `evasion`, and `mean` over the agents.

    rank: 1 for the source with the highest mean. Sources that have real images as well are left out.
    """
    counts, at = sheet.counts(), METRICS.index("accuracy")
    sources = [
        number
        for number, group in enumerate(sheet.groups)
        if group.level == "source" and counts.num_fake[number, 0] and not counts.num_real[number, 0]
    ]
    means = 1 - values[at][np.ix_(sources, agents)].mean(axis=1)
    rows = []
    for rank, i in enumerate(np.argsort(-means, kind="stable"), start=1):
        number, group = sources[i], sheet.groups[sources[i]]
        num_images = counts.num_fake[number]
        evaded = num_images - counts.right_fake[number]
        low, high = metrics.wilson_interval(evaded, num_images, LEVEL)
        mean_low, mean_high = interval(1 - draws[:, at, number][:, agents].mean(axis=1))
        common = {"rank": rank, "source": group.name, "category": group.category, "n": int(num_images[0])}
        common |= {"mean": means[i], "mean_low": float(mean_low), "mean_high": float(mean_high)}
        for k in judged:
            share = {"evasion": evaded[k] / num_images[k], "evasion_low": low[k], "evasion_high": high[k]}
            rows.append(common | {"detector": names[k]} | share)
    return pd.DataFrame(rows)


def pair_frame(
    sheet: AnswerSheet, names: Sequence[str], judged: Sequence[int], values: np.ndarray, draws: np.ndarray
) -> pd.DataFrame:
    """A row for each pair of judged detectors: agreement, exact McNemar test, differences (first minus second)."""
    right = sheet.right
    rows = []
    for i, j in combinations(judged, 2):
        only_first, only_second = int((right[:, i] & ~right[:, j]).sum()), int((~right[:, i] & right[:, j]).sum())
        row = {
            "first": names[i],
            "second": names[j],
            "n": len(right),
            "agreement": float((right[:, i] == right[:, j]).mean()),
            "kappa": metrics.cohen_kappa(sheet.called_fake[:, i], sheet.called_fake[:, j]),
            "double_fault": float((~right[:, i] & ~right[:, j]).mean()),
            "only_first_right": only_first,
            "only_second_right": only_second,
            "mcnemar_p": metrics.mcnemar_p(only_first, only_second),
        }
        for metric in COMPARED_METRICS:
            at = METRICS.index(metric)
            low, high = interval(draws[:, at, -1, i] - draws[:, at, -1, j])
            row[f"{metric}_difference"] = values[at, -1, i] - values[at, -1, j]
            row |= {f"{metric}_difference_low": float(low), f"{metric}_difference_high": float(high)}
        rows.append(row)
    return pd.DataFrame(rows)


def reweighted_frame(
    names: Sequence[str], values: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """A row for each weighting and detector: all METRICS over all images with their bounds.

    values, draws: {weighting: (M, D)} and {weighting: (number of draws, M, D)}.
    """
    tables = []
    for weighting in values:
        low, high = interval(draws[weighting])
        table = pd.DataFrame({"weighting": weighting, "detector": names})
        for row, metric in enumerate(METRICS):
            for suffix, part in (("", values[weighting]), ("_low", low), ("_high", high)):
                table[metric + suffix] = part[row]
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
