"""Which weights are meant when none are named: the newest that training or merging left; what tells them apart."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dfbench.errors import InputError
from dfbench.models.checkpoints import (
    check_adapter,
    check_weights,
    find_weights,
    identity,
    newest_adapter,
    read_base_model,
    read_config,
    read_tensors,
    refuse_remote_code,
    weight_files,
    weights_identity,
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
        ("adapter_model.safetensors", "mine: no adapter_model.safetensors. Copy or download"),
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


# ------------------------------------------------------------------------------------------------------------ identity


def test_the_identity_follows_the_content_not_the_place(copy_of, checkpoints):
    copy = copy_of("internvl3")
    assert identity(copy) == identity(checkpoints["internvl3"])
    assert identity(copy) != identity(checkpoints["internvl2.5"])


@pytest.mark.parametrize("agent", ["qwen2.5", "internvl3"])
def test_the_identity_sees_a_change_in_any_one_tensor(copy_of, agent):
    """However small a part of the file it is."""
    folder = copy_of(agent)
    path, known = folder / "model.safetensors", {identity(folder)}
    tensors = read_tensors(path)
    with path.open("r+b") as file:
        for name, tensor in tensors.items():
            file.seek(tensor.start)
            before = file.read(tensor.size)
            file.seek(tensor.start)
            file.write(bytes(255 - byte for byte in before[:4096]) + before[4096:])
            file.flush()
            assert identity(folder) not in known, name
            known.add(identity(folder))
            file.seek(tensor.start)
            file.write(before)
    assert len(known) == len(tensors) + 1


def test_the_identity_sees_another_name_type_and_shape(copy_of, change_weights):
    known = set()
    for change in (
        lambda w: w,
        lambda w: {name.replace("layers.1", "layers.2"): value for name, value in w.items()},
        lambda w: {name: value.view(torch.int32) for name, value in w.items()},
        lambda w: {name: value.reshape(1, *value.shape) for name, value in w.items()},
    ):
        folder = copy_of("internvl2.5")
        change_weights(folder, change)
        known.add(weights_identity(folder))
        shutil.rmtree(folder)
    assert len(known) == 4


DECIDING = ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja")


@pytest.mark.parametrize("name", DECIDING)
def test_the_identity_sees_whatever_decides_an_answer(copy_of, name):
    """One letter in the middle of the file, as by a tokenizer in which A and B have changed places."""
    folder = copy_of("internvl3")
    before = identity(folder), weights_identity(folder)
    content = (folder / name).read_bytes()
    middle = len(content) // 2
    (folder / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert identity(folder) != before[0]
    assert weights_identity(folder) == before[1]


def test_the_identity_sees_shards_in_folders_of_their_own(copy_of):
    folder = copy_of("internvl3")
    path = folder / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    (folder / "shards").mkdir()
    first, last = dict(list(weights.items())[:-1]), dict(list(weights.items())[-1:])
    for name, part in (("shards/1.safetensors", first), ("shards/2.safetensors", last)):
        save_file(part, folder / name, metadata={"format": "pt"})
    index = {"weight_map": {key: f"shards/{1 if key in first else 2}.safetensors" for key in weights}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    before = identity(folder)
    save_file({key: value + 1 for key, value in last.items()}, folder / "shards/2.safetensors")
    assert identity(folder) != before
    (folder / "shards/2.safetensors").unlink()
    with pytest.raises(InputError, match=r"shards/2\.safetensors: no such file, and model.* names it"):
        identity(folder)


def test_what_no_loader_reads_is_no_part_of_it(copy_of):
    """How the folder came about, and results that were written there."""
    folder = copy_of("internvl3")
    before = identity(folder)
    for name in ("args.json", "conversion.json", "dfbench_merge.json", "README.md", "scores.json", "scores.csv"):
        (folder / name).write_text("{}")
    assert identity(folder) == before


def test_an_adapters_identity_is_of_its_config_and_weights(checkpoints, make_adapter, tmp_path):
    adapter = make_adapter(checkpoints["internvl3"], tmp_path / "adapter")
    before = identity(adapter)
    (adapter / "trainer_state.json").write_text("{}")
    assert identity(shutil.copytree(adapter, tmp_path / "copy")) == before
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 8}))
    assert identity(adapter) != before
    assert identity(make_adapter(checkpoints["internvl3"], tmp_path / "other", scale=0.2)) != before


def test_sixteen_gigabytes_take_no_time(tmp_path):
    """700 tensors in a file of zeros that has no blocks on the disk; 50 ms where nothing else runs."""
    size = 23 << 20
    header = {
        f"{i}": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [i * size, (i + 1) * size]} for i in range(700)
    }
    data = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + 700 * size)
    began = time.monotonic()
    identity(tmp_path)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\2",
        b"\xff" * 20,
        b"\2\0\0\0\0\0\0\0[]",
        b'\x08\0\0\0\0\0\0\0{"a": 1}',
        b"\x09\0\0\0\0\0\0\0{not json",
        b'\x37\0\0\0\0\0\0\0{"a": {"dtype": "F32", "shape": [], "data_offsets": [0,4]}}',
        b'\x38\0\0\0\0\0\0\0{"a": {"dtype": "F32", "shape": [], "data_offsets": [-9,0]}}',
    ],
)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors: not a complete safetensors file .*Download it again"):
        identity(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no model.safetensors. Copy or download the whole folder"),
        ({"pytorch_model.bin": ""}, "pytorch_model.bin is a pickle, which can run code. Save it as safetensors"),
        ({"model.safetensors.index.json": "[]"}, "not the index of a checkpoint's files"),
        ({"model.safetensors.index.json": '{"weight_map": {"a": 1}}'}, "weight_map does not name a file"),
        ({"model.safetensors": "", "config.json": "{}", "adapter_config.json": ""}, "both a model and an adapter"),
    ],
)
def test_weights_that_are_not_loaded(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        weight_files(tmp_path)


def test_a_config_that_names_other_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"transformers_weights": "x.safetensors"}')
    with pytest.raises(InputError, match=r"config\.json: transformers_weights names other weights"):
        read_config(tmp_path)


@pytest.mark.parametrize(("part", "key"), [("text_config", "num_hidden_layers"), ("vision_config", "depth")])
def test_more_layers_than_weights_are_refused(copy_of, part, key):
    """A loader would build them one by one."""
    path = copy_of("qwen2.5") / "config.json"
    check_weights(path.parent)
    config = json.loads(path.read_text())
    config[part][key] = 10**9
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"config\.json: {key} is 1000000000, and there are \d+ weights in all"):
        check_weights(path.parent)


# ------------------------------------------------------------------------------------------- an adapter and its model


@pytest.fixture
def adapter(checkpoints, make_adapter, tmp_path) -> Path:
    return make_adapter(checkpoints["internvl3"], tmp_path / "adapter")


def name_base(adapter: Path, base: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base)}))


def test_an_adapter_goes_with_the_model_that_it_was_trained_on(adapter, copy_of, caplog):
    """Wherever that lies now, and whatever was done to its chat template."""
    check_adapter(Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]), adapter)
    copy = copy_of("internvl3")
    (copy / "chat_template.jinja").write_text("another")
    check_adapter(copy, adapter)
    assert not caplog.records


def test_an_adapter_of_another_model_of_the_same_shapes_is_refused(adapter, copy_of, change_weights):
    other = copy_of("internvl3")
    change_weights(other, lambda weights: {name: value * 1.001 for name, value in weights.items()})
    with pytest.raises(InputError, match=r"adapter: it was trained on .*internvl3, whose weights are not"):
        check_adapter(other, adapter)


def test_a_base_model_that_is_not_there_goes_by_its_name(adapter, checkpoints, caplog):
    name_base(adapter, "/elsewhere/internvl3")
    check_adapter(checkpoints["internvl3"], adapter)
    assert not caplog.records
    name_base(adapter, "OpenGVLab/InternVL3-9B")
    check_adapter(checkpoints["internvl3"], adapter)
    (line,) = caplog.messages
    assert line.startswith(f"{adapter}: trained on OpenGVLab/InternVL3-9B, which is not here to compare, and put on ")


def test_an_adapter_that_was_merged_already_is_refused(adapter, checkpoints, copy_of):
    merged = copy_of("internvl3")
    record = {"base": str(checkpoints["internvl3"]), "base_identity": identity(checkpoints["internvl3"])}
    record |= {"adapter": "/moved", "adapter_identity": identity(adapter)}
    (merged / "dfbench_merge.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=rf"internvl3: {adapter} was merged into it already\. Leave --adapter out\."):
        check_adapter(merged, adapter)
    (merged / "dfbench_merge.json").write_text(json.dumps({**record, "adapter_identity": "v2:other"}))
    check_adapter(merged, adapter)
    (merged / "dfbench_merge.json").write_text("{")
    with pytest.raises(InputError, match=r"dfbench_merge\.json holds broken JSON .*merge the adapter again"):
        check_adapter(merged, adapter)
