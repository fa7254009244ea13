"""CAST's condition: a truth table, the authors' similarity, a latch over decoding, rows by themselves, fits on prompts."""

import json
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from conftest import run_command

import sea_lens as sl
from sea_lens.editing.conditions import WhenAligned, similarities
from sea_lens.editing.sparing import NotMassive
from sea_lens.errors import InputError
from sea_lens.methods.cast import _best_threshold
from sea_lens.models.passes import Pass

SITE = "blocks.0.hook_resid_post"


def seen(lengths, prompts, width):
    """A pass over rows of these lengths, padded on the left."""
    positions = torch.arange(width)[None] - (width - torch.tensor(lengths))[:, None]
    return Pass(positions.clamp(min=-1), torch.arange(width), True, torch.tensor(prompts))


@pytest.mark.parametrize(("above", "below"), product((True, False), repeat=2))
def test_the_truth_table(above, below):
    direction = torch.tensor([1.0, 0.0])
    row = torch.tensor([0.9, 0.1]) if above else torch.tensor([0.1, 0.9])
    condition = WhenAligned(SITE, direction, 0.5, below)
    assert condition.decide(row.expand(1, 3, 2), seen([3], [3], 3)).tolist() == [above != below]


def test_mean_last_and_spared_tokens_of_the_prompt_alone_are_read():
    read = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    read[0, 2] *= 1000  # row 0 begins in column 2, with a sink; its prompt is columns 2 to 4, row 1's 0 to 5
    now, direction = seen([4, 6], [3, 6], 6), torch.tensor([1.0, 2.0, -1.0, 0.5])

    def cosine(state):
        return float(torch.dot(state, direction) / state.norm() / direction.norm())

    sparing = NotMassive(False, ((SITE, 100.0),))
    for options, rows in (
        ({}, (read[0, 2:5].mean(0), read[1].mean(0))),
        ({"token": "last"}, (read[0, 4], read[1, 5])),
        ({"sparing": sparing}, (read[0, 3:5].mean(0), read[1].mean(0))),
        ({"sparing": NotMassive(True)}, (read[0, 3:5].mean(0), read[1, 1:].mean(0))),
    ):
        for place, state in enumerate(rows):
            for margin, fires in ((-1e-4, True), (1e-4, False)):
                condition = WhenAligned(SITE, direction, cosine(state) + margin, **options)
                assert bool(condition.decide(read, now)[place]) is fires
    alone = WhenAligned(SITE, direction, -1.0, sparing=NotMassive(True))  # a prompt of one token has no other
    assert alone.decide(read[1:, :1], seen([1], [1], 1)).tolist() == [True]


def test_the_similarity_of_the_authors_code_has_next_to_no_sign():
    h, c = np.random.default_rng(0).normal(0, 1, (2, 9))
    onto = np.tanh(np.outer(c, c) / np.dot(c, c) @ h)
    expected = np.dot(h, onto) / np.linalg.norm(h) / np.linalg.norm(onto)
    state, direction = torch.tensor(h)[None], torch.tensor(c)
    assert similarities(state, direction, projected=True).item() == pytest.approx(expected, rel=1e-9)
    assert similarities(state, -direction, projected=True).item() == pytest.approx(expected, rel=1e-9)
    assert similarities(state, -direction).item() == pytest.approx(-similarities(state, direction).item(), rel=1e-9)


def test_the_threshold_is_the_best_of_all_that_tell_values_apart():
    rng = np.random.default_rng(1)
    for shift in (1.0, -1.5, 0.0):
        when, unless = rng.normal(shift, 1, 30), rng.normal(0, 1, 40)
        f1, _, threshold, below = _best_threshold(torch.tensor(when), torch.tensor(unless))
        ordered, found = np.sort(np.concatenate([when, unless])), {}
        for t in (ordered[1:] + ordered[:-1]) / 2:
            for side in (False, True):
                hits, false = ((one < t if side else one > t).sum() for one in (when, unless))
                found[t, side] = 2 * hits / (30 + hits + false)
        assert f1 == pytest.approx(max(found.values()))
        best = [t for (t, side), one in found.items() if side == below and one == max(found.values())]
        assert min(abs(t - threshold) for t in best) < 1e-9


def test_a_decision_holds_over_decoding_and_every_row_has_its_own(llama):
    prompts = ["What do cows drink?", "How many legs has it, I would say:", "Q", "Where do cookies come from?"]
    shift = torch.randn(32, generator=torch.Generator().manual_seed(3))
    always = sl.Editor({1: sl.AffineEdit.of_shift(shift)})
    states = []
    for prompt in prompts:
        _, cache = llama.run_with_cache(llama.to_tokens(prompt))
        states.append(cache[SITE][0].mean(0))
    direction = torch.nn.functional.normalize(states[0] + states[2] - states[1] - states[3], dim=0)
    cosines = torch.cosine_similarity(torch.stack(states), direction[None])
    threshold = float(cosines.sort().values[1:3].mean())
    fires = cosines > threshold
    assert fires.sum() == 2
    conditional = always.when(sl.WhenAligned(SITE, direction, threshold))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, edited, chosen = (
            sl.generate(llama, prompts, editor, max_new_tokens=8) for editor in (None, always, conditional)
        )
    assert plain != edited
    assert chosen == [edited[row] if fires[row] else plain[row] for row in range(4)]
    alone = [sl.generate(llama, prompt, conditional, max_new_tokens=8) for prompt in prompts[:2]]
    assert alone == chosen[:2]


PLACES = ("Paris", "Rome", "Oslo", "Bern", "Lima", "Cairo", "Delhi", "Quito")
WHEN = [f"{how} {place}?" for place in PLACES for how in ("Is it far to", "How large is")]
UNLESS = [f"{number} plus {number + 3} is" for number in range(20)]


@pytest.mark.parametrize("options", [{}, {"token": "last", "published": True}], ids=["default", "published"])
def test_a_condition_is_fitted_on_half_of_the_prompts_and_measured_on_the_other(llama, options, tmp_path):
    found = sl.fit_condition(llama, WHEN, UNLESS, layers=[0, 1], batch_size=16, **options)
    best = found.table.iloc[0]
    assert best["f1"] == found.table["f1"].max() > 0.9
    assert (found.n_when, found.n_unless) == (8, 10)
    assert best["precision_low"] < best["precision"] <= best["precision_high"]
    again = sl.Condition.load(found.save(tmp_path)[0].parent)
    assert str(again.where) == str(found.where)
    assert torch.equal(again.where.direction, found.where.direction)
    # What it says of held-out prompts is what it decides inside the model, prompt by prompt.
    order = [
        torch.randperm(len(kind), generator=generator)
        for generator in [torch.Generator().manual_seed(0)]
        for kind in (WHEN, UNLESS)
    ]
    fires = []
    for kind, places in zip((WHEN, UNLESS), order, strict=True):
        chosen = [kind[place] for place in places[len(kind) // 2 :]]
        decided = 0
        for prompt in chosen:
            _, cache = llama.run_with_cache(llama.to_tokens(prompt), names_filter=found.site)
            read = cache[found.site]
            decided += int(found.where.decide(read, seen([read.shape[1]], [read.shape[1]], read.shape[1])))
        fires.append(decided)
    assert best["recall"] == pytest.approx(fires[0] / 8)
    assert best["precision"] == pytest.approx(fires[0] / sum(fires))


def test_from_the_command_line(organism, editor_folder, tmp_path):
    model, world = organism
    kinds = {}
    for name, kind in (("when", "home"), ("unless", "pet")):
        prompts = [question.prompt for question in world.questions(world.fitting) if f" {kind} " in question.prompt]
        kinds[name] = prompts
        (tmp_path / f"{name}.json").write_text(json.dumps(prompts))
    out = tmp_path / "conditional"
    files = [tmp_path / "when.json", tmp_path / "unless.json"]
    code, shown, err = run_command("condition", "organism", editor_folder, *files, "--out", out)
    assert code == 0, err
    assert "precision" in shown
    editor, found = sl.Editor.from_pretrained(out), sl.Condition.load(out)
    assert str(editor.where) == str(found.where)
    assert not min(editor.edits) < editor.where.reads
    assert found.table.equals(sl.fit_condition(model, **kinds, layers=[0, 1]).table)
    assert 0.75 < found.table["f1_held_out"].iloc[0] <= 1
    early = sl.Editor({"blocks.0.ln1.hook_out": sl.AffineEdit.of_shift(torch.ones(128))})
    early.save_pretrained(tmp_path / "early")
    code, _, err = run_command("condition", "organism", tmp_path / "early", *files)
    assert code == 2
    assert "no layer of 'all' is left" in err


def test_what_cannot_be_fitted_is_refused(llama):
    with pytest.raises(InputError, match="when is a list of 4 prompts at least"):
        sl.fit_condition(llama, ["a", "b"], ["c"] * 5)
    with pytest.raises(InputError, match="unless is a list of 4 prompts"):
        sl.fit_condition(llama, ["a"] * 4, ["b"])
    with pytest.raises(InputError, match="one state at every site"):
        sl.fit_condition(llama, ["a"] * 4, ["a"] * 4, layers=[0])
