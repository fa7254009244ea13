import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
import pytest
import torch
from conftest import low_rank

from sea_lens import Editor, EditorCard
from sea_lens.errors import FileFormatError
from sea_lens.results import Result, readable


@dataclass(frozen=True, eq=False, repr=False)
class TwoTables(Result):
    table: pd.DataFrame
    per_row: pd.DataFrame
    n: int
    name: str | None
    scales: dict[str, float]


@dataclass(frozen=True, eq=False, repr=False)
class WithEditor(Result):
    table: pd.DataFrame
    editor: Editor


def result(rows=3):
    table = pd.DataFrame(
        {
            "change": [0.1 + 0.2, float("nan"), float("inf")][:rows],
            "low": [1 / 3, 1e-300, -0.0][:rows],
            "high": [1.0, 2.0, 3.0][:rows],
            "p_value": [0.00025, 0.5, float("nan")][:rows],
            "layer": pd.array([1, None, 3][:rows], dtype="Int64"),
            "layers": [(1, 2), (), (3,)][:rows],
            "best": [True, False, True][:rows],
        },
        index=pd.Index(["log_probability", "kl", "rank"][:rows], name="effect"),
    )
    texts = pd.DataFrame(
        {"prompt": ["NA", "", 'a "b",\r c\td'], "category": ["x", None, "7"], "words": [(), ("a", None), ("é",)]}
    )
    return TwoTables(table, texts, 7, None, {"kl": 0.1})


def assert_same(one, other):
    for name in ("table", "per_row"):
        pd.testing.assert_frame_equal(
            getattr(one, name), getattr(other, name), check_exact=True, check_index_type=False
        )
    assert (one.n, one.name, one.scales) == (other.n, other.name, other.scales)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_result_reads_back_to_the_last_digit(tmp_path, rows):
    written = result(rows).save(tmp_path / "new" / "folder")
    assert {path.name for path in written} == {"two_tables.json", "two_tables.csv", "two_tables-per_row.csv"}
    assert all(path.is_file() for path in written)
    assert_same(TwoTables.load(tmp_path / "new" / "folder"), result(rows))


def test_results_of_several_kinds_share_a_folder_and_hold_an_editor(tmp_path):
    edit = low_rank(torch.eye(4)[:, :1], torch.ones(1))
    WithEditor(result().table, Editor({1: edit}, EditorCard("by hand", {}))).save(tmp_path)
    result().save(tmp_path)
    assert_same(TwoTables.load(tmp_path), result())
    found = WithEditor.load(tmp_path)
    h = torch.randn(3, 4)
    assert torch.equal(found.editor[1](h), edit(h))


@dataclass(frozen=True)
class Range:
    low: float
    high: float


@dataclass(frozen=True, eq=False, repr=False)
class WithResults(Result):
    table: pd.DataFrame
    one: TwoTables
    many: Mapping[str, Mapping[str, TwoTables]]
    ranges: Mapping[str, Range]
    nothing: pd.DataFrame = field(default_factory=pd.DataFrame)
    editor: object = field(default=None, metadata={"saved": False})


def test_results_hold_results_and_numbers_that_json_lacks(tmp_path):
    many = {"SEA / 1": {"truth": result(1)}, "SEA : 1": {"truth": result(2)}}  # no folder can have these names
    ranges = {"nats": Range(-math.inf, 0.1 + 0.2), "none": Range(math.nan, 1.0)}
    written = WithResults(result().table, result(), many, ranges, editor=object()).save(tmp_path)
    assert all(path.is_file() for path in written)
    assert len(set(written)) == len(written)
    json.loads((tmp_path / "with_results.json").read_text(), parse_constant=pytest.fail)
    found = WithResults.load(tmp_path)
    assert_same(found.one, result())
    assert found.nothing.empty
    assert found.editor is None
    assert [list(row) for row in found.many.values()] == [["truth"], ["truth"]]
    for name, row in many.items():
        assert_same(found.many[name]["truth"], row["truth"])
    assert found.ranges["nats"] == ranges["nats"]
    assert repr(found.ranges["none"]) == repr(ranges["none"])


def test_tables_for_papers_keep_their_frames():
    table = pd.DataFrame({"value": [0.123456], "low": [0.1], "high": [0.2], "p_value": [1 / 4001]}, index=["a|b_c"])
    shown = TwoTables(table.rename_axis("metric"), table, 1, None, {})
    assert shown.to_markdown() == (
        "| metric | value | p |\n| --- | --- | --- |\n| a\\|b c | 0.123 [0.1, 0.2] | <0.001 |\n"
    )
    assert shown.to_latex().splitlines()[4].endswith(r"& 0.123 [0.1, 0.2] & $<$0.001 \\")


def test_what_is_missing_damaged_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match=r"holds no saved TwoTables: two_tables\.json is missing"):
        TwoTables.load(tmp_path)
    result().save(tmp_path)
    (tmp_path / "two_tables.json").rename(tmp_path / "with_editor.json")
    with pytest.raises(FileFormatError, match=r"is of TwoTables .*, not WithEditor"):
        WithEditor.load(tmp_path)
    for name, text in (("two_tables.csv", "effect\nkl\n"), ("two_tables-per_row.csv", ""), ("two_tables.json", "{")):
        result().save(tmp_path)
        (tmp_path / name).write_text(text)
        with pytest.raises(FileFormatError):
            TwoTables.load(tmp_path)


def test_a_repr_fits_one_screen_and_a_notebook_shows_the_whole_table():
    long = pd.concat([result().table] * 100)
    shown = TwoTables(long, long, 7, "x" * 20, {})
    lines = repr(shown).splitlines()
    assert lines[0] == "TwoTables(n=7, name='xxxxxxxxxxxxxxxxxxxx')"
    assert len(lines) < 40
    assert max(map(len, lines)) <= 110
    wide = pd.concat([long.add_suffix(f"_{number}") for number in range(5)], axis=1)
    assert len(repr(TwoTables(wide, long, 7, None, {})).splitlines()) < 40
    html = TwoTables(long[:60], long, 7, "<b>", {})._repr_html_()
    assert "&lt;b&gt;" in html
    assert html.count("<tr") == 61


def test_intervals_stand_beside_their_numbers():
    frame = pd.DataFrame(
        {
            "change": [1.23456],
            "held_out": [2.0],
            "held_out_low": [1.5],
            "held_out_high": [2.5],
            "control": [0.5],
            "p_holm": [0.0001],
            "control_p_value": [0.25],
        }
    )
    assert readable(frame).iloc[0].to_dict() == {
        "change": "1.23",
        "held out": "2 [1.5, 2.5]",
        "control": "0.5",
        "p holm": "<0.001",
        "control p": "0.25",
    }
    plain = pd.DataFrame({"unedited": [1.0], "change": [0.5], "low": [float("nan")], "high": [float("nan")]})
    assert readable(plain).iloc[0].to_dict() == {"unedited": "1", "change": "0.5"}
