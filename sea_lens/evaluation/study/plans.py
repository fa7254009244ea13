"""The plans of a study: methods, tokens and layers in a fixed order, at so much cost or at given strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from sea_lens.methods.ace import ACE
from sea_lens.methods.budget import own_site
from sea_lens.methods.gaussian_transport import GaussianTransport
from sea_lens.methods.mean_difference import MeanDifference
from sea_lens.methods.method import Method, settings_of
from sea_lens.methods.midsteer import MidSteer
from sea_lens.methods.sea.sea import SEA
from sea_lens.methods.settings import layer_sets
from sea_lens.models.activations import TokenChoice

STUDIED: tuple[Method, ...] = (
    MeanDifference(),
    ACE(),
    MidSteer(),
    SEA(0.5, center=True),
    GaussianTransport(),
    SEA(0.998, center=False),
)
"""What a study tries unasked, first what did best on two real models and a small one (docs/real_models.md)."""
TOKENS: tuple[TokenChoice, ...] = ("mean", "last")
SHARES = (0.8, 0.3)
"""Parts of what may be spent, in KL, that each is tried at."""
FREE_STRENGTHS = (1.0, 0.5, 2.0, 4.0)
"""What is tried where there is no limit on KL."""


@dataclass(frozen=True)
class Plan:
    """What is to be tried.

    Attributes:
        token: The token of the fit.
        method: The method with its settings.
        layers: A set of layers, as `tune` names them.
        share: The part of the limit of KL that it may cost; 0 where the strength is given.
        strength: The strength; 0 where it follows from the cost.
        shuffled: Twice the seed by which the sides of the demonstrations are shuffled; one more for the mirror image, with
            the shuffled sides exchanged. None where they are as they are.
    """

    token: TokenChoice
    method: Method
    layers: str
    share: float = 0.0
    strength: float = 0.0
    shuffled: int | None = None

    @property
    def setting(self) -> str:
        """Method and settings in words."""
        usual = {one.name: one.default for one in fields(self.method)}  # type: ignore[arg-type]
        told = [self.method.name]
        for name, value in settings_of(self.method).items():
            if value != usual[name] or name in ("explained_variance", "center"):
                spoken = name.replace("_", " ")
                is_word = isinstance(value, bool)
                told.append((spoken if value else f"no {spoken}") if is_word else f"{spoken} {value}")
        return ", ".join(told)

    @property
    def name(self) -> str:
        """What its numbers are kept under."""
        return f"{self.direction} | {self.share:g} | {self.strength:g}"

    @property
    def direction(self) -> str:
        """The same but for the strength."""
        own = f"{self.token} | {self.setting} | {self.layers}"
        return own if self.shuffled is None else f"{own} | shuffled {self.shuffled}"


def studied_layers(n_layers: int) -> list[str]:
    """Sets of layers in the order in which they are tried: single ones, a band, parts, all of them."""
    middle, third, late = n_layers // 2, n_layers // 3, 2 * n_layers // 3
    band = f"{third}-{late}"
    most, half = f"first:{max(1, 3 * n_layers // 4)}", f"last:{max(1, n_layers // 2)}"
    names = [f"{middle}", band, f"{third}", f"{late}", most, half, "all", f"{5 * n_layers // 6}"]
    found: dict[tuple[int, ...], str] = {}
    for name, layers in layer_sets(names, range(n_layers), n_layers).items():
        found.setdefault(tuple(layers), name)
    return list(found.values())


def plans(
    tokens: Sequence[TokenChoice],
    methods: Sequence[Method],
    layers: Sequence[str],
    shares: Sequence[float],
    strengths: Sequence[float],
) -> list[Plan]:
    """All that may be tried. The first ones differ from each other in everything, the last in what matters least."""
    levels = [(share, 0.0) for share in shares] or [(0.0, strength) for strength in strengths]
    ranked = [
        (place + row + token + 3 * level, level, token, place, Plan(tokens[token], method, name, *levels[level]))
        for place, method in enumerate(methods)
        for row, name in enumerate(layers if own_site(method) is None else ["all"])
        for token in range(len(tokens))
        for level in range(len(levels))
    ]
    return [plan for *_, plan in sorted(ranked, key=lambda each: each[:4])]
