"""Arguments in another order than the command's, and words that are nothing: what to say of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import permutations
from pathlib import Path

from sea_lens.data.fact_files import NAMED_FACTS
from sea_lens.models.gguf_files import PACKAGED
from sea_lens.models.loading import NAMED

TAKES: Mapping[str, str] = {
    "model": "model",
    **dict.fromkeys(("editor", "editors"), "editor"),
    **dict.fromkeys(("demonstrations", "questions", "data", "sources", "facts", "when", "unless", "texts"), "data"),
}
"""By an argument's name, what it takes; others take any word."""
ARTICLES: Mapping[str, str] = {
    "model": "a model",
    "editor": "an editor's folder",
    "data": "a file of data",
    "activations": "a folder of activations",
}
FLAGS: Mapping[str, str] = {"editor": "--editor", "activations": "--activations"}
"""The option that a thing is given by where no argument takes it."""
DATA = {".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt"}
MOST = 5
"""Words that are put into every order to find the right one."""


def kinds_of(word: str) -> set[str]:
    """What a word is, as far as a look tells: names of models, folders of editors, files of data."""
    word = word.partition("=")[2] or word
    found = {"model", "data"} if word in NAMED else {"model"} if word in PACKAGED else set()
    if word in NAMED_FACTS:
        found.add("data")
    path = Path(word)
    with suppress(OSError, ValueError):
        if path.is_file():
            ends = set(path.suffixes)
            found.add("model" if path.suffix == ".gguf" else "data" if DATA & ends else "file")
        elif path.is_dir():
            found |= _kinds_of_folder(path)
    return found


def _kinds_of_folder(folder: Path) -> set[str]:
    if any(folder.glob("*.gguf")):
        return {"model"}
    if (folder / "activations.safetensors").is_file():
        return {"activations"}
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    if not isinstance(config, dict):
        return set()
    return {"editor"} if str(config.get("format", "")).startswith("sea_lens.editor") else {"model"}


def wrong_order(command: str, names: Sequence[str], words: Sequence[str], flags: Sequence[str] = ()) -> str:
    """What is wrong with the order of a command's words, and the right one; empty if nothing is known to be.

    Args:
        command: As it is called, without its words.
        names: The argument that each word fills.
        words: The words.
        flags: The command's options.
    """
    kinds = [kinds_of(word) for word in words]
    odd = [number for number, name in enumerate(names) if not _fits(name, kinds[number])]
    if not odd:
        return ""
    order = f"The order is {' '.join(name.upper() for name in dict.fromkeys(names))}"
    if len(words) <= MOST:
        right = [one for one in permutations(range(len(words))) if _is_right(names, kinds, one)]
        if right:
            best = max(
                right, key=lambda one: sum(TAKES.get(name) in kinds[at] for name, at in zip(names, one, strict=True))
            )
            return f"{order}: {' '.join([command, *(_quoted(words[number]) for number in best)])}"
    name, word, found = names[odd[0]], words[odd[0]], kinds[odd[0]]
    kind = next((one for one in ARTICLES if one in found), "")
    flag = FLAGS.get(kind, "")
    takes = ARTICLES[TAKES[name]] if name in TAKES else "another thing"
    more = f" Give it as {flag} {_quoted(word)}." if flag in flags else f" {order}." if len(set(names)) > 1 else ""
    return f"{word!r} is {ARTICLES.get(kind, 'a file')}, and {name.upper()} takes {takes}.{more}"


def _is_right(names: Sequence[str], kinds: Sequence[set[str]], order: Sequence[int]) -> bool:
    """Whether all words fit in an order, and no prompt becomes a model or an editor."""
    return all(
        _fits(name, kinds[number]) and (bool(kinds[number]) or name not in TAKES or names[number] in TAKES)
        for name, number in zip(names, order, strict=True)
    )


def _fits(name: str, kinds: set[str]) -> bool:
    """Whether a word can fill an argument; one that nothing is known of fills any."""
    takes = TAKES.get(name)
    return not kinds or takes in kinds if takes is not None else not kinds & {"editor"}


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word or not word else word
