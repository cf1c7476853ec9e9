"""How good every detector is: accuracy, F1, AUROC and more by source, category and class, with 95 % intervals.

python process_results.py                               # those of results/ -> results/tables/, results/report.html
python process_results.py a.csv b.csv --output_dir out  # any per-image CSVs, upstream's two shapes as well
python process_results.py --audit --image_root .        # what size and file format alone explain
"""

import sys
from argparse import Namespace
from pathlib import Path

from dfbench import cli
from dfbench.models.registry import MOA_DF_CSV, detector_csvs, missing_agents
from dfbench.paths import REPOSITORY, RESULTS
from dfbench.predictions.schema import check_input_csvs


def main() -> None:
    args = parse()
    paths = args.csv or detector_csvs()
    check_input_csvs(paths)
    # These bring pandas and matplotlib, which no help and no wrong path needs to wait for.
    from dfbench.evaluation.evaluate import evaluate
    from dfbench.evaluation.shortcut_audit import audit
    from dfbench.evaluation.tables import result_lines, write_tables
    from dfbench.predictions.join import join
    from dfbench.predictions.reader import read_detectors
    from dfbench.report.page import write_report

    detectors = read_detectors(paths)
    exited = [detector for detector in detectors if detector.is_early_exited]
    if len(exited) < len(detectors) and not args.partial:
        # What it got right of the open images, which are hard, does not compare with the others' figures.
        detectors = [detector for detector in detectors if not detector.is_early_exited]
        for detector in exited:
            answered = f"with --only_undecided it answered {len(detector.frame):,} images only"
            print(f"{detector.name} is left out: {answered}\n")
    found = None
    if args.audit:
        found = audit(
            join(detectors, partial=args.partial),
            image_root=args.image_root,
            features_dir=args.features_dir,
            seed=args.seed,
            quiet=args.quiet,
        )
    evaluation = evaluate(
        detectors,
        partial=args.partial,
        num_resamples=args.bootstrap,
        seed=args.seed,
        prior=args.prior,
        audit=found,
        quiet=args.quiet,
    )
    print("\n".join(result_lines(evaluation)))
    missing = [] if args.csv else [(agent.name, agent.evaluate_command) for agent in missing_agents()]
    if not args.csv and not MOA_DF_CSV.exists():
        missing.append(("MoA-DF", "python logit_calculation.py"))
    for name, command in missing:
        print(f"{name} is not among them: run `{command}` first")
    write_tables(evaluation, args.output_dir / "tables")
    report = args.output_dir / "report.html"
    write_report(report, evaluation, image_root=args.image_root, features_dir=args.features_dir)
    print(f"\ntables in {args.output_dir / 'tables'}\nreport in {report}")


def parse() -> Namespace:
    parser = cli.ArgumentParser(__doc__)
    add = parser.add_argument
    add("csv", nargs="*", type=Path, metavar="CSV", help="per-image CSVs, one a detector; none: those of results/")
    add("--output_dir", type=Path, default=RESULTS, help="folder of tables/ and report.html")
    add("--partial", action="store_true", help="use what all detectors answered, drop the rest")
    add("--bootstrap", type=cli.natural_int, default=1000, metavar="N", help="resamples for the intervals; 0: none")
    add("--seed", type=cli.natural_int, default=0, help="of the resamples and the audit's folds")
    add("--prior", type=cli.fraction, metavar="P", help="share of real images to give the figures at once more")
    add("--audit", action="store_true", help="what image size and file format alone explain; reads the images' headers")
    add(
        "--image_root",
        type=Path,
        default=REPOSITORY,
        help="folder that the image paths start from, for thumbnails and the audit",
    )
    add(
        "--features_dir",
        type=Path,
        default=RESULTS / "features",
        help="CSVs of feature_distribution.py, drawn in the report if they are there",
    )
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    if args.prior == 0:
        parser.error("--prior is larger than 0: without real images most figures are not defined")
    return args


if __name__ == "__main__":
    sys.exit(cli.run(main))
