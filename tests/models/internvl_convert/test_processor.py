"""What a converted folder holds beside config and weights, as transformers and ms-swift load it."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, GenerationConfig

from dfbench.paths import REPOSITORY

ORACLE = REPOSITORY / "tests" / "fixtures" / "internvl_oracle"
EXPECTED = json.loads((ORACLE / "expected.json").read_text())
ROWS = EXPECTED["images"]

# numpy's remark about tensors inside transformers' image processor.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")


def test_the_processor_loads_without_remote_code_and_makes_upstreams_pixels(native, upstream_pixels):
    processor = AutoProcessor.from_pretrained(native)
    assert type(processor).__name__ == "InternVLProcessor"
    assert (processor.image_seq_length, processor.image_token, processor.image_token_id) == (256, "<IMG_CONTEXT>", 1614)
    assert len(processor.tokenizer) == 1621  # no token beyond the embedding
    images = AutoImageProcessor.from_pretrained(native, backend="pil")
    assert (images.min_patches, images.max_patches) == (1, 12)
    row = ROWS[0]
    square = Image.open(ORACLE / "images" / row["image"]).convert("RGB").resize((1024, 1024), Image.Resampling.BICUBIC)
    found = images(images=[square], max_patches=6, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(found, upstream_pixels(row["image"]).numpy(), rtol=0, atol=1e-6)


def test_the_tokenizer_survives_saving_and_loading(native, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(native)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\n真 <0x0A>  [UNUSED_TOKEN_137] [UNUSED_TOKEN_145]"
    ids = tokenizer(text).input_ids
    assert ids[:2] == [1, 1611]
    assert ids[-1] == 1610
    for other in (again, AutoProcessor.from_pretrained(native).tokenizer):
        assert other(text).input_ids == ids
        assert other(text, add_special_tokens=False).input_ids == ids[1:]
        assert (other.bos_token_id, other.eos_token_id, other.pad_token_id) == (1, 2, 2)
        assert other.video_token_id < 1621


def test_the_chat_template_is_chatml(native):
    tokenizer = AutoTokenizer.from_pretrained(native)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Real?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
    ]
    turns = [
        "<|im_start|>system\nBe brief.<|im_end|>\n",
        "<|im_start|>user\n<IMG_CONTEXT>\nReal?<|im_end|>\n",
        "<|im_start|>assistant\nA<|im_end|>\n",
    ]
    render = tokenizer.apply_chat_template
    assert render(messages, tokenize=False) == "".join(turns)
    assert render(messages[:2], tokenize=False, add_generation_prompt=True) == "".join(turns[:2]) + turns[2][:22]


def test_generation_ends_at_the_end_of_a_turn(native):
    assert GenerationConfig.from_pretrained(native).eos_token_id == EXPECTED["token_ids"]["<|im_end|>"]


@pytest.mark.slow
def test_ms_swift_recognises_a_converted_folder(native):
    model = pytest.importorskip("swift.model")
    processor = model.get_processor(str(native), model_type="internvl")
    assert processor.model_meta.model_type == "internvl"
    assert processor.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == 1614
