import dataclasses

import pandas as pd
import pytest

from sea_lens import Demonstration, Demonstrations
from sea_lens.errors import FileFormatError, InputError

ROWS = (
    Demonstration("Is it, so?", 'yes, "so"', "no,\nnever", "peut-être"),
    Demonstration("日本の首都は", "東京 🗼", "京都\u2028", ""),
    Demonstration(" spaces\t", " x ", "\\n", "a\r\nb"),
)


def test_every_reader_gives_the_same_rows(tmp_path):
    lists = [[getattr(row, name) for row in ROWS] for name in ("prompt", "positive", "negative", "neutral")]
    frame = pd.DataFrame([dataclasses.asdict(row) for row in ROWS])
    frame.to_csv(tmp_path / "rows.csv", index=False, encoding="utf-8-sig")
    frame.to_json(tmp_path / "list.json", orient="records")
    frame.to_json(tmp_path / "lines.jsonl", orient="records", lines=True)
    Demonstrations(ROWS).to_jsonl(tmp_path / "own.jsonl")
    for demonstrations in (
        Demonstrations.from_lists(*lists),
        Demonstrations.from_lists(*(frame[name] for name in frame)),
        Demonstrations.from_dataframe(frame),
        Demonstrations.from_csv(tmp_path / "rows.csv"),
        Demonstrations.from_jsonl(tmp_path / "list.json"),
        Demonstrations.from_jsonl(tmp_path / "lines.jsonl"),
        Demonstrations.from_jsonl(tmp_path / "own.jsonl"),
    ):
        assert demonstrations.rows == ROWS
    assert demonstrations.source == str(tmp_path / "own.jsonl")


def test_columns_of_other_names(tmp_path):
    frame = pd.DataFrame({"ask": ["p"], "good": ["a"], "bad": ["b"], "own": ["c"], "neutral": ["not this"]})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    names = {"prompt": "ask", "positive": "good", "negative": "bad", "neutral": "own"}
    for demonstrations in (
        Demonstrations.from_dataframe(frame, **names),
        Demonstrations.from_csv(tmp_path / "rows.csv", **names),
        Demonstrations.from_jsonl(tmp_path / "rows.jsonl", **names),
    ):
        assert demonstrations.rows == (Demonstration("p", "a", "b", "c"),)


@pytest.mark.parametrize("neutrals", [(None, None), (None, "d"), ("", None)])
def test_round_trip_keeps_neutral_answers_row_by_row(tmp_path, neutrals):
    rows = tuple(Demonstration("é 🗼\u2028\n", "1", "2", neutral) for neutral in neutrals)
    Demonstrations(rows).to_jsonl(tmp_path / "rows.jsonl")
    assert Demonstrations.from_jsonl(tmp_path / "rows.jsonl").rows == rows
    for missing in (None, float("nan"), pd.NA):
        frame = pd.DataFrame(
            [{**vars(row), "neutral": missing if row.neutral is None else row.neutral} for row in rows]
        )
        assert Demonstrations.from_dataframe(frame).rows == rows


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (
            Demonstrations.from_csv,
            "prompt,positive,wrong\na,b,c\n",
            "no column 'negative'. It has: prompt, positive, wrong",
        ),
        (Demonstrations.from_csv, "prompt,positive,negative\na,b,c\na,b\n", "rows, line 3: .*3 cells"),
        (Demonstrations.from_csv, "prompt,positive,negative\n", "no demonstrations in .*rows"),
        (
            Demonstrations.from_jsonl,
            '{"prompt": "a", "positive": "b", "negative": 3}',
            "line 1: 'negative' must be text",
        ),
        (
            Demonstrations.from_jsonl,
            '{"prompt":"a","positive":"b","negative":"c"}\n{"prompt":"a"}',
            "line 2: there is no",
        ),
        (Demonstrations.from_jsonl, "", "no demonstrations in .*rows"),
    ],
)
def test_malformed_files_name_what_is_wrong(tmp_path, read, content, message):
    (tmp_path / "rows").write_text(content)
    with pytest.raises((InputError, FileFormatError), match=message):
        read(tmp_path / "rows")


def test_an_empty_cell_of_a_data_frame_names_its_row():
    for column in ("prompt", "positive"):
        frame = pd.DataFrame([dataclasses.asdict(row) for row in ROWS], index=["x", "y", "z"])
        frame.loc["y", column] = float("nan")
        with pytest.raises(InputError, match=f"row y: '{column}' must be text, and is None"):
            Demonstrations.from_dataframe(frame)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (([], [], []), "no demonstrations"),
        ((["p", "q"], ["a", "b"], ["c"]), r"one length.*'negatives': 1"),
        ((["p", "q"], ["a", "b"], ["c", "d"], ["e"]), r"one length.*'neutrals': 1"),
        ((["p", "q"], ["a", "b"], ["a", "b"]), "positive equals the negative in all 2"),
        (("ab", "cd", "ef"), "prompts must be a list with one entry per prompt, and is 'ab'"),
        ((["p"], ["a"], "b"), "negatives must be a list"),
        ((["p"], [3], ["b"]), r"positives\[0\] must be text, and is 3"),
        ((["p", "q"], ["a", "b"], ["c", None]), r"negatives\[1\] must be text, and is None"),
    ],
)
def test_impossible_lists_are_refused(without_type_checks, lists, message):
    with pytest.raises(InputError, match=message):
        Demonstrations.from_lists(*lists)


def test_answers_get_the_same_ending():
    rows = (Demonstration("p.", "Delhi", "It is Mumbai. ", None), Demonstration("p?", "U.S. dollars!?", "No . ", "3.5"))
    ended = Demonstrations(rows).with_answer_ending(".")
    assert ended.rows == (
        Demonstration("p.", "Delhi.", "It is Mumbai.", None),
        Demonstration("p?", "U.S. dollars.", "No.", "3.5."),
    )
    assert ended.with_answer_ending(".") == ended
    assert ended.with_answer_ending("")[0].negative == "It is Mumbai"


def test_neutral_answers_are_the_models_own_and_do_not_depend_on_the_batch(llama):
    prompts = ["Where?", "A much longer question about nothing at all?", "W", "Why is {x}?", "", "Who? "]
    demonstrations = Demonstrations.from_lists(prompts, ["a"] * 6, ["b"] * 6)
    answered = demonstrations.with_neutral_answers(llama, 8, batch_size=6, progress=False)
    single = demonstrations.with_neutral_answers(llama, 8, batch_size=1, progress=False)
    assert answered == single
    assert [dataclasses.replace(row, neutral=None) for row in answered] == list(demonstrations)
    assert len({row.neutral for row in answered}) > 3
    ids = llama.to_tokens(prompts[1])
    generated = llama.generate(ids, max_new_tokens=8, do_sample=False, return_type="tokens", verbose=False)
    text = llama.tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
    assert answered[1].neutral == text.strip().split("\n")[0].rstrip()
