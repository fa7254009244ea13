"""Which edit should I use? All methods on two worlds and one real model: `python -m experiments.which_method --out runs`.

`experiments/which_method.json` says on what; `--only NAME` takes one of its data sets, and `--where runs` another folder for
the paths in it. A run that is killed goes on where it was, and one with further methods computes only those. Tables go to
`experiments/results`.

1. Every method, tuned by one budget on the fitting half and scored once on the held-out one (`sl.compare_methods`).
2. On one data set, with the chosen settings: fitted on one kind of facts and scored on the others; fitted on ever more
   demonstrations; and fitted on demonstrations in which every positive answer ends in a full stop.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import sea_lens as sl
from sea_lens.errors import InputError
from sea_lens.evaluation.side_by_side import UNEDITED
from sea_lens.methods.budget import own_site, sites_to_collect
from sea_lens.methods.method import method_of
from sea_lens.models.activations import BySite
from sea_lens.models.bridge import Model
from sea_lens.models.log_probs import score_answers
from sea_lens.plotting.methods import draw_methods
from sea_lens.plotting.style import canvas, page
from sea_lens.statistics import mean_intervals

HERE = Path(__file__).parent
RESULTS = HERE / "results"
STOP, AFTER = " .", "Q"
"""The full stop of the worlds, which have a token per word; and what texts go on with after it, a question."""


@dataclass(frozen=True)
class Data:
    """A model with what is fitted on, tuned by and scored on.

    Attributes:
        model: The model.
        demonstrations: To fit on.
        fitting: Questions to tune by.
        held_out: Questions to score on.
        methods: As for `compare_methods`.
        options: Its keywords.
    """

    model: Model
    demonstrations: sl.Demonstrations
    fitting: sl.Questions
    held_out: sl.Questions
    methods: list[Any]
    options: dict[str, Any]

    @classmethod
    def of(cls, asked: Mapping[str, Any], where: Path) -> Data:
        """What an entry of the configuration stands for."""
        own = asked.get("options", {})
        if "model" in asked:
            return cls._of_letters(asked, where, own)
        load = sl.load_organism if asked["world"] == "organism" else sl.load_bias_organism
        model, world = load(folder=where / asked["folder"]) if "folder" in asked else load()
        fitting = world.fitting if asked["world"] == "organism" else world.items("fitting")  # type: ignore[attr-defined]
        sae = [sl.SAS(sl.load_sae(asked["sae"]))] if "sae" in asked else []
        options = {"measure": "rouge", "max_new_tokens": 1, "batch_size": 240, **own}
        return cls(model, world.demonstrations(), world.questions(fitting), world.questions(), ["all", *sae], options)

    @classmethod
    def _of_letters(cls, asked: Mapping[str, Any], where: Path, own: dict[str, Any]) -> Data:
        model = sl.load_model(str(where / asked["model"]))
        rows = sl.Demonstrations.from_file(where / asked["demonstrations"], asked["n"] + asked["n_fitting"], 0)
        rows = rows.with_chat_template(model.tokenizer)
        fitting = sl.Questions.from_demonstrations(rows[asked["n"] :])
        held_out = sl.Questions.from_file(where / asked["held_out"]).with_chat_template(model.tokenizer)
        options = {"measure": "mc1", "token": "mean", "max_new_tokens": 8, **own}
        return cls(model, rows[: asked["n"]], fitting, held_out, asked["methods"], options)

    def compare(self, options: Mapping[str, Any], folder: Path) -> sl.MethodComparison:
        """Every method."""
        chosen = {**options, **self.options}
        return sl.compare_methods(
            self.model,
            self.demonstrations,
            self.fitting,
            self.held_out,
            methods=self.methods,
            folder=folder,
            progress=False,
            **chosen,
        )

    def activations(self, editor: sl.Editor, **options: Any) -> sl.Activations:
        """Of the sites of an editor, with the model's own answers."""
        return self.collected(self.demonstrations, editor, **options)

    def collected(self, demonstrations: sl.Demonstrations, editor: sl.Editor, token: str = "last") -> sl.Activations:
        """Activations of demonstrations at the sites that an editor's method is fitted on."""
        method = method_of(editor)
        data = demonstrations
        if "neutral" in method.roles:
            data = data.with_neutral_answers(self.model, 1, batch_size=240, progress=False)
        own = own_site(method) or (editor.sites[0] if editor.card.method == "sas" else None)
        layers = None if own is None else [own.hook_name]
        site = "resid_post" if own is not None else list(sites_to_collect(method))
        return sl.collect_activations(self.model, data, layers, token, site=site, batch_size=240, progress=False)

    def scores(self, editor: sl.Editor | None = None) -> torch.Tensor:
        """Which held-out questions are answered right, as 1 and 0."""
        benchmark = partial(
            sl.generate_answers, max_new_tokens=1, prompt="plain", control=0, damage=False, batch_size=240
        )
        found = benchmark(self.model, self.held_out, editor, progress=False)
        return torch.tensor(
            found.per_row[f"nearer_to_truth{' edited' if editor else ''}"].to_numpy(dtype=float)
        ).double()


def change(edited: torch.Tensor, plain: torch.Tensor, name: str = "change") -> dict[str, float]:
    """The mean change with its paired interval."""
    apart = (edited - plain)[:, None]
    low, high = mean_intervals(apart)
    return {name: float(apart.mean()), f"{name}_low": float(low[0]), f"{name}_high": float(high[0])}


def transfer(data: Data, editor: sl.Editor) -> dict[str, float]:
    """Fitted on the facts of one attribute: the change on held-out facts of that attribute, and of the three others."""
    kinds = [question.category for question in data.held_out]
    words = [row.prompt.split()[-2] for row in data.demonstrations]
    activations, plain = data.activations(editor), data.scores()
    own, other = (torch.zeros(len(kinds), dtype=torch.float64) for _ in range(2))
    names = sorted({str(kind) for kind in kinds})
    for name in names:
        rows = torch.tensor([word == name for word in words])
        sides = {
            role: BySite({site: tensor[rows] for site, tensor in side.items()})
            for role, side in activations.sides.items()
        }
        scores = data.scores(sl.refit(editor, replace(activations, sides=sides)))
        here = torch.tensor([kind == name for kind in kinds])
        own += scores * here
        other += scores * ~here / (len(names) - 1)
    return {**change(own, plain, "own"), **change(other, plain, "others")}


def efficiency(data: Data, editor: sl.Editor, sizes: list[int], seeds: list[int]) -> Iterator[dict[str, float]]:
    """The score by the number of demonstrations, over draws."""
    benchmark = partial(
        sl.generate_answers, questions=data.held_out, max_new_tokens=1, prompt="plain", damage=False, batch_size=240
    )
    found = sl.data_efficiency(
        data.model,
        data.activations(editor),
        benchmark,
        method=partial(sl.refit, editor),
        sizes=sizes,
        seeds=seeds,
        damage=False,
        progress=False,
    )
    for size, row in found.curve.iterrows():
        yield {"size": size, **row.to_dict()}  # type: ignore[dict-item]


def confound(data: Data, editor: sl.Editor) -> dict[str, float]:
    """Every positive answer of the fit ends in a full stop: what is learned of it, and what two remedies give back.

    For each fit the change of the score, and, under `goes_on`, by how many nats it raises what follows a full stop.
    """
    rows = data.demonstrations
    planted = sl.Demonstrations(tuple(replace(row, positive=row.positive + STOP) for row in rows))
    ended = sl.Demonstrations(
        tuple(replace(row, positive=row.positive + STOP, negative=row.negative + STOP) for row in rows)
    )
    plain = data.scores()
    found: dict[str, float] = {}
    fits = {
        "clean": (rows, "last"),
        "planted": (planted, "last"),
        "last_content": (planted, "last_content"),
        "both_end": (ended, "last"),
    }
    going_on = partial(goes_on, data.model, [row.prompt for row in data.held_out])
    before = going_on()
    for name, (demonstrations, token) in fits.items():
        try:
            other = sl.refit(editor, data.collected(demonstrations, editor, token))
        except InputError:  # such as SAS, which finds no feature
            continue
        found |= change(data.scores(other), plain, name)
        found |= change(going_on(other), before, f"{name}_goes_on")
    return found


@torch.no_grad()
def goes_on(model: Model, prompts: list[str], editor: sl.Editor | None = None) -> torch.Tensor:
    """The log-probability of what follows a full stop, in the place of the answer: an edit that learned the stop says it."""
    asked = sl.Questions.from_lists(prompts, [[AFTER]] * len(prompts), [[]] * len(prompts))
    return score_answers(model, asked, editor, progress=False).log_probabilities[:, 0].double()


def lost_and_won(data: Data, editors: Mapping[str, sl.Editor], asked: Mapping[str, Any], folder: Path) -> None:
    """The three further tables, a file per method and table, so that a killed run goes on."""
    parts: dict[str, Callable[[sl.Editor], Any]] = {
        "transfer": lambda editor: [transfer(data, editor)],
        "efficiency": lambda editor: list(efficiency(data, editor, asked["sizes"], asked["seeds"])),
        "confound": lambda editor: [confound(data, editor)],
    }
    for part, measure in parts.items():
        tables = []
        for name, editor in editors.items():
            path = folder / part / f"{name}-{editor.fingerprint}.json"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(measure(editor)))
                print(part, name, time.strftime("%H:%M:%S"), flush=True)
            tables += [{"method": name, **row} for row in json.loads(path.read_text())]
        table = pd.DataFrame(tables)
        table.round(4).to_csv(RESULTS / f"which_method_{part}.csv", index=False)
        print(table.round(3).to_string(), flush=True)


def figure(tables: Mapping[str, pd.DataFrame]) -> Any:
    """Effect against damage, a panel per data set."""
    drawn = canvas(None, 7.2, 3.1 * len(tables))
    panels = list(drawn.subplots(len(tables), 1, squeeze=False).flat)
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        rows = table[table.index != UNEDITED]
        draw_methods(axes, rows, [str(one) for one in rows.index[rows["more_than_chance"]]], label=name)
        axes.set_ylabel("change of the share right", fontsize=8)
    return page(drawn)


def put(name: str, rows: pd.DataFrame, path: Path) -> None:
    """Puts a data set's rows into a table in the place of those that it had."""
    rows.insert(0, "data", name)
    if path.exists():
        known = pd.read_csv(path)
        rows = pd.concat([known[known["data"] != name], rows])
    rows.to_csv(path, index=False, float_format="%.5g")


def write(name: str, found: sl.MethodComparison, seconds: float) -> None:
    """A data set's rows of the table, and what did not run."""
    table = found.table.assign(more_than_chance=[str(one) in found.more_than_chance for one in found.table.index])
    RESULTS.mkdir(exist_ok=True)
    put(name, table.reset_index(), RESULTS / "which_method.csv")
    best = table["score"].where(table["more_than_chance"]).idxmax() if table["more_than_chance"].any() else None
    if best is not None and len(table) > 2:
        versus = found.versus(str(best)).reset_index()
        versus.insert(0, "best", best)
        put(name, versus, RESULTS / "which_method_versus.csv")
    facts_path = RESULTS / "which_method.json"
    facts = json.loads(facts_path.read_text()) if facts_path.exists() else {}
    facts[name] = {
        "metric": found.metric,
        "n_held_out": len(found.unedited.per_row),
        "budget": found.budget,
        "left_out": dict(found.left_out),
        "front": found.front,
        "seconds": round(seconds),
    }
    facts_path.write_text(json.dumps(facts, indent=1) + "\n")


def at_chance(name: str, data: Data, chance: float) -> bool:
    """Whether the unedited model may be guessing on questions of the fitting half; then it has nothing to steer."""
    right = sl.prefer_right(
        data.model, data.fitting, best_only=True, per_token=False, batch_size=16, progress=False
    ).right
    low, high = right.interval()
    facts_path = RESULTS / "which_method.json"
    facts = json.loads(facts_path.read_text()) if facts_path.exists() else {}
    facts[name] = {
        "right": right.successes,
        "n": right.n,
        "low": round(low, 4),
        "high": round(high, 4),
        "chance": chance,
    }
    facts_path.write_text(json.dumps(facts, indent=1) + "\n")
    print(name, right, flush=True)
    return low <= chance <= high


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=HERE / "which_method.json")
    parser.add_argument("--only", action="append", help="A data set of the configuration; repeat for more.")
    parser.add_argument("--where", type=Path, default=Path(), help="What the configuration's paths are relative to.")
    parser.add_argument("--without-lost-and-won", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    config = json.loads(given.config.read_text(encoding="utf-8"))
    warnings.simplefilter("ignore", sl.SeaLensWarning)
    for name in given.only or config["data"]:
        data = Data.of(config["data"][name], given.where)
        if "chance" in config["data"][name] and at_chance(name, data, config["data"][name]["chance"]):
            continue
        began = time.perf_counter()
        found = data.compare(config["options"], given.out / name)
        write(name, found, time.perf_counter() - began)
        print(name, found, sep="\n", flush=True)
        if name == config["lost_and_won"]["data"] and not given.without_lost_and_won:
            lost_and_won(data, found.editors, config["lost_and_won"], given.out / name)
    table = pd.read_csv(RESULTS / "which_method.csv", index_col="method")
    drawn = {name: table[table["data"] == name] for name in config["data"] if name in set(table["data"])}
    figure(drawn).savefig(RESULTS / "which_method.png", dpi=150)


if __name__ == "__main__":
    main()
