"""From detectors' answers to numbers: which images count, the bootstrap draws, and what is known of the detectors.

All detectors see the same draws, so differences between them are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from tqdm import tqdm

from dfbench.data.sources import CATALOGUE, DFBENCH, NUM_TEST
from dfbench.errors import InputError
from dfbench.evaluation.bootstrap import METRICS, AnswerSheet
from dfbench.evaluation.frames import evasion_frame, pair_frame, reweighted_frame, score_frame
from dfbench.predictions.reader import Detector, join


@dataclass
class Evaluation:
    """All numbers of a set of detectors on the labelled images that they share. Frames hold shares from 0 to 1, NaN
    where not defined; `<metric>_low` and `<metric>_high` bound the interval.

    scores: a row for each group and detector, group by group: counts, every metric of `answer_sheet.METRICS`, and
        `note`, which says why some are empty.
    evasion: a row for each source of fake images and detector, the most evasive source first: the share that is called
        real, and its mean over the detectors that are no fusion of others.
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
    Raises InputError as `detectors.join` does, and where no image has a label.
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
    weighted = {name: sheet.measure(weights, overall_only=True)[:, 0] for name, weights in weightings.items()}
    return Evaluation(
        list(detectors),
        sheet,
        score_frame(sheet, names, values, draws),
        evasion_frame(sheet, names, judged_numbers(detectors), agent_numbers(detectors), values, draws),
        pair_frame(sheet, names, judged_numbers(detectors), values, draws),
        reweighted_frame(names, weighted, weighted_draws),
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
