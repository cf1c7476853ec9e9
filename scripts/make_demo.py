"""A small stand-in for DFBench, made on the spot: archives and annotations as people download the real ones.

    python scripts/make_demo.py
    python scripts/prepare_dataset.py --archives demo/archives --image_root demo --annotation_dir demo/annotations

Real photographs come from the installed packages; fakes come from small networks that are trained here, in some twenty
seconds on one core. Figures on these images say nothing about DFBench. A second run finds everything in place.
"""

import argparse
import sys
from pathlib import Path

from dfbench import cli
from dfbench.data.sources import DEMO
from dfbench.paths import REPOSITORY


def main() -> None:
    args = parse_arguments()
    from dfbench.demo.dataset import NUM_IMAGES, count_images, make_demo  # only now: torch takes seconds

    done = "made" if make_demo(args.output_dir, args.seed) else "already there"
    counts = " and ".join(f"{count_images(split)} {split}" for split in NUM_IMAGES)
    print(f"{args.output_dir}: {counts} images of {len(DEMO)} stand-in sources, {done}")


def parse_arguments() -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=REPOSITORY / "demo" / "archives", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other images")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(cli.run(main))
