"""The pages of the API reference, made from the public names, so that none can be missing."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator

import sea_lens
from sea_lens import plotting

GROUPS = {
    "data": "Demonstrations and questions, and what reads them from files.",
    "models": "All that runs a model: loading, activations, answers, damage.",
    "sae": "Sparse autoencoders, by which some methods edit.",
    "editing": "Editors and the kinds of edit that they hold.",
    "methods": "One published method each, from settings and activations to an editor; refits, grids and tuning.",
    "analysis": "What an edit did, and where.",
    "evaluation": "Benchmarks before and after an edit, comparisons, transfer.",
    "worlds": "The embedded models whose truth is known.",
    "serving": "Edits outside TransformerLens.",
    "study": "A whole study in one call.",
    "page": "The interactive page.",
    "plotting": "One function per figure. The [gallery](../gallery.md) shows each.",
    "errors": "What is raised and warned of.",
}
"""Packages in the order of the work, and what each holds. A package that is not named here comes last."""


def homes() -> dict[str, str]:
    """Every public name with the module it lives in."""
    return {
        **{name: f"sea_lens.{home}" for name, home in sea_lens._HOME.items()},
        **{f"plotting.{name}": getattr(plotting, name).__module__ for name in plotting.__all__},
    }


def groups() -> dict[str, dict[str, str]]:
    """Package -> public name -> the path that its docstring is found under."""
    found: dict[str, dict[str, str]] = {name: {} for name in GROUPS}
    for name, home in homes().items():
        package = home.split(".")[1]
        found.setdefault(package, {})[name] = f"{home}.{name.rpartition('.')[2]}"
    return {package: names for package, names in found.items() if names}


def paths() -> dict[str, str]:
    """Public name -> the path that its docstring is found under."""
    return {name: path for names in groups().values() for name, path in names.items()}


def first_lines() -> str:
    """The lines that every example goes on from, as they stand in the package's docstring, to copy."""
    lines = doctest.DocTestParser().get_examples(inspect.getdoc(sea_lens) or "")
    return "".join(line.source for line in lines)


def pages() -> Iterator[tuple[str, str]]:
    """Every page of the reference, relative to docs/, and its markdown."""
    lines = ["# API reference", "", "Every public name of `import sea_lens as sl`, grouped as the package is.", ""]
    lines += ["The examples go on from these lines, and run on the embedded model, without a download:", ""]
    lines += ["```python", first_lines().rstrip(), "```", ""]
    for package, names in groups().items():
        said = GROUPS.get(package, "")
        lines += [f"## [`sea_lens.{package}`]({package}.md)", "", said, ""]
        links = (f"[`{name}`][{path}]" for name, path in sorted(names.items(), key=_order))
        lines += [" · ".join(links), ""]
        body = [f"# {package}", "", said, "", "The examples go on from [these lines](index.md#api-reference).", ""]
        for name, path in sorted(names.items(), key=_order):
            body += [f"::: {path}", "    options:", f"      heading: sl.{name}", f"      toc_label: {name}", ""]
        yield f"reference/{package}.md", "\n".join(body)
    yield "reference/index.md", "\n".join(lines)


def _order(entry: tuple[str, str]) -> tuple[bool, str]:
    """Functions before classes, each by the alphabet."""
    name = entry[0].rpartition(".")[2]
    return name[0].isupper(), name.lower()
