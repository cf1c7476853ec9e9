"""LoRA training and merging through ms-swift, with what has to be right before it: checked annotations, split, device.

    python -m dfbench.training.train sft --train_annotations F ... [any `swift sft` flag]
    python -m dfbench.training.train export --trained DIR ... [any `swift export` flag]

The model folders' shells call this; every flag that is not listed in `--help` goes to ms-swift as it stands. Wrong
paths and settings are told before torch is imported, which takes seconds.
"""

import logging
import os
import subprocess
import sys
from argparse import REMAINDER
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from tempfile import TemporaryFile

from dfbench import cli
from dfbench.data.annotations import Sample, write_annotations
from dfbench.data.splits import split_validation
from dfbench.errors import InputError, shorten
from dfbench.models.checkpoints import newest_adapter, read_base_model, read_config, usable_checkpoint
from dfbench.models.registry import FAMILIES, Family, family_of
from dfbench.paths import REPOSITORY
from dfbench.training.checks import checked_samples

logger = logging.getLogger(__name__)

ALWAYS = ("--external_plugins", str(Path(__file__).with_name("swift_plugin.py")), "--check_model", "false")
ALWAYS += ("--strict", "true", "--add_version", "false", "--create_checkpoint_symlink", "false")
"""Our templates; no look at a hub; no other row in the place of one that cannot be loaded; plain checkpoint folders."""

ON_CPU = ("--torch_dtype", "float32", "--bf16", "false", "--fp16", "false", "--use_cpu", "true", "--attn_impl", "sdpa")
"""Replaces the GPU's number format where there is no GPU: half precision is neither fast nor exact on a CPU."""


@dataclass(frozen=True)
class TrainingConfig:
    """The options of `sft` that are ours, which `--help` explains; `flags` are ms-swift's, where later ones win."""

    train_annotations: Path
    val_annotations: Path | None
    val_fraction: float
    image_root: Path
    model: Path
    model_type: str | None
    output_dir: Path
    resume_from_checkpoint: str | None
    deepspeed: str
    decode_images: bool
    flags: tuple[str, ...]

    @property
    def data_folder(self) -> Path:
        """Where the checked rows are written for ms-swift."""
        return self.output_dir / "data"


def main() -> None:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("command", choices=("sft", "export"), help="train, or merge")
    parser.add_argument("flags", nargs=REMAINDER, help="see `sft --help` and `export --help`")
    args = parser.parse_args()
    if args.command == "sft":
        train(parse(args.flags))
    else:
        merge(args.flags)


def parse(argv: Sequence[str]) -> TrainingConfig:
    parser = cli.ArgumentParser("Check annotations, then train with ms-swift. Further flags go to `swift sft`.")
    add = parser.add_argument
    add("--train_annotations", type=Path, required=True, help="annotation file, either shape")
    add("--val_annotations", type=Path, help="validation rows; without it they are split off the training rows")
    add("--val_fraction", type=cli.fraction, default=0.01, help="part of each source's training rows for validation")
    add("--image_root", type=Path, default=REPOSITORY, help="folder that the annotated image paths start from")
    add("--model", type=Path, required=True, help="base checkpoint folder")
    add("--model_type", help="ms-swift's name of the model family, which the checkpoint has to be of")
    add("--output_dir", type=Path, required=True, help="folder for checkpoints")
    add("--resume_from_checkpoint", help="checkpoint folder to go on from")
    add("--deepspeed", default="zero1", help="DeepSpeed stage where several GPUs train; 'none' for plain DDP")
    add("--decode_images", action="store_true", help="decode every image beforehand, not only its header")
    args, flags = parser.parse_known_args(argv)
    return TrainingConfig(**vars(args), flags=tuple(flags))


def train(config: TrainingConfig) -> None:
    """Check and split the annotations, write them for ms-swift, and run `swift sft`.

    Raises InputError for whatever cannot be trained with; what is quickly told comes first, before all images are
    looked at, which can take minutes.
    """
    several = _count("NPROC_PER_NODE") * _count("NNODES") > 1
    family = checked_family(config.model, config.model_type)
    _check_output(config)
    training, validation = _write_datasets(config, family.max_aspect_ratio if family else inf)
    model = usable_checkpoint(config.model)
    refuse_remote_code(model)
    flags = [*family_flags(config.model_type, family), *config.flags]
    flags += ["--model", str(model), "--output_dir", str(config.output_dir), "--dataset", str(training)]
    flags += ["--val_dataset", str(validation)] if validation else ["--eval_strategy", "no"]
    if config.resume_from_checkpoint:
        flags += ["--resume_from_checkpoint", config.resume_from_checkpoint]
    _swift("sft", flags + _machine_flags(several, config.deepspeed))


def merge(argv: Sequence[str]) -> None:
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
        raise InputError(f"{merged} has files in it already. Remove it, or name another --output_dir.")
    flags += [] if _has_gpu() else ["--torch_dtype", "float32"]
    _swift("export", ["--adapters", str(adapter), "--merge_lora", "true", "--output_dir", str(merged), *flags])
    print(f"merged model: {merged}")


def checked_family(checkpoint: Path, expected: str | None) -> Family | None:
    """The family of a checkpoint; None for one that is not registered, which only ms-swift can judge.

    Raises InputError where the shell of one family was given a checkpoint of another.
    """
    model_type = read_config(checkpoint).get("model_type")
    family = family_of(model_type)
    if expected in FAMILIES and family is not FAMILIES[expected]:
        raise InputError(
            f"{checkpoint / 'config.json'}: model_type is {shorten(model_type)}; expected {expected}. Set MODEL to a "
            f"model of this folder's family, or train in the folder of that model."
        )
    return family


def refuse_remote_code(checkpoint: Path) -> None:
    """Raise InputError where a checkpoint brings code of its own: ms-swift would run it without asking."""
    for path in sorted(checkpoint.glob("*.json")):
        if '"auto_map"' in path.read_text(encoding="utf-8", errors="replace"):
            raise InputError(
                f"{path}: auto_map makes ms-swift run code from this folder. Use the native (-hf) form of the weights."
            )


def _check_output(config: TrainingConfig) -> None:
    """A folder that can be written to, without checkpoints: those of two runs cannot be told apart afterwards."""
    if next(config.output_dir.glob("checkpoint-*"), None) and not config.resume_from_checkpoint:
        raise InputError(
            f"{config.output_dir} has checkpoints of an earlier run. Set OUTPUT_DIR to a new folder, remove them, or "
            f"go on from one with --resume_from_checkpoint."
        )
    try:
        config.data_folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=config.data_folder).close()
    except OSError as error:
        reason = f"{config.output_dir}: nothing can be written there ({error.strerror})"
        raise InputError(f"{reason}. Set OUTPUT_DIR to another place.") from None


def _write_datasets(config: TrainingConfig, max_aspect_ratio: float) -> tuple[Path, Path | None]:
    """Write the checked rows as ms-swift loads them: the training file and the validation file (None for no rows)."""

    def check(path: Path) -> list[Sample]:
        return checked_samples(path, config.image_root, config.decode_images, max_aspect_ratio)

    samples = check(config.train_annotations)
    if config.val_annotations:
        validation = check(config.val_annotations)
        shared = {sample.image for sample in samples} & {sample.image for sample in validation}
        if shared:
            raise InputError(
                f"{config.val_annotations}: {len(shared)} images are training images too, such as {min(shared)}. "
                "Remove them, or leave VAL out to split validation rows off the training rows."
            )
    else:
        samples, validation = split_validation(samples, config.val_fraction)
    logger.info("%d training and %d validation rows, all checked", len(samples), len(validation))
    paths = config.data_folder / "train.jsonl", config.data_folder / "val.jsonl"
    for rows, path in zip((samples, validation), paths, strict=True):
        write_annotations(rows, path, image_root=config.image_root)
    return paths[0], paths[1] if validation else None


def family_flags(model_type: str | None, family: Family | None) -> list[str]:
    """What `swift sft` needs for a model of this family, whatever the run."""
    template = ["--template", family.template] if family else []
    return [*ALWAYS, *template, *(["--model_type", model_type] if model_type else [])]


def _machine_flags(several: bool, deepspeed: str) -> list[str]:
    """Flags for the devices at hand, in one process or `several`."""
    if _has_gpu():
        return ["--deepspeed", deepspeed] if several and deepspeed != "none" else []
    logger.info("no CUDA GPU: training in float32 on the CPU")
    # Without a backend of its own, every CPU process would train alone and count all losses.
    return [*ON_CPU, "--ddp_backend", "gloo"] if several else [*ON_CPU]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _count(variable: str) -> int:
    """The value of an environment variable that counts something, 1 where it is not set."""
    text = os.environ.get(variable, "1")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{variable} is {shorten(text)}. Set it to a number of at least 1, or leave it out.")
    return int(text)


def _swift(command: str, flags: Sequence[str]) -> None:
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
        hint = " Where an image is to blame, --decode_images says which one." if command == "sft" else ""
        raise InputError(
            f"swift {command} ended with exit status {status}; its last lines above say why. Checkpoints written so "
            f"far are kept.{hint}"
        )


def _unknown_flags(command: str, flags: Sequence[str]) -> list[str]:
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
