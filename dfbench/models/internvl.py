"""InternVL2.5 and InternVL3 in transformers' native form: prompt and pixels on the CPU, two logits on the GPU.

Two protocols. `upstream` is what DFBench's own code does (its `internvl_chat_deepfake`, conversation `internlm2-chat`):
the Chinese system text, no newline after `<|im_end|>`, the image resized to a square and cut into 2x2 tiles plus a
thumbnail. `native` is the checkpoint's own chat template with dynamic tiling, for zero-shot use.
"""

import multiprocessing
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, InternVLConfig

from dfbench.errors import InputError
from dfbench.models.base import ModelInputs, Prompt, SequenceSize, answer_token_ids, blame, normalize_pixels
from dfbench.models.packed.layers import project_qkv
from dfbench.models.packed.packing import PackShape, pack_prompts
from dfbench.models.packed.scorer import PackedScorer

SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
"""System text of upstream's conversation template `internlm2-chat`; part of what the models were trained on."""

IMAGE_SIDE_IN_TILES = 1024 / 448
"""Upstream resizes every image to 1024x1024 before it cuts 448-pixel tiles; other tile sizes keep the ratio."""

MAX_TILES = 6
"""Upstream's `max_dynamic_patch`, without the thumbnail."""

MOST_TILES = 100
"""No checkpoint is known that asks for more than 12; the grids of n tiles are n squared."""

TEMPLATE_SECONDS = 10
"""A chat template that takes longer is refused; a usual one takes milliseconds."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class InternVLPrompt(Prompt):
    """Builds InternVL's token ids, the first being BOS where the language model is InternLM's, and its tiles."""

    family = "internvl"

    def __init__(self, checkpoint: Path, protocol: str = "upstream") -> None:
        self.checkpoint, self.protocol = checkpoint, protocol
        config = InternVLConfig.from_pretrained(checkpoint)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.tile = config.vision_config.image_size[0]
        per_side = self.tile // config.vision_config.patch_size[0] * config.downsample_ratio
        self.tokens_per_tile = round(per_side**2)
        self.starts_with_bos = config.text_config.model_type == "llama"
        self.image_token_id = config.image_token_id
        self.max_tiles = MAX_TILES
        if protocol == "native":
            self.max_tiles = AutoImageProcessor.from_pretrained(checkpoint, backend="pil").max_patches
            if not 1 <= self.max_tiles <= MOST_TILES:
                raise ValueError(f"max_patches is {self.max_tiles}; expected 1 to {MOST_TILES}")
            self._check_template()
        text = self.text("<image>\n?", 1)
        self.answer_tokens = answer_token_ids(self.encode, text, checkpoint)
        self.share_prefix(["<image>"])
        self.depends_on_size = protocol == "native"

    def describe(self) -> dict[str, Any]:
        side = round(self.tile * IMAGE_SIDE_IN_TILES)
        return {
            "protocol": self.protocol,
            "prompt": (self.tokenizer.bos_token if self.starts_with_bos else "") + self.text("{question}", 0),
            "image": f"RGB, PIL bicubic, {f'{side}x{side}, ' if self.protocol == 'upstream' else ''}"
            f"{self.tile}-pixel tiles, {self.max_tiles} at most, and a thumbnail",
        }

    def text(self, question: str, num_tiles: int) -> str:
        image = "<img>" + "<IMG_CONTEXT>" * (self.tokens_per_tile * num_tiles) + "</img>"
        if self.protocol == "native":
            turn = [{"type": "image"}, {"type": "text", "text": question.replace("<image>", "").strip()}]
            with blame(self.checkpoint, "its chat template cannot be used", "Download the whole folder again."):
                text = self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": turn}], add_generation_prompt=True, tokenize=False
                )
                if "<IMG_CONTEXT>" not in text:
                    raise ValueError("it leaves the image out")
            return text.replace("<IMG_CONTEXT>", image)
        question = question.strip()
        if "<image>" not in question:
            question = "<image>\n" + question
        question = question.replace("<image>", image)
        return f"<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n"

    def _check_template(self) -> None:
        """Raise InputError for a chat template that does not come to an end, as a loop or megabytes of text do not: it
        is tried in a process of its own, which can be stopped wherever it is.
        """

        def attempt() -> None:
            with suppress(Exception):  # raised again where it is used
                self.text("?", 1)

        process = multiprocessing.get_context("fork").Process(target=attempt, daemon=True)
        process.start()
        process.join(TEMPLATE_SECONDS)
        if process.is_alive():
            process.kill()
            raise InputError(
                f"{self.checkpoint}: its chat template is not done after {TEMPLATE_SECONDS} seconds. Download the "
                f"whole folder again, or use --protocol upstream."
            )

    def encode(self, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return [self.tokenizer.bos_token_id, *ids] if self.starts_with_bos else ids

    def tiles(self, rgb: Image.Image) -> np.ndarray:
        """Tiles of one RGB image, row by row, then the thumbnail: uint8 (T, 3, tile, tile)."""
        tile = self.tile
        if self.protocol == "upstream":
            side = round(tile * IMAGE_SIDE_IN_TILES)
            rgb = rgb.resize((side, side), Image.Resampling.BICUBIC)
        columns, rows = closest_grid(rgb.width, rgb.height, self.max_tiles, tile)
        grid = np.asarray(rgb.resize((columns * tile, rows * tile), Image.Resampling.BICUBIC))
        tiles = grid.reshape(rows, tile, columns, tile, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, tile, tile)
        if len(tiles) == 1:
            return np.ascontiguousarray(tiles)
        thumbnail = np.asarray(rgb.resize((tile, tile), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        return np.concatenate([tiles, thumbnail[None]])

    def prepare(self, question: str, rgb: Image.Image) -> ModelInputs:
        tiles = self.tiles(rgb)
        ids = self.input_ids(question, len(tiles))
        self.check_image_tokens(ids, len(tiles) * self.tokens_per_tile)
        return ModelInputs(torch.tensor(ids), torch.from_numpy(tiles))

    def pixel_values(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Tiles uint8 (T, 3, tile, tile) -> normalised values of the same shape."""
        return normalize_pixels(pixel_table(), pixels, dtype)

    def sequence_size(self, question: str, width: int, height: int) -> SequenceSize:
        if self.protocol == "upstream":
            width = height = round(self.tile * IMAGE_SIDE_IN_TILES)
        columns, rows = closest_grid(width, height, self.max_tiles, self.tile)
        num_tiles = columns * rows + (columns * rows > 1)
        return SequenceSize(len(self.input_ids(question, num_tiles)) - len(self.prefix), num_tiles)

    def pack(self, inputs: list[ModelInputs], shape: PackShape | None = None) -> dict[str, Any]:
        return pack_prompts(self, inputs, shape)


def closest_grid(width: int, height: int, max_tiles: int, tile: int) -> tuple[int, int]:
    """(columns, rows), at most `max_tiles` in all, whose aspect ratio is closest to the image's.

    Of equally close grids the first in order of area wins, and a larger one takes over while the image has more than
    half of that grid's pixels (InternVL's `find_closest_aspect_ratio`). A 1024x1024 image gets 2x2 tiles of 448.
    """
    grids = sorted(
        {(i, j) for i in range(1, max_tiles + 1) for j in range(1, max_tiles + 1) if i * j <= max_tiles},
        key=lambda grid: (grid[0] * grid[1], grid[0]),
    )
    best, best_difference = (1, 1), float("inf")
    for columns, rows in grids:
        difference = abs(width / height - columns / rows)
        large_enough = width * height > 0.5 * tile * tile * columns * rows
        if difference < best_difference or (difference == best_difference and large_enough):
            best, best_difference = (columns, rows), difference
    return best


@lru_cache(maxsize=1)
def pixel_table() -> Tensor:
    """uint8 -> value normalised with ImageNet's mean and deviation, by channel: float32 (3, 256).

    The order of operations is torchvision's (ToTensor, then Normalize), so that the values are upstream's to the last
    bit.
    """
    levels = torch.arange(256, dtype=torch.uint8).float().div(255)[:, None]
    return levels.sub(torch.tensor(IMAGENET_MEAN)).div(torch.tensor(IMAGENET_STD)).T.contiguous()


def embed_tiles(embeddings: torch.nn.Module, values: Tensor) -> Tensor:
    """Patch, class and position embeddings: values (T, 3, tile, tile) -> (T, 1 + patches, C).

    The convolution covers each patch once, so it is a matrix product.
    """
    projection = embeddings.patch_embeddings.projection
    patch = projection.kernel_size[0]
    patches = (
        values.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    )
    hidden = F.linear(patches, projection.weight.flatten(1), projection.bias)
    return torch.cat([embeddings.cls_token.expand(len(hidden), -1, -1), hidden], dim=1) + embeddings.position_embeddings


def vision_block(block: torch.nn.Module, hidden: Tensor) -> Tensor:
    """One block of InternViT: hidden (T, tokens, C) -> the same shape; each tile attends to itself only."""
    attention = block.attention
    query, key, value = project_qkv(attention, block.layernorm_before(hidden))
    query, key = (
        norm(part.flatten(2)).view_as(part) for norm, part in ((attention.q_norm, query), (attention.k_norm, key))
    )
    attended = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (query, key, value)))
    hidden = hidden + block.lambda_1 * attention.projection_layer(attended.transpose(1, 2).flatten(2))
    return hidden + block.lambda_2 * block.mlp(block.layernorm_after(hidden))


class InternVLScorer(PackedScorer):
    """Packed prefill of an `InternVLForConditionalGeneration`."""

    text_models = ("llama", "qwen2")
    vision_block = staticmethod(vision_block)

    @classmethod
    def unsupported(cls, config: InternVLConfig) -> str | None:
        vision = config.vision_config
        faults = {
            f"a vision tower of type {vision.model_type}": vision.model_type != "internvl_vision",
            f"vision_feature_layer {config.vision_feature_layer}": config.vision_feature_layer != -1,
            "image features with the class token": config.vision_feature_select_strategy != "default",
            "no position embeddings in its vision tower": not vision.use_absolute_position_embeddings,
            "tiles or patches that are not square": len({*vision.image_size}) > 1 or len({*vision.patch_size}) > 1,
        }
        return super().unsupported(config) or next((fault for fault, found in faults.items() if found), None)

    @property
    def vision_blocks(self) -> torch.nn.ModuleList:
        return self.model.model.vision_tower.encoder.layer

    def image_features(self, batch: dict[str, Any]) -> Tensor:
        body = self.model.model
        tower = body.vision_tower
        hidden = embed_tiles(tower.embeddings, self.prompt.pixel_values(batch["pixels"], self.dtype))
        for block in self.vision_blocks:
            hidden = self._run_block(block, hidden)
        patches = tower.layernorm(hidden)[:, 1:]  # without the class token
        side = round(patches.shape[1] ** 0.5)
        shuffled = body.pixel_shuffle(
            patches.unflatten(1, (side, side)), scale_factor=self.model.config.downsample_ratio
        )
        return body.multi_modal_projector(shuffled.flatten(1, 2)).flatten(0, 1)
