"""Which weights are meant when none are named: the newest that training or merging left; what tells them apart."""

import json
import os
from pathlib import Path

import pytest

from dfbench.errors import InputError
from dfbench.models.checkpoints import (
    find_weights,
    fingerprint,
    newest_adapter,
    read_base_model,
    refuse_remote_code,
)


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
    (folder / "adapter_model.safetensors").touch()
    os.utime(folder, (1_700_000_000 + 60 * minutes,) * 2)
    return folder


def make_merged(folder: Path, minutes: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    os.utime(folder, (1_700_000_000 + 60 * minutes,) * 2)
    return folder


# --------------------------------------------------------------------------------------------------------- remote code


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "adapter_config.json", "sub/any.json"])
@pytest.mark.parametrize(
    "content",
    [
        '{"auto_map": {"AutoConfig": "evil.Config"}}',
        '{"auto\\u005fmap": {"AutoConfig": "evil.Config"}}',
        '{"\\u0061\\u0075to_map": ["evil.Tokenizer", null]}',
        '{"a": [1, {"b": {"auto_map": "evil.Processor"}}]}',
        '{"auto_map": {"AutoConfig": "evil.Config"}, "auto_map": null}',
        '{"a": {"auto_map": {}}, "a": 1}',
        '[{"auto_map": {}}]',
        '\ufeff{"auto_map": {}}',
    ],
)
def test_a_folder_whose_json_names_code_is_refused(tmp_path, file, content):
    (tmp_path / "sub").mkdir()
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=f"{file}: auto_map makes training and merging run the code that it names"):
        refuse_remote_code(tmp_path)


def test_json_in_another_encoding_hides_nothing(tmp_path):
    (tmp_path / "config.json").write_text('{"auto_map": {}}', encoding="utf-16")
    with pytest.raises(InputError, match="auto_map"):
        refuse_remote_code(tmp_path)


@pytest.mark.parametrize("file", ["modeling_x.py", "custom_generate/generate.py", "x.pyc", "x.so"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_with_modules_in_it_is_refused(tmp_path, file, linked):
    elsewhere = tmp_path / "elsewhere" / file
    elsewhere.parent.mkdir(parents=True)
    elsewhere.touch()
    folder = tmp_path / "model"
    folder.mkdir()
    top = file.partition("/")[0]
    place = elsewhere.parents[len(Path(file).parts) - 1] / top
    if linked:
        (folder / top).symlink_to(place)
    else:
        place.rename(folder / top)
    with pytest.raises(InputError, match=f"{file}: code that training and merging would run"):
        refuse_remote_code(folder)


@pytest.mark.parametrize("content", ["{", "", "[" * 100_000])
def test_json_that_cannot_be_looked_through_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json holds broken JSON"):
        refuse_remote_code(tmp_path)


def test_what_runs_no_code_is_let_pass(checkpoints, tmp_path):
    for checkpoint in checkpoints.values():
        refuse_remote_code(checkpoint)
    (tmp_path / "vocab.json").write_text('{"auto_map": 17, "auto_mapping": {"a": "b"}}')
    (tmp_path / "config.json").write_text('{"auto_map": null, "note": "auto_map"}')
    (tmp_path / "zero_to_fp32.py").touch()  # DeepSpeed's
    os.mkfifo(tmp_path / "pipe.json")
    refuse_remote_code(tmp_path)
    refuse_remote_code(tmp_path / "gone")


# -------------------------------------------------------------------------------------------------------- find_weights


def test_what_is_named_is_taken(trained, tmp_path):
    make_merged(trained / "checkpoint-1_merged", 0)
    assert find_weights(tmp_path / "m", None, trained) == (tmp_path / "m", None)
    adapter = make_adapter(tmp_path / "a", 0)
    assert find_weights(tmp_path / "m", adapter, trained) == (tmp_path / "m", adapter)


def test_an_adapter_alone_brings_its_base_model(trained):
    adapter = make_adapter(trained / "mine", 0)
    make_merged(trained / "checkpoint-1_merged", 5)
    assert find_weights(None, adapter, trained) == (Path("/weights/base"), adapter)


@pytest.mark.parametrize("places", ["merged/checkpoint-{}", "checkpoint-{}_merged"])
def test_the_newest_merged_model_is_taken(trained, places):
    # By time, not by name: checkpoint-9 sorts after checkpoint-10.
    make_adapter(trained / "checkpoint-9", 0)
    make_merged(trained / places.format(9), 1)
    make_adapter(trained / "checkpoint-10", 2)
    newest = make_merged(trained / places.format(10), 3)
    assert find_weights(None, None, trained) == (newest, None)


def test_merged_models_are_found_where_either_version_put_them(trained):
    make_merged(trained / "checkpoint-9_merged", 1)
    new = make_merged(trained / "merged" / "checkpoint-9", 2)
    assert find_weights(None, None, trained) == (new, None)
    old = make_merged(trained / "mine_merged", 3)
    assert find_weights(None, None, trained) == (old, None)


def test_an_adapter_that_was_trained_after_merging_wins(trained):
    make_merged(trained / "merged" / "checkpoint-10", 3)
    make_adapter(trained / "checkpoint-10", 2)
    newest = make_adapter(trained / "checkpoint-20", 4)
    assert find_weights(None, None, trained) == (Path("/weights/base"), newest)


def test_the_newest_adapter(trained):
    make_adapter(trained / "checkpoint-1000", 0)
    newest = make_adapter(trained / "checkpoint-500", 1)
    (trained / "data").mkdir()
    (trained / "logging.jsonl").touch()
    assert newest_adapter(trained) == newest


def test_a_link_to_an_adapter_is_no_candidate(trained):
    adapter = make_adapter(trained / "checkpoint-10", 1)
    (trained / "a-link").symlink_to("checkpoint-10")
    (trained / "last-checkpoint").symlink_to("checkpoint-10")
    assert newest_adapter(trained) == adapter
    # Whatever a link leads to, it does not make the merged model outdated either.
    (trained / "linked").symlink_to(make_adapter(trained.parent / "elsewhere", 9))
    merged = make_merged(trained / "checkpoint-10_merged", 2)
    assert find_weights(None, None, trained) == (merged, None)


@pytest.mark.parametrize("kind", ["no folder", "empty folder", "half-written merged model"])
def test_nothing_was_trained(trained, kind):
    if kind == "no folder":
        trained.rmdir()
    elif kind != "empty folder":
        (trained / "checkpoint-1_merged").mkdir()
    with pytest.raises(InputError, match=r"output_ckpt: no merged model and no adapter in this folder\. Train first"):
        find_weights(None, None, trained)


@pytest.mark.parametrize("model", [None, Path("/weights/base")])
@pytest.mark.parametrize(
    ("missing", "found"),
    [
        ("folder", "mine: no such folder. Name the checkpoint-N folder"),
        ("adapter_config.json", "mine: no adapter_config.json in this folder. Name the checkpoint-N folder"),
        ("adapter_model.safetensors", "mine: no adapter_model.safetensors. Copy the whole folder"),
    ],
)
def test_a_named_adapter_that_is_incomplete_is_refused_at_once(trained, model, missing, found):
    adapter = trained / "mine"
    if missing != "folder":
        make_adapter(adapter, 0)
        (adapter / missing).unlink()
    with pytest.raises(InputError, match=found):
        find_weights(model, adapter, trained)


def test_pickled_weights_are_refused(trained):
    adapter = make_adapter(trained / "mine", 0)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"mine: adapter_model\.bin is a pickle.* Save it as safetensors"):
        find_weights(Path("/weights/base"), adapter, trained)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "broken JSON"),
        ("{", "broken JSON"),
        ("[]", r"\[\]"),
        ('{"peft_type": "PREFIX_TUNING", "base_model_name_or_path": "x"}', "peft_type is 'PREFIX_TUNING'"),
        ('{"r": 8}', "peft_type is None, not 'LORA'"),
        ('{"peft_type": "LORA", "r": 8}', "base_model_name_or_path is None"),
        ('{"peft_type": "LORA", "base_model_name_or_path": 8}', "base_model_name_or_path is 8"),
    ],
)
def test_an_adapter_config_that_lacks_something_is_refused(trained, content, found):
    adapter = make_adapter(trained / "checkpoint-1", 0)
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(InputError, match=f"checkpoint-1/adapter_config.json.*{found}"):
        read_base_model(adapter)


def test_with_a_base_model_named_the_adapter_need_not_name_one(trained):
    adapter = make_adapter(trained / "mine", 0)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": null}')
    assert find_weights(Path("/weights/base"), adapter, trained) == (Path("/weights/base"), adapter)


# --------------------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_follows_the_content_not_the_place(copy_of, checkpoints):
    copy = copy_of("internvl3")
    assert fingerprint(copy) == fingerprint(checkpoints["internvl3"])
    assert fingerprint(copy) != fingerprint(checkpoints["internvl2.5"])


def test_the_fingerprint_sees_changed_weights(copy_of, change_weights):
    copy = copy_of("internvl3")
    before = fingerprint(copy)
    change_weights(copy, lambda weights: {name: value * 1.001 for name, value in weights.items()})
    assert fingerprint(copy) != before
