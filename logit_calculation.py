"""MoA-DF: fuse the answers of several agents, image by image.

python logit_calculation.py                                  # the three agents of results/ -> results/moa_df.csv
python logit_calculation.py a.csv b.csv --output_csv ab.csv  # any per-image CSVs, upstream's two shapes as well
"""

import sys
from pathlib import Path

from dfbench import cli
from dfbench.fusion import METHODS, fuse, write_fused
from dfbench.records import read_detectors
from dfbench.result_files import MOA_DF_CSV, agent_csvs


def main() -> None:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument(
        "csv", nargs="*", type=Path, metavar="CSV", help="per-image CSVs, one an agent; none: the three of results/"
    )
    parser.add_argument("--output_csv", type=Path, default=MOA_DF_CSV, help="fused per-image CSV to write")
    parser.add_argument("--fusion", choices=METHODS, default="mean_prob", help="mean_prob is the paper's rule")
    parser.add_argument(
        "--partial", action="store_true", help="fuse the images that all agents answered, drop the rest"
    )
    args = parser.parse_args()

    detectors = read_detectors(args.csv or agent_csvs(partial=args.partial))
    frame = fuse(detectors, args.fusion, partial=args.partial)
    info = write_fused(args.output_csv, frame, detectors, args.fusion)
    for agent in info["agents"]:
        left_out = f", {agent['left_out']:,} left out" if agent["left_out"] else ""
        print(f"{agent['name']}: {agent['rows']:,} images{left_out}")
    answers = info["answers"]
    print(f"{info['detector']}: {answers['A']:,} images called A (real), {answers['B']:,} called B (fake)")
    print(f"written to {args.output_csv}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
