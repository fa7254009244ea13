"""The trials of a study: each plan fitted, scaled to the strength that costs so much and no more, and measured once."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.cache import Store
from sea_lens.data.demonstrations import Demonstrations
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import HookNeverFiredError, InputError, ModelMismatchError, SeaLensWarning
from sea_lens.evaluation.study.plans import Plan
from sea_lens.methods.budget import own_site, sites_to_collect
from sea_lens.methods.measures import Measure, Preferring
from sea_lens.methods.method import Method
from sea_lens.methods.settings import layer_sets, sites_of
from sea_lens.models.activations import Activations, TokenChoice
from sea_lens.models.bridge import Model
from sea_lens.models.collect import collect_activations
from sea_lens.models.damage import DamageMeter

LARGEST = 4.0
"""The largest strength that is looked for: far beyond a method's own, a fit on noise is blown up to the size of an effect."""
NEAR = (0.6, 1.15)
"""How near to a KL is near enough, relative to it."""
LOOKS = 6
"""Strengths that are measured at most, on the way to a KL."""


@dataclass(frozen=True)
class Trial:
    """What was found of a plan.

    Attributes:
        strength: The strength that it came to.
        kl: On every fourth prompt and neutral text, the higher of the two.
        perplexity_ratio: The same of perplexity.
        right: Questions that the edited model has right, of those it was asked.
        n: Questions that it was asked: none where it costs too much.
        score: What is chosen by: the mean probability of right against wrong, or the share that is right.
    """

    strength: float
    kl: float
    perplexity_ratio: float
    right: int = 0
    n: int = 0
    score: float = math.nan


@dataclass(frozen=True, eq=False)
class Trials:
    """Fits, scales and measures what is planned, each once.

    Attributes:
        model: The model, unedited.
        demonstrations: To fit on, with neutral answers where a method needs them.
        questions: To choose by.
        measure: By what.
        meter: Of damage, on some texts.
        max_kl: What an edit may cost; None for no limit.
        batch_size: Rows in one forward pass.
        store: Where numbers are kept as they come.
        folder: Where activations are kept.
        progress: Whether to show progress bars.
        pace: Seconds that a question took, each time that questions were asked.
        looks: Seconds that damage took, each time.
    """

    model: Model
    demonstrations: Demonstrations
    questions: Questions
    measure: Measure
    meter: DamageMeter
    max_kl: float | None
    batch_size: int
    store: Store | None = None
    folder: Path | None = None
    progress: bool = True
    pace: list[float] = field(default_factory=list, init=False, repr=False)
    looks: list[float] = field(default_factory=list, init=False, repr=False)
    _sides: dict[tuple[object, ...], Activations] = field(default_factory=dict, init=False, repr=False)
    _fits: dict[tuple[object, ...], Editor | str] = field(default_factory=dict, init=False, repr=False)
    _costs: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def known(self) -> dict[str, Trial]:
        """What an earlier run found, by the plan's name."""
        rows = [] if self.store is None else self.store.rows()
        found: dict[str, Trial] = {}
        for row in rows:
            if isinstance(row, dict) and set(row) == {"plan", *asdict(Trial(0.0, 0.0, 0.0))}:
                name = str(row.pop("plan"))
                found[name] = Trial(**row)  # type: ignore[arg-type]
        return found

    def activations(self, method: Method, token: TokenChoice) -> Activations:
        """What a method is fitted on; collected once for all methods of the same sites."""
        site = own_site(method)
        sites = sites_to_collect(method) if site is None else (site.hook_name,)
        key = (token, *sites)
        if key not in self._sides:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SeaLensWarning)  # the report says what was found in the data
                self._sides[key] = collect_activations(
                    self.model,
                    self.demonstrations,
                    None if site is None else [site.hook_name],
                    token,
                    site=sites if site is None else "resid_post",
                    batch_size=self.batch_size,
                    folder=None if self.folder is None else self.folder / "-".join(["activations", *map(str, key)]),
                    progress=self.progress,
                )
        return self._sides[key]

    def is_fitted(self, plan: Plan) -> bool:
        """Whether the fit of a plan is there."""
        return _fit_of(plan) in self._fits

    def direction(self, plan: Plan) -> Editor | str:
        """The editor of a plan at the method's own strength; or why there is none."""
        n_layers = self.model.cfg.n_layers
        sets = layer_sets([plan.layers], range(n_layers), n_layers)
        key = _fit_of(plan)
        if key not in self._fits:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SeaLensWarning)  # what an edit costs is measured
                try:
                    self._fits[key] = plan.method.fit(self._sides_of(plan, sets[plan.layers]))
                except (InputError, ModelMismatchError) as error:
                    self._fits[key] = str(error)
        fit = self._fits[key]
        if isinstance(fit, str):
            return fit
        views = sites_of(fit, sets)
        if plan.layers not in views:
            return f"It edits none of the layers {plan.layers}."
        sites = views[plan.layers]
        found = fit if sites is None else fit.at_layers(sites)
        return "It changes nothing." if found.is_identity else found

    def _sides_of(self, plan: Plan, layers: Sequence[int]) -> Activations:
        """What a plan is fitted on: all layers, for all plans of its method; or its own, where sides are shuffled."""
        activations = self.activations(plan.method, plan.token)
        if plan.shuffled is None:
            return activations
        if not getattr(plan.method, "chooses_sites", False):
            activations = activations.at_sites([site for site in activations.sites if site.layer in layers])
        shuffled = activations.shuffled(plan.shuffled // 2)
        return shuffled.swapped() if plan.shuffled % 2 else shuffled

    def editor(self, plan: Plan, trial: Trial) -> Editor:
        """The editor of a trial."""
        found = self.direction(plan)
        assert isinstance(found, Editor)
        return found.scaled(trial.strength)

    def cost(self, editor: Editor) -> tuple[float, float]:
        """KL and the ratio of perplexities on the meter's texts."""
        began = time.perf_counter()
        (found,) = self.meter.measure_all([editor])
        self.looks.append(time.perf_counter() - began)
        return found.kl, found.perplexity_ratio

    def strength_at(self, editor: Editor, kl: float, key: str) -> tuple[float, float, float]:
        """A strength that costs about `kl` and hardly more, with its KL and ratio of perplexities.

        Args:
            editor: At its own strength.
            kl: In nats per token.
            key: What costs that are known already are kept under.
        """
        known = self._costs.setdefault(key, [])
        for _ in range(LOOKS):
            below = max((one for one in known if one[1] <= NEAR[1] * kl), default=None)
            above = min((one for one in known if one[1] > NEAR[1] * kl), default=None)
            if below is not None and (below[1] >= NEAR[0] * kl or below[0] >= LARGEST):
                return below
            factor = _between(below, above, kl, 1 / len(editor.sites))
            known.append((factor, *self.cost(editor.scaled(factor))))
        return max((one for one in known if one[1] <= NEAR[1] * kl), default=min(known))

    def run(self, plan: Plan) -> Trial | str:
        """Tries a plan, or finds it in the folder; a reason where it cannot be tried."""
        if plan.name in self.known:
            return self.known[plan.name]
        editor = self.direction(plan)
        if isinstance(editor, str):
            return editor
        if plan.share and self.max_kl is not None:
            strength, kl, ratio = self.strength_at(editor, plan.share * self.max_kl, plan.direction)
        else:
            strength = plan.strength
            kl, ratio = self.cost(editor.scaled(strength))
        trial = Trial(strength, kl, ratio)
        if math.isfinite(kl) and (self.max_kl is None or kl <= self.max_kl):
            right, score = self.score(editor.scaled(strength))
            trial = Trial(strength, kl, ratio, right, len(self.questions), score)
        self.known[plan.name] = trial
        if self.store is not None:
            self.store.append({"plan": plan.name, **asdict(trial)})
        return trial

    def score(self, editor: Editor | None) -> tuple[int, float]:
        """How many questions are right under an editor, and what is chosen by."""
        began = time.perf_counter()
        found = self._score(editor)
        self.pace.append((time.perf_counter() - began) / len(self.questions))
        return found

    def _score(self, editor: Editor | None) -> tuple[int, float]:
        margins = self.margins(self.questions, editor)
        if margins is not None:
            return int((margins > 0).sum()), float(margins.sigmoid().mean())
        if editor is None:
            found = self.measure(self.model, self.questions)
        else:
            try:
                with editor.attached(self.model):
                    found = self.measure(self.model, self.questions)
            except HookNeverFiredError:  # of a condition that no question meets
                found = self.measure(self.model, self.questions)
        return found.successes, found.share

    def margins(self, questions: Questions, editor: Editor | None) -> Float[Tensor, " questions"] | None:
        """Right less wrong by question, in nats; None where answers are compared."""
        if not isinstance(self.measure, Preferring):
            return None
        with torch.no_grad():
            ((_, margins),) = self.measure.margins_of_each(self.model, questions, [editor])
        return margins


def _fit_of(plan: Plan) -> tuple[object, ...]:
    """What the fit is kept under: one for all layers, but for shuffled sides, which are fitted where they are used."""
    return (plan.token, plan.setting) if plan.shuffled is None else (plan.direction,)


def _between(below: tuple[float, ...] | None, above: tuple[float, ...] | None, kl: float, start: float) -> float:
    """The next strength to look at: KL grows with about the square of a small one, and many layers add up."""
    if below is None and above is None:
        return start
    if below is None:
        assert above is not None
        return above[0] * (max(math.sqrt(kl / above[1]), 1 / 16) if math.isfinite(above[1]) else 1 / 8)
    if above is None:
        return min(LARGEST, below[0] * min(8.0, max(1.3, math.sqrt(kl / below[1]) if below[1] > 0 else 8.0)))
    if below[1] > 0 and math.isfinite(above[1]):
        slope = math.log(above[1] / below[1]) / math.log(above[0] / below[0])
        step = math.log(0.9 * kl / below[1]) / slope / math.log(above[0] / below[0])
        return float(below[0] * (above[0] / below[0]) ** min(max(step, 0.15), 0.85))
    return (below[0] + above[0]) / 2
