"""Decoding: every mode as upstream's `Image.open(path).convert("RGB")`, damaged and hostile files as an ImageError."""

import io
import os
import signal
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFile

from dfbench.data.images import MAX_PIXELS, ImageError, load_image, read_header, read_metadata, split_suffix


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def test_every_mode_is_decoded_as_upstream_does(photo_set):
    modes = set()
    for sample in photo_set.samples:
        path = photo_set.path(sample)
        with Image.open(path) as image:
            modes.add(image.mode)
            expected = np.asarray(image.convert("RGB"))
        decoded = load_image(path)
        assert decoded.rgb.mode == "RGB"
        assert not decoded.truncated
        assert np.array_equal(np.asarray(decoded.rgb), expected)
    assert modes >= {"RGB", "RGBA", "L", "P", "LA", "CMYK", "1"}


def test_alpha_is_dropped_not_composited(tmp_path):
    """A fully transparent red pixel stays red, as upstream's conversion leaves it."""
    path = save(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), tmp_path / "clear.png")
    assert load_image(path).rgb.getpixel((0, 0)) == (255, 0, 0)


def test_exif_orientation_is_ignored(tmp_path, draw):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    path = save(draw(seed=0, width=40, height=20), tmp_path / "turned.jpg", exif=exif)
    assert load_image(path).rgb.size == (40, 20)


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = save(frames[0], tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert load_image(path).rgb.getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("name", ["deep.png", "deep.pgm", "deep.jp2"])
def test_sixteen_bit_gray_counts_with_its_high_byte_and_a_warning(tmp_path, name):
    """As in the features. Pillow's own conversion clips: everything above 255 turns white."""
    deep = np.random.default_rng(0).integers(0, 65536, (30, 40)).astype(np.uint16)
    path = save(Image.fromarray(deep), tmp_path / name)
    decoded = load_image(path)
    assert np.array_equal(np.asarray(decoded.rgb), np.repeat((deep >> 8)[..., None], 3, axis=2))
    assert decoded.warning == "has 16 bits a pixel; only the high byte counts"


def test_what_counts_without_reservation_has_no_warning(tmp_path, draw):
    assert load_image(save(draw(seed=0, width=40, height=20), tmp_path / "a.png")).warning == ""


def test_pixels_without_a_scale_are_refused(tmp_path):
    """A PFM's floats may mean anything."""
    path = tmp_path / "float.ppm"
    path.write_bytes(b"Pf\n4 4\n-1.0\n" + np.linspace(0, 1, 16).astype("<f4").tobytes())
    for read in (load_image, read_header):
        with pytest.raises(ImageError, match=r"^has 32-bit pixels \(Pillow mode F\), which have no 0-255 scale$"):
            read(path)


# ---------------------------------------------------------------------------------------------------- truncated files


@pytest.fixture
def truncated(tmp_path, draw):
    whole = save(draw(seed=1, width=96, height=96), tmp_path / "whole.jpg", quality=90)
    path = tmp_path / "truncated.jpg"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    return whole, path


def test_a_truncated_jpeg_is_decoded_as_far_as_it_goes(truncated):
    whole, path = (load_image(file) for file in truncated)
    assert path.truncated
    assert path.warning == "file is truncated; decoded as far as it goes"
    assert path.rgb.size == whole.rgb.size
    there, lost = (np.asarray(image.rgb).astype(int) for image in (whole, path))
    # 96 rows are 12 of 8; 60 % of the bytes are more than 4 of these and less than 10.
    assert np.array_equal(there[:32], lost[:32])
    assert np.abs(there[80:] - lost[80:]).mean() > 5


def test_strict_makes_a_truncated_file_an_error(truncated):
    whole, path = truncated
    with pytest.raises(ImageError, match=r"^cannot be decoded whole: .*truncated"):
        load_image(path, strict=True)
    assert not load_image(whole, strict=True).truncated


def test_a_truncated_png_is_decoded_as_far_as_it_goes(tmp_path, draw):
    whole = save(draw(seed=2, width=60, height=60), tmp_path / "whole.png")
    path = tmp_path / "truncated.png"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    decoded = load_image(path)
    assert decoded.truncated
    assert np.array_equal(np.asarray(decoded.rgb)[:20], np.asarray(load_image(whole).rgb)[:20])


@pytest.mark.parametrize("setting", [True, False])
def test_pillows_global_setting_is_left_alone_and_does_not_matter(truncated, monkeypatch, setting):
    """ms-swift's plug-in turns LOAD_TRUNCATED_IMAGES on for its whole process."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", setting)
    whole, path = truncated
    assert load_image(path).truncated
    assert not load_image(whole).truncated
    with pytest.raises(ImageError):
        load_image(path, strict=True)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is setting


# ---------------------------------------------------------------------------------------------------- files that fail


def test_a_missing_file(tmp_path):
    with pytest.raises(ImageError, match=r"^file is missing$"):
        load_image(tmp_path / "none.jpg")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(ImageError):
        load_image(tmp_path / "file" / "none.jpg")


def test_a_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(ImageError, match=r"^cannot be read: Is a directory"):
        load_image(tmp_path)


def test_a_name_that_no_file_can_have(tmp_path):
    with pytest.raises(ImageError):
        load_image(tmp_path / ("x" * 300 + ".jpg"))
    for name in ("nul\0.jpg", "half of a pair \ud800.jpg"):
        with pytest.raises(ImageError, match=r"^has a name that no file can have$"):
            load_image(tmp_path / name)


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.jpg").touch()
    for read in (load_image, read_header):
        with pytest.raises(ImageError, match=r"^file is empty$"):
            read(tmp_path / "empty.jpg")


def make_fifo(path):
    os.mkfifo(path)


def link_to_fifo(path):
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to(path.with_name("fifo"))


def link_to_device(path):
    path.symlink_to("/dev/zero")


def link_to_itself(path):
    path.symlink_to(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.fixture
def deadline():
    """Reading from a FIFO that nobody writes to would never end."""

    def fail(*_):
        raise AssertionError("still reading after 20 seconds")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize("make", [make_fifo, link_to_fifo, link_to_device, link_to_itself, make_socket])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)  # a socket's path may not be long
    make(Path("x.png"))
    for read in (load_image, read_header):
        with pytest.raises(ImageError, match=r"^(is no regular file|cannot be read: .*)$"):
            read(Path("x.png"))


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    path = save(Image.new("RGB", (8, 8)), tmp_path / "sparse.png")
    os.truncate(path, 7 << 30)
    for read in (load_image, read_header):
        with pytest.raises(ImageError, match=r"^has 7,516,192,768 bytes, more than 268,435,455$"):
            read(path)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "group4"])
def test_a_tiff_is_refused_by_name(tmp_path, compression):
    """Its decoders hand out memory that nobody wrote to, where a file is damaged."""
    mode = "1" if compression == "group4" else "RGB"
    path = save(Image.new(mode, (40, 30)), tmp_path / "x.png", format="TIFF", compression=compression)
    for read in (load_image, read_header):
        with pytest.raises(ImageError, match=r"^is a TIFF, a format that is not read: save it as PNG$"):
            read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"<html><body>404 Not Found</body></html>",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\x00\x00\x00\x00WEBP",
        bytes(1000),
    ],
)
def test_what_is_no_image(tmp_path, content):
    path = tmp_path / "no.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"^cannot be decoded: "):
        load_image(path)


def test_decoders_that_start_other_programs_are_out_of_reach(tmp_path):
    """Pillow would hand an EPS file, whatever its suffix, to Ghostscript; even its header is not read."""
    path = tmp_path / "no.png"
    Image.new("RGB", (40, 30)).save(path, "EPS")
    with pytest.raises(ImageError, match=r"^cannot be decoded: no image of a known format$"):
        load_image(path)
    with pytest.raises(ImageError, match=r"^cannot be decoded: no image of a known format$"):
        read_header(path)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nearly nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [9_460, 30_000, 1_000_000])
def test_a_hostile_size_is_refused_before_it_is_decoded(tmp_path, side):
    """9,460 squared is just above the bound; the larger ones are above Pillow's own, which is twice as high."""
    assert side * side > MAX_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    for read in (load_image, read_header):
        with pytest.raises(ImageError, match=r"claims 9460x9460 pixels|Image size .* exceeds limit|decompression"):
            read(path)


@pytest.mark.filterwarnings("error")
def test_random_damage_gives_an_image_or_an_image_error(tmp_path, draw):
    """Whatever a decoder makes of flipped bytes and cut ends, the run goes on."""
    rng = np.random.default_rng(0)
    image, path = draw(seed=3, width=48, height=48), tmp_path / "x"
    outcomes, reasons = set(), []
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        for _ in range(60):
            data = bytearray(buffer.getvalue())
            for position in rng.integers(0, len(data), rng.integers(1, 12)):
                data[position] = rng.integers(0, 256)
            path.write_bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.5 else data)
            try:
                outcomes.add(load_image(path).truncated)
            except ImageError as error:
                outcomes.add("error")
                reasons.append(str(error))
    assert outcomes == {True, False, "error"}
    assert all(len(reason.splitlines()) == 1 for reason in reasons)


# ------------------------------------------------------------------------------------------------ headers and metadata


def save_plain(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 99, 200)).save(path)
    return path


def test_header_of_real_files(tmp_path):
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.bmp", "BMP"), ("a.webp", "WEBP")):
        path = save_plain(tmp_path / name)
        assert read_header(path) == (40, 30, path.stat().st_size, kind)


def test_a_truncated_image_still_has_a_header(tmp_path):
    path = save_plain(tmp_path / "a.jpg", (400, 300))
    path.write_bytes(path.read_bytes()[:900])
    assert read_header(path) == (400, 300, 900, "JPEG")


def test_what_is_no_image_has_no_metadata(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    header = b"IHDR" + struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(bomb)
    (tmp_path / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    names = ["text.jpg", "empty.png", "bomb.png", "script.jpg", "missing.png", "."]
    for name in names:
        with pytest.raises(ImageError) as caught:
            read_header(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
    metadata = read_metadata(names, tmp_path, None, quiet=True)
    assert metadata.iloc[:, :3].isna().all(axis=None)
    assert set(metadata["format"]) == {""}


def test_feature_csvs_come_first_and_headers_fill_the_rest(tmp_path):
    save_plain(tmp_path / "DFBench/edit/2.png", (8, 6))
    features = tmp_path / "features"
    features.mkdir()
    (features / "edit.csv").write_text("image,width,height,format,bytes\nDFBench/edit/1.jpg,512,384,JPEG,1234\n")
    (features / "upstream.csv").write_text("image,brightness,contrast,colorfulness,si\nx.jpg,1,2,3,4\n")
    (features / "edit.errors.csv").write_text("image,error\nDFBench/edit/9.jpg,broken\n")
    (features / "broken.csv").write_text("image,width,height,format,bytes\ny.jpg,wide,384,JPEG,1234\n")
    images = ["DFBench/edit/2.png", "DFBench/edit/1.jpg", "DFBench/edit/3.png"]
    found = read_metadata(images, tmp_path, features, quiet=True)
    assert found.index.tolist() == images
    assert found["width"].tolist()[:2] == [8, 512]
    assert found["format"].tolist() == ["PNG", "JPEG", ""]
    assert found.loc[images[1], "bytes"] == 1234
    assert np.isnan(found.loc[images[2], "height"])
    without = read_metadata(images[:1], tmp_path, tmp_path / "no such folder", quiet=True)
    pd.testing.assert_frame_equal(without, found.iloc[:1])


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("path", ["a.jpg", "a.b/c", "a.b/c.d.e", ".jpg", "a/.jpg", "a", "", "a.", "a/b."])
def test_split_suffix_equals_the_standard_library(path):
    assert split_suffix(path) == os.path.splitext(path)
