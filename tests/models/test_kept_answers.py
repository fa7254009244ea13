import pytest

from sea_lens import Demonstrations
from sea_lens.errors import InputError
from sea_lens.models import generate as kept_answers
from sea_lens.models.generate import answer_and_keep


def test_a_killed_run_answers_only_what_is_left(organism, tmp_path, monkeypatch):
    model, world = organism
    data, path = world.demonstrations()[:10], tmp_path / "answers.jsonl"
    expected = data.with_neutral_answers(model, 1, progress=False)
    asked, answer = [], kept_answers.greedy_answers

    def killed(model, prompts, *arguments, **options):
        if asked:
            raise KeyboardInterrupt
        asked.extend(prompts)
        return answer(model, prompts, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(kept_answers, "greedy_answers", killed)
        with pytest.raises(KeyboardInterrupt):
            answer_and_keep(data, model, 1, path, batch_size=4, progress=False)
    assert sum(row.neutral is not None for row in Demonstrations.from_jsonl(path)) == 4
    left = []
    monkeypatch.setattr(
        kept_answers,
        "greedy_answers",
        lambda model, prompts, *a, **k: (left.extend(prompts), answer(model, prompts, *a, **k))[1],
    )
    assert answer_and_keep(data, model, 1, path, batch_size=4, progress=False) == expected
    assert sorted([*asked, *left]) == sorted(row.prompt for row in data)
    before = len(left)
    assert answer_and_keep(data, model, 1, path, progress=False) == expected
    assert len(left) == before
    with pytest.raises(InputError, match="holds other demonstrations"):
        answer_and_keep(data[:5], model, 1, path, progress=False)
