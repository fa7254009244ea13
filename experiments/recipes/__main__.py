"""The paper's experiments, one command each: recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from experiments.recipes.costs import estimate
from experiments.recipes.published_data import PublishedData, cache_folder
from experiments.recipes.recipe import DEMONSTRATIONS, QUESTIONS, ModelSize, Recipe, shipped_models
from experiments.recipes.run import run_recipe
from sea_lens.cli.app import app
from sea_lens.cli.evaluation import with_names, write_evaluation
from sea_lens.cli.inputs import Device, DTypeName, load_model, unescaped
from sea_lens.cli.output import show
from sea_lens.errors import InputError


@app.command()
def recipe(
    name: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=f"{', '.join(shipped_models())}; or a recipe file of your own (.json)."),
    ],
    behaviour: Annotated[Optional[str], typer.Argument(help="truthfulness or bias.")] = None,
    demonstrations: Annotated[
        Optional[Path], typer.Option(help="HaluEval's or BBQ's file; fetched from its public address if left out.")
    ] = None,
    questions: Annotated[
        Optional[Path], typer.Option(help="TruthfulQA.csv or BBQ's file; fetched if left out.")
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option(help="Folder for everything; an unfinished one is gone on with. By default runs/MODEL-BEHAVIOUR."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be fetched and how much memory it takes.")
    ] = False,
    model: Annotated[
        Optional[str],
        typer.Option(help="Another model to run on: name on the hub, folder, `organism` or `bias-organism`."),
    ] = None,
    n: Annotated[
        Optional[int], typer.Option("--n", help="Demonstrations to sample, instead of the recipe's number.")
    ] = None,
    n_questions: Annotated[
        Optional[int], typer.Option(help="Questions to sample at most, instead of the recipe's number.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of samples and resamples.")] = 0,
    prompt: Annotated[
        Optional[str], typer.Option(help="chat, paper, plain or a text with {question}, instead of the recipe's.")
    ] = None,
    max_new_tokens: Annotated[
        Optional[int], typer.Option(help="Longest neutral answer in tokens, instead of the recipe's.", min=1)
    ] = None,
    batch_size: Annotated[
        Optional[int], typer.Option(help="Texts in one forward pass, instead of the recipe's number.", min=1)
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[
        Optional[DTypeName], typer.Option(help="Precision of the model's weights, instead of the recipe's.")
    ] = None,
) -> None:
    """Runs an experiment of the paper: answers, collects, fits, evaluates. Goes on where a killed run stopped."""
    chosen = _recipe(name, behaviour).changed(
        n_demonstrations=n,
        n_questions=n_questions,
        prompt=None if prompt is None else unescaped(prompt),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        dtype=dtype,
    )
    data, asked = DEMONSTRATIONS[chosen.behaviour], QUESTIONS[chosen.behaviour]
    if dry_run:
        _describe(chosen, model, _place(demonstrations, data), _place(questions, asked))
        return
    read = chosen.read_demonstrations(data.fetch() if demonstrations is None else demonstrations, seed)
    held_out = chosen.read_questions(asked.fetch() if questions is None else questions, seed, read)
    out = Path("runs") / f"{chosen.model}-{chosen.behaviour}" if out is None else out
    bridge = load_model(
        chosen.repository if model is None else model,
        device,
        chosen.dtype,
        chosen.revision if model is None else None,
    )
    if note := chosen.note_on_layers(bridge.cfg.n_layers):
        typer.echo(f"note: {note}")
    result = run_recipe(chosen, bridge, read, held_out, out, seed=seed)
    typer.echo(f"{result.editor!r}\nsaved in {out / 'editor'}\n")
    write_evaluation(with_names(result.evaluation, str(out / "editor")), out / "evaluation")


def _recipe(name: str, behaviour: str | None) -> Recipe:
    if name.endswith(".json"):
        if behaviour is not None:
            raise InputError(f"{name} says what it is for: leave out {behaviour!r}.")
        return Recipe.from_json(name)
    return Recipe.load(name, behaviour or "")


def _place(path: Path | None, data: PublishedData) -> str:
    if path is not None:
        return str(path)
    kept = cache_folder() / data.name
    if kept.exists():
        return f"{kept}, fetched before"
    first, *more = data.files
    if not more:
        return f"to fetch: {first}"
    folder = first.rpartition("/")[0]
    return f"to fetch: {folder}/ {', '.join(address.removeprefix(folder + '/') for address in data.files)}"


def _describe(chosen: Recipe, model: str | None, demonstrations: str, questions: str) -> None:
    size, of_what = chosen.size, chosen.repository
    if model is not None:
        of_what = model
        if Path(model).is_dir():
            size = ModelSize.of_folder(model)
        else:
            typer.echo(
                f"note: the sizes of {model} are not known before it is fetched; these are of {chosen.repository}."
            )
    if questions == demonstrations:
        questions = "of the same, without the demonstrations"
    lines = {
        "model": f"{of_what}, revision {(chosen.revision if model is None else None) or 'not pinned'}, {chosen.dtype}",
        "demonstrations": f"{chosen.n_demonstrations:,}, {demonstrations}",
        "questions": f"{'all' if chosen.n_questions is None else f'{chosen.n_questions:,} at most'}, {questions}",
        "prompt": chosen.prompt,
    }
    if size is not None:
        layers = chosen.layers_of(size.n_layers)
        kind = "linear" if chosen.feature_map is None else chosen.feature_map
        lines["edit"] = (
            f"{kind}, explained variance {chosen.explained_variance}, layers {layers[0]} to {layers[-1]} of 0 to "
            f"{size.n_layers - 1}"
        )
    for what, text in lines.items():
        typer.echo(f"{what:<15} {text}")
    notes = list(chosen.notes)
    if size is not None and (note := chosen.note_on_layers(size.n_layers)):
        notes.append(note)
    for note in notes:
        typer.echo(f"note: {note}")
    if size is None:
        typer.echo("note: this recipe does not say the sizes of its model, so memory is not estimated.")
        return
    costs = estimate(chosen, size)
    show(
        costs.table.assign(gigabytes=costs.table["gigabytes"].map("{:,.2f}".format)),
        f"Needed for texts of {chosen.longest_text} tokens in batches of {chosen.batch_size}",
    )
    totals = ", ".join(f"{costs.total(where) / 1e9:,.1f} GB {where}" for where in ("device", "host", "disk"))
    typer.echo(f"in all: {totals}. `--batch-size` changes the device's; PyTorch's own needs are not counted.")
