"""From demonstrations to editors: demo, collect, fit, tune, convert."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer
from rich.table import Table

from sea_lens.cache import write_text
from sea_lens.cli.app import app, console
from sea_lens.cli.inputs import (
    MAP_HELP,
    DataFormat,
    DemonstrationsFile,
    FeatureUnit,
    Layers,
    Merging,
    MergingSpace,
    ModelName,
    Projecting,
    Site,
    SpectrumOption,
    check_shares,
    load_model,
    parse_feature_map,
    parse_feature_unit,
    read_demonstrations,
)
from sea_lens.cli.options import FitOptions, ReadingOptions, spread
from sea_lens.data.questions import Questions
from sea_lens.errors import InputError
from sea_lens.methods.method import grid
from sea_lens.methods.sea.published import FeatureFunction, Normalization, read_published_editor
from sea_lens.methods.sea.sea import SEA
from sea_lens.methods.tune import EXPLAINED_VARIANCES
from sea_lens.methods.tune import tune as tune_methods
from sea_lens.methods.tuning import describe_setting
from sea_lens.models.activations import Activations
from sea_lens.models.sites import named_layers
from sea_lens.plotting import plot_organism, plot_tuning
from sea_lens.worlds import demo as experiment
from sea_lens.worlds.demo import code, report
from sea_lens.worlds.load import load_organism


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the picture and the editor.")] = Path("sea-lens-demo"),
    random_editors: Annotated[int, typer.Option(help="How many random editors to compare with.", min=2)] = 20,
) -> None:
    """Shows the whole path on the embedded model, offline, in under a minute."""
    typer.echo("Loading the embedded model, trying settings on 240 facts, asking 240 others ...")
    model, world = load_organism()
    result = experiment.run(model, world, n_random=random_editors, progress=True)
    out.mkdir(parents=True, exist_ok=True)
    plot_organism(result).savefig(out / "layers.png", dpi=150)
    plot_tuning(result.tuning).savefig(out / "settings.png", dpi=150)
    result.editor.save_pretrained(out / "editor")
    typer.echo(report(result))
    typer.echo(f"\nPictures: {out / 'layers.png'} (layer by layer), {out / 'settings.png'}    editor: {out / 'editor'}")
    typer.echo(f"\nThe same in Python:\n\n{code()}")


@app.command()
@spread
def collect(
    model: ModelName,
    demonstrations: DemonstrationsFile,
    out: Annotated[Path, typer.Option(help="Folder for activations; an unfinished one is gone on with.")],
    *,
    reading: ReadingOptions,
    layers: Layers = "all",
) -> None:
    """Collects activations of demonstrations, to fit from later with `sea-lens fit --activations`."""
    data = reading.read(demonstrations)
    bridge = load_model(model, reading.device, reads=[demonstrations])
    activations = reading.collect(bridge, data, out, layers)
    typer.echo(f"{activations!r}\nsaved in {out}")


@app.command()
@spread
def fit(
    model: Annotated[Optional[str], typer.Argument(help="Model name, folder, `organism` or `bias-organism`.")] = None,
    demonstrations: Annotated[
        Optional[Path],
        typer.Argument(
            help="HaluEval QA, BBQ, JSONL or CSV file; `organism` or `bias-organism` for an embedded world's."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the editor.")] = Path("editor"),
    activations: Annotated[
        Optional[Path], typer.Option(help="Fit from this folder of `sea-lens collect` instead of a model.")
    ] = None,
    *,
    rule: FitOptions,
    reading: ReadingOptions,
    layers: Layers = "all",
) -> None:
    """Fits SEA and writes an editor: from a model and demonstrations, or from collected activations."""
    chosen = None
    if activations is not None:
        if model is not None or demonstrations is not None:
            raise InputError("Give either --activations, or a model and demonstrations, not both.")
        reading.refuse_for_collected()
        collected = Activations.load(activations)
        depth = collected.model.n_layers if collected.model is not None else collected.layers[-1] + 1
        chosen = None if layers == "all" else named_layers(layers, depth)
    elif model is None or demonstrations is None:
        raise InputError("Give a model and a demonstrations file, or --activations. See `sea-lens fit --help`.")
    else:
        data = reading.read(demonstrations)
        collected = reading.collect(load_model(model, reading.device, reads=[demonstrations]), data, layers=layers)
    editor = rule.method.fit(collected if chosen is None else collected.at_sites(chosen))
    editor.save_pretrained(out)
    typer.echo(f"{editor!r}\nsaved in {out}")


@app.command()
@spread
def tune(
    model: ModelName,
    demonstrations: DemonstrationsFile,
    out: Annotated[Path, typer.Option(help="Folder for table, picture and editor; an unfinished one is gone on with.")],
    questions: Annotated[
        Optional[Path], typer.Option(help="File of demonstrations to choose by; those of the fit if left out.")
    ] = None,
    measure: Annotated[
        Literal["answers", "preference"],
        typer.Option(help="Greedy answers that are true, or true answers likelier than false ones."),
    ] = "answers",
    explained_variance: Annotated[
        list[float], typer.Option(help="Share of the covariance to try; repeat for more.")
    ] = list(EXPLAINED_VARIANCES),  # noqa: B006  # typer reads it and never changes it
    layers: Annotated[
        Optional[list[str]],
        typer.Option(help="Layers to try: all, first:N, last:N or a list as 3,5,10-20; repeat for more."),
    ] = None,
    feature_map: Annotated[list[str], typer.Option(help=MAP_HELP + " Repeat for more.")] = ["none"],  # noqa: B006
    center: Annotated[
        Optional[bool], typer.Option("--center/--no-center", help="Subtract means first; both are tried if left out.")
    ] = None,
    strength: Annotated[list[float], typer.Option(help="Strength to try; repeat for more.")] = [1.0],  # noqa: B006
    spectrum: SpectrumOption = "squared",
    projections: Projecting = "both",
    merge: Merging = "norm",
    feature_unit: FeatureUnit = "median",
    merge_space: MergingSpace = "features",
    *,
    reading: ReadingOptions,
) -> None:
    """Tries settings of SEA on questions, and writes a table, a heat map and the best editor."""
    check_shares(*explained_variance)
    if not all(map(math.isfinite, strength)):
        raise InputError(f"A strength must be a finite number, and --strength {strength} was given.")
    maps = [parse_feature_map(text) for text in feature_map]
    methods = grid(
        SEA,
        feature_map=maps,
        center=(False, True) if center is None else (center,),
        explained_variance=explained_variance,
        spectrum=[spectrum],
        projections=[projections],
        merge=[merge],
        feature_unit=[parse_feature_unit(feature_unit)],
        merge_space=[merge_space],
    )
    data = reading.read(demonstrations)
    asked = data if questions is None else read_demonstrations(questions, DataFormat.auto, None, reading.seed)
    bridge = load_model(model, reading.device, reads=[demonstrations, questions])
    for name in layers or []:
        named_layers(name, bridge.cfg.n_layers)  # said before the model runs, not after
    asked = reading.prompted(asked, bridge)
    activations = reading.collect(bridge, data, out / "activations")
    tuning = tune_methods(
        bridge,
        activations,
        Questions.from_demonstrations(asked),
        methods=methods,
        layers=layers,
        strengths=strength,
        measure=measure,
        max_new_tokens=reading.max_new_tokens,
        batch_size=reading.batch_size,
        folder=out,
    )
    write_text(out / "settings.csv", tuning.table.to_csv(index=False))
    plot_tuning(tuning).savefig(out / "settings.png", dpi=150)
    tuning.best.save_pretrained(out / "editor")
    table = Table("score", "95 %", "KL", "setting", title=f"The best of {len(tuning.table)} settings")
    for _, row in tuning.table.head(8).iterrows():
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        table.add_row(f"{row['score']:.1%}", interval, f"{row['kl']:.3g}", describe_setting(row))
    console.print(table)
    typer.echo(f"unedited: {tuning.unedited}\n{tuning.best!r}\n")
    if questions is None:
        typer.echo("Chosen by the demonstrations of the fit. Measure it on others before you believe the score.")
    typer.echo(f"settings.csv, settings.png and editor/ are in {out}")


@app.command()
def convert(
    positive: Annotated[Path, typer.Argument(help="The authors' uu_positive.pt.")],
    negative: Annotated[Path, typer.Argument(help="The authors' uu_negative.pt.")],
    out: Annotated[Path, typer.Option(help="Folder for the editor.")] = Path("editor"),
    layers: Layers = "all",
    site: Site = "mlp_out",
    normalization: Annotated[
        Normalization, typer.Option(help="token, or feature: the published rule, which is not causal.")
    ] = "token",
    feature_function: Annotated[
        Optional[FeatureFunction], typer.Option(help="With feature: whose published inverse is applied.")
    ] = None,
) -> None:
    """Makes an editor of the projections that the SEA authors released."""
    editor = read_published_editor(
        positive, negative, site=site, normalization=normalization, feature_function=feature_function
    )
    if layers != "all":
        editor = editor.at_layers(named_layers(layers, editor.n_layers))
    editor.save_pretrained(out)
    typer.echo(f"{editor!r}\nsaved in {out}")
