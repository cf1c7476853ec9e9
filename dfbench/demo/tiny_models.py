"""Tiny checkpoints of the three real architectures: narrow, shallow, random weights, saved as ordinary folders.

They are the real transformers classes with real processors, chat formats and special tokens (Qwen2.5-VL's under their
real ids, which ms-swift relies on), so everything that runs on them runs on the released weights.

What is not random noise alone: Qwen2.5-VL's vision tower is frozen in training, so all it will ever see of an image is
what the random patch filters let through. Trained filters answer to fine detail as much as to the far stronger coarse
structure; random ones drown it. The filters of the tiny models are therefore random noise with the coarse part damped.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from scipy.fft import idctn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from dfbench.data.annotations import QUESTION
from dfbench.models import internvl, qwen2_5_vl
from dfbench.models.registry import AGENTS

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


CORPUS = (internvl.SYSTEM, qwen2_5_vl.SYSTEM, QUESTION, "system user assistant")
"""What the tokenizers are trained on: the prompts, so that these are few tokens."""

_QWEN_NAMES = ["endoftext", "im_start", "im_end"]
_QWEN_NAMES += [f"{what}_{side}" for what in ("object_ref", "box", "quad", "vision") for side in ("start", "end")]
_QWEN_NAMES += ["vision_pad", "image_pad", "video_pad"]
QWEN_IDS = {f"<|{name}|>": number for number, name in enumerate(_QWEN_NAMES, start=151643)}
"""Special tokens of the released checkpoint with their ids. ms-swift finds images by them."""

INTERNVL_SPECIALS = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")


def make_tiny_models(folder: Path, seed: int) -> list[Path]:
    """Write the checkpoint of every agent that has one, each to a folder of its own below `folder`; the folders.

    The same seed gives the same bytes.
    """
    written = []
    for agent in AGENTS.values():
        if agent.demo:
            target = folder / agent.name
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=f".{agent.name}-") as temporary:
                for part in resolve_name(agent.demo.make)(seed):
                    part.save_pretrained(temporary)
                for path in sorted(Path(temporary).iterdir()):
                    path.replace(target / path.name)
            written.append(target)
    return written


def make_qwen(seed: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A tiny Qwen2.5-VL and its processor."""
    config = Qwen2_5_VLConfig(
        text_config={
            **_sizes(96, 192, layers=2, heads=6, num_key_value_heads=2),
            "vocab_size": 152064,
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
    template = _chat_template(
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|vision_start|><|video_pad|><|vision_end|>",
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + qwen2_5_vl.SYSTEM + "<|im_end|>\n{% endif %}",
    )
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(), qwen_tokenizer(), Qwen2VLVideoProcessor(), chat_template=template
    )
    return model, processor


def make_internvl2_5(seed: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A tiny InternVL2.5 and its processor."""
    text = _sizes(64, 128, layers=2, heads=4, num_key_value_heads=4, rope_theta=1e6)
    return _make_internvl(seed, 430, text, vision=_sizes(64, 128, layers=2, heads=4))


def make_internvl3(
    seed: int, *, text: Mapping[str, Any] = MappingProxyType({}), vision: Mapping[str, Any] = MappingProxyType({})
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A tiny InternVL3 and its processor: other sizes, and fewer heads for keys than for queries.

    text, vision: settings of its two configs that are to differ.
    """
    text = _sizes(96, 192, layers=2, heads=6, num_key_value_heads=2, rope_theta=5e7) | text
    return _make_internvl(seed, 446, text, vision=_sizes(48, 128, layers=3, heads=4) | vision)


def _sizes(hidden: int, mlp: int, *, layers: int, heads: int, **others: float) -> dict[str, float]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return dict(zip(names, (hidden, mlp, layers, heads), strict=True)) | others


def _make_internvl(
    seed: int, vocabulary: int, text: dict[str, Any], vision: dict[str, Any]
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A tiny InternVL with an InternLM-like (llama) language model. vocabulary: see `internvl_tokenizer`."""
    tokenizer = internvl_tokenizer(vocabulary)
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
            **text,
        },
        vision_config={"image_size": [TILE] * 2, "patch_size": [PATCH] * 2, "attention_bias": True, **vision},
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
        chat_template=_chat_template("<IMG_CONTEXT>\n", "<video>\n"),
    )
    return model, processor


# ----------------------------------------------------------------------------------------------------------- tokenizers


def _chat_template(image: str, video: str, opening: str = "") -> str:
    """What the released checkpoints' own templates come to for questions about single images
    (Qwen/Qwen2.5-VL-7B-Instruct, OpenGVLab/InternVL3-9B-hf), with these texts in the place of an image and a video.
    """
    return opening + (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% elif part['type'] == 'video' %}" + video + ""
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def _byte_pairs(vocabulary: int, specials: Sequence[str] = ()) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs with Qwen's special tokens at their real ids; the ids between stay unused."""
    content = json.loads(_byte_pairs(512).to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["model"]["vocab"].update(QWEN_IDS)
    content["added_tokens"] = [{"id": number, "content": name, **flags} for name, number in QWEN_IDS.items()]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
    )


def internvl_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte pairs after InternLM's three control tokens; `<s>` is put before every text, as InternLM's tokenizer does.

    vocabulary: number of tokens without INTERNVL_SPECIALS, which follow them.
    """
    tokenizer = _byte_pairs(vocabulary, ["<unk>", "<s>", "</s>"])
    tokenizer.add_special_tokens(list(INTERNVL_SPECIALS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="</s>",
        model_max_length=4096,
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )


# -------------------------------------------------------------------------------------------------------------- weights


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
