"""Checkpoint and adapter folders, without loading their weights: which are meant, what their configs say, what tells
them apart.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dfbench.errors import InputError, first_line, shorten
from dfbench.io import read_json_object

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"

MERGE_RECORD = "dfbench_merge.json"
"""In a folder that was merged here: {"base", "base_identity", "adapter", "adapter_identity"}, paths and what `identity`
gives of them."""

IDENTITY_FORMAT = "v2:"
"""How every identity begins; another one wherever it is made of something else."""

_BLOCK, _BLOCKS = 4096, 8
"""Bytes of a sample, and samples of a tensor, spread from its first byte to its last: all of one up to 32 KiB."""

_DECIDING = ("*config.json", "*token*.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "chat_template.*")
_DECIDING += ("*/*.jinja",)
"""What a loader may read besides the weights. Other files, results of runs among them, may come and go."""

_FLOATS = ("BF16", "F16", "F32", "F64")
_LONGEST_HEADER = 100_000_000
"""safetensors' own bound."""


def read_config(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint folder's config.json. Raises InputError where it is none."""
    path = checkpoint / "config.json"
    if not path.exists():
        what = "no config.json in this folder" if checkpoint.is_dir() else "no such folder"
        raise InputError(f"{checkpoint}: {what}. Download the weights, or name the merged folder.")
    config = read_json_object(path, expected="a config, a JSON object", remedy="download it again")
    if "transformers_weights" in config:
        raise InputError(f"{path}: transformers_weights names other weights than the folder's own. Remove that key.")
    return config


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
            f"{adapter / ADAPTER_CONFIG}: base_model_name_or_path is {shorten(base)}, not the base model's "
            f"folder. Train it again, or name the base model with --model_path."
        )
    return Path(base)


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """The config of a LoRA adapter folder that has its weights beside it. Raises InputError for any other folder."""
    path = adapter / ADAPTER_CONFIG
    if not path.exists():
        what = "no adapter_config.json in this folder" if adapter.is_dir() else "no such folder"
        raise InputError(f"{adapter}: {what}. Name the checkpoint-N folder of a LoRA adapter.")
    config = read_json_object(
        path, expected="the config of a LoRA adapter", remedy="train it again or name another one"
    )
    if config.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type is {shorten(config.get('peft_type'))}, not 'LORA'. Name a LoRA adapter.")
    weight_files(adapter)
    return config


def is_adapter(folder: Path) -> bool:
    """Whether a folder has the config of an adapter in it."""
    return (folder / ADAPTER_CONFIG).is_file()


# ------------------------------------------------------------------------------------------- what a loader reads of it


class StoredTensor(NamedTuple):
    """A tensor as the header of a safetensors file has it. start, size: bytes in the file."""

    dtype: str
    shape: list[int]
    start: int
    size: int


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are loaded from a checkpoint or an adapter folder: the single one, or the shards that
    its index names, which may lie in folders of their own.

    Raises InputError where there are none or one is missing, for pickled weights, which can run code, and for a
    checkpoint with an adapter in its folder, which a loader would put on top without a word.
    """
    adapter = is_adapter(folder)
    if adapter and (folder / "config.json").exists():
        raise InputError(f"{folder}: it holds both a model and an adapter. Move the adapter's files to another folder.")
    stem = "adapter_model" if adapter else "model"
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        if pickle := next(folder.glob("*_model*.bin"), None):
            raise InputError(f"{folder}: {pickle.name} is a pickle, which can run code. Save it as safetensors.")
        raise InputError(f"{folder}: no {single.name}. Copy or download the whole folder.")
    remedy = "download it again"
    names = read_json_object(index, expected="the index of a checkpoint's files", remedy=remedy).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index}: weight_map does not name a file for each weight. Download it again.")
    shards = [folder / name for name in sorted(set(names.values()))]
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise InputError(f"{missing[0]}: no such file, and {index.name} names it. Download it.")
    return shards


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, in the order of the file, from its header alone. Raises InputError
    where the file is damaged or cut off.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_LONGEST_HEADER, path.stat().st_size):
                raise ValueError("the length of its header is impossible")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {}
        for name, each in header.items():
            start, end = each["data_offsets"]
            tensors[name] = StoredTensor(each["dtype"], [*each["shape"]], 8 + length + start, end - start)
        if any(each.start < 8 + length or each.size < 0 for each in tensors.values()):
            raise ValueError("the place of a weight is impossible")
        if max((each.start + each.size for each in tensors.values()), default=0) > path.stat().st_size:
            raise ValueError("it is cut off")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a complete safetensors file ({first_line(error)}). Download it again.") from None
    return dict(sorted(tensors.items(), key=lambda item: item[1].start))


def check_weights(folder: Path) -> None:
    """Raise InputError where the weights of a checkpoint or an adapter cannot be read as numbers of a usual type: a
    loader would cast integers, truth values or complex numbers. Those of a quantised model are its own affair.
    And where the config asks for more layers than there are weights.
    """
    config = {} if is_adapter(folder) else read_config(folder)
    quantised, num_tensors = "quantization_config" in config, 0
    for path in weight_files(folder):
        tensors = read_tensors(path)
        num_tensors += len(tensors)
        for name, tensor in tensors.items():
            if tensor.dtype not in _FLOATS and not quantised:
                raise InputError(
                    f"{path}: {name} is of type {tensor.dtype}; expected one of {', '.join(_FLOATS)}. Use the original "
                    f"weights."
                )
    for part in (config, *config.values()):
        for key in ("num_hidden_layers", "depth"):
            layers = part.get(key) if isinstance(part, dict) else None
            if isinstance(layers, int) and layers > num_tensors:  # building them might never end
                raise InputError(
                    f"{folder / 'config.json'}: {key} is {layers}, and there are {num_tensors} weights in all. "
                    f"Download it again."
                )


# ------------------------------------------------------------------------------------------------------------ identity


def identity(folder: Path) -> str:
    """A hash that tells one checkpoint or adapter from another, wherever it lies; milliseconds for 16 GB.

    It is made of the name, type, shape and blocks of 4 KiB of every tensor, and of the whole content of the other
    files that decide an answer: configs, tokenizer, processor, chat template. Raises InputError as `weight_files` does.
    """
    digest = hashlib.sha256()
    for path in _deciding_files(folder):
        digest.update(f"{path.relative_to(folder)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return _named(digest, folder)


def weights_identity(folder: Path) -> str:
    """The same of the weights alone."""
    return _named(hashlib.sha256(), folder)


def _named(digest: Any, folder: Path) -> str:
    """The identity of the folder's weights on top of what the digest has."""
    for path in weight_files(folder):
        with path.open("rb") as file:
            for name, tensor in read_tensors(path).items():
                digest.update(f"{name}\0{tensor.dtype}\0{tensor.shape}\n".encode())
                room = max(0, tensor.size - _BLOCK)
                for i in range(_BLOCKS):
                    file.seek(tensor.start + room * i // (_BLOCKS - 1))
                    digest.update(file.read(min(_BLOCK, tensor.size)))
    return IDENTITY_FORMAT + digest.hexdigest()[:24]


def _deciding_files(folder: Path) -> list[Path]:
    """What is read besides the weights; of an adapter its config, the rest being the base model's."""
    if is_adapter(folder):
        return [folder / ADAPTER_CONFIG]
    return sorted({path for kind in _DECIDING for path in folder.glob(kind) if path.is_file()})


# ------------------------------------------------------------------------------------------------- which fit each other


def check_adapter(checkpoint: Path, adapter: Path) -> None:
    """Raise InputError for an adapter that was merged into this checkpoint already, and for one that was trained on
    another; warn where the one that it names is not there to compare.
    """
    config = read_adapter_config(adapter)
    record = checkpoint / MERGE_RECORD
    if record.exists():
        merged = read_json_object(record, expected="the record of a merge", remedy="merge the adapter again")
        if merged.get("adapter_identity") == identity(adapter):
            raise InputError(f"{checkpoint}: {adapter} was merged into it already. Leave --adapter out.")
    base = config.get("base_model_name_or_path")
    if not base or not isinstance(base, str) or Path(base).resolve() == checkpoint.resolve():
        return
    found = _native_weights(Path(base))
    if found and found != weights_identity(checkpoint):
        raise InputError(
            f"{adapter}: it was trained on {base}, whose weights are not those of {checkpoint}. Name the model that it "
            f"was trained on, or the adapter of this one."
        )
    if not found and Path(base).name.removesuffix("-hf") != checkpoint.name.removesuffix("-hf"):
        logger.warning("%s: trained on %s, which is not here to compare, and put on %s", adapter, base, checkpoint)


def _native_weights(checkpoint: Path) -> str | None:
    """The identity of a checkpoint's weights; None where there are none in a form that is scored."""
    try:
        return weights_identity(checkpoint) if read_config(checkpoint).get("model_type") != "internvl_chat" else None
    except InputError:
        return None


def _adapters(trained: Path) -> list[Path]:
    """Links are left out: ms-swift's `last-checkpoint` is a second name of an adapter that is there anyway."""
    folders = [path.parent for path in trained.glob("*/adapter_config.json")]
    return [folder for folder in folders if not folder.is_symlink()]


def _newest(folders: Iterable[Path]) -> Path | None:
    return max(folders, key=_written, default=None)


def _written(folder: Path) -> float:
    return folder.stat().st_mtime
