"""One record for each family and agent: what loads by it, which engine scores it, and what is refused."""

import json
import logging
import subprocess
import sys

import pytest
import torch

from dfbench.errors import InputError
from dfbench.models import registry
from dfbench.models.hf import TransformersScorer
from dfbench.models.packed.scorer import PackedScorer
from dfbench.models.registry import AGENTS as AGENT_RECORDS
from dfbench.models.registry import FAMILIES, Family, check_checkpoint, load_prompt, load_scorer, register

AGENTS = ("qwen2.5", "internvl2.5", "internvl3")


def test_the_registry_and_the_folders_of_weights_do_without_torch():
    code = "import sys, dfbench.models.registry, dfbench.models.checkpoints; print({'torch', 'transformers', 'peft', "
    code += "'numpy', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_agents_are_of_registered_families():
    assert tuple(AGENT_RECORDS) == AGENTS
    assert {agent.family for agent in AGENT_RECORDS.values()} <= set(FAMILIES)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="qwen2_5_vl is registered already"):
        register(FAMILIES["qwen2_5_vl"])


# -------------------------------------------------------------------------------------------------------------- engines


@pytest.mark.parametrize("agent", AGENTS)
def test_the_agents_are_scored_by_the_packed_engine_unless_another_is_named(checkpoints, agent, caplog):
    prompt = load_prompt(checkpoints[agent])
    kinds = {"auto": PackedScorer, "packed": PackedScorer, "transformers": TransformersScorer}
    for engine, kind in kinds.items():
        scorer = load_scorer(prompt, device="cpu", dtype="float32", engine=engine)
        assert isinstance(scorer, kind)
        assert scorer.prompt.engine == ("transformers" if engine == "transformers" else "packed")
    named = load_prompt(checkpoints[agent], engine="transformers")
    assert isinstance(load_scorer(named, device="cpu", dtype="float32"), TransformersScorer)
    assert not caplog.records


@pytest.fixture
def inner_layer(copy_of):
    """A checkpoint whose image features come from an inner layer of the vision tower, which `packed` does not know."""
    path = copy_of("internvl3") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vision_feature_layer": -2}))
    return path.parent


def test_what_the_packed_engine_does_not_know_falls_back_in_one_line(inner_layer, caplog):
    with caplog.at_level(logging.INFO, "dfbench"):
        prompt = load_prompt(inner_layer)
        scorer = load_scorer(prompt, device="cpu", dtype="float32")
    assert prompt.engine == "transformers"
    assert isinstance(scorer, TransformersScorer)
    (line,) = caplog.messages
    assert line == (
        f"{inner_layer}: scored by transformers, slower: the packed engine does not know vision_feature_layer -2"
    )


def test_the_packed_engine_by_name_is_refused_where_it_would_guess(inner_layer):
    reason = r"internvl3: the packed engine does not know vision_feature_layer -2\. Use --engine transformers\."
    with pytest.raises(InputError, match=reason):
        load_prompt(inner_layer, engine="packed")
    with pytest.raises(InputError, match=reason):
        load_scorer(load_prompt(inner_layer), device="cpu", dtype="float32", engine="packed")
    model = load_scorer(load_prompt(inner_layer), device="cpu", dtype="float32").model
    with pytest.raises(InputError, match=reason):
        registry.scorer_of(model, load_prompt(inner_layer))


def test_8_bit_products_are_refused_where_they_would_be_left_out(checkpoints):
    prompt = load_prompt(checkpoints["internvl3"], engine="transformers")
    with pytest.raises(InputError, match=r"only the packed engine has 8-bit products\. Leave --precision fp8 out"):
        load_scorer(prompt, device="cpu", dtype="float32", fp8=True)


def test_a_family_without_packed_layers_is_scored_by_transformers(copy_of, monkeypatch, caplog):
    """One record is all that a new family needs."""
    path = copy_of("qwen2.5") / "config.json"
    prompt = "dfbench.models.qwen2_5_vl:QwenPrompt"
    monkeypatch.setattr("dfbench.models.qwen2_5_vl.QwenPrompt.family", "dummy")
    monkeypatch.setattr(registry, "FAMILIES", {})
    register(Family("dummy", ("qwen2_5_vl",), prompt=prompt, template="dummy"))
    scorer = load_scorer(load_prompt(path.parent), device="cpu", dtype="float32")
    assert isinstance(scorer, TransformersScorer)
    assert "scored by transformers, slower: the packed engine does not know the family dummy" in caplog.text


def test_memory_that_does_not_hold_the_weights_is_no_damage(checkpoints, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    prompt = load_prompt(checkpoints["internvl3"])
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", fail)
    with pytest.raises(InputError, match=r"not enough GPU memory for its weights .*1\.00 GiB.*Free memory on the GPU"):
        load_scorer(prompt, device="cpu", dtype="float32")


# ------------------------------------------------------------------------------------------------- folders that fail


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder. Download the weights"):
        load_prompt(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.json in this folder"):
        load_prompt(tmp_path)


@pytest.mark.parametrize("content", ['{"model_type": "qwen2', "[]", "\xff"])
def test_a_broken_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"config\.json.*download it again"):
        load_prompt(tmp_path)


@pytest.mark.parametrize("model_type", ["internvl", "internvl_chat"])
def test_the_family_of_a_folder_by_its_config_alone(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert check_checkpoint(tmp_path).name == "internvl"
    with pytest.raises(InputError, match=r"a checkpoint of the family internvl, not qwen2_5_vl\. Correct"):
        check_checkpoint(tmp_path, "qwen2.5", any_size=True)


RELEASED = {
    "qwen2.5": {"model_type": "qwen2_5_vl", "hidden_size": 3584, "num_hidden_layers": 28},
    "internvl2.5": {"model_type": "internvl_chat", "llm_config": {"hidden_size": 4096, "num_hidden_layers": 32}},
    "internvl3": {"model_type": "internvl", "text_config": {"hidden_size": 4096, "num_hidden_layers": 48}},
}
"""As the hub has them, in an original folder and in a native one."""


@pytest.mark.parametrize("kind", ["released", "tiny"])
@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_takes_its_own_checkpoints_alone(checkpoints, tmp_path, agent, kind):
    """Whatever size is let in besides."""
    folder = checkpoints[agent]
    if kind == "released":
        folder = tmp_path
        (folder / "config.json").write_text(json.dumps(RELEASED[agent]))
    check_checkpoint(folder, agent)
    for other in set(AGENTS) - {agent}:
        for any_size in (False, True):
            with pytest.raises(InputError, match=r"a checkpoint of the family|it is InternVL.*, not InternVL.*Correct"):
                check_checkpoint(folder, other, any_size=any_size)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("size", [(2048, 24), (None, None), ([1], "x")])
def test_other_sizes_are_taken_on_demand(tmp_path, agent, size):
    text = {"hidden_size": size[0], "num_hidden_layers": size[1]}
    config = {"model_type": AGENT_RECORDS[agent].family, "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match=r"its language model has hidden size .*; those of .* or take another size .*any_size"
    ):
        check_checkpoint(tmp_path, agent)
    check_checkpoint(tmp_path, agent, any_size=True)
    check_checkpoint(tmp_path)


def test_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"model_type is .bert.; expected qwen2_5_vl or internvl"):
        load_prompt(tmp_path)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("lost", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_file_that_is_missing_is_named(copy_of, agent, lost):
    """Without the second one transformers would take another tokenizer, with other special tokens."""
    folder = copy_of(agent, weights=False)
    (folder / lost).unlink()
    with pytest.raises(InputError, match=rf"{agent}: no {lost} in this folder\. Download the whole folder again\."):
        load_prompt(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "processor_config.json"])
def test_a_cut_off_processor_file_is_refused(copy_of, name):
    folder = copy_of("qwen2.5", weights=False)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"its config, tokenizer or image processor cannot be used .*Download"):
        load_prompt(folder)


def test_a_config_with_values_of_another_type_is_refused(copy_of):
    path = copy_of("internvl3", weights=False) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_token_id": "<IMG_CONTEXT>"}))
    with pytest.raises(InputError, match=r"image_token_id"):
        load_prompt(path.parent)


@pytest.mark.parametrize(
    ("agent", "name", "change"),
    [
        ("qwen2.5", "tokenizer_config.json", lambda c: c.update(tokenizer_class=[[1]])),
        ("qwen2.5", "processor_config.json", lambda c: c["image_processor"]["image_mean"].pop()),
        ("qwen2.5", "processor_config.json", lambda c: c.update(video_processor=-1)),
        ("qwen2.5", "config.json", lambda c: c["vision_config"].update(window_size=1)),
        ("internvl3", "config.json", lambda c: c.update(dtype=[])),
        ("internvl3", "processor_config.json", lambda c: c["image_processor"].update(max_patches="auto")),
        ("internvl3", "processor_config.json", lambda c: c["image_processor"].update(max_patches=10**9)),
    ],
)
def test_whatever_transformers_raises_names_the_folder(copy_of, agent, name, change):
    """AttributeError, RuntimeError, ZeroDivisionError, IndexError, TypeError; and what would never end."""
    path = copy_of(agent, weights=False) / name
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"{agent}: its config, tokenizer or image processor cannot be used"):
        load_prompt(path.parent, "native" if agent == "internvl3" else None)


@pytest.mark.parametrize(
    ("agent", "part", "change"),
    [
        ("internvl3", "vision_config", {"patch_size": [14, 0]}),
        ("internvl3", "text_config", {"pad_token_id": 10**9}),
        ("qwen2.5", "vision_config", {"num_heads": 0}),
    ],
)
def test_a_model_that_cannot_be_built_names_the_folder(copy_of, agent, part, change):
    prompt = load_prompt(copy_of(agent))
    path = prompt.checkpoint / "config.json"
    config = json.loads(path.read_text())
    config[part] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"{agent}: its weights cannot be loaded"):
        load_scorer(prompt, device="cpu", dtype="float32")


@pytest.mark.parametrize("agent", AGENTS)
def test_a_letter_that_is_not_one_token_is_refused(copy_of, agent):
    folder = copy_of(agent, weights=False)
    path = folder / "tokenizer.json"
    # `\n` before the answer and the A itself melt into one token.
    content = json.loads(path.read_text())
    content["added_tokens"].append({"id": 9, "content": "\nA", "special": True, "single_word": False,
                                    "lstrip": False, "rstrip": False, "normalized": False})  # fmt: skip
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"internvl|qwen.*the answer A is .* tokens after the prompt"):
        load_prompt(folder)
