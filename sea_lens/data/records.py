"""Texts, and rows of text out of JSON-lines and CSV files, each knowing where it stands: an error can name the line."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sea_lens.errors import FileFormatError, InputError


@dataclass(frozen=True)
class Record:
    """One row.

    Attributes:
        where: File and line, for messages.
        fields: What stands in it, by column.
    """

    where: str
    fields: Mapping[str, object]

    def text(self, name: str) -> str:
        """The text in a column.

        Raises:
            InputError: If there is no such column, or no text in it.
        """
        if name not in self.fields:
            raise InputError(f"{self.where}: there is no {name!r}. It has: {', '.join(self.fields)}.")
        value = self.fields[name]
        if not isinstance(value, str):
            raise InputError(f"{self.where}: {name!r} must be text, and is {value!r}.")
        return value

    def optional_text(self, name: str) -> str | None:
        """The text in a column, or None where the column is missing or null.

        Raises:
            InputError: If something other than text is in it.
        """
        return None if self.fields.get(name) is None else self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts in a column that holds one text or a list of them.

        Raises:
            InputError: If there is no such column, or something else in it.
        """
        value = self.fields.get(name)
        if not isinstance(value, list):
            return (self.text(name),)
        if not all(isinstance(text, str) for text in value):
            raise InputError(f"{self.where}: {name!r} must be text or a list of texts, and is {value!r}.")
        return tuple(value)


def read_json_objects(path: str | Path) -> list[Record]:
    """Reads one JSON object a line, or one JSON list of objects.

    Raises:
        FileFormatError: If the file cannot be read, or something in it is not a JSON object (which line).
    """
    records = []
    for where, entry in _entries(_read(path), path):
        if not isinstance(entry, dict):
            raise FileFormatError(f"{where}: expected a JSON object, found {json.dumps(entry)[:60]}.")
        records.append(Record(where, entry))
    return records


def read_texts(path: str | Path, column: str = "text") -> list[str]:
    """Reads plain texts: a `.txt` file, which is one text whatever its length, or a JSON list or JSON lines of many.

    Args:
        path: The file.
        column: Where the text stands in entries that are JSON objects; others are the text itself.

    Raises:
        FileFormatError: If the file cannot be read, or is not JSON (which line).
        InputError: If an entry holds no text.
    """
    text = _read(path)
    if Path(path).suffix.lower() == ".txt":
        return [text]
    texts = []
    for where, entry in _entries(text, path):
        fields = entry if isinstance(entry, dict) else {column: entry}
        texts.append(Record(where, fields).text(column))
    return texts


def read_csv_rows(path: str | Path) -> list[Record]:
    """Reads a CSV file with a header line.

    Raises:
        FileFormatError: If the file cannot be read, or a row has more or fewer cells than the header (which line).
    """
    records = []
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise FileFormatError(
                        f"{where}: the row does not have the header's {len(reader.fieldnames or [])} cells. "
                        "Quote cells that hold commas or line breaks."
                    )
                records.append(Record(where, dict(row)))
    except csv.Error as error:
        raise FileFormatError(
            f"{path}, line {reader.reader.line_num}: not valid CSV ({error}). Check the quotes up to there."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} could not be read as CSV: {error}") from error
    return records


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} could not be read: {error}") from error


def _entries(text: str, path: str | Path) -> list[tuple[str, object]]:
    """What a JSON list or JSON lines hold, each with where it stands."""
    if text.lstrip().startswith("["):
        entries = _parse(text, str(path))
        return [(f"{path}, entry {i}", entry) for i, entry in enumerate(entries if isinstance(entries, list) else [])]
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), start=1)]
    return [(where, _parse(line, where)) for where, line in lines if line.strip()]


def _parse(text: str, where: str) -> object:
    try:
        parsed: object = json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text else ""
        raise FileFormatError(f"{where}{line}: not valid JSON ({error.msg}).") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of open brackets
        raise FileFormatError(f"{where}: not valid JSON ({error}).") from error
    return parsed
