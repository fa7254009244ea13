"""KL divergence between the edited and the unedited model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import precise_dtype
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model
from sea_lens.models.tokens import PaddedTokens, check_context_length, token_ids


def kl_to_unedited(model: Model, editor: Editor, texts: Sequence[str], *, batch_size: int = 16) -> float:
    """Mean over tokens of KL(unedited || edited) of the next-token distributions, in nats: what an edit costs elsewhere.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        editor: The editor.
        texts: Text whose continuations should stay as they are. What follows a text's last token does not count.
        batch_size: Texts in one forward pass. It does not change the result.

    Raises:
        InputError: If no text has two tokens, or one does not fit the model's context.
    """
    return UneditedPredictions.of(model, texts, batch_size=batch_size).kl_to(editor)


KEPT_PREDICTIONS = 2**25
"""Log-probabilities that are kept for the next editor; more, as of a large vocabulary, are computed anew for each."""


@dataclass(frozen=True, eq=False)
class UneditedPredictions:
    """What the unedited model predicts at every token of some texts, for editors to be compared with.

    Attributes:
        model: The model, unedited.
        batches: The texts' tokens.
    """

    model: Model
    batches: tuple[PaddedTokens, ...]
    _kept: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, model: Model, texts: Sequence[str], *, batch_size: int = 16) -> UneditedPredictions:
        """Of texts, so many in one forward pass; see `kl_to_unedited`.

        Raises:
            InputError: If no text has two tokens, or one does not fit the model's context.
        """
        if isinstance(texts, str) or batch_size < 1:
            raise InputError(
                f"Give a list of neutral texts and a batch_size of 1 at least; {texts!r:.60} and {batch_size} were given."
            )
        tokenized = [token_ids(model, text) for text in texts]
        rows = [ids for ids in tokenized if len(ids) > 1]
        if not rows:
            raise InputError("KL is measured where one token of a text follows another, and no text has two tokens.")
        names = [f"Neutral text {number}" for number in range(len(tokenized))]
        check_context_length(model, [len(ids) for ids in tokenized], names)
        starts = range(0, len(rows), batch_size)
        return cls(model, tuple(PaddedTokens.of(model, rows[start : start + batch_size]) for start in starts))

    @torch.no_grad()
    def kl_to(self, editor: Editor) -> float:
        """KL(unedited || edited) under an editor, as `kl_to_unedited`."""
        total, count = 0.0, 0
        for number, tokens in enumerate(self.batches):
            unedited = self._of_batch(number)
            with editor.attached(self.model):
                edited = _log_probabilities(self.model, tokens)
            inside = tokens.mask[:, 1:].to(unedited.device)
            total += float((unedited.exp() * (unedited - edited)).sum(-1)[:, :-1][inside].sum())
            count += int(inside.sum())
        return total / count

    def _of_batch(self, number: int) -> Tensor:
        found = self._kept.get(number)
        if found is None:
            found = _log_probabilities(self.model, self.batches[number])
            if found.numel() + sum(kept.numel() for kept in self._kept.values()) <= KEPT_PREDICTIONS:
                self._kept[number] = found
        return found


def _log_probabilities(model: Model, tokens: PaddedTokens) -> Tensor:
    logits = model(tokens.ids, **tokens.forward_options())
    return logits.to(precise_dtype(logits.device)).log_softmax(-1)  # small divergences are differences of equal numbers
