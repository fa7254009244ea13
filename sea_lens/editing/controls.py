"""Editors that an effect must beat: they move every token exactly as far as the real one does, in random directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.arguments import check_arguments
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import Edit, given_key, is_stepwise, key_width_of
from sea_lens.editing.registry import register_edit, register_value
from sea_lens.errors import InputError


@register_value("random rotation")
@dataclass(frozen=True, eq=False)
class RandomRotation:
    """A random rotation of activations, in memory and time that hardly grow with width.

    Random signs, then a circular convolution that only turns phases, then random signs again. Every one of the three is
    orthogonal, and a fixed vector comes out in a direction that is all but uniformly random.

    Attributes:
        signs: Before and after, `[2, width]`.
        angles: Of the phases, in radians, `[width // 2 + 1]`.
    """

    signs: Float[Tensor, "two width"]
    angles: Float[Tensor, " n_frequencies"]

    @classmethod
    def of(cls, width: int, generator: torch.Generator) -> RandomRotation:
        """Draws one."""
        signs = 2.0 * torch.randint(2, (2, width), generator=generator, dtype=torch.float64) - 1
        angles = 2 * math.pi * torch.rand(width // 2 + 1, generator=generator, dtype=torch.float64)
        ends = [0, -1] if width % 2 == 0 else [0]
        angles[ends] = math.pi * (angles[ends] > math.pi).double()
        return cls(signs, angles)

    def __call__(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Turns float32 or float64 activations of any leading shape."""
        before, after = self.signs.to(x)
        phases = torch.polar(torch.ones_like(self.angles), self.angles)
        phases = phases.to(x.device, torch.complex128 if x.dtype == torch.float64 else torch.complex64)
        turned: Tensor = torch.fft.irfft(torch.fft.rfft(x * before) * phases, n=x.shape[-1]) * after
        return turned


@register_edit("random directions")
@dataclass(frozen=True, eq=False)
class RandomDirectionEdit:
    """Moves an activation as far as a fitted edit does, in random directions instead of the fitted ones.

    What the fitted edit does along the activation itself is kept, and what it does across it is turned by a random
    rotation, the same for all activations. So each token moves exactly as far, and ends with exactly the norm, that it would
    under the fitted edit: the per-token form of TransformerLens's norm-matched placebo.

    Attributes:
        fitted: The edit to imitate.
        rotation: The random rotation.
    """

    fitted: Edit
    rotation: RandomRotation

    kind: ClassVar[str]
    directions: ClassVar[None] = None
    gains: ClassVar[None] = None

    @property
    def width(self) -> int:
        """Width of the activations it edits."""
        return self.fitted.width

    @property
    def rank(self) -> int:
        """Number of directions that the fitted edit changes."""
        return self.fitted.rank

    @property
    def strength(self) -> float:
        """The fitted edit's strength."""
        return self.fitted.strength

    @property
    def token_local(self) -> bool:
        """As the fitted edit."""
        return self.fitted.token_local

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return self.fitted.is_identity

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        return f"random directions, otherwise as {self.fitted.summary}"

    @property
    def key_width(self) -> int | None:
        """Of the fitted edit."""
        return key_width_of(self.fitted)

    def given(self, key: Float[Tensor, "*batch d_mlp"]) -> RandomDirectionEdit:
        """The control for activations whose key this is."""
        return replace(self, fitted=given_key(self.fitted, key))

    def scaled(self, factor: float) -> RandomDirectionEdit:
        """The control of the scaled edit."""
        return replace(self, fitted=self.fitted.scaled(factor))

    @property
    def stepwise(self) -> bool:
        """As the fitted edit."""
        return is_stepwise(self.fitted)

    def __call__(
        self, h: Float[Tensor, "*batch width"], steps: Int[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept."""
        if self.is_identity:
            return h
        x = h.to(torch.promote_types(h.dtype, torch.float32))
        tiny = torch.finfo(x.dtype).tiny
        fitted = self.fitted(x, steps) if self.stepwise else self.fitted(x)  # type: ignore[call-arg]
        change = fitted - x
        along = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(tiny)
        kept = (change * along).sum(-1, keepdim=True) * along
        turned = self.rotation(change - kept)
        across = turned - (turned * along).sum(-1, keepdim=True) * along
        across = across / torch.linalg.vector_norm(across, dim=-1, keepdim=True).clamp_min(tiny)
        length = torch.linalg.vector_norm(change - kept, dim=-1, keepdim=True)
        moved: Tensor = x + kept + length * across
        return moved.to(h.dtype)


def random_editor_like(editor: Editor, seed: int) -> Editor:
    """A random editor: the same layers, ranks and tokens, and every token moved exactly as far in another direction.

    What the editor adds to an activation is turned by one random rotation per site. An effect that the random editor
    has as well comes from moving activations, and not from where to.

    Args:
        editor: Any editor.
        seed: Of the random directions.

    Returns:
        An editor of the same sites and positions; its card says `random control of` the method.

    Example:
        >>> control = sl.random_editor_like(editor, seed=0)
        >>> h = torch.randn(5, 128)
        >>> torch.allclose((control[1](h) - h).norm(dim=1), (editor[1](h) - h).norm(dim=1), rtol=1e-3)
        True
    """
    check_arguments(random_editor_like, locals())
    generator = torch.Generator().manual_seed(seed)
    edits = {
        site: RandomDirectionEdit(edit, RandomRotation.of(edit.width, generator)) for site, edit in editor.edits.items()
    }
    card = replace(
        editor.card,
        method=f"random control of {editor.card.method}",
        settings={**editor.card.settings, "seed": seed},
    )
    return replace(editor, edits=edits, card=card)


def control_editors(editor: Editor, control: int | Sequence[Editor], seed: int) -> list[Editor]:
    """That many random editors, seeded one after the other, or the editors given.

    Raises:
        InputError: If their number is negative, or one lacks layers of the editor.
    """
    if isinstance(control, int):
        if control < 0:
            raise InputError(f"control is a number of random editors, or editors, and {control} was given.")
        return [random_editor_like(editor, seed + number) for number in range(control)]
    for number, other in enumerate(control):
        if other.sites != editor.sites:
            raise InputError(
                f"Control {number} edits {', '.join(map(str, other.sites))}, and the editor "
                f"{', '.join(map(str, editor.sites))}. Give controls of the same sites."
            )
    return list(control)
