"""Checkpoints in InternVL's original format (`OpenGVLab/InternVL2_5-8B`, `OpenGVLab/InternVL3-9B`) -> native folders.

The original format (`InternVLChatModel`) comes with remote code that current transformers cannot run. A converted
folder holds config, weights, tokenizer, image processor and chat template; nothing in it is code.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dfbench.errors import InputError, shorten
from dfbench.models.internvl_convert.config import native_config
from dfbench.models.internvl_convert.folder import appearing, locked
from dfbench.models.internvl_convert.lora import LowRank, updates_from_file, updates_inside
from dfbench.models.internvl_convert.processor import write_json, write_processor_files
from dfbench.models.internvl_convert.shards import Checkpoint, read_checkpoint
from dfbench.models.internvl_convert.tokenizer import IMAGE_TOKENS, build_tokenizer
from dfbench.models.internvl_convert.weights import plan_weights, write_weights

RECORD = "conversion.json"
"""In a cache folder: which files it was made from, and which it consists of."""

_FORMAT = 1
"""Raised whenever a conversion comes out otherwise than before, so that older caches are made anew."""

_logger = logging.getLogger(__name__)


def is_original(path: str | Path) -> bool:
    """Whether `path` is a folder in the original format; False for any other folder, and for what is no folder."""
    try:
        config = json.loads((Path(path) / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "internvl_chat"


def convert(
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    lora: str | Path | None = None,
    lora_rank: int = 8,
    lora_alpha: int = 16,
) -> None:
    """Convert an original checkpoint into `output_dir`, a new or empty folder. The same input gives the same bytes.

    lora: upstream's `lora_weights.pth`, merged on the way; lora_rank and lora_alpha are those of its training. A folder
    that upstream's trainer saved has its LoRA merged by itself, with the rank that its config states.
    Everything is written beside the output first and renamed when complete. Raises InputError.
    """
    source, target = _absolute(input_dir), _absolute(output_dir)
    if source.resolve() == target.resolve():
        raise InputError(target, found="the input", expected="another folder for the output", remedy="choose another")
    with locked(target):
        if target.exists() and not _is_empty_folder(target):
            raise InputError(
                target, found="something there already", expected="a new or empty folder", remedy="choose another"
            )
        with appearing(target) as partial:
            _convert(source, partial, None if lora is None else Path(lora), (lora_rank, lora_alpha))


def native_checkpoint(path: str | Path) -> Path:
    """`path` itself unless it is in the original format; then its conversion in `<path>-hf`, made once, and said so.

    The conversion is used again while it is complete and the original's files are the ones that it was made from.
    Several processes may ask at once: one converts, the others wait. Raises InputError.
    """
    if not is_original(path):
        return Path(path)
    source = _absolute(path)
    target = source.with_name(source.name + "-hf")
    if _is_current(target, source):
        return target
    with locked(target):
        if not _is_current(target, source):
            _remove_outdated(target)
            _logger.info("%s is in InternVL's original format: converting it, once, into %s", source, target)
            with appearing(target) as partial:
                _convert(source, partial, None, None)
                write_json(partial / RECORD, _fingerprint(source) | {"files": _sizes(partial)})
    return target


def _convert(source: Path, folder: Path, lora: Path | None, rank_and_alpha: tuple[int, int] | None) -> None:
    """Fill `folder`. What is wrong with the input, save a tensor's data, is found before any weight is read."""
    config = _read_config(source)
    tokenizer = build_tokenizer(source)
    native = native_config(config, tokenizer.token_to_id(IMAGE_TOKENS["context_image_token"]), source / "config.json")
    _check_vocabulary(tokenizer, native, source)
    checkpoint = read_checkpoint(source)
    updates = _updates(checkpoint, config, source, lora, rank_and_alpha)
    plan = plan_weights(checkpoint, updates, native, source)
    write_json(folder / "config.json", native)
    write_processor_files(folder, source, config, native, tokenizer)
    write_weights(plan, checkpoint, updates, native, folder)


def _updates(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    source: Path,
    lora: Path | None,
    rank_and_alpha: tuple[int, int] | None,
) -> dict[str, LowRank]:
    if lora is None or rank_and_alpha is None:
        return updates_inside(checkpoint, config, source)
    if checkpoint.adapters:
        raise InputError(
            source,
            found="LoRA weights inside the checkpoint",
            expected="a checkpoint without, to merge another file into",
            remedy="leave out --lora: the ones inside are merged by themselves",
        )
    return updates_from_file(lora, checkpoint, *rank_and_alpha)


def _read_config(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    try:
        config = json.loads(path.read_bytes())
        kind, architectures = config.get("model_type"), config.get("architectures")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            path, found="no readable config", expected="that of an InternVL checkpoint", remedy="check the path"
        ) from error
    if kind != "internvl_chat":
        raise InputError(
            path,
            found=f"model_type {kind!r}, architectures {shorten(architectures)}",
            expected="an original InternVL checkpoint, model_type 'internvl_chat'",
            remedy="use this one as it is, it is native already" if kind == "internvl" else "check the path",
        )
    return config


def _check_vocabulary(tokenizer: Tokenizer, native: Mapping[str, Any], source: Path) -> None:
    highest, rows = max(tokenizer.get_vocab().values()), native["text_config"]["vocab_size"]
    if highest >= rows:
        raise InputError(
            source,
            found=f"a tokenizer with ids up to {highest}",
            expected=f"ids below {rows}, the rows of the embedding",
            remedy="use the tokenizer files of the same checkpoint",
        )


def _absolute(path: str | Path) -> Path:
    """Normal form without following links, so that "beside it" is where the user sees it."""
    return Path(os.path.abspath(path))


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _fingerprint(source: Path) -> dict[str, Any]:
    """What tells one state of the original's files from another without reading gigabytes: size and time of change."""
    files = sorted(path for path in source.iterdir() if path.suffix in (".json", ".safetensors", ".model", ".txt"))
    states = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    return {"format": _FORMAT, "source": states}


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _is_current(target: Path, source: Path) -> bool:
    try:
        record = json.loads((target / RECORD).read_bytes())
        files = record.pop("files")
    except (OSError, ValueError, KeyError):
        return False
    complete = all((target / name).is_file() and (target / name).stat().st_size == files[name] for name in files)
    return complete and record == _fingerprint(source)


def _remove_outdated(target: Path) -> None:
    if not target.exists() or _is_empty_folder(target):
        return
    if not (target / RECORD).is_file():
        raise InputError(
            target,
            found=f"something without {RECORD}",
            expected="nothing, or a conversion made here",
            remedy="give that folder itself as the model, or move it away",
        )
    _logger.info("%s was made from other files, or is incomplete: it is made anew", target)
    shutil.rmtree(target)
