"""What `test_distributed.py` compares: work that processes share, done by each of two, and by one that is alone."""

from __future__ import annotations

import os
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed

import sea_lens as sl
from sea_lens.cache import Store
from sea_lens.models.distributed import (
    alone,
    every_process,
    from_each,
    from_first,
    in_turn,
    n_processes,
    rank,
    share_of,
    shows,
    together,
)
from sea_lens.models.log_probs import score_answers
from sea_lens.statistics import Proportion

PROMPTS = ("who made it? A:", "and the sun, where does it go? A:", "one", "how many are there? A:", "and then? A:")
DEMONSTRATIONS = sl.Demonstrations.from_lists(
    prompts=["Answer with few words. Q: sea? A: blue. Q: " + prompt for prompt in PROMPTS],
    positives=["we did!", "west", "to the moon;", "a lot", "home"],
    negatives=["no one", "into a tree", "", "some", "or out"],
    neutrals=["she", "it sinks", "it is...", "3", "up"],
)
QUESTIONS = sl.Questions.from_lists(
    ["one", "two two two two two two", "other", "x", "how many of them?"],
    [["yes", "yes it is"], ["no"], ["b"], ["a b c"], ["four"]],
    [["no", "n"], [], ["a", "ab"], ["c", "e f g h"], ["3"]],
)
ASKED = sl.Questions.from_lists(PROMPTS, ["one", "two", "six", "ten", "z"], ["a", "me", "it", "so", "the end"])


def results(model, folder: Path) -> dict[str, torch.Tensor]:
    """Activations, sums and scores: without a folder, with one that is empty, and with what a killed run left there."""
    found: dict[str, torch.Tensor] = {}
    for where in (None, folder, folder):
        label = "plain" if where is None else "kept" if "kept 0 neutral" not in found else "again"
        if label == "again" and rank() == 0:  # as if killed just before what was finished was written
            (folder / "collection" / "activations.safetensors").unlink()
            (folder / "sums" / "statistics.safetensors").unlink()
            next((folder / "scores").rglob("scores-*.safetensors")).write_bytes(b"half a f")
        every_process(True)
        own = {name: None if where is None else where / name for name in ("collection", "sums", "scores", "tuning")}
        activations = sl.collect_activations(
            model, DEMONSTRATIONS, batch_size=2, folder=own["collection"], progress=False
        )
        for layer in (0, 2):
            for role in ("neutral", "positive", "negative"):
                found[f"{label} {layer} {role}"] = activations[role][layer]
        fitter = sl.collect_statistics(model, DEMONSTRATIONS, batch_size=2, folder=own["sums"], progress=False)
        found[f"{label} W"] = fitter.fit(ranks=2)[1](torch.eye(32))
        editor = sl.fit_sea(activations, ranks=2).at_positions(10)  # beyond the short questions
        scores = score_answers(model, QUESTIONS, editor, batch_size=2, folder=own["scores"], progress=False)
        found[f"{label} scores"] = scores.log_probabilities.nan_to_num(9.0)
        methods = [sl.SEA(0.5), sl.SEA(0.9), sl.MeanDifference()]
        tuned = sl.tune(
            model,
            activations,
            ASKED,
            methods=methods,
            layers=["all"],
            measure=likeliest,
            folder=own["tuning"],
            progress=False,
        )
        found[f"{label} tuned"] = torch.tensor(tuned.table[["strength", "score", "kl"]].to_numpy(dtype=float))
    return found


def likeliest(model, questions) -> Proportion:
    """A measure that processes share, inside of work that they share."""
    scores = score_answers(model, questions, batch_size=1, progress=False).log_probabilities
    return Proportion(int((scores[:, 0] > scores[:, 1]).sum()), len(questions))


def report(folder: Path) -> dict[str, object]:
    """What the parts that all of this is made of do on this process."""
    rows = torch.arange(7.0)
    found: dict[str, object] = {
        "rank": [rank(), n_processes()],
        "share": list(share_of(range(7))),
        "ragged": [tensor.tolist() for tensor in from_each(rows[: rank() + 1] + 10 * rank())],
        "every": [every_process(True), every_process(rank() == 0)],
        "first": from_first({"rank": rank()}),
        "shows": [shows(True), shows(False)],
    }
    with alone():
        found["alone"] = [rank(), n_processes(), [int(x) for x in from_each(torch.tensor(rank()))], shows(True)]
    with in_turn(), (folder / "order.txt").open("a") as file:
        file.write(str(rank()))
    for block in ("together", "in_turn"):
        for failing in range(2):
            try:
                with together() if block == "together" else in_turn():
                    if rank() == failing:
                        raise ValueError("disk full")
            except (ValueError, RuntimeError) as error:
                found[f"{block} {failing}"] = f"{type(error).__name__}: {error}"
    store = Store(folder / "shared", "rows", {})  # both claim it at the same time
    store.append(rank())
    every_process(True)
    found["rows"] = sorted(store.rows())
    return found


def main(folder: Path, number: int, model) -> None:
    """One process of two; what it finds, or why it failed, goes to a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=number,
        world_size=2,
        timeout=timedelta(minutes=10),
    )
    try:
        found = {"report": report(folder), "results": results(model, folder)}
        torch.save(found, folder / f"found-{number}.pt")
        torch.distributed.destroy_process_group()
    except BaseException:
        (folder / f"error-{number}.txt").write_text(traceback.format_exc())
        raise
