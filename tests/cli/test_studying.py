"""The command that gives a verdict: its first line says it, and its page lies where the last line says."""

import json

import sea_lens as sl
from sea_lens.evaluation.study.report import readable_rows


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
    assert found.thin == "as far as one of 2 settings tells"
    assert shown.replace("\n", " ").startswith(f"{found.verdict}, {found.thin}: ")
    assert "note:" not in err
    cells = readable_rows(found.table).set_index("")["share"]
    assert ("[" in cells["edited"], "[" in cells["random, same length"]) == (True, False)  # one control has no range
    assert " ".join(shown.split()).startswith(found.summary)
    assert max(map(len, lines[:-2])) <= 80
    assert lines[-1] == f"report: {out / 'study.html'}"
    assert f"The one setting tried, of 2 planned: {found.facts['setting']}." in " ".join(shown.split())
    listed = [line[2:] for line in lines if line.startswith("- ")]
    told = [*found.reasons, *found.checked.findings, *found.told]
    assert all(why.startswith(line) for why, line in zip(told, listed, strict=True))
    assert found.summary.partition(": ")[2][:20] in (out / "study.html").read_text()
    assert found.editor.fingerprint == sl.Editor.from_pretrained(out / "study-editor").fingerprint
    assert not (out / "unfinished").exists()
    code, shown, err = sea_lens("study", "organism", demonstrations, questions, "--out", out, *options, "--json")
    assert code == 0, err
    told = json.loads(shown)
    tables = {table["title"]: table["rows"] for table in told["tables"]}
    again = sl.Study.load(out)
    assert told["lines"][0] == again.summary == found.summary
    assert (told["results"][0]["verdict"], told["results"][0]["thin"]) == (found.verdict, found.thin)
    assert tables["repetition"] == [dict(found.repetition)]
    assert len(told["notes"]) == 1
    assert told["notes"][0].startswith(f"{out} holds the results of a study of")
    assert f"(its verdict: {found.verdict}, {found.thin}). They stay until" in told["notes"][0]
    assert "It replaces the results of a study of" in " ".join(told["lines"])
    assert f"its verdict: {found.verdict}, {found.thin}" in " ".join(again.told)
    assert again.facts["replaced"] in (out / "study.html").read_text()
    assert f"tried 1 of {again.facts['planned']} planned settings" in " ".join(told["lines"])
    assert [row["kl"] for row in tables["controls"]] == again.controls["kl"].tolist()
    assert [row["method"] for row in tables["trials"]] == again.trials["method"].tolist()
    assert [row["edited"] for row in tables["examples"]] == again.examples["edited"].tolist()
    assert tables["facts"][0]["setting"] == again.facts["setting"]
    code, _, err = sea_lens("study", "organism", demonstrations, demonstrations, "--out", out)
    assert (code, "are asked in the demonstrations" in err) == (2, True)
    code, _, err = sea_lens("study", "organism", questions, demonstrations, "--out", out)
    assert code == 2
    assert f"{questions} and {demonstrations} seem to be exchanged" in err
    right = f"sea-lens study organism {demonstrations} {questions}"
    assert f"The order is MODEL DEMONSTRATIONS QUESTIONS: {right}, and the options as they are." in err
    named = tmp_path / "named.jsonl"
    named.write_text(demonstrations.read_text().replace('"positive"', '"yes"').replace('"negative"', '"no"'))
    columns = ["--column", "positive=yes", "--column", "negative=no"]
    code, _, err = sea_lens("study", "organism", questions, named, "--out", out, *columns)
    assert code == 2
    assert "seem to be exchanged" in err
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    code, _, err = sea_lens("study", "organism", demonstrations, questions, "--out", out, "--neutral", empty)
    assert code == 2
    assert f"{empty} holds no text" in err
    code, _, err = sea_lens("study", "organism", questions, tmp_path / "none.jsonl", "--out", out)
    assert (code, "exchanged" in err) == (2, False)
