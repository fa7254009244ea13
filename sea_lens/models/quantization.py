"""Quantized weights, by the words that a user has for them, through the libraries that transformers drives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch

from sea_lens.errors import InputError
from sea_lens.wording import setting

QuantizationName = Literal[
    "4bit",
    "8bit",
    "torchao-int8",
    "torchao-int4",
    "quanto-int8",
    "quanto-int4",
    "quanto-int2",
    "quanto-float8",
    "hqq-8bit",
    "hqq-4bit",
    "hqq-3bit",
    "hqq-2bit",
]
"""Words for what `load_model` quantizes weights to. `"4bit"` and `"8bit"` are bitsandbytes's NF4 and LLM.int8()."""


@runtime_checkable
class QuantizationConfig(Protocol):
    """What we use of transformers' quantization configs, such as `BitsAndBytesConfig`."""

    def to_dict(self) -> dict[str, Any]:
        """Its settings."""


@dataclass(frozen=True)
class Quantizer:
    """A library that quantizes.

    Attributes:
        module: The name that it is imported by.
        package: The name that it is installed by.
        config: Makes transformers' config from the part of the word that is left, and the dtype of the rest of the model.
        takes_a_map: Whether the model's device is given as a device map on a CPU, too.
    """

    module: str
    package: str
    config: Callable[[str, torch.dtype], QuantizationConfig]
    takes_a_map: bool = False


def _bitsandbytes(what: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if what == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _torchao(what: str, dtype: torch.dtype) -> Any:
    from torchao import quantization  # type: ignore[import-not-found, unused-ignore]
    from transformers import TorchAoConfig

    return TorchAoConfig(quantization.Int8WeightOnlyConfig() if what == "int8" else quantization.Int4WeightOnlyConfig())


def _quanto(what: str, dtype: torch.dtype) -> Any:
    from transformers import QuantoConfig

    return QuantoConfig(weights=what)


def _hqq(what: str, dtype: torch.dtype) -> Any:
    from transformers import HqqConfig

    return HqqConfig(nbits=int(what[0]), group_size=64)


QUANTIZERS = {
    "": Quantizer("bitsandbytes", "bitsandbytes", _bitsandbytes, takes_a_map=True),
    "torchao": Quantizer("torchao", "torchao", _torchao),
    "quanto": Quantizer("optimum.quanto", "optimum-quanto", _quanto),
    "hqq": Quantizer("hqq", "hqq", _hqq),
}
"""By the first part of a word."""


def quantization_config(
    quantization: QuantizationName | QuantizationConfig, dtype: torch.dtype
) -> tuple[QuantizationConfig, bool]:
    """Transformers' config for a word, and whether the device is given as a device map on a CPU, too.

    Args:
        quantization: A word, or a config, which comes back as it is.
        dtype: Of what is not quantized.

    Raises:
        InputError: If there is no such word, or its library is not installed (with what to install).
    """
    if not isinstance(quantization, str):
        if not callable(getattr(quantization, "to_dict", None)):
            raise InputError(
                f"quantization is {_words()}, or one of transformers' configs such as BitsAndBytesConfig(...), and "
                f"{quantization!r} was given."
            )
        return quantization, type(quantization).__name__ == "BitsAndBytesConfig"
    if quantization not in get_args(QuantizationName):
        raise InputError(f"quantization is {_words()}, and {quantization!r} was given.")
    library, _, what = str(quantization).rpartition("-")
    quantizer = QUANTIZERS[library]
    needed = {quantizer.module: quantizer.package, "accelerate": "accelerate"}
    missing = [package for module, package in needed.items() if not _is_installed(module)]
    if missing:
        raise InputError(
            f"{setting('quantization', quantization)} needs {' and '.join(missing)}. Run `pip install "
            f"{' '.join(missing)}`, or leave it out."
        )
    try:
        return quantizer.config(what, dtype), quantizer.takes_a_map
    except ImportError as error:
        raise InputError(f"{quantizer.package} is installed and cannot be used: {error}") from error


def _words() -> str:
    return ", ".join(map(repr, get_args(QuantizationName)))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def is_quantized(model: torch.nn.Module) -> bool:
    """Whether any weights of a model are in a quantized form, as a parameter or a layer of a library's own."""
    libraries = tuple(one.module for one in QUANTIZERS.values())
    return any(
        type(parameter) is not torch.nn.Parameter
        or type(parameter.data) is not torch.Tensor
        or not parameter.is_floating_point()
        for parameter in model.parameters()
    ) or any(type(module).__module__.startswith(libraries) for module in model.modules())


class QuantizedClass:
    """A Hugging Face model class whose `from_pretrained` quantizes, for TransformerLens to load with."""

    def __init__(self, cls: Any, config: QuantizationConfig) -> None:
        self.cls, self.config = cls, config

    def from_pretrained(self, name: str, **options: Any) -> Any:
        """The model with quantized weights."""
        return self.cls.from_pretrained(name, quantization_config=self.config, **options)
