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
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import LowRankEdit
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
        "site",
        "token",
        "model",
        "hyper_parameters",
        "n_demonstrations",
        "demonstrations",
        "versions",
    ):
        value = card[name]
        text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
        typer.echo(f"{name.replace('_', ' '):<18} {text}")
    if fitted.positions is not None:
        typer.echo(f"{'positions':<18} from {fitted.positions} on")
    mapped = any("unit" in found for found in fitted.card.layers.values())
    extremes, ours = ["lowest", "highest"], ["unit", "outside", "clamped"]
    table = Table(
        "layer", "rank", "k+", "k-", *([] if mapped else extremes), "strength", "moved", *(ours if mapped else [])
    )
    for layer, edit in fitted.edits.items():
        found = fitted.card.layers.get(layer, {})
        cells = [str(layer), str(edit.rank), *(str(found.get(f"rank_{role}", "")) for role in ("positive", "negative"))]
        if isinstance(edit, LowRankEdit) and edit.rank:
            cells += [f"{edit.eigenvalues.min():+.3f}", f"{edit.eigenvalues.max():+.3f}"]
        elif not mapped:
            cells += ["", ""]
        cells += [f"{edit.strength:g}", f"{float(str(found['displacement'])):.1%}" if "displacement" in found else ""]
        if mapped:
            shares = [float(str(found[f"clamped_{what}"])) for what in ("activations", "features")]
            cells += [f"{float(str(found['unit'])):.3g}", *(f"{share:.2%}" for share in shares)]
        table.add_row(*cells)
    console.print(table)
