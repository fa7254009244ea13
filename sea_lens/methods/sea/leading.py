"""The leading left singular vectors of a cross-covariance, without decomposing all of it.

A block Lanczos iteration on `Omega Omega^T` that knows when it is done: the energy `|Omega|_F^2` is known beforehand, to
within a doubt that is settled where an answer turns on it, and what was found is accepted only with a certificate. It says
that, beside the k directions found, nothing that is left reaches their singular values (but with a chance of 1e-10), and that
they span the true subspace to within an angle of `ANGLE`. Where there is none, because the spectrum decays slowly, the k-th
and the next singular value are equal, or the cut lies within rounding, callers decompose the whole. All is seeded, and a
result depends on the question, not on what was asked before.

Sources: Golub and Underwood (1977) for block Lanczos; Halko, Martinsson and Tropp (2011), lemma 4.1, for the bound on what is
left; Davis and Kahan (1970) for the angle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.methods.sea.operators import Block, Operator, random_block

ANGLE = 1e-8
"""Largest sine of an angle between a certified subspace and the true one."""
ROUNDING = 1e-11
"""Share of the total energy below which two energies count as equal."""
COLUMNS = 16
"""Vectors in a block."""
RUNGS = (48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536)
"""Dimensions of the Krylov space at which results are looked at. Fixed, so that a result knows nothing of earlier ones."""
EARLY = (32, 48)
"""Dimensions by which a hopeless question is first told."""
POWERS = (3, 8)
"""How often random vectors are multiplied by `Omega Omega^T` to bound what is left: more often if need be."""
NOISE = 1e-14
"""Share of the longest product so far, below which what a product with `Omega Omega^T` leaves is rounding."""
INEXACT = 4e-16
"""Share of its scale that every product with `Omega Omega^T` is wrong by at most; a tenth of that was measured."""


class InDoubtError(Exception):
    """An answer turns on what the energy, as it is known so far, leaves open."""


@dataclass(frozen=True, eq=False)
class Rung:
    """What a Krylov space of one size holds: Ritz pairs, and how far they are from being exact.

    Attributes:
        values: Ritz values, decreasing: squares of singular values, approached from below.
        vectors: Their vectors in the basis of the Krylov space, as columns.
        coupling: Columns no shorter than `(1 - Q Q^T) Omega Omega^T v` of each Ritz vector v, what rounding dropped included.
        captured: Energy inside the Krylov space.
    """

    values: Float[Tensor, " size"]
    vectors: Float[Tensor, "size size"]
    coupling: Float[Tensor, "more size"]
    captured: float

    @property
    def size(self) -> int:
        """Dimension of the space."""
        return len(self.values)


@dataclass(eq=False)
class LeadingDirections:
    """A growing Krylov space, from which leading subspaces are cut, with a certificate or not at all.

    Attributes:
        operator: `Omega Omega^T`.
        most: Dimension of the Krylov space beyond which decomposing everything is cheaper.
    """

    operator: Operator
    most: int
    _basis: Tensor = field(init=False, repr=False)
    _filled: int = field(default=0, init=False, repr=False)
    _longest: float = field(default=0.0, init=False, repr=False)
    _exhausted: bool = field(default=False, init=False, repr=False)
    _rows: list[Tensor] = field(default_factory=list, repr=False, init=False)
    _seen: list[Tensor] = field(default_factory=list, repr=False, init=False)
    _remainders: list[Tensor] = field(default_factory=list, repr=False, init=False)
    _lost: list[float] = field(default_factory=list, repr=False, init=False)
    _rungs: dict[int, Rung] = field(default_factory=dict, repr=False, init=False)
    _bounds: dict[tuple[int, int], float] = field(default_factory=dict, repr=False, init=False)

    def explaining(self, share: float) -> Float[Tensor, "d_model rank"] | None:
        """The least subspace that holds a share of the energy; None without a certificate."""
        return self._settled(lambda: self._explaining(share))

    def leading(self, k: int) -> Float[Tensor, "d_model rank"] | None:
        """The subspace of the k largest singular values; None without a certificate, or if they are near rounding."""
        return self._settled(lambda: self._leading(k))

    def _settled(self, answer: Callable[[], Tensor | None]) -> Tensor | None:
        try:
            return answer()
        except InDoubtError:
            self.operator.settle()
            self._bounds.clear()
            return answer()

    def _explaining(self, share: float) -> Float[Tensor, "d_model rank"] | None:
        if self._far_off(share):
            return None
        energy, doubt = self.operator.energy, share * self.operator.doubt
        target, slack = share * energy, ROUNDING * energy
        for rung in self._climb(target + slack - doubt):
            energies = rung.values.cumsum(0)
            # Beyond doubt these are one k. A rung that certifies none of them decides nothing either way.
            first, last = (int((energies < least).sum()) + 1 for least in (target - doubt, target + slack + doubt))
            for k in range(first, min(last + 1, rung.size)):
                sine, error = self._certificate(rung, k)
                # Each Ritz value errs by `error` at most, and to below. Would one direction less do?
                before = float(energies[k - 2]) if k > 1 else 0.0
                if sine <= ANGLE and first == last and before + k * error + slack < target - doubt:
                    return self._cut(rung, k)
                if sine <= ANGLE and doubt:
                    raise InDoubtError
        return None

    def _leading(self, k: int) -> Float[Tensor, "d_model rank"] | None:
        for rung in self._climb(0.0):
            if 1 <= k < rung.size and self._certificate(rung, k)[0] <= ANGLE:
                return self._cut(rung, k) if rung.values[k - 1] > ROUNDING * rung.values[0] else None
        return None

    def _climb(self, least: float) -> Iterator[Rung]:
        """One rung after the other, from the first that holds so much energy; none if that is not to be hoped for."""
        deficits = list[tuple[int, float]]()
        for size in RUNGS:
            if size > self.most:
                return
            captured = self._captured(size)
            if captured is None:
                return
            if captured < least:
                deficits.append((size, self.operator.energy - captured))
                if len(deficits) > 2 and _hopeless(deficits, self.operator.energy - least, self.most):
                    return
                continue
            if size not in self._rungs:
                self._rungs[size] = self._rung(size, captured)
            yield self._rungs[size]

    def _captured(self, size: int) -> float | None:
        """The energy in a Krylov space of a size; None where there is none."""
        while len(self._rows) * COLUMNS < size and not self._exhausted:
            self._grow()
        if len(self._rows) * COLUMNS < size:
            return None
        return sum(float(row[:, -COLUMNS:].trace()) for row in self._rows[: size // COLUMNS])

    def _far_off(self, share: float) -> bool:
        """Whether so much energy is missing early on that the last rung is not to be hoped for, by an estimate.

        It saves the Gram matrices where all is decomposed in any case.
        """
        captured = [self._captured(size) for size in EARLY]
        known = [energy for energy in captured if energy is not None]
        if len(known) < len(EARLY):
            return False
        if known[-1] - known[0] < (1 - share) * known[-1]:
            return False
        apart = self._split(self._random(COLUMNS // 4, seed=-2), EARLY[-1])[1]
        energy = known[-1] + float(self.operator.energies(apart).mean())
        deficits = [(size, energy - found) for size, found in zip(EARLY, known, strict=True)]
        return _hopeless(deficits, (1 - share) * energy, self.most)

    def _grow(self) -> None:
        """One more block: what `Omega Omega^T` makes of the last one, less what is there already."""
        if not self._filled:
            room = max(size for size in RUNGS if size <= self.most) + COLUMNS
            first = self._random(COLUMNS, seed=0)
            self._basis = first.new_zeros(room, self.operator.size)
            self._append(self._orthonormal(first, 0.0)[0])
        product, seen = self.operator.square(self._basis[self._filled - COLUMNS : self._filled])
        row, rest = self._split(product, self._filled)
        self._longest = max(self._longest, float(torch.linalg.vector_norm(product, dim=1).amax()))
        basis, remainder, lost = self._orthonormal(rest, NOISE * self._longest)
        self._rows.append(row)
        self._seen.append(seen)
        self._remainders.append(remainder)
        self._lost.append(lost)
        self._append(basis)

    def _append(self, basis: Block) -> None:
        self._basis[self._filled : self._filled + COLUMNS] = basis
        self._filled += COLUMNS

    def _split(self, x: Block, held: int) -> tuple[Float[Tensor, "columns held"], Block]:
        """Inner products with so many vectors of the basis, and what lies outside of them; twice, which is enough."""
        basis = self._basis[:held]
        first = x @ basis.T
        x = x - first @ basis
        second = x @ basis.T
        return first + second, x - second @ basis

    def _orthonormal(self, x: Block, noise: float) -> tuple[Block, Float[Tensor, "columns columns"], float]:
        """An orthonormal block for x, `remainder` with `x = remainder block`, and the norm of what that loses.

        Directions that are rounding, beside the others or by their norm, give way to random ones. Where no room is left for
        them, nothing can be added to the basis any more.
        """
        one = torch.eye(len(x), dtype=x.dtype, device=x.device)
        remainder, lost = one, 0.0
        for _ in range(6):
            gram = x @ x.T
            settled = bool((gram - one).abs().max() < 1e-3)
            values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
            x = vectors.T @ x
            low = values <= 1e-14 * values[-1]
            if bool(low.any()):  # squares that are rounding: the norms themselves need not be
                values = torch.where(low, x.square().sum(1), values)
                low &= values <= (1e-13) ** 2 * values[-1]
            good = ~low & (values > max(noise**2, torch.finfo(x.dtype).tiny))
            roots = torch.where(good, values, 1.0).sqrt()
            x = x / roots[:, None]
            lost += float(values[~good].clamp_min(0).sum().sqrt() * torch.linalg.matrix_norm(remainder, 2))
            remainder = remainder @ (vectors * torch.where(good, roots, 0.0))
            if settled:
                break
            if not bool(good.all()):
                fresh = self._random(int((~good).sum()), seed=1 + self._filled)
                x[~good] = fresh / torch.linalg.vector_norm(fresh, dim=1, keepdim=True)
                if self._filled:
                    apart = torch.linalg.vector_norm(self._split(x, self._filled)[1], dim=1)
                    if bool((apart[~good] < 1e-6).any()):
                        self._exhausted = True
                        break
            if self._filled:
                x = self._split(x, self._filled)[1]
            noise = 0.0
        return x, remainder, lost

    def _random(self, columns: int, seed: int) -> Block:
        return random_block(columns, self.operator.size, seed, self.operator.device)

    def _rung(self, size: int, captured: float) -> Rung:
        projected = torch.zeros(size, size, dtype=torch.float64, device=self._basis.device)
        for number, row in enumerate(self._rows[: size // COLUMNS]):
            projected[number * COLUMNS : (number + 1) * COLUMNS, : row.shape[1]] = row
        values, vectors = (found.flip(-1) for found in torch.linalg.eigh(projected))  # reads the lower triangle
        coupling = self._remainders[size // COLUMNS - 1].T @ vectors[-COLUMNS:]
        lost = [(number, norm) for number, norm in enumerate(self._lost[: size // COLUMNS]) if norm]
        if lost:
            # What any block's product lost counts as outside. It may all point one way, and along the coupling too:
            # |sum of m x_i|^2 <= m sum |x_i|^2, and |a + b|^2 <= 1.01 |a|^2 + 101 |b|^2.
            blocks = [norm * vectors[number * COLUMNS : (number + 1) * COLUMNS] for number, norm in lost]
            coupling = torch.cat([1.01**0.5 * coupling, (101 * len(lost)) ** 0.5 * torch.cat(blocks)])
        return Rung(values.clamp_min(0), vectors, coupling, captured)

    def _certificate(self, rung: Rung, k: int) -> tuple[float, float]:
        """Bounds on the sine of the angle to the true k leading directions, and on the error of each Ritz value."""
        none = math.inf, math.inf
        here, below = rung.values[k - 1 : k + 1].tolist()
        gap = (here - below) / 2
        if gap <= ROUNDING * here:
            return none
        threshold = below + gap  # what is left must stay below it
        residual = float(torch.linalg.matrix_norm(rung.coupling[:, :k])) + INEXACT * self.operator.scale
        if residual > ANGLE * gap:
            return none
        outside, doubt = self.operator.energy - rung.captured, self.operator.doubt
        outside = max(0.0, outside) + ROUNDING * 1e-3 * self.operator.scale
        if outside - doubt < threshold <= outside + doubt:
            raise InDoubtError
        for power in POWERS:
            if outside >= threshold:
                outside = self._bound(rung.size, power)
        if outside >= threshold:
            return none
        # The rest as a 2 x 2 block matrix, [[other Ritz values, coupling], [its transpose, outside]] < threshold.
        coupling = rung.coupling[:, k:]
        room = torch.diag(threshold - rung.values[k:]) - coupling.T @ coupling / (threshold - outside)
        if int(torch.linalg.cholesky_ex(room)[1]) != 0:
            return none
        return residual / gap, residual**2 / gap

    def _bound(self, size: int, power: int) -> float:
        """What no squared singular value outside the Krylov space exceeds, but with a chance of 1e-10."""
        if (size, power) not in self._bounds:
            seen = torch.cat(self._seen[: size // COLUMNS])
            self._bounds[size, power] = self.operator.outside(self._basis[:size], seen, power)
        return self._bounds[size, power]

    def _cut(self, rung: Rung, k: int) -> Float[Tensor, "d_model rank"]:
        basis: Tensor = torch.linalg.qr((rung.vectors[:, :k].T @ self._basis[: rung.size]).T)[0]
        return basis


def _hopeless(deficits: list[tuple[int, float]], allowed: float, most: int) -> bool:
    """Whether the energy that is missing, carried on as a power of the dimension, is still too much at the last one."""
    (early, before), (late, now) = deficits[-3:][0], deficits[-1]
    power = math.log(before / now) / math.log(late / early) if now > 0 else math.inf
    return bool(now * (most / late) ** -power > allowed)
