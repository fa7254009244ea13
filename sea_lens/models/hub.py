"""Is there such a model? Asked once and at the start: a wrong name would otherwise be asked for again and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from sea_lens.errors import FileFormatError, InputError
from sea_lens.models.gguf_files import IN_REPOSITORY, PACKAGED

PATIENCE = 8.0
"""Seconds that the hub has for its first answer."""
CLOSE = 0.65
"""How alike a name and a suggestion are at least, as difflib's ratio."""
OFFLINE = "HF_HUB_OFFLINE is set"


def check_name(name: str, words: Iterable[str], revision: str | None = None, token: str | bool | None = None) -> bool:
    """Refuses a name that is no word, no file, no folder and no model of the hub, within seconds.

    Args:
        name: As `load_model` takes it, and not a word.
        words: The words that stand for embedded models.
        revision: A branch, tag or commit on the hub.
        token: For private repositories.

    Returns:
        Whether the hub cannot be asked, and what was downloaded before has to do.

    Raises:
        InputError: If there is no such model, or the hub cannot be asked and it was never downloaded. Names like it are in
            the message.
    """
    local, inside = Path(name).expanduser(), IN_REPOSITORY.fullmatch(name)
    if name in PACKAGED or local.exists() or (inside is None and local.suffix == ".gguf"):
        return False
    here = [*words, *(word for word, one in PACKAGED.items() if find_spec(one.module) is not None)]
    at_hand = f"Without a download there are {', '.join(here[:-1])} and {here[-1]}." if here[1:] else ""
    if _is_local(name):
        raise InputError(f"There is no folder or file {name!r}.{did_you_mean(name, _beside(local))} {at_hand}")
    asked = name if inside is None else inside[1]
    answer = _answer(asked, revision, token)
    if answer == "there":
        return False
    if _is_kept(asked, revision):
        return answer not in ("absent", OFFLINE)
    official = official_names()
    known = {one: one for one in [*here, *PACKAGED, *_beside(local)]} | official
    close = "" if asked in official.values() else did_you_mean(name, known)
    if answer == "absent":
        raise InputError(
            f"There is no folder {name!r}, and the Hugging Face hub has no such model, or a private one that `hf auth login` "
            f"opens.{close} {at_hand}"
        )
    raise InputError(
        f"There is no model {name!r} on this machine.{close} The Hugging Face hub cannot be asked for it: {answer}. "
        f"{at_hand} For another one, give its folder, or run this once with a connection."
    )


def check_repository(kind: str, name: str, revision: str | None = None, token: str | bool | None = None) -> None:
    """The same for a repository of something else, such as an editor; there is no folder of the name.

    Args:
        kind: What it holds, with its article, for the message.
        name: The repository.
        revision: A branch, tag or commit.
        token: For private repositories.

    Raises:
        FileFormatError: If there is none, or the hub cannot be asked and it was never downloaded.
    """
    close = did_you_mean(name, _beside(Path(name).expanduser()))
    if _is_local(name):
        raise FileFormatError(f"There is no folder {name}.{close} Give the folder of {kind}.")
    answer = _answer(name, revision, token)
    if answer == "there" or _is_kept(name, revision):
        return
    why = "none on the hub" if answer == "absent" else f"the Hugging Face hub cannot be asked for it: {answer}"
    raise FileFormatError(f"There is no folder {name} with {kind}, and {why}.{close} Check the path.")


def did_you_mean(name: str, known: Iterable[str], most: int = 3) -> str:
    """A question that names what is like a name, with a space before it; empty if nothing is.

    A name on the hub is also compared without its owner.

    Args:
        name: As it was typed.
        known: The names there are; of a mapping, the values are said for the keys.
        most: How many to say.

    Example:
        >>> from sea_lens.models.hub import did_you_mean
        >>> did_you_mean("organsim", ["organism", "smollm2"])
        ' Did you mean organism?'
    """
    said = known if isinstance(known, Mapping) else {one: one for one in known}
    by_form: dict[str, list[str]] = {}
    for one, told in said.items():
        for form in {one.lower(), one.rpartition("/")[2].lower()}:
            by_form.setdefault(form, []).append(told)
    typed = name.lower().rstrip("/")
    forms = [form for form in by_form if len(typed) > 3 and form.startswith(typed)]
    for word in dict.fromkeys([typed, typed.rpartition("/")[2]]):
        forms += get_close_matches(word, by_form, most, CLOSE)
    found = list(dict.fromkeys(told for form in forms for told in by_form[form] if told != name))[:most]
    return f" Did you mean {' or '.join(found)}?" if found else ""


def official_names() -> dict[str, str]:
    """By each of TransformerLens's names of models, short forms among them, the name on the hub."""
    try:
        from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES
    except ImportError:  # a release without the list loads models all the same
        return {}
    short = {alias: name for name, aliases in MODEL_ALIASES.items() for alias in aliases}
    return {name: name for name in OFFICIAL_MODEL_NAMES} | short


@contextmanager
def offline() -> Iterator[None]:
    """Inside the block, Hugging Face's libraries read what was downloaded before, and do not wait for the hub."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_local(name: str) -> bool:
    """Whether a name can only be a path."""
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1 or "\\" in name


def _beside(path: Path) -> list[str]:
    """The folders beside a path, as they would have been typed."""
    try:
        return [str(path.with_name(one.name)) for one in path.parent.iterdir() if one.is_dir() and path.name]
    except OSError:
        return []


def _answer(name: str, revision: str | None, token: str | bool | None) -> str:
    """What the hub says of a repository, "there" or "absent"; else why it cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        HfApi().model_info(name, revision=revision, timeout=PATIENCE, token=token)
    except GatedRepoError:  # a kind of the next; what to do is said by whoever fetches its files
        return "there"
    except (RepositoryNotFoundError, HFValidationError):
        return "absent"
    except HfHubHTTPError:
        return "there"
    except OfflineModeIsEnabled:
        return OFFLINE
    except Exception as error:  # of the network; each release has other classes for it
        return f"this machine is offline, or it does not answer ({' '.join(str(error).split())[:80]})"
    return "there"


def _is_kept(name: str, revision: str | None) -> bool:
    """Whether something of a repository was downloaded before."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, revision=revision, local_files_only=True)
    except Exception:  # no name of the hub, or nothing there
        return False
    return True
