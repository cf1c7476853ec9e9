"""What `scripts/benchmark_scoring.py` measures, on models of the real shapes with random weights.

Ways to score, on the same weights and images:

- `upstream`: one image at a time, as DFBench's own code does it (Qwen: processor and `generate`; InternVL: a forward
  pass with the logits of the whole vocabulary, its image preparation left out).
- `packed`: this project's scorer, end to end: JPEGs read from disk, prepared by worker processes, rows written.

MFU is the share of the floating-point operations of the upstream way's prefill that a large matrix product would have
done in the same time; savings count as speed.
"""

import copy
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel

from dfbench.benchmarks.workload import (
    give_real_shape,
    matrix_rate,
    median_seconds,
    prefill_flops,
    random_model,
    write_images,
)
from dfbench.data.annotations import QUESTION, Sample
from dfbench.demo.tiny_models import make_tiny_models
from dfbench.errors import OptionError
from dfbench.models.base import ModelInputs, Prompt, Scorer
from dfbench.models.registry import load_prompt, scorer_of
from dfbench.predictions.writer import RecordWriter
from dfbench.scoring.batching import Plan, make_plan, measure_sizes
from dfbench.scoring.engine import Outcome, score_batches
from dfbench.scoring.loader import Preparation, load_batches

HEADER = ("model", "way", "images/s", "MFU", "GPU waits", "peak memory", "|dP(A)| largest / mean")
"""P(A) deviates from float32's, one image at a time; with fp8 the deviation from the row above is given as well."""

NUM_HEADS = 64
"""Output heads over which P(A) is compared: one alone would see one direction of the errors, which images share."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """The options of `scripts/benchmark_scoring.py`, see there."""

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
    device: str | None
    folder: Path

    @property
    def chosen_device(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def on_gpu(self) -> bool:
        return self.chosen_device.startswith("cuda")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.on_gpu else torch.float32

    @property
    def compiled(self) -> bool:
        return self.on_gpu and not self.eager


def run(config: BenchmarkConfig) -> None:
    """Print the table, a row for each model and way. Raises OptionError for what the machine cannot do."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if config.on_gpu:
        torch.cuda.set_device(torch.device(config.chosen_device).index or 0)
    elif config.fp8:
        raise OptionError("--fp8 needs a GPU.")
    rate = matrix_rate(config.chosen_device, config.dtype, 8192 if config.on_gpu else 1024)
    name = torch.cuda.get_device_name() if config.on_gpu else "CPU"
    print(f"{name}, {config.dtype}, matrix product {rate / 1e12:.3g} TFLOP/s, torch {torch.__version__}\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)
    config.folder.mkdir(parents=True, exist_ok=True)
    make_tiny_models(config.folder, seed=0)
    samples = write_images(config.folder, config.images, mixed=config.mixed)
    for model in config.models:
        measure(model, config, samples, rate)


def measure(name: str, config: BenchmarkConfig, samples: list[Sample], rate: float) -> None:
    """Rows of one model. rate: FLOP/s of a large matrix product."""
    folder, device = config.folder / name, config.chosen_device
    if not config.tiny:
        give_real_shape(name, folder)
    prompt = load_prompt(folder)
    model = random_model(folder, device, config.dtype)
    sizes = measure_sizes(samples, config.folder, prompt)
    flops = sum(prefill_flops(model, size.tokens + len(prompt.prefix), size.vision) for size in sizes)
    ideal = flops / len(sizes) / rate

    plan = make_plan(samples, sizes, token_budget=config.token_budget, batch_size=None)
    checked = []
    for sample in list(chain.from_iterable(batch.samples for batch in plan.batches))[: config.check]:
        with Image.open(config.folder / sample.image) as image:
            checked.append(prompt.prepare(sample.question, image.convert("RGB")))
    exact_states = last_states(copy.deepcopy(model).float(), prompt, checked, device)
    heads = spread_heads(exact_states, config.dtype)
    exact = answers(exact_states, heads.float())
    states = last_states(model, prompt, checked, device)
    single = deviation(answers(states, heads), exact)
    if config.no_upstream:
        row(name, "transformers, one at a time", None, ideal, None, single)
    else:
        speed = 1 / upstream_seconds(model, prompt, config.folder / samples[0].image, device)
        row(name, "upstream, one at a time", speed, ideal, None, single)

    if config.workers:
        speed = preparation_rate(plan, config.folder, prompt, config.workers, compiled=config.compiled)
        row(name, f"images alone, {config.workers} processes", speed, None, None, "-")
    scorer = scorer_of(model, prompt, compiled=config.compiled)
    packed = f"packing efficiency {plan.packing_efficiency:.1%}"
    print(f"  {len(plan.batches)} batches of {plan.shape}, {packed}", file=sys.stderr, flush=True)
    outcome, found = end_to_end(name, config, plan, scorer, heads)
    way = "packed, compiled" if config.compiled else "packed"
    row(name, way, outcome.images_per_second, ideal, outcome, deviation(found, exact))
    if config.fp8:
        scorer.quantize()
        outcome, found_fp8 = end_to_end(name, config, plan, scorer, heads)
        deviations = f"{deviation(found_fp8, exact)}; from bfloat16 {deviation(found_fp8, found)}"
        row(name, way.replace("packed", "packed, fp8"), outcome.images_per_second, ideal, outcome, deviations)


def end_to_end(name: str, config: BenchmarkConfig, plan: Plan, scorer: Scorer, heads: Tensor) -> tuple[Outcome, Tensor]:
    """One whole run, after one over the checked images that compiles, and P(A) of the checked images under each of the
    heads.
    """
    csv = config.folder / f"{name}.csv"
    sizes = [len(batch.samples) for batch in plan.batches]
    needed = next((count for count, total in enumerate(accumulate(sizes), 1) if total >= config.check), None)
    for batches in (slice(needed and max(2, needed)), slice(None)):
        csv.unlink(missing_ok=True)
        if config.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with recorded_states(scorer) as states:
            outcome = run_packed(
                scorer,
                plan,
                config.folder,
                csv,
                workers=config.workers,
                compiled=config.compiled,
                batches=batches,
            )
    states = torch.cat([state[:size] for state, size in zip(states, sizes, strict=True)])[: config.check]
    return outcome, answers(states, heads)


def row(
    model: str, way: str, speed: float | None, ideal: float | None, outcome: Outcome | None, deviation: object
) -> None:
    """ideal: seconds an image at the matrix product's rate; None for work that is not the GPU's."""
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.0f} GiB" if torch.cuda.is_available() else "-"
    waits = f"{outcome.wait_share:.1%}" if outcome else "-"
    shown = f"{speed:.1f}" if speed else "-", f"{speed * ideal:.0%}" if speed and ideal else "-"
    print(f"| {' | '.join((model, way, *shown, waits, memory, str(deviation)))} |", flush=True)


@torch.inference_mode()
def upstream_seconds(model: PreTrainedModel, prompt: Prompt, path: Path, device: str) -> float:
    """Seconds an image in the upstream way."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    if model.config.model_type == "qwen2_5_vl":
        processor = AutoProcessor.from_pretrained(prompt.checkpoint)
        text = prompt.text(f"<image>{QUESTION}", 1)

        def call() -> object:
            inputs = processor(text=[text], images=[rgb], return_tensors="pt").to(device)
            return model.generate(**inputs, max_new_tokens=1, do_sample=False, output_logits=True)

        return median_seconds(call, device)
    inputs = single_inputs(prompt, prompt.prepare(f"<image>{QUESTION}", rgb), device, model.dtype)
    return median_seconds(lambda: model(**inputs).logits, device)


def single_inputs(prompt: Prompt, prepared: ModelInputs, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """One prompt as the keyword arguments of transformers' own forward pass."""
    values = prompt.pixel_values(prepared.pixels, torch.float32).to(device, dtype)
    ids = prepared.input_ids[None].to(device)
    inputs = {"input_ids": ids, "pixel_values": values}
    if prepared.grid != (0, 0):
        inputs["image_grid_thw"] = torch.tensor([[1, *prepared.grid]], device=device)
        inputs["mm_token_type_ids"] = (ids == prompt.image_token_id).int()
    return inputs


class Deviation(NamedTuple):
    """Largest and mean |P(A) - P(A) in float32| over some images and heads."""

    largest: float
    mean: float

    def __str__(self) -> str:
        return f"{self.largest:.1e} / {self.mean:.1e}"


def deviation(answers: Tensor, exact: Tensor) -> Deviation:
    difference = (answers.cpu() - exact.cpu()).abs()
    return Deviation(float(difference.max()), float(difference.mean()))


@torch.inference_mode()
def last_states(model: PreTrainedModel, prompt: Prompt, prompts: Sequence[ModelInputs], device: str) -> Tensor:
    """What the output head gets of each prompt in transformers' own forward pass, one at a time: (B, C) in the model's
    dtype.
    """
    inputs = (single_inputs(prompt, one, device, model.dtype) for one in prompts)
    return torch.stack([model.model(**one).last_hidden_state[0, -1] for one in inputs])


@contextmanager
def recorded_states(scorer: Scorer) -> Iterator[list[Tensor]]:
    """Collect the same of a scorer: one (B, C) a batch, padding included, appended as the batches run."""
    states: list[Tensor] = []
    hook = scorer.language.norm.register_forward_hook(lambda *call: states.append(call[-1].clone()))
    try:
        yield states
    finally:
        hook.remove()


def spread_heads(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Output heads under which P(A) spreads over about 0.05 to 0.95: the rows of A and B of each, (NUM_HEADS, 2, C).

    exact: float32 (B, C), see `last_states`. Random weights answer every image alike. So the two rows are opposite
    random directions from which the images' common part is taken, scaled to a standard deviation of the logits'
    difference of 1.5.
    """
    common = exact.mean(dim=0)
    directions = torch.randn(NUM_HEADS, len(common), generator=torch.Generator().manual_seed(1)).to(exact)
    directions -= (directions @ common / (common @ common))[:, None] * common
    halves = directions * (0.75 / (exact @ directions.T).std(dim=0))[:, None]
    return torch.stack([halves, -halves], dim=1).to(dtype)


def answers(states: Tensor, heads: Tensor) -> Tensor:
    """P(A) of each head and prompt, float32 (NUM_HEADS, B), from `last_states` of the heads' dtype."""
    logits = torch.einsum("bc,hlc->hbl", states.to(heads), heads)
    return logits.float().softmax(dim=-1)[..., 0]


def run_packed(
    scorer: Scorer, plan: Plan, image_root: Path, csv_path: Path, *, workers: int, compiled: bool, batches: slice
) -> Outcome:
    """The whole scoring run over some of the plan's batches, the model being there already."""
    shape = plan.shape if compiled else None
    preparation = Preparation(plan.batches[batches], image_root, scorer.prompt, shape)
    pinned = scorer.device.type == "cuda"
    with RecordWriter(csv_path) as writer:
        return score_batches(preparation, lambda: scorer, writer, workers=workers, pin_memory=pinned, quiet=True)


def preparation_rate(plan: Plan, image_root: Path, prompt: Prompt, workers: int, *, compiled: bool) -> float:
    """Images/s that the worker processes alone decode, prepare and collate: what the GPU could be fed with."""
    dataset = Preparation(plan.batches, image_root, prompt, shape=plan.shape if compiled else None)
    began = time.perf_counter()
    images = sum(len(batch.images) for batch in load_batches(dataset, workers, pin_memory=False))
    return images / (time.perf_counter() - began)
