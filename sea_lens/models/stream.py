"""Activations in batches that are computed when asked for: any sites in one pass, shared beginnings once."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.data.demonstrations import Demonstrations
from sea_lens.errors import HookNeverFiredError, InputError, ModelMismatchError, SeaLensWarning
from sea_lens.models.activations import ActivationKind, Activations, BySite, Role, TokenChoice
from sea_lens.models.bridge import EditsModels, FwdHook, Model, ModelInfo
from sea_lens.models.demonstration_texts import DemonstrationTexts, label_of, shared_length
from sea_lens.models.hooks import attached_editors, copied_to_cpu, gather_hooks, model_facts
from sea_lens.models.points import hooked
from sea_lens.models.prefixes import LEAST_PREFIX, CachedPrefix, how_to_run
from sea_lens.models.sinks import find_sinks
from sea_lens.models.sites import Names, Site, Sites, model_sites, widths_of
from sea_lens.models.tokens import PaddedTokens, TokenizedAnswer
from sea_lens.models.trees import PaddedTrees, TokenTree, can_branch, in_equal_parts, run_trees

_Part: TypeAlias = "tuple[Sequence[int], Tensor, Tensor, torch.device]"
"""Which texts, which columns, what was gathered there, and where it comes from."""


class ActivationStream:
    """Activations of demonstrations in batches that are computed when asked for, so that memory does not grow with n.

    A batch is of `batch_size` demonstrations, whose texts are run `batch_size` in a forward pass. Tokens that stand for a
    text are never in shared beginnings, which end before the last token of the prompt. Demonstrations with the longest text
    come first: a batch that does not fit in memory fails at once.

    Attributes:
        sites: Whose activations are gathered.
        roles: The sides that the demonstrations have.
        kind: What all batches have in common.
    """

    def __init__(
        self,
        model: Model,
        demonstrations: Demonstrations,
        layers: Sites = None,
        token: TokenChoice = "last",
        *,
        site: Names = "resid_post",
        batch_size: int = 32,
        editor: EditsModels | None = None,
        share_prefix: bool = True,
    ) -> None:
        """Reads all texts once; no text is run yet. Arguments and errors are those of `sea_lens.collect_activations`."""
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, and {batch_size} was given.")
        self.model, self.demonstrations, self.editor, self.batch_size = model, demonstrations, editor, batch_size
        self.sites = model_sites(model, layers, site)
        self.texts = DemonstrationTexts(model, demonstrations, token)
        self.roles = self.texts.roles
        survey = self.texts.survey()
        if editor is not None:
            editor.check(model)
            _check_order(editor, self.sites)
        self._n_rows, self.shares_prefix = how_to_run(
            model, editor, batch_size, share_prefix, longest=max(survey.lengths)
        )
        self._common = survey.common if self.shares_prefix and len(survey.common) >= LEAST_PREFIX else []
        self._branches = self.shares_prefix and can_branch(model, survey.widest)
        self._order = torch.tensor(survey.lengths).argsort(descending=True, stable=True)
        acting = [*attached_editors(model), *([] if editor is None else [editor])]
        self.kind = ActivationKind(
            token,
            ModelInfo.of(model),
            " + ".join(each.fingerprint for each in acting) or None,
            tuple(self.sites),
            tuple(widths_of(model, self.sites)),
            find_sinks(model),
            demonstrations.form,
        )

    # --- what is in it -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return -(-len(self._order) // self.batch_size)

    def rows(self, number: int) -> Int[Tensor, " rows"]:
        """Which demonstrations a batch holds."""
        return self._order[number * self.batch_size : (number + 1) * self.batch_size]

    def facts(self) -> dict[str, Any]:
        """All that decides its numbers, for the facts of a `Store`.

        Raises:
            InputError: If the model carries hooks of the user's own.
        """
        return {
            "demonstrations": self.demonstrations.fingerprint,
            "model": asdict(self.kind)["model"],
            "sites": list(map(str, self.sites)),
            "token": self.kind.token,
            "batch_size": self.batch_size,
            "share_prefix": self.shares_prefix,
            "trees": self._branches,
            **model_facts(self.model, self.editor),
        }

    def warn_of_confounds(self, stacklevel: int) -> None:
        """Warns of what separates the sides besides meaning."""
        for finding in self.demonstrations.check(self.model).findings:
            warnings.warn(f"{self.demonstrations.source}: {finding}", SeaLensWarning, stacklevel=stacklevel + 1)

    def __getitem__(self, number: int) -> Activations:
        if not 0 <= number < len(self):
            raise IndexError(f"Batch {number} was asked for, and there are {len(self)}.")
        parts = torch.split(self.gather(number), list(self.kind.widths), -1)
        sides = {
            role: BySite({site: part[:, column].contiguous() for site, part in zip(self.sites, parts, strict=True)})
            for column, role in enumerate(self.roles)
        }
        return self.made(sides)

    def made(self, sides: Mapping[Role, BySite], demonstrations: str | None = None) -> Activations:
        """Activations of its kind."""
        origin = self.kind.token, self.kind.model, demonstrations
        return Activations(sides, *origin, editor=self.kind.editor, sinks=self.kind.sinks, form=self.kind.form)

    def __iter__(self) -> Iterator[Activations]:
        return (self[number] for number in range(len(self)))

    @cached_property
    def _edits(self) -> list[FwdHook]:
        return [] if self.editor is None else self.editor.fwd_hooks(self.model)

    def check_fired(self) -> None:
        """Raises a HookNeverFiredError if the editor has edited no token of any batch."""
        fired = [getattr(hook, "fired", {}) for _, hook in self._edits]
        if fired and not any(any(each.values()) for each in fired):
            raise HookNeverFiredError(
                "The editor edited no token of any text. Do its positions lie beyond them, or is its site after the last?"
            )

    @torch.no_grad()
    def gather(self, number: int) -> Float[Tensor, "rows roles width"]:
        """Runs one batch: the mean activation over each text's span, sites side by side, in float32 on the CPU."""
        rows = self.rows(number).tolist()
        groups = [self.texts.of(index) for index in rows]
        labels = [label_of(index, role) for index in rows for role in self.roles]
        gathered = torch.empty(len(labels), sum(self.kind.widths))
        parts = list((self._in_trees if self._branches else self._in_rows)(groups, labels))
        for device in {device for *_, device in parts if device.type == "cuda"}:
            torch.cuda.synchronize(device)  # the copies are under way
        for texts, columns, part, _ in parts:
            gathered[torch.tensor(texts)[:, None], columns] = part
        _check_finite(torch.split(gathered, list(self.kind.widths), -1), labels, self.sites)
        return gathered.view(len(rows), len(self.roles), -1)

    def _in_trees(self, groups: Sequence[Sequence[TokenizedAnswer]], labels: Sequence[str]) -> Iterator[_Part]:
        """Every demonstration as a row, with what its texts begin with in common once."""
        prefix, n_roles = self._beginning, len(self.roles)
        trees: list[tuple[TokenTree, int, list[int]]] = []  # with the length of the prompt, and which texts
        for first, group in enumerate(groups):
            by_start: dict[int, list[int]] = defaultdict(list)  # a row has one prompt length
            for place, text in enumerate(group):
                by_start[text.answer_start].append(place)
            for start, places in by_start.items():
                tree = TokenTree.of([group[place].ids[prefix.length :] for place in places])
                trees.append((tree, start, [first * n_roles + place for place in places]))
        trees.sort(key=lambda found: -len(found[0]))  # like lengths together: less padding
        longest = max(len(text.ids) for group in groups for text in group) - prefix.length
        for chosen in in_equal_parts(trees, max(1, self._n_rows * longest // len(trees[0][0]))):  # tokens bound memory
            texts, rows, columns = list[int](), list[int](), list[list[int]]()
            for row, (tree, _, own) in enumerate(chosen):
                for number, path in zip(own, tree.paths, strict=True):
                    span = self.texts.span(groups[number // n_roles][number % n_roles], labels[number])
                    columns.append(path[slice(*(end - prefix.length for end in span))])
                    texts.append(number)
                    rows.append(row)
            padded = PaddedTrees.of(self.model, [tree for tree, _, _ in chosen])
            prompts = [start for _, start, _ in chosen]
            with self._gathering(texts, rows, columns) as found:
                run_trees(prefix, padded, prompts, stop_at_layer=self._stop)
            yield from self._parts(texts, found)

    def _in_rows(self, groups: Sequence[Sequence[TokenizedAnswer]], labels: Sequence[str]) -> Iterator[_Part]:
        """Every text as a row, after what all texts of the batch have in common with others."""
        texts = list(chain.from_iterable(groups))
        prefix, of_group = self._prompts(groups)
        # Like lengths together: less padding.
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index].ids))
        for start in range(0, len(order), self._n_rows):
            chosen = order[start : start + self._n_rows]
            follows = [index // len(self.roles) if of_group else 0 for index in chosen]
            starts = [texts[index].answer_start for index in chosen]
            ids = [texts[index].ids[prefix.length :] for index in chosen]
            tokens = PaddedTokens.of(self.model, ids, prompt_lengths=starts)
            spans = [self.texts.span(texts[index], labels[index]) for index in chosen]
            columns = [list(range(start - prefix.length, stop - prefix.length)) for start, stop in spans]
            with self._gathering(chosen, range(len(chosen)), columns) as found:
                prefix.continued(tokens, follows, stop_at_layer=self._stop)
            yield from self._parts(chosen, found)

    @contextmanager
    def _gathering(
        self, texts: Sequence[int], rows: Sequence[int], columns: Sequence[Sequence[int]]
    ) -> Iterator[dict[Site, Tensor]]:
        """Gathers the mean over some columns of a row for each text, in the pass inside the block."""
        widest = max(map(len, columns))
        positions, weights = torch.zeros(len(texts), widest, dtype=torch.long), torch.zeros(len(texts), widest)
        for text, own in enumerate(columns):
            positions[text, : len(own)] = torch.tensor(own)
            weights[text, : len(own)] = 1 / len(own)
        hooks, found = gather_hooks(self.sites, torch.tensor(rows), positions, weights)
        with hooked(self.model, [*self._edits, *hooks]):  # they run in this order: the edited value is kept
            yield found
        absent = [str(site) for site in self.sites if site not in found]
        if absent:
            raise ModelMismatchError(
                f"The forward pass reached no activation at {', '.join(absent)}. Does this model run those blocks?"
            )

    def _parts(self, texts: Sequence[int], found: Mapping[Site, Tensor]) -> Iterator[_Part]:
        """What was gathered, one copy for each device."""
        columns = torch.split(torch.arange(sum(self.kind.widths)), list(self.kind.widths))
        by_device: dict[torch.device, list[int]] = defaultdict(list)
        for number, site in enumerate(self.sites):
            by_device[found[site].device].append(number)
        for device, own in by_device.items():
            part = copied_to_cpu(torch.cat([found[self.sites[number]] for number in own], dim=1))
            yield texts, torch.cat([columns[number] for number in own]), part, device

    @property
    def _stop(self) -> int:
        return max(self.model.cfg.n_layers if site.layer is None else site.layer + 1 for site in self.sites)

    @cached_property
    def _beginning(self) -> CachedPrefix:
        """What all texts begin with."""
        if not self._common:
            return CachedPrefix(self.model)
        ids = torch.tensor([self._common], device=self.model.cfg.device)
        with hooked(self.model, self._edits):
            return CachedPrefix(self.model).extended(ids, [0], stop_at_layer=self._stop)[1]

    def _prompts(self, groups: Sequence[Sequence[TokenizedAnswer]]) -> tuple[CachedPrefix, bool]:
        """What the texts of each demonstration begin with, of one length for all; and whether it differs between them."""
        beginning = self._beginning
        length = min(map(shared_length, groups))
        if not self.shares_prefix or length - beginning.length < LEAST_PREFIX:
            return beginning, False
        ids = torch.tensor([group[0].ids[beginning.length : length] for group in groups], device=self.model.cfg.device)
        with hooked(self.model, self._edits):
            return beginning.extended(ids, [0] * len(groups), stop_at_layer=self._stop)[1], True


def _check_order(editor: EditsModels, sites: Sequence[Site]) -> None:
    """Warns if nothing that is collected can be edited."""
    if not any(edited < site or edited == site for edited in editor.edits for site in sites):
        warnings.warn(
            f"The editor's first site is {min(editor.edits)} and the last one collected is {max(sites)}, which the edit does "
            "not reach: these are the activations of the unedited model. Collect later layers.",
            SeaLensWarning,
            stacklevel=5,
        )


def _check_finite(parts: Sequence[Float[Tensor, "batch _"]], labels: Sequence[str], sites: Sequence[Site]) -> None:
    """Stops at the first batch that holds NaN or infinity, before it is saved."""
    bad = torch.stack([~part.isfinite().all(-1) for part in parts], dim=1)
    if bad.any():
        rows = [label for label, row in zip(labels, bad.any(1).tolist(), strict=True) if row]
        where = [str(site) for site, column in zip(sites, bad.any(0).tolist(), strict=True) if column]
        raise InputError(
            f"NaN or infinity in the activations at {', '.join(where[:5])}, in {len(rows)} texts of this batch: "
            f"{', '.join(rows[:5])}. Look at those demonstrations, or run the model in float32 or bfloat16."
        )
