"""Which settings are measured how far: all of them on everything, or the better half on twice as much, again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from sea_lens.data.questions import Questions
from sea_lens.methods.measures import AnsweringShortly, Measure, Preferring
from sea_lens.methods.settings import UNEDITED
from sea_lens.methods.trials import FIRST_LOOK, WHOLE, Reached, Trials
from sea_lens.models.bridge import Model
from sea_lens.models.damage_limits import DamageLimits

MANY_SETTINGS, MANY_QUESTIONS = 64, 48
"""From so many settings and questions on, settings are halved: 16 of 64 are measured to the end, and none is dropped by
fewer than 12 questions."""
LEAST_KEPT = 8
"""Settings that go on at least."""


def halves(halving: bool | None, n_settings: int, n_questions: int) -> bool:
    """Whether settings are halved; see `tune`."""
    if halving is None:
        return n_settings >= MANY_SETTINGS and n_questions >= MANY_QUESTIONS
    return halving


def in_parts(questions: Questions, halved: bool) -> list[Questions]:
    """A quarter, another quarter and the other half of the questions, drawn with a seed of 0; or all, as they come."""
    if not halved or len(questions) < 4:
        return [questions]
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(0)).tolist()
    quarter, half = -(-len(questions) // 4), -(-len(questions) // 2)
    cuts = order[:quarter], order[quarter:half], order[half:]
    return [Questions(tuple(questions[k] for k in cut), questions.source) for cut in cuts]


def in_rounds(
    model: Model, measure: Measure, questions: Questions, halved: bool
) -> tuple[tuple[Questions, ...], list[int]]:
    """The questions in parts, and after how many parts settings are compared."""
    parts: list[Questions] = []
    rounds: list[int] = []
    for part in in_parts(questions, halved):
        parts += measure.pieces(model, part) if isinstance(measure, Preferring | AnsweringShortly) else [part]
        rounds.append(len(parts))
    return tuple(parts), rounds


@dataclass(frozen=True, eq=False)
class Race:
    """Measures settings as far as is worth while.

    Attributes:
        trials: What measures.
        rounds: After how many parts of the questions settings are compared; the last is all of them.
        sizes: Ranks by key: of settings that come out alike, the smaller goes on.
        limits: Of damage.
        reached: By key, how far it was measured.
    """

    trials: Trials
    rounds: Sequence[int]
    sizes: Mapping[str, int]
    limits: DamageLimits
    reached: dict[str, Reached] = field(default_factory=dict, init=False)

    def run(self, keys: Sequence[str]) -> None:
        """From the first part on; settings that are past the limit of KL for certain are asked nothing."""
        keys = list(dict.fromkeys(keys))
        if len(self.rounds) > 1:
            self.trials.look(keys, FIRST_LOOK)
            self.reached.update(dict.fromkeys(keys, Reached()))
        running = [key for key in keys if len(self.rounds) == 1 or not self.trials.is_past(key)]
        for n_parts in self.rounds[:-1]:
            self.trials.ask(running, n_parts)
            self.reached.update(dict.fromkeys(running, Reached(n_parts)))
            running = self._best(running)[: max(LEAST_KEPT, -(-len(running) // 2))]
        self.finish([*running, *(key for key in keys if key == UNEDITED)])

    def finish(self, keys: Sequence[str]) -> None:
        """Measures settings on everything."""
        self.trials.look(keys, WHOLE)
        self.trials.ask(keys, self.rounds[-1])
        self.reached.update(dict.fromkeys(keys, Reached(self.rounds[-1], WHOLE)))

    def is_finished(self, key: str) -> bool:
        """Whether a setting was measured on everything."""
        return self.reached[key].look == WHOLE

    def go_on(self) -> None:
        """Finishes the next best settings, where those that came to the end may not be chosen."""
        left = [key for key in self.reached if not self.is_finished(key) and not self.trials.is_past(key)]
        self.finish(self._best(left)[:LEAST_KEPT])

    def _best(self, keys: Sequence[str]) -> list[str]:
        """The best first: within the limit as far as is known, by score, by KL and by size."""
        found = {key: self.trials.of(key, self.reached[key]) for key in keys}
        return sorted(
            keys,
            key=lambda key: (
                not found[key].is_within(self.limits),
                -self.reached[key].parts,
                -found[key].score,
                found[key].kl,
                self.sizes[key],
            ),
        )
