"""Convert a checkpoint in InternVL's original format, with or without upstream's LoRA, to transformers' native one.

    python scripts/convert_internvl.py --input OpenGVLab/InternVL2_5-8B --output OpenGVLab/InternVL2_5-8B-hf
    python scripts/convert_internvl.py --input OpenGVLab/InternVL3-9B --output out --lora lora_weights.pth

The training and evaluation programs convert an original folder by themselves; this is for choosing the place, and for
merging a LoRA file.
"""

import sys
from pathlib import Path

from dfbench import cli
from dfbench.models.internvl_convert.convert import convert


def main() -> None:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--input", type=Path, required=True, help="folder of the original checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="folder to write: new, or empty")
    parser.add_argument("--lora", type=Path, help="upstream's lora_weights.pth, to be merged")
    parser.add_argument("--lora_rank", type=cli.positive_int, default=8, help="rank of the LoRA in --lora")
    parser.add_argument("--lora_alpha", type=cli.positive_int, default=16, help="alpha of the LoRA in --lora")
    args = parser.parse_args()
    convert(args.input, args.output, lora=args.lora, lora_rank=args.lora_rank, lora_alpha=args.lora_alpha)
    print(f"native checkpoint: {args.output}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
