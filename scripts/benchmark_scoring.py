"""Measure scoring: images/s, MFU, waiting, memory and deviation of each model and way, as one table.

python scripts/benchmark_scoring.py                  real shapes with random weights, on a GPU
python scripts/benchmark_scoring.py --tiny           the demo's small models, on a CPU too
python scripts/benchmark_scoring.py --models qwen2.5 --mixed --images 800
"""

import copy
import logging
import sys
import tempfile
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dfbench import cli
from dfbench.benchmarks import scoring as benchmark
from dfbench.data.annotations import Sample
from dfbench.demo.tiny_models import make_tiny_models
from dfbench.errors import OptionError
from dfbench.models.base import Scorer
from dfbench.models.registry import load_prompt, scorer_of
from dfbench.scoring.batching import Plan, make_plan, measure_sizes
from dfbench.scoring.engine import Outcome

logging.getLogger("transformers").setLevel(logging.ERROR)
HEADER = ("model", "way", "images/s", "MFU", "GPU waits", "peak memory", "|dP(A)| largest / mean")
"""P(A) deviates from float32's, one image at a time; with fp8 the deviation from the row above is given as well."""


def main() -> None:
    parser = cli.ArgumentParser(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", default=list(benchmark.REAL_SHAPES), choices=list(benchmark.REAL_SHAPES), help="which")
    add("--images", type=cli.positive_int, default=600, help="images of the end-to-end run")
    add("--mixed", action="store_true", help="sizes in DFBench's proportions instead of 1024x1024")
    add("--tiny", action="store_true", help="the demo's small models instead of the real shapes")
    add("--token_budget", type=cli.positive_int, default=32768, help="tokens of a batch")
    add("--workers", type=cli.natural_int, default=16, help="processes that decode images")
    add("--check", type=cli.positive_int, default=16, help="images whose P(A) is compared with float32")
    add("--eager", action="store_true", help="do not compile")
    add("--fp8", action="store_true", help="measure --precision fp8 as well")
    add("--no_upstream", action="store_true", help="leave the upstream way out")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    add("--folder", type=Path, default=Path(tempfile.gettempdir()) / "dfbench-benchmark", help="for images and configs")
    settings = Settings(**vars(parser.parse_args()))
    if settings.on_gpu:
        torch.cuda.set_device(torch.device(settings.device).index or 0)
    elif settings.fp8:
        raise OptionError("--fp8 needs a GPU.")
    rate = benchmark.matrix_rate(settings.device, settings.dtype, 8192 if settings.on_gpu else 1024)
    name = torch.cuda.get_device_name() if settings.on_gpu else "CPU"
    print(f"{name}, {settings.dtype}, matrix product {rate / 1e12:.3g} TFLOP/s, torch {torch.__version__}\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    settings.folder.mkdir(parents=True, exist_ok=True)
    make_tiny_models(settings.folder, seed=0)
    samples = benchmark.write_images(settings.folder, settings.images, mixed=settings.mixed)
    for model in settings.models:
        measure(model, settings, samples, rate)


@dataclass(frozen=True)
class Settings:
    """The options of the command line, see there."""

    models: list[str]
    images: int
    mixed: bool
    tiny: bool
    token_budget: int
    workers: int
    check: int
    eager: bool
    fp8: bool
    no_upstream: bool
    device: str
    folder: Path

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.on_gpu else torch.float32

    @property
    def compiled(self) -> bool:
        return self.on_gpu and not self.eager


def measure(name: str, settings: Settings, samples: list[Sample], rate: float) -> None:
    """Rows of one model. rate: FLOP/s of a large matrix product."""
    folder, device = settings.folder / name, settings.device
    if not settings.tiny:
        benchmark.give_real_shape(name, folder)
    prompt = load_prompt(folder)
    model = benchmark.random_model(folder, device, settings.dtype)
    sizes = measure_sizes(samples, settings.folder, prompt)
    flops = sum(benchmark.prefill_flops(model, size.tokens + len(prompt.prefix), size.vision) for size in sizes)
    ideal = flops / len(sizes) / rate

    plan = make_plan(samples, sizes, token_budget=settings.token_budget, batch_size=None)
    checked = []
    for sample in list(chain.from_iterable(batch.samples for batch in plan.batches))[: settings.check]:
        with Image.open(settings.folder / sample.image) as image:
            checked.append(prompt.prepare(sample.question, image.convert("RGB")))
    exact_states = benchmark.last_states(copy.deepcopy(model).float(), prompt, checked, device)
    heads = benchmark.spread_heads(exact_states, settings.dtype)
    exact = benchmark.answers(exact_states, heads.float())
    states = benchmark.last_states(model, prompt, checked, device)
    single = benchmark.deviation(benchmark.answers(states, heads), exact)
    if settings.no_upstream:
        row(name, "transformers, one at a time", None, ideal, None, single)
    else:
        speed = 1 / benchmark.upstream_seconds(model, prompt, settings.folder / samples[0].image, device)
        row(name, "upstream, one at a time", speed, ideal, None, single)

    if settings.workers:
        speed = benchmark.preparation_rate(plan, settings.folder, prompt, settings.workers, compiled=settings.compiled)
        row(name, f"images alone, {settings.workers} processes", speed, None, None, "-")
    scorer = scorer_of(model, prompt, compiled=settings.compiled)
    packed = f"packing efficiency {plan.packing_efficiency:.1%}"
    print(f"  {len(plan.batches)} batches of {plan.shape}, {packed}", file=sys.stderr, flush=True)
    outcome, found = end_to_end(name, settings, plan, scorer, heads)
    way = "packed, compiled" if settings.compiled else "packed"
    row(name, way, outcome.images_per_second, ideal, outcome, benchmark.deviation(found, exact))
    if settings.fp8:
        scorer.quantize()
        outcome, found_fp8 = end_to_end(name, settings, plan, scorer, heads)
        deviations = f"{benchmark.deviation(found_fp8, exact)}; from bfloat16 {benchmark.deviation(found_fp8, found)}"
        row(name, way.replace("packed", "packed, fp8"), outcome.images_per_second, ideal, outcome, deviations)


def end_to_end(name: str, settings: Settings, plan: Plan, scorer: Scorer, heads: Tensor) -> tuple[Outcome, Tensor]:
    """One whole run, after one over the checked images that compiles, and P(A) of the checked images under each of the
    heads.
    """
    csv = settings.folder / f"{name}.csv"
    sizes = [len(batch.samples) for batch in plan.batches]
    needed = next((count for count, total in enumerate(accumulate(sizes), 1) if total >= settings.check), None)
    for batches in (slice(needed and max(2, needed)), slice(None)):
        csv.unlink(missing_ok=True)
        if settings.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with benchmark.recorded_states(scorer) as states:
            outcome = benchmark.run_packed(
                scorer,
                plan,
                settings.folder,
                csv,
                workers=settings.workers,
                compiled=settings.compiled,
                batches=batches,
            )
    states = torch.cat([state[:size] for state, size in zip(states, sizes, strict=True)])[: settings.check]
    return outcome, benchmark.answers(states, heads)


def row(
    model: str, way: str, speed: float | None, ideal: float | None, outcome: Outcome | None, deviation: object
) -> None:
    """ideal: seconds an image at the matrix product's rate; None for work that is not the GPU's."""
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.0f} GiB" if torch.cuda.is_available() else "-"
    waits = f"{outcome.wait_share:.1%}" if outcome else "-"
    shown = f"{speed:.1f}" if speed else "-", f"{speed * ideal:.0%}" if speed and ideal else "-"
    print(f"| {' | '.join((model, way, *shown, waits, memory, str(deviation)))} |", flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
