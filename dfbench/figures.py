"""What all figures share: a font, plain axes, and files that are the same bytes each time.

Letters are drawn in DejaVu Sans, which ships with matplotlib. Names come from files of others: they are drawn, never
parsed.
"""

import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

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


def save_figure(
    figure: Figure,
    target: Path | io.StringIO,
    suffix: str,
    *,
    name: str,
    title: str,
    caption: str | None = None,
    style: Mapping[str, Any] = STYLE,
    **options: Any,
) -> None:
    """Write a figure as svg, png or pdf. Title and caption go into the file's metadata, the date stays out of them.

    style: the one that the figure was drawn in. options: of `Figure.savefig`.
    """
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix, {})
    metadata = {"Title": title, "Subject" if suffix == "pdf" else "Description": caption, **no_date}
    # Clip paths and glyphs of an SVG are named by a hash with a salt: one a figure keeps them apart on one page.
    with matplotlib.rc_context({**style, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that the font lacks
        figure.savefig(target, format=suffix, metadata=metadata, **options)


def svg_element(figure: Figure, **options: Any) -> str:
    """A figure as an `<svg>` element, to stand in a page. options: see `save_figure`."""
    text = io.StringIO()
    save_figure(figure, text, "svg", **options)
    return text.getvalue()[text.getvalue().index("<svg") :]
