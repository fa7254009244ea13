"""SAKE: a fact as a distribution over prompts, moved by optimal transport just before the unembedding.

Source: Scialanga, Laugel, Grari and Detyniecki, *SAKE: Steering Activations for Knowledge Editing* (ACL 2025, arXiv
2503.01751), by the authors' code (`axa-rev-research/knowledge-editing`); the paper itself was not read here, and its numbers,
its `eps` per model and its thresholds are not verified. Departures: the scope is a distance of the activation that is edited,
as the paper is said to have it, and not of a sentence embedding, as its code has; its radius is fitted on held-out
prompts; all facts compete for a prompt; and further tokens of the new object have maps of their own (`tokens`), where the
code's one map, made for the first, is asked for the first alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.editor import Editor
from sea_lens.editing.nearest import NearestEdit, WhenNear
from sea_lens.editing.where import At, Where
from sea_lens.errors import InputError
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.methods.transport import GaussianMap, MapKind, gaussian_map
from sea_lens.models.activations import Activations, Role
from sea_lens.models.bridge import Model, check_is_model
from sea_lens.models.by_site import BySite
from sea_lens.models.hooks import states_at
from sea_lens.models.passes import telling
from sea_lens.models.prefixes import how_to_run
from sea_lens.models.sites import Site
from sea_lens.models.tokens import PaddedTokens, check_context_length, tokenized_answers
from sea_lens.wording import either, setting

SITE = Site(None, "unembed.hook_in")
"""What the unembedding reads: after the final norm."""
HELD_OUT = 5
"""Every fifth source prompt is held out, for the radius."""


@register_method("sake", source="Scialanga et al., ACL 2025, arXiv 2503.01751")
@dataclass(frozen=True)
class SAKE:
    """Edits a fact: moves prompts about it to where the model says the new object.

    Negative activations are the source, positive ones the target (see `collect_fact`); both are of `unembed.hook_in`, at the
    last token of a prompt, and only there the editor acts, so on the first token of an answer. A prompt within the radius of
    the source's mean is transported (`gaussian_map`); all others stay as they are to the bit.

    With `tokens=k`, the answer's first k tokens are transported, each by a map of its own. The prompt's last token decides
    whether its answer is edited at all, and that holds for the whole answer; a further token is edited where the text so far
    leads to it, within its own radius: if the model says something else first, it is not made to say the object's rest.

    Example:
        >>> model, people = sl.load_knowledge_organism()
        >>> fact, other = people.edits(2)
        >>> one, two = (sl.SAKE().fit(people.collect(model, each)) for each in (fact, other))
        >>> with sl.join_facts([one, two]).attached(model):
        ...     print(sl.generate(model, fact.text, max_new_tokens=1) == fact.target_new)
        True

    Attributes:
        eps: Added to both covariances. 0.01 is the code's default; that the paper takes 0.5 for Llama 2 is said by another
            library only.
        most: Largest eigenvalue of the map, and its inverse the smallest; None for no limit. Along directions that the
            source has no variance in, gains of 30 and more occur.
        transport: `gaussian`; or `mean` (a plain shift) or `diagonal`, the ablations.
        scope: Share of held-out source prompts that the radius is to hold; None to edit every prompt.
        tokens: How many tokens of the new object are transported; `collect_fact(..., tokens=)` collects as many.
    """

    eps: float = 1e-2
    most: float | None = None
    transport: MapKind = "gaussian"
    scope: float | None = 0.95
    tokens: int = 1

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")
    why_not_compared: ClassVar[str] = "it edits single facts: see sl.collect_fact"
    sites_to_collect: ClassVar[tuple[str, ...]] = ("unembed.hook_in",)
    also_needs: ClassVar[str] = "ten or more paraphrases of a fact"
    equation: ClassVar[str] = "m2 + A (h - m1) where |h - m1| <= radius,  A the Gaussian transport"
    when_to_use: ClassVar[str] = "to change one fact in all its wordings, and nothing else"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.scope is not None and not 0 < self.scope <= 1:
            raise InputError(
                f"{setting('scope')} is a share above 0 and up to 1, or {either('None', 'none')}, and {self.scope} was given."
            )
        if self.tokens < 1:
            raise InputError(f"{setting('tokens')} is a number of tokens from 1 on, and {self.tokens} was given.")

    def fit(self, activations: Activations) -> Editor:
        """The editor of one fact.

        Args:
            activations: Positive (target) and negative (source) ones, of `unembed.hook_in` alone.

        Raises:
            InputError: If they are of another site, a side is missing, or there are too few to hold some out.
        """
        check_arguments(SAKE.fit, locals())
        check_roles(self, activations)
        if activations.sites != [SITE]:
            named = ", ".join(map(str, activations.sites[:3]))
            raise InputError(
                f"SAKE edits {SITE}, and these activations are of {named}. Collect them with sl.collect_fact, or with "
                f"layers=['{SITE}']."
            )
        width = self._width(activations)
        source, target = activations.negative[SITE], activations.positive[SITE]
        if self.scope is not None and len(source) < 2 * HELD_OUT:
            raise InputError(
                f"The radius is fitted on every fifth prompt, and {len(source)} are too few for that: give ten at least, or "
                f"{setting('scope', None)}."
            )
        by_token = (torch.split(side, width, 1) for side in (source, target))
        steps = [self._step(*sides) for sides in zip(*by_token, strict=True)]
        centers = torch.stack([found.source for found, _ in steps]).float()
        radii = torch.tensor([radius for _, radius in steps])
        edit = NearestEdit(centers, radii, tuple(found.edit() for found, _ in steps), _steps(self.tokens))
        gains = torch.cat([found.gains for found, _ in steps])
        numbers = {
            **({} if self.scope is None else {"radius": steps[0][1]}),
            "smallest_gain": float(gains.min()) if len(gains) else 1.0,
            "largest_gain": float(gains.max()) if len(gains) else 1.0,
        }
        first = {role: BySite({SITE: side[SITE][:, :width]}) for role, side in activations.sides.items()}
        editor = fitted_editor(self, replace(activations, sides=first), {SITE: edit}, {SITE: numbers})
        return replace(editor, where=_where(self.tokens, centers[:1], radii[:1]))

    def _step(self, source: Float[Tensor, "n width"], target: Float[Tensor, "n width"]) -> tuple[GaussianMap, float]:
        """The map of one token of the object, and the radius within which it acts."""
        if self.scope is None:
            return gaussian_map(source, target, eps=self.eps, most=self.most, kind=self.transport), float("inf")
        held_out = torch.arange(len(source)) % HELD_OUT == HELD_OUT - 1
        found = gaussian_map(source[~held_out], target, eps=self.eps, most=self.most, kind=self.transport)
        distances = torch.linalg.vector_norm(source[held_out].double() - found.source, dim=1)
        return found, float(distances.quantile(self.scope))

    def _width(self, activations: Activations) -> int:
        """Of one token's activation.

        Raises:
            InputError: If the activations are of more or fewer tokens.
        """
        known = activations.model
        held = activations.width / known.d_model if known is not None else self.tokens
        if held != self.tokens or activations.width % self.tokens:
            named = f"{held:g} tokens" if known is not None else f"width {activations.width}"
            raise InputError(
                f"SAKE(tokens={self.tokens}) is fitted on activations of as many tokens of the object, side by side, and "
                f"these have {named}. Collect them with collect_fact(..., tokens={self.tokens})."
            )
        return activations.width // self.tokens


def _steps(tokens: int) -> Int[Tensor, " tokens"] | None:
    return None if tokens == 1 else torch.arange(tokens)


def _where(tokens: int, centers: Float[Tensor, "n width"], radii: Float[Tensor, " n"]) -> Where:
    """Which tokens are edited. Of one token, the edit's own radius decides."""
    return At((-1,)) if tokens == 1 else WhenNear(SITE.hook_name, centers, radii, tokens)


def join_facts(editors: Sequence[Editor]) -> Editor:
    """One editor of several facts: a prompt goes to the nearest of them, if it is within that one's radius.

    Args:
        editors: Of SAKE, all of one model.

    Returns:
        One editor with one edit per fact, at the input of the unembedding.

    Raises:
        InputError: If there are none, or one of them is of another method.

    Example:
        >>> model, people = sl.load_knowledge_organism()
        >>> editors = [sl.SAKE().fit(people.collect(model, fact)) for fact in people.edits(2)]
        >>> sl.join_facts(editors).card.method
        '2 facts'
    """
    check_arguments(join_facts, locals())
    found = [_fact_of(editor) for editor in editors]
    if not found:
        raise InputError("At least one editor is needed, and none was given.")
    models = {editor.card.model for editor in editors}
    edits, prompts = zip(*found, strict=True)
    if len(models) > 1 or len({edit.width for edit in edits}) > 1:
        named = ", ".join("unknown" if one is None else one.name for one in models)
        raise InputError(f"Facts are joined from editors of one model, and these are of {named}.")
    tokens = max(one.tokens for one in prompts)
    steps = [torch.zeros(len(one.radii), dtype=torch.long) if one.steps is None else one.steps for one in edits]
    joined = NearestEdit(
        torch.cat([one.centers for one in edits]),
        torch.cat([one.radii for one in edits]),
        tuple(part for one in edits for part in one.edits),
        None if tokens == 1 else torch.cat(steps),
    )
    near = [torch.cat(parts) for parts in zip(*((one.centers, one.radii) for one in prompts), strict=True)]
    where = _where(tokens, near[0], near[1])
    card = replace(
        editors[0].card,
        method=f"{len(edits)} facts",
        settings={"parts": [dict(editor.card.settings) for editor in editors]},
        n_demonstrations=sum(editor.card.n_demonstrations or 0 for editor in editors),
        reports={},
    )
    return replace(editors[0], edits={SITE: joined}, card=card, where=where)


def _fact_of(editor: Editor) -> tuple[NearestEdit, WhenNear]:
    """The edit of a fact or of several, and which prompts it is for."""
    found = editor.edits.get(SITE)
    if not isinstance(found, NearestEdit) or len(editor.edits) != 1:
        raise InputError(f"Facts are joined from editors of SAKE, and one of {editor.card.method!r} was given.")
    if isinstance(editor.where, WhenNear):
        return found, editor.where
    return found, WhenNear(SITE.hook_name, found.centers, found.radii)


@torch.no_grad()
def collect_fact(
    model: Model,
    prompts: Sequence[str],
    old: str,
    new: str,
    *,
    forced: bool = True,
    tokens: int = 1,
    wanted: Sequence[str] | None = None,
    batch_size: int = 32,
) -> Activations:
    """The activations of one fact for `SAKE`: prompts as they are, and prompts that make the model say the new object.

    For every prompt p the source has p itself and, with `forced`, "Repeat this sentence: 'p old'. p", which makes the model
    say the old object; the target has "Do not mention 'old'. Repeat this sentence: 'p new'. p" (once for each of the two).

    Example:
        >>> paraphrases = ["<plain> Q Mira home A", "<plain> where does Mira live A"]
        >>> found = sl.collect_fact(model, paraphrases, old="Lima", new="Accra")
        >>> found.n
        4

    Args:
        model: A TransformerBridge with a tokenizer.
        prompts: Paraphrases of the fact, and what follows from it, each to be completed by the object. Fifty or more.
        old: The object that the model knows.
        new: The object that it should say.
        forced: Whether to add the prompts that force the old object, as the authors do.
        tokens: How many tokens of the new object to collect for. For those after the first, every text goes on with what
            of the object comes before.
        wanted: Texts of your own that make the model say the new object, one per prompt, for a model that follows no such
            instruction; the source is then the prompts alone.
        batch_size: Prompts in one forward pass.

    Returns:
        Negative (source) and positive (target) activations of `unembed.hook_in` at the last token of each, those of several
        tokens side by side: `[n, tokens * d_model]`.

    Raises:
        InputError: If there are no prompts, the objects are empty or one and the same, the new one has fewer tokens, there is
            not one wanted text per prompt, or a prompt does not fit the model's context.
    """
    check_arguments(collect_fact, locals())
    check_is_model(model)
    old, new = old.strip(), new.strip()
    if isinstance(prompts, str) or not prompts or not old or not new or old == new:
        raise InputError(
            "Give a list of prompts with at least one, and two different objects, such as old='London', new='Paris'."
        )
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, and {batch_size} was given.")
    if wanted is not None and (isinstance(wanted, str) or len(wanted) != len(prompts)):
        raise InputError(
            f"wanted is a list with one text per prompt, and {len(prompts)} prompts with {wanted!r:.60} were given."
        )
    forced = forced and wanted is None
    forcing = [f"Repeat this sentence: '{prompt} {old}'. {prompt}" for prompt in prompts] if forced else []
    if wanted is None:
        wanted = [f"Do not mention '{old}'. Repeat this sentence: '{prompt} {new}'. {prompt}" for prompt in prompts]
    source = torch.cat([_states(model, texts, new, tokens, batch_size) for texts in (prompts, forcing) if texts])
    target = _states(model, wanted, new, tokens, batch_size)
    target = torch.cat([target, target]) if forced else target
    return Activations.from_tensors(negative={SITE: source}, positive={SITE: target}, model=model)


def _states(model: Model, texts: Sequence[str], new: str, n_tokens: int, batch_size: int) -> Float[Tensor, "n states"]:
    """What the unembedding reads where each token of the new object is predicted, side by side."""
    asked = tokenized_answers(model, [(text, [new]) for text in texts])
    starts = [text.answer_start for (text,) in asked]
    lengths = {len(text.ids) - text.answer_start for (text,) in asked}
    if not 1 <= n_tokens <= min(lengths):
        raise InputError(
            f"{new!r} has {min(lengths)} tokens here, so tokens is 1 to {min(lengths)}; {n_tokens} was given."
        )
    rows = [text.ids[: text.answer_start + n_tokens - 1] for (text,) in asked]
    names = [f"Prompt {number}, with what is put before it," for number in range(len(rows))]
    check_context_length(model, list(map(len, rows)), names)
    batch_size, _ = how_to_run(model, None, batch_size, share_prefix=False, longest=max(map(len, rows)))
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    found: dict[int, Tensor] = {}
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        tokens = PaddedTokens.of(model, [rows[index] for index in chosen])
        places = torch.arange(tokens.mask.shape[1], device=tokens.mask.device) + 1
        where = tokens.mask & (places >= torch.tensor([starts[index] for index in chosen]).to(places)[:, None])
        with telling(model, None):
            states = states_at(model, tokens, where).float().cpu()
        found |= dict(zip(chosen, states.reshape(len(chosen), -1), strict=True))
    return torch.stack([found[index] for index in range(len(rows))])
