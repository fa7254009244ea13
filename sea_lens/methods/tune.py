"""Choosing hyper-parameters honestly: every setting measured on questions you give, and on nothing else."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import pandas as pd
from tqdm.auto import tqdm

from sea_lens.cache import write_text
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import FileFormatError, InputError, SeaLensWarning
from sea_lens.methods.sea.feature_space import FeatureMap
from sea_lens.methods.sea.rule import SEARule, Share
from sea_lens.models.activations import Activations
from sea_lens.models.answers import answer_greedily, prefer_right
from sea_lens.models.bridge import Model, weights_digest
from sea_lens.models.divergence import UneditedPredictions
from sea_lens.models.sites import check_layers, named_layers
from sea_lens.statistics import Proportion

Measure = Callable[[Model, Questions], Proportion]
"""What settings are compared by, measured under the hooks that are on the model."""
EXPLAINED_VARIANCES = (0.5, 0.8, 0.9, 0.99, 0.998, 0.9999)
NEUTRAL_PROMPTS = 100
FORMAT = "sea_lens.methods.tune/1"


@dataclass(frozen=True, eq=False)
class Tuning:
    """Settings of SEA and what each does, best first.

    Attributes:
        table: One row a setting: `feature_map`, `center`, `explained_variance`, `strength`, `layers`, `ranks` (positive +
            negative, layer by layer), `clamped` (the largest share of clamped entries of any layer; only with feature maps),
            `score` with its 95 % interval `low` to `high`, and `kl` (to the unedited model on neutral text, in nats a token).
        editors: The editor of each row.
        unedited: The score of the unedited model.
    """

    table: pd.DataFrame
    editors: tuple[Editor, ...]
    unedited: Proportion

    @property
    def best(self) -> Editor:
        """The editor of the highest score; of equals, the one of the lowest KL, and then of the lowest ranks.

        Its score is the best of many, so it flatters: measure the editor on other questions before believing it.
        """
        return self.editors[0]

    def __repr__(self) -> str:
        row = self.table.iloc[0]
        return (
            f"Tuning({len(self.table)} settings; unedited {self.unedited}; best {row['score']:.1%} "
            f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}], KL {row['kl']:.3g}: {describe_setting(row)})"
        )


def describe_setting(row: Mapping[str, object] | pd.Series) -> str:
    """A setting in words."""
    centering = "centered" if row["center"] else "uncentered"
    feature_map = "" if row["feature_map"] == "linear" else f"{row['feature_map']}, "
    return (
        f"{feature_map}{centering}, explained variance {row['explained_variance']}, layers {row['layers']}, "
        f"strength {row['strength']:g}, ranks {row['ranks']}"
    )


def tune_sea(
    model: Model,
    activations: Activations,
    questions: Questions,
    *,
    explained_variances: Sequence[Share] = EXPLAINED_VARIANCES,
    layers: Sequence[str | Sequence[int]] | None = None,
    feature_maps: Sequence[FeatureMap | None] = (None,),
    center: Sequence[bool] = (False, True),
    strengths: Sequence[float] = (1.0,),
    rule: SEARule | None = None,
    measure: Literal["answers", "preference"] | Measure = "answers",
    neutral_texts: Sequence[str] | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Tuning:
    """Fits SEA at every combination of settings and measures each on the questions given.

    Each layer is decomposed once for every feature map and centering; explained variances are cut from that, layers and
    strengths are views, and settings that come to the same editor are measured once.

    Args:
        model: A TransformerBridge with a tokenizer, unedited: the one the activations come from.
        activations: To fit on.
        questions: To choose by. Keep others to report on: the best of many settings looks better than it is.
        explained_variances: As for `fit_sea`.
        layers: Sets of layers: `"all"`, `"first:3"`, `"last:21"`, `"3,5,10-20"`, or lists. For None: all, and the first and
            last quarter, half and three quarters of the model.
        feature_maps: None is the linear edit.
        center: As for `fit_sea`.
        strengths: 1 is the paper's.
        rule: The rest of a fit: projections, merge, merge space, spectrum, feature unit. Its feature map and centering are
            not used.
        measure: `"answers"`, the share of greedy answers that are true; `"preference"`, the share of questions with a true
            completion likelier than every false one; or a function of model and questions that returns a `Proportion`.
        neutral_texts: Texts for the KL; for None the questions' prompts (100 of them at most, evenly spread), on which an
            edit should change nothing before the answer.
        max_new_tokens: Longest greedy answer.
        batch_size: Questions in one forward pass.
        folder: Where to keep scores as they come. A run that was killed goes on from there.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If a list of settings is empty, or a setting is impossible.
        FileFormatError: If `folder` holds the scores of another tuning.

    Warns:
        SeaLensWarning: If no setting scores higher than the unedited model.
    """
    lists = {
        "explained_variances": explained_variances,
        "feature_maps": feature_maps,
        "center": center,
        "strengths": strengths,
        "layers": [""] if layers is None else layers,
    }
    for name, values in lists.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise InputError(f"{name} is a list of values to try, with at least one, and {values!r} was given.")
    if layers is not None and any(isinstance(given, int) for given in layers):
        raise InputError(f"layers is a list of sets of layers, such as [[0, 1], [2]], and {layers!r} was given.")
    if not all(map(math.isfinite, strengths)):
        raise InputError(f"A strength must be a finite number, and {strengths} were given.")
    if isinstance(neutral_texts, str):
        raise InputError("neutral_texts is a list of texts, and a single text was given. Put it into a list.")
    layer_sets = _layer_sets(layers, activations.layers, model.cfg.n_layers)
    needed = sorted({layer for chosen in layer_sets.values() for layer in chosen})
    prompts = [question.prompt for question in questions]
    texts = prompts[:: -(-len(prompts) // NEUTRAL_PROMPTS)] if neutral_texts is None else list(neutral_texts)
    base, score = rule or SEARule(), _score(measure, max_new_tokens, batch_size)
    kept = _KeptScores.at(folder, _manifest(model, activations, questions, base, measure, max_new_tokens, texts))

    unedited_predictions = UneditedPredictions.of(model, texts, batch_size=batch_size)

    def measured(editor: Editor, key: str) -> tuple[Proportion, float]:
        if key not in kept.scores:
            kl = unedited_predictions.kl_to(editor)
            with editor.attached(model):
                kept.add(key, score(model, questions), kl)
        return kept.scores[key]

    if "unedited" not in kept.scores:
        kept.add("unedited", score(model, questions), 0.0)
    rows: list[dict[str, object]] = []
    editors: list[Editor] = []
    count = math.prod(map(len, (explained_variances, layer_sets, feature_maps, center, strengths)))
    with tqdm(total=count, desc="settings", unit="setting", disable=not progress) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)  # an edit that does nothing is a row like any other here
        for feature_map, centered in product(feature_maps, center):
            fits = replace(base, feature_map=feature_map, center=centered).fit(
                activations, explained_variances, needed, progress=False
            )
            views = product(zip(explained_variances, fits, strict=True), layer_sets.items(), strengths)
            for (explained_variance, fitted), (name, chosen), strength in views:
                editor = fitted.at_layers(chosen).scaled(strength)
                setting = {
                    "feature_map": "linear" if feature_map is None else str(feature_map),
                    "center": centered,
                    "strength": strength,
                }
                # Ranks say which of a decomposition's subspaces these are, so equal ones are the same editor.
                ranks = {layer: _ranks(editor, layer) for layer in editor.layers}
                proportion, kl = measured(editor, json.dumps([*setting.values(), ranks]))
                low, high = proportion.interval()
                found = {"score": proportion.share, "low": low, "high": high, "kl": kl}
                clamped = {} if feature_map is None else {"clamped": _clamped(editor)}
                where = {"explained_variance": explained_variance, "layers": name, "ranks": "  ".join(ranks.values())}
                rows.append({**setting, **where, **found, **clamped})
                editors.append(editor)
                bar.update()
    table = pd.DataFrame(rows)
    sizes = pd.Series([sum(edit.rank for edit in editor.edits.values()) for editor in editors])
    order = table.assign(size=sizes).sort_values(["score", "kl", "size"], ascending=[False, True, True], kind="stable")
    best_first, unedited = order.index.tolist(), kept.scores["unedited"][0]
    if order["score"].iloc[0] <= unedited.share:
        warnings.warn(
            f"None of these {len(order)} settings scores higher than the unedited model ({unedited}). Try other layers, "
            "strengths or a lower explained variance, and look at demonstrations.check() and the token choice.",
            SeaLensWarning,
            stacklevel=2,
        )
    return Tuning(
        table.loc[best_first].reset_index(drop=True),
        tuple(editors[row] for row in best_first),
        unedited,
    )


def _layer_sets(
    layers: Sequence[str | Sequence[int]] | None, collected: Sequence[int], n_layers: int
) -> dict[str, list[int]]:
    """Layers by the name that the table calls them."""
    by_default = layers is None
    if layers is None:
        parts = sorted({max(1, n_layers * quarters // 4) for quarters in (1, 2, 3)} - {n_layers})
        layers = ["all", *(f"first:{n}" for n in parts), *(f"last:{n}" for n in parts)]
    sets = {}
    for given in layers:
        name = given if isinstance(given, str) else ",".join(map(str, given))
        chosen = named_layers(given, n_layers) if isinstance(given, str) else check_layers(given, n_layers)
        found = [layer for layer in chosen if layer in collected]
        partly = name == "all" or name.startswith(("first:", "last:"))  # as views, these mean the layers there are
        if not found and by_default:
            continue
        if not found or (found != chosen and not partly):
            raise InputError(f"Layers {name} were asked for; activations are there of {list(collected)}.")
        sets[name] = found
    return sets


def _ranks(editor: Editor, layer: int) -> str:
    found = editor.card.reports[editor.at_layers([layer]).sites[0]]
    return f"{found['rank_positive']}+{found['rank_negative']}"


def _clamped(editor: Editor) -> float:
    names = ("clamped_activations", "clamped_features")
    return max(editor.card.reports[site][name] for site in editor.sites for name in names)


def _score(measure: Literal["answers", "preference"] | Measure, max_new_tokens: int, batch_size: int) -> Measure:
    if measure == "answers":
        return lambda model, questions: (
            answer_greedily(model, questions, max_new_tokens=max_new_tokens, batch_size=batch_size).right
        )
    if measure == "preference":
        return lambda model, questions: prefer_right(model, questions, batch_size=batch_size).right
    if not callable(measure):
        raise InputError(f'measure is "answers", "preference" or a function, and {measure!r} was given.')
    return measure


def _manifest(
    model: Model,
    activations: Activations,
    questions: Questions,
    rule: SEARule,
    measure: Literal["answers", "preference"] | Measure,
    max_new_tokens: int,
    texts: Sequence[str],
) -> dict[str, object]:
    """What scores depend on besides their setting."""
    data = hashlib.sha256(repr((questions.rows, texts)).encode())
    for layer in activations.layers:
        for tensor in (activations.neutral[layer], activations.positive[layer], activations.negative[layer]):
            data.update(tensor.double().numpy().tobytes())
    return {
        "format": FORMAT,
        "weights": weights_digest(model),
        "data": data.hexdigest(),
        "rule": repr(replace(rule, feature_map=None, center=False)),
        "measure": measure
        if isinstance(measure, str)
        else getattr(measure, "__qualname__", type(measure).__qualname__),
        "max_new_tokens": max_new_tokens,
        "sites": [str(site) for site in activations.sites],
    }


@dataclass
class _KeptScores:
    """Scores by setting, one a line in `scores.jsonl` as they come, so that a killed run loses one at most."""

    path: Path | None
    scores: dict[str, tuple[Proportion, float]]

    @classmethod
    def at(cls, folder: str | Path | None, manifest: dict[str, object]) -> _KeptScores:
        if folder is None:
            return cls(None, {})
        path = Path(folder) / "scores.jsonl"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(manifest) + "\n")
        try:
            head, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
            found = json.loads(head)
            different = sorted(key for key in {*manifest, *found} if manifest.get(key) != found.get(key))
        except (ValueError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{path} does not hold the scores of a tuning: {error}. Delete it.") from error
        if different:
            raise FileFormatError(
                f"{path} holds the scores of a tuning that differs in {', '.join(different)}. Choose another folder, or "
                "delete it."
            )
        scores = {}
        for line in lines:
            try:
                key, successes, n, kl = json.loads(line)
                scores[str(key)] = Proportion(int(successes), int(n)), float(kl)
            except (ValueError, TypeError):  # the line that a kill cut short; its setting is measured again
                continue
        write_text(path, "\n".join([head, *(cls._line(key, *score) for key, score in scores.items()), ""]))
        return cls(path, scores)

    def add(self, key: str, proportion: Proportion, kl: float) -> None:
        self.scores[key] = proportion, kl
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._line(key, proportion, kl) + "\n")

    @staticmethod
    def _line(key: str, proportion: Proportion, kl: float) -> str:
        return json.dumps([key, proportion.successes, proportion.n, kl])
