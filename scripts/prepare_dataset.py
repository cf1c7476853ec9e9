"""The real data set, from what people download to images where the annotations say, verified.

    hf download IntMeGroup/DFBench --repo-type dataset --local-dir ./DFBench
    python scripts/prepare_dataset.py

or both in one, for some sources only: `python scripts/prepare_dataset.py --download --sources Kolors CLIVE`.

Images go to IMAGE_ROOT/DFBench/SOURCE/..., straight to the paths that the annotations name; a second run does only what
is missing. Clean annotations, one plain string a value, replace the released ones under the names that the model
folders read: qwen2.5/datasets/img_{train_shuffled,val,test}.json, internvl2.5/data/img_{train_shuffled,val,test}.jsonl
and the same in internvl3; with --annotation_dir DIR, DIR/img_{train,val,test}.jsonl for all models. Released files that
lie in the way are kept as NAME.released.json and read from there the next time. Rows keep their released order.

Every annotation row that is left out stands in IMAGE_ROOT/DFBench/prepare_left_out.csv with its reason, and
prepare_report.json beside it has the counts. Exit status: 0 if there are training and test annotations and each of
their rows that can have an image has one (junk rows, repeated ones and training rows that are test rows too are no
fault), 1 otherwise, 2 for wrong arguments.
"""

import argparse
import sys
from pathlib import Path

from dfbench import cli
from dfbench.data.splits import Subset
from dfbench.parallel import available_cores
from dfbench.paths import REPOSITORY
from dfbench.prepare.hub import download, folder_target, model_targets
from dfbench.prepare.pipeline import Plan, prepare
from dfbench.prepare.report import LEFT_OUT_NAME, MOST_KNOWN_ABSENT, check_complete, describe, write_report


def main() -> None:
    args = parse_arguments()
    if args.download:
        download(args.archives, args.sources, quiet=args.quiet)
    report = prepare(
        Plan(
            downloads=args.archives,
            image_root=args.image_root,
            targets=(folder_target(args.annotation_dir),) if args.annotation_dir else model_targets(REPOSITORY),
            sources=frozenset(args.sources),
            subset=Subset(args.val_fraction, args.limit_per_source, args.balance, args.seed),
            decode=args.decode,
            verify_only=args.verify_only,
            num_workers=args.workers,
            quiet=args.quiet,
        )
    )
    print(describe(report))
    where: object = args.archives
    if args.report_dir or not args.verify_only:
        folder = args.report_dir or args.image_root / "DFBench"
        where = folder / LEFT_OUT_NAME
        print(f"{write_report(report, folder)}: this report; rows left out are in {where}")
    check_complete(report, allowed_absent=args.allow_missing, where=where)


def parse_arguments() -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--archives", type=Path, default=REPOSITORY / "DFBench", help="folder with the downloaded zips and annotations")
    add("--download", action="store_true", help="fetch into --archives first; goes on from where it stopped")
    add("--sources", nargs="+", default=[], metavar="NAME", help="only these sources, such as Kolors CLIVE")
    add("--image_root", type=Path, default=REPOSITORY, help="folder that receives DFBench/SOURCE/...")
    add("--annotation_dir", type=Path, help="folder for the clean annotations, instead of the model folders")
    add("--report_dir", type=Path, help="folder for the report (default: IMAGE_ROOT/DFBench)")
    add("--val_fraction", type=fraction, default=0.01, help="share of each source's training rows for validation")
    add(
        "--limit_per_source", type=cli.positive_int, default=0, metavar="N", help="a subset: N training and N test rows"
    )
    add("--balance", action="store_true", help="cut fake (or real) rows so that both sides weigh equally in each file")
    add("--seed", type=int, default=0, help="another seed gives another subset")
    add("--decode", action="store_true", help="verify every pixel of every image; otherwise headers and sizes")
    add("--verify_only", action="store_true", help="change nothing (a report is written to --report_dir if named)")
    known = f"{MOST_KNOWN_ABSENT} without a number, the most that are known to be absent"
    add(
        "--allow_missing",
        type=int,
        nargs="?",
        const=MOST_KNOWN_ABSENT,
        default=0,
        metavar="N",
        help=f"accept N images that no whole archive has; {known}",
    )
    add("--workers", type=cli.positive_int, default=available_cores(), help="processes for extracting and checking")
    add("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args()
    if args.download and args.verify_only:
        parser.error("--download fetches files and --verify_only changes nothing: name one of them")
    return args


def fraction(text: str) -> float:
    """`argparse` type: a number from 0 up to, but without, 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a fraction from 0 to below 1")
    return value


if __name__ == "__main__":
    sys.exit(cli.run(main))
