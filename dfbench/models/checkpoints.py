"""Checkpoint and adapter folders, without loading their weights: which are meant, what their configs say, what tells
them apart.
"""

import hashlib
import json
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


_CODE = {".py", ".pyc", ".so"}


def refuse_remote_code(folder: Path) -> None:
    """Raise InputError where a checkpoint or adapter folder brings code of its own, which a loader that trusts it, as
    ms-swift's do, runs without asking: a module in it (`custom_generate/generate.py`, or one that a loader imports by
    name), or `auto_map` at any depth of a JSON file, which can name modules elsewhere too.
    """
    advice = "Use the native (-hf) form of the weights, or a copy without it."
    for path in sorted(path for layout in ("*", "*/*") for path in folder.glob(layout) if path.is_file()):
        # DeepSpeed leaves a script of this name in its checkpoints; no loader imports it.
        if path.suffix in _CODE and path.name != "zero_to_fp32.py":
            raise InputError(f"{path}: code that training and merging would run. {advice}")
        if path.suffix == ".json" and _names_code(path):
            raise InputError(f"{path}: auto_map makes training and merging run the code that it names. {advice}")


def _names_code(path: Path) -> bool:
    """Whether any object in a JSON file has a key `auto_map`, however it is escaped, and one that a later one of the
    same name hides included. With a number it is a word of a vocabulary.
    """
    found = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.extend(value for key, value in pairs if key == "auto_map" and isinstance(value, dict | list | str))
        return dict(pairs)

    try:
        json.loads(path.read_bytes(), object_pairs_hook=look)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} holds broken JSON ({error}): download it again, or remove it.") from None
    return bool(found)


def find_weights(model_path: Path | None, adapter: Path | None, trained: Path) -> tuple[Path, Path | None]:
    """(checkpoint, adapter or None) to score. What is not named is looked for in the folder `trained`: the newest
    merged model (`merged/<adapter>`, or `<adapter>_merged` as merging once wrote it), or the newest adapter and its
    base model where that is newer. Raises InputError where there is nothing, and where the adapter is unusable (see
    `read_base_model`).
    """
    if model_path is not None:
        if adapter is not None:
            read_adapter_config(adapter)
        return model_path, adapter
    if adapter is None:
        merged = newest_merged(trained)
        if merged and not any(_written(other) > _written(merged) for other in _adapters(trained)):
            logger.info("model: %s", merged)
            return merged, None
        adapter = newest_adapter(trained)
    base = read_base_model(adapter)
    logger.info("model: %s with adapter %s", base, adapter)
    return base, adapter


def newest_merged(trained: Path) -> Path | None:
    """The merged model that was written last for the folder; None where there is none."""
    layouts = ("merged/*", "*_merged")
    return _newest(path.parent for layout in layouts for path in trained.glob(f"{layout}/config.json"))


def newest_adapter(trained: Path) -> Path:
    """The LoRA adapter that was written last into the folder. Raises InputError where there is none."""
    adapter = _newest(_adapters(trained))
    if adapter is None:
        raise InputError(f"{trained}: no merged model and no adapter in this folder. Train first, or name the weights.")
    return adapter


def read_base_model(adapter: Path) -> Path:
    """The base checkpoint that an adapter's config names. Raises InputError where the adapter is unusable."""
    base = read_adapter_config(adapter).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise InputError(
            f"{adapter / 'adapter_config.json'}: base_model_name_or_path is {shorten(base)}, not the base model's "
            f"folder. Train it again, or name the base model with --model_path."
        )
    return Path(base)


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """The config of a LoRA adapter folder that has its weights beside it. Raises InputError for any other folder."""
    path = adapter / "adapter_config.json"
    if not path.exists():
        what = "no adapter_config.json in this folder" if adapter.is_dir() else "no such folder"
        raise InputError(f"{adapter}: {what}. Name the checkpoint-N folder of a LoRA adapter.")
    config = read_json_object(
        path, expected="the config of a LoRA adapter", remedy="train it again or name another one"
    )
    if config.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type is {shorten(config.get('peft_type'))}, not 'LORA'. Name a LoRA adapter.")
    if (adapter / "adapter_model.safetensors").exists():
        return config
    if (adapter / "adapter_model.bin").exists():
        raise InputError(f"{adapter}: adapter_model.bin is a pickle, which can run code. Save it as safetensors.")
    raise InputError(f"{adapter}: no adapter_model.safetensors. Copy the whole folder, or name another one.")


def fingerprint(folder: Path) -> str:
    """A hash that tells one checkpoint or adapter from another in milliseconds: names, sizes, and 64 KiB samples of
    each file.

    Every shard is sampled at 16 places, which a merged, retrained or re-quantised one does not leave as they were.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*config.json")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for i in range(16):
                file.seek(size * i // 16)
                digest.update(file.read(4096))
    return digest.hexdigest()[:16]


def _adapters(trained: Path) -> list[Path]:
    """Links are left out: ms-swift's `last-checkpoint` is a second name of an adapter that is there anyway."""
    folders = [path.parent for path in trained.glob("*/adapter_config.json")]
    return [folder for folder in folders if not folder.is_symlink()]


def _newest(folders: Iterable[Path]) -> Path | None:
    return max(folders, key=_written, default=None)


def _written(folder: Path) -> float:
    return folder.stat().st_mtime
