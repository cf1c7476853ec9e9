"""Measure scoring: images/s, MFU, waiting, memory and deviation of each model and way, as one table.

python scripts/benchmark_scoring.py                  real shapes with random weights, on a GPU
python scripts/benchmark_scoring.py --tiny           the demo's small models, on a CPU too
python scripts/benchmark_scoring.py --models qwen2.5 --mixed --images 800
"""

import copy
import logging
import sys
import tempfile
from argparse import Namespace
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dfbench import cli
from dfbench.demo.tiny_models import make_tiny_models
from dfbench.models.base import Scorer
from dfbench.models.registry import load_prompt, scorer_of
from dfbench.scoring import benchmark
from dfbench.scoring.batching import Plan, make_plan, measure_sizes

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
    args = parser.parse_args()
    if args.device.startswith("cuda"):
        torch.cuda.set_device(torch.device(args.device).index or 0)
    elif args.fp8:
        parser.error("--fp8 needs a GPU")
    dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    rate = benchmark.matrix_rate(args.device, dtype, 8192 if args.device.startswith("cuda") else 1024)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    print(f"{name}, {dtype}, matrix product {rate / 1e12:.3g} TFLOP/s, torch {torch.__version__}")
    args.folder.mkdir(parents=True, exist_ok=True)
    print(f"loop and CSV writer alone: {benchmark.loop_rate(args.folder):,.0f} images/s\n", flush=True)
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    make_tiny_models(args.folder, seed=0)
    samples = benchmark.write_images(args.folder, args.images, mixed=args.mixed)
    for model in args.models:
        measure(model, args, samples, dtype, rate)


def measure(name: str, args: Namespace, samples: list, dtype: torch.dtype, rate: float) -> None:
    """Rows of one model."""
    folder = args.folder / name
    if not args.tiny:
        benchmark.give_real_shape(name, folder)
    prompt = load_prompt(folder)
    model = benchmark.random_model(folder, args.device, dtype)
    sizes = measure_sizes(samples, args.folder, prompt)
    flops = sum(benchmark.prefill_flops(model, cost.tokens + len(prompt.prefix), cost.vision) for cost in sizes)
    flops /= len(sizes)

    plan = make_plan(samples, sizes, token_budget=args.token_budget, batch_size=None)
    checked = []
    for sample in list(chain.from_iterable(batch.samples for batch in plan.batches))[: args.check]:
        with Image.open(args.folder / sample.image) as image:
            checked.append(prompt.prepare(sample.question, image.convert("RGB")))
    exact_states = benchmark.last_states(copy.deepcopy(model).float(), prompt, checked, args.device)
    heads = benchmark.spread_heads(exact_states, dtype)
    exact = benchmark.answers(exact_states, heads.float())
    states = benchmark.last_states(model, prompt, checked, args.device)
    single = benchmark.deviation(benchmark.answers(states, heads), exact)
    if not args.no_upstream:
        speed = 1 / benchmark.upstream_seconds(model, prompt, args.folder / samples[0].image, args.device)
        row(name, "upstream, one at a time", speed, flops / rate, None, single)
    else:
        row(name, "transformers, one at a time", None, flops / rate, None, single)

    compiled = args.device.startswith("cuda") and not args.eager
    if args.workers:
        speed = benchmark.preparation_rate(plan, args.folder, prompt, args.workers, shape=compiled)
        row(name, f"images alone, {args.workers} processes", speed, None, None, "-")
    scorer = scorer_of(model, prompt, compiled=compiled)
    print(f"  {len(plan.batches)} batches of {plan.shape}, {plan.filled:.1%} filled", file=sys.stderr, flush=True)
    run = partial(end_to_end, name, args, plan, scorer, flops / rate, heads)
    packed = run("packed", {"": exact})
    if args.fp8:
        scorer.quantize()
        run("packed, fp8", {"": exact, "; from bfloat16 ": packed})


def end_to_end(
    name: str,
    args: Namespace,
    plan: Plan,
    scorer: Scorer,
    ideal: float,
    heads: Tensor,
    way: str,
    references: dict[str, Tensor],
) -> Tensor:
    """Row of one whole run, after one over the checked images that compiles: their P(A) under each of the heads.

    references: P(A) to compare with, each under the words that its deviation is introduced with.
    """
    csv = args.folder / f"{name}.csv"
    compiled = args.device.startswith("cuda") and not args.eager
    sizes = [len(batch.samples) for batch in plan.batches]
    needed = next((index for index in range(2, len(sizes)) if sum(sizes[:index]) >= args.check), None)
    for batches in (slice(needed), slice(None)):
        csv.unlink(missing_ok=True)
        if args.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        with benchmark.recorded_states(scorer) as states:
            outcome = benchmark.run_packed(
                scorer, plan, args.folder, csv, workers=args.workers, compiled=compiled, batches=batches
            )
    states = torch.cat([state[:size] for state, size in zip(states, sizes, strict=True)])[: args.check]
    answers = benchmark.answers(states, heads)
    deviations = (words + str(benchmark.deviation(answers, other)) for words, other in references.items())
    row(name, way + (", compiled" if compiled else ""), outcome.images_per_second, ideal, outcome, "".join(deviations))
    return answers


def row(model: str, way: str, speed: float | None, ideal: float | None, outcome: object, deviation: object) -> None:
    """ideal: seconds an image at the matrix product's rate; None for work that is not the GPU's."""
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.0f} GiB" if torch.cuda.is_available() else "-"
    waits = f"{outcome.wait_share:.1%}" if outcome else "-"
    shown = f"{speed:.1f}" if speed else "-", f"{speed * ideal:.0%}" if speed and ideal else "-"
    print(f"| {' | '.join((model, way, *shown, waits, memory, str(deviation)))} |", flush=True)


if __name__ == "__main__":
    sys.exit(cli.run(main))
