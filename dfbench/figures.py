"""What all figures share: a font, plain axes, and files that are the same bytes each time.

Letters are drawn in DejaVu Sans, which ships with matplotlib. Names come from files of others: they are drawn, never
parsed.
"""

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from dfbench.io import write_bytes

FORMATS = ("svg", "png", "pdf")

STYLE = {
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}

# Writing a PDF, it tells in 20 lines how it cut each font down.
logging.getLogger("fontTools").setLevel(logging.WARNING)


@contextmanager
def drawn_in(style: Mapping[str, Any]) -> Iterator[None]:
    """matplotlib's settings for a figure; a letter that the font lacks becomes a box without a word."""
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


@dataclass(frozen=True)
class NamedFigure:
    """One drawn figure. name: file name without suffix. title: a few words. caption: what a paper prints below it.

    style: what it was drawn in. Title and caption go into a file's metadata, the date stays out of them.
    """

    name: str
    title: str
    figure: Figure
    style: Mapping[str, Any]
    caption: str | None = None

    def svg(self, **options: Any) -> str:
        """The figure as an `<svg>` element, to stand in a page. options: of `Figure.savefig`."""
        text = io.StringIO()
        self._write(text, "svg", **options)
        return text.getvalue()[text.getvalue().index("<svg") :]

    def save(self, folder: Path) -> list[Path]:
        """Write the figure in all FORMATS, each put in place at once; the paths. An OSError has the file's name."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.name}.{suffix}" for suffix in FORMATS]
        for path, suffix in zip(paths, FORMATS, strict=True):
            content = io.BytesIO()  # not into the file: on a full disk, matplotlib's own cleaning up fails in many ways
            self._write(content, suffix)
            write_bytes(path, content.getvalue())
        return paths

    def _write(self, target: io.BytesIO | io.StringIO, suffix: str, **options: Any) -> None:
        no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix, {})
        metadata = {"Title": self.title, "Subject" if suffix == "pdf" else "Description": self.caption, **no_date}
        # Clip paths and glyphs of an SVG are named by a hash with a salt: one a figure keeps them apart on one page.
        with drawn_in({**self.style, "svg.hashsalt": self.name}):
            self.figure.savefig(target, format=suffix, metadata=metadata, **options)
