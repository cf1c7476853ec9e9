"""Saving figures: the same bytes each time, metadata, and names that a font or mathematics would trip over."""

import resource
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.figure import Figure

from dfbench import figures
from dfbench.figures import FORMATS, STYLE, NamedFigure, drawn_in


def drawn(name: str, label: str = "x") -> NamedFigure:
    with drawn_in(STYLE):
        figure = Figure(figsize=(2, 2))
        figure.subplots().plot([1, 2], [3, 4])
        figure.axes[0].set_xlabel(label)
    return NamedFigure(name, "A line", figure, STYLE, "What it shows.")


def test_files_are_the_same_bytes_each_time(tmp_path):
    paths = [drawn("a").save(tmp_path / folder) for folder in ("first", "second")]
    assert [path.name for path in paths[0]] == [f"a.{suffix}" for suffix in FORMATS]
    for first, second in zip(*paths, strict=True):
        assert first.read_bytes() == second.read_bytes()
    for path in paths[0][:2]:
        assert b"What it shows." in path.read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_disk_that_fills_up_is_told_with_the_file(tmp_path, monkeypatch, suffix):
    """A limit on the size of files stands for it, at several places of the file."""
    monkeypatch.setattr(figures, "FORMATS", (suffix,))
    (path,) = drawn("a").save(tmp_path)
    content = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in range(0, len(content), len(content) // 6):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                drawn("a").save(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.filename == str(path)
        assert (path.read_bytes(), list(tmp_path.iterdir())) == (content, [path])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [r"cost $\oops$", "图", "<b>&"])
def test_any_name_is_drawn(label):
    assert ElementTree.fromstring(drawn("a", label).svg()).tag.endswith("svg")


def test_two_figures_on_one_page_share_no_id():
    ids = [
        {element.get("id") for element in ElementTree.fromstring(drawn(name).svg()).iter() if "clipPath" in element.tag}
        for name in ("a", "b")
    ]
    assert all(ids)
    assert not ids[0] & ids[1]
