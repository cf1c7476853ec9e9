"""MoA-DF: several agents' per-image probabilities into one decision.

The paper's rule (arXiv:2506.03007, section on MoA-DF): the mean over the agents of the softmaxed pair, decision by the
larger one; a tie is B, as in upstream's `logit_calculation.py`. That script took the 4th and 5th column of every file,
which are log-probabilities in the Qwen file and probabilities in the two others; here columns go by their names.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dfbench.letters import answers
from dfbench.provenance import describe_software
from dfbench.records import Detector, join, write_detector

METHODS = ("mean_prob",)


def fuse(detectors: Sequence[Detector], method: str = "mean_prob", *, partial: bool = False) -> pd.DataFrame:
    """One row for each image that all detectors answered: the per-image CSV's columns, then `prob_B_<name>` by agent.

    The logits are NaN: a fused detector has none. Raises InputError as `records.join` does.
    """
    joined = join(detectors, partial=partial)
    pair = np.stack([_mean(joined, f"prob_{letter}", len(detectors)) for letter in "AB"], axis=1)
    return as_records(joined, pair, [detector.name for detector in detectors])


def as_records(joined: pd.DataFrame, pair: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Fused probabilities (N, 2) as rows of a per-image CSV. The answer goes by the float32 pair that is written."""
    pair = pair.astype(np.float32)
    frame = joined[["image", "label"]].copy()
    frame["answer"] = answers(pair)
    frame["logit_A"] = frame["logit_B"] = np.float32(np.nan)
    frame["prob_A"], frame["prob_B"] = pair[:, 0], pair[:, 1]
    for i, name in enumerate(names):
        frame[f"prob_B_{name}"] = joined[f"prob_B_{i}"]
    return frame


def _mean(joined: pd.DataFrame, column: str, num_agents: int) -> np.ndarray:
    return joined[[f"{column}_{i}" for i in range(num_agents)]].to_numpy(np.float64).mean(axis=1)


def write_fused(path: Path, frame: pd.DataFrame, detectors: Sequence[Detector], method: str) -> dict[str, Any]:
    """Write the fused per-image CSV and, beside it, how it came about; returns the latter."""
    num_images = len(frame)
    info = {
        "detector": "MoA-DF" if method == "mean_prob" else f"MoA-DF ({method})",
        "fusion": method,
        "agents": [
            {
                "name": detector.name,
                "csv": str(detector.path),
                "rows": len(detector.frame),
                "left_out": len(detector.frame) - num_images,
                "errors": detector.num_errors,
            }
            for detector in detectors
        ],
        "rows": num_images,
        "answers": {letter: int((frame["answer"] == letter).sum()) for letter in "AB"},
        **describe_software(["numpy", "pandas"]),
    }
    extra = [column for column in frame.columns if column.startswith("prob_B_")]
    write_detector(path, frame, info, extra=extra)
    return info
