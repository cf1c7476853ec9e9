"""A LoRA adapter and its base model to one merged model, through ms-swift."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from dfbench import cli
from dfbench.errors import InputError
from dfbench.io import write_json
from dfbench.models.checkpoints import (
    MERGE_RECORD,
    check_adapter,
    check_weights,
    identity,
    newest_adapter,
    read_adapter_config,
    read_base_model,
    refuse_remote_code,
)
from dfbench.training.base_model import checked_family, usable_base
from dfbench.training.launch import ALWAYS, has_gpu, only_run, run_swift


def merge(argv: Sequence[str]) -> None:
    """Merge a LoRA adapter into its base model with `swift export`.

    The merged model is put in place when it is complete. It lies where no trainer looks: one that keeps so many
    checkpoints and no more takes `checkpoint-500_merged` for one. Raises InputError.
    """
    parser = cli.ArgumentParser("Merge a LoRA adapter with ms-swift. Further flags go to `swift export`.")
    add = parser.add_argument
    add("--trained", type=Path, required=True, help="folder that training wrote its checkpoints to")
    add("--adapters", type=Path, help="adapter folder; without it, the newest one of --trained")
    add("--model", type=Path, help="base checkpoint folder; without it, the one that the adapter names")
    add("--output_dir", type=Path, help="folder for the merged model; default: merged/<adapter's name> in --trained")
    args, flags = parser.parse_known_args(argv)
    adapter = args.adapters or newest_adapter(args.trained)
    read_adapter_config(adapter)
    refuse_remote_code(adapter)
    named = args.model or read_base_model(adapter)
    family = checked_family(named)
    base = usable_base(named, family)
    check_adapter(base, adapter)
    check_weights(adapter)
    if family:
        from dfbench.models.hf import check_fit  # it imports torch

        check_fit(base, adapter)
    known = ["--model_type", family.name, "--template", family.template] if family else []
    dtype = [] if has_gpu() else ["--torch_dtype", "float32"]
    merged = args.output_dir or args.trained / "merged" / Path(os.path.abspath(adapter)).name
    merged.parent.mkdir(parents=True, exist_ok=True)
    with only_run(merged, f"Another merge is writing to {merged}. Wait for it, or name another --output_dir."):
        if merged.exists() and any(merged.iterdir()):
            raise InputError(f"{merged} has files in it already. Remove it, or name another --output_dir.")
        partial = merged.with_name(f".{merged.name}.tmp")
        shutil.rmtree(partial, ignore_errors=True)  # of a merge that was killed
        try:
            where = ["--model", str(base), "--adapters", str(_bare_copy(adapter, partial / "adapter"))]
            where += ["--merge_lora", "true", "--output_dir", str(partial / "model")]
            run_swift("export", [*ALWAYS, *known, *dtype, *flags, *where])
            write_json(partial / "model" / MERGE_RECORD, _record(base, adapter))
            (partial / "model").replace(merged)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    print(f"merged model: {merged}")


def _bare_copy(adapter: Path, copy: Path) -> Path:
    """A copy of an adapter that holds nothing but its config and weights: no `args.json`, no further adapters."""
    copy.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, copy / name)
    return copy


def _record(base: Path, adapter: Path) -> dict[str, str]:
    return {
        "base": str(base),
        "base_identity": identity(base),
        "adapter": str(adapter),
        "adapter_identity": identity(adapter),
    }
