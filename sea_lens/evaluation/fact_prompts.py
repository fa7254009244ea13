"""The prompts by which an edit of facts is judged, what a model says to them, and the metrics that are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.data.facts import FactEdit
from sea_lens.data.items import Question
from sea_lens.data.questions import Questions
from sea_lens.evaluation.evaluation import Run
from sea_lens.evaluation.metrics import COST, SHARE, Columns, Metric, Sums, mean
from sea_lens.evaluation.said import MOST_KEPT, Said, completions_said
from sea_lens.models.bridge import EditsModels, Model
from sea_lens.models.distributions import kl
from sea_lens.models.tokens import Stem, stems_of

NEW, KNOWN = 0, 1
"""Columns of what is scored: the new object, and what the model said before or should go on saying."""
KINDS = ("efficacy", "paraphrase", "same_subject", "neighborhood")
"""What prompts are for: the first two are to be answered with the new object, the others as before."""
STAY_KL = "stay_kl"
LIKELIER = ("efficacy", "paraphrase", "neighborhood")
Parts = Sequence[tuple[Sequence[int], EditsModels | None]]
"""Facts by their number, with the editor of these; None for the unedited model."""


@dataclass(frozen=True, eq=False)
class FactPrompts:
    """All prompts of some facts.

    Attributes:
        rows: One row per prompt: the number of its fact, its `kind`, the `prompt`, the new object, and what is known.
        stems: The same as tokens, with the new object and the known answer as completions; one where both are the same.
        n_facts: Number of facts.
    """

    rows: pd.DataFrame
    stems: Sequence[Stem]
    n_facts: int

    @classmethod
    def of(cls, model: Model, facts: Sequence[FactEdit]) -> FactPrompts:
        """Those of facts, as a model tokenizes them."""
        asked = [
            (number, kind, prompt, fact.target_new, known)
            for number, fact in enumerate(facts)
            for kind, prompt, known in _prompts_of(fact)
        ]
        questions = Questions(
            tuple(
                Question(prompt, (new,), () if known in (None, new) else (known,)) for _, _, prompt, new, known in asked
            )
        )
        rows = pd.DataFrame(asked, columns=["row", "kind", "prompt", "new", "known"])
        return cls(rows, stems_of(model, questions), len(facts))

    def said(self, model: Model, parts: Parts, run: Run) -> Said:
        """What the model says to all of them, each part under its editor."""
        log = torch.full((len(self.stems), 2), torch.nan, dtype=torch.float64)
        greedy = torch.zeros(len(self.stems), 2, dtype=torch.bool)
        keeps = len(self.stems) * model.cfg.d_vocab <= MOST_KEPT
        after = torch.empty(len(self.stems), model.cfg.d_vocab) if keeps else None
        owners = self.rows["row"].to_numpy()
        for facts, editor in parts:
            inside = [place for place, owner in enumerate(owners) if owner in facts]
            stems = [self.stems[place] for place in inside]
            found = completions_said(model, stems, editor, batch_size=run.batch_size, folder=run.folder)
            width = found.is_greedy.shape[1]
            log[inside, :width], greedy[inside, :width] = found.log_probabilities, found.is_greedy
            if found.after is None:
                after = None
            elif after is not None:
                after[inside] = found.after
        both = self._is_both  # the known answer is the new object: a neighbor that truly has it
        log[both, KNOWN], greedy[both, KNOWN] = log[both, NEW], greedy[both, NEW]
        return Said(log, greedy, after)

    @property
    def _is_both(self) -> Tensor:
        return torch.tensor((self.rows["known"] == self.rows["new"]).tolist())

    def columns(self, said: Said, unedited: Said) -> Columns:
        """By fact, the share of its prompts of each kind that come out as they should, and whether it has any.

        Args:
            said: What a model says.
            unedited: What the unedited model says, for the KL after prompts that should stay.
        """
        owners = torch.tensor(self.rows["row"].tolist())
        new = said.log_probabilities[:, NEW] > said.log_probabilities[:, KNOWN]
        columns: dict[str, Tensor] = {"rows": torch.ones(self.n_facts, dtype=torch.float64)}
        for kind in KINDS:
            own = torch.tensor((self.rows["kind"] == kind).tolist())
            says = said.is_greedy[:, NEW if kind in KINDS[:2] else KNOWN]
            columns |= self._shares(kind, owners[own], says[own])
            if kind in LIKELIER:
                own = own & ~self._is_both & ~said.log_probabilities[:, KNOWN].isnan()
                columns |= self._shares(f"{kind}_likelier", owners[own], (new if kind in KINDS[:2] else ~new)[own])
        if said.after is not None and unedited.after is not None:
            stay = torch.tensor(self.rows["kind"].isin(KINDS[2:]).tolist())
            change = kl(unedited.after[stay].double(), said.after[stay].double())
            columns |= self._shares(STAY_KL, owners[stay], change)
        return columns

    def _shares(self, name: str, owners: Tensor, hits: Tensor) -> dict[str, Float[Tensor, " facts"]]:
        sums, counts = (
            torch.zeros(self.n_facts, dtype=torch.float64).index_add_(0, owners, values.double())
            for values in (hits, torch.ones_like(hits))
        )
        return {name: sums / counts.clamp(min=1), f"has {name}": (counts > 0).double()}

    def per_answer(self, said: Mapping[str, Said]) -> pd.DataFrame:
        """One row per prompt, with log-probabilities and whether the model says the new object or the known one."""
        frame = self.rows.copy()
        for side, found in said.items():
            for what, column in (("new", NEW), ("known", KNOWN)):
                frame[f"{what} log_probability{side}"] = found.log_probabilities[:, column].tolist()
                frame[f"says {what}{side}"] = found.is_greedy[:, column].tolist()
        return frame.set_index("row")


def _prompts_of(fact: FactEdit) -> list[tuple[str, str, str | None]]:
    return [
        ("efficacy", fact.text, fact.target_true),
        *(("paraphrase", prompt, fact.target_true) for prompt in fact.paraphrases),
        *(("same_subject", fact.about(known.prompt), known.answer) for known in fact.same_subject),
        *(("neighborhood", known.prompt, known.answer) for known in fact.neighborhood),
    ]


def fact_metrics(columns: Columns) -> list[Metric]:
    """The metrics of facts that have such prompts, the harmonic mean of the four shares first."""
    found = [kind for kind in KINDS if bool(columns[f"has {kind}"].any())]

    def harmonic_mean(sums: Sums) -> Tensor:
        shares = torch.stack([sums[kind] / sums[f"has {kind}"] for kind in found])
        return len(found) / (1 / shares).sum(0)

    likelier = [f"{kind}_likelier" for kind in LIKELIER]
    return [
        Metric("harmonic_mean", harmonic_mean, "rows", SHARE),
        *(mean(name, f"has {name}", name, SHARE) for name in (*found, *likelier)),
        *([mean(STAY_KL, f"has {STAY_KL}", STAY_KL, COST)] if STAY_KL in columns else []),
    ]
