"""A sparse autoencoder in one form, whatever file it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.cache import digest, save_tensors, write_text
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.sites import Site
from sea_lens.sae.codes import Activation, Normalization, activated, normalized

CODES_AT_ONCE = 2**24
"""Numbers of codes that are held at once where rows are many. Bounds memory: 64 MiB in float32."""


@dataclass(frozen=True)
class SAESource:
    """Where a sparse autoencoder came from: all that finds it again, and a digest that tells whether it is the same.

    Attributes:
        name: The hub's name that it was loaded from, or that of its folder or file, without the path to it; empty for one
            that was made in memory.
        inside: The folder or file inside a repository or a folder.
        layout: Of its files.
        digest: Of its tensors in our form, before any features were left out.
        n_features: Of all of it.
        model: The model that it was trained on, as its files call it; None where they do not.
        revision: Of a repository.
        site: As given to `load_sae`.
        k: As given to `load_sae`.
        mean_norm: As given to `load_sae`.
    """

    name: str
    inside: str | None
    layout: str
    digest: str
    n_features: int
    model: str | None = None
    revision: str | None = None
    site: str | None = None
    k: int | None = None
    mean_norm: float | None = None

    in_words: ClassVar[bool] = False  # it has no form on a command line

    def __str__(self) -> str:
        named = self.name or "made in memory"
        return f"{named}{f', {self.inside}' if self.inside else ''} ({self.n_features:,} features, {self.digest})"


@dataclass(frozen=True)
class Fidelity:
    """How well a sparse autoencoder represents some activations.

    Attributes:
        explained_variance: `1 - sum |x - decoded|^2 / sum |x - mean x|^2` over rows. Below 0 it is worse than their mean.
        l0: Mean number of active features per row.
        n: Rows.
    """

    explained_variance: float
    l0: float
    n: int


@dataclass(frozen=True, eq=False, repr=False)
class SAE:
    """A sparse autoencoder: `codes = activation(n(x) encoder + encoder_bias)`, `decoded = n'(codes decoder + decoder_bias)`.

    n is the normalization of the token, and n' takes it back. Codes are computed in float32 (float64 for float64
    activations): coarser ones flip at thresholds. Load one with `sea_lens.load_sae`.

    Example:
        >>> sae = sl.load_sae("organism")
        >>> sae.width, sae.n_features
        (128, 1024)
        >>> (sae.encode(torch.randn(5, 128)) > 0).shape
        torch.Size([5, 1024])

    Attributes:
        encoder: `[width, n_features]`.
        encoder_bias: `[n_features]`.
        decoder: `[n_features, width]`, a direction per feature.
        decoder_bias: `[width]`.
        activation: `"relu"`, `"jumprelu"` (above `threshold`), `"topk"` (the `k` largest of a token) or `"groupmax"` (the
            largest of each of `k` groups).
        threshold: Of `"jumprelu"`, `[n_features]`.
        k: Of `"topk"` and `"groupmax"`.
        subtracts_bias: Whether `decoder_bias` is taken from what the encoder is given.
        normalization: What is done to each token: `"none"`, `"constant_norm_rescale"` (to norm `sqrt(width)`) or
            `"layer_norm"`.
        site: The hook name of the activations that it was trained on, where known.
        source: Where it came from.
    """

    encoder: Float[Tensor, "width n_features"]
    encoder_bias: Float[Tensor, " n_features"]
    decoder: Float[Tensor, "n_features width"]
    decoder_bias: Float[Tensor, " width"]
    activation: Activation = "relu"
    threshold: Float[Tensor, " n_features"] | None = None
    k: int | None = None
    subtracts_bias: bool = False
    normalization: Normalization = "none"
    site: str | None = None
    source: SAESource | None = None
    _placed: dict[object, SAE] = field(default_factory=dict, init=False)

    in_words: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.encoder.ndim != 2 or not self.encoder.numel():
            raise InputError(
                f"An encoder is [width, n_features], and one of shape {list(self.encoder.shape)} was given."
            )
        width, n_features = self.encoder.shape
        expected = {
            "encoder_bias": (n_features,),
            "decoder": (n_features, width),
            "decoder_bias": (width,),
            "threshold": (n_features,),
        }
        for name, tensor in self._tensors.items():
            if name in expected and tensor.shape != expected[name]:
                raise InputError(
                    f"This SAE has width {width} and {n_features} features, so its {name} is {list(expected[name])}; it is "
                    f"{list(tensor.shape)}."
                )
            if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
                raise InputError(f"An SAE's tensors are finite floating-point numbers, and its {name} holds others.")
        if (self.threshold is None) == (self.activation == "jumprelu"):
            raise InputError("A jumprelu SAE has a threshold per feature, and no other kind has any.")
        if (self.k is None) == (self.activation in ("topk", "groupmax")):
            raise InputError("A topk or groupmax SAE has a k, and no other kind has any.")
        if self.k is not None and (
            not 1 <= self.k <= n_features or (self.activation == "groupmax" and n_features % self.k)
        ):
            raise InputError(f"k is from 1 to {n_features} (and of groupmax a divisor of it), and it is {self.k}.")
        if self.site is not None:
            object.__setattr__(self, "site", Site.of(self.site).hook_name)
        if self.source is None:
            found = digest(self._tensors, self.activation, self.k, self.subtracts_bias, self.normalization)
            object.__setattr__(self, "source", SAESource("", None, "memory", found, n_features))

    @property
    def _tensors(self) -> dict[str, Tensor]:
        found = {
            "encoder": self.encoder,
            "encoder_bias": self.encoder_bias,
            "decoder": self.decoder,
            "decoder_bias": self.decoder_bias,
        }
        return found if self.threshold is None else {**found, "threshold": self.threshold}

    @property
    def width(self) -> int:
        """Width of the activations that it encodes."""
        return self.encoder.shape[0]

    @property
    def n_features(self) -> int:
        """How many features there are here; `source.n_features` counts those that were left out too."""
        return self.encoder.shape[1]

    @property
    def identity(self) -> SAESource:
        """Where it came from, with its digest."""
        assert self.source is not None
        return self.source

    def __repr__(self) -> str:
        kept = "" if self.n_features == self.identity.n_features else f"{self.n_features:,} of "
        what = f"{self.activation}{f' {self.k}' if self.k else ''}"
        normalization = "" if self.normalization == "none" else f", {self.normalization}"
        return f"SAE({kept}{self.identity}, {what}, width {self.width}, of {self.site or 'an unknown site'}{normalization})"

    # --- at work -----------------------------------------------------------------------------------------------------

    def encode(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch n_features"]:
        """The codes of activations of any leading shape.

        Raises:
            ModelMismatchError: If the last dimension is not `width`.
        """
        return self.codes_and_scale(x)[0]

    def codes_and_scale(
        self, x: Float[Tensor, "*batch width"]
    ) -> tuple[Float[Tensor, "*batch n_features"], Float[Tensor, "*batch one"] | None]:
        """The codes, and how long each token's decoded directions are by its normalization; None for 1."""
        self._check_width(x)
        placed = self.on(x.device, torch.promote_types(x.dtype, torch.float32))
        given, scale, _ = normalized(x.to(placed.encoder.dtype), self.normalization)
        given = given - placed.decoder_bias if self.subtracts_bias else given
        return activated(given @ placed.encoder + placed.encoder_bias, self.activation, placed.threshold, self.k), scale

    def decode(
        self, codes: Float[Tensor, "*batch n_features"], x: Float[Tensor, "*batch width"] | None = None
    ) -> Float[Tensor, "*batch width"]:
        """What codes stand for.

        Args:
            codes: As `encode` gives them.
            x: The activations that they are of: a normalization by token is taken back with them.

        Raises:
            InputError: If they are needed and not given.
            ModelMismatchError: If there are more or fewer codes than features.
        """
        if not isinstance(codes, Tensor) or codes.shape[-1:] != (self.n_features,):
            shape = list(codes.shape) if isinstance(codes, Tensor) else type(codes).__name__
            raise ModelMismatchError(
                f"This SAE has {self.n_features} features here, so codes are [..., {self.n_features}]; {shape} was given."
            )
        placed = self.on(codes.device, torch.promote_types(codes.dtype, torch.float32))
        decoded = codes.to(placed.decoder.dtype) @ placed.decoder + placed.decoder_bias
        if self.normalization == "none":
            return decoded
        if x is None:
            raise InputError(
                f"This SAE normalizes each token ({self.normalization}), so decoding needs the activations too: "
                "decode(codes, x)."
            )
        self._check_width(x)
        _, scale, mean = normalized(x.to(decoded), self.normalization)
        assert scale is not None
        return decoded * scale if mean is None else decoded * scale + mean

    def measure(self, x: Float[Tensor, "n width"]) -> Fidelity:
        """How well it represents these activations: a wrong model, layer or scale shows here.

        Raises:
            InputError: If there are no rows, or they hold NaN or infinity.
            ModelMismatchError: If their width is another.
        """
        check_arguments(SAE.measure, locals())
        self._check_width(x)
        if not x.numel() or not bool(x.isfinite().all()):
            raise InputError("Fidelity is measured on one activation at least, all of finite numbers.")
        rows, missed, active = x.detach().float(), 0.0, 0
        for block in torch.split(rows, self.rows_at_once):
            codes = self.encode(block)
            missed += float((block - self.decode(codes, block)).double().square().sum())
            active += int((codes != 0).sum())
        total = float((rows.double() - rows.double().mean(0)).square().sum())
        explained = 1 - missed / total if total else float(missed == 0)
        return Fidelity(explained, active / max(len(rows), 1), len(rows))

    @property
    def rows_at_once(self) -> int:
        """Rows whose codes are taken together where there are many."""
        return max(1, CODES_AT_ONCE // self.n_features)

    def _check_width(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise InputError(f"Activations are a tensor [..., {self.width}], and a {type(x).__name__} was given.")
        if x.shape[-1:] != (self.width,):
            last = x.shape[-1] if x.ndim else "missing"
            raise ModelMismatchError(
                f"This SAE is for width {self.width}, and the activation's last dimension is {last}. Take one that was "
                "trained on this model and site."
            )

    # --- views -------------------------------------------------------------------------------------------------------

    def at_features(self, features: Int[Tensor, " n_kept"]) -> SAE:
        """Only some features, whose codes are the same. It keeps the identity of the whole.

        Raises:
            InputError: If features look at each other, as in a top-k SAE.
        """
        if self.k is not None:
            raise InputError(
                f"The features of a {self.activation} SAE compete, so some of them alone have other codes."
            )
        kept = {
            "encoder": self.encoder[:, features].contiguous(),
            "encoder_bias": self.encoder_bias[features],
            "decoder": self.decoder[features],
            "threshold": None if self.threshold is None else self.threshold[features],
        }
        return replace(self, **kept)  # type: ignore[arg-type]

    def on(self, device: torch.device, dtype: torch.dtype) -> SAE:
        """Itself with its tensors where and as activations are; kept."""
        if (self.encoder.device, self.encoder.dtype) == (device, dtype):
            return self
        key = device, dtype
        if key not in self._placed:
            with torch.inference_mode(False):  # what is kept must also serve a later pass that builds a graph
                moved = {name: tensor.to(device, dtype) for name, tensor in self._tensors.items()}
            self._placed[key] = replace(self, **moved)  # type: ignore[arg-type]
        return self._placed[key]

    def save_pretrained(self, save_directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Writes it in SAELens's layout: `cfg.json` and `sae_weights.safetensors`.

        Args:
            save_directory: Made if it is missing.
            dtype: Of the weights in the file.

        Raises:
            InputError: If it is a groupmax SAE, for which SAELens has no name.
        """
        check_arguments(SAE.save_pretrained, locals())
        if self.activation == "groupmax":
            raise InputError("SAELens has no groupmax SAEs, so its layout cannot hold this one.")
        names = {"encoder": "W_enc", "encoder_bias": "b_enc", "decoder": "W_dec", "decoder_bias": "b_dec"}
        tensors = {names.get(name, name): tensor.to(dtype) for name, tensor in self._tensors.items()}
        about = {"hook_name": self.site, "model_name": self.identity.model}
        config: dict[str, Any] = {
            "architecture": "standard" if self.activation == "relu" else self.activation,
            "d_in": self.width,
            "d_sae": self.n_features,
            "dtype": str(dtype).removeprefix("torch."),
            "apply_b_dec_to_input": self.subtracts_bias,
            "normalize_activations": self.normalization,
            "reshape_activations": "hook_z" if (self.site or "").endswith("hook_z") else "none",
            **({"k": self.k, "rescale_acts_by_decoder_norm": False} if self.k is not None else {}),
            **about,  # where SAELens before 6.0 looks
            "metadata": about,
        }
        folder = Path(save_directory)
        save_tensors(tensors, folder / "sae_weights.safetensors", {"format": "pt"})
        write_text(folder / "cfg.json", json.dumps(config, indent=1) + "\n")
