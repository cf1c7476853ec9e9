"""Measure scoring: images/s, MFU, waiting, memory and deviation of each model and way, as one table.

python scripts/benchmark_scoring.py                  real shapes with random weights, on a GPU
python scripts/benchmark_scoring.py --tiny           the demo's small models, on a CPU too
python scripts/benchmark_scoring.py --models qwen2.5 --mixed --images 800
"""

import sys
import tempfile
from pathlib import Path

from dfbench import cli
from dfbench.models.registry import AGENTS


def main() -> None:
    parser = cli.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", default=list(AGENTS), choices=list(AGENTS), help="which")
    add("--images", type=cli.positive_int, default=600, help="images of the end-to-end run")
    add("--mixed", action="store_true", help="sizes in DFBench's proportions instead of 1024x1024")
    add("--tiny", action="store_true", help="the demo's small models instead of the real shapes")
    add("--token_budget", type=cli.positive_int, default=32768, help="tokens of a batch")
    add("--workers", type=cli.natural_int, default=16, help="processes that decode images")
    add("--check", type=cli.positive_int, default=16, help="images whose P(A) is compared with float32")
    add("--eager", action="store_true", help="do not compile")
    add("--fp8", action="store_true", help="measure --precision fp8 as well")
    add("--no_upstream", action="store_true", help="leave the upstream way out")
    add("--device", help="cuda or cpu; default: cuda where there is a GPU")
    add("--folder", type=Path, default=Path(tempfile.gettempdir()) / "dfbench-benchmark", help="for images and configs")
    options = vars(parser.parse_args())
    from dfbench.benchmarks.scoring import BenchmarkConfig, run  # only now: torch and transformers take seconds

    run(BenchmarkConfig(**options))


if __name__ == "__main__":
    sys.exit(cli.run(main))
