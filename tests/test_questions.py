from dataclasses import FrozenInstanceError

import pytest

from sea_lens import Demonstration, Demonstrations, Question, Questions
from sea_lens.errors import InputError


def test_from_lists_keeps_order_and_every_completion():
    questions = Questions.from_lists(["q", "r"], [["a", "b"], ("c",)], [["x"], []])
    assert list(questions) == [Question("q", ("a", "b"), ("x",)), Question("r", ("c",), ())]
    assert len(questions) == 2
    assert questions[1].prompt == "r"
    assert questions == Questions((Question("q", ("a", "b"), ("x",)), Question("r", ("c",), ())))


def test_questions_are_immutable():
    questions = Questions.from_lists(["q"], [["a"]], [["x"]])
    with pytest.raises(FrozenInstanceError):
        questions.rows = ()
    with pytest.raises(FrozenInstanceError):
        questions[0].prompt = "other"


@pytest.mark.parametrize(
    ("lists", "lengths"),
    [
        ((["q", "r"], [["a"]], [["x"]]), "'prompts': 2, 'true': 1, 'false': 1"),
        ((["q"], [["a"], ["b"]], [["x"]]), "'prompts': 1, 'true': 2, 'false': 1"),
        ((["q"], [["a"]], []), "'prompts': 1, 'true': 1, 'false': 0"),
    ],
)
def test_unequal_lists_are_refused(lists, lengths):
    with pytest.raises(InputError, match=f"must have one length.*{lengths}"):
        Questions.from_lists(*lists)


def test_no_questions_are_refused():
    with pytest.raises(InputError, match="no questions in lists"):
        Questions.from_lists([], [], [])
    with pytest.raises(InputError, match=r"no questions in quiz\.csv"):
        Questions((), source="quiz.csv")


def test_questions_without_a_true_completion_are_named():
    with pytest.raises(InputError, match=r"Questions \[1, 3\] of lists have no true completion"):
        Questions.from_lists(["q", "r", "s", "t"], [["a"], [], ["b"], []], [["x"]] * 4)


def test_a_slice_is_questions_again():
    questions = Questions.from_lists(["a", "b"], [["x"], ["y"]], [[], []])
    assert questions[1:] == Questions.from_lists(["b"], [["y"]], [[]])


def test_demonstrations_are_questions_with_one_true_and_one_false_completion():
    rows = (Demonstration("q", "right", "wrong", "own"), Demonstration("r", "yes", "no"))
    questions = Questions.from_demonstrations(Demonstrations(rows, source="quiz.jsonl"))
    assert list(questions) == [Question("q", ("right",), ("wrong",)), Question("r", ("yes",), ("no",))]
    assert questions.source == "quiz.jsonl"


def test_the_embedded_worlds_demonstrations_ask_its_questions(organism):
    world = organism[1]
    facts = world.fitting[:5]
    assert Questions.from_demonstrations(world.demonstrations(facts)).rows == world.questions(facts).rows
