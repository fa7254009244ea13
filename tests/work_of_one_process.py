"""Run by torchrun in `test_processes.py`, once a process: everything that is split, and what came of it to a file."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed
from conftest import build_bridge
from test_answer_scores import questions, random_editor
from test_streaming import SHARING

from sea_lens import SeaLensWarning, collect_activations
from sea_lens.methods.sea.statistics import collect_statistics
from sea_lens.models.distributed import every_process, from_each, in_turn, n_processes, rank, share_of
from sea_lens.models.log_probs import score_answers


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    warnings.simplefilter("ignore", SeaLensWarning)
    rows = torch.arange(7.0)
    found = {
        "rank": [rank(), n_processes()],
        "share": list(share_of(range(7))),
        "ragged": [tensor.tolist() for tensor in from_each(rows[: rank() + 1] + 10 * rank())],
        "every": [every_process(True), every_process(rank() == 0)],
    }
    with in_turn():
        order = folder / "order.txt"
        order.write_text((order.read_text() if order.exists() else "") + str(rank()))
    (folder / f"found-{rank()}.json").write_text(json.dumps(found))
    model = build_bridge("llama")
    for name, where in (("plain", None), ("kept", folder / "collection")):
        activations = collect_activations(model, SHARING, batch_size=1, folder=where, progress=False)
        activations.save(folder / f"activations-{name}-{rank()}.safetensors")
    for name, where in (("plain", None), ("kept", folder / "statistics")):
        fitter = collect_statistics(model, SHARING, batch_size=1, folder=where, save_every=1, progress=False)
        fitter.save(folder / f"statistics-{name}-{rank()}.safetensors")
    # One batch for two processes: one of them has nothing to do.
    few = collect_statistics(model, SHARING, batch_size=8, progress=False)
    few.save(folder / f"statistics-few-{rank()}.safetensors")
    for name, where in (("plain", None), ("kept", folder / "scores")):
        scores = score_answers(model, questions(), random_editor(model), batch_size=2, folder=where, progress=False)
        torch.save(scores.log_probabilities, folder / f"scores-{name}-{rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
