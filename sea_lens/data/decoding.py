"""Files as text: inflated within a limit, and decoded from whatever encoding they are in."""

from __future__ import annotations

import codecs
import gzip
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

from sea_lens.errors import FileFormatError, SeaLensWarning, reason_of

MAX_BYTES = 1 << 29
"""Size of the largest file, inflated. The largest published file has a tenth of it, and a 1 MB .gz can inflate to 1 GB."""
_CHUNK = 1 << 20
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_bytes(path: str | Path) -> bytes:
    """The content of a file, inflated if it is gzip.

    Raises:
        FileFormatError: If the file cannot be read, or is larger than `MAX_BYTES`. The size on disk is looked at first, and
            inflating stops at the limit.
    """
    try:
        file = Path(path)
        if file.stat().st_size > MAX_BYTES:
            raise FileFormatError(_too_large(path))
        with file.open("rb") as plain:
            raw = _bounded(plain.read, path)
        if raw.startswith(b"\x1f\x8b"):
            with gzip.open(file) as inflated:
                raw = _bounded(inflated.read, path)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} could not be read: {reason_of(error)}") from error
    return raw


def read_text(path: str | Path) -> str:
    """The text of a file: UTF-8, UTF-16 or UTF-32 with their marks, or Windows-1252.

    Raises:
        FileFormatError: If the file cannot be read, is too large or holds no text.

    Warns:
        SeaLensWarning: If it is read as Windows-1252, which is a guess.
    """
    raw = read_bytes(path)
    encoding = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        text = _windows(raw, path) if encoding == "utf-8" else ""
        if not text:
            raise FileFormatError(f"{path} could not be read as text: {error}. Save it as UTF-8.") from error
    if "\0" in text:
        raise FileFormatError(
            f"{path} could not be read: it holds NUL characters, so it is no text, or UTF-16 without a mark. Save it in"
            " UTF-8."
        )
    return text


def _windows(raw: bytes, path: str | Path) -> str:
    """The text in Windows-1252; nothing if the bytes are none."""
    if b"\0" in raw:
        return ""
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        return ""
    first = next(line for line in text.splitlines() if not line.isascii())
    warnings.warn(
        f"{path} is not UTF-8 and was read as Windows-1252. Look at a line of it: {first.strip()[:60]!r}; if it is "
        "wrong, save the file as UTF-8.",
        SeaLensWarning,
        stacklevel=4,
    )
    return text


def _bounded(read: Callable[[int], bytes], path: str | Path) -> bytes:
    pieces, size = [], 0
    while piece := read(_CHUNK):
        size += len(piece)
        if size > MAX_BYTES:
            raise FileFormatError(_too_large(path))
        pieces.append(piece)
    return b"".join(pieces)


def _too_large(path: str | Path) -> str:
    return f"{path} holds more than {MAX_BYTES >> 20} MiB. Split it, or keep only the rows that you need."
