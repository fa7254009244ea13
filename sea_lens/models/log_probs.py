"""Log-probabilities of completions: the one implementation.

What all prompts begin with (a few-shot prompt) is run once, a prompt of its own once, whatever the number of its
completions, and what completions begin with once (see `models/trees.py`). Where a model does not take trees, prompts of one
length are run together, so that no row is padded in the middle. The result is that of scoring each completion alone. Only
positions that are scored become logits, and their normalizers are sums in float64.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.cache import Store
from sea_lens.data.questions import Questions
from sea_lens.errors import InputError
from sea_lens.models.bridge import EditsModels, Model, check_is_model
from sea_lens.models.distributed import from_each, n_processes, share_of, shows, together
from sea_lens.models.distributions import on_cpu, summed, summed_at
from sea_lens.models.hooks import editing, model_facts
from sea_lens.models.prefixes import CachedPrefix, how_to_run, length_to_share
from sea_lens.models.tokens import PaddedTokens, Stem, stems_of, tokenized_answers
from sea_lens.models.trees import PaddedTrees, TokenTree, can_branch, run_trees

READ_AT_ONCE = 384
"""Positions that a pass on the CPU reads, with their prompts some 1,000 tokens: longer ones are no faster a token there."""


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """What a model gives the answers of questions. Columns are answers, the right ones first.

    Attributes:
        log_probabilities: Summed log-probability of each whole answer in nats, in float64; NaN where there is no
            answer, `[questions, answers]`.
        n_tokens: Of each answer; 0 where there is none, `[questions, answers]`.
        is_right: Which answers are right, `[questions, answers]`.
        is_wrong: Which are wrong, `[questions, answers]`.
    """

    log_probabilities: Float[Tensor, "questions answers"]
    n_tokens: Int[Tensor, "questions answers"]
    is_right: Bool[Tensor, "questions answers"]
    is_wrong: Bool[Tensor, "questions answers"]

    def by_answer(self, mean: bool = False) -> Float[Tensor, "questions answers"]:
        """Log-probabilities, summed or as the mean of an answer's tokens, with -inf where there is no answer."""
        values = self.log_probabilities / self.n_tokens.clamp(min=1) if mean else self.log_probabilities
        return values.masked_fill(self.n_tokens == 0, -torch.inf)


def score_answers(
    model: Model,
    questions: Questions,
    editor: EditsModels | None = None,
    *,
    share_prompts: bool = True,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
    stems: Sequence[Stem] | None = None,
) -> AnswerScores:
    """Log-probabilities of all answers, right and wrong, to all questions.

    All answers of a question are scored from the same token on, where the first of them departs from the prompt. Processes of
    `torchrun` share the batches (see `models/distributed.py`), and all get all scores.

    Args:
        model: A TransformerBridge with a tokenizer. Hooks that are on it act.
        questions: With prompts as the model is to read them.
        editor: To edit the model with; None for none.
        share_prompts: Whether beginnings that texts share are run once. Turn it off under hooks of your own that treat tokens
            by their place in a pass, or look at other tokens.
        batch_size: Rows in one forward pass. It does not change the result, but for rounding.
        folder: Where to keep finished batches, each scoring in a folder of its own. A run that was killed goes on there.
        progress: Whether to show a progress bar.
        stems: `stems_of(model, questions)`, for who scores the same questions often; None to make them.

    Raises:
        InputError: If an answer comes out as no tokens or does not fit the model's context, or the model predicts NaN.
        ModelMismatchError: If the editor does not fit the model.
    """
    check_is_model(model)
    stems = stems_of(model, questions) if stems is None else stems
    scores = _score(model, stems, editor, questions.fingerprint, share_prompts, batch_size, folder, progress)
    return _by_question(stems, scores, [len(question.right) for question in questions])


def score_stems(model: Model, stems: Sequence[Stem], n_right: Sequence[int], *, batch_size: int = 32) -> AnswerScores:
    """`score_answers` of questions that are tokens already, which many editors share.

    Args:
        model: A TransformerBridge with a tokenizer. Hooks that are on it act.
        stems: From `stems_of`.
        n_right: By stem, how many of its first completions are right.
        batch_size: Rows in one forward pass.

    Raises:
        InputError: If the model predicts NaN.
    """
    return _by_question(stems, _score(model, stems, None, "", True, batch_size, None, False), n_right)


def _by_question(stems: Sequence[Stem], scores: Sequence[Tensor], n_right: Sequence[int]) -> AnswerScores:
    widest = max(len(stem.completions) for stem in stems)
    lengths = [list(map(len, stem.completions)) for stem in stems]
    n_tokens = torch.tensor([[*row, *[0] * (widest - len(row))] for row in lengths])
    found = torch.full(n_tokens.shape, torch.nan, dtype=torch.float64)
    found[n_tokens > 0] = torch.cat(list(scores))  # no completion is of no tokens
    is_right = (torch.arange(widest)[None] < torch.tensor(n_right)[:, None]) & (n_tokens > 0)
    return AnswerScores(found, n_tokens, is_right, ~is_right & (n_tokens > 0))


def completion_log_probabilities(
    model: Model,
    texts: Sequence[tuple[str, str]],
    *,
    batch_size: int = 32,
    share_prefix: bool = True,
    progress: bool = False,
) -> list[float]:
    """Summed log-probability, in nats, that the model gives each completion after its prompt.

    Args:
        model: A TransformerBridge with a tokenizer. Measure an edited one under `with editor.attached(model):`.
        texts: Prompts, each with a completion. They are tokenized as one text.
        batch_size: Rows in one forward pass. It does not change the result, but for rounding.
        share_prefix: As `share_prompts` of `score_answers`.
        progress: Whether to show a progress bar.

    Raises:
        InputError: As `score_answers` does.
    """
    if not texts:
        raise InputError("At least one text is needed, and none was given.")
    rows = tokenized_answers(model, [(prompt, [completion]) for prompt, completion in texts])
    stems = [Stem.of(model, f"Text {number}", row) for number, row in enumerate(rows)]
    scores = _score(model, stems, None, "", share_prefix, batch_size, None, progress)
    return [float(score) for (score,) in scores]


@torch.no_grad()
def _score(
    model: Model,
    stems: Sequence[Stem],
    editor: EditsModels | None,
    name: str,
    share: bool,
    batch_size: int,
    folder: str | Path | None,
    progress: bool,
) -> list[Float[Tensor, " completions"]]:
    """By stem, the summed log-probabilities of its completions."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, and {batch_size} was given.")
    if editor is not None:
        editor.check(model)
    longest = max(len(stem.prompt) + max(map(len, stem.completions)) for stem in stems) - 1  # the last is not run
    batch_size, share = how_to_run(model, editor, batch_size, share, longest=longest)
    start = length_to_share([stem.prompt for stem in stems]) if share else 0
    branching = share and can_branch(model, max(map(_size, stems)))
    most = READ_AT_ONCE if on_cpu(model) else sys.maxsize
    batches = _batches(stems, batch_size, branching, most) if share else [[number] for number in range(len(stems))]
    run = _score_trees if branching else _score_shared if share else _score_whole
    store = None
    if folder is not None:
        asked = {"questions": name, "share_prompts": share, "batch_size": batch_size, "trees": branching}
        facts = {**asked, **model_facts(model, editor)}
        store = Store.within(folder, "scores", facts)
    prefix: CachedPrefix | None = None
    own, ran = share_of(range(len(batches))), 0
    count, parts = sum(len(batches[number]) for number in own), [torch.zeros(0, dtype=torch.float64)]
    bar = tqdm(total=count, desc="scores", unit="prompt", disable=not shows(progress))
    with together(), editing(model, editor, lambda: ran == len(batches)), bar:
        for number in own:
            batch = [stems[place] for place in batches[number]]
            found = store.read(number) if store is not None else None
            if found is None:
                if prefix is None:
                    prefix = _beginning(model, stems[0].prompt[:start])
                summed_here = run(prefix, batch, batch_size)
                _check(summed_here, batch)
                found = {"scores": summed_here}
                ran += 1
                if store is not None:
                    store.write(number, found)
            parts.append(found["scores"])
            bar.update(len(batch))
    scores: dict[int, Tensor] = {}
    for process, summed_there in enumerate(from_each(torch.cat(parts))):
        places = list(chain.from_iterable(batches[process :: n_processes()]))
        sizes = [len(stems[place].completions) for place in places]
        scores |= dict(zip(places, torch.split(summed_there, sizes), strict=True))
    return [scores[place] for place in range(len(stems))]


def _beginning(model: Model, ids: Sequence[int]) -> CachedPrefix:
    if not ids:
        return CachedPrefix(model)
    return CachedPrefix(model).extended(torch.tensor([ids], device=model.cfg.device), [0])[1]


def _size(stem: Stem) -> int:
    """Tokens of a stem, at most: completions may begin alike."""
    return len(stem.prompt) + sum(map(len, stem.rows))


def _batches(stems: Sequence[Stem], batch_size: int, branching: bool, most: int) -> list[list[int]]:
    """Stems that are run together, the longest first, as many as `batch_size` allows rows of completions.

    A pass reads `most` positions, or one stem's. The vocabulary does not matter: logits are made in parts of what is read.
    Prompts of a batch have one length, unless each is one row with its completions.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, stem in enumerate(stems):
        by_length[0 if branching else len(stem.prompt)].append(number)
    batches: list[list[int]] = []
    for length in sorted(by_length, reverse=True):
        rows, read = batch_size + 1, 0
        # Those with long completions together: less padding.
        sizes = {n: _size(stems[n]) if branching else max(map(len, stems[n].completions)) for n in by_length[length]}
        for number in sorted(by_length[length], key=lambda number: -sizes[number]):
            needed, reads = max(1, len(stems[number].rows)), 1 + sum(map(len, stems[number].rows))
            if rows + needed > batch_size or read + reads > most:
                batches.append([])
                rows = read = 0
            batches[-1].append(number)
            rows, read = rows + needed, read + reads
    return batches


def _score_trees(prefix: CachedPrefix, batch: Sequence[Stem], batch_size: int) -> Float[Tensor, " completions"]:
    """Every prompt with all its completions as one row."""
    model, read = prefix.model, 0
    trees = [
        TokenTree.of([stem.prompt[prefix.length :] + completion[:-1] for completion in stem.completions])
        for stem in batch
    ]
    padded, prompts = PaddedTrees.of(model, trees), [len(stem.prompt) for stem in batch]
    heads = torch.tensor(prompts, device=padded.depths.device)[:, None] - prefix.length - 1
    logits = run_trees(prefix, padded, prompts, padded.depths >= heads)
    places: list[int] = []
    for stem, tree in zip(batch, trees, strict=True):
        head = len(stem.prompt) - prefix.length - 1  # the place of the prompt's last token: trunks do not branch
        for path in tree.paths:
            places += [read + place - head for place in path[head:]]
        read += len(tree) - head
    return summed_at(logits, places, [completion for stem in batch for completion in stem.completions])


def _score_shared(prefix: CachedPrefix, batch: Sequence[Stem], batch_size: int) -> Float[Tensor, " completions"]:
    """Prompts of one length once, and then the rows of their completions."""
    ids = torch.tensor([stem.prompt[prefix.length :] for stem in batch], device=prefix.model.cfg.device)
    logits, prompts = prefix.extended(ids, [0] * len(batch))
    pending = [(number, row) for number, stem in enumerate(batch) for row in stem.rows]
    n_read, along = len(batch), [list[int]() for _ in batch]
    for number, row in pending:
        along[number].append(n_read)
        n_read += len(row)

    def parts() -> Iterator[Tensor]:
        yield logits
        for start in range(0, len(pending), batch_size):
            chosen = pending[start : start + batch_size]
            tokens = PaddedTokens.of(prefix.model, [row for _, row in chosen])
            yield from prompts.continued(tokens, [number for number, _ in chosen])

    return summed(parts(), batch, range(len(batch)), along)


def _score_whole(prefix: CachedPrefix, batch: Sequence[Stem], batch_size: int) -> Float[Tensor, " completions"]:
    """Every completion of one stem with its prompt before it, nothing shared."""
    (stem,), model = batch, prefix.model
    before, found = len(stem.prompt) - 1, []
    for start in range(0, len(stem.completions), batch_size):
        chosen = stem.completions[start : start + batch_size]
        rows = [[*stem.prompt, *completion[:-1]] for completion in chosen]
        tokens = PaddedTokens.of(model, rows, prompt_lengths=[len(stem.prompt)] * len(rows))
        where = tokens.mask.clone()
        where[:, :before] = False
        places = range(sum(map(len, chosen)))
        found.append(summed_at(prefix.continued(tokens, where=where), places, chosen))
    return torch.cat(found)


def _check(found: Float[Tensor, " completions"], batch: Sequence[Stem]) -> None:
    if found.isnan().any():
        owners = [stem.name for stem in batch for _ in stem.completions]
        bad = list(dict.fromkeys(owner for owner, is_nan in zip(owners, found.isnan().tolist(), strict=True) if is_nan))
        raise InputError(
            f"The model predicts NaN on {', '.join(bad[:10])}. Activations overflow: scale the editor down, or run the model "
            "in float32."
        )
