"""The demo's images as people download DFBench: one zip archive a source, and annotations in both released shapes.

The archives differ inside as the released ones do: flat, under one or two folders, with the same file names in several
folders, with junk between the images. Every image is an uncompressed PNG of the same side, so its size in pixels, its
format and its size in bytes are the same for real and fake ones.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dfbench.data.annotations import QUESTION
from dfbench.data.sources import DEMO, FAKE, REAL, Source
from dfbench.demo.generators import Generators, reproducible
from dfbench.demo.photos import Regions, blur, jpeg, load_regions, noise
from dfbench.io import write_bytes

NUM_IMAGES = {"train": {REAL: 144, FAKE: 180}, "test": {REAL: 40, FAKE: 50}}
"""Images of each source, by split and label: five real and four fake sources give 720 + 720 and 200 + 200 images.

The real data set is 8.6 % real; here both labels are equally frequent.
"""

JPEG_QUALITIES, BLUR_SIGMAS, NOISE_SIGMAS = (20, 40, 60), (0.7, 1.2, 1.8), (6.0, 12.0, 20.0)
"""Strengths of the distortions; standard deviations in pixels (blur) and in gray levels, 0 to 255 (noise)."""

_JUNK = {
    "demo_photos": {"captions.txt": b"image,caption\n", "Images/._000001.png": b"\0\5\x16\7"},
    "demo_blur": {"demo_blur/info.txt": b"000001.png\n", "__MACOSX/demo_blur/._000001.png": b"\0\5\x16\7"},
    "demo_inpainted": {"demo_inpainted/.DS_Store": b"\0\0\0\1Bud1"},
}
"""Members that are no images, of the kinds that the released archives hold."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time stamp of every archive member, so that the same images give the same bytes."""


def make_demo(folder: Path, seed: int) -> bool:
    """Write the archives and annotations into `folder`; whether there was anything to do.

    The same seed gives the same bytes on one machine. What is there already, made by this code with this seed, stays.
    """
    stamp = folder / "made_with.json"
    content = json.dumps({"seed": seed, "code": _code_hash(), "torch": torch.__version__}, indent=2).encode()
    if all((folder / name).is_file() for name in [stamp.name, *_file_names()]) and stamp.read_bytes() == content:
        return False
    stamp.unlink(missing_ok=True)
    _write(folder, make_images(seed), seed)
    write_bytes(stamp, content)
    return True


def _file_names() -> list[str]:
    archives = [source.archive for source in DEMO]
    stems = ("img_train", "img_train_shuffled", "img_test")
    return archives + [f"{stem}{suffix}" for stem in stems for suffix in (".json", ".jsonl")]


def _code_hash() -> str:
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(code).hexdigest()


# ------------------------------------------------------------------------------------------------------------- images


def count_images(split: str) -> int:
    """Number of images of a split, train or test, over all sources."""
    return sum(NUM_IMAGES[split][source.label] for source in DEMO)


def make_images(seed: int) -> dict[str, dict[str, np.ndarray]]:
    """{split: {source: uint8 (count, 112, 112, 3)}} for the splits train and test and every source of DEMO.

    The same seed gives the same pixels on one machine. Takes some twenty seconds, most of them training the generators.
    """
    train, test = load_regions()
    with reproducible(seed):
        generators = Generators(train, seed)
        return {
            split: _make_split(regions, generators, split, np.random.default_rng([seed, number]))
            for number, (split, regions) in enumerate([("train", train), ("test", test)], start=1)
        }


def _make_split(
    regions: Regions, generators: Generators, split: str, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    num_real, num_fake = NUM_IMAGES[split][REAL], NUM_IMAGES[split][FAKE]

    def real() -> np.ndarray:
        return regions.crops(num_real, rng)

    def other() -> np.ndarray:
        return regions.crops(num_fake, rng)

    to_edit = other()
    images = {
        "demo_photos": real(),
        "demo_originals": to_edit[:num_real],
        "demo_jpeg": _each(jpeg, real(), JPEG_QUALITIES),
        "demo_blur": _each(blur, real(), BLUR_SIGMAS),
        "demo_noise": _each(lambda image, sigma: noise(image, sigma, rng), real(), NOISE_SIGMAS),
        "demo_inpainted": generators.inpaint(to_edit, other(), rng),
        "demo_autoencoder": generators.autoencode(other()),
        "demo_upsampler": generators.upsample(other()),
        "demo_sampler": generators.sample(other(), other(), rng),
    }
    assert set(images) == {source.name for source in DEMO}
    return images


def _each(distort: Callable[[np.ndarray, Any], np.ndarray], images: np.ndarray, strengths: Sequence[Any]) -> np.ndarray:
    """Images distorted one by one, the strengths taking turns."""
    return np.stack([distort(image, strengths[i % len(strengths)]) for i, image in enumerate(images)])


# ------------------------------------------------------------------------------------------------------------- writing


def _write(folder: Path, images: dict[str, dict[str, np.ndarray]], seed: int) -> None:
    """Number the images of each source through both splits, and write its archive and the rows of both."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[tuple[str, str]]] = {split: [] for split in images}  # key and label
    for source in DEMO:
        members = dict(_JUNK.get(source.name, {}))
        pixels = [(split, image) for split in images for image in images[split][source.name]]
        for number, (split, image) in enumerate(pixels):
            member, name = _paths(source, number)
            members[member] = png_file(image)
            rows[split].append((f"DFBench/{source.name}/{name}", source.label))
        write_bytes(folder / source.archive, _zip_file(members))
    shuffled = [rows["train"][i] for i in np.random.default_rng([seed, 3]).permutation(len(rows["train"]))]
    for stem, chosen in (("img_train", rows["train"]), ("img_train_shuffled", shuffled), ("img_test", rows["test"])):
        write_bytes(folder / f"{stem}.json", json.dumps([_messages(*row) for row in chosen]).encode())
        lines = (json.dumps(_conversation(*row)) + "\n" for row in chosen)
        write_bytes(folder / f"{stem}.jsonl", "".join(lines).encode())


def _paths(source: Source, number: int) -> tuple[str, str]:
    """(path in the archive, path in the annotations below the source's folder) of a source's image, by its number."""
    name = f"{number + 1:06}.png"
    if source.name == "demo_photos":  # as Flick8k
        return f"Images/{name}", name
    if source.name == "demo_jpeg":  # as LIVE: a folder for each strength, the same names in all of them
        group, strength = divmod(number, len(JPEG_QUALITIES))
        path = f"quality_{JPEG_QUALITIES[strength]}/img{group + 1}.png"
        return f"demo_jpeg/{path}", path
    if source.name in ("demo_autoencoder", "demo_upsampler", "demo_sampler"):  # as every generator: flat
        return name, name
    return f"{source.name}/{name}", name


def png_file(image: np.ndarray) -> bytes:
    """A uint8 (height, width, 3) image as a PNG file without compression: its size depends on the shape alone."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _zip_file(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in members.items():
            archive.writestr(zipfile.ZipInfo(path, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _messages(key: str, label: str) -> dict[str, Any]:
    """A row as in the released .json files: `images` is one string."""
    turns = [("user", f"<image>{QUESTION}"), ("assistant", label)]
    return {"messages": [{"role": role, "content": content} for role, content in turns], "images": key}


def _conversation(key: str, label: str) -> dict[str, Any]:
    """A row as in the released .jsonl files: the answer is a list of one message."""
    turns = [("human", f"<image>\n{QUESTION}"), ("gpt", [{"role": "assistant", "content": label}])]
    return {"image": key, "conversations": [{"from": who, "value": value} for who, value in turns]}
