"""Score images with InternVL2.5-8B: the logits of A (real) and B (generated) by one forward pass.

Writes results/internvl2.5.csv (one row an image), its .json, and .errors.csv for images without an answer. A run
that was interrupted goes on with the same command.

    python evaluate_logit.py --model_path ./output_ckpt/your_weights_merged
    python evaluate_logit.py --model_path ./OpenGVLab/InternVL2_5-8B --adapter ./output_ckpt/checkpoint-500
"""

import sys

from dfbench import cli
from dfbench.scoring.program import main

if __name__ == "__main__":
    sys.exit(cli.run(lambda: main("internvl2.5", __doc__)))
