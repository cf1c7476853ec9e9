"""Tiny checkpoints for the demo: Qwen2.5-VL, InternVL2.5 and InternVL3, real architectures with random weights.

    python scripts/make_tiny_models.py

They load like the released ones, and a LoRA adapter trained on the demo's images makes detectors of them in less than
a minute on a CPU.
"""

import argparse
import sys
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from dfbench import cli
from dfbench.demo.tiny_models import make_tiny_models
from dfbench.paths import REPOSITORY


def main() -> None:
    args = parse_arguments()
    disable_progress_bar()
    for folder in make_tiny_models(args.output_dir, args.seed):
        megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        print(f"{folder}: {megabytes:.1f} MB")


def parse_arguments() -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=REPOSITORY / "demo" / "models", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other weights")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(cli.run(main))
