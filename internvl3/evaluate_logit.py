"""Score images with InternVL3-9B: the logits of A (real) and B (generated) by one forward pass.

Writes results/internvl3.csv (one row an image), its .json, and .errors.csv for images without an answer. A run
that was interrupted goes on with the same command.

    python evaluate_logit.py --model_path ./output_ckpt/your_weights_merged
    python evaluate_logit.py --model_path ./OpenGVLab/InternVL3-9B --adapter ./output_ckpt/checkpoint-500
"""

import sys
from pathlib import Path

from dfbench import cli
from dfbench.scoring.config import INTERNVL_PROTOCOLS, Agent, main

AGENT = Agent(
    name="internvl3",
    folder=Path(__file__).resolve().parent,
    dataset="data/img_test.jsonl",
    protocols=INTERNVL_PROTOCOLS,
    family="internvl",
)

if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(AGENT, __doc__)))
