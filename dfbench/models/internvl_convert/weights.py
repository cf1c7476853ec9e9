"""Weights of an original InternVL checkpoint -> the tensors of transformers' native InternVL, a shard at a time.

Names are those of the published native folders (what `save_pretrained` writes). Of the fused projections InternLM2's
`wqkv` is (key-value heads, query heads of each + 2, head_dim) rows, the last two of a group being key and value;
InternViT's `qkv` is three equal parts.
"""

import copy
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import InternVLConfig, InternVLForConditionalGeneration

from dfbench.errors import InputError
from dfbench.models.internvl_convert.lora import LowRank
from dfbench.models.internvl_convert.shards import (
    Checkpoint,
    names_error,
    open_shard,
    read_checkpoint,
    shape_error,
    write_shards,
)

_PARTS: dict[str, tuple[str, dict[str, str]]] = {
    "vision_model": (
        "vision_tower",
        {
            "class_embedding": "cls_token",
            "position_embedding": "position_embeddings",
            "patch_embedding": "patch_embeddings.projection",
            "encoder.layers": "encoder.layer",
            ".ls": ".lambda_",
            "attn.proj": "attention.projection_layer",
            "attn.": "attention.",
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
        },
    ),
    "mlp1": ("multi_modal_projector", {"0.": "layer_norm.", "1.": "linear_1.", "3.": "linear_2."}),
    "language_model": (
        "language_model",
        {
            "tok_embeddings": "embed_tokens",
            "attention.wqkv": "self_attn.wqkv",
            "attention.wo": "self_attn.o_proj",
            "feed_forward.w1": "mlp.gate_proj",
            "feed_forward.w2": "mlp.down_proj",
            "feed_forward.w3": "mlp.up_proj",
            "attention_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "output.weight": "lm_head.weight",
        },
    ),
}
"""First part of an original name -> the native one, and replacements in the rest (InternLM3 and Qwen2 need none)."""

Plan = dict[str, dict[str, Tensor]]
"""Original name -> the native tensors it becomes, without data (device "meta")."""


def plan_weights(
    checkpoint: Checkpoint, updates: Mapping[str, LowRank], config: Mapping[str, Any], where: Path
) -> Plan:
    """Say what becomes of each tensor, before any data is read.

    config: the native config. Raises InputError unless the outcome has exactly the names and shapes of its model.
    """
    plan: Plan = {}
    for name, stored in checkpoint.weights.items():
        tensor = stored.describe()
        plan[name] = _native_tensors(name, tensor.float() if name in updates else tensor, config, where)
    origin = {native: name for name, tensors in plan.items() for native in tensors}
    doubled = [name for name, tensors in plan.items() for native in tensors if origin[native] != name]
    if doubled:
        raise names_error(where, unexpected=set(doubled))
    shapes = {native: tuple(plan[name][native].shape) for native, name in origin.items()}
    _check_shapes(shapes, config, origin, where)
    return plan


def write_weights(
    plan: Plan, checkpoint: Checkpoint, updates: Mapping[str, LowRank], config: Mapping[str, Any], folder: Path
) -> None:
    """Convert a shard at a time, none larger than the input's largest; then hold the files to a fresh model."""
    groups = _group(plan, checkpoint.largest_file())
    total = sum(tensor.nbytes for tensors in plan.values() for tensor in tensors.values())
    free = shutil.disk_usage(folder).free
    if free < total:
        raise InputError(
            folder.parent,
            found=f"{free / 1e9:.1f} GB free",
            expected=f"{total / 1e9:.1f} GB for the converted weights",
            remedy="free some room, or write elsewhere",
        )
    with tqdm(total=total, unit="B", unit_scale=True, desc="converting", disable=None) as progress:
        shards = (_converted(group, checkpoint, updates, config, progress) for group in groups)
        write_shards(folder, shards, len(groups))
    written = {name: stored.shape for name, stored in read_checkpoint(folder).weights.items()}
    _check_shapes(written, config, {}, folder)


def _group(plan: Plan, limit: int) -> list[list[str]]:
    """Cut the original names, in order, into groups of at most `limit` bytes of native tensors, or one name alone."""
    groups: list[list[str]] = []
    filled = limit
    for name, tensors in plan.items():
        size = sum(tensor.nbytes for tensor in tensors.values())
        if filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _converted(
    names: list[str], checkpoint: Checkpoint, updates: Mapping[str, LowRank], config: Mapping[str, Any], progress: tqdm
) -> dict[str, Tensor]:
    native: dict[str, Tensor] = {}
    for name, tensor in _read(names, checkpoint):
        whole = updates[name].merged(tensor) if name in updates else tensor
        pieces = _native_tensors(name, whole, config, checkpoint.weights[name].file)
        # Pieces of one tensor share its memory, which safetensors refuses to write; the others go to the file uncopied.
        native |= pieces if len(pieces) == 1 else {key: piece.clone() for key, piece in pieces.items()}
        progress.update(sum(piece.nbytes for piece in pieces.values()))
    return native


def _read(names: list[str], checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    for file in dict.fromkeys(checkpoint.weights[name].file for name in names):
        with open_shard(file) as shard:
            for name in names:
                if checkpoint.weights[name].file == file:
                    yield name, shard.get_tensor(checkpoint.weights[name].key)


def _native_tensors(name: str, tensor: Tensor, config: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """One original tensor -> the native ones that it holds."""
    part, _, rest = name.partition(".")
    native_part, replacements = _PARTS.get(part, (part, {}))
    for original, replacement in replacements.items():
        rest = rest.replace(original, replacement)
    native = f"{native_part}.{rest}"
    if ".attention.qkv." in native:
        pieces = zip("qkv", tensor.tensor_split(3), strict=True)
        return {native.replace(".qkv.", f".{letter}_proj."): piece for letter, piece in pieces}
    if ".self_attn.wqkv." in native:
        pieces = _split_wqkv(name, tensor, config["text_config"], where).items()
        return {native.replace(".wqkv.", f".{letter}_proj."): piece for letter, piece in pieces}
    return {native: tensor}


def _split_wqkv(name: str, tensor: Tensor, text: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    groups, heads, head_dim = text["num_key_value_heads"], text["num_attention_heads"], text["head_dim"]
    expected = ((heads + 2 * groups) * head_dim, *tensor.shape[1:])
    if tuple(tensor.shape) != expected:
        raise shape_error(where, name, tensor.shape, expected)
    grouped = tensor.view(groups, heads // groups + 2, head_dim, *tensor.shape[1:])
    pieces = {"q": grouped[:, :-2], "k": grouped[:, -2], "v": grouped[:, -1]}
    return {letter: piece.reshape(-1, *tensor.shape[1:]) for letter, piece in pieces.items()}


def _check_shapes(
    found: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], origin: Mapping[str, str], where: Path
) -> None:
    """Raise InputError unless a fresh model of `config` has the same names (all differences at once) and shapes.

    origin: native name -> the checkpoint's own, for the message.
    """
    expected = _fresh_shapes(config)
    unexpected = {origin.get(name, name) for name in found.keys() - expected.keys()}
    if unexpected or found.keys() != expected.keys():
        raise names_error(where, unexpected, expected.keys() - found.keys())
    for name, shape in expected.items():
        if found[name] != shape:
            raise shape_error(where, f"{origin.get(name, name)} (native {name})", found[name], shape)


def _fresh_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a fresh model, under the names that `save_pretrained` gives its tensors."""
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(InternVLConfig(**copy.deepcopy(config)))  # which writes into it
    shapes = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("model.").replace("language_model.", "language_model.model.", 1)
        shapes[f"language_model.{name}" if name.startswith("lm_head.") else name] = tuple(tensor.shape)
    return shapes
