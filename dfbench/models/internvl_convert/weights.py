"""Weights of an original InternVL checkpoint -> the tensors of transformers' native InternVL, a shard at a time.

Names are those of the published native folders (what `save_pretrained` writes). Of the fused projections InternLM2's
`wqkv` is (key-value heads, query heads of each + 2, head_dim) rows, the last two of a group being key and value;
InternViT's `qkv` is three equal parts.
"""

import copy
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import InternVLConfig, InternVLForConditionalGeneration

from dfbench.errors import InputError
from dfbench.io import write_json
from dfbench.models.internvl_convert.lora import LowRank
from dfbench.models.internvl_convert.shards import INDEX, SINGLE, Checkpoint, write_shard

_RENAMED = {
    "vision_model.": "vision_tower.",
    ".class_embedding": ".cls_token",
    ".position_embedding": ".position_embeddings",
    ".patch_embedding.": ".patch_embeddings.projection.",
    ".encoder.layers.": ".encoder.layer.",
    ".ls": ".lambda_",
    ".attn.proj.": ".attention.projection_layer.",
    ".attn.": ".attention.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    "mlp1.0.": "multi_modal_projector.layer_norm.",
    "mlp1.1.": "multi_modal_projector.linear_1.",
    "mlp1.3.": "multi_modal_projector.linear_2.",
    ".tok_embeddings.": ".embed_tokens.",
    ".attention.wqkv.": ".self_attn.wqkv.",
    ".attention.wo.": ".self_attn.o_proj.",
    ".feed_forward.w1.": ".mlp.gate_proj.",
    ".feed_forward.w2.": ".mlp.down_proj.",
    ".feed_forward.w3.": ".mlp.up_proj.",
    ".attention_norm.": ".input_layernorm.",
    ".ffn_norm.": ".post_attention_layernorm.",
    "language_model.output.": "language_model.lm_head.",
}
"""Parts of the original names -> the native ones, in this order (the text models InternLM3 and Qwen2 need none)."""

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
        meta = stored.meta.float() if name in updates else stored.meta
        plan[name] = _native_tensors(name, meta, config["text_config"], where)
    original = {native: name for name, tensors in plan.items() for native in tensors}
    expected = _fresh_shapes(config)
    unexpected, missing = {original[name] for name in original.keys() - expected}, expected.keys() - original
    if unexpected or missing:
        lists = {"unexpected": sorted(unexpected), "missing": sorted(missing)}
        found = [f"{len(names)} {kind} tensors ({', '.join(names[:4])})" for kind, names in lists.items() if names]
        raise InputError(f"{where}: {' and '.join(found)}. Use the files of one and the same checkpoint.")
    for native, shape in expected.items():
        name = original[native]
        _require_shape(f"{name} (native {native})", plan[name][native], shape, where)
    return plan


def write_weights(
    plan: Plan, checkpoint: Checkpoint, updates: Mapping[str, LowRank], config: Mapping[str, Any], folder: Path
) -> None:
    """Write the planned tensors in shards, none larger than the input's largest file, with an index for several.

    Raises InputError where the disk has no room for them.
    """
    groups = _group(plan, checkpoint.largest_file())
    total = sum(tensor.nbytes for tensors in plan.values() for tensor in tensors.values())
    free = shutil.disk_usage(folder).free
    if free < total:
        sizes = f"{free / 1e9:.1f} GB free, but the converted weights take {total / 1e9:.1f} GB"
        raise InputError(f"{folder.parent}: {sizes}. Free some disk space, or write elsewhere.")
    count = len(groups)
    files = [SINGLE] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    weight_map = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="converting", disable=None) as progress:
        for file, names in zip(files, groups, strict=True):
            shard: dict[str, Tensor] = {}  # frees the one before, so that never two lie in memory
            for name in names:
                stored = checkpoint.weights[name]
                tensor = updates[name].merged(stored.read()) if name in updates else stored.read()
                pieces = _native_tensors(name, tensor, config["text_config"], stored.file)
                # Pieces of one tensor share its memory, which safetensors refuses to write.
                shard |= pieces if len(pieces) == 1 else {native: piece.clone() for native, piece in pieces.items()}
                progress.update(tensor.nbytes)
            write_shard(shard, folder / file)
            weight_map |= dict.fromkeys(shard, file)
    if count > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


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


def _native_tensors(name: str, tensor: Tensor, text: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """One original tensor -> the native ones that it holds. text: the native text config."""
    native = name
    for original, replacement in _RENAMED.items():
        native = native.replace(original, replacement)
    if ".attention.qkv." in native:
        pieces = tensor.tensor_split(3)
    elif ".self_attn.wqkv." in native:
        groups, heads, head_dim = text["num_key_value_heads"], text["num_attention_heads"], text["head_dim"]
        shape = tensor.shape[1:]
        _require_shape(name, tensor, ((heads + 2 * groups) * head_dim, *shape), where)
        grouped = tensor.view(groups, heads // groups + 2, head_dim, *shape)
        pieces = [piece.reshape(-1, *shape) for piece in (grouped[:, :-2], grouped[:, -2], grouped[:, -1])]
    else:
        return {native: tensor}
    names = (re.sub(r"w?qkv", f"{letter}_proj", native) for letter in "qkv")
    return dict(zip(names, pieces, strict=True))


def _fresh_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a fresh model, under the names that `save_pretrained` gives its tensors."""
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(InternVLConfig(**copy.deepcopy(config)))  # which writes into it
    shapes = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("model.").replace("language_model.", "language_model.model.", 1)
        shapes[f"language_model.{name}" if name.startswith("lm_head.") else name] = tuple(tensor.shape)
    return shapes


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...], where: Path) -> None:
    if tuple(tensor.shape) != shape:
        found = f"{name} has shape {tuple(tensor.shape)}; expected {shape}"
        raise InputError(f"{where}: {found}. Use the files of one and the same checkpoint.")
