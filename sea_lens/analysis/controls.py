"""Editors that an effect must beat: they move every token exactly as far as the real one does, in random directions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.editor import Editor
from sea_lens.edits import LowRankEdit
from sea_lens.errors import InputError


@dataclass(frozen=True, eq=False)
class RandomDirectionEdit:
    """Reads an activation as a fitted edit does, and writes to random directions instead of the fitted ones.

    What the fitted edit does along the activation itself is kept, and what it does across it is turned to the random
    directions at its full length. So each token moves exactly as far, and ends with exactly the norm, that it would under
    the fitted edit: the per-token form of TransformerLens's norm-matched placebo.

    Attributes:
        fitted: The edit to imitate.
        directions: Random orthonormal columns, as many as the fitted edit has, `[d_model, rank]`.
    """

    fitted: LowRankEdit
    directions: Float[Tensor, "d_model rank"]

    @property
    def d_model(self) -> int:
        """Width of the activations it edits."""
        return self.fitted.d_model

    @property
    def rank(self) -> int:
        """Number of directions it writes to."""
        return self.fitted.rank

    @property
    def strength(self) -> float:
        """The fitted edit's strength."""
        return self.fitted.strength

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return self.fitted.is_identity

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        return f"random directions, otherwise as {self.fitted.summary}"

    def scaled(self, factor: float) -> RandomDirectionEdit:
        """The control of the scaled edit."""
        return replace(self, fitted=self.fitted.scaled(factor))

    def __call__(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Edits activations of any leading shape; dtype and device are kept."""
        if self.is_identity:
            return h
        x = h.to(torch.promote_types(h.dtype, torch.float32))
        tiny = torch.finfo(x.dtype).tiny
        change = self.fitted(x) - x  # first, because it checks the width
        written = self.fitted.written(x) @ self.directions.to(x).T
        along = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(tiny)
        kept = (change * along).sum(-1, keepdim=True) * along
        across = written - (written * along).sum(-1, keepdim=True) * along
        across = across / torch.linalg.vector_norm(across, dim=-1, keepdim=True).clamp_min(tiny)
        length = torch.linalg.vector_norm(change - kept, dim=-1, keepdim=True)
        moved: Tensor = x + kept + length * across
        return moved.to(h.dtype)


def random_editor(editor: Editor, seed: int) -> Editor:
    """A norm-matched random control of an editor: same layers, ranks, positions, and displacement of every token.

    Args:
        editor: A linear editor.
        seed: Of the random directions.

    Raises:
        InputError: If an edit of the editor is not linear.
    """
    generator = torch.Generator().manual_seed(seed)
    edits = {}
    for layer, edit in editor.edits.items():
        if not isinstance(edit, LowRankEdit):
            raise InputError(
                f"Random controls are made of linear edits, and layer {layer} holds a {type(edit).__name__}."
            )
        gaussian = torch.randn(edit.d_model, edit.rank, generator=generator, dtype=torch.float64)
        directions, _ = torch.linalg.qr(gaussian)
        edits[layer] = RandomDirectionEdit(edit, directions.to(edit.directions.dtype))
    card = replace(
        editor.card,
        method=f"random control of {editor.card.method}",
        hyper_parameters={**editor.card.hyper_parameters, "seed": seed},
    )
    return replace(editor, edits=edits, card=card)
