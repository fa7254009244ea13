"""What one layer's edit does to an activation. Tensors only: no model, no hook."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.errors import InputError, ModelMismatchError


@runtime_checkable
class Edit(Protocol):
    """What an editor needs of one layer's edit."""

    @property
    def d_model(self) -> int:
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
    def summary(self) -> str:
        """One line for an editor's repr."""

    def scaled(self, factor: float) -> Edit:
        """The same edit with its strength multiplied."""

    def __call__(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Edits activations of any leading shape; dtype and device are kept."""


@dataclass(frozen=True, eq=False)
class LowRankEdit:
    """`h + strength * ((kept - 1) h + (h W) diag(lam) W^T + shift)`, then (if asked) rescaled to the token's own norm.

    Computed in float32 (float64 for float64 activations) and cast back. A rank of 0 without a shift, or a strength of
    0, returns the activation untouched, bit for bit.

    Attributes:
        directions: W, `[d_model, rank]`.
        eigenvalues: lam, `[rank]`: positive directions are promoted, negative ones suppressed.
        shift: Added to every activation, `[d_model]`, or None. A centered edit puts `-mu W diag(lam) W^T` here.
        strength: 1 is the published method, 0 the identity.
        restore_norm: Whether each edited token is rescaled to its norm before the edit (paper, section 3.2).
        kept: How much of the activation itself stays: 1 for SEA's merge, 0 for its positive projection alone.
    """

    directions: Float[Tensor, "d_model rank"]
    eigenvalues: Float[Tensor, " rank"]
    shift: Float[Tensor, " d_model"] | None = None
    strength: float = 1.0
    restore_norm: bool = True
    kept: float = 1.0
    _placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor | None]] = field(
        default_factory=dict, repr=False, init=False
    )

    def __post_init__(self) -> None:
        tensors = [self.directions, self.eigenvalues] + ([] if self.shift is None else [self.shift])
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise InputError("An edit's tensors must be finite, and these hold NaN or infinity.")
        for name, value in (("strength", self.strength), ("kept", self.kept)):
            if not math.isfinite(value):
                raise InputError(f"An edit's {name} must be a finite number, and it is {value}.")

    @property
    def d_model(self) -> int:
        """Width of the activations it edits."""
        return self.directions.shape[0]

    @property
    def rank(self) -> int:
        """Number of directions it changes."""
        return self.directions.shape[1]

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return self.strength == 0 or (self.rank == 0 and self.shift is None and self.kept == 1)

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        if self.is_identity:
            return "changes nothing"
        if self.rank == 0:
            return "a shift" if self.kept == 1 else f"keeps {self.kept:g} of the activation"
        return f"rank {self.rank}, eigenvalues {self.eigenvalues.min():+.3f} to {self.eigenvalues.max():+.3f}"

    def scaled(self, factor: float) -> LowRankEdit:
        """The same edit with its strength multiplied; tensors are shared."""
        return replace(self, strength=self.strength * factor)

    def cast(self, dtype: torch.dtype) -> LowRankEdit:
        """The same edit with its tensors in another dtype."""
        shift = None if self.shift is None else self.shift.to(dtype)
        return replace(self, directions=self.directions.to(dtype), eigenvalues=self.eigenvalues.to(dtype), shift=shift)

    def __call__(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Edits activations of any leading shape; dtype and device are kept.

        Raises:
            ModelMismatchError: If the last dimension is not `d_model`.
        """
        check_width(self, h)
        if self.is_identity:
            return h
        dtype = torch.promote_types(h.dtype, torch.float32)
        x = h.to(dtype).reshape(-1, self.d_model)
        directions, factors, shift = self._on(h.device, dtype)
        # One tall and one wide product, the sum with what stays of x in the same pass as the latter. Both read the same
        # memory, which is most of what an edit of one token costs.
        edited = torch.addmm(x, (x @ directions.T) * factors, directions, beta=1 + self.strength * (self.kept - 1))
        in_place = not edited.requires_grad  # of a tensor of our own, unless it is part of a graph
        if shift is not None:
            edited = edited.add_(shift) if in_place else edited + shift
        if self.restore_norm:
            edited = with_norms_of(x, edited, in_place=in_place)
        return edited.reshape(h.shape).to(h.dtype)

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        """`W^T` (rows in memory), `strength * lam` and `strength * shift`, where and as the activation is; kept."""
        placed = self._placed.get((device, dtype))
        if placed is None:
            with torch.inference_mode(False):  # what is kept must also serve a later pass that builds a graph
                placed = (
                    self.directions.to(device, dtype).T.contiguous(),
                    self.strength * self.eigenvalues.to(device, dtype),
                    None if self.shift is None else self.strength * self.shift.to(device, dtype),
                )
            self._placed[device, dtype] = placed
        return placed


def check_width(edit: Edit, h: Float[Tensor, "*batch width"]) -> None:
    """Refuses activations of another width.

    Raises:
        ModelMismatchError: If the last dimension is not the edit's `d_model`.
    """
    if h.shape[-1] != edit.d_model:
        raise ModelMismatchError(
            f"This edit was made for d_model {edit.d_model}, and the activation's last dimension is {h.shape[-1]}."
        )


def with_norms_of(
    x: Float[Tensor, "*batch d_model"], edited: Float[Tensor, "*batch d_model"], dim: int = -1, in_place: bool = False
) -> Float[Tensor, "*batch d_model"]:
    """`edited` with the Euclidean norms that `x` has along a dimension: along -1, those of its tokens.

    With `in_place`, `edited` itself is overwritten.
    """
    norms = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    # A token that comes out as zeros stays zero, where norms / 0 would make it NaN.
    factors = (norms / torch.linalg.vector_norm(edited, dim=dim, keepdim=True)).nan_to_num(nan=0.0, posinf=0.0)
    return edited.mul_(factors) if in_place else edited * factors


ROWS_AT_ONCE = 256
"""Rows whose displacement is taken together, so that what is computed on the way stays small."""


def displacement(edit: Edit, h: Float[Tensor, "n d_model"]) -> float:
    """Mean of `|edited - h| / |h|` over rows: how far an edit moves these activations."""
    moved = []
    for rows in torch.split(h, ROWS_AT_ONCE):
        x = rows.double()
        lengths, moves = (torch.linalg.vector_norm(tensor, dim=-1) for tensor in (x, edit(x) - x))
        moved.append(moves / lengths.clamp_min(1e-300))
    return float(torch.cat(moved).mean())


def precise_dtype(device: torch.device) -> torch.dtype:
    """float64, where digits are lost and it has them to spare; float32 on Apple's GPUs, which lack it."""
    return torch.float32 if device.type == "mps" else torch.float64
