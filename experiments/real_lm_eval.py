"""Two of lm-eval's tasks under chosen edits: what an edit that has its effect does to what nobody asked it to change.

The tasks are TruthfulQA's MC1 in lm-eval's own words, from the published table, and perplexity on stories. lm-eval's
own files fetch their data; these read a folder.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

import sea_lens as sl
from experiments.real_methods import kept, stronger
from experiments.real_setup import Cells, Setup, quietly

STORIES = {
    "task": "stories",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": name} for name in ("word_perplexity", "bits_per_byte")],
    "metadata": {"version": 1},
}


def task_files(data: Path, folder: Path, n: int, seed: int) -> Path:
    """Writes the tasks: their rows, a sample of the published files, and what lm-eval does with them.

    Args:
        data: A folder with the published files.
        folder: Where to write.
        n: Rows per task.
        seed: Of the sample.
    """
    with (data / "TruthfulQA.csv").open(encoding="utf-8-sig", newline="") as file:
        table = random.Random(seed).sample(list(csv.DictReader(file)), n)
    asked = []
    for row in table:
        wrong = [answer.strip() for answer in row["Incorrect Answers"].split(";") if answer.strip()]
        choices = [row["Best Answer"].strip(), *wrong]
        labels = [1] + [0] * len(wrong)
        asked.append({"question": row["Question"], "mc1_targets": {"choices": choices, "labels": labels}})
    told = [
        {"text": text}
        for text in random.Random(seed).sample(json.loads((data / "tinystories_1000.json").read_text("utf-8")), n)
    ]
    own = resources.files("lm_eval") / "tasks" / "truthfulqa" / "truthfulqa_mc1.yaml"
    mc1 = {**yaml.safe_load(own.read_text(encoding="utf-8")), "task": "mc1", "training_split": None}
    folder.mkdir(parents=True, exist_ok=True)
    for name, task, rows in (("mc1", mc1, asked), ("stories", STORIES, told)):
        lines = folder / f"{name}.jsonl"
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        here = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(lines)}}}
        rest = {key: value for key, value in task.items() if key not in ("tag", "dataset_name", "validation_split")}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**rest, **here, "test_split": "test"}), encoding="utf-8")
    return folder


def chosen_editor(setup: Setup, entries: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> sl.Editor:
    """The editor of a method's chosen trial, fitted again."""
    for told, editor in kept(setup, entries):
        if all(chosen[key] == told[key] for key in ("entry", "place", "strength")):
            return editor
    raise KeyError(f"No trial of the method is {chosen}.")


def run_lm_eval(
    cells: Cells,
    setup: Setup,
    where: str,
    name: str,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    data: Path,
    chosen: Mapping[str, Any],
) -> None:
    """lm-eval's table for a method's chosen edit, beside a random one.

    Args:
        cells: Where it is kept.
        setup: The model and the behavior.
        where: Beginning of the cell's name.
        name: Of the method.
        config: The configuration.
        facts: What else decides the result.
        data: A folder with the published files.
        chosen: The method's chosen trial.
    """
    asked, tasks = config["lm_eval"], config["models"][facts["model"]]["lm_eval"]
    entries = stronger(config["methods"][name], facts.get("times", 1))
    folder = cells.folder.parent / "lm_eval"

    def measure() -> Any:
        found = sl.evaluate_lm_eval(
            setup.model,
            tasks,
            chosen_editor(setup, entries, chosen),
            task_folder=task_files(data, folder / "tasks", asked["n"], asked["seed"]),
            folder=folder / "runs",
            control=asked["random"],
            damage=False,
            batch_size=8,
            progress=False,
        )
        return json.loads(found.table.reset_index().to_json(orient="records"))

    own = {**facts, "method": name, "entries": entries, "chosen": dict(chosen), "lm_eval": asked, "tasks": tasks}
    with quietly():
        rows = cells.get(f"{where}/lm-eval/{name}", own, measure)
    print(f"{where} {name}, lm-eval: {rows}", flush=True)
