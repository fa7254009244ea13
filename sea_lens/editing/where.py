"""Which tokens an editor edits: from a position on, a slice, the prompt, what is generated, texts that meet a condition.

Positions are true ones: padding is not counted, and a KV cache is. So the same tokens are edited whatever the batch.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sea_lens.arguments import check_fields
from sea_lens.editing.registry import register_value
from sea_lens.errors import InputError
from sea_lens.models.passes import Pass
from sea_lens.models.sites import Site

Mask = Bool[Tensor, "batch pos"]


@runtime_checkable
class Where(Protocol):
    """A choice of tokens. A new one is a frozen dataclass with these members under `@register_value`."""

    @property
    def token_local(self) -> bool:
        """Whether positions from the beginning alone decide, so that texts may be run in parts and in batches."""

    @property
    def reads(self) -> Site | None:
        """The site whose activations of the prompt decide; None for none."""

    def decide(self, read: Float[Tensor, "batch pos width"], seen: Pass) -> Bool[Tensor, " batch"]:
        """Which rows are edited at all, from the pass that begins them. It holds for the generation."""

    def mask(self, seen: Pass, decided: Bool[Tensor, " batch"] | None) -> Mask:
        """Which tokens of a pass are edited."""

    def spared(self, site: Site, read: Float[Tensor, "batch pos width"]) -> Mask | None:
        """Which tokens are left alone at a site because of their own activation; None for none."""


Positions = int | slice | Sequence[int] | Tensor | str | Where | None
"""What `Editor.at_positions` takes."""


@dataclass(frozen=True, eq=False)
class ByPosition:
    """What choices that read no activations have in common."""

    token_local: ClassVar[bool] = True
    reads: ClassVar[Site | None] = None

    def decide(self, read: Float[Tensor, "batch pos width"], seen: Pass) -> Bool[Tensor, " batch"]:
        """Every row."""
        return torch.ones(len(read), dtype=torch.bool, device=read.device)

    def spared(self, site: Site, read: Float[Tensor, "batch pos width"]) -> Mask | None:
        """None."""
        return None


@register_value("from")
@dataclass(frozen=True)
class From(ByPosition):
    """From a position on. `From(1)` spares the first token, which is an attention sink in many models.

    Attributes:
        first: The first position edited. A negative one counts from the end of the prompt: -1 is its last token.
    """

    first: int

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def token_local(self) -> bool:  # type: ignore[override]
        """Unless it counts from the prompt's end."""
        return self.first >= 0

    def mask(self, seen: Pass, decided: Tensor | None) -> Mask:
        """Positions at or after the first."""
        return (seen.positions >= 0) & (seen.positions >= _bound(self.first, seen))

    def __str__(self) -> str:
        return f"positions from {self.first} on"


@register_value("slice")
@dataclass(frozen=True)
class Slice(ByPosition):
    """Positions `start:stop:step`. Negative bounds count from the end of the prompt.

    Attributes:
        start: The first position; None for the beginning.
        stop: Where to stop; None for no end, so that what is generated is edited too.
        step: Every how many positions, from `start` on.
    """

    start: int | None = None
    stop: int | None = None
    step: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.step < 1:
            raise InputError(f"A slice of positions needs a step of at least 1, and {self.step} was given.")

    @property
    def token_local(self) -> bool:  # type: ignore[override]
        """Unless it counts from the prompt's end."""
        return (self.start or 0) >= 0 and (self.stop is None or self.stop >= 0)

    def mask(self, seen: Pass, decided: Tensor | None) -> Mask:
        """Positions inside the slice."""
        start = _bound(self.start or 0, seen)
        inside = (seen.positions >= 0) & (seen.positions >= start) & ((seen.positions - start) % self.step == 0)
        return inside if self.stop is None else inside & (seen.positions < _bound(self.stop, seen))

    def __str__(self) -> str:
        ends = ["" if end is None else str(end) for end in (self.start, self.stop)]
        return "positions " + ":".join(ends + ([str(self.step)] if self.step != 1 else []))


@register_value("positions")
@dataclass(frozen=True)
class At(ByPosition):
    """A list of positions. Negative ones count from the end of the prompt.

    Attributes:
        positions: Which.
    """

    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.positions:
            raise InputError("A list of positions needs at least one.")
        object.__setattr__(self, "positions", tuple(self.positions))

    @property
    def token_local(self) -> bool:  # type: ignore[override]
        """Unless it counts from the prompt's end."""
        return min(self.positions) >= 0

    def mask(self, seen: Pass, decided: Tensor | None) -> Mask:
        """Positions in the list."""
        found = torch.zeros_like(seen.positions, dtype=torch.bool)
        for position in self.positions:
            found = found | (seen.positions == _bound(position, seen))
        return found & (seen.positions >= 0)

    def __str__(self) -> str:
        return "positions " + ", ".join(map(str, self.positions))


@register_value("prompt")
@dataclass(frozen=True)
class PromptOnly(ByPosition):
    """The prompt's tokens, and nothing that is generated or scored after it."""

    def mask(self, seen: Pass, decided: Tensor | None) -> Mask:
        """Positions in the prompt."""
        return (seen.positions >= 0) & (seen.positions < seen.prompt_lengths[:, None])

    def __str__(self) -> str:
        return "the prompt only"


@register_value("generated")
@dataclass(frozen=True)
class GeneratedOnly(ByPosition):
    """What is generated or scored after the prompt, and not the prompt."""

    def mask(self, seen: Pass, decided: Tensor | None) -> Mask:
        """Positions after the prompt."""
        return seen.positions >= seen.prompt_lengths[:, None]

    def __str__(self) -> str:
        return "generated tokens only"


@dataclass(frozen=True, eq=False)
class OfBatch(ByPosition):
    """The tokens of a mask over one batch of prompts, padding columns included, and everything generated after them.

    Attributes:
        chosen: True where a token is edited, `[batch, pos]`.
    """

    of_one_batch: ClassVar[bool] = True  # no row of it may end before the others
    chosen: Bool[Tensor, "n_prompts prompt_length"]

    def mask(self, seen: Pass, decided: Tensor | None) -> Mask:
        """Columns of the mask that lie in the pass.

        Raises:
            InputError: If the pass is of another batch.
        """
        batch, covered = self.chosen.shape
        if batch != len(seen.positions) or (seen.begins and covered > len(seen.columns)):
            raise InputError(
                f"The position mask is for a batch of shape {tuple(self.chosen.shape)}, and the model ran on "
                f"{tuple(seen.positions.shape)}. Give at_positions a mask of the prompt batch it is used with."
            )
        chosen = self.chosen.to(seen.columns.device)
        inside = chosen[:, seen.columns.clamp(max=covered - 1)]
        return torch.where(seen.columns < covered, inside, torch.ones_like(inside))

    def __str__(self) -> str:
        return f"positions of a mask of shape {tuple(self.chosen.shape)}"


@register_value("both")
@dataclass(frozen=True, eq=False)
class Both:
    """Tokens that two choices have in common; one of them at most may read activations.

    Attributes:
        one: A choice.
        other: A choice.
    """

    one: Where
    other: Where

    def __post_init__(self) -> None:
        check_fields(self)
        if self.one.reads is not None and self.other.reads is not None:
            raise InputError("An editor can have one condition on the prompt, and two were given.")

    @property
    def token_local(self) -> bool:
        """Whether both are."""
        return self.one.token_local and self.other.token_local

    @property
    def of_one_batch(self) -> bool:
        """Whether one of them is."""
        return any(getattr(each, "of_one_batch", False) for each in (self.one, self.other))

    @property
    def reads(self) -> Site | None:
        """The site that one of them reads."""
        return self.one.reads or self.other.reads

    def decide(self, read: Float[Tensor, "batch pos width"], seen: Pass) -> Bool[Tensor, " batch"]:
        """As the one that reads."""
        return (self.one if self.one.reads is not None else self.other).decide(read, seen)

    def mask(self, seen: Pass, decided: Tensor | None) -> Mask:
        """What both choose."""
        return self.one.mask(seen, decided) & self.other.mask(seen, decided)

    def spared(self, site: Site, read: Float[Tensor, "batch pos width"]) -> Mask | None:
        """What either spares."""
        found = [mask for mask in (self.one.spared(site, read), self.other.spared(site, read)) if mask is not None]
        return found[0] | found[-1] if found else None

    def __str__(self) -> str:
        return f"{self.one}, {self.other}"


NAMED: dict[str, Where | None] = {
    "all": None,
    "prompt": PromptOnly(),
    "generated": GeneratedOnly(),
    "not first": From(1),
}


def where_of(positions: Positions) -> Where | None:
    """The choice that a caller's positions stand for; None for every token.

    Args:
        positions: An integer (from there on), a slice, a list of positions, a mask `[batch, pos]` over a batch of
            prompts, one of the names, or a choice itself. Negative positions count from the end of the prompt.

    Raises:
        InputError: If they are something else.
    """
    if positions is None or (isinstance(positions, Where) and not isinstance(positions, type)):
        return positions
    if isinstance(positions, str) and positions in NAMED:
        return NAMED[positions]
    if isinstance(positions, slice):
        return Slice(positions.start, positions.stop, 1 if positions.step is None else positions.step)
    if isinstance(positions, Tensor) and positions.ndim == 2:
        values = positions if positions.dtype == torch.bool else positions.bool()
        if not torch.equal(values.to(positions.dtype), positions):
            raise InputError("A position mask holds true and false, or 1 and 0, and other numbers were given.")
        return OfBatch(values)
    try:
        if isinstance(positions, Sequence | range) and not isinstance(positions, str):
            if any(isinstance(position, bool) for position in positions):
                raise TypeError
            return At(tuple(operator.index(position) for position in positions))
        if not isinstance(positions, bool):
            return From(operator.index(positions))  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        pass
    raise InputError(
        f"Positions are a first position, a slice, a list, a mask [batch, pos] over a prompt batch, or one of "
        f"{', '.join(NAMED)}; {positions!r} was given."
    )


def _bound(position: int, seen: Pass) -> Int[Tensor, "batch one"]:
    """A position, counted from the end of each row's prompt where it is negative."""
    if position >= 0:
        return seen.prompt_lengths.new_tensor([[position]])
    return seen.prompt_lengths[:, None] + position
