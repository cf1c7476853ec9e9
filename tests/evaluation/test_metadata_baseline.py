"""The probe on benchmarks where size or format gives the label away, or says nothing."""

import numpy as np
import pytest
from builders import facts_of, fair_detector

from dfbench.evaluation.metadata_baseline import probe_detectors
from dfbench.predictions.join import join
from dfbench.predictions.reader import Detector


@pytest.fixture
def joined():
    return join([fair_detector()])


def accuracy(probe: Detector) -> float:
    return (probe.frame["answer"] == probe.frame["label"]).mean()


def test_a_probe_sees_what_size_gives_away(joined):
    sizes = np.where(joined["label"] == "B", 1024, 500)
    probes = probe_detectors(joined, facts_of(joined, sizes), seed=0)
    assert [probe.name for probe in probes] == ["probe (same)", "probe (other)"]
    assert [accuracy(probe) for probe in probes] == [1, 1]


@pytest.mark.parametrize("fact", ["height", "num_bytes", "kind"])
def test_a_probe_sees_the_other_facts_too(joined, fact):
    low_high = ("PNG", "JPEG") if fact == "kind" else (300, 800)
    values = np.where(joined["label"] == "B", low_high[1], low_high[0])
    probe = probe_detectors(joined, facts_of(joined, 512, **{fact: values}), seed=0)[0]
    assert accuracy(probe) == 1


def test_a_probe_without_anything_to_see_is_at_chance(joined):
    probes = probe_detectors(joined, facts_of(joined, np.random.default_rng(0).integers(300, 900, len(joined))), seed=0)
    for probe in probes:
        assert accuracy(probe) == pytest.approx(0.5, abs=0.12)


def test_sizes_that_tell_sources_apart_do_not_help_on_other_sources(joined):
    # Each source has a width of its own, in no order: known sources are told apart, new ones are not.
    width = joined["source"].map({"Flick8k": 300, "Kolors": 400, "LIVE": 500, "edit": 600, "CSIQ": 700, "NOVA": 800})
    same, other = probe_detectors(joined, facts_of(joined, width.to_numpy()), seed=0)
    assert accuracy(same) == 1
    assert accuracy(other) < 0.7


def test_no_probe_is_fitted_on_what_it_scores(joined):
    # Every image has a width of its own: only a fit that saw the image could know its label.
    width = np.random.default_rng(0).permutation(len(joined)) + 1000
    same, _ = probe_detectors(joined, facts_of(joined, width), seed=0)
    assert accuracy(same) < 0.65


def test_missing_facts_and_labels_leave_an_answer_for_every_image(joined):
    facts = facts_of(joined, np.where(joined["label"] == "B", 1024, 500))
    facts.iloc[::7, :3], facts.iloc[::7, 3] = np.nan, ""
    joined.loc[:20, "label"] = ""
    for probe in probe_detectors(joined, facts, seed=0):
        assert probe.frame["prob_B"].between(0, 1).all()


def test_too_few_sources_leave_out_the_probe_for_other_sources():
    joined = join([fair_detector(sources={"LIVE": "A", "edit": "B", "NOVA": "B"})])
    assert [probe.name for probe in probe_detectors(joined, facts_of(joined, 512), seed=0)] == ["probe (same)"]
