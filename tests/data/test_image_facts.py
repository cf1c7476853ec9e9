"""Facts from headers and from feature CSVs."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dfbench.data.image_facts import read_facts, read_header


def save(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 99, 200)).save(path)
    return path


def test_header_of_real_files(tmp_path):
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.bmp", "BMP"), ("a.webp", "WEBP")):
        path = save(tmp_path / name)
        assert read_header(path) == (40, 30, path.stat().st_size, kind)


def test_a_truncated_image_still_has_a_header(tmp_path):
    path = save(tmp_path / "a.jpg", (400, 300))
    path.write_bytes(path.read_bytes()[:900])
    assert read_header(path) == (400, 300, 900, "JPEG")


def test_what_is_no_image_has_no_facts(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    header = b"IHDR" + struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(bomb)
    (tmp_path / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    for name in ("text.jpg", "empty.png", "bomb.png", "script.jpg", "missing.png", "."):
        assert str(read_header(tmp_path / name)) == "(nan, nan, nan, '')", name


def test_feature_csvs_come_first_and_headers_fill_the_rest(tmp_path):
    save(tmp_path / "DFBench/edit/2.png", (8, 6))
    features = tmp_path / "features"
    features.mkdir()
    (features / "edit.csv").write_text("image,width,height,format,bytes\nDFBench/edit/1.jpg,512,384,JPEG,1234\n")
    (features / "upstream.csv").write_text("image,brightness,contrast,colorfulness,si\nx.jpg,1,2,3,4\n")
    (features / "edit.errors.csv").write_text("image,error\nDFBench/edit/9.jpg,broken\n")
    (features / "broken.csv").write_text("image,width,height,format,bytes\ny.jpg,wide,384,JPEG,1234\n")
    images = ["DFBench/edit/2.png", "DFBench/edit/1.jpg", "DFBench/edit/3.png"]
    found = read_facts(images, tmp_path, features, quiet=True)
    assert found.index.tolist() == images
    assert found["width"].tolist()[:2] == [8, 512]
    assert found["format"].tolist() == ["PNG", "JPEG", ""]
    assert found.loc[images[1], "bytes"] == 1234
    assert np.isnan(found.loc[images[2], "height"])
    without = read_facts(images[:1], tmp_path, tmp_path / "no such folder", quiet=True)
    pd.testing.assert_frame_equal(without, found.iloc[:1])
