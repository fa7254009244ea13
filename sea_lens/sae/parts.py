"""From what a file holds to the one form of an SAE: every folding of constants, in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sea_lens.errors import FileFormatError, InputError, reason_of
from sea_lens.models.sites import WITHOUT_LAYER, Site
from sea_lens.sae.codes import Activation, Normalization
from sea_lens.sae.sae import SAE

Config = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Asked:
    """What a user says of an SAE that its files may not: see `load_sae`."""

    site: str | None = None
    k: int | None = None
    mean_norm: float | None = None


@dataclass(frozen=True, eq=False)
class Parts:
    """An SAE as a file holds it, with matrices already the right way round.

    Attributes:
        encoder: `[width, n_features]`.
        encoder_bias: `[n_features]`; None for zeros.
        decoder: `[n_features, width]`.
        decoder_bias: `[width]`; None for zeros.
        activation: See `SAE`.
        threshold: A number for all features, or one per feature.
        k: See `SAE`.
        gate_bias: Of a gated SAE.
        log_magnitude: Of a gated SAE: the logarithm of what the encoder is multiplied by for the size of codes.
        subtracts_bias: See `SAE`.
        normalization: See `SAE`.
        factor: What all activations are multiplied by before the encoder, and divided by after the decoder.
        factor_out: What is divided by after the decoder where that is another number.
        by_decoder_norm: Whether codes are chosen by their size times the length of the decoder's row.
        site: The hook name, where known.
        model: The model, where known.
    """

    encoder: Tensor
    encoder_bias: Tensor | None
    decoder: Tensor
    decoder_bias: Tensor | None
    activation: Activation = "relu"
    threshold: Tensor | float | None = None
    k: int | None = None
    gate_bias: Tensor | None = None
    log_magnitude: Tensor | None = None
    subtracts_bias: bool = False
    normalization: Normalization = "none"
    factor: float = 1.0
    factor_out: float | None = None
    by_decoder_norm: bool = False
    site: str | None = None
    model: str | None = None

    def made(self) -> SAE:
        """The SAE in our form, float32.

        A gated SAE is a JumpReLU one, for with one encoder behind both, `p + b_gate > 0` is `e^r p + b_mag > b_mag - e^r
        b_gate` (Rajamanoharan et al. 2024, arXiv 2404.16014): its threshold is the latter.

        Raises:
            FileFormatError: If the shapes do not go together.
        """
        if self.encoder.ndim != 2 or self.decoder.shape != self.encoder.T.shape:
            raise FileFormatError(
                f"The encoder of this SAE is {list(self.encoder.shape)} as [width, n_features], and its decoder "
                f"{list(self.decoder.shape)} as [n_features, width]: they do not go together."
            )
        width, n_features = self.encoder.shape
        # Matrices that nothing is folded into are not copied to float64: they may be of gigabytes.
        read, written = torch.ones(n_features).double(), torch.ones(n_features).double()
        bias = torch.zeros(n_features).double() if self.encoder_bias is None else self.encoder_bias.double()
        out_bias = torch.zeros(width).double() if self.decoder_bias is None else self.decoder_bias.double()
        activation, threshold = self.activation, self.threshold
        if self.gate_bias is not None:
            sizes = read if self.log_magnitude is None else self.log_magnitude.double().exp()
            read, threshold, activation = read * sizes, bias - sizes * self.gate_bias.double(), "jumprelu"
        if isinstance(threshold, Tensor) and threshold.ndim:
            threshold = threshold.double().reshape(-1)
        elif threshold is not None:
            threshold = torch.full((n_features,), float(threshold)).double()
        if self.by_decoder_norm:
            norms = torch.linalg.vector_norm(self.decoder, dim=1, dtype=torch.float64)
            read, bias, written = read * norms, bias * norms, written / torch.where(norms > 0, norms, 1.0)
        out = self.factor if self.factor_out is None else self.factor_out
        if self.subtracts_bias and out != self.factor:
            refuse("it subtracts its output's bias from an input of another scale")
        read, written = read * self.factor, written / out
        return SAE(
            _times(self.encoder, read),
            bias.float(),
            _times(self.decoder, written[:, None]),
            (out_bias / out).float(),
            activation,
            None if threshold is None else threshold.float(),
            self.k,
            self.subtracts_bias,
            self.normalization,
            self.site,
        )


def _times(matrix: Tensor, factors: Tensor) -> Tensor:
    """In float64 where there is something to multiply by, then float32."""
    plain = bool((factors == 1).all())
    return (matrix if plain else matrix.double() * factors).float().contiguous()


def need(tensors: Tensors, *names: str) -> Tensor:
    """The tensor of the first of these names that is there.

    Raises:
        FileFormatError: If none is.
    """
    for name in names:
        if name in tensors:
            return tensors[name]
    there = ", ".join(sorted(tensors)) or "nothing"
    raise FileFormatError(f"This SAE's file holds no {' or '.join(names)}; it holds {there}.")


def refuse(why: str) -> None:
    """Raises an InputError for an SAE that cannot be computed exactly here."""
    raise InputError(f"This SAE cannot be read exactly: {why}.")


def only_ones(tensors: Tensors) -> None:
    """Refuses a `scaling_factor` that changes something."""
    factor = tensors.get("scaling_factor")
    if factor is not None and not bool((factor == 1).all()):
        refuse("it has a scaling_factor per feature other than 1, left by finetuning")


def factor_of(width: int, asked: Asked, known: float | None = None) -> float:
    """What a training on activations of mean norm `sqrt(width)` multiplied them by.

    Raises:
        InputError: If the mean norm is not known.
    """
    norm = known if asked.mean_norm is None else asked.mean_norm
    if norm is None or not 0 < norm < math.inf:
        raise InputError(
            "This SAE was trained on activations scaled to a mean norm of sqrt(width), and its files do not say what their "
            "mean norm was before. Give mean_norm, the mean Euclidean norm of the activations at its site."
        )
    return math.sqrt(width) / norm


def site_named(name: object) -> str | None:
    """A hook name in our form; None where it names no site with a layer."""
    if not isinstance(name, str) or not (name.startswith(("blocks.", WITHOUT_LAYER))):
        return None
    try:
        return Site.of(name).hook_name
    except InputError:
        return None


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; an empty one where there is no file.

    Raises:
        FileFormatError: If it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} could not be read as JSON: {reason_of(error)}") from error
    if not isinstance(found, dict):
        raise FileFormatError(f"{path} is not an SAE's configuration: it holds a {type(found).__name__}.")
    return found
