"""Damaged image files and things that are no files: no hang, no traceback, the same answer twice, or an error row."""

import ctypes
import io
import os
import platform
import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_image
from fuzz.faults import check_ended
from fuzz.mutations import damage
from fuzz.workplaces import features, image_bytes
from PIL import Image
from PIL import features as pillow

from dfbench.data.images import ImageError, load_image, read_header
from dfbench.features.compute import format_row, measure_image

MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "RGBA", "P", "LA", "I;16", "1"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("RGB", "L", "P", "1"),
    "GIF": ("P", "L"),
    "PPM": ("RGB", "L", "1"),
    "JPEG2000": ("RGB", "L"),
    "AVIF": ("RGB",),
}

OPTIONS = {
    "JPEG": ({}, {"progressive": True}, {"quality": 100, "subsampling": 0}, {"restart_marker_rows": 1}),
    "PNG": ({}, {"compress_level": 0}),
    "WEBP": ({}, {"lossless": True}),
    "BMP": ({},),
    "GIF": ({}, {"save_all": True, "append_images": [Image.new("P", (9, 9), 3)]}),
    "PPM": ({},),
    "JPEG2000": ({}, {"irreversible": True}),
    "AVIF": ({},),
}

_BOMBS = (60_000, 65_535, 2**31 - 1, 2**32 - 1, 0)


def encoded(rng: random.Random, kind: str) -> bytes:
    image = draw_image(rng.randrange(1000), rng.choice((1, 7, 16, 33, 70)), rng.choice((1, 8, 17, 70)))
    mode = rng.choice(MODES[kind])
    image = draw_image(1, *image.size, mode) if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **rng.choice(OPTIONS[kind]))
    return buffer.getvalue()


def damaged(rng: random.Random, kind: str) -> bytes:
    """An image with damage after its magic number, in its size, or in its chunks."""
    data = encoded(rng, kind)
    match rng.randrange(4):
        case 0:
            return damage(rng, data)
        case 1:  # keep what names the format, so that its decoder gets the rest
            kept = rng.choice((4, 12, 20, 40, min(len(data), 200)))
            return data[:kept] + damage(rng, data[kept:])
        case 2 if kind == "PNG":
            return _png_of_another_size(rng, data)
        case 2 if kind in ("BMP", "GIF"):
            at, layout = (18, "<ii") if kind == "BMP" else (6, "<HH")
            most = 2**31 - 1 if kind == "BMP" else 65_535
            size = (min(rng.choice(_BOMBS), most), rng.choice((1, 60_000 % (most + 1))))
            return data[:at] + struct.pack(layout, *size) + data[at + struct.calcsize(layout) :]
        case _:
            return data[: len(data) // 2] + encoded(rng, rng.choice(list(MODES)))


def _png_of_another_size(rng: random.Random, data: bytes) -> bytes:
    """With a right checksum, so that the size is believed."""
    header = struct.pack(">II", rng.choice(_BOMBS), rng.choice((*_BOMBS, 1))) + data[24:29]
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


def answers(path: Path) -> list[Any]:
    """What each reader of images says of a file: its values, or why there are none."""

    def of_pixels() -> tuple[Any, ...]:
        decoded = load_image(path)
        assert decoded.rgb.mode == "RGB"
        return decoded.rgb.size, decoded.truncated, zlib.crc32(np.asarray(decoded.rgb).tobytes())

    def told(reader: Callable[[], Any]) -> Any:
        try:
            return reader()
        except ImageError as error:
            return str(error)

    found = [told(of_pixels), told(lambda: read_header(path)), told(lambda: format_row("x", measure_image(path)))]
    for reason in found:
        assert not isinstance(reason, str) or len(reason.splitlines()) == 1, f"no line: {reason!r}"
    return found


@pytest.fixture
def fill_memory():
    """A function that makes fresh memory hold a byte, where glibc allows it: whoever reads it unwritten is found."""
    if platform.libc_ver()[0] != "glibc":
        yield lambda byte: None
        return
    perturb = -6  # M_PERTURB of malloc.h
    yield lambda byte: ctypes.CDLL(None).mallopt(perturb, byte)
    ctypes.CDLL(None).mallopt(perturb, 0)


@pytest.mark.parametrize("kind", MODES)
def test_images(fuzz, kind, fill_memory):
    if kind in ("WEBP", "AVIF") and not pillow.check(kind.lower()):
        pytest.skip(f"Pillow has no {kind} here")

    def fuzz_images(rng: random.Random, folder: Path) -> None:
        path = folder / "image.bin"
        path.write_bytes(damaged(rng, kind))
        fill_memory(0x55)
        first = answers(path)
        fill_memory(0xAA)
        assert answers(path) == first, "another answer the second time"
        pixels, header, row = first
        if not isinstance(header, str) and not isinstance(pixels, str):
            assert pixels[0] == header[:2], "the header's size is not that of the pixels"
        if isinstance(row, tuple):
            assert not isinstance(pixels, str), f"measured, but not decoded: {pixels}"

    fuzz(fuzz_images, cases=25)


SPECIAL = ("folder", "dangling", "circle", "unreadable", "empty", "fifo", "device", "sparse")


def make_special(rng: random.Random, path: Path, kind: str) -> None:
    """Something at a path that is no regular file with an image in it."""
    match kind:
        case "folder":
            path.mkdir()
        case "dangling":
            path.symlink_to("nowhere.jpg")
        case "circle":
            path.symlink_to(path.name)
        case "unreadable":
            path.write_bytes(image_bytes(1))
            path.chmod(0)
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to(rng.choice(("/dev/zero", "/dev/urandom", "/dev/full", "/dev/null", "/dev/stdin")))
        case "sparse":
            with path.open("wb") as file:
                file.write(image_bytes(2))
                file.truncate(rng.choice((300 << 20, 7 << 30, 1 << 40)))
        case _:
            path.touch()


def test_things_that_are_no_files(fuzz):
    place = features()

    def fuzz_special(rng: random.Random, folder: Path) -> None:
        place.fill(folder)
        names = [f"DFBench/CLIVE/special{number}.jpg" for number in range(rng.randint(1, 3))]
        for name in names:
            make_special(rng, folder / name, rng.choice(SPECIAL))
        first = place.run(folder)
        check_ended(first, 1)
        lines = (folder / "out" / "CLIVE.csv").read_text()
        errors = folder / "out" / "CLIVE.errors.csv"
        said = errors.read_text() if errors.exists() else ""
        for name in names:
            if os.geteuid() and (folder / name).is_file():
                assert f"{name}," in said
            assert f"{name}," not in lines or (folder / name).is_file(), f"{name} has features"
        with suppress(FileNotFoundError):
            before = errors.read_bytes()
            check_ended(place.run(folder), 1)
            assert errors.read_bytes() == before, "another answer the second time"

    fuzz(fuzz_special, cases=3)
