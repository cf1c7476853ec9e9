"""The device of a run and what depends on it, on machines that only claim to have GPUs."""

import os
import subprocess
import sys

import pytest
from torch.cuda._utils import _get_device_index

from dfbench.errors import OptionError
from dfbench.scoring.config import ScoringConfig
from dfbench.scoring.device import Runtime, _see_own_gpu, resolve


@pytest.fixture
def config(tmp_path):
    return lambda **options: ScoringConfig(tmp_path, tmp_path / "rows.json", tmp_path / "a.csv", **options)


@pytest.fixture
def two_gpus(monkeypatch, tmp_path) -> list[int]:
    """A machine that claims two of 80 GB; the numbers of those that were made torch's current one."""
    chosen: list[int] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: chosen.append(_get_device_index(device)))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))

    class Properties:
        total_memory = 80e9

    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: Properties)
    return chosen


@pytest.mark.parametrize(("device", "index"), [(None, 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_is_chosen_by_its_number(config, two_gpus, device, index):
    """torch's own check of the device."""
    runtime = resolve(config(device=device))
    assert two_gpus == [index]
    assert runtime.device == f"cuda:{index}"


def test_what_suits_a_gpu(config, two_gpus):
    runtime = resolve(config())
    workers = min(16, os.cpu_count())
    # Room for 0.6 * (80 - 20) GB / 0.4 MB = 90,000 tokens, of which 32,768 are enough.
    assert runtime == Runtime("cuda:0", "bfloat16", True, batch_size=None, token_budget=32_768, workers=workers)
    assert not resolve(config(eager=True)).compiled
    assert not resolve(config(dtype="float32")).compiled


def test_what_suits_a_cpu(config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve(config()) == Runtime("cpu", "float32", False, batch_size=8, token_budget=1 << 20, workers=0)
    given = {"dtype": "bfloat16", "batch_size": 3, "token_budget": 500, "workers": 2}
    assert resolve(config(**given)) == Runtime("cpu", compiled=False, **given)


def test_what_the_machine_cannot_do(config, two_gpus, monkeypatch):
    with pytest.raises(OptionError, match="cuda:2: this machine has 2 GPUs, counted from 0"):
        resolve(config(device="cuda:2"))
    with pytest.raises(OptionError, match=r"fp8 needs a GPU of compute capability 8\.9"):
        resolve(config(precision="fp8"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(OptionError, match="cuda: this machine has no usable CUDA GPU; --device cpu works"):
        resolve(config(device="cuda"))


@pytest.mark.parametrize(
    ("environment", "visible"),
    [
        ({}, None),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "1"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,GPU-7"}, "GPU-7"),
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "3", "CUDA_VISIBLE_DEVICES": "4,5"}, ""),
    ],
)
def test_each_process_sees_its_own_gpu(monkeypatch, environment, visible):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    _see_own_gpu()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


@pytest.mark.slow
def test_nothing_looks_for_gpus_before_the_run_is_resolved():
    """What CUDA_VISIBLE_DEVICES says counts only until the first look."""
    code = """
import torch
def looked(*_): raise SystemExit("an import looked for GPUs")
torch.cuda.is_available = torch.cuda.device_count = torch._C._cuda_getDeviceCount = looked
import dfbench.scoring.run
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------- open files


@pytest.fixture
def limits(monkeypatch) -> list[tuple[int, int]]:
    """The limits of open files that the machine claims, soft and hard, and those that were set since."""
    found = [(64, 4096)]
    monkeypatch.setattr("resource.getrlimit", lambda _: found[-1])
    monkeypatch.setattr("resource.setrlimit", lambda _, pair: found.append(pair))
    return found


def test_workers_get_the_open_files_that_they_need(config, limits):
    resolve(config(device="cpu"))
    assert limits == [(64, 4096)]
    resolve(config(device="cpu", workers=2))
    assert limits == [(64, 4096), (128, 4096)]
    resolve(config(device="cpu", workers=1))
    assert len(limits) == 2


def test_too_few_open_files_are_told_at_once(config, limits):
    limits[:] = [(24, 64)]
    resolve(config(device="cpu", workers=0))
    with pytest.raises(OptionError, match=r"--workers 2 needs 128 open files, and this process may have 64\. Raise"):
        resolve(config(device="cpu", workers=2))
