"""From detectors' answers to numbers with 95 % intervals: scores by group, evasion, comparisons of two, other priors.

Intervals are Wilson's for accuracy (and evasion, its complement) and percentiles of a seeded bootstrap, stratified by
source, for the rest. All detectors see the same draws, so differences between them are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd
from tqdm import tqdm

from dfbench import metrics
from dfbench.answer_sheet import METRICS, AnswerSheet
from dfbench.errors import InputError
from dfbench.records import Detector, join
from dfbench.sources import CATALOGUE, DFBENCH, NUM_TEST

LEVEL = 0.95
"""Of all intervals."""

COMPARED_METRICS = ("accuracy", "balanced_accuracy", "auroc")


@dataclass
class Evaluation:
    """All numbers of a set of detectors on the labelled images that they share. Frames hold shares from 0 to 1, NaN
    where not defined; `<metric>_low` and `<metric>_high` bound the interval.

    scores: a row for each group and detector, group by group: counts, every metric of `answer_sheet.METRICS`, and
        `note`, which says why some are empty.
    evasion: a row for each source of fake images, the most evasive first: the share that each detector calls real, and
        the mean over the detectors that are no fusion of others.
    pairs: a row for each pair of detectors: agreement, exact McNemar test, paired differences (first minus second).
    reweighted: metrics on all images under other weights, a row for each weighting and detector.
    """

    detectors: list[Detector]
    sheet: AnswerSheet
    scores: pd.DataFrame
    evasion: pd.DataFrame
    pairs: pd.DataFrame
    reweighted: pd.DataFrame
    num_draws: int
    seed: int
    num_unlabelled: int = 0
    num_lost: list[int] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [detector.name for detector in self.detectors]

    @property
    def judged(self) -> list[str]:
        """Names of the detectors that are no probes."""
        return [self.names[i] for i in judged_numbers(self.detectors)]

    @property
    def stand_ins(self) -> list[str]:
        """Sources that the demo made: figures on these say nothing about DFBench."""
        sources = self.sheet.cells["source"].unique()
        return [source for source in sources if source in CATALOGUE and CATALOGUE[source].stand_in]

    @property
    def is_real_test_set(self) -> bool:
        """Whether these are the images of the released test set, a few unreadable ones aside."""
        same_sources = set(self.sheet.cells["source"]) == {source.name for source in DFBENCH}
        return same_sources and 0.99 * NUM_TEST <= len(self.sheet.joined) <= NUM_TEST

    @property
    def num_images(self) -> int:
        return len(self.sheet.joined)

    @property
    def share_real(self) -> float:
        return float((~self.sheet.is_fake).mean())


def evaluate(
    detectors: Sequence[Detector],
    *,
    partial: bool = False,
    num_draws: int = 0,
    seed: int = 0,
    prior: float | None = None,
    weightings: Mapping[str, pd.Series] | None = None,
    quiet: bool = True,
) -> Evaluation:
    """Every number of every detector, over the labelled images that all of them answered.

    num_draws: bootstrap draws; 0 leaves all intervals but Wilson's empty. prior: share of real images (0 to 1) at
    which to give the overall figures once more. weightings: {name: weights by image} to give them under as well.
    Raises InputError as `records.join` does, and where no image has a label.
    """
    joined = join(detectors, partial=partial)
    labelled = joined[joined["label"] != ""]
    if labelled.empty:
        raise InputError(
            ", ".join(str(detector.path or detector.name) for detector in detectors),
            found="no image with a label",
            expected="labels A (real) or B (fake), to compare the answers with",
            remedy="score annotations that have labels; the answers themselves stand in these files",
        )
    sheet = AnswerSheet(labelled, len(detectors))
    by_row = {name: by_image.loc[sheet.joined["image"]].to_numpy() for name, by_image in (weightings or {}).items()}
    if prior is not None:
        by_row[f"real prior {100 * prior:g} %"] = prior_weights(sheet.is_fake, prior)
    evaluation = evaluate_sheet(sheet, detectors, by_row, num_draws=num_draws, seed=seed, quiet=quiet)
    evaluation.num_unlabelled = len(joined) - len(labelled)
    evaluation.num_lost = [len(detector.frame) - len(joined) for detector in detectors]
    return evaluation


def evaluate_sheet(
    sheet: AnswerSheet,
    detectors: Sequence[Detector],
    weightings: Mapping[str, np.ndarray],
    *,
    num_draws: int,
    seed: int,
    quiet: bool = True,
) -> Evaluation:
    """As `evaluate`, for answers that are laid out already. weightings: {name: (N,) weights of the sheet's rows}."""
    rng = np.random.default_rng(seed)
    draws = np.full((num_draws, len(METRICS), len(sheet.groups), len(detectors)), np.nan)
    weighted_draws = {name: np.full((num_draws, len(METRICS), len(detectors)), np.nan) for name in weightings}
    for i in tqdm(range(num_draws), "bootstrap", unit="draw", disable=quiet or None):
        drawn = sheet.draw(rng)
        draws[i] = sheet.measure(drawn)
        for name, weights in weightings.items():
            weighted_draws[name][i] = sheet.measure(drawn * weights, overall_only=True)[:, 0]
    names = [detector.name for detector in detectors]
    values = sheet.measure()
    compared = judged_numbers(detectors)
    weighted = {name: sheet.measure(weights, overall_only=True)[:, 0] for name, weights in weightings.items()}
    return Evaluation(
        list(detectors),
        sheet,
        _scores(sheet, names, values, draws),
        _evasion(sheet, names, compared, agent_numbers(detectors), values, draws),
        _pairs(sheet, names, compared, values, draws),
        _reweighted(names, weighted, weighted_draws),
        num_draws,
        seed,
    )


def judged_numbers(detectors: Sequence[Detector]) -> list[int]:
    """Which detectors are there to be judged: the audit's probes are only a yardstick."""
    return [i for i, detector in enumerate(detectors) if "probe" not in detector.info]


def agent_numbers(detectors: Sequence[Detector]) -> list[int]:
    """Which detectors look at images themselves: no probes, and fusions only where there is nothing else."""
    judged = judged_numbers(detectors)
    return [i for i in judged if "fusion" not in detectors[i].info] or judged


def prior_weights(is_fake: np.ndarray, prior: float) -> np.ndarray:
    """(N,) weights that give the real images the share `prior` of all, and sum to N."""
    share_real = (~is_fake).mean()
    if share_real in (0, 1):
        raise InputError(
            "--prior", found="images of one class only", expected="real and fake ones", remedy="leave --prior away"
        )
    return np.where(is_fake, (1 - prior) / (1 - share_real), prior / share_real)


def interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) percentiles over the first axis. NaN where a number is not defined in most of the draws."""
    if len(draws) == 0:
        return np.full(draws.shape[1:], np.nan), np.full(draws.shape[1:], np.nan)
    defined = np.isfinite(draws).mean(axis=0) > 0.5
    filled = np.where(defined, draws, 0)
    low, high = np.nanquantile(filled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.where(defined, low, np.nan), np.where(defined, high, np.nan)


def _scores(sheet: AnswerSheet, names: list[str], values: np.ndarray, draws: np.ndarray) -> pd.DataFrame:
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
            "detector": names * len(sheet.groups),
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


def _evasion(
    sheet: AnswerSheet,
    names: list[str],
    compared: list[int],
    agents: list[int],
    values: np.ndarray,
    draws: np.ndarray,
) -> pd.DataFrame:
    counts = sheet.counts()
    rows = []
    for number, group in enumerate(sheet.groups):
        if group.level != "source" or not counts.num_fake[number, 0] or counts.num_real[number, 0]:
            continue
        evaded = counts.num_fake[number] - counts.right_fake[number]
        low, high = metrics.wilson_interval(evaded, counts.num_fake[number], LEVEL)
        mean_low, mean_high = interval(1 - draws[:, 0, number][:, agents].mean(axis=1))
        row = {"source": group.name, "category": group.category, "n": int(counts.num_fake[number, 0])}
        row |= {
            "mean": 1 - values[0, number, agents].mean(),
            "mean_low": float(mean_low),
            "mean_high": float(mean_high),
        }
        for i in compared:
            name = names[i]
            row |= {name: evaded[i] / row["n"], f"{name}_low": low[i], f"{name}_high": high[i]}
        rows.append(row)
    table = pd.DataFrame(rows).sort_values("mean", ascending=False, kind="stable") if rows else pd.DataFrame()
    table.insert(0, "rank", range(1, len(table) + 1))
    return table.reset_index(drop=True)


def _pairs(
    sheet: AnswerSheet, names: list[str], compared: list[int], values: np.ndarray, draws: np.ndarray
) -> pd.DataFrame:
    right = sheet.right
    rows = []
    for i, j in combinations(compared, 2):
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


def _reweighted(names: list[str], values: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray]) -> pd.DataFrame:
    tables = []
    for weighting in values:
        low, high = interval(draws[weighting])
        table = pd.DataFrame({"weighting": weighting, "detector": names})
        for row, metric in enumerate(METRICS):
            for suffix, part in (("", values[weighting]), ("_low", low), ("_high", high)):
                table[metric + suffix] = part[row]
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
