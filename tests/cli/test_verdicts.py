"""The first line of a result says what its numbers say, and `--json` holds the whole of it."""

import io
import json
import math
from contextlib import redirect_stdout

import pandas as pd
import pytest

from sea_lens.cli.app import COMMANDS
from sea_lens.cli.examples import EXAMPLES
from sea_lens.cli.output import failures_as_json
from sea_lens.cli.verdicts import verdict
from sea_lens.evaluation.metrics import Scale
from sea_lens.models.damage import Damage

WHOLE, BROKEN = (
    Damage(
        pd.DataFrame(
            {"texts": 1, "tokens": 9, "unedited": 5.0, "edited": 5 * math.exp(kl), "kl": kl}, index=["prompts"]
        )
    )
    for kl in (0.1, 2.0)
)


def row(low, high, p_value, least=None, most=None):
    return pd.Series(
        {"low": low, "high": high, "p_value": p_value, "control_low": least, "control_high": most}, dtype=float
    )


@pytest.mark.parametrize(
    ("after", "numbers", "scale", "damage", "said"),
    [
        (0.6, row(-0.1, 0.3, 0.3, 0.0, 0.0), None, WHOLE, "no change beyond chance"),
        (0.5, row(0.0, 0.0, 1.0, 0.0, 0.0), None, WHOLE, "no change beyond chance"),
        (0.9, row(0.3, 0.5, 0.001, -0.1, 0.39), None, WHOLE, "better than chance and than every control"),
        (0.9, row(0.3, 0.5, 0.001, -0.1, 0.4), None, WHOLE, "better than chance, but controls do as much"),
        (0.9, row(0.3, 0.5, 0.001), None, WHOLE, "better than chance; no control was run"),
        (0.1, row(-0.5, -0.3, 0.001, 0.0, 0.0), None, WHOLE, "worse than unedited, beyond chance"),
        (0.1, row(-0.5, -0.3, 0.001, -0.39, 0.0), Scale(-math.inf), WHOLE, "better than chance and than every control"),
        (
            0.1,
            row(-0.5, -0.3, 0.001, -0.41, 0.0),
            Scale(-math.inf),
            WHOLE,
            "better than chance, but controls do as much",
        ),
        (0.9, row(0.3, 0.5, 0.001, 0.0, 0.0), Scale(), WHOLE, "a change beyond chance, for better or worse"),
        (0.9, row(0.3, 0.5, 0.001, 0.0, 0.0), None, BROKEN, "breaks the model: perplexity 5 -> 36.9"),
        (0.6, row(-0.1, 0.3, math.nan), None, None, "no change beyond chance"),
    ],
)
def test_a_verdict_is_what_the_numbers_say(after, numbers, scale, damage, said):
    found = verdict("score", 0.5, after, numbers, scale, damage)
    assert found.startswith(f"{said}{'' if damage is BROKEN else ': '}")
    assert f"score 0.5 -> {after}" in found


def test_one_object_of_json_and_nothing_else(sea_lens, editor_folder, tmp_path):
    words = ("effects", "organism", editor_folder, "organism", "--n", 6, "--effect", "top_token", "--control", 0)
    code, out, _ = sea_lens(*words, "--out", tmp_path / "a", width=80)
    first = " ".join(out.split("Effects on")[0].split())
    code, out, _ = sea_lens(*words, "--out", tmp_path / "b", "--json", width=80)
    told = json.loads(out)
    assert code == 0
    assert told["lines"][0] == first
    (result,) = told["results"]
    kept = pd.read_csv(tmp_path / "b" / "effects.csv").iloc[0]
    assert (result["kind"], result["n"], result["table"][0]["edited"]) == ("Effects", 6, kept["edited"])
    assert set(told["files"]) == {str(path.relative_to(tmp_path / "b")) for path in (tmp_path / "b").rglob("*.*")}
    assert told["error"] is None


@pytest.mark.parametrize(
    "words",
    [
        "inspect nowhere --json",
        "inspect --json",
        "inspect --nothing --json nowhere",
        "nothing --json",
        "fit nothing organism organism --json",
        "--import no/file.py inspect nowhere --json",
    ],
)
def test_a_failure_is_an_object_of_json_too(sea_lens, words):
    """Whether it is noticed in the command or before one is known."""
    code, out, err = sea_lens(*words.split())
    assert code == 2
    told = json.loads(out)
    assert err == f"error: {told.pop('error')}\n"
    assert told == {"lines": [], "tables": [], "results": [], "files": [], "folder": None, "notes": []}


def test_a_failure_without_the_option_leaves_stdout_empty(sea_lens):
    assert sea_lens("inspect", "nowhere")[:2] == (2, "")
    assert sea_lens("inspect", "--", "--json")[:2] == (2, "")  # the name of an editor


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_json_is_whole_on_a_stdout_that_cannot_show_all_of_it(encoding):
    """As a Windows console, or text with half of a surrogate pair."""
    kept = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with redirect_stdout(kept), failures_as_json(["inspect", "--json"]) as fail:
        fail("no é \ud800")
    kept.flush()
    assert json.loads(kept.buffer.getvalue())["error"] == "no é \ud800"


def test_examples_are_commands(sea_lens, tmp_path, monkeypatch):
    """Each is read to its end: that no folder is there is all that is wrong."""
    monkeypatch.chdir(tmp_path)
    assert {name.split()[0] for name in EXAMPLES} <= set(COMMANDS)
    for name, lines in EXAMPLES.items():
        out = sea_lens(*name.split(), "--help", width=80)[1]
        assert all(len(line) <= 78 and line in out for line in lines), name


def test_words_are_completed(sea_lens, monkeypatch):
    monkeypatch.setenv("_SEA_LENS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "sea-lens eff")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert sea_lens()[1].split() == ["effects"]
    monkeypatch.setenv("COMP_WORDS", "sea-lens fit lea")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert sea_lens()[1].split() == ["leace"]
