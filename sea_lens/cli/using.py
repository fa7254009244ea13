"""Editors at work, and what they are: generate, inspect."""

from __future__ import annotations

import pandas as pd

from sea_lens.cli.app import command
from sea_lens.cli.inputs import load
from sea_lens.cli.options import Of, Options
from sea_lens.cli.output import harmless, say, show
from sea_lens.editing.card import FitReport
from sea_lens.editing.editor import Editor
from sea_lens.models.generate import generate as generate_one
from sea_lens.models.sites import named_layers

GENERATION = Of(generate_one, only=("max_new_tokens", "stop", "temperature", "seed"), defaults={"max_new_tokens": 40})
FACTS = ("method", "token", "model", "settings", "n_demonstrations", "demonstrations", "versions")


@command("Using", generation=GENERATION)
def generate(
    model: str,
    editor: str,
    prompts: list[str],
    strength: float = 1.0,
    layers: str = "all",
    chat: bool = False,
    *,
    generation: Options,
    loading: Options,
) -> None:
    """Show the model's answers plain and edited, side by side."""
    fitted = Editor.from_pretrained(editor).scaled(strength)
    bridge = load(model, loading)
    if layers != "all":
        chosen = named_layers(layers, bridge.cfg.n_layers)
        fitted = fitted.at_layers([layer for layer in chosen if layer in fitted.layers])
    asked = [[{"role": "user", "content": prompt}] if chat else prompt for prompt in prompts]
    plain = [generate_one(bridge, one, **generation) for one in asked]
    with fitted.attached(bridge):
        edited = [generate_one(bridge, one, **generation) for one in asked]
    show(pd.DataFrame({"prompt": prompts, "plain": plain, "edited": edited}), lines=True)
    if plain == edited:
        say("The edit changed none of these answers.")


@command("Using")
def inspect(editor: str) -> None:
    """Show where an editor comes from, and each layer's edit."""
    fitted = Editor.from_pretrained(editor)
    card = fitted.card.to_json()
    facts = {name.replace("_", " "): card[name] for name in FACTS}
    facts |= {"sites": ", ".join(sorted({site.name for site in fitted.sites}))}
    facts |= {} if fitted.where is None else {"where": str(fitted.where)}
    for name, value in facts.items():
        text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
        say(f"{name:<18} {harmless(text)}")
    rows = []
    for site, edit in fitted.edits.items():
        found = fitted.card.reports.get(site, FitReport(edit.rank))
        gains = edit.gains if edit.gains is not None and edit.rank else None
        numbers = dict(found.numbers)
        rows.append(
            {
                "layer": "" if site.layer is None else str(site.layer),
                "rank": edit.rank,
                "k+": numbers.pop("rank_positive", None),
                "k-": numbers.pop("rank_negative", None),
                "lowest": None if gains is None else float(gains.min()),
                "highest": None if gains is None else float(gains.max()),
                "strength": edit.strength,
                "moved": None if found.displacement is None else f"{found.displacement:.1%}",
                **numbers,
            }
        )
    table = pd.DataFrame(rows)
    show(table.loc[:, table.notna().any()])
