"""The affine edit: spectral edits, erasures, shifts, projections and transports are all one.

`x + strength ((keep - 1) x + ((x - center) right) left^T + shift)`, then (if asked) rescaled to the token's own norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.edits import Edit, SequenceEdit, check_width, with_norms_of
from sea_lens.editing.registry import reads_files_of_0_1, register_edit
from sea_lens.errors import InputError

LARGEST = 1e30
"""Numbers from here on overflow float32 in the products of an edit."""


@register_edit("affine")
@dataclass(frozen=True, eq=False)
class AffineEdit:
    """`x + strength ((keep - 1) x + ((x - center) right) left^T + shift)`, then (if asked) rescaled to the token's own norm.

    SEA is `left = W diag(lam)`, `right = W`; an erasure is oblique; a mean difference is `shift` alone. Computed in float32
    (float64 for float64 activations) and cast back. What provably changes nothing returns the activation bit for bit.

    Example:
        >>> edit = sl.AffineEdit.of_shift(torch.tensor([1.0, 0.0]))
        >>> edit(torch.zeros(2))
        tensor([1., 0.])

    Attributes:
        left: What is written, `[width, rank]`.
        right: What is read, `[width, rank]`.
        center: Taken from the activation before it is read, or None.
        shift: Added to every activation, or None.
        keep: How much of the activation itself stays: 1 for SEA's merge, 0 for its positive projection alone.
        restore_norm: Whether each edited token is rescaled to its norm before the edit.
        strength: 1 is the published method, 0 the identity.
    """

    left: Float[Tensor, "width rank"]
    right: Float[Tensor, "width rank"]
    center: Float[Tensor, " width"] | None = None
    shift: Float[Tensor, " width"] | None = None
    keep: float = 1.0
    restore_norm: bool = False
    strength: float = 1.0
    _placed: dict[object, _Placed] = field(default_factory=dict, repr=False, init=False)
    _ready: dict[object, _Ready] = field(default_factory=dict, repr=False, init=False)
    _eigenvalues: Float[Tensor, " rank"] | None = field(default=None, repr=False, init=False)

    kind: ClassVar[str]
    token_local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.left.shape != self.right.shape or self.left.ndim != 2:
            raise InputError(
                f"left and right must both be [width, rank]; they are {list(self.left.shape)} and {list(self.right.shape)}."
            )
        for name, tensor in (("center", self.center), ("shift", self.shift)):
            if tensor is not None and tensor.shape != self.left.shape[:1]:
                raise InputError(f"{name} must be [{self.width}], and it is {list(tensor.shape)}.")
        if not all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in self._tensors):
            raise InputError(
                "An edit's tensors must be finite floating-point numbers; these hold NaN, infinity or others."
            )
        for name, value in (("strength", self.strength), ("keep", self.keep)):
            if not abs(value) < LARGEST:
                raise InputError(f"An edit's {name} must be a finite number below {LARGEST:g}, and it is {value}.")
        object.__setattr__(self, "_eigenvalues", _eigenvalues(self.left.detach(), self.right.detach()))

    @classmethod
    def of_shift(cls, shift: Float[Tensor, " width"], strength: float = 1.0) -> AffineEdit:
        """An edit that adds one vector, `[width]`, to every activation. Raises InputError if it is no vector."""
        check_arguments(AffineEdit.of_shift, locals())
        if shift.ndim != 1 or not len(shift):
            raise InputError(f"A shift is one vector, [width], and one of shape {list(shift.shape)} was given.")
        nothing = shift.new_zeros(len(shift), 0)
        return cls(nothing, nothing, shift=shift, strength=strength)

    @classmethod
    def of_eigenvalues(
        cls,
        directions: Float[Tensor, "width rank"],
        eigenvalues: Float[Tensor, " rank"],
        shift: Float[Tensor, " width"] | None = None,
        keep: float = 1.0,
        restore_norm: bool = False,
        strength: float = 1.0,
    ) -> AffineEdit:
        """An edit that adds `W diag(lam) W^T x`, W `[width, rank]`: `lam` above 0 promotes a direction, below suppresses it.

        Raises InputError if there is not one eigenvalue per direction.
        """
        check_arguments(AffineEdit.of_eigenvalues, locals())
        if directions.ndim != 2 or eigenvalues.shape != directions.shape[1:]:
            raise InputError(
                f"directions are [width, rank] and eigenvalues [rank], and {list(directions.shape)} and "
                f"{list(eigenvalues.shape)} were given."
            )
        return cls(directions * eigenvalues, directions, None, shift, keep, restore_norm, strength)

    # --- what it is --------------------------------------------------------------------------------------------------

    @property
    def _tensors(self) -> list[Tensor]:
        return [tensor for tensor in (self.left, self.right, self.center, self.shift) if tensor is not None]

    @property
    def width(self) -> int:
        """Width of the activations it edits."""
        return self.left.shape[0]

    @property
    def rank(self) -> int:
        """Number of directions it reads and writes; a shift is not counted."""
        return self.left.shape[1]

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return self.strength == 0 or (self.rank == 0 and self.shift is None and self.keep == 1)

    @property
    def eigenvalues(self) -> Float[Tensor, " rank"] | None:
        """lam, where `left = right diag(lam)`; None for an oblique edit."""
        return self._eigenvalues

    @property
    def directions(self) -> Float[Tensor, "width n_directions"] | None:
        """Unit columns of what is written: of `right` where it is symmetric, otherwise of `left`; or the shift."""
        if self.rank:
            written = self.left if self.eigenvalues is None else self.right
            return torch.nn.functional.normalize(written, dim=0)
        return None if self.shift is None else torch.nn.functional.normalize(self.shift, dim=0)[:, None]

    @property
    def gains(self) -> Float[Tensor, " n_directions"] | None:
        """Along each direction its eigenvalue; of an oblique edit, what it reads of what it writes; or the shift's length."""
        if self.rank:
            if self.eigenvalues is not None:
                return self.eigenvalues
            return (self.right * self.left).sum(0)
        return None if self.shift is None else torch.linalg.vector_norm(self.shift)[None]

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        if self.is_identity:
            return "changes nothing"
        if self.rank == 0:
            parts = [] if self.keep == 1 else [f"keeps {self.keep:g} of the activation"]
            if self.shift is not None:
                parts.append(f"adds a shift of length {torch.linalg.vector_norm(self.shift):.3g}")
            return " and ".join(parts)
        if self.eigenvalues is None:
            return f"rank {self.rank}, oblique"
        return f"rank {self.rank}, eigenvalues {self.eigenvalues.min():+.3f} to {self.eigenvalues.max():+.3f}"

    # --- views -------------------------------------------------------------------------------------------------------

    def scaled(self, factor: float) -> AffineEdit:
        """The same edit with its strength multiplied; tensors are shared, on every device."""
        check_arguments(AffineEdit.scaled, locals())
        view = replace(self, strength=self.strength * factor)
        object.__setattr__(view, "_placed", self._placed)
        return view

    def cast(self, dtype: torch.dtype) -> AffineEdit:
        """The same edit with its tensors in another dtype. A symmetric one stays so to the bit."""
        check_arguments(AffineEdit.cast, locals())
        right = self.right.to(dtype)
        left = self.left.to(dtype) if self.eigenvalues is None else right * self.eigenvalues.to(dtype)
        center, shift = (None if tensor is None else tensor.to(dtype) for tensor in (self.center, self.shift))
        return replace(self, left=left, right=right, center=center, shift=shift)

    def then(self, other: AffineEdit) -> AffineEdit:
        """One edit that does this and then the other; both without their norm restored.

        Raises:
            InputError: If one restores norms.
        """
        check_arguments(AffineEdit.then, locals())
        if self.restore_norm or other.restore_norm:
            raise InputError(
                "Edits that restore norms do not add up to one affine edit. Apply them one after the other."
            )
        if self.width != other.width:
            raise InputError(f"Edits of one width add up, and these have widths {self.width} and {other.width}.")
        (left, right, shift, keep), (left2, right2, shift2, keep2) = self._plain(), other._plain()
        together = keep2 * shift + left2 @ (right2.T @ shift) + shift2
        written = torch.cat([keep2 * left + left2 @ (right2.T @ left), keep * left2], dim=1)
        return AffineEdit(written, torch.cat([right, right2], dim=1), None, together, keep * keep2)

    def _plain(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """`keep x + (x right) left^T + shift` at strength 1, without a center."""
        shift = self.left.new_zeros(len(self.left)) if self.shift is None else self.shift
        if self.center is not None:
            shift = shift - self.left @ (self.right.T @ self.center)
        return self.strength * self.left, self.right, self.strength * shift, 1 + self.strength * (self.keep - 1)

    # --- on disk -----------------------------------------------------------------------------------------------------

    def to_fields(self) -> dict[str, Any]:
        """What is saved: of a symmetric edit its eigenvalues in place of `left`, which take half the room."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        if self.eigenvalues is not None and torch.equal(self.right * self.eigenvalues, self.left):
            found["left"] = self.eigenvalues
        return found

    @classmethod
    def from_fields(cls, left: Tensor, right: Tensor, **rest: Any) -> AffineEdit:
        """The edit that has these fields, as `to_fields` gives them."""
        symmetric = left.ndim == 1 and left.shape == right.shape[1:]
        return cls(right * left if symmetric else left, right, **rest)

    # --- at work -----------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"AffineEdit({self.summary}, width {self.width}, strength {self.strength:g})"

    def __call__(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept.

        Raises:
            ModelMismatchError: If the last dimension is not `width`.
        """
        check_width(self, h)
        if self.is_identity:
            return h
        dtype = h.dtype if h.dtype in (torch.float32, torch.float64) else torch.float32
        x = (h if h.dtype == dtype else h.to(dtype)).reshape(-1, h.shape[-1])
        at = self._on(h.device, dtype)
        # Few operations, for calling one is most of what an edit of one token costs. One tall and one wide product, and the
        # sum with what stays of x in the same pass as the latter. A symmetric edit reads the same memory for both.
        if self.rank:
            found = torch.nn.functional.linear(x, at.right, at.offset)
            if at.gains is not None:
                found = found.mul_(at.gains)
            edited = torch.addmm(x, found, at.left, beta=at.kept)
            if at.shift is not None:
                edited = edited + at.shift if edited.requires_grad else edited.add_(at.shift)
        else:
            edited = x * at.kept if at.shift is None else torch.add(at.shift, x, alpha=at.kept)
        if self.restore_norm:
            # In place of a tensor of our own, unless it is part of a graph.
            edited = with_norms_of(x, edited, in_place=not edited.requires_grad)
        edited = edited.view(h.shape)
        return edited if h.dtype == dtype else edited.to(h.dtype)

    def _on(self, device: torch.device, dtype: torch.dtype) -> _Ready:
        """The tensors where and as the activation is, at this strength; kept. The large ones are shared by all views."""
        key = device, dtype
        ready = self._ready.get(key)
        if ready is None:
            if any(tensor.requires_grad for tensor in self._tensors):  # trained: they change, and belong to a graph
                return self._place(device, dtype).at(self.strength, self.keep)
            with torch.inference_mode(False):  # what is kept must also serve a later pass that builds a graph
                placed = self._placed.get(key)
                if placed is None:
                    placed = self._placed[key] = self._place(device, dtype)
                ready = self._ready[key] = placed.at(self.strength, self.keep)
        return ready

    def _place(self, device: torch.device, dtype: torch.dtype) -> _Placed:
        rows = self.right.to(device, dtype).T.contiguous()
        eigenvalues = None if self.left.requires_grad or self.right.requires_grad else self.eigenvalues
        left = rows if eigenvalues is not None else self.left.to(device, dtype).T.contiguous()
        offset = None if self.center is None else rows @ self.center.to(device, dtype)
        shift = None if self.shift is None else self.shift.to(device, dtype)
        return _Placed(rows, left, None if eigenvalues is None else eigenvalues.to(device, dtype), offset, shift)


@dataclass(frozen=True, eq=False)
class _Placed:
    """An affine edit's tensors on one device in one dtype, at strength 1, the thin ones with their rows in memory."""

    right: Float[Tensor, "rank width"]
    left: Float[Tensor, "rank width"]
    eigenvalues: Float[Tensor, " rank"] | None
    offset: Float[Tensor, " rank"] | None
    shift: Float[Tensor, " width"] | None

    def at(self, strength: float, keep: float) -> _Ready:
        """What an edit of a strength computes with."""
        gains = torch.full_like(self.right[:, 0], strength) if self.eigenvalues is None else strength * self.eigenvalues
        return _Ready(
            self.right,
            self.left,
            None if self.eigenvalues is None and strength == 1 else gains,
            None if self.offset is None else -self.offset,
            None if self.shift is None else strength * self.shift,
            1 + strength * (keep - 1),
        )


@dataclass(frozen=True, eq=False)
class _Ready:
    """The same at one strength: `kept x + (x right^T + offset) diag(gains) left + shift`."""

    right: Float[Tensor, "rank width"]
    left: Float[Tensor, "rank width"]
    gains: Float[Tensor, " rank"] | None
    offset: Float[Tensor, " rank"] | None
    shift: Float[Tensor, " width"] | None
    kept: float


def _eigenvalues(
    left: Float[Tensor, "width rank"], right: Float[Tensor, "width rank"]
) -> Float[Tensor, " rank"] | None:
    """lam, if `left = right diag(lam)` to rounding: found in float64, so that it is the lam of which left was made."""
    written, read = left.double(), right.double()
    found = (written * read).sum(0) / read.square().sum(0).clamp_min(1e-300)
    if left.shape[1] and bool(
        (written - read * found).abs().max() > 4 * torch.finfo(left.dtype).eps * written.abs().max()
    ):
        return None
    return found.to(left.dtype)


def in_sequence(first: Edit, second: Edit) -> Edit:
    """One edit that does the first and then the second: an affine one where both are affine and restore no norm."""
    if (
        isinstance(first, AffineEdit)
        and isinstance(second, AffineEdit)
        and not (first.restore_norm or second.restore_norm)
    ):
        return first.then(second)
    return SequenceEdit((first, second))


@reads_files_of_0_1("low rank")
def _low_rank(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> AffineEdit:
    return AffineEdit.of_eigenvalues(
        tensors["directions"],
        tensors["eigenvalues"],
        tensors.get("shift"),
        facts["kept"],
        facts["restore_norm"],
        facts["strength"],
    )
