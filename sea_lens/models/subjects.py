"""Where a text names its subject, and what a model holds there: edits of knowledge act at the subject's last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.data.facts import HERE
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model, tokenizer_of
from sea_lens.models.hooks import gather_hooks
from sea_lens.models.passes import telling
from sea_lens.models.prefixes import how_to_run
from sea_lens.models.sites import Site
from sea_lens.models.tokens import PaddedTokens, all_token_ids, check_context_length, join
from sea_lens.models.unwrapped import forward


@dataclass(frozen=True)
class AskedOf:
    """A prompt about a subject, as text.

    Attributes:
        subject: The subject.
        prompt: With `{}` where the subject stands.
        answer: What completes it; empty for nothing.
        before: What the text begins with.
    """

    subject: str
    prompt: str
    answer: str = ""
    before: str = ""


@dataclass(frozen=True)
class SubjectRow:
    """The same as tokens.

    Attributes:
        ids: All of them.
        subject: Place of the subject's last token.
        answer_start: Place of the answer's first token; the number of tokens for none.
    """

    ids: list[int]
    subject: int
    answer_start: int


def subject_rows(model: Model, asked: Sequence[AskedOf]) -> list[SubjectRow]:
    """Prompts about subjects as tokens, each tokenized as one text.

    Args:
        model: A TransformerBridge with a tokenizer.
        asked: The prompts.

    Raises:
        InputError: If the subject is not in a prompt, a text does not fit the model's context, or its tokenizer does not know
            the subject or the answer.
    """
    texts = []
    for each in asked:
        if HERE not in each.prompt:
            raise InputError(
                f"The subject {each.subject!r} is not in the prompt {each.prompt!r}: write {HERE} where it stands, as in "
                f"'The capital of {HERE} is'."
            )
        start = each.before + each.prompt.split(HERE)[0] + each.subject
        whole = each.before + each.prompt.replace(HERE, each.subject)
        texts += [start, whole, join(whole, each.answer)]
    rows = all_token_ids(model, texts)
    check_context_length(model, list(map(len, rows)), [f"The text {text[:60]!r}" for text in texts])
    unknown = getattr(tokenizer_of(model), "unk_token_id", None)
    found = []
    for number, each in enumerate(asked):
        start_ids, prompt_ids, ids = rows[3 * number : 3 * number + 3]
        shared = _shared(start_ids, ids)
        # Where the subject's end and what follows it are one token, that one is the last of the subject.
        row = SubjectRow(ids, min(shared, len(start_ids) - 1, len(ids) - 1), _shared(prompt_ids, ids))
        if each.answer and row.answer_start >= len(ids):
            raise InputError(f"The object {each.answer!r} comes out as no tokens after {each.prompt!r}. Give another.")
        strange = [ids[row.subject], *ids[row.answer_start :]]
        if unknown is not None and unknown in strange:
            raise InputError(
                f"The model's tokenizer does not know {each.subject!r} or {each.answer!r}. Give facts in the "
                "model's own words."
            )
        found.append(row)
    return found


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


@torch.no_grad()
def states_in(
    model: Model, rows: Sequence[Sequence[int]], places: Sequence[int], sites: Sequence[Site], batch_size: int
) -> dict[Site, Float[Tensor, "n width"]]:
    """What some sites hold at one token of each row, under the hooks that are on the model; in float32 on the CPU.

    Args:
        model: A TransformerBridge.
        rows: Tokens.
        places: One place in each.
        sites: Inside the blocks.
        batch_size: Rows in one forward pass.
    """
    size, _ = how_to_run(model, None, batch_size, share_prefix=False, longest=max(map(len, rows)))
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    last = max(site.layer or 0 for site in sites) + 1
    stop = {} if last >= model.cfg.n_layers else {"stop_at_layer": last}
    for start in range(0, len(rows), size):
        tokens = PaddedTokens.of(model, rows[start : start + size])
        columns: Int[Tensor, "texts one"] = torch.tensor(places[start : start + size])[:, None]
        hooks, found = gather_hooks(sites, torch.arange(len(columns)), columns, torch.ones(len(columns), 1))
        with model.hooks(fwd_hooks=hooks), telling(model, None):
            forward(model, tokens.ids, **tokens.forward_options(), **stop)
        for site in sites:
            parts[site].append(found[site].cpu())
    return {site: torch.cat(own) for site, own in parts.items()}
