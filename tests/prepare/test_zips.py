"""Zip archives, well-made and hostile ones. Broken ones are made by changing bytes of sound ones."""

import errno
import os
import stat
import struct
import tracemalloc
import zipfile
import zlib

import pytest
from builders import make_zip

from dfbench.data.images import MAX_IMAGE_BYTES
from dfbench.prepare import zips
from dfbench.prepare.reasons import Reason
from dfbench.prepare.zips import extract_members, is_junk, read_archive

DIRECTORY_ENTRY = b"PK\x01\x02"


def special(name, *, mode=0, system=3):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = system, mode << 16
    return info


def patch_directory(path, offset, layout, *values):
    """Overwrite a field of the last entry in the zip's directory (APPNOTE 4.3.12)."""
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, data.rfind(DIRECTORY_ENTRY) + offset, *values)
    path.write_bytes(data)


def refusals(path):
    return {member.path: member.refusal for member in read_archive(path)[1]}


# -------------------------------------------------------------------------------------------------------------- listing


def test_members_are_listed_with_their_directory_entries(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"Images/1.jpg": b"one", "Images/2.JPEG": b"two!"}, zipfile.ZIP_STORED)
    archive, members = read_archive(path)
    assert archive.num_bytes == path.stat().st_size
    assert archive.num_images == 2
    first, second = members
    assert (first.archive, first.position, first.path, first.size, first.refusal) == (path, 0, "Images/1.jpg", 3, "")
    # A local header takes 30 bytes and the name, 12; then the data, 3.
    assert (first.offset, second.offset) == (0, 45)
    assert first.crc == 0x7A6C86F1  # CRC-32 of "one"


def test_what_is_no_image_is_skipped(tmp_path):
    junk = ("captions.txt", "dmos.csv", "info.txt", "train.txt", "Thumbs.db", ".DS_Store", "._1.jpg", "noextension")
    names = (*junk, "LIVE/._2.bmp", "__MACOSX/LIVE/._1.jpg", "__MACOSX/LIVE/1.jpg", "LIVE/.DS_Store", ".jpg")
    path = make_zip(tmp_path / "a.zip", dict.fromkeys(names, b"x") | {"LIVE/": b"", "LIVE/1.bmp": b"x"})
    archive, members = read_archive(path)
    assert [member.path for member in members] == ["LIVE/1.bmp"]
    assert archive.num_skipped == len(names)


def test_an_empty_archive_has_no_members_and_no_error(tmp_path):
    archive, members = read_archive(make_zip(tmp_path / "a.zip", {}))
    assert (members, archive.error) == ([], "")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("Images\\sub\\1.jpg", "Images/sub/1.jpg"),
        ("./Images/./1.jpg", "Images/1.jpg"),
        ("././1.jpg", "1.jpg"),
        ("Images//1.jpg", "Images/1.jpg"),
        ("v1./1.jpg", "v1./1.jpg"),
        ("..1.jpg", "..1.jpg"),
        ("a..b/1.jpg", "a..b/1.jpg"),
        ("édit/漢字 1.jpg", "édit/漢字 1.jpg"),
    ],
)
def test_names_are_normalised(tmp_path, name, path):
    assert refusals(make_zip(tmp_path / "a.zip", {name: b"x"})) == {path: ""}


def test_utf8_names_that_are_not_marked_as_such_are_read_right(tmp_path):
    """macOS's archiver does so: the name's bytes are UTF-8, and bit 11 of the flags is not set."""
    path = make_zip(tmp_path / "a.zip", {"édit.jpg": b"x"})
    data = path.read_bytes()
    for marker, flags in ((b"PK\x03\x04", 6), (DIRECTORY_ENTRY, 8)):
        at = data.find(marker) + flags
        data = data[:at] + b"\0\0" + data[at + 2 :]
    path.write_bytes(data)
    assert refusals(path) == {"édit.jpg": ""}
    assert extract_members(path, [(0, str(tmp_path / "out.jpg"))]) == [None]


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "name",
    [
        "../1.jpg",
        "a/../../1.jpg",
        "a/../1.jpg",
        "..\\1.jpg",
        "/1.jpg",
        "//server/share/1.jpg",
        "\\1.jpg",
        "C:\\1.jpg",
        "c:1.jpg",
        "./../1.jpg",
    ],
)
def test_paths_that_lead_outside_are_refused(tmp_path, name):
    (refusal,) = refusals(make_zip(tmp_path / "a.zip", {name: b"x"})).values()
    assert "outside" in refusal


@pytest.mark.parametrize("name", ["a\n1.jpg", "a\x1b[2J.jpg"])
def test_control_characters_are_refused(tmp_path, name):
    (refusal,) = refusals(make_zip(tmp_path / "a.zip", {name: b"x"})).values()
    assert "control characters" in refusal


def test_a_zero_byte_does_not_hide_the_end_of_a_name(tmp_path):
    """`zipfile` cuts such a name to "ok.jpg"."""
    path = make_zip(tmp_path / "a.zip", {"ok.jpgX.jpg": b"x"})
    path.write_bytes(path.read_bytes().replace(b"ok.jpgX", b"ok.jpg\0"))
    assert refusals(path) == {"ok.jpg\0.jpg": "control characters in its name"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFDIR])
@pytest.mark.parametrize("system", [0, 3])
def test_links_and_devices_are_refused(tmp_path, kind, system):
    path = make_zip(tmp_path / "a.zip", {special("1.jpg", mode=kind | 0o777, system=system): b"/etc/passwd"})
    assert refusals(path) == {"1.jpg": "a link or a device, not a file"}


def test_ordinary_files_with_unix_modes_are_not(tmp_path):
    path = make_zip(tmp_path / "a.zip", {special("1.jpg", mode=stat.S_IFREG | 0o644): b"x"})
    assert refusals(path) == {"1.jpg": ""}


def test_encrypted_members_are_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.jpg": b"x"})
    patch_directory(path, 8, "<H", 1)
    assert refusals(path) == {"1.jpg": "encrypted"}


@pytest.mark.parametrize("method", [1, 9, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unknown_and_unbounded_compression_is_refused(tmp_path, method):
    path = make_zip(tmp_path / "a.zip", {"1.jpg": b"x"})
    patch_directory(path, 10, "<H", method)
    assert refusals(path) == {"1.jpg": f"compression method {method}, where stored and deflated members are supported"}


def test_a_claim_of_4_gb_is_refused_and_the_others_stay(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.jpg": b"x", "2.jpg": b"x"})
    patch_directory(path, 24, "<I", 2**32 - 2)
    assert refusals(path) == {"1.jpg": "", "2.jpg": "claims 4,294,967,294 bytes, more than there can be"}
    patch_directory(path, 20, "<I", 2**32 - 2)  # the compressed size as well
    assert refusals(path)["1.jpg"] == ""
    assert "4,294,967,294" in refusals(path)["2.jpg"]


def test_a_member_that_reaches_past_the_archives_end_is_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.jpg": b"x"})
    size = path.stat().st_size
    patch_directory(path, 20, "<I", size + 1)
    assert refusals(path) == {"1.jpg": f"claims {size + 1:,} bytes, more than there can be"}


def test_the_largest_claim_that_passes(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.bmp": os.urandom(2_000_000)}, zipfile.ZIP_STORED)
    patch_directory(path, 24, "<I", MAX_IMAGE_BYTES)
    assert refusals(path)["1.bmp"] == ""
    patch_directory(path, 24, "<I", MAX_IMAGE_BYTES + 1)
    assert "more than there can be" in refusals(path)["1.bmp"]


# ------------------------------------------------------------------------------------------------------ broken archives


@pytest.mark.parametrize("keep", [0, 1, 10, 1000, -1, -30])
def test_a_truncated_archive_is_named_with_its_bytes(tmp_path, keep):
    path = make_zip(tmp_path / "a.zip", {f"{i}.jpg": os.urandom(500) for i in range(5)})
    path.write_bytes(path.read_bytes()[:keep])
    archive, members = read_archive(path)
    assert archive.error.startswith(f"{path.stat().st_size:,} bytes that are no whole zip archive")
    assert members == []


def test_no_change_of_a_directory_byte_escapes_as_an_exception(tmp_path):
    """Each byte of the directory, set to three other values: read or refused, extracted or not, but never a crash."""
    path = make_zip(tmp_path / "a.zip", {"1.jpg": b"one", "2.jpg": b"two" * 50})
    sound = path.read_bytes()
    for at in range(sound.find(DIRECTORY_ENTRY), len(sound)):
        for value in (0, 0x7F, 0xFF):
            path.write_bytes(sound[:at] + bytes([value]) + sound[at + 1 :])
            archive, members = read_archive(path)
            wanted = [(member.position, str(tmp_path / "out.jpg")) for member in members if not member.refusal]
            if not archive.error:
                extract_members(path, wanted)
    assert {file.name for file in tmp_path.iterdir()} <= {"a.zip", "out.jpg"}


# ----------------------------------------------------------------------------------------------------------- extraction


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_extracted_byte_for_byte(tmp_path, method):
    contents = {"a/1.jpg": os.urandom(100_000), "2.jpg": b"", "3.jpg": bytes(50_000)}
    path = make_zip(tmp_path / "a.zip", contents, method)
    out = tmp_path / "out"
    out.mkdir()
    wanted = [(i, str(out / f"{i}.jpg")) for i in (2, 0, 1)]
    assert extract_members(path, wanted) == [None, None, None]
    assert [(out / f"{i}.jpg").read_bytes() for i in range(3)] == list(contents.values())
    assert len(list(out.iterdir())) == 3


def test_names_may_repeat_because_positions_count(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.jpg", b"first")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("1.jpg", b"second")
    assert extract_members(tmp_path / "a.zip", [(0, str(tmp_path / "x.jpg"))]) == [None]
    assert (tmp_path / "x.jpg").read_bytes() == b"first"


def temporary_name(path, target, monkeypatch):
    """The name under which a target is written first, as a run that is killed before the last step leaves it."""
    with monkeypatch.context() as killed:
        killed.setattr(zips.os, "replace", lambda *_: None)
        assert extract_members(path, [(0, str(target))]) == [None]
    (temporary,) = (each for each in target.parent.iterdir() if each.name.startswith("."))
    return temporary


def test_an_existing_file_and_an_earlier_half_are_replaced(tmp_path, monkeypatch):
    path, target = make_zip(tmp_path / "a.zip", {"1.jpg": b"whole"}), tmp_path / "1.jpg"
    temporary = temporary_name(path, target, monkeypatch)
    assert not target.exists()
    target.write_bytes(b"ol")
    temporary.write_bytes(b"a longer rest of a killed run")
    assert extract_members(path, [(0, str(target))]) == [None]
    assert target.read_bytes() == b"whole"
    assert {file.name for file in tmp_path.iterdir()} == {"a.zip", "1.jpg"}


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    path, target, other = make_zip(tmp_path / "a.zip", {"1.jpg": b"whole"}), tmp_path / "1.jpg", tmp_path / "other"
    temporary = temporary_name(path, target, monkeypatch)
    temporary.unlink()
    other.write_bytes(b"precious")
    temporary.symlink_to(other)
    assert extract_members(path, [(0, str(target))]) == [None]
    assert other.read_bytes() == b"precious"
    assert target.read_bytes() == b"whole"
    assert not target.is_symlink()


def test_the_longest_name_that_a_file_can_have(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.jpg": b"x", "2.jpg": b"y"})
    names = ["x" * 251 + ".jpg", "é" * 125 + "y.jpg"]  # 255 bytes each
    assert extract_members(path, [(i, str(tmp_path / name)) for i, name in enumerate(names)]) == [None, None]
    assert [(tmp_path / name).read_bytes() for name in names] == [b"x", b"y"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_broken_member_is_told_and_leaves_nothing(tmp_path):
    data = os.urandom(1000)
    path = make_zip(tmp_path / "a.zip", {"1.jpg": data, "2.jpg": b"sound"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(data[:100], bytes(100)))
    (reason, detail), sound = extract_members(path, [(0, str(tmp_path / "1.jpg")), (1, str(tmp_path / "2.jpg"))])
    assert reason is Reason.BROKEN
    assert detail.startswith("a.zip: broken in its archive: Bad CRC-32")
    assert sound is None
    assert {file.name for file in tmp_path.iterdir()} == {"a.zip", "2.jpg"}


def test_a_member_that_is_longer_or_shorter_than_it_claims_is_no_image(tmp_path):
    data = bytes(range(256)) * 40
    for claim in (len(data) + 5, len(data) - 5):
        path = make_zip(tmp_path / f"{claim}.zip", {"1.jpg": data})
        patch_directory(path, 24, "<I", claim)
        ((reason, detail),) = extract_members(path, [(0, str(tmp_path / "1.jpg"))])
        assert reason is Reason.BROKEN
        assert f"{claim}.zip: broken in its archive" in detail
        assert not (tmp_path / "1.jpg").exists()


@pytest.mark.parametrize("claim", [1_000, 2 << 20])
def test_what_a_member_inflates_to_beyond_its_claim_takes_no_memory(tmp_path, claim):
    """The directory claims little for 256 MiB of zeros, with the CRC-32 of as many zeros as it claims."""
    path = make_zip(tmp_path / "a.zip", {"1.bmp": bytes(256 << 20)})
    patch_directory(path, 24, "<I", claim)
    patch_directory(path, 16, "<I", zlib.crc32(bytes(claim)))
    assert refusals(path) == {"1.bmp": ""}
    tracemalloc.start()
    ((_, detail),) = extract_members(path, [(0, str(tmp_path / "1.bmp"))])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert detail.startswith("a.zip: broken in its archive")
    assert peak < 16 << 20
    assert not (tmp_path / "1.bmp").exists()


def test_an_archive_that_is_gone_or_replaced_between_jobs(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.jpg": b"old"})
    assert extract_members(path, [(0, str(tmp_path / "1.jpg"))]) == [None]
    make_zip(path, {"1.jpg": b"newer"})
    os.utime(path, ns=(1, 1))
    assert extract_members(path, [(0, str(tmp_path / "1.jpg"))]) == [None]
    assert (tmp_path / "1.jpg").read_bytes() == b"newer"
    assert "replaced" in extract_members(path, [(1, str(tmp_path / "2.jpg"))])[0][1]
    path.unlink()
    assert "cannot be opened" in extract_members(path, [(0, str(tmp_path / "1.jpg"))])[0][1]


def test_a_target_that_cannot_be_is_told_and_the_others_go_on(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.jpg": b"x", "2.jpg": b"x", "3.jpg": b"x"})
    (tmp_path / "folder.jpg").mkdir()
    targets = [tmp_path / "folder.jpg", tmp_path / ("x" * 300 + ".jpg"), tmp_path / "3.jpg"]
    faults = extract_members(path, [(i, str(target)) for i, target in enumerate(targets)])
    assert [fault and fault[0] for fault in faults] == [Reason.UNWRITABLE, Reason.UNWRITABLE, None]
    assert {file.name for file in tmp_path.iterdir()} == {"a.zip", "folder.jpg", "3.jpg"}


def test_a_full_disk_ends_the_whole_and_names_the_file(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "a.zip", {"1.jpg": b"x"})

    def replace(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zips.os, "replace", replace)
    with pytest.raises(OSError, match="No space left") as caught:
        extract_members(path, [(0, str(tmp_path / "1.jpg"))])
    assert caught.value.filename == str(tmp_path / "1.jpg")
    assert caught.value.errno == errno.ENOSPC
    assert {file.name for file in tmp_path.iterdir()} == {"a.zip"}


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "path", ["._1.jpg", "a/._1.jpg", "__MACOSX/1.jpg", "a/.DS_Store", "a/THUMBS.DB", "desktop.ini"]
)
def test_junk(path):
    assert is_junk(path)


@pytest.mark.parametrize("path", ["1.jpg", "a._b/1.jpg", "a/_1.jpg", ".hidden.jpg", "captions.txt"])
def test_no_junk(path):
    assert not is_junk(path)
