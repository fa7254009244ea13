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
        shift: Added to every activation, `[d_model]`, or None. A centred edit puts `-mu W diag(lam) W^T` here.
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
        if h.shape[-1] != self.d_model:
            raise ModelMismatchError(
                f"This edit was made for d_model {self.d_model}, and the activation's last dimension is {h.shape[-1]}."
            )
        if self.is_identity:
            return h
        dtype = torch.promote_types(h.dtype, torch.float32)
        x = h.to(dtype)
        directions, weights, shift = self._on(h.device, dtype)
        edited = (1 + self.strength * (self.kept - 1)) * x + ((x @ directions) * weights) @ directions.T
        if shift is not None:
            edited = edited + shift
        if self.restore_norm:
            norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            edited_norms = torch.linalg.vector_norm(edited, dim=-1, keepdim=True)
            # Divided first: a token that the edit cancels altogether stays zero, where norms / 0 would make it NaN.
            edited = edited / edited_norms.clamp_min(torch.finfo(dtype).tiny) * norms
        return edited.to(h.dtype)

    def written(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch rank"]:
        """How much is added along each direction, before the norm is restored."""
        directions, weights, shift = self._on(x.device, x.dtype)
        amounts = (x @ directions) * weights
        return amounts if shift is None else amounts + shift @ directions

    def displacement(self, h: Float[Tensor, "n d_model"]) -> float:
        """Mean of `|edited - h| / |h|` over rows: how far the edit moves these activations."""
        x = h.double()
        moved = torch.linalg.vector_norm(self(x) - x, dim=-1)
        return float((moved / torch.linalg.vector_norm(x, dim=-1).clamp_min(1e-300)).mean())

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        """Directions, strength times eigenvalues and strength times shift where and as the activation is; kept."""
        key = (device, dtype)
        if key not in self._placed:
            with torch.inference_mode(False):  # what is kept must also serve a later pass that builds a graph
                shift = None if self.shift is None else self.strength * self.shift.to(device, dtype)
                self._placed[key] = (
                    self.directions.to(device, dtype),
                    self.strength * self.eigenvalues.to(device, dtype),
                    shift,
                )
        return self._placed[key]
