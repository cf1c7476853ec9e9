"""Tiny checkpoints of the three real architectures: narrow, shallow, random weights, saved as ordinary folders.

They are the real transformers classes with real processors, chat formats and special tokens (Qwen2.5-VL's under their
real ids, which ms-swift relies on), so everything that runs on them runs on the released weights.

What is not random noise alone: Qwen2.5-VL's vision tower is frozen in training, so all it will ever see of an image is
what the random patch filters let through. Trained filters answer to fine detail as much as to the far stronger coarse
structure; random ones drown it. The filters of the tiny models are therefore random noise with the coarse part damped.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.fft import idctn
from torch import Tensor, nn
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from dfbench.demo.tiny_tokenizers import (
    INTERNVL_TEMPLATE,
    QWEN_IDS,
    QWEN_TEMPLATE,
    internvl_tokenizer,
    qwen_tokenizer,
)
from dfbench.models import internvl

QWEN_VOCABULARY = 152064

TILE, PATCH = 56, 14
"""Pixels on each side of an InternVL tile and of a patch: 4 image tokens a tile, where the real models have 256."""

DETAIL = 8.0
"""Patch filters weigh spatial frequency f by f**DETAIL; the spectra of photographs fall off like 1 / f."""

QWEN_FILTER_NORM, INTERNVL_FILTER_NORM = 1.0, 8.0
"""Length of a patch filter's weight vector. Under Qwen2.5-VL's scale-free norms short filters let the vision block's
answer to a patch outweigh the patch itself; InternVL's biases would drown them."""

HEAD_GAIN = 4.0
"""The output head is frozen too. At this many times its natural size the answer's probability can come near 1 among the
150,000 tokens of Qwen2.5-VL's vocabulary."""


@dataclass(frozen=True)
class InternVLShape:
    """Where the two tiny InternVL models differ: tokens before the special ones, language model, vision tower."""

    vocabulary: int
    text: dict[str, float]
    vision: dict[str, int]


INTERNVL2_5 = InternVLShape(
    vocabulary=430,
    text={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rope_theta": 1e6,
    },
    vision={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
)

INTERNVL3 = InternVLShape(
    vocabulary=446,
    text={
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rope_theta": 5e7,
    },
    vision={"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
)


def make_qwen(seed: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A tiny Qwen2.5-VL and its processor."""
    tokenizer = qwen_tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "vocab_size": QWEN_VOCABULARY,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "bos_token_id": QWEN_IDS["<|endoftext|>"],
            "eos_token_id": QWEN_IDS["<|im_end|>"],
            "pad_token_id": QWEN_IDS["<|endoftext|>"],
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 96,
            "fullatt_block_indexes": [0],
        },
        image_token_id=QWEN_IDS["<|image_pad|>"],
        video_token_id=QWEN_IDS["<|video_pad|>"],
        vision_start_token_id=QWEN_IDS["<|vision_start|>"],
        vision_end_token_id=QWEN_IDS["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    _randomise(model, seed, model.model.visual.patch_embed.proj, QWEN_FILTER_NORM)
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE
    )
    return model, processor


def make_internvl(shape: InternVLShape, seed: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A tiny InternVL with an InternLM-like (llama) language model and its processor."""
    tokenizer = internvl_tokenizer(shape.vocabulary)
    side = {"height": TILE, "width": TILE}
    num_tokens = (TILE // PATCH) ** 2 // 4
    config = InternVLConfig(
        text_config={
            "model_type": "llama",
            "rms_norm_eps": 1e-5,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 4096,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **shape.text,
        },
        vision_config={
            "image_size": [TILE, TILE],
            "patch_size": [PATCH, PATCH],
            "attention_bias": True,
            **shape.vision,
        },
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=num_tokens,
        tie_word_embeddings=False,
    )
    model = InternVLForConditionalGeneration(config)
    patch_embedding = model.model.vision_tower.embeddings.patch_embeddings.projection
    _randomise(model, seed, patch_embedding, INTERNVL_FILTER_NORM)
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(
            size=side,
            crop_to_patches=True,
            min_patches=1,
            max_patches=internvl.MAX_TILES,
            image_mean=internvl.IMAGENET_MEAN,
            image_std=internvl.IMAGENET_STD,
        ),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=side),
        image_seq_length=num_tokens,
        chat_template=INTERNVL_TEMPLATE,
    )
    return model, processor


MAKERS: dict[str, Callable[[int], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "qwen2.5": make_qwen,
    "internvl2.5": lambda seed: make_internvl(INTERNVL2_5, seed),
    "internvl3": lambda seed: make_internvl(INTERNVL3, seed),
}


def make_tiny_models(folder: Path, seed: int) -> list[Path]:
    """Write all three checkpoints, each to a folder of its own below `folder`; the folders. The same seed gives the
    same bytes.
    """
    written = []
    for name, make in MAKERS.items():
        model, processor = make(seed)
        with tempfile.TemporaryDirectory(dir=_made(folder), prefix=f".{name}-") as temporary:
            model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
            for path in sorted(Path(temporary).iterdir()):
                path.replace(_made(folder / name) / path.name)
        written.append(folder / name)
    return written


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ------------------------------------------------------------------------------------------------------------- weights


@torch.no_grad()
def _randomise(model: nn.Module, seed: int, patch_embedding: nn.Module, filter_norm: float) -> None:
    """Fill every matrix with normal noise that keeps the size of what passes through it, and shake everything else.

    transformers' own standard deviation of 0.02 suits matrices of thousands of columns; in narrow ones signals die
    away. No bias, norm or position is left at its neutral value: what mistreats one of them must change the scores.
    """
    rng = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        noise = torch.randn(weight.shape, generator=rng)
        if weight is patch_embedding.weight:
            weight.copy_(filter_norm * detail_filters(weight.shape, seed))
        elif "embed_tokens" in name:
            weight.copy_(noise)
        elif weight.dim() == 2:
            gain = HEAD_GAIN if name.startswith("lm_head") else 1.0
            weight.copy_(noise * gain * weight.shape[1] ** -0.5)
        else:
            weight.add_(noise * 0.02)


def detail_filters(shape: Sequence[int], seed: int) -> Tensor:
    """Random filters of length 1, (out, colours, [frames,] rows, columns), that prefer fine detail.

    Each is noise whose cosine coefficients are weighted by their spatial frequency to the power DETAIL. All frames get
    the same one.
    """
    out_channels, colours, *frames, rows, columns = shape
    frequency = np.hypot(np.arange(rows)[:, None] / rows, np.arange(columns) / columns)
    noise = np.random.default_rng(seed).standard_normal((out_channels, colours, rows, columns))
    filters = idctn(noise * frequency**DETAIL, axes=(2, 3), norm="ortho")
    if frames:
        filters = np.repeat(filters[:, :, None], frames[0], axis=2)
    lengths = np.linalg.norm(filters.reshape(out_channels, -1), axis=1)
    return torch.from_numpy(filters / lengths.reshape(-1, *[1] * (filters.ndim - 1))).float()
