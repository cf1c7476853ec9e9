"""MoA-DF: fuse the answers of several agents, image by image.

python logit_calculation.py                                  # the three agents of results/ -> results/moa_df.csv
python logit_calculation.py a.csv b.csv --output_csv ab.csv  # any per-image CSVs, upstream's two shapes as well
python logit_calculation.py --fusion stacked --output_csv results/stacked.csv  # fitted, cross-fitted by source
python logit_calculation.py --fusion stacked --fit_csv val/a.csv val/b.csv val/c.csv --output_csv results/stacked.csv
python logit_calculation.py new/*.csv --apply results/stacked.json --output_csv new.csv  # fitted, on other images

An earlier fusion of the same files by the same rule is written anew; anything else in its place is kept, unless you
say --overwrite.
"""

import sys
from argparse import Namespace
from pathlib import Path

from dfbench import cli
from dfbench.fusion.rules import RULES
from dfbench.models.registry import MOA_DF_CSV, agent_csvs, missing_agents
from dfbench.predictions.schema import FUSION, check_input_csvs, check_output_csv


def main() -> None:
    args = parse()
    paths = args.csv or agent_csvs(partial=args.partial)
    check_input_csvs([*paths, *args.fit_csv])
    read = [*paths, *args.fit_csv, *([args.apply] if args.apply else [])]
    check_output_csv(args.output_csv, read, mark=FUSION, overwrite=args.overwrite)
    # This brings pandas, which no help and no wrong path needs to wait for.
    from dfbench.fusion.fuse import fuse, write_fused

    fused = fuse(
        paths,
        args.fusion,
        weights=args.weights,
        fit_csvs=args.fit_csv,
        num_folds=args.folds,
        apply=args.apply,
        partial=args.partial,
    )
    write_fused(args.output_csv, fused, overwrite=args.overwrite)
    for agent in [] if args.csv else missing_agents():
        print(f"{agent.name} is not among them: run `{agent.evaluate_command}` for all of MoA-DF")
    if not fused.is_finished:
        print("not all of their runs have finished")
    if "decided_early" in fused.frame:
        print(f"{fused.frame['decided_early'].sum():,} images decided before the early-exited agent looked")
    for agent in fused.info["agents"]:
        left_out = f", {agent['left_out']:,} left out" if agent["left_out"] else ""
        print(f"{agent['name']}: {agent['rows']:,} images{left_out}")
    answers = fused.info["answers"]
    print(f"{fused.name}: {answers['A']:,} images predicted A (real), {answers['B']:,} predicted B (fake)")
    if "fitted_on" in fused.info:
        print(f"fitted on {fused.info['fitted_on']}")
    print(f"written to {args.output_csv}")


def parse() -> Namespace:
    fitted = [name for name, rule in RULES.items() if rule.is_fitted]
    rules = " ".join(f"{name}: {rule.__doc__}" for name, rule in RULES.items()).replace("%", "%%")
    parser = cli.ArgumentParser(__doc__)
    add = parser.add_argument
    add("csv", nargs="*", type=Path, metavar="CSV", help="per-image CSVs, one an agent; none: the three of results/")
    add("--output_csv", type=Path, default=MOA_DF_CSV, help="fused per-image CSV to write")
    add("--fusion", choices=RULES, help=f"default: mean_prob. {rules}")
    add("--weights", nargs="+", type=float, metavar="W", help="weights of --fusion weighted, one an agent")
    add(
        "--fit_csv",
        nargs="+",
        default=[],
        type=Path,
        metavar="CSV",
        help="validation CSVs of the agents to fit on",
    )
    add("--folds", type=cli.positive_int, default=5, help="of cross-fitting, without --fit_csv")
    add("--apply", type=Path, metavar="JSON", help="metadata of a fused CSV: fuse with the numbers fitted there")
    add("--partial", action="store_true", help="fuse the agents that are there, and what all of them answered")
    add("--overwrite", action="store_true", help="replace what other programs or fusions wrote to --output_csv")
    args = parser.parse_args()
    if args.apply and (args.fusion or args.weights or args.fit_csv):
        parser.error("--apply brings its own fusion: leave --fusion, --weights and --fit_csv away")
    args.fusion = args.fusion or "mean_prob"
    if args.weights and (args.fusion != "weighted" or args.fit_csv):
        parser.error("--weights goes with --fusion weighted, and without --fit_csv")
    if args.fit_csv and args.fusion not in fitted:
        parser.error(f"--fit_csv goes with --fusion {', '.join(fitted)}")
    return args


if __name__ == "__main__":
    sys.exit(cli.run(main))
