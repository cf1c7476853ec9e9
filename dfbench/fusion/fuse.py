"""From several agents' per-image CSVs to one fused detector, image by image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dfbench.data.sources import LABELS
from dfbench.errors import InputError
from dfbench.fusion.early_exit import complete, mark_early
from dfbench.fusion.fitting import Fusion, cross_fit, fit_on_files, saved_fusion
from dfbench.fusion.rules import RULES, Weighted
from dfbench.predictions.join import Predictions, join
from dfbench.predictions.probabilities import answers
from dfbench.predictions.reader import Detector, read_detectors
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
    """The agents' answers fused into those of one detector, ready for `write_detector` and for `evaluate`.

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
    return {
        "detector": name,
        **fusion.describe(),
        "agents": agents,
        "rows": len(frame),
        "answers": {letter: int((frame["answer"] == letter).sum()) for letter in LABELS},
        **describe_software(["numpy", "pandas"]),
    }
