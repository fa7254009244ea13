"""Loading a sparse autoencoder by the name that a user has for it, in any layout that they are published in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal
from weakref import WeakValueDictionary

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from sea_lens.arguments import check_arguments
from sea_lens.errors import FileFormatError, InputError
from sea_lens.models.hub import check_repository
from sea_lens.sae.others import DICTIONARY, SPARSIFY, read_dictionary, read_single, read_sparsify
from sea_lens.sae.parts import Asked, Parts
from sea_lens.sae.sae import SAE, SAESource
from sea_lens.sae.saelens import WEIGHTS, read_saelens
from sea_lens.sae.scopes import (
    GEMMA_1,
    GEMMA_2,
    LLAMA,
    read_gemma_scope,
    read_gemma_scope_2,
    read_llama_scope,
    read_qwen_scope,
)

Layout = Literal[
    "saelens", "gemma-scope", "gemma-scope-2", "llama-scope", "sparsify", "dictionary-learning", "qwen-scope", "single"
]
READERS: Mapping[Layout, Callable[[Path, Asked], Parts]] = {
    "saelens": read_saelens,
    "gemma-scope": read_gemma_scope,
    "gemma-scope-2": read_gemma_scope_2,
    "llama-scope": read_llama_scope,
    "sparsify": read_sparsify,
    "dictionary-learning": read_dictionary,
    "qwen-scope": read_qwen_scope,
    "single": read_single,
}
WEIGHTS_OF: Mapping[str, Layout] = {
    WEIGHTS: "saelens",
    GEMMA_1: "gemma-scope",
    GEMMA_2: "gemma-scope-2",
    f"checkpoints/{LLAMA}": "llama-scope",
    LLAMA: "llama-scope",
    SPARSIFY: "sparsify",
    DICTIONARY: "dictionary-learning",
}
"""By the file that holds the weights, the layout. A layout is told by names and never by shapes: a square matrix has none
that tells which way round it is."""
SINGLE = (".pt", ".pth")
NAMED: dict[str, Path] = {}
"""SAEs that the package knows by a word, filled by whoever ships them."""
_LIVING: WeakValueDictionary[str, SAE] = WeakValueDictionary()
"""SAEs that something still holds, by digest."""
_PLACES: dict[str, Path] = {}
"""By digest, where this process loaded an SAE from: a card holds a folder's name, and says nothing of the machine."""


def load_sae(
    name: str | Path,
    inside: str | None = None,
    *,
    site: str | None = None,
    k: int | None = None,
    mean_norm: float | None = None,
    layout: Layout | None = None,
    revision: str | None = None,
) -> SAE:
    """Loads a sparse autoencoder from a folder, a file or the Hugging Face hub. No code of a file is run.

    It reads SAELens (standard, gated, JumpReLU, top-k, batch top-k, matryoshka, of every version), Gemma Scope 1 and 2,
    Llama Scope, Qwen Scope, sparsify, dictionary_learning, and single files as Goodfire's. What cannot be computed exactly is
    refused.

    Example:
        >>> sl.load_sae("organism").site
        'blocks.1.hook_resid_post'

    Args:
        name: A folder, a file, a repository on the hub such as `"google/gemma-scope-2b-pt-res"`, or the embedded model's SAE:
            `"organism"`.
        inside: The folder or file inside a repository or a folder, such as `"layer_12/width_16k/average_l0_82"`.
        site: The hook name of its activations, where its files do not say it or say it in another way.
        k: Of a top-k SAE whose files do not say it.
        mean_norm: The mean Euclidean norm of activations at its site, for one that was trained on activations scaled by it
            (`expected_average_only_in`) and does not say it.
        layout: Of its files, where their names do not tell.
        revision: A branch, tag or commit on the hub.

    Returns:
        The SAE, with its hook point, normalization and digest.

    Raises:
        InputError: If there is no such SAE, it cannot be computed exactly (a transcoder, whitened activations, a threshold
            that was never set), or `k` or `mean_norm` says nothing of it. The message says why, and what to give.
        FileFormatError: If a file is missing or damaged, or holds anything but tensors.
    """
    check_arguments(load_sae, locals())
    if inside is not None and (PurePosixPath(inside).is_absolute() or ".." in PurePosixPath(inside).parts):
        raise InputError(f"inside is a path inside {name}, and {inside!r} leads out of it.")
    embedded = NAMED.get(str(name)) if inside is None else None
    there = embedded or Path(name)
    local = there.exists()
    found = there if inside is None else there / inside
    if not local:
        found = _fetched(str(name), inside, revision)
    weights, kind = _weights(found, layout)
    parts = READERS[kind](weights, Asked(site, k, mean_norm))
    sae = parts.made()
    if k is not None and sae.k is None:
        raise InputError(f"k is of top-k SAEs, and this one is a {sae.activation}. Leave it out.")
    if mean_norm is not None and parts.factor == 1 and mean_norm**2 != sae.width:
        raise InputError("This SAE takes activations as they are, so mean_norm says nothing of it. Leave it out.")
    if local and not embedded:
        _PLACES[sae.identity.digest] = there.absolute()
    source = replace(
        sae.identity,
        name=str(name) if embedded or not local else there.absolute().name,
        inside=inside,
        layout=kind,
        model=parts.model if isinstance(parts.model, str) else None,
        revision=revision,
        site=site,
        k=k,
        mean_norm=mean_norm,
    )
    return kept(replace(sae, site=sae.site if site is None else site, source=source))


def kept(sae: SAE) -> SAE:
    """The same SAE, which `find_sae` finds while anything holds it."""
    _LIVING[sae.identity.digest] = sae
    return sae


def find_sae(source: SAESource) -> SAE:
    """The SAE that a card names: by its digest in memory, or where this process loaded it from, or by its name.

    Raises:
        InputError: If it is in none of these places, or another one is there now.
    """
    living = _LIVING.get(source.digest)
    if living is not None and living.n_features == source.n_features:
        return living if living.source == source else replace(living, source=source)
    how = (
        "Load it from where it is now (sae = sea_lens.load_sae(path)), keep it in a variable, and do this again: it is known "
        "by its digest."
    )
    if not source.name:
        raise InputError(
            f"The SAE {source.digest} was made in memory and is gone. Make it again, or save it the next time."
        )
    places = [place for place in (_PLACES.get(source.digest), Path(source.name)) if place is not None]
    place = next((one for one in places if one.exists()), places[0])
    if source.name not in NAMED and "/" not in source.name and not place.exists():  # no name of the hub's
        raise InputError(
            f"The SAE {source} is not in memory, and there is no {place} here. Its card holds its folder's name, and "
            f"not where that lies. {how}"
        )
    try:
        sae = load_sae(
            source.name if not place.exists() or source.name in NAMED else place,
            source.inside,
            site=source.site,
            k=source.k,
            mean_norm=source.mean_norm,
            layout=source.layout,  # type: ignore[arg-type]  # checked there
            revision=source.revision,
        )
    except (InputError, FileFormatError) as error:
        raise InputError(f"The SAE {source} cannot be found again: {error} {how}") from error
    if sae.identity.digest != source.digest:
        raise InputError(f"At {place} there is another SAE now ({sae.identity.digest}, not {source.digest}). {how}")
    return sae if sae.source == source else kept(replace(sae, source=source))


def _weights(found: Path, layout: Layout | None) -> tuple[Path, Layout]:
    """The file with the weights, and the layout."""
    if found.is_file():
        kind = layout or WEIGHTS_OF.get(found.name) or _layout_of_single(found)
        return found, kind
    if not found.is_dir():
        raise InputError(f"There is no SAE at {found}.")
    for name, kind in WEIGHTS_OF.items():
        if (found / name).is_file() and layout in (None, kind):
            return found / name, kind
    single = sorted(path for path in found.iterdir() if path.suffix in SINGLE)
    if len(single) == 1:
        return single[0], layout or _layout_of_single(single[0])
    named, expected = ", ".join(path.name for path in single[:3]), ", ".join(WEIGHTS_OF)
    raise InputError(
        f"{found} holds {len(single)} files of weights ({named}, ...): name one."
        if single
        else f"{found} holds no SAE that is read here; one of these files is expected: {expected}."
    )


def _layout_of_single(path: Path) -> Layout:
    if path.name.endswith(".sae.pt"):
        return "qwen-scope"
    if path.suffix in SINGLE:
        return "single"
    raise InputError(f"What layout {path.name} has does not show in its name. Give layout: {', '.join(READERS)}.")


def _fetched(name: str, inside: str | None, revision: str | None) -> Path:
    """Where a repository's files lie after a download of the folder or file inside.

    Raises:
        InputError: If there is no such repository, or it holds several SAEs and none is named.
    """
    check_repository("an SAE", name, revision)
    try:
        if inside is None:
            inside = _only_one(name, HfApi().list_repo_files(name, revision=revision))
        path = PurePosixPath(inside)
        # Configurations lie beside a file, above checkpoints/, and above sparsify's folders.
        wanted = [inside, f"{inside.rstrip('/')}/*"] if inside else ["*"]
        beside = [f"{folder}/{one}" for folder in (path.parent, path.parent.parent) for one in CONFIGS]
        root = snapshot_download(name, revision=revision, allow_patterns=[*wanted, *beside, *CONFIGS])
    except HFValidationError as error:
        raise InputError(f"{name} is neither a file or folder nor the name of a repository: {error}") from error
    except (LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, HfHubHTTPError):
            raise InputError(f"There is no folder {name}, and the hub has no such SAE: {error}") from error
        raise InputError(
            f"There is no file or folder {name}, and no SAE of that name in the hub's cache; the hub could not be asked. "
            "Check the path, or go online to fetch it."
        ) from error
    return Path(root) / inside


CONFIGS = ("cfg.json", "config.json", "hyperparams.json")


def _only_one(name: str, files: list[str]) -> str:
    """The folder of a repository's only SAE."""
    folders = sorted({str(PurePosixPath(file).parent) for file in files if PurePosixPath(file).name in WEIGHTS_OF})
    single = [
        file for file in files if PurePosixPath(file).suffix in SINGLE and PurePosixPath(file).name not in WEIGHTS_OF
    ]
    found = [folder.removesuffix("/checkpoints").removesuffix("checkpoints") for folder in folders] or single
    if len(found) == 1:
        return "" if found[0] == "." else found[0]
    listed = f"{len(found)} SAEs: {', '.join(found[:4])}, ..." if found else "no SAE that is read here"
    raise InputError(f"{name} holds {listed}. Give the folder or file inside.")
