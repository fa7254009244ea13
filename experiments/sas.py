r"""Sparse activation steering on a model that is not embedded, beside the mean difference.

    python -m experiments.sas texts MODEL --data qa_data.json --stories texts.json --out runs/texts.json
    python -m experiments.sae --model MODEL --data runs/texts.json --texts 700 --layer 14 --features 1152 --k 24 --steps 700 \
        --out runs/sae
    python -m experiments.sas measure MODEL --data qa_data.json --sae runs/sae --out runs/sas

Rows of HaluEval, in the chat template where there is one, are cut into those to fit on, those to choose settings by and
held-out ones; the autoencoder is trained on stories and on the first of these only. Right answers are shorter than wrong
ones, so answers are compared by means over their tokens. A run that was killed goes on where it stopped.
"""

from __future__ import annotations

import json
import random
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

import sea_lens as sl
from sea_lens.data.prompts import join
from sea_lens.errors import InputError
from sea_lens.methods.method import Method
from sea_lens.models.bridge import Model

TAUS = (0.7, 0.5)
STRENGTHS = (0.5, 1.0, 2.0)
EFFECTS = ("mean_log_probability_difference", "accuracy")


def rows_of(given: Namespace, model: Model) -> tuple[sl.Demonstrations, sl.Demonstrations, sl.Demonstrations]:
    """Demonstrations to fit on, to choose by, and held out."""
    rows = sl.Demonstrations.from_halueval(given.data, n=given.n + 2 * given.questions, seed=given.seed)
    if getattr(model.tokenizer, "chat_template", None):
        rows = rows.with_chat_template(model.tokenizer)
    rows = rows.with_answer_ending(".")
    return rows[: given.n], rows[given.n : given.n + given.questions], rows[given.n + given.questions :]


def write_texts(given: Namespace, model: Model) -> None:
    """Writes the texts of the autoencoder, in random order: stories, and the fitting rows with both of their answers."""
    fitting, _, _ = rows_of(given, model)
    texts = json.loads(given.stories.read_text(encoding="utf-8"))
    texts += [join(row.prompt, answer) for row in fitting for answer in (row.positive, row.negative)]
    random.Random(given.seed).shuffle(texts)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(texts), encoding="utf-8")
    print(f"{len(texts)} texts in {given.out}")


def fitted_or_none(fit: Callable[[], sl.Editor]) -> sl.Editor | None:
    """The fit's editor; None, and why, where no feature is left."""
    try:
        return fit()
    except InputError as error:
        print(error)
        return None


def measure(given: Namespace, model: Model) -> None:
    """Chooses each method's setting, and measures it on held-out questions beside controls, and what it costs."""
    fitting, choosing, held_out = rows_of(given, model)
    sae = sl.load_sae(given.sae)
    assert sae.site is not None
    options = {"batch_size": 8, "progress": False}
    activations = sl.collect_activations(
        model, fitting, [sae.site], given.token, folder=given.out / f"collection-{given.token}", **options
    )
    print(f"the SAE on the fit's activations: {sae.measure(activations.positive[sae.site])} (positive), ", end="")
    print(f"{sae.measure(activations.negative[sae.site])} (negative)")
    questions = {
        name: sl.Questions.from_demonstrations(rows) for name, rows in (("choosing", choosing), ("held out", held_out))
    }
    methods: dict[str, list[Method]] = {"mean difference": [sl.MeanDifference()], "SAS": []}
    for tau in TAUS:
        method = sl.SAS(sae, tau)
        if fitted_or_none(partial(method.fit, activations)) is not None:
            methods["SAS"].append(method)
    found = []
    for name, tried in methods.items():
        if not tried:
            continue
        tuning = sl.tune(
            model,
            activations,
            questions["choosing"],
            methods=tried,
            layers=["all"],
            strengths=STRENGTHS,
            measure="preference_per_token",
            halving=False,
            control=0,
            examples=0,
            folder=given.out / f"tuning-{name}-{given.token}",
            **options,
        )
        print(f"\n{name}, chosen by {len(choosing)} questions:\n{tuning.table.to_string()}")
        if tuning.best is None:
            continue
        best = tuning.best
        if name == "SAS":
            print(sl.read_features(model, best, k=3).table.head(12).to_string())
        shuffled = [
            fitted_or_none(partial(sl.refit, best, activations.shuffled(seed))) for seed in range(given.control)
        ]
        controls: dict[str, int | list[sl.Editor]] = {
            "random": given.control,
            "refitted on shuffled": [each for each in shuffled if each is not None],
            "refitted on swapped": [sl.refit(best, activations.swapped())],
        }
        for kind, control in controls.items():
            if not control:
                continue
            measured = sl.measure_effects(
                model,
                questions["held out"],
                best,
                effects=EFFECTS,
                control=control,
                folder=given.out / f"effects-{name}-{given.token}-{kind}",
                damage=kind == "random",
                **options,
            )
            found.append(measured.table.assign(method=name, controls=kind))
            if measured.damage is not None:
                print(f"{name}: damage: {measured.damage.summary}")
    table = pd.concat(found).reset_index().set_index(["method", "effect", "controls"])
    table.to_csv(given.out / f"effects-{given.token}.csv")
    print(f"\nOn {len(held_out)} held-out questions:\n{table.to_string(float_format=lambda value: f'{value:.4g}')}")


def settings() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["texts", "measure"])
    parser.add_argument("model", help="a model's folder or name")
    parser.add_argument("--data", type=Path, required=True, help="HaluEval's qa_data.json")
    parser.add_argument("--stories", type=Path, help="a JSON list of texts")
    parser.add_argument("--sae", type=Path, help="the folder of the autoencoder")
    parser.add_argument("--n", type=int, default=300, help="demonstrations to fit on")
    parser.add_argument("--questions", type=int, default=100, help="questions to choose by, and as many to report on")
    parser.add_argument("--token", default="last", help="which token of an answer to fit on")
    parser.add_argument("--control", type=int, default=9, help="controls of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main() -> None:
    """Writes texts, or measures."""
    given = settings().parse_args()
    warnings.simplefilter("ignore", sl.SeaLensWarning)  # the table says what edits cost
    model = sl.load_model(given.model)
    (write_texts if given.what == "texts" else measure)(given, model)


if __name__ == "__main__":
    main()
