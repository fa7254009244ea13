"""Conceptors: soft projectors onto what activations span, and their Boolean operations.

Sources: Postmus and Abreu, *Steering Large Language Models using Conceptors* (2024, arXiv 2410.16314), by its code
(jorispos/conceptorsteering), which was read; and Jaeger's rules for Boolean operations (2014, arXiv 1403.3369). No paper was
read here. We follow the paper, `h' = beta C h`; the code's `steer` adds h, and an older file of it mixes three quarters
and one. Its experiments edit `resid_pre` of one layer on the prompt only, `editor.at_positions("prompt")`.

An activation shrinks wherever C is below one, which is everywhere that the demonstrations do not vary: expect damage with
few of them, and see `restore_norm` and strengths below 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.methods.directions import sides_of
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.models.activations import Activations, Role

ZERO = 1e-12
"""Eigenvalues of a conceptor, which lie between 0 and 1, that are taken for 0."""


@dataclass(frozen=True, eq=False)
class Conceptor:
    """A symmetric matrix with eigenvalues from 0 to 1: how much of each direction activations take up.

    `C = vectors diag(eigenvalues) vectors^T + elsewhere (I - vectors vectors^T)`, in float64.

    Example:
        >>> one, other = (sl.Conceptor.of(torch.randn(50, 8), aperture=1.0) for _ in range(2))
        >>> torch.allclose((one | other).matrix, (~(~one & ~other)).matrix)  # De Morgan
        True

    Attributes:
        vectors: Orthonormal columns.
        eigenvalues: Of each.
        elsewhere: The eigenvalue of all other directions, 0 or 1.
    """

    vectors: Float[Tensor, "width rank"]
    eigenvalues: Float[Tensor, " rank"]
    elsewhere: float = 0.0

    @classmethod
    def of(cls, x: Float[Tensor, "n width"], aperture: float) -> Conceptor:
        """`R (R + aperture^-2 I)^-1` with `R = x^T x / n`, which is not centered: eigenvalues `l / (l + aperture^-2)`.

        Args:
            x: Activations.
            aperture: Above zero. Large ones come to the projector on what x spans, small ones to zero.

        Raises:
            InputError: If the aperture is not above zero.
        """
        check_arguments(Conceptor.of, locals())
        if not aperture > 0:
            raise InputError(f"aperture must be above zero, and {aperture} was given.")
        _, singular, rows = torch.linalg.svd(x.double() / len(x) ** 0.5, full_matrices=False)
        real = singular > singular[0] * max(x.shape) * torch.finfo(torch.float64).eps
        squares = singular[real].square()
        return cls(rows[real].T, squares / (squares + aperture**-2))

    @property
    def width(self) -> int:
        """Width of the activations."""
        return self.vectors.shape[0]

    @property
    def quota(self) -> float:
        """The mean eigenvalue: the share of all directions that it takes up."""
        rest = self.width - len(self.eigenvalues)
        return float(self.eigenvalues.sum() + self.elsewhere * rest) / self.width

    @property
    def matrix(self) -> Float[Tensor, "width width"]:
        """As a dense matrix."""
        return self._in(torch.eye(self.width, dtype=torch.float64, device=self.vectors.device))

    def __invert__(self) -> Conceptor:
        """What it does not take up: `I - C`."""
        return Conceptor(self.vectors, 1 - self.eigenvalues, 1 - self.elsewhere)

    def __and__(self, other: Conceptor) -> Conceptor:
        """What both take up: `(C^-1 + B^-1 - I)^-1`, on the directions that neither has as 0.

        Raises:
            InputError: If their widths differ.
        """
        if self.width != other.width:
            raise InputError(f"Conceptors of one width combine, and theirs are {self.width} and {other.width}.")
        together = torch.cat([self.vectors, other.vectors], dim=1)
        u, s, _ = torch.linalg.svd(together, full_matrices=False)
        basis = u[:, s > 1e-9 * s.max()] if len(s) else u
        one, other_one = self._in(basis), other._in(basis)
        inverses, missing = zip(_inverse(one), _inverse(other_one), strict=True)
        lacking = torch.cat(missing, dim=1)  # the directions that one of them has as 0
        values, vectors = torch.linalg.eigh(lacking @ lacking.T)
        shared = vectors[:, values < 1e-9]
        joint = shared.T @ (inverses[0] + inverses[1]) @ shared
        joint = joint - torch.eye(len(joint), dtype=joint.dtype, device=joint.device)
        found, axes = torch.linalg.eigh((joint + joint.T) / 2)
        zeros = vectors[:, values >= 1e-9]
        eigenvalues = torch.cat([1 / found.clamp_min(1), found.new_zeros(zeros.shape[1])])
        turned = basis @ torch.cat([shared @ axes, zeros], dim=1)
        return Conceptor(turned, eigenvalues, self.elsewhere * other.elsewhere)

    def __or__(self, other: Conceptor) -> Conceptor:
        """What either takes up: `not (not C and not B)`.

        Raises:
            InputError: If their widths differ.
        """
        return ~(~self & ~other)

    def edit(self, beta: float = 1.0, *, restore_norm: bool = False) -> AffineEdit:
        """`beta C h`, as an edit in float32."""
        check_arguments(Conceptor.edit, locals())
        gains = (beta * (self.eigenvalues - self.elsewhere)).float()
        keep = beta * self.elsewhere
        return AffineEdit.of_eigenvalues(self.vectors.float(), gains, keep=keep, restore_norm=restore_norm)

    def _in(self, basis: Float[Tensor, "width m"]) -> Float[Tensor, "m m"]:
        """The matrix in an orthonormal basis."""
        inside = basis.T @ self.vectors
        plain = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
        return (inside * (self.eigenvalues - self.elsewhere)) @ inside.T + self.elsewhere * plain


def _inverse(matrix: Float[Tensor, "m m"]) -> tuple[Float[Tensor, "m m"], Float[Tensor, "m zeros"]]:
    """The pseudo-inverse, and what it leaves out."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    real = values > ZERO
    return (vectors[:, real] / values[real]) @ vectors[:, real].T, vectors[:, ~real]


@register_method("conceptor", source="Postmus and Abreu 2024, arXiv 2410.16314")
@dataclass(frozen=True)
class ConceptorSteering:
    """Projects activations softly onto what the positive ones span, or off what the negative ones do.

    `h' = beta C h`, where C is the conceptor of the positive activations, that of the negative ones negated, or both by
    `and`: see `Conceptor`.

    Example:
        >>> steered = sl.ConceptorSteering(aperture=0.5, restore_norm=True).fit(activations)
        >>> steered.layers
        [0, 1, 2, 3]

    Attributes:
        aperture: How readily a direction counts as taken up. It is in units of one over an activation's size, so what is
            small or large differs between models; the authors try 0.01 to 100.
        beta: The factor. The authors' 0.5 halves every activation at least.
        of: `positive`, `not_negative` or `positive_and_not_negative`.
        restore_norm: Whether each edited token is rescaled to its norm before the edit; beta does not matter then.
    """

    aperture: float = 10.0
    beta: float = 0.5
    of: Literal["positive", "not_negative", "positive_and_not_negative"] = "positive"
    restore_norm: bool = False

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")
    settings_to_try: ClassVar[dict[str, tuple[object, ...]]] = {
        "restore_norm": (False, True),
        "of": ("positive", "positive_and_not_negative"),
    }
    strengths_to_try: ClassVar[tuple[float, ...]] = (1.0, 0.5, 0.25)
    equation: ClassVar[str] = "beta C h,  C = R (R + aperture^-2 I)^-1,  R = X^T X / n"
    when_to_use: ClassVar[str] = "Where several behaviors are to be combined by and, or and not."

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.aperture > 0:
            raise InputError(f"aperture must be above zero, and {self.aperture} was given.")

    def fit(self, activations: Activations) -> Editor:
        """One symmetric edit per site, computed in float64.

        Args:
            activations: Positive and negative ones.

        Raises:
            InputError: If a side is missing.
        """
        check_arguments(ConceptorSteering.fit, locals())
        check_roles(self, activations)
        edits, numbers = {}, {}
        for site in activations.sites:
            found = self._conceptor(*sides_of(activations, site))
            numbers[site] = {"quota": found.quota}
            edits[site] = found.edit(self.beta, restore_norm=self.restore_norm)
        return fitted_editor(self, activations, edits, numbers)

    def _conceptor(self, positive: Float[Tensor, "n width"], negative: Float[Tensor, "n width"]) -> Conceptor:
        if self.of == "positive":
            return Conceptor.of(positive, self.aperture)
        not_negative = ~Conceptor.of(negative, self.aperture)
        return not_negative if self.of == "not_negative" else Conceptor.of(positive, self.aperture) & not_negative
