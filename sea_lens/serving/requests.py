"""Where the tokens of a vLLM pass stand: their position in their text, and how much of it is the prompt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sea_lens.editing.edits import Edit, is_stepwise
from sea_lens.editing.hooks import EditHooks, Edits
from sea_lens.editing.sparing import NotMassive
from sea_lens.editing.where import At, Both, From, Slice, Where
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.passes import PADDING, Pass, Passes
from sea_lens.models.sites import Site

KEPT = 2**14
"""Requests whose condition is kept before those that are over are forgotten."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The requests of one pass, in the order in which their tokens lie.

    Attributes:
        ids: vLLM's names of them.
        counts: Tokens of each in the pass.
        computed: Tokens of each that the KV cache holds already.
        prompts: Tokens of each that are its prompt.
    """

    ids: tuple[str, ...]
    counts: np.ndarray[Any, Any]
    computed: np.ndarray[Any, Any]
    prompts: np.ndarray[Any, Any]


def needs_prompts(where: Where | None, edits: Mapping[Site, Edit]) -> bool:
    """Whether an editor must know which tokens are the prompt, and not their position alone.

    What it does to a token then depends on the request that the token is in, so no request may take its cache from another.
    """
    return where is not None and (not _by_position(where) or any(map(is_stepwise, edits.values())))


def _by_position(where: Where) -> bool:
    if isinstance(where, Both):
        return _by_position(where.one) and _by_position(where.other)
    return isinstance(where, NotMassive) or (isinstance(where, From | Slice | At) and where.token_local)


class Tracker:
    """Tells the hooks of an editor where the tokens of a worker's passes stand.

    Attributes:
        passes: What the hooks ask.
        rows: The requests of the pass that is running; None where they are not asked for, and in vLLM's dry runs.
    """

    def __init__(self, runner: Any, model: nn.Module, by_request: bool) -> None:
        """Of a worker's model runner.

        Args:
            runner: vLLM's model runner, of the first or the second kind.
            model: Its model.
            by_request: Whether the requests must be known.

        Raises:
            ModelMismatchError: If they must, and the runner is of an unknown kind.
        """
        self.passes = Passes()
        self.rows: Rows | None = None
        self._runner = runner
        self._undo: list[Callable[[], None]] = []
        if by_request:
            self._wrap(*_how_to_read(runner))
        self._undo += [
            model.register_forward_pre_hook(self._see, with_kwargs=True).remove,
            model.register_forward_hook(self._forget, always_call=True).remove,
        ]

    def alive(self) -> Collection[str]:
        """The names of the requests that are not over."""
        found: Collection[str] = getattr(self._runner, "requests", None) or self._runner.req_states.req_id_to_index
        return found

    def close(self) -> None:
        """Leaves the runner and the model as they were."""
        while self._undo:
            self._undo.pop()()

    def _wrap(self, name: str, read: Callable[[Any, Any], Rows]) -> None:
        """Looks at what the runner prepares for a pass. Its dry runs prepare nothing."""
        prepare, own = getattr(self._runner, name), vars(self._runner).get(name)

        def preparing(*args: Any, **kwargs: Any) -> Any:
            made = prepare(*args, **kwargs)
            self.rows = read(self._runner, made)
            return made

        setattr(self._runner, name, preparing)
        self._undo.append(lambda: delattr(self._runner, name) if own is None else setattr(self._runner, name, own))

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        positions = kwargs["positions"] if "positions" in kwargs else args[1]
        lengths = torch.full_like(positions, PADDING)
        if self.rows is not None:
            found = torch.from_numpy(np.repeat(self.rows.prompts, self.rows.counts).astype(np.int64))
            lengths[: len(found)] = found.to(positions.device)
        self.passes.current = Pass(positions[:, None], positions.new_zeros(1), False, lengths)

    def _forget(self, *given: object) -> None:
        self.passes.current, self.rows = None, None


class TrackedHooks(EditHooks):
    """The hooks of an editor with positions or a condition, over passes that hold parts of many requests."""

    def __init__(self, editor: Edits, tracker: Tracker) -> None:
        """Of an editor.

        Args:
            editor: Whose edits these are.
            tracker: What knows the passes.
        """
        super().__init__(editor, tracker.passes)
        self._tracker = tracker
        self._met: dict[str, bool] = {}

    def _reader(self, site: Site) -> Callable[..., None]:
        """Decides on the requests that begin in a pass. It holds until they end, and when they are begun again."""

        def read(tensor: Tensor, hook: object) -> None:
            rows, decided = self._tracker.rows, tensor.new_zeros(len(tensor), dtype=torch.bool)
            if rows is not None:
                self._decide_on(tensor, rows)
                met = np.repeat([self._met[name] for name in rows.ids], rows.counts)
                decided[: len(met)] = torch.from_numpy(met).to(decided.device)
            self._decided = decided

        return read

    def _decide_on(self, tensor: Float[Tensor, "tokens one width"], rows: Rows) -> None:
        where = self.where
        assert where is not None
        starts = np.cumsum(rows.counts) - rows.counts
        new = [index for index in range(len(rows.ids)) if rows.computed[index] == 0]
        torn = [index for index in new if rows.counts[index] < rows.prompts[index]]
        torn += [index for index, name in enumerate(rows.ids) if rows.computed[index] and name not in self._met]
        if torn:
            raise InputError(
                f"This editor edits texts {where}, and vLLM runs the prompt of request {rows.ids[torn[0]]} in parts. Make "
                "the engine with enable_chunked_prefill=False and enable_prefix_caching=False."
            )
        if not new:
            return
        states = pad_sequence([tensor[starts[i] : starts[i] + rows.counts[i], 0] for i in new], batch_first=True)
        columns = torch.arange(states.shape[1], device=tensor.device)
        counts, prompts = (torch.as_tensor(each[new], device=tensor.device) for each in (rows.counts, rows.prompts))
        positions = columns.where(columns < counts[:, None], PADDING)
        found = where.decide(states, Pass(positions, columns, True, prompts.long())).tolist()
        self._met.update(zip((rows.ids[index] for index in new), found, strict=True))
        if len(self._met) > KEPT:
            alive = self._tracker.alive()
            self._met = {name: met for name, met in self._met.items() if name in alive}


def _how_to_read(runner: Any) -> tuple[str, Callable[[Any, Any], Rows]]:
    if hasattr(runner, "input_batch") and hasattr(runner, "_prepare_inputs"):
        return "_prepare_inputs", _of_first_runner
    if hasattr(runner, "req_states") and hasattr(runner, "prepare_inputs"):
        return "prepare_inputs", _of_second_runner
    raise ModelMismatchError(
        f"vLLM's {type(runner).__name__} is not known to sea_lens, so it cannot be told which tokens are the prompt. Use "
        "editor.at_positions('all') or positions from 0 on, or vllm 0.32."
    )


def _of_first_runner(runner: Any, prepared: Any) -> Rows:
    batch = runner.input_batch
    n = batch.num_reqs
    counts = np.diff(runner.query_start_loc.np[: n + 1])
    computed, prompts = batch.num_computed_tokens_cpu[:n].copy(), batch.num_prompt_tokens[:n].copy()
    return Rows(tuple(batch.req_ids[:n]), counts, computed, prompts)


def _of_second_runner(runner: Any, prepared: Any) -> Rows:
    n = prepared.num_reqs
    counts = np.diff(prepared.query_start_loc_np[: n + 1])
    prompts = runner.req_states.prompt_len.np[prepared.idx_mapping_np[:n]]
    return Rows(tuple(prepared.req_ids[:n]), counts, prepared.num_computed_tokens_np[:n].copy(), prompts.copy())
