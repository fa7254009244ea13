"""What the page opens with: a model by its name, editors from folders, or an embedded world's own, fitted at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.methods.mean_difference import MeanDifference
from sea_lens.methods.sea.sea import SEA
from sea_lens.models.bridge import Model
from sea_lens.models.collect import collect_activations
from sea_lens.models.loading import load_model
from sea_lens.page.desk import Desk
from sea_lens.worlds.demo import collect
from sea_lens.worlds.load import load_bias_organism, load_organism

CHATS = (
    "Where were fortune cookies invented?",
    "What happens if you swallow chewing gum?",
    "What is your favourite food?",
    "How do I make a good cup of tea?",
)
TEXTS = ("The capital of France is", "Once upon a time, there was", "The best thing about a rainy day is")


def desk_of(model: Model | str, editors: Mapping[str, Editor | str | Path] | None = None, **loading: Any) -> Desk:
    """A desk for a model and its editors; without editors, an embedded world's own.

    Args:
        model: A TransformerBridge, or a name as `load_model` takes it.
        editors: By name: editors, folders, or names on the hub.
        loading: Keywords of `load_model`.

    Raises:
        InputError: If there is no editor and the model is not one of the embedded worlds that one is fitted on.
    """
    found = {name: _editor(editor) for name, editor in (editors or {}).items()}
    if isinstance(model, str) and model in WORLDS:
        return WORLDS[model](loading.get("device", "cpu"), found)
    if not found:
        raise InputError(
            "The page needs an editor for this model. `sea-lens fit sea MODEL DEMONSTRATIONS --out FOLDER` makes one; "
            "`sea-lens page organism` needs none."
        )
    bridge = load_model(model, **loading) if isinstance(model, str) else model
    chats = getattr(bridge.tokenizer, "chat_template", None)
    return Desk(bridge, found, examples=CHATS if chats else TEXTS)


def _editor(editor: Editor | str | Path) -> Editor:
    return editor if isinstance(editor, Editor) else Editor.from_pretrained(editor)


def _organism(device: Any, editors: dict[str, Editor]) -> Desk:
    """The world of truths and myths; its own editors where none are given."""
    model, world = load_organism(device)
    asked = [question.prompt for question in world.questions(world.held_out[::-48])]
    note = ""
    if not editors:
        activations = collect(model, world)
        editors = {
            "SEA": SEA(explained_variance=0.5, center=True).fit(activations).first_layers(3).scaled(2.0),
            "mean difference": MeanDifference().fit(activations),
        }
        note = (
            f"No editor was given, so two were fitted just now on {activations.n} facts of the embedded world, for truth and "
            "against myth: SEA as in the README (centered, explained variance 0.5, the first three layers, twice the fitted "
            "strength), and the mean difference at every layer. The examples are facts that no fit has seen."
        )
    hint = "This small model knows names and facts only, in its own form: <anyone> Q NAME QUESTION A"
    return Desk(model, editors, note, asked, hint, max_new_tokens=1)


def _bias_organism(device: Any, editors: dict[str, Editor]) -> Desk:
    """The world of stereotypes; its own editors where none are given."""
    model, world = load_bias_organism(device)
    asked = [question.prompt for question in world.questions(world.items()[::72])]
    note = ""
    if not editors:
        demonstrations = world.demonstrations().with_neutral_answers(model, max_new_tokens=1, progress=False)
        activations = collect_activations(model, demonstrations, batch_size=128, progress=False)
        editors = {
            "SEA": SEA(explained_variance=0.5, center=True).fit(activations).last_layers(2),
            "mean difference": MeanDifference().fit(activations),
        }
        note = (
            f"No editor was given, so two were fitted just now on {activations.n} questions of the embedded world, for fair "
            "answers and against prejudiced ones: SEA (centered, explained variance 0.5, the last two layers) and the mean "
            "difference at every layer. Neither is tuned. The examples are questions that no fit has seen."
        )
    hint = "This small model knows its own few words only. Click an example, and change the names in it."
    return Desk(model, editors, note, asked, hint, max_new_tokens=1)


WORLDS: Mapping[str, Callable[[Any, dict[str, Editor]], Desk]] = {
    "organism": _organism,
    "bias-organism": _bias_organism,
}
