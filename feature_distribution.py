"""Measure brightness, contrast, colorfulness, spatial information and spectral slope of every image, on all cores.

    python feature_distribution.py                                    # all of DFBench/, into results/features/
    python feature_distribution.py --image_root ~/photos --limit_per_source 1000

Writes <source>.csv, <source>.errors.csv (the images that cannot be measured: missing, truncated, no image at all) and
<source>.json. After an interruption, or with more images, the same command goes on with what is not measured yet. The
exit status is 0 if every image could be measured.
"""

import sys
from pathlib import Path

from dfbench import cli
from dfbench.data.discovery import annotated_images, choose_images, find_images
from dfbench.errors import InputError
from dfbench.parallel import available_cores
from dfbench.paths import REPOSITORY, RESULTS


def main() -> None:
    parser = cli.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--image_root", type=Path, default=REPOSITORY, help="folder that holds DFBench/, or any folder of images")
    add("--annotations", type=Path, nargs="+", metavar="FILE", help="measure the images that these files name")
    add("--sources", nargs="+", metavar="SOURCE", help="measure these sources only")
    add("--limit_per_source", type=cli.positive_int, metavar="N", help="N images of each source, picked by a hash")
    add("--workers", type=cli.positive_int, default=available_cores(), help="processes")
    add("--output_dir", type=Path, default=RESULTS / "features", help="folder for the CSVs")
    add("--overwrite", action="store_true", help="start over instead of resuming")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    images = annotated_images(args.annotations) if args.annotations else find_images(args.image_root)
    images = choose_images(images, args.sources, args.limit_per_source)
    from dfbench.features.run import measure_sources  # OpenCV and SciPy: not for a wrong path or --help

    options = {"workers": args.workers, "overwrite": args.overwrite, "quiet": args.quiet}
    outcome = measure_sources(images, args.image_root, args.output_dir, **options)
    if outcome.num_measured == 0:
        raise InputError(
            f"None of {outcome.num_errors} images below {args.image_root} could be measured; {outcome.errors[0]} says "
            "why. Correct --image_root."
        )
    rate = f", {outcome.num_new / outcome.seconds:.1f} images/s" if outcome.num_new else ""
    print(f"{outcome.num_measured} images of {len(images)} sources ({outcome.num_new} new{rate}): {args.output_dir}")
    if outcome.num_errors:
        raise InputError(
            f"{outcome.num_errors} image{'s' * (outcome.num_errors != 1)} could not be measured; see "
            f"{', '.join(map(str, outcome.errors))}. Repair or remove them and repeat the command, which measures only "
            "them."
        )


if __name__ == "__main__":
    sys.exit(cli.run(main))
