"""Loading a model by the name that a user has for it. Nothing is installed, and no code of a checkpoint is run unasked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, get_args

import torch

from sea_lens.errors import InputError, ModelMismatchError, SeaLensWarning
from sea_lens.models.bridge import Model, check_is_model
from sea_lens.models.gguf import apply_facts, dequantized
from sea_lens.models.gguf_files import find_gguf, gguf_of_repository
from sea_lens.models.hub import check_name, offline
from sea_lens.models.plain import to_wrap
from sea_lens.models.quantization import (
    QuantizationConfig,
    QuantizationName,
    QuantizedClass,
    is_quantized,
    quantization_config,
)
from sea_lens.wording import either, setting

Dtype = Literal["float32", "bfloat16", "float16", "float64", "auto"]
"""Words for the dtype of weights; `"auto"` is the one that the checkpoint names."""
NAMED: dict[str, Callable[..., Model]] = {}
"""Models that the package knows by a word, such as its embedded ones; filled by whoever ships them."""


def register_model(name: str) -> Callable[[Callable[..., Model]], Callable[..., Model]]:
    """Registers a loader `load(device=...)` under a word that `load_model` takes.

    Args:
        name: The word.

    Raises:
        InputError: If the word is taken.
    """

    def register(load: Callable[..., Model]) -> Callable[..., Model]:
        if NAMED.setdefault(name, load) is not load:
            raise InputError(f"There is a model named {name!r} already. Choose another name.")
        return load

    return register


def load_model(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: Dtype | torch.dtype = "float32",
    quantization: QuantizationName | QuantizationConfig | None = None,
    revision: str | None = None,
    gguf_file: str | None = None,
    **options: Any,
) -> Model:
    """Boots a TransformerBridge. It installs nothing, and runs no code of a checkpoint unless it is told to.

    Example:
        >>> sl.load_model("organism").cfg.n_layers
        4

    Args:
        name: A name on the Hugging Face hub, a local folder, a GGUF file, or a word: `"organism"`, `"bias-organism"` and
            `"knowledge-organism"` are the embedded models; `"smollm2"` (SmolLM2-135M-Instruct) and `"gemma3-270m"` (Gemma 3
            270M, not tuned to follow instructions) come from Python packages, in GGUF at about 4 bits a weight.
        device: Where it runs, such as `"cuda"`; `"auto"` spreads it over the devices there are.
        dtype: Of its weights; `"auto"` is the one that the checkpoint names.
        quantization: What weights are quantized to on loading: `"4bit"` or `"8bit"` (bitsandbytes), `"torchao-int8"`,
            `"quanto-int8"`, `"hqq-4bit"` and others, or one of transformers' quantization configs. None for none; a
            checkpoint that is quantized already stays so.
        revision: A branch, tag or commit on the hub.
        gguf_file: A GGUF file in the folder or repository; `"repo/name:file.gguf"` says the same. It is needed only if there
            are several.
        options: Passed on to `TransformerBridge.boot_transformers`: `hf_model=` and `tokenizer=` to wrap a Hugging Face model
            that you have, with PEFT's adapters or without, `trust_remote_code=True` for checkpoints with code of their own.

    A GGUF file is dequantized to `dtype` (`"auto"` is float32) by transformers and kept as an ordinary folder in
    `~/.cache/sea_lens`, or where the environment variable `SEA_LENS_CACHE` says: 15 s for SmolLM2, and as fast as any folder
    from then on. Say "dequantized Q4" with numbers measured on such a model. TransformerLens puts a model's beginning token
    before plain prompts; a GGUF file says whether the model wants one, and that holds here: Gemma does, and SmolLM2, whose
    `<|im_start|>` opens a message of a chat, does not, as in llama.cpp and transformers.

    Returns:
        The bridge, on its device, with its tokenizer.

    Raises:
        InputError: If there is no such model, dtype, device or quantization, a GGUF file is damaged, or a library or a
            package with a model is missing (with what to install).
        ModelMismatchError: If TransformerLens does not know its architecture, or it reads text in both directions.

    Warns:
        SeaLensWarning: If a model for images or sound cannot load what prepares them (text works all the same), or no weights
            could be quantized.
    """
    if not isinstance(name, str | Path):
        raise InputError(
            f"load_model takes a name or a folder, and a {type(name).__name__} was given. For a Hugging Face model that you "
            'have: load_model("its name", hf_model=model, tokenizer=tokenizer).'
        )
    name, where = str(name), _device(device)
    if dtype not in get_args(Dtype) and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype is {', '.join(get_args(Dtype))}, and {dtype!r} was given.")
    if name in NAMED:
        others = {"quantization": quantization, "revision": revision, "gguf_file": gguf_file}
        return _embedded(name, where, dtype, {**others, **options})
    wrapped = options.get("hf_model")
    if wrapped is not None and (quantization is not None or gguf_file is not None):
        raise InputError(
            "hf_model= is loaded already. Quantize it as you load it: leave quantization and gguf_file out."
        )
    if wrapped is not None:
        options["hf_model"] = wrapped = to_wrap(wrapped)
    if wrapped is None and check_name(name, NAMED, revision, options.get("token")):
        kept: dict[str, Any] = {"quantization": quantization, "revision": revision, "gguf_file": gguf_file, **options}
        with offline():
            return load_model(name, device=device, dtype=dtype, **kept)
    gguf = None if wrapped is not None else find_gguf(name, gguf_file, revision, options.get("token"))
    if gguf is not None:
        folder = dequantized(gguf, _dtype(dtype, None))
        model = load_model(folder, device=device, dtype=_dtype(dtype, None), quantization=quantization, **options)
        apply_facts(model, folder, name)
        return model
    try:
        config = wrapped.config if wrapped is not None else _config(name, revision, options)
        kind = _dtype(dtype, config)
        chosen: dict[str, Any] = {"device_map": "auto"} if where is None else {"device": where}
        if quantization is not None:
            chosen |= _quantized(config, quantization, kind, where, options)
        bridge: Model = _boot(name, dtype=kind, revision=revision, **{**chosen, **options})
    except OSError as error:
        only = None if wrapped is not None else gguf_of_repository(name, revision, options.get("token"))
        if only is not None:
            more: dict[str, Any] = {"quantization": quantization, "revision": revision, "gguf_file": only, **options}
            return load_model(name, device=device, dtype=dtype, **more)
        raise InputError(f"No model could be loaded from {name!r}, as a folder or from the hub: {error}") from error
    except RuntimeError as error:
        if quantization is None:
            raise
        told = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name!r} could not be loaded with {setting('quantization', quantization)} here: {told}"
        ) from error
    except ImportError as error:
        told = " ".join(str(error).split())[:300]
        raise InputError(f"{name!r} cannot be loaded before something else is installed: {told}") from error
    except ValueError as error:
        if isinstance(error, InputError | ModelMismatchError):
            raise
        if "Unrecognized model" in str(error):
            raise InputError(f"{name!r} is not a model's folder: its config.json names no model type.") from error
        if "trust_remote_code" in str(error):
            raise InputError(_brings_code(name)) from error
        if "architecture" not in str(error):
            raise
        raise ModelMismatchError(f"TransformerLens cannot wrap {name!r}: {str(error)[:200]}") from error
    check_is_model(bridge)
    if quantization is not None and not is_quantized(bridge.original_model):
        warnings.warn(
            f"{setting('quantization', quantization)} quantized no weights of {name!r}: no layer's size fits "
            "it. Try another.",
            SeaLensWarning,
            stacklevel=2,
        )
    return bridge


def _embedded(name: str, where: torch.device | None, dtype: str | torch.dtype, others: dict[str, Any]) -> Model:
    odd = [option for option, value in others.items() if value is not None]
    if odd:
        raise InputError(f"The embedded model {name!r} takes device and dtype alone. Leave {', '.join(odd)} out.")
    model = NAMED[name](device="cpu" if where is None else str(where))
    kind = torch.float32 if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return model if kind == torch.float32 else model.to(kind, print_details=False)  # type: ignore[attr-defined]


def _device(device: str | torch.device) -> torch.device | None:
    """The device by its name; None to spread a model over all.

    Raises:
        InputError: If there is no such device here.
    """
    if device == "auto":
        return None
    try:
        found = torch.device(device)
        if found.type != "meta":
            torch.empty(0, device=found)
            return found
    except (RuntimeError, AssertionError, TypeError, ValueError):
        pass
    here = ["auto", "cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    here += ["mps"] if torch.backends.mps.is_available() else []
    raise InputError(f"There is no device {str(device)!r} here. Give one of {', '.join(here)}.")


def _dtype(dtype: str | torch.dtype, config: Any) -> torch.dtype:
    found = getattr(config, "dtype", None) if dtype == "auto" else dtype
    found = getattr(torch, found, None) if isinstance(found, str) else found
    return found if isinstance(found, torch.dtype) else torch.float32


def _config(name: str, revision: str | None, options: dict[str, Any]) -> Any:
    """The model's configuration.

    TransformerLens imports the code that comes with some checkpoints to mend it, whether it may be trusted or not. So an
    architecture that only such code has is refused here.

    Raises:
        InputError: If the checkpoint needs code of its own and nobody said that it may be trusted.
    """
    import transformers  # late, as below: it takes seconds to import, which `import sea_lens` need not cost

    trusted = bool(options.get("trust_remote_code", False))
    config = transformers.AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trusted)
    unknown = [one for one in config.architectures or () if not hasattr(transformers, one)]
    if unknown and not trusted:
        raise InputError(_brings_code(name))
    return config


def _brings_code(name: str) -> str:
    return (
        f"{name!r} needs code that comes with the checkpoint, which is not run unasked. Read it, and pass "
        "trust_remote_code=True to load_model if you trust it" + either(".", ", in Python.")
    )


def _quantized(
    config: Any,
    quantization: QuantizationName | QuantizationConfig,
    dtype: torch.dtype,
    where: torch.device | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """What TransformerLens is told to load quantized weights."""
    from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
    from transformer_lens.model_bridge.sources.transformers.helpers import get_hf_model_class_for_architecture

    found, takes_a_map = quantization_config(quantization, dtype)
    cls = options.pop("model_class", None)
    cls = cls or get_hf_model_class_for_architecture(determine_architecture_from_hf_config(config))
    placed: dict[str, Any] = {"model_class": QuantizedClass(cls, found)}
    # Quantized weights are made where they stay: some cannot be moved.
    if where is not None and (takes_a_map or where.type != "cpu"):
        placed |= {"device": None, "device_map": {"": str(where)}}
    return placed


def _boot(name: str, **options: Any) -> Model:
    """TransformerLens's `boot_transformers`, but for the part that loads processors of images and sound.

    That part runs `pip install torchvision` where one cannot be loaded. The function is copied with a part of ours in its
    place, so that nothing outside this call sees a difference.
    """
    from transformer_lens.model_bridge import TransformerBridge

    boot = TransformerBridge.boot_transformers
    part = "load_modality_processor"
    if not isinstance(boot, FunctionType) or part not in boot.__globals__:
        raise ModelMismatchError(
            "This release of TransformerLens boots models in another way, in which it might install packages. Install "
            "transformer-lens 4.0 to 4.3."
        )
    # A model that the user has in memory may have a name that is nobody's, or somebody else's.
    ours = _no_processor if options.get("hf_model") is not None and not Path(name).is_dir() else _load_processor
    copied = FunctionType(boot.__code__, {**boot.__globals__, part: ours}, boot.__name__, boot.__defaults__)
    copied.__kwdefaults__ = boot.__kwdefaults__
    bridge: Model = copied(name, **options)
    return bridge


def _no_processor(*args: object) -> None:
    """Loads nothing."""


PROCESSORS = {
    "is_multimodal": "AutoProcessor",
    "is_audio_model": "AutoFeatureExtractor",
    "is_visual_model": "AutoImageProcessor",
}
"""By the flag of a configuration, what prepares its images and sound."""


def _load_processor(bridge: Any, cfg: Any, name: str, trust_remote_code: bool, token: str | None) -> None:
    """Loads what prepares a model's images or sound, if it can be loaded with what is installed."""
    import transformers

    for flag, kind in PROCESSORS.items():
        if not getattr(cfg, flag, False):
            continue
        try:
            loader = getattr(transformers, kind)
            bridge.processor = loader.from_pretrained(name, token=token, trust_remote_code=trust_remote_code)
        except Exception as error:  # files and libraries fail in many ways, and text needs none of it
            told = " ".join(str(error).split())[:160]
            missing = [library for library in ("torchvision", "PIL") if find_spec(library) is None]
            packages = " ".join(missing).replace("PIL", "pillow")
            advice = f" For images, run `pip install {packages}` and load the model again." if missing else ""
            warnings.warn(
                f"What prepares images or sound for {name!r} could not be loaded ({told}), and nothing was installed. Text "
                f"works without it.{advice}",
                SeaLensWarning,
                stacklevel=2,
            )
