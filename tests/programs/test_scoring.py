"""evaluate_logit.py and the training shells as users run them: real processes, tiny checkpoints, kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from builders import run_here
from safetensors import safe_open

from dfbench.data.annotations import Sample
from dfbench.paths import REPOSITORY
from dfbench.predictions.reader import read_detector
from dfbench.predictions.schema import read_info

pytestmark = pytest.mark.slow

ROOT = REPOSITORY
# On the CPU, one thread: many processes share the machine.
ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(agent: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / agent / "evaluate_logit.py"), *map(str, arguments)]


def score(agent: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(agent, *arguments), cwd=ROOT / agent, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def logits_of(csv_path: Path) -> np.ndarray:
    return read_detector(csv_path).frame[["logit_A", "logit_B"]].to_numpy()


def test_a_run_says_where_its_csv_is_and_nothing_else(checkpoints, photo_set, tmp_path):
    output = tmp_path / "scores.csv"
    done = score(
        "qwen2.5", "--model_path", checkpoints["qwen2.5"], "--dataset_path", photo_set.conversations, "--image_root",
        photo_set.root, "--output_csv", output,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(logits_of(output)) == 12
    assert str(output) in done.stdout


@pytest.mark.parametrize("agent", ["internvl2.5", "internvl3"])
def test_the_other_model_folders_score_as_well(agent, checkpoints, photo_set, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(ROOT / agent)
    done = run_here(
        f"{agent}/evaluate_logit.py", "--model_path", checkpoints[agent], "--dataset_path", photo_set.conversations,
        "--image_root", photo_set.root, "--output_csv", tmp_path / "scores.csv",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert len(logits_of(tmp_path / "scores.csv")) == 12
    assert f"results/{agent}.csv" in run_here(f"{agent}/evaluate_logit.py", "--help").stdout


# --------------------------------------------------------------------------------------------------------------- kills


@pytest.fixture(scope="module")
def many(tmp_path_factory, draw, write_rows) -> list[object]:
    """Arguments of a run on 250 images, five of them missing and five cut off."""
    root, samples = tmp_path_factory.mktemp("many"), []
    for i in range(250):
        source, label = ("Flick8k", "A") if i % 2 else ("Kolors", "B")
        samples.append(Sample(f"DFBench/{source}/{i}.jpg", label, "<image>Real?"))
        path = root / samples[-1].image
        path.parent.mkdir(parents=True, exist_ok=True)
        if i % 50 == 7:
            continue
        draw(seed=i % 10, width=60 + i % 30, height=50 + i % 20).save(path)
        if i % 50 == 23:
            path.write_bytes(path.read_bytes()[:-200])
    return ["--dataset_path", write_rows(root / "rows.json", samples), "--image_root", root, "--batch_size", 4]


@pytest.fixture
def whole(evaluate, checkpoints, many, tmp_path) -> dict[str, bytes]:
    """The files of a run that nothing disturbed."""
    output = tmp_path / "whole" / "scores.csv"
    done = evaluate("--model_path", checkpoints["internvl3"], *many, "--output_csv", output)
    assert ": 5 images without an answer" in done.err
    return files_of(output)


def files_of(output: Path) -> dict[str, bytes]:
    suffixes = ("csv", "errors.csv", "warnings.csv")
    return {suffix: output.with_name(f"{output.stem}.{suffix}").read_bytes() for suffix in suffixes}


def kill_at(words: list[str], output: Path, rows: int) -> bool:
    """Start a run and kill it when its CSV has more than so many lines; False where it was done before."""
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (output.exists() and output.read_bytes().count(b"\n") > rows):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_a_killed_run_goes_on_to_the_same_files(evaluate, checkpoints, many, whole, tmp_path):
    """Of a real process with a worker; tests/predictions/test_writer.py cuts the files at every place."""
    output = tmp_path / "scores.csv"
    arguments = ["--model_path", checkpoints["internvl3"], *many, "--workers", 1, "--output_csv", output]
    assert kill_at(command("internvl3", *arguments), output, rows=100), "the run was over before it was killed"
    assert output.read_bytes() != whole["csv"]
    done = evaluate(*arguments)
    assert done.status == 1
    assert ": 5 images without an answer" in done.err
    assert files_of(output) == whole
    assert read_info(output)["finished"] is True


def test_two_processes_write_what_one_does(checkpoints, many, whole, tmp_path):
    output = tmp_path / "scores.csv"
    words = command("internvl3", "--model_path", checkpoints["internvl3"], *many, "--output_csv", output)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([words[0], *launch, *words[1:]], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert ": 5 images without an answer" in done.stderr, done.stderr
    assert files_of(output) == whole
    assert read_info(output)["processes"] == 2
    assert not list(tmp_path.glob("scores.part*"))


# ---------------------------------------------------------------------------------------------------------------- LoRA


def shell(path: str, *arguments: str, **variables: object) -> subprocess.CompletedProcess:
    folder, _, rest = path.partition("/")
    env = ENVIRONMENT | {"PYTHON": sys.executable} | {name: str(value) for name, value in variables.items()}
    done = subprocess.run(
        ["sh", rest, *arguments], cwd=ROOT / folder, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def test_train_merge_and_score(evaluate, checkpoints, photo_set, tmp_path):
    pytest.importorskip("swift", reason="training needs ms-swift")
    base, trained = checkpoints["internvl3"], tmp_path / "output_ckpt"
    common = {"OUTPUT_DIR": trained, "MODELSCOPE_CACHE": tmp_path / "cache"}
    shell(
        "internvl3/shell/train_deepfake.sh", "--max_steps", "2", MODEL=base, TRAIN=photo_set.conversations,
        IMAGE_ROOT=photo_set.root, LEARNING_RATE="1e-2", WORKERS=0, VAL_FRACTION=0.3, LOGGING_STEPS=1, **common,
    )  # fmt: skip
    adapter = trained / "checkpoint-2"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert any("language_model" in name for name in names)
    assert any("vision_tower" in name for name in names)
    assert not any("projector" in name or "lm_head" in name for name in names)
    lines = [json.loads(line) for line in (trained / "logging.jsonl").read_text().splitlines()]
    assert any("loss" in line for line in lines)
    assert any("eval_loss" in line for line in lines)

    merged = shell("internvl3/shell/merge_lora.sh", **common)
    assert str(trained / "merged" / "checkpoint-2") in merged.stdout

    shell(
        "internvl3/shell/eval_deepfake.sh", MODEL=trained / "merged" / "checkpoint-2", TEST=photo_set.messages,
        IMAGE_ROOT=photo_set.root, OUTPUT_CSV=tmp_path / "merged.csv",
    )  # fmt: skip
    usual = ("--model_path", base, "--dataset_path", photo_set.messages, "--image_root", photo_set.root)
    assert evaluate(*usual, "--output_csv", tmp_path / "base.csv").status == 0
    assert evaluate(*usual, "--adapter", adapter, "--output_csv", tmp_path / "unmerged.csv").status == 0
    unmerged = logits_of(tmp_path / "unmerged.csv")
    np.testing.assert_allclose(logits_of(tmp_path / "merged.csv"), unmerged, rtol=0, atol=1e-4)
    assert np.abs(unmerged - logits_of(tmp_path / "base.csv")).max() > 1e-2, "training changed nothing"
