"""One scoring run, from its config to a finished per-image CSV: plan, resume, score a shard, consolidate."""

import logging
import platform
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dfbench.data.annotations import Sample, read_annotations
from dfbench.distributed import Ranks
from dfbench.errors import InputError
from dfbench.fusion.early_exit import settled_images
from dfbench.io import write_json
from dfbench.models.base import Prompt
from dfbench.models.checkpoints import identity
from dfbench.models.registry import load_prompt, load_scorer
from dfbench.predictions.reader import read_detectors
from dfbench.predictions.schema import NOT_FINITE, info_path
from dfbench.predictions.writer import RecordWriter, consolidate, only_run, part_path, remove_results
from dfbench.provenance import describe_software
from dfbench.scoring.batching import Plan, make_plan, measure_sizes, shard
from dfbench.scoring.config import ScoringConfig, check_inputs
from dfbench.scoring.device import Runtime, resolve
from dfbench.scoring.engine import Outcome, score_batches
from dfbench.scoring.loader import Preparation
from dfbench.scoring.resume import RunState, answered, check_resume, mended_images, questions_identity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoringResult:
    """What a finished run left behind.

    rows, errors, warnings: images in the CSV, in its errors CSV and in its warnings CSV.
    not_finite: those of the errors that are the model's, whose logits were not finite.
    num_scored: images that this run scored, the others having been there. images_per_second: of this run, 0 if none.
    wait_share: of the model's time, the part in which it waited for images, 0 to 1.
    """

    output_csv: Path
    rows: int
    errors: int
    warnings: int
    not_finite: int
    num_scored: int
    images_per_second: float
    wait_share: float


def score(config: ScoringConfig) -> ScoringResult | None:
    """Score images, or go on with the run that was begun under the same `output_csv`.

    An image that cannot be read has no row but one in the errors CSV, and is counted in the result. Of several
    processes that torchrun started, the first returns the result and the others None. Raises InputError.
    """
    check_inputs(config)
    runtime, ranks = resolve(config), Ranks.from_environment()
    _check_ranks(runtime, config.precision, ranks)
    samples = _chosen_samples(config)
    _check_image_root(config.image_root, samples)
    prompt = load_prompt(config.model, config.protocol, engine=config.engine)
    runtime = replace(runtime, compiled=runtime.compiled and prompt.engine == "packed")
    prompt.share_prefix({sample.question for sample in samples})
    sizes = measure_sizes(samples, config.image_root, prompt)
    budget = min(ranks.gather(runtime.token_budget))  # one plan for all, should their cards differ
    plan = make_plan(samples, sizes, token_budget=budget, batch_size=runtime.batch_size)
    images = [[sample.image for sample in batch.samples] for batch in plan.batches]
    order = [sample.image for sample in samples]
    with only_run(config.output_csv) if ranks.is_main else nullcontext():
        done: set[int] = set()
        if ranks.is_main:
            if config.overwrite:
                remove_results(config.output_csv)
            ours = _identity(config, runtime, samples, prompt)
            earlier = RunState.read(config.output_csv)
            check_resume(config.output_csv, earlier, ours, samples)
            again = mended_images(earlier, samples, config.image_root, prompt, strict=config.strict_images)
            done = consolidate(config.output_csv, images, order, again=again, tables=earlier.tables)
            if 0 < len(done) < len(images):
                logger.info("resuming: %d of %d batches are done", len(done), len(images))
            write_json(info_path(config.output_csv), {"identity": ours, "finished": False})
        done = ranks.gather(done)[0]
        outcomes = ranks.gather(_score_shard(config, runtime, prompt, plan, done, ranks))
        if not ranks.is_main:
            return None
        written = RunState.read(config.output_csv)
        consolidate(config.output_csv, images, order, tables=written.tables)
        check_complete(config.output_csv, written.counts, len(samples))
        metadata = _metadata(config, runtime, ours, plan, written.counts) | _speed(outcomes, earlier.metadata)
        write_json(info_path(config.output_csv), metadata)
    return ScoringResult(
        config.output_csv,
        **written.counts,
        not_finite=list(written.cells[1].values()).count(NOT_FINITE),
        num_scored=sum(outcome.num_scored for outcome in outcomes),
        images_per_second=sum(outcome.images_per_second for outcome in outcomes),
        wait_share=max(outcome.wait_share for outcome in outcomes),
    )


def _check_ranks(runtime: Runtime, precision: str, ranks: Ranks) -> None:
    """One process on a CPU among others on GPUs would go unnoticed, slow and with other numbers."""
    kinds = set(ranks.gather((runtime.device.partition(":")[0], runtime.dtype, precision)))
    if len(kinds) > 1:
        raise InputError(
            f"torchrun started processes of different kinds ({', '.join(sorted(map(' '.join, kinds)))}). Start as many "
            f"on a host (--nproc_per_node) as it has GPUs."
        )


def check_complete(csv_path: Path, counts: dict[str, int], num_samples: int) -> None:
    """Raise InputError where rows are missing after a run."""
    found = counts["rows"] + counts["errors"]
    if found != num_samples:
        raise InputError(
            f"{csv_path}: {found:,} of {num_samples:,} images after the run. All processes must share one folder, and "
            f"no other run may write to this file: see to both and repeat the command; what is scored is kept."
        )


def _chosen_samples(config: ScoringConfig) -> list[Sample]:
    samples = read_annotations(config.annotations)
    if config.sources:
        known = {sample.source for sample in samples}
        if missing := sorted(set(config.sources) - known):
            raise InputError(
                f"{config.annotations}: no image of {', '.join(missing)}. Correct --sources; there are "
                f"{', '.join(sorted(known))}."
            )
        samples = [sample for sample in samples if sample.source in set(config.sources)]
    if config.only_undecided:
        decided = settled_images(read_detectors(config.only_undecided))
        samples = [sample for sample in samples if sample.image not in decided]
        logger.info("%d images are decided by %d other agents", len(decided), len(config.only_undecided))
        if not samples:
            raise InputError(
                f"{config.annotations}: no image is left to score, the other agents decide all. Fuse their files."
            )
    return samples[: config.limit]


_PROBED = 200


def _check_image_root(image_root: Path, samples: list[Sample]) -> None:
    """Raise InputError where none of the images that a look is taken for is there: before a model is loaded, which
    would then be shown nothing.
    """
    probed = samples[:: max(1, len(samples) // _PROBED)]
    if samples and not any((image_root / sample.image).exists() for sample in probed):
        raise InputError(
            f"{image_root}: none of {len(probed)} images is there, such as {image_root / samples[0].image}. Correct "
            f"--image_root, the folder that the image paths start from."
        )


def _identity(config: ScoringConfig, runtime: Runtime, samples: list[Sample], prompt: Prompt) -> dict[str, Any]:
    """What two runs must share for their rows to stand in one file."""
    return {
        "model": str(prompt.checkpoint),
        "model_fingerprint": identity(prompt.checkpoint),
        "adapter": str(config.adapter) if config.adapter else None,
        "adapter_fingerprint": identity(config.adapter) if config.adapter else None,
        "engine": prompt.engine,
        "dtype": runtime.dtype,
        "precision": config.precision,
        "strict_images": config.strict_images,
        "questions": questions_identity(samples),
        "answered": answered(samples),
        **prompt.describe(),
    }


def _score_shard(
    config: ScoringConfig, runtime: Runtime, prompt: Prompt, plan: Plan, done: set[int], ranks: Ranks
) -> Outcome:
    """Score this process's shard of the batches that are not done."""
    left = [index for index in range(len(plan.batches)) if index not in done]
    mine = shard(left, [batch.total.tokens for batch in plan.batches], ranks.world)[ranks.rank]
    shape = plan.shape if runtime.compiled else None
    load = partial(
        load_scorer,
        prompt,
        device=runtime.device,
        dtype=runtime.dtype,
        adapter=config.adapter,
        compiled=runtime.compiled,
        fp8=config.precision == "fp8",
    )
    path = config.output_csv if ranks.world == 1 else part_path(config.output_csv, ranks.rank)
    with nullcontext() if ranks.is_main else only_run(path), RecordWriter(path) as writer:
        return score_batches(
            Preparation(
                [plan.batches[index] for index in mine], config.image_root, prompt, shape, strict=config.strict_images
            ),
            load,
            writer,
            workers=runtime.workers,
            pin_memory=runtime.on_gpu,
            num_done=sum(len(plan.batches[index].samples) for index in done) if ranks.world == 1 else 0,
            quiet=config.quiet or not ranks.is_main,
        )


def _metadata(
    config: ScoringConfig, runtime: Runtime, identity: dict[str, Any], plan: Plan, counts: dict[str, int]
) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    return {
        "identity": identity,
        "finished": True,
        "dataset": str(config.annotations),
        "image_root": str(config.image_root),
        "sources": config.sources,
        "limit": config.limit,
        "only_undecided": [str(path) for path in config.only_undecided] or None,
        **counts,
        "batches": len(plan.batches),
        "tokens_a_batch": plan.shape.tokens,
        "attention": _attention(runtime, identity["engine"], plan),
        "compiled": runtime.compiled,
        "device": torch.cuda.get_device_name(runtime.device) if runtime.on_gpu else cpu,
        "seed": None,  # nothing here is random
        **describe_software(("torch", "transformers", "peft", "pillow")),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _attention(runtime: Runtime, engine: str, plan: Plan) -> str:
    """torch's kernel: see `packed.attend`. (Qwen's windows have one of their own on a GPU.)"""
    if not runtime.on_gpu or runtime.dtype == "float32" or engine == "transformers":
        return "sdpa"
    if not runtime.compiled:
        return "sdpa or varlen, by batch"
    return "sdpa" if plan.shape.uniform else "varlen"


def _speed(outcomes: list[Outcome], earlier: dict[str, Any]) -> dict[str, Any]:
    """Of this run; of the earlier one where nothing was left to score."""
    speed = {
        "processes": len(outcomes),
        "images_per_second": round(sum(outcome.images_per_second for outcome in outcomes), 2),
        "startup_seconds": round(max(outcome.startup for outcome in outcomes), 1),
        "waited_for_images": round(max(outcome.wait_share for outcome in outcomes), 4),
    }
    if not any(outcome.num_scored for outcome in outcomes):
        speed |= {key: earlier[key] for key in speed if key in earlier}
    return speed
