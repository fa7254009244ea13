"""A model and a behavior, split and made ready: demonstrations to fit on, questions to tune by, questions to score on."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import sea_lens as sl
from sea_lens.cache import digest, write_text
from sea_lens.models.answers import margins_of
from sea_lens.models.branching import BranchingRuns
from sea_lens.models.branching_jobs import branched
from sea_lens.models.bridge import Model, ModelInfo
from sea_lens.models.damage import DamageMeter
from sea_lens.models.log_probs import AnswerScores, score_stems
from sea_lens.models.tokens import stems_of
from sea_lens.statistics import mean_intervals, sign_flip_p_values

HERE = Path(__file__).parent
Gaps = Float[Tensor, " questions"]
"""By question, the log-probability per token of the wanted answer less that of the other, in nats."""


@dataclass(frozen=True)
class Cells:
    """Results by name, each a file that is written whole, so that a run that was killed goes on.

    Attributes:
        folder: Where they lie.
    """

    folder: Path

    def get(self, name: str, facts: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """What is there of these facts, or what is computed now.

        Args:
            name: Of the cell, with slashes as one likes.
            facts: What decides the result. A cell of other facts is another cell.
            compute: Makes it, of plain values.
        """
        path = self.folder / f"{name}-{digest(json.dumps(facts, sort_keys=True))[:8]}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))["found"]
        found = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(
            path, json.dumps({"cell": name, "facts": facts, "found": found}, ensure_ascii=False, indent=1) + "\n"
        )
        return found

    def all(self) -> Iterator[tuple[str, Any, Any]]:
        """Every cell: its name, its facts, its result."""
        for path in sorted(self.folder.rglob("*.json")):
            read = json.loads(path.read_text(encoding="utf-8"))
            yield read["cell"], read["facts"], read["found"]


def split_rows(n: int, sizes: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Disjoint parts of n rows, in an order drawn by the seed.

    Args:
        n: Number of rows.
        sizes: Of each part, by name.
        seed: Of the draw.
    """
    order = random.Random(seed).sample(range(n), n)
    if sum(sizes.values()) > n:
        raise ValueError(f"Parts of {sum(sizes.values())} rows were asked for, and there are {n}.")
    starts = [sum(list(sizes.values())[:k]) for k in range(len(sizes))]
    return {name: order[start : start + size] for (name, size), start in zip(sizes.items(), starts, strict=True)}


def changes(edited: Gaps, plain: Gaps) -> dict[str, float]:
    """The mean change with its paired interval and test."""
    apart = (edited - plain)[:, None]
    low, high = mean_intervals(apart)
    return {
        "change": float(apart.mean()),
        "low": float(low[0]),
        "high": float(high[0]),
        "p": float(sign_flip_p_values(apart)[0]),
    }


@dataclass(frozen=True, eq=False)
class Setup:
    """A model with a behavior's data in three disjoint parts.

    Attributes:
        model: The model, unedited.
        demonstrations: To fit on, with neutral answers.
        tuning: Questions that settings are chosen by.
        held_out: Questions that are scored once.
        alone: Text that the behavior leaves alone; None for `sl.neutral_texts`.
        places: Layers by name, such as `{"middle": [15], "band": [10, ..., 20]}`.
        texts: How many texts damage is measured on at most, while settings are chosen and at the end.
        folder: Where activations are kept.
        max_new_tokens: Of an answer that is judged.
    """

    model: Model
    demonstrations: sl.Demonstrations
    tuning: sl.Questions
    held_out: sl.Questions
    alone: Sequence[str] | None
    places: Mapping[str, Sequence[int]]
    texts: tuple[int, int] = (4, 20)
    folder: Path | None = None
    max_new_tokens: int = 16
    _kept: dict[Any, Any] = field(default_factory=dict)

    # --- activations -------------------------------------------------------------------------------------------------

    def activations(self, token: Any = "mean", site: str = "resid_post", data: sl.Demonstrations | None = None) -> Any:
        """Of the demonstrations, or of others, kept in memory and on disk."""
        data = self.demonstrations if data is None else data
        key = (token, site, data.fingerprint)
        if key not in self._kept:
            folder = None if self.folder is None else self.folder / digest(asdict(ModelInfo.of(self.model)), *key)[:12]
            self._kept[key] = sl.collect_activations(
                self.model, data, None, token, site=site, batch_size=16, folder=folder, progress=False
            )
        return self._kept[key]

    # --- damage ------------------------------------------------------------------------------------------------------

    def _texts(self, most: int, alone: Sequence[str] | None) -> list[str]:
        found = sl.neutral_texts(self.model) if alone is None else list(alone)
        return found[:: max(1, len(found) // most)]

    @cached_property
    def meter(self) -> DamageMeter:
        """On all texts that the behavior leaves alone."""
        return DamageMeter.of(self.model, (), self._texts(self.texts[1], self.alone))

    @cached_property
    def first_look(self) -> DamageMeter:
        """On some of them."""
        return DamageMeter.of(self.model, (), self._texts(self.texts[0], self.alone))

    @cached_property
    def english(self) -> DamageMeter:
        """On some of the shipped sample, where the behavior's own text is another."""
        return DamageMeter.of(self.model, (), self._texts(self.texts[0], None)) if self.alone else self.meter

    # --- scores ------------------------------------------------------------------------------------------------------

    def gaps(self, questions: sl.Questions, editors: Sequence[sl.Editor | None]) -> list[Gaps]:
        """By editor, the gaps on questions. Editors share the blocks below their first edit."""
        stems, n_right = stems_of(self.model, questions), [len(question.right) for question in questions]
        found: list[Gaps] = [torch.empty(0)] * len(editors)

        def job() -> AnswerScores:
            return score_stems(self.model, stems, n_right, batch_size=16)

        def same(one: AnswerScores, other: AnswerScores) -> bool:
            return torch.equal(one.log_probabilities.nan_to_num(), other.log_probabilities.nan_to_num())

        for index, scores in branched(BranchingRuns(self.model, editors), job, same):
            found[index] = margins_of(scores, per_token=True, best_only=False)
        return found

    @cached_property
    def plain(self) -> Gaps:
        """The unedited model's gaps on the held-out questions."""
        return self.gaps(self.held_out, [None])[0]

    @cached_property
    def plain_tuning(self) -> Gaps:
        """The unedited model's gaps on the tuning questions."""
        return self.gaps(self.tuning, [None])[0]

    def said(self, editor: sl.Editor | None) -> list[str]:
        """Greedy answers to the held-out questions."""
        from sea_lens.models.generate import greedy_answers

        prompts = [question.prompt for question in self.held_out]
        return greedy_answers(self.model, prompts, self.max_new_tokens, editor=editor, batch_size=32, progress=False)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the library's warnings: here every setting is a row, one that does nothing or breaks the model too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SeaLensWarning)
        yield


def asked(rows: Any, model: Model, prompt: str) -> Any:
    """Rows in the model's chat template for `"chat"`, or in a template of text."""
    return rows.with_chat_template(model.tokenizer) if prompt == "chat" else rows.with_prompt_template(prompt)


def behavior(
    model: Model, entry: Mapping[str, Any], config: Mapping[str, Any], name: str, seed: int, folder: Path
) -> Setup:
    """The setup of a behavior of the configuration.

    Args:
        model: The model.
        entry: The model's entry of the configuration.
        config: The configuration.
        name: Of the behavior.
        seed: Of the split.
        folder: Where activations are kept.
    """
    own = config["behaviors"][name]
    rows = sl.Demonstrations.from_file(HERE / own["file"]).with_answer_ending(".")
    rows = asked(rows, model, entry["prompt"])
    parts = {part: rows_of(rows, places) for part, places in split_rows(len(rows), config["split"], seed).items()}
    neutral = parts["fit"].with_neutral_answers(model, 24, whole_sentences=True, folder=folder, progress=False)
    alone = None
    if "alone" in own:
        alone = (HERE / own["alone"]).read_text(encoding="utf-8").strip().split("\n\n")
    tuning, held_out = (sl.Questions.from_demonstrations(parts[part]) for part in ("tune", "held_out"))
    return Setup(
        model,
        neutral.with_answer_ending("."),
        tuning,
        held_out,
        alone,
        entry["places"],
        (entry["texts"][0], entry["texts"][1]),
        folder,
    )


def rows_of(rows: Any, places: Sequence[int]) -> Any:
    """Some rows, in the order given."""
    return replace(rows, rows=tuple(rows[place] for place in places))
