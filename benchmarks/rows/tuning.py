"""Settings compared: their editors, and what each scores and costs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from benchmarks import worlds
from benchmarks.timing import Row, in_turns, seconds
from sea_lens import (
    LEACE,
    SEA,
    Activations,
    DamageMeter,
    Demonstration,
    Demonstrations,
    Editor,
    Question,
    Questions,
    SeaLensWarning,
    collect_activations,
    grid,
    neutral_texts,
    tune,
)
from sea_lens.methods.tuning import Tuning
from sea_lens.models.answers import prefer_right

SHARES = (0.5, 0.8, 0.9, 0.99, 0.998, 0.9999)
SETS = ("all", "first:2", "first:4", "first:6", "last:6", "last:4", "last:2", "2-5")
STRENGTHS = (0.5, 1.0, 2.0)


def fit_settings_rows() -> Iterator[Row]:
    """Every editor of six explained variances at eight sets of layers; both ways with this library's decomposition."""
    d, n, n_layers = 256, 200, 8
    sides = [worlds.activations(n, d, seed) for seed in range(n_layers)]
    by_role = [{layer: side[role] for layer, side in enumerate(sides)} for role in range(3)]
    activations = Activations.from_tensors(neutral=by_role[0], positive=by_role[1], negative=by_role[2])
    sets = [range(8), range(2), range(4), range(6), range(6, 8), range(4, 8), range(2, 8), range(2, 6)]
    found: dict[str, list[Editor]] = {}

    def baseline() -> None:
        found["each"] = [
            SEA(share).fit(activations.at_sites(layers), progress=False) for share in SHARES for layers in sets
        ]

    def ours() -> None:
        fits = SEA.fit_all(grid(SEA, explained_variance=SHARES), activations, progress=False)
        found["once"] = [fitted.at_layers(layers) for fitted in fits for layers in sets]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)  # of settings that edit little
        times = in_turns(baseline, ours, 3, 1)
    same = all(one.fingerprint == other.fingerprint for one, other in zip(found["each"], found["once"], strict=True))
    what = f"fit 6 explained variances x 8 layer sets, {n_layers} layers, d={d}"
    yield Row(what, *times, 10, f"48 editors {'equal to the bit' if same else 'differ'}", same, (1, 3))


def tune_rows() -> Iterator[Row]:
    """SEA, centered SEA and LEACE at six settings each, eight sets of layers and three strengths, on 60 questions.

    The baseline is each setting by itself: one fit per method setting, the unedited model measured once, then attach, score,
    and damage on the same texts. A width of 128 is what 432 such settings can take in this table's time.
    """
    d, n_layers = 128, 8
    model = worlds.llama(d, n_layers)
    with torch.no_grad():
        for weights in model.original_model.parameters():
            if weights.ndim == 2:
                weights *= 4  # as it is made, a random Llama of this width does next to nothing in its blocks
    questions, demonstrations = _towns(60)
    activations = collect_activations(model, demonstrations, progress=False)
    sea = grid(SEA, explained_variance=SHARES), grid(SEA, center=[True], explained_variance=SHARES)
    erasing = grid(LEACE, shrinkage=[True, False], tolerance=[0.001, 0.01, 0.1])
    methods = [*sea[0], *sea[1], *erasing]
    texts = neutral_texts(model)[:4]
    prompts = [question.prompt for question in questions]
    found: dict[str, Tuning] = {}
    alone: dict[str, tuple[float, float, float]] = {}

    def baseline() -> None:
        meter = DamageMeter.of(model, prompts, texts, batch_size=64)
        for method in methods:
            fitted = method.fit(activations)
            for name, layers in _sets(n_layers).items():
                for strength in STRENGTHS:
                    editor = fitted.at_layers(layers).scaled(strength)
                    damage = meter.measure(editor)
                    with editor.attached(model):
                        right = prefer_right(model, questions, per_token=True, batch_size=64).right
                    alone[f"{method} {name} {strength}"] = right.share, damage.kl, damage.perplexity_ratio

    def ours(halving: bool | None) -> Tuning:
        options = {"layers": SETS, "strengths": STRENGTHS, "measure": "preference_per_token", "neutral_texts": texts}
        return tune(
            model, activations, questions, methods=methods, halving=halving, control=0, examples=0, progress=False,
            **options,  # type: ignore[arg-type]
        )  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = in_turns(baseline, lambda: found.update(halved=ours(None)), 1)
        whole = seconds(lambda: found.update(whole=ours(False)))
    words, exact = _compared(found["halved"], found["whole"], methods, alone)
    what = f"tune 3 methods x 6 settings x 8 layer sets x 3 strengths, 60 questions, {n_layers} layers, d={d}"
    yield Row(what, *times, 4, words, exact, against="each setting by itself")
    ours_whole = dict(zip(_names(found["whole"], methods), _numbers(found["whole"]), strict=True))
    apart = [name for name, each in alone.items() if ours_whole[name] != each]
    said = f"{len(alone) - len(apart)} of {len(alone)} rows (score, KL, perplexity) equal to the bit"
    yield Row(
        "the same, every setting on every question (halving=False)",
        times[0],
        whole,
        None,
        said,
        not apart,
        against="each setting by itself",
    )


def _compared(
    halved: Tuning, whole: Tuning, methods: list[object], alone: dict[str, tuple[float, float, float]]
) -> tuple[str, bool]:
    """The winner beside the same setting by itself, and beside the winner of all."""
    name, numbers = _names(halved, methods)[0], _numbers(halved)[0]
    first = halved.table.iloc[0]
    same, is_best = numbers == alone[name], first["editor"] == whole.table["editor"][0]
    best = whole.table.iloc[0]
    told = f"the winner's score {first['score']:.3g} and KL {first['kl']:.3g} are "
    told += f"{'' if same else 'not '}those of it by itself to the bit"
    if is_best:
        return f"{told}; it is the winner of the whole tuning", same
    inside = first["low"] <= best["score"] <= first["high"]
    where = "inside" if inside else "outside"
    told += f"; the winner of the whole tuning has {best['score']:.3g}, {where} its interval"
    return told, same and bool(inside)


def _towns(n: int) -> tuple[Questions, Demonstrations]:
    """Short questions, for bytes are tokens here; which of two kinds of answers is right alternates."""
    names = [f"{number:02d}" for number in range(n)]
    sides = [(f" By road {name}.", f" Not by {name}.") for name in names]
    sides = [side if number % 2 else side[::-1] for number, side in enumerate(sides)]
    questions = [
        Question(f"Town {name}?", (right,), (wrong,)) for name, (right, wrong) in zip(names, sides, strict=True)
    ]
    rows = [Demonstration(f"Inn {name}?", f" Ask {name}.", f" Pass {name}.", f" It is {name}.") for name in names]
    return Questions(tuple(questions), "benchmark"), Demonstrations(tuple(rows), "benchmark")


def _sets(n_layers: int) -> dict[str, list[int]]:
    half = {name: int(name[-1]) for name in SETS if ":" in name}
    sets = {
        name: list(range(n) if name.startswith("first") else range(n_layers - n, n_layers)) for name, n in half.items()
    }
    return {name: sets.get(name, list(range(n_layers)) if name == "all" else [2, 3, 4, 5]) for name in SETS}


def _names(tuning: Tuning, methods: list[object]) -> list[str]:
    views = tuning.editors.views
    return [
        f"{methods[view.fit]} {layers} {view.strength}"
        for view, layers in zip(views, tuning.table["layers"], strict=True)
    ]


def _numbers(tuning: Tuning) -> list[tuple[float, float, float]]:
    return list(tuning.table[["score", "kl", "perplexity_ratio"]].itertuples(index=False, name=None))
