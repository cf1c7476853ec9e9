"""From several agents' per-image CSVs to one fused detector, image by image."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dfbench.data.sources import LABELS
from dfbench.errors import InputError
from dfbench.fusion.early_exit import complete, mark_early
from dfbench.fusion.fitting import Fusion, cross_fit, fit_on_files, saved_fusion
from dfbench.fusion.rules import RULES, Weighted
from dfbench.predictions.join import Predictions, join, refuse_copies
from dfbench.predictions.probabilities import answers
from dfbench.predictions.reader import Detector, read_detectors, write_detector
from dfbench.predictions.schema import FUSION, check_output_csv, read_info, taken
from dfbench.predictions.writer import only_run
from dfbench.provenance import describe_software


def fuse(
    agents: Sequence[Path | str | Detector],
    rule: str = "mean_prob",
    *,
    weights: Sequence[float] | None = None,
    fit_csvs: Sequence[Path | str] = (),
    num_folds: int = 5,
    apply: Path | str | None = None,
    partial: bool = False,
) -> Detector:
    """The agents' answers fused into those of one detector, ready for `write_fused` and for `evaluate`.

    agents: per-image CSVs or what was read of them, one an agent. rule: one of `RULES`. weights: of the rule `weighted`
    where they are not to be fitted. fit_csvs: validation CSVs of the same agents to fit on; without them, a rule is
    cross-fitted by source in `num_folds` folds. apply: the metadata JSON of a fused CSV, to fuse by the rule fitted
    there instead of `rule`. partial: fuse what all agents answered and drop the rest.

    The frame has `prob_B_<name>` of each agent besides, and `decided_early` (1 or 0) where one agent was early-exited.
    The logits are NaN: a fused detector has none. `info` says how it came about. Raises InputError.
    """
    if rule not in RULES:
        raise InputError(f"{rule} is no fusion rule; expected one of {', '.join(RULES)}.")
    if (weights is not None and rule != "weighted") or (fit_csvs and not RULES[rule].is_fitted):
        raise InputError(f"{rule} takes no weights and is not fitted. Leave them away, or take another rule.")
    detectors, early = complete(read_detectors(agents))
    for detector in detectors:
        if detector.is_fusion:
            raise InputError(f"{detector}: this is a fused detector, which counts its agents twice. Leave it away.")
    predictions = join(detectors, partial=partial)
    refuse_copies(predictions.take(~np.isin(predictions.images, list(early))))
    if apply:
        fusion = saved_fusion(Path(apply), detectors)
    elif weights is not None:
        fusion = Fusion(Weighted.given(weights, len(detectors)))
    elif not RULES[rule].is_fitted:
        fusion = Fusion(RULES[rule]())
    elif fit_csvs:
        fusion = fit_on_files(RULES[rule], fit_csvs, detectors, partial=partial)
    else:
        fusion = cross_fit(RULES[rule], predictions, num_folds)
    frame = fused_frame(predictions, fusion)
    if early:
        if fusion.rule.name != "mean_prob":
            raise InputError(
                f"--fusion {fusion.rule.name}: an agent ran with --only_undecided, which keeps the decisions of "
                f"mean_prob alone. Score all images with every agent for other rules."
            )
        frame = mark_early(frame, early, next(detector.name for detector in detectors if detector.is_early_exited))
    name = "MoA-DF" if fusion.rule.name == "mean_prob" else f"MoA-DF ({fusion.rule.name})"
    return Detector(name, frame, info=_describe(name, fusion, detectors, frame))


def write_fused(path: Path, fused: Detector, *, overwrite: bool = False) -> None:
    """Write what `fuse` gave as a per-image CSV with its metadata.

    Raises InputError, unless `overwrite`, where another run's results stand there: another rule's, or of other agents.
    """
    check_output_csv(path, mark=FUSION, overwrite=overwrite)
    with only_run(path):
        before = read_info(path)
        if before and not overwrite and _identity(before) != _identity(fused.info):
            raise taken(path, f"its scores were fused otherwise ({_summary(before)}, and now {_summary(fused.info)})")
        write_detector(path, fused, clear=overwrite)


def _identity(info: Mapping[str, Any]) -> tuple[object, ...]:
    """What two fusions must share for one to replace the other's file: the command, but not what it found."""
    given = None if "fitted_on" in info else info.get("parameters")
    return info.get(FUSION), given, _csvs(info), info.get("fitted_files")


def _summary(info: Mapping[str, Any]) -> str:
    fitted_on = f", fitted on {info['fitted_on']}" if "fitted_on" in info else ""
    return f"{info.get(FUSION)} {info.get('parameters') or ''} of {', '.join(_csvs(info))}{fitted_on}"


def _csvs(info: Mapping[str, Any]) -> list[str]:
    agents = info.get("agents")
    csvs = [agent.get("csv") for agent in agents if isinstance(agent, dict)] if isinstance(agents, list) else []
    return [os.path.relpath(csv) for csv in csvs if csv and isinstance(csv, str)]


def fused_frame(predictions: Predictions, fusion: Fusion) -> pd.DataFrame:
    """Rows of a per-image CSV, then `prob_B_<name>` of each agent. The answer goes by the float32 pair."""
    pair = fusion.apply(predictions)
    frame = pd.DataFrame({"image": predictions.images, "label": predictions.labels, "answer": answers(pair)})
    frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
    frame["prob_A"], frame["prob_B"] = pair[:, 0], pair[:, 1]
    for i, name in enumerate(predictions.names):
        frame[f"prob_B_{name}"] = predictions.prob[:, i, 1]
    return frame


def _describe(name: str, fusion: Fusion, detectors: Sequence[Detector], frame: pd.DataFrame) -> dict[str, object]:
    agents = [
        {
            "name": detector.name,
            "csv": str(detector.path),
            "rows": len(detector.frame),
            "left_out": len(detector.frame) - len(frame),
            "errors": detector.num_errors,
        }
        for detector in detectors
    ]
    unfinished = {} if all(detector.is_finished for detector in detectors) else {"finished": False}
    return {
        "detector": name,
        **fusion.describe(),
        "agents": agents,
        **unfinished,
        "rows": len(frame),
        "answers": {letter: int((frame["answer"] == letter).sum()) for letter in LABELS},
        **describe_software(["numpy", "pandas"]),
    }
