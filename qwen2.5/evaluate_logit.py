"""Score images with Qwen2.5-VL: the logits of A (real) and B (generated) by one forward pass.

Writes results/qwen2.5.csv (one row an image), its .json, and .errors.csv for images without an answer. A run that was
interrupted goes on with the same command.

    python evaluate_logit.py --model_path ./output_ckpt/your_weights_merged
    python evaluate_logit.py --model_path ../Qwen/Qwen2.5-VL-7B-Instruct --adapter ./output_ckpt/checkpoint-500
"""

import sys

from dfbench import cli
from dfbench.scoring.program import main

if __name__ == "__main__":
    sys.exit(cli.run(lambda: main("qwen2.5", __doc__)))
