"""What benchmarks work on: models of the real shapes with random weights, images of DFBench's sizes; and ceilings."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from dfbench.data.annotations import QUESTION, Sample
from dfbench.parallel import available_cores


def _internvl(hidden: int, mlp: int, layers: int, kv_heads: int, vocabulary: int) -> dict[str, Any]:
    """A language model like Llama's, with heads of 128, behind InternViT-300M."""
    text = dict(hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=hidden // 128)
    text |= dict(num_key_value_heads=kv_heads, head_dim=128, vocab_size=vocabulary, max_position_embeddings=32768)
    vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    vision |= dict(image_size=[448, 448], patch_size=[14, 14])
    return {"text_config": text, "vision_config": vision, "image_seq_length": 256}


REAL_SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5": {
        "text_config": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28)
        | dict(num_key_value_heads=4, max_position_embeddings=128000, layer_types=["full_attention"] * 28)
        | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}),
        "vision_config": dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584)
        | dict(fullatt_block_indexes=[7, 15, 23, 31]),
    },
    "internvl2.5": _internvl(hidden=4096, mlp=14336, layers=32, kv_heads=8, vocabulary=92553),
    "internvl3": _internvl(hidden=4096, mlp=10240, layers=48, kv_heads=2, vocabulary=128142),
}
"""Sizes of each agent's real model (`dfbench.models.registry.AGENTS`), over the config of a tiny one of its family."""

MIXED_SIZES = ((1024, 1024, 360), (512, 512, 80), (384, 384, 40), (512, 384, 45), (640, 333, 20))
"""(width, height, thousands of images): DFBench's proportions."""


def give_real_shape(name: str, folder: Path) -> None:
    """Rewrite a tiny checkpoint folder's config to the real model's sizes; its weights, which no longer fit, go."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for part, sizes in REAL_SHAPES[name].items():
        config[part] = config[part] | sizes if isinstance(sizes, dict) else sizes
    path.write_text(json.dumps(config))
    for weights in folder.glob("*.safetensors"):
        weights.unlink()


def random_model(folder: Path, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model of the folder's config with random weights, made on the device."""
    config = AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(previous)
    return model.to(dtype).eval().requires_grad_(False)


def write_images(folder: Path, count: int, *, mixed: bool) -> list[Sample]:
    """JPEGs of smooth noise, all 1024x1024 or `mixed` in DFBench's proportions; made once, reused after that."""
    sizes = [(1024, 1024)] * count
    if mixed:
        weights = np.array([weight for *_, weight in MIXED_SIZES], dtype=float)
        chosen = np.random.default_rng(0).choice(len(MIXED_SIZES), count, p=weights / weights.sum())
        sizes = [MIXED_SIZES[index][:2] for index in chosen]
    names = [f"DFBench/{'mixed' if mixed else 'square'}/{number:06}.jpg" for number in range(count)]
    (folder / names[0]).parent.mkdir(parents=True, exist_ok=True)
    # Pillow resizes and compresses outside the interpreter's lock, so that threads are enough.
    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(_write_image, [folder / name for name in names], range(count), sizes))
    return [Sample(name, "AB"[number % 2], f"<image>{QUESTION}") for number, name in enumerate(names)]


def _write_image(path: Path, seed: int, size: tuple[int, int]) -> None:
    if path.exists():
        return
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


def matrix_rate(device: str, dtype: torch.dtype, size: int = 8192) -> float:
    """FLOP/s of a large square matrix product on random data: the ceiling that MFU is measured against."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: left @ right, device, repeats=20)


def median_seconds(call: Callable[[], object], device: str, *, repeats: int = 5, warm_up: int = 2) -> float:
    """Median wall time of a call, the device's queue drained before and after."""
    seconds = []
    for _ in range(warm_up + repeats):
        began = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[warm_up:]))


def prefill_flops(model: PreTrainedModel, tokens: int, vision: int) -> float:
    """Floating-point operations of one prompt's prefill: two a weight and token, and the attention products.

    tokens: of the whole prompt. vision: tiles (InternVL) or patches (Qwen2.5-VL, whose windows are neglected).
    """
    text = model.config.text_config
    layers = sum(parameter.numel() for parameter in model.model.language_model.layers.parameters())
    language = 2 * layers * tokens + 2 * tokens**2 * text.hidden_size * text.num_hidden_layers
    config = model.config.vision_config
    if model.config.model_type == "qwen2_5_vl":
        own = 2 * sum(parameter.numel() for parameter in model.model.visual.parameters()) * vision
        return language + own + 4 * len(config.fullatt_block_indexes) * vision**2 * config.hidden_size
    per_tile = (config.image_size[0] // config.patch_size[0]) ** 2 + 1
    own = 2 * sum(parameter.numel() for parameter in model.model.vision_tower.parameters()) * per_tile
    return language + vision * (own + 4 * config.num_hidden_layers * per_tile**2 * config.hidden_size)
