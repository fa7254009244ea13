"""Editors at work, and what they are: generate, inspect."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sea_lens.cli.app import app, console
from sea_lens.cli.inputs import (
    Device,
    EditorName,
    Layers,
    ModelName,
    NewTokens,
    load_model,
)
from sea_lens.editing.card import FitReport
from sea_lens.editing.editor import Editor
from sea_lens.models.generate import greedy_answers
from sea_lens.models.sites import named_layers


@app.command()
def generate(
    model: ModelName,
    editor: EditorName,
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts, each in quotes.")],
    strength: Annotated[float, typer.Option(help="1 is the fitted editor, 0 no edit.")] = 1.0,
    layers: Layers = "all",
    max_new_tokens: NewTokens = 40,
    device: Device = "cpu",
) -> None:
    """Shows the model's greedy continuations plain and edited, side by side."""
    fitted = Editor.from_pretrained(editor).scaled(strength)
    bridge = load_model(model, device)
    if layers != "all":
        chosen = named_layers(layers, bridge.cfg.n_layers)
        fitted = fitted.at_layers([layer for layer in chosen if layer in fitted.layers])
    # One prompt a batch: an editor at positions would count padding.
    plain = greedy_answers(bridge, prompts, max_new_tokens, stop=(), batch_size=1, progress=False)
    with fitted.attached(bridge):
        edited = greedy_answers(bridge, prompts, max_new_tokens, stop=(), batch_size=1, progress=False)
    table = Table("prompt", "plain", "edited", show_lines=True)
    for row in zip(prompts, plain, edited, strict=True):
        table.add_row(*map(escape, row))
    console.print(table)
    if plain == edited:
        typer.echo("The edit changed none of these continuations.")


@app.command()
def inspect(editor: EditorName) -> None:
    """Shows where an editor came from and what it does at each layer."""
    fitted = Editor.from_pretrained(editor)
    card = fitted.card.to_json()
    for name in (
        "method",
        "token",
        "model",
        "settings",
        "n_demonstrations",
        "demonstrations",
        "versions",
    ):
        value = card[name]
        text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
        typer.echo(f"{name.replace('_', ' '):<18} {text}")
    typer.echo(f"{'sites':<18} {', '.join(sorted({site.name for site in fitted.sites}))}")
    if fitted.where is not None:
        typer.echo(f"{'where':<18} {fitted.where}")
    mapped = any("unit" in found for found in fitted.card.reports.values())
    extremes, ours = ["lowest", "highest"], ["unit", "outside", "clamped"]
    table = Table(
        "layer", "rank", "k+", "k-", *([] if mapped else extremes), "strength", "moved", *(ours if mapped else [])
    )
    for site, edit in fitted.edits.items():
        found = fitted.card.reports.get(site, FitReport(edit.rank))
        ranks = (found.numbers.get(f"rank_{role}") for role in ("positive", "negative"))
        cells = [str(site.layer), str(edit.rank), *("" if rank is None else f"{rank:g}" for rank in ranks)]
        if edit.gains is not None and edit.rank:
            cells += [f"{edit.gains.min():+.3f}", f"{edit.gains.max():+.3f}"]
        elif not mapped:
            cells += ["", ""]
        cells += [f"{edit.strength:g}", "" if found.displacement is None else f"{found.displacement:.1%}"]
        if mapped:
            shares = [found[f"clamped_{what}"] for what in ("activations", "features")]
            cells += [f"{found['unit']:.3g}", *(f"{share:.2%}" for share in shares)]
        table.add_row(*cells)
    console.print(table)
