"""Methods that change facts, from the command line."""

import json

import pytest

from sea_lens import DisentanglerTraining, Editor

FACTS = [
    {
        "subject": name,
        "prompt": "<truthful> Q {} home A",
        "target_new": "Oslo",
        "target_true": "Lima",
        "same_subject": [{"prompt": "<truthful> Q {} pet A", "answer": "cat"}],
    }
    for name in ("Ada", "Bram")
]
QUICK = ["--steps", 2, "--prefixes", 0, "--essence", "", "--layers", 0]


@pytest.mark.parametrize("name", ["memit", "dike"])
@pytest.mark.filterwarnings("ignore:For 2 of 2 facts")
def test_facts_are_changed(sea_lens, tmp_path, monkeypatch, name):
    monkeypatch.setattr("sea_lens.methods.disentangling.USUAL", DisentanglerTraining(steps=2, facts=2))
    file = tmp_path / "facts.jsonl"
    file.write_text("\n".join(map(json.dumps, FACTS)))
    code, out, _ = sea_lens("fit", name, "organism", file, "--out", tmp_path / "editor", *QUICK)
    assert code == 0
    editor = Editor.from_pretrained(tmp_path / "editor")
    assert editor.card.method == name
    assert editor[0].rank == 2
    assert "rank 2, from keys of width 384" in out


def test_they_are_not_tuned_on_answers(sea_lens, tmp_path):
    code, out, _ = sea_lens("methods")
    assert code == 0
    assert "memit" in out
    code, _, err = sea_lens("tune", "organism", "organism", "--also", "memit", "--out", tmp_path)
    assert code != 0
    assert "no method 'memit'" in err


def test_what_no_demonstrations_hold_is_said_before_a_model_is_loaded(sea_lens, tmp_path):
    code, out, err = sea_lens("fit", "sake", tmp_path / "no-model", "organism", "--out", tmp_path)
    assert (code, out) == (2, "")
    assert "sake is fitted on ten or more paraphrases of a fact" in err
    assert "sl.collect_fact" in err
