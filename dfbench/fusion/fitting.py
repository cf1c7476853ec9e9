"""Fit the parameters of a fusion rule on images that it is not reported on.

Either on validation CSVs of the same agents, or by cross-fitting: the sources are dealt into folds, and the images of
each fold are fused with parameters fitted on the other folds, so that no generator is ever in both.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfbench.data.sources import FAKE, REAL
from dfbench.errors import InputError
from dfbench.fusion.rules import RULES, FusionRule, agent_outputs
from dfbench.predictions.join import Predictions, join
from dfbench.predictions.reader import Detector, read_detector, read_detectors
from dfbench.predictions.schema import read_metadata


@dataclass(frozen=True)
class Fold:
    """A rule for the images of some sources only."""

    sources: Sequence[str]
    rule: FusionRule


@dataclass(frozen=True)
class Fusion:
    """A rule ready to apply, and where its parameters come from.

    fitted_on: on which images they were fitted, in words; empty where nothing was fitted. fitted_files: their CSVs.
    folds: what the images of each source are fused with, when it was cross-fitted.
    """

    rule: FusionRule
    fitted_on: str = ""
    fitted_files: tuple[str, ...] = ()
    folds: tuple[Fold, ...] = ()

    def apply(self, predictions: Predictions) -> np.ndarray:
        """(N, 2) float32 probabilities of A and B."""
        agents = agent_outputs(predictions)
        pair = np.full((len(predictions), 2), np.nan)
        for fold in self.folds:
            rows = np.isin(predictions.sources, fold.sources)
            pair[rows] = fold.rule.apply(agents.take(rows))
        return (pair if self.folds else self.rule.apply(agents)).astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """For the metadata JSON."""
        info: dict[str, Any] = {"fusion": self.rule.name, "parameters": self.rule.parameters()}
        if self.fitted_on:
            info |= {"fitted_on": self.fitted_on, "fitted_files": list(self.fitted_files)}
        if self.folds:
            info["folds"] = [
                {"sources": list(fold.sources), "parameters": fold.rule.parameters()} for fold in self.folds
            ]
        return info


def fit_on_files(
    rule: type[FusionRule], paths: Sequence[Path | str], detectors: Sequence[Detector], *, partial: bool = False
) -> Fusion:
    """A rule fitted on validation CSVs of the same agents, in the same order as `detectors`.

    Raises InputError where their number or order differs, where they share an image with `detectors`, and where they
    have images of one class only.
    """
    validation = read_detectors(paths)
    where = ", ".join(map(str, validation))
    _check_agents([found.name for found in validation], detectors, where)
    predictions = join(validation, partial=partial)
    _refuse_shared_images(predictions.images, detectors, where)
    labelled = predictions.labelled
    fitted = _fit(rule, labelled, where)
    fitted_on = f"{len(labelled):,} validation images of {where}"
    return Fusion(fitted, fitted_on, tuple(str(found.path.resolve()) for found in validation if found.path))


def cross_fit(rule: type[FusionRule], predictions: Predictions, num_folds: int = 5) -> Fusion:
    """A rule whose folds were each fitted on the images of the other folds' sources.

    `Fusion.rule` is fitted on all labelled images: for other files only. Raises InputError where there are not two
    sources of either class.
    """
    where = "cross-fitting by source"
    labelled = predictions.labelled
    fold_of_source = deal_sources(labelled, num_folds)
    folds = []
    for number in range(max(fold_of_source.values()) + 1):
        # A source without labels is in no fold's fit; the first fold's parameters are as good as any other's.
        held_out = sorted(source for source in set(predictions.sources) if fold_of_source.get(source, 0) == number)
        folds.append(Fold(held_out, _fit(rule, labelled.take(~np.isin(labelled.sources, held_out)), where)))
    return Fusion(
        _fit(rule, labelled, where),
        f"images of other sources ({len(folds)} folds by source)",
        tuple(str(detector.path.resolve()) for detector in predictions.detectors if detector.path),
        tuple(folds),
    )


def _fit(rule: type[FusionRule], labelled: Predictions, where: str) -> FusionRule:
    num_fake = int(labelled.is_fake.sum())
    if num_fake in (0, len(labelled)):
        raise InputError(
            f"{where}: there are {num_fake:,} fake and {len(labelled) - num_fake:,} real images to fit on; expected "
            f"some of either class. Name validation CSVs that have both with --fit_csv."
        )
    return rule.fit(agent_outputs(labelled), labelled.is_fake)


def deal_sources(labelled: Predictions, num_folds: int) -> dict[str, int]:
    """{source: its fold}: the largest first, each to the fold with the fewest images of its class.

    There are as many folds as the rarer class has sources, `num_folds` at most, so that none lacks a class in its fit.
    """
    counts = Counter(zip(labelled.labels, labelled.sources, strict=True))
    by_class = {
        letter: sorted((-count, source) for (label, source), count in counts.items() if label == letter)
        for letter in (REAL, FAKE)
    }
    num_folds = min(num_folds, *map(len, by_class.values()))
    if num_folds < 2:
        few = min(by_class, key=lambda label: len(by_class[label]))
        raise InputError(
            f"cross-fitting by source needs two or more sources of either class, and there are {len(by_class[few])} "
            f"sources of {'real' if few == REAL else 'fake'} images. Name validation CSVs with --fit_csv."
        )
    fold_of_source: dict[str, int] = {}
    for sizes in by_class.values():
        load = np.zeros(num_folds)
        for negative, source in sizes:
            fold = fold_of_source.setdefault(source, int(load.argmin()))
            load[fold] -= negative
    return fold_of_source


def saved_fusion(path: Path, detectors: Sequence[Detector]) -> Fusion:
    """The fusion that the metadata JSON of a fused CSV holds, for the agents at hand.

    Raises InputError where it holds none, where agents differ in number or order, and where the CSVs that it was fitted
    on are still there and share images with `detectors`.
    """
    info = read_metadata(path)
    agents = info.get("agents")
    try:
        rule = RULES[info["fusion"]].from_parameters(info.get("parameters"), len(detectors))
        if not rule.is_fitted or not isinstance(agents, list):
            raise ValueError("nothing was fitted")
    except (KeyError, TypeError, ValueError):
        known = ", ".join(name for name, rule in RULES.items() if rule.is_fitted)
        raise InputError(
            f"{path}: there is no fitted fusion of {len(detectors)} agents here, which is one of {known} with its "
            f"parameters. Name the .json beside a CSV that logit_calculation.py fitted."
        ) from None
    _check_agents([agent.get("name") if isinstance(agent, dict) else None for agent in agents], detectors, path)
    fitted_files = [Path(name) for name in info.get("fitted_files", []) if isinstance(name, str)]
    for fitted_file in fitted_files:
        if fitted_file.exists():
            _refuse_shared_images(read_detector(fitted_file).frame["image"], detectors, fitted_file)
    return Fusion(rule, f"other images ({path})", tuple(map(str, fitted_files)))


def _check_agents(names: Sequence[Any], detectors: Sequence[Detector], where: object) -> None:
    """Refuse another number of agents, and the same names in another order."""
    expected = [detector.name for detector in detectors]
    if len(names) != len(expected) or (set(names) == set(expected) and list(names) != expected):
        raise InputError(
            f"{where}: the agents are {', '.join(map(str, names))}; expected {', '.join(expected)}. Name as many CSVs "
            f"as agents, in the same order."
        )


def _refuse_shared_images(images: Iterable[str], detectors: Sequence[Detector], where: object) -> None:
    shared = set(images).intersection(detectors[0].frame["image"])
    if shared:
        raise InputError(
            f"{where}: {len(shared):,} of the images to be fused were fitted on, such as {min(shared)}; what is fitted "
            f"on an image must not be reported on it. Fit on a validation file, or cross-fit by naming neither "
            f"--fit_csv nor --apply."
        )
