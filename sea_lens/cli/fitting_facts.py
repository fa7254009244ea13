"""Fitting the methods that change facts: `sea-lens fit memit MODEL FACTS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Optional

from sea_lens.cli.inputs import load
from sea_lens.cli.options import HELP, Of, Options, spread
from sea_lens.cli.output import save_editor, say
from sea_lens.data.fact_files import read_facts
from sea_lens.data.texts import read_texts
from sea_lens.methods.method import METHODS, MethodEntry
from sea_lens.models.sites import named_layers

HELP |= {
    "disentangler": "For dike: a file of Disentangler.save; left out to train one on what these facts say of their subjects.",
    "facts": "Facts to change: JSON or JSON lines with subject, prompt ({} for the subject), target_new, and perhaps "
    "target_true and same_subject; or CounterFact's file.",
}


def edits_facts(entry: MethodEntry) -> bool:
    """Whether a method is fitted on facts, and not on demonstrations."""
    return hasattr(entry.cls, "fit_facts")


def of_demonstrations() -> Mapping[str, MethodEntry]:
    """The methods that are fitted on demonstrations."""
    return {name: entry for name, entry in METHODS.items() if not edits_facts(entry)}


def fit_of_facts(entry: MethodEntry) -> Callable[..., None]:
    """The command that fits a method on facts."""

    def fit_facts(
        model: str,
        facts: Path,
        out: Path = Path("editor"),
        layers: Optional[str] = None,
        texts: Optional[Path] = None,
        n: Optional[int] = None,
        *,
        settings: Options,
        fitting: Options,
        loading: Options,
    ) -> None:
        given = read_facts(facts, n)
        neutral = None if texts is None else read_texts(texts)
        bridge = load(model, loading, [facts])
        chosen = tuple(named_layers(layers, bridge.cfg.n_layers)) if layers else None
        editor = entry.cls(**settings, layers=chosen).fit_facts(bridge, given, texts=neutral, **fitting)
        save_editor(editor, out)
        say(f"{editor!r}\nsaved in {out}", indent=4)

    fitting = Of(entry.cls.fit_facts, without=("texts", "moments"))
    return spread(fit_facts, settings=Of(entry.cls, without=("layers",)), fitting=fitting)
