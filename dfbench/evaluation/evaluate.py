"""From detectors' answers to numbers: which images count, the bootstrap, and every metric as frames.

All detectors see the same resamples, so differences between them are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from dfbench.data.sources import CATALOGUE, DFBENCH, NUM_TEST, contradicts_catalogue
from dfbench.errors import InputError
from dfbench.evaluation.bootstrap import GroupedPredictions
from dfbench.evaluation.metrics import METRICS, cohen_kappa, mcnemar_p, percentile_interval, ratio, wilson_interval
from dfbench.evaluation.shortcut_audit import MATCHED, Audit
from dfbench.predictions.join import join
from dfbench.predictions.reader import Detector, read_detectors

Values = dict[str, np.ndarray]
"""{metric: its values}."""


@dataclass
class Evaluation:
    """All numbers of a set of detectors on the labelled images that they share. Frames hold shares from 0 to 1, NaN
    where not defined; `<metric>_low` and `<metric>_high` bound the interval.

    scores: a row for each group and detector, group by group: counts, every metric, and `note`, which says why some are
        empty.
    false_negatives: a row for each source of fake images and detector, the source that passes for real most often
        first: the share that is predicted real, and its mean over the detectors that are no fusion of others.
    pairs: a row for each pair of detectors: agreement, exact McNemar test, paired differences (first minus second).
    reweighted: metrics on all images under other weights, a row for each weighting and detector.
    audit: what image size and file format alone explain, where that was asked for.
    """

    detectors: list[Detector]
    grouped: GroupedPredictions
    scores: pd.DataFrame
    false_negatives: pd.DataFrame
    pairs: pd.DataFrame
    reweighted: pd.DataFrame
    num_resamples: int
    seed: int
    audit: Audit | None = None
    num_unlabelled: int = 0
    num_lost: list[int] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [detector.name for detector in self.detectors]

    @property
    def judged(self) -> list[str]:
        """Names of the detectors that are no baselines."""
        return [self.names[i] for i in judged_numbers(self.detectors)]

    @property
    def overall(self) -> pd.DataFrame:
        """The rows of `scores` on all images, one a detector."""
        return self.scores[self.scores["level"] == "overall"]

    @property
    def stand_ins(self) -> list[str]:
        """Sources that the demo made: figures on these say nothing about DFBench."""
        sources = self.grouped.cells["source"].unique()
        return [source for source in sources if source in CATALOGUE and CATALOGUE[source].stand_in]

    @property
    def is_real_test_set(self) -> bool:
        """Whether these are the images of the released test set, a few unreadable ones aside."""
        same_sources = set(self.grouped.cells["source"]) == {source.name for source in DFBENCH}
        return same_sources and not self.contradicting and 0.99 * NUM_TEST <= self.num_images <= NUM_TEST

    @property
    def contradicting(self) -> list[tuple[str, str, int]]:
        """(source, label, number of images) of the labels that contradict the catalogue."""
        counts = np.bincount(self.grouped.cell, minlength=len(self.grouped.cells)).tolist()
        rows = zip(self.grouped.cells["source"], self.grouped.cells["label"], counts, strict=True)
        return [row for row in rows if contradicts_catalogue(*row[:2])]

    @property
    def num_images(self) -> int:
        return len(self.grouped)

    @property
    def share_real(self) -> float:
        return float((~self.grouped.predictions.is_fake).mean())


def evaluate(
    detectors: Sequence[Detector | Path | str],
    *,
    partial: bool = False,
    num_resamples: int = 0,
    seed: int = 0,
    prior: float | None = None,
    weightings: Mapping[str, pd.Series] | None = None,
    audit: Audit | None = None,
    quiet: bool = True,
) -> Evaluation:
    """Every number of every detector, over the labelled images that all of them answered.

    detectors: per-image CSVs, or what was read of them. num_resamples: of the bootstrap; 0 leaves all intervals but
    Wilson's empty. prior: share of real images (0 to 1) at which to give the overall figures once more. weightings:
    {name: weights by image} to give them under as well. audit: its baselines and weights join the others.
    Raises InputError as `read_detectors` and `join` do, and where no image has a label.
    """
    detectors = [*read_detectors(detectors), *(audit.baselines if audit else ())]
    weightings = dict(weightings or {}) | ({MATCHED: audit.weights} if audit and audit.num_pairs else {})
    predictions = join(detectors, partial=partial)
    if not predictions.is_labelled.any():
        raise InputError(
            f"{', '.join(map(str, detectors))}: no image has a label, A (real) or B (fake), to compare the answers "
            f"with. Score annotations that have labels; the answers themselves stand in these files."
        )
    grouped = GroupedPredictions(predictions.labelled)
    by_row = {name: by_image.loc[grouped.predictions.images].to_numpy() for name, by_image in weightings.items()}
    if prior is not None:
        by_row[f"real prior {100 * prior:g} %"] = prior_weights(grouped.predictions.is_fake, prior)

    rng = np.random.default_rng(seed)
    values = grouped.measure()
    weighted = {name: grouped.measure(weights, overall_only=True) for name, weights in by_row.items()}
    resamples, weighted_resamples = [], {name: [] for name in by_row}
    for _ in tqdm(range(num_resamples), "bootstrap", unit="resample", disable=quiet or None):
        drawn = grouped.resample(rng)
        resamples.append(grouped.measure(drawn))
        for name, weights in by_row.items():
            weighted_resamples[name].append(grouped.measure(drawn * weights, overall_only=True))
    resampled = _stack(resamples, values)
    weighted_resampled = {name: _stack(weighted_resamples[name], weighted[name]) for name in by_row}
    return Evaluation(
        detectors,
        grouped,
        score_frame(grouped, values, resampled),
        false_negative_frame(grouped, detectors, values, resampled),
        pair_frame(grouped, detectors, values, resampled),
        reweighted_frame(predictions.names, weighted, weighted_resampled),
        num_resamples,
        seed,
        audit,
        int((~predictions.is_labelled).sum()),
        [len(detector.frame) - len(predictions) for detector in detectors],
    )


def _stack(resamples: Sequence[Values], values: Values) -> Values:
    """{metric: the values of all resamples (R, ...)}; `values` gives the shapes, for there may be no resamples."""
    return {
        key: np.array([resample[key] for resample in resamples]).reshape(len(resamples), *part.shape)
        for key, part in values.items()
    }


def judged_numbers(detectors: Sequence[Detector]) -> list[int]:
    """Which detectors are there to be judged: the audit's baselines are only a yardstick, unless they are all."""
    judged = [i for i, detector in enumerate(detectors) if "metadata_baseline" not in detector.info]
    return judged or list(range(len(detectors)))


def agent_numbers(detectors: Sequence[Detector]) -> list[int]:
    """Which detectors look at images themselves: no baselines, and fusions only where there is nothing else."""
    judged = judged_numbers(detectors)
    return [i for i in judged if not detectors[i].is_fusion] or judged


def prior_weights(is_fake: np.ndarray, prior: float) -> np.ndarray:
    """(N,) weights that give the real images the share `prior` of all, and sum to N."""
    share_real = (~is_fake).mean()
    if share_real in (0, 1):
        raise InputError("--prior needs real and fake images, and these are of one class only. Leave --prior away.")
    return np.where(is_fake, (1 - prior) / (1 - share_real), prior / share_real)


# ----------------------------------------------------------------------------------------------------------------
# frames. values: {metric: (G, D)}, groups x detectors; resampled: {metric: (R, G, D)}, resamples first


def score_frame(grouped: GroupedPredictions, values: Values, resampled: Values) -> pd.DataFrame:
    """A row for each group and detector, group by group: counts, all metrics with their bounds, and a note."""
    counts, names = grouped.sample(), grouped.predictions.names
    columns = {"detector": names * len(grouped.groups)}
    for key, attribute in (("level", "level"), ("group", "name"), ("category", "category")):
        columns[key] = np.repeat([getattr(group, attribute) for group in grouped.groups], len(names))
    whole = {
        "n": counts.num_images,
        "n_real": counts.num_real,
        "n_fake": counts.num_fake,
        "count_A": counts.num_images - counts.num_predicted_fake,
        "count_B": counts.num_predicted_fake,
        "correct": counts.num_right,
    }
    columns |= {key: value.ravel().astype(int) for key, value in whole.items()}
    for key, metric in METRICS.items():
        low, high = metric.bounds(values[key], resampled[key], counts.num_images)
        columns |= {key: values[key].ravel(), f"{key}_low": low.ravel(), f"{key}_high": high.ravel()}
    columns["note"] = [_note(*pair) for pair in zip(columns["n_real"], columns["n_fake"], strict=True)]
    return pd.DataFrame(columns)


def _note(num_real: int, num_fake: int) -> str:
    """Why some metrics of a group are empty."""
    if num_real and num_fake:
        return ""
    return f"only {'real' if num_real else 'fake'} images: metrics that compare the two classes are not defined"


def false_negative_frame(
    grouped: GroupedPredictions, detectors: Sequence[Detector], values: Values, resampled: Values
) -> pd.DataFrame:
    """A row for each source of fake images and judged detector: `false_negative_rate`, and `mean` over the agents.

    rank: 1 for the source with the highest mean. Sources that have real images as well are left out.
    """
    counts, agents = grouped.sample(), agent_numbers(detectors)
    sources = [
        number
        for number, group in enumerate(grouped.groups)
        if group.level == "source" and counts.num_fake[number, 0] and not counts.num_real[number, 0]
    ]
    means = 1 - values["accuracy"][np.ix_(sources, agents)].mean(axis=1)
    rows = []
    for rank, i in enumerate(np.argsort(-means, kind="stable"), start=1):
        number, group = sources[i], grouped.groups[sources[i]]
        num_images = counts.num_fake[number]
        rate = ratio(num_images - counts.right_fake[number], num_images)
        low, high = wilson_interval(rate, num_images)
        mean_low, mean_high = percentile_interval(1 - resampled["accuracy"][:, number][:, agents].mean(axis=1))
        common = {"rank": rank, "source": group.name, "category": group.category, "n": int(num_images[0])}
        common |= {"mean": means[i], "mean_low": float(mean_low), "mean_high": float(mean_high)}
        for k in judged_numbers(detectors):
            bounds = {"false_negative_rate_low": low[k], "false_negative_rate_high": high[k]}
            rows.append(common | {"detector": detectors[k].name, "false_negative_rate": rate[k]} | bounds)
    return pd.DataFrame(rows)


def pair_frame(
    grouped: GroupedPredictions, detectors: Sequence[Detector], values: Values, resampled: Values
) -> pd.DataFrame:
    """A row for each pair of judged detectors: agreement, exact McNemar test, differences (first minus second)."""
    right, predicted_fake = grouped.is_right, grouped.predictions.predicted_fake
    rows = []
    for i, j in combinations(judged_numbers(detectors), 2):
        only_first, only_second = int((right[:, i] & ~right[:, j]).sum()), int((~right[:, i] & right[:, j]).sum())
        row = {
            "first": detectors[i].name,
            "second": detectors[j].name,
            "n": len(right),
            "agreement": float((right[:, i] == right[:, j]).mean()),
            "kappa": cohen_kappa(predicted_fake[:, i], predicted_fake[:, j]),
            "double_fault": float((~right[:, i] & ~right[:, j]).mean()),
            "only_first_right": only_first,
            "only_second_right": only_second,
            "mcnemar_p": mcnemar_p(only_first, only_second),
        }
        for key, metric in METRICS.items():
            if metric.is_compared:
                low, high = metric.percentiles(resampled[key][:, -1, i] - resampled[key][:, -1, j])
                row[f"{key}_difference"] = values[key][-1, i] - values[key][-1, j]
                row |= {f"{key}_difference_low": float(low), f"{key}_difference_high": float(high)}
        rows.append(row)
    return pd.DataFrame(rows)


def reweighted_frame(
    names: Sequence[str], values: Mapping[str, Values], resampled: Mapping[str, Values]
) -> pd.DataFrame:
    """A row for each weighting and detector: all metrics over all images with their bounds.

    values, resampled: {weighting: those of the one group}.
    """
    tables = []
    for weighting in values:
        columns = {"weighting": weighting, "detector": names}
        for key, metric in METRICS.items():
            low, high = metric.percentiles(resampled[weighting][key][:, 0])
            columns |= {key: values[weighting][key][0], f"{key}_low": low, f"{key}_high": high}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
