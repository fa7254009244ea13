"""What an editor does, and where: effects, ablate, probe, spectrum. Each writes CSV and PNG files and shows a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sea_lens import plotting
from sea_lens.analysis.effects import EFFECTS, measure_effects, named_effect
from sea_lens.analysis.layers import MODES, ablate_layers, measure_interactions, select_layers
from sea_lens.analysis.massive import massive_activations
from sea_lens.analysis.probes import probe_activations
from sea_lens.analysis.subspaces import measure_spectra
from sea_lens.analysis.tokens import read_directions
from sea_lens.cli.app import app
from sea_lens.cli.inputs import (
    BatchSize,
    Chat,
    DataFormat,
    Device,
    EditorName,
    Ending,
    ModelName,
    NewTokens,
    Sampled,
    Template,
    load_model,
    parse_token,
    read_demonstrations,
    read_questions,
    unescaped,
    with_answers,
    with_template,
)
from sea_lens.cli.output import UNFINISHED, show, write
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.activations import Activations
from sea_lens.models.bridge import Model
from sea_lens.models.collect import collect_activations
from sea_lens.models.sites import labels_of
from sea_lens.results import Result

QuestionsFile = Annotated[
    Path,
    typer.Argument(
        help="TruthfulQA or CrowS-Pairs CSV, BBQ or JSONL, demonstrations, or `organism` or `bias-organism` (held-out ones)."
    ),
]
FittedOn = Annotated[
    Path,
    typer.Argument(
        help="The demonstrations file that the editor was fitted on, or `organism` or `bias-organism` for an embedded world."
    ),
]
Controls = Annotated[int, typer.Option(help="Norm-matched random editors to compare with; 19 allow p = 0.05.", min=0)]
AnalysisSeed = Annotated[int, typer.Option(help="Of samples, resamples and random editors.")]


def _asked(path: Path, n: int | None, seed: int, template: str | None, model: Model) -> Questions:
    questions = read_questions(path)
    if n is not None:
        questions = questions.sample(n, seed)
    return questions if template is None else questions.with_prompt_template(unescaped(template))


@app.command()
def effects(
    model: ModelName,
    editor: EditorName,
    questions: QuestionsFile,
    out: Annotated[Path, typer.Option(help="Folder for tables and picture.")] = Path("effects"),
    control: Controls = 0,
    n: Sampled = None,
    seed: AnalysisSeed = 0,
    template: Template = None,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
) -> None:
    """Measures what an editor does to answers: logits, probabilities, accuracy, flips, KL, with intervals and controls."""
    fitted, bridge = Editor.from_pretrained(editor), load_model(model, device, reads=[questions])
    asked = _asked(questions, n, seed, template, bridge)
    result = measure_effects(
        bridge, asked, fitted, control=control, seed=seed, batch_size=batch_size, folder=out / UNFINISHED
    )
    show(result.table, f"Effects on {result.n} questions, {result.confidence:.0%} intervals of the change")
    for name, row in result.flips.iterrows():
        typer.echo(f"{name}: {row['gained']} questions gained, {row['lost']} lost")
    write(out, [result], {"effects": plotting.plot_effects(result)})


@app.command()
def ablate(
    model: ModelName,
    editor: EditorName,
    questions: QuestionsFile,
    out: Annotated[Path, typer.Option(help="Folder for tables and pictures.")] = Path("ablation"),
    effect: Annotated[str, typer.Option(help=f"One of {', '.join(EFFECTS)}.")] = "log_probability_difference",
    mode: Annotated[list[str], typer.Option(help="only, without, first or last; repeat for more.")] = list(MODES),  # noqa: B006  # typer reads it and never changes it
    pairs: Annotated[bool, typer.Option("--pairs", help="Also how pairs of layers work together.")] = False,
    select: Annotated[
        bool,
        typer.Option("--select", help="Also choose layers greedily on half of the questions, confirmed on the other."),
    ] = False,
    control: Controls = 0,
    n: Sampled = None,
    seed: AnalysisSeed = 0,
    template: Template = None,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
) -> None:
    """Measures which layers of an editor carry its effect."""
    named_effect(effect)
    modes = [known for known in MODES if known in mode]
    if set(modes) != set(mode):
        raise InputError(f"--mode is one of {', '.join(MODES)}, and {', '.join(mode)} was given.")
    fitted, bridge = Editor.from_pretrained(editor), load_model(model, device, reads=[questions])
    asked = _asked(questions, n, seed, template, bridge)
    result = ablate_layers(
        bridge,
        asked,
        fitted,
        modes=modes,
        effect=effect,
        control=control,
        seed=seed,
        batch_size=batch_size,
        folder=out / UNFINISHED,
    )
    title = f"{effect.replace('_', ' ')} on {result.n} questions, {result.confidence:.0%} intervals of the change"
    show(result.table.drop(columns="layer").set_index("mode"), title)
    results: list[Result] = [result]
    figures = {"ablation": plotting.plot_ablation(result)}
    if pairs:
        found = measure_interactions(
            bridge, asked, fitted, effect=effect, seed=seed, batch_size=batch_size, folder=out / UNFINISHED
        )
        show(found.table.set_index(["first", "second"]), "Pairs of layers")
        results.append(found)
        figures["interactions"] = plotting.plot_interactions(found)
    if select:
        choosing, held_out = asked.split(0.5, seed)
        chosen = select_layers(
            bridge,
            choosing,
            fitted,
            held_out=held_out,
            effect=effect,
            seed=seed,
            batch_size=batch_size,
            folder=out / UNFINISHED,
        )
        show(
            chosen.table.set_index("added"), f"Chosen on {chosen.n} questions, confirmed on {chosen.n_held_out} others"
        )
        results.append(chosen)
    write(out, results, figures)


def _collected(
    model: Model,
    fitted: Editor,
    demonstrations: Path,
    n: int | None,
    seed: int,
    template: str | None,
    chat: bool,
    ending: str | None,
    max_new_tokens: int,
    batch_size: int,
    edited: bool,
) -> tuple[Activations, Activations | None]:
    """Activations as the editor's fit collected them, and under the edit at every layer."""
    data = read_demonstrations(demonstrations, DataFormat.auto, n, seed)
    data = with_template(data, model, template, chat)
    data = with_answers(data, model, ending, max_new_tokens, batch_size, None)
    if fitted.card.demonstrations not in (None, data.fingerprint):
        typer.echo("note: these are not the demonstrations (or not the neutral answers) that the editor was fitted on.")
    token, site = parse_token(str(fitted.card.token)), fitted.sites[0].name
    plain = collect_activations(model, data, token=token, site=site, batch_size=batch_size)
    if not edited:
        return plain, None
    return plain, collect_activations(model, data, token=token, site=site, batch_size=batch_size, editor=fitted)


@app.command()
def probe(
    model: ModelName,
    editor: EditorName,
    demonstrations: FittedOn,
    out: Annotated[Path, typer.Option(help="Folder for the table and pictures.")] = Path("probes"),
    folds: Annotated[int, typer.Option(help="Of the cross-validation, split by demonstration.", min=2)] = 5,
    shuffles: Annotated[int, typer.Option(help="Probes of shuffled labels to compare with.", min=0)] = 5,
    method: Annotated[Literal["pca", "tsne"], typer.Option(help="Of the map of activations.")] = "pca",
    n: Sampled = None,
    seed: AnalysisSeed = 0,
    template: Template = None,
    chat: Chat = False,
    answer_ending: Ending = None,
    max_new_tokens: NewTokens = 32,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
) -> None:
    """Measures what probes tell apart before and after the edit, layer by layer."""
    fitted, bridge = Editor.from_pretrained(editor), load_model(model, device, reads=[demonstrations])
    plain, edited = _collected(
        bridge, fitted, demonstrations, n, seed, template, chat, answer_ending, max_new_tokens, batch_size, edited=True
    )
    probes = probe_activations(plain, edited, n_folds=folds, n_shuffles=shuffles, seed=seed)
    names = ["accuracy", "auc", "margin", "edited_accuracy", "edited_auc", "edited_margin", "refitted_accuracy"]
    show(probes.table[names], f"Probes of {probes.n} demonstrations, {folds} folds")
    figures = {
        "probes": plotting.plot_probes(probes),
        "activations": plotting.plot_activations(plain, edited, method=method, seed=seed),
    }
    write(out, [probes], figures)


@app.command()
def spectrum(
    model: ModelName,
    editor: EditorName,
    demonstrations: FittedOn,
    out: Annotated[Path, typer.Option(help="Folder for tables and pictures.")] = Path("spectrum"),
    k: Annotated[int, typer.Option(help="Tokens to list at each end of a direction.", min=1)] = 8,
    n: Sampled = None,
    seed: AnalysisSeed = 0,
    template: Template = None,
    chat: Chat = False,
    answer_ending: Ending = None,
    max_new_tokens: NewTokens = 32,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
) -> None:
    """Shows what an edit is: spectra, angles, directions read as tokens, massive activations."""
    fitted, bridge = Editor.from_pretrained(editor), load_model(model, device, reads=[demonstrations])
    plain, _ = _collected(
        bridge, fitted, demonstrations, n, seed, template, chat, answer_ending, max_new_tokens, batch_size, edited=False
    )
    spectra, massive = measure_spectra(fitted, plain), massive_activations(plain, fitted)
    show(spectra.table.T.rename_axis("by layer"), f"Spectra of {plain.n} demonstrations")
    figures = {"angles": plotting.plot_principal_angles(spectra), "massive": plotting.plot_massive_activations(massive)}
    if len(spectra.curves):
        figures["spectra"] = plotting.plot_spectra(spectra)
    read: dict[str, Result] = {}
    for site, label in zip(fitted.sites, labels_of(fitted.sites), strict=True):
        if site.in_stream and fitted[site].directions is not None:
            directions = read_directions(bridge, fitted, site, k=k, activations=plain)
            read[f"directions-{label}"] = directions
            figures[f"directions-{label}"] = plotting.plot_directions(directions)
            show(directions.table[["kind", "gain", "raises", "lowers"]], f"Directions of layer {label}")
    write(out, [spectra, massive], figures, read)
