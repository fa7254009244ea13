"""Conditions on the prompt: which prompts an editor edits."""

from __future__ import annotations

from pathlib import Path

from sea_lens.cli.app import command
from sea_lens.cli.inputs import Asking, is_embedded, load
from sea_lens.cli.options import Of, Options
from sea_lens.cli.output import save_editor, say, show, write
from sea_lens.data.questions import Questions
from sea_lens.data.texts import holds_texts, read_texts
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.methods.cast import fit_condition
from sea_lens.models.bridge import Model
from sea_lens.models.sites import Site, named_layers


@command("Using", fitting=Of(fit_condition, without=("layers", "seed")))
def condition(
    model: str,
    editor: str,
    when: Path,
    unless: Path,
    out: Path = Path("conditional"),
    layers: str = "all",
    *,
    asking: Asking,
    fitting: Options,
    loading: Options,
) -> None:
    """Fit which prompts an editor acts on, from examples."""
    fitted = Editor.from_pretrained(editor)
    bridge = load(model, loading, [when, unless])
    asking = asking.as_fitted(fitted)
    first = min(fitted.edits)
    sites = [Site(layer) for layer in named_layers(layers, bridge.cfg.n_layers) if not first < Site(layer)]
    if not sites:
        raise InputError(
            f"The editor's first edit is at {first}, and a condition reads no later site: no layer of {layers!r} is left. "
            "Take an editor of later layers."
        )
    prompts = [_prompts(path, asking, bridge) for path in (when, unless)]
    found = fit_condition(bridge, *prompts, layers=sites, seed=asking.seed, **fitting)
    show(found.table, f"Conditions, fitted on half; precision and recall on {found.n_when} and {found.n_unless} others")
    conditional = fitted.when(found.where)
    save_editor(conditional, out)
    say(f"{conditional!r}\nsaved in {out}", indent=4)
    write(out, {}, found)


def _prompts(path: Path, asking: Asking, model: Model) -> list[str]:
    """A file's texts, or its questions' prompts, as the model reads them."""
    columns = asking.reading["columns"]
    if is_embedded(path) or not holds_texts(path, columns=columns):
        return [question.prompt for question in asking.questions(path, model)]
    texts = read_texts(path, columns.get("text", "text"))
    rows = Questions.from_lists(texts, [["yes"]] * len(texts), [["no"]] * len(texts))  # answers that nobody reads
    return [question.prompt for question in asking.prompted(asking.sampled(rows), model)]
