"""Training of DiKE's disentangler, on the activations of a frozen model and on what it says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm.auto import tqdm

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.cache import Store, digest
from sea_lens.data.facts import FactEdit, KnownFact, check_facts
from sea_lens.errors import InputError
from sea_lens.methods.disentangler import NAMES, Disentangler
from sea_lens.methods.values import frozen
from sea_lens.models.bridge import FwdHook, Model, check_is_model
from sea_lens.models.hooks import logits_at, model_facts
from sea_lens.models.layers import check_layers
from sea_lens.models.passes import telling
from sea_lens.models.sites import Site
from sea_lens.models.subjects import AskedOf, SubjectRow, states_in, subject_rows
from sea_lens.models.tokens import PaddedTokens

SAVE_EVERY = 50
"""Steps after which a training in a folder is kept."""


@dataclass(frozen=True)
class DisentanglerTraining:
    """How a disentangler is trained. None of it is published; the defaults are ours.

    Attributes:
        steps: Steps of AdamW.
        facts: Facts in a step.
        others: Other facts of the subject in a step, for each fact, at most.
        learning_rate: Of AdamW.
        constraint: Weight of the loss on what the model says (`alpha`); 0 trains on activations alone.
        reconstruction: Weight of `|h_s - W5 z_r - W6 z_u|^2`, as a share of the mean of `|h_s|^2` (`beta`).
        temperature: Of both contrasts (`tau`).

    Example:
        >>> sl.DisentanglerTraining(steps=100, learning_rate=1e-4).facts
        8
    """

    steps: int = 300
    facts: int = 8
    others: int = 2
    learning_rate: float = 1e-3
    constraint: float = 1.0
    reconstruction: float = 1.0
    temperature: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps < 1 or self.facts < 2 or self.others < 1 or self.learning_rate <= 0 or self.temperature <= 0:
            raise InputError(
                "steps and others must be 1 at least, facts 2 at least, learning_rate and temperature above zero, and "
                f"{(self.steps, self.others, self.facts, self.learning_rate, self.temperature)} were given."
            )
        if self.constraint < 0 or self.reconstruction < 0:
            raise InputError("constraint and reconstruction are weights from 0 on, and a negative one was given.")


USUAL = DisentanglerTraining()
"""How it is trained where nothing else is said."""


@dataclass(frozen=True, eq=False)
class Known:
    """Facts that the model knows, taken apart for training.

    Attributes:
        rows: Each fact as tokens, with its answer.
        subjects: By fact, whose it is, as a number.
        others: By fact, the other facts of the subject.
        states: By fact, the state at the subject's last token.
        prompts: By fact, the state at the prompt's last token.
    """

    rows: list[SubjectRow]
    subjects: list[int]
    others: list[list[int]]
    states: Float[Tensor, "n d_model"]
    prompts: Float[Tensor, "n d_model"]

    @classmethod
    def of(cls, model: Model, facts: Sequence[FactEdit], layer: int, batch_size: int) -> Known:
        """Every fact of every subject, with all others of the same subject beside it.

        Raises:
            InputError: If there are fewer than two subjects, or no subject has two facts.
        """
        by_subject: dict[str, dict[KnownFact, None]] = {}
        for fact in facts:
            own = by_subject.setdefault(fact.subject, {})
            if fact.target_true is not None:
                own[KnownFact(fact.prompt, fact.target_true)] = None
            own |= dict.fromkeys(fact.same_subject)
        asked = [(number, each) for number, own in enumerate(by_subject.values()) for each in own]
        numbers = [number for number, _ in asked]
        others = [
            [i for i, other in enumerate(numbers) if other == own and i != place] for place, own in enumerate(numbers)
        ]
        if not any(others) or len(set(numbers)) < 2:
            raise InputError(
                "A disentangler learns from several facts that the model knows of one subject, and from two subjects at "
                "least. Give facts with target_true, and with same_subject=(sl.KnownFact('{} pays in', 'pounds'), ...)."
            )
        names = list(by_subject)
        rows = subject_rows(model, [AskedOf(names[number], each.prompt, each.answer) for number, each in asked])
        site = Site(layer)
        starts = [row.ids[: row.answer_start] for row in rows]
        states, prompts = (
            states_in(model, starts, places, [site], batch_size)[site]
            for places in ([row.subject for row in rows], [len(ids) - 1 for ids in starts])
        )
        return cls(rows, numbers, others, states, prompts)


def train_disentangler(
    model: Model,
    facts: Sequence[FactEdit],
    layer: int,
    training: DisentanglerTraining | None = None,
    *,
    batch_size: int = 32,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Disentangler:
    """Trains DiKE's disentangler on facts that a model knows. The model stays as it is.

    The loss is `L_ctr + alpha L_con + beta L_rec`:

    - `L_ctr = InfoNCE(z_r; h_s; z_u, H) + InfoNCE(z_u; h_s; z_r, H)`, with cosines (not stated in our sources), H the states
      of other subjects in the step;
    - `L_con = -log P[o | z_r in the place of h_s] + sum over others of the same subject -log P[o' | z_u in its place]`, per
      token of the answer;
    - `L_rec = |h_s - W5 z_r - W6 z_u|^2`, here as a share of `|h_s|^2`.

    Example:
        >>> model, people = sl.load_knowledge_organism()
        >>> brief = sl.DisentanglerTraining(steps=2, facts=4)  # 300 steps by default
        >>> disentangler = sl.train_disentangler(model, people.edits(8, "fitting"), layer=0, training=brief, folder="krd")
        >>> disentangler.layer
        0

    Args:
        model: A TransformerBridge with a tokenizer.
        facts: Facts that the model knows, of `target_true` and `same_subject`. Take others than those that you edit.
        layer: Whose output it reads; a negative one counts from the end. DiKE edits up to this layer.
        training: How; None for the defaults.
        batch_size: Rows in one forward pass that collects activations; a step's rows are one pass.
        seed: Of the first weights, and of what is drawn.
        folder: Where to keep what is done, every 50 steps. A training that was killed goes on from there, to the same bits.
        progress: Whether to show a progress bar.

    Returns:
        The disentangler, in float32, with the last losses.

    Raises:
        InputError: If there are too few facts of one subject, or the loss is not finite.
        FileFormatError: If `folder` holds another training.
    """
    check_arguments(train_disentangler, locals())
    check_is_model(model)
    how = training or USUAL
    (layer,) = check_layers([layer], model.cfg.n_layers)
    known = Known.of(model, check_facts(facts), layer, batch_size)
    unit = float(known.states.square().mean().sqrt())
    weights = _first_weights(known.states.shape[1], seed)
    adam = torch.optim.AdamW(list(weights.values()), lr=how.learning_rate)
    store, first = None, 0
    if folder is not None:
        made_by = {
            "training": asdict(how),
            "layer": layer,
            "seed": seed,
            "facts": digest(list(facts)),
            **model_facts(model),
        }
        store = Store(folder, "disentangler", made_by)
        first = _resumed(store, weights, adam, how.steps)
    losses: dict[str, float] = {}
    with frozen(model), tqdm(total=how.steps, initial=first, desc="disentangler", disable=not progress) as bar:
        for step in range(first, how.steps):
            drawn = torch.Generator().manual_seed(seed * 1_000_003 + step)
            with torch.enable_grad():
                terms = _losses(model, known, Disentangler(weights, layer, unit), how, drawn)
                loss = terms["contrast"] + how.constraint * terms["constraint"]
                loss = loss + how.reconstruction * terms["reconstruction"]
                if not bool(loss.isfinite()):
                    raise InputError(
                        "The disentangler's loss is not finite. Lower the learning rate, or run in float32."
                    )
                for weight, grad in zip(
                    weights.values(), torch.autograd.grad(loss, list(weights.values())), strict=True
                ):
                    weight.grad = grad
            adam.step()
            losses = {name: float(term.detach()) for name, term in terms.items()}
            bar.set_postfix({name: f"{value:.3g}" for name, value in losses.items()}, refresh=False)
            bar.update()
            if store is not None and (step + 1) % SAVE_EVERY == 0:
                _keep(store, weights, adam, step + 1)
    final = {name: weight.detach().clone() for name, weight in weights.items()}
    found = Disentangler(final, layer, unit)
    with torch.no_grad():
        parts = found.related(known.states, known.prompts), found.unrelated(known.states, known.prompts)
        left = (known.states - found.together(*parts)).square().sum(1) / known.states.square().sum(1)
    return Disentangler(final, layer, unit, {**losses, "reconstruction": float(left.mean()), "facts": float(len(left))})


def _first_weights(width: int, seed: int) -> dict[str, Tensor]:
    """As `torch.nn.Linear` draws them."""
    generator, bound = torch.Generator().manual_seed(seed), width**-0.5
    drawn = {name: (2 * torch.rand(width, width, generator=generator) - 1) * bound for name in NAMES}
    return {name: weight.requires_grad_() for name, weight in drawn.items()}


def _resumed(store: Store, weights: Mapping[str, Tensor], adam: torch.optim.AdamW, steps: int) -> int:
    """Puts back what the last kept step left; the number of steps done."""
    for done in range(steps - steps % SAVE_EVERY, 0, -SAVE_EVERY):
        kept = store.read(done)
        if kept is None:
            continue
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(kept[name])
                adam.state[weight] = {key: kept[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        return done
    return 0


def _keep(store: Store, weights: Mapping[str, Tensor], adam: torch.optim.AdamW, done: int) -> None:
    tensors = {name: weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        tensors |= {f"{name}.{key}": value for key, value in adam.state[weight].items()}
    store.write(done, tensors)


def _losses(
    model: Model, known: Known, disentangler: Disentangler, how: DisentanglerTraining, drawn: torch.Generator
) -> dict[str, Tensor]:
    """The three terms on some facts."""
    chosen = torch.randperm(len(known.rows), generator=drawn)[: how.facts].tolist()
    h_s, h_r = known.states[chosen], known.prompts[chosen]
    related, unrelated = disentangler.related(h_s, h_r), disentangler.unrelated(h_s, h_r)
    subjects = torch.tensor([known.subjects[index] for index in chosen])
    foreign = subjects[:, None] != subjects[None]
    contrast = _info_nce(related, h_s, unrelated, foreign, how.temperature)
    contrast = contrast + _info_nce(unrelated, h_s, related, foreign, how.temperature)
    left = (h_s - disentangler.together(related, unrelated)).square().sum(1)
    terms = {"contrast": contrast, "reconstruction": left.mean() / h_s.square().sum(1).mean()}
    if not how.constraint:
        return {**terms, "constraint": torch.zeros(())}
    rows, parts = list(chosen), [related]
    for place, index in enumerate(chosen):
        own = known.others[index]
        picked = torch.randperm(len(own), generator=drawn)[: how.others].tolist()
        rows += [own[number] for number in picked]
        parts.append(unrelated[place : place + 1].expand(len(picked), -1))
    surprise = _surprise(model, [known.rows[index] for index in rows], torch.cat(parts), disentangler.layer)
    return {**terms, "constraint": surprise.sum() / len(chosen)}


def _info_nce(
    anchor: Tensor, positive: Tensor, negative: Tensor, foreign: Tensor, temperature: float
) -> Float[Tensor, ""]:
    """`-log e^(sim(a,p)/tau) / (e^(sim(a,p)/tau) + e^(sim(a,n)/tau) + sum over foreign states)`, its mean over anchors."""
    near = cosine_similarity(anchor, positive, dim=1) / temperature
    apart = cosine_similarity(anchor, negative, dim=1) / temperature
    others = cosine_similarity(anchor[:, None], positive[None], dim=2) / temperature
    logits = torch.cat([near[:, None], apart[:, None], others.masked_fill(~foreign, -torch.inf)], dim=1)
    loss: Tensor = (torch.logsumexp(logits, dim=1) - near).mean()
    return loss


def _surprise(
    model: Model, rows: Sequence[SubjectRow], states: Float[Tensor, "n d_model"], layer: int
) -> Float[Tensor, " n"]:
    """-log P per token of each row's answer, with these states in the place of the subjects'."""
    tokens = PaddedTokens.of(model, [row.ids[:-1] for row in rows])
    where, wanted = torch.zeros_like(tokens.mask), torch.zeros_like(tokens.ids)
    for number, row in enumerate(rows):
        where[number, row.answer_start - 1 : len(row.ids) - 1] = True
        wanted[number, row.answer_start - 1 : len(row.ids) - 1] = torch.tensor(row.ids[row.answer_start :])
    places = torch.arange(len(rows)), torch.tensor([row.subject for row in rows])

    def put(tensor: Tensor, hook: object) -> Tensor:
        return tensor.index_put(tuple(place.to(tensor.device) for place in places), states.to(tensor))

    hooks: list[FwdHook] = [(Site(layer).hook_name, put)]
    with model.hooks(fwd_hooks=hooks), telling(model, None):
        predicted = torch.log_softmax(logits_at(model, tokens, where).float().to(where.device), dim=-1)
    each = -predicted.gather(1, wanted[where][:, None])[:, 0]
    owner = where.nonzero()[:, 0]
    total = torch.zeros(len(rows), device=each.device).index_add(0, owner, each)
    mean: Tensor = (total / where.sum(1)).cpu()
    return mean
