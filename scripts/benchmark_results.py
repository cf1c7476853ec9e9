"""Time and memory of logit_calculation.py and process_results.py at the size of the released test set.

Makes per-image CSVs of three agents with the catalogue's sources and the real numbers of real, edited and generated
images, then runs both programs as a user would. The answers are random numbers that look like a good detector's.

    python scripts/benchmark_results.py
    python scripts/benchmark_results.py --rows 10000 --bootstrap 100
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dfbench import cli
from dfbench.data.sources import DFBENCH, NUM_TEST, Category
from dfbench.paths import REPOSITORY

SHARES = {"real": 9_357 / NUM_TEST, "edited": 3_000 / NUM_TEST, "generated": 96_774 / NUM_TEST}
"""Of the released test set; sources of one kind get equal parts."""


def main() -> None:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--rows", type=cli.positive_int, default=NUM_TEST, help="images")
    parser.add_argument("--bootstrap", type=cli.natural_int, default=1000, help="resamples of process_results.py")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        agents = [Path(folder) / f"{name}.csv" for name in ("qwen2.5", "internvl2.5", "internvl3")]
        write_agents(agents, args.rows)
        fused = Path(folder) / "moa_df.csv"
        print(f"{args.rows:,} images, 3 agents and MoA-DF, {os.cpu_count()} cores")
        measure("logit_calculation.py", *agents, "--output_csv", fused)
        options = ("--bootstrap", args.bootstrap, "--output_dir", folder, "--quiet")
        measure("process_results.py", *agents, fused, *options)
        size = (Path(folder) / "report.html").stat().st_size
        print(f"report.html: {size / 1e6:.1f} MB")


def write_agents(paths: list[Path], num_images: int) -> None:
    """Agents that find the same images hard."""
    import pandas as pd

    from dfbench.predictions.probabilities import answers, probabilities
    from dfbench.predictions.reader import Detector, write_detector

    rng = np.random.default_rng(0)
    images, labels = [], []
    for source in DFBENCH:
        kind = {"A": "real"}.get(source.label, "edited" if source.category is Category.AI_EDITED else "generated")
        num_sources = {"real": 8, "edited": 1, "generated": 12}[kind]
        count = max(2, round(num_images * SHARES[kind] / num_sources))
        images += [f"DFBench/{source.name}/{i:06}.jpg" for i in range(count)]
        labels += [source.label] * count
    label = np.array(labels)
    hardness = rng.normal(0, 1, len(images))
    for path in paths:
        log_odds = np.where(label == "B", 1, -1) * (8 + 3 * hardness) + rng.normal(0, 3, len(images))
        logits = np.stack([20 - log_odds / 2, 20 + log_odds / 2], axis=1).astype(np.float32)
        pair = probabilities(logits)
        frame = pd.DataFrame({"image": images, "label": labels, "answer": answers(pair)})
        frame[["logit_A", "logit_B"]], frame[["prob_A", "prob_B"]] = logits, pair
        write_detector(path, Detector(path.stem, frame.sample(frac=1, random_state=0)))


def measure(program: str, *arguments: object) -> None:
    """Run a program to its end and print its wall time, processor time and peak memory."""
    start = time.perf_counter()
    command = [sys.executable, str(REPOSITORY / program), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{program} failed with status {process.returncode}")
    peak = usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    print(f"{program}: {seconds:.1f} s wall, {usage.ru_utime + usage.ru_stime:.1f} s processor, {peak:,.0f} MiB peak")


if __name__ == "__main__":
    sys.exit(cli.run(main))
