"""Shared by the tests of InternVL's conversion: upstream's tiny checkpoint, converted once; ways to read and run it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from dfbench.models.internvl_convert.convert import convert
from dfbench.paths import REPOSITORY

ORACLE = REPOSITORY / "tests" / "fixtures" / "internvl_oracle"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def original(tmp_path) -> Path:
    """A copy of the original checkpoint that a test may spoil."""
    return Path(shutil.copytree(ORACLE / "model", tmp_path / "InternVL2_5-tiny"))


@pytest.fixture(scope="session")
def native(tmp_path_factory) -> Path:
    """The original checkpoint, converted; read-only."""
    folder = tmp_path_factory.mktemp("native") / "model"
    convert(ORACLE / "model", folder)
    return folder


@pytest.fixture(scope="session")
def merged(tmp_path_factory) -> Path:
    """The original checkpoint, converted with its LoRA; read-only."""
    folder = tmp_path_factory.mktemp("merged") / "model"
    convert(ORACLE / "model", folder, lora=ORACLE / "lora_weights.pth")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder that upstream's trainer saves, put together from the model and the LoRA file; read-only."""
    folder = tmp_path_factory.mktemp("trained") / "folder"
    shutil.copytree(ORACLE / "model", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for path in (ORACLE / "trained").iterdir():
        shutil.copyfile(path, folder / path.name)
    known = read_tensors(ORACLE / "model") | torch.load(ORACLE / "lora_weights.pth", weights_only=True)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    plain = {name: re.sub(r"(?<=_model)\.base_model\.model|\.base_layer", "", name) for name in weight_map}
    write_tensors(folder, {name: known[name if name in known else plain[name]] for name in weight_map}, weight_map)
    return folder


def read_tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def write_tensors(folder: Path, tensors: dict[str, Tensor], weight_map: dict[str, str]) -> None:
    for file in set(weight_map.values()):
        save_file({name: tensor for name, tensor in tensors.items() if weight_map[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture(scope="session")
def tensors_of() -> Callable[[Path], dict[str, Tensor]]:
    """All tensors of a folder's safetensors files, by name."""
    return read_tensors


@pytest.fixture(scope="session")
def load_native() -> Callable[[Path], torch.nn.Module]:
    """The native model in float32; every tensor of it must come from the folder, and none there go unused."""

    def load(folder: Path) -> torch.nn.Module:
        model, report = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not any(report.values()), report
        return model.eval()

    return load


@pytest.fixture(scope="session")
def last_logits() -> Callable[[torch.nn.Module, list[int], Tensor], Tensor]:
    """Logits after the last of `input_ids`, over the whole vocabulary."""

    @torch.no_grad()
    def logits(model: torch.nn.Module, input_ids: list[int], pixels: Tensor) -> Tensor:
        return model(input_ids=torch.tensor([input_ids]), pixel_values=pixels, logits_to_keep=1).logits[0, -1]

    return logits


@pytest.fixture(scope="session")
def upstream_pixels() -> Callable[[str], Tensor]:
    """Upstream's pixels of one of its images: RGB, 1024x1024, 2x2 tiles of 448 and a thumbnail, normalised, float32."""

    def pixels(name: str) -> Tensor:
        bicubic = Image.Resampling.BICUBIC
        square = Image.open(ORACLE / "images" / name).convert("RGB").resize((1024, 1024), bicubic)
        grid = square.resize((896, 896), bicubic)
        tiles = [grid.crop((left, top, left + 448, top + 448)) for top in (0, 448) for left in (0, 448)]
        values = np.stack([np.asarray(tile) for tile in [*tiles, square.resize((448, 448), bicubic)]])
        unit = torch.from_numpy(values).permute(0, 3, 1, 2).float().div(255)
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        return ((unit - mean[:, None, None]) / deviation[:, None, None]).contiguous()

    return pixels
