"""What an editor does, and where: effects, ablate, probe, spectrum. Each writes CSV and PNG files and shows a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from sea_lens import plotting
from sea_lens.analysis.effects import measure_effects, named_effect
from sea_lens.analysis.features import read_features
from sea_lens.analysis.implicit_bias import measure_implicit_bias
from sea_lens.analysis.layers import ablate_layers, measure_interactions
from sea_lens.analysis.massive import massive_activations, massive_tokens
from sea_lens.analysis.probes import probe_activations
from sea_lens.analysis.selection import select_layers
from sea_lens.analysis.subspaces import measure_spectra
from sea_lens.analysis.tokens import read_directions
from sea_lens.cli.app import command
from sea_lens.cli.inputs import Asking, Reading, load
from sea_lens.cli.options import Of, Options
from sea_lens.cli.output import UNFINISHED, conclude, say, show, write
from sea_lens.cli.verdicts import of_ablation, of_effects, of_probes
from sea_lens.data.texts import read_texts
from sea_lens.editing.editor import Editor
from sea_lens.evaluation.massive import intervene_on_massive
from sea_lens.models.activations import Activations
from sea_lens.models.bridge import Model
from sea_lens.models.collect import collect_activations
from sea_lens.models.neutral import neutral_texts
from sea_lens.models.sites import labels_of


@command("Looking", options=Of(measure_effects))
def effects(
    model: str,
    editor: str,
    questions: Path,
    out: Path = Path("effects"),
    *,
    options: Options,
    asking: Asking,
    loading: Options,
) -> None:
    """Measure what an editor does to answers."""
    for name in options["effects"] or ():
        named_effect(name)
    fitted, bridge = Editor.from_pretrained(editor), load(model, loading, [questions])
    asked = asking.as_fitted(fitted).questions(questions, bridge)
    result = measure_effects(bridge, asked, fitted, folder=out / UNFINISHED, **options)
    conclude(of_effects(result))
    show(result.table, f"Effects on {result.n} questions, {result.confidence:.0%} intervals of the change")
    for name, row in result.flips.iterrows():
        say(f"{str(name).replace('_', ' ')}: {row['gained']} questions gained, {row['lost']} lost")
    if result.damage is not None:
        conclude(f"Damage: {result.damage.summary}")
    write(out, {"effects": plotting.plot_effects(result)}, result)


@command("Looking", options=Of(ablate_layers))
def ablate(
    model: str,
    editor: str,
    questions: Path,
    out: Path = Path("ablation"),
    pairs: bool = False,
    select: bool = False,
    *,
    options: Options,
    asking: Asking,
    loading: Options,
) -> None:
    """Measure which layers of an editor carry its effect."""
    named_effect(options["effect"])
    fitted, bridge = Editor.from_pretrained(editor), load(model, loading, [questions])
    asked, folder = asking.as_fitted(fitted).questions(questions, bridge), out / UNFINISHED
    result = ablate_layers(bridge, asked, fitted, folder=folder, **options)
    named = f"{result.effect.replace('_', ' ')} on"
    title = f"{named} {result.n} questions, {result.confidence:.0%} intervals of the change"
    conclude(of_ablation(result))
    show(result.table.drop(columns="layer").set_index("mode"), title)
    if result.damage is not None:
        conclude(f"Damage of the whole edit: {result.damage.summary}")
    results: list[Any] = [result]
    figures = {"ablation": plotting.plot_ablation(result)}
    if pairs:
        found = measure_interactions(bridge, asked, fitted, folder=folder, **Of(measure_interactions).value(options))
        show(found.table.set_index(["first", "second"]), "Pairs of layers")
        results.append(found)
        figures["interactions"] = plotting.plot_interactions(found)
    if select:
        choosing, held_out = asked.split(0.5, options["seed"])
        chosen = select_layers(
            bridge, choosing, fitted, held_out=held_out, folder=folder, **Of(select_layers).value(options)
        )
        title = f"{named} {chosen.n} questions to choose by and {chosen.n_held_out} held out"
        show(chosen.table.set_index("added"), title)
        results.append(chosen)
    write(out, figures, *results)


@command(
    "Looking",
    probing=Of(probe_activations),
    drawing=Of(plotting.plot_activations, only=("method",)),
    collecting=Of(collect_activations, only=("batch_size",)),
)
def probe(
    model: str,
    editor: str,
    demonstrations: Path,
    out: Path = Path("probes"),
    *,
    probing: Options,
    drawing: Options,
    reading: Reading,
    collecting: Options,
    loading: Options,
) -> None:
    """Measure what probes tell apart before and after the edit."""
    fitted, bridge = Editor.from_pretrained(editor), load(model, loading, [demonstrations])
    plain, edited = _collected(bridge, fitted, demonstrations, reading, collecting, edited=True)
    probes = probe_activations(plain, edited, **probing)
    conclude(of_probes(probes))
    show(probes.table[list(probes.shown)], f"Probes of {probes.n} demonstrations")
    figures = {
        "probes": plotting.plot_probes(probes),
        "activations": plotting.plot_activations(plain, edited, seed=probing["seed"], **drawing),
    }
    write(out, figures, probes)


@command(
    "Looking",
    directing=Of(read_directions, only=("k",)),
    collecting=Of(collect_activations, only=("batch_size",)),
)
def spectrum(
    model: str,
    editor: str,
    demonstrations: Path,
    out: Path = Path("spectrum"),
    *,
    directing: Options,
    reading: Reading,
    collecting: Options,
    loading: Options,
) -> None:
    """Show an edit's spectra, angles and directions as tokens."""
    fitted = Editor.from_pretrained(editor)
    bridge = load(model, loading, [demonstrations])
    plain, _ = _collected(bridge, fitted, demonstrations, reading, collecting, edited=False)
    spectra, massive = measure_spectra(fitted, plain), massive_activations(plain, fitted)
    show(spectra.table.T.rename_axis("by layer"), f"Spectra of {plain.n} demonstrations")
    figures = {"angles": plotting.plot_principal_angles(spectra), "massive": plotting.plot_massive_activations(massive)}
    if len(spectra.curves):
        figures["spectra"] = plotting.plot_spectra(spectra)
    tables = {}
    for site, layer in zip(fitted.sites, labels_of(fitted.sites), strict=True):
        if site.in_stream and fitted[site].directions is not None:
            found = read_directions(bridge, fitted, site, activations=plain, **directing)
            show(found.table[list(found.shown)], f"Directions of layer {layer}")
            tables[f"directions-{layer}"] = found.table
            figures[f"directions-{layer}"] = plotting.plot_directions(found)
    write(out, figures, spectra, massive, tables=tables)


@command("Looking", reading_out=Of(read_features, only=("k",)))
def features(model: str, editor: str, out: Path = Path("features"), *, reading_out: Options, loading: Options) -> None:
    """Show an editor's sparse features, as tokens."""
    fitted, bridge = Editor.from_pretrained(editor), load(model, loading)
    tables, figures = {}, {}
    for site in fitted.sites:
        found = read_features(bridge, fitted, site, **reading_out)
        show(found.table[list(found.shown)], f"Features at {site}, of {found.sae}")
        tables[f"features-{site}"] = found.table
        figures[f"features-{site}"] = plotting.plot_features(found)
    write(out, figures, tables=tables)


@command("Looking", options=Of(intervene_on_massive, without=("texts",)), biasing=Of(measure_implicit_bias))
def massive(
    model: str,
    texts: Optional[Path] = None,
    out: Path = Path("massive"),
    *,
    options: Options,
    biasing: Options,
    loading: Options,
) -> None:
    """Find massive activations, and set them, beside controls."""
    bridge = load(model, loading, [] if texts is None else [texts])
    given = neutral_texts(bridge) if texts is None else read_texts(texts)
    criterion = {name: options[name] for name in ("magnitude", "ratio")}
    found = massive_tokens(bridge, given, **criterion, batch_size=options["batch_size"])
    show(found.layers, f"Largest absolute activations, means of {found.n} texts")
    figures, results = {"layers": plotting.plot_massive_tokens(found)}, list[Any]([found])
    if found.table.empty:
        say(f"No activation is above {found.magnitude:g} and {found.ratio:g} times the median: nothing to set.")
    else:
        show(found.coordinates.set_index("coordinate"), "Massive coordinates, at the layer where each is largest")
        bias = measure_implicit_bias(bridge, given, **biasing)
        show(bias.table, f"Attention on {bias.kind} tokens, and what it gives")
        result = intervene_on_massive(bridge, given, folder=out / UNFINISHED, **options)
        show(result.table, f"Set after layer {result.layer}; perplexity unedited {result.unedited:.4g}")
        figures |= {"bias": plotting.plot_implicit_bias(bias), "interventions": plotting.plot_interventions(result)}
        results += [bias, result]
    write(out, figures, *results)


def _collected(
    model: Model, fitted: Editor, demonstrations: Path, reading: Reading, options: Options, edited: bool
) -> tuple[Activations, Activations | None]:
    """Activations as the editor's fit collected them, and under the edit."""
    reading = reading.as_fitted(fitted)
    data = reading.prompted(reading.read(demonstrations), model)
    data = reading.answered(data, model, options["batch_size"], None)
    if fitted.card.demonstrations not in (None, data.fingerprint):
        conclude("note: these are not the demonstrations (or not the neutral answers) that the editor was fitted on.")
    options = {**options, "token": fitted.card.token, "site": sorted({site.name for site in fitted.sites})}
    plain = collect_activations(model, data, **options)
    return plain, collect_activations(model, data, editor=fitted, **options) if edited else None
