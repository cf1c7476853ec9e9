"""The demo's tiny checkpoints: what loads them, what is in them, that a seed fixes them."""

import runpy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    InternVLForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
)

from dfbench.demo.tiny_models import DETAIL, detail_filters, make_internvl2_5, make_tiny_models
from dfbench.models.internvl import InternVLPrompt
from dfbench.models.qwen2_5_vl import QwenPrompt
from dfbench.models.registry import AGENTS as REGISTERED
from dfbench.models.registry import Agent, TinyModel
from dfbench.paths import REPOSITORY

AGENTS = ("qwen2.5", "internvl2.5", "internvl3")
QUESTION = "<image>Is this a real image or a generated image? A: 'real' or B: 'generated'. Just answer with A or B."


@pytest.mark.parametrize("agent", AGENTS)
def test_the_auto_classes_load_a_model_and_answer_a_chat(checkpoints, agent):
    processor = AutoProcessor.from_pretrained(checkpoints[agent])
    model = AutoModelForImageTextToText.from_pretrained(checkpoints[agent])
    expected = Qwen2_5_VLForConditionalGeneration if agent == "qwen2.5" else InternVLForConditionalGeneration
    assert isinstance(model, expected)
    turn = [{"type": "image", "image": Image.new("RGB", (112, 112), "gray")}, {"type": "text", "text": "Real?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": turn}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        logits = model(**inputs).logits
    assert logits.isfinite().all()
    # Not flat: a frozen head must be able to make one token likely.
    assert logits[0, -1].std() > 1


def test_the_two_internvl_models_differ_in_more_than_weights(checkpoints):
    first, second = (AutoModelForImageTextToText.from_pretrained(checkpoints[agent]).config for agent in AGENTS[1:])
    assert first.text_config.model_type == second.text_config.model_type == "llama"
    assert first.text_config.vocab_size != second.text_config.vocab_size
    assert first.text_config.hidden_size != second.text_config.hidden_size
    assert second.text_config.num_key_value_heads == 2
    assert second.text_config.rope_parameters["rope_theta"] == 5e7


def test_qwens_special_tokens_have_their_real_ids(checkpoints):
    processor = AutoProcessor.from_pretrained(checkpoints["qwen2.5"])
    config = AutoModelForImageTextToText.from_pretrained(checkpoints["qwen2.5"]).config
    ids = processor.tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>"]
    )
    assert ids == [151643, 151645, 151652, 151655]
    assert config.image_token_id == 151655
    assert config.text_config.vocab_size == 152064


def test_chat_formats_are_those_of_the_released_checkpoints(checkpoints):
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}]
    chat += [{"role": "assistant", "content": "A"}]
    texts = {}
    for agent in AGENTS:
        processor = AutoProcessor.from_pretrained(checkpoints[agent])
        texts[agent] = (
            processor.apply_chat_template(chat),
            processor.apply_chat_template(chat[:1], add_generation_prompt=True),
        )
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    question = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Q<|im_end|>\n<|im_start|>assistant\n"
    assert texts["qwen2.5"] == (system + question + "A<|im_end|>\n", system + question)
    question = "<|im_start|>user\n<IMG_CONTEXT>\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert texts["internvl2.5"] == texts["internvl3"] == (question + "A<|im_end|>\n", question)


def test_letters_are_single_tokens_and_prompts_are_short(checkpoints):
    image = Image.new("RGB", (112, 112))
    for agent in AGENTS:
        prompt = (QwenPrompt if agent == "qwen2.5" else InternVLPrompt)(checkpoints[agent])
        tokenizer = AutoProcessor.from_pretrained(checkpoints[agent]).tokenizer
        assert tokenizer.convert_ids_to_tokens(list(prompt.answer_tokens)) == ["A", "B"]
        assert len(prompt.prepare(QUESTION, image).input_ids) < 120


def test_internvl_tokenizers_put_bos_before_every_text(checkpoints):
    for agent in AGENTS[1:]:
        tokenizer = AutoProcessor.from_pretrained(checkpoints[agent]).tokenizer
        assert tokenizer("real").input_ids[0] == tokenizer.bos_token_id == tokenizer.convert_tokens_to_ids("<s>")


def test_the_demo_follows_from_the_records_of_the_agents(monkeypatch, capsys, tmp_path):
    tiny = TinyModel("dfbench.demo.tiny_models:make_internvl2_5", learning_rate=1e-4, steps=7)
    fourth = Agent("fourth", "Fourth", "internvl", "-", "train.jsonl", "test.jsonl", "score.sh", demo=tiny)
    for known in AGENTS[:2]:
        monkeypatch.setitem(REGISTERED, known, replace(REGISTERED[known], demo=None))
    monkeypatch.setitem(REGISTERED, "fourth", fourth)
    assert [folder.name for folder in make_tiny_models(tmp_path, seed=0)] == ["internvl3", "fourth"]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["make_tiny_models.py", "--list"])
    runpy.run_path(str(REPOSITORY / "scripts" / "make_tiny_models.py"))["main"]()
    assert capsys.readouterr().out.splitlines() == [
        "internvl3 shell/train_deepfake.sh shell/merge_lora.sh shell/eval_deepfake.sh 0.002 180",
        "fourth train.sh merge_lora.sh score.sh 0.0001 7",
    ]


def test_no_parameter_is_neutral_and_another_seed_changes_all():
    first, second = (dict(make_internvl2_5(seed)[0].named_parameters()) for seed in (0, 1))
    assert set(first) == set(second)
    for name, weight in first.items():
        assert len(weight.unique()) > 1, name
        assert not torch.equal(weight, second[name]), name


@pytest.mark.parametrize("shape", [(8, 3, 14, 14), (8, 3, 2, 14, 14)])
def test_detail_filters_have_length_one_and_ignore_the_coarse_part(shape):
    filters = detail_filters(shape, seed=0)
    assert filters.shape == shape
    assert filters.flatten(1).norm(dim=1).numpy() == pytest.approx(np.ones(8), abs=1e-6)
    gray = torch.ones(shape[1:])
    ramp = torch.linspace(-1, 1, 14).expand(shape[1:])
    grid = (-1.0) ** torch.arange(14).expand(shape[1:])
    answers = {
        name: (filters * image).flatten(1).sum(1).abs().mean()
        for name, image in [("gray", gray), ("ramp", ramp), ("grid", grid)]
    }
    assert answers["gray"] < 1e-5
    # A ramp is mostly the cosine of frequency 1/14, the grid mostly those near 13/14: 13**8 apart, before leakage.
    assert DETAIL == 8
    assert answers["ramp"] < 0.1 * answers["grid"]
    if len(shape) == 5:
        assert torch.equal(filters[:, :, 0], filters[:, :, 1])
