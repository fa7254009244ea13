"""What all results share: a repr of one screen, and files that read back to what was written."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields, is_dataclass
from html import escape
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_type_hints, runtime_checkable

import pandas as pd

from sea_lens.arguments import as_folder
from sea_lens.cache import write_text
from sea_lens.cells import cell_text, p_text, to_latex, to_markdown
from sea_lens.errors import FileFormatError

R = TypeVar("R", bound="Result")
FORMAT = "sea_lens.results/1"
MIDDLES = ("mean", "change", "value", "score", "interaction")
"""Columns that an interval `low` to `high` without another name belongs to; the first that a table has."""
ROWS, WIDTH, WIDEST_CELL = 24, 110, 40


class Result:
    """A frozen dataclass with a `table`: every result is one.

    `repr` fits one screen, notebooks show the table, and `load` returns what `save` wrote, to the last digit. Fields may be
    tables, plain JSON values, dataclasses, other results, mappings of all these, and objects with `save_pretrained` and
    `from_pretrained`. A field with a default and `metadata={"saved": False}` is left out.
    """

    table: pd.DataFrame
    shown: ClassVar[tuple[str, ...]] = ()
    """Columns of the table that a repr shows; all of them if empty."""

    def save(self, folder: str | Path) -> list[Path]:
        """Writes one JSON file, a CSV file per table and a folder per result inside. Several kinds can share a folder.

        Args:
            folder: Where; made if it is missing.

        Returns:
            The files.
        """
        as_folder(folder)
        folder, name = Path(folder), _file_name(type(self))
        folder.mkdir(parents=True, exist_ok=True)
        facts: dict[str, object] = {}
        tables: dict[str, object] = {}
        inside: dict[str, object] = {}
        written: list[Path] = []
        for field in _saved_fields(type(self)):
            value = getattr(self, field.name)
            path = folder / _part_name(name, field.name)
            if isinstance(value, pd.DataFrame) and value.empty and value.columns.empty:
                tables[field.name] = None
            elif isinstance(value, pd.DataFrame):
                text, tables[field.name] = _to_csv(value)
                write_text(path.with_name(path.name + ".csv"), text)
                written.append(path.with_name(path.name + ".csv"))
            elif isinstance(value, Saved):
                value.save_pretrained(path)
                written.append(path)
            elif _holds_results(value):
                inside[field.name] = _save_inside(value, path, written)
            else:
                facts[field.name] = _plain(value)
        head = folder / f"{name}.json"
        kept = {"format": FORMAT, "kind": type(self).__name__, "facts": facts, "tables": tables, "inside": inside}
        write_text(head, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        return [head, *written]

    @classmethod
    def load(cls: type[R], folder: str | Path) -> R:
        """What `save` wrote.

        Args:
            folder: Where it was saved.

        Raises:
            FileFormatError: If the folder holds no such result, or a damaged one.
        """
        as_folder(folder)
        folder, name = Path(folder), _file_name(cls)
        head = folder / f"{name}.json"
        if not head.is_file():
            raise FileFormatError(f"{folder} holds no saved {cls.__name__}: {head.name} is missing.")
        try:
            kept = json.loads(head.read_text(encoding="utf-8"), object_hook=_number)
            if kept["format"] != FORMAT or kept["kind"] != cls.__name__:
                raise FileFormatError(f"{head} is of {kept['kind']} ({kept['format']}), not {cls.__name__} ({FORMAT}).")
            hints = get_type_hints(cls)
            values = {field: _made(value, hints.get(field)) for field, value in kept["facts"].items()}
            for field, layout in kept["tables"].items():
                path = folder / f"{_part_name(name, field)}.csv"
                values[field] = pd.DataFrame() if layout is None else _from_csv(path, layout)
            for one in _saved_fields(cls):
                path = folder / _part_name(name, one.name)
                if one.name in kept["inside"]:
                    values[one.name] = _load_inside(kept["inside"][one.name], path, hints[one.name])
                elif one.name not in values and (one.default is one.default_factory or path.exists()):  # both MISSING
                    hint = hints[one.name]
                    values[one.name] = next(iter(get_args(hint)), hint).from_pretrained(path)  # of `X | None`, X
            return cls(**values)
        except (AttributeError, KeyError, OSError, TypeError, ValueError, RecursionError, OverflowError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(f"The {cls.__name__} in {folder} is damaged: {error!r}. Measure it again.") from error

    def to_markdown(self) -> str:
        """The table for a README or an issue, intervals beside their numbers."""
        return to_markdown(self._readable())

    def to_latex(self) -> str:
        """The table for a paper, as a `tabular` with booktabs rules."""
        return to_latex(self._readable())

    def _head(self) -> str:
        """The class with its plain fields."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        words = [f"{name}={value!r}" for name, value in plain.items() if value is None or isinstance(value, PLAIN)]
        return f"{type(self).__name__}({', '.join(words)})"

    def _readable(self) -> pd.DataFrame:
        """The table as text."""
        return readable(self.table)

    def _below(self) -> str:
        """What is said below the table."""
        return ""

    def __repr__(self) -> str:
        shown = [name for name in self.shown if name in self.table]
        table = readable(self.table[shown]) if self.shown else self._readable()
        return f"{self._head()}\n{screen(table)}\n{self._below()}".rstrip("\n")

    def _repr_html_(self) -> str:
        """For notebooks: the whole table."""
        head, *below = [f"<p>{escape(line)}</p>" for line in [self._head(), *self._below().splitlines()]]
        return "".join([head, self._readable().to_html(index=False, max_rows=4 * ROWS, border=0), *below])


def screen(frame: pd.DataFrame) -> str:
    """Cells of text as the lines of one screen: fewer rows where a wide table is wrapped into blocks of columns."""
    rows = ROWS
    while True:
        text: str = frame.to_string(
            index=False, max_rows=rows, line_width=WIDTH, max_colwidth=WIDEST_CELL, justify="left"
        )
        if rows <= 4 or text.count("\n") <= ROWS + 4:
            return text
        rows = max(4, rows - 4)


PLAIN = (str, int, float)


@runtime_checkable
class Saved(Protocol):
    """An object that saves itself into a folder, such as an editor."""

    def save_pretrained(self, save_directory: Path) -> object:
        """Writes its files."""


def readable(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """A table for people: all cells as text, index included, intervals beside their numbers, names without underscores.

    An interval of a column `name` is `name_low` to `name_high`; `low` to `high` is that of `value` or `change`.

    Args:
        table: Any table.
        digits: Significant digits.

    Example:
        >>> table = pd.DataFrame({"change": [0.25], "low": [0.125], "high": [0.5], "p_value": [0.00025]}, index=["kl"])
        >>> readable(table.rename_axis("effect")).iloc[0].to_dict()
        {'effect': 'kl', 'change': '0.25 [0.125, 0.5]', 'p': '<0.001'}
    """
    named = [name for name in table.index.names if name is not None]
    frame = table.reset_index() if named else table.reset_index(drop=True)
    ends = {name: (f"{name}_low", f"{name}_high") for name in frame}
    ends |= dict.fromkeys([name for name in MIDDLES if name in frame][:1], ("low", "high"))
    inside = {end for pair in ends.values() if set(pair) <= set(frame) for end in pair}
    cells: dict[str, list[str]] = {}
    for name in frame:
        if name in inside:
            continue
        text = p_text if str(name).endswith(("p_value", "p_holm")) else cell_text
        found = [text(value, digits) for value in frame[name]]
        if set(ends[name]) <= inside:
            low, high = ([cell_text(value, digits) for value in frame[end]] for end in ends[name])
            found = [
                f"{middle} [{least}, {most}]" if least else middle
                for middle, least, most in zip(found, low, high, strict=True)
            ]
        if name in named:
            found = [cell.replace("_", " ") for cell in found]
        cells[str(name).replace("_", " ").replace("p value", "p")] = found
    return pd.DataFrame(cells)


def folder_names(names: Iterable[str]) -> dict[str, str]:
    """Names that folders can have, by the names they stand for; no two are the same."""
    found: dict[str, str] = {}
    for number, name in enumerate(names):
        plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"
        while plain.lower() in map(str.lower, found.values()):
            plain += f"-{number}"
        found[name] = plain
    return found


def _saved_fields(kind: type) -> list[Field[Any]]:
    return [field for field in fields(kind) if field.metadata.get("saved", True)]


def _holds_results(value: object) -> bool:
    inside = list(value.values()) if isinstance(value, Mapping) else []
    return isinstance(value, Result) or (bool(inside) and all(map(_holds_results, inside)))


def _save_inside(value: Any, path: Path, written: list[Path]) -> object:
    """Saves a result, or a mapping of results, and says in which folders."""
    if isinstance(value, Result):
        written += value.save(path)
        return None
    return {key: [name, _save_inside(value[key], path / name, written)] for key, name in folder_names(value).items()}


def _load_inside(kept: Any, path: Path, hint: Any) -> object:
    if kept is None:
        return next(iter(get_args(hint)), hint).load(path)  # of `X | None`, X
    return {key: _load_inside(inner, path / name, get_args(hint)[1]) for key, (name, inner) in kept.items()}


def _plain(value: object) -> object:
    """As JSON can have it, which has no NaN and no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def _made(value: Any, hint: Any) -> Any:
    """A field of a dataclass, or of a mapping of them, out of plain values."""
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        return hint(**value)
    if isinstance(value, dict) and len(get_args(hint)) == 2:
        return {key: _made(part, get_args(hint)[1]) for key, part in value.items()}
    return value


def _number(value: dict[str, Any]) -> object:
    return float(value["float"]) if list(value) == ["float"] else value


def _file_name(kind: type) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


def _part_name(name: str, field: str) -> str:
    return name if field == "table" else f"{name}-{field}"


def _to_csv(table: pd.DataFrame) -> tuple[str, dict[str, object]]:
    """The text, and how to read it: which columns are the index, and what each column holds."""
    index = [str(name) for name in table.index.names if name is not None]
    frame = table.reset_index() if index else table.reset_index(drop=True)
    kinds: dict[str, str] = {}
    for place, name in enumerate(frame):
        column = frame.iloc[:, place]
        kinds[str(name)] = str(column.dtype)
        if column.dtype == object or isinstance(column.dtype, pd.StringDtype):
            text = all(isinstance(value, str) for value in column)
            kinds[str(name)] = "text" if text else "json" if column.dtype == object else "text or null"
            if not text:
                cells = [
                    json.dumps(None if value is None or value is pd.NA or value != value else value, ensure_ascii=False)
                    for value in column
                ]
                frame.isetitem(place, cells)
    content = frame.to_csv(index=False)
    if "\r" in content:  # which some versions of Python do not quote
        content = frame.to_csv(index=False, quoting=csv.QUOTE_ALL)
    return content, {"index": index, "columns": kinds}


def _from_csv(path: Path, layout: Mapping[str, Any]) -> pd.DataFrame:
    kinds, index = layout["columns"], layout["index"]
    frame = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    if list(frame) != list(kinds):
        raise FileFormatError(f"{path} has columns {list(frame)}, and {list(kinds)} were written.")
    columns: dict[str, pd.Series[Any]] = {}
    for name, kind in kinds.items():
        cells: list[str] = frame[name].tolist()
        if kind == "text":
            columns[name] = pd.Series(cells)
        elif kind == "text or null":
            columns[name] = pd.Series([json.loads(cell) for cell in cells])
        elif kind == "json":
            parsed = [json.loads(cell) for cell in cells]
            columns[name] = pd.Series([tuple(v) if isinstance(v, list) else v for v in parsed], dtype=object)
        elif kind == "bool":
            columns[name] = pd.Series([{"True": True, "False": False}[cell] for cell in cells], dtype=bool)
        elif kind.lower().startswith("float"):
            columns[name] = pd.Series([float(cell) if cell else float("nan") for cell in cells], dtype=kind)
        else:
            columns[name] = pd.Series([int(cell) if cell else pd.NA for cell in cells], dtype=kind)
    found = pd.DataFrame(columns)
    return found.set_index(index) if index else found
