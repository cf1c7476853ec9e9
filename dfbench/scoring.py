"""The command line of every `evaluate_logit.py`: the model folder names its agent, this does the rest."""

import logging
import os
import platform
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from dfbench import cli
from dfbench.annotations import Sample, read_annotations
from dfbench.engine import Outcome, score_samples, split_batches
from dfbench.errors import InputError
from dfbench.models import load_prompt, load_scorer
from dfbench.models.base import DTYPES, Prompt, fingerprint
from dfbench.paths import REPOSITORY, RESULTS
from dfbench.provenance import describe_software
from dfbench.records import errors_path, info_path, read_detector, read_info, warnings_path, write_json
from dfbench.resume import RecordWriter
from dfbench.tables import accuracy_lines
from dfbench.weights import find_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Agent:
    """A model folder: its name (also of its CSV), where it lies, and its annotation file relative to it."""

    name: str
    folder: Path
    dataset: str
    protocols: Sequence[str] = ()


def main(agent: Agent, description: str | None) -> None:
    """Parse the command line, score, and print accuracy by source and where the files are."""
    args = _parse(agent, description)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers are the parallelism
    samples = _chosen_samples(args)
    checkpoint, adapter = find_weights(args.model_path, args.adapter, agent.folder / "output_ckpt")
    protocol = getattr(args, "protocol", "upstream")
    prompt = load_prompt(checkpoint, protocol)
    batches = split_batches(samples, args.batch_size)
    identity = _identity(args, prompt, adapter)
    check_identity(args, identity)
    writer = RecordWriter(
        args.output_csv, [[sample.image for sample in batch] for batch in batches], overwrite=args.overwrite
    )
    if 0 < writer.num_done_batches < len(batches):
        logger.info("resuming: %d images are done", writer.num_rows + writer.num_errors)
    write_json(info_path(args.output_csv), {"identity": identity, "finished": False})
    try:
        outcome = score_samples(
            batches,
            args.image_root,
            prompt,
            lambda: load_scorer(prompt, device=args.device, dtype=args.dtype, adapter=adapter),
            writer,
            workers=args.workers,
            pin_memory=args.device.startswith("cuda"),
            strict=args.strict_images,
            quiet=args.quiet,
        )
    finally:
        writer.close()
    write_json(info_path(args.output_csv), _metadata(args, identity, outcome))
    _report(args, outcome)


def _parse(agent: Agent, description: str | None) -> Namespace:
    parser = cli.ArgumentParser(description)
    add = parser.add_argument
    add(
        "--model_path",
        type=Path,
        help="checkpoint folder; without it, the newest merged one, or else the newest adapter",
    )
    add("--adapter", type=Path, help="LoRA adapter folder, scored unmerged on top of --model_path")
    add("--dataset_path", type=Path, default=agent.folder / agent.dataset, help="annotation file, either shape")
    add("--image_root", type=Path, default=REPOSITORY, help="folder that the annotated image paths start from")
    add("--output_csv", type=Path, default=RESULTS / f"{agent.name}.csv", help="per-image CSV to write")
    add("--batch_size", type=cli.positive_int, default=8, help="images packed into one forward pass")
    add("--limit", type=cli.positive_int, help="score the first N images only, for a quick look")
    add("--sources", nargs="+", metavar="SOURCE", help="score these sources only")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:N or cpu")
    add("--dtype", choices=sorted(DTYPES), help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--workers", type=int, help="processes that decode images; default: one a core up to 16 on a GPU, 0 on a CPU")
    if agent.protocols:
        add("--protocol", choices=agent.protocols, default=agent.protocols[0], help="prompt and image protocol")
    add("--strict_images", action="store_true", help="a truncated image is an error instead of a warning")
    add("--overwrite", action="store_true", help="start over instead of resuming")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: this machine has no usable CUDA GPU; --device cpu works")
    args.dtype = args.dtype or ("bfloat16" if on_gpu else "float32")
    if args.workers is None:
        args.workers = min(16, os.cpu_count() or 1) if on_gpu else 0
    return args


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
    return samples[: args.limit]


def _identity(args: Namespace, prompt: Prompt, adapter: Path | None) -> dict[str, Any]:
    """What two runs must share for their rows to stand in one file."""
    return {
        "model": str(prompt.checkpoint),
        "model_fingerprint": fingerprint(prompt.checkpoint),
        "adapter": str(adapter) if adapter else None,
        "adapter_fingerprint": fingerprint(adapter) if adapter else None,
        "dtype": args.dtype,
        "strict_images": args.strict_images,
        **prompt.describe(),
    }


_PLACES = ("model", "adapter")


def check_identity(args: Namespace, identity: dict[str, Any]) -> None:
    """Raise InputError where the CSV to resume was begun with another model, dtype or protocol."""
    begun = read_info(args.output_csv).get("identity")
    if args.overwrite or not begun or not args.output_csv.exists():
        return
    for key, value in identity.items():
        if key not in _PLACES and begun.get(key) != value:
            raise InputError(
                args.output_csv,
                found=f"a run with {key} {begun.get(key)}",
                expected=f"{key} {value}, as this run has",
                remedy="repeat the command that began this file, name another --output_csv, or --overwrite it",
            )


def _metadata(args: Namespace, identity: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    on_gpu = args.device.startswith("cuda")
    return {
        "identity": identity,
        "finished": True,
        "dataset": str(args.dataset_path),
        "image_root": str(args.image_root),
        "sources": args.sources,
        "limit": args.limit,
        "batch_size": args.batch_size,
        "rows": outcome.num_rows,
        "errors": outcome.num_errors,
        "truncated_images": outcome.num_warnings,
        "attention": "varlen" if on_gpu and args.dtype != "float32" else "sdpa",
        "device": torch.cuda.get_device_name(args.device) if on_gpu else platform.processor() or platform.machine(),
        "images_per_second": round(outcome.images_per_second, 2),
        "seed": None,  # nothing here is random
        **describe_software(("torch", "transformers", "peft", "pillow")),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _report(args: Namespace, outcome: Outcome) -> None:
    if outcome.num_rows:
        for line in accuracy_lines([read_detector(args.output_csv)]):
            print(line)
    print(f"{outcome.num_rows} images in {args.output_csv}", end="")
    print(f" ({outcome.images_per_second:.1f} images/s)" if outcome.num_scored else " (all of them were there already)")
    if outcome.num_warnings:
        print(f"{outcome.num_warnings} truncated images, decoded as far as they go: {warnings_path(args.output_csv)}")
    if outcome.num_errors:
        raise InputError(
            errors_path(args.output_csv),
            found=f"{outcome.num_errors} images without an answer",
            expected="an answer for each",
            remedy="see the file for the reasons; with the images mended, --overwrite scores all again",
        )
