"""What a run computes on: the device and the defaults that depend on it, resolved once, when the run starts."""

import os
from contextlib import suppress
from dataclasses import dataclass

import torch

from dfbench.errors import OptionError
from dfbench.models.base import DTYPES
from dfbench.models.packed.fp8 import FIRST_CAPABILITY
from dfbench.paths import cache_folder
from dfbench.scoring.config import ScoringConfig

_CPU_BUDGET = 1 << 20
_GPU_BUDGET = 32_768
"""Tokens of a batch. More do not make an H200 faster; a smaller card gets its share (see `automatic_budget`)."""


@dataclass(frozen=True)
class Runtime:
    """What a `ScoringConfig` leaves to the machine, filled in.

    device: cpu or cuda:N. dtype: a key of `DTYPES`. compiled: whether layers are compiled.
    batch_size: images of a batch at most, None for no limit. token_budget: tokens of a batch at most.
    workers: processes that decode images, 0 for none.
    """

    device: str
    dtype: str
    compiled: bool
    batch_size: int | None
    token_budget: int
    workers: int

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"


def resolve(config: ScoringConfig) -> Runtime:
    """Choose the device, make it torch's current one, and fill in what depends on it.

    The only place where a run changes environment variables and limits. Raises OptionError for what the machine cannot
    do.
    """
    if config.device in (None, "cuda"):
        _see_own_gpu()
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        raise OptionError(f"--device {device}: this machine has no usable CUDA GPU; --device cpu works.")
    if on_gpu and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise OptionError(f"--device {device}: this machine has {torch.cuda.device_count()} GPUs, counted from 0.")
    if config.precision == "fp8" and not (on_gpu and torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY):
        raise OptionError("--precision fp8 needs a GPU of compute capability 8.9 or more.")
    if on_gpu:
        device = device if ":" in device else "cuda:0"  # set_device insists on a number
        torch.cuda.set_device(device)
    dtype = config.dtype or ("bfloat16" if on_gpu else "float32")
    compiled = on_gpu and dtype != "float32" and not config.eager
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers are the parallelism
    if compiled:  # kept for later runs: torch's own place, the temporary folder, is emptied now and then
        with suppress(OSError):  # a home that cannot be written to: torch's place it is
            folder = cache_folder() / "compiled"
            folder.mkdir(parents=True, exist_ok=True)
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    workers = min(16, os.cpu_count() or 1) if on_gpu else 0
    workers = workers if config.workers is None else config.workers
    if workers:
        _allow_open_files(workers)
    return Runtime(
        device=device,
        dtype=dtype,
        compiled=compiled,
        batch_size=config.batch_size or (None if on_gpu else 8),
        token_budget=config.token_budget or (automatic_budget(device, dtype) if on_gpu else _CPU_BUDGET),
        workers=workers,
    )


def _allow_open_files(workers: int) -> None:
    """Raise the process's limit of open files where it must be; each tensor of a batch out of a worker is one. Raises
    OptionError where it may not be: with too few, workers end in tracebacks or wait for ever.
    """
    import resource  # not on Windows, whose runs have no workers

    needed = 64 + 32 * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise OptionError(
                f"--workers {workers} needs {needed} open files, and this process may have {hard}. Raise the limit "
                f"(ulimit -n), or take fewer workers; --workers 0 works."
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def automatic_budget(device: str, dtype: str) -> int:
    """Tokens of a batch that fit beside the weights: a token takes about 0.4 MB in a model of 8 billion parameters.

    From the card's whole memory, not from what is free right now, so that a resumed run forms the same batches.
    """
    memory = torch.cuda.get_device_properties(device).total_memory
    room = memory - 20e9 * DTYPES[dtype].itemsize / 2
    return int(min(_GPU_BUDGET, max(2_048, 0.6 * room / 4e5)))


def _see_own_gpu() -> None:
    """Let each of torchrun's processes see one GPU, its own, as GPU 0: nothing of it ends up on another's, and code
    that was compiled for one serves all.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        local, visible = int(os.environ.get("LOCAL_RANK", "0")), os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible is not None else None
        own = str(local) if gpus is None else gpus[local] if local < len(gpus) else ""
        os.environ["CUDA_VISIBLE_DEVICES"] = own
