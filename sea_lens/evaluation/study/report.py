"""A study as one self-contained HTML page: the verdict first, then what it rests on, and what it does not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import takewhile
from typing import Any, Protocol, runtime_checkable

import jinja2
import pandas as pd

from sea_lens.data.confounds import DemonstrationCheck
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.study.figures import effect_figure, legend, trials_figure
from sea_lens.evaluation.study.repeats import but_of, told_of_repeats
from sea_lens.evaluation.study.sizes import evenly
from sea_lens.methods.measures import MATCH_OF
from sea_lens.versions import versions_of

HUES = {"works": "works", "no effect": "no-effect", "breaks the model": "breaks"}
MEASURED = {
    "preference_per_token": "a question is right where a right answer is likelier, per token, than every wrong one",
    "preference": "a question is right where a right answer is likelier than every wrong one",
    "mc1": "a question is right where its first right answer is likelier than every wrong one",
    "answers": "a question is right where the greedy answer holds a right answer and no wrong one",
    "exact": "a question is right where the greedy answer equals a right one",
    "rouge": "a question is right where the greedy answer is nearer to a right one than to every wrong one",
}


@runtime_checkable
class Studied(Protocol):
    """What a page is made of: a `Study`, which this module must not know, as it writes its own page."""

    @property
    def verdict(self) -> str:
        """In a word or three."""

    @property
    def summary(self) -> str:
        """In a sentence."""

    @property
    def reasons(self) -> Sequence[str]:
        """For and against it."""

    @property
    def table(self) -> pd.DataFrame:
        """A row per model."""

    @property
    def trials(self) -> pd.DataFrame:
        """A row per trial."""

    @property
    def examples(self) -> pd.DataFrame:
        """Answers of both models."""

    @property
    def checked(self) -> DemonstrationCheck:
        """The demonstrations."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was studied and how."""

    @property
    def evaluation(self) -> Evaluation | None:
        """On the held-out half."""

    @property
    def controls(self) -> pd.DataFrame:
        """A row per control."""

    @property
    def told(self) -> Sequence[str]:
        """What was left out, taken over or replaced."""

    @property
    def thin(self) -> str:
        """On how little the verdict rests."""

    @property
    def repetition(self) -> Mapping[str, int | float]:
        """How much answers repeat themselves."""


FEW_TO_SHUFFLE = 4
"""Demonstrations below which shuffles of their sides are seldom different."""
SHOWN = 6
"""Answers, of those that are written."""
TEMPLATE = 40
"""Characters that all prompts share, from which they are taken for a template."""


def page_of(study: Studied) -> str:
    """The page's text."""
    facts, but = study.facts, but_of(study.verdict, study.repetition)
    heading, _, sentence = study.summary.partition(": ")
    asked = int(study.table["n"].iloc[0])
    held_out = "held-out questions" if study.evaluation is not None else "questions"
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        (files("sea_lens.evaluation.study") / "study.html").read_text(encoding="utf-8")
    )
    shown = study.trials[study.trials["n"] > 0] if len(study.trials) else study.trials
    before = float(facts.get("unedited_score", 0.0))
    return template.render(
        study=study,
        facts=facts,
        hue=" ".join(filter(None, (HUES[study.verdict], "thin" if study.thin else "", "but" if but else ""))),
        heading=heading[:1].upper() + heading[1:],
        sentence=_arrows(sentence[:1].upper() + sentence[1:]),
        measured=f"On {asked} {held_out}; {MEASURED[facts['measure']]}.",
        effect_figure=effect_figure(study.table),
        effect_caption=(
            "Dots are shares that are right. Thin lines are 95 % Wilson intervals; broad bars are the range over controls: "
            "random editors that move every token exactly as far in other directions; the same ones scaled until they cost "
            "what the edit costs; and refits on demonstrations whose sides are shuffled, each with its mirror image. Margin: "
            "nats of right over wrong answers; KL: what it costs, in nats per token, on prompts or on neutral text, "
            "whichever is higher; of controls on every fourth text, as mean and range."
        ),
        rows=readable_rows(study.table),
        controls=_controls(study.controls),
        reasons=[_arrows(why) for why in study.reasons if not why.startswith(("Damage", "Repetition:"))],
        damage=_damage(study),
        examples=_examples(study.examples) if len(study.examples) else [],
        trials=_trials(study.trials) if len(study.trials) else None,
        tried=_tried(study),
        trials_figure=trials_figure(shown, before, facts["max_kl"]) if len(shown) else "",
        legend=legend(list(shown["method"])) if len(shown) else "",
        trials_caption=(
            "Effect against damage on the fitting half, where the choice was made: the score is the mean probability of "
            "right against wrong answers (of measures of answers, the share that is right). The ring is the choice."
        ),
        checked=_checked(study),
        limits=_limits(study),
        made=_made(study),
    )


def _arrows(text: str) -> str:
    """With signs that a line does not break in."""
    return text.replace(" -> ", " → ")


def _controls(controls: pd.DataFrame) -> dict[str, Any] | None:
    if not len(controls):
        return None
    rows = [
        [
            f"{row['control']} {row['number']}{', mirrored' if is_mirror else ''}",
            f"{row['factor']:.2g}" if str(row["control"]).startswith("random") else "",
            str(row["right"]),
            f"{row['change']:+.1%}",
            *([f"{row['margin']:+.2f}"] if "margin" in row else []),
            f"{row['kl']:.2g}",
            f"x {row['perplexity_ratio']:.3g}",
            "yes" if row["is_broken"] else "",
        ]
        for row, is_mirror in zip(controls.to_dict("records"), controls.duplicated(["control", "number"]), strict=True)
    ]
    margin = ["margin gained"] if "margin" in controls else []
    columns = ["control", "times the edit's length", "right", "change", *margin, "KL", "perplexity", "breaks the model"]
    return {"columns": columns, "rows": rows}


def _damage(study: Studied) -> dict[str, Any] | None:
    damage = None if study.evaluation is None else study.evaluation.damage
    if damage is None:
        return None
    rows = [
        [str(name), f"{row['texts']:.0f}", f"{row['unedited']:.3g}", f"{row['edited']:.3g}", f"{row['kl']:.2g}"]
        for name, row in damage.table.iterrows()
    ]
    return {
        "said": _arrows(damage.summary),
        "rows": rows,
        "repeats": told_of_repeats(study.repetition) if study.repetition else "",
    }


def _examples(written: pd.DataFrame) -> list[dict[str, str]]:
    """Some rows, evenly spread, with what all prompts begin and end with, such as a chat template, left out of them."""
    examples = written.iloc[evenly(len(written), SHOWN)]
    prompts = [str(prompt) for prompt in examples["prompt"]]
    start = _shared(prompts)
    end = _shared([prompt[start:][::-1] for prompt in prompts])
    while end and prompts[0][-end] in "?!.":  # the question's own
        end -= 1
    rows: list[dict[str, str]] = examples[["prompt", "unedited", "edited"]].to_dict("records")  # type: ignore[assignment]
    if start + end < TEMPLATE:
        return rows
    for row, prompt in zip(rows, prompts, strict=True):
        begun = prompt[:start].rfind(" ", prompt[:start].rfind("\n") + 1) + 1 or prompt[:start].rfind("\n") + 1
        row["prompt"] = prompt[begun : len(prompt) - end].strip() or prompt
    return rows


def _shared(texts: Sequence[str]) -> int:
    """How many characters several texts begin with alike; none for equal texts."""
    if len(set(texts)) < 2:
        return 0
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False)))


def _tried(study: Studied) -> str:
    if not len(study.trials):
        return ""
    facts, past = study.facts, int((study.trials["n"] == 0).sum())
    told = f"{len(study.trials)} of {facts['planned']} settings, in a fixed order, on {facts['n_fitting']} fitting questions."
    if past:
        told += f" {past} cost more than the limit of {facts['max_kl']:g} nats per token and were asked nothing."
    chosen = facts.get("setting")
    return f"{told} Chosen: {chosen}." if chosen else told


def _trials(trials: pd.DataFrame) -> dict[str, Any]:
    ordered = trials.sort_values(["score", "kl"], ascending=[False, True], na_position="last")
    rows = [
        {
            "chosen": bool(row["chosen"]),
            "cells": [
                str(row["method"]),
                str(row["token"]),
                str(row["layers"]),
                f"{row['strength']:.3g}",
                "" if pd.isna(row["score"]) else f"{row['score']:.3f}",
                f"{row['right']} of {row['n']}" if row["n"] else "not asked",
                f"{row['kl']:.2g}",
                f"{row['perplexity_ratio']:.3g}",
            ],
        }
        for _, row in ordered.iterrows()
    ]
    columns = ["method", "token", "layers", "strength", "score", "right", "KL", "perplexity x"]
    return {"columns": columns, "rows": rows}


def _checked(study: Studied) -> list[str]:
    checked = study.checked
    found = [*checked.findings] or ["Nothing but meaning was found to separate positive from negative answers."]
    if checked.alike:
        found.append(f"No difference was found in: {', '.join(checked.alike)}.")
    apart = str(study.facts.get("apart", ""))
    found += [f"{apart[:1].upper()}{apart[1:]}."] if apart else []
    found.append("No question is asked in the demonstrations, and no held-out one in the fitting half.")
    return found


def _limits(study: Studied) -> list[str]:
    facts, measure, made = study.facts, study.facts["measure"], study.facts["trials"]
    found = [f"It is one model, one set of demonstrations, and one split of the questions (seed {facts['seed']})."]
    if study.evaluation is not None:
        row = study.table.loc["edited"]
        reach = (row["change_high"] - row["change_low"]) / 2
        found.append(
            f"With {facts['n_held_out']} held-out questions the change is known to about {reach:.0%} either way: "
            "smaller effects are not told from none."
        )
        found.append(
            f"Beating random editors (directions: {facts['control']}) says that the direction matters (same length), and "
            f"that the effect is not what any damage of this size does (same cost). It is no p-value below "
            f"{1 / (1 + max(1, facts['control'])):.2g}."
        )
    few = int(facts.get("n_demonstrations", FEW_TO_SHUFFLE))
    if study.evaluation is not None and facts["shuffles"] and few < FEW_TO_SHUFFLE:
        found.append(
            f"{few} demonstration{' has' if few == 1 else 's have'} few shuffles: a shuffled refit is often the edit itself "
            "or its mirror image."
        )
    if measure not in MATCH_OF:
        found.append(
            "It says which answers the model prefers, and not what it writes."
            + (" Read the answers above." if len(study.examples) else "")
        )
    if study.evaluation is not None:
        found.append(
            "Damage is measured on these prompts and on neutral text. Facts, long talks and other languages may suffer "
            "unseen."
        )
    if study.verdict == "no effect" and study.evaluation is not None:
        found.append(
            f"No effect within {facts['max_kl']} nats per token in {'one trial' if made == 1 else f'{made} trials'} is no "
            "proof that there is none: other demonstrations, tokens or settings may have one."
        )
    if study.checked.findings:
        found.append("What separates the demonstrations besides meaning may be what the edit has learned.")
    return found


def _made(study: Studied) -> list[tuple[str, str]]:
    names = {
        "model": "model",
        "demonstrations": "demonstrations",
        "questions": "questions",
        "measure": "measure",
        "max_kl": "limit of KL",
        "minutes": "minutes",
        "trials": "trials made",
        "control": "random directions",
        "shuffles": "shuffles, each with its mirror image",
        "seed": "seed",
        "seconds": "seconds",
    }
    rows = [(told, str(study.facts[name])) for name, told in names.items() if name in study.facts]
    left_out = study.facts.get("left_out", {})
    rows += [("could not be tried", f"{name}: {why}") for name, why in left_out.items()]
    return [*rows, *versions_of("sea-lens").items()]


def readable_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a study as cells of text."""
    cells: dict[str, list[str]] = {"": list(map(str, table.index)), "right": [], "share": []}
    for right, n, share, low, high in table[["right", "n", "share", "share_low", "share_high"]].itertuples(index=False):
        cells["right"].append(f"{right:.0f}/{n:.0f}" if float(right).is_integer() else f"{right:.1f}/{n:.0f}")
        reach = f" [{100 * low:.0f}, {100 * high:.0f}]" if low < high else ""  # a single control has no range
        cells["share"].append(f"{100 * share:.0f}%{reach}")
    for name, (called, form) in CELLS.items():
        if name == "broken" and not (name in table and (table[name] > 0).any()):
            continue
        if name in table and table[name].notna().any():
            cells[called] = ["" if pd.isna(value) else form.format(value) for value in table[name]]
            if f"{name}_low" in table:
                ends = table[[f"{name}_low", f"{name}_high"]].itertuples(index=False)
                cells[called] = [
                    text if pd.isna(low) or low == high else f"{text} [{form.format(low)}, {form.format(high)}]"
                    for text, (low, high) in zip(cells[called], ends, strict=True)
                ]
    if "p" in cells:
        cells["p"] = [
            "<0.001" if text and value < 0.001 else text
            for text, value in zip(cells["p"], table["p_value"], strict=True)
        ]
    return pd.DataFrame(cells)


CELLS = {
    "p_value": ("p", "{:.2g}"),
    "margin": ("margin", "{:+.2f}"),
    "kl": ("KL", "{:.2g}"),
    "perplexity_ratio": ("perplexity", "x {:.3g}"),
    "broken": ("broken", "{:.0f}"),
}
"""Columns of a study's rows: what they are called, and how they are written."""
