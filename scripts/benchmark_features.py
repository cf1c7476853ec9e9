"""Time and memory of the image features, against a plain rendering of upstream's definitions.

    python scripts/benchmark_features.py                    # a 1024x1024 JPEG of real photographs, made in memory
    python scripts/benchmark_features.py --image FILE --workers 1 2 4 8

Prints milliseconds an image on one core, the largest difference of the four features that upstream has, the peak memory
of a worker, and images/s of whole runs over many copies of the image.
"""

import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image
from scipy import ndimage

from dfbench import cli
from dfbench.features.compute import measure_image
from dfbench.features.run import measure_sources, prepare_process
from dfbench.parallel import available_cores


def upstream_features(path: Path) -> dict[str, float]:
    """The four features as upstream works them out: decoded twice, float64 arrays, brightness in a loop over pixels."""
    bgr = cv2.imread(str(path))
    blue, green, red = cv2.split(bgr.astype(float))
    rg, yb = np.absolute(red - green), np.absolute(0.5 * (red + green) - blue)
    colorfulness = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    contrast = np.std(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY))
    with Image.open(path) as image:
        rgba, gray = image.convert("RGBA"), np.array(image.convert("L")).astype("float32")
    pixels, total, count = rgba.load(), 0.0, 0
    for x in range(rgba.width):
        for y in range(rgba.height):
            r, g, b, a = pixels[x, y]
            if a > 0:
                total += 0.2126 * r + 0.7152 * g + 0.0722 * b
                count += 1
    gradient = np.hypot(ndimage.sobel(gray, axis=0), ndimage.sobel(gray, axis=1))[1:-1, 1:-1]
    return {"brightness": total / count, "contrast": contrast, "colorfulness": colorfulness, "si": gradient.std()}


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def time_one_core(path: Path, repeats: int) -> None:
    """Print milliseconds for decoding, for all features and for upstream's definitions, and how far they are apart."""
    data = np.fromfile(path, np.uint8)
    prepare_process()
    decoding = milliseconds(lambda: cv2.imdecode(data, cv2.IMREAD_COLOR), repeats)
    ours = milliseconds(lambda: measure_image(path), repeats)
    theirs = milliseconds(lambda: upstream_features(path), min(repeats, 3))
    measured, expected = measure_image(path), upstream_features(path)
    difference = max(abs(getattr(measured, name) - value) for name, value in expected.items())
    print(f"{measured.width}x{measured.height} {measured.format}, {measured.num_bytes:,} bytes, one core")
    print(f"  decoding alone            {decoding:8.2f} ms")
    print(f"  all features              {ours:8.2f} ms, decoding included")
    print(f"  upstream's definitions    {theirs:8.2f} ms, {theirs / ours:.0f} times as long")
    print(f"  largest difference        {difference:8.5f} of 255")


def time_whole_run(path: Path, num_images: int, workers: int) -> None:
    """Print images/s of a run over copies of the image, process start included, and the peak memory of a worker."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        keys = [f"copies/{i:06d}{path.suffix}" for i in range(num_images)]
        (root / "copies").mkdir()
        for key in keys:
            shutil.copy(path, root / key)
        outcome = measure_sources({"copies": keys}, root, root / "features", workers=workers, quiet=True)
    print(f"  {workers:2} workers: {outcome.num_new / outcome.seconds:7.1f} images/s, start of the processes included")


def peak_memory(path: Path) -> float:
    """MiB that this process has held at most, once it has measured the image a few times (Linux)."""
    prepare_process()
    for _ in range(3):
        measure_image(path)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--image", type=Path, help="image to measure; without it, a montage of photographs")
    parser.add_argument("--repeats", type=cli.positive_int, default=50, help="calls timed, of which the median counts")
    parser.add_argument("--images", type=cli.positive_int, default=500, help="copies in a whole run")
    cores = available_cores()
    parser.add_argument("--workers", type=cli.positive_int, nargs="+", default=sorted({1, cores}), help="runs to time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.image
        if path is None:
            path = Path(folder) / "montage.jpg"
            Image.fromarray(np.tile(skimage.data.astronaut(), (2, 2, 1))).save(path, quality=90)
        time_one_core(path, args.repeats)
        if sys.platform == "linux":
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                print(f"  peak memory of a worker   {pool.submit(peak_memory, path).result():8.0f} MiB")
        print(f"whole runs over {args.images} copies, {cores} cores")
        for workers in args.workers:
            time_whole_run(path, args.images, workers)


if __name__ == "__main__":
    sys.exit(cli.run(main))
