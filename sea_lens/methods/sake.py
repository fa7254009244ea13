"""SAKE: a fact as a distribution over prompts, moved by optimal transport just before the unembedding.

Source: Scialanga, Laugel, Grari and Detyniecki, *SAKE: Steering Activations for Knowledge Editing* (ACL 2025, arXiv
2503.01751), by the authors' code (`axa-rev-research/knowledge-editing`); the paper itself was not read here, and its numbers,
its `eps` per model and its thresholds are not verified. Departures: the scope is a distance of the activation that is edited,
as the paper is said to have it, and not of a sentence embedding, as its code has; its radius is fitted on held-out
prompts; and all facts compete for a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.editor import Editor
from sea_lens.editing.nearest import NearestEdit
from sea_lens.editing.where import At
from sea_lens.errors import InputError
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.methods.transport import MapKind, gaussian_map
from sea_lens.models.activations import Activations, Role
from sea_lens.models.bridge import Model, check_is_model
from sea_lens.models.hooks import states_at
from sea_lens.models.passes import telling
from sea_lens.models.prefixes import how_to_run
from sea_lens.models.sites import Site
from sea_lens.models.tokens import PaddedTokens, all_token_ids, check_context_length

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

    Example:
        >>> activations = sl.collect_fact(model, paraphrases, old="London", new="Paris")
        >>> editor = sl.SAKE().fit(activations)
        >>> several = sl.join_facts([editor, another])

    Attributes:
        eps: Added to both covariances. 0.01 is the code's default; that the paper takes 0.5 for Llama 2 is said by another
            library only.
        most: Largest eigenvalue of the map, and its inverse the smallest; None for no limit. Along directions that the
            source has no variance in, gains of 30 and more occur.
        transport: `gaussian`; or `mean` (a plain shift) or `diagonal`, the ablations.
        scope: Share of held-out source prompts that the radius is to hold; None to edit every prompt.
    """

    eps: float = 1e-2
    most: float | None = None
    transport: MapKind = "gaussian"
    scope: float | None = 0.95

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
            raise InputError(f"scope is a share above 0 and up to 1, or None, and {self.scope} was given.")

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
        source, target = activations.negative[SITE], activations.positive[SITE]
        held_out = torch.arange(len(source)) % HELD_OUT == HELD_OUT - 1
        if self.scope is not None and len(source) < 2 * HELD_OUT:
            raise InputError(
                f"The radius is fitted on every fifth prompt, and {len(source)} are too few for that: give ten at least, or "
                "scope=None."
            )
        fitting = ~held_out if self.scope is not None else torch.ones_like(held_out)
        found = gaussian_map(source[fitting], target, eps=self.eps, most=self.most, kind=self.transport)
        radius = float("inf")
        if self.scope is not None:
            distances = torch.linalg.vector_norm(source[held_out].double() - found.source, dim=1)
            radius = float(distances.quantile(self.scope))
        edit = NearestEdit(found.source[None].float(), torch.tensor([radius]), (found.edit(),))
        gains = found.gains
        numbers = {
            **({} if self.scope is None else {"radius": radius}),
            "smallest_gain": float(gains.min()) if len(gains) else 1.0,
            "largest_gain": float(gains.max()) if len(gains) else 1.0,
        }
        return replace(fitted_editor(self, activations, {SITE: edit}, {SITE: numbers}), where=At((-1,)))


def join_facts(editors: Sequence[Editor]) -> Editor:
    """One editor of several facts: a prompt goes to the nearest of them, if it is within that one's radius.

    Args:
        editors: Of SAKE, all of one model.

    Raises:
        InputError: If there are none, or one of them is of another method.
    """
    check_arguments(join_facts, locals())
    edits = [one for editor in editors for one in _facts_of(editor)]
    if not edits:
        raise InputError("At least one editor is needed, and none was given.")
    parts = [edit for one in edits for edit in one.edits]
    joined = NearestEdit(
        torch.cat([one.centers for one in edits]), torch.cat([one.radii for one in edits]), tuple(parts)
    )
    return replace(editors[0], edits={SITE: joined})


def _facts_of(editor: Editor) -> Iterator[NearestEdit]:
    found = editor.edits.get(SITE)
    if not isinstance(found, NearestEdit) or len(editor.edits) != 1:
        raise InputError(f"Facts are joined from editors of SAKE, and one of {editor.card.method!r} was given.")
    yield found


@torch.no_grad()
def collect_fact(
    model: Model, prompts: Sequence[str], old: str, new: str, *, forced: bool = True, batch_size: int = 32
) -> Activations:
    """The activations of one fact for `SAKE`: prompts as they are, and prompts that make the model say the new object.

    For every prompt p the source has p itself and, with `forced`, "Repeat this sentence: 'p old'. p", which makes the model
    say the old object; the target has "Do not mention 'old'. Repeat this sentence: 'p new'. p" (once for each of the two).

    Example:
        >>> activations = sl.collect_fact(model, ["The capital of the UK is", ...], old="London", new="Paris")

    Args:
        model: A TransformerBridge with a tokenizer.
        prompts: Paraphrases of the fact, and what follows from it, each to be completed by the object. Fifty or more.
        old: The object that the model knows.
        new: The object that it should say.
        forced: Whether to add the prompts that force the old object, as the authors do.
        batch_size: Prompts in one forward pass.

    Returns:
        Negative (source) and positive (target) activations of `unembed.hook_in` at the last token of each.

    Raises:
        InputError: If there are no prompts, an object is empty, or a prompt does not fit the model's context.
    """
    check_arguments(collect_fact, locals())
    check_is_model(model)
    if isinstance(prompts, str) or not prompts or not old.strip() or not new.strip():
        raise InputError(
            "Give a list of prompts with at least one, and both objects, such as old='London', new='Paris'."
        )
    old, new = old.strip(), new.strip()
    forcing = [f"Repeat this sentence: '{prompt} {old}'. {prompt}" for prompt in prompts] if forced else []
    wanted = [f"Do not mention '{old}'. Repeat this sentence: '{prompt} {new}'. {prompt}" for prompt in prompts]
    source, target = _last_states(model, [*prompts, *forcing], batch_size), _last_states(model, wanted, batch_size)
    target = torch.cat([target, target]) if forced else target
    return Activations.from_tensors(negative={SITE: source}, positive={SITE: target}, model=model)


def _last_states(model: Model, texts: Sequence[str], batch_size: int) -> Float[Tensor, "n width"]:
    rows = all_token_ids(model, texts)
    check_context_length(model, list(map(len, rows)), [f"Prompt {number}" for number in range(len(rows))])
    batch_size, _ = how_to_run(model, None, batch_size, share_prefix=False, longest=max(map(len, rows)))
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        tokens = PaddedTokens.of(model, [rows[index] for index in chosen])
        where = torch.zeros_like(tokens.mask)
        where[torch.arange(len(chosen)), torch.tensor([len(rows[index]) - 1 for index in chosen])] = True
        with telling(model, None):
            states = states_at(model, tokens, where).float().cpu()
        found |= dict(zip(chosen, states, strict=True))
    return torch.stack([found[index] for index in range(len(rows))])
