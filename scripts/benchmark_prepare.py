"""Speed and memory of `prepare_dataset.py` at the size of DFBench, on data made for it in a temporary folder.

    python scripts/benchmark_prepare.py

Two measurements, each with its target:

- 545,637 annotation rows in both released shapes against archives with as many members: read, matched, checked against
  the disk, clean annotations written for the model folders. 60 s and 2 GiB at most.
- Extraction of JPEGs with one worker against `unzip -q`, and with all cores. 80 % of its speed at least.
"""

import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dfbench import cli
from dfbench.data.sources import DFBENCH, NUM_TEST, NUM_TRAIN, Source
from dfbench.errors import InputError
from dfbench.models.registry import AGENTS
from dfbench.parallel import available_cores
from dfbench.prepare.extract import extract_missing, take_inventory
from dfbench.prepare.hub import Target
from dfbench.prepare.pipeline import Plan, choose, validate_releases, write_clean

QUESTION = (
    "Is this a real image or a generated image? Look closely. A: 'real' or B: 'generated'. Just answer with A or B."
)

NUM_ARCHIVES = 4
"""Of those that the JPEGs are in; the data set has 21."""


def main() -> None:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument(
        "--rows", type=cli.positive_int, default=NUM_TRAIN + NUM_TEST, help="annotation rows and members"
    )
    parser.add_argument("--jpegs", type=cli.positive_int, default=6000, help="JPEGs of 1024x1024 to extract")
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure_matching(Path(folder) / "matching", args.rows)
        measure_extraction(Path(folder) / "extraction", args.jpegs)


# ------------------------------------------------------------------------------------------------------------- matching


def measure_matching(folder: Path, num_rows: int) -> None:
    """Times of each step up to written annotations, and the peak memory of this process, which does them all."""
    # Made in another process: its memory is not what is measured.
    maker = multiprocessing.get_context("spawn").Process(target=make_release, args=(folder / "downloads", num_rows))
    maker.start()
    maker.join()
    targets = [
        Target(folder / agent.name / agent.train_annotations, folder / agent.name / agent.test_annotations)
        for agent in AGENTS.values()
    ]
    plan = Plan(folder / "downloads", folder, tuple(targets))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    label_of: dict[str, str] = {}
    start = time.perf_counter()
    releases, seconds_reading = timed(lambda: validate_releases(plan, label_of))
    inventory, seconds_matching = timed(lambda: take_inventory(label_of, plan.image_root, plan.downloads))
    _, seconds_choosing = timed(lambda: [choose(release, inventory, label_of, plan.subset) for release in releases])
    written, seconds_writing = timed(lambda: write_clean(releases))
    total = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    num_written = sum(file["rows"] for file in written)
    print(f"{num_rows:,} rows in both shapes, {len(inventory.members):,} matched, {num_written:,} rows written")
    print(f"  read {seconds_reading:.1f} s, match {seconds_matching:.1f} s, choose {seconds_choosing:.1f} s, ", end="")
    print(f"write {seconds_writing:.1f} s: {total:.1f} s in all (at most 60 for 545,637 rows)")
    print(f"  peak memory {peak / 2**20:.2f} GiB, of which {before / 2**20:.2f} before (at most 2)", flush=True)


def make_release(downloads: Path, num_rows: int) -> None:
    """Archives of one-byte images and annotations in both shapes, rows shuffled, in the release's proportions."""
    downloads.mkdir(parents=True)
    share = -(-num_rows // len(DFBENCH))
    keys = [(source, i) for source in DFBENCH for i in range(share)][:num_rows]
    for source in DFBENCH:
        make_archive(downloads / source.archive, ((f"{i:06d}.jpg", b"x") for other, i in keys if other is source))
    random.Random(0).shuffle(keys)
    num_test = round(num_rows * NUM_TEST / (NUM_TRAIN + NUM_TEST))
    for stem, part in (("img_test", keys[:num_test]), ("img_train_shuffled", keys[num_test:])):
        (downloads / f"{stem}.json").write_text(json.dumps([messages_row(*key) for key in part]))
        (downloads / f"{stem}.jsonl").write_text("\n".join(json.dumps(conversations_row(*key)) for key in part))


def messages_row(source: Source, i: int) -> dict:
    turns = [{"role": "user", "content": f"<image>{QUESTION}"}, {"role": "assistant", "content": source.label}]
    return {"messages": turns, "images": f"DFBench/{source.name}/{i:06d}.jpg"}


def conversations_row(source: Source, i: int) -> dict:
    answer = {"from": "gpt", "value": [{"role": "assistant", "content": source.label}]}
    return {
        "image": f"DFBench/{source.name}/{i:06d}.jpg",
        "conversations": [{"from": "human", "value": QUESTION}, answer],
    }


def make_archive(path: Path, members: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)


# ----------------------------------------------------------------------------------------------------------- extraction


def measure_extraction(folder: Path, num_jpegs: int) -> None:
    """Our extraction with one worker and with all cores, beside `unzip -q`; the best of three each, in turn."""
    if not shutil.which("unzip"):
        raise InputError("There is no unzip to compare with. Install Info-ZIP's, as with apt-get install unzip.")
    sources = DFBENCH[:NUM_ARCHIVES]
    folder.mkdir(parents=True)
    images, members = [], jpegs(num_jpegs)
    for i, source in enumerate(sources):
        names_and_bytes = list(itertools.islice(members, len(range(i, num_jpegs, NUM_ARCHIVES))))
        make_archive(folder / source.archive, names_and_bytes, zipfile.ZIP_DEFLATED)
        images += [f"DFBench/{source.name}/{name}" for name, _ in names_and_bytes]
    archives = [folder / source.archive for source in sources]
    megabytes = sum(archive.stat().st_size for archive in archives) / 1e6

    def unzip(target: Path, num_processes: int) -> None:
        target.mkdir()
        with ThreadPoolExecutor(num_processes) as pool:
            commands = [["unzip", "-q", archive, "-d", target / archive.stem] for archive in archives]
            list(pool.map(partial(subprocess.run, check=True), commands))

    def extract(target: Path, num_workers: int) -> None:
        inventory = take_inventory(images, target, folder)
        assert extract_missing(inventory, images, target, num_workers=num_workers, quiet=True) == num_jpegs

    ways: dict[str, Callable[[Path], object]] = {
        "unzip -q": lambda target: unzip(target, 1),
        f"unzip -q, {available_cores()} at once": lambda target: unzip(target, available_cores()),
        "1 worker": lambda target: extract(target, 1),
        f"{available_cores()} workers": lambda target: extract(target, available_cores()),
    }
    best = dict.fromkeys(ways, (float("inf"), 0.0))
    for _ in range(3):
        for name, way in ways.items():
            before = cpu_seconds()
            _, seconds = timed(lambda way=way: way(folder / "out"))
            best[name] = min(best[name], (seconds, cpu_seconds() - before))
            shutil.rmtree(folder / "out")
    print(f"{num_jpegs:,} JPEGs of 1024x1024 in {NUM_ARCHIVES} archives, {megabytes:.0f} MB")
    for name, (seconds, cpu) in best.items():
        speed = f"{megabytes / seconds:.0f} MB/s, {best['unzip -q'][0] / seconds:.0%} of unzip's speed"
        print(f"  {name}: {seconds:.2f} s, {speed}, CPU {cpu:.2f} s")


def cpu_seconds() -> float:
    """Processor time of this process and its ended children: on a busy machine it tells more than the clock."""
    return sum(os.times()[:4])


def jpegs(count: int) -> Iterator[tuple[str, bytes]]:
    """JPEGs of some 200 KB: smoothed noise, each another crop of it."""
    noise = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), dtype=np.uint8)
    canvas = Image.fromarray(noise).resize((1100, 1100), Image.Resampling.BICUBIC)
    random_crop = random.Random(0)
    with tempfile.SpooledTemporaryFile(1 << 30) as file:
        for i in range(count):
            left, top = random_crop.randrange(76), random_crop.randrange(76)
            file.seek(0)
            file.truncate()
            canvas.crop((left, top, left + 1024, top + 1024)).save(file, "JPEG", quality=40)
            file.seek(0)
            yield f"{i:06d}.jpg", file.read()


def timed(work: Callable[[], object]) -> tuple:
    """(result, seconds)."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(cli.run(main))
