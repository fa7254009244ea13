"""Files of facts to edit: CounterFact's layout (Meng et al. 2022) and our own, JSON or JSON lines."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sea_lens.arguments import check_arguments
from sea_lens.cache import write_text
from sea_lens.data.containers import name_of, read_rows
from sea_lens.data.decoding import read_bytes
from sea_lens.data.facts import FactEdit, KnownFact, check_facts
from sea_lens.data.records import Record
from sea_lens.errors import FileFormatError, InputError

COUNTERFACT_SHA256 = "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f"
"""Of the published `counterfact.json` (45,108,470 bytes), as its authors' repository names it."""

NAMED_FACTS: dict[str, Callable[[], Sequence[FactEdit]]] = {}
"""Facts that the package knows by a word, filled by whoever ships them."""


def read_facts(source: Any, n: int | None = None, seed: int = 0, *, sha256: str | None = None) -> tuple[FactEdit, ...]:
    """Reads facts to edit: rows of CounterFact, or rows whose columns are the fields of `FactEdit`.

    Of CounterFact, the neighborhood is of subjects that have the true object, so that object is what has to stay; rows have
    no other facts of the same subject. `attribute_prompts` (subjects that truly have the new object) are not read.

    Args:
        source: A path to JSON or JSON lines, each also with `.gz`; a list of dicts; or `"knowledge-organism"`, for the edits
            of that embedded world.
        n: How many to sample; None for all, in file order.
        seed: Seed of the sample.
        sha256: What the file must be, as its SHA-256, such as `COUNTERFACT_SHA256`; None to read any file.

    Returns:
        The facts, in the order of the file.

    Raises:
        FileFormatError: If the file cannot be read, is no JSON (which line), or has another hash.
        InputError: If a field is missing or is not text (which row), or there are fewer than `n` facts.

    Example:
        >>> rewrite = {"prompt": "The mother tongue of {} is", "subject": "Danielle Darrieux", "relation_id": "P103",
        ...            "target_new": {"str": "English"}, "target_true": {"str": "French"}}
        >>> row = {"requested_rewrite": rewrite, "paraphrase_prompts": ["Danielle Darrieux spoke the language"],
        ...        "neighborhood_prompts": ["The native language of Montesquieu is"]}
        >>> (fact,) = sl.read_facts([row])
        >>> fact.text, fact.target_new, fact.neighborhood[0].answer
        ('The mother tongue of Danielle Darrieux is', 'English', 'French')
    """
    check_arguments(read_facts, {"n": n, "seed": seed, "sha256": sha256})
    if sha256 is not None:
        _check_hash(source, sha256)
    is_path = isinstance(source, (str, Path))
    if is_path and str(source) in NAMED_FACTS and not Path(source).exists():
        facts = tuple(NAMED_FACTS[str(source)]())
    else:
        facts = tuple(map(_fact, read_rows(source, container="json" if is_path else None)))
    if not facts:
        raise InputError(f"{name_of(source)} holds no facts. Give one row per fact.")
    if n is None:
        return facts
    if not 1 <= n <= len(facts):
        raise InputError(
            f"{n} facts were asked for, and {name_of(source)} has {len(facts)}. Give a number from 1 to that."
        )
    return tuple(random.Random(seed).sample(facts, n))


def write_facts(facts: Sequence[FactEdit], path: str | Path) -> None:
    """Writes facts as JSON lines that `read_facts` reads back; fields without a value are left out.

    Args:
        facts: At least one; two must not contradict each other.
        path: The file, which is overwritten.

    Raises:
        InputError: If there are no facts, or two of them contradict each other.

    Example:
        >>> fact = sl.FactEdit("Ada", "{} lives in", target_new="Lima", target_true="Oslo")
        >>> sl.write_facts([fact], "facts.jsonl")
        >>> print(open("facts.jsonl").read().strip())
        {"subject": "Ada", "prompt": "{} lives in", "target_new": "Lima", "target_true": "Oslo"}
        >>> sl.read_facts("facts.jsonl") == (fact,)
        True
    """
    check_arguments(write_facts, locals())
    given = check_facts(facts)
    rows = ({name: value for name, value in asdict(fact).items() if value not in (None, ())} for fact in given)
    write_text(Path(path), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _check_hash(source: Any, wanted: str) -> None:
    if not isinstance(source, (str, Path)):
        raise InputError(f"sha256 is of a file, and {name_of(source)} was given. Leave it out, or give a path.")
    found = hashlib.sha256(read_bytes(source)).hexdigest()
    if found != wanted.lower():
        raise FileFormatError(
            f"{source} has the SHA-256 {found}, and {wanted} was expected. It is another version of the file: get the "
            "published one, or leave sha256 out."
        )


def _fact(record: Record) -> FactEdit:
    read = _counterfact if "requested_rewrite" in record.fields else _own
    try:
        return read(record)
    except InputError as error:
        told = str(error)
        raise InputError(told if told.startswith(record.where) else f"{record.where}: {told}") from error


def _counterfact(record: Record) -> FactEdit:
    rewrite = record.inside("requested_rewrite")
    true = rewrite.inside("target_true").text("str")
    return FactEdit(
        rewrite.text("subject"),
        rewrite.text("prompt"),
        rewrite.inside("target_new").text("str"),
        true,
        paraphrases=_texts(record, "paraphrase_prompts"),
        neighborhood=tuple(KnownFact(prompt, true) for prompt in _texts(record, "neighborhood_prompts")),
        relation=rewrite.optional_text("relation_id"),
        generation=_texts(record, "generation_prompts"),
    )


def _own(record: Record) -> FactEdit:
    return FactEdit(
        record.text("subject"),
        record.text("prompt"),
        record.text("target_new"),
        record.optional_text("target_true"),
        paraphrases=_texts(record, "paraphrases"),
        same_subject=tuple(_known(record, "same_subject")),
        neighborhood=tuple(_known(record, "neighborhood")),
        relation=record.optional_text("relation"),
        generation=_texts(record, "generation"),
    )


def _texts(record: Record, name: str) -> tuple[str, ...]:
    return () if record.fields.get(name) is None else record.texts(name)


def _known(record: Record, name: str) -> Iterator[KnownFact]:
    for number, row in enumerate(() if record.fields.get(name) is None else record.listed(name), start=1):
        where = f"{record.where}, {name!r} {number}"
        if not isinstance(row, dict):
            raise InputError(f"{where} must be an object with 'prompt' and 'answer', and is {row!r:.60}.")
        known = Record(where, row)
        yield KnownFact(known.text("prompt"), known.text("answer"))
