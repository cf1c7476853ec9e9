"""Zip archives as hostile input: list the images in them, refuse what no data set needs, extract safely and at speed.

Members never choose where they are written: the caller names each target, and a member's own path serves to match only.
Format: PKWARE's APPNOTE.TXT 6.3, as far as Python's `zipfile` reads it (zip64 included).
"""

import contextlib
import copy
import errno
import functools
import hashlib
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dfbench.data.images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, split_suffix
from dfbench.prepare.reasons import Fault, Reason

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What the data set's archives use. `zipfile` has no bound for what a few bytes of bzip2 or LZMA may grow to."""

_JUNK_NAMES = frozenset((".ds_store", "thumbs.db", "desktop.ini"))

_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError, OverflowError)
"""What `zipfile` and its decompressors raise on broken input."""

_ONE_NAME_ERRORS = frozenset(
    (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP, errno.EINVAL)
)
"""Faults of one target's name; any other fault (no space, no permission) would meet the next image too."""


class Member(NamedTuple):
    """One image in an archive.

    archive: the zip file. position: its place in the zip's directory; names need not be unique.
    path: its path with forward slashes, relative unless `refusal` says otherwise.
    size, crc: bytes and CRC-32 that the directory declares.
    offset: where it starts in the zip file, in bytes.
    refusal: why it must not be extracted; "" if it may.
    """

    archive: Path
    position: int
    path: str
    size: int
    crc: int
    offset: int
    refusal: str


@dataclass
class Archive:
    """One zip file.

    num_images: how many members it has. num_skipped: files in it that are no images (captions, scores, macOS junk).
    error: why it cannot be read as a whole.
    """

    path: Path
    num_bytes: int
    num_images: int = 0
    num_skipped: int = 0
    error: str = ""


def is_junk(path: str) -> bool:
    """Whether a path names what an operating system left behind: `._*`, `__MACOSX/`, `.DS_Store`, `Thumbs.db`."""
    name = path.rpartition("/")[2]
    return name.startswith("._") or name.lower() in _JUNK_NAMES or "__MACOSX/" in path


def read_archive(path: Path) -> tuple[Archive, list[Member]]:
    """List a zip file's images from its directory; nothing is decompressed.

    A truncated or broken file gives an Archive with `error`, naming the bytes it has, and no members.
    """
    archive, members = Archive(path, path.stat().st_size), []
    try:
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
    except _ZIP_ERRORS as error:
        archive.error = f"{archive.num_bytes:,} bytes that are no whole zip archive ({error})"
        return archive, members
    for position, info in enumerate(infos):
        name = _member_name(info)
        if name.endswith("/"):
            continue
        if is_junk(name) or split_suffix(name)[1].lower() not in IMAGE_SUFFIXES:
            archive.num_skipped += 1
            continue
        refusal = _refusal(info, name, archive.num_bytes)
        members.append(Member(path, position, name, info.file_size, info.CRC, info.header_offset, refusal))
    archive.num_images = len(members)
    return archive, members


def _member_name(info: zipfile.ZipInfo) -> str:
    """The name as it was meant: Windows tools write backslashes, macOS writes UTF-8 without marking it as such."""
    name = info.orig_filename  # `filename` is cut at a zero byte
    if not name.isascii() and not info.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    name = name.replace("\\", "/")
    return re.sub(r"(?<![^/])\./|(?<=/)/+", "", name) if "./" in name or "//" in name else name


def _refusal(info: zipfile.ZipInfo, name: str, archive_bytes: int) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if name.startswith("/") or name[1:2] == ":" or (".." in name and ".." in name.split("/")):
        return "a path that leads outside the archive's folder"
    if not name.isprintable() and any(character < " " for character in name):
        return "control characters in its name"
    if kind not in (0, stat.S_IFREG):
        return "a link or a device, not a file"
    if info.flag_bits & 0x1:
        return "encrypted"
    if info.compress_type not in _METHODS:
        return f"compression method {info.compress_type}, where stored and deflated members are supported"
    if info.file_size > MAX_IMAGE_BYTES or info.header_offset + info.compress_size > archive_bytes:
        return f"claims {max(info.file_size, info.compress_size):,} bytes, more than there can be"
    return ""


OPEN_ARCHIVES = 4
"""A process keeps so many archives open between calls, at up to 30 MB each."""


def extract_members(archive: Path, wanted: Sequence[tuple[int, str]]) -> list[Fault | None]:
    """Extract members, each to its own file: (position in the zip's directory, target path) pairs.

    Returns for each what went wrong, None for success. A target appears whole or not at all: it is written under a
    temporary name (`.HASH.part`) in its folder, which is made if need be, and its CRC-32 has been compared by then.
    Raises OSError, naming the target, where writing fails for a reason that other targets share, such as a full disk.
    """
    try:
        file = _open(archive, archive.stat().st_mtime_ns)
    except _ZIP_ERRORS as error:
        return [(Reason.BROKEN, f"{archive.name} cannot be opened: {error}")] * len(wanted)
    return [_extract(file, archive.name, position, target) for position, target in wanted]


@functools.lru_cache(maxsize=OPEN_ARCHIVES)
def _open(archive: Path, changed: int) -> zipfile.ZipFile:
    """Keeps the last archives open, until they change: reading a directory of 40,000 members takes 0.2 s."""
    return zipfile.ZipFile(archive)


def _extract(file: zipfile.ZipFile, name: str, position: int, target: str) -> Fault | None:
    try:
        info = file.infolist()[position]
        data = _read(file, info)
    except IndexError:
        return Reason.BROKEN, f"{name}: not in its archive, which was replaced in the meantime"
    except _ZIP_ERRORS as error:
        return Reason.BROKEN, f"{name}: broken in its archive: {error or type(error).__name__}"
    if len(data) != info.file_size:
        return Reason.BROKEN, f"{name}: broken in its archive: it has not the {info.file_size:,} bytes that it claims"
    try:
        _write(data, target)
    except OSError as error:
        if error.errno not in _ONE_NAME_ERRORS:
            raise
        return Reason.UNWRITABLE, error.strerror
    return None


def _read(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member's bytes: one more than it claims where it goes on after them, for the claim is not to be believed.

    `read()` without a number inflates all there is before it looks at the claim.
    """
    longer = copy.copy(info)
    longer.file_size += 1
    with file.open(longer) as member:
        return member.read(longer.file_size)


def _write(data: bytes, target: str) -> None:
    folder, name = os.path.split(target)
    # Short, so that every name that fits the file system has one; the same in each run, so that no rest of one stays.
    temporary = os.path.join(folder, f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:24]}.part")
    try:
        with _create(temporary) as file:
            file.write(data)
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise OSError(error.errno, error.strerror, target) from error


def _create(path: str) -> BinaryIO:
    """Open a new file. What lies there, a rest of a killed run or a link elsewhere, is removed and not written to."""
    try:
        return open(path, "xb")
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except FileExistsError:
        os.unlink(path)
    return open(path, "xb")
