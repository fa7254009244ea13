"""A method and an edit of a user's own, in this file alone: fitted, controlled, tuned, saved, loaded."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from methods.oracles import layers_of

from sea_lens import (
    Activations,
    Editor,
    MeanDifference,
    random_editor_like,
    refit,
    register_edit,
    register_method,
    tune,
)
from sea_lens.errors import InputError
from sea_lens.methods.method import METHODS, fit_all, fitted_editor, method_of
from sea_lens.statistics import Proportion
from sea_lens.worlds.demo import collect


@register_edit("clipping of the tests")
@dataclass(frozen=True, eq=False)
class Clipping:
    """Clips each coordinate to a range."""

    low: torch.Tensor
    high: torch.Tensor
    strength: float = 1.0

    kind: ClassVar[str]
    token_local: ClassVar[bool] = True
    directions: ClassVar[None] = None
    gains: ClassVar[None] = None
    rank: ClassVar[int] = 0

    @property
    def width(self):
        return len(self.low)

    @property
    def is_identity(self):
        return self.strength == 0

    @property
    def summary(self):
        return "clips coordinates"

    def scaled(self, factor):
        return replace(self, strength=self.strength * factor)

    def __call__(self, h):
        return h + self.strength * (h.clamp(self.low.to(h), self.high.to(h)) - h)


@register_method("clip to positives", source="this file")
@dataclass(frozen=True)
class ClipToPositives:
    """Keeps activations within what the positive ones span."""

    margin: float = 0.0

    name: ClassVar[str]
    roles: ClassVar = ("positive", "negative")

    def fit(self, activations: Activations) -> Editor:
        edits = {}
        for site, rows in activations.positive.items():
            edits[site] = Clipping(rows.min(0).values - self.margin, rows.max(0).values + self.margin)
        return fitted_editor(self, activations, edits)


def test_a_method_and_an_edit_of_ones_own_are_saved_loaded_and_controlled(tmp_path):
    data, h = layers_of(0, 3), 3 * torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    editor = ClipToPositives(margin=0.1).fit(data).at_layers([3]).scaled(0.5).at_positions(1)
    editor.save_pretrained(tmp_path)
    loaded = Editor.from_pretrained(tmp_path)
    assert (loaded.fingerprint, loaded.card) == (editor.fingerprint, editor.card)
    assert method_of(loaded) == ClipToPositives(0.1)
    assert METHODS["clip to positives"].summary == "Keeps activations within what the positive ones span."
    swapped, shuffled = refit(loaded, data.swapped()), refit(loaded, data.shuffled(0))
    low, high = data.negative[3].min(0).values - 0.1, data.negative[3].max(0).values + 0.1
    torch.testing.assert_close(swapped[3](h), h + 0.5 * (h.clamp(low.float(), high.float()) - h))
    assert (swapped.layers, str(swapped.where)) == ([3], str(editor.where))
    assert len({one.fingerprint for one in (editor, swapped, shuffled)}) == 3
    control = random_editor_like(editor, seed=0)[3]
    moved, random = (torch.linalg.vector_norm(edit(h) - h, dim=1) for edit in (editor[3], control))
    torch.testing.assert_close(random, moved, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(control(h), editor[3](h), atol=0.1)


def test_it_is_tuned_beside_others(organism, tmp_path):
    model, world = organism
    methods = [ClipToPositives(), ClipToPositives(5.0), MeanDifference()]
    tuning = tune(
        model,
        collect(model, world),
        world.questions(world.fitting[::60]),
        methods=methods,
        layers=["all", "last:1"],
        measure=lambda model, given: Proportion(1, 2),
        progress=False,
    )
    assert sorted(tuning.table["method"]) == ["clip to positives"] * 4 + ["mean-difference"] * 2
    assert sorted(tuning.table["margin"].dropna()) == [0.0, 0.0, 5.0, 5.0]
    tuning.save(tmp_path)
    assert type(tuning).load(tmp_path).best.fingerprint == tuning.best.fingerprint


def test_what_is_no_method_is_refused():
    with pytest.raises(InputError, match="must be a frozen dataclass of settings with roles and fit"):
        register_method("nothing")(object)
    with pytest.raises(InputError, match="The method 'sea' is registered already"):
        register_method("sea")(ClipToPositives)
    editor = ClipToPositives().fit(layers_of(0))
    foreign = replace(editor, card=replace(editor.card, method="elsewhere"))
    with pytest.raises(InputError, match="'elsewhere', which is no method that is registered here"):
        refit(foreign, layers_of(0))
    with pytest.raises(InputError, match="needs positive, negative activations, and there are no negative ones"):
        MeanDifference().fit(Activations({"positive": layers_of(0)["positive"]}))


@pytest.mark.parametrize("progress", [True, False])
def test_fits_hear_whether_to_show_progress(progress):
    heard = []

    class Slow(MeanDifference):
        def fit(self, activations, *, progress=True):
            heard.append(progress)
            return MeanDifference.fit(self, activations)

    fit_all([Slow(), MeanDifference()], layers_of(0), progress=progress)
    assert heard == [progress]
