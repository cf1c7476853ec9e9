"""MoA-DF: fuse the answers of several agents, image by image.

python logit_calculation.py                                  # the three agents of results/ -> results/moa_df.csv
python logit_calculation.py a.csv b.csv --output_csv ab.csv  # any per-image CSVs, upstream's two shapes as well
python logit_calculation.py --fusion stacked                 # fitted, cross-fitted by source
python logit_calculation.py --fusion stacked --fit_csv val/a.csv val/b.csv val/c.csv
python logit_calculation.py --apply results/moa_df.json      # fitted earlier, on other images
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dfbench import cli
from dfbench.errors import InputError
from dfbench.fusion.early_exit import complete, is_spared, mark_early
from dfbench.fusion.rules import FITTED_METHODS, METHODS, Rule, fuse, given_weights, join_agents, write_fused
from dfbench.models.registry import MOA_DF_CSV, agent_csvs
from dfbench.predictions.reader import Detector, read_detectors
from dfbench.predictions.schema import check_output_csv


def main() -> None:
    args = parse()
    paths = args.csv or agent_csvs(partial=args.partial)
    check_output_csv(args.output_csv, paths)
    detectors = read_detectors(paths)
    detectors, early = complete(detectors)
    joined = join_agents(detectors, partial=args.partial)
    rule = choose_rule(args, joined, detectors)
    frame = fuse(joined, [detector.name for detector in detectors], rule)
    if early:
        refuse_other_rules(args.fusion)
        last = next(detector.name for detector in detectors if is_spared(detector))
        frame = mark_early(frame, early, last)
        print(f"{len(early):,} images decided before {last} looked")
    info = write_fused(args.output_csv, frame, detectors, rule)
    for agent in info["agents"]:
        left_out = f", {agent['left_out']:,} left out" if agent["left_out"] else ""
        print(f"{agent['name']}: {agent['rows']:,} images{left_out}")
    answers = info["answers"]
    print(f"{info['detector']}: {answers['A']:,} images called A (real), {answers['B']:,} called B (fake)")
    if rule.fitted_on:
        print(f"fitted on {rule.fitted_on}")
    print(f"written to {args.output_csv}")


def parse() -> Namespace:
    parser = cli.ArgumentParser(__doc__)
    add = parser.add_argument
    add("csv", nargs="*", type=Path, metavar="CSV", help="per-image CSVs, one an agent; none: the three of results/")
    add("--output_csv", type=Path, default=MOA_DF_CSV, help="fused per-image CSV to write")
    add("--fusion", choices=METHODS, help="default: mean_prob, the paper's rule")
    add("--weights", nargs="+", type=float, metavar="W", help="weights of --fusion weighted, one an agent")
    add("--fit_csv", nargs="+", type=Path, metavar="CSV", help="validation CSVs of the same agents to fit on")
    add("--folds", type=cli.positive_int, default=5, help="of cross-fitting, without --fit_csv")
    add("--apply", type=Path, metavar="JSON", help="metadata of a fused CSV: fuse with the numbers fitted there")
    add("--partial", action="store_true", help="fuse what all agents answered, drop the rest")
    args = parser.parse_args()
    if args.apply and (args.fusion or args.weights or args.fit_csv):
        parser.error("--apply brings its own fusion: leave --fusion, --weights and --fit_csv away")
    args.fusion = args.fusion or "mean_prob"
    if args.weights and (args.fusion != "weighted" or args.fit_csv):
        parser.error("--weights goes with --fusion weighted, and without --fit_csv")
    if args.fit_csv and args.fusion not in FITTED_METHODS:
        parser.error(f"--fit_csv goes with --fusion {', '.join(FITTED_METHODS)}")
    return args


def refuse_other_rules(fusion: str) -> None:
    """A cascade's bounds hold for the mean of the probabilities alone."""
    if fusion != "mean_prob":
        raise InputError(
            "--fusion",
            found=f"{fusion} with an agent that ran with --only_undecided",
            expected="mean_prob, whose decisions alone it keeps",
            remedy="score all images with every agent for other rules",
        )


def choose_rule(args: Namespace, joined: pd.DataFrame, detectors: Sequence[Detector]) -> Rule:
    if args.weights:
        return given_weights(args.weights, len(detectors))
    if not args.apply and args.fusion not in FITTED_METHODS:
        return Rule(args.fusion)
    from dfbench.fusion import (
        fitting as fusion_fitting,  # brings scikit-learn, which takes a second that the paper's rule need not wait
    )

    if args.apply:
        return fusion_fitting.saved_rule(args.apply, detectors)
    if args.fit_csv:
        return fusion_fitting.fit_on_files(args.fusion, args.fit_csv, detectors, partial=args.partial)
    return fusion_fitting.cross_fit(args.fusion, joined, detectors, args.folds)


if __name__ == "__main__":
    sys.exit(cli.run(main))
