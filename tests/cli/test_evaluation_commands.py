import hashlib
import json
import re
import sys
from dataclasses import replace

import pandas as pd
import pytest
from conftest import PNG

from sea_lens import Editor
from sea_lens.cache import Store
from sea_lens.cli.app import console
from sea_lens.evaluation.truthfulqa import evaluate_truthfulqa
from sea_lens.worlds.bias import BiasWorld

pytestmark = pytest.mark.usefixtures("without_type_checks")


def facts(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_a_result_is_a_folder_that_names_what_made_it(sea_lens, organism, editor_folder, tmp_path, monkeypatch):
    model, world = organism
    path = tmp_path / "questions.jsonl"
    world.questions()[:40].to_jsonl(path)
    monkeypatch.setattr(console, "_width", 80)
    out = tmp_path / "o"
    command = ["evaluate", "truthfulqa", "organism", path, "--editor", editor_folder, "--n", 12, "--seed", 3]
    code, shown, err = sea_lens(*command, "--out", out)
    assert code == 0, err
    assert all(len(line) <= 80 for line in shown.split("evaluation.json")[0].splitlines())
    assert "MC1" in shown
    assert f"evaluation.json, metrics.csv, categories.csv, rows.csv, answers.csv, evaluation.png are in {out}" in shown
    names = ["answers.csv", "categories.csv", "evaluation.json", "evaluation.png", "metrics.csv", "rows.csv"]
    assert sorted(file.name for file in out.iterdir()) == names
    assert (out / "evaluation.png").read_bytes().startswith(PNG)

    found = facts(out)
    editor = Editor.from_pretrained(editor_folder)
    assert found["editor"]["name"] == str(editor_folder)
    assert found["editor"]["fingerprint"] == editor.fingerprint
    assert found["model"]["name"] == "sea-lens-organism"
    assert found["data"]["source"] == str(path)
    assert found["data"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["data"]["rows"] == 12
    assert found["prompt"] == "{question}"
    assert {"sea-lens", "torch", "transformers", "transformer-lens"} <= set(found["versions"])
    expected = evaluate_truthfulqa(
        model, world.questions()[:40].sample(12, 3), editor, prompt="plain", seed=3, progress=False
    )
    table = pd.read_csv(out / "metrics.csv").set_index("metric")
    pd.testing.assert_frame_equal(table, expected.table, check_dtype=False)


def test_the_unedited_model_alone_needs_no_editor(sea_lens, tmp_path):
    code, _, err = sea_lens("evaluate", "truthfulqa", "organism", "organism", "--n", 6, "--out", tmp_path / "o")
    assert code == 0, err
    assert facts(tmp_path / "o")["editor"] is None
    assert facts(tmp_path / "o")["data"]["source"] == "organism"
    assert "value" in pd.read_csv(tmp_path / "o" / "metrics.csv")


def test_a_killed_evaluation_goes_on_where_it_stopped(sea_lens, editor_folder, tmp_path, monkeypatch):
    command = ["evaluate", "truthfulqa", "organism", "organism", "--editor", editor_folder, "--n", 24]
    command += ["--batch-size", 4]
    written, kept = [], Store.write

    def killed(self, number, batch):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(number)
        kept(self, number, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write", killed)
        assert sea_lens(*command, "--out", tmp_path / "o")[0] == 130  # as shells say of what was interrupted
    assert len(list((tmp_path / "o" / "unfinished").rglob("scores-*.safetensors"))) == 3
    again = []
    monkeypatch.setattr(Store, "write", lambda self, number, batch: (again.append(number), kept(self, number, batch)))
    assert sea_lens(*command, "--out", tmp_path / "o")[0] == 0
    assert not (tmp_path / "o" / "unfinished").exists()
    resumed = len(again)
    assert sea_lens(*command, "--out", tmp_path / "whole")[0] == 0
    assert len(again) - resumed == resumed + 3
    assert (tmp_path / "o" / "answers.csv").read_bytes() == (tmp_path / "whole" / "answers.csv").read_bytes()


def test_answers_are_written_for_a_judge(sea_lens, organism, editor_folder, tmp_path):
    options = ["--editor", editor_folder, "--n", 8, "--generate", "--max-new-tokens", 1, "--out", tmp_path / "o"]
    code, out, err = sea_lens("evaluate", "truthfulqa", "organism", "organism", *options)
    assert code == 0, err
    assert "answers.jsonl" in out
    rows = [json.loads(line) for line in (tmp_path / "o" / "answers.jsonl").read_text().splitlines()]
    asked = organism[1].questions().sample(8, 0)
    assert [row["prompt"] for row in rows] == [question.prompt for question in asked]
    assert all({"unedited", "edited", "true", "false"} <= set(row) for row in rows)
    assert "nearer to truth" in out


def test_perplexity_of_a_file_and_of_the_embedded_world(sea_lens, organism, editor_folder, tmp_path):
    texts = [f"{question.prompt} {question.right[0]}" for question in organism[1].questions()[:6]]
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(texts))
    command = ["evaluate", "perplexity", "organism", path, "--editor", editor_folder, "--n", 4]
    code, out, err = sea_lens(*command, "--out", tmp_path / "o")
    assert code == 0, err
    assert "top agreement" in out
    found = facts(tmp_path / "o")
    assert found["data"]["source"] == str(path)
    assert found["data"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["data"]["rows"] == 4
    code, _, err = sea_lens("evaluate", "perplexity", "organism", "organism", "--n", 2, "--out", tmp_path / "w")
    assert code == 0, err
    assert facts(tmp_path / "w")["data"]["sha256"] is None


def test_bbq_on_the_model_with_a_bias_sees_what_an_edit_of_its_own_world_does(sea_lens, tmp_path):
    options = [
        "--max-new-tokens",
        1,
        "--explained-variance",
        0.9999,
        "--layers",
        "last:1",
        "--out",
        tmp_path / "editor",
    ]
    code, _, err = sea_lens("fit", "bias-organism", "bias-organism", "--n", 60, *options)
    assert code == 0, err
    assert Editor.from_pretrained(tmp_path / "editor").card.model.name == "sea-lens-bias-organism"
    command = ["evaluate", "bbq", "bias-organism", "bias-organism", "--editor", tmp_path / "editor", "--n", 64]
    code, _, err = sea_lens(*command, "--out", tmp_path / "o")
    assert code == 0, err
    table = pd.read_csv(tmp_path / "o" / "metrics.csv").set_index("metric")
    assert table.loc["accuracy_ambiguous", "edited"] >= 0.9 > 0.7 >= table.loc["accuracy_ambiguous", "unedited"]
    assert table.loc["bias_score_ambiguous", "high"] < 0


def test_bbq_and_crows_pairs_of_published_files(sea_lens, some_data, stories, tmp_path):
    path = some_data("bbq_Religion.jsonl")
    command = ["evaluate", "bbq", stories, path, "--n", 8, "--scored-by", "mean"]
    code, out, err = sea_lens(*command, "--context", "ambig", "--out", tmp_path / "bbq")
    assert code == 0, err
    assert "bias score ambiguous" in out
    assert "disambiguated" not in out
    assert facts(tmp_path / "bbq")["options"]["scored_by"] == "mean"
    pairs = some_data("crows_pairs_anonymized.csv")
    code, out, err = sea_lens("evaluate", "crows-pairs", stories, pairs, "--n", 8, "--out", tmp_path / "crows")
    assert code == 0, err
    assert "stereotype preferred" in out


def test_a_prompt_that_does_not_fit_a_small_context_is_said_so(sea_lens, some_data, stories, tmp_path):
    path = some_data("bbq_Religion.jsonl")
    command = ["evaluate", "bbq", stories, path, "--n", 2, "--prompt", "paper", "--out", tmp_path / "o"]
    code, _, err = sea_lens(*command)
    assert code == 2
    assert "tokens long, but the model's context is" in err.splitlines()[-1]


def test_what_lm_eval_needs_is_named(sea_lens, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as where it is not installed
    code, _, err = sea_lens("evaluate", "lm-eval", "organism", "hellaswag", "--out", tmp_path / "o")
    assert code == 2
    assert 'pip install "sea-lens[eval]"' in err


COMMON = "--editor --out --n --seed --confidence --batch-size --device --dtype"


@pytest.mark.parametrize(
    ("benchmark", "options"),
    [
        ("truthfulqa", f"{COMMON} --prompt --generate --max-new-tokens --template"),
        ("bbq", f"{COMMON} --prompt --context --scored-by --all-unknown-answers --template"),
        ("crows-pairs", COMMON),
        ("perplexity", f"{COMMON} --context-length --stride"),
        ("lm-eval", f"{COMMON.replace('--n ', '')} --task-folder --num-fewshot --limit --chat"),
    ],
)
def test_help_lists_every_option_of_a_benchmark(sea_lens, benchmark, options):
    code, out, err = sea_lens("evaluate", benchmark, "--help")
    assert (code, err) == (0, "")
    listed = set(re.findall(r"^ +(--[a-z-]+)", out.split("Options:")[1], flags=re.MULTILINE)) - {"--help"}
    assert listed == set(options.split())
    assert benchmark in sea_lens("evaluate", "--help")[1]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["evaluate"], "Measures a model"),
        (["evaluate", "taste", "organism", "x"], "No such command 'taste'"),
        (["evaluate", "truthfulqa", "organism"], "Missing argument"),
        (["evaluate", "truthfulqa", "organism", "nofile.csv"], "nofile.csv could not be read"),
        (["evaluate", "truthfulqa", "organism", "organism", "--editor", "nowhere"], "There is no folder nowhere"),
        (["evaluate", "truthfulqa", "organism", "organism", "--n", "0"], "0 questions were asked for"),
        (["evaluate", "truthfulqa", "organism", "organism", "--prompt", "paper"], "Read them with template"),
        (["evaluate", "truthfulqa", "organism", "organism", "--prompt", "none"], "a template with {question}"),
        (["evaluate", "truthfulqa", "organism", "organism", "--confidence", "2"], "confidence inside (0, 1)"),
        (["evaluate", "truthfulqa", "organism", "organism", "--dtype", "int8"], "--dtype"),
        (["evaluate", "bbq", "bias-organism", "TOLD", "--context", "ambig"], "has no question with --context ambig"),
        (["evaluate", "bbq", "organism", "organism"], "Give a file of BBQ, or `bias-organism`"),
        (["evaluate", "truthfulqa", "bias-organism", "bias-organism"], "`sea-lens evaluate bbq`, or --bbq"),
        (["evaluate", "bbq", "organism", "bias-organism"], "'organism' does not know the words of 'bias-organism'"),
        (["evaluate", "crows-pairs", "bias-organism", "bias-organism"], "Read them with Questions.from_crows_pairs"),
        (["evaluate", "perplexity", "organism", "organism", "--n", "999"], "999 texts were asked for"),
        (["evaluate", "lm-eval", "organism"], "Missing argument"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(sea_lens, tmp_path, monkeypatch, arguments, part):
    monkeypatch.chdir(tmp_path)
    questions = BiasWorld.build().questions()
    replace(questions, rows=questions.rows[4:8]).to_jsonl(tmp_path / "TOLD")
    code, out, err = sea_lens(*arguments)
    assert code == 2
    assert part in out + err
    assert "Traceback" not in err
    if len(arguments) > 1:
        assert err.splitlines()[-1].startswith("error: ")
