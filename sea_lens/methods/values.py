"""What a model would have to hold at a subject for it to say a new object: found by gradients on that one vector.

MEMIT's rule (`memit/compute_z.py` of kmeng01/memit, read): Adam on what is added to the layer's output at the subject's last
token; the loss is the mean over prefixes of the new object's negative log-likelihood per token, plus `kl` times
KL(edited || unedited) of the next token after the subject in "{} is a", plus `weight_decay |delta| / |h|^2`; after every step
delta is cut to `clamp |h|`; it ends early at a loss below 0.05. The authors sample the prefixes from the model; here they are
the beginnings of neutral texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div
from tqdm.auto import tqdm

from sea_lens.arguments import check_fields
from sea_lens.data.facts import FactEdit
from sea_lens.errors import InputError
from sea_lens.models.bridge import FwdHook, Model, tokenizer_of
from sea_lens.models.hooks import logits_at
from sea_lens.models.passes import telling
from sea_lens.models.prefixes import how_to_run
from sea_lens.models.sites import Site
from sea_lens.models.subjects import AskedOf, SubjectRow, subject_rows
from sea_lens.models.tokens import PaddedTokens, all_token_ids

GOOD_ENOUGH = 0.05
"""Loss at which the authors stop."""
PREFIX_TOKENS = 10


@dataclass(frozen=True)
class Search:
    """How the vectors are searched for.

    Attributes:
        steps: Passes at most.
        learning_rate: Of Adam.
        weight_decay: Weight of `|delta| / |h|^2`.
        kl: Weight of the KL on `essence`.
        clamp: Longest delta, as a share of the activation's norm.
        essence: Prompt after whose subject the next token should stay as likely as it is; empty for none.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    kl: float
    clamp: float
    essence: str | None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 1 or self.learning_rate <= 0 or self.clamp <= 0 or self.weight_decay < 0 or self.kl < 0:
            raise InputError(
                "steps, learning_rate and clamp must be above zero, weight_decay and kl zero at least, and "
                f"{(self.steps, self.learning_rate, self.clamp, self.weight_decay, self.kl)} were given."
            )


@dataclass(frozen=True, eq=False)
class Start:
    """What is added at the subjects, as a function of what is searched for: `offset + delta map^T`.

    Attributes:
        states: The activations there, unedited.
        offset: Added whatever delta is; None for nothing.
        map: What delta goes through; None for the identity.
    """

    states: Float[Tensor, "n d_model"]
    offset: Float[Tensor, "n d_model"] | None = None
    map: Float[Tensor, "d_model d_model"] | None = None

    def added(self, delta: Float[Tensor, "part d_model"], part: slice) -> Float[Tensor, "part d_model"]:
        """What is added for some of the subjects."""
        moved = delta if self.map is None else delta @ self.map.to(delta).T
        return moved if self.offset is None else moved + self.offset[part].to(delta)


def prefixes_of(model: Model, texts: Sequence[str], n: int) -> list[str]:
    """What prompts are put after: nothing, and the first tokens of some neutral texts, each as a sentence."""
    tokenizer = tokenizer_of(model)
    rows = all_token_ids(model, texts[:n]) if n else []
    starts = [ids[1:] if ids[:1] == [tokenizer.bos_token_id] else ids for ids in rows]
    return ["", *(f"{tokenizer.decode(ids[:PREFIX_TOKENS]).strip()}. " for ids in starts)]


def find_values(
    model: Model,
    facts: Sequence[FactEdit],
    layer: int,
    search: Search,
    start: Start,
    prefixes: Sequence[str],
    *,
    batch_size: int,
    progress: bool,
) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, " n"]]:
    """What to add to a layer's output at each fact's subject, and the loss that is left; each fact by itself.

    Args:
        model: A TransformerBridge with a tokenizer.
        facts: The facts.
        layer: Whose output.
        search: How.
        start: What is searched through.
        prefixes: From `prefixes_of`.
        batch_size: Rows in one pass; the rows of one fact are never parted.
        progress: Whether to show a progress bar.
    """
    asked = [[AskedOf(fact.subject, fact.prompt, fact.target_new, before) for before in prefixes] for fact in facts]
    has_essence = bool(search.essence) and search.kl > 0
    if has_essence:
        asked = [[*own, AskedOf(fact.subject, str(search.essence))] for own, fact in zip(asked, facts, strict=True)]
    rows = iter(subject_rows(model, [each for own in asked for each in own]))
    by_fact = [[next(rows) for _ in own] for own in asked]
    longest = max(len(row.ids) for own in by_fact for row in own)
    size, _ = how_to_run(model, None, batch_size, share_prefix=False, longest=longest)
    n_at_once = max(1, size // len(by_fact[0]))
    added, losses = [], []
    with frozen(model), tqdm(total=len(facts), desc="values", unit="fact", disable=not progress) as bar:
        for first in range(0, len(facts), n_at_once):
            part = slice(first, min(first + n_at_once, len(facts)))
            found, loss = _search(model, by_fact[part], layer, search, start, part, has_essence)
            added.append(found)
            losses.append(loss)
            bar.update(len(found))
    return torch.cat(added).cpu(), torch.cat(losses).cpu()


def _search(
    model: Model,
    facts: Sequence[Sequence[SubjectRow]],
    layer: int,
    search: Search,
    start: Start,
    part: slice,
    has_essence: bool,
) -> tuple[Tensor, Tensor]:
    rows = [row for own in facts for row in own]
    owner = torch.tensor([number for number, own in enumerate(facts) for _ in own])
    is_essence = torch.tensor([has_essence and number == len(own) - 1 for own in facts for number in range(len(own))])
    tokens = PaddedTokens.of(
        model, [row.ids if plain else row.ids[:-1] for row, plain in zip(rows, is_essence, strict=True)]
    )
    device = tokens.ids.device
    where = torch.zeros_like(tokens.mask)
    wanted = torch.zeros_like(tokens.ids)
    for number, row in enumerate(rows):
        if is_essence[number]:
            where[number, row.subject] = True
        else:
            where[number, row.answer_start - 1 : len(row.ids) - 1] = True
            wanted[number, row.answer_start - 1 : len(row.ids) - 1] = torch.tensor(row.ids[row.answer_start :])
    of_row = where.nonzero()[:, 0].cpu()
    asks, target = ~is_essence[of_row], wanted[where]
    lengths = where.sum(1).cpu()
    # Every token of an object counts as a share of its row, and every row as a share of its fact.
    n_rows = (~is_essence).float().reshape(len(facts), -1).sum(1)
    shares = (asks / lengths[of_row] / n_rows[owner[of_row]]).to(device)
    places = torch.arange(len(rows)), torch.tensor([row.subject for row in rows])
    states = start.states[part].to(device)
    norms = torch.linalg.vector_norm(states, dim=1)

    def adding(extra: Tensor) -> FwdHook:
        def add(tensor: Tensor, hook: object) -> Tensor:
            at = tuple(place.to(tensor.device) for place in places)
            return tensor.index_put(at, extra[owner.to(extra.device)].to(tensor), accumulate=True)

        return Site(layer).hook_name, add

    def predictions(extra: Tensor) -> Tensor:
        with model.hooks(fwd_hooks=[adding(extra)]), telling(model, None):
            return torch.log_softmax(logits_at(model, tokens, where).float().to(device), dim=-1)

    with torch.no_grad():
        before = predictions(torch.zeros_like(states))[~asks.to(device)] if has_essence else None

    def losses_of(delta: Tensor) -> Tensor:
        predicted = predictions(start.added(delta, part))
        surprise = -predicted.gather(1, target[:, None])[:, 0] * shares
        found = torch.zeros(len(facts), device=device).index_add(0, owner[of_row].to(device), surprise)
        if before is not None:
            after = predicted[~asks.to(device)]
            found = found + search.kl * kl_div(before, after, log_target=True, reduction="none").sum(1)
        lengths_now: Tensor = torch.linalg.vector_norm(delta, dim=1)
        decayed: Tensor = found + search.weight_decay * lengths_now / norms**2
        return decayed

    delta = torch.zeros_like(states, dtype=torch.float32, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=search.learning_rate)
    done = torch.zeros(len(facts), dtype=torch.bool, device=device)
    losses = torch.full((len(facts),), torch.inf, device=device)
    for step in range(search.steps):
        with torch.enable_grad():
            found = losses_of(delta)
            # What comes first, as the published code has it: a fact that is good enough is left where it is.
            losses = torch.where(done, losses, found.detach())
            done = done | (losses < GOOD_ENOUGH)
            if step == search.steps - 1 or bool(done.all()):
                break
            (delta.grad,) = torch.autograd.grad(found.sum(), delta)
        kept = delta.detach().clone()
        adam.step()
        with torch.no_grad():
            lengths_now = torch.linalg.vector_norm(delta, dim=1, keepdim=True)
            most = search.clamp * norms[:, None]
            delta.copy_(torch.where(done[:, None], kept, delta * (most / lengths_now.clamp_min(1e-30)).clamp_max(1.0)))
    if not bool(losses.isfinite().all()):
        raise InputError(
            "The loss of an edit is not finite. Run the model in float32 or bfloat16, or lower the learning rate."
        )
    return start.added(delta.detach(), part), losses


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """No gradients of weights inside the block."""
    changed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)
