"""Activations of any number of demonstrations, a batch at a time: what in-memory and streaming collection both run on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.data.demonstrations import Demonstrations
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, ModelMismatchError, SeaLensWarning
from sea_lens.models.activations import ROLES, ActivationKind, Activations, BySite, Role, TokenChoice
from sea_lens.models.bridge import FwdHook, Model, ModelDescription, weights_digest
from sea_lens.models.demonstration_texts import DemonstrationTexts, label_of
from sea_lens.models.prefixes import LEAST_PREFIX, CachedPrefix, common_length
from sea_lens.models.sites import Site, check_layers
from sea_lens.models.tokens import PaddedTokens, TokenizedAnswer


class ActivationStream:
    """Activations of demonstrations in batches that are computed when asked for, so that memory does not grow with n.

        for batch in ActivationStream(model, demonstrations):
            fitter.update(batch)

    A batch is of `batch_size` demonstrations, whose texts are run `batch_size` in a forward pass. One pass serves all layers;
    the hooks gather the chosen token and nothing else is kept. The pass stops after the last layer asked for.

    What all texts begin with, such as a few-shot prompt, is run once for all, and what the texts of a batch's demonstrations
    begin with once a demonstration; keys and values are reused for the rest. Tokens that stand for a text are never in those
    beginnings, which end before the last token of the prompt.

    Demonstrations with the longest text come first: a batch that does not fit in memory fails at once.
    """

    def __init__(
        self,
        model: Model,
        demonstrations: Demonstrations,
        layers: Iterable[int] | None = None,
        token: TokenChoice = "last",
        *,
        site: str = "resid_post",
        batch_size: int = 32,
        editor: Editor | None = None,
        share_prefix: bool = True,
    ) -> None:
        """Reads all texts once; no model runs yet. Arguments and errors are those of `sea_lens.collect_activations`."""
        self.model, self.editor, self.site, self.token = model, editor, site, token
        self.layers = check_layers(layers, model.cfg.n_layers)
        self._names = {layer: Site(layer, site).check(model) for layer in self.layers}
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, and {batch_size} was given.")
        self.demonstrations = demonstrations
        self.batch_size = batch_size
        self.texts = DemonstrationTexts(model, demonstrations, token)
        survey = self.texts.survey()
        if editor is not None:
            editor.check(model)
            _check_reach(editor, self.layers, max(survey.lengths))
        self.shares_prefix = share_prefix and (editor is None or editor.token_local)
        self._common = survey.common if self.shares_prefix and len(survey.common) >= LEAST_PREFIX else []
        self._order = torch.tensor(survey.lengths).argsort(descending=True, stable=True)
        self.sites = [Site(layer, site) for layer in self.layers]
        self.width = self.sites[0].width(model)
        self.kind = ActivationKind(
            token,
            ModelDescription.of(model),
            None if editor is None else editor.fingerprint,
            tuple(self.sites),
            (self.width,) * len(self.sites),
        )

    # --- what is in it -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return -(-len(self._order) // self.batch_size)

    def rows(self, number: int) -> Int[Tensor, " rows"]:
        """Which demonstrations a batch holds."""
        return self._order[number * self.batch_size : (number + 1) * self.batch_size]

    def shape(self, number: int) -> tuple[int, int, int, int]:
        """Of what `gather` gives."""
        return len(self.rows(number)), len(ROLES), len(self.layers), self.width

    def facts(self) -> dict[str, Any]:
        """All that decides its numbers, for the manifest of a folder."""
        return {
            "demonstrations": self.demonstrations.fingerprint,
            "model": asdict(self.kind)["model"],
            "weights": weights_digest(self.model),
            "layers": self.layers,
            "site": self.site,
            "token": self.token,
            "batch_size": self.batch_size,
            "editor": self.kind.editor,
            "share_prefix": None if self.shares_prefix else False,
        }

    def warn_of_confounds(self, stacklevel: int) -> None:
        """Warns of what separates positives from negatives besides meaning."""
        for finding in self.demonstrations.check(self.model).findings:
            warnings.warn(f"{self.demonstrations.source}: {finding}", SeaLensWarning, stacklevel=stacklevel + 1)

    # --- running -----------------------------------------------------------------------------------------------------

    def __getitem__(self, number: int) -> Activations:
        if not 0 <= number < len(self):
            raise IndexError(f"Batch {number} was asked for, and there are {len(self)}.")
        return self.activations(self.gather(number))

    def __iter__(self) -> Iterator[Activations]:
        return (self[number] for number in range(len(self)))

    def activations(self, gathered: Float[Tensor, "rows roles n_layers d_model"]) -> Activations:
        """Some rows, with where they come from. Of which demonstrations is for those to say who hold them all."""
        sides: dict[Role, BySite] = {
            role: BySite({site: gathered[:, number, column] for column, site in enumerate(self.sites)})
            for number, role in enumerate(ROLES)
        }
        return Activations(sides, self.token, self.kind.model, editor=self.kind.editor)

    @torch.no_grad()
    def gather(self, number: int) -> Float[Tensor, "rows roles n_layers d_model"]:
        """Runs one batch: the mean activation over each text's span, in float32 on the CPU.

        Raises:
            InputError: If an activation is NaN or infinite.
            ModelMismatchError: If the pass does not reach a layer.
        """
        rows = self.rows(number).tolist()
        groups = [self.texts.of(index) for index in rows]
        texts = [text for group in groups for text in group]
        labels = [label_of(index, role) for index in rows for role in ROLES]
        spans = [self.texts.span(text, label) for text, label in zip(texts, labels, strict=True)]
        prefix, of_group = self._prompts(groups)
        follows = [group if of_group else 0 for group in range(len(groups)) for _ in ROLES]
        gathered = torch.empty(len(texts), len(self.layers), self.width)
        order = sorted(
            range(len(texts)), key=lambda index: -len(texts[index].ids)
        )  # like lengths together: less padding
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            gathered[chosen] = self._pass(
                prefix,
                [texts[index] for index in chosen],
                [spans[index] for index in chosen],
                [follows[index] for index in chosen],
            )
        _check_finite(gathered, labels, self.layers)
        return gathered.view(len(rows), len(ROLES), *gathered.shape[1:])

    @cached_property
    def _edits(self) -> list[FwdHook]:
        """The editor's hooks."""
        return [] if self.editor is None else self.editor.fwd_hooks(self.model)

    @property
    def _stop(self) -> int:
        return self.layers[-1] + 1

    @cached_property
    def _beginning(self) -> CachedPrefix:
        """What all texts begin with."""
        nothing = CachedPrefix(self.model, 0, None)
        if not self._common:
            return nothing
        with self.model.hooks(fwd_hooks=self._edits):
            ids = torch.tensor([self._common], device=self.model.cfg.device)
            return nothing.extended_below(ids, [0], self._stop)

    def _prompts(self, groups: Sequence[Sequence[TokenizedAnswer]]) -> tuple[CachedPrefix, bool]:
        """What the texts of each demonstration begin with, of one length for all; and whether it differs between them."""
        beginning = self._beginning
        length = min(map(common_length, groups))
        if not self.shares_prefix or length - beginning.length < LEAST_PREFIX:
            return beginning, False
        ids = torch.tensor([group[0].ids[beginning.length : length] for group in groups], device=self.model.cfg.device)
        with self.model.hooks(fwd_hooks=self._edits):
            return beginning.extended_below(ids, [0] * len(groups), self._stop), True

    def _pass(
        self,
        prefix: CachedPrefix,
        texts: Sequence[TokenizedAnswer],
        spans: Sequence[tuple[int, int]],
        follows: Sequence[int],
    ) -> Float[Tensor, "batch n_layers d_model"]:
        """One forward pass over what comes after the prefix."""
        tokens = PaddedTokens.of(self.model, [text.ids[prefix.length :] for text in texts])
        widest = max(stop - start for start, stop in spans)
        starts = torch.tensor([start - prefix.length for start, _ in spans])[:, None]
        counts = torch.tensor([stop - start for start, stop in spans])[:, None]
        steps = torch.arange(widest)[None, :]
        inside = steps < counts
        positions: Int[Tensor, "batch widest"] = torch.where(inside, starts + steps, starts)
        gathered: dict[int, Tensor] = {}

        def gather_at(layer: int) -> Callable[..., None]:
            def hook(tensor: Tensor, hook: object) -> None:
                # Everything follows the activation's device: the layers of one model may lie on several.
                where = positions.to(tensor.device)
                picked = Site(layer, self.site).read(tensor)[
                    torch.arange(len(texts), device=tensor.device)[:, None], where
                ]
                picked = picked.float()
                weights = (inside / counts).to(picked)
                gathered[layer] = (picked * weights[..., None]).sum(1).cpu()

            return hook

        # The editor's hooks go first, for hooks run in this order.
        with self.model.hooks(
            fwd_hooks=[*self._edits, *((name, gather_at(layer)) for layer, name in self._names.items())]
        ):
            prefix.continued(tokens, follows, stop_at_layer=self._stop)
        absent = [name for layer, name in self._names.items() if layer not in gathered]
        if absent:
            raise ModelMismatchError(
                f"The forward pass reached no activation at {absent}. Does this model run those blocks?"
            )
        return torch.stack([gathered[layer] for layer in self.layers], dim=1)


def _check_reach(editor: Editor, layers: Sequence[int], longest: int) -> None:
    """Refuses positions that name other tokens, or none, in these texts; warns if nothing collected can be edited."""
    if editor.layers[0] > layers[-1]:
        warnings.warn(
            f"The editor's first layer is {editor.layers[0]} and the last one collected is {layers[-1]}, which the edit does "
            "not reach: these are the activations of the unedited model. Collect later layers.",
            SeaLensWarning,
            stacklevel=5,
        )


def _check_finite(
    gathered: Float[Tensor, "batch n_layers d_model"], labels: Sequence[str], layers: Sequence[int]
) -> None:
    """Stops at the first batch that holds NaN or infinity, before it is saved."""
    bad = ~gathered.isfinite().all(-1)
    if bad.any():
        rows = [label for label, row in zip(labels, bad.any(1).tolist(), strict=True) if row]
        where = [layer for layer, column in zip(layers, bad.any(0).tolist(), strict=True) if column]
        raise InputError(
            f"NaN or infinity in the activations of layers {where}, in {len(rows)} texts of this batch: "
            f"{', '.join(rows[:5])}. Look at those demonstrations, or run the model in float32 or bfloat16."
        )
