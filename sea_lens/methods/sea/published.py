"""The SEA authors' released projections: reading them, and their own rule for applying them.

Sources: `sea-train.py`, which writes `uu_positive.pt` and `uu_negative.pt`, and `src/decoding_algorithm/inference.py`,
which applies them, of github.com/yfqiu-nlp/sea-llm (read in November 2026).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, Literal, get_args
from zipfile import ZipFile, is_zipfile

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.arguments import check_arguments
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.card import EditorCard, FitReport, library_versions
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import check_width, with_norms_of
from sea_lens.editing.registry import reads_files_of_0_1, register_edit
from sea_lens.errors import FileFormatError, InputError, ModelMismatchError, SeaLensWarning
from sea_lens.methods.sea.projectors import difference_of_projectors
from sea_lens.models.bridge import UNKNOWN_MODEL, Model, ModelInfo, check_is_model
from sea_lens.models.distributed import shows
from sea_lens.models.sites import Site, check_layers

Normalization = Literal["token", "feature"]
FeatureFunction = Literal["squared-exponential", "tanh", "elu"]
EPSILON = 1e-4
"""Where the published inverses clamp."""


@register_edit("published")
@dataclass(frozen=True, eq=False)
class PublishedEdit:
    """The published code's edit, flaws included, so that its numbers can be had: **not causal, and other with a KV cache**.

    `x = P+ h + P- h`, and then every *feature* of x is rescaled to the norm that it had *over the positions* of h. So an edit
    of one token depends on all tokens of the pass, later ones and padding included; and of a pass over one cached token it
    leaves nothing but signs, as each feature gets its own absolute value back. Rows of a batch are edited one by one
    (the published code stops at batches). Computed in float32 at least, where the published code uses the model's dtype.

    Attributes:
        kept: Orthonormal basis that `P+` projects on, `[d_model, k_positive]`.
        removed: Orthonormal basis that `P-` projects out, `[d_model, k_negative]`.
        feature_function: Whose published inverse is applied to both projections. (The published code computes the function
            itself as well, and throws it away.)
        strength: 1 is the published code, 0 the identity.
    """

    kept: Float[Tensor, "d_model k_positive"]
    removed: Float[Tensor, "d_model k_negative"]
    feature_function: FeatureFunction | None = None
    strength: float = 1.0

    kind: ClassVar[str]
    token_local: ClassVar[bool] = False
    directions: ClassVar[None] = None
    gains: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not all(bool(tensor.isfinite().all()) for tensor in (self.kept, self.removed)):
            raise InputError("An edit's tensors must be finite, and these hold NaN or infinity.")
        if not math.isfinite(self.strength):
            raise InputError(f"An edit's strength must be a finite number, and it is {self.strength}.")

    @property
    def width(self) -> int:
        """Width of the activations it edits."""
        return self.kept.shape[0]

    @property
    def rank(self) -> int:
        """Number of directions kept and removed."""
        return self.kept.shape[1] + self.removed.shape[1]

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return self.strength == 0

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        function = "" if self.feature_function is None else f", inverse of {self.feature_function}"
        return f"as published: norm per feature over positions{function}, rank {self.rank}"

    def scaled(self, factor: float) -> PublishedEdit:
        """The same edit with its strength multiplied; tensors are shared."""
        return replace(self, strength=self.strength * factor)

    def __call__(self, h: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Edits `[..., pos, d_model]`; a single vector is one position. Dtype and device are kept.

        Raises:
            ModelMismatchError: If the last dimension is not `d_model`.
        """
        check_width(self, h)
        if self.is_identity:
            return h
        x = h.to(torch.promote_types(h.dtype, torch.float32))
        kept, removed = self.kept.to(x), self.removed.to(x)
        sides = [(x @ kept) @ kept.T, x - (x @ removed) @ removed.T]
        if self.feature_function is not None:
            sides = [published_inverse(side, self.feature_function) for side in sides]
        merged = sides[0] + sides[1]
        published = with_norms_of(x, merged, dim=-2) if x.ndim > 1 else with_norms_of(x[None], merged[None], dim=-2)[0]
        return (x + self.strength * (published - x)).to(h.dtype)


def published_inverse(y: Float[Tensor, "*shape"], function: FeatureFunction) -> Float[Tensor, "*shape"]:
    """What the published code takes for the inverse of a feature function; that of the squared exponential gives x^2."""
    if function == "squared-exponential":
        return -2 * torch.log(y.clamp(min=EPSILON))
    if function == "tanh":
        return torch.atanh(y.clamp(-1 + EPSILON, 1 - EPSILON))
    return torch.where(y >= 0, y, torch.log(y.clamp(-1 + EPSILON, 0) + 1))


def read_projections(file: str | Path | Tensor) -> Float[Tensor, "n_layers d_model d_model"]:
    """The tensor in a `.pt` file of projections. Nothing but tensors is loaded from it, and no code is run.

    Raises:
        FileFormatError: If the file cannot be read as a tensor.
        InputError: If the tensor is not `[n_layers, d_model, d_model]` of floating-point numbers.
    """
    if not isinstance(file, str | Path | Tensor):
        raise InputError(f"Projections are a .pt file or its tensor, and a {type(file).__name__} was given.")
    name, loaded = ("the tensor given", file) if isinstance(file, Tensor) else (str(file), _load(Path(file)))
    if not isinstance(loaded, Tensor):
        raise FileFormatError(
            f"{name} holds a {type(loaded).__name__}, and a tensor [n_layers, d_model, d_model] was expected. Give the "
            "uu_positive.pt or uu_negative.pt that sea-train.py writes."
        )
    if loaded is not file and loaded.numel() * loaded.element_size() > loaded.untyped_storage().nbytes():
        raise FileFormatError(
            f"{name} holds a tensor of shape {list(loaded.shape)} that repeats fewer numbers, and so many would have to be "
            "worked on. Save it as it is: torch.save(tensor.contiguous(), path)."
        )
    if loaded.ndim != 3 or loaded.shape[1] != loaded.shape[2] or not loaded.is_floating_point() or not loaded.numel():
        raise InputError(
            f"{name} has shape {list(loaded.shape)} of {loaded.dtype}, and [n_layers, d_model, d_model] of floating-point "
            "numbers was expected."
        )
    return loaded.detach().cpu()


def read_published_editor(
    positive: str | Path | Tensor,
    negative: str | Path | Tensor,
    layers: Iterable[int] | None = None,
    *,
    site: str = "mlp_out",
    normalization: Normalization = "token",
    feature_function: FeatureFunction | None = None,
    model: Model | None = None,
    progress: bool = True,
) -> Editor:
    """Makes an editor of the projections that the SEA authors' code writes and their release holds.

    Their dense `P+` and `P-` become low-rank factors, after a check that they are projectors; the ranks stand in the
    editor's repr and on its card.

    Args:
        positive: `uu_positive.pt`, or its tensor `[n_layers, d_model, d_model]`: `P+ = U U^T`.
        negative: `uu_negative.pt`: `P- = I - U U^T`.
        layers: Layers to edit; all in the file for None. (They edit the last 21 for truthfulness: `.last_layers(21)`.)
        site: Where to edit. Their code edits MLP outputs, with projections fitted on the residual stream.
        normalization: `"token"` restores each token's norm, as everywhere in this library. `"feature"` is their rule,
            for reproducing their numbers: each feature's norm over the positions of a pass. It is not causal, changes
            with the KV cache and with padding, and leaves nothing but signs of a single cached token.
        feature_function: With `"feature"`, the function whose published inverse is applied, for their non-linear runs.
        model: The model they are for, to check sizes against and to name on the card.
        progress: Whether to show a progress bar once it takes longer than two seconds.

    Returns:
        An editor with one edit per layer, in float32; its card names no method, so it cannot be fitted again.

    Raises:
        FileFormatError: If a file does not hold a tensor. No code is loaded from it.
        InputError: If shapes are wrong, or a matrix is not a projector (which layer, and how far from it).
        ModelMismatchError: If a layer does not exist, or the projections do not fit `model`.

    Warns:
        SeaLensWarning: With `normalization="feature"`, of what it does; if the files look exchanged.

    Example:
        >>> directions = torch.linalg.qr(torch.randn(8, 3)).Q
        >>> kept = directions @ directions.T  # [d_model, d_model], here the same at two layers
        >>> published = sl.read_published_editor(torch.stack([kept, kept]), torch.stack([torch.eye(8) - kept] * 2))
        >>> [str(site) for site in published.sites]
        ['blocks.0.hook_mlp_out', 'blocks.1.hook_mlp_out']
    """
    given = dict(locals())
    if normalization not in get_args(Normalization):
        raise InputError(f"normalization is one of {', '.join(get_args(Normalization))}; {normalization!r} was given.")
    if feature_function is not None and (
        feature_function not in get_args(FeatureFunction) or normalization != "feature"
    ):
        raise InputError(
            f"feature_function is one of {', '.join(get_args(FeatureFunction))}, and only the published rule has it "
            f'(normalization="feature"); {feature_function!r} and {normalization!r} were given. To edit in a feature space, '
            "fit with SEA(feature_map=...)."
        )
    check_arguments(read_published_editor, given)
    keeping, removing = read_projections(positive), read_projections(negative)
    if keeping.shape != removing.shape:
        raise InputError(
            f"Positive and negative projections must have one shape, and they have {list(keeping.shape)} and "
            f"{list(removing.shape)}."
        )
    n_layers, d_model = keeping.shape[:2]
    description = ModelInfo(UNKNOWN_MODEL, n_layers, d_model, "raw")
    if model is not None:
        check_is_model(model)
        description = ModelInfo.of(model)
        if (description.n_layers, description.d_model) != (n_layers, d_model):
            raise ModelMismatchError(
                f"These projections are for {n_layers} layers of d_model {d_model}, and {description.name} has "
                f"{description.n_layers} of {description.d_model}."
            )
        Site(0, site).check(model)  # said here, not when it is attached
    edits: dict[Site, AffineEdit | PublishedEdit] = {}
    found: dict[Site, FitReport] = {}
    for layer in tqdm(check_layers(layers, n_layers), desc="projections", disable=not shows(progress), delay=2):
        kept = _basis(keeping[layer].double(), keeping.dtype, f"Layer {layer} of the positive projections")
        place = Site(layer, site)
        # P- keeps nearly everything; what it removes is what has a low rank.
        complement = torch.eye(d_model, dtype=torch.float64) - removing[layer].double()
        removed = _basis(complement, removing.dtype, f"Layer {layer} of the negative projections")
        if normalization == "feature":
            edits[place] = PublishedEdit(kept.float(), removed.float(), feature_function)
        else:
            directions, eigenvalues = difference_of_projectors(kept, removed)
            edits[place] = AffineEdit.of_eigenvalues(directions, eigenvalues, restore_norm=True).cast(torch.float32)
        ranks = {"rank_positive": kept.shape[1], "rank_negative": removed.shape[1]}
        found[place] = FitReport(edits[place].rank, numbers=ranks)
    _warn(sum(one["rank_positive"] for one in found.values()) > d_model * len(found) / 2, normalization)
    card = EditorCard(
        method="published projections",
        settings={"normalization": normalization, "feature_function": feature_function},
        model=description,
        reports=found,
        versions=library_versions(),
    )
    return Editor(edits, card)


def _warn(exchanged: bool, normalization: Normalization) -> None:
    if exchanged:
        warnings.warn(
            "P+ keeps more than half of all directions, as only P- should. Are the two files exchanged?",
            SeaLensWarning,
            stacklevel=4,
        )
    if normalization == "feature":
        warnings.warn(
            'normalization="feature" is the published rule: an edit of one token depends on all tokens of the pass, on later '
            "ones and on padding too, and differs with a KV cache. Use it to reproduce published numbers, one prompt a "
            'batch and use_cache=False; use "token" for all else.',
            SeaLensWarning,
            stacklevel=4,
        )


def _basis(
    projector: Float[Tensor, "d_model d_model"], stored: torch.dtype, name: str
) -> Float[Tensor, "d_model rank"]:
    try:
        return basis_of_projector(projector, tolerance=max(1e-4, 4 * torch.finfo(stored).eps))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def basis_of_projector(
    projector: Float[Tensor, "d_model d_model"], tolerance: float = 1e-4
) -> Float[Tensor, "d_model rank"]:
    """The low-rank factor of an orthogonal projector: U with orthonormal columns and `U U^T` equal to it.

    The rank is the trace, and the range is found from a few random combinations of columns, so that no decomposition of a
    d_model x d_model matrix is needed. That the matrix *is* a projector is what the comparison with `U U^T` checks.

    Args:
        projector: As stored, in any precision.
        tolerance: Largest difference allowed in any entry.

    Raises:
        InputError: If it is not an orthogonal projector, with how far it is from one.
    """
    p = projector.double()
    d_model = len(p)
    if not bool(p.isfinite().all()):
        raise InputError("This is not an orthogonal projector: it holds NaN or infinity.")
    asymmetry = float((p - p.T).abs().max())
    if asymmetry > tolerance:
        raise InputError(f"This is not an orthogonal projector: it differs from its transpose by {asymmetry:.2g}.")
    trace = float(p.trace())
    if not -0.5 <= trace <= d_model + 0.5:
        raise InputError(f"This is not an orthogonal projector: its trace is {trace:.4g} at width {d_model}.")
    # A projector's squared norm is its trace; the trace's own rounding adds up, where a diagonal is near 1.
    rank = min(d_model, round(float(p.square().sum())))
    generator = torch.Generator().manual_seed(0)
    spare = min(8, d_model - rank)  # a few columns more than the rank keep the range well conditioned
    q, _ = torch.linalg.qr(p @ torch.randn(d_model, rank + spare, generator=generator, dtype=torch.float64))
    q, _ = torch.linalg.qr(p @ q)  # once more, for the rounding in p: then the basis is that of the nearest projector
    _, eigenvectors = torch.linalg.eigh(q.T @ p @ q)
    basis: Tensor = q @ eigenvectors[:, spare:]  # ascending: the largest come last
    deviation = float((basis @ basis.T - p).abs().max())
    if deviation > tolerance:
        raise InputError(
            f"This is not an orthogonal projector: the nearest one, of rank {rank}, differs from it by {deviation:.2g} in "
            f"an entry, and {tolerance:g} is allowed."
        )
    return basis


def _load(path: Path) -> object:
    if is_zipfile(path):
        with ZipFile(path) as parts:
            if sum(part.file_size for part in parts.infolist()) > path.stat().st_size:
                raise FileFormatError(f"{path} is compressed, as PyTorch writes no file. Save it anew with torch.save.")
    try:
        try:
            loaded: object = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of before torch 1.6 cannot be mapped
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise FileFormatError(
            f"{path} is not a file of tensors, and nothing else is loaded, because it could run code. Give the "
            "uu_positive.pt or uu_negative.pt that sea-train.py writes."
        ) from error
    except Exception as error:  # the unpickler of tensors meets other files with whatever it stumbles on
        raise FileFormatError(f"{path} could not be read as a PyTorch file: {error}") from error
    return loaded


@reads_files_of_0_1("published")
def _published(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PublishedEdit:
    return PublishedEdit(tensors["kept"], tensors["removed"], facts["feature_function"], facts["strength"])
