"""What a run may be asked to do: made by hand, from the command line, and checked before anything heavy is imported."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dfbench.errors import InputError, OptionError
from dfbench.models.registry import AGENTS, Agent
from dfbench.paths import REPOSITORY, RESULTS
from dfbench.scoring.config import ScoringConfig, check_inputs
from dfbench.scoring.program import parse


@pytest.fixture
def config(photo_set, checkpoints, tmp_path):
    return ScoringConfig(
        checkpoints["internvl3"], photo_set.messages, tmp_path / "agent.csv", photo_set.root, agent="internvl3"
    )


def test_a_config_made_by_hand_takes_text_for_paths():
    config = ScoringConfig(model="m", annotations="rows.json", output_csv="a.csv", image_root=".", adapter="x")
    assert config == ScoringConfig(Path("m"), Path("rows.json"), Path("a.csv"), Path("."), Path("x"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; choose from bfloat16, float16, float32"),
        ({"engine": "vllm"}, "engine is 'vllm'; choose from auto, packed, transformers"),
        ({"device": "cuda:x"}, "--device cuda:x is not cuda, cuda:N or cpu"),
        ({"precision": "fp8", "adapter": "x"}, "fp8 takes merged weights. Merge the adapter"),
        ({"precision": "fp8", "dtype": "float32"}, "bfloat16 or float16, not --dtype float32"),
        ({"precision": "fp8", "engine": "transformers"}, "fp8 needs --engine packed"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(OptionError, match=message):
        ScoringConfig("m", "rows.json", "a.csv", **options)


def test_parsing_gives_the_defaults_of_the_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["evaluate_logit.py", "--model_path", str(tmp_path)])
    annotations = REPOSITORY / "internvl3/data/img_test.jsonl"
    expected = ScoringConfig(
        tmp_path, annotations, RESULTS / "internvl3.csv", REPOSITORY, agent="internvl3", protocol="upstream",
        only_undecided=[],
    )  # fmt: skip
    assert parse("internvl3", None) == expected


def test_a_fourth_agent_is_one_record(monkeypatch, evaluate, fake_model, photo_set, tmp_path):
    record = Agent("mine", "Mine", "internvl", "me/mine", "train.json", "test.json", "python evaluate_logit.py")
    monkeypatch.setitem(AGENTS, "mine", record)
    paths = ["--model_path", tmp_path, "--image_root", photo_set.root, "--output_csv", tmp_path / "mine.csv"]
    assert "mine/test.json: no such annotation file" in evaluate(*paths, agent="mine").err
    assert evaluate(*paths, "--dataset_path", photo_set.messages, agent="mine").status == 0


# ------------------------------------------------------------------------------------------------------ quick answers


def test_a_good_config_passes(config):
    check_inputs(config)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("model", "nowhere: no such folder"),
        ("annotations", "nowhere: no such annotation file"),
        ("image_root", "nowhere: no such folder"),
        ("adapter", "nowhere"),
    ],
)
def test_a_path_that_leads_nowhere(config, tmp_path, field, message):
    with pytest.raises(InputError, match=message):
        check_inputs(replace(config, **{field: tmp_path / "nowhere"}))


def test_a_model_of_another_family(config, checkpoints):
    check_inputs(replace(config, model=checkpoints["qwen2.5"], agent=None))
    with pytest.raises(InputError, match=r"a checkpoint of the family internvl, not qwen2_5_vl\. Correct --model_path"):
        check_inputs(replace(config, agent="qwen2.5"))
    with pytest.raises(InputError, match=r"it is InternVL2\.5-8B .*, not InternVL3-9B"):
        check_inputs(replace(config, model=checkpoints["internvl2.5"]))


def test_an_original_internvl_is_of_the_family(config, tmp_path):
    text = {"hidden_size": 2048, "num_hidden_layers": 24}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat", "llm_config": text}))
    with pytest.raises(InputError, match="--any_size"):
        check_inputs(replace(config, model=tmp_path))
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        check_inputs(replace(config, model=tmp_path, any_size=True))
    (tmp_path / "model.safetensors").touch()
    check_inputs(replace(config, model=tmp_path, any_size=True))


HEAVY = ("torch", "transformers", "numpy", "pandas", "PIL")


@pytest.mark.parametrize("module", ["dfbench", "dfbench.cli", "dfbench.scoring.config", "dfbench.scoring.program"])
def test_quick_modules_import_nothing_heavy(module):
    code = f"import sys, {module}; print(*sys.modules.keys() & set({HEAVY}))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environment())
    assert done.stdout.split() == [], done.stderr


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(REPOSITORY)}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [None, "--model_path", "--dataset_path", "--image_root", "--output_csv", "--adapter"])
def test_help_and_wrong_paths_import_neither_torch_nor_transformers(checkpoints, photo_set, tmp_path, wrong):
    right = {
        "--model_path": checkpoints["internvl3"], "--dataset_path": photo_set.messages,
        "--image_root": photo_set.root, "--output_csv": tmp_path / "a.csv",
    }  # fmt: skip
    arguments = right | {wrong: "/dev/null/nowhere"} if wrong else {"--help": ""}
    words = [str(word) for pair in arguments.items() for word in pair if word]
    code = "import runpy, sys\ndel sys.argv[0]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "finally: print('HEAVY', *sys.modules.keys() & {'torch', 'transformers', 'pandas', 'PIL'}, file=sys.stderr)"
    program = REPOSITORY / "internvl3" / "evaluate_logit.py"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, program, *words], capture_output=True, text=True)
    assert time.monotonic() - began < 5  # 1 s on a machine that has nothing else to do
    assert done.returncode == (1 if wrong else 0), done.stderr
    assert done.stderr.splitlines()[-1] == "HEAVY", done.stderr
    assert (len(done.stderr.splitlines()) == 2) == bool(wrong)
