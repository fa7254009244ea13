"""Every variant of SEA that the paper compares, on the embedded model.

    python -m experiments.worlds.variants           # the table, on held-out facts, at the settings in variants.json
    python -m experiments.worlds.variants --tune    # chooses those settings anew, on the fitting facts; ten minutes

Each variant is tuned by itself over explained variance, layers, centering, strength and (where it has one) the scale of its
feature map. Nothing in the choice has seen a held-out fact.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean

import pandas as pd
import torch
from tqdm.auto import tqdm

from sea_lens.cache import write_text
from sea_lens.editing.controls import random_editor_like
from sea_lens.editing.editor import Editor
from sea_lens.errors import SeaLensWarning
from sea_lens.methods.sea.feature_space import ELU, FeatureMap, SquaredExponential, Tanh
from sea_lens.methods.sea.published import read_published_editor
from sea_lens.methods.sea.sea import SEA, sea_of
from sea_lens.methods.sea.spectral import CrossCovariance
from sea_lens.methods.tune import EXPLAINED_VARIANCES
from sea_lens.methods.tune import tune as tune_methods
from sea_lens.methods.tuning import Tuning
from sea_lens.models.activations import Activations, TokenChoice
from sea_lens.models.bridge import Model
from sea_lens.models.collect import collect_activations
from sea_lens.models.divergence import kl_to_unedited
from sea_lens.worlds.demo import STRENGTHS, answers
from sea_lens.worlds.facts import World
from sea_lens.worlds.load import load_organism

SETTINGS = Path(__file__).parent / "variants.json"


@dataclass(frozen=True)
class Setting:
    """The tuned settings of a variant.

    Attributes:
        explained_variance: As for `SEA`.
        center: As for `SEA`.
        strength: The editor's strength.
        layers: The layers that it edits.
        scale: The scale of the feature map, where there is one.
        mean: Truthfulness on the fitting facts, averaged over every setting that was tried.
    """

    explained_variance: float
    center: bool
    strength: float
    layers: tuple[int, ...]
    scale: float | None = None
    mean: float | None = None


@dataclass(frozen=True)
class Variant:
    """What a variant does differently from linear SEA.

    Attributes:
        rule: Projections, merge and merge space.
        feature_map: The kind of its feature map, made with each of the scales in turn.
        token: The token whose activations it is fitted on.
        ending: Put after every answer.
        site: Where activations are collected and edited.
    """

    rule: SEA = field(default_factory=SEA)
    feature_map: type[SquaredExponential | Tanh | ELU] | None = None
    token: TokenChoice = "last"
    ending: str = ""
    site: str = "resid_post"

    def maps(self, scales: Sequence[float | None]) -> list[FeatureMap | None]:
        """Its feature map at each scale; none for a linear variant."""
        return [None if self.feature_map is None or scale is None else self.feature_map(scale) for scale in scales]

    def collect(self, model: Model, world: World) -> Activations:
        """Activations of the fitting facts."""
        data = world.demonstrations().with_neutral_answers(model, max_new_tokens=1, batch_size=64, progress=False)
        if self.ending:
            data = data.with_answer_ending(self.ending)
        return collect_activations(model, data, token=self.token, site=self.site, batch_size=128, progress=False)

    def fit(self, activations: Activations, setting: Setting) -> Editor:
        """Its editor at a setting."""
        (feature_map,) = self.maps([setting.scale])
        shown = {"explained_variance": setting.explained_variance, "center": setting.center, "feature_map": feature_map}
        return replace(self.rule, **shown).fit(activations.at_sites(setting.layers)).scaled(setting.strength)


LINEAR = "linear"
VARIANTS = {
    LINEAR: Variant(),
    "squared exponential": Variant(feature_map=SquaredExponential),
    "squared exponential, merged after the inverse": Variant(SEA(merge_space="activations"), SquaredExponential),
    "tanh": Variant(feature_map=Tanh),
    "tanh, merged after the inverse": Variant(SEA(merge_space="activations"), Tanh),
    "ELU": Variant(feature_map=ELU),
    "ELU, merged after the inverse": Variant(SEA(merge_space="activations"), ELU),
    "positive projection only": Variant(SEA(projections="positive")),
    "negative projection only": Variant(SEA(projections="negative")),
    "average instead of norm merge": Variant(SEA(merge="average")),
    "sum, norm not restored": Variant(SEA(merge="sum")),
    "last token, a full stop": Variant(ending=" ."),
    "mean of answer tokens": Variant(ending=" .", token="mean"),
    "mlp_out": Variant(site="mlp_out"),
}
SCALES = (1.0, 2.0, 4.0)
"""Scales of feature maps, in units of the median absolute activation of a layer."""


def tune(model: Model, world: World, variant: Variant) -> Tuning:
    """Tries settings of a variant on the fitting facts."""
    facts = world.fitting
    methods = [
        replace(variant.rule, feature_map=feature_map, center=center, explained_variance=share)
        for feature_map in variant.maps(SCALES if variant.feature_map is not None else [None])
        for center in (False, True)
        for share in EXPLAINED_VARIANCES
    ]
    return tune_methods(
        model,
        variant.collect(model, world),
        world.questions(facts),
        methods=methods,
        strengths=STRENGTHS,
        max_kl=None,  # the tables are of the highest score, whatever it costs
        halving=False,  # as the tables were made
        max_new_tokens=1,
        batch_size=len(facts),
    )


def best_setting(tuning: Tuning) -> Setting:
    """The first row of a tuning as a setting."""
    row, feature_map = tuning.table.iloc[0], sea_of(tuning.best).feature_map
    scales = [] if feature_map is None else list(vars(feature_map).values())
    return Setting(
        float(row["explained_variance"]),
        bool(row["center"]),
        float(row["strength"]),
        tuple(tuning.best.layers),
        float(str(scales[0])) if scales else None,
        round(float(tuning.table["score"].mean()), 4),
    )


def published_editor(activations: Activations, setting: Setting) -> Editor:
    """What the authors' code does: projections of the residual stream applied to MLP outputs, norms per feature.

    Their training and inference code are followed to the dense matrices that they save; activations are uncentered.
    """
    n_layers = activations.layers[-1] + 1
    identity = torch.eye(activations.width, dtype=torch.float64)
    positive, negative = (torch.zeros(n_layers, activations.width, activations.width) for _ in range(2))
    for layer in activations.layers:
        neutral = activations.neutral[layer]
        kept, removed = (
            CrossCovariance.of(neutral, side[layer]).explaining(setting.explained_variance).basis
            for side in (activations.positive, activations.negative)
        )
        positive[layer], negative[layer] = (kept @ kept.T).float(), (identity - removed @ removed.T).float()
    return read_published_editor(positive, negative, setting.layers, normalization="feature")


def tune_published(model: Model, world: World) -> Setting:
    """The published code's best explained variance and layers on the fitting facts."""
    activations, depth = Variant().collect(model, world), model.cfg.n_layers
    ranges = [range(n) for n in range(1, depth + 1)] + [range(depth - n, depth) for n in range(1, depth)]
    settings = [
        Setting(explained_variance, False, 1.0, tuple(layers))
        for explained_variance in EXPLAINED_VARIANCES
        for layers in ranges
    ]
    scores = [
        answers(model, world, world.fitting, published_editor(activations, setting)).right.share
        for setting in tqdm(settings, desc="as published")
    ]
    best = settings[max(range(len(settings)), key=scores.__getitem__)]
    return replace(best, mean=round(fmean(scores), 4))


PUBLISHED = "as the published code edits"


def compare(model: Model, world: World, n_random: int = 10, seed: int = 0, progress: bool = True) -> pd.DataFrame:
    """Every variant on the held-out facts, at the setting chosen for it on the fitting facts.

    Args:
        model: The embedded model.
        world: Its world.
        n_random: Random editors per variant.
        seed: Of the first random editor; the next ones follow.
        progress: Whether to show a progress bar.

    Returns:
        One row per variant: `truthful` with its 95 % interval `low` to `high`, `myths` (share of answers that are the myth),
        `random` (mean truthfulness under random editors that move every token as far), `random low` and `random high`,
        `KL` (nats per token, on documents tagged as truthful), `at linear setting` (truthful at the setting of linear SEA,
        the paper's way of ablating), `mean of settings` (over all that were tried, on the fitting facts), and the `setting`.
    """
    settings = read_settings()
    linear, texts = settings[LINEAR], world.neutral_texts(world.held_out)

    def truthful(editor: Editor | None) -> tuple[dict[str, object], float]:
        found = answers(model, world, world.held_out, editor)
        low, high = found.right.interval()
        myths = fmean(answer == fact.myth for answer, fact in zip(found.table["answer"], world.held_out, strict=True))
        return {"truthful": found.right.share, "low": low, "high": high, "myths": myths}, found.right.share

    rows: dict[str, dict[str, object]] = {"plain": {**truthful(None)[0], "KL": 0.0}}

    def add(name: str, editor: Editor, at_linears: Editor, setting: Setting) -> None:
        random = [truthful(random_editor_like(editor, seed + index))[1] for index in range(n_random)]
        rows[name] = {
            **truthful(editor)[0],
            "random": fmean(random),
            "random low": min(random),
            "random high": max(random),
            "KL": kl_to_unedited(model, texts, editor, batch_size=len(texts)),
            "at linear setting": truthful(at_linears)[1],
            "mean of settings": setting.mean,
            "setting": _words(setting),
        }

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        collected: dict[tuple[TokenChoice, str, str], Activations] = {}
        for name, variant in tqdm(VARIANTS.items(), desc="variants", disable=not progress):
            source, setting = (variant.token, variant.ending, variant.site), settings[name]
            if source not in collected:
                collected[source] = variant.collect(model, world)
            at_linears = replace(linear, scale=setting.scale)
            own, ablated = (variant.fit(collected[source], chosen) for chosen in (setting, at_linears))
            add(name, own, ablated, setting)
        activations = collected["last", "", "resid_post"]
        backwards = Variant(SEA(projections="reversed")).fit(activations, linear)
        add("reversed projections", backwards, backwards, replace(linear, mean=None))
        editor = published_editor(activations, settings[PUBLISHED])
        add(PUBLISHED, editor, published_editor(activations, linear), settings[PUBLISHED])
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")


def read_settings() -> dict[str, Setting]:
    """The settings that `--tune` chose, by variant."""
    rows = json.loads(SETTINGS.read_text(encoding="utf-8"))
    return {name: Setting(**{**row, "layers": tuple(row["layers"])}) for name, row in rows.items()}


def _words(setting: Setting) -> str:
    scale = "" if setting.scale is None else f"scale {setting.scale:g}, "
    centering = "centered" if setting.center else "uncentered"
    layers = ",".join(map(str, setting.layers))
    return f"{scale}{centering}, K = {setting.explained_variance:g}, layers {layers}, strength {setting.strength:g}"


def markdown(table: pd.DataFrame) -> str:
    """The table of `compare` for a document."""
    columns = (
        "variant, truthful [95 %], myths, random editors, KL, at linear SEA's setting, mean of settings, its setting"
    )
    heads = columns.split(", ")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, row in table.iterrows():
        interval = f"{row['truthful']:.1%} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        cells = [str(name), interval, f"{row['myths']:.1%}", "", f"{row['KL']:.3g}", "", "", ""]
        if isinstance(row["setting"], str):
            cells[3] = f"{row['random']:.1%} ({100 * row['random low']:.1f} to {100 * row['random high']:.1f})"
            mean = "" if pd.isna(row["mean of settings"]) else f"{row['mean of settings']:.1%}"
            cells[5:] = [f"{row['at linear setting']:.1%}", mean, row["setting"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Tunes if asked to, then prints the table as Markdown."""
    warnings.simplefilter("ignore", SeaLensWarning)
    model, world = load_organism()
    if "--tune" in sys.argv[1:]:
        chosen = {PUBLISHED: tune_published(model, world)}
        for name, variant in VARIANTS.items():
            print(name, file=sys.stderr)
            chosen[name] = best_setting(tune(model, world, variant))
            lines = [f"{json.dumps(key)}: {json.dumps(asdict(setting))}" for key, setting in chosen.items()]
            write_text(SETTINGS, "{\n" + ",\n".join(lines) + "\n}\n")
    print(markdown(compare(model, world)))


if __name__ == "__main__":
    main()
