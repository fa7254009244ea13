"""Inference-time intervention: a shift at the attention heads that tell positives from negatives best.

Sources: Li et al., *Inference-Time Intervention* (NeurIPS 2023, arXiv 2306.03341), and its code honest_llama; the paper was
not read here. The code splits demonstrations once, where all of them are held out in turn here. It edits the last token of
each pass, from the prompt's last token on: `editor.at_positions(-1)`. Its other choice, the probe's direction, is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.methods.heads import head_width
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.models.activations import Activations, Role
from sea_lens.models.distributed import shows
from sea_lens.models.sites import Site
from sea_lens.wording import setting


@register_method("iti", source="Li et al., NeurIPS 2023, arXiv 2306.03341")
@dataclass(frozen=True)
class ITI:
    """Shifts the outputs of the attention heads in which a linear probe tells positives from negatives best.

    At each chosen head, `z' = z + alpha sigma theta`: theta is the unit vector from the mean negative to the mean positive
    output, and sigma the standard deviation of all outputs along it. Heads are chosen over all sites by the accuracy of a
    logistic probe on demonstrations that it was not fitted on.

    Example:
        >>> sides = {"positive": {3: torch.randn(50, 8) + 4}, "negative": {3: torch.randn(50, 8)}}
        >>> activations = sl.Activations.from_tensors(**sides, site="attn.hook_z")
        >>> editor = sl.ITI(n_heads=2, d_head=4).fit(activations)
        >>> editor.card.reports[editor.sites[0]].numbers  # accuracy of the probe, by head
        {'head 0': 1.0, 'head 1': 1.0}

    Attributes:
        n_heads: Heads to edit.
        alpha: How many standard deviations.
        d_head: Width of a head; None takes it from the model that the activations come from.
        folds: Parts that the demonstrations are held out in, one after the other.
        seed: Of the parts.
    """

    n_heads: int = 48
    alpha: float = 15.0
    d_head: int | None = None
    folds: int = 5
    seed: int = 42

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")
    chooses_sites: ClassVar[bool] = True
    settings_to_try: ClassVar[Mapping[str, Sequence[int]]] = {"n_heads": (48, 16, 4)}
    strengths_to_try: ClassVar[tuple[float, ...]] = (
        1.0,
        1 / 3,
        1 / 9,
        1 / 27,
    )  # alpha of 15 and less: 48 heads are few of many
    sites_to_collect: ClassVar[tuple[str, ...]] = ("attn.hook_z",)
    equation: ClassVar[str] = "z + s alpha sigma theta, at the heads that probes tell apart best"
    when_to_use: ClassVar[str] = "to edit few attention heads, and to see which of them know"

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("n_heads", 1), ("folds", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, and {getattr(self, name)} was given.")

    def fit(self, activations: Activations, *, progress: bool = True) -> Editor:
        """One shift per site with a chosen head, after a probe per head and fold.

        Args:
            activations: Of `attn.hook_z`, positive and negative.
            progress: Whether to show a progress bar once it takes longer than two seconds.

        Raises:
            InputError: If a side is missing, there are fewer than two demonstrations, or the width of a head is not known.

        Warns:
            SeaLensWarning: If there are fewer heads than are to be edited.
        """
        check_arguments(ITI.fit, locals())
        check_roles(self, activations)
        if activations.n < 2:
            raise InputError("ITI holds out demonstrations to choose heads, and needs two of them at least.")
        accuracies: dict[tuple[Site, int], float] = {}
        for site in tqdm(activations.sites, desc="probes", unit="site", disable=not shows(progress), delay=2):
            sides = self._heads(activations, site)
            accuracies |= {
                (site, head): self._accuracy(*outputs) for head, outputs in enumerate(zip(*sides, strict=True))
            }
        best = sorted(accuracies, key=lambda key: -accuracies[key])[: self.n_heads]
        if len(best) < self.n_heads:
            warnings.warn(
                f"{self.n_heads} heads were to be edited, and there are {len(best)}: all of them are. Give "
                f"{setting('n_heads')}.",
                SeaLensWarning,
                stacklevel=2,
            )
        edits, numbers = {}, {}
        for site in sorted({site for site, _ in best}):
            positive, negative = self._heads(activations, site)
            theta = torch.nn.functional.normalize(positive.mean(1) - negative.mean(1), dim=-1)
            along = (torch.cat([positive, negative], 1) * theta[:, None]).sum(-1)
            shifts = self.alpha * along.std(1, correction=0)[:, None] * theta
            chosen = sorted(head for where, head in best if where == site)
            others = [head for head in range(len(shifts)) if head not in chosen]
            shifts[others] = 0.0
            edits[site] = AffineEdit.of_shift(rearrange(shifts, "head width -> (head width)").float())
            numbers[site] = {f"head {head}": accuracies[site, head] for head in chosen}
        return fitted_editor(self, activations, edits, numbers)

    def _heads(self, activations: Activations, site: Site) -> list[Float[Tensor, "head row width"]]:
        """Positive and negative outputs by head, in float64."""
        d_head = head_width(activations, site, self.d_head)
        sides = (activations.positive[site], activations.negative[site])
        return [rearrange(side.double(), "row (head width) -> head row width", width=d_head) for side in sides]

    def _accuracy(self, positive: Float[Tensor, "row width"], negative: Float[Tensor, "row width"]) -> float:
        """Of a logistic probe, on demonstrations held out."""
        from sklearn.linear_model import LogisticRegression  # here, for it takes a second to import
        from sklearn.model_selection import KFold

        parts = KFold(min(self.folds, len(positive)), shuffle=True, random_state=self.seed)
        right = 0
        for fitted, held_out in parts.split(positive):
            x, y = _together(positive[fitted], negative[fitted])
            probe = LogisticRegression(solver="newton-cholesky").fit(x, y)
            x, y = _together(positive[held_out], negative[held_out])
            right += int((probe.predict(x) == y).sum())
        return right / (2 * len(positive))


def _together(positive: Tensor, negative: Tensor) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    return torch.cat([positive, negative]).numpy(), labels
