"""The keyed edit: reads what an MLP's last matrix reads, and adds to what the MLP gives. An edit of weights, as a hook.

An MLP ends with `out = W key + bias`, where the key is `mlp.hook_post`. So `W + outs keys^T` in place of W adds
`outs (keys^T key)` to `mlp_out` at every token, and this edit does that and leaves the weights alone. (Gemma 2 and 3 and
OLMo 2 and 3 put a norm between the two; there the edit acts after the norm, and no edit of W does the same.)
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.edits import KEY, check_width
from sea_lens.editing.registry import register_edit
from sea_lens.errors import InputError, ModelMismatchError

OUT = "mlp_out"
"""The site, in an edit's own layer, that keyed edits add to."""

K = TypeVar("K", bound="KeyedEdit")


@register_edit("keyed")
@dataclass(frozen=True, eq=False)
class KeyedEdit:
    """`out + strength * outs (keys^T key)`: one column for each fact that is edited.

    Example:
        >>> edit = sl.KeyedEdit(keys=torch.eye(8, 1), outs=torch.ones(4, 1))
        >>> edit.given(torch.ones(2, 8))(torch.zeros(2, 4))
        tensor([[1., 1., 1., 1.],
                [1., 1., 1., 1.]])
        >>> keyed = sl.Editor({"blocks.3.hook_mlp_out": edit})

    Attributes:
        keys: What a token's key is multiplied by.
        outs: What is added for each.
        strength: 0 is the identity.
    """

    keys: Float[Tensor, "d_mlp n"]
    outs: Float[Tensor, "d_model n"]
    strength: float = 1.0

    kind: ClassVar[str]
    gains: ClassVar[None] = None
    token_local: ClassVar[bool] = True
    _key: ClassVar[Tensor | None] = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.keys.ndim != 2 or self.outs.ndim != 2 or self.keys.shape[1] != self.outs.shape[1]:
            raise InputError(
                f"A keyed edit has keys [d_mlp, n] and outs [d_model, n], and {list(self.keys.shape)} and "
                f"{list(self.outs.shape)} were given."
            )
        if not (self.keys.isfinite().all() and self.outs.isfinite().all()):
            raise InputError("A keyed edit's keys and outs must be finite, and some are not. Fit it anew in float32.")

    @property
    def width(self) -> int:
        """Width of the activations it edits."""
        return self.outs.shape[0]

    @property
    def key_width(self) -> int:
        """Width of the key it reads."""
        return self.keys.shape[0]

    @property
    def rank(self) -> int:
        """Number of its columns."""
        return self.keys.shape[1]

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return self.strength == 0 or not self.outs.any() or not self.keys.any()

    @property
    def directions(self) -> Float[Tensor, "width n_directions"] | None:
        """Unit vectors of what it adds."""
        return torch.nn.functional.normalize(self.outs, dim=0)

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        if self.is_identity:
            return "changes nothing"
        return f"rank {self.rank}, from keys of width {self.key_width}, strength {self.strength:g}"

    @property
    def matrix(self) -> Float[Tensor, "d_model d_mlp"]:
        """What it adds to the MLP's last matrix, its strength included, in float64."""
        return self.strength * (self.outs.double() @ self.keys.double().T)

    def scaled(self: K, factor: float) -> K:
        """The same edit with its strength multiplied; tensors are shared."""
        check_arguments(KeyedEdit.scaled, locals())
        return replace(self, strength=self.strength * factor)

    def then(self, other: KeyedEdit) -> KeyedEdit:
        """Both edits as one: neither changes the key, so they add up.

        Raises:
            InputError: If their widths differ.
        """
        if (self.width, self.key_width) != (other.width, other.key_width):
            raise InputError(
                f"Keyed edits of widths {self.key_width} -> {self.width} and {other.key_width} -> {other.width} cannot be "
                "added. Give edits of one model."
            )
        outs = [self.strength * self.outs, other.strength * other.outs.to(self.outs)]
        return KeyedEdit(torch.cat([self.keys, other.keys.to(self.keys)], dim=1), torch.cat(outs, dim=1))

    def given(self: K, key: Float[Tensor, "*batch d_mlp"]) -> K:
        """The edit for activations whose key this is.

        Raises:
            ModelMismatchError: If the key has another width.
        """
        if key.shape[-1] != self.key_width:
            raise ModelMismatchError(
                f"This edit reads keys of width {self.key_width}, and this model's {KEY} has width {key.shape[-1]}."
            )
        bound = copy(self)
        object.__setattr__(bound, "_key", key)
        return bound

    def __call__(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept.

        Raises:
            InputError: If it was not given their key.
            ModelMismatchError: If the last dimension is not `width`.
        """
        check_width(self, h)
        if self.strength == 0:
            return h
        if self._key is None:
            raise InputError(
                f"A keyed edit reads {KEY} of the same tokens, and activations alone were given. Attach its editor to a "
                "model, or call edit.given(key)(activations)."
            )
        x = h.to(torch.promote_types(h.dtype, torch.float32))
        read = self._key.to(x) @ self.keys.to(x)
        added: Tensor = x + self.strength * (read @ self.outs.to(x).T)
        return added.to(h.dtype)
