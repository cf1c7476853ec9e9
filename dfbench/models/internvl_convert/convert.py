"""Checkpoints in InternVL's original format (`OpenGVLab/InternVL2_5-8B`, `OpenGVLab/InternVL3-9B`) -> native folders.

The original format (`InternVLChatModel`) comes with remote code that current transformers cannot run. A converted
folder holds config, weights, tokenizer, image processor and chat template; nothing in it is code.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfbench.errors import InputError, shorten
from dfbench.io import file_lock, write_json
from dfbench.models.internvl_convert.config import native_config, read_json

RECORD = "conversion.json"
"""In a cache folder: which files it was made from, and which it consists of."""

_FORMAT = 1
"""Raised whenever a conversion comes out otherwise than before, so that older caches are made anew."""

_logger = logging.getLogger(__name__)


def is_original(path: str | Path) -> bool:
    """Whether `path` is a folder in the original format; False for any other folder, and for what is no folder."""
    try:
        return read_json(Path(path) / "config.json").get("model_type") == "internvl_chat"
    except (OSError, InputError):
        return False


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
    source, target = Path(input_dir), Path(os.path.abspath(output_dir))
    kind = read_json(source / "config.json").get("model_type")
    if kind != "internvl_chat":
        found = f"model_type is {shorten(kind)}; expected 'internvl_chat', an original InternVL checkpoint"
        advice = "Use it as it is, it is native already" if kind == "internvl" else "Correct the path"
        raise InputError(f"{source / 'config.json'}: {found}. {advice}.")
    if lora is not None and not Path(lora).is_file():
        raise InputError(f"{lora}: no such file. Correct the path of the LoRA weights.")
    with _locked(target):
        if _is_taken(target):
            raise InputError(f"{target}: there is something already. Choose a new or empty folder for the output.")
        _write(target, source, lora, lora_rank, lora_alpha, record=False)


def native_checkpoint(path: str | Path) -> Path:
    """`path` itself unless it is in the original format; then its conversion in `<path>-hf`, made once, and said so.

    The conversion is used again while it is complete and the original's files are the ones that it was made from.
    Several processes may ask at once: one converts, the others wait. Raises InputError.
    """
    if not is_original(path):
        return Path(path)
    source = Path(os.path.abspath(path))  # links are not followed, so that "beside it" is where the user sees it
    target = source.with_name(source.name + "-hf")
    if _is_current(target, source):
        return target
    with _locked(target):
        if not _is_current(target, source):
            _remove_outdated(target)
            _logger.info("%s is in InternVL's original format: converting it, once, into %s", source, target)
            _write(target, source, lora=None, rank=8, alpha=16, record=True)
    return target


def _write(target: Path, source: Path, lora: str | Path | None, rank: int, alpha: int, *, record: bool) -> None:
    """Fill a folder beside `target`, rename it to `target` when complete; after an error nothing is left of it."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir()
    try:
        _fill(partial, source, lora, rank, alpha)
        if record:
            files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
            write_json(partial / RECORD, {"files": files} | _fingerprint(source))
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(folder: Path, source: Path, lora: str | Path | None, rank: int, alpha: int) -> None:
    """Write the converted files. What is wrong with the input is found before the data of any weight is read."""
    # Imported here for the seconds that these take: a wrong path is told at once.
    from dfbench.models.internvl_convert.lora import updates_from_file, updates_inside
    from dfbench.models.internvl_convert.processor import write_processor_files
    from dfbench.models.internvl_convert.shards import read_checkpoint
    from dfbench.models.internvl_convert.tokenizer import IMAGE_TOKENS, build_tokenizer
    from dfbench.models.internvl_convert.weights import plan_weights, write_weights

    config = read_json(source / "config.json")
    tokenizer = build_tokenizer(source)
    native = native_config(config, tokenizer.token_to_id(IMAGE_TOKENS["context_image_token"]), source / "config.json")
    highest, rows = max(tokenizer.get_vocab().values()), native["text_config"]["vocab_size"]
    if highest >= rows:
        raise InputError(
            f"{source}: its tokenizer has ids up to {highest}, but its embedding only {rows} rows. "
            f"Use the tokenizer files of the same checkpoint."
        )
    checkpoint = read_checkpoint(source)
    if lora is None:
        updates = updates_inside(checkpoint, config, source)
    elif checkpoint.adapters:
        raise InputError(f"{source}: it has LoRA weights inside, which are merged by themselves. Leave out --lora.")
    else:
        updates = updates_from_file(Path(lora), checkpoint, rank, alpha)
    plan = plan_weights(checkpoint, updates, native, source)
    write_json(folder / "config.json", native)
    write_processor_files(folder, source, config, native, tokenizer)
    write_weights(plan, checkpoint, updates, native, folder)


def _is_taken(path: Path) -> bool:
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def _fingerprint(source: Path) -> dict[str, Any]:
    """What tells one state of the original's files from another without reading gigabytes: size and time of change."""
    files = sorted(path for path in source.iterdir() if path.suffix in (".json", ".safetensors", ".model", ".txt"))
    states = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    return {"format": _FORMAT, "source": states}


def _is_current(target: Path, source: Path) -> bool:
    try:
        record = json.loads((target / RECORD).read_bytes())
        complete = all((target / name).stat().st_size == size for name, size in record.pop("files").items())
    except (OSError, ValueError, KeyError):
        return False
    return complete and record == _fingerprint(source)


def _remove_outdated(target: Path) -> None:
    if not _is_taken(target):
        return
    if not (target / RECORD).is_file():
        raise InputError(
            f"{target}: it has no {RECORD}, so it is not a conversion made here. "
            f"Give that folder itself as the model, or move it away."
        )
    _logger.info("%s was made from other files, or is incomplete: it is made anew", target)
    shutil.rmtree(target)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock for writing `target`, waiting for it if need be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(target.parent, os.W_OK):
        raise InputError(
            f"{target.parent}: not writable, so {target.name} cannot be made there. Convert into another folder with "
            f"scripts/convert_internvl.py --output and use that one."
        )
    with file_lock(target, wait=True):
        yield
