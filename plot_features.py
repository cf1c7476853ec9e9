"""Draw the feature distributions that feature_distribution.py measured: the paper's figure, and each feature by source.

    python plot_features.py                        # results/features/ -> results/figures/
    python plot_features.py --normalise panel      # min-max-normalise in each panel instead of over all of them

Writes feature_distribution.{svg,png,pdf} and feature_<name>.{svg,png,pdf}, their captions as feature_captions.md, and
feature_table.{csv,md,tex}: medians, quartiles and the distance of each source from real images. A report.html beside
the output folder, as process_results.py writes it, gets the figures, too.
"""

import sys
from pathlib import Path

from dfbench import cli
from dfbench.features.schema import NORMALISATIONS, feature_csvs
from dfbench.paths import RESULTS


def main() -> None:
    parser = cli.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--features_dir", type=Path, default=RESULTS / "features", help="folder of <source>.csv")
    add("--output_dir", type=Path, default=RESULTS / "figures", help="folder to write to")
    add("--normalise", choices=NORMALISATIONS, default="common", help="one range a feature, or one in each panel")
    args = parser.parse_args()
    feature_csvs(args.features_dir)
    from dfbench.features.plots import build_feature_report, write_feature_report  # not for a wrong path or --help
    from dfbench.report.page import renew_features

    report = build_feature_report(args.features_dir, normalise=args.normalise)
    paths = write_feature_report(report, args.output_dir)
    page = args.output_dir.parent / "report.html"
    if page.exists() and renew_features(page, report):
        print(f"also in {page}")
    print(f"{len(report.figures)} figures and a table ({len(paths)} files): {args.output_dir}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
