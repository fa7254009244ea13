"""KL divergence between the edited and the unedited model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments
from sea_lens.errors import HookNeverFiredError, InputError, SeaLensWarning
from sea_lens.models.batches import length_sorted
from sea_lens.models.branching import BranchingRuns, Unembedding
from sea_lens.models.bridge import EditsModels, Model, check_is_model
from sea_lens.models.distributions import kl, log_softmax, logits_at_once, positions_at_once
from sea_lens.models.hooks import states_at
from sea_lens.models.passes import telling
from sea_lens.models.prefixes import how_to_run
from sea_lens.models.tokens import PaddedTokens, all_token_ids, check_context_length

Rows = tuple[tuple[int, ...], ...]
"""Texts as token ids."""
STATES_AT_ONCE = 2**25
"""Values of what the unembedding reads that wait to become logits, and as many that are kept for the next editor: 128 MiB."""


def kl_to_unedited(model: Model, texts: Sequence[str], editor: EditsModels, *, batch_size: int = 16) -> float:
    """Mean over tokens of KL(unedited || edited) of the next-token distributions, in nats: what an edit costs elsewhere.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        texts: Text whose continuations should stay as they are. What follows a text's last token does not count.
        editor: The editor.
        batch_size: Texts in one forward pass. It does not change the result, but for rounding.

    Returns:
        The mean in nats per token; 0 where the edit changes nothing.

    Raises:
        InputError: If no text has two tokens, or one does not fit the model's context.

    Warns:
        SeaLensWarning: If no token is edited.

    Example:
        >>> texts = sl.neutral_texts(model)[:3]
        >>> sl.kl_to_unedited(model, texts, editor.scaled(0.5)) < sl.kl_to_unedited(model, texts, editor)
        True
    """
    check_arguments(kl_to_unedited, locals())
    check_is_model(model)
    return UneditedPredictions.of(model, texts, batch_size=batch_size).kl_to(editor)


@dataclass(frozen=True)
class Divergence:
    """How far an edited model is from the unedited one on some texts. All are means over tokens, in nats.

    Attributes:
        tokens: Tokens that are predicted.
        kl: KL(unedited || edited) of the next-token distributions; infinite where the edited model predicts NaN.
        nll_unedited: Negative log-likelihood of the texts under the unedited model.
        nll_edited: The same under the edited one.
        is_edited: Whether any token is edited.
    """

    tokens: int
    kl: float
    nll_unedited: float
    nll_edited: float
    is_edited: bool = True


@dataclass(frozen=True, eq=False)
class UneditedPredictions:
    """What the unedited model predicts at every token of some texts, for editors to be compared with.

    Attributes:
        model: The model, unedited.
        rows: The texts' tokens.
        batch_size: Texts in one forward pass.
    """

    model: Model
    rows: Rows
    batch_size: int
    _kept: dict[Rows, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, model: Model, texts: Sequence[str], *, batch_size: int = 16) -> UneditedPredictions:
        """Of texts; see `kl_to_unedited`.

        Raises:
            InputError: If no text has two tokens, or one does not fit the model's context.
        """
        if isinstance(texts, str) or batch_size < 1:
            raise InputError(
                f"Give a list of neutral texts and a batch_size of 1 at least; {texts!r:.60} and {batch_size} were given."
            )
        tokenized = all_token_ids(model, texts)
        rows = [tuple(ids) for ids in tokenized if len(ids) > 1]
        if not rows:
            raise InputError("KL is measured at tokens that another one follows, and no text has two tokens.")
        names = [f"Neutral text {number}" for number in range(len(tokenized))]
        check_context_length(model, [len(ids) for ids in tokenized], names)
        return cls(model, tuple(rows), batch_size)

    @classmethod
    def of_rows(cls, model: Model, rows: Sequence[Sequence[int]], *, batch_size: int = 16) -> UneditedPredictions:
        """Of texts as token ids, each of two tokens at least."""
        return cls(model, tuple(map(tuple, rows)), batch_size)

    def kl_to(self, editor: EditsModels) -> float:
        """KL(unedited || edited) under an editor, as `kl_to_unedited`."""
        found = self.divergence_to(editor)
        if math.isinf(found.kl):
            raise InputError(
                "The edited model predicts NaN on these texts. Activations overflow: scale the editor down, or run the model "
                "in float32."
            )
        return found.kl

    @torch.no_grad()
    def divergence_to(self, editor: EditsModels, *, prompt_length: int | float | None = None) -> Divergence:
        """KL and negative log-likelihoods under an editor.

        Args:
            editor: The editor.
            prompt_length: How many tokens of each text are its prompt, for edits of what is generated, or, below 1, which
                share of them, for edits at the prompt's end; None for all.

        Warns:
            SeaLensWarning: If no token is edited.
        """
        batch_size, _ = how_to_run(self.model, editor, self.batch_size, longest=max(map(len, self.rows)))
        batches = self._batches(batch_size)
        totals, edited = torch.zeros(3, dtype=torch.float64), False
        waiting: list[tuple[Rows, Tensor]] = []
        plain, after = Unembedding(self.model), BranchingRuns(self.model, [editor]).unembedding(0)
        for batch in batches:
            waiting.append((batch, self._unedited(batch)))
            if batch is batches[-1] or sum(states.numel() for _, states in waiting) >= STATES_AT_ONCE:
                others = None
                # Attached once for all that wait, and not for each: some texts may be too short to be edited.
                with suppress(HookNeverFiredError):
                    there = []
                    with editor.attached(self.model):
                        for each, _ in waiting:
                            with telling(self.model, _prompt_lengths(each, prompt_length)):
                                there.append(self._states(each))
                    others, edited = there, True
                for number, (each, states) in enumerate(waiting):
                    # If no token was edited, both models are one.
                    other = (plain, states) if others is None else (after, others[number])
                    totals += _compared(each, (plain, states), [other])[0]
                waiting = []
        if not edited:
            warnings.warn(
                "The editor edits no token of these texts, so they say nothing about it. Do its positions lie beyond "
                "them, or does it edit only what is generated?",
                SeaLensWarning,
                stacklevel=5,  # past no_grad, kl_to and kl_to_unedited
            )
        return self._mean(totals, edited)

    @torch.no_grad()
    def divergences_to(self, editors: Sequence[EditsModels]) -> list[Divergence]:
        """What `divergence_to` gives for each of many editors, to the bit: runs that are alike up to a layer share blocks.

        Args:
            editors: Views of one fit that hold the same edits share most.

        Warns:
            SeaLensWarning: If an editor edits no token.
        """
        found: dict[int, Divergence] = {}
        local = [index for index, editor in enumerate(editors) if editor.token_local]
        longest = max(map(len, self.rows))
        batch_size, _ = how_to_run(self.model, None, self.batch_size, longest=longest)
        if batch_size > 1 and len(local) > 1:
            totals = torch.zeros(len(local), 3, dtype=torch.float64)
            edited = torch.zeros(len(local), dtype=torch.bool)
            runs = BranchingRuns(self.model, [None, *(editors[index] for index in local)])
            for batch in self._batches(batch_size):
                for plain, waiting in self._under_all(runs, batch):
                    numbers = [number - 1 for number, _ in waiting]
                    others = [(runs.unembedding(number), states) for number, states in waiting]
                    totals[numbers] += _compared(batch, (runs.unembedding(0), plain), others)
                    edited[numbers] |= torch.tensor(
                        [bool(after.hooks) or not torch.equal(plain, states) for after, states in others]
                    )
            # One that changed no state may have edited none: it is looked at by itself.
            rows = zip(local, totals, edited.tolist(), strict=True)
            found = {index: self._mean(total, True) for index, total, did in rows if did}
        return [found[i] if i in found else self.divergence_to(each) for i, each in enumerate(editors)]

    def _under_all(self, runs: BranchingRuns, batch: Rows) -> Iterator[tuple[Tensor, list[tuple[int, Tensor]]]]:
        """States of the unedited model, with those under some of the editors, by number: as many as may wait together."""
        plain: Tensor | None = None
        waiting: list[tuple[int, Tensor]] = []
        for number, states in runs.states(*self._places(batch)):
            if plain is None:
                plain = states
                continue
            waiting.append((number, states))
            if len(waiting) * plain.numel() >= STATES_AT_ONCE:
                yield plain, waiting
                waiting = []
        if waiting and plain is not None:
            yield plain, waiting

    def _mean(self, totals: Tensor, edited: bool) -> Divergence:
        tokens = sum(len(row) - 1 for row in self.rows)
        kl, plain, other = (totals / tokens).nan_to_num(nan=math.inf, posinf=math.inf).tolist()
        return Divergence(tokens, kl, plain, other, edited)

    def _batches(self, batch_size: int) -> list[Rows]:
        batches = length_sorted(self.model, [[len(row)] for row in self.rows], batch_size)
        return [tuple(self.rows[number] for number in batch) for batch in batches]

    def _unedited(self, batch: Rows) -> Tensor:
        found = self._kept.get(batch)
        if found is None:
            found = self._states(batch)
            if found.numel() + sum(kept.numel() for kept in self._kept.values()) <= STATES_AT_ONCE:
                self._kept[batch] = found
        return found

    def _states(self, batch: Rows) -> Tensor:
        return states_at(self.model, *self._places(batch))

    def _places(self, batch: Rows) -> tuple[PaddedTokens, Tensor]:
        """A batch, and all of its tokens but each text's last, which nothing follows."""
        tokens = PaddedTokens.of(self.model, batch)
        where = tokens.mask.clone()
        where[:, :-1] &= tokens.mask[:, 1:]
        where[:, -1] = False
        return tokens, where

    def where_it_acts(self, editor: EditsModels, found: Divergence) -> Divergence:
        """What was found with whole texts as prompts, or with parts of them where that says nothing.

        An edit of nothing but what is generated is measured as if the texts were, after their first token. An edit of a
        prompt's last token alone, which nothing follows here, is measured as if a text's first half were its prompt.

        Args:
            editor: The editor.
            found: Its divergence with whole texts as prompts.
        """
        if not found.is_edited:
            found = self.divergence_to(editor, prompt_length=1)
        if found.kl or editor.token_local:
            return found
        return self.divergence_to(editor, prompt_length=0.5)


def _prompt_lengths(rows: Rows, asked: int | float | None) -> Tensor | int | None:
    if asked is None or asked >= 1:
        return None if asked is None else int(asked)
    return torch.tensor([max(1, math.ceil(asked * len(row))) for row in rows])


Predictor = tuple[Unembedding, Tensor]
"""What makes logits, and what it makes them of."""


def _compared(batch: Rows, unedited: Predictor, edited: Sequence[Predictor]) -> Float[Tensor, "editors 3"]:
    """KL and both negative log-likelihoods, summed over tokens, for some edited models."""
    (before, states), found = unedited, torch.zeros(len(edited), 3, dtype=torch.float64)
    said = torch.tensor([token for row in batch for token in row[1:]], device=states.device)
    for some in torch.split(torch.arange(len(said)), logits_at_once(before.model)):
        found += _part(said, slice(int(some[0]), int(some[-1]) + 1), unedited, edited)
    return found


def _part(said: Tensor, here: slice, unedited: Predictor, edited: Sequence[Predictor]) -> Float[Tensor, "editors 3"]:
    """The same of some tokens; a function of its own, so that their logits are gone before there are others."""
    (before, states), found = unedited, torch.zeros(len(edited), 3, dtype=torch.float64)
    plain = before.logits(states[here])
    for number, (after, others) in enumerate(edited):
        found[number] = _summed(plain, plain if others is states else after.logits(others[here]), said[here])
    return found


def _summed(plain: Tensor, other: Tensor, said: Tensor) -> Float[Tensor, " 3"]:
    step = positions_at_once(plain.shape[1], plain.device)
    columns = (torch.split(each, step) for each in (plain, other, said.to(plain.device)))
    found = torch.zeros(3, dtype=torch.float64)
    for one, two, ids in zip(*columns, strict=True):
        found += _sums(one, two, ids)
    return found


def _sums(unedited: Tensor, edited: Tensor, said: Tensor) -> Float[Tensor, " 3"]:
    before, after = log_softmax(unedited), log_softmax(edited)
    return torch.stack([kl(before, after).sum(), _nll(before, said), _nll(after, said)]).double().cpu()


def _nll(log_probabilities: Tensor, said: Tensor) -> Tensor:
    return -log_probabilities.gather(-1, said[:, None]).sum()
