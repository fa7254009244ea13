"""The `sea-lens` command. Every command is a few library calls; mistakes are one line on stderr and exit code 2."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.exceptions import Abort, Exit, TyperException

from sea_lens.activations import Activations
from sea_lens.cli_inputs import DataFormat, load_model, parse_token, prepare, read_demonstrations
from sea_lens.collection import collect_activations
from sea_lens.editor import Editor
from sea_lens.edits import LowRankEdit
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.methods.sea import Merge, Projections, fit_sea
from sea_lens.models import greedy_answers, named_layers
from sea_lens.organism import experiment, load_organism
from sea_lens.plotting import plot_organism, plot_tuning
from sea_lens.subspaces import Spectrum
from sea_lens.tuning import describe_setting

app = typer.Typer(
    name="sea-lens",
    help="Edit what a language model says by editing its residual stream, and see why the edit works.\n\n"
    "Start with `sea-lens demo`. With a model and demonstrations of your own: `sea-lens fit`, then `sea-lens generate`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console()

ModelName = Annotated[
    str, typer.Argument(help="Model name on the hub, a local folder, or `organism` for the embedded model.")
]
DemonstrationsFile = Annotated[
    Path, typer.Argument(help="HaluEval QA, BBQ, JSONL or CSV with columns prompt, positive, negative.")
]
Format = Annotated[DataFormat, typer.Option(help="Layout of the demonstrations file.")]
Number = Annotated[Optional[int], typer.Option("--n", help="How many demonstrations to sample; all if left out.")]
Seed = Annotated[int, typer.Option(help="Seed of the sample (and of BBQ's wrong answers).")]
Template = Annotated[
    Optional[str], typer.Option(help="Prompt template, such as 'Q: {question}\\nA:' (\\n is a line break).")
]
Chat = Annotated[bool, typer.Option("--chat", help="Put prompts into the tokenizer's own chat template.")]
Ending = Annotated[Optional[str], typer.Option(help="Give every answer this ending, such as '.'.")]
NewTokens = Annotated[int, typer.Option(help="Longest answer the model may give, in tokens.", min=1)]
TokenOption = Annotated[
    str, typer.Option(help="Token collected: last, last_content, mean, or an index into the answer.")
]
Layers = Annotated[str, typer.Option(help="all, first:N, last:N, or a list such as 3,5,10-20.")]
Site = Annotated[str, typer.Option(help="Hook that activations come from and edits go to.")]
BatchSize = Annotated[int, typer.Option(help="Texts in one forward pass.", min=1)]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, mps.")]


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
    print_demo(result, len(world.fitting), out)


def print_demo(result: experiment.OrganismResult, n_fitting: int, out: Path) -> None:
    """Prints a demo's result: bars, three answers before and after, where the picture is, and the code."""
    ranks = [result.editor.card.layers[layer] for layer in result.editor.layers]
    by_layer = "  ".join(f"{found['rank_positive']}+{found['rank_negative']}" for found in ranks)
    typer.echo(
        f"\nSEA fitted on {n_fitting} facts in {result.fit_seconds:.2f} s   "
        f"ranks (positive + negative) by layer: {by_layer}\n"
        f"best of {len(result.tuning.table)} settings there: {describe_setting(result.tuning.table.iloc[0])}"
    )
    typer.echo(f"truthful answers on {result.plain.n} facts it has never seen, with 95 % intervals")
    for name, row in result.table.iterrows():
        bar = "=" * round(24 * row["truthful"])
        interval = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        typer.echo(f"  {name:<22} {bar:<24} {row['truthful']:>6.1%}  {interval}")
    typer.echo("")
    for example in result.examples.to_dict("records"):
        kinds = {example["myth"]: "myth", example["truth"]: "true"}
        plain, edited = (f"{example[name]} ({kinds.get(example[name], 'neither')})" for name in ("plain", "edited"))
        typer.echo(f"Q: {example['question']:<34} plain: {plain:<20} edited: {edited}")
    typer.echo(f"\nPictures: {out / 'layers.png'} (layer by layer), {out / 'settings.png'}    editor: {out / 'editor'}")
    typer.echo("\nThe same in Python:\n")
    typer.echo(demo_code())


def demo_code() -> str:
    """The lines of Python that do what the demo does."""
    return f"""    import sea_lens as sl
    model, world = sl.load_organism()
    demonstrations = world.demonstrations().with_neutral_answers(model, max_new_tokens=1)
    activations = sl.collect_activations(model, demonstrations)
    questions = world.questions(world.fitting)
    tuning = sl.tune_sea(model, activations, questions, strengths={experiment.STRENGTHS}, max_new_tokens=1)
    print(tuning.table.head())
    with tuning.best.attached(model):
        print(sl.answer_greedily(model, world.questions(), max_new_tokens=1).truthful)
"""


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
    data = prepare(data, bridge, template, chat, answer_ending, max_new_tokens, batch_size, out)
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
    spectrum: Annotated[Spectrum, typer.Option(help="What the explained variance is a share of.")] = "squared",
    centre: Annotated[bool, typer.Option("--centre/--no-centre", help="Subtract means first.")] = False,
    projections: Annotated[Projections, typer.Option(help="The method is both; the others are ablations.")] = "both",
    merge: Annotated[Merge, typer.Option(help="norm keeps each token's norm, sum and average do not.")] = "norm",
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
    """Fits linear SEA and writes an editor: from a model and demonstrations, or from collected activations."""
    shares = (
        explained_variance,
        explained_variance if negative_explained_variance is None else negative_explained_variance,
    )
    if not all(0 < share <= 1 for share in shares):  # said before the model runs, not after
        raise InputError(f"An explained variance must lie in (0, 1]; {shares[0]} and {shares[1]} were given.")
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
        data = prepare(data, bridge, template, chat, answer_ending, max_new_tokens, batch_size, None)
        collected = collect_activations(bridge, data, chosen, chosen_token, site=site, batch_size=batch_size)
    editor = fit_sea(
        collected,
        shares,
        ranks=rank,
        spectrum=spectrum,
        centre=centre,
        projections=projections,
        merge=merge,
        layers=chosen,
    )
    editor.save_pretrained(out)
    typer.echo(f"{editor!r}\nsaved in {out}")


@app.command()
def generate(
    model: ModelName,
    editor: Annotated[str, typer.Argument(help="Editor folder, or its name on the hub.")],
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
def inspect(editor: Annotated[str, typer.Argument(help="Editor folder, or its name on the hub.")]) -> None:
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
    table = Table("layer", "rank", "positive", "negative", "lowest", "highest", "strength", "moved")
    for layer, edit in fitted.edits.items():
        found = fitted.card.layers.get(layer, {})
        extremes = ["", ""]
        if isinstance(edit, LowRankEdit) and edit.rank:
            extremes = [f"{edit.eigenvalues.min():+.3f}", f"{edit.eigenvalues.max():+.3f}"]
        displacement = f"{float(str(found['displacement'])):.1%}" if "displacement" in found else ""
        ranks = [str(found.get(f"rank_{role}", "")) for role in ("positive", "negative")]
        table.add_row(str(layer), str(edit.rank), *ranks, *extremes, f"{edit.strength:g}", displacement)
    console.print(table)


def main() -> None:
    """Runs the command line: mistakes become one line and exit code 2."""
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", SeaLensWarning)
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        code = _fail(error.format_message()) if error.format_message() else 2  # empty after printing help
    except Exit as error:
        code = error.exit_code
    except (Abort, KeyboardInterrupt):
        code = _fail("stopped")
    except (ValueError, RuntimeError, OSError) as error:
        code = _fail(str(error))
    except Exception as error:  # from a library below: still one line
        code = _fail(f"{type(error).__name__}: {error}")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
