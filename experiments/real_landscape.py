"""What makes a fit good: one factor at a time around a base setting, for SEA and for mean difference.

The base is fixed beforehand and not the best cell: one layer at half of the depth, the mean over the answer's tokens,
massive tokens spared, all demonstrations; mean difference at half strength, SEA centered with an explained variance of 0.9
at strength 1. Nothing is chosen here, so all demonstrations that are not scored are fitted on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import sea_lens as sl
from experiments.real_setup import Cells, Setup, changes, quietly
from sea_lens.models.activations import BySite

SHARES = (0.3, 0.5, 0.7, 0.9, 0.99, 0.998)
TAIL = " That is all I can say about it."

Point = tuple[str, Callable[[], sl.Editor]]
"""A value of a factor, and what makes its editor."""


@dataclass(frozen=True, eq=False)
class Landscape:
    """One method around its base.

    Attributes:
        setup: The model and its data; `demonstrations` are all that may be fitted on.
        method: `mean-difference` or `sea`.
        sizes: Numbers of demonstrations to fit on.
        tail: What negative answers end in where a difference in length is planted.
        times: How many times as strong the base is as on the real models.
    """

    setup: Setup
    method: str
    sizes: Sequence[int]
    tail: str = TAIL
    times: float = 1.0

    @property
    def n_layers(self) -> int:
        """Of the model."""
        return int(self.setup.model.cfg.n_layers)

    @property
    def middle(self) -> list[int]:
        """The base's layer."""
        return [self.n_layers // 2]

    @property
    def band(self) -> list[int]:
        """The band of layers."""
        return list(self.setup.places["band"])

    @property
    def base_strength(self) -> float:
        """Of the base."""
        return self.times * (0.5 if self.method == "mean-difference" else 1.0)

    def fitted(
        self,
        layers: Sequence[int] | None = None,
        strength: float | None = None,
        activations: Any = None,
        **settings: Any,
    ) -> sl.Editor:
        """The base's editor, but for what is given."""
        layers = self.middle if layers is None else layers
        activations = self.setup.activations() if activations is None else activations
        if self.method == "sea":
            settings = {"explained_variance": 0.9, "center": True, **settings}
            editor = sl.SEA(**settings).fit(activations.at_sites(layers))
        else:
            editor = sl.MeanDifference(**settings).fit(activations.at_sites(layers))
        return editor.scaled(self.base_strength if strength is None else strength)

    def factors(self) -> dict[str, list[Point]]:
        """Every factor with its values."""
        found: dict[str, list[Point]] = {
            "token of the fit": [
                (str(token), lambda token=token: self.fitted(activations=self.setup.activations(token)))  # type: ignore[misc]
                for token in ("mean", "last", "last_content", 0)
            ],
            "massive tokens": [
                ("spared", self.fitted),
                ("edited", lambda: self.fitted().at_positions("all")),
            ],
            "one layer": [
                (str(layer), lambda layer=layer: self.fitted([layer]))  # type: ignore[misc]
                for layer in self._depths()
            ],
            "how many layers": [
                ("one", self.fitted),
                ("band", lambda: self.fitted(self.band)),
                ("band, strength over its number", lambda: self._shared(self.band)),
                ("all", lambda: self.fitted(range(self.n_layers))),
                ("all, strength over their number", lambda: self._shared(range(self.n_layers))),
            ],
            "strength": [
                (f"{factor:g} of the base", lambda factor=factor: self.fitted(strength=factor * self.base_strength))  # type: ignore[misc]
                for factor in (0.5, 1.0, 2.0, 4.0, 8.0)
            ],
            "demonstrations": list(self._numbers()),
            "answers": list(self._answers()),
        }
        if self.method == "sea":
            found["center"] = [
                ("none", lambda: self.fitted(center=False)),
                ("neutral mean", self.fitted),
                ("none, band", lambda: self.fitted(self.band, center=False)),
                ("neutral mean, band", lambda: self.fitted(self.band)),
            ]
            found["explained variance"] = [
                (str(share), lambda share=share: self.fitted(explained_variance=share))  # type: ignore[misc]
                for share in SHARES
            ] + [("chosen on held-out demonstrations", self._by_held_out)]
        else:
            found["length of the shift"] = [
                ("as it is, one", self.fitted),
                ("0.15 of the norm, one", lambda: self.fitted(strength=0.15 * self.times, length="activations")),
                ("0.3 of the norm, one", lambda: self.fitted(strength=0.3 * self.times, length="activations")),
                ("as it is, band", lambda: self._shared(self.band)),
                (
                    "0.3 of the norm over their number, band",
                    lambda: self.fitted(self.band, 0.3 * self.times / len(self.band), length="activations"),
                ),
            ]
        return found

    def _depths(self) -> list[int]:
        return sorted({max(0, round(self.n_layers * part / 6) - 1) for part in range(1, 7)} | set(self.middle))

    def _shared(self, layers: Sequence[int]) -> sl.Editor:
        return self.fitted(layers, 2 * self.base_strength / len(layers))

    def _numbers(self) -> Iterator[Point]:
        n = len(self.setup.demonstrations)
        for size in self.sizes:
            for draw in range(2 if size < n else 1):
                order = torch.randperm(n, generator=torch.Generator().manual_seed(draw))[:size]
                yield f"{size}, draw {draw}", lambda order=order: self.fitted(activations=self._rows(order))  # type: ignore[misc]

    def _rows(self, rows: Any) -> Any:
        activations = self.setup.activations()
        sides = {
            role: BySite({site: tensor[rows] for site, tensor in side.items()})
            for role, side in activations.sides.items()
        }
        return replace(activations, sides=sides)

    def _answers(self) -> Iterator[Point]:
        rows = list(self.setup.demonstrations)
        endings = replace(
            self.setup.demonstrations, rows=tuple(replace(row, positive=row.positive.rstrip(" .")) for row in rows)
        )
        longer = replace(
            self.setup.demonstrations, rows=tuple(replace(row, negative=row.negative + self.tail) for row in rows)
        )
        for token in ("mean", "last"):
            for name, data in (
                ("alike", None),
                ("positives lack the full stop", endings),
                ("negatives are longer", longer),
            ):
                if (
                    name == "positives lack the full stop"
                    and endings.fingerprint == self.setup.demonstrations.fingerprint
                ):
                    continue
                yield (
                    f"{name}, {token}",
                    lambda token=token, data=data: self.fitted(activations=self.setup.activations(token, data=data)),  # type: ignore[misc]
                )

    def _by_held_out(self) -> sl.Editor:
        return self.fitted(explained_variance=self.share_by_held_out())

    def share_by_held_out(self) -> float:
        """The share whose edit, fitted on two thirds, brings negatives of the last third nearest to their positives."""
        n = len(self.setup.demonstrations)
        cut = 2 * n // 3
        fitting, held_out = self._rows(torch.arange(cut)), self._rows(torch.arange(cut, n)).at_sites(self.middle)
        site = held_out.sites[0]
        apart = {}
        for share in SHARES:
            edit = self.fitted(activations=fitting, explained_variance=share)[site]
            apart[share] = float((edit(held_out.negative[site]) - held_out.positive[site]).norm(dim=1).mean())
        return min(apart, key=lambda share: apart[share])

    def measure(self, points: Sequence[Point]) -> list[dict[str, Any]]:
        """By value: the change on the held-out questions beside one random editor, the KL, and how far a token moves."""
        setup = self.setup
        made = [(value, make()) for value, make in points]
        editors = [editor for _, editor in made]
        randoms = [sl.random_editor_like(editor, 0) for editor in editors]
        damages = setup.first_look.measure_all(editors)
        gaps = setup.gaps(setup.held_out, [*editors, *randoms])
        rows = []
        for place, ((value, editor), damage) in enumerate(zip(made, damages, strict=True)):
            moves = [report.displacement for report in editor.card.reports.values() if report.displacement is not None]
            rows.append(
                {
                    "value": value,
                    "n": len(setup.plain),
                    **changes(gaps[place], setup.plain),
                    "random": float((gaps[len(editors) + place] - setup.plain).mean()),
                    "kl": damage.kl,
                    "moved": max(moves, default=0.0),
                }
            )
        return rows


def run_landscape(
    cells: Cells,
    setup: Setup,
    where: str,
    facts: Mapping[str, Any],
    sizes: Sequence[int],
    tail: str = TAIL,
    times: float = 1.0,
) -> None:
    """Every factor of both methods, a cell each."""
    for method in ("mean-difference", "sea"):
        found = Landscape(setup, method, sizes, tail, times)
        for factor, points in found.factors().items():
            own = {**facts, "method": method, "factor": factor, "values": [value for value, _ in points]}
            with quietly():
                rows = cells.get(
                    f"{where}/landscape/{method}/{factor}",
                    own,
                    lambda found=found, points=points: found.measure(points),  # type: ignore[misc]
                )
            told = "; ".join(
                f"{row['value']} {row['change']:+.2f} (random {row['random']:+.2f}, KL {row['kl']:.2f})" for row in rows
            )
            print(f"{where} landscape {method}, {factor}: {told}", flush=True)


def of_world(name: str) -> tuple[Setup, list[int]]:
    """An embedded world as a setup, and the numbers of demonstrations to try."""
    if name == "organism":
        model, world = sl.load_organism()
        tuning, held_out = world.questions(world.fitting), world.questions()
    else:
        model, bias = sl.load_bias_organism()
        world, tuning, held_out = bias, bias.questions(bias.items("fitting")), bias.questions()  # type: ignore[assignment]
    rows = world.demonstrations().with_neutral_answers(model, 1, batch_size=240, progress=False)
    places = {"early": [0], "middle": [1], "late": [2], "band": [0, 1, 2]}
    setup = Setup(model, rows, tuning[::4], held_out[::2], None, places, (4, 20))
    return setup, [5, 10, 20, 34, len(rows)]


def of_all_but_held_out(setup: Setup, model: Any) -> Setup:
    """The setup with the tuning questions among what is fitted on: nothing is chosen."""
    tuned = sl.Demonstrations.from_lists(
        *zip(*[(row.prompt, row.right[0], row.wrong[0]) for row in setup.tuning], strict=True)
    )
    neutral = tuned.with_neutral_answers(model, 24, whole_sentences=True, folder=setup.folder, progress=False)
    rows = (*setup.demonstrations.rows, *neutral.with_answer_ending(".").rows)
    return replace(setup, demonstrations=replace(setup.demonstrations, rows=rows), _kept={})
