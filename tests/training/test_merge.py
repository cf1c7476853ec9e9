"""Before and after `swift export`: which adapter and base, what ms-swift gets to see, where the merged model goes."""

import json
import os
from pathlib import Path

import pytest
from builders import flag
from safetensors.torch import load_file, save_file

from dfbench.models.checkpoints import find_weights, identity
from dfbench.training import merge


@pytest.fixture
def trained(tmp_path, make_adapter) -> Path:
    for number in (1, 2):
        adapter = make_adapter(tmp_path / "trained" / f"checkpoint-{number}")
        os.utime(adapter, (1_700_000_000 + number,) * 2)
    return tmp_path / "trained"


def test_merging_takes_the_newest_adapter_and_its_base_model(run, swift, trained, checkpoints):
    assert run("export", "--trained", trained)[0] == 0
    words = swift[0]
    assert words[0] == "export"
    assert flag(words, "model") == str(checkpoints["internvl3"])
    assert (flag(words, "model_type"), flag(words, "template")) == ("internvl", "dfbench_internvl")
    assert flag(words, "merge_lora") == "true"
    assert flag(words, "torch_dtype") == "float32"
    record = json.loads((trained / "merged" / "checkpoint-2" / "dfbench_merge.json").read_text())
    assert record == {
        "base": str(checkpoints["internvl3"]),
        "base_identity": identity(checkpoints["internvl3"]),
        "adapter": str(trained / "checkpoint-2"),
        "adapter_identity": identity(trained / "checkpoint-2"),
    }


def test_merging_takes_what_is_named(run, swift, trained, tmp_path, copy_of):
    base = copy_of("internvl3")
    named = ("--adapters", trained / "checkpoint-1", "--output_dir", tmp_path / "my_merged", "--model", base)
    assert run("export", "--trained", trained, *named, "--max_shard_size", "5GB")[0] == 0
    assert flag(swift[0], "model") == str(base)
    assert flag(swift[0], "max_shard_size") == "5GB"
    record = json.loads((tmp_path / "my_merged" / "dfbench_merge.json").read_text())
    assert record["adapter"] == str(trained / "checkpoint-1")


def test_an_adapter_is_not_merged_twice(run, swift, trained, tmp_path, copy_of):
    base, adapter = copy_of("internvl3"), trained / "checkpoint-1"
    (base / "dfbench_merge.json").write_text(json.dumps({"adapter_identity": identity(adapter)}))
    status, lines = run("export", "--trained", trained, "--adapters", adapter, "--model", base)
    assert (status, len(lines), swift) == (1, 1, [])
    assert f"{base}: {adapter} was merged into it already" in lines[0]


def test_the_merged_model_is_found_and_no_trainer_counts_it(run, swift, trained):
    assert run("export", "--trained", trained)[0] == 0
    assert find_weights(None, None, trained) == (trained / "merged" / "checkpoint-2", None)
    assert [path.name for path in sorted(trained.iterdir())] == ["checkpoint-1", "checkpoint-2", "merged"]
    assert [path.name for path in (trained / "merged").iterdir()] == ["checkpoint-2"]


def test_ms_swift_sees_nothing_of_an_adapter_but_config_and_weights(run, swift, trained, monkeypatch):
    adapter = trained / "checkpoint-2"
    (adapter / "args.json").write_text('{"external_plugins": ["evil.py"]}')
    (adapter / "more").mkdir()
    (adapter / "more" / "adapter_config.json").write_text("{}")
    seen = {}

    def look(command: str, flags: list[str]) -> None:
        folder = Path(flag(flags, "adapters"))
        seen.update({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")})
        swift_stand_in(command, flags)

    swift_stand_in = merge.run_swift
    monkeypatch.setattr(merge, "run_swift", look)
    assert run("export", "--trained", trained)[0] == 0
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert seen == {name: (adapter / name).read_bytes() for name in names}


@pytest.mark.parametrize("whose", ["base", "adapter"])
def test_merging_refuses_what_brings_code(run, swift, trained, copy_of, whose):
    base = copy_of("internvl3")
    path = {"base": base / "config.json", "adapter": trained / "checkpoint-2" / "adapter_config.json"}[whose]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoConfig": "evil.Config"}}))
    status, lines = run("export", "--trained", trained, "--model", base)
    assert (status, len(lines), swift) == (1, 1, [])
    assert f"{path}: auto_map makes training and merging run the code" in lines[0]


def test_a_merged_model_is_not_overwritten(run, swift, trained):
    merged = trained / "merged" / "checkpoint-2"
    merged.mkdir(parents=True)
    assert run("export", "--trained", trained)[0] == 0
    status, lines = run("export", "--trained", trained)
    assert (status, len(lines), len(swift)) == (1, 1, 1)
    assert f"{merged} has files in it already" in lines[0]


def test_a_second_merge_into_a_folder_is_refused(run, swift, trained, monkeypatch):
    seen = []
    monkeypatch.setattr(merge, "run_swift", lambda *_: seen.append(run("export", "--trained", trained)))
    merge.merge(["--trained", str(trained)])
    merged = trained / "merged" / "checkpoint-2"
    assert seen == [
        (1, [f"error: Another merge is writing to {merged}. Wait for it, or name another --output_dir."]),
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_merge_that_is_cut_off_leaves_nothing(run, swift, trained, monkeypatch, error):
    def cut_off(command: str, flags: list[str]) -> None:
        swift_stand_in(command, flags)
        raise error

    swift_stand_in = merge.run_swift
    monkeypatch.setattr(merge, "run_swift", cut_off)
    with pytest.raises(error):
        merge.merge(["--trained", str(trained)])
    assert list((trained / "merged").iterdir()) == []
    (trained / "merged" / ".checkpoint-2.tmp" / "model").mkdir(parents=True)  # after kill -9
    (trained / "merged" / ".checkpoint-2.tmp" / "model" / "config.json").write_text("{}")
    assert find_weights(None, trained / "checkpoint-2", trained)[1] == trained / "checkpoint-2"
    monkeypatch.setattr(merge, "run_swift", swift_stand_in)
    assert run("export", "--trained", trained)[0] == 0
    assert [path.name for path in (trained / "merged").iterdir()] == ["checkpoint-2"]


def test_an_adapter_of_another_model_is_not_merged(run, swift, trained, checkpoints):
    """ms-swift would leave out what finds no place, and say that it merged."""
    path = trained / "checkpoint-2" / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name.replace(".layers.0.", ".layers.9."): tensor for name, tensor in weights.items()}, path)
    for model in ((), ("--model", checkpoints["qwen2.5"])):
        status, lines = run("export", "--trained", trained, *model)
        assert (status, len(lines), swift) == (1, 1, [])
        assert f"{trained / 'checkpoint-2'}: " in lines[0]
        assert "the adapter that was trained on it" in lines[0] or "the model that it was trained on" in lines[0]


def test_merging_before_training(run, swift, tmp_path):
    status, lines = run("export", "--trained", tmp_path)
    assert (status, len(lines), swift) == (1, 1, [])
    assert lines[0].startswith(f"error: {tmp_path}: ")
    assert "no merged model and no adapter" in lines[0]


def test_merging_a_folder_that_holds_no_adapter(run, swift, tmp_path):
    status, lines = run("export", "--trained", tmp_path, "--adapters", tmp_path)
    assert (status, len(lines), swift) == (1, 1, [])
    assert "no adapter_config.json" in lines[0]


def test_merging_with_a_base_model_that_is_gone(run, swift, trained):
    path = trained / "checkpoint-2" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "/gone"}))
    status, lines = run("export", "--trained", trained)
    assert (status, len(lines), swift) == (1, 1, [])
    assert "/gone: no such folder" in lines[0]


@pytest.mark.slow
def test_an_adapter_that_names_a_plug_in_is_merged_without_it(run, checkpoints, tmp_path, no_gpu, make_adapter):
    """ms-swift imports what an adapter's args.json names as external_plugins: here a file that leaves a mark."""
    pytest.importorskip("swift", reason="merging needs ms-swift")
    adapter, mark = make_adapter(tmp_path / "trained" / "checkpoint-2"), tmp_path / "mark"
    hostile = tmp_path / "hostile.py"
    hostile.write_text(f"open({str(mark)!r}, 'w').close()\n")
    plugins = {"external_plugins": [str(hostile)], "custom_register_path": [str(hostile)], "model": str(adapter)}
    (adapter / "args.json").write_text(json.dumps(plugins | {"load_args": True, "swift_version": "4.0.0"}))
    typed = ("--load_args", "true")
    assert run("export", "--trained", tmp_path / "trained", *typed)[0] == 0
    assert not mark.exists()
    merged = tmp_path / "trained" / "merged" / "checkpoint-2"
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoints["internvl3"], merged))
    assert before.keys() == after.keys()
    changed = {name.split(".")[-2] for name in before if not before[name].equal(after[name])}
    assert changed == {"q_proj"}
    assert not (merged / "args.json").exists()
