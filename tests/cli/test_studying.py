"""The command that gives a verdict: its first line says it, and its page lies where the last line says."""

import json

import sea_lens as sl


def test_the_first_line_is_the_verdict_and_the_last_names_the_page(sea_lens, organism, tmp_path):
    _, world = organism
    demonstrations, questions, out = tmp_path / "demos.jsonl", tmp_path / "questions.jsonl", tmp_path / "study"
    world.demonstrations()[::6].to_jsonl(demonstrations)
    world.questions()[::8].to_jsonl(questions)
    options = ["--trials", 1, "--methods", "mean-difference", "--control", 1, "--shuffles", 0, "--layers", "first:3"]
    code, shown, err = sea_lens("study", "organism", demonstrations, questions, "--out", out, *options, width=80)
    assert code == 0, err
    found = sl.Study.load(out)
    lines = shown.splitlines()
    assert lines[0].split(":")[0] == found.verdict
    assert " ".join(shown.split()).startswith(found.summary)
    assert max(map(len, lines[:-2])) <= 80
    assert lines[-1] == f"report: {out / 'study.html'}"
    assert found.summary.partition(": ")[2][:20] in (out / "study.html").read_text()
    assert found.editor.fingerprint == sl.Editor.from_pretrained(out / "study-editor").fingerprint
    assert not (out / "unfinished").exists()
    code, shown, err = sea_lens("study", "organism", demonstrations, questions, "--out", out, *options, "--json")
    assert code == 0, err
    told = json.loads(shown)
    tables = {table["title"]: table["rows"] for table in told["tables"]}
    again = sl.Study.load(out)
    assert told["lines"][0] == again.summary == found.summary
    assert "It replaces the results of a study of" in " ".join(told["lines"])
    assert f"its verdict: {found.verdict}" in " ".join(again.told)
    assert again.facts["replaced"] in (out / "study.html").read_text()
    assert f"tried 1 of {again.facts['planned']} planned settings" in " ".join(told["lines"])
    assert [row["kl"] for row in tables["controls"]] == again.controls["kl"].tolist()
    assert [row["method"] for row in tables["trials"]] == again.trials["method"].tolist()
    assert [row["edited"] for row in tables["examples"]] == again.examples["edited"].tolist()
    assert tables["facts"][0]["setting"] == again.facts["setting"]
    code, _, err = sea_lens("study", "organism", demonstrations, demonstrations, "--out", out)
    assert (code, "are asked in the demonstrations" in err) == (2, True)
