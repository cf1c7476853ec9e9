"""The small files of a native InternVL folder: tokenizer, image processor, chat template, generation settings.

Their layout is that of the published native folders, which transformers 4.52 and later reads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dfbench.io import write_json, write_text
from dfbench.models.internvl_convert.config import read_json
from dfbench.models.internvl_convert.tokenizer import IMAGE_TOKENS, TURN_END, TURN_START, VIDEO_TOKEN, special_tokens

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '" + TURN_START + "' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '" + IMAGE_TOKENS["context_image_token"] + "\\n' }}"
    "{% elif content['type'] == 'video' %}{{ '" + VIDEO_TOKEN + "\\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '" + TURN_END + "\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + TURN_START + "assistant\\n' }}{% endif %}"
)
"""Renders what the published native folders' template does: ChatML, no system text of its own."""


def write_processor_files(
    folder: Path, source: Path, original: Mapping[str, Any], native: Mapping[str, Any], tokenizer: Tokenizer
) -> None:
    """Write all but config and weights into `folder`.

    source: the original folder, `original` its config; native: the native config.
    """
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)
    write_json(folder / "tokenizer_config.json", _tokenizer_config(source))
    side = native["vision_config"]["image_size"][0]
    write_json(folder / "preprocessor_config.json", _image_processor(original, side))
    processor = {"image_seq_length": native["image_seq_length"], "processor_class": "InternVLProcessor"}
    write_json(folder / "processor_config.json", processor)
    # The text config ends at </s>, as the original's does; conversations end with the end of a turn.
    ends = {"eos_token_id": tokenizer.token_to_id(TURN_END), "pad_token_id": native["text_config"]["pad_token_id"]}
    write_json(folder / "generation_config.json", ends)


def _tokenizer_config(source: Path) -> dict[str, Any]:
    original = read_json(source / "tokenizer_config.json")
    sentencepiece = (source / "tokenizer.model").is_file()
    config = special_tokens(original) | {
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": IMAGE_TOKENS | {"video_token": VIDEO_TOKEN},
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": original.get("model_max_length", 8192),
        # This class takes tokenizer.json as it stands; Llama's would rebuild it from the vocabulary, without our rules.
        "tokenizer_class": "PreTrainedTokenizerFast" if sentencepiece else "Qwen2Tokenizer",
    }
    return dict(sorted(config.items()))


def _image_processor(original: Mapping[str, Any], side: int) -> dict[str, Any]:
    return {
        "crop_to_patches": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        # Its PIL backend gives upstream's pixels. transformers 5 takes that one on request (backend="pil"), otherwise
        # torchvision's, which is up to two grey levels off.
        "image_processor_type": "GotOcr2ImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "max_patches": original.get("max_dynamic_patch", 6),
        "min_patches": original.get("min_dynamic_patch", 1),
        "resample": 3,  # PIL's bicubic
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
