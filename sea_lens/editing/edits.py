"""What an edit does to an activation: functions of `[..., width]`. A new kind has the members of `Edit` and is registered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.editing.registry import register_edit
from sea_lens.errors import InputError, ModelMismatchError


@runtime_checkable
class Edit(Protocol):
    """What an editor needs of an edit.

    Example:
        >>> from sea_lens.editing.edits import Edit
        >>> isinstance(sl.AffineEdit.of_shift(torch.ones(128)), Edit)  # one of your own: see `register_edit`
        True
    """

    kind: ClassVar[str]

    @property
    def width(self) -> int:
        """Width of the activations it edits."""

    @property
    def rank(self) -> int:
        """Number of directions it changes."""

    @property
    def strength(self) -> float:
        """1 is the published method, 0 the identity."""

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""

    @property
    def token_local(self) -> bool:
        """Whether a token's edit depends on that token alone, so that passes may be split and rows batched."""

    @property
    def directions(self) -> Float[Tensor, "width n_directions"] | None:
        """Unit vectors that it moves activations along; None where it has none."""

    @property
    def gains(self) -> Float[Tensor, " n_directions"] | None:
        """How much it adds along each of them, at strength 1: eigenvalues, or the length of a shift."""

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""

    def scaled(self, factor: float) -> Edit:
        """The same edit with its strength multiplied; tensors are shared."""

    def __call__(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept."""


KEY = "mlp.hook_post"
"""The site, in an edit's own layer, of the key that some edits read."""


@runtime_checkable
class ReadsKeys(Protocol):
    """An edit that needs, beside the activations it edits, the key of the same tokens."""

    @property
    def key_width(self) -> int | None:
        """Width of the key; None for an edit that reads none after all."""

    def given(self, key: Float[Tensor, "*batch d_mlp"]) -> Edit:
        """The edit for activations whose key this is."""


def key_width_of(edit: Edit) -> int | None:
    """Width of the key that an edit reads; None where it reads none."""
    # Every attachment asks this of every edit: no isinstance, which takes ten times as long.
    width: int | None = getattr(edit, "key_width", None)
    return width


def given_key(edit: Edit, key: Float[Tensor, "*batch d_mlp"]) -> Edit:
    """An edit for activations whose key this is; the edit itself where it reads none."""
    return edit if key_width_of(edit) is None else cast(ReadsKeys, edit).given(key)


@register_edit("sequence")
@dataclass(frozen=True, eq=False)
class SequenceEdit:
    """Edits one after the other, each of what the one before it made.

    Attributes:
        edits: In the order in which they act.
    """

    edits: tuple[Edit, ...]

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        widths = [edit.width for edit in self.edits]
        if not widths or len(set(widths)) > 1:
            raise InputError(f"Edits that follow each other must have one width, and theirs are {widths}.")

    @property
    def width(self) -> int:
        """Width of the activations it edits."""
        return self.edits[0].width

    @property
    def rank(self) -> int:
        """Number of directions that its edits change."""
        return sum(edit.rank for edit in self.edits)

    @property
    def strength(self) -> float:
        """Of its first edit."""
        return self.edits[0].strength

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return all(edit.is_identity for edit in self.edits)

    @property
    def token_local(self) -> bool:
        """Whether all of its edits are."""
        return all(edit.token_local for edit in self.edits)

    @property
    def directions(self) -> Float[Tensor, "width n_directions"] | None:
        """Those of all its edits."""
        found = [edit.directions for edit in self.edits if edit.directions is not None]
        return torch.cat(found, dim=1) if found else None

    @property
    def gains(self) -> Float[Tensor, " n_directions"] | None:
        """Those of all its edits, in units of the first one's strength."""
        unit = self.strength or 1.0
        found = [edit.gains * (edit.strength / unit) for edit in self.edits if edit.gains is not None]
        return torch.cat(found) if found else None

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        return ", then ".join(edit.summary for edit in self.edits)

    @property
    def key_width(self) -> int | None:
        """Width of the key that one of them reads; None where none does."""
        return next((width for width in map(key_width_of, self.edits) if width is not None), None)

    def given(self, key: Float[Tensor, "*batch d_mlp"]) -> SequenceEdit:
        """The edits for activations whose key this is."""
        return SequenceEdit(tuple(given_key(edit, key) for edit in self.edits))

    def scaled(self, factor: float) -> SequenceEdit:
        """Every edit with its strength multiplied."""
        return SequenceEdit(tuple(edit.scaled(factor) for edit in self.edits))

    @property
    def stepwise(self) -> bool:
        """Whether one of its edits asks which token after the prompt's last each one is."""
        return any(map(is_stepwise, self.edits))

    def __call__(
        self, h: Float[Tensor, "*batch width"], steps: Int[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept."""
        if self.is_identity:
            return h
        x = h.to(torch.promote_types(h.dtype, torch.float32))  # between them nothing is rounded to half precision
        for edit in self.edits:
            x = edit(x, steps) if is_stepwise(edit) else edit(x)  # type: ignore[call-arg]
        return x.to(h.dtype)


def is_stepwise(edit: Edit) -> bool:
    """Whether an edit is called with `steps` too: by token, how many come between it and its prompt's last one."""
    return bool(getattr(edit, "stepwise", False))


def check_width(edit: Edit, h: Float[Tensor, "*batch width"]) -> None:
    """Refuses activations of another width.

    Raises:
        ModelMismatchError: If the last dimension is not the edit's `width`.
    """
    if h.shape[-1] != edit.width:
        raise ModelMismatchError(
            f"This edit was made for width {edit.width}, and the activation's last dimension is {h.shape[-1]}."
        )


def with_norms_of(
    x: Float[Tensor, "*batch width"], edited: Float[Tensor, "*batch width"], dim: int = -1, in_place: bool = False
) -> Float[Tensor, "*batch width"]:
    """`edited` with the Euclidean norms that `x` has along a dimension: along -1, those of its tokens.

    With `in_place`, `edited` itself is overwritten.
    """
    if in_place and dim == -1 and x.shape[:-1].numel() == 1 and may_be_looked_at(x):
        return _with_norm_of(x, edited)
    factors = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    theirs = torch.linalg.vector_norm(edited, dim=dim, keepdim=True)
    # A token that comes out as zeros stays zero, where norms / 0 would make it NaN.
    if not in_place:
        return torch.mul(edited, (factors / theirs).nan_to_num(nan=0.0, posinf=0.0))
    factors.div_(theirs).nan_to_num_(nan=0.0, posinf=0.0)
    edited.mul_(factors)
    return edited


def _with_norm_of(x: Float[Tensor, "1 width"], edited: Float[Tensor, "1 width"]) -> Float[Tensor, "1 width"]:
    """The same of one token, to the bit: calling an operation takes longer here than what it does."""
    norm, theirs = float(torch.linalg.vector_norm(x)), float(torch.linalg.vector_norm(edited))
    factor = norm / theirs if theirs else 0.0
    edited.mul_(factor if factor <= torch.finfo(edited.dtype).max else 0.0)
    return edited


def may_be_looked_at(tensor: Tensor) -> bool:
    """Whether values can be had without waiting: on the CPU, and not while a pass is being compiled."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


ROWS_AT_ONCE = 256
"""Rows whose displacement is taken together. Bounds memory."""


def displacement(edit: Edit, h: Float[Tensor, "n width"]) -> float:
    """Mean of `|edited - h| / |h|` over rows: how far an edit moves these activations."""
    moved = []
    for rows in torch.split(h, ROWS_AT_ONCE):
        x = rows.double()
        lengths, moves = (torch.linalg.vector_norm(tensor, dim=-1) for tensor in (x, edit(x) - x))
        moved.append(moves / lengths.clamp_min(1e-300))
    return float(torch.cat(moved).mean())
