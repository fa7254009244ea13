"""Edits of single coordinates: set to values (massive activations, arXiv 2402.17762), or moved inside a range."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.edits import check_width
from sea_lens.editing.registry import register_edit
from sea_lens.errors import InputError


@register_edit("set coordinates")
@dataclass(frozen=True, eq=False)
class SetCoordinates:
    """Sets some coordinates of an activation to `keep * x + value`, and leaves all others as they are to the bit.

    Example:
        >>> edit = sl.SetCoordinates(4, torch.tensor([2]), torch.tensor([9.0]))
        >>> edit(torch.ones(4))
        tensor([1., 1., 9., 1.])
        >>> off = sl.Editor({1: sl.SetCoordinates.to_zero(576, [507])}).at_positions([0])

    Attributes:
        width: Width of the activations it edits.
        coordinates: Which coordinates, each once.
        values: What is added to what is kept of each.
        keep: How much is kept of what was there: 0 sets a coordinate to its value, 0.5 with values of 0 halves it.
        gates: Coordinates that decide which tokens are edited; None for every token.
        above: By gate, the absolute value above which a token is edited.
        strength: 1 sets, 0 is the identity, between them is between.
    """

    width: int
    coordinates: Int[Tensor, " k"]
    values: Float[Tensor, " k"]
    keep: float = 0.0
    gates: Int[Tensor, " n_gates"] | None = None
    above: Float[Tensor, " n_gates"] | None = None
    strength: float = 1.0

    kind: ClassVar[str]
    token_local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        for name, found in (("coordinates", self.coordinates), ("gates", self.gates)):
            if found is None:
                continue
            listed = found.tolist()
            if (
                found.is_floating_point()
                or not listed
                or len(set(listed)) < len(listed)
                or not 0 <= min(listed) <= max(listed) < self.width
            ):
                raise InputError(
                    f"{name} are different numbers from 0 to {self.width - 1}, at least one, and {listed} were given."
                )
        if self.values.shape != self.coordinates.shape or not bool(self.values.isfinite().all()):
            raise InputError(
                f"There is one finite value per coordinate, and {self.values.tolist()} were given for "
                f"{self.coordinates.tolist()}."
            )
        if (self.gates is None) != (self.above is None):
            raise InputError("gates and above go together, and one of them was given alone.")
        if self.gates is not None and self.above is not None and self.gates.shape != self.above.shape:
            raise InputError("There is one limit above which a token is edited per gate.")
        if self.above is not None and bool(self.above.isnan().any()):
            raise InputError("The limits above which a token is edited must be numbers, and one is NaN.")

    @classmethod
    def to_zero(cls, width: int, coordinates: list[int]) -> SetCoordinates:
        """An edit that sets coordinates to zero, as ablations of neurons or of massive activations do.

        Args:
            width: Width of the activations.
            coordinates: Which, each once, from 0 to `width - 1`.

        Example:
            >>> sl.SetCoordinates.to_zero(4, [0, 3])(torch.ones(2, 4))
            tensor([[0., 1., 1., 0.],
                    [0., 1., 1., 0.]])

        Raises:
            InputError: If a coordinate is not there, or is given twice.
        """
        check_arguments(SetCoordinates.to_zero, locals())
        return cls(width, torch.tensor(coordinates), torch.zeros(len(coordinates)))

    @property
    def rank(self) -> int:
        """How many coordinates it sets."""
        return len(self.coordinates)

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return self.strength == 0 or (self.keep == 1 and not bool(self.values.any()))

    @property
    def directions(self) -> Float[Tensor, "width n_directions"]:
        """The axes of its coordinates."""
        return torch.eye(self.width)[:, self.coordinates]

    @property
    def gains(self) -> Float[Tensor, " n_directions"]:
        """What it adds to each coordinate, apart from what it keeps."""
        return self.values

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        if self.is_identity:
            return "changes nothing"
        kept = "" if self.keep == 0 else f"{self.keep:g} of what they are and "
        shown = [f"{c}: {v:.4g}" for c, v in zip(self.coordinates.tolist(), self.values.tolist(), strict=True)]
        more = ", ..." if len(shown) > 6 else ""
        gate = "" if self.gates is None else f" where {', '.join(map(str, self.gates.tolist()[:6]))} is massive"
        return f"sets coordinates to {kept}{', '.join(shown[:6])}{more}{gate}"

    def scaled(self, factor: float) -> SetCoordinates:
        """The same edit with its strength multiplied."""
        check_arguments(SetCoordinates.scaled, locals())
        return replace(self, strength=self.strength * factor)

    def __call__(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept.

        Raises:
            ModelMismatchError: If the last dimension is not `width`.
        """
        check_width(self, h)
        if self.is_identity:
            return h
        coordinates = self.coordinates.to(h.device)
        x = h[..., coordinates].to(torch.promote_types(h.dtype, torch.float32))
        wanted = self.keep * x + self.values.to(x)
        # At strength 1 the value itself, which x + (wanted - x) may miss by rounding.
        wanted = wanted if self.strength == 1 else x + self.strength * (wanted - x)
        if self.gates is not None and self.above is not None:
            met = (h[..., self.gates.to(h.device)].abs().float() > self.above.to(h.device).float()).any(
                -1, keepdim=True
            )
            wanted = wanted.where(met, x)
        return h.index_copy(-1, coordinates, wanted.to(h.dtype))


@register_edit("coordinates")
@dataclass(frozen=True, eq=False)
class CoordinateEdit:
    """`x + strength (scale x + offset - x)`, coordinate by coordinate, where `low < x < high`.

    A coordinate outside its range stays as it is to the bit, and so does one whose scale is 1 and offset 0. Computed in
    float32 (float64 for float64 activations) and cast back.

    Example:
        >>> edit = sl.CoordinateEdit(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0]))
        >>> edit(torch.tensor([[2.0, 5.0]]))
        tensor([[7., 5.]])
        >>> within = sl.CoordinateEdit(torch.full((2,), 3.0), torch.ones(2), torch.zeros(2), torch.full((2,), 4.0))
        >>> within(torch.tensor([[2.0, 5.0]]))
        tensor([[7., 5.]])

    Attributes:
        scale: What each coordinate is multiplied by, `[width]`.
        offset: What is added then, `[width]`.
        low: A coordinate at or below it is left alone, `[width]`; None for no limit.
        high: One at or above it is left alone; None where `low` is None.
        strength: 1 is the published method, 0 the identity, between them is between.
    """

    scale: Float[Tensor, " width"]
    offset: Float[Tensor, " width"]
    low: Float[Tensor, " width"] | None = None
    high: Float[Tensor, " width"] | None = None
    strength: float = 1.0
    _ready: dict[object, _Coordinates] = field(default_factory=dict, repr=False, init=False)
    _rank: int = field(default=0, repr=False, init=False)

    kind: ClassVar[str]
    token_local: ClassVar[bool] = True
    directions: ClassVar[None] = None  # every coordinate moves by its own rule, so no few of them say what it does
    gains: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.low is None) != (self.high is None):
            raise InputError("low and high go together, and one of them was given alone.")
        given = {name: getattr(self, name) for name in ("scale", "offset", "low", "high")}
        shapes = {name: list(tensor.shape) for name, tensor in given.items() if tensor is not None}
        if self.scale.ndim != 1 or not len(self.scale) or any(shape != shapes["scale"] for shape in shapes.values()):
            raise InputError(f"scale, offset and the range have one number per coordinate, and have shapes {shapes}.")
        limits = [tensor for tensor in (self.low, self.high) if tensor is not None]
        if not bool((self.scale.isfinite() & self.offset.isfinite()).all()) or any(
            bool(t.isnan().any()) for t in limits
        ):
            raise InputError("scale and offset must be finite numbers, and low and high must not be NaN.")
        object.__setattr__(self, "_rank", int(self.changed.sum()))  # once: passes ask, and compiled ones have no values

    @property
    def width(self) -> int:
        """Width of the activations it edits."""
        return len(self.scale)

    @property
    def changed(self) -> Bool[Tensor, " width"]:
        """Which coordinates it changes inside their range."""
        return (self.scale != 1) | (self.offset != 0)

    @property
    def rank(self) -> int:
        """How many coordinates it changes."""
        return self._rank

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return self.strength == 0 or self.rank == 0

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        if self.is_identity:
            return "changes nothing"
        scales = self.scale[self.changed]
        within = "" if self.low is None else " inside their range"
        times = f"{scales.min():.3g}" + (f" to {scales.max():.3g}" if scales.min() < scales.max() else "")
        return f"changes {self.rank} of {self.width} coordinates{within}, each times {times}"

    def scaled(self, factor: float) -> CoordinateEdit:
        """The same edit with its strength multiplied; tensors are shared."""
        check_arguments(CoordinateEdit.scaled, locals())
        return replace(self, strength=self.strength * factor)

    def cast(self, dtype: torch.dtype, device: torch.device | None = None) -> CoordinateEdit:
        """The same edit with its tensors in another dtype, and on another device where one is given."""
        check_arguments(CoordinateEdit.cast, locals())
        scale, offset = (one.to(device or one.device, dtype) for one in (self.scale, self.offset))
        low, high = (None if one is None else one.to(scale) for one in (self.low, self.high))
        return replace(self, scale=scale, offset=offset, low=low, high=high)

    def __call__(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept.

        Raises:
            ModelMismatchError: If the last dimension is not `width`.
        """
        check_width(self, h)
        if self.is_identity:
            return h
        x = h.to(torch.promote_types(h.dtype, torch.float32))
        at = self._on(x.device, x.dtype)
        wanted: Tensor = torch.addcmul(at.offset, x, at.scale)
        acts = at.changed if at.low is None or at.high is None else (at.low < x) & (x < at.high)
        if wanted.dtype != h.dtype or wanted.requires_grad or torch.compiler.is_compiling():
            return wanted.to(h.dtype).where(acts, h)
        return torch.where(acts, wanted, h, out=wanted)  # in a tensor of our own: making one takes most of the time

    def _on(self, device: torch.device, dtype: torch.dtype) -> _Coordinates:
        """What it computes with, where and as the activation is; kept."""
        ready = self._ready.get((device, dtype))
        if ready is None:
            with torch.inference_mode(False):  # what is kept must also serve a later pass that builds a graph
                ready = self._at_its_strength(device, dtype)
            if not (ready.scale.requires_grad or ready.offset.requires_grad):  # trained: they change, and have a graph
                self._ready[device, dtype] = ready
        return ready

    def _at_its_strength(self, device: torch.device, dtype: torch.dtype) -> _Coordinates:
        scale, offset, changed = (one.to(device) for one in (self.scale, self.offset, self.changed))
        if self.strength != 1:
            scale, offset = 1 + self.strength * (scale.double() - 1), self.strength * offset.double()
        low, high = (None if one is None else one.to(device, dtype) for one in (self.low, self.high))
        if low is not None:  # a range that holds nothing, where nothing is changed: one operation fewer in a pass
            low = low.where(changed, torch.inf)
        return _Coordinates(scale.to(dtype), offset.to(dtype), low, high, changed)


@dataclass(frozen=True, eq=False)
class _Coordinates:
    """`scale x + offset` inside a range, at one strength on one device in one dtype."""

    scale: Float[Tensor, " width"]
    offset: Float[Tensor, " width"]
    low: Float[Tensor, " width"] | None
    high: Float[Tensor, " width"] | None
    changed: Bool[Tensor, " width"]
