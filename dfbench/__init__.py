"""DFBench: deepfake image detection with large multimodal models (arXiv:2506.03007), and the detector MoA-DF.

    from dfbench import ScoringConfig, evaluate, fuse, load_detector, score

- `score(ScoringConfig(...))`: a model's answers for the images of an annotation file, as a per-image CSV.
- `fuse(csvs)`: several agents' answers into MoA-DF's.
- `evaluate(csvs)`: every metric of every detector, with intervals.
- `load_detector(checkpoints)`: a detector in memory, for images without annotations.

They are imported when first used, so that `import dfbench` is quick.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfbench.evaluation.evaluate import evaluate
    from dfbench.fusion.fuse import fuse
    from dfbench.scoring.config import ScoringConfig
    from dfbench.scoring.detector import load_detector
    from dfbench.scoring.run import score

__version__ = "1.0.0"
__all__ = ["ScoringConfig", "evaluate", "fuse", "load_detector", "score"]

_PLACES = {
    "ScoringConfig": "dfbench.scoring.config",
    "evaluate": "dfbench.evaluation.evaluate",
    "fuse": "dfbench.fusion.fuse",
    "load_detector": "dfbench.scoring.detector",
    "score": "dfbench.scoring.run",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return resolve_name(f"{_PLACES[name]}:{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
