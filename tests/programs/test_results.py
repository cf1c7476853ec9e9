"""logit_calculation.py and process_results.py as users run them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import run_here

from dfbench.fusion.early_exit import settled_images
from dfbench.paths import REPOSITORY
from dfbench.predictions.reader import read_detector, read_detectors

ROOT = REPOSITORY
HEADER = "image,label,answer,logit_A,logit_B,prob_A,prob_B"
SOURCES = {"Flick8k": "A", "koniq10k": "A", "edit": "B", "NOVA": "B", "PixArt": "B"}


def run(program: str, *arguments: object, root: Path = ROOT) -> subprocess.CompletedProcess:
    """In this process, or, for programs that were copied elsewhere, as users do."""
    if root == ROOT:
        return run_here(program, *arguments)
    command = [sys.executable, str(root / program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def write_csv(path: Path, seed: int, num_images: int = 20, sources: dict[str, str] = SOURCES) -> Path:
    """A detector that is right about nine times in ten."""
    rng = np.random.default_rng(seed)
    lines = [HEADER]
    for source, label in sources.items():
        for i in range(num_images):
            prob_fake = np.float32(rng.beta(1, 4) if label == "A" else rng.beta(4, 1))
            prob_real = np.float32(1) - prob_fake
            answer = "A" if prob_real > prob_fake else "B"
            lines.append(f"DFBench/{source}/{i}.jpg,{label},{answer},,,{prob_real},{prob_fake}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def agents(tmp_path):
    return [
        write_csv(tmp_path / f"{name}.csv", seed) for seed, name in enumerate(("qwen2.5", "internvl2.5", "internvl3"))
    ]


@pytest.fixture
def house(tmp_path):
    """A copy of the programs and the package, so that the default paths point into `tmp_path`."""
    root = tmp_path / "house"
    shutil.copytree(ROOT / "dfbench", root / "dfbench", ignore=shutil.ignore_patterns("__pycache__"))
    for program in ("logit_calculation.py", "process_results.py"):
        shutil.copy(ROOT / program, root / program)
    return root


def test_fuse_then_tabulate(agents, tmp_path):
    fused = run("logit_calculation.py", *agents, "--output_csv", tmp_path / "moa_df.csv")
    assert fused.returncode == 0, fused.stderr
    assert fused.stdout.splitlines()[0] == "qwen2.5: 100 images"
    assert fused.stdout.splitlines()[-1] == f"written to {tmp_path / 'moa_df.csv'}"
    found = run(
        "process_results.py", *agents, tmp_path / "moa_df.csv", "--output_dir", tmp_path / "out", "--bootstrap", 0
    )
    assert found.returncode == 0, found.stderr
    header = next(line for line in found.stdout.splitlines() if line.startswith("level"))
    assert header.split() == ["level", "group", "n", "qwen2.5", "internvl2.5", "internvl3", "MoA-DF"]
    assert max(map(len, found.stdout.split("\ntables in")[0].splitlines())) <= 100
    assert (tmp_path / "out" / "tables" / "accuracy.md").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_results_are_written_when_nobody_reads_what_is_printed(agents, tmp_path, unbuffered):
    """As in `python process_results.py | head -1`; unbuffered, each print fails at once."""

    def run_unread(program, *arguments):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, str(ROOT / program), *map(str, arguments)]
        env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=env, timeout=120)
        os.close(writer)
        return done.returncode, done.stderr

    assert run_unread("logit_calculation.py", *agents, "--output_csv", tmp_path / "moa_df.csv") == (0, "")
    assert len(read_detector(tmp_path / "moa_df.csv").frame) == 100
    out = tmp_path / "out"
    options = ("--output_dir", out, "--bootstrap", 0, "--quiet")
    assert run_unread("process_results.py", tmp_path / "moa_df.csv", *options) == (0, "")
    assert (out / "tables" / "accuracy.md").exists()
    assert (out / "report.html").exists()


def test_an_early_exit_goes_through_both_programs(agents, tmp_path):
    """The third agent has the open images only; MoA-DF decides all of them as if it had looked at every one."""
    whole = run("logit_calculation.py", *agents, "--output_csv", tmp_path / "whole.csv")
    assert whole.returncode == 0, whole.stderr
    settled = settled_images(read_detectors(agents[:2]))
    lines = agents[2].read_text().splitlines(keepends=True)
    lines = [line for line in lines if line.split(",")[0] not in settled]
    agents[2].write_text("".join(lines))
    agents[2].with_suffix(".json").write_text(json.dumps({"only_undecided": [str(path) for path in agents[:2]]}))
    fused = run("logit_calculation.py", *agents, "--output_csv", tmp_path / "moa_df.csv")
    assert fused.returncode == 0, fused.stderr
    expected, found = (read_detector(tmp_path / name).frame for name in ("whole.csv", "moa_df.csv"))
    assert found[["image", "answer"]].equals(expected[["image", "answer"]])
    tabulated = run("process_results.py", *agents, tmp_path / "moa_df.csv", "--output_dir", tmp_path, "--bootstrap", 0)
    assert tabulated.returncode == 0, tabulated.stderr
    first = tabulated.stdout.splitlines()[0]
    assert first == f"internvl3 is left out: with --only_undecided it answered {len(lines) - 1} images only"
    header = next(line for line in tabulated.stdout.splitlines() if line.startswith("level"))
    assert header.split() == ["level", "group", "n", "qwen2.5", "internvl2.5", "MoA-DF"]
    assert any(
        line.split()[:3] == ["overall", "all", "images"] and "100" in line for line in tabulated.stdout.splitlines()
    )


@pytest.mark.slow
def test_defaults_meet(house):
    for seed, name in enumerate(("qwen2.5", "internvl2.5", "internvl3")):
        write_csv(house / "results" / f"{name}.csv", seed)
    without = run("process_results.py", "--bootstrap", 0, root=house)
    assert without.returncode == 0, without.stderr
    assert "MoA-DF is not among them: run `python logit_calculation.py` first" in without.stdout
    assert run("logit_calculation.py", root=house).returncode == 0
    found = run("process_results.py", root=house)
    assert found.returncode == 0, found.stderr
    assert "internvl3  MoA-DF" in found.stdout
    assert "95 % interval" in found.stdout
    assert (house / "results" / "tables" / "accuracy.csv").exists()
    assert (house / "results" / "report.html").exists()


@pytest.mark.parametrize("program", ["logit_calculation.py", "process_results.py"])
def test_without_any_agent_the_first_ones_command_is_named(house, program):
    found = run(program, root=house)
    assert found.returncode == 1
    assert found.stderr == (
        "error: results/qwen2.5.csv: no such file. Run `cd qwen2.5 && sh eval.sh` first, or name the CSVs to read.\n"
    )


def test_fusion_needs_all_agents_or_partial(house):
    """MoA-DF is a fusion of all of them: one of two is made where it is asked for, and says so wherever it is shown."""
    for seed, name in enumerate(("qwen2.5", "internvl3")):
        write_csv(house / "results" / f"{name}.csv", seed)
    refused = run("logit_calculation.py", root=house)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "results/internvl2.5.csv: no such file. Run `cd internvl2.5 && sh shell/eval_deepfake.sh`" in refused.stderr
    assert "fuse those that are there with --partial" in refused.stderr
    fused = run("logit_calculation.py", "--partial", root=house)
    assert fused.returncode == 0, fused.stderr
    assert "internvl2.5 is not among them: run `cd internvl2.5 && sh shell/eval_deepfake.sh`" in fused.stdout
    found = run("process_results.py", "--bootstrap", 0, root=house)
    assert "MoA-DF: fused from 2 agents, and the paper's from 3" in found.stdout


def test_results_are_those_of_the_agents_that_are_there(house):
    write_csv(house / "results" / "internvl2.5.csv", 0)
    found = run("process_results.py", "--bootstrap", 0, root=house)
    assert found.returncode == 0, found.stderr
    header = next(line for line in found.stdout.splitlines() if line.startswith("level"))
    assert header.split() == ["level", "group", "n", "internvl2.5"]
    assert [line for line in found.stdout.splitlines() if "not among them" in line] == [
        "qwen2.5 is not among them: run `cd qwen2.5 && sh eval.sh` first",
        "internvl3 is not among them: run `cd internvl3 && sh shell/eval_deepfake.sh` first",
        "MoA-DF is not among them: run `python logit_calculation.py` first",
    ]


def test_a_fused_file_takes_no_other_place_without_overwrite(agents, tmp_path):
    before = agents[2].read_bytes()
    arguments = ["logit_calculation.py", *agents[:2], "--output_csv", agents[2]]
    refused = run(*arguments)
    assert refused.returncode == 1
    assert f"{agents[2]}: its scores are those of another program. Name another --output_csv" in refused.stderr
    assert agents[2].read_bytes() == before
    assert run(*arguments, "--overwrite").returncode == 0
    assert run(*arguments).returncode == 0  # its own
    again = run(*arguments, "--fusion", "vote")
    assert again.returncode == 1
    assert "its scores were fused otherwise" in again.stderr


def test_metadata_that_are_applied_are_not_written_over(agents, tmp_path):
    options = ["--output_csv", tmp_path / "f.csv"]
    assert run("logit_calculation.py", *agents, "--fusion", "stacked", *options).returncode == 0
    refused = run("logit_calculation.py", *agents, "--apply", tmp_path / "f.json", *options)
    assert refused.returncode == 1
    assert "f.json: this file is read as well" in refused.stderr


def test_both_programs_say_that_a_run_has_not_finished(agents, tmp_path):
    agents[0].with_suffix(".json").write_text('{"identity": {}, "finished": false}')
    fused = run("logit_calculation.py", *agents, "--output_csv", tmp_path / "moa_df.csv")
    assert "not all of their runs have finished" in fused.stdout
    found = run("process_results.py", *agents, tmp_path / "moa_df.csv", "--output_dir", tmp_path, "--bootstrap", 0)
    for name in ("qwen2.5", "MoA-DF"):
        assert f"{name}: its run has not finished" in found.stdout
        assert f'<p class="banner">{name}: its run has not finished</p>' in (tmp_path / "report.html").read_text()


def test_a_link_to_itself_is_no_file(agents, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    loop = tmp_path / "loop"
    for arguments in (
        ["process_results.py", loop],
        ["process_results.py", *agents, "--output_dir", loop, "--bootstrap", 0],
        ["logit_calculation.py", *agents, "--output_csv", loop / "a.csv"],
    ):
        found = run(*arguments)
        assert found.returncode == 1
        assert found.stderr.startswith(f"error: {loop}")
        assert found.stderr.count("\n") == 1
    # Images that are not there are not shown; metadata that are not there are none.
    agents[0].with_suffix(".json").symlink_to(agents[0].with_suffix(".json").name)
    found = run("process_results.py", *agents, "--image_root", loop, "--output_dir", tmp_path / "out", "--bootstrap", 0)
    assert found.returncode == 0, found.stderr


def test_a_hostile_name_reaches_neither_terminal_nor_tables_raw(agents, tmp_path):
    agents[0].with_suffix(".json").write_text('{"detector": "\\ud800\\u001b[31m", "x": ["\\udfff"]}')
    fused = run("logit_calculation.py", *agents, "--output_csv", tmp_path / "moa_df.csv")
    assert fused.returncode == 0, fused.stderr
    assert fused.stdout.startswith(r"\ud800\x1b[31m: 100 images")
    found = run("process_results.py", *agents, tmp_path / "moa_df.csv", "--output_dir", tmp_path, "--bootstrap", 0)
    assert found.returncode == 0, found.stderr
    texts = [path.read_text() for path in (tmp_path / "tables").rglob("*.*")] + [found.stdout]
    assert not any("\x1b" in text for text in texts)
    assert r"\ud800\x1b[31m" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("program", ["logit_calculation.py", "process_results.py"])
def test_different_images_need_partial(agents, tmp_path, program):
    shorter = write_csv(tmp_path / "short.csv", 3, num_images=19)
    options = ["--bootstrap", 0, "--output_dir", tmp_path / "out"]
    if program == "logit_calculation.py":
        options = ["--output_csv", tmp_path / "out.csv"]
    arguments = [agents[0], shorter, *options]
    refused = run(program, *arguments)
    assert refused.returncode == 1
    assert "lacks 5 of 100" in refused.stderr
    assert run(program, *arguments, "--partial").returncode == 0


@pytest.mark.parametrize("program", ["logit_calculation.py", "process_results.py"])
def test_help_and_wrong_paths_wait_for_no_heavy_import(program):
    for arguments in (["--help"], ["no such file.csv"]):
        command = [sys.executable, "-X", "importtime", str(ROOT / program), *arguments]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert "no such file.csv: no such file" in found.stderr or found.returncode == 0
        modules = {line.split("|")[-1].strip() for line in found.stderr.splitlines() if line.startswith("import time:")}
        assert "numpy" in modules
        assert not {"pandas", "scipy", "sklearn", "matplotlib", "jinja2", "torch"} & modules


def test_wrong_arguments_exit_with_2(agents):
    assert run("logit_calculation.py", agents[0], "--fusion", "magic").returncode == 2
    assert run("process_results.py", "--nonsense").returncode == 2


@pytest.mark.parametrize("method", ["mean_logit", "vote", "weighted", "calibrated", "stacked"])
def test_every_fusion_says_what_it_was_fitted_on(agents, tmp_path, method):
    found = run("logit_calculation.py", *agents, "--fusion", method, "--output_csv", tmp_path / "out" / "f.csv")
    assert found.returncode == 0, found.stderr
    assert ("fitted on images of other sources (2 folds by source)" in found.stdout) == (
        method not in ("mean_logit", "vote")
    )
    assert f"MoA-DF ({method}): " in found.stdout


@pytest.mark.slow
def test_fit_on_validation_files_then_apply_to_new_ones(agents, tmp_path):
    sources = {f"val/{source}": label for source, label in SOURCES.items()}
    validation = [write_csv(tmp_path / "val" / path.name, seed, sources=sources) for seed, path in enumerate(agents)]
    fitted = run(
        "logit_calculation.py",
        *agents,
        "--fusion",
        "stacked",
        "--fit-csv",
        *validation,
        "--output_csv",
        tmp_path / "f.csv",
    )
    assert fitted.returncode == 0, fitted.stderr
    assert "fitted on 100 validation images" in fitted.stdout
    applied = run("logit_calculation.py", *agents, "--apply", tmp_path / "f.json", "--output_csv", tmp_path / "g.csv")
    assert applied.returncode == 0, applied.stderr
    assert (tmp_path / "f.csv").read_bytes() == (tmp_path / "g.csv").read_bytes()
    same = run("logit_calculation.py", *validation, "--apply", tmp_path / "f.json", "--output_csv", tmp_path / "h.csv")
    assert same.returncode == 1
    assert "must not be reported on it" in same.stderr
    tables = run("process_results.py", tmp_path / "g.csv", "--output_dir", tmp_path / "out", "--bootstrap", 0)
    assert "MoA-DF (stacked): fitted on other images (" in tables.stdout


def test_weights_by_hand(agents, tmp_path):
    found = run(
        "logit_calculation.py",
        *agents,
        "--fusion",
        "weighted",
        "--weights",
        1,
        0,
        0,
        "--output_csv",
        tmp_path / "f.csv",
    )
    assert found.returncode == 0, found.stderr
    fused, first = ((path.read_text().splitlines()) for path in (tmp_path / "f.csv", agents[0]))
    assert [line.split(",")[2] for line in fused] == [line.split(",")[2] for line in first]
    assert run("logit_calculation.py", *agents, "--weights", 1, 0, 0).returncode == 2
    refused = run("logit_calculation.py", *agents, "--fusion", "weighted", "--weights", 1, 2)
    assert refused.returncode == 1
    assert "expected 3 numbers" in refused.stderr


def test_prior_seed_and_resamples(agents, tmp_path):
    options = ("--bootstrap", 30, "--prior", 0.5, "--seed", 7, "--output_dir", tmp_path)
    found = run("process_results.py", *agents, *options)
    assert found.returncode == 0, found.stderr
    assert "[95 % interval]" in found.stdout
    assert "real prior 50 %" in (tmp_path / "tables" / "reweighted.md").read_text()
    assert "30 bootstrap resamples (seed 7)" in (tmp_path / "report.html").read_text()
    for prior in (0, 1, 1.5):
        assert run("process_results.py", *agents, "--prior", prior).returncode == 2


@pytest.mark.slow
def test_audit_adds_baselines_and_matched_figures(agents, tmp_path):
    from PIL import Image

    for source, label in SOURCES.items():
        (tmp_path / "DFBench" / source).mkdir(parents=True)
        for i in range(20):
            size = (64, 48) if label == "B" or i < 5 else (32, 24)
            Image.new("RGB", size).save(tmp_path / "DFBench" / source / f"{i}.jpg")
    found = run(
        "process_results.py",
        *agents,
        "--audit",
        "--image_root",
        tmp_path,
        "--output_dir",
        tmp_path / "out",
        "--bootstrap",
        20,
    )
    assert found.returncode == 0, found.stderr
    assert "meta (same): metadata-only baseline: sees size and format alone" in found.stdout
    assert max(map(len, found.stdout.split("\ntables in")[0].splitlines())) <= 100
    matched = (tmp_path / "out" / "tables" / "reweighted.md").read_text()
    assert "equal size and format" in matched
    assert (tmp_path / "out" / "tables" / "audit_correlations.csv").exists()
    refused = run("process_results.py", *agents, "--audit", "--image_root", tmp_path / "out")
    assert refused.returncode == 1
    assert "none of the 100 images" in refused.stderr


# A metric and a rule of one's own: registered in one place, found wherever the programs show such things.


def test_a_registered_metric_is_in_the_terminal_the_tables_and_the_report(agents, tmp_path):
    from dfbench.evaluation import metrics

    specificity = metrics.Metric(
        "specificity",
        "TNR (dummy)",
        "Share of real images predicted real.",
        lambda sample: metrics.ratio(sample.right_real, sample.num_real),
        needs_both=True,
        show="{:.3f}".format,
    )
    metrics.register(specificity)
    try:
        out = run("process_results.py", *agents, "--bootstrap", 20, "--output_dir", tmp_path, "--quiet").stdout
    finally:
        del metrics.METRICS["specificity"]
    # "TNR (dummy)  0.925 [0.875,0.975]  ...": shown as the record says, with bounds of the bootstrap.
    line = next(line for line in out.splitlines() if line.startswith("TNR (dummy)"))
    assert re.fullmatch(r"TNR \(dummy\)( +0\.\d{3} \[0\.\d{3},[01]\.\d{3}\]){3}", line)
    tables = tmp_path / "tables"
    assert "specificity,specificity_low,specificity_high" in (tables / "by_source.csv").read_text()
    assert "TNR (dummy)" in (tables / "overall.md").read_text()
    assert "TNR (dummy)" in (tables / "summary.tex").read_text()
    report = (tmp_path / "report.html").read_text()
    assert "<dt>TNR (dummy)</dt><dd>Share of real images predicted real.</dd>" in report
    assert report.count("TNR (dummy)") > 2


def test_a_registered_fusion_rule_is_a_choice_and_applies(agents, tmp_path):
    from dfbench.fusion import rules

    class Last(rules.FusionRule):
        """What the last agent says."""

        name = "last"

        def apply(self, agents):
            return agents.prob[:, -1]

    rules.register(Last)
    try:
        fused = run("logit_calculation.py", *agents, "--fusion", "last", "--output_csv", tmp_path / "last.csv")
        usage = " ".join(run("logit_calculation.py", "--help").stdout.split())
    finally:
        del rules.RULES["last"]
    assert "MoA-DF (last): " in fused.stdout
    found, last = (read_detector(path).frame for path in (tmp_path / "last.csv", agents[-1]))
    assert found[["image", "answer", "prob_B"]].equals(last[["image", "answer", "prob_B"]])
    assert json.loads((tmp_path / "last.json").read_text())["fusion"] == "last"
    assert "last: What the last agent says." in usage


@pytest.mark.slow
def test_the_benchmark_measures_both_programs():
    found = run("scripts/benchmark_results.py", "--rows", 500, "--bootstrap", 5)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0].startswith("500 images, 3 agents and MoA-DF, ")
    assert [line.split(": ")[0] for line in lines[1:]] == ["logit_calculation.py", "process_results.py", "report.html"]
    assert "MiB peak" in lines[2]
