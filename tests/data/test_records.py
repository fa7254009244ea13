from pathlib import Path

import pytest

from sea_lens.data.records import Record, read_csv_rows, read_json_objects
from sea_lens.errors import FileFormatError, InputError


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "rows"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json_lines_keep_their_line_numbers_over_blank_lines(tmp_path):
    path = write(tmp_path, '{"a": "one"}\n\n   \n{"a": "two\u2028 \\n lines", "b": 3}')
    assert read_json_objects(path) == [
        Record(f"{path}, line 1", {"a": "one"}),
        Record(f"{path}, line 4", {"a": "two\u2028 \n lines", "b": 3}),
    ]


def test_a_json_list_reads_as_its_lines_do(tmp_path):
    path = write(tmp_path, '\ufeff \n[{"a": "one"},\n {"a": "two"}]\n')
    assert [record.fields for record in read_json_objects(path)] == [{"a": "one"}, {"a": "two"}]
    assert read_json_objects(path)[1].where == f"{path}, entry 1"


@pytest.mark.parametrize("read", [read_json_objects, read_csv_rows])
def test_an_empty_file_has_no_rows(tmp_path, read):
    assert read(write(tmp_path, "")) == []


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ('{"a": "x"}\n{"a": \n', "line 2"),
        ('{"a": "x"}\n\n["a"]\n', "line 3"),
        ('{"a": "x"}\nnull\n', "line 2"),
        ('"text"', "line 1"),
        ('[{"a": "x"},\n{"a": x}]', "line 2"),
        ('[{"a": "x"}, 3]', "entry 1"),
        ('{"a":' * 100_000, "line 1"),
        ('{"a": ' + "9" * 5000 + "}", "line 1"),
    ],
)
def test_malformed_json_names_file_and_place(tmp_path, content, where):
    path = write(tmp_path, content)
    with pytest.raises(FileFormatError, match="JSON") as error:
        read_json_objects(path)
    assert str(error.value).startswith(f"{path}, {where}:")


@pytest.mark.parametrize("read", [read_json_objects, read_csv_rows])
def test_a_file_that_is_not_text_or_not_there_is_refused(tmp_path, read):
    binary = write(tmp_path, b"\x89PNG\xff\xfe\x00")
    for path in (binary, tmp_path / "absent", tmp_path):
        with pytest.raises(FileFormatError, match="could not be read") as error:
            read(path)
        assert str(path) in str(error.value)


def test_csv_with_byte_order_mark_commas_and_line_breaks(tmp_path):
    path = write(tmp_path, '\ufeffa,b\r\n"one, two","first\nsecond"\r\n"say ""hi""",é\r\n')
    records = read_csv_rows(path)
    assert [record.fields for record in records] == [
        {"a": "one, two", "b": "first\nsecond"},
        {"a": 'say "hi"', "b": "é"},
    ]
    assert [record.where for record in records] == [f"{path}, line 3", f"{path}, line 4"]


@pytest.mark.parametrize("row", ["x", "x,y,z"])
def test_a_csv_row_of_another_length_than_the_header_names_its_line(tmp_path, row):
    path = write(tmp_path, f"a,b\n1,2\n\n\n{row}\n3,4\n")
    with pytest.raises(FileFormatError, match="header's 2 cells") as error:
        read_csv_rows(path)
    assert str(error.value).startswith(f"{path}, line 5:")


@pytest.mark.parametrize(("content", "line"), [('a,b\n1,2\n"x"y,z\n', 3), ('a,b\n\n1,"never closed\n', 3)])
def test_bad_csv_quotes_name_their_line(tmp_path, content, line):
    path = write(tmp_path, content)
    with pytest.raises(FileFormatError, match="not valid CSV") as error:
        read_csv_rows(path)
    assert str(error.value).startswith(f"{path}, line {line}:")


def test_text_of_a_record():
    record = Record("file, line 7", {"a": "x", "b": None, "c": 3})
    assert record.text("a") == "x"
    with pytest.raises(InputError, match=r"file, line 7: there is no 'd'. It has: a, b, c"):
        record.text("d")
    for name in ("b", "c"):
        with pytest.raises(InputError, match=f"file, line 7: '{name}' must be text"):
            record.text(name)


def test_a_column_may_hold_one_text_a_list_of_them_or_nothing():
    record = Record("rows, line 1", {"one": "a", "list": ["b", "c"], "null": None, "mixed": ["d", 1]})
    assert record.texts("one") == ("a",)
    assert record.texts("list") == ("b", "c")
    assert (record.optional_text("one"), record.optional_text("null"), record.optional_text("absent")) == (
        "a",
        None,
        None,
    )
    with pytest.raises(InputError, match="line 1: there is no 'absent'"):
        record.texts("absent")
    with pytest.raises(InputError, match="line 1: 'null' must be text, and is None"):
        record.texts("null")
    with pytest.raises(InputError, match="line 1: 'mixed' must be text or a list of texts"):
        record.texts("mixed")
    with pytest.raises(InputError, match="line 1: 'list' must be text"):
        record.optional_text("list")
