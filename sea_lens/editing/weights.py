"""An editor's keyed edits written into the weights themselves, and taken out again to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.editor import Editor
from sea_lens.editing.keyed import KeyedEdit
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model
from sea_lens.models.down_projection import check_is_linear_in_keys, down_projection

ModelType = TypeVar("ModelType", bound=Model)


@dataclass(frozen=True, eq=False)
class WeightEdit:
    """An editor of keyed edits, such as MEMIT's, as an edit of the MLPs' last matrices: `W + outs keys^T`.

    The model computes what it computes under the editor, to rounding, and runs at its own speed. Weights keep their dtype, so
    in half precision an edit smaller than their rounding is lost, which the editor's is not.

    Example:
        >>> ones = sl.KeyedEdit(keys=torch.eye(384, 1), outs=torch.ones(128, 1))
        >>> before = model.W_out[1].detach().clone()
        >>> written = sl.WeightEdit(sl.Editor({"blocks.1.hook_mlp_out": ones})).apply(model)  # into the model's own weights
        >>> (model.W_out[1].detach() - before).sum(1)[:3]  # the first key writes 1 more into each of 128 coordinates
        tensor([128.,   0.,   0.])
        >>> written.undo()
        >>> torch.equal(model.W_out[1], before)
        True

    Attributes:
        editor: Its edits are keyed ones, of every token.

    Raises:
        InputError: If the editor has edits of other kinds, or edits some tokens only.
    """

    editor: Editor

    def __post_init__(self) -> None:
        check_fields(self)
        others = sorted({edit.kind for edit in self.editor.edits.values() if not isinstance(edit, KeyedEdit)})
        if others:
            raise InputError(
                f"Weights hold keyed edits, as MEMIT and DiKE fit them, and this editor has {', '.join(others)} ones. Attach "
                "the editor itself."
            )
        if self.editor.where is not None:
            raise InputError(
                f"Weights act on every token, and this editor on {self.editor.where}. Attach the editor itself, or give "
                'editor.at_positions("all").'
            )

    @property
    def layers(self) -> list[int]:
        """The layers whose weights it edits."""
        return self.editor.layers

    @property
    def fingerprint(self) -> str:
        """Of its editor."""
        return f"weights: {self.editor.fingerprint}"

    def scaled(self, factor: float) -> WeightEdit:
        """Every strength multiplied by `factor`."""
        return replace(self, editor=self.editor.scaled(factor))

    def check(self, model: Model) -> None:
        """Checks that it can be applied to a model, by a short pass.

        Raises:
            ModelMismatchError: If the editor does not fit it, its weights are quantized or those of a mixture of experts, or
                a norm follows an MLP's last matrix, as in Gemma 2 and 3.
        """
        self.editor.check(model)
        for layer in self.layers:
            down_projection(model, layer)
            check_is_linear_in_keys(model, layer)

    @torch.no_grad()
    def apply(self, model: Model) -> AppliedEdit:
        """Edits a model's weights in place.

        Args:
            model: A TransformerBridge.

        Returns:
            What undoes it.

        Raises:
            ModelMismatchError: As `check`.
        """
        check_arguments(WeightEdit.apply, locals())
        self.check(model)
        before, after = {}, {}
        for site, edit in self.editor.edits.items():
            assert isinstance(edit, KeyedEdit)
            assert site.layer is not None
            down = down_projection(model, site.layer)
            if edit.is_identity:
                continue
            before[site.layer] = down.weight.detach().clone()
            change = edit.matrix.cpu()  # not every device has float64
            edited = before[site.layer].cpu().double() + (change.T if down.transposed else change)
            down.weight.copy_(edited.to(down.weight.dtype))
            after[site.layer] = down.weight.detach().clone()
        return AppliedEdit(model, before, after)

    @contextmanager
    def attached(self, model: ModelType) -> Iterator[ModelType]:
        """The model with edited weights inside the `with` block, and its own ones to the bit afterwards.

        Args:
            model: A TransformerBridge.

        Yields:
            The same model.

        Raises:
            ModelMismatchError: As `check`.
        """
        applied = self.apply(model)
        try:
            yield model
        finally:
            applied.undo()


@dataclass(frozen=True, eq=False)
class AppliedEdit:
    """An edit of weights that stands.

    Attributes:
        model: The edited model.
        before: By layer, the weights as they were.
        after: By layer, the edited weights.
    """

    model: Model
    before: Mapping[int, Tensor] = field(repr=False)
    after: Mapping[int, Tensor] = field(repr=False)

    @torch.no_grad()
    def undo(self) -> None:
        """Puts the weights back, to the bit. Edits that came later are undone first; a second call does nothing.

        Raises:
            InputError: If the weights are no longer those that this edit left.
        """
        weights = {layer: down_projection(self.model, layer).weight for layer in self.before}
        if all(torch.equal(weight, self.before[layer]) for layer, weight in weights.items()):
            return
        changed = [layer for layer, weight in weights.items() if not torch.equal(weight, self.after[layer])]
        if changed:
            raise InputError(
                f"The weights of layers {changed} were changed after this edit, so undoing it would undo that, too. Undo the "
                "later edit first."
            )
        for layer, weight in weights.items():
            weight.copy_(self.before[layer])
