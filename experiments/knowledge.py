"""Facts changed by a mean shift, SAKE, MEMIT and DiKE: the tables and the figure in sea_lens/worlds/README.md.

    python -m experiments.knowledge --out runs/knowledge                     # the embedded world, 100 facts
    python -m experiments.knowledge /path/to/smollm2 --out runs/smollm2      # 18 capitals, in knowledge_facts.jsonl

Settings are chosen on 20 facts about other people, ten at a time; of a real model they are the defaults. A run that was
killed goes on where it stopped.
"""

from __future__ import annotations

import json
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from sea_lens.cache import write_text
from sea_lens.data.fact_files import read_facts
from sea_lens.data.facts import FactEdit
from sea_lens.editing.editor import Editor
from sea_lens.errors import SeaLensWarning
from sea_lens.evaluation.compare_edits import EditComparison, compare_edits
from sea_lens.evaluation.knowledge import evaluate_edits
from sea_lens.methods.dike import DiKE
from sea_lens.methods.disentangling import DisentanglerTraining, train_disentangler
from sea_lens.methods.keyed_fit import layers_for
from sea_lens.methods.memit import MEMIT
from sea_lens.methods.sake import SAKE, collect_fact, join_facts
from sea_lens.models.bridge import Model
from sea_lens.models.key_moments import collect_key_moments
from sea_lens.models.loading import load_model
from sea_lens.plotting.knowledge import plot_edits
from sea_lens.worlds.knowledge import KnowledgeWorld
from sea_lens.worlds.load import load_knowledge_organism

FACTS, OTHERS = (Path(__file__).parent / f"knowledge_{name}.jsonl" for name in ("facts", "others"))
"""What is edited in a real model, and what DiKE's disentangler is trained on: 18 and 16 countries, all known to SmolLM2."""
N_CHOOSING, CHOOSING_AT_ONCE = 20, 10
Collect = Callable[[FactEdit], Any]
Fit = Callable[[Sequence[FactEdit]], Editor]
OPENINGS = (
    "",
    "I read a book about it yesterday. ",
    "Here is something everybody knows. ",
    "We had a quiz at school. ",
    "Travel news: ",
    "My uncle told me this. ",
    "The weather was fine. ",
    "An atlas says so: ",
    "Let me tell you a fact. ",
    "As the teacher explained, ",
)
WORDINGS = (
    "The capital of {} is",
    "the capital city of {} is",
    "{}'s capital is",
    "the capital of the nation of {} is",
)
"""What SAKE is fitted on for a real model; the paraphrases of the facts are other ones."""


def by_facts(method: SAKE, collect: Collect, facts: Sequence[FactEdit]) -> Editor:
    """One editor of several facts, each fitted by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return join_facts([method.fit(collect(fact)) for fact in facts])


def candidates(collect: Collect) -> dict[str, dict[str, Fit]]:
    """By way of editing, its settings and what fits them, the default first."""
    found: dict[str, dict[str, Fit]] = {}
    for name, kind in (("mean shift", "mean"), ("SAKE", "gaussian")):
        for scope in (0.95, 1.0):
            for eps in (1e-2, 1e-1) if kind == "gaussian" else (1e-2,):
                method = SAKE(eps=eps, transport=kind, scope=scope)  # type: ignore[arg-type]
                told = f"scope {scope:g}" + (f", eps {eps:g}" if kind == "gaussian" else "")
                found.setdefault(name, {})[told] = partial(by_facts, method, collect)
    return found


def keyed_candidates(model: Model, world: KnowledgeWorld) -> dict[str, dict[str, Fit]]:
    """Settings of MEMIT and DiKE for the embedded world, whose words their `{} is a` is not made of."""
    texts, known = world.texts(), world.edits(part="fitting")
    moments = collect_key_moments(model, range(model.cfg.n_layers), texts=texts, progress=False)
    found: dict[str, dict[str, Fit]] = {"MEMIT": {}, "DiKE": {}}
    for layers, weight in product(((0,), (0, 1)), (None, 30.0)):
        method = MEMIT(layers=layers, clamp=4.0, moment_weight=weight, essence=None)
        told = f"layers {','.join(map(str, layers))}, clamp 4, weight {weight or 'usual'}"
        found["MEMIT"][told] = partial(_fit_facts, method, model, texts=texts, moments=moments)
    disentangler = train_disentangler(model, known, 0, progress=False)
    options = {"texts": texts, "moments": moments, "disentangler": disentangler}
    for weight in (None, 30.0):
        dike = DiKE(layers=(0,), clamp=4.0, moment_weight=weight, essence=None)
        found["DiKE"][f"layer 0, clamp 4, weight {weight or 'usual'}"] = partial(_fit_facts, dike, model, **options)
    return found


def _fit_facts(method: Any, model: Model, facts: Sequence[FactEdit], **options: Any) -> Editor:
    editor: Editor = method.fit_facts(model, facts, progress=False, **options)
    return editor


def choose(
    model: Model, facts: Sequence[FactEdit], settings: Mapping[str, Mapping[str, Fit]], kept: Path
) -> dict[str, str]:
    """The setting of the highest score by way of editing, on facts that the table does not have; the first of equals."""
    scores: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.is_file() else {}
    for name, fits in settings.items():
        for told, fit in fits.items():
            own = scores.setdefault(name, {})
            if told not in own:
                found = evaluate_edits(
                    model, facts, fit, at_once=CHOOSING_AT_ONCE, control=0, damage=False, progress=False
                )
                own[told] = found.score
                write_text(kept, json.dumps(scores, indent=1) + "\n")
                print(f"{name}, {told}: score {found.score:.3f}", flush=True)
    return {name: max(own, key=own.__getitem__) for name, own in scores.items() if name in settings}


def on_the_world(out: Path) -> EditComparison:
    """The embedded world: settings chosen on the fitting people, the table on the others."""
    model, world = load_knowledge_organism()
    collect = cache(partial(world.collect, model))
    settings = candidates(collect) | keyed_candidates(model, world)
    chosen = choose(model, world.edits(N_CHOOSING, "fitting"), settings, out / "settings.json")
    print("\n".join(f"{name}: {told}" for name, told in chosen.items()), flush=True)
    fits = {name: settings[name][told] for name, told in chosen.items()}
    return compare_edits(model, world.edits(), fits, folder=out, progress=False)


def on_a_model(path: str, out: Path) -> EditComparison:
    """A real model: facts that it knows, at the default settings."""
    model, facts = load_model(path), read_facts(FACTS)

    @cache
    def collect(fact: FactEdit) -> Any:
        prompts = [opening + fact.about(wording) for opening in OPENINGS for wording in WORDINGS]
        return collect_fact(model, prompts, old=fact.target_true or "", new=fact.target_new)

    fits = {name: next(iter(own.values())) for name, own in candidates(collect).items()}
    moments = collect_key_moments(model, layers_for(model, None), progress=False)
    fits["MEMIT"] = partial(_fit_facts, MEMIT(), model, moments=moments)
    layer = layers_for(model, None)[-1]
    training = DisentanglerTraining(steps=100, facts=6)
    disentangler = train_disentangler(
        model, read_facts(OTHERS), layer, training, folder=out / "disentangler", progress=False
    )
    fits["DiKE"] = partial(_fit_facts, DiKE(layers=(layer,)), model, moments=moments, disentangler=disentangler)
    return compare_edits(model, facts, fits, at_once=(1, len(facts)), folder=out, progress=False)


def main() -> None:
    """Makes the table and the figure."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="a folder or a name; the embedded world without one")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found = on_the_world(given.out) if given.model is None else on_a_model(given.model, given.out)
    pd.DataFrame(found.table).to_csv(given.out / "table.csv", index=False)
    write_text(given.out / "table.md", found.to_markdown())
    plot_edits(found).savefig(given.out / "edits.png", dpi=150)
    print(found.to_markdown())


if __name__ == "__main__":
    main()
