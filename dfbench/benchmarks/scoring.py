"""What `scripts/benchmark_scoring.py` measures, on models of the real shapes with random weights.

Ways to score, on the same weights and images:

- `upstream`: one image at a time, as DFBench's own code does it (Qwen: processor and `generate`; InternVL: a forward
  pass with the logits of the whole vocabulary, its image preparation left out).
- `packed`: this project's scorer, end to end: JPEGs read from disk, prepared by worker processes, rows written.

MFU is the share of the floating-point operations of the upstream way's prefill that a large matrix product would have
done in the same time; savings count as speed.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from dfbench.data.annotations import QUESTION, Sample
from dfbench.models.base import ModelInputs, Prompt, Scorer
from dfbench.parallel import available_cores
from dfbench.predictions.writer import RecordWriter
from dfbench.scoring.batching import Plan
from dfbench.scoring.engine import Outcome, score_batches
from dfbench.scoring.loader import Preparation, load_batches


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

NUM_HEADS = 64
"""Output heads over which P(A) is compared: one alone would see one direction of the errors, which images share."""

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


@torch.inference_mode()
def upstream_seconds(model: PreTrainedModel, prompt: Prompt, path: Path, device: str) -> float:
    """Seconds an image in the upstream way."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    if model.config.model_type == "qwen2_5_vl":
        processor = AutoProcessor.from_pretrained(prompt.checkpoint)
        text = prompt.text(f"<image>{QUESTION}", 1)

        def call() -> object:
            inputs = processor(text=[text], images=[rgb], return_tensors="pt").to(device)
            return model.generate(**inputs, max_new_tokens=1, do_sample=False, output_logits=True)

        return median_seconds(call, device)
    inputs = single_inputs(prompt, prompt.prepare(f"<image>{QUESTION}", rgb), device, model.dtype)
    return median_seconds(lambda: model(**inputs).logits, device)


def single_inputs(prompt: Prompt, prepared: ModelInputs, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """One prompt as the keyword arguments of transformers' own forward pass."""
    values = prompt.pixel_values(prepared.pixels, torch.float32).to(device, dtype)
    ids = prepared.input_ids[None].to(device)
    inputs = {"input_ids": ids, "pixel_values": values}
    if prepared.grid != (0, 0):
        inputs["image_grid_thw"] = torch.tensor([[1, *prepared.grid]], device=device)
        inputs["mm_token_type_ids"] = (ids == prompt.image_token_id).int()
    return inputs


class Deviation(NamedTuple):
    """Largest and mean |P(A) - P(A) in float32| over some images and heads."""

    largest: float
    mean: float

    def __str__(self) -> str:
        return f"{self.largest:.1e} / {self.mean:.1e}"


def deviation(answers: Tensor, exact: Tensor) -> Deviation:
    difference = (answers.cpu() - exact.cpu()).abs()
    return Deviation(float(difference.max()), float(difference.mean()))


@torch.inference_mode()
def last_states(model: PreTrainedModel, prompt: Prompt, prompts: Sequence[ModelInputs], device: str) -> Tensor:
    """What the output head gets of each prompt in transformers' own forward pass, one at a time: (B, C) in the model's
    dtype.
    """
    inputs = (single_inputs(prompt, one, device, model.dtype) for one in prompts)
    return torch.stack([model.model(**one).last_hidden_state[0, -1] for one in inputs])


@contextmanager
def recorded_states(scorer: Scorer) -> Iterator[list[Tensor]]:
    """Collect the same of a scorer: one (B, C) a batch, padding included, appended as the batches run."""
    states: list[Tensor] = []
    hook = scorer.language.norm.register_forward_hook(lambda *call: states.append(call[-1].clone()))
    try:
        yield states
    finally:
        hook.remove()


def spread_heads(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Output heads under which P(A) spreads over about 0.05 to 0.95: the rows of A and B of each, (NUM_HEADS, 2, C).

    exact: float32 (B, C), see `last_states`. Random weights answer every image alike. So the two rows are opposite
    random directions from which the images' common part is taken, scaled to a standard deviation of the logits'
    difference of 1.5.
    """
    common = exact.mean(dim=0)
    directions = torch.randn(NUM_HEADS, len(common), generator=torch.Generator().manual_seed(1)).to(exact)
    directions -= (directions @ common / (common @ common))[:, None] * common
    halves = directions * (0.75 / (exact @ directions.T).std(dim=0))[:, None]
    return torch.stack([halves, -halves], dim=1).to(dtype)


def answers(states: Tensor, heads: Tensor) -> Tensor:
    """P(A) of each head and prompt, float32 (NUM_HEADS, B), from `last_states` of the heads' dtype."""
    logits = torch.einsum("bc,hlc->hbl", states.to(heads), heads)
    return logits.float().softmax(dim=-1)[..., 0]


def run_packed(
    scorer: Scorer, plan: Plan, image_root: Path, csv_path: Path, *, workers: int, compiled: bool, batches: slice
) -> Outcome:
    """The whole scoring run over some of the plan's batches, the model being there already."""
    shape = plan.shape if compiled else None
    preparation = Preparation(plan.batches[batches], image_root, scorer.prompt, shape)
    pinned = scorer.device.type == "cuda"
    with RecordWriter(csv_path) as writer:
        return score_batches(preparation, lambda: scorer, writer, workers=workers, pin_memory=pinned, quiet=True)


def preparation_rate(plan: Plan, image_root: Path, prompt: Prompt, workers: int, *, compiled: bool) -> float:
    """Images/s that the worker processes alone decode, prepare and collate: what the GPU could be fed with."""
    dataset = Preparation(plan.batches, image_root, prompt, shape=plan.shape if compiled else None)
    began = time.perf_counter()
    images = sum(len(batch.images) for batch in load_batches(dataset, workers, pin_memory=False))
    return images / (time.perf_counter() - began)
