"""Hostile archives through prepare_dataset.py: nothing outside its folders, no traceback, no foreign bytes."""

import random
import resource
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from conftest import save_rows
from fuzz.faults import check_ended, files_below
from fuzz.mutations import HOSTILE_TEXTS, damage
from fuzz.workplaces import image_bytes, preparing, samples

MEMORY = 1 << 30
"""Bytes that a preparation may take beyond what the tests' process has already."""

TARGETS = ("../x.jpg", "../../x.jpg", "/tmp/dfbench_fuzz_x.jpg", "a/../../../x.jpg", "..\\..\\x.jpg", "C:\\x.jpg")


@pytest.fixture(scope="module")
def place():
    return preparing()


def write_archive(rng: random.Random, path: Path, known: list[str]) -> set[bytes]:
    """A zip with good members, odd ones and damage to its bytes. Returns the content of all members."""
    contents = set()
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(rng.randint(1, 7)):
            info = zipfile.ZipInfo(_member_name(rng, known))
            info.compress_type = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
            data = rng.choice((image_bytes(number), image_bytes(number, ".png"), b"", b"\0" * 70_000, b"../../x"))
            if rng.random() < 0.15:
                kind = rng.choice((stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR, stat.S_IFSOCK))
                info.external_attr, data = (kind | 0o777) << 16, rng.choice((b"/etc/passwd", b"../../..", data))
            contents.add(data)
            archive.writestr(info, data)
    data = path.read_bytes()
    if rng.random() < 0.5:
        data = _damage_records(rng, data)
    if rng.random() < 0.2:
        data = damage(rng, data)
    path.write_bytes(data)
    return contents


def _member_name(rng: random.Random, known: list[str]) -> str:
    name = rng.choice((*known, *known, rng.choice(HOSTILE_TEXTS), rng.choice(TARGETS), rng.choice(TARGETS)))
    if rng.random() < 0.2:
        name = rng.choice(("./", "x//", "/", "../", "x\\", "__MACOSX/", "\0")) + name
    if rng.random() < 0.2:
        name = rng.choice((name.upper(), name + "/", name + "\0.png", name[:-4], name.replace("/", "\\")))
    return name.encode(errors="replace").decode()


_FIELDS = {b"PK\x01\x02": (6, 8, 10, 16, 20, 24, 28, 30, 32, 38, 42), b"PK\x03\x04": (6, 8, 14, 18, 22, 26, 28)}
"""Where the fields of a directory entry and of a local header begin (APPNOTE 4.3.12 and 4.3.7)."""


def _damage_records(rng: random.Random, data: bytes) -> bytes:
    """Other numbers in a few fields of headers: sizes, CRC, offset, flags, method, lengths of names."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        signature = rng.choice(list(_FIELDS))
        places = [at for at in range(len(data)) if data.startswith(signature, at)]
        at, layout = rng.choice(places) + rng.choice(_FIELDS[signature]), rng.choice(("<H", "<I"))
        largest = (1 << 8 * struct.calcsize(layout)) - 1
        if at + 4 > len(data):
            continue
        (now,) = struct.unpack_from(layout, changed, at)
        value = rng.choice((0, 1, 2, largest, now + 1, now - 1, now ^ (1 << rng.randrange(16)), rng.randrange(largest)))
        struct.pack_into(layout, changed, at, value & largest)
    return bytes(changed)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives(fuzz, place):
    def fuzz_archives(rng: random.Random, folder: Path) -> None:
        inside, images = folder / "a" / "b", [sample.image for sample in samples()]
        downloads = inside / "downloads"
        downloads.mkdir(parents=True)
        known = [image.rpartition("/")[2] for image in images] + images
        contents = write_archive(rng, downloads / "Kolors_000001-040000.zip", known)
        contents |= write_archive(rng, downloads / "CLIVE.zip", known)
        save_rows(downloads / "img_test.jsonl", samples()[::2])
        save_rows(downloads / "img_train_shuffled.jsonl", samples()[1::2])
        if rng.random() < 0.3:  # what lies there already must not lead a file astray
            (inside / "DFBench").mkdir()
            (inside / "DFBench" / "CLIVE").symlink_to(rng.choice(("nowhere", "CLIVE", "../../CLIVE.txt")))
        before = files_below(folder)
        ended = place.run(inside, limits={resource.RLIMIT_AS: _memory_now() + MEMORY})
        check_ended(ended, 0, 1)
        assert not Path("/tmp/dfbench_fuzz_x.jpg").exists()
        for name, content in files_below(folder).items():
            if name in before:
                assert content == before[name], f"{name} has changed"
            else:
                assert name.startswith(("a/b/DFBench/", "a/b/clean/")), f"{name} is outside"
                if name.rpartition("/")[2].startswith(("prepare_", "img_")) or name.endswith("/"):
                    continue
                assert content in contents, f"{name} has bytes that no archive holds"

    fuzz(fuzz_archives, cases=25)


def _memory_now() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
