"""Damaged checkpoint and adapter folders: scored as transformers scores them, or refused in a line.

A real tiny InternVL is scored by the program. Where a damaged folder is scored at all, the fast path has to give what
transformers' own forward pass gives; and no folder that answers otherwise may go on with another one's CSV.
"""

import json
import random
import resource
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_rows
from fuzz.faults import check_ended, run
from fuzz.mutations import damage, damage_json, damage_json_text
from fuzz.workplaces import image_bytes, samples
from safetensors.torch import load_file, save_file

from dfbench.predictions.reader import read_detector
from dfbench.scoring import program

Damage = Callable[[random.Random, Path], None]

MEMORY = 6 << 30
"""Bytes of address space that a run may take beyond what the tests' process has already."""


def score(folder: Path, output: str, *words: object, checkpoint: str = "model"):
    """Run evaluate_logit.py in `folder`, on the images that lie there."""
    usual = ("--dataset_path", "img_test.jsonl", "--image_root", ".", "--batch_size", 3, "--device", "cpu", "--quiet")
    usual += ("--workers", 0, "--model_path", checkpoint, "--output_csv", output)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {resource.RLIMIT_AS: taken + MEMORY}
    return run(lambda: program.main("internvl3", "Score images."), (*usual, *words), folder, limits=limits)


def fill(folder: Path, checkpoint: Path) -> None:
    rows = samples(1)
    for seed, sample in enumerate(rows):
        (folder / sample.image).parent.mkdir(parents=True)
        (folder / sample.image).write_bytes(image_bytes(seed))
    save_rows(folder / "img_test.jsonl", rows)
    shutil.copytree(checkpoint, folder / "model")


def logits(path: Path) -> np.ndarray:
    return read_detector(path).frame[["logit_A", "logit_B"]].to_numpy(np.float64)


def fuzz_folder(checkpoint: Path, damage_folder: Damage, rng: random.Random, folder: Path) -> None:
    """One damaged folder by both engines."""
    fill(folder, checkpoint)
    damage_folder(rng, folder / "model")
    words = ["--protocol", rng.choice(("upstream", "native"))]
    if (folder / "model" / "adapter").exists():
        shutil.move(folder / "model" / "adapter", folder / "adapter")
        words += ["--adapter", "adapter"]
    fast = score(folder, "fast.csv", *words)
    check_ended(fast, 0, 1)
    plain = score(folder, "plain.csv", *words, "--engine", "transformers")
    check_ended(plain, 0, 1)
    if fast.status == 0 and plain.status == 0:
        np.testing.assert_allclose(logits(folder / "fast.csv"), logits(folder / "plain.csv"), rtol=2e-3, atol=2e-3)


# ------------------------------------------------------------------------------------------------------ kinds of damage

JSONS = ("config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json")


def damage_a_json(rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice((*JSONS, "config.json", "config.json"))
    path.write_bytes(damage_json_text(rng, path.read_text()))


def damage_a_file(rng: random.Random, folder: Path) -> None:
    """Bytes, or the file as a whole."""
    path = folder / rng.choice((*JSONS, "chat_template.jinja", "model.safetensors"))
    match rng.randrange(4):
        case 0:
            path.unlink()
        case 1:
            path.unlink()
            path.mkdir()
        case 2:
            path.write_bytes(
                rng.choice((b"", b"{}", b"[]", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 99))
            )
        case _:
            path.write_bytes(damage(rng, path.read_bytes()))


def damage_the_template(rng: random.Random, folder: Path) -> None:
    path = folder / "chat_template.jinja"
    texts = ("{% for i in range(10**9) %}x{% endfor %}", "{{ x.y.z }}", "{% if %}", "{{ ''.__class__.__mro__ }}", "")
    texts += ("{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ messages }}", "{% include 'x' %}", "<IMG_CONTEXT>" * 3)
    path.write_text(rng.choice((rng.choice(texts), path.read_text() + rng.choice(texts))))


FLOATS = ("F32", "F16", "BF16", "F64")


def damage_weights(rng: random.Random, folder: Path) -> None:
    """Tensors renamed, lost, of other shapes and types; the header's numbers changed; the file cut off."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    match rng.randrange(7):
        case 0:
            del tensors[name]
        case 1:
            tensors[name + "x"] = tensors.pop(name)
        case 2:
            tensors[name] = torch.cat([tensors[name], tensors[name]])
        case 3:
            tensors[name] = tensors[name].flatten()[:1].clone()
        case 4:
            tensors[name] = tensors[name].to(rng.choice((torch.float16, torch.bfloat16, torch.float64)))
        case 5:
            tensors[name] = torch.full_like(tensors[name], rng.choice((float("nan"), float("inf"), 1e30)))
        case _:
            return path.write_bytes(_damage_header(rng, path.read_bytes()))
    save_file(tensors, path, metadata={"format": "pt"})


def _damage_header(rng: random.Random, data: bytes) -> bytes:
    """safetensors: 8 bytes of length, a JSON header, the data."""
    (length,) = struct.unpack("<Q", data[:8])
    header, tensors = data[8 : 8 + length], data[8 + length :]
    match rng.randrange(4):
        case 0:
            return data[: rng.randrange(len(data))]
        case 1:
            return struct.pack("<Q", rng.choice((0, 1, length - 1, length + 1, 2**40, 2**64 - 1))) + data[8:]
        case 2:
            changed = json.dumps(damage_json(rng, json.loads(header))).encode(errors="surrogatepass")
            return struct.pack("<Q", len(changed)) + changed + tensors
        case _:
            return data[:8] + damage(rng, header)[:length].ljust(length) + tensors


def damage_the_index(rng: random.Random, folder: Path) -> None:
    """Weights in two shards, with a damaged index."""
    path, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    tensors = load_file(path)
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number}-of-2.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    path.unlink()
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    index.write_bytes(damage_json_text(rng, json.dumps(content)))


def damage_an_adapter(rng: random.Random, folder: Path) -> None:
    """A LoRA adapter in `adapter`, to be moved out, with damage to its config or its weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(rng.randrange(1000))
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    target = r".*language_model.*\.(q_proj|o_proj|up_proj)"
    wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=target, init_lora_weights=False))
    wrapped.save_pretrained(folder / "adapter")
    config, weights = folder / "adapter" / "adapter_config.json", folder / "adapter" / "adapter_model.safetensors"
    if rng.random() < 0.6:
        config.write_bytes(damage_json_text(rng, config.read_text()))
    else:
        weights.write_bytes(_damage_header(rng, weights.read_bytes()))


@pytest.mark.parametrize(
    ("damage_folder", "cases"),
    [
        (damage_a_json, 3),
        (damage_a_file, 1),
        (damage_the_template, 1),
        (damage_weights, 2),
        (damage_the_index, 1),
        (damage_an_adapter, 1),
    ],
)
def test_checkpoints(fuzz, checkpoints, damage_folder, cases):
    fuzz(partial(fuzz_folder, checkpoints["internvl3"], damage_folder), cases)


# ------------------------------------------------------------------------------------------------------------ identity


def change(rng: random.Random, folder: Path) -> None:
    """Something that a sound folder may have otherwise: a value of one tensor, two tokens exchanged, a number."""
    match rng.randrange(4):
        case 0:
            tensors = load_file(folder / "model.safetensors")
            values = tensors[rng.choice(sorted(tensors))].view(-1)
            values[rng.randrange(len(values))] += 100
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        case 1:
            path = folder / "tokenizer.json"
            content = json.loads(path.read_text())
            vocabulary = content["model"]["vocab"]
            vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
            path.write_text(json.dumps(content))
        case 2:
            path = folder / "processor_config.json"
            text = path.read_text().replace("0.485", "0.285").replace("0.229", "0.129")
            path.write_text(text)
        case _:
            path = folder / "config.json"
            content = json.loads(path.read_text())
            key, value = rng.choice((("rms_norm_eps", 0.3), ("hidden_act", "relu"), ("intermediate_size", 192)))
            content["text_config"][key] = value
            path.write_text(json.dumps(content))


def fuzz_identity(checkpoint: Path, rng: random.Random, folder: Path) -> None:
    fill(folder, checkpoint)
    check_ended(score(folder, "a.csv"), 0)
    rows = (folder / "a.csv").read_bytes()
    change(rng, folder / "model")
    other = score(folder, "b.csv")
    check_ended(other, 0, 1)
    resumed = score(folder, "a.csv")
    check_ended(resumed, 0, 1)
    assert (folder / "a.csv").read_bytes() == rows, "rows of another model were replaced"
    if other.status == 0 and (folder / "b.csv").read_bytes() != rows:
        assert resumed.status == 1, "took over the rows of a model that answers otherwise"


def test_identity(fuzz, checkpoints):
    fuzz(partial(fuzz_identity, checkpoints["internvl3"]), cases=3)
