"""Qwen2.5-VL: prompt and pixels on the CPU as ms-swift's template `qwen2_5_vl` makes them, two logits on the GPU.

The image is resized by `qwen_vl_utils` (PIL, bicubic, both sides multiples of 28) and normalised by the checkpoint's
own image processor. transformers' processor would resize with torchvision instead, which moves log-probabilities by up
to 7e-4.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils.vision_process import smart_resize
from torch import Tensor
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from dfbench.images import ImageError
from dfbench.letters import letter_ids
from dfbench.models.base import Prepared, Prompt, Scorer
from dfbench.models.packed import Segments, attend, decode_last, rotate, two_letter_logits

SYSTEM = "You are a helpful assistant."

MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 1536 * 28 * 28
"""Bounds on an image's area after resizing. No image of DFBench reaches the upper one (1024x1024 becomes 1036x1036); it
keeps larger ones within the training length of 2,048 tokens. train.sh hands the same two numbers to ms-swift."""


class QwenPrompt(Prompt):
    """Builds Qwen2.5-VL's token ids and patches; small and picklable, so that worker processes can hold it."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.config = Qwen2_5_VLConfig.from_pretrained(checkpoint)
        processor = AutoProcessor.from_pretrained(checkpoint)
        self.tokenizer, image_processor = processor.tokenizer, processor.image_processor
        self.patch, self.merge = image_processor.patch_size, image_processor.merge_size
        self.table = _normalisation_table(image_processor)
        self.letters = letter_ids(self._encode, self.text("<image>?", num_tokens=1), checkpoint)

    def describe(self) -> dict[str, Any]:
        return {
            "protocol": "qwen2_5_vl",
            "prompt": self.text("{question}", num_tokens=0),
            "image": f"RGB, PIL bicubic, sides multiples of {self.patch * self.merge}, "
            f"{MIN_PIXELS} to {MAX_PIXELS} pixels",
        }

    def text(self, question: str, num_tokens: int) -> str:
        """The whole prompt as text, image tokens written out, up to where the answer begins."""
        image = "<|vision_start|>" + "<|image_pad|>" * num_tokens + "<|vision_end|>"
        if "<image>" not in question:
            question = "<image>" + question
        question = question.replace("<image>", image)
        return (
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )

    def input_ids(self, question: str, num_tokens: int) -> list[int]:
        return list(_cached_ids(self, question, num_tokens))

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def resized(self, rgb: Image.Image) -> np.ndarray:
        """An RGB image at the size that the model sees: uint8 (height, width, 3). Raises ImageError beyond 200:1."""
        try:
            height, width = smart_resize(
                rgb.height, rgb.width, factor=self.patch * self.merge, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS
            )
        except ValueError as error:
            raise ImageError(f"{rgb.width}x{rgb.height} pixels: {error}") from None
        return np.asarray(rgb.resize((width, height)))

    def prepare(self, question: str, rgb: Image.Image) -> Prepared:
        pixels = self.resized(rgb)
        rows, columns = pixels.shape[0] // self.patch, pixels.shape[1] // self.patch
        ids = self.input_ids(question, rows * columns // self.merge**2)
        return Prepared(torch.tensor(ids), torch.from_numpy(self._patches(pixels)), (rows, columns))

    def _patches(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 3) -> uint8 (patches, 3, patch, patch), merge blocks of 2x2 patches together."""
        patch, merge = self.patch, self.merge
        block = patch * merge
        blocks = pixels.reshape(pixels.shape[0] // block, merge, patch, pixels.shape[1] // block, merge, patch, 3)
        return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, patch, patch)

    def collate(self, prepared: list[Prepared]) -> dict[str, Tensor]:
        """Pack prompts and patches.

        input_ids int64 (N,), positions int64 (3, N), lengths int64 (B,), image_slots int64 (merged patches,), pixels
        uint8 (P, 3, patch, patch), and for the vision tower: patch_positions int64 (P, 2), image_lengths int64 (B,),
        window_order int64 (P / 4,), window_lengths int64 (windows,).
        """
        input_ids = torch.cat([item.input_ids for item in prepared])
        vision = self.config.vision_config
        grids = torch.tensor([[1, *item.grid] for item in prepared])
        order, bounds = get_vision_window_index(grids, self.merge, vision.window_size, self.patch)
        return {
            "input_ids": input_ids,
            "positions": torch.cat([self._positions(item) for item in prepared], dim=1),
            "lengths": torch.tensor([len(item.input_ids) for item in prepared]),
            "image_slots": (input_ids == self.config.image_token_id).nonzero().flatten(),
            "pixels": torch.cat([item.pixels for item in prepared]),
            "patch_positions": get_vision_position_ids(grids, self.merge),
            "image_lengths": grids.prod(dim=1),
            "window_order": order,
            "window_lengths": bounds.diff().long(),
        }

    def _positions(self, item: Prepared) -> Tensor:
        """Temporal, height and width positions of one prompt, int64 (3, L): text counts on from the larger side."""
        rows, columns = item.grid[0] // self.merge, item.grid[1] // self.merge
        start = int((item.input_ids == self.config.image_token_id).nonzero()[0])
        after = len(item.input_ids) - start - rows * columns
        height, width = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        image = torch.stack([torch.zeros_like(height), height, width]).flatten(1) + start
        tail = torch.arange(after) + start + max(rows, columns)
        return torch.cat([torch.arange(start).expand(3, -1), image, tail.expand(3, -1)], dim=1)


@lru_cache(maxsize=4096)
def _cached_ids(prompt: QwenPrompt, question: str, num_tokens: int) -> tuple[int, ...]:
    return tuple(prompt._encode(prompt.text(question, num_tokens)))


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


class QwenScorer(Scorer):
    """Logits of A and B by one packed prefill of a `Qwen2_5_VLForConditionalGeneration`."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, prompt: QwenPrompt) -> None:
        super().__init__(model, prompt)
        self.table = prompt.table.to(self.device, self.dtype)

    def pixel_values(self, patches: Tensor) -> Tensor:
        """uint8 (P, 3, patch, patch) -> normalised (P, 3 * frames * patch * patch), the still image in every frame."""
        channel = torch.arange(3, device=patches.device)[None, :, None, None]
        values = self.table[channel, patches.long()]
        frames = self.model.config.vision_config.temporal_patch_size
        return values[:, :, None].expand(-1, -1, frames, -1, -1).flatten(1)

    @torch.inference_mode()
    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        language = self.model.model.language_model
        hidden = language.embed_tokens(batch["input_ids"])
        hidden[batch["image_slots"]] = self._image_features(batch).to(hidden.dtype)
        cos, sin = language.rotary_emb(hidden[None], batch["positions"][:, None])
        prompts = Segments.of(batch["lengths"].tolist(), hidden.device)
        last = decode_last(language.layers, hidden, cos[0], sin[0], prompts)
        return two_letter_logits(self.model.lm_head, language.norm(last), self.prompt.letters)

    def _image_features(self, batch: dict[str, Tensor]) -> Tensor:
        """The vision tower over packed patches -> (P / 4, C), in the order of the image tokens."""
        tower, order = self.model.model.visual, batch["window_order"]
        hidden = tower.patch_embed(self.pixel_values(batch["pixels"]))
        cos, sin = tower.rotary_pos_emb(hidden, batch["patch_positions"])
        hidden, cos, sin = (_reordered(tensor, order) for tensor in (hidden, cos, sin))
        images = Segments.of(batch["image_lengths"].tolist(), hidden.device)
        windows = Segments.of(batch["window_lengths"].tolist(), hidden.device)
        for index, block in enumerate(tower.blocks):
            hidden = _vision_block(block, hidden, cos, sin, images if index in tower.fullatt_block_indexes else windows)
        return tower.merger(hidden)[order.argsort()]


def _reordered(tensor: Tensor, order: Tensor) -> Tensor:
    """Rows of 2x2-patch blocks in another block order: (P, C) -> (P, C)."""
    return tensor.unflatten(0, (len(order), -1))[order].flatten(0, 1)


def _vision_block(block: torch.nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor, segments: Segments) -> Tensor:
    attention = block.attn
    query, key, value = attention.qkv(block.norm1(hidden)).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
    # transformers rotates in float32 here, unlike in the language model.
    query, key = (rotate(tensor.float(), cos.float(), sin.float()).to(value.dtype) for tensor in (query, key))
    hidden = hidden + attention.proj(attend(query, key, value, segments, segments, causal=False).flatten(1))
    return hidden + block.mlp(block.norm2(hidden))
