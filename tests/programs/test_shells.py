"""The nine shells of the model folders: what they start Python with."""

import os
import subprocess
from pathlib import Path

import pytest
from builders import flag

from dfbench.models import qwen2_5_vl
from dfbench.models.registry import AGENTS, FAMILIES
from dfbench.paths import REPOSITORY
from dfbench.training.train import family_flags, parse

ROOT = REPOSITORY

TRAIN = tuple(f"{agent.name}/{agent.train}" for agent in AGENTS.values())
EVALUATE = tuple(f"{agent.name}/{agent.evaluate}" for agent in AGENTS.values())
MERGE = tuple(f"{agent.name}/{agent.merge}" for agent in AGENTS.values())
SCRIPTS = ("scripts/demo.sh", "scripts/score.sh", "scripts/setup.sh", "scripts/test.sh", "scripts/train_lora.sh")


@pytest.fixture
def dry(tmp_path):
    """A function: a shell, its arguments, variables -> the words that Python would have been started with, and the
    environment. The shell is run from its model folder, as the README says."""
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done\nprintf "\\0"\nenv -0\n')
    stub.chmod(0o755)

    def run(shell: str, *arguments: str, **variables: str) -> tuple[list[str], dict[str, str]]:
        folder, _, rest = shell.partition("/")
        env = {"PATH": os.environ["PATH"], "PYTHON": str(stub), **variables}
        done = subprocess.run(["sh", rest, *arguments], cwd=ROOT / folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        words, _, environment = done.stdout.partition("\0\0")
        return words.split("\0"), dict(pair.split("=", 1) for pair in environment.split("\0") if pair)

    return run


@pytest.mark.parametrize("shell", TRAIN + EVALUATE + MERGE + SCRIPTS)
def test_shells_are_posix(shell):
    assert (ROOT / shell).read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", ROOT / shell], check=True)


COMMON = {
    "tuner_type": "lora",
    "target_modules": "all-linear",
    "lora_rank": "8",
    "freeze_aligner": "true",
    "torch_dtype": "bfloat16",
    "weight_decay": "0.01",
    "strict": "true",
    "check_model": "false",
}
INTERNVL = COMMON | {
    "model_type": "internvl",
    "template": "dfbench_internvl",
    "lora_alpha": "16",
    "freeze_vit": "false",
    "num_train_epochs": "5",
    "learning_rate": "4e-5",
    "lr_scheduler_type": "cosine",
    "warmup_ratio": "0.03",
    "per_device_train_batch_size": "4",
    "max_length": "4096",
    "gradient_checkpointing": "true",
    "deepspeed": "zero1",
}
SETTINGS = {
    "qwen2.5/train.sh": COMMON
    | {
        "model_type": "qwen2_5_vl",
        "template": "qwen2_5_vl",
        "system": "You are a helpful assistant.",
        "lora_alpha": "32",
        "freeze_vit": "true",
        "num_train_epochs": "1",
        "learning_rate": "1e-4",
        "warmup_ratio": "0.05",
        "per_device_train_batch_size": "2",
        "max_length": "2048",
    },
    "internvl2.5/shell/train_deepfake.sh": INTERNVL,
    "internvl3/shell/train_deepfake.sh": INTERNVL,
}
"""The settings of the paper's code."""


@pytest.mark.parametrize("shell", TRAIN)
def test_training_has_the_papers_settings(dry, shell):
    words, _ = dry(shell)
    assert words[:3] == ["-m", "dfbench.training.train", "sft"]
    words = [*family_flags(None, FAMILIES[flag(words, "model_type")]), *words]  # what training adds by itself
    assert {name: flag(words, name) for name in SETTINGS[shell]} == SETTINGS[shell]
    assert Path(flag(words, "external_plugins")) == ROOT / "dfbench" / "training" / "swift_plugin.py"
    names = [word for word in words if word.startswith("--")]
    assert len(names) == len(set(names)), "a flag stands twice"


def existing(folder: Path, path: str) -> Path:
    """The place that a path on the command line means, seen from the folder."""
    return Path(os.path.normpath(folder / path))


@pytest.mark.parametrize(
    ("shell", "model", "annotations"),
    [
        ("qwen2.5/train.sh", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5/datasets/img_train_shuffled.json"),
        (
            "internvl2.5/shell/train_deepfake.sh",
            "internvl2.5/OpenGVLab/InternVL2_5-8B",
            "internvl2.5/data/deepfake.json",
        ),
        ("internvl3/shell/train_deepfake.sh", "internvl3/OpenGVLab/InternVL3-9B", "internvl3/data/deepfake.json"),
    ],
)
def test_training_looks_where_the_downloads_go(dry, shell, model, annotations):
    folder = ROOT / shell.split("/")[0]
    words, _ = dry(shell)
    if not (ROOT / "internvl25").exists():  # where the released README downloads InternVL2.5 to
        assert existing(folder, flag(words, "model")) == ROOT / model
    assert existing(folder, flag(words, "train_annotations")) == ROOT / annotations
    assert parse(words[3:]).image_root == ROOT
    assert existing(folder, flag(words, "output_dir")) == folder / "output_ckpt"


def test_training_and_scoring_of_qwen_have_the_same_bounds_on_pixels(dry):
    _, environment = dry("qwen2.5/train.sh")
    assert int(environment["MIN_PIXELS"]) == qwen2_5_vl.MIN_PIXELS
    assert int(environment["MAX_PIXELS"]) == qwen2_5_vl.MAX_PIXELS
    assert flag(dry("qwen2.5/train.sh")[0], "system") == qwen2_5_vl.SYSTEM


VARIABLES = {
    "MODEL": "model",
    "TRAIN": "train_annotations",
    "VAL": "val_annotations",
    "VAL_FRACTION": "val_fraction",
    "IMAGE_ROOT": "image_root",
    "OUTPUT_DIR": "output_dir",
    "LORA_RANK": "lora_rank",
    "LORA_ALPHA": "lora_alpha",
    "EPOCHS": "num_train_epochs",
    "BATCH_SIZE": "per_device_train_batch_size",
    "LEARNING_RATE": "learning_rate",
    "WARMUP_RATIO": "warmup_ratio",
    "WEIGHT_DECAY": "weight_decay",
    "MAX_LENGTH": "max_length",
    "GRADIENT_CHECKPOINTING": "gradient_checkpointing",
    "GRADIENT_ACCUMULATION_STEPS": "gradient_accumulation_steps",
    "ATTN_IMPL": "attn_impl",
    "SEED": "seed",
    "SAVE_STEPS": "save_steps",
    "REPORT_TO": "report_to",
}


@pytest.mark.parametrize("shell", TRAIN)
def test_variables_override_the_settings(dry, shell):
    values = {variable: f"a value of {variable}" for variable in VARIABLES}
    words, _ = dry(shell, **values)
    assert {variable: flag(words, name) for variable, name in VARIABLES.items()} == values


@pytest.mark.parametrize("shell", TRAIN + EVALUATE + MERGE)
def test_further_flags_come_last_and_keep_their_words(dry, shell):
    words, _ = dry(shell, "--max_steps", "10", "--note", "two words")
    assert words[-4:] == ["--max_steps", "10", "--note", "two words"]


@pytest.mark.parametrize("shell", EVALUATE)
def test_evaluation_shells(dry, shell):
    folder = ROOT / shell.split("/")[0]
    words, _ = dry(shell)
    assert existing(folder, words[0]) == folder / "evaluate_logit.py"
    assert words[1:] == [], "evaluate_logit.py has the defaults"
    names = {
        "MODEL": "model_path",
        "ADAPTER": "adapter",
        "OUTPUT_DIR": "train_dir",
        "TEST": "dataset_path",
        "IMAGE_ROOT": "image_root",
        "OUTPUT_CSV": "output_csv",
        "BATCH_SIZE": "batch_size",
    }
    values = {variable: f"a value of {variable}" for variable in names}
    words, _ = dry(shell, **values)
    assert {variable: flag(words, name) for variable, name in names.items()} == values


@pytest.mark.parametrize("shell", MERGE)
def test_merging_shells(dry, shell):
    folder = ROOT / shell.split("/")[0]
    words, _ = dry(shell)
    assert words[:4] == ["-m", "dfbench.training.train", "export", "--trained"]
    assert existing(folder, words[4]) == folder / "output_ckpt"
    words, _ = dry(shell, OUTPUT_DIR="o", ADAPTERS="a b", MERGED="m")
    assert (flag(words, "trained"), flag(words, "adapters"), flag(words, "output_dir")) == ("o", "a b", "m")


@pytest.mark.parametrize("shell", TRAIN + EVALUATE + MERGE)
def test_a_shell_fails_when_python_does(tmp_path, shell):
    folder, _, rest = shell.partition("/")
    env = {"PATH": os.environ["PATH"], "PYTHON": "false"}
    assert subprocess.run(["sh", rest], cwd=ROOT / folder, env=env).returncode == 1
