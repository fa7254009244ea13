"""Edits along features of a sparse autoencoder: shifted through its non-linearity, added, or clamped."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.card import EditorCard, library_versions
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import check_width
from sea_lens.editing.registry import register_edit, register_value
from sea_lens.editing.sparing import NotMassive
from sea_lens.errors import InputError
from sea_lens.models.sites import Site
from sea_lens.sae.codes import activated
from sea_lens.sae.load import kept
from sea_lens.sae.sae import SAE, SAESource

How = Literal["shift", "add", "clamp"]
register_value("sae")(SAE)
register_value("source of an sae")(SAESource)


@register_edit("sparse")
@dataclass(frozen=True, eq=False)
class SparseEdit:
    """`h + scale (g - f) W_dec`, with f the codes of h under a sparse autoencoder, and g what becomes of them.

        shift:  g = activation(f + strength vector)     (sparse activation steering)
        add:    g = f + strength vector
        clamp:  g = f + strength (vector - f)

    The scale is the token's own, where the SAE normalizes tokens. The bias of the decoder and all that the SAE does not
    represent stay as they are. Codes are computed in float32. A shift goes through the SAE's non-linearity again, so it is
    not additive in strength: a feature cannot go below off, one that is added less than its threshold stays off, and under
    top-k a feature can push out others. A token none of whose codes change comes back bit for bit.

    Attributes:
        sae: The SAE, of the edited features alone where features do not compete.
        features: Which features are edited, ascending, `[n_edited]`.
        vector: What is added to the code of each, or what it is set to, `[n_edited]`.
        how: `"shift"`, `"add"` or `"clamp"`.
        frequencies: How often each is active in positive and in negative activations, `[2, n_edited]`, where fitted.
        strength: 1 is the published method, 0 the identity.
    """

    sae: SAE
    features: Int[Tensor, " n_edited"]
    vector: Float[Tensor, " n_edited"]
    how: How = "shift"
    frequencies: Float[Tensor, "side n_edited"] | None = None
    strength: float = 1.0
    _placed: dict[object, _Placed] = field(default_factory=dict, repr=False, init=False)

    kind: ClassVar[str]
    token_local: ClassVar[bool] = True
    oriented: ClassVar[bool] = True
    """Directions have signs that mean something: a decoder's row is where its feature points."""

    def __post_init__(self) -> None:
        check_fields(self)
        n = len(self.features)
        if not n or self.features.ndim != 1 or self.vector.shape != self.features.shape:
            raise InputError(
                f"A sparse edit has one number per edited feature; {list(self.features.shape)} features and "
                f"{list(self.vector.shape)} numbers were given."
            )
        if (
            not bool((self.features.diff() > 0).all())
            or int(self.features[0]) < 0
            or int(self.features[-1]) >= self._total
        ):
            raise InputError(f"Features are numbers from 0 to {self._total - 1}, ascending, each once.")
        if self.sae.n_features not in (n, self._total):
            raise InputError(
                f"The SAE of a sparse edit has its {n} features, or all; this one has {self.sae.n_features}."
            )
        if not self.vector.is_floating_point() or not bool(self.vector.isfinite().all()):
            raise InputError("The numbers of a sparse edit must be finite floating-point ones.")

    @classmethod
    def of(
        cls,
        sae: SAE,
        features: Int[Tensor, " n_edited"],
        vector: Float[Tensor, " n_edited"],
        how: How = "shift",
        frequencies: Float[Tensor, "side n_edited"] | None = None,
    ) -> SparseEdit:
        """Of a whole SAE: it keeps what these features need, which is all of it where features compete for their codes.

        Raises:
            InputError: If a feature is not there.
        """
        check_arguments(SparseEdit.of, locals())
        if sae.n_features != sae.identity.n_features:
            raise InputError(
                f"This SAE has only {sae.n_features} of its {sae.identity.n_features} features. Load it anew."
            )
        if not len(features):
            raise InputError("A sparse edit needs one feature at least, and none was given.")
        if not 0 <= int(features.min()) <= int(features.max()) < sae.n_features:
            raise InputError(
                f"This SAE has features 0 to {sae.n_features - 1}, and {features.tolist()[:5]} were given."
            )
        if how == "add":  # no code is computed, so none competes
            sae = replace(sae, activation="relu", k=None, threshold=None)
        return cls(sae if sae.k is not None else sae.at_features(features), features, vector, how, frequencies)

    @property
    def _total(self) -> int:
        return self.sae.identity.n_features

    @property
    def width(self) -> int:
        """Width of the activations it edits."""
        return self.sae.width

    @property
    def rank(self) -> int:
        """Number of features that it edits."""
        return len(self.features)

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return self.strength == 0 or (self.how != "clamp" and not bool(self.vector.any()))

    @property
    def rows(self) -> Float[Tensor, "n_edited width"]:
        """The decoder's rows of the edited features."""
        return self.sae.decoder if self.sae.n_features == self.rank else self.sae.decoder[self.features]

    @property
    def directions(self) -> Float[Tensor, "width n_edited"] | None:
        """Unit vectors of the edited features' decoder rows."""
        found: Tensor = torch.nn.functional.normalize(self.rows, dim=1).T
        return found

    @property
    def gains(self) -> Float[Tensor, " n_edited"] | None:
        """What is added to each code, or what it is set to, times the length of its decoder row."""
        lengths: Tensor = torch.linalg.vector_norm(self.rows, dim=1)
        return self.vector.to(lengths) * lengths

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        if self.how == "shift":
            up = int((self.vector > 0).sum())
            return f"shifts {self.rank} of {self._total:,} features ({up} up, {self.rank - up} down)"
        done = "adds {:g} to" if self.how == "add" else "clamps to {:g}"
        return f"{done.format(self.vector[0].item())} feature {self.features[0].item()} of {self._total:,}"

    def scaled(self, factor: float) -> SparseEdit:
        """The same edit with its strength multiplied; tensors are shared. Twice the strength is not twice the edit."""
        check_arguments(SparseEdit.scaled, locals())
        view = replace(self, strength=self.strength * factor)
        object.__setattr__(view, "_placed", self._placed)
        return view

    def __call__(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept.

        Raises:
            ModelMismatchError: If the last dimension is not `width`.
        """
        check_width(self, h)
        if self.is_identity:
            return h
        x = h.to(torch.promote_types(h.dtype, torch.float32)).reshape(-1, self.width)
        blocks = torch.split(x, self.sae.rows_at_once)
        return torch.cat([block + self._change(block) for block in blocks]).reshape(h.shape).to(h.dtype)

    def _change(self, x: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        placed = self._on(x.device, x.dtype)
        codes, scale = placed.sae.codes_and_scale(x)
        if self.how == "shift":
            sae, shifted = placed.sae, codes + self.strength * placed.vector
            change = activated(shifted, sae.activation, sae.threshold, sae.k) - codes
        elif self.how == "add":
            change = (self.strength * placed.vector).expand_as(codes)
        else:
            change = self.strength * (placed.vector - codes) * placed.edited
        moved = change @ placed.sae.decoder
        return moved if scale is None else moved * scale

    def _on(self, device: torch.device, dtype: torch.dtype) -> _Placed:
        """The tensors where and as the activation is; kept, and shared by all views of this edit."""
        key = device, dtype
        placed = self._placed.get(key)
        if placed is None:
            with torch.inference_mode(False):  # what is kept must also serve a later pass that builds a graph
                sae, vector = self.sae.on(device, dtype), self.vector.to(device, dtype)
                edited = torch.ones_like(vector)
                if sae.n_features != self.rank:
                    whole, features = torch.zeros(sae.n_features, device=device, dtype=dtype), self.features.to(device)
                    vector, edited = (whole.index_copy(0, features, numbers) for numbers in (vector, edited))
                placed = self._placed[key] = _Placed(sae, vector, edited)
        return placed


@dataclass(frozen=True, eq=False)
class _Placed:
    """A sparse edit's tensors on one device in one dtype, as long as its SAE has features: numbers, and 1 where it edits."""

    sae: SAE
    vector: Float[Tensor, " n_features"]
    edited: Float[Tensor, " n_features"]


@dataclass(frozen=True, eq=False)
class SAEFeature:
    """One feature of a sparse autoencoder, to steer along or to clamp.

    Example:
        >>> feature = sl.SAEFeature(sl.load_sae("organism"), 3)
        >>> feature.clamp(0.0).layers  # the feature is off at every token but the first
        [1]

    Attributes:
        sae: Whole, with a known site.
        index: Of the feature.
    """

    sae: SAE
    index: int

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.index < self.sae.n_features:
            raise InputError(f"This SAE has features 0 to {self.sae.n_features - 1}, and {self.index} was asked for.")
        if self.sae.site is None:
            raise InputError("This SAE's files do not say which activations it is of. Give site to load_sae.")

    def steer(self, amount: float) -> Editor:
        """An editor that adds the feature's direction to every token but the first, as a code of `amount` would.

        Its code need not change by as much: what is added is read by the encoder again only where somebody encodes it. Twice
        the strength adds twice as much.

        Args:
            amount: In units of codes; compare it with the codes that the feature has where it is active.
        """
        check_arguments(SAEFeature.steer, locals())
        return self._editor("add", amount)

    def clamp(self, value: float) -> Editor:
        """An editor that sets the feature's code at every token but the first: `h + (value - code) W_dec`.

        At strength s it goes that share of the way.

        Args:
            value: The code; 0 turns the feature off.
        """
        check_arguments(SAEFeature.clamp, locals())
        return self._editor("clamp", value)

    def _editor(self, how: How, number: float) -> Editor:
        edit = SparseEdit.of(self.sae, torch.tensor([self.index]), torch.tensor([float(number)]), how)
        settings = {"sae": kept(self.sae).identity, "index": self.index, how: number}
        assert self.sae.site is not None
        return Editor(
            {Site.of(self.sae.site): edit},
            EditorCard("sae-feature", settings, versions=library_versions()),
            NotMassive(True),
        )
