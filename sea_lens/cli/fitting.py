"""From demonstrations to editors: demo, collect, fit, tune, convert."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer
from rich.table import Table

from sea_lens.activations import Activations
from sea_lens.cli.app import app, console
from sea_lens.cli.inputs import (
    MAP_HELP,
    BatchSize,
    Chat,
    DataFormat,
    DemonstrationsFile,
    Device,
    Ending,
    FeatureUnit,
    Format,
    Layers,
    Merging,
    MergingSpace,
    ModelName,
    NewTokens,
    Number,
    Projecting,
    Seed,
    Site,
    SpectrumOption,
    Template,
    TokenOption,
    check_shares,
    load_model,
    parse_feature_map,
    parse_feature_unit,
    parse_token,
    read_demonstrations,
    with_answers,
    with_template,
)
from sea_lens.collection import collect_activations
from sea_lens.editor import Editor
from sea_lens.errors import InputError
from sea_lens.methods.sea import SEARule, fit_sea
from sea_lens.models import named_layers
from sea_lens.organism import experiment, load_organism
from sea_lens.organism.report import code, report
from sea_lens.plotting import plot_organism, plot_tuning
from sea_lens.published_projections import FeatureFunction, Normalisation
from sea_lens.questions import Questions
from sea_lens.tensor_files import write_text
from sea_lens.tuning import EXPLAINED_VARIANCES, describe_setting, tune_sea


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
    typer.echo(report(result, len(world.fitting)))
    typer.echo(f"\nPictures: {out / 'layers.png'} (layer by layer), {out / 'settings.png'}    editor: {out / 'editor'}")
    typer.echo(f"\nThe same in Python:\n\n{code()}")


@app.command()
def collect(
    model: ModelName,
    demonstrations: DemonstrationsFile,
    out: Annotated[Path, typer.Option(help="Folder for activations; an unfinished one is gone on with.")],
    format: Format = DataFormat.auto,
    n: Number = None,
    seed: Seed = 0,
    template: Template = None,
    chat: Chat = False,
    answer_ending: Ending = None,
    max_new_tokens: NewTokens = 32,
    token: TokenOption = "last",
    layers: Layers = "all",
    site: Site = "resid_post",
    batch_size: BatchSize = 32,
    device: Device = "cpu",
) -> None:
    """Collects activations of demonstrations, to fit from later with `sea-lens fit --activations`."""
    chosen_token = parse_token(token)
    data = read_demonstrations(demonstrations, format, n, seed)
    bridge = load_model(model, device)
    chosen = named_layers(layers, bridge.cfg.n_layers)
    data = with_template(data, bridge, template, chat)
    data = with_answers(data, bridge, answer_ending, max_new_tokens, batch_size, out)
    activations = collect_activations(bridge, data, chosen, chosen_token, site=site, batch_size=batch_size, folder=out)
    typer.echo(f"{activations!r}\nsaved in {out}")


@app.command()
def fit(
    model: Annotated[Optional[str], typer.Argument(help="Model name, folder, or `organism`.")] = None,
    demonstrations: Annotated[Optional[Path], typer.Argument(help="HaluEval QA, BBQ, JSONL or CSV file.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the editor.")] = Path("editor"),
    activations: Annotated[
        Optional[Path], typer.Option(help="Fit from this folder of `sea-lens collect` instead of a model.")
    ] = None,
    explained_variance: Annotated[float, typer.Option(help="Share of the covariance a subspace explains.")] = 0.998,
    negative_explained_variance: Annotated[
        Optional[float], typer.Option(help="The same for the negative subspace, where it should differ.")
    ] = None,
    rank: Annotated[Optional[int], typer.Option(help="Rank of both subspaces, instead of a share.")] = None,
    spectrum: SpectrumOption = "squared",
    centre: Annotated[bool, typer.Option("--centre/--no-centre", help="Subtract means first.")] = False,
    projections: Projecting = "both",
    merge: Merging = "norm",
    feature_map: Annotated[str, typer.Option(help=MAP_HELP)] = "none",
    feature_unit: FeatureUnit = "median",
    merge_space: MergingSpace = "features",
    format: Format = DataFormat.auto,
    n: Number = None,
    seed: Seed = 0,
    template: Template = None,
    chat: Chat = False,
    answer_ending: Ending = None,
    max_new_tokens: NewTokens = 32,
    token: TokenOption = "last",
    layers: Layers = "all",
    site: Site = "resid_post",
    batch_size: BatchSize = 32,
    device: Device = "cpu",
) -> None:
    """Fits SEA and writes an editor: from a model and demonstrations, or from collected activations."""
    shares = (
        explained_variance,
        explained_variance if negative_explained_variance is None else negative_explained_variance,
    )
    check_shares(*shares)
    chosen_map, unit = parse_feature_map(feature_map), parse_feature_unit(feature_unit)
    if chosen_map is None and (unit != "median" or merge_space != "features"):
        raise InputError("--feature-unit and --merge-space have no effect without a --feature-map.")
    SEARule(feature_map=chosen_map, feature_unit=unit)  # refuses what is impossible before the model runs, not after
    if activations is not None:
        if model is not None or demonstrations is not None:
            raise InputError("Give either --activations, or a model and demonstrations, not both.")
        settings = {
            "--format": format is not DataFormat.auto,
            "--n": n is not None,
            "--template": template is not None,
            "--chat": chat,
            "--answer-ending": answer_ending is not None,
            "--token": token != "last",
            "--site": site != "resid_post",
        }
        late = ", ".join(option for option, given in settings.items() if given)
        if late:
            raise InputError(f"{late}: no effect on activations that are collected already. Collect them anew with it.")
        collected = Activations.load(activations)
        depth = collected.model.n_layers if collected.model is not None else collected.layers[-1] + 1
        chosen = None if layers == "all" else named_layers(layers, depth)
    elif model is None or demonstrations is None:
        raise InputError("Give a model and a demonstrations file, or --activations. See `sea-lens fit --help`.")
    else:
        chosen_token = parse_token(token)
        data = read_demonstrations(demonstrations, format, n, seed)
        bridge = load_model(model, device)
        chosen = named_layers(layers, bridge.cfg.n_layers)
        data = with_template(data, bridge, template, chat)
        data = with_answers(data, bridge, answer_ending, max_new_tokens, batch_size, None)
        collected = collect_activations(bridge, data, chosen, chosen_token, site=site, batch_size=batch_size)
    editor = fit_sea(
        collected,
        shares,
        ranks=rank,
        spectrum=spectrum,
        centre=centre,
        projections=projections,
        merge=merge,
        feature_map=chosen_map,
        feature_unit=unit,
        merge_space=merge_space,
        layers=chosen,
    )
    editor.save_pretrained(out)
    typer.echo(f"{editor!r}\nsaved in {out}")


@app.command()
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
    centre: Annotated[
        Optional[bool], typer.Option("--centre/--no-centre", help="Subtract means first; both are tried if left out.")
    ] = None,
    strength: Annotated[list[float], typer.Option(help="Strength to try; repeat for more.")] = [1.0],  # noqa: B006
    spectrum: SpectrumOption = "squared",
    projections: Projecting = "both",
    merge: Merging = "norm",
    feature_unit: FeatureUnit = "median",
    merge_space: MergingSpace = "features",
    format: Format = DataFormat.auto,
    n: Number = None,
    seed: Seed = 0,
    template: Template = None,
    chat: Chat = False,
    answer_ending: Ending = None,
    max_new_tokens: NewTokens = 32,
    token: TokenOption = "last",
    site: Site = "resid_post",
    batch_size: BatchSize = 32,
    device: Device = "cpu",
) -> None:
    """Tries settings of SEA on questions, and writes a table, a heat map and the best editor."""
    check_shares(*explained_variance)
    if not all(map(math.isfinite, strength)):
        raise InputError(f"A strength must be a finite number, and --strength {strength} was given.")
    maps, chosen_token = [parse_feature_map(text) for text in feature_map], parse_token(token)
    rule = SEARule(
        spectrum=spectrum,
        projections=projections,
        merge=merge,
        feature_unit=parse_feature_unit(feature_unit),
        merge_space=merge_space,
    )
    data = read_demonstrations(demonstrations, format, n, seed)
    asked = data if questions is None else read_demonstrations(questions, DataFormat.auto, None, seed)
    bridge = load_model(model, device)
    for name in layers or []:
        named_layers(name, bridge.cfg.n_layers)  # said before the model runs, not after
    data, asked = (with_template(rows, bridge, template, chat) for rows in (data, asked))
    data = with_answers(data, bridge, answer_ending, max_new_tokens, batch_size, out / "activations")
    activations = collect_activations(
        bridge, data, token=chosen_token, site=site, batch_size=batch_size, folder=out / "activations"
    )
    tuning = tune_sea(
        bridge,
        activations,
        Questions.from_demonstrations(asked),
        explained_variances=explained_variance,
        layers=layers,
        feature_maps=maps,
        centre=(False, True) if centre is None else (centre,),
        strengths=strength,
        rule=rule,
        measure=measure,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
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
    normalisation: Annotated[
        Normalisation, typer.Option(help="token, or feature: the published rule, which is not causal.")
    ] = "token",
    feature_function: Annotated[
        Optional[FeatureFunction], typer.Option(help="With feature: whose published inverse is applied.")
    ] = None,
) -> None:
    """Makes an editor of the projections that the SEA authors released."""
    editor = Editor.from_published_projections(
        positive, negative, site=site, normalisation=normalisation, feature_function=feature_function
    )
    if layers != "all":
        editor = editor.at_layers(named_layers(layers, editor.n_layers))
    editor.save_pretrained(out)
    typer.echo(f"{editor!r}\nsaved in {out}")
