"""What a model says after prompts: how likely it finds given answers there, and whether they are what it says greedily."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sea_lens.cache import Store, digest
from sea_lens.editing.where import ByPosition
from sea_lens.errors import InputError
from sea_lens.models.batches import length_sorted
from sea_lens.models.bridge import EditsModels, FwdHook, Model
from sea_lens.models.distributions import log_probs_of, log_softmax
from sea_lens.models.hooks import editing, logits_at, model_facts
from sea_lens.models.passes import telling
from sea_lens.models.prefixes import how_to_run
from sea_lens.models.tokens import PaddedTokens, Stem

MOST_KEPT = 2**26
"""Log-probabilities after prompts that are kept for one model: 256 MiB."""


@runtime_checkable
class EditsWeights(Protocol):
    """An edit that is no hook, such as `WeightEdit`: all that is needed is that it can be attached."""

    def attached(self, model: Model) -> AbstractContextManager[object]:
        """Edits the model in a `with` block, and leaves it as it was."""


@dataclass(frozen=True, eq=False)
class WeightsAsEditor:
    """An edit of weights as what runs of a model take for an editor: one without hooks.

    Attributes:
        edit: The edit.
    """

    edit: EditsWeights
    _own: str = field(default_factory=partial(token_hex, 8), repr=False)

    edits: ClassVar[Mapping[object, object]] = {}
    where: ClassVar[None] = None
    layers: ClassVar[list[int]] = []
    is_identity: ClassVar[bool] = False
    token_local: ClassVar[bool] = True

    @property
    def fingerprint(self) -> str:
        """That of the edit, or else one that no other has."""
        return str(getattr(self.edit, "fingerprint", self._own))

    def check(self, model: Model) -> None:
        """The edit checks the model when it is attached."""

    def fwd_hooks(self, model: Model | None = None) -> list[FwdHook]:
        """None."""
        return []

    @contextmanager
    def attached(self, model: Model) -> Iterator[Model]:
        """The model with edited weights."""
        with self.edit.attached(model):
            yield model


@dataclass(frozen=True, eq=False)
class Said:
    """What a model gives the completions of prompts. Columns are completions.

    Attributes:
        log_probabilities: Of each whole completion, in nats; NaN where there is none.
        is_greedy: Whether each of its tokens is the likeliest one, so that the model says it; False where there is none.
        after: Log-probabilities of all tokens after each prompt, in float32; None where that is too much to keep.
    """

    log_probabilities: Float[Tensor, "prompts completions"]
    is_greedy: Bool[Tensor, "prompts completions"]
    after: Float[Tensor, "prompts d_vocab"] | None = None


@torch.no_grad()
def completions_said(
    model: Model,
    stems: Sequence[Stem],
    editor: EditsModels | None = None,
    *,
    batch_size: int = 32,
    folder: str | Path | None = None,
) -> Said:
    """Log-probabilities of completions, and which of them the model says.

    Every text is run whole, so that edits of the last token of a prompt act as they do when the model answers. Texts that
    several prompts have in common are run once.

    Args:
        model: A TransformerBridge with a tokenizer.
        stems: Prompts with their completions.
        editor: To edit the model with; None for none.
        batch_size: Texts in one forward pass. It changes nothing but rounding.
        folder: Where to keep finished batches.

    Raises:
        InputError: If the model predicts NaN.
        ModelMismatchError: If the editor does not fit the model.
    """
    if editor is not None:
        editor.check(model)
    read: dict[tuple[tuple[int, ...], int], list[tuple[int, int]]] = defaultdict(list)
    for number, stem in enumerate(stems):
        for column, completion in enumerate(stem.completions):
            read[(*stem.prompt, *completion[:-1]), len(stem.prompt)].append((number, column))
    texts = list(read)
    longest = max(len(ids) for ids, _ in texts)
    may_batch = editor is None or editor.token_local or _acts_by_position(editor)
    size, _ = how_to_run(model, None if may_batch else editor, batch_size, longest=longest)
    batches = length_sorted(model, [[len(ids)] for ids, _ in texts], size)
    shape = len(stems), max(len(stem.completions) for stem in stems)
    log_probabilities = torch.full(shape, torch.nan, dtype=torch.float64)
    is_greedy = torch.zeros(shape, dtype=torch.bool)
    keeps = len(stems) * model.cfg.d_vocab <= MOST_KEPT
    after = torch.full((len(stems), model.cfg.d_vocab if keeps else 0), torch.nan)
    store, ran = None, 0
    if folder is not None:
        facts = {"texts": digest(texts), "batch_size": size, "of": digest([stem.completions for stem in stems])}
        store = Store.within(folder, "said", {**facts, **model_facts(model, editor)})
    with editing(model, editor, lambda: ran == len(batches)):
        for number, batch in enumerate(batches):
            places = [(text, *place) for text in batch for place in read[texts[text]]]
            found = None if store is None else store.read(number)
            if found is None:
                wanted = [(batch.index(text), stems[row].completions[column]) for text, row, column in places]
                found = _run(model, [texts[text] for text in batch], wanted, keeps)
                ran += 1
                if store is not None:
                    store.write(number, found)
            rows, columns = torch.tensor([place[1:] for place in places]).unbind(1)
            log_probabilities[rows, columns], is_greedy[rows, columns] = found["log"], found["greedy"]
            if keeps:
                after[rows] = found["after"]
            if found["log"].isnan().any():
                raise InputError(
                    "The model predicts NaN. Activations overflow: scale the editor down, or run the model in float32."
                )
    return Said(log_probabilities, is_greedy, after if keeps else None)


def _acts_by_position(editor: EditsModels) -> bool:
    """Whether rows may share a pass that holds them whole, although positions count from the end of the prompt."""
    local = all(getattr(edit, "token_local", False) for edit in editor.edits.values())
    return local and isinstance(editor.where, ByPosition) and not getattr(editor.where, "of_one_batch", False)


def _run(
    model: Model,
    texts: Sequence[tuple[tuple[int, ...], int]],
    wanted: Sequence[tuple[int, Sequence[int]]],
    keeps: bool,
) -> dict[str, Tensor]:
    """Of completions, each with the number of its text: how likely they are, whether greedy, and all after the prompt."""
    tokens = PaddedTokens.of(model, [ids for ids, _ in texts], prompt_lengths=[length for _, length in texts])
    where, starts, n_read = torch.zeros_like(tokens.mask), [], 0
    for row, (ids, length) in enumerate(texts):
        where[row, length - 1 : len(ids)] = True
        starts.append(n_read)
        n_read += len(ids) - length + 1
    with telling(model, tokens.prompt_lengths):
        logits = logits_at(model, tokens, where)
    said = [token for _, completion in wanted for token in completion]
    places = [starts[text] + step for text, completion in wanted for step in range(len(completion))]
    owners = torch.repeat_interleave(torch.tensor([len(completion) for _, completion in wanted]))
    log = torch.zeros(len(wanted), dtype=torch.float64).index_add_(0, owners, log_probs_of(logits, places, said))
    missed = (logits.argmax(-1).cpu()[places] != torch.tensor(said)).long()
    greedy = torch.zeros(len(wanted), dtype=torch.long).index_add_(0, owners, missed) == 0
    heads = [starts[text] for text, _ in wanted]
    after = {"after": log_softmax(logits[heads]).float().cpu()} if keeps else {}
    return {"log": log, "greedy": greedy, **after}
