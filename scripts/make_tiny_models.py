"""Tiny checkpoints for the demo, one for each agent: the real architectures with random weights.

    python scripts/make_tiny_models.py
    python scripts/make_tiny_models.py --list    a line for each: agent, its shells, learning rate, training steps

They load like the released ones, and a LoRA adapter trained on the demo's images makes detectors of them in less than
a minute on a CPU.
"""

import argparse
import sys
from pathlib import Path

from dfbench import cli
from dfbench.models.registry import AGENTS
from dfbench.paths import REPOSITORY


def main() -> None:
    args = parse_arguments()
    if args.list:
        for agent in AGENTS.values():
            if agent.demo:
                print(agent.name, agent.train, agent.merge, agent.evaluate, agent.demo.learning_rate, agent.demo.steps)
        return
    from transformers.utils.logging import disable_progress_bar  # only now: it takes seconds

    from dfbench.demo.tiny_models import make_tiny_models

    disable_progress_bar()
    for folder in make_tiny_models(args.output_dir, args.seed):
        megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        print(f"{folder}: {megabytes:.1f} MB")


def parse_arguments() -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=REPOSITORY / "demo" / "models", help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other weights")
    parser.add_argument("--list", action="store_true", help="make nothing; say how the demo trains each")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(cli.run(main))
