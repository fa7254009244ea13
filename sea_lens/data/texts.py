"""Plain texts, as perplexity is measured on: one in a `.txt` file, many in any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sea_lens.data.containers import Columns, read_rows
from sea_lens.data.decoding import read_text
from sea_lens.data.json_rows import json_entries
from sea_lens.data.records import Record
from sea_lens.errors import InputError

_TABLES = (".csv", ".tsv", ".tab", ".parquet", ".pq")


def read_texts(path: str | Path, column: str = "text") -> list[str]:
    """Reads plain texts: a `.txt` file is one; JSON, JSON lines, CSV and parquet hold many. Each may be `.gz`.

    Args:
        path: The file.
        column: Where the text is in a table and in JSON objects; any other JSON entry is the text.

    Raises:
        FileFormatError: If the file cannot be read or is malformed (which line).
        InputError: If an entry holds no text, or the file none at all.
    """
    is_one = _ending(path) == ".txt"
    texts = [read_text(path)] if is_one else [record.text(column) for record in _entries(path, column)]
    if not any(text.strip() for text in texts):
        raise InputError(f"{path} holds no text. Give a file with one at least.")
    return texts


def holds_texts(path: str | Path, column: str = "text", columns: Columns | None = None) -> bool:
    """Whether a file holds plain texts, and not questions: its first entry is a text, or has the column.

    Raises:
        FileFormatError: If the first entry cannot be read.
    """
    if columns:
        return column in columns
    first = None if _ending(path) == ".txt" else next(_entries(path, column), None)
    return first is None or column in first.fields


def _ending(path: str | Path) -> str:
    return Path(Path(path).name.lower().removesuffix(".gz")).suffix


def _entries(path: str | Path, column: str) -> Iterator[Record]:
    if _ending(path) in _TABLES:
        yield from read_rows(path)
        return
    for where, entry in json_entries(read_text(path), str(path)):
        if not isinstance(entry, (dict, str)):
            raise InputError(f"{where}: {column!r} must be text, and is {type(entry).__name__}.")
        yield Record(where, entry if isinstance(entry, dict) else {column: entry})
