"""One run of an `evaluate_logit.py`: plan, resume or refuse what is there, score this process's share, report."""

import logging
import os
import platform
from argparse import Namespace
from contextlib import nullcontext
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dfbench.data.annotations import Sample, read_annotations
from dfbench.data.images import ImageError
from dfbench.distributed import Ranks
from dfbench.errors import InputError
from dfbench.evaluation.tables import accuracy_lines
from dfbench.fusion.early_exit import settled_images
from dfbench.io import write_json
from dfbench.models.base import DTYPES, Prompt
from dfbench.models.checkpoints import find_weights, fingerprint
from dfbench.models.registry import load_prompt, load_scorer
from dfbench.paths import cache_folder
from dfbench.predictions.reader import read_detector, read_detectors
from dfbench.predictions.schema import check_output_csv, errors_path, info_path, read_info, warnings_path
from dfbench.predictions.writer import RecordWriter, consolidate, count_rows, done_batches, only_run, part_path
from dfbench.provenance import describe_software
from dfbench.scoring.batching import Plan, make_plan, measure_sizes, shard
from dfbench.scoring.config import Agent
from dfbench.scoring.engine import Outcome, Preparation, prepare_image, score_batches
from dfbench.scoring.resume import answered, begin, questions_identity

logger = logging.getLogger(__name__)


def run(args: Namespace, agent: Agent) -> None:
    """Score, and print accuracy by source and where the files are. args: see `dfbench.scoring.config.parse`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers are the parallelism
    if args.compile:
        _keep_compiled_code()
    ranks = Ranks.from_environment()
    _check_ranks(args, ranks)
    _check_paths(args)
    samples = _chosen_samples(args)
    checkpoint, adapter = find_weights(args.model_path, args.adapter, args.train_dir)
    prompt = load_prompt(checkpoint, getattr(args, "protocol", "upstream"))
    _check_family(agent, prompt)
    prompt.share_prefix({sample.question for sample in samples})
    plan = _plan(args, samples, prompt, ranks)
    identity = _identity(args, samples, prompt, adapter)
    images = [[sample.image for sample in batch.samples] for batch in plan.batches]
    with only_run(args.output_csv) if ranks.is_main else nullcontext():
        if ranks.is_main:
            earlier = {} if args.overwrite else read_info(args.output_csv)
            usable = partial(_usable, args=args, prompt=prompt)
            begin(args.output_csv, identity, samples, images, usable=usable, overwrite=args.overwrite)
        ranks.wait()
        outcome = _score(args, prompt, adapter, plan, images, ranks)
        outcomes = ranks.gather(outcome)
        if ranks.is_main:
            consolidate(args.output_csv, images, [sample.image for sample in samples])
            counts = count_rows(args.output_csv)
            _check_whole(args, counts, len(samples))
            metadata = _metadata(args, identity, plan, counts) | _speed(outcomes, earlier)
            write_json(info_path(args.output_csv), metadata)
            _report(args, outcomes, counts)


def _usable(sample: Sample, args: Namespace, prompt: Prompt) -> bool:
    try:
        prepare_image(sample, args.image_root, prompt, strict=args.strict_images)
    except ImageError:
        return False
    return True


def _check_ranks(args: Namespace, ranks: Ranks) -> None:
    """One process on a CPU among others on GPUs would go unnoticed, slow and with other numbers."""
    kinds = set(ranks.gather((args.device.partition(":")[0], args.dtype, args.precision)))
    if len(kinds) > 1:
        raise InputError(
            "torchrun",
            found=f"processes of different kinds ({', '.join(sorted(map(' '.join, kinds)))})",
            expected="a GPU for each process, or none for all",
            remedy="start as many processes on a host (--nproc_per_node) as it has GPUs",
        )


def _check_paths(args: Namespace) -> None:
    check_output_csv(args.output_csv, [args.dataset_path, *(args.only_undecided or ())])
    if not args.image_root.is_dir():
        raise InputError(
            args.image_root,
            found="no such folder",
            expected="the folder that the annotated image paths start from",
            remedy="correct --image_root",
        )


def _check_family(agent: Agent, prompt: Prompt) -> None:
    """One model under another's name would count twice in MoA-DF."""
    if agent.family and prompt.family != agent.family:
        raise InputError(
            prompt.checkpoint,
            found=f"a checkpoint of the family {prompt.family}",
            expected=f"one of the family {agent.family}, for {agent.name}",
            remedy="correct --model_path, or use that model's own folder",
        )


def _check_whole(args: Namespace, counts: dict[str, int], num_samples: int) -> None:
    found = counts["rows"] + counts["errors"]
    if found != num_samples:
        raise InputError(
            args.output_csv,
            found=f"{found:,} of {num_samples:,} images after the run",
            expected="all of them: one folder that all processes share, and no other run on this file",
            remedy="see to both and repeat the command; what is scored is kept",
        )


def _keep_compiled_code() -> None:
    """Compiled layers are kept for later runs; torch's own place, the temporary folder, is emptied now and then."""
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to: torch's place it is
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def _chosen_samples(args: Namespace) -> list[Sample]:
    samples = read_annotations(args.dataset_path)
    if args.sources:
        known = sorted({sample.source for sample in samples})
        missing = sorted(set(args.sources) - set(known))
        if missing:
            raise InputError(
                args.dataset_path,
                found=f"no image of {', '.join(missing)}",
                expected=f"some of {', '.join(known)}",
                remedy="correct --sources",
            )
        samples = [sample for sample in samples if sample.source in set(args.sources)]
    if args.only_undecided:
        settled = settled_images(read_detectors(args.only_undecided))
        samples = [sample for sample in samples if sample.image not in settled]
        logger.info("%d images are settled by %d other agents", len(settled), len(args.only_undecided))
        if not samples:
            raise InputError(
                args.dataset_path,
                found="no image whose decision is open",
                expected="some",
                remedy="nothing is left to score: fuse the other agents' files",
            )
    return samples[: args.limit]


def _identity(args: Namespace, samples: list[Sample], prompt: Prompt, adapter: Path | None) -> dict[str, Any]:
    """What two runs must share for their rows to stand in one file."""
    return {
        "model": str(prompt.checkpoint),
        "model_fingerprint": fingerprint(prompt.checkpoint),
        "adapter": str(adapter) if adapter else None,
        "adapter_fingerprint": fingerprint(adapter) if adapter else None,
        "dtype": args.dtype,
        "precision": args.precision,
        "strict_images": args.strict_images,
        "questions": questions_identity(samples),
        "answered": answered(samples),
        **prompt.describe(),
    }


def _plan(args: Namespace, samples: list[Sample], prompt: Prompt, ranks: Ranks) -> Plan:
    sizes = measure_sizes(samples, args.image_root, prompt)
    budget = args.token_budget or (automatic_budget(args) if args.device.startswith("cuda") else _CPU_BUDGET)
    budget = min(ranks.gather(budget))  # one plan for all, should their cards differ
    return make_plan(samples, sizes, token_budget=budget, batch_size=args.batch_size)


_CPU_BUDGET = 1 << 20
_GPU_BUDGET = 32_768
"""Tokens of a batch. More do not make an H200 faster; a smaller card gets its share (see `automatic_budget`)."""


def automatic_budget(args: Namespace) -> int:
    """Tokens of a batch that fit beside the weights: a token takes about 0.4 MB in a model of 8 billion parameters.

    From the card's whole memory, not from what is free right now, so that a resumed run forms the same batches.
    """
    memory = torch.cuda.get_device_properties(args.device).total_memory
    room = memory - 20e9 * DTYPES[args.dtype].itemsize / 2
    return int(min(_GPU_BUDGET, max(2_048, 0.6 * room / 4e5)))


def _score(
    args: Namespace, prompt: Prompt, adapter: Path | None, plan: Plan, images: list[list[str]], ranks: Ranks
) -> Outcome:
    """Score this process's share of the batches that are not done."""
    done = done_batches(args.output_csv, images)
    left = [index for index in range(len(images)) if index not in done]
    mine = shard(left, [batch.total.tokens for batch in plan.batches], ranks.world)[ranks.rank]
    num_done = sum(len(images[index]) for index in done) if ranks.world == 1 else 0
    path = args.output_csv if ranks.world == 1 else part_path(args.output_csv, ranks.rank)
    with nullcontext() if ranks.is_main else only_run(path), RecordWriter(path) as writer:
        return score_batches(
            [plan.batches[index] for index in mine],
            partial(
                Preparation,
                image_root=args.image_root,
                prompt=prompt,
                shape=plan.shape if args.compile else None,
                strict=args.strict_images,
            ),
            partial(
                load_scorer,
                prompt,
                device=args.device,
                dtype=args.dtype,
                adapter=adapter,
                compiled=args.compile,
                fp8=args.precision == "fp8",
            ),
            writer,
            workers=args.workers,
            pin_memory=args.device.startswith("cuda"),
            num_done=num_done,
            quiet=args.quiet or not ranks.is_main,
        )


def _metadata(args: Namespace, identity: dict[str, Any], plan: Plan, counts: dict[str, int]) -> dict[str, Any]:
    on_gpu = args.device.startswith("cuda")
    return {
        "identity": identity,
        "finished": True,
        "dataset": str(args.dataset_path),
        "image_root": str(args.image_root),
        "sources": args.sources,
        "limit": args.limit,
        "only_undecided": [str(path) for path in args.only_undecided] if args.only_undecided else None,
        **counts,
        "batches": len(plan.batches),
        "tokens_a_batch": plan.shape.tokens,
        "attention": _attention(args, plan),
        "compiled": args.compile,
        "device": torch.cuda.get_device_name(args.device) if on_gpu else platform.processor() or platform.machine(),
        "seed": None,  # nothing here is random
        **describe_software(("torch", "transformers", "peft", "pillow")),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _attention(args: Namespace, plan: Plan) -> str:
    """torch's kernel: see `packed.attend`. (Qwen's windows have one of their own on a GPU.)"""
    if not args.device.startswith("cuda") or args.dtype == "float32":
        return "sdpa"
    if not args.compile:
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


def _report(args: Namespace, outcomes: list[Outcome], counts: dict[str, int]) -> None:
    if counts["rows"]:
        for line in accuracy_lines([read_detector(args.output_csv)]):
            print(line)
    scored = sum(outcome.num_scored for outcome in outcomes)
    speed = f"{sum(outcome.images_per_second for outcome in outcomes):.1f} images/s"
    waited = f"{max(outcome.wait_share for outcome in outcomes):.0%} of the time spent waiting for images"
    print(f"{counts['rows']} images in {args.output_csv}")
    if scored:
        print(f"{scored} of them now, {speed}, {waited}")
    elif counts["rows"]:
        print("all of them were there already")
    if counts["warnings"]:
        found = f"{counts['warnings']} truncated images, decoded as far as they go"
        print(f"{found}: {warnings_path(args.output_csv)}")
    if counts["errors"]:
        raise InputError(
            errors_path(args.output_csv),
            found=f"{counts['errors']} images without an answer",
            expected="an answer for each",
            remedy="see the file for the reasons; with the images mended, repeat the command",
        )
