"""Converting folders: faulty input, taken output, killed and concurrent runs, the cache beside the original."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfbench.errors import InputError
from dfbench.models.internvl_convert import convert as internvl_checkpoint
from dfbench.models.internvl_convert import weights as internvl_weights
from dfbench.models.internvl_convert.convert import RECORD, convert, is_original, native_checkpoint

INDEX = "model.safetensors.index.json"


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of the first shard, the index following."""
    path, index = folder / "model-00001-of-00002.safetensors", json.loads((folder / INDEX).read_text())
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    rest = {name: file for name, file in index["weight_map"].items() if file != path.name}
    (folder / INDEX).write_text(json.dumps({"weight_map": rest | dict.fromkeys(tensors, path.name)}))


def set_config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", lambda config: config.update(values))


def set_section(section: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", lambda config: config[section].update(values))


def tensor(name: str, value: Tensor) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda tensors: tensors.update({name: value}))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda tensors: tensors.pop(name))


def truncate(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def two_faults(folder: Path) -> None:
    without("vision_model.encoder.layers.0.ls1")(folder)
    tensor("vision_model.encoder.layers.0.ls3", torch.ones(64))(folder)


POSITIONS, EMBEDDING = "vision_model.embeddings.position_embedding", "language_model.model.tok_embeddings.weight"


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a Qwen folder": (
        set_config(model_type="qwen2_5_vl", architectures=["Qwen2_5_VLForConditionalGeneration"]),
        r"config\.json: found model_type 'qwen2_5_vl'.*Qwen2_5_VL.*expected an original InternVL checkpoint",
    ),
    "a native folder": (set_config(model_type="internvl"), "it is native already"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no readable config"),
    "a config without sizes": (set_config(vision_config={}), r"no vision_config\.hidden_size"),
    "pixel shuffle v1": (set_config(ps_version="v1"), "found ps_version 'v1'; expected 'v2'"),
    "another layer selected": (set_config(select_layer=-4), "found select_layer -4"),
    "no thumbnail": (set_config(use_thumbnail=False), "found use_thumbnail False"),
    "tiles of another size": (set_config(force_image_size=224), "found force_image_size 224; expected None or 448"),
    "another language model": (set_section("llm_config", architectures=["Phi3ForCausalLM"]), "language model Phi3"),
    "tied embeddings": (set_section("llm_config", tie_word_embeddings=True), "found tie_word_embeddings True"),
    "rope of another kind": (
        set_section("llm_config", rope_scaling={"type": "yarn", "factor": 2}),
        "rope_scaling.*yarn",
    ),
    "biases that Llama cannot hold": (
        set_section("llm_config", architectures=["InternLM3ForCausalLM"], qkv_bias=True),
        "found qkv_bias True; expected False",
    ),
    "normalised queries with another epsilon": (
        set_section("vision_config", qk_normalization=True, layer_norm_eps=1e-5),
        "found layer_norm_eps 1e-05",
    ),
    "a vocabulary too small": (set_section("llm_config", vocab_size=1620), "ids up to 1620; expected ids below 1620"),
    "no weights": (lambda folder: (folder / INDEX).unlink(), "found neither model.safetensors.index.json nor"),
    "a broken index": (lambda folder: (folder / INDEX).write_text("{}"), "no weight_map"),
    "a missing shard": (
        lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(),
        r"model-00002-of-00002\.safetensors: found no such file",
    ),
    "a shard cut off": (truncate, r"model-00002-of-00002\.safetensors: found a file that cannot be read"),
    "an index of another checkpoint": (
        lambda folder: change_json(folder / INDEX, lambda index: index["weight_map"].pop(POSITIONS)),
        f"unexpected tensors: {POSITIONS}",
    ),
    "unexpected and missing tensors": (
        two_faults,
        r"unexpected tensors: vision_model\.encoder\.layers\.0\.ls3 and missing tensors: .*layer\.0\.lambda_1",
    ),
    "a tensor of another shape": (
        tensor(POSITIONS, torch.ones(1, 257, 64)),
        r"position_embedding.* of shape \(1, 257, 64\); expected shape \(1, 1025, 64\)",
    ),
    "fused queries of another shape": (
        set_section("llm_config", num_key_value_heads=1),
        r"layers\.0\.attention\.wqkv\.weight of shape \(128, 64\); expected shape \(96, 64\)",
    ),
    "a quantised tensor": (tensor(EMBEDDING, torch.ones(1621, 64, dtype=torch.int8)), "of dtype I8"),
    "both names of one tensor": (
        tensor("language_model.model.embed_tokens.weight", torch.ones(1621, 64)),
        "unexpected tensors: language_model.model.(embed_tokens|tok_embeddings).weight",
    ),
    "a tensor wrapped by PEFT and the same one bare": (
        tensor(POSITIONS.replace("_model.", "_model.base_model.model."), torch.ones(1, 1025, 64)),
        "unexpected tensors: vision_model.*embeddings.position_embedding",
    ),
    "LoRA promised and not there": (set_config(use_llm_lora=8), "missing tensors: the LoRA of language_model"),
    "a wrapped weight without its LoRA": (
        lambda folder: rewrite(
            folder,
            lambda tensors: tensors.update(
                {
                    "vision_model.encoder.layers.0.mlp.fc1.base_layer.weight": tensors.pop(
                        "vision_model.encoder.layers.0.mlp.fc1.weight"
                    )
                }
            ),
        ),
        "missing tensors: the LoRA of .*fc1.base_layer.weight",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_checkpoints_get_one_clear_line(original, tmp_path, fault):
    spoil, message = FAULTS[fault]
    spoil(original)
    with pytest.raises(InputError, match=message) as caught:
        convert(original, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [original.name]


def test_outputs_that_are_taken(original, tmp_path):
    with pytest.raises(InputError, match="found the input"):
        convert(original, original / "." / "x" / "..")
    (tmp_path / "link").symlink_to(original)
    with pytest.raises(InputError, match="found the input"):
        convert(original, tmp_path / "link")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(InputError, match="found something there already"):
            convert(original, tmp_path / name)
    assert (tmp_path / "full" / "note.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    convert(original, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()
    convert(original, tmp_path / "new" / "deep" / "out")
    assert sorted(path.name for path in (tmp_path / "new" / "deep").iterdir()) == ["out"]


def die_halfway(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(function: Callable[[], Any]) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join(60)
    return child.exitcode


def test_a_killed_conversion_leaves_nothing_that_looks_finished(original, native, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(internvl_weights, "read_checkpoint", die_halfway)  # the check of the written files
        assert in_child(lambda: convert(original, tmp_path / "out")) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    left = {path.name for path in tmp_path.iterdir()} - {original.name}
    assert left
    assert all(name.startswith(".out.") for name in left)
    convert(original, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {original.name, "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in native.iterdir()}


def test_an_error_on_the_way_leaves_nothing(original, tmp_path, monkeypatch):
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device", "model-00002-of-00002.safetensors")

    monkeypatch.setattr(internvl_checkpoint, "write_weights", full)
    with pytest.raises(OSError, match="No space left"):
        convert(original, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [original.name]


def test_a_disk_without_room_is_said_before_writing(original, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=900_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        InputError, match=rf"{tmp_path}: found 0\.0 GB free; expected 0\.0 GB for the converted weights"
    ):
        convert(original, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [original.name]


def test_files_that_came_out_wrong_are_not_renamed_into_place(original, tmp_path, monkeypatch):
    write = internvl_weights.write_shards

    def lose_one(folder: Path, shards: Any, count: int) -> None:
        write(folder, ({name: t for name, t in shard.items() if "lm_head" not in name} for shard in shards), count)

    monkeypatch.setattr(internvl_weights, "write_shards", lose_one)
    with pytest.raises(InputError, match=r"missing tensors: language_model\.lm_head\.weight"):
        convert(original, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_original_folders_are_told_from_others(original, native, tmp_path):
    assert is_original(original)
    assert is_original(str(original))
    for other in (native, tmp_path, tmp_path / "nowhere", "OpenGVLab/InternVL3-9B-hf", original / "config.json"):
        assert not is_original(other)
        assert native_checkpoint(other) == Path(other)
    (tmp_path / "config.json").write_text("[]")
    assert not is_original(tmp_path)


def test_an_original_folder_is_converted_once_beside_it(original, native, caplog, tensors_of):
    caplog.set_level(logging.INFO)
    found = native_checkpoint(original)
    assert found == original.with_name(original.name + "-hf")
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"{original} is in InternVL's original format"
    ]
    assert tensors_of(found).keys() == tensors_of(native).keys()
    state = {path.name: path.stat().st_mtime_ns for path in found.iterdir()}
    assert native_checkpoint(f"{original}/") == found
    assert {path.name: path.stat().st_mtime_ns for path in found.iterdir()} == state
    assert len(caplog.records) == 1
    assert sorted(path.name for path in original.parent.iterdir()) == [original.name, found.name]


@pytest.mark.parametrize("outdate", ["the original changed", "a shard is gone", "a shard is cut off"])
def test_a_cached_conversion_is_made_anew(original, outdate, tensors_of):
    found = native_checkpoint(original)
    if outdate == "the original changed":
        rewrite(original, lambda tensors: tensors.update({EMBEDDING: tensors[EMBEDDING] * 2}))
    elif outdate == "a shard is gone":
        (found / "model-00001-of-00002.safetensors").unlink()
    else:
        path = found / "model-00002-of-00002.safetensors"
        path.write_bytes(path.read_bytes()[:-7])
    assert native_checkpoint(original) == found
    expected = tensors_of(original)[EMBEDDING]
    assert torch.equal(tensors_of(found)["language_model.model.embed_tokens.weight"], expected)
    assert len(tensors_of(found)) == 67


def test_a_folder_that_is_not_ours_is_left_alone(original, native):
    beside = original.with_name(original.name + "-hf")
    shutil.copytree(native, beside)
    with pytest.raises(InputError, match=rf"{beside}: found something without {RECORD}.*give that folder itself"):
        native_checkpoint(original)
    assert (beside / "config.json").is_file()


def test_a_parent_that_cannot_be_written(original, tmp_path, monkeypatch):
    def refuse(path: Path, *args: Any) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=rf"{tmp_path} cannot be written \(Permission denied\)"):
        native_checkpoint(original)


def test_two_processes_convert_once(original, tmp_path, tensors_of):
    def rank(log: Path) -> None:
        logging.basicConfig(filename=log, level=logging.INFO, force=True)
        native_checkpoint(original)

    logs = [tmp_path / f"rank{number}.log" for number in range(3)]
    children = [multiprocessing.get_context("fork").Process(target=rank, args=(log,)) for log in logs]
    for child in children:
        child.start()
    for child in children:
        child.join(100)
    assert [child.exitcode for child in children] == [0, 0, 0]
    text = "".join(log.read_text() for log in logs)
    assert text.count("converting it, once") == 1
    assert "made anew" not in text
    assert len(tensors_of(original.with_name(original.name + "-hf"))) == 67
