"""Which weights are meant when none are named: the newest that training or merging left."""

import json
import os
from pathlib import Path

import pytest

from dfbench.errors import InputError
from dfbench.weights import find_weights, newest_adapter, read_base_model


@pytest.fixture
def trained(tmp_path) -> Path:
    folder = tmp_path / "output_ckpt"
    folder.mkdir()
    return folder


def make_adapter(folder: Path, minutes: int, base: str = "/weights/base") -> Path:
    """An adapter folder, written so many minutes after a fixed time."""
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    os.utime(folder, (1_700_000_000 + 60 * minutes,) * 2)
    return folder


def make_merged(folder: Path, minutes: int) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    os.utime(folder, (1_700_000_000 + 60 * minutes,) * 2)
    return folder


def test_what_is_named_is_taken(trained, tmp_path):
    make_merged(trained / "checkpoint-1_merged", 0)
    assert find_weights(tmp_path / "m", None, trained) == (tmp_path / "m", None)
    assert find_weights(tmp_path / "m", tmp_path / "a", trained) == (tmp_path / "m", tmp_path / "a")


def test_an_adapter_alone_brings_its_base_model(trained):
    adapter = make_adapter(trained / "mine", 0)
    make_merged(trained / "checkpoint-1_merged", 5)
    assert find_weights(None, adapter, trained) == (Path("/weights/base"), adapter)


def test_the_newest_merged_model_is_taken(trained):
    # By time, not by name: checkpoint-9 sorts after checkpoint-10.
    make_adapter(trained / "checkpoint-9", 0)
    make_merged(trained / "checkpoint-9_merged", 1)
    make_adapter(trained / "checkpoint-10", 2)
    newest = make_merged(trained / "checkpoint-10_merged", 3)
    assert find_weights(None, None, trained) == (newest, None)


def test_an_adapter_that_was_trained_after_merging_wins(trained):
    make_merged(trained / "checkpoint-10_merged", 3)
    make_adapter(trained / "checkpoint-10", 2)
    newest = make_adapter(trained / "checkpoint-20", 4)
    assert find_weights(None, None, trained) == (Path("/weights/base"), newest)


def test_the_newest_adapter(trained):
    make_adapter(trained / "checkpoint-1000", 0)
    newest = make_adapter(trained / "checkpoint-500", 1)
    (trained / "data").mkdir()
    (trained / "logging.jsonl").touch()
    assert newest_adapter(trained) == newest


@pytest.mark.parametrize("kind", ["no folder", "empty folder", "half-written merged model"])
def test_nothing_was_trained(trained, kind):
    if kind == "no folder":
        trained.rmdir()
    elif kind != "empty folder":
        (trained / "checkpoint-1_merged").mkdir()
    with pytest.raises(InputError, match=r"output_ckpt: found no merged model and no adapter; .*train first"):
        find_weights(None, None, trained)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"r": 8}', '{"peft_type": "LORA", "r": 8}'])
def test_an_adapter_that_names_no_base_model_is_refused(trained, content):
    adapter = trained / "checkpoint-1"
    adapter.mkdir()
    if content is not None:
        (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(InputError) as caught:
        read_base_model(adapter)
    assert caught.value.where == str(adapter)
