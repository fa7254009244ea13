"""Methods that change facts: their settings, what they need of a model, and the editor that they make."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_fields
from sea_lens.data.facts import FactEdit, check_facts
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.methods.keyed_fit import Weighing, card_of_facts, keyed_edits, layers_for, subject_states
from sea_lens.methods.values import Search, Start, find_values, prefixes_of
from sea_lens.models.activations import Activations, Role
from sea_lens.models.bridge import Model, check_is_model
from sea_lens.models.down_projection import check_key_width
from sea_lens.models.hooks import attached_editors
from sea_lens.models.key_moments import KeyMoments, collect_key_moments
from sea_lens.models.neutral import neutral_texts
from sea_lens.models.sites import Site

OUT_OF_REACH = 3.0
"""Loss, in nats per token, above which the search for a value has failed."""


@dataclass(frozen=True)
class EditsFacts:
    """The settings that MEMIT and DiKE share.

    Attributes:
        layers: Which MLPs; None for five layers that end at a third of the depth. Published: 13 to 17 of GPT-2 XL's 48, 3 to
            8 of GPT-J's 28.
        moment_weight: What the second moment of neutral keys is multiplied by; None for the width of a key, at which a key
            like those of neutral text gets half of its residual. Published: 15,000 for GPT-J (keys of width 16,384), 20,000
            for GPT-2 XL (6,400).
        ridge: What is added to the moment's diagonal, as a share of the diagonal's mean; 0 as published. Of fewer tokens than
            keys are wide, the moment is singular without it.
        prefixes: Number of texts that prompts are put after as well, so that keys and values hold in context; 5 as published.
        steps: Passes of the search for a value, at most.
        learning_rate: Of Adam.
        weight_decay: Weight of `|delta| / |h|^2`.
        kl: Weight of the KL after the subject in `essence`.
        clamp: Longest delta, as a share of `|h|`.
        essence: A prompt of the subject that should stay as it is; an empty text for none.
    """

    layers: tuple[int, ...] | None = None
    moment_weight: float | None = None
    ridge: float = 0.01
    prefixes: int = 5
    steps: int = 25
    learning_rate: float = 0.5
    weight_decay: float = 0.5
    kl: float = 0.0625
    clamp: float = 0.75
    essence: str | None = "{} is a"

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ()
    why_not_compared: ClassVar[str] = "it edits facts: see sl.evaluate_knowledge"
    sites_to_collect: ClassVar[tuple[str, ...]] = ("mlp_out",)
    also_needs: ClassVar[str] = "facts (sl.FactEdit) and the model, whose gradients it takes"

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "layers", None if self.layers is None else tuple(self.layers))
        if (self.moment_weight is not None and self.moment_weight <= 0) or self.ridge < 0 or self.prefixes < 0:
            raise InputError(
                "moment_weight must be above zero, ridge and prefixes zero at least, and "
                f"{(self.moment_weight, self.ridge, self.prefixes)} were given."
            )
        _ = self.search  # which checks them

    @property
    def search(self) -> Search:
        """What of it is the search for a value."""
        return Search(self.steps, self.learning_rate, self.weight_decay, self.kl, self.clamp, self.essence)

    def fit(self, activations: Activations) -> Editor:
        """Not on activations.

        Raises:
            InputError: Always, with what to call.
        """
        name = type(self).__name__
        raise InputError(
            f"{name} changes facts by gradients through the model, which activations do not hold. Call "
            f"{name}().fit_facts(model, facts) with a list of sl.FactEdit, or `sea-lens fit {self.name} MODEL FACTS.json`."
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a fit of facts starts from.

    Attributes:
        model: The model, unedited.
        facts: The facts.
        layers: The layers to edit, ascending.
        prefixes: What prompts are put after; the first is empty.
        moments: Of keys.
        states: The last of the layers' output at the subjects.
        batch_size: Rows in one forward pass.
        progress: Whether to show progress bars.
    """

    model: Model
    facts: list[FactEdit]
    layers: list[int]
    prefixes: list[str]
    moments: KeyMoments
    states: Float[Tensor, "n d_model"]
    batch_size: int
    progress: bool

    @classmethod
    def of(
        cls,
        method: EditsFacts,
        model: Model,
        facts: Sequence[FactEdit],
        *,
        texts: Sequence[str] | None,
        moments: KeyMoments | None,
        batch_size: int,
        progress: bool,
    ) -> Prepared:
        """Looks at the model.

        Raises:
            InputError: If there are no facts, two contradict each other, or the model carries editors.
            ModelMismatchError: If the model is a mixture of experts, or lacks a layer.
        """
        check_is_model(model)
        given, layers = check_facts(facts), layers_for(model, method.layers)
        if attached_editors(model):
            raise InputError(
                "Facts are edited on the model as it is, and an editor is attached to it. Leave its with block."
            )
        for layer in layers:
            check_key_width(model, layer)
        neutral = neutral_texts(model) if texts is None else list(texts)
        known = moments
        if known is None:
            known = collect_key_moments(model, layers, neutral, batch_size=batch_size, progress=progress)
        prefixes, last = prefixes_of(model, neutral, method.prefixes), Site(layers[-1])
        states = subject_states(model, given, [last], prefixes[:1], batch_size)[last]
        return cls(model, given, layers, prefixes, known, states, batch_size, progress)

    def editor(self, method: EditsFacts, start: Start, weighing: Weighing) -> Editor:
        """Finds the values and the edits.

        Args:
            method: Whose settings.
            start: What the values are searched through.
            weighing: Of keys.
        """
        added, losses = find_values(
            self.model,
            self.facts,
            self.layers[-1],
            method.search,
            start,
            self.prefixes,
            batch_size=self.batch_size,
            progress=self.progress,
        )
        edits, reports = keyed_edits(
            self.model, self.facts, self.layers, self.states + added, self.prefixes, weighing, self.batch_size
        )
        far = [fact for fact, loss in zip(self.facts, losses.tolist(), strict=True) if loss > OUT_OF_REACH]
        if far:
            warnings.warn(
                f"For {len(far)} of {len(self.facts)} facts no vector at layer {self.layers[-1]} makes the model say the new "
                f"object, such as {far[0].target_new!r} after {far[0].text!r}: the subject is read elsewhere. Choose other "
                "layers, or a larger clamp.",
                SeaLensWarning,
                stacklevel=3,
            )
        last = max(reports)
        numbers = {**reports[last].numbers, "loss": float(losses.mean()), "worst_loss": float(losses.max())}
        reports[last] = replace(reports[last], numbers=numbers)
        return Editor(edits, card_of_facts(method, self.model, self.facts, reports))
