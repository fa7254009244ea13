"""What measurements of one call have in common: the unedited model is asked once about the texts of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sea_lens.cache import digest
from sea_lens.models.bridge import Model
from sea_lens.models.damage import DamageMeter
from sea_lens.models.divergence import UneditedPredictions
from sea_lens.models.hooks import foreign_hooks, model_facts
from sea_lens.models.unchanged import unchanged_weights


@dataclass
class _Shared:
    """The last meter, by kind of text the last predictions of the unedited model, and what else was found of it.

    They are told apart by the model's weights, the editors on it, the texts and the batch size.
    """

    meter: tuple[str, DamageMeter] | None = None
    predictions: dict[str, tuple[str, UneditedPredictions]] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    def same(self, meter: DamageMeter) -> DamageMeter:
        """A meter of the same model and texts that has measured before, or this one."""
        if foreign_hooks(meter.model):  # nobody knows what they do
            return meter
        facts = digest(id(meter.model), model_facts(meter.model), meter.batch_size)
        for kind, own in meter.predictions.items():
            key = digest(facts, own.rows)
            if self.predictions.get(kind, ("",))[0] != key:
                self.predictions[kind] = key, own
        known = {kind: self.predictions[kind] for kind in meter.predictions}
        key = digest([each for each, _ in known.values()], meter.asked, meter.limits)
        if self.meter is None or self.meter[0] != key:
            self.meter = key, replace(meter, predictions={kind: own for kind, (_, own) in known.items()})
        return self.meter[1]


T = TypeVar("T")
_SHARED: ContextVar[_Shared | None] = ContextVar("_SHARED", default=None)


@contextmanager
def sharing() -> Iterator[None]:
    """A block whose evaluations share what the unedited model predicts and says; nothing of it is kept afterwards.

    Nobody changes the weights inside: they are read once. A block inside another one shares with it.
    """
    if _SHARED.get() is not None:
        yield
        return
    token = _SHARED.set(_Shared())
    try:
        with unchanged_weights():
            yield
    finally:
        _SHARED.reset(token)


def shared_meter(meter: DamageMeter) -> DamageMeter:
    """Inside a block of `sharing`, the meter of an earlier evaluation of the same model on the same texts."""
    shared = _SHARED.get()
    return meter if shared is None else shared.same(meter)


def shared_answer(model: Model, name: str, ask: Callable[[], T]) -> T:
    """Inside a block of `sharing`, what was found of the unedited model before under the same name; else what is found now.

    Args:
        model: The model, with the editors that are on it.
        name: Of all else that the answer follows from.
        ask: Finds it.
    """
    shared = _SHARED.get()
    if shared is None or foreign_hooks(model):
        return ask()
    key = digest(id(model), model_facts(model), name)
    if key not in shared.found:
        shared.found[key] = ask()
    found: T = shared.found[key]
    return found
