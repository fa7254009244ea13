"""Rows with several continuations of one prompt as one batch, for runs that share blocks: see `models/trees.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sea_lens.models.bridge import EditsModels, Model
from sea_lens.models.hooks import foreign_hooks
from sea_lens.models.passes import PADDING
from sea_lens.models.prefixes import how_to_run
from sea_lens.models.tokens import PaddedTokens
from sea_lens.models.trees import PaddedTrees, TokenTree, can_branch


@dataclass(frozen=True, kw_only=True)
class BranchedTokens(PaddedTokens):
    """Rows of trees.

    Attributes:
        positions: By token, its position in its text; -1 for padding, `[batch, pos]`.
        sees: Whether a token sees another, `[batch, pos, pos]`.
        dtype: Of the model, and so of the mask.
    """

    positions: Int[Tensor, "batch pos"]
    sees: Bool[Tensor, "batch pos pos"]
    dtype: torch.dtype

    def forward_options(self) -> dict[str, object]:
        """Keyword arguments of a pass in which a token sees those before it in its own text."""
        mask = torch.zeros(self.sees.shape, dtype=self.dtype, device=self.sees.device)
        mask.masked_fill_(~self.sees, torch.finfo(self.dtype).min)
        return {"attention_mask": mask[:, None], "position_ids": self.positions.clamp(min=0), "use_cache": False}


def branched_tokens(model: Model, trees: Sequence[TokenTree], prompt_lengths: Sequence[int]) -> PaddedTokens:
    """Rows of trees, padded on the right; ordinary rows where each is one text."""
    ordinary = PaddedTokens.of(model, [tree.ids for tree in trees], prompt_lengths=prompt_lengths)
    if all(tree.parents == list(range(-1, len(tree) - 1)) for tree in trees):
        return ordinary
    padded = PaddedTrees.of(model, trees)
    dtype = next((each.dtype for each in model.original_model.parameters() if each.is_floating_point()), torch.float32)
    return BranchedTokens(
        padded.ids,
        padded.depths != PADDING,
        ordinary.prompt_lengths,
        positions=padded.depths,
        sees=padded.sees,
        dtype=dtype,
    )


def may_branch(model: Model, editors: Sequence[EditsModels | None], longest: int) -> bool:
    """Whether texts may stand side by side in rows of up to so many tokens, under any of these editors.

    Not under hooks of a user's own, which may look at columns or at other tokens, nor under editors that mix tokens.
    """
    return not foreign_hooks(model) and not are_run_alone(model, editors, longest) and can_branch(model, longest)


def are_run_alone(model: Model, editors: Sequence[EditsModels | None], longest: int) -> bool:
    """Whether rows of up to so many tokens have to be run one by one under some of these editors."""
    mixing = next((editor for editor in editors if editor is not None and not editor.token_local), None)
    return how_to_run(model, mixing, 2, share_prefix=False, longest=longest)[0] == 1
