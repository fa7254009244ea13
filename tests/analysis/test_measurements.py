"""One run that measures many editors: batches, kills, and what cannot be measured."""

import pytest
import torch
from conftest import D_MODEL, low_rank

from sea_lens import Editor, EditorCard, measure_effects
from sea_lens.analysis.effects import EFFECTS
from sea_lens.analysis.measurements import Effect, measure
from sea_lens.errors import FileFormatError, InputError, SeaLensWarning
from sea_lens.models.predictions import question_batches

CALLS = []


def counted(edited, unedited):
    """Likeliest next token; killed in its third call."""
    CALLS.append(len(edited.next_token))
    if len(CALLS) == 3:
        raise KeyboardInterrupt
    return edited.next_token.amax(1)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing(llama, questions, editor, batch_size):
    effects = list(EFFECTS.values())
    whole = measure(llama, questions, [editor], effects, batch_size=4, progress=False).values
    found = measure(llama, questions, [editor], effects, batch_size=batch_size, progress=False).values
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


def test_a_killed_measurement_goes_on_and_another_does_not_mix_with_it(llama, questions, editor, tmp_path):
    CALLS.clear()
    editors, effects = [None, editor], [Effect("counted", counted)]
    options = {"batch_size": 1, "folder": tmp_path, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        measure(llama, questions, editors, effects, **options)
    resumed = measure(llama, questions, editors, effects, **options)
    n_batches = len(question_batches(llama, questions, 1))
    assert n_batches > 2
    assert len(CALLS) == 3 + 2 * (n_batches - 1)  # the batch that was whole is not measured again
    whole = measure(llama, questions, editors, effects, batch_size=1, progress=False)
    assert torch.equal(resumed.values, whole.values)
    other = measure(llama, questions, [None, editor.scaled(0.5)], effects, **options)
    assert not torch.equal(other.values, whole.values)
    for manifest in tmp_path.glob("measurement-*/measurement.json"):
        manifest.write_text("{")
    with pytest.raises(FileFormatError, match="could not be read"):
        measure(llama, questions, editors, effects, **options)


def test_a_folder_takes_no_effect_for_another_one_of_its_name(llama, questions, editor, tmp_path):
    with pytest.raises(InputError, match="no name that tells it from other functions"):
        measure_effects(
            llama,
            questions,
            editor,
            effects=[lambda e, u: e.next_token[:, 0]],
            folder=tmp_path,
            control=0,
            damage=False,
            progress=False,
        )


def test_an_edit_that_changes_no_logit_is_warned_about(llama, questions, editor):
    with pytest.warns(SeaLensWarning, match="changes no logit on these 4 questions"):
        measure_effects(
            llama, questions, editor.at_positions(100), effects=["answer_kl"], control=0, damage=False, progress=False
        )


def test_predictions_of_nan_are_refused(llama, questions):
    """NaN compares as if it were a number: the right answer would be of rank 1."""
    directions = torch.eye(D_MODEL)[:, :1]
    huge = low_rank(directions, torch.full((1,), 1e29), restore_norm=False, strength=1e29)
    editor = Editor({1: huge}, EditorCard("by hand", {}))
    with pytest.raises(InputError, match=r"edited at layer 1, predicts NaN on questions \[0, 1, 2, 3\]"):
        measure_effects(llama, questions, editor, control=0, damage=False, progress=False)
