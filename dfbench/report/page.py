"""One self-contained HTML page with all results: no network, light and dark, for a phone, a screen and paper.

Everything that comes from files (names, keys, metadata) is escaped by the template; a content security policy lets
nothing but the page's own script run and nothing be loaded, should an escape ever be forgotten.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import dfbench
from dfbench.errors import InputError
from dfbench.evaluation.evaluate import Evaluation
from dfbench.evaluation.metrics import METRICS, percent
from dfbench.evaluation.shortcut_audit import MATCHED
from dfbench.evaluation.tables import SECTIONS, STAND_IN_NOTE, TABLES, make_tables, notes, warnings
from dfbench.features.plots import FeatureReport, build_feature_report
from dfbench.io import write_text
from dfbench.report import plots
from dfbench.report.mistakes import leading_detector, worst_mistakes
from dfbench.table import Table

_ASSETS = Path(__file__).parent / "assets"

_FEATURES_BEGIN, _FEATURES_END = "<!-- features -->\n", "<!-- end of features -->\n"
"""Comments between which the page has its feature figures; text from files cannot hold them, being escaped."""

_LONGEST_VALUE = 300
_MOST_ENTRIES = 200


@dataclass(frozen=True)
class Drawing:
    """An inline `<svg>` with its caption. fixed_colours: drawn for white paper, whatever the page's colours are."""

    svg: Markup
    caption: str
    fixed_colours: bool = False


@dataclass(frozen=True)
class Card:
    """One headline figure of one detector, in percent."""

    detector: str
    figure: str
    interval: str
    parts: list[tuple[str, str]]


def write_report(path: Path, evaluation: Evaluation, *, image_root: Path, features_dir: Path | None = None) -> None:
    """Write the page. image_root: where thumbnails come from. features_dir: feature CSVs to draw, if there are any."""
    script, style = ((_ASSETS / name).read_text(encoding="utf-8") for name in ("report.js", "report.css"))
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _template("report.html").render(
        evaluation=evaluation,
        version=dfbench.__version__,
        script=Markup(script),
        style=Markup(style),
        script_hash=script_hash,
        stand_in_note=STAND_IN_NOTE if evaluation.stand_ins else "",
        warnings=warnings(evaluation),
        notes=notes(evaluation),
        cards=headline(evaluation),
        tables=_tables(evaluation),
        drawings=_drawings(evaluation),
        audit_words=audit_words(evaluation) if evaluation.audit else [],
        features=_features(features_dir),
        leading=evaluation.names[leading_detector(evaluation)],
        mistakes=worst_mistakes(evaluation, image_root),
        provenance=[(detector, list(flatten(detector.info))[:_MOST_ENTRIES]) for detector in evaluation.detectors],
        terms=glossary(evaluation),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def renew_features(path: Path, features: FeatureReport) -> bool:
    """Put these feature figures into a page that `write_report` wrote. Returns False where the page has no place."""
    before, _, rest = path.read_text(encoding="utf-8").partition(_FEATURES_BEGIN)
    _, end, after = rest.partition(_FEATURES_END)
    if not end:
        return False
    section = _template("features.html").render(features=_shown(features))
    write_text(path, before.replace(" hidden>Features</a>", ">Features</a>") + _FEATURES_BEGIN + section + end + after)
    return True


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def headline(evaluation: Evaluation) -> list[Card]:
    """The first figure of each detector: balanced accuracy, or accuracy on images of one class; and it by category."""
    cards = []
    for detector in evaluation.judged:
        scores = evaluation.scores[evaluation.scores["detector"] == detector]
        overall = scores.iloc[-1]
        metric = "accuracy" if overall["note"] else "balanced_accuracy"
        low, high = overall[f"{metric}_low"], overall[f"{metric}_high"]
        interval = "" if low != low else f"{percent(low)} – {percent(high)}"
        by_category = scores[scores["level"] == "category"]
        parts = [(row.group, percent(row.accuracy)) for row in by_category.itertuples()]
        cards.append(Card(detector, percent(overall[metric]), interval, parts))
    return cards


def _tables(evaluation: Evaluation) -> dict[str, list[tuple[Table, bool]]]:
    """{section: its tables, and whether each is folded away}."""
    sections: dict[str, list[tuple[Table, bool]]] = {section: [] for section in SECTIONS}
    for name, table in make_tables(evaluation).items():
        sections[TABLES[name].section].append((table, TABLES[name].is_folded))
    return sections


def glossary(evaluation: Evaluation) -> list[tuple[str, str]]:
    """(term, definition) of everything that the page's tables show."""
    by_wilson = ", ".join(metric.title for metric in METRICS.values() if metric.interval == "wilson")
    resamples = "a bootstrap, which was switched off"
    if evaluation.num_resamples:
        number = f"{evaluation.num_resamples:,} bootstrap resamples (seed {evaluation.seed})"
        resamples = f"{number}, each keeping the size of every source"
    intervals = (
        f"95 %. Wilson's score interval: {by_wilson} and false-negative rate. All others: percentiles of {resamples}. "
        f"Differences between detectors are paired: all of them see the same resamples."
    )
    return [
        ("Intervals", intervals),
        *((metric.title[:1].upper() + metric.title[1:], metric.definition) for metric in METRICS.values()),
        *(term for table in TABLES.values() if table.is_needed(evaluation) for term in table.terms),
        ("–", "Not defined for these images; the CSV says why."),
    ]


def _drawings(evaluation: Evaluation) -> dict[str, Drawing]:
    """The figures that these images allow, by name."""
    has_both = evaluation.grouped.overall_ranking(0) is not None
    has_fakes, has_pairs = len(evaluation.false_negatives) > 0, len(evaluation.pairs) > 0
    drawn = (
        ("sources", True, plots.radar_of_sources, "Accuracy of the detectors over the sources, in percent."),
        (
            "histograms",
            True,
            plots.histograms,
            "P(fake) by category. Right of 0.5 an image is predicted fake. The vertical scale is logarithmic.",
        ),
        (
            "generators",
            has_fakes,
            plots.radar_of_generators,
            "False-negative rate: share of each generator's images that a detector predicts real, in percent.",
        ),
        (
            "roc",
            has_both,
            plots.roc_curves,
            "ROC curves over all images; the horizontal scale is logarithmic. Gray: chance.",
        ),
        (
            "reliability",
            has_both,
            plots.reliability_curves,
            "Reliability over all images, in bins of equal size. Gray: probabilities that mean what they say.",
        ),
        (
            "agreement",
            has_pairs,
            plots.agreement,
            "Cohen's kappa: 1 where two detectors give the same answer to every image, 0 where they agree by chance.",
        ),
    )
    return {name: Drawing(Markup(draw(evaluation)), caption) for name, has, draw, caption in drawn if has}


def _features(features_dir: Path | None) -> dict[str, Any]:
    """Feature figures and their table, the reason why there are none, or nothing where nothing was measured."""
    if features_dir is None or not features_dir.is_dir() or not any(features_dir.glob("*.csv")):
        return {}
    try:
        features = build_feature_report(features_dir)
    except InputError as error:
        return {"problem": str(error)}
    return _shown(features)


def _shown(features: FeatureReport) -> dict[str, Any]:
    figures = [Drawing(Markup(figure.svg()), figure.caption, True) for figure in features.figures]
    return {"drawings": figures, "table": features.table}


def audit_words(evaluation: Evaluation) -> list[str]:
    """What the audit means, in plain sentences."""
    audit, overall = evaluation.audit, evaluation.overall.set_index("detector")
    sentences = []
    for baseline, where in zip(
        audit.baselines, ("sources it was fitted on", "sources it has never seen"), strict=False
    ):
        share = percent(overall.loc[baseline.name, "balanced_accuracy"])
        sentences.append(
            f"A classifier that sees nothing but width, height, file format and bytes per pixel reaches a balanced "
            f"accuracy of {share} % on other images of {where}; 50 % is chance."
        )
    if not audit.num_pairs:
        sentences.append("No real and fake image share format and size, so no detector can be judged apart from them.")
        return sentences
    matched = evaluation.reweighted
    matched = matched[matched["weighting"] == MATCHED].set_index("detector")
    for name in evaluation.judged:
        before, after = (percent(rows.loc[name, "balanced_accuracy"]) for rows in (overall, matched))
        sentences.append(
            f"{name} has a balanced accuracy of {before} % on all images and of {after} % with images weighted so that "
            f"real and fake ones have the same formats and sizes."
        )
    sentences.append(
        f"The latter rests on {audit.num_pairs:,} pairs of a real and a fake image that match; what falls away with "
        f"the matching may have come from size and format."
    )
    return sentences


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every leaf of nested JSON, long texts cut."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from flatten(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(part, Mapping | list) for part in value):
        for number, part in enumerate(value, start=1):
            yield from flatten(part, f"{key} {number}")
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield key, text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + " …"
