"""How good every detector is: accuracy, F1, AUROC and more by source, category and class, with 95 % intervals.

python process_results.py                               # the detectors of results/ -> results/tables/
python process_results.py a.csv b.csv --output_dir out  # any per-image CSVs, upstream's two shapes as well
"""

import sys
from pathlib import Path

from dfbench import cli
from dfbench.evaluation import evaluate
from dfbench.paths import RESULTS
from dfbench.records import read_detectors
from dfbench.result_files import MOA_DF_CSV, detector_csvs
from dfbench.tables import result_lines, write_tables


def main() -> None:
    parser = cli.ArgumentParser(__doc__)
    add = parser.add_argument
    add("csv", nargs="*", type=Path, metavar="CSV", help="per-image CSVs, one a detector; none: those of results/")
    add("--output_dir", type=Path, default=RESULTS, help="folder of tables/")
    add("--partial", action="store_true", help="use what all detectors answered, drop the rest")
    add("--bootstrap", type=cli.natural_int, default=1000, metavar="N", help="draws behind the intervals; 0: none")
    add("--seed", type=cli.natural_int, default=0, help="of the draws")
    add("--prior", type=cli.share, metavar="P", help="share of real images (0 to 1) to give the figures at once more")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()

    detectors = read_detectors(args.csv or detector_csvs(partial=args.partial))
    evaluation = evaluate(
        detectors,
        partial=args.partial,
        num_draws=args.bootstrap,
        seed=args.seed,
        prior=args.prior,
        quiet=args.quiet,
    )
    print("\n".join(result_lines(evaluation)))
    if not args.csv and not MOA_DF_CSV.exists():
        print("MoA-DF is not among them: run `python logit_calculation.py` first")
    write_tables(evaluation, args.output_dir / "tables")
    print(f"\ntables in {args.output_dir / 'tables'}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
