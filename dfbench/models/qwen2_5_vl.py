"""Qwen2.5-VL: prompt and pixels on the CPU as ms-swift's template `qwen2_5_vl` makes them, two logits on the GPU.

The image is resized by `qwen_vl_utils` (PIL, bicubic, both sides multiples of 28) and normalised by the checkpoint's
own image processor. transformers' processor would resize with torchvision instead, which moves log-probabilities by up
to 7e-4.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from qwen_vl_utils.vision_process import smart_resize
from torch import Tensor
from transformers import AutoProcessor, Qwen2_5_VLConfig
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from dfbench.data.images import ImageError
from dfbench.models.base import ModelInputs, Prompt, SequenceSize, answer_token_ids, normalize_pixels
from dfbench.models.packed import windows
from dfbench.models.packed.layers import gated
from dfbench.models.packed.packing import PackShape, Segments, attend, pack_prompts, pad, rotate
from dfbench.models.packed.scorer import PackedScorer

SYSTEM = "You are a helpful assistant."

MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 1536 * 28 * 28
"""Bounds on an image's area after resizing. No image of DFBench reaches the upper one (1024x1024 becomes 1036x1036); it
keeps larger ones within the training length of 2,048 tokens. train.sh hands the same two numbers to ms-swift."""


class QwenPrompt(Prompt):
    """Builds Qwen2.5-VL's token ids and patches."""

    family = "qwen2_5_vl"

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.config = Qwen2_5_VLConfig.from_pretrained(checkpoint)
        processor = AutoProcessor.from_pretrained(checkpoint)
        self.tokenizer, image_processor = processor.tokenizer, processor.image_processor
        self.patch, self.merge = image_processor.patch_size, image_processor.merge_size
        vision = self.config.vision_config
        if (self.patch, self.merge) != (vision.patch_size, vision.spatial_merge_size):
            raise ValueError("the image processor's patches are not the vision tower's")
        self.table = _normalisation_table(image_processor)
        text = self.text("<image>?", 1)
        self.image_token_id = self.config.image_token_id
        self.answer_tokens = answer_token_ids(self.encode, text, checkpoint)
        self.share_prefix(["<image>"])
        self.depends_on_size = True

    def describe(self) -> dict[str, Any]:
        return {
            "protocol": "qwen2_5_vl",
            "prompt": self.text("{question}", 0),
            "image": f"RGB, PIL bicubic, sides multiples of {self.patch * self.merge}, "
            f"{MIN_PIXELS} to {MAX_PIXELS} pixels",
        }

    def text(self, question: str, num_tokens: int) -> str:
        image = "<|vision_start|>" + "<|image_pad|>" * num_tokens + "<|vision_end|>"
        if "<image>" not in question:
            question = "<image>" + question
        question = question.replace("<image>", image)
        return (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that the model sees. Raises ImageError beyond 200:1."""
        bounds = {"min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
        try:
            height, width = smart_resize(height, width, factor=self.patch * self.merge, **bounds)
        except ValueError as error:
            raise ImageError(f"{width}x{height} pixels: {error}") from None
        return width, height

    def prepare(self, question: str, rgb: Image.Image) -> ModelInputs:
        width, height = self.size(*rgb.size)
        pixels = np.asarray(rgb.resize((width, height)))
        rows, columns = height // self.patch, width // self.patch
        num_tokens = rows * columns // self.merge**2
        ids = self.input_ids(question, num_tokens)
        self.check_image_tokens(ids, num_tokens)
        return ModelInputs(torch.tensor(ids), torch.from_numpy(self._patches(pixels)), (rows, columns))

    def pixel_values(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Patches uint8 (P, 3, patch, patch) -> normalised (P, 3 * frames * patch * patch), the same in each frame."""
        values = normalize_pixels(self.table, pixels, dtype)
        frames = self.config.vision_config.temporal_patch_size
        return values[:, :, None].expand(-1, -1, frames, -1, -1).flatten(1)

    def sequence_size(self, question: str, width: int, height: int) -> SequenceSize:
        width, height = self.size(width, height)
        patches = width * height // self.patch**2
        tokens = len(self.input_ids(question, patches // self.merge**2)) - len(self.prefix)
        window = self.config.vision_config.window_size
        return SequenceSize(tokens, patches, -(-width // window) * -(-height // window))

    def _patches(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 3) -> uint8 (patches, 3, patch, patch), merge blocks of 2x2 patches together."""
        patch, merge = self.patch, self.merge
        block = patch * merge
        blocks = pixels.reshape(pixels.shape[0] // block, merge, patch, pixels.shape[1] // block, merge, patch, 3)
        return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, patch, patch)

    def pack(self, inputs: list[ModelInputs], shape: PackShape | None = None) -> dict[str, Any]:
        """As `pack_prompts`, but positions int64 (3, N), and for the vision tower: patch_positions int64 (P, 2),
        images and windows (Segments), window_order int64 (P / 4,).
        """
        batch = pack_prompts(self, inputs, shape)
        num_tokens, num_patches = len(batch["input_ids"]), len(batch["pixels"])
        grids = torch.tensor([[1, *item.grid] for item in inputs])
        window_size = self.config.vision_config.window_size
        order, cu_seqlens = get_vision_window_index(grids, self.merge, window_size, self.patch)
        image_patches, size = grids.prod(dim=1), shape and shape.prompts
        if shape and shape.uniform:
            image_patches, size = torch.full((shape.prompts,), shape.max_vision), None  # padded with whole images
        return batch | {
            "positions": pad(torch.cat([self._positions(item) for item in inputs], dim=1), num_tokens, dim=1),
            "patch_positions": pad(get_vision_position_ids(grids, self.merge), num_patches),
            "images": Segments.of(image_patches, size=size, max_seqlen=shape and shape.max_vision),
            "windows": Segments.of(
                cu_seqlens.diff(), size=shape and shape.windows, max_seqlen=(window_size // self.patch) ** 2
            ),
            "window_order": torch.cat([order, torch.arange(len(order), num_patches // self.merge**2)]),
        }

    def _positions(self, item: ModelInputs) -> Tensor:
        """Temporal, height and width positions of one prompt after the shared prefix, int64 (3, L): text counts on from
        the image's larger side.
        """
        rows, columns = item.grid[0] // self.merge, item.grid[1] // self.merge
        start = item.input_ids.tolist().index(self.image_token_id)
        height, width = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        image = torch.stack([torch.zeros_like(height), height, width]).flatten(1) + start
        tail = torch.arange(len(item.input_ids) - start - rows * columns) + start + max(rows, columns)
        return torch.cat([torch.arange(start).expand(3, -1), image, tail.expand(3, -1)], dim=1)[:, len(self.prefix) :]


def _normalisation_table(image_processor: Any) -> Tensor:
    """uint8 -> normalised value, by channel, float32 (3, 256): read off the processor, so that rounding is its own."""
    side = image_processor.patch_size * image_processor.merge_size
    ramp = np.resize(np.arange(256, dtype=np.uint8), (side, side))
    image = Image.fromarray(np.stack([ramp] * 3, axis=-1))
    values = image_processor(images=[image], do_resize=False, return_tensors="pt")["pixel_values"]
    patch, merge = image_processor.patch_size, image_processor.merge_size
    values = values.view(merge, merge, 3, image_processor.temporal_patch_size, patch, patch)[:, :, :, 0]
    values = values.permute(2, 0, 3, 1, 4).reshape(3, -1)
    return values[:, :256].float().contiguous()


def _reordered(tensor: Tensor, order: Tensor) -> Tensor:
    """Rows of 2x2-patch blocks in another block order: (P, C) -> (P, C)."""
    return tensor.unflatten(0, (len(order), -1))[order].flatten(0, 1)


def vision_block(block: torch.nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor, segments: Segments) -> Tensor:
    """One block of the vision tower: hidden (P, C) -> (P, C); patches attend inside their segment (window or image)."""
    attention = block.attn
    qkv = attention.qkv(block.norm1(hidden)).unflatten(-1, (3, attention.num_heads, -1))
    if windows.fits(qkv, segments):
        attended = windows.attend_windows(qkv, cos, sin, segments.cu_seqlens)
    else:
        query, key, value = qkv.unbind(1)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        attended = attend(query, key, value, segments, segments, causal=False)
    hidden = hidden + attention.proj(attended.flatten(1))
    return hidden + gated(block.mlp, block.norm2(hidden))


class QwenScorer(PackedScorer):
    """Packed prefill of a `Qwen2_5_VLForConditionalGeneration`."""

    text_models = ("qwen2_5_vl_text",)
    vision_block = staticmethod(vision_block)

    def rotation(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary cosines and sines, float32 (N, D), of positions int64 (3, N), or (N,) for text."""
        cos, sin = self.language.rotary_emb(hidden.new_empty(0, dtype=torch.float32), positions.expand(3, -1)[:, None])
        return cos[0], sin[0]

    @property
    def vision_blocks(self) -> torch.nn.ModuleList:
        return self.model.model.visual.blocks

    def image_features(self, batch: dict[str, Any]) -> Tensor:
        tower, order = self.model.model.visual, batch["window_order"]
        # The patch embedding's convolution covers each patch once: a matrix product.
        hidden = F.linear(
            self.prompt.pixel_values(batch["pixels"], self.dtype), tower.patch_embed.proj.weight.flatten(1)
        )
        cos, sin = tower.rotary_pos_emb(hidden, batch["patch_positions"])
        hidden, cos, sin = (_reordered(tensor, order) for tensor in (hidden, cos, sin))
        for index, block in enumerate(self.vision_blocks):
            segments = batch["images"] if index in tower.fullatt_block_indexes else batch["windows"]
            hidden = self._run_block(block, hidden, cos, sin, segments)
        return tower.merger(hidden)[order.argsort()]
