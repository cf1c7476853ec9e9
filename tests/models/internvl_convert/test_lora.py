"""Upstream's LoRA, merged on conversion: its logits, and files that do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dfbench.errors import InputError
from dfbench.models.internvl_convert.convert import convert
from dfbench.paths import REPOSITORY

ORACLE = REPOSITORY / "tests" / "fixtures" / "internvl_oracle"
EXPECTED = json.loads((ORACLE / "expected.json").read_text())
ROWS = EXPECTED["images"]
LETTERS = [EXPECTED["token_ids"][letter] for letter in "AB"]


@pytest.fixture(scope="module")
def merged_model(merged, load_native) -> torch.nn.Module:
    return load_native(merged)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["image"])
def test_logits_with_lora_are_upstreams(merged_model, row, last_logits, upstream_pixels):
    logits = last_logits(merged_model, row["input_ids"], upstream_pixels(row["image"]))[LETTERS]
    np.testing.assert_allclose(logits.numpy(), [row["lora_logit_A"], row["lora_logit_B"]], rtol=0, atol=2e-5)


def test_a_folder_saved_by_upstreams_trainer_is_the_merged_checkpoint(trained, merged, tmp_path, tensors_of):
    convert(trained, tmp_path / "out")
    found, expected = tensors_of(tmp_path / "out"), tensors_of(merged)
    assert found.keys() == expected.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in expected.items()
    )


def test_merged_weights_stay_in_float32_and_the_others_as_they_were(native, merged, tensors_of):
    before, after = tensors_of(native), tensors_of(merged)
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    for name, tensor in after.items():
        touched = name.endswith("proj.weight") or name.endswith(("fc1.weight", "fc2.weight", "projection_layer.weight"))
        assert tensor.dtype == (torch.float32 if touched else torch.bfloat16), name
        assert torch.equal(tensor.bfloat16(), before[name]) != touched or name.endswith("projection_layer.weight"), name


def test_alpha_scales_the_update(merged, native, tmp_path, tensors_of):
    convert(ORACLE / "model", tmp_path / "out", lora=ORACLE / "lora_weights.pth", lora_alpha=32)
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    base, once, twice = (tensors_of(folder)[name].float() for folder in (native, merged, tmp_path / "out"))
    torch.testing.assert_close(twice - base, 2 * (once - base), rtol=0, atol=1e-6)


def lora_file(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    tensors = torch.load(ORACLE / "lora_weights.pth", weights_only=True)
    change(tensors)
    torch.save(tensors, path)
    return path


WO_A = "language_model.base_model.model.model.layers.0.attention.wo.lora_A.default.weight"
WO_B = WO_A.replace("lora_A", "lora_B")


LORA_FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "another model's": (
        lambda tensors: tensors.update(
            {name.replace("layers.0", "layers.7"): tensors.pop(name) for name in (WO_A, WO_B)}
        ),
        r"LoRA of language_model\.model\.layers\.7\.attention\.wo\.weight: the checkpoint has no such weight",
    ),
    "one half missing": (
        lambda tensors: tensors.pop(WO_A),
        r"LoRA of language_model\.model\.layers\.0\.attention\.wo\.weight: only LoRA B is there",
    ),
    "another width": (
        lambda tensors: tensors.update({WO_A: torch.ones(8, 96)}),
        r"has shape \(64, 96\); expected \(64, 64\)",
    ),
    "more than LoRA": (
        lambda tensors: tensors.update({"mlp1.0.weight": torch.ones(4)}),
        r"mlp1\.0\.weight in it; expected LoRA tensors and no others",
    ),
    "empty": (dict.clear, "nothing in it; expected LoRA tensors"),
}


@pytest.mark.parametrize("fault", LORA_FAULTS)
def test_faulty_lora_files_get_one_clear_line(tmp_path, fault):
    change, message = LORA_FAULTS[fault]
    path = lora_file(tmp_path / "lora.pth", change)
    with pytest.raises(InputError, match=message):
        convert(ORACLE / "model", tmp_path / "out", lora=path)
    assert [path.name for path in tmp_path.iterdir()] == ["lora.pth"]


def test_a_lora_of_another_rank_names_both_ranks(tmp_path):
    with pytest.raises(InputError, match=r"weights\.pth: LoRA of .* has rank 8; expected 16\. Give the --lora-rank"):
        convert(ORACLE / "model", tmp_path / "out", lora=ORACLE / "lora_weights.pth", lora_rank=16, lora_alpha=32)


def test_a_lora_file_that_is_none(tmp_path):
    path = tmp_path / "lora.pth"
    with pytest.raises(InputError, match=r"lora\.pth: no such file"):
        convert(ORACLE / "model", tmp_path / "out", lora=path)
    for content in (b"", b"not a zip file", (ORACLE / "lora_weights.pth").read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"no readable lora_weights\.pth"):
            convert(ORACLE / "model", tmp_path / "out", lora=path)


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"x": Trap()}, tmp_path / "lora.pth")
    with pytest.raises(InputError, match=r"no readable lora_weights\.pth"):
        convert(ORACLE / "model", tmp_path / "out", lora=tmp_path / "lora.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_saved_folder_takes_no_second_lora(trained, tmp_path):
    with pytest.raises(InputError, match="it has LoRA weights inside"):
        convert(trained, tmp_path / "out", lora=ORACLE / "lora_weights.pth")
