"""LoRA training and merging through ms-swift, with what has to be right before it: checked annotations, split, device.

    python -m dfbench.training.train sft --train_annotations F ... [any `swift sft` flag]
    python -m dfbench.training.train export --adapters DIR ... [any `swift export` flag]

The model folders' shells call this; every flag that is not listed in `--help` goes to ms-swift as it stands. ms-swift
replaces a row that it cannot load by a random other one and exits with 0, so it gets only rows that were checked, and
`--strict true`.
"""

import logging
import os
import subprocess
import sys
from argparse import ArgumentTypeError, Namespace
from dataclasses import fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import torch

from dfbench import cli
from dfbench.data.annotations import split_validation, write_annotations
from dfbench.errors import InputError, shorten
from dfbench.models.base import read_config
from dfbench.models.checkpoints import newest_adapter, read_base_model
from dfbench.models.internvl_convert.convert import is_original
from dfbench.models.registry import usable_checkpoint
from dfbench.paths import REPOSITORY
from dfbench.training.checks import QWEN_MAX_RATIO, checked_samples

logger = logging.getLogger(__name__)

FAMILIES = ("qwen2_5_vl", "internvl")

ON_CPU = {
    "--torch_dtype": "float32",
    "--bf16": "false",
    "--fp16": "false",
    "--use_cpu": "true",
    "--attn_impl": "sdpa",
}
"""Replaces the GPU's number format where there is no GPU: half precision is neither fast nor exact on a CPU."""


def main() -> None:
    if sys.argv[1:2] == ["sft"]:
        train(sys.argv[2:])
    elif sys.argv[1:2] == ["export"]:
        merge(sys.argv[2:])
    else:
        print("usage: python -m dfbench.training.train {sft,export} ...", file=sys.stderr)
        raise SystemExit(2)


def train(argv: list[str]) -> None:
    """Check and split the annotations, write them for ms-swift, and run `swift sft`."""
    parser = cli.ArgumentParser("Check annotations, then train with ms-swift. Further flags go to `swift sft`.")
    add = parser.add_argument
    add("--train_annotations", type=Path, required=True, help="annotation file, either shape")
    add("--val_annotations", type=Path, help="validation rows; without it they are split off the training rows")
    add("--val_fraction", type=_fraction, default=0.01, help="share of each source's training rows kept for validation")
    add("--image_root", type=Path, default=REPOSITORY, help="folder that the annotated image paths start from")
    add("--model", type=Path, required=True, help="base checkpoint folder")
    add("--model_type", help="ms-swift's name of the model family, which the checkpoint has to be of")
    add("--output_dir", type=Path, required=True, help="folder for checkpoints")
    add("--resume_from_checkpoint", help="checkpoint folder to go on from")
    add("--deepspeed", default="zero1", help="DeepSpeed stage where several GPUs train; 'none' for plain DDP")
    add("--decode_images", action="store_true", help="decode every image beforehand, not only its header")
    args, flags = parser.parse_known_args(argv)
    # First what is quickly told: looking at all images can take minutes.
    machine = _for_this_machine(args.deepspeed)
    family = _checked_family(args.model, args.model_type)
    _check_output(args)
    model = usable_checkpoint(args.model)
    refuse_remote_code(model)
    training, validation = _datasets(args, QWEN_MAX_RATIO if family == "qwen2_5_vl" else None)
    flags += ["--model", str(model), "--output_dir", str(args.output_dir), "--dataset", str(training)]
    flags += ["--model_type", args.model_type] if args.model_type else []
    flags += ["--val_dataset", str(validation)] if validation else ["--eval_strategy", "no"]
    if args.resume_from_checkpoint:
        flags += ["--resume_from_checkpoint", args.resume_from_checkpoint]
    _swift("sft", flags + machine)


def merge(argv: list[str]) -> None:
    """Merge a LoRA adapter into its base model with `swift export`."""
    parser = cli.ArgumentParser("Merge a LoRA adapter with ms-swift. Further flags go to `swift export`.")
    add = parser.add_argument
    add("--trained", type=Path, required=True, help="folder that training wrote its checkpoints to")
    add("--adapters", type=Path, help="adapter folder; without it, the newest one of --trained")
    add("--output_dir", type=Path, help="folder for the merged model; default: the adapter's name with _merged")
    args, flags = parser.parse_known_args(argv)
    adapter = args.adapters or newest_adapter(args.trained)
    read_base_model(adapter)
    merged = args.output_dir or adapter.with_name(adapter.name + "_merged")
    if merged.exists() and any(merged.iterdir()):
        raise InputError(
            merged, found="files already", expected="a new folder", remedy="remove it, or name another --output_dir"
        )
    if not torch.cuda.is_available():
        flags += ["--torch_dtype", "float32"]
    _swift("export", ["--adapters", str(adapter), "--merge_lora", "true", "--output_dir", str(merged), *flags])
    print(f"merged model: {merged}")


def refuse_remote_code(checkpoint: Path) -> None:
    """Raise InputError where a checkpoint brings code of its own: ms-swift would run it without asking."""
    for path in sorted(checkpoint.glob("*.json")):
        if '"auto_map"' in path.read_text(encoding="utf-8", errors="replace"):
            raise InputError(
                path,
                found="auto_map, which makes ms-swift run code out of this folder",
                expected="a checkpoint that transformers loads by itself",
                remedy="use the native (-hf) form of the weights",
            )


def _checked_family(checkpoint: Path, expected: str | None) -> str | None:
    """The checkpoint's `model_type`, as of its native form. ms-swift calls both families what their configs call them.

    Raises InputError where the shell of one family was given a checkpoint of another.
    """
    family = "internvl" if is_original(checkpoint) else read_config(checkpoint).get("model_type")
    if expected in FAMILIES and family != expected:
        raise InputError(
            checkpoint / "config.json",
            found=f"model_type {shorten(family)}",
            expected=expected,
            remedy="set MODEL to a model of this folder's family, or train in the folder of that model",
        )
    return family


def _check_output(args: Namespace) -> None:
    """A folder that can be written to, without checkpoints: those of two runs cannot be told apart afterwards."""
    if next(args.output_dir.glob("checkpoint-*"), None) and not args.resume_from_checkpoint:
        raise InputError(
            args.output_dir,
            found="checkpoints of an earlier run",
            expected="a new folder",
            remedy="set OUTPUT_DIR, remove them, or go on from one with --resume_from_checkpoint",
        )
    try:
        _data_folder(args).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=_data_folder(args)):
            pass
    except OSError as error:
        raise InputError(
            args.output_dir,
            found=f"that nothing can be written there ({error.strerror})",
            expected="a folder, or a place for a new one",
            remedy="set OUTPUT_DIR to another place",
        ) from None


def _data_folder(args: Namespace) -> Path:
    return args.output_dir / "data"


def _datasets(args: Namespace, max_ratio: float | None) -> tuple[Path, Path | None]:
    """Write the checked rows as ms-swift loads them: the training file and the validation file (None for no rows)."""
    check = partial(checked_samples, image_root=args.image_root, decode=args.decode_images, max_ratio=max_ratio)
    samples = check(args.train_annotations)
    if args.val_annotations:
        validation = check(args.val_annotations)
        shared = {sample.image for sample in samples} & {sample.image for sample in validation}
        if shared:
            raise InputError(
                args.val_annotations,
                found=f"{len(shared)} images that are training images too, such as {min(shared)}",
                expected="other images than in training",
                remedy="remove them, or leave VAL out to split validation off the training rows",
            )
    else:
        samples, validation = split_validation(samples, args.val_fraction)
    logger.info("%d training and %d validation rows, all checked", len(samples), len(validation))
    paths = _data_folder(args) / "train.jsonl", _data_folder(args) / "val.jsonl"
    for rows, path in zip((samples, validation), paths, strict=True):
        write_annotations(rows, path, image_root=args.image_root)
    return paths[0], paths[1] if validation else None


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise ArgumentTypeError(f"{text} is no share from 0 up to, but not including, 1")
    return value


def _for_this_machine(deepspeed: str) -> list[str]:
    several = _count("NPROC_PER_NODE") * _count("NNODES") > 1
    if not torch.cuda.is_available():
        logger.info("no CUDA GPU: training in float32 on the CPU")
        flags = [word for flag in ON_CPU.items() for word in flag]
        # Without a backend of its own, every CPU process would train alone and count all losses.
        return [*flags, "--ddp_backend", "gloo"] if several else flags
    return ["--deepspeed", deepspeed] if several and deepspeed != "none" else []


def _count(variable: str) -> int:
    """The value of an environment variable that counts something, 1 where it is not set."""
    text = os.environ.get(variable, "1")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(variable, found=shorten(text), expected="a number", remedy="set it to one, or leave it out")
    return int(text)


def _swift(command: str, flags: list[str]) -> None:
    """Run ms-swift; where it refuses its arguments, so do we, with exit status 2.

    Later flags win in its parser: what the user typed after the shell's own flags overrides them.
    """
    words = [sys.executable, "-m", "swift.cli.main", command, *flags]
    status = subprocess.run(words, env={"USE_HF": "1", **os.environ}).returncode
    unknown = _unknown_flags(command, flags) if status == 1 else []
    if status == 2 or unknown:
        what = f"unknown arguments {' '.join(unknown)}" if unknown else "wrong arguments, as its last line above says"
        print(f"error: swift {command}: {what}", file=sys.stderr)
        raise SystemExit(2)
    if status:
        raise InputError(
            f"swift {command}",
            found=f"exit status {status}",
            expected="0",
            remedy="its own last lines above say why; checkpoints written so far are kept"
            + ("; where an image is to blame, --decode_images says which one" if command == "sft" else ""),
        )


def _unknown_flags(command: str, flags: list[str]) -> list[str]:
    """The flags that ms-swift does not have, at which it ends like at any failure. Importing it takes many seconds."""
    try:
        from swift.arguments import ExportArguments, SftArguments
    except ImportError:
        return []
    known = {field.name for field in fields(SftArguments if command == "sft" else ExportArguments)}
    names = [word.partition("=")[0] for word in flags if word.startswith("--")]
    return [name for name in names if name[2:].replace("-", "_").removeprefix("no_") not in known]


if __name__ == "__main__":
    sys.exit(cli.run(main))
