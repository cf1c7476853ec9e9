"""The command line of every `evaluate_logit.py`: the folder names its agent, `dfbench.scoring.run` does the work."""

import os
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfbench import cli
from dfbench.paths import REPOSITORY, RESULTS

INTERNVL_PROTOCOLS = ("upstream", "native")
"""Prompt and image protocols of InternVL (`dfbench.models.internvl`), the default first."""


@dataclass(frozen=True)
class Agent:
    """A model folder: its name (also of its CSV), where it lies, and its annotation file relative to it.

    family: `model_type` of the checkpoints that are this agent's; None takes any.
    """

    name: str
    folder: Path
    dataset: str
    protocols: Sequence[str] = ()
    family: str | None = None


def main(agent: Agent, description: str | None) -> None:
    """Parse the command line, score, and print accuracy by source and where the files are."""
    args = parse(agent, description)
    from dfbench.scoring.run import run  # only now: transformers takes seconds as well

    run(args, agent)


def parse(agent: Agent, description: str | None) -> Namespace:
    """The arguments, those that depend on the device filled in; `compile` says whether layers are compiled."""
    parser = cli.ArgumentParser(description)
    add = parser.add_argument
    add(
        "--model_path",
        type=Path,
        help="checkpoint folder; without it, the newest merged one, or else the newest adapter",
    )
    add("--adapter", type=Path, help="LoRA adapter folder, scored unmerged on top of --model_path")
    add(
        "--train_dir",
        type=Path,
        default=agent.folder / "output_ckpt",
        help="folder of training's results, searched where --model_path is not named",
    )
    add("--dataset_path", type=Path, default=agent.folder / agent.dataset, help="annotation file, either shape")
    add("--image_root", type=Path, default=REPOSITORY, help="folder that the annotated image paths start from")
    add("--output_csv", type=Path, default=RESULTS / f"{agent.name}.csv", help="per-image CSV to write")
    add("--batch_size", type=cli.positive_int, help="images of a batch at most; default: 8 on a CPU, no limit on a GPU")
    add("--token_budget", type=_budget, default="auto", help="tokens of a batch at most, or auto")
    add("--limit", type=cli.positive_int, help="score the first N images only, for a quick look")
    add("--sources", nargs="+", metavar="SOURCE", help="score these sources only")
    add(
        "--only_undecided",
        nargs="+",
        type=Path,
        metavar="CSV",
        help="per-image CSVs of all other agents: score only images whose MoA-DF decision they leave open",
    )
    add("--device", type=_device, help="cuda, cuda:N or cpu; default: cuda where there is a GPU")
    add("--dtype", choices=("bfloat16", "float16", "float32"), help="default: bfloat16 on a GPU, float32 on a CPU")
    workers = "processes that decode images; default: one a core up to 16 on a GPU, 0 on a CPU"
    add("--workers", type=cli.natural_int, help=workers)
    if agent.protocols:
        add("--protocol", choices=agent.protocols, default=agent.protocols[0], help="prompt and image protocol")
    add("--precision", choices=("full", "fp8"), default="full", help="fp8: 8-bit products, faster and less exact (GPU)")
    add("--eager", action="store_true", help="do not compile the layers (GPU; the first batch comes sooner)")
    add("--strict_images", action="store_true", help="a truncated image is an error instead of a warning")
    add("--overwrite", action="store_true", help="start over instead of resuming")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    if args.precision == "fp8" and args.adapter:
        parser.error("--precision fp8 takes merged weights; merge the adapter first")
    if args.precision == "fp8" and args.dtype == "float32":
        parser.error("--precision fp8 gives bfloat16 or float16, not --dtype float32")
    _suit_the_device(parser, args)
    return args


def _suit_the_device(parser: cli.ArgumentParser, args: Namespace) -> None:
    """Fill in what depends on the device, and refuse what it cannot do."""
    if args.device in (None, "cuda"):
        _see_own_gpu()
    import torch  # only now: it takes seconds, which --help and wrong arguments need not wait for

    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = args.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: this machine has no usable CUDA GPU; --device cpu works")
    if on_gpu and int(args.device.partition(":")[2] or 0) >= torch.cuda.device_count():
        parser.error(f"--device {args.device}: this machine has {torch.cuda.device_count()} GPUs, counted from 0")
    if args.precision == "fp8":
        from dfbench.models.packed.fp8 import FIRST_CAPABILITY

        if not on_gpu or torch.cuda.get_device_capability(args.device) < FIRST_CAPABILITY:
            parser.error("--precision fp8 needs a GPU of compute capability 8.9 or more")
    if on_gpu:
        args.device = args.device if ":" in args.device else "cuda:0"  # set_device insists on a number
        torch.cuda.set_device(args.device)
    args.dtype = args.dtype or ("bfloat16" if on_gpu else "float32")
    args.compile = on_gpu and args.dtype != "float32" and not args.eager
    if args.batch_size is None and not on_gpu:
        args.batch_size = 8
    if args.workers is None:
        args.workers = min(16, os.cpu_count() or 1) if on_gpu else 0


def _see_own_gpu() -> None:
    """Let each of torchrun's processes see one GPU, its own, as GPU 0: nothing of it ends up on another's, and code
    that was compiled for one serves all.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        local, visible = int(os.environ.get("LOCAL_RANK", "0")), os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible is not None else None
        own = str(local) if gpus is None else gpus[local] if local < len(gpus) else ""
        os.environ["CUDA_VISIBLE_DEVICES"] = own


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise ArgumentTypeError(f"{text!r} is not cuda, cuda:N or cpu")
    return text


def _budget(text: str) -> int | None:
    return None if text == "auto" else cli.positive_int(text)
