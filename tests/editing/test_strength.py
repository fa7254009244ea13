"""The strength at which an edit costs so much: on functions whose answer is known, and on models."""

import math

import pytest
import torch
from conftest import Passes, low_rank, make_editor
from hypothesis import given
from hypothesis import strategies as st

from sea_lens import AffineEdit, Editor, measure_damage
from sea_lens.editing.strength import strength_for
from sea_lens.errors import InputError

TEXTS = ["The sea is blue, and so is the sky.", "Another text that should stay as it is."]


@given(
    st.floats(1e-4, 50), st.floats(0.5, 6), st.floats(1e-3, 5), st.sampled_from(["power", "saturating", "overflowing"])
)
def test_a_monotone_kl_is_met_in_few_steps(scale, power, kl, kind):
    calls = []

    def kl_at(factor):
        calls.append(factor)
        found = scale * factor**power
        if kind == "saturating":
            return 10 * found / (1 + found)
        return math.inf if kind == "overflowing" and found > 20 else found

    factor = (kl / scale) ** (1 / power)
    if kind == "saturating":
        factor = (kl / (10 - kl) / scale) ** (1 / power)
    if factor > 1000 or factor < 1e-6:
        return
    found = strength_for(kl_at, kl)
    assert kl_at(found) == pytest.approx(kl, rel=0.03)
    assert len(calls) < 40


@pytest.mark.parametrize("kl", [0.01, 0.1])
def test_an_editor_is_scaled_to_a_kl(bridge, kl):
    make_editor().scaled_to(bridge, TEXTS, kl=kl)  # what a model can do is tried in its first passes
    with Passes(bridge) as passes:
        gentle = make_editor().scaled_to(bridge, TEXTS, kl=kl)
    assert measure_damage(bridge, [], gentle, texts=TEXTS, examples=0).kl == pytest.approx(kl, rel=0.031)
    assert passes.n <= 2 * (1 + 12)  # the unedited model runs once; a pass of one token makes logits of what is kept
    assert gentle.layers == make_editor().layers


def test_what_cannot_be_reached_is_said(llama):
    nothing = Editor({0: low_rank(torch.zeros(32, 0), torch.zeros(0))})
    for editor in (nothing, make_editor().at_positions(100)):
        with pytest.raises(InputError, match="changes nothing on these texts, at any strength"):
            editor.scaled_to(llama, TEXTS)
    tiny = Editor({0: AffineEdit.of_shift(torch.full((32,), 1e-7))})
    with pytest.raises(
        InputError, match=r"No strength has a KL of 3 .*it is .* at 1024 times the editor's own strength\. Ask"
    ):
        tiny.scaled_to(llama, TEXTS, kl=3.0)
    with pytest.raises(InputError, match=r"it is 0 at 0\.5 times the editor.s own strength and 2 at 0\.5"):
        strength_for(lambda factor: 0.0 if factor < 0.5 else 2.0, 1.0)
    for kl in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match=r"kl (is a number of nats per token above zero|must be a finite number)"):
            make_editor().scaled_to(llama, TEXTS, kl=kl)
