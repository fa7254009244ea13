"""The result of a tuning: a table of settings, and their editors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd

from sea_lens.cache import write_text
from sea_lens.editing.editor import Editor
from sea_lens.errors import FileFormatError, InputError, reason_of
from sea_lens.models.damage import Damage
from sea_lens.results import WIDEST_CELL, WIDTH, Result, readable
from sea_lens.statistics import Proportion
from sea_lens.wording import either

SHOWN = 10
"""Rows that a repr shows."""


@dataclass(frozen=True)
class View:
    """A setting: which fit, which of its sites (all for None), and how strong."""

    fit: int
    sites: tuple[str, ...] | None
    strength: float


@dataclass(frozen=True, eq=False)
class TunedEditors(Sequence[Editor]):
    """The editors of a tuning, in the order of its table: views of a few fits, made when asked for.

    Attributes:
        fits: What was fitted, one editor per method.
        views: One per row.
    """

    fits: tuple[Editor, ...]
    views: tuple[View, ...]

    def __len__(self) -> int:
        return len(self.views)

    @overload
    def __getitem__(self, index: int) -> Editor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Editor]: ...

    def __getitem__(self, index: int | slice) -> Editor | list[Editor]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        view = self.views[index]
        fit = self.fits[view.fit]
        return (fit if view.sites is None else fit.at_layers(view.sites)).scaled(view.strength)

    def save_pretrained(self, save_directory: Path) -> None:
        """Writes the fits as editors, and the views."""
        for number, fit in enumerate(self.fits):
            fit.save_pretrained(save_directory / f"fit-{number}")
        write_text(save_directory / "views.json", json.dumps([list(vars(view).values()) for view in self.views]) + "\n")

    @classmethod
    def from_pretrained(cls, save_directory: Path) -> TunedEditors:
        """What `save_pretrained` wrote.

        Raises:
            FileFormatError: If a file is missing or damaged.
        """
        path = Path(save_directory) / "views.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            views = tuple(
                View(fit, None if sites is None else tuple(sites), strength) for fit, sites, strength in found
            )
            n_fits = 1 + max(view.fit for view in views)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise FileFormatError(f"{path} is missing or damaged: {reason_of(error)}. Tune again.") from error
        return cls(tuple(Editor.from_pretrained(path.parent / f"fit-{number}") for number in range(n_fits)), views)


@dataclass(frozen=True, eq=False, repr=False)
class Tuning(Result):
    """Methods and settings, and what each does, best first.

    Attributes:
        table: One row per setting: `method`, those of its settings that differ from the others' or from their defaults,
            `layers`, `strength`, `ranks` (site by site), `clamped` (the largest share of clamped entries at any site; only
            with feature maps), `score` with its 95 % Wilson interval `low` to `high`, `n` (questions that it is of), `kl`
            (mean over tokens of KL(unedited || edited) in nats, on prompts or neutral text, where it is higher),
            `perplexity_ratio` (edited over unedited, where it is higher), `allowed` (whether the damage is within the limit;
            the others come last), and `editor`, a digest: equal ones are the same edit, measured once. Where settings were
            halved, those that stopped early come below the allowed ones of full `n`; their numbers are of the questions, and
            of every fourth text, that they saw. One that a first look at its damage ruled out has `n` 0 and no score.
        editors: The editor of each row.
        unedited_counts: Right answers of the unedited model, and questions.
        max_kl: The limit, in nats per token; None for none.
        controls: One row per random editor that moves every token as far as the best: its `score` with its interval, `kl` and
            `perplexity_ratio`.
        damage: What the best costs, with answers unedited and edited; None where no setting is allowed.

    Example:
        >>> methods = sl.grid(sl.SEA, center=[True], explained_variance=[0.5, 0.9])
        >>> tuning = sl.tune(model, activations, fitting, methods=methods, layers=["all"], max_new_tokens=1)
        >>> tuning.best.card.settings["explained_variance"]
        0.5
    """

    table: pd.DataFrame
    editors: TunedEditors
    unedited_counts: Sequence[int]
    max_kl: float | None = None
    controls: pd.DataFrame = field(default_factory=pd.DataFrame)
    damage: Damage | None = None

    @property
    def unedited(self) -> Proportion:
        """The score of the unedited model."""
        return Proportion(*self.unedited_counts)

    @property
    def n_allowed(self) -> int:
        """How many settings are within the limit of damage."""
        return int(self.table["allowed"].sum())

    @property
    def stopped(self) -> dict[int, int]:
        """How many settings were stopped early, by the number of questions that they saw."""
        seen = Counter(map(int, self.table["n"])) if "n" in self.table else Counter[int]()
        return {n: seen[n] for n in sorted(seen) if n < self.unedited.n}

    @property
    def why_none(self) -> str:
        """Why no setting is chosen, and what to do."""
        gentlest = self.table.iloc[int(self.table["kl"].to_numpy().argmin())]
        return (
            f"all {len(self.table)} settings break the model (limit {self.max_kl} nats per token; the gentlest has KL "
            f"{gentlest['kl']:.3g}: {describe_setting(gentlest)}). Try smaller strengths or fewer "
            f"layers{either(', or see Editor.scaled_to', '')}."
        )

    @property
    def best(self) -> Editor:
        """The allowed editor of the highest score; of equals, the one of the lowest KL, and then of the lowest ranks.

        Its score is the best of many, so it flatters: measure the editor on other questions before believing it.

        Raises:
            InputError: If no setting is allowed.
        """
        if not self.n_allowed:
            raise InputError(f"There is no best setting: {self.why_none}")
        return self.editors[0]

    def __repr__(self) -> str:
        table = readable(self.table.head(SHOWN).drop(columns="editor"))
        lines = [self._head(), table.to_string(index=False, line_width=WIDTH)]
        lines += [] if self.controls.empty else [self.of_controls]
        if self.damage is not None and not self.damage.examples.empty:
            examples = self.damage.examples[["prompt", "unedited", "edited"]].head(3)
            lines.append(readable(examples).to_string(index=False, line_width=WIDTH, max_colwidth=WIDEST_CELL))
        return "\n".join(lines)

    @property
    def of_controls(self) -> str:
        """What random editors score, in a line."""
        scores, kls = self.controls["score"], self.controls["kl"]
        if len(self.controls) == 1:
            return f"1 random editor like the best: score {scores.iloc[0]:.1%}, KL {kls.iloc[0]:.3g}"
        return (
            f"{len(self.controls)} random editors like the best: score {scores.min():.1%} to {scores.max():.1%}, "
            f"KL {kls.min():.3g} to {kls.max():.3g}"
        )

    def _head(self) -> str:
        row, past = self.table.iloc[0], len(self.table) - self.n_allowed
        broken = f", {past} past the limit of damage" if past else ""
        early = ", ".join(f"{count} stopped after {n} questions" for n, count in self.stopped.items())
        head = f"Tuning({len(self.table)} settings{broken}{', ' if early else ''}{early}; unedited {self.unedited}; "
        if not self.n_allowed:
            return f"{head}none is chosen)"
        return (
            f"{head}best {row['score']:.1%} "
            f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}], KL {row['kl']:.3g}: {describe_setting(row)})"
        )


def describe_setting(row: Mapping[str, Any] | pd.Series) -> str:
    """A row of a tuning's table in words."""
    names = list(row.index if isinstance(row, pd.Series) else row)
    words = [str(row["method"])]
    for name in names[1 : names.index("layers")]:
        value, spoken = row[name], name.replace("_", " ")
        if isinstance(value, bool | np.bool_):
            words.append(spoken if value else f"no {spoken}")
        elif isinstance(value, str | tuple) or not pd.isna(value):
            words.append(f"{spoken} {value}")
    return f"{', '.join(words)}, layers {row['layers']}, strength {row['strength']:g}, ranks {row['ranks']}"
