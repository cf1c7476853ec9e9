"""Damaged annotations, per-image CSVs and metadata: a clear line or right values, never a bad one and no traceback."""

import json
import math
import random
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import save_rows
from fuzz import workplaces
from fuzz.faults import check_ended, check_words
from fuzz.mutations import HOSTILE_TEXTS, HOSTILE_VALUES, NOT_FOR_TERMINALS, damage, damage_json_text, damage_lines
from fuzz.workplaces import AGENT_CSVS, Workplace, csv_text, samples

from dfbench.data.annotations import Sample, read_annotations
from dfbench.errors import InputError
from dfbench.features.schema import COLUMNS as FEATURE_COLUMNS
from dfbench.fusion.fuse import fuse
from dfbench.predictions.reader import read_detector, read_detectors
from dfbench.predictions.schema import COLUMNS

CONTROL = re.compile("[\0-\x1f\x7f-\x9f]")


def check_message(error: InputError) -> None:
    assert str(error).strip()
    assert len(str(error)) < 4000
    assert str(error).endswith("."), f"no sentence: {str(error)[-100:]}"


# --------------------------------------------------------------------------------------------------------- annotations


def decoded_rows(data: bytes) -> Iterator[dict[str, Any]]:
    """The rows of a file in the simplest way: a JSON array, or a JSON value a line."""
    text = data.decode("utf-8-sig")
    if text.lstrip(" \t\r\n").startswith("["):
        yield from json.loads(text)
    else:
        yield from (json.loads(line) for line in text.splitlines() if line.strip())


def plain_values(row: dict[str, Any]) -> tuple[Any, Any, Any]:
    """(image, label, question) as they stand in a row of either shape."""
    turns = row.get("messages") or row["conversations"]
    found = {turn.get("role", turn.get("from")): turn.get("content", turn.get("value")) for turn in turns}
    image, answer = row.get("images", row.get("image")), found.get("assistant", found.get("gpt", ""))
    image = image[0] if isinstance(image, list) else image
    answer = answer[0]["content"] if isinstance(answer, list) else answer
    return image, answer, found.get("user", found.get("human"))


def fuzz_annotations(rng: random.Random, folder: Path) -> None:
    path = save_rows(folder / rng.choice(("a.json", "a.jsonl")), samples())
    if rng.random() < 0.7:
        path.write_bytes(damage_json_rows(rng, path))
    else:
        path.write_bytes(damage(rng, path.read_bytes()))
    try:
        found = read_annotations(path)
    except InputError as error:
        check_message(error)
        return
    assert found
    assert len({sample.image for sample in found}) == len(found)
    rows = [plain_values(row) for row in decoded_rows(path.read_bytes())]
    raw = {(label.strip(), question) for _, label, question in rows}
    for sample in found:
        assert sample.label in ("A", "B", "")
        assert not CONTROL.search(sample.image), repr(sample.image)
        assert (sample.label, sample.question) in raw, f"not in the file: {sample}"
        json.dumps(sample.image).encode()
        sample.question.encode()
    save_rows(folder / "again.jsonl", found)
    assert read_annotations(folder / "again.jsonl") == found


def damage_json_rows(rng: random.Random, path: Path) -> bytes:
    if path.suffix == ".json":
        return damage_json_text(rng, path.read_text())
    lines = path.read_text().splitlines()
    at = rng.randrange(len(lines))
    changed = [line.encode() for line in lines]
    changed[at] = damage_json_text(rng, lines[at]).replace(b"\n", b" ")
    return b"\n".join(changed)


def test_annotations(fuzz):
    fuzz(fuzz_annotations, cases=120)


# ------------------------------------------------------------------------------------------------------ per-image CSVs

UPSTREAM = (
    "image_path,predicted_reply,true_label,logprob_A,logprob_B,prob_A,prob_B\n"
    + "".join(f"DFBench/edit/{i}.jpg,B,B,-{i}.5,-0.1,0.{i}000,0.{10 - i}000\n" for i in range(1, 9))
    + "DFBench/edit/9.jpg,N/A,B,N/A,N/A,N/A,N/A\n",
    "imgname,answer,output,prob_A,prob_B\n"
    + "".join(f"DFBench/edit/{i}.jpg,A,x,0.{i}000,0.{10 - i}000\n" for i in range(1, 9)),
)


def with_logits(seed: int) -> str:
    rng, lines = np.random.default_rng(seed), [",".join(COLUMNS)]
    for sample in samples():
        pair = rng.normal(0, 3, 2).astype(np.float32)
        prob = (1 / (1 + np.exp(-(pair - pair[::-1])))).astype(np.float32)
        numbers = ",".join(map(str, (*pair, *prob)))
        lines.append(f"{sample.image},{sample.label},{'A' if prob[0] > prob[1] else 'B'},{numbers}")
    return "\n".join(lines) + "\n"


def fuzz_csvs(rng: random.Random, folder: Path) -> None:
    path = folder / "a.csv"
    path.write_bytes(damage_lines(rng, rng.choice((csv_text(1, 4), with_logits(2), *UPSTREAM))))
    try:
        frame = read_detector(path).frame
    except InputError as error:
        check_message(error)
        return
    prob = frame[["prob_A", "prob_B"]].to_numpy(np.float64)
    assert len(frame)
    assert not frame["image"].duplicated().any()
    assert frame["label"].isin(["A", "B", ""]).all()
    assert ((prob >= 0) & (prob <= 1)).all()
    assert (abs(prob.sum(axis=1) - 1) < 2e-4).all()
    assert (frame["answer"] == np.where(prob[:, 0] > prob[:, 1], "A", "B")).all()
    # The cells themselves, read in the simplest way, hold these numbers in these rows.
    lines = [line.split(",") for line in re.split(r"\r\n|\r|\n", path.read_bytes().decode("utf-8-sig"))]
    cells = {tuple(_number(cell) for cell in _last_two(lines[0], line)) for line in lines[1:]}
    for pair in frame[["prob_A", "prob_B"]].itertuples(index=False):
        if not any('"' in cell for line in lines for cell in line):
            assert any(np.float32(a) == pair[0] and np.float32(b) == pair[1] for a, b in cells), pair


def _last_two(header: list[str], line: list[str]) -> tuple[str, str]:
    try:
        return line[header.index("prob_A")], line[header.index("prob_B")]
    except (ValueError, IndexError):
        return "", ""


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def test_csvs(fuzz):
    fuzz(fuzz_csvs, cases=60)


def fuzz_resumed_csv(place: Workplace, rng: random.Random, folder: Path) -> None:
    """Lines that are lost, cut off or there twice: resuming refuses the file, or makes it whole again."""
    place.fill(folder)
    for name, content in place.undisturbed[0].items():
        if name.startswith("out/"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    path = folder / rng.choice(("out/a.csv", "out/a.csv", "out/a.errors.csv"))
    lines = path.read_bytes().splitlines(keepends=True)
    match rng.randrange(5 if path.name == "a.csv" else 4):  # there is no part without its CSV
        case 0:
            content = path.read_bytes()
            path.write_bytes(content[: rng.randrange(len(content))])
        case 1:
            del lines[rng.randrange(len(lines))]
            path.write_bytes(b"".join(lines))
        case 2:
            path.unlink()
        case 3:
            path.write_bytes(path.read_bytes() + rng.choice(lines))
        case _:
            half = rng.randrange(1, len(lines) + 1)
            path.write_bytes(b"".join(lines[:half]))
            part = path.with_name(path.name.replace("a.", f"a.part{rng.randrange(3)}.", 1))
            part.write_bytes(b"".join([lines[0], *lines[half:]]))
    ended = place.run(folder)
    check_ended(ended, 1)
    if "--overwrite" not in ended.err:  # refused
        place.finish(folder)


def test_resumed_csvs(fuzz, fake_model, tmp_path, monkeypatch):
    monkeypatch.setattr("dfbench.provenance.git_commit", lambda: "0" * 40)
    fuzz(partial(fuzz_resumed_csv, workplaces.scoring(tmp_path)), cases=4)


# ------------------------------------------------------------------------------------------------------------ metadata


def fuzz_metadata(rng: random.Random, folder: Path) -> None:
    """Damaged metadata beside CSVs: fused and joined as if it were good, or refused in a line."""
    workplaces.fill_results(folder)
    info = {"detector": "x", "fusion": "mean_prob", "weights": [0.5, 0.2, 0.3], "agents": [{"name": "x", "rows": 1}]}
    fused = folder / "results" / "moa_df.csv"
    fused.write_text(csv_text(5))
    fused.with_suffix(".json").write_text(json.dumps(info | {"decided": {"A": 1}, "finished": True, "rows": 3}))
    chosen = folder / rng.choice((*AGENT_CSVS, "results/moa_df.csv"))
    chosen = chosen.with_suffix(".json")
    if rng.random() < 0.3:
        key = rng.choice(("detector", "identity", "fusion", "only_undecided", "finished", "weights", "agents", "rows"))
        content = json.loads(chosen.read_text()) | {key: rng.choice(HOSTILE_VALUES)}
        chosen.write_bytes(json.dumps(content).encode())
    else:
        chosen.write_bytes(damage_json_text(rng, chosen.read_text()))
    paths = [folder / name for name in AGENT_CSVS]
    expected = np.mean([read_plain(path) for path in paths], axis=0)
    for options in ({}, {"apply": fused.with_suffix(".json")}):
        try:
            frame = fuse(paths, **options).frame
        except InputError as error:
            check_message(error)
        else:
            if not options:
                assert np.allclose(frame["prob_B"], expected, atol=1e-6)
            assert frame["prob_B"].between(0, 1).all()
    try:
        names = [detector.name for detector in read_detectors([*paths, fused])]
    except InputError as error:
        check_message(error)
    else:
        assert len(set(names)) == 4
        assert all(isinstance(name, str) and name.strip() for name in names)


def read_plain(path: Path) -> list[float]:
    return [float(line.split(",")[-1]) for line in path.read_text().splitlines()[1:]]


def test_metadata(fuzz):
    fuzz(fuzz_metadata, cases=10)


def fuzz_run_metadata(place: Workplace, rng: random.Random, folder: Path) -> None:
    """Damaged metadata of an unfinished run: resuming refuses it, or gives the files of an undisturbed run."""
    place.fill(folder)
    place.run(folder, place.random_fault(rng, "SIGKILL"))
    path = folder / "out" / "a.json"
    if path.exists():
        path.write_bytes(damage_json_text(rng, path.read_text()))
    ended = place.run(folder)
    check_ended(ended, 1)
    if "images without an answer" in ended.err:
        place.finish(folder)


def test_metadata_of_runs(fuzz, fake_model, tmp_path, monkeypatch):
    monkeypatch.setattr("dfbench.provenance.git_commit", lambda: "0" * 40)
    fuzz(partial(fuzz_run_metadata, workplaces.scoring(tmp_path)), cases=4)


# ------------------------------------------------------------------------------------------------------------ features


def fuzz_features(rng: random.Random, folder: Path) -> None:
    """Damaged CSVs of features: summarised, or refused in a line."""
    from dfbench.features.statistics import read_features

    lines = [",".join(FEATURE_COLUMNS)]
    for i in range(8):
        numbers = [f"{rng.uniform(1, 99):.4f}" for _ in range(4)]
        lines.append(f"DFBench/Kolors/{i}.jpg,{','.join(numbers)},64,48,JPEG,999,-2.1")
    (folder / "Kolors.csv").write_bytes(damage_lines(rng, "\n".join(lines) + "\n"))
    (folder / "CLIVE.csv").write_text("\n".join(lines) + "\n")
    try:
        read_features(folder)
    except InputError as error:
        check_message(error)


def test_features(fuzz):
    fuzz(fuzz_features, cases=40)


# --------------------------------------------------------------------------------------------------- names in programs


def fuzz_names(programs: tuple[Workplace, Workplace], rng: random.Random, folder: Path) -> None:
    """Hostile names of images through fusing and evaluating: nothing raw on the terminal, no traceback."""
    workplaces.fill_results(folder)
    names = [text for text in HOSTILE_TEXTS if text.strip() and not {"\n", "\r", "\0", ",", '"', "\ud800"} & set(text)]
    chosen = {f"DFBench/Kolors/{i}.jpg": rng.choice(("", "DFBench/")) + rng.choice(names) for i in range(2)}
    for name in AGENT_CSVS:
        text = (folder / name).read_text()
        for old, new in chosen.items():
            text = text.replace(f"{old},", f"{new},")
        (folder / name).write_text(text)
        info = {"detector": rng.choice(names), "identity": {rng.choice(names): rng.choice(names)}}
        (folder / name).with_suffix(".json").write_text(json.dumps(info))
    for place in programs:
        ended = place.run(folder)
        check_ended(ended, 0, 1)
        check_words(ended.out)
        for text in (ended.out, ended.err):
            assert not NOT_FOR_TERMINALS.search(text), repr(text[-500:])


def test_names(fuzz, monkeypatch):
    workplaces.without_drawings(monkeypatch)
    fuzz(partial(fuzz_names, (workplaces.fusion(), workplaces.results())), cases=2)


@pytest.mark.parametrize("shape", ["messages", "conversations"])
def test_the_simple_reader_agrees_on_sound_files(tmp_path, shape):
    """The oracle of `fuzz_annotations` is right where nothing is damaged."""
    path = save_rows(tmp_path / ("a.json" if shape == "messages" else "a.jsonl"), samples())
    plain = [plain_values(row) for row in decoded_rows(path.read_bytes())]
    assert [Sample(image, label, question) for image, label, question in plain] == read_annotations(path)
    shutil.rmtree(tmp_path)
