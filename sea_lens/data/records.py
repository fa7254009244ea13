"""Rows of JSON, JSON-lines and CSV files. Each row knows its file and line, so that an error can name them."""

from __future__ import annotations

import csv
import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TextIO

from sea_lens.errors import FileFormatError, InputError


def as_text(value: object, name: str) -> str:
    """The value, if it is text; `name` is what an error calls it.

    Raises:
        InputError: If it is not text.
    """
    if not isinstance(value, str):
        raise InputError(f"{name} must be text, and is {reprlib.repr(value)}.")
    return value


def as_texts(value: object, name: str) -> tuple[str, ...]:
    """The texts in a list of texts; one text is a list of one, never a list of its characters.

    Raises:
        InputError: If it is neither.
    """
    texts = (value,) if isinstance(value, str) else as_tuple(value, name, "text or a list of texts")
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} must be text or a list of texts, and is {reprlib.repr(value)}.")
    return tuple(map(str, texts))


def as_tuple(value: object, name: str, expected: str) -> tuple[object, ...]:
    """The entries of a list, an array or a column, in order; `expected` is what an error says was expected.

    Raises:
        InputError: If it is text, a mapping, a set or nothing with entries.
    """
    if isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable):
        raise InputError(f"{name} must be {expected}, and is {reprlib.repr(value)}.")
    return tuple(value)


def parallel_lists(lists: Mapping[str, object]) -> dict[str, tuple[object, ...]]:
    """Lists of one length, by name.

    Raises:
        InputError: If one is not a list, or they differ in length.
    """
    columns = {name: as_tuple(values, name, "a list with one entry per prompt") for name, values in lists.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"The lists must have one length, and they have {lengths}.")
    return columns


@dataclass(frozen=True)
class Record:
    """One row of a file.

    Attributes:
        where: File and line, for messages.
        fields: The row's values by column.
    """

    where: str
    fields: Mapping[str, object]

    def text(self, name: str) -> str:
        """The text in a column.

        Raises:
            InputError: If the column is missing or holds no text.
        """
        if name not in self.fields:
            raise InputError(f"{self.where}: there is no {name!r}. It has: {', '.join(self.fields)}.")
        return as_text(self.fields[name], f"{self.where}: {name!r}")

    def optional_text(self, name: str) -> str | None:
        """The text in a column; None if the column is missing or null.

        Raises:
            InputError: If the column holds something else.
        """
        return None if self.fields.get(name) is None else self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts in a column that holds one text or a list of texts.

        Raises:
            InputError: If the column is missing or holds something else.
        """
        value = self.fields.get(name)
        return as_texts(value, f"{self.where}: {name!r}") if isinstance(value, list) else (self.text(name),)


def read_json_objects(path: str | Path) -> list[Record]:
    """Reads a file with one JSON object per line, or with one JSON list of objects.

    Raises:
        FileFormatError: If the file cannot be read, or an entry is not a JSON object (which line).
    """
    return list(_json_objects(path))


def read_csv_rows(path: str | Path) -> list[Record]:
    """Reads a CSV file with a header line.

    Raises:
        FileFormatError: If the file cannot be read, or a row has more or fewer cells than the header (which line).
    """
    return list(_csv_rows(path))


def first_fields(path: str | Path) -> frozenset[str]:
    """The columns of a file's first row, which tell its layout; none for an empty file. No other row is read.

    Raises:
        FileFormatError: If the file cannot be read as CSV (`.csv`) or JSON (any other ending).
    """
    rows = _csv_rows(path) if Path(path).suffix.lower() == ".csv" else _json_objects(path)
    first = next(rows, None)
    return frozenset() if first is None else frozenset(first.fields)


def read_texts(path: str | Path, column: str = "text") -> list[str]:
    """Reads plain texts: a `.txt` file is one text, a JSON list or a JSON-lines file holds many.

    Args:
        path: The file.
        column: Where the text is in entries that are JSON objects; any other entry is the text.

    Raises:
        FileFormatError: If the file cannot be read or is not JSON (which line).
        InputError: If an entry holds no text.
    """
    if Path(path).suffix.lower() == ".txt":
        return ["".join(_lines(path))]
    return [
        Record(where, entry if isinstance(entry, dict) else {column: entry}).text(column)
        for where, entry in _json_entries(path)
    ]


def _lines(path: str | Path) -> Iterator[str]:
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            yield from file
    except (OSError, TypeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} could not be read: {error}") from error


def _json_entries(path: str | Path) -> Iterator[tuple[str, object]]:
    """The entries of a JSON list or of JSON lines, each with its place. Lines are parsed one at a time."""
    lines = enumerate(_lines(path), start=1)
    filled = ((number, line) for number, line in lines if line.strip())
    first = next(filled, None)
    if first is None:
        return
    if not first[1].lstrip().startswith("["):
        for number, line in chain([first], filled):
            yield f"{path}, line {number}", _parsed(line, f"{path}, line {number}")
        return
    blank = "\n" * (first[0] - 1)  # so that errors count lines from the file's first
    entries = _parsed(blank + first[1] + "".join(line for _, line in lines), str(path))
    yield from ((f"{path}, entry {i}", entry) for i, entry in enumerate(entries if isinstance(entries, list) else []))


def _json_objects(path: str | Path) -> Iterator[Record]:
    for where, entry in _json_entries(path):
        if not isinstance(entry, dict):
            raise FileFormatError(f"{where}: expected a JSON object, found {json.dumps(entry)[:60]}.")
        yield Record(where, entry)


def _parsed(text: str, where: str) -> object:
    try:
        parsed: object = json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text.rstrip("\n") else ""
        raise FileFormatError(f"{where}{line}: not valid JSON ({error.msg}).") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of open brackets
        raise FileFormatError(f"{where}: not valid JSON ({error}).") from error
    return parsed


def _csv_rows(path: str | Path) -> Iterator[Record]:
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            yield from _csv_records(file, path)
    except (OSError, TypeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} could not be read as CSV: {error}") from error


def _csv_records(file: TextIO, path: str | Path) -> Iterator[Record]:
    reader = csv.DictReader(file, strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise FileFormatError(
                    f"{where}: the row does not have the header's {len(reader.fieldnames or [])} cells. "
                    "Quote cells that hold commas or line breaks."
                )
            yield Record(where, dict(row))
    except csv.Error as error:
        raise FileFormatError(
            f"{path}, line {reader.reader.line_num}: not valid CSV ({error}). Check the quotes up to there."
        ) from error
