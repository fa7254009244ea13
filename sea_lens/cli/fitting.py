"""From demonstrations to editors: demo, methods, collect, fit, tune, convert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Optional

import pandas as pd
import typer

import sea_lens.methods  # noqa: F401  # registers every method
from sea_lens.cli.app import command, command_of_each, word_of
from sea_lens.cli.fitting_facts import edits_facts, fit_of_facts, of_demonstrations
from sea_lens.cli.gentle import KL, ON_REAL_MODELS, fit_to_scale, left_open, scaled_for, settled
from sea_lens.cli.inputs import EMBEDDED, Reading, columns_in, load, read_questions, reading_of
from sea_lens.cli.options import HELP, SHARED, Of, Options, spread
from sea_lens.cli.output import conclude, draw, record, save_editor, say, show, write, wrote
from sea_lens.cli.verdicts import of_tuning
from sea_lens.data.questions import Questions
from sea_lens.errors import InputError
from sea_lens.methods.budget import sites_to_collect
from sea_lens.methods.grid import grid
from sea_lens.methods.in_sequence import fit_in_sequence
from sea_lens.methods.method import METHODS, MethodEntry
from sea_lens.methods.sea.published import read_published_editor
from sea_lens.methods.tune import EXPLAINED_VARIANCES
from sea_lens.methods.tune import tune as tune_methods
from sea_lens.methods.tuning import describe_setting
from sea_lens.models.activations import Activations
from sea_lens.models.sites import Site, named_layers
from sea_lens.plotting import plot_organism, plot_tuning
from sea_lens.worlds import demo as experiment
from sea_lens.worlds.load import load_organism

TRIED: Mapping[str, Mapping[str, list[Any]]] = {
    "sea": {"center": [False, True], "explained_variance": list(EXPLAINED_VARIANCES)}
}
"""By method, what `tune` tries of the settings that are not given."""
TUNING = Of(tune_methods, without=("methods", "measure_name", "neutral_texts"))


@command("Start")
def demo(out: Path = Path("sea-lens-demo"), random_editors: int = 20) -> None:
    """See the whole path on an embedded model, in a minute."""
    say("Loading the embedded model, trying settings on 240 facts, asking 240 others ...")
    model, world = load_organism()
    result = experiment.run(model, world, n_random=random_editors, progress=True)
    out.mkdir(parents=True, exist_ok=True)
    draw(out, {"layers": plot_organism(result), "settings": plot_tuning(result.tuning)})
    save_editor(result.editor, out, "editor")
    wrote(out, [out / "layers.png", out / "settings.png"])
    record(result.tuning)
    say(experiment.report(result))
    say(f"\nPictures: {out / 'layers.png'} (layer by layer), {out / 'settings.png'}    editor: {out / 'editor'}")
    say(f"\nThe same in Python:\n\n{experiment.code()}")


@command("Start")
def methods() -> None:
    """List the methods that fit editors, and what each needs."""
    rows = [
        (word_of(one.name), one.summary, ", ".join(one.cls.roles) or "facts", one.source) for one in METHODS.values()
    ]
    show(pd.DataFrame(rows, columns=["method", "what it does", "needs answers", "source"]), lines=True)
    say("Settings of a method: sea-lens fit METHOD --help")


@command("Data and fitting")
def collect(
    model: str,
    demonstrations: Path,
    out: Path = Path("activations"),
    layers: str = "all",
    *,
    reading: Reading,
    collecting: Options,
    loading: Options,
) -> None:
    """Collect activations, to fit from them again and again."""
    data = reading.read(demonstrations)
    bridge = load(model, loading, [demonstrations])
    activations = reading.collect(bridge, data, collecting, out, layers)
    wrote(out, sorted(path for path in out.rglob("*") if path.is_file()))
    say(f"{activations!r}\nsaved in {out}", indent=4)


@command_of_each("Data and fitting", lambda: METHODS, lambda entry: entry.summary, default="sea")
def fit(entry: MethodEntry) -> Callable[..., None]:
    """Fit an editor with any method; sea where none is named."""
    if edits_facts(entry):
        return fit_of_facts(entry)

    def fit_method(
        model: Annotated[Optional[str], typer.Argument(help=HELP["model"], metavar="MODEL")] = None,
        demonstrations: Annotated[
            Optional[Path], typer.Argument(help=HELP["demonstrations"], metavar="DEMONSTRATIONS")
        ] = None,
        out: Path = Path("editor"),
        activations: Optional[Path] = None,
        layers: str = "all",
        in_sequence: bool = False,
        kl: Optional[float] = KL,
        strength: Optional[float] = None,
        *,
        settings: Options,
        reading: Reading,
        collecting: Options,
        loading: Options,
    ) -> None:
        method, needs_neutral = entry.cls(**settled(entry, settings, model is not None)), "neutral" in entry.cls.roles
        told = "not scaled, as there is no model to measure what it costs: see Editor.scaled_to"
        if activations is not None:
            if model is not None or demonstrations is not None:
                raise InputError("Give either --activations, or a model and demonstrations, not both.")
            if in_sequence:
                raise InputError("--in-sequence collects anew for every layer: give a model and demonstrations.")
            _refuse_for_collected(reading, collecting)
            editor = method.fit(_at_layers(Activations.load(activations), layers)).scaled(strength or 1.0)
            told = told if strength is None else f"strength {strength:g}, as asked for"
        elif model is None or demonstrations is None:
            given = "no model" if model is None else f"the model {model}, and no DEMONSTRATIONS"
            raise InputError(
                f"There is {given}. Give both, as in `sea-lens fit {word_of(entry.name)} {model or 'MODEL'} "
                "demonstrations.jsonl`, or --activations alone."
            )
        else:
            data = reading.read(demonstrations)
            if sites_to_collect(entry.cls) == ("unembed.hook_in",):
                raise InputError(
                    f"{entry.name} is fitted on {entry.cls.also_needs}, which no file of demonstrations holds. Collect "
                    "them in Python, with sl.collect_fact(...).save(FOLDER), and give --activations FOLDER."
                )
            bridge = load(model, loading, [demonstrations])
            layers, where = _at_its_site(method, layers, collecting)
            if in_sequence:
                asked = reading.prompted(data, bridge)
                data = reading.answered(asked, bridge, collecting["batch_size"], None, needs_neutral)
                chosen = named_layers(layers, bridge.cfg.n_layers)
                with fit_to_scale(kl, strength):
                    editor = fit_in_sequence(bridge, data, method, layers=chosen, **where)
            else:
                collected = reading.collect(bridge, data, where, None, layers, needs_neutral)
                with fit_to_scale(kl, strength):
                    editor = method.fit(collected)
            editor, told = scaled_for(bridge, editor, kl, strength)
        save_editor(editor, out)
        say(f"{editor!r}\n{told}\nsaved in {out}", indent=4)
        if entry.name in ON_REAL_MODELS and model is not None and model not in EMBEDDED:
            say(ON_REAL_MODELS[entry.name], indent=0)

    return spread(fit_method, settings=Of(entry.cls, defaults=left_open(entry)))


@command_of_each("Data and fitting", of_demonstrations, lambda entry: f"Try settings of {entry.name}.", default="sea")
def tune(entry: MethodEntry) -> Callable[..., None]:
    """Try settings, layers and strengths on questions.

    Without --questions it chooses by the demonstrations of the fit. Every setting may be given several times.
    """

    def tune_method(
        model: str,
        demonstrations: Path,
        out: Path = Path("tuning"),
        questions: Optional[Path] = None,
        also: Optional[list[str]] = None,
        *,
        settings: Options,
        tuning: Options,
        reading: Reading,
        collecting: Options,
        loading: Options,
    ) -> None:
        tried = {**TRIED.get(entry.name, {}), **settings}
        if "ranks" in settings:
            tried.pop("explained_variance", None)
        chosen = [*grid(entry.cls, **tried), *(method_named(name)() for name in also or ())]
        data = reading.read(demonstrations)
        asked = Questions.from_demonstrations(data) if questions is None else _to_choose_by(questions, reading)
        bridge = load(model, loading, [demonstrations, questions])
        for name in tuning["layers"] or ():
            named_layers(name, bridge.cfg.n_layers)
        asked = reading.prompted(asked, bridge)
        activations = reading.collect(bridge, data, collecting, out / "activations")
        result = tune_methods(bridge, activations, asked, methods=chosen, folder=out, **tuning)
        conclude(of_tuning(result))
        best = result.table.head(8)
        intervals = [
            f"{100 * low:.1f} to {100 * high:.1f}" for low, high in zip(best["low"], best["high"], strict=True)
        ]
        columns = {"score": [f"{share:.1%}" for share in best["score"]], "95 %": intervals, "KL": best["kl"].tolist()}
        if result.stopped:
            columns["of"] = best["n"].tolist()
        if result.n_allowed < len(result.table):
            columns["breaks the model"] = ["" if allowed else "yes" for allowed in best["allowed"]]
        settings_of = [describe_setting(row) for _, row in best.iterrows()]
        show(pd.DataFrame({**columns, "setting": settings_of}), f"The best of {len(result.table)} settings")
        for n, count in result.stopped.items():
            say(f"{count} settings stopped after {n} questions (--no-halving asks all of them everything)")
        say(f"unedited: {result.unedited}")
        tables = {"settings": result.table}
        if result.damage is not None:
            if not result.controls.empty:
                say(result.of_controls)
                tables["controls"] = result.controls
            if not result.damage.examples.empty:
                tables["examples"] = result.damage.examples
                show(
                    result.damage.examples[["prompt", "unedited", "edited"]], "Answers at the best setting", lines=True
                )
            save_editor(result.best, out, "editor")
            say(f"{result.best!r}\n", indent=4)
        if questions is None:
            say("Chosen by the demonstrations of the fit. Measure it on others before you believe the score.")
        record(result)
        write(out, {"settings": plot_tuning(result)}, tables=tables)
        if result.damage is None:
            raise InputError(f"No editor is saved: {result.why_none}")

    return spread(tune_method, settings=Of(entry.cls, repeated=True), tuning=TUNING)


@command("Data and fitting", reading=Of(read_published_editor, without=("layers",)))
def convert(
    positive: Path, negative: Path, out: Path = Path("editor"), layers: str = "all", *, reading: Options
) -> None:
    """Make an editor of the projections SEA's authors released."""
    editor = read_published_editor(positive, negative, **reading)
    if layers != "all":
        editor = editor.at_layers(named_layers(layers, editor.n_layers))
    save_editor(editor, out)
    say(f"{editor!r}\nsaved in {out}", indent=4)


def _to_choose_by(path: Path, reading: Reading) -> Questions:
    columns = reading_of("auto", columns_in(path, reading.columns), None)["columns"]
    return read_questions(path, to_choose_by=True, columns=columns)


def method_named(name: str) -> Any:
    """The class of a registered method.

    Raises:
        InputError: If there is none of the name.
    """
    known = {word_of(key): entry.cls for key, entry in of_demonstrations().items()}
    if word_of(name) not in known:
        raise InputError(f"There is no method {name!r}. It is one of {', '.join(known)}.")
    return known[word_of(name)]


def _at_layers(activations: Activations, layers: str) -> Activations:
    if layers == "all":
        return activations
    depth = activations.model.n_layers if activations.model is not None else activations.layers[-1] + 1
    chosen = named_layers(layers, depth)
    return activations.at_sites([site for site in activations.sites if site.layer in chosen])


def _at_its_site(method: Any, layers: str, collecting: Options) -> tuple[str, Options]:
    """Layers and options to collect by: of a method for one site, as a sparse autoencoder is, that site unless named."""
    site = getattr(method, "site", None)
    if layers != "all" or not isinstance(site, Site) or site.layer is None:
        return layers, collecting
    return str(site.layer), {**collecting, "site": site.name}


def _refuse_for_collected(reading: Reading, collecting: Options) -> None:
    """Refuses what has no effect on activations that are collected already."""
    usual = Of(Reading).usual() | SHARED["collecting"].value(dict.fromkeys(collecting))
    given = {one.name: getattr(reading, one.name) for one in fields(reading)} | collecting
    late = [f"--{name.replace('_', '-')}" for name, value in given.items() if name != "seed" and value != usual[name]]
    if late:
        raise InputError(
            f"{', '.join(late)}: no effect on activations that are collected already. Collect them anew with it."
        )
