"""Accuracy and F1 of every detector by source, category and class, as tables.

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
from dfbench.tables import accuracy_table, terminal_lines, write_tables


def main() -> None:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument(
        "csv", nargs="*", type=Path, metavar="CSV", help="per-image CSVs, one a detector; none: those of results/"
    )
    parser.add_argument("--output_dir", type=Path, default=RESULTS, help="folder of tables/")
    parser.add_argument("--partial", action="store_true", help="use what all detectors answered, drop the rest")
    args = parser.parse_args()

    detectors = read_detectors(args.csv or detector_csvs(partial=args.partial))
    evaluation = evaluate(detectors, partial=args.partial)
    for line in terminal_lines(accuracy_table(evaluation)):
        print(line)
    if not args.csv and not MOA_DF_CSV.exists():
        print("MoA-DF is not among them: run `python logit_calculation.py` first")
    write_tables(evaluation, args.output_dir / "tables")
    print(f"tables in {args.output_dir / 'tables'}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
