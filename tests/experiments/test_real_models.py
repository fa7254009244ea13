"""The study of real models: parts are disjoint, cells are kept, the choice is within the limit, the rules judge."""

import json
import warnings
from dataclasses import replace

import pandas as pd
import pytest
import torch

import sea_lens as sl
from experiments.real_classes import around
from experiments.real_equal import run_equal, scaled_to
from experiments.real_judge import JUDGES, repetition
from experiments.real_methods import chosen_of, kept, method_of_entry, run_method, stronger
from experiments.real_page import PAGES, filled, named, tables
from experiments.real_report import equal_rows, landscape_rows, method_rows, report, task_rows
from experiments.real_setup import HERE, Cells, behavior, split_rows
from experiments.real_tasks import per_token_right, run_task
from sea_lens.models.log_probs import score_answers

CONFIG = json.loads((HERE / "real_models.json").read_text(encoding="utf-8"))


def test_parts_are_disjoint_and_another_seed_draws_others():
    sizes = CONFIG["split"]
    parts = [split_rows(60, sizes, seed) for seed in CONFIG["seeds"]]
    for each in parts:
        rows = [row for part in each.values() for row in part]
        assert len(rows) == len(set(rows)) == sum(sizes.values()) <= 60
    assert set(parts[0]["held_out"]) != set(parts[1]["held_out"])
    with pytest.raises(ValueError, match="60 rows were asked for"):
        split_rows(59, sizes, 0)


def test_every_behavior_has_sixty_pairs_that_its_rule_tells_apart():
    for name, entry in CONFIG["behaviors"].items():
        rows = [json.loads(line) for line in (HERE / entry["file"]).read_text(encoding="utf-8").splitlines()]
        assert len({row["prompt"] for row in rows}) == len(rows) == 60
        assert all(row[side][-1] in ".?" for row in rows for side in ("positive", "negative"))
        lengths = [sum(len(row[side].split()) for row in rows) for side in ("positive", "negative")]
        assert 0.85 < lengths[0] / lengths[1] < 1.15
        right = sum(JUDGES[name](row["positive"]) > JUDGES[name](row["negative"]) for row in rows)
        assert right >= 55, name


def test_every_method_of_the_configuration_can_be_made_with_as_many_trials():
    for name, entries in CONFIG["methods"].items():
        assert all(method_of_entry(entry) for entry in entries)
        one, band = (sum(len(entry["strengths"].get(where, [])) for entry in entries) for where in ("one", "band"))
        by_layers = any("chooses_layers" in entry for entry in entries)
        tried = one if name == "iti" else 4 * one if by_layers else 3 * one + band
        assert tried == 12, name
    assert stronger([{"strengths": {"one": [1, 2]}}], 4)[0]["strengths"] == {"one": [4, 8]}


def test_the_choice_is_the_best_within_the_limit():
    trials = [{"kl": 0.1, "gap": 1.0}, {"kl": 0.6, "gap": 5.0}, {"kl": 0.4, "gap": 2.0}, {"kl": 0.2, "gap": None}]
    assert chosen_of(trials, 0.5) == 2
    assert chosen_of(trials, 0.05) is None


def test_a_run_that_was_killed_goes_on(llama, tmp_path):
    entry = {"prompt": "Q: {question}\nA:", "places": {"middle": [1], "band": [0, 1]}, "texts": [1, 2]}
    config = {
        **CONFIG,
        "split": {"fit": 3, "tune": 2, "held_out": 5},
        "limits": {"kl": 5.0, "random": 1, "shuffles": 1},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SeaLensWarning)  # it babbles
        setup = behavior(llama, entry, config, "glad", 0, tmp_path / "activations")
    setup = replace(setup, max_new_tokens=2)
    prompts = [{row.prompt for row in part} for part in (setup.demonstrations, setup.tuning, setup.held_out)]
    assert len(set.union(*prompts)) == 10
    cells, facts = Cells(tmp_path / "cells"), {"model": "tiny", "behavior": "glad", "seed": 0}
    trials, found = run_method(cells, setup, "tiny/glad", "mean-difference", config, facts)
    assert found["chosen"]["kl"] <= 5.0
    assert found["change"] == pytest.approx(sum(found["by_question"]) / 5, abs=1e-4)
    assert len(found["by_question"]) == found["n"] == 5
    again = run_method(cells, None, "tiny/glad", "mean-difference", config, facts)  # reads, and computes nothing
    assert again == (trials, found)
    config = {**config, "equal": {"kl": 0.001, "random": 1}}
    equal = run_equal(cells, setup, "tiny/glad", "mean-difference", config, facts, trials)
    editor = scaled_to(setup, kept(setup, config["methods"]["mean-difference"])[0][1], 0.001)[0]
    assert setup.first_look.measure(editor).kl == pytest.approx(0.001, rel=0.04)
    base = equal["by_question"]
    other = {**facts, "method": "ace"}
    cells.get("tiny/glad/equal/ace", other, lambda: {**equal, "by_question": [value + 0.5 for value in base]})
    apart = equal_rows(cells).set_index("method")
    assert apart.at["ace", "apart_change"] == pytest.approx(0.5)
    assert pd.isna(apart.at["mean-difference", "apart_change"])
    with pytest.raises(AttributeError):
        run_method(cells, None, "tiny/glad", "mean-difference", config, {**facts, "seed": 1})
    table = method_rows(cells)
    assert table["change"].tolist() == [found["change"]]
    assert table["p_holm"].tolist() == [found["p"]]
    assert landscape_rows(cells).empty
    edited, plain = setup.gaps(setup.held_out, [None, None])
    assert torch.equal(edited, plain)
    own = {"chance": 0.5, "steered_at_chance": True, "methods": ["mean-difference"], "seeds": [0]}
    config["task_limits"] = config["limits"]
    run_task(cells, "tiny", setup, "bbq", own, 0, config)
    more = {**own, "methods": ["mean-difference"] * 2, "seeds": [0, 1]}
    run_task(cells, "tiny", replace(setup, model=None), "bbq", more, 0, config)  # kept, whatever else is asked for
    chance, row = (table.iloc[0] for table in task_rows(cells))
    right = per_token_right(score_answers(llama, setup.tuning, progress=False))["right"]
    assert (chance["right"], chance["n"]) == (int(right.sum()), 2)
    assert row["change"] == pytest.approx(row["edited"] - row["plain"])


@pytest.fixture(scope="module")
def measured(llama, tmp_path_factory):
    """What a run of two methods leaves on a tiny model: of every cell its name, facts and result; and the setup."""
    folder = tmp_path_factory.mktemp("measured")
    entry = {"prompt": "Q: {question}\nA:", "places": {"middle": [1], "band": [0, 1]}, "texts": [1, 2]}
    limits = {"kl": 5.0, "random": 1, "shuffles": 1}
    split = {"fit": 3, "tune": 2, "held_out": 5}
    config = {**CONFIG, "split": split, "limits": limits, "task_limits": limits, "equal": {"kl": 0.001, "random": 1}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SeaLensWarning)  # it babbles
        setup = behavior(llama, entry, config, "glad", 0, folder / "activations")
    setup = replace(setup, max_new_tokens=2)
    cells, facts = Cells(folder / "cells"), {"model": "tiny", "behavior": "glad", "seed": 0}
    methods = ["mean-difference", "leace"]
    for method in methods:
        trials, _ = run_method(cells, setup, "tiny/glad", method, config, facts)
        run_equal(cells, setup, "tiny/glad", method, config, facts, trials)
    own = {"chance": 0.5, "steered_at_chance": True, "methods": methods, "seeds": [0], "written": 4}
    run_task(cells, "tiny", setup, "truthfulqa", own, 0, config)
    return list(cells.all()), setup


def test_a_report_keeps_what_another_machine_measured(measured, tmp_path):
    """Measured by two machines, a half each, and one by both: the tables are those of one that measured all of it."""
    cells, _ = measured
    parts = {
        "all": lambda name: True,
        "first": lambda name: name.endswith(("mean-difference", "chance")) or "/equal/" in name,
        "second": lambda name: not name.endswith("mean-difference") and "/equal/" not in name,
    }
    for part, of_it in parts.items():
        for name, facts, found in cells:
            if of_it(name):
                Cells(tmp_path / part).get(name, facts, lambda found=found: found)
    report(Cells(tmp_path / "all"), tmp_path / "whole", tmp_path / "figures")
    report(Cells(tmp_path / "first"), tmp_path / "joined", tmp_path / "figures")
    alone = pd.read_csv(tmp_path / "joined" / "methods.csv")
    report(Cells(tmp_path / "second"), tmp_path / "joined", tmp_path / "figures", keep=True)
    assert len(alone) == 1
    names = {path.stem for path in (tmp_path / "whole").glob("*.csv")}
    assert names == {"methods", "equal", "tasks", "chance"}
    for name in names:
        of_all, of_both = (pd.read_csv(tmp_path / where / f"{name}.csv") for where in ("whole", "joined"))
        assert len(of_all) == {"methods": 2, "equal": 2, "tasks": 12, "chance": 1}[name]
        pd.testing.assert_frame_equal(of_both, of_all, check_like=True, rtol=1e-3)
    whole, both = (json.loads((tmp_path / where / "results.json").read_text()) for where in ("whole", "joined"))
    assert [each["cell"] for each in both["answers"]] == [each["cell"] for each in whole["answers"]]
    later = Cells(tmp_path / "later")
    for name, facts, found in cells:  # of a second draw alone
        later.get(name, {**facts, "seed": 1}, lambda found=found: found)
    report(later, tmp_path / "of_later", tmp_path / "of_later")
    assert (tmp_path / "of_later" / "real_models_methods.png").exists()
    report(Cells(tmp_path / "second"), tmp_path / "joined", tmp_path / "figures")
    assert len(pd.read_csv(tmp_path / "joined" / "methods.csv")) == 1  # unasked, a report is of its own cells alone


def test_a_report_never_replaces_results_by_nothing(measured, tmp_path):
    cells, _ = measured
    for name, facts, found in cells:
        Cells(tmp_path / "cells").get(name, facts, lambda found=found: found)
    report(Cells(tmp_path / "cells"), tmp_path / "out", tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(SystemExit, match="Nothing is measured in"):
        report(Cells(tmp_path / "none"), tmp_path / "out", tmp_path)
    with pytest.raises(SystemExit, match="Nothing is measured in"):
        report(Cells(tmp_path / "none"), tmp_path / "new", tmp_path, keep=True)
    assert not (tmp_path / "new").exists()
    report(Cells(tmp_path / "none"), tmp_path / "out", tmp_path, keep=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out" / "results.json").write_text("{")
    with pytest.raises(SystemExit, match="is damaged"):
        report(Cells(tmp_path / "cells"), tmp_path / "out", tmp_path, keep=True)
    (tmp_path / "out" / "results.json").unlink()
    with pytest.raises(SystemExit, match="has tables and no"):
        report(Cells(tmp_path / "cells"), tmp_path / "out", tmp_path, keep=True)


def test_what_a_model_writes_is_judged_beside_what_it_prefers(measured):
    cells, setup = measured
    found = {name: (facts, found) for name, facts, found in cells}
    facts, written = found["tiny/tasks/truthfulqa/seed 0/written/leace"]
    _, scored = found["tiny/tasks/truthfulqa/seed 0/leace"]
    assert facts["written"] == written["n"] == 4
    assert scored["n"] == 5
    assert set(scored["measures"]) == {"MC1", "MC2", "MC3", "MC1 per token"}
    assert set(written["measures"]) == {"written", "repetition"}
    questions = setup.held_out[:4]
    right = sl.answer_greedily(setup.model, questions, 2, match="rouge").right
    assert written["measures"]["written"]["plain"] == right.successes / 4
    (trial,) = [each for each in scored["trials"] if each == scored["chosen"]]
    editor = next(made for told, made in kept(setup, facts["entries"]) if told.items() <= trial.items())
    with editor.attached(setup.model):
        answers = sl.answer_greedily(setup.model, questions, 2, match="rouge").table["answer"]
    repeated = sum(map(repetition, answers)) / 4
    assert written["measures"]["repetition"]["edited"] == pytest.approx(repeated)
    assert len(written["measures"]["written"]["random"]) == len(written["measures"]["written"]["shuffled"]) == 1


def test_an_edit_around_the_mean_that_it_has_is_the_same_edit():
    torch.manual_seed(0)
    sides = {
        role: torch.randn(40, 8).double() + shift for role, shift in (("neutral", 3), ("positive", 2), ("negative", 1))
    }
    activations = sl.Activations.from_tensors(**{role: {0: side.float()} for role, side in sides.items()})
    editor = sl.SEA(0.5, center=True).fit(activations).scaled(0.7)
    mean, h = sides["neutral"].mean(0), torch.randn(5, 8)
    assert torch.allclose(around(editor, {0: mean})[0](h), editor[0](h), atol=1e-5)
    assert not torch.allclose(around(editor, {0: mean + 1})[0](h), editor[0](h), atol=1e-3)


def test_the_pages_hold_the_tables_of_the_results():
    found = tables()
    asked = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        asked += len(list(named(text)))
        assert filled(text, found) == text
    assert asked >= 12
