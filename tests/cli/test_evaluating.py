import hashlib
import json
import re
import sys
from dataclasses import replace

import pandas as pd
from conftest import EMBEDDED, PNG

from sea_lens import SAKE, SEA, Editor, collect_activations, evaluate_knowledge, join_facts, write_facts
from sea_lens.cache import Store
from sea_lens.evaluation import data_efficiency
from sea_lens.evaluation.compare import Comparison
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.transfer import Transfer
from sea_lens.evaluation.truthfulqa import evaluate_truthfulqa

TRUTH = ["evaluate", "truthfulqa", "organism"]
BARE = ["--control", 0, "--no-damage"]
FIT = ["--max-new-tokens", 1, "--explained-variance", 0.9999, "--layers", "last:1"]


def test_a_result_is_a_folder_that_names_what_made_it(sea_lens, organism, editor_folder, tmp_path):
    model, world = organism
    path, out = tmp_path / "questions.jsonl", tmp_path / "o"
    world.questions()[:40].to_jsonl(path)
    command = [*TRUTH, path, "--editor", editor_folder, "--n", 12, "--seed", 3, "--out", out]
    code, shown, err = sea_lens(*command, width=80)
    assert code == 0, err
    assert max(map(len, shown.splitlines()[:-1])) <= 80
    assert "MC1" in shown
    assert all(part in shown for part in ("Damage: KL ", "(limit 1)", "neutral text", "Controls: 3, KL "))
    assert (out / "evaluation.png").read_bytes().startswith(PNG)
    assert all(file.name in shown for file in out.iterdir())
    found = Evaluation.load(out)
    facts, editor = found.provenance, Editor.from_pretrained(editor_folder)
    assert facts["editor"]["name"] == str(editor_folder)
    assert facts["editor"]["fingerprint"] == editor.fingerprint
    assert facts["model"]["name"] == "sea-lens-organism"
    assert facts["data"]["source"] == str(path)
    assert facts["data"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (facts["data"]["rows"], facts["prompt"]) == (12, "{question}")
    asked = world.questions()[:40].sample(12, 3)
    expected = evaluate_truthfulqa(model, asked, editor, seed=3, progress=False)
    pd.testing.assert_frame_equal(found.table, expected.table)


def test_edited_facts_are_measured_from_a_file_or_the_embedded_world(sea_lens, tmp_path):
    model, world = EMBEDDED["load_knowledge_organism"]("cpu")
    facts = world.edits(2)
    editor = join_facts([SAKE(transport="mean").fit(world.collect(model, fact, n=10)) for fact in facts])
    editor.save_pretrained(tmp_path / "editor")
    write_facts(facts, tmp_path / "facts.jsonl")
    command = ["evaluate", "knowledge", "knowledge-organism"]
    edited = [*command, tmp_path / "facts.jsonl", "--editor", tmp_path / "editor", *BARE, "--out", tmp_path / "o"]
    code, shown, err = sea_lens(*edited)
    assert code == 0, err
    assert "neighborhood" in shown
    found = Evaluation.load(tmp_path / "o")
    expected = evaluate_knowledge(model, facts, editor, control=0, damage=False, progress=False)
    pd.testing.assert_frame_equal(found.table, expected.table)
    assert found.provenance["data"]["source"] == str(tmp_path / "facts.jsonl")
    code, _, err = sea_lens(*command, "knowledge-organism", "--n", 3, *BARE, "--out", tmp_path / "plain")
    assert code == 0, err
    assert len(Evaluation.load(tmp_path / "plain").per_row) == 3


def test_a_killed_evaluation_goes_on_where_it_stopped(sea_lens, tmp_path, monkeypatch):
    command = [*TRUTH, "organism", "--n", 24, "--batch-size", 4]
    written, kept = [], Store.write

    def killed(self, number, batch):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        kept(self, number, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write", killed)
        assert sea_lens(*command, "--out", tmp_path / "o")[0] == 130  # as shells say of what was interrupted
    again = []
    monkeypatch.setattr(Store, "write", lambda self, number, batch: (again.append(number), kept(self, number, batch)))
    assert sea_lens(*command, "--out", tmp_path / "o")[0] == 0
    assert not (tmp_path / "o" / "unfinished").exists()
    resumed = len(again)
    assert sea_lens(*command, "--out", tmp_path / "whole")[0] == 0
    assert len(again) - resumed == resumed + 2
    one, other = (Evaluation.load(tmp_path / name) for name in ("o", "whole"))
    pd.testing.assert_frame_equal(one.per_answer, other.per_answer)
    assert one.provenance["editor"] is None


def test_answers_are_written_for_a_judge(sea_lens, organism, editor_folder, tmp_path):
    options = [*BARE, "--editor", editor_folder, "--n", 8, "--max-new-tokens", 1, "--out", tmp_path / "o"]
    code, out, err = sea_lens("evaluate", "truthfulqa-answers", "organism", "organism", *options)
    assert code == 0, err
    assert "answers.jsonl" in out
    rows = [json.loads(line) for line in (tmp_path / "o" / "answers.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [row.prompt for row in organism[1].questions().sample(8, 0)]
    assert all({"unedited", "edited", "right", "wrong"} <= set(row) for row in rows)


def test_perplexity_of_a_file_and_of_the_embedded_world(sea_lens, organism, editor_folder, tmp_path):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps([f"{row.prompt} {row.right[0]}" for row in organism[1].questions()[:6]]))
    for data, n, digest in ((path, 4, hashlib.sha256(path.read_bytes()).hexdigest()), ("organism", 2, None)):
        command = ["evaluate", "perplexity", "organism", data, "--editor", editor_folder, "--n", n, *BARE]
        code, out, err = sea_lens(*command, "--out", tmp_path / str(n))
        assert code == 0, err
        assert "top agreement" in out
        found = Evaluation.load(tmp_path / str(n)).provenance["data"]
        assert (found["source"], found["sha256"], found["rows"]) == (str(data), digest, n)


def test_bbq_on_the_model_with_a_bias_sees_what_an_edit_of_its_own_world_does(sea_lens, tmp_path):
    out = ["--out", tmp_path / "editor"]
    assert sea_lens("fit", "bias-organism", "bias-organism", "--n", 60, *FIT, *out)[0] == 0
    command = ["evaluate", "bbq", "bias-organism", "bias-organism", "--editor", tmp_path / "editor", "--n", 64, *BARE]
    code, _, err = sea_lens(*command, "--out", tmp_path / "o")
    assert code == 0, err
    table = Evaluation.load(tmp_path / "o").table
    assert table.loc["accuracy_ambiguous", "edited"] >= 0.9 > 0.7 >= table.loc["accuracy_ambiguous", "unedited"]


def test_published_files_are_read_as_their_prompt_needs(sea_lens, some_data, stories, tmp_path):
    path = some_data("bbq_Religion.jsonl")
    command = ["evaluate", "bbq", stories, path, "--n", 8, "--context", "ambig", "--scored-by", "mean"]
    code, out, err = sea_lens(*command, "--out", tmp_path / "bbq")
    assert code == 0, err
    assert ("bias score ambiguous" in out, "disambiguated" in out) == (True, False)
    assert Evaluation.load(tmp_path / "bbq").provenance["options"]["scored_by"] == "mean"
    code, _, err = sea_lens("evaluate", "bbq", stories, path, "--n", 2, "--prompt", "paper", "--out", tmp_path / "o")
    assert (code, "tokens long, but the model's context is" in err.splitlines()[-1]) == (2, True)
    pairs = some_data("crows_pairs_anonymized.csv")
    code, out, err = sea_lens("evaluate", "crows-pairs", stories, pairs, "--n", 8, "--out", tmp_path / "crows")
    assert (code, "stereotype preferred" in out) == (0, True)


def test_what_lm_eval_needs_is_named(sea_lens, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as where it is not installed
    code, _, err = sea_lens("evaluate", "lm-eval", "organism", "hellaswag", "--out", tmp_path / "o")
    assert (code, 'pip install "sea-lens[eval]"' in err) == (2, True)


# --- several editors or fits -----------------------------------------------------------------------------------------


def test_editors_are_compared_in_one_folder(sea_lens, editor_folder, tmp_path):
    Editor.from_pretrained(editor_folder).scaled(-1.0).save_pretrained(tmp_path / "backwards")
    editors = [f"by hand={editor_folder}", tmp_path / "backwards"]
    options = [
        "--truthfulqa",
        "organism",
        "--perplexity",
        "organism",
        "--n",
        6,
        "--control",
        0,
        "--out",
        tmp_path / "o",
    ]
    code, out, err = sea_lens("compare", "organism", *editors, *options, width=80)
    assert code == 0, err
    table = Comparison.load(tmp_path / "o").table
    assert table.index.tolist() == ["unedited", "by hand", "backwards"]
    assert {"truthfulqa MC1", "perplexity perplexity", "slowdown", "bytes"} <= set(table)
    assert (tmp_path / "o" / "comparison.png").read_bytes().startswith(PNG)
    assert (tmp_path / "o" / "comparison.md").read_text().startswith("| editor |")
    assert (tmp_path / "o" / "comparison.tex").read_text().startswith("\\begin{tabular}")
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert "truthfulqa: MC1, 95% intervals" in out


def test_editors_fitted_on_each_source_are_measured_on_each_benchmark(sea_lens, tmp_path):
    model, world = EMBEDDED["load_bias_organism"]("cpu")
    data = world.demonstrations()
    swapped = tuple(replace(row, positive=row.negative, negative=row.positive) for row in data)
    replace(data, rows=swapped).to_jsonl(tmp_path / "swapped.jsonl")
    sources = ["bbq=bias-organism", tmp_path / "swapped.jsonl"]
    options = ["--bbq", "bias-organism", "--perplexity", "bias-organism", "--n-questions", 40, "--n", 60, *BARE]
    code, out, err = sea_lens("transfer", "bias-organism", *sources, *FIT, *options, "--out", tmp_path / "o", width=80)
    assert code == 0, err
    found = Transfer.load(tmp_path / "o")
    assert found.changes.loc["bbq", "bbq"] > 0.15 > 0 > found.changes.loc["swapped.jsonl", "bbq"]
    assert (tmp_path / "o" / "transfer.png").read_bytes().startswith(PNG)
    answered = data.sample(60, 0).with_neutral_answers(model, 1, progress=False)
    expected = SEA(0.9999).fit(collect_activations(model, answered, [3], progress=False))
    assert found.evaluations["bbq"]["bbq"].provenance["editor"]["fingerprint"] == expected.fingerprint
    assert "bbq: accuracy, 95% intervals" in out
    assert max(map(len, out.splitlines()[:-1])) <= 80


def test_fits_on_fewer_demonstrations_are_measured_and_a_killed_run_goes_on(sea_lens, tmp_path, monkeypatch):
    command = ["data-efficiency", "bias-organism", "bias-organism", *FIT, "--bbq", "bias-organism", "--n-questions", 40]
    command += ["--n", 60, "--draws", 2, "--seed", 4, "--size", 5, "--size", 60, "--no-damage", "--out", tmp_path / "o"]
    drawn, draw = [], data_efficiency.draw

    def killed(activations, size, seed):
        if drawn:
            raise KeyboardInterrupt
        drawn.append((size, seed))
        return draw(activations, size, seed)

    with monkeypatch.context() as patched:
        patched.setattr(data_efficiency, "draw", killed)
        assert sea_lens(*command)[0] == 130
    monkeypatch.setattr(data_efficiency, "draw", lambda *given: (drawn.append(given[1:]), draw(*given))[1])
    code, out, err = sea_lens(*command)
    assert code == 0, err
    assert drawn == [(5, 4), (5, 5)]  # the first not again
    found = data_efficiency.DataEfficiency.load(tmp_path / "o")
    assert found.table["size"].tolist() == [5, 5, 60]
    assert found.curve.loc[60, "change"] > 0.15
    assert "BBQ: accuracy, unedited 0." in out
    mean, low, high = (f"{found.curve.loc[5, name]:.3g}" for name in ("mean", "low", "high"))
    assert re.search(rf"│ 5 +│ 2 +│ {re.escape(f'{mean} [{low}, {high}]')} │", out)
