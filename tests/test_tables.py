"""Tables come back from disk as they were, and stand as text without breaking their frames."""

import math

import numpy as np
import pandas as pd
import pytest

from sea_lens.errors import FileFormatError
from sea_lens.tables import interval_text, p_text, read_table, readable, to_html, to_latex, to_markdown, write_table

TABLE = pd.DataFrame(
    {
        "prompt": ["", 'a "b", c', "d\r\ne\nf"],
        "category": ["NA", None, "nan"],
        "score": [0.1 + 0.2, math.nan, -math.inf],
        "count": [1, 2**60 + 1, 3],
        "is_right": [True, False, True],
        "seed": pd.array([0, None, 2], dtype="Int64"),
        "layers": [(1, 2), None, ()],
    },
    index=pd.Index([5, 3, 9], name="row"),
)


@pytest.mark.parametrize(
    "table", [TABLE, TABLE[:1], TABLE[:0], TABLE.set_index("prompt", append=True), TABLE.reset_index(drop=True)]
)
def test_a_table_comes_back_to_the_last_bit(table, tmp_path):
    layout = write_table(table, tmp_path / "table.csv")
    found = read_table(tmp_path / "table.csv", layout)
    pd.testing.assert_frame_equal(found, table, check_exact=True, check_dtype=len(table) > 0)
    drawn = pd.DataFrame({"x": np.random.default_rng(0).normal(size=99)})
    found = read_table(tmp_path / "x.csv", write_table(drawn, tmp_path / "x.csv"))
    assert found["x"].tolist() == drawn["x"].tolist()


def test_a_damaged_file_is_named(tmp_path):
    layout = write_table(TABLE, tmp_path / "table.csv")
    with pytest.raises(FileFormatError, match=r"none\.csv is missing"):
        read_table(tmp_path / "none.csv", layout)
    text = (tmp_path / "table.csv").read_text()
    for damage in (text.replace('"score"', '"scores"'), text[: len(text) - 9], text.replace('"1"', '"one"'), ""):
        (tmp_path / "table.csv").write_text(damage)
        with pytest.raises(FileFormatError, match=r"table\.csv is missing or not"):
            read_table(tmp_path / "table.csv", layout)


def test_text_has_intervals_beside_their_numbers_and_cells_keep_their_frames():
    table = pd.DataFrame(
        {"value": [0.123456, 2.0], "low": [0.1, math.nan], "high": [0.2, math.nan], "p_value": [1 / 4001, 0.5]},
        index=pd.Index(["one|two_three", "a\nb"], name="metric"),
    )
    assert readable(table).to_dict("list") == {
        "metric": ["one|two three", "a\nb"],
        "value": ["0.123 [0.1, 0.2]", "2"],
        "p": ["<0.001", "0.5"],
    }
    assert to_markdown(table) == (
        "| metric | value | p |\n| --- | --- | --- |\n"
        "| one\\|two three | 0.123 [0.1, 0.2] | <0.001 |\n| a b | 2 | 0.5 |\n"
    )
    assert to_latex(table).splitlines()[4].endswith(r"& 0.123 [0.1, 0.2] & $<$0.001 \\")
    assert "<b>T &amp; b</b>" in to_html("T & b", table)
    assert interval_text(0.5, 0.25, 1.0, sign="+") == "+0.5 [0.25, 1]"
    assert [p_text(value) for value in (1.0, 0.0012344, 0.00099, math.nan)] == ["1", "0.00123", "<0.001", ""]
