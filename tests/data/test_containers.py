"""The same rows from every container and encoding, within limits."""

import csv
import gzip
import io
import json
import time
import warnings

import pandas as pd
import pytest

from sea_lens import Demonstrations, Questions, SeaLensWarning
from sea_lens.data import containers, decoding
from sea_lens.data.containers import read_rows, separator_of
from sea_lens.data.texts import holds_texts, read_texts
from sea_lens.errors import FileFormatError, InputError

ROWS = [
    {"prompt": "Is it; so?", "positive": "yes, a|b", "negative": "no\tnever"},
    {"prompt": "Où?", "positive": "là, “ici”", "negative": 'a "b"\nc'},
]


def as_csv(separator, rows=ROWS):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_lines(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return write


def fields(source, *arguments):
    return [dict(record.fields) for record in read_rows(source, *arguments)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", as_csv(",")),
        ("rows.csv", as_csv(";")),
        ("rows.csv", as_csv("|")),
        ("rows.tsv", as_csv("\t")),
        ("rows.TAB", as_csv("\t")),
        ("rows.txt", as_csv(";")),
        ("rows", as_lines()),
        ("rows.ndjson", as_lines()),
        ("rows.json", json.dumps(ROWS, indent=1)),
        ("rows.csv.gz", gzip.compress(as_csv(",").encode(), mtime=0)),
        ("rows.jsonl.gz", gzip.compress(as_lines().encode(), mtime=0)),
        ("rows.tsv", as_csv("\t").encode("utf-16")),
        ("rows.csv", as_csv(",").encode("utf-8-sig")),
        ("rows.json", json.dumps(ROWS, ensure_ascii=False).encode("utf-32")),
    ],
)
def test_every_container_gives_the_same_rows(write, name, content):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fields(write(name, content)) == ROWS
        assert Demonstrations.from_file(write(name, content))[1].positive == "là, “ici”"


def test_windows_1252_is_read_and_said(write):
    path = write("rows.csv", as_csv(",").encode("cp1252"))
    with pytest.warns(SeaLensWarning, match="was read as Windows-1252. Look at a line of it: 'Où"):
        assert fields(path) == ROWS
    with pytest.raises(FileFormatError, match=r"could not be read as text: .* Save it as UTF-8"):
        fields(write("rows.csv", b"a,b\n\x81,c\n"))


def test_data_frames_data_sets_lists_and_parquet(tmp_path):
    datasets, pq = pytest.importorskip("datasets"), pytest.importorskip("pyarrow.parquet")
    nested = [{**row, "list": ["a", "b"], "inside": {"n": [1, 2]}} for row in ROWS]
    data = datasets.Dataset.from_list(nested)
    pd.DataFrame(nested).to_parquet(tmp_path / "rows.parquet")
    assert pq.read_metadata(tmp_path / "rows.parquet").num_rows == 2
    for source in (data, nested, tmp_path / "rows.parquet", pd.read_parquet(tmp_path / "rows.parquet")):
        assert [row["list"] for row in fields(source)] == [["a", "b"]] * 2
        assert Demonstrations.from_file(source)[0].negative == "no\tnever"
    assert str(Demonstrations.from_file(data)).startswith("Demonstrations(2 from the data set")
    with pytest.raises(InputError, match=r"has the splits train, test\. Give one, as in data\['train'\]"):
        fields(datasets.DatasetDict({"train": data, "test": data}))
    for content in (b"PAR1", b"PAR1" + bytes(40) + b"PAR1", (tmp_path / "rows.parquet").read_bytes()[:-30]):
        (tmp_path / "bad.parquet").write_bytes(content)
        with pytest.raises(FileFormatError, match=r"bad\.parquet could not be read"):
            fields(tmp_path / "bad.parquet")


def test_columns_of_other_names(write):
    rows = [{"ask": "q", "good": "a", "bad": "b", "prompt": "not this"}]
    names = {"prompt": "ask", "positive": "good", "negative": "bad"}
    for source in (rows, pd.DataFrame(rows), write("rows.csv", as_csv(",", rows)), write("rows.jsonl", as_lines(rows))):
        (row,) = Demonstrations.from_file(source, columns=names)
        assert (row.prompt, row.positive, row.negative) == ("q", "a", "b")
        assert Questions.from_file(source, columns={"prompt": "ask", "right": "good", "wrong": "bad"})[0].wrong == (
            "b",
        )
    with pytest.raises(InputError, match=r"row 0: there is no column 'asks'\. It has: ask, good, bad, prompt"):
        Demonstrations.from_file(rows, columns={"prompt": "asks"})
    published = [{"question": "q", "right_answer": "a", "hallucinated_answer": "b"}]
    swapped = {"prompt": "question", "positive": "hallucinated_answer", "negative": "right_answer"}
    assert Demonstrations.from_file(published, columns=swapped)[0].positive == "b"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "a,b,a\n1,2,3\n", "line 1: two columns are called 'a'"),
        ("rows.jsonl", '{"a": "x", "a": "y"}', "line 1: not valid JSON .'a' stands twice"),
        ("rows.json", '[{"a": "x"}, {"a": "x", "a": "y"}]', "entry 1: not valid JSON .'a' stands twice"),
        ("rows.json", '[{"a": "x"} {"a": "y"}]', "line 1: not valid JSON .a comma"),
        ("rows.json", '[{"a": "x"}', "line 1: not valid JSON .a comma or a bracket is missing"),
        ("rows.json", '[{"a": "x"}]\n]', "line 1: not valid JSON .the list ends"),
        ("rows.json", "[" * 100_000, "entry 0: not valid JSON"),
        ("rows.json", '{\n "a": "x",\n "b": \n}', "line 4: not valid JSON"),
        ("rows.csv", "a,b\n1,\0\n", "holds NUL characters"),
        ("rows.csv", "prompt,positive\n".encode("utf-16")[2:], "holds NUL characters"),
        ("rows.csv", "a,b\n1," + "x" * 200_000, "line 2: not valid CSV .field larger than field limit"),
        ("rows.csv.gz", b"\x1f\x8b but no gzip", "could not be read"),
        ("rows.csv.gz", gzip.compress(b"a,b\n" * 999, mtime=0)[:-9], "could not be read"),
    ],
)
def test_damaged_files_are_named_with_their_place(write, name, content, message):
    with pytest.raises(FileFormatError, match=f"{name}.*{message}"):
        fields(write(name, content))


def test_half_a_surrogate_pair_is_no_text():
    row = {"prompt": "a \ud83d b", "positive": "x", "negative": "y"}
    with pytest.raises(InputError, match=r"row 0: 'prompt' holds \\ud83d at character 2, half of a surrogate pair"):
        Demonstrations.from_file([row])
    for lists in ((["a"], ["\udc00"], ["c"]), (["\udc00"], ["b"], ["c"])):
        with pytest.raises(InputError, match="half of a surrogate pair"):
            Demonstrations.from_lists(*lists)
        with pytest.raises(InputError, match="half of a surrogate pair"):
            Questions.from_lists(*lists)


def test_a_bomb_is_refused_before_it_inflates(write, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_BYTES", 1 << 22)
    path = write("rows.jsonl.gz", gzip.compress(bytes(1 << 24)))
    assert path.stat().st_size < 1 << 16
    began = time.perf_counter()
    with pytest.raises(FileFormatError, match="holds more than 4 MiB"):
        fields(path)
    assert time.perf_counter() - began < 5
    with pytest.raises(FileFormatError, match="holds more than 4 MiB"):
        fields("/dev/zero")
    with pytest.raises(FileFormatError, match="holds more than 4 MiB"):
        fields(write("rows.csv", bytes((1 << 22) + 1)))


def test_parquet_that_repeats_a_long_text_is_refused_by_its_size(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    text = pa.array(["x" * (1 << 16)] * 400).dictionary_encode()
    pq.write_table(pa.table({"prompt": text}), tmp_path / "rows.parquet")
    assert (tmp_path / "rows.parquet").stat().st_size < 1 << 18
    monkeypatch.setattr(containers, "MAX_BYTES", 1 << 23)
    with pytest.raises(FileFormatError, match="holds more than 8 MiB"):
        fields(tmp_path / "rows.parquet")


def test_endless_rows_are_refused(monkeypatch):
    monkeypatch.setattr(containers, "MAX_ROWS", 50)
    with pytest.raises(InputError, match="the list has over 50 rows"):
        fields([{"a": "b"}] * 51)


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("a,b;c\n1,2;3\n", ","),
        ("a;b\n1,5;2,5\n3,5;4,5\n", ";"),
        ("text\none, two\nthree, four\n", ";"),  # so that each line is one text
        ('a|"b,c|d"\n1|2\n', "|"),
        ("", ","),
    ],
)
def test_the_separator_is_the_one_that_keeps_rows_alike(text, separator):
    assert separator_of(text) == separator


def test_texts_of_every_container(write):
    texts = ["one", "two\nlines"]
    rows = [{"text": text, "id": "1"} for text in texts]
    for path in (
        write("a.json", json.dumps(texts)),
        write("a.jsonl.gz", gzip.compress(as_lines(rows).encode())),
        write("a.csv", as_csv(",", rows)),
        write("a.tsv", as_csv("\t", rows)),
    ):
        assert read_texts(path) == texts
        assert holds_texts(path)
    assert read_texts(write("a.txt.gz", gzip.compress(b"one\ntwo"))) == ["one\ntwo"]
    assert not holds_texts(write("b.jsonl", as_lines()))
    assert holds_texts(write("b.jsonl", as_lines()), columns={"text": "prompt"})


def test_a_file_that_is_not_there_is_named_once(tmp_path):
    with pytest.raises(FileFormatError) as caught:
        Demonstrations.from_file(tmp_path / "none.jsonl")
    assert str(caught.value).count("none.jsonl") == 1
    assert "No such file" in str(caught.value)
