"""What is measured of editors: damage at a first look and whole, and right answers part by part; each once, and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from tqdm.auto import tqdm

from sea_lens.cache import JSON, Store, digest
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import HookNeverFiredError
from sea_lens.methods.measures import AnsweringShortly, Measure, Preferring
from sea_lens.methods.settings import UNEDITED, Measured
from sea_lens.models.bridge import Model
from sea_lens.models.damage import Damage, DamageMeter
from sea_lens.models.distributed import alone, from_each, from_first, n_processes, share_of, shows, together
from sea_lens.models.shared_meters import shared_answer
from sea_lens.statistics import Proportion

FIRST_LOOK, WHOLE = "first look", "whole"
FEWER = 4
"""A first look is at every so-many-th text."""
AT_ONCE = 64
"""Editors whose damage is measured together: a run that is killed loses no more."""
Numbers = tuple[float, float, float]
Name = tuple[str, str]


@dataclass(frozen=True)
class Reached:
    """How far an editor was measured.

    Attributes:
        parts: Parts of the questions that it was asked.
        look: `FIRST_LOOK`, or `WHOLE` for the damage on all texts.
    """

    parts: int = 0
    look: str = FIRST_LOOK


@dataclass(frozen=True, eq=False)
class Trials:
    """Measures editors.

    Attributes:
        model: The model, unedited.
        measure: By what.
        parts: The questions, in the order in which they are asked.
        meters: Of a first look, and of the whole damage.
        store: Where to keep numbers as they come.
        progress: Whether to show progress bars.
        editors: By key.
    """

    model: Model
    measure: Measure
    parts: tuple[Questions, ...]
    meters: Mapping[str, DamageMeter]
    store: Store | None
    progress: bool
    editors: dict[str, Editor] = field(default_factory=dict)
    _known: dict[Name, Numbers] = field(default_factory=dict, init=False, repr=False)
    _damages: dict[str, Damage] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        rows = [] if self.store is None else self.store.rows()
        self._known.update(from_first(dict(filter(None, map(_kept, rows)))))
        self._known.update({(UNEDITED, look): (0.0, 1.0, 0.0) for look in self.meters})

    @cached_property
    def names(self) -> list[str]:
        """What numbers of each part are kept under."""
        return [f"score {digest(list(part))}" for part in self.parts]

    def unedited(self) -> Proportion:
        """The score of the unedited model, on all parts."""
        for part, name in zip(self.parts, self.names, strict=True):
            if (UNEDITED, name) not in self._known:
                self._keep((UNEDITED, name), _numbers(self._of_unedited(part, name)))
        whole = self.of(UNEDITED, Reached(len(self.parts), WHOLE))
        return Proportion(whole.right, whole.n)

    def _of_unedited(self, part: Questions, name: str) -> Proportion:
        if not isinstance(self.measure, Preferring | AnsweringShortly):  # nobody knows what a function looks at
            return self.measure(self.model, part)
        return shared_answer(self.model, f"{self.measure!r} {name}", lambda: self.measure(self.model, part))

    def of(self, key: str, reached: Reached) -> Measured:
        """What was measured of an editor so far."""
        asked = [self._known[key, name] for name in self.names[: reached.parts]]
        kl, ratio, _ = self._known[key, reached.look]
        return Measured(int(sum(right for right, _, _ in asked)), int(sum(n for _, n, _ in asked)), kl, ratio)

    def is_past(self, key: str) -> bool:
        """Whether a first look alone tells that an editor is past the limit of KL, whatever the other texts say."""
        return bool(self._known[key, FIRST_LOOK][2])

    def look(self, keys: Sequence[str], look: str) -> None:
        """Measures the damage of editors, those alike up to a layer together."""

        def each(share: Sequence[str]) -> Iterator[tuple[str, Numbers]]:
            for start in range(0, len(share), AT_ONCE):
                some = share[start : start + AT_ONCE]
                found = self.meters[look].measure_all([self.editors[key] for key in some])
                for key, damage in zip(some, found, strict=True):
                    if look == WHOLE:
                        self._damages[key] = damage
                    yield key, (damage.kl, damage.perplexity_ratio, float(self._is_certain(damage)))

        self._measure(keys, look, each, f"damage, {look}")

    def damage(self, key: str, editor: Editor, examples: int, max_new_tokens: int) -> Damage:
        """The whole damage of an editor with examples; its table is the one measured before, if this process did that.

        Args:
            key: The editor's.
            editor: It.
            examples: How many prompts both models continue.
            max_new_tokens: Length of a continuation.
        """
        meter = self.meters[WHOLE]
        if n_processes() > 1 or key not in self._damages:
            return meter.measure(editor, examples=examples, max_new_tokens=max_new_tokens)
        return replace(self._damages[key], examples=meter.examples(editor, examples, max_new_tokens))

    def ask(self, keys: Sequence[str], n_parts: int) -> None:
        """Measures the scores of editors on the first parts of the questions."""
        for part, name in zip(self.parts[:n_parts], self.names, strict=False):

            def each(share: Sequence[str], part: Questions = part, name: str = name) -> Iterator[tuple[str, Numbers]]:
                asked = []
                for key in share:
                    if math.isfinite(self._known.get((key, WHOLE), self._known.get((key, FIRST_LOOK), (0.0,)))[0]):
                        asked.append(key)
                    else:  # a model that predicts NaN answers nothing
                        yield key, (0.0, self._known[UNEDITED, name][1], 0.0)
                for key, found in self._scores(asked, part, name):
                    yield key, _numbers(found)

            self._measure(keys, name, each, f"editors, {len(part)} questions")

    def _scores(self, keys: Sequence[str], part: Questions, name: str) -> Iterator[tuple[str, Proportion]]:
        editors = [self.editors[key] for key in keys]
        shared = None
        if isinstance(self.measure, Preferring | AnsweringShortly) and editors:
            shared = self.measure.of_each(self.model, part, editors)
        if shared is not None:
            yield from ((keys[index], found) for index, found in shared)
            return
        for key, editor in zip(keys, editors, strict=True):
            try:
                with editor.attached(self.model):
                    found = self.measure(self.model, part)
            except HookNeverFiredError:  # of a condition that no question meets
                right, n, _ = self._known[UNEDITED, name]
                found = Proportion(int(right), int(n))
            yield key, found

    def _is_certain(self, damage: Damage) -> bool:
        """Whether the KL summed over these tokens makes a mean over all tokens that is past the limit: no KL is below 0."""
        all_tokens = {
            kind: sum(len(row) - 1 for row in plain.rows) for kind, plain in self.meters[WHOLE].predictions.items()
        }
        table = damage.table
        least = [
            kl * n / all_tokens[kind] for kind, kl, n in zip(table.index, table["kl"], table["tokens"], strict=True)
        ]
        return not max(least) <= damage.limits.kl

    def _measure(
        self,
        keys: Sequence[str],
        name: str,
        each: Callable[[Sequence[str]], Iterator[tuple[str, Numbers]]],
        called: str,
    ) -> None:
        """What is not known yet, split over processes."""
        waiting = [key for key in dict.fromkeys(keys) if (key, name) not in self._known]
        if not waiting:
            return
        own: list[tuple[float, ...]] = []
        share, bar = share_of(waiting), tqdm(total=len(waiting), desc=called, disable=not shows(self.progress))
        processes, numbers = n_processes(), {key: number for number, key in enumerate(waiting)}
        with together(), alone(), bar:  # a measure may itself be one that processes share
            for key, found in each(share):
                own.append((numbers[key], *found))
                self._keep((key, name), found)
                bar.update(processes)
        for there in from_each(torch.tensor(own, dtype=torch.float64).reshape(-1, 4)):
            self._known.update(
                {(waiting[int(row)], name): (one, two, three) for row, one, two, three in there.tolist()}
            )

    def _keep(self, name: Name, found: Numbers) -> None:
        self._known[name] = found
        if self.store is not None:
            self.store.append([*name, *map(float, found)])


def _numbers(found: Proportion) -> Numbers:
    return float(found.successes), float(found.n), 0.0


def _kept(row: JSON) -> tuple[Name, Numbers] | None:
    """What a line of kept numbers holds; None for half a line."""
    if not isinstance(row, list) or [type(value) for value in row] != [str, str, float, float, float]:
        return None
    key, name, one, two, three = row
    return (str(key), str(name)), (one, two, three)  # type: ignore[return-value]
