"""How good every detector is: accuracy, F1, AUROC and more by source, category and class, with 95 % intervals.

python process_results.py                               # those of results/ -> results/tables/, results/report.html
python process_results.py a.csv b.csv --output_dir out  # any per-image CSVs, upstream's two shapes as well
python process_results.py --audit --image_root .        # what size and file format alone explain
"""

import sys
from argparse import Namespace
from pathlib import Path

from dfbench import cli
from dfbench.evaluation.evaluate import evaluate
from dfbench.evaluation.shortcut_audit import MATCHED, audit, correlation_table
from dfbench.evaluation.table_files import write_tables
from dfbench.evaluation.tables import all_tables, result_lines
from dfbench.fusion.early_exit import is_spared
from dfbench.models.registry import MOA_DF_CSV, detector_csvs
from dfbench.paths import REPOSITORY, RESULTS
from dfbench.predictions.reader import join, read_detectors
from dfbench.report.page import write_report


def main() -> None:
    args = parse()
    detectors = read_detectors(args.csv or detector_csvs(partial=args.partial))
    spared = [detector for detector in detectors if is_spared(detector)]
    if spared and len(spared) < len(detectors) and not args.partial:
        # What it got right of the open images, which are hard, does not compare with the others' figures.
        detectors = [detector for detector in detectors if not is_spared(detector)]
        for detector in spared:
            print(
                f"{detector.name} is left out: with --only_undecided it answered {len(detector.frame):,} images only\n"
            )
    found = None
    if args.audit:
        found = audit(
            join(detectors, partial=args.partial),
            [detector.name for detector in detectors],
            image_root=args.image_root,
            features_dir=args.features_dir,
            seed=args.seed,
            quiet=args.quiet,
        )
    evaluation = evaluate(
        [*detectors, *found.probes] if found else detectors,
        partial=args.partial,
        num_draws=args.bootstrap,
        seed=args.seed,
        prior=args.prior,
        weightings={MATCHED: found.weights} if found and found.num_pairs else {},
        quiet=args.quiet,
    )
    print("\n".join(result_lines(evaluation)))
    if not args.csv and not MOA_DF_CSV.exists():
        print("MoA-DF is not among them: run `python logit_calculation.py` first")
    tables = all_tables(evaluation) + ([correlation_table(found)] if found else [])
    write_tables(evaluation, args.output_dir / "tables", tables)
    report = args.output_dir / "report.html"
    write_report(report, evaluation, image_root=args.image_root, features_dir=args.features_dir, found=found)
    print(f"\ntables in {args.output_dir / 'tables'}\nreport in {report}")


def parse() -> Namespace:
    parser = cli.ArgumentParser(__doc__)
    add = parser.add_argument
    add("csv", nargs="*", type=Path, metavar="CSV", help="per-image CSVs, one a detector; none: those of results/")
    add("--output_dir", type=Path, default=RESULTS, help="folder of tables/ and report.html")
    add("--partial", action="store_true", help="use what all detectors answered, drop the rest")
    add("--bootstrap", type=cli.natural_int, default=1000, metavar="N", help="draws behind the intervals; 0: none")
    add("--seed", type=cli.natural_int, default=0, help="of the draws and the audit's folds")
    add("--prior", type=cli.share, metavar="P", help="share of real images (0 to 1) to give the figures at once more")
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
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(cli.run(main))
