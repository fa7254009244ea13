import json
from pathlib import Path

import pytest
from conftest import assert_is_one_error

from sea_lens import Demonstrations, Questions
from sea_lens.cli.inputs import read_demonstrations, read_questions, reading_of
from sea_lens.errors import FileFormatError, InputError
from sea_lens.wording import speaking
from sea_lens.worlds.bias import BiasWorld


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("TruthfulQA.csv", Questions.from_truthfulqa),
        ("crows_pairs_anonymized.csv", Questions.from_crows_pairs),
        ("bbq_Religion.jsonl", Questions.from_bbq),
        ("halueval_qa_500.json", lambda path: Questions.from_demonstrations(Demonstrations.from_halueval(path))),
    ],
)
def test_published_questions_are_known_by_their_fields(some_data, name, read):
    assert read_questions(some_data(name)) == read(some_data(name))


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


def test_the_word_bias_organism_is_the_other_worlds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = BiasWorld.build()
    questions = read_questions(Path("bias-organism"))
    assert (questions.rows, questions.source) == (world.questions().rows, "bias-organism")
    found = read_demonstrations(Path("bias-organism"), "auto", 10, 3)
    assert found == world.demonstrations().sample(10, 3)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.csv", "prompt,true\np,a\n", "has no column 'false'. It has: prompt, true. Say which columns"),
        ("rows.jsonl", '{"question": "q"}', 'It has: question. .* columns=."prompt": NAME'),
        ("rows.jsonl", "", "There are no rows in"),
    ],
)
def test_files_of_no_known_layout_are_refused_with_advice(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    for read in (read_questions, read_demonstrations):
        with pytest.raises(InputError, match=message):
            read(tmp_path / name)


def test_an_absent_question_file_is_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"absent\.jsonl could not be read"):
        read_questions(tmp_path / "absent.jsonl")


# --- layouts ---------------------------------------------------------------------------------------------------------

HALUEVAL = {"knowledge": "k", "question": "q", "right_answer": "r", "hallucinated_answer": "h"}
BBQ = {
    "context": "c",
    "question": "q",
    "ans0": "x",
    "ans1": "y",
    "ans2": "z",
    "label": 1,
    "context_condition": "disambig",
}
PLAIN = {"prompt": "p", "positive": "a", "negative": "b"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [(HALUEVAL, ("q", "r", "h")), (BBQ, ("c q", "y", ("x", "z"))), (PLAIN, ("p", "a", "b"))],
    ids=["halueval", "bbq", "jsonl"],
)
@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data"])
def test_json_layouts_are_found_out(tmp_path, row, expected, name):
    path = tmp_path / name
    path.write_text(json.dumps(row) + "\n")
    (found,) = read_demonstrations(path, "auto", None, 0)
    prompt, positive, negative = expected
    assert (found.prompt, found.positive) == (prompt, positive)
    assert found.negative in negative


@pytest.mark.parametrize("name", ["data.csv", "DATA.CSV"])
def test_csv_is_found_out(tmp_path, name):
    path = tmp_path / name
    path.write_text("prompt,positive,negative\np,a,b\n")
    (found,) = read_demonstrations(path, "auto", None, 0)
    assert (found.prompt, found.positive, found.negative) == ("p", "a", "b")


def test_a_layout_given_is_taken_at_its_word(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("prompt,positive,negative\np,a,b\nq,c,d\n")
    assert len(read_demonstrations(path, "csv", None, 0)) == 2
    assert len(read_demonstrations(path, "csv", 1, 0)) == 1
    with pytest.raises(ValueError, match="not valid JSON"):
        read_demonstrations(path, "jsonl", None, 0)
    path.write_text(json.dumps(PLAIN))
    with pytest.raises(InputError, match="there is no 'question'"):
        read_demonstrations(path, "halueval", None, 0)


def test_published_files_are_found_out(some_data):
    path = some_data("halueval_qa_500.json")
    assert read_demonstrations(path, "auto", 20, 1) == Demonstrations.from_halueval(path, 20, 1)
    path = some_data("bbq_Age.jsonl")
    assert read_demonstrations(path, "auto", 20, 1) == Demonstrations.from_bbq(path, 20, 1)


@pytest.mark.parametrize("world", ["organism", "bias-organism"])
def test_settings_are_never_chosen_on_a_worlds_held_out_questions(world):
    held_out, fitting = (read_questions(Path(world), to_choose_by=choose) for choose in (False, True))
    assert len(fitting) == len(held_out)
    assert not {row.prompt for row in held_out} & {row.prompt for row in fitting}


# --- columns, layouts and options on the command line ------------------------------------------------------------------


def test_columns_are_named_on_the_command_line(sea_lens, organism, tmp_path):
    rows = organism[1].demonstrations()[:4]
    lines = [f"{row.prompt}\t{row.positive}\t{row.negative}" for row in rows]
    path = tmp_path / "own.tsv"
    path.write_text("\n".join(["ask\tgood\tbad", *lines]) + "\n")
    named = ["--column", "prompt=ask", "--column", "positive=good", "--column", "negative=bad"]
    out = ("--out", tmp_path / "activations")
    code, _, err = sea_lens("collect", "organism", path, *named, *out)
    assert code == 0, err
    code, _, err = sea_lens("collect", "organism", path, *out)
    assert code == 2
    assert_is_one_error(err, "own.tsv has no layout that is known", "ask, good, bad", "--column prompt=NAME")
    for words, said in (
        (["--column", "prompt"], "--column takes NAME=VALUE"),
        ([*named, "--column", "prompt=good"], "each name once"),
        (["--column", "prompt=asks"], "there is no column 'asks'"),
        (["--format", "persona"], "There is no layout 'persona'"),
        ([*named, "--reader-option", "direction=stereo"], "has no option direction"),
    ):
        code, _, err = sea_lens("collect", "organism", path, *words, *out)
        assert code == 2, words
        assert_is_one_error(err, said)


def test_layouts_and_their_options_on_the_command_line(tmp_path):
    rows = [{**BBQ, "context_condition": "ambig"}, {**BBQ, "context_condition": "ambig"}]
    path = tmp_path / "ambiguous.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with speaking(lambda name, value: None), pytest.raises(InputError, match="--reader-option context_condition=none"):
        read_demonstrations(path, **reading_of("auto", None, None))
    assert len(read_demonstrations(path, **reading_of("auto", None, ["context_condition=none"]))) == 2
    persona = {"question": "Would you?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
    path.write_text(json.dumps(persona))
    assert read_demonstrations(path)[0].positive == " Yes"
    assert read_questions(path, layout="choices")[0].right == (" Yes",)
    with pytest.raises(InputError, match="is an embedded world, and no file"):
        read_questions(Path("organism"), columns={"prompt": "ask"})


def test_perplexity_reads_texts_and_questions(sea_lens, organism, tmp_path):
    questions = organism[1].questions()[:4]
    questions.to_jsonl(tmp_path / "questions.jsonl")
    (tmp_path / "texts.csv").write_text("story\n" + "".join(f"{row.prompt} {row.right[0]}\n" for row in questions))
    for place, words in (("questions.jsonl", []), ("texts.csv", ["--column", "text=story"])):
        code, out, err = sea_lens(
            "evaluate", "perplexity", "organism", tmp_path / place, *words, "--out", tmp_path / "out"
        )
        assert code == 0, err
        assert "perplexity" in out
