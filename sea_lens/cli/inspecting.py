"""What an editor is: inspect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

import sea_lens.methods  # noqa: F401  # registers every method
from sea_lens.cli.app import command, word_of
from sea_lens.cli.gentle import left_open
from sea_lens.cli.options import Of, as_options
from sea_lens.cli.output import harmless, keeps, say, show
from sea_lens.editing.card import FitReport
from sea_lens.editing.editor import Editor
from sea_lens.methods.method import METHODS

FACTS = ("method", "token", "model", "n_demonstrations", "demonstrations", "versions")


@command("Using")
def inspect(editor: str) -> None:
    """Show where an editor comes from, and each layer's edit."""
    fitted = Editor.from_pretrained(editor)
    card = fitted.card.to_json()
    facts = {name.replace("_", " "): card[name] for name in FACTS}
    settings = fitted.card.settings
    facts["settings"] = {name: value if _is_plain(value) else str(value) for name, value in settings.items()}
    facts |= _options(fitted, settings)
    facts |= {"sites": ", ".join(sorted({site.name for site in fitted.sites}))}
    facts |= {} if fitted.where is None else {"where": str(fitted.where)}
    facts |= {} if fitted.card.form is None else {"prompts": str(fitted.card.form)}
    for name, value in facts.items():
        text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)
        say(f"{name:<18} {harmless(text)}", indent=19)
    keeps("card", [{name: value for name, value in card.items() if name != "reports"}])
    rows = []
    for site, edit in fitted.edits.items():
        found = fitted.card.reports.get(site, FitReport(edit.rank))
        gains = edit.gains if edit.gains is not None and edit.rank else None
        numbers = dict(found.numbers)
        rows.append(
            {
                "layer": "" if site.layer is None else str(site.layer),
                "rank": edit.rank,
                "k+": numbers.pop("rank_positive", None),
                "k-": numbers.pop("rank_negative", None),
                "lowest": None if gains is None else float(gains.min()),
                "highest": None if gains is None else float(gains.max()),
                "strength": edit.strength,
                "moved": None if found.displacement is None else f"{found.displacement:.1%}",
                **numbers,
            }
        )
    table = pd.DataFrame(rows)
    show(table.loc[:, table.notna().any()])


def _options(fitted: Editor, settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings as `sea-lens fit` takes them, under the command; none where no such command is known."""
    entry = METHODS.get(fitted.card.method)
    if entry is None:
        return {}
    typed = as_options(Of(entry.cls, without=("layers",), defaults=left_open(entry)), settings)
    return {"as options": f"sea-lens fit {word_of(entry.name)} {typed or '(its defaults)'}"}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple | dict)
