"""Converted weights: upstream's logits, and the original's arithmetic for other language models."""

import json
import os
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoProcessor

from dfbench.errors import InputError
from dfbench.models.internvl_convert.convert import convert
from dfbench.paths import REPOSITORY

ORACLE = REPOSITORY / "tests" / "fixtures" / "internvl_oracle"
EXPECTED = json.loads((ORACLE / "expected.json").read_text())
ROWS = EXPECTED["images"]
LETTERS = [EXPECTED["token_ids"][letter] for letter in "AB"]
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def native_model(native, load_native) -> torch.nn.Module:
    return load_native(native)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["image"])
def test_logits_are_upstreams(native_model, row, last_logits, upstream_pixels):
    pixels = upstream_pixels(row["image"])
    assert sha256(pixels.numpy().tobytes()).hexdigest() == row["pixel_values_sha256"]
    logits = last_logits(native_model, row["input_ids"], pixels)
    expected = np.load(ORACLE / "expected_logits.npz")[Path(row["image"]).stem]
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=5e-5)
    np.testing.assert_allclose(logits[LETTERS].numpy(), [row["logit_A"], row["logit_B"]], rtol=0, atol=2e-5)


def test_conversion_gives_the_same_bytes_every_time(original, native, tmp_path):
    for path in original.iterdir():
        os.utime(path, ns=(0, 0))
    convert(original, tmp_path / "again")
    first, second = ({path.name: path.read_bytes() for path in f.iterdir()} for f in (native, tmp_path / "again"))
    assert first == second


def test_shards_are_no_larger_than_the_inputs_and_the_index_names_all(native, merged, tensors_of):
    for folder, original in ((native, ORACLE / "model"), (merged, ORACLE / "model")):
        index = json.loads((folder / INDEX).read_text())
        found = {}
        for path in sorted(folder.glob("model-*-of-*.safetensors")):
            with safe_open(path, "pt") as shard:
                assert shard.metadata() == {"format": "pt"}
                found |= dict.fromkeys(shard.keys(), path.name)
            assert path.stat().st_mode & 0o444 == 0o444
        assert index["weight_map"] == found
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors_of(folder).values())
        largest = max(path.stat().st_size for path in original.glob("*.safetensors"))
        assert all(path.stat().st_size < 1.02 * largest for path in folder.glob("*.safetensors"))


def reference_logits(tensors: dict[str, Tensor], config: dict[str, Any], ids: list[int], pixels: Tensor) -> Tensor:
    """The original model's arithmetic on the original tensors, float32: logits after the last token."""
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    features = reference_features(tensors, config, pixels)
    text = config["llm_config"]
    get = {name.removeprefix("language_model."): tensor for name, tensor in tensors.items()}.get
    embedding = get("model.tok_embeddings.weight", get("model.embed_tokens.weight"))
    hidden = embedding[torch.tensor(ids)]
    hidden[torch.tensor(ids) == EXPECTED["token_ids"]["<IMG_CONTEXT>"]] = features.flatten(0, 1)
    for number in range(text["num_hidden_layers"]):
        prefix = f"language_model.model.layers.{number}."
        layer = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        hidden = reference_layer(layer, text, hidden)
    hidden = rms_norm(hidden[-1], get("model.norm.weight"), text["rms_norm_eps"])
    return get("output.weight", get("lm_head.weight")) @ hidden


def reference_features(tensors: dict[str, Tensor], config: dict[str, Any], pixels: Tensor) -> Tensor:
    """InternViT, pixel shuffle (v2) and projector: (tiles, tokens, hidden size of the language model)."""
    vision = config["vision_config"]
    get, heads, eps = tensors.__getitem__, vision["num_attention_heads"], vision["layer_norm_eps"]
    embeddings = "vision_model.embeddings."
    patches = functional.conv2d(
        pixels,
        get(embeddings + "patch_embedding.weight"),
        get(embeddings + "patch_embedding.bias"),
        stride=vision["patch_size"],
    )
    hidden = patches.flatten(2).transpose(1, 2)
    cls = get(embeddings + "class_embedding").expand(len(hidden), -1, -1)
    hidden = torch.cat([cls, hidden], dim=1) + get(embeddings + "position_embedding")
    for number in range(vision["num_hidden_layers"]):
        prefix = f"vision_model.encoder.layers.{number}."
        layer = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        qkv = functional.linear(
            vit_norm(hidden, layer, "norm1", eps), layer["attn.qkv.weight"], layer.get("attn.qkv.bias")
        )
        q, k, v = qkv.chunk(3, dim=-1)
        if "attn.q_norm.weight" in layer:  # over all heads at once
            q, k = (rms_norm(x, layer[f"attn.{name}_norm.weight"], eps) for name, x in (("q", q), ("k", k)))
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        mixed = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        mixed = functional.linear(mixed, layer["attn.proj.weight"], layer["attn.proj.bias"])
        hidden = hidden + layer["ls1"] * mixed
        norm = vit_norm(hidden, layer, "norm2", eps)
        wide = functional.gelu(functional.linear(norm, layer["mlp.fc1.weight"], layer["mlp.fc1.bias"]))
        hidden = hidden + layer["ls2"] * functional.linear(wide, layer["mlp.fc2.weight"], layer["mlp.fc2.bias"])
    side = round((hidden.shape[1] - 1) ** 0.5)
    grid = hidden[:, 1:].unflatten(1, (side // 2, 2, side // 2, 2))
    # A token is a square of 2x2 patches; its channels are those of the upper two patches, then those of the lower two.
    tokens = grid.permute(0, 1, 3, 2, 4, 5).flatten(4).flatten(3).flatten(1, 2)
    tokens = functional.layer_norm(tokens, tokens.shape[-1:], get("mlp1.0.weight"), get("mlp1.0.bias"), 1e-5)
    tokens = functional.gelu(functional.linear(tokens, get("mlp1.1.weight"), get("mlp1.1.bias")))
    return functional.linear(tokens, get("mlp1.3.weight"), get("mlp1.3.bias"))


def reference_layer(layer: dict[str, Tensor], text: dict[str, Any], hidden: Tensor) -> Tensor:
    """One decoder layer of InternLM2 (fused `wqkv`), or of InternLM3 and Qwen2 (separate projections)."""
    heads, groups, eps = text["num_attention_heads"], text["num_key_value_heads"], text["rms_norm_eps"]
    norms = (
        ("attention_norm", "ffn_norm")
        if "attention_norm.weight" in layer
        else ("input_layernorm", "post_attention_layernorm")
    )
    norm = rms_norm(hidden, layer[norms[0] + ".weight"], eps)

    def project(name: str, value: Tensor) -> Tensor:
        return functional.linear(value, layer[name + ".weight"], layer.get(name + ".bias"))

    if "attention.wqkv.weight" in layer:
        fused = project("attention.wqkv", norm).unflatten(-1, (groups, heads // groups + 2, -1))
        q, k, v, out = fused[:, :, :-2].flatten(1, 2), fused[:, :, -2], fused[:, :, -1], "attention.wo"
    else:
        q, k, v = (project(f"self_attn.{name}_proj", norm) for name in "qkv")
        q, k, v, out = (
            q.unflatten(-1, (heads, -1)),
            k.unflatten(-1, (groups, -1)),
            v.unflatten(-1, (groups, -1)),
            "self_attn.o_proj",
        )
    q, k = rotate(q, text["rope_theta"]), rotate(k, text["rope_theta"])
    k, v = (value.repeat_interleave(heads // groups, dim=1) for value in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), float("-inf"))
    hidden = hidden + project(out, torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).flatten(1))
    norm = rms_norm(hidden, layer[norms[1] + ".weight"], eps)
    gate, up, down = (
        ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2")
        if "feed_forward.w1.weight" in layer
        else ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    )
    return hidden + project(down, functional.silu(project(gate, norm)) * project(up, norm))


def vit_norm(x: Tensor, layer: dict[str, Tensor], name: str, eps: float) -> Tensor:
    """LayerNorm (InternViT-300M), or RMSNorm, which has no bias (InternViT-6B)."""
    weight, bias = layer[f"{name}.weight"], layer.get(f"{name}.bias")
    return rms_norm(x, weight, eps) if bias is None else functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary positions on (tokens, heads, width): the first half of a head's width pairs with the second."""
    half = x.shape[-1] // 2
    angles = torch.arange(len(x))[:, None, None] * theta ** (-torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def test_the_reference_of_these_tests_is_upstreams_arithmetic(tensors_of, upstream_pixels):
    row = ROWS[-1]
    config = json.loads((ORACLE / "model" / "config.json").read_text())
    logits = reference_logits(tensors_of(ORACLE / "model"), config, row["input_ids"], upstream_pixels(row["image"]))
    expected = np.load(ORACLE / "expected_logits.npz")[Path(row["image"]).stem]
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=5e-5)


HIDDEN, WIDE, VIT = 48, 80, 32


def vit_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, VIT),
        "vision_model.embeddings.patch_embedding.weight": (VIT, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (VIT,),
        "vision_model.embeddings.position_embedding": (1, 17, VIT),
        "mlp1.0.weight": (4 * VIT,),
        "mlp1.0.bias": (4 * VIT,),
        "mlp1.1.weight": (HIDDEN, 4 * VIT),
        "mlp1.1.bias": (HIDDEN,),
        "mlp1.3.weight": (HIDDEN, HIDDEN),
        "mlp1.3.bias": (HIDDEN,),
    }
    layer = {"attn.qkv": (3 * VIT, VIT), "attn.proj": (VIT, VIT), "mlp.fc1": (64, VIT), "mlp.fc2": (VIT, 64)}
    for number in range(layers):
        prefix = f"vision_model.encoder.layers.{number}."
        shapes |= {
            prefix + name: (VIT,)
            for name in ("ls1", "ls2", *(f"norm{i}.{p}" for i in "12" for p in ("weight", "bias")))
        }
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in layer.items()}
        shapes |= {f"{prefix}{name}.bias": shape[:1] for name, shape in layer.items()}
    return shapes


def internlm2_shapes(layers: int, rows: int, heads: int, groups: int, width: int) -> dict[str, tuple[int, ...]]:
    layer = {
        "attention.wqkv.weight": ((heads + 2 * groups) * width, HIDDEN),
        "attention.wo.weight": (HIDDEN, heads * width),
        "attention_norm.weight": (HIDDEN,),
        "ffn_norm.weight": (HIDDEN,),
        "feed_forward.w1.weight": (WIDE, HIDDEN),
        "feed_forward.w2.weight": (HIDDEN, WIDE),
        "feed_forward.w3.weight": (WIDE, HIDDEN),
    }
    ends = {"tok_embeddings.weight": (rows, HIDDEN), "norm.weight": (HIDDEN,)}
    return language_shapes(layer, ends, layers) | {"language_model.output.weight": (rows, HIDDEN)}


def separate_shapes(
    layers: int, rows: int, heads: int, groups: int, width: int, bias: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """InternLM3 and Qwen2; bias: the projections that have one."""
    projections = {
        "self_attn.q_proj": (heads * width, HIDDEN),
        "self_attn.k_proj": (groups * width, HIDDEN),
        "self_attn.v_proj": (groups * width, HIDDEN),
        "self_attn.o_proj": (HIDDEN, heads * width),
        "mlp.gate_proj": (WIDE, HIDDEN),
        "mlp.up_proj": (WIDE, HIDDEN),
        "mlp.down_proj": (HIDDEN, WIDE),
    }
    layer = {f"{name}.weight": shape for name, shape in projections.items()}
    layer |= {f"{name}.bias": shape[:1] for name, shape in projections.items() if name.endswith(bias)}
    layer |= {"input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,)}
    ends = {"embed_tokens.weight": (rows, HIDDEN), "norm.weight": (HIDDEN,)}
    return language_shapes(layer, ends, layers) | {"language_model.lm_head.weight": (rows, HIDDEN)}


def language_shapes(layer: dict[str, Any], ends: dict[str, Any], layers: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"language_model.model.{name}": shape for name, shape in ends.items()}
    return shapes | {
        f"language_model.model.layers.{number}.{name}": shape
        for number in range(layers)
        for name, shape in layer.items()
    }


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=generator) * 0.3).bfloat16() for name, shape in shapes.items()}


def vit_6b_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """InternViT-6B: RMSNorm, normalised queries and keys, no bias in `qkv`."""
    shapes = {name: s for name, s in vit_shapes(layers).items() if not re.search(r"(norm\d|attn\.qkv)\.bias$", name)}
    prefixes = [f"vision_model.encoder.layers.{number}.attn." for number in range(layers)]
    return shapes | {f"{prefix}{letter}_norm.weight": (VIT,) for prefix in prefixes for letter in "qk"}


def make_original(
    folder: Path, tensors: dict[str, Tensor], text: dict[str, Any], vision: dict[str, Any] | None = None
) -> dict[str, Any]:
    """An original checkpoint with tiles of 56 pixels (4 tokens) and three rows of the embedding without a token."""
    shutil.copytree(ORACLE / "model", folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["force_image_size"] = 56
    sizes = {"image_size": 56, "hidden_size": VIT, "intermediate_size": 64, "num_hidden_layers": 3}
    config["vision_config"] |= sizes | (vision or {})
    config["llm_config"] |= {"hidden_size": HIDDEN, "intermediate_size": WIDE, "vocab_size": 1624} | text
    path.write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return config


INTERNVL3 = {"num_hidden_layers": 5, "num_attention_heads": 12, "num_key_value_heads": 2, "rope_theta": 50_000_000}


KINDS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "internvl3-9b": (
        INTERNVL3 | {"rope_scaling": {"factor": 2.0, "type": "dynamic"}},
        internlm2_shapes(5, 1624, 12, 2, 4),
    ),
    "no rope scaling, as many key-value heads": (
        {"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 6, "rope_scaling": None},
        internlm2_shapes(2, 1624, 6, 6, 8),
    ),
    "internlm3 names, wider heads": (
        INTERNVL3
        | {"architectures": ["InternLM3ForCausalLM"], "num_attention_heads": 6, "head_dim": 16, "qkv_bias": False},
        separate_shapes(5, 1624, 6, 2, 16, bias=()),
    ),
    "qwen2": (
        INTERNVL3 | {"architectures": ["Qwen2ForCausalLM"], "rope_theta": 1_000_000, "use_sliding_window": False},
        separate_shapes(5, 1624, 12, 2, 4, bias=("q_proj", "k_proj", "v_proj")),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_language_models_give_the_originals_logits(tmp_path, kind, same_logits):
    text, shapes = KINDS[kind]
    tensors = random_tensors(vit_shapes(3) | shapes, seed=3)
    config = make_original(tmp_path / "original", tensors, text)
    convert(tmp_path / "original", tmp_path / "native")
    same_logits(tmp_path / "native", tensors, config)
    assert (tmp_path / "native" / "model.safetensors").is_file()
    assert not (tmp_path / "native" / INDEX).exists()


def test_the_large_vision_model_gives_the_originals_logits(tmp_path, same_logits):
    text, shapes = KINDS["internvl3-9b"]
    tensors = random_tensors(vit_6b_shapes(3) | shapes, seed=4)
    vision = {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}
    config = make_original(tmp_path / "original", tensors, text, vision)
    convert(tmp_path / "original", tmp_path / "native")
    same_logits(tmp_path / "native", tensors, config)


@pytest.fixture
def same_logits(last_logits, load_native) -> Callable[[Path, dict[str, Tensor], dict[str, Any]], None]:
    """Hold a converted folder to the reference on the original tensors and config."""

    def check(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        context = EXPECTED["token_ids"]["<IMG_CONTEXT>"]
        ids = [1, 900, *[context] * 8, 901, 902, 1336, *range(300, 360)]
        pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(5))
        expected = reference_logits(tensors, config, ids, pixels)
        assert expected.std() > 0.3
        found = last_logits(load_native(folder), ids, pixels)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=5e-5)

    return check


def test_a_byte_level_tokenizer_of_qwen2_is_taken_over(tmp_path):
    text, shapes = KINDS["qwen2"]
    make_original(tmp_path / "original", random_tensors(vit_shapes(3) | shapes, seed=1), text)
    for name in ("tokenizer.model", "special_tokens_map.json", "added_tokens.json"):
        (tmp_path / "original" / name).unlink()
    write_qwen2_tokenizer(tmp_path / "original")
    convert(tmp_path / "original", tmp_path / "native")
    processor = AutoProcessor.from_pretrained(tmp_path / "native")
    # "A" is byte 65, the 33rd visible character; "  " is a merge; Qwen2 has no BOS.
    assert processor.tokenizer("A  <IMG_CONTEXT>").input_ids == [32, 256, 261]
    assert processor.image_token_id == 261
    assert AutoConfig.from_pretrained(tmp_path / "native").image_token_id == 261
    write_qwen2_tokenizer(tmp_path / "original", first_added=300)
    with pytest.raises(InputError, match=r"tokenizer_config\.json: the added token .* has the id 300; expected 257"):
        convert(tmp_path / "original", tmp_path / "other")


def write_qwen2_tokenizer(folder: Path, first_added: int = 257) -> None:
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in visible] + [chr(256 + n) for n in range(256 - len(visible))]
    (folder / "vocab.json").write_text(
        json.dumps({letter: index for index, letter in enumerate(letters)} | {"ĠĠ": 256})
    )
    (folder / "merges.txt").write_text("#version: 0.2\nĠ Ġ\n", encoding="utf-8")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "<IMG_CONTEXT>", "</img>", "<quad>"]
    decoder = {str(first_added + n): {"content": token, "special": True} for n, token in enumerate(tokens)}
    config = {"added_tokens_decoder": decoder, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "Qwen2Tokenizer"}))
