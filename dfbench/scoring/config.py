"""What a scoring run is asked to do, and quick checks of it. Imports neither torch nor transformers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfbench.data.annotations import iter_rows
from dfbench.errors import InputError, OptionError
from dfbench.models.checkpoints import read_adapter_config, weight_files
from dfbench.models.registry import ENGINES, check_checkpoint
from dfbench.paths import REPOSITORY

DTYPES = ("bfloat16", "float16", "float32")
PRECISIONS = ("full", "fp8")


@dataclass(frozen=True)
class ScoringConfig:
    """One run: a model's logits of A and B for the images of an annotation file, as a per-image CSV.

    None stands for what suits the machine (see `dfbench.scoring.device.resolve`). Raises OptionError where options do
    not go together.

    model: checkpoint folder. adapter: LoRA adapter folder, scored unmerged on top of it.
    annotations: annotation file, any shape. image_root: folder that the annotated image paths start from.
    output_csv: per-image CSV; its metadata, errors and warnings are written beside it.
    agent: a key of `dfbench.models.registry.AGENTS`, whose checkpoints alone are accepted; None accepts each family's.
    any_size: accept other sizes of the agent's family than the released one.
    batch_size, token_budget: images and tokens of a batch at most.
    limit: score the first so many images only. sources: score these sources only.
    only_undecided: per-image CSVs of all other agents, to score only images whose MoA-DF decision they leave open.
    device: cpu, cuda or cuda:N. dtype: one of DTYPES. workers: processes that decode images, 0 for none.
    protocol: prompt and image protocol; None for the family's first. precision: fp8 for 8-bit products.
    engine: packed (the fast path), transformers (plain forward passes), or auto: packed where it knows the model.
    eager: do not compile the layers. strict_images: a truncated image is an error instead of a warning.
    overwrite: start over instead of resuming. quiet: no progress bar.
    """

    model: Path
    annotations: Path
    output_csv: Path
    image_root: Path = REPOSITORY
    adapter: Path | None = None
    agent: str | None = None
    any_size: bool = False
    batch_size: int | None = None
    token_budget: int | None = None
    limit: int | None = None
    sources: Sequence[str] | None = None
    only_undecided: Sequence[Path] = ()
    device: str | None = None
    dtype: str | None = None
    workers: int | None = None
    protocol: str | None = None
    precision: str = "full"
    engine: str = "auto"
    eager: bool = False
    strict_images: bool = False
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("model", "annotations", "output_csv", "image_root", "adapter"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
        for name, known in (("dtype", (None, *DTYPES)), ("precision", PRECISIONS), ("engine", ENGINES)):
            if (value := getattr(self, name)) not in known:
                raise OptionError(f"{name} is {value!r}; choose from {', '.join(filter(None, known))}.")
        if self.device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise OptionError(f"--device {self.device} is not cuda, cuda:N or cpu.")
        if self.precision == "fp8" and self.adapter:
            raise OptionError("--precision fp8 takes merged weights. Merge the adapter first.")
        if self.precision == "fp8" and self.dtype == "float32":
            raise OptionError("--precision fp8 gives bfloat16 or float16, not --dtype float32.")
        if self.precision == "fp8" and self.engine == "transformers":
            raise OptionError("--precision fp8 needs --engine packed.")


def check_inputs(config: ScoringConfig) -> None:
    """Raise InputError for a path that leads nowhere and for another agent's model, before anything is loaded."""
    from dfbench.predictions.schema import SCORING, check_output_csv  # imports NumPy

    inputs = [config.annotations, *config.only_undecided]
    check_output_csv(config.output_csv, inputs, mark=SCORING, overwrite=config.overwrite)
    if not config.image_root.is_dir():
        raise InputError(f"{config.image_root}: no such folder. Correct --image_root, where the image paths start.")
    next(iter_rows(config.annotations), None)
    check_checkpoint(config.model, config.agent, any_size=config.any_size)
    weight_files(config.model)
    if config.adapter is not None:
        read_adapter_config(config.adapter)
