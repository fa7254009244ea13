"""Log-probabilities of answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from transformer_lens.model_bridge import TransformerBridge

from benchmarks import published, worlds
from benchmarks.texts import truthfulqa
from benchmarks.timing import Row, distance, in_turns, seconds
from sea_lens import Editor, Questions
from sea_lens.data.prompts import TRUTHFULQA_EXAMPLES, with_prompt
from sea_lens.editing.edits import Edit
from sea_lens.models.log_probs import score_answers

SAMPLE = 5
"""Of the questions, lm-eval gets one in so many: it takes minutes."""
SHOT_SAMPLE = 50
"""The same after six examples."""


def truthfulqa_rows() -> Iterator[Row]:
    """The log-probability of every answer to every question after a six-example prompt, as `evaluate_truthfulqa` has them."""
    model = worlds.llama(256, 4)
    questions = worlds.questions(12)
    texts = [(row.prompt, text) for row in questions for text in (*row.right, *row.wrong)]
    scores: dict[str, torch.Tensor] = {}

    def baseline() -> None:
        scores["published"] = torch.tensor(published.score(model, texts), dtype=torch.float64)

    def ours() -> None:
        scores["ours"] = score_answers(model, questions, progress=False).log_probabilities.flatten()

    times = in_turns(baseline, ours, 3, 1)
    apart = distance(scores["ours"], scores["published"])
    what = f"TruthfulQA scoring, six-example prompt, {len(texts)} answers, d=256, 4 layers"
    yield Row(what, *times, 6, f"{apart:.1e} apart", apart < 1e-5, (1, 3))


def harness_rows() -> Iterator[Row]:
    """The same of 100 questions by lm-eval's own model class: plain, edited at ten layers, and after six examples."""
    if find_spec("lm_eval") is None:
        print("  lm-eval is not installed, so nothing is compared with it", file=sys.stderr)
        return
    model = worlds.smollm2()
    plain = truthfulqa(worlds.smollm2_tokenizer(), 100)
    shots, _ = with_prompt(plain, model, "paper", TRUTHFULQA_EXAMPLES)
    editor = worlds.random_editor(576, 20, 8)
    editor = Editor({site: editor.edits[site] for site in sorted(editor.edits)[10:]}, editor.card)
    hf_model = worlds.hf_smollm2()
    harness = _harness(hf_model)
    score_answers(model, plain[:2], progress=False)  # the model has been tried by now
    for name, questions, edit, sample in (
        ("", plain, None, SAMPLE),
        (", edited at 10 of 30 layers", plain, editor, SAMPLE),
        (" after TruthfulQA's six examples", shots, None, SHOT_SAMPLE),
    ):
        with _edited(hf_model, edit):
            yield _compared(model, harness, questions, edit, name, sample)


def _compared(
    model: TransformerBridge,
    harness: Callable[[list[tuple[str, str]]], list[float]],
    questions: Questions,
    editor: Editor | None,
    name: str,
    sample: int,
) -> Row:
    some = [(row.prompt, f" {text}") for row in questions[::sample] for text in (*row.right, *row.wrong)]
    n = sum(len(row.right) + len(row.wrong) for row in questions)
    found: dict[str, torch.Tensor] = {}

    def ours() -> None:
        found["ours"] = score_answers(model, questions, editor, progress=False).log_probabilities[::sample]

    def theirs() -> None:
        found["theirs"] = torch.tensor(harness(some), dtype=torch.float64)

    own, sampled = seconds(ours), seconds(theirs)
    scores = found["ours"][~found["ours"].isnan()]
    apart = float((scores - found["theirs"]).abs().max())
    return Row(
        f"TruthfulQA-like scoring, 100 questions, {n} answers, SmolLM2's shape{name}",
        sampled * n / len(some),
        own,
        2,
        f"{apart:.1e} nats apart",
        apart < 1e-4,
        against=f"lm-eval's HFLM, on {len(some)} answers, times {n / len(some):.3g}",
    )


@contextmanager
def _edited(hf_model: torch.nn.Module, editor: Editor | None) -> Iterator[None]:
    """The same edits on a plain Hugging Face model."""
    handles = []
    for site, edit in {} if editor is None else editor.edits.items():

        def hook(module: torch.nn.Module, args: object, output: torch.Tensor, edit: Edit = edit) -> torch.Tensor:
            return edit(output)

        assert site.layer is not None
        handles.append(hf_model.model.layers[site.layer].register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _harness(hf_model: torch.nn.Module) -> Callable[[list[tuple[str, str]]], list[float]]:
    """lm-eval's log-likelihoods, 16 texts a pass, sorted by length and with its cache of contexts, as it is by default."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    # A plain model, and not the one in a bridge, which is slower.
    harness = HFLM(
        pretrained=hf_model,
        tokenizer=worlds.smollm2_tokenizer(),
        backend="causal",
        batch_size=16,
        add_bos_token=True,
        max_length=2048,
    )

    def run(texts: list[tuple[str, str]]) -> list[float]:
        asked = [Instance("loglikelihood", {}, text, number) for number, text in enumerate(texts)]
        return [score for score, _ in harness.loglikelihood(asked, disable_tqdm=True)]

    return run
