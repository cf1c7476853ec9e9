"""Figures of the report as SVG: radar plots like the paper's, ROC and reliability curves, histograms, agreement.

Each function returns an `<svg>` element for inlining. Colours are CSS variables of the page (`--c0` to `--c6`,
`--grid`, and `currentColor` for text), so one drawing serves light and dark pages; the palette is Okabe and Ito's,
which colour-blind readers tell apart, and lines differ in dashes as well. Names come from files of others: they are
drawn, never parsed.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfbench import figures
from dfbench.evaluation.evaluate import Evaluation, judged_numbers
from dfbench.evaluation.ranking import reliability, roc_curve
from dfbench.figures import NamedFigure
from dfbench.table import shortened

_TEXT, _GRID = "#010203", "#040506"
_COLOURS = [f"#0a0b0{i}" for i in range(7)]
"""Placeholders that no drawing has by chance; `_finish` puts the page's variables in their place."""

_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))

_MOST_LINES = len(_COLOURS) * 2
_MOST_POINTS = 400
_LONGEST_NAME = 24

STYLE = {
    **figures.STYLE,
    "font.size": 9,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.titlesize": 9,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}


def radar_of_sources(evaluation: Evaluation) -> str:
    """Accuracy of each detector (lines) over the sources (spokes), in percent."""
    scores = evaluation.scores[evaluation.scores["level"] == "source"]
    values = {name: 100 * rows["accuracy"].to_numpy() for name, rows in scores.groupby("detector", sort=False)}
    sources = list(scores["group"].drop_duplicates())
    return _radar("radar_sources", "Accuracy of detectors over sources", sources, values, down_to_zero=False)


def radar_of_generators(evaluation: Evaluation) -> str:
    """False-negative rate of the sources with the highest one (lines) over the detectors (spokes), in percent."""
    rates = evaluation.false_negatives
    shown = rates[rates["rank"] <= _MOST_LINES].groupby("source", sort=False)
    values = {source: 100 * rows["false_negative_rate"].to_numpy() for source, rows in shown}
    return _radar("radar_generators", "False-negative rate of generators over detectors", evaluation.judged, values)


def _radar(
    name: str, title: str, spokes: Sequence[str], values: Mapping[str, np.ndarray], *, down_to_zero: bool = True
) -> str:
    """Lines over three spokes or more; with fewer there is no area to see, and they become groups of bars."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 4.9), layout="constrained")
        if len(spokes) < 3:
            _bars(figure.subplots(), spokes, values)
        else:
            axes = figure.subplots(subplot_kw={"projection": "polar"})
            angles = np.linspace(0, 2 * np.pi, len(spokes), endpoint=False)
            closed = np.append(angles, angles[0])
            for i, (label, shares) in enumerate(values.items()):
                colour, dashes = _line_style(i)
                axes.plot(closed, np.append(shares, shares[0]), color=colour, linestyle=dashes, label=_name(label))
            lowest = min((shares.min() for shares in values.values()), default=0)
            highest = max((shares.max() for shares in values.values()), default=100)
            bottom = 0 if down_to_zero else max(0, 10 * np.floor((lowest - 5) / 10))
            top = 100 if not down_to_zero else min(100, 5 * np.ceil((highest + 1) / 5))
            axes.set(ylim=(bottom, top), theta_offset=np.pi / 2, theta_direction=-1)
            axes.set_xticks(angles, [_name(spoke) for spoke in spokes])
            for label, side in zip(axes.get_xticklabels(), np.round(np.sin(angles), 6), strict=True):
                label.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
            axes.tick_params(axis="x", pad=2)
            axes.set_yticks(np.linspace(bottom, top, 6)[1:-1])
            axes.yaxis.set_major_formatter("{x:g} %")
            axes.set_rlabel_position(np.degrees(angles[1]) / 2)
            axes.spines["polar"].set_color(_GRID)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return _finish(figure, name, title)


def _bars(axes: Axes, groups: Sequence[str], values: Mapping[str, np.ndarray]) -> None:
    width = 0.8 / max(1, len(values))
    for i, (label, shares) in enumerate(values.items()):
        places = np.arange(len(groups)) - 0.4 + width * (i + 0.5)
        axes.bar(places, shares, width * 0.9, color=_line_style(i)[0], label=_name(label))
    axes.set_xticks(np.arange(len(groups)), [_name(group) for group in groups])
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.grid(visible=False, axis="x")


def roc_curves(evaluation: Evaluation) -> str:
    """True-positive against false-positive rate over all images, the latter on a log scale; fake is positive."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 4.0), layout="constrained")
        axes = figure.subplots()
        num_real = int((~evaluation.grouped.predictions.is_fake).sum())
        left = min(0.01, 1 / max(1, num_real))
        for i, name in enumerate(evaluation.names):
            ranked = evaluation.grouped.overall_ranking(i)
            false_positives, true_positives = roc_curve(ranked.tally())
            chosen = _thinned(np.maximum(false_positives, left), logarithmic=True)
            colour, dashes = _line_style(i)
            x, y = np.maximum(false_positives[chosen], left), true_positives[chosen]
            axes.plot(x, y, color=colour, linestyle=dashes, drawstyle="steps-post", label=_name(name))
        axes.plot(np.geomspace(left, 1), np.geomspace(left, 1), color=_GRID, linewidth=1)
        axes.set(xscale="log", xlim=(left, 1), ylim=(0, 1.01))
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(loc="lower right")
        return _finish(figure, "roc", "ROC curves")


def _thinned(values: np.ndarray, *, logarithmic: bool) -> np.ndarray:
    """Numbers of up to about _MOST_POINTS values that are spread over the range, first and last included."""
    scaled = np.log(values) if logarithmic else values
    cells = np.floor((scaled - scaled[0]) / max(np.ptp(scaled), 1e-12) * _MOST_POINTS)
    last_of_cell = np.flatnonzero(np.diff(cells, append=np.inf))
    return np.unique(np.r_[0, last_of_cell])


def reliability_curves(evaluation: Evaluation) -> str:
    """Share of fake images against mean P(fake), in the bins of the calibration error, over all images."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=_GRID, linewidth=1)
        for i in judged_numbers(evaluation.detectors):
            ranked = evaluation.grouped.overall_ranking(i)
            _, mean_prob, share_fake = reliability(ranked.tally())
            colour, dashes = _line_style(i)
            axes.plot(
                mean_prob,
                share_fake,
                color=colour,
                linestyle=dashes,
                marker="o",
                markersize=3,
                label=_name(evaluation.names[i]),
            )
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="mean P(fake) of a bin", ylabel="share of fake images")
        axes.legend(loc="upper left")
        return _finish(figure, "reliability", "Reliability curves")


def histograms(evaluation: Evaluation) -> str:
    """Distribution of P(fake), one panel for each category, a line for each detector; logarithmic shares."""
    groups = [group for group in evaluation.grouped.groups if group.level == "category"]
    edges = np.linspace(0, 1, 21)
    with matplotlib.rc_context(STYLE):
        rows = (len(groups) + 1) // 2
        figure = Figure(figsize=(5.6, 0.9 + 1.8 * rows), layout="constrained")
        panels = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel()
        for group, axes in zip(groups, panels, strict=False):
            chosen = group.cells[evaluation.grouped.cell]
            for i in judged_numbers(evaluation.detectors):
                counts, _ = np.histogram(evaluation.grouped.prob_fake[chosen, i], edges)
                colour, dashes = _line_style(i)
                axes.stairs(
                    counts / counts.sum(), edges, color=colour, linestyle=dashes, label=_name(evaluation.names[i])
                )
            axes.set_title(f"{group.name} ({chosen.sum():,} images)", loc="left")
            axes.set(xlim=(0, 1), yscale="log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.axvline(0.5, color=_GRID, linewidth=1)
        for axes in panels[len(groups) :]:
            axes.remove()
        figure.supxlabel("P(fake)", fontsize=9)
        figure.supylabel("share of the category's images", fontsize=9)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
        return _finish(figure, "histograms", "Histograms of P(fake) by category")


def agreement(evaluation: Evaluation) -> str:
    """Cohen's kappa of each pair of detectors: 1 is the same answer to every image, 0 what chance gives."""
    names = list(dict.fromkeys([*evaluation.pairs["first"], *evaluation.pairs["second"]]))
    kappa = np.full((len(names), len(names)), np.nan)
    for row in evaluation.pairs.itertuples():
        kappa[names.index(row.second), names.index(row.first)] = row.kappa
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(3 + 0.75 * len(names), 0.8 + 0.45 * len(names)), layout="constrained")
        axes = figure.subplots()
        for (row, column), value in np.ndenumerate(kappa):
            if row > column:
                shade = 0 if np.isnan(value) else float(np.clip(value, 0, 1))
                axes.add_patch(
                    matplotlib.patches.Rectangle((column, row), 1, 1, color=_COLOURS[0], alpha=0.1 + 0.5 * shade)
                )
                axes.text(column + 0.5, row + 0.5, "–" if np.isnan(value) else f"{value:.2f}", ha="center", va="center")
        axes.set(xlim=(0, len(names) - 1), ylim=(len(names), 1))
        labels = [_name(name) for name in names]
        axes.set_xticks(np.arange(len(names) - 1) + 0.5, labels[:-1], rotation=30, ha="right")
        axes.set_yticks(np.arange(1, len(names)) + 0.5, labels[1:])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return _finish(figure, "agreement", "Agreement of detectors (Cohen's kappa)")


def _line_style(number: int) -> tuple[str, object]:
    """Colour and dashes; the first 28 lines differ, and neighbours in both."""
    return _COLOURS[number % len(_COLOURS)], _DASHES[(number + 2 * (number // len(_COLOURS))) % len(_DASHES)]


def _name(text: str) -> str:
    return shortened(text, _LONGEST_NAME)


def _finish(figure: Figure, name: str, title: str) -> str:
    """The drawing as an `<svg>` element in the page's colours, the same characters each time."""
    svg = NamedFigure(name, title, figure, STYLE).svg(transparent=True, bbox_inches="tight")
    svg = svg.replace(_TEXT, "currentColor").replace(_GRID, "var(--grid)")
    for i, colour in enumerate(_COLOURS):
        svg = svg.replace(colour, f"var(--c{i})")
    return svg
