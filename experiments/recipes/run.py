"""A recipe from the first answer to the last score, each step kept in a folder, so that a killed run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.recipes.recipe import Behaviour, Recipe
from sea_lens.cache import JSON, write_text
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.data.prompts import BBQ_EXAMPLES, TRUTHFULQA_EXAMPLES, with_prompt
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.evaluation.bbq import evaluate_bbq
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.truthfulqa import evaluate_truthfulqa
from sea_lens.methods.sea.feature_space import KNOWN
from sea_lens.methods.sea.sea import fit_sea
from sea_lens.models.bridge import Model, weights_digest
from sea_lens.models.collect import collect_activations

EXAMPLES: Mapping[Behaviour, str] = {"truthfulness": TRUTHFULQA_EXAMPLES, "bias": BBQ_EXAMPLES}


@dataclass(frozen=True, eq=False)
class RecipeResult:
    """What a recipe came to.

    Attributes:
        editor: Fitted on the demonstrations.
        evaluation: Of the model before and after the edit.
    """

    editor: Editor
    evaluation: Evaluation


def run_recipe(
    recipe: Recipe,
    model: Model,
    demonstrations: Demonstrations,
    questions: Questions,
    folder: str | Path,
    *,
    seed: int = 0,
    progress: bool = True,
) -> RecipeResult:
    """Answers, collects, fits and evaluates, as the recipe says.

    Args:
        recipe: The recipe.
        model: A TransformerBridge with a tokenizer, unedited.
        demonstrations: Of `recipe.read_demonstrations`.
        questions: Of `recipe.read_questions`.
        folder: Where everything is kept: `recipe.json`, the answers, `editor/` with what it was fitted on in `fit.json`, and
            what the evaluation has finished, in `evaluation/unfinished/`. A run that was killed goes on there. Activations
            are in `activations/` until the editor is saved: they take gigabytes, and another fit collects them anew.
        seed: Of the evaluation's resamples.
        progress: Whether to show progress bars.

    Raises:
        InputError: If a text does not fit the model's context, the tokenizer has no chat template for `prompt="chat"`, or the
            folder holds other demonstrations.
        FileFormatError: If the folder holds another run.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "recipe.json", json.dumps(recipe.to_json(), indent=1, ensure_ascii=False) + "\n")
    data, _ = with_prompt(demonstrations, model, recipe.prompt, EXAMPLES[recipe.behaviour])
    data = data.with_neutral_answers(
        model, recipe.max_new_tokens, batch_size=recipe.batch_size, folder=folder, progress=progress
    )
    if recipe.answer_ending is not None:
        data = data.with_answer_ending(recipe.answer_ending)
    editor = _fitted(recipe, model, data, folder, progress)
    evaluate = evaluate_truthfulqa if recipe.behaviour == "truthfulness" else evaluate_bbq
    evaluation = evaluate(
        model,
        questions,
        editor,
        prompt=recipe.prompt,
        seed=seed,
        batch_size=recipe.batch_size,
        folder=folder / "evaluation" / "unfinished",
        progress=progress,
    )
    return RecipeResult(editor, evaluation)


def _fitted(recipe: Recipe, model: Model, data: Demonstrations, folder: Path, progress: bool) -> Editor:
    """The editor, read back where the same fit was finished before."""
    made_by: dict[str, JSON] = {
        "weights": weights_digest(model),
        "demonstrations": data.fingerprint,
        "layers": list(recipe.layers_of(model.cfg.n_layers)),
        "token": recipe.token,
        "site": recipe.site,
        "explained_variance": recipe.explained_variance,
        "center": recipe.center,
        "merge": recipe.merge,
        "feature_map": recipe.feature_map,
    }
    finished, kept = folder / "fit.json", folder / "activations"
    facts = json.dumps(made_by, indent=1) + "\n"
    if finished.exists() and finished.read_text(encoding="utf-8") == facts and (folder / "editor").is_dir():
        shutil.rmtree(kept, ignore_errors=True)  # a run killed just after the fit has left them
        return Editor.from_pretrained(folder / "editor")
    finished.unlink(missing_ok=True)  # until the editor there is this one
    activations = collect_activations(
        model,
        data,
        recipe.layers_of(model.cfg.n_layers),
        recipe.token,
        site=recipe.site,
        batch_size=recipe.batch_size,
        folder=kept,
        progress=progress,
    )
    editor = fit_sea(
        activations,
        recipe.explained_variance,
        center=recipe.center,
        merge=recipe.merge,
        feature_map=None if recipe.feature_map is None else KNOWN[recipe.feature_map](),
        progress=progress,
    )
    editor.save_pretrained(folder / "editor")
    write_text(finished, facts)
    shutil.rmtree(kept, ignore_errors=True)
    return editor
