"""The paper's tasks on a small model: HaluEval to TruthfulQA, BBQ, CAA's letters, where the model is above chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import sea_lens as sl
from experiments.real_judge import repetition
from experiments.real_methods import chosen_of, kept, tune_method
from experiments.real_setup import Cells, Setup, asked, changes, quietly, rows_of, split_rows
from sea_lens.evaluation.truthfulqa import multiple_choice
from sea_lens.models.answers import right_ones
from sea_lens.models.bridge import Model
from sea_lens.models.log_probs import AnswerScores, score_answers
from sea_lens.statistics import Proportion

Measures = Mapping[str, Float[Tensor, " questions"]]
Columns = Callable[[AnswerScores], Measures]


def per_token_right(scores: AnswerScores) -> Mapping[str, Float[Tensor, " questions"]]:
    """Whether the answer that is likeliest per token is right."""
    best = scores.by_answer(mean=True).argmax(1)
    return {"right": scores.is_right[torch.arange(len(best)), best].double()}


def truthful(scores: AnswerScores) -> Mapping[str, Float[Tensor, " questions"]]:
    """TruthfulQA's measures, as published on sums of log-probabilities, and MC1 per token."""
    means = scores.by_answer(mean=True)
    wrong = means.masked_fill(~scores.is_wrong, -torch.inf).amax(1)
    return {**multiple_choice(scores), "MC1 per token": (means[:, 0] > wrong).double()}


def alike_in_length(rows: sl.Demonstrations, most_words_apart: int) -> sl.Demonstrations:
    """The demonstrations whose answers differ by so few words at most."""
    lengths = [abs(len(row.positive.split()) - len(row.negative.split())) for row in rows]
    return rows_of(rows, [place for place, apart in enumerate(lengths) if apart <= most_words_apart])  # type: ignore[no-any-return]


def at_chance(
    model: Model, questions: sl.Questions, chance: float, columns: Columns = per_token_right
) -> dict[str, Any]:
    """How often the unedited model is right, and whether that may be guessing."""
    right = next(iter(columns(score_answers(model, questions, progress=False)).values()))
    share = Proportion(int(right.sum()), len(right))
    low, high = share.interval()
    return {
        "right": share.successes,
        "n": share.n,
        "low": low,
        "high": high,
        "chance": chance,
        "at_chance": low <= chance <= high,
    }


def halueval(
    model: Model, entry: Mapping[str, Any], task: Mapping[str, Any], data: Path, seed: int, folder: Path
) -> Setup:
    """HaluEval to fit on and to tune by, TruthfulQA to score on."""
    rows = sl.Demonstrations.from_halueval(data / "halueval_qa_500.json")
    rows = asked(alike_in_length(rows.with_answer_ending("."), task["words_apart"]), model, entry["prompt"])
    parts = split_rows(len(rows), task["split"], seed)
    fit = rows_of(rows, parts["fit"]).with_neutral_answers(
        model, 16, whole_sentences=True, folder=folder, progress=False
    )
    questions = sl.Questions.from_truthfulqa(data / "TruthfulQA.csv", template="{question}").sample(task["n"], seed)
    return Setup(
        model,
        fit.with_answer_ending("."),
        sl.Questions.from_demonstrations(rows_of(rows, parts["tune"])),
        asked(questions, model, entry["prompt"]),
        None,
        entry["places"],
        (entry["texts"][0], entry["texts"][1]),
        folder,
        24,
    )


def bbq(model: Model, entry: Mapping[str, Any], task: Mapping[str, Any], data: Path, seed: int, folder: Path) -> Setup:
    """Disambiguated questions of BBQ in three disjoint parts."""
    questions = sl.Questions.from_bbq(data / "bbq_disambig_4000.jsonl", template="{question}")
    questions = asked(questions, model, entry["prompt"])
    parts = {name: rows_of(questions, rows) for name, rows in split_rows(len(questions), task["split"], seed).items()}
    fit = parts["fit"]
    rows = sl.Demonstrations.from_lists(*zip(*[(row.prompt, row.right[0], row.wrong[0]) for row in fit], strict=True))
    neutral = rows.with_answer_ending(".").with_neutral_answers(
        model, 16, whole_sentences=True, folder=folder, progress=False
    )
    return Setup(
        model,
        neutral.with_answer_ending("."),
        parts["tune"],
        parts["held_out"],
        None,
        entry["places"],
        (entry["texts"][0], entry["texts"][1]),
        folder,
        16,
    )


def caa(model: Model, entry: Mapping[str, Any], name: str, data: Path) -> dict[str, Any]:
    """Whether the model prefers the letter that shows the behavior."""
    questions = sl.Questions.from_file(data / f"caa_{name}_test.json")
    return at_chance(model, asked(questions, model, entry["prompt"]), 0.5)


def score_task(
    setup: Setup, entries: Sequence[Mapping[str, Any]], limits: Mapping[str, Any], columns: Columns
) -> dict[str, Any]:
    """Chooses on the tuning questions, and looks at the held-out ones once, beside the controls."""
    trials = tune_method(setup, entries, limits["kl"])
    chosen = chosen_of(trials, limits["kl"])
    if chosen is None:
        return {"chosen": None, "trials": trials}
    editors = beside_controls(setup, entries, trials[chosen]["entry"], chosen, limits)
    runs = [columns(score_answers(setup.model, setup.held_out, each, progress=False)) for each in editors]
    measures = compared(plain_of(setup, columns), runs, limits)
    damage = setup.meter.measure(editors[0])
    some = replace(setup, held_out=setup.held_out[:10], _kept={})
    before, after = some.said(None), some.said(editors[0])
    return {
        "chosen": trials[chosen],
        "trials": trials,
        "n": len(setup.held_out),
        "n_fit": len(setup.demonstrations),
        "n_tuning": len(setup.tuning),
        "measures": measures,
        "kl": damage.kl,
        "perplexity_ratio": damage.perplexity_ratio,
        "answers": [{"plain": one, "edited": other} for one, other in zip(before, after, strict=True)],
    }


def beside_controls(
    setup: Setup, entries: Sequence[Mapping[str, Any]], entry: int, chosen: int, limits: Mapping[str, Any]
) -> list[sl.Editor]:
    """The chosen edit, random editors as long, and refits on shuffled sides."""
    _, editor = kept(setup, entries)[chosen]
    activations = setup.activations(site=entries[entry].get("site", "resid_post"))
    randoms = [sl.random_editor_like(editor, seed) for seed in range(limits["random"])]
    return [editor, *randoms, *[sl.refit(editor, activations.shuffled(seed)) for seed in range(limits["shuffles"])]]


def compared(plain: Measures, runs: Sequence[Measures], limits: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By measure, what the first of the runs changes, and what the controls after it do."""
    first_shuffled = 1 + limits["random"]
    return {
        name: {
            "plain": float(before.mean()),
            "edited": float(runs[0][name].mean()),
            **changes(runs[0][name], before),
            "random": [float((run[name] - before).mean()) for run in runs[1:first_shuffled]],
            "shuffled": [float((run[name] - before).mean()) for run in runs[first_shuffled:]],
        }
        for name, before in plain.items()
    }


def write_answers(
    setup: Setup, entries: Sequence[Mapping[str, Any]], scored: Mapping[str, Any], limits: Mapping[str, Any], n: int
) -> dict[str, Any]:
    """The chosen edit's own answers to n held-out questions, beside the controls'.

    Two measures: the share that is nearer to a right answer than to every wrong one (ROUGE-L), and how much of an answer
    stood in it before.
    """
    if scored["chosen"] is None:
        return {"chosen": None}
    chosen = chosen_of(scored["trials"], limits["kl"])
    assert chosen is not None
    some = replace(setup, held_out=setup.held_out[:n], _kept={})
    key = "written", n
    if key not in setup._kept:
        setup._kept[key] = measures_of(some.said(None), some.held_out)
    texts = [some.said(each) for each in beside_controls(setup, entries, scored["chosen"]["entry"], chosen, limits)]
    measures = compared(setup._kept[key], [measures_of(answers, some.held_out) for answers in texts], limits)
    told = {key: scored[key] for key in ("chosen", "n_fit", "n_tuning", "kl", "perplexity_ratio")}
    return {**told, "n": len(some.held_out), "measures": measures}


def measures_of(answers: Sequence[str], questions: sl.Questions) -> Measures:
    """Of what is written, one number per answer."""
    nearer = torch.tensor(right_ones(answers, questions, "rouge")).double()
    return {"written": nearer, "repetition": torch.tensor([repetition(answer) for answer in answers]).double()}


def plain_of(setup: Setup, columns: Columns) -> Measures:
    """The unedited model's measures, once."""
    if "plain" not in setup._kept:
        setup._kept["plain"] = columns(score_answers(setup.model, setup.held_out, progress=False))
    found: Measures = setup._kept["plain"]
    return found


def facts_of(name: str, task: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the results of a task: not what is asked for of it."""
    asked_for = ("methods", "seeds", "models", "written")
    return {"model": name, "task": task, **{key: own[key] for key in own if key not in asked_for}}


def run_letters(
    cells: Cells, name: str, model: Model, entry: Mapping[str, Any], task: str, own: Mapping[str, Any], data: Path
) -> None:
    """A task of letters: chance, and no more where the model may be guessing."""
    facts = facts_of(name, task, own)
    found = cells.get(f"{name}/tasks/{task}/chance", facts, lambda: caa(model, entry, own["letters"], data))
    print(f"{name} {task}: {found}", flush=True)


def run_task(
    cells: Cells, name: str, setup: Setup, task: str, own: Mapping[str, Any], seed: int, config: Mapping[str, Any]
) -> None:
    """Chance on the tuning questions first; then every method of the task where the model is above it."""
    columns = truthful if task.startswith("truthfulqa") else per_token_right
    limits, where = config["task_limits"], f"{name}/tasks/{task}/seed {seed}"
    facts = {**facts_of(name, task, own), "places": setup.places, "limits": limits, "seed": seed}
    chance = cells.get(f"{where}/chance", facts, lambda: at_chance(setup.model, setup.tuning, own["chance"]))
    print(f"{where}: tuning questions right, unedited: {chance}", flush=True)
    if chance["at_chance"] and not own.get("steered_at_chance"):
        return
    for method in own["methods"]:
        entries = config["methods"][method]

        def score(entries: Sequence[Mapping[str, Any]] = entries) -> dict[str, Any]:
            return score_task(setup, entries, limits, columns)

        own_facts = {**facts, "method": method, "entries": entries}
        with quietly():
            found = cells.get(f"{where}/{method}", own_facts, score)
        measures = found.get("measures", {})
        if "written" in own:

            def write(
                entries: Sequence[Mapping[str, Any]] = entries, found: Mapping[str, Any] = found
            ) -> dict[str, Any]:
                return write_answers(setup, entries, found, limits, own["written"])

            with quietly():
                written = cells.get(f"{where}/written/{method}", {**own_facts, "written": own["written"]}, write)
            measures = {**measures, **written.get("measures", {})}
        told = {
            key: f"{value['plain']:.3f} -> {value['edited']:.3f} [{value['low']:+.3f}, {value['high']:+.3f}], "
            f"random {max(value['random']):+.3f}"
            for key, value in measures.items()
        }
        print(f"{where} {method}: KL {found.get('kl', float('nan')):.2f} {told}", flush=True)


def run_tasks(
    cells: Cells, name: str, model: Model, config: Mapping[str, Any], data: Path, only: Any, seeds: Any = None
) -> None:
    """All tasks of the configuration, or those that are asked for."""
    entry, folder = config["models"][name], cells.folder.parent / "activations"
    for task, own in config["tasks"].items():
        if name not in own.get("models", [name]) or (only is not None and task not in only):
            continue
        if "letters" in own:
            run_letters(cells, name, model, entry, task, own, data)
            continue
        for seed in [each for each in own["seeds"] if seeds is None or each in seeds]:
            made = (halueval if task.startswith("truthfulqa") else bbq)(model, entry, own, data, seed, folder)
            run_task(cells, name, made, task, own, seed, config)
