from pathlib import Path

import pytest

from sea_lens import Demonstrations, Questions
from sea_lens.cli.inputs import read_questions
from sea_lens.errors import FileFormatError, InputError


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("TruthfulQA.csv", Questions.from_truthfulqa),
        ("crows_pairs_anonymized.csv", Questions.from_crows_pairs),
        ("bbq_Religion.jsonl", Questions.from_bbq),
        ("halueval_qa_500.json", lambda path: Questions.from_demonstrations(Demonstrations.from_halueval(path))),
    ],
)
def test_published_questions_are_known_by_their_fields(shared_data, name, read):
    assert read_questions(shared_data / name) == read(shared_data / name)


def test_questions_and_demonstrations_of_ones_own_are_known_by_their_fields(tmp_path):
    questions = Questions.from_lists(["q", "r"], [["a"], ["b"]], [["c"], ["d"]])
    questions.to_jsonl(tmp_path / "questions.jsonl")
    Demonstrations.from_lists(["q", "r"], ["a", "b"], ["c", "d"]).to_jsonl(tmp_path / "demonstrations.jsonl")
    (tmp_path / "demonstrations.csv").write_text("prompt,positive,negative\nq,a,c\nr,b,d\n")
    for name in ("questions.jsonl", "demonstrations.jsonl", "demonstrations.csv"):
        read = read_questions(tmp_path / name)
        assert read.rows == questions.rows
        assert read.source == str(tmp_path / name)


def test_the_word_organism_is_the_embedded_worlds_held_out_questions(organism, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_questions(Path("organism")).rows == organism[1].questions().rows
    Questions.from_lists(["q"], [["a"]], [["b"]]).to_jsonl(tmp_path / "organism")
    assert read_questions(Path("organism"))[0].prompt == "q"  # a file of that name goes first, as for demonstrations


@pytest.mark.parametrize(
    ("name", "text", "fields"),
    [
        ("rows.csv", "prompt,true,false\np,a,b\n", "false, prompt, true"),
        ("rows.jsonl", '{"question": "q"}', "question"),
        ("rows.jsonl", "", "nothing"),
    ],
)
def test_files_of_no_known_layout_are_refused_with_those_that_are(tmp_path, name, text, fields):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name} is no question file .* has: {fields}\. Give TruthfulQA"):
        read_questions(tmp_path / name)


def test_an_absent_question_file_is_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"absent\.jsonl could not be read"):
        read_questions(tmp_path / "absent.jsonl")
