"""LoRA training and merging through ms-swift, with what has to be right before it: checked annotations, split, device.

    python -m dfbench.training.train sft --train_annotations F ... [any `swift sft` flag]
    python -m dfbench.training.train export --trained DIR ... [any `swift export` flag]

The model folders' shells call this; every flag that is not listed in `--help` goes to ms-swift as it stands. Wrong
paths and settings are told before torch is imported, which takes seconds.
"""

import logging
import os
import re
import sys
from argparse import REMAINDER
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryFile

from dfbench import cli
from dfbench.data.annotations import Sample, write_annotations
from dfbench.data.splits import split_validation
from dfbench.errors import InputError, shorten
from dfbench.models.checkpoints import read_adapter_config, refuse_remote_code
from dfbench.models.registry import Family
from dfbench.paths import REPOSITORY
from dfbench.training.base_model import checked_family, usable_base
from dfbench.training.checks import checked_samples
from dfbench.training.launch import ALWAYS, has_gpu, only_run, run_swift
from dfbench.training.merge import merge

logger = logging.getLogger(__name__)

TRAINING = ("--check_model", "false", "--strict", "true")
TRAINING += ("--add_version", "false", "--create_checkpoint_symlink", "false")
"""No look at a hub; no other row in the place of one that cannot be loaded; plain checkpoint folders."""

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
    adapters: Path | None
    resume_from_checkpoint: Path | None
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
    add("--adapters", type=Path, help="LoRA adapter folder to start from")
    add("--resume_from_checkpoint", type=Path, help="checkpoint folder to go on from")
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
    model = usable_base(config.model, family)
    flags = [*family_flags(config.model_type, family), *config.flags, *_start(config)]
    flags += ["--model", str(model), "--output_dir", str(config.output_dir)]
    _make_writable(config)
    with _only_training(config):
        _check_checkpoints(config)
        training, validation = _write_datasets(config, family.max_aspect_ratio if family else inf)
        flags += ["--dataset", str(training)]
        flags += ["--val_dataset", str(validation)] if validation else ["--eval_strategy", "no"]
        advice = "Checkpoints written so far are kept. Where an image is to blame, --decode_images says which one."
        try:
            run_swift("sft", flags + _machine_flags(several, config.deepspeed), advice)
        except KeyboardInterrupt:
            print(f"interrupted; {_kept(config.output_dir)}", file=sys.stderr)
            raise SystemExit(130) from None


def _start(config: TrainingConfig) -> list[str]:
    """The flags that name the folders of earlier training to start from. Raises InputError for unusable ones."""
    flags = []
    if config.adapters:
        read_adapter_config(config.adapters)
        refuse_remote_code(config.adapters)
        flags += ["--adapters", str(config.adapters)]
    if config.resume_from_checkpoint:
        if not (config.resume_from_checkpoint / "trainer_state.json").exists():
            raise InputError(
                f"{config.resume_from_checkpoint}: no trainer_state.json, so no complete checkpoint. Name a "
                f"checkpoint-N folder of the run to go on with."
            )
        refuse_remote_code(config.resume_from_checkpoint)
        flags += ["--resume_from_checkpoint", str(config.resume_from_checkpoint)]
    return flags


def _make_writable(config: TrainingConfig) -> None:
    try:
        config.data_folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=config.data_folder).close()
    except OSError as error:
        reason = f"{config.output_dir}: nothing can be written there ({error.strerror})"
        raise InputError(f"{reason}. Set OUTPUT_DIR to another place.") from None


def _only_training(config: TrainingConfig) -> AbstractContextManager:
    """The lock of the output folder. It lies inside, where all names of the folder lead. The first of several machines
    that train together holds it for all.
    """
    if _count("NODE_RANK", least=0) > 0:
        return nullcontext()
    return only_run(
        config.data_folder,
        f"{config.output_dir}: another training is at work in this folder. Wait for it, or set OUTPUT_DIR to another.",
    )


def _check_checkpoints(config: TrainingConfig) -> None:
    """No checkpoints of another run, which cannot be told apart afterwards, and nothing that ms-swift takes for one:
    with --save_total_limit it removes `checkpoint-500_merged` and the like.
    """
    for path in sorted(config.output_dir.glob("checkpoint-*")):
        model = (path / "config.json").exists() and not (path / "trainer_state.json").exists()
        if path.is_dir() and (model or not _CHECKPOINT.fullmatch(path.name)):
            raise InputError(
                f"{path} is no checkpoint, but training would remove it as an old one (--save_total_limit). Move it "
                f"elsewhere, a merged model into {config.output_dir / 'merged'}, and repeat the command."
            )
    if _checkpoints(config.output_dir) and not config.resume_from_checkpoint:
        raise InputError(
            f"{config.output_dir} has checkpoints of an earlier run. Set OUTPUT_DIR to a new folder, remove them, or "
            f"go on from one with --resume_from_checkpoint."
        )


_CHECKPOINT = re.compile(r"checkpoint-([0-9]+)")


def _checkpoints(folder: Path) -> list[Path]:
    """The trainer's checkpoint folders, in the order of their steps."""
    paths = [path for path in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _kept(folder: Path) -> str:
    """What an interrupted run leaves, and how to go on. A checkpoint is complete with its trainer_state.json."""
    complete = [path for path in _checkpoints(folder) if (path / "trainer_state.json").exists()]
    if not complete:
        return "no checkpoint was written yet: the same command starts again"
    names = ", ".join(path.name for path in complete)
    return f"{folder} keeps {names}. To go on, add --resume_from_checkpoint {complete[-1]} to the command"


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
    return [*ALWAYS, *TRAINING, *template, *(["--model_type", model_type] if model_type else [])]


def _machine_flags(several: bool, deepspeed: str) -> list[str]:
    """Flags for the devices at hand, in one process or `several`."""
    if has_gpu():
        return ["--deepspeed", deepspeed] if several and deepspeed != "none" else []
    logger.info("no CUDA GPU: training in float32 on the CPU")
    # Without a backend of its own, every CPU process would train alone and count all losses.
    return [*ON_CPU, "--ddp_backend", "gloo"] if several else [*ON_CPU]


def _count(variable: str, least: int = 1) -> int:
    """The value of an environment variable that counts something, `least` where it is not set."""
    text = os.environ.get(variable, str(least))
    if not text.isdecimal() or int(text) < least:
        raise InputError(f"{variable} is {shorten(text)}. Set it to a number of at least {least}, or leave it out.")
    return int(text)


if __name__ == "__main__":
    sys.exit(cli.run(main))
