"""Annotation files in every released shape, and in every broken one that was thought of."""

import json
import tracemalloc

import pytest

from dfbench.data import annotations
from dfbench.data.annotations import (
    AnnotationWriter,
    Sample,
    check_annotations,
    iter_samples,
    normalize_key,
    read_annotations,
    write_annotations,
)
from dfbench.errors import InputError

QUESTION = "<image>Is this a real image or a generated image? A: 'real' or B: 'generated'. Just answer with A or B."


def messages_row(image="DFBench/Kolors/000002.jpg", label="B", question=QUESTION):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": label}]
    return {"messages": turns, "images": image}


def conversations_row(image="DFBench/Kolors/000002.jpg", answer="B", question=QUESTION):
    return {"image": image, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_array(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def error_of(path):
    with pytest.raises(InputError) as caught:
        read_annotations(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("write", [write_lines, write_array])
@pytest.mark.parametrize(
    "row",
    [
        messages_row(),
        messages_row(image=["DFBench/Kolors/000002.jpg"]),
        messages_row(image="./DFBench/Kolors/000002.jpg"),
        messages_row(image="DFBench\\Kolors\\000002.jpg"),
        messages_row(label=" B\n"),
        conversations_row(),
        conversations_row(answer=[{"role": "assistant", "content": "B"}]),
        messages_row() | {"id": 7},
    ],
    ids=["string", "list of one", "./", "backslashes", "padded label", "conversations", "list quirk", "extra column"],
)
def test_every_shape_gives_the_same_sample(tmp_path, write, row):
    path = write(tmp_path / "img.json", [row])
    assert read_annotations(path) == [Sample("DFBench/Kolors/000002.jpg", "B", QUESTION)]


def test_a_system_turn_is_no_question(tmp_path):
    row = messages_row()
    row["messages"].insert(0, {"role": "system", "content": "You are a helpful assistant."})
    assert read_annotations(write_lines(tmp_path / "a.jsonl", [row]))[0].question == QUESTION


def test_the_extension_does_not_decide(tmp_path):
    rows = [messages_row(), conversations_row("DFBench/CLIVE/1.bmp", "A")]
    lines = write_lines(tmp_path / "lines.json", rows)
    array = write_array(tmp_path / "array.jsonl", rows)
    assert read_annotations(lines) == read_annotations(array)
    assert [sample.source for sample in read_annotations(array)] == ["Kolors", "CLIVE"]


def test_a_row_without_an_answer_has_no_label(tmp_path):
    asked = {"messages": [{"role": "user", "content": QUESTION}], "images": "my/photo.jpg"}
    empty = messages_row("my/other.jpg", label="")
    labels = [sample.label for sample in read_annotations(write_lines(tmp_path / "a.jsonl", [asked, empty]))]
    assert labels == ["", ""]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_byte_order_mark_carriage_returns_and_blank_lines(tmp_path, encoding, newline):
    rows = [messages_row(f"DFBench/Kolors/{i}.jpg", question="<image>真的吗? é") for i in range(3)]
    lines = ["", *(json.dumps(row, ensure_ascii=False) for row in rows), "", "  "]
    path = tmp_path / "a.jsonl"
    path.write_bytes(newline.join(lines).encode(encoding))
    assert [sample.image for sample in read_annotations(path)] == [f"DFBench/Kolors/{i}.jpg" for i in range(3)]
    assert read_annotations(path)[0].question == "<image>真的吗? é"
    path.write_bytes(json.dumps(rows, indent=2).replace("\n", newline).encode(encoding))
    assert len(read_annotations(path)) == 3


def test_a_file_that_does_not_end_in_a_line_break(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(messages_row()))
    assert len(read_annotations(path)) == 1


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1000])
def test_an_array_is_read_across_chunk_borders(tmp_path, monkeypatch, chunk):
    """With windows of one character and a few, every kind of token meets a border: escapes, strings, brackets."""
    rows = [messages_row(f'DFBench/Kolors/{i}\\"é漢.jpg', question='<image>a\t"b" \\ é 漢字 😀?') for i in range(12)]
    path = tmp_path / "a.json"
    path.write_text(
        "  [ \n" + " ,\n ".join(json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)) + " ] \n"
    )
    expected = read_annotations(path)
    monkeypatch.setattr(annotations, "_CHUNK", chunk)
    assert read_annotations(path) == expected
    assert len(expected) == 12
    assert expected[3].question == '<image>a\t"b" \\ é 漢字 😀?'


def test_an_array_is_not_read_whole_before_its_first_row(tmp_path):
    """The end of this file is broken: whoever decodes the whole of it first would see no row."""
    text = json.dumps([messages_row(f"DFBench/Kolors/{i}.jpg") for i in range(20_000)])
    path = tmp_path / "a.json"
    path.write_text(text[:-10])
    rows = iter_samples(path)
    assert [next(rows)[1].image for _ in range(3)] == [f"DFBench/Kolors/{i}.jpg" for i in range(3)]
    with pytest.raises(InputError, match="row 20000: broken JSON"):
        list(rows)


def test_places_count_rows_from_one_and_lines_include_blank_ones(tmp_path):
    array = write_array(tmp_path / "a.json", [messages_row(), messages_row("x/y.jpg")])
    assert [str(place) for place, _ in iter_samples(array)] == [f"{array}, row 1", f"{array}, row 2"]
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n" + json.dumps(messages_row()) + "\n\n" + json.dumps(messages_row("x/y.jpg")) + "\n")
    assert [place.row for place, _ in iter_samples(lines)] == [2, 4]


# ------------------------------------------------------------------------------------------- InternVL's data-set list


def test_a_dataset_list_reads_the_files_it_names_in_order(tmp_path):
    write_lines(tmp_path / "one.jsonl", [conversations_row("DFBench/Kolors/1.jpg")])
    (tmp_path / "more").mkdir()
    write_array(tmp_path / "more" / "two.json", [messages_row("DFBench/Kolors/2.jpg")])
    entries = {
        "first": {"root": "./", "annotation": "one.jsonl", "repeat_time": 1, "length": 1},
        "second": {"root": "./", "annotation": "more/two.json"},
    }
    path = tmp_path / "deepfake.json"
    path.write_text(json.dumps(entries, indent=2))
    assert [sample.image for sample in read_annotations(path)] == ["DFBench/Kolors/1.jpg", "DFBench/Kolors/2.jpg"]


@pytest.mark.parametrize("root", ["", ".", "./", None])
def test_a_dataset_list_may_have_a_root_that_moves_nothing(tmp_path, root):
    write_lines(tmp_path / "one.jsonl", [conversations_row("DFBench/Kolors/1.jpg")])
    path = write_array(tmp_path / "deepfake.json", {"first": {"root": root, "annotation": "one.jsonl"}})
    assert [sample.image for sample in read_annotations(path)] == ["DFBench/Kolors/1.jpg"]


@pytest.mark.parametrize("root", ["..", "/data/images", "DFBench/", 1, ["."]])
def test_a_dataset_list_with_another_root_is_refused(tmp_path, root):
    write_lines(tmp_path / "one.jsonl", [conversations_row("DFBench/Kolors/1.jpg")])
    entries = {"first": {"annotation": "one.jsonl"}, "second": {"root": root, "annotation": "one.jsonl"}}
    message = error_of(write_array(tmp_path / "deepfake.json", entries))
    assert message.startswith(f"{tmp_path / 'deepfake.json'}, entry 'second': root is {root!r}, ")
    assert "image paths start from --image_root" in message


def test_a_dataset_list_names_the_file_that_is_missing(tmp_path):
    path = tmp_path / "deepfake.json"
    path.write_text(json.dumps({"first": {"annotation": "gone.jsonl"}}))
    assert "gone.jsonl: no such annotation file" in error_of(path)


def test_a_dataset_list_that_names_itself_ends(tmp_path):
    path = tmp_path / "deepfake.json"
    path.write_text(json.dumps({"first": {"annotation": "deepfake.json"}}))
    assert "row 1" in error_of(path)


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ([1, 2], "the row is [1, 2]; expected `messages` and `images`"),
        ("text", "the row is 'text'"),
        (None, "the row is None"),
        ({"image": "a.jpg"}, "the row has the keys ['image']"),
        ({}, "the row has the keys []"),
        (messages_row(label="C"), "the label is 'C'"),
        (messages_row(label="b"), "the label is 'b'"),
        (messages_row(label=None), "the label is None"),
        (messages_row(label=1), "the label is 1"),
        (conversations_row(answer=[]), "the label is []"),
        (conversations_row(answer=[{"content": "A"}, {"content": "B"}]), "the label is [{"),
        (conversations_row(answer=[{"role": "assistant"}]), "the label is None"),
        (messages_row(image=""), "the image is ''"),
        (messages_row(image="  "), "the image is ' '"),
        (messages_row(image=[]), "the image is []"),
        (messages_row(image=["a.jpg", "b.jpg"]), "the image is ['a.jpg', 'b.jpg']"),
        (messages_row(image={"path": "a.jpg"}), "the image is {'path': 'a.jpg'}"),
        (messages_row(image="a\nb.jpg"), "the image is 'a\\nb.jpg'"),
        (messages_row(image="a\x00.jpg"), "the image is 'a\\x00.jpg'"),
        (messages_row(image="a\x1b[31m.jpg"), "the image is 'a\\x1b[31m.jpg'"),
        (messages_row(image="a\ud800.jpg"), "the image is 'a\\ud800.jpg'"),
        (messages_row(question=""), "the question is ''"),
        (messages_row(question="<image>"), "the question is '<image>'"),
        (messages_row(question=None), "the question is None"),
        (messages_row(question="half of \ud83d"), "the question"),
        (messages_row(question="<image><image>Real?"), "2 times <image>"),
        ({"messages": "Real?", "images": "a.jpg"}, "the turns are 'Real?'"),
        ({"messages": ["Real?"], "images": "a.jpg"}, "the turns are ['Real?']"),
        ({"messages": [{"role": "tool", "content": "x"}], "images": "a.jpg"}, "a turn of 'tool'"),
        ({"messages": messages_row()["messages"] * 2, "images": "a.jpg"}, "a turn of 'user'"),
        ({"messages": [], "images": "a.jpg"}, "the question is None"),
    ],
)
@pytest.mark.parametrize("write", [write_lines, write_array])
def test_a_bad_row_is_named(tmp_path, write, row, found):
    path = write(tmp_path / "a.json", [messages_row("x/1.jpg"), row, messages_row("x/2.jpg")])
    message = error_of(path)
    assert message.startswith(f"{path}, row 2: ")
    assert found in message


@pytest.mark.parametrize(
    "image", ["DFBench/édit/漢字 1.jpg", "DFBench/edit/no\u00a0break\u200d.jpg", "/abs/1.jpg", "../1.jpg"]
)
def test_unusual_keys_that_are_read_all_the_same(tmp_path, image):
    """Absolute paths and `..` are the reader's own business; only what writes images refuses them."""
    assert read_annotations(write_lines(tmp_path / "a.jsonl", [messages_row(image)]))[0].image == image


def test_several_bad_rows_are_counted_and_the_good_ones_kept(tmp_path):
    rows = [messages_row("x/1.jpg"), {}, messages_row("x/2.jpg", label="?"), messages_row("x/3.jpg")]
    path = write_lines(tmp_path / "a.jsonl", rows)
    assert "row 2" in error_of(path)
    assert "1 more rows of this file are bad" in error_of(path)
    good, problems = check_annotations(path)
    assert [(where.row, sample.image) for where, sample in good] == [(1, "x/1.jpg"), (4, "x/3.jpg")]
    assert [problem.partition(": ")[0] for problem in problems] == [f"{path}, row 2", f"{path}, row 3"]


def test_a_repeated_row_is_dropped_and_a_contradicting_one_refused(tmp_path):
    same = [messages_row("x/1.jpg"), conversations_row("./x/1.jpg"), messages_row("x/2.jpg")]
    assert [sample.image for sample in read_annotations(write_lines(tmp_path / "a.jsonl", same))] == [
        "x/1.jpg",
        "x/2.jpg",
    ]
    for other in (messages_row("x/1.jpg", label="A"), messages_row("x/1.jpg", question="Real?")):
        path = write_lines(tmp_path / "b.jsonl", [messages_row("x/1.jpg"), other])
        message = error_of(path)
        assert message.startswith(f"{path}, row 2")
        assert f"{path}, row 1" in message


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no rows"),
        (" \n\n", "no rows"),
        ("[]", "no rows"),
        ("[", "row 1: broken JSON"),
        ("[{}", "row 1: broken JSON (no comma or closing bracket"),
        ('[{"a": 1} {"b": 2}]', "row 1: broken JSON (no comma"),
        ('[{"a": 1},', "row 2: broken JSON"),
        ('[{"a": "b', "row 1: broken JSON"),
        ("[1, 2]\n[3]", "more text after the array's end"),
        ('{"a": 1', "row 1: broken JSON"),
        ('{"a": 1}\n{"b', "row 2: broken JSON"),
        ('{"a": 1} {"b": 2}', "row 1: broken JSON"),
        ("not JSON", "row 1: broken JSON"),
        ("[" * 100_000, "row 1: broken JSON"),
        ('{"a": ' * 100_000, "row 1: broken JSON"),
        ("9" * 5000, "row 1: broken JSON"),
        ("[" + "9" * 5000 + "]", "row 1: broken JSON"),
    ],
    ids=range(17),
)
def test_broken_files_get_one_line(tmp_path, text, found):
    path = tmp_path / "a.json"
    path.write_text(text)
    message = error_of(path)
    assert found in message
    assert len(message) < 400


def test_a_truncated_download_is_broken_whatever_byte_it_ends_at(tmp_path):
    path = tmp_path / "a.json"
    whole = json.dumps([messages_row(f"x/{i}.jpg", question="é 漢?") for i in range(2)], ensure_ascii=False).encode()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_annotations(path)


def test_no_row_is_longer_than_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(annotations, "_LONGEST_ROW", 1000)
    monkeypatch.setattr(annotations, "_CHUNK", 100)
    for text in ('[{"a": "' + "x" * 5000 + '"}]', '{"a": "' + "x" * 5000 + '"}'):
        path = tmp_path / "a.json"
        path.write_text(text)
        assert "row 1: broken JSON" in error_of(path)


def test_files_that_are_none(tmp_path):
    assert "no such annotation file" in error_of(tmp_path / "gone.json")
    assert "is a folder" in error_of(tmp_path)
    (tmp_path / "a.json").write_bytes(json.dumps([messages_row()]).encode("utf-16"))
    assert "not UTF-8" in error_of(tmp_path / "a.json")
    (tmp_path / "b.jsonl").write_bytes(json.dumps(messages_row("x/1.jpg")).encode() + b'\n{"a": "\xff"}\n')
    assert "not UTF-8" in error_of(tmp_path / "b.jsonl")


def test_normalize_key():
    assert normalize_key(" ././DFBench\\LIVE\\1.bmp ") == "DFBench/LIVE/1.bmp"
    assert normalize_key(".//DFBench/a.jpg") == "DFBench/a.jpg"
    assert normalize_key(".hidden/a.jpg") == ".hidden/a.jpg"
    assert normalize_key("/data//DFBench/a.jpg") == "/data/DFBench/a.jpg"
    assert normalize_key("//data/a.jpg") == "/data/a.jpg"
    assert normalize_key("../b/a.jpg") == "../b/a.jpg"
    assert normalize_key("DFBench/Kolors/1..2.jpg") == "DFBench/Kolors/1..2.jpg"


@pytest.mark.parametrize(
    "image",
    ["DFBench//Kolors/1.jpg", "DFBench/./Kolors/1.jpg", "a/../DFBench/Kolors/1.jpg", "DFBench/x/..//Kolors\\1.jpg"],
)
def test_one_image_has_one_key_however_it_is_spelled(tmp_path, image):
    rows = [messages_row("DFBench/Kolors/1.jpg"), messages_row(image)]
    samples = read_annotations(write_lines(tmp_path / "a.jsonl", rows))
    assert [sample.image for sample in samples] == ["DFBench/Kolors/1.jpg"]


@pytest.mark.parametrize("image", ["./", ".", "a/.."])
def test_a_path_to_nothing_is_no_image(tmp_path, image):
    with pytest.raises(InputError, match=r"row 1: the image is .*; expected one path"):
        read_annotations(write_lines(tmp_path / "a.jsonl", [messages_row(image)]))


def test_labels_that_contradict_the_catalogue_are_told_once(tmp_path, caplog):
    """The images count as what the file says: their source may be another one of the same name."""
    images = ["CLIVE/1.jpg", "CLIVE/2.jpg", "Kolors/1.jpg", "edit/1.jpg", "mine/1.jpg"]
    rows = [messages_row(f"DFBench/{image}", label) for image, label in zip(images, "BBABA", strict=True)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    with caplog.at_level("WARNING"):
        assert [sample.label for sample in read_annotations(path)] == list("BBABA")
    assert caplog.messages == [
        f"warning: {path}: 3 labels contradict the catalogue of sources (CLIVE: 2, Kolors: 1), such as "
        "DFBench/CLIVE/1.jpg, which has B where every image of CLIVE has A. Correct the labels or rename the folders."
    ]


# ------------------------------------------------------------------------------------------------------------ writing


@pytest.mark.parametrize("name", ["img_test.json", "img_test.jsonl"])
def test_what_is_written_reads_back_and_has_the_shape_of_ms_swift(tmp_path, name):
    samples = [
        Sample("DFBench/édit/漢.jpg", "B", '<image>"Real"?\n\\'),
        Sample("x/1.jpg", "A", "Real?"),
        Sample("x/2.jpg", "", "?"),
    ]
    path = tmp_path / "new" / name
    assert write_annotations(samples, path) == 3
    assert read_annotations(path) == samples
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    assert rows[0] == {
        "messages": [{"role": "user", "content": '<image>"Real"?\n\\'}, {"role": "assistant", "content": "B"}],
        "images": ["DFBench/édit/漢.jpg"],
    }
    assert [turn["role"] for turn in rows[2]["messages"]] == ["user"]
    assert [file.name for file in path.parent.iterdir()] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["img_test.json", "img_test.jsonl"])
def test_the_reader_behind_ms_swift_takes_what_is_written(tmp_path, name):
    datasets = pytest.importorskip("datasets")
    samples = [Sample(f"DFBench/édit/{i}.jpg", "AB"[i % 2], '<image>"Real"?\n') for i in range(5)]
    write_annotations(samples, tmp_path / name)
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("json", data_files=str(tmp_path / name), split="train", cache_dir=cache)
    assert loaded.column_names == ["messages", "images"]
    assert [row["images"] for row in loaded] == [[sample.image] for sample in samples]
    assert [row["messages"][1]["content"] for row in loaded] == [sample.label for sample in samples]


def test_written_images_can_be_absolute(tmp_path):
    path = tmp_path / "a.jsonl"
    write_annotations([Sample("DFBench/x/1.jpg", "A", "Real?")], path, image_root=tmp_path)
    assert read_annotations(path)[0].image == str(tmp_path / "DFBench/x/1.jpg")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_no_rows_are_written_as_valid_json(tmp_path, name):
    write_annotations([], tmp_path / name)
    assert (tmp_path / name).read_text() == ("[]\n" if name == "a.json" else "")


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write_annotations([Sample("x/1.jpg", "A", "Real?"), Sample("x/2.jpg", "B", "Real?")], path)
    before = path.read_bytes()
    with pytest.raises(AttributeError), AnnotationWriter(path) as writer:
        writer.write("no sample")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_streamed_file_of_many_rows_costs_no_memory(tmp_path):
    """20 MB of rows, read with less than 8 MB of Python objects at any moment."""
    path = tmp_path / "a.json"
    write_annotations((Sample(f"x/{i}.jpg", "A", "Real? " * 60) for i in range(50_000)), path)
    assert path.stat().st_size > 20e6
    tracemalloc.start()
    assert sum(1 for _ in iter_samples(path)) == 50_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
