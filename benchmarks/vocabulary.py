"""Peak memory of every evaluation at two vocabularies, the tokens the same: `python -m benchmarks.vocabulary` for a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING

from benchmarks.memory import ALLOCATOR, peak_of

if TYPE_CHECKING:
    from sea_lens import Editor, Question, Questions
    from sea_lens.models.bridge import Model

SMALL, LARGE = 2**15, 2**16
"""Vocabularies. A part of the smaller one's logits is 512 positions, fewer than one pass of each evaluation here reads."""
MOST = 200
"""Megabytes: 2 x 2^24 logits in float32 (two models at the same tokens), a few times 2^20 values in float64, and states."""
WIDTH, N_LAYERS, N = 64, 2, 12
TEXT = "A ferry left the harbor at dawn, and the keeper wrote it down. " * 3


def peaks(names: Sequence[str] = ()) -> dict[str, tuple[float, float]]:
    """By function, the megabytes beyond the model at both vocabularies, each in a process of one thread; no names for all."""
    with ThreadPoolExecutor(2) as pool:
        small, large = pool.map(partial(_in_a_process, names), (SMALL, LARGE))
    return {name: (small[name], large[name]) for name in small}


def _in_a_process(names: Sequence[str], d_vocab: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.vocabulary", str(d_vocab), *names]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **ALLOCATOR})
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def measure(d_vocab: int, names: Sequence[str] = ()) -> dict[str, float]:
    """In this process, each function after a first call that is not counted, for what libraries allocate once and for all."""
    import torch

    from benchmarks import worlds

    torch.set_num_threads(1)
    model, editor = worlds.llama(WIDTH, N_LAYERS, d_vocab), worlds.random_editor(WIDTH, N_LAYERS, 4)
    found = {}
    for name, run in evaluations(model, editor).items():
        if not names or name in names:
            run(2)
            found[name] = peak_of(partial(run, N))[0]
    return found


def evaluations(model: Model, editor: Editor) -> dict[str, Callable[[int], object]]:
    """Every evaluation, of so many questions or texts. One with damage and a control, which all do alike."""
    import sea_lens as sl
    from benchmarks import worlds
    from sea_lens.data.items import BBQQuestion, CrowsPairsQuestion, StereoSetQuestion, WinoBiasQuestion

    asked = worlds.questions(N, answers=4, prefix="")
    # Every other one turned about, so that the model has some of them right.
    mixed = [replace(row, right=row.wrong, wrong=row.right) if i % 2 else row for i, row in enumerate(asked)]
    texts = [f"{number}. {TEXT}" for number in range(5)]
    bare = {"control": 0, "damage": False, "progress": False}

    def some(n: int) -> Questions:
        return sl.Questions(asked.rows[:n], "benchmark")

    def items(kind: Callable[..., Question], *own: Sequence[object], wrong: int = 1) -> Callable[[int], Questions]:
        """Of one right answer and so many wrong ones, with what its kind says more of each, in turns."""

        def made(n: int) -> Questions:
            rows = [
                kind(row.prompt, row.right[:1], row.wrong[:wrong], "Age", *more)
                for row, more in zip([*asked.rows[:n]] * 2, cycle(own), strict=False)
            ]
            return sl.Questions(tuple(rows), "benchmark")

        return made

    unknown = asked.rows[0].wrong[0]
    bbq = items(BBQQuestion, ("ambig", unknown, ("a",)), ("disambig", unknown, ("a",)), wrong=2)
    pairs = items(CrowsPairsQuestion, ("stereo",), ("antistereo",))
    stereoset = items(StereoSetQuestion, ("town", "intrasentence"), ("road", "intersentence"), wrong=2)
    winobias = items(WinoBiasQuestion, ("pro", "type1"), ("anti", "type1"))

    def collected(n: int) -> sl.Activations:
        return sl.collect_activations(model, worlds.demonstrations(n, prefix=""), progress=False)

    def tuned(n: int) -> object:
        chosen = sl.Questions(tuple(mixed[:n]), "benchmark")
        given = {"layers": [[0], [1]], "measure": "preference_per_token"}
        given |= {"methods": [sl.MeanDifference()], "control": 0, "examples": 0}
        return sl.tune(model, collected(N), chosen, neutral_texts=texts[:n], progress=False, **given)

    return {
        "collect_activations": lambda n: collected(4 * n),
        "generate_answers": lambda n: sl.generate_answers(model, some(n), editor, max_new_tokens=8, **bare),
        "measure_effects": lambda n: sl.measure_effects(model, some(n), editor, **bare),
        "ablate_layers": lambda n: sl.ablate_layers(model, some(n), editor, modes=["only"], **bare),
        "evaluate_truthfulqa": lambda n: sl.evaluate_truthfulqa(
            model, some(n), editor, control=1, neutral_texts=texts[:n], progress=False
        ),
        "evaluate_bbq": lambda n: sl.evaluate_bbq(model, bbq(n), editor, **bare),
        "evaluate_crows_pairs": lambda n: sl.evaluate_crows_pairs(model, pairs(n), editor, **bare),
        "evaluate_stereoset": lambda n: sl.evaluate_stereoset(model, stereoset(n), editor, **bare),
        "evaluate_winobias": lambda n: sl.evaluate_winobias(model, winobias(n), editor, **bare),
        "evaluate_perplexity": lambda n: sl.evaluate_perplexity(model, texts[:n], editor, **bare),
        "measure_damage": lambda n: sl.measure_damage(model, texts[:n], editor, texts=texts[:n]),
        "tune": tuned,
    }


def main(arguments: Sequence[str]) -> None:
    """What a process prints; a table without arguments."""
    import warnings

    warnings.simplefilter("ignore")
    if arguments:
        print(json.dumps(measure(int(arguments[0]), arguments[1:])))
        return
    print(f"| peak MB beyond the model | {SMALL:,} tokens | {LARGE:,} tokens |\n| --- | --- | --- |")
    for name, (small, large) in peaks().items():
        print(f"| `{name}` | {small:.1f} | {large:.1f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
