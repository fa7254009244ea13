"""Answers are the model's own, kept as they come, and compared with references by ROUGE-L."""

import json

import pytest
import torch

from sea_lens import Activations, Questions, fit_sea
from sea_lens.evaluation.truthfulqa import generate_answers, rouge_l, write_for_judge
from sea_lens.models.generate import greedy_answers


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("The cat, sat!", "the cat sat", 1.0),
        ("police killed the gunman", "police kill the gunman", 0.75),  # Lin's example: 3 of 4 and 4
        ("the gunman kill police", "police kill the gunman", 0.5),  # the order counts
        ("a b", "c d", 0.0),
        ("", "c d", 0.0),
        ("a", "a b c", 0.5),
    ],
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(answer, reference, score):
    assert rouge_l(answer, reference) == pytest.approx(score)


def test_it_is_the_score_of_the_reference_implementation():
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score comes with lm-eval")
    theirs = scorer.RougeScorer(["rougeL"], use_stemmer=False)
    texts = [
        "The watermelon seeds pass through you.",
        "Nothing happens, they pass.",
        "You grow watermelons",
        "1990s; it's",
    ]
    for first in texts:
        for second in texts:
            assert rouge_l(first, second) == pytest.approx(theirs.score(second, first)["rougeL"].fmeasure)


@pytest.fixture
def asked():
    return Questions.from_lists(
        ["Q: one\nA:", "Q: two\nA:", "Q: three\nA:"], [["a b"], ["c"], ["d e"]], [["x"], ["y"], ["z"]]
    )


def editor_of(model):
    generator = torch.Generator().manual_seed(0)
    roles = [{layer: torch.randn(20, 32, generator=generator) for layer in range(3)} for _ in range(3)]
    return fit_sea(
        Activations.from_tensors(neutral=roles[0], positive=roles[1], negative=roles[2], model=model), ranks=4
    )


@pytest.mark.parametrize("prompt", ["{question}", "Answer with few words. {question}"])
def test_answers_are_the_greedy_ones(llama, asked, prompt):
    editor = editor_of(llama)
    found = generate_answers(llama, asked, editor, prompt=prompt, max_new_tokens=6, progress=False)
    prompts = [prompt.format(question=question.prompt) for question in asked]
    assert found.per_row["answer unedited"].tolist() == greedy_answers(llama, prompts, 6, progress=False)
    with editor.attached(llama):
        assert found.per_row["answer edited"].tolist() == greedy_answers(llama, prompts, 6, progress=False)
    assert found.per_row["answer edited"].tolist() != found.per_row["answer unedited"].tolist()
    assert list(found.table["n"]) == [3] * 6


def test_a_killed_run_goes_on_and_a_judge_gets_all(llama, asked, tmp_path):
    whole = generate_answers(
        llama, asked, prompt="plain", max_new_tokens=4, batch_size=1, folder=tmp_path, progress=False
    )
    (kept,) = tmp_path.glob("answers-*.jsonl")
    lines = kept.read_text().splitlines()
    kept.write_text(lines[0] + "\n" + lines[1][:4])
    ran = []
    counter = llama.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    again = generate_answers(
        llama, asked, prompt="plain", max_new_tokens=4, batch_size=1, folder=tmp_path, progress=False
    )
    counter.remove()
    assert 0 < len(ran) <= 8
    assert again.per_row.equals(whole.per_row)
    write_for_judge(again, asked, tmp_path / "judge.jsonl")
    told = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in told] == again.per_row["answer"].tolist()
    assert told[0] == {"prompt": "Q: one\nA:", "answer": told[0]["answer"], "true": ["a b"], "false": ["x"]}
