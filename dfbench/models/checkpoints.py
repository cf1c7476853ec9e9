"""Find the weights that training and merging wrote, so that the shells run one after the other without an argument."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dfbench.errors import InputError, shorten
from dfbench.io import read_json_object

logger = logging.getLogger(__name__)


def read_config(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint folder's config.json. Raises InputError where it is none."""
    path = checkpoint / "config.json"
    if not path.exists():
        what = "no config.json in this folder" if checkpoint.is_dir() else "no such folder"
        raise InputError(f"{checkpoint}: {what}. Download the weights, or name the merged folder.")
    return read_json_object(path, expected="a config, a JSON object", remedy="download it again")


def usable_checkpoint(checkpoint: Path) -> Path:
    """The folder to load: an original InternVL one is converted, once, beside itself. Raises InputError."""
    from dfbench.models.internvl_convert.convert import native_checkpoint  # only now: it imports torch

    read_config(checkpoint)
    return native_checkpoint(checkpoint)


def find_weights(model_path: Path | None, adapter: Path | None, trained: Path) -> tuple[Path, Path | None]:
    """(checkpoint, adapter or None) to score. What is not named is looked for in the folder `trained`: the newest
    merged model, or the newest adapter and its base model where that is newer. Raises InputError where there is
    nothing, and where the adapter is unusable (see `read_base_model`).
    """
    if model_path is not None:
        if adapter is not None:
            read_adapter_config(adapter)
        return model_path, adapter
    if adapter is None:
        merged = _newest(path.parent for path in trained.glob("*_merged/config.json"))
        if merged and not any(_written(other) > _written(merged) for other in _adapters(trained)):
            logger.info("model: %s", merged)
            return merged, None
        adapter = newest_adapter(trained)
    base = read_base_model(adapter)
    logger.info("model: %s with adapter %s", base, adapter)
    return base, adapter


def newest_adapter(trained: Path) -> Path:
    """The LoRA adapter that was written last into the folder. Raises InputError where there is none."""
    adapter = _newest(_adapters(trained))
    if adapter is None:
        raise InputError(
            trained,
            found="no merged model and no adapter",
            expected="the result of training",
            remedy="train first, or name the weights",
        )
    return adapter


def read_base_model(adapter: Path) -> Path:
    """The base checkpoint that an adapter's config names. Raises InputError where the adapter is unusable."""
    base = read_adapter_config(adapter).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise InputError(
            adapter / "adapter_config.json",
            found=f"base_model_name_or_path {shorten(base)}",
            expected="the folder of the base model",
            remedy="train it again, or name the base model with --model_path",
        )
    return Path(base)


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """The config of a LoRA adapter folder that has its weights beside it. Raises InputError for any other folder."""
    path = adapter / "adapter_config.json"
    if not path.exists():
        what = "no adapter_config.json" if adapter.is_dir() else "no such folder"
        raise InputError(adapter, found=what, expected="a LoRA adapter folder", remedy="name the checkpoint-N folder")
    words = {"expected": "the config of a LoRA adapter", "remedy": "train it again or name another one"}
    config = read_json_object(path, **words)
    if "peft_type" not in config:
        raise InputError(path, found="no peft_type", **words)
    _check_weights(adapter)
    return config


def _check_weights(adapter: Path) -> None:
    if (adapter / "adapter_model.safetensors").exists():
        return
    if (adapter / "adapter_model.bin").exists():
        found, remedy = "adapter_model.bin, a pickle, which can run code", "save it as safetensors"
    else:
        found, remedy = "no adapter_model.safetensors", "copy the whole folder, or name another one"
    raise InputError(adapter, found=found, expected="an adapter's weights as adapter_model.safetensors", remedy=remedy)


def _adapters(trained: Path) -> list[Path]:
    """Links are left out: ms-swift's `last-checkpoint` is a second name of an adapter that is there anyway."""
    folders = [path.parent for path in trained.glob("*/adapter_config.json")]
    return [folder for folder in folders if not folder.is_symlink()]


def _newest(folders: Iterable[Path]) -> Path | None:
    return max(folders, key=_written, default=None)


def _written(folder: Path) -> float:
    return folder.stat().st_mtime
