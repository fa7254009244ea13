"""Every method on a behavior: a small equal budget of settings, one look at the held-out questions, beside its controls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

import sea_lens as sl
from experiments.real_judge import JUDGES, repetition
from experiments.real_setup import Cells, Setup, changes, quietly


def method_of_entry(entry: Mapping[str, Any], **more: Any) -> Any:
    """The method with its settings that an entry of the configuration stands for; maps by their names."""
    settings = {**entry.get("settings", {}), **more}
    if "feature_map" in settings:
        settings["feature_map"] = getattr(sl, settings["feature_map"])()
    for name, value in settings.items():
        settings[name] = tuple(value) if isinstance(value, list) else value
    return getattr(sl, entry["class"])(**settings)


def tried(setup: Setup, entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[dict[str, Any], sl.Editor]]:
    """Settings, places and strengths, each with its editor."""
    for number, entry in enumerate(entries):
        own_site = entry.get("site", "resid_post")
        activations = setup.activations(site=own_site)
        chooses = entry.get("chooses_layers", False)
        if not chooses:
            activations = activations.at_sites(sorted({layer for each in setup.places.values() for layer in each}))
        places: Mapping[str, Sequence[int]] = {"own choice": []} if entry["class"] == "ITI" else setup.places
        fits: dict[int, sl.Editor] = {}
        for place, layers in places.items():
            if entry["class"] == "DirectionalAblation":
                editor = method_of_entry(entry, source=layers[0] if len(layers) == 1 else None).fit(activations)
            else:
                if number not in fits:
                    fits[number] = method_of_entry(entry).fit(activations)
                editor = fits[number] if not layers else fits[number].at_layers(layers)
            for strength in entry["strengths"]["band" if len(layers) > 1 and not chooses else "one"]:
                told = {"entry": number, "place": place, "strength": strength, "layers": editor.layers}
                yield told, editor.scaled(float(strength))


def kept(setup: Setup, entries: Sequence[Mapping[str, Any]]) -> list[tuple[dict[str, Any], sl.Editor]]:
    """What is tried, fitted once."""
    key = "tried", json.dumps(entries)
    if key not in setup._kept:
        setup._kept[key] = list(tried(setup, entries))
    found: list[tuple[dict[str, Any], sl.Editor]] = setup._kept[key]
    return found


def chosen_of(trials: Sequence[dict[str, Any]], limit: float) -> int | None:
    """The trial of the greatest gap on the tuning questions of those whose KL is within the limit; None for none."""
    within = [index for index, trial in enumerate(trials) if trial["kl"] <= limit and trial.get("gap") is not None]
    return max(within, key=lambda index: trials[index]["gap"], default=None)


def tune_method(setup: Setup, entries: Sequence[Mapping[str, Any]], limit: float) -> list[dict[str, Any]]:
    """The trials: KL on a part of the texts, and the mean change of the gap on the tuning questions where that is within."""
    told, editors = zip(*kept(setup, entries), strict=True)
    damages = setup.first_look.measure_all(editors)
    trials = [{**each, "kl": damage.kl} for each, damage in zip(told, damages, strict=True)]
    scored = [index for index, trial in enumerate(trials) if trial["kl"] <= limit]
    gaps = setup.gaps(setup.tuning, [editors[index] for index in scored]) if scored else []
    for index, gap in zip(scored, gaps, strict=True):
        trials[index]["gap"] = float((gap - setup.plain_tuning).mean())
    return trials


def score_method(
    setup: Setup,
    entries: Sequence[Mapping[str, Any]],
    trials: Sequence[dict[str, Any]],
    asked: Mapping[str, Any],
    judge: str,
) -> dict[str, Any]:
    """The one look at the held-out questions: the chosen edit, random editors as long, and refits on shuffled sides."""
    chosen = chosen_of(trials, asked["kl"])
    if chosen is None:
        least = min(trials, key=lambda trial: trial["kl"])
        return {"chosen": None, "why": f"no setting within a KL of {asked['kl']}: the least is {least['kl']:.3g}"}
    _, editor = kept(setup, entries)[chosen]
    randoms = [sl.random_editor_like(editor, seed) for seed in range(asked["random"])]
    site = entries[trials[chosen]["entry"]].get("site", "resid_post")
    shuffles = [sl.refit(editor, setup.activations(site=site).shuffled(seed)) for seed in range(asked["shuffles"])]
    others = [editor, *randoms, *shuffles]
    gaps = setup.gaps(setup.held_out, others)
    damage, english = setup.meter.measure(editor), setup.english.measure(editor)
    lost = setup.first_look.measure_all(randoms)
    found = {"chosen": trials[chosen], "n": len(setup.plain), "n_tuning": len(setup.plain_tuning)}
    found |= changes(gaps[0], setup.plain)
    found |= {
        "n_fit": len(setup.demonstrations),
        "plain_gap": float(setup.plain.mean()),
        "plain_preferred": float((setup.plain > 0).double().mean()),
        "preferred": float((gaps[0] > 0).double().mean()),
        "by_question": [round(float(value), 4) for value in gaps[0] - setup.plain],
        "random": [float((gap - setup.plain).mean()) for gap in gaps[1 : 1 + len(randoms)]],
        "random_kl": [each.kl for each in lost],
        "shuffled": [float((gap - setup.plain).mean()) for gap in gaps[1 + len(randoms) :]],
        "kl": damage.kl,
        "perplexity_ratio": damage.perplexity_ratio,
        "kl_english": english.kl,
    }
    return found | (said_of(setup, [editor, *randoms[:1]], judge) if judge in JUDGES else {})


def said_of(setup: Setup, editors: Sequence[sl.Editor], judge: str) -> dict[str, Any]:
    """What the model says under the edit and under a random one, by the rule of the behavior."""
    by_rule = JUDGES[judge]
    before = said_plain(setup)
    rules = [torch.tensor([by_rule(answer) for answer in before]).double()]
    texts = [setup.said(editor) for editor in editors]
    rules += [torch.tensor([by_rule(answer) for answer in each]).double() for each in texts]
    changed = changes(rules[1], rules[0])
    return {
        "said_plain": float(rules[0].mean()),
        "said": float(rules[1].mean()),
        "said_random": [float(each.mean()) for each in rules[2:]],
        **{f"said_{name}": value for name, value in changed.items()},
        "repetition_plain": sum(map(repetition, before)) / len(before),
        "repetition": sum(map(repetition, texts[0])) / len(before),
        "answers": [{"plain": one, "edited": other} for one, other in zip(before, texts[0], strict=True)],
    }


def said_plain(setup: Setup) -> list[str]:
    """The unedited model's answers, asked for once."""
    if "said" not in setup._kept:
        setup._kept["said"] = setup.said(None)
    answers: list[str] = setup._kept["said"]
    return answers


def stronger(entries: Sequence[Mapping[str, Any]], times: float) -> list[dict[str, Any]]:
    """Entries of which every strength is so many times as large: what is strong differs between models."""
    return [
        {**entry, "strengths": {where: [times * each for each in found] for where, found in entry["strengths"].items()}}
        for entry in entries
    ]


def run_method(
    cells: Cells, setup: Setup, where: str, name: str, config: Mapping[str, Any], facts: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A method's cells: its trials, and its score.

    Args:
        cells: Where they are kept.
        setup: The model and the behavior.
        where: Beginning of the cells' names.
        name: Of the method.
        config: The configuration.
        facts: What else decides the result.
    """
    entries, limits = stronger(config["methods"][name], facts.get("times", 1)), config["limits"]
    facts = {**facts, "method": name, "entries": entries, "limits": limits}
    with quietly():
        trials = cells.get(f"{where}/trials/{name}", facts, lambda: tune_method(setup, entries, limits["kl"]))
        found = cells.get(
            f"{where}/scores/{name}", facts, lambda: score_method(setup, entries, trials, limits, facts["behavior"])
        )
    return trials, found
