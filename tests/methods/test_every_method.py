"""What holds of every method that is fitted on positive and negative (and neutral) activations, over the registry.

A new method is tried as it is by default. Say in `KNOWN` what settings it needs on data as narrow as these, and what it is
meant to do: otherwise only what holds of all is tested of it.
"""

import warnings
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import pytest
import torch
from methods.oracles import ROLES, same_editors

from sea_lens import ITI, METHODS, SADI, AcT, Activations, Editor, refit
from sea_lens.errors import InputError

WIDTH, N, LAYER = 12, 40, 2


@dataclass(frozen=True)
class Known:
    """What is known of a method.

    Attributes:
        method: With settings for the data here; None for its defaults.
        does: To what tells the sides apart: `moves` the negatives along it, `erases` it, or something else.
        swapped: What an editor fitted on swapped sides does: the `opposite` of every displacement, the `inverse` map, the
            `same`; None where nothing is promised.
        by_coordinate: Whether it treats coordinates one by one, by design, so that a rotation of them matters.
    """

    method: Any = None
    does: Literal["moves", "erases"] | None = None
    swapped: Literal["opposite", "inverse", "same"] | None = None
    by_coordinate: bool = False


KNOWN = {
    "ace": Known(does="moves"),
    "act": Known(AcT("gaussian", coverage=None), does="moves", swapped="inverse", by_coordinate=True),
    "directional-ablation": Known(does="erases", swapped="same"),
    "gaussian-transport": Known(does="moves", swapped="inverse"),
    "iti": Known(ITI(n_heads=2, d_head=WIDTH // 2, alpha=1.0), does="moves", swapped="opposite", by_coordinate=True),
    "leace": Known(does="erases", swapped="same"),
    "mean-difference": Known(does="moves", swapped="opposite"),
    "midsteer": Known(does="moves"),
    "pca-difference": Known(does="moves", swapped="opposite"),
    "sadi": Known(SADI(n_elements=3, delta=1.0), swapped="same", by_coordinate=True),
}
LEFT_OUT = {"sas": "it needs a sparse autoencoder", "sake": "it edits one site alone, and spares other prompts"}
NAMES = [
    name
    for name, entry in METHODS.items()
    if entry.cls.__module__.startswith("sea_lens.")
    and name not in LEFT_OUT
    and not hasattr(entry.cls, "why_not_compared")
]


def method_named(name):
    return known(name).method or METHODS[name].cls()


def known(name):
    return KNOWN.get(name, Known())


def rows(n=N, seed=0):
    """Neutral, positive and negative rows of much in common; the sides differ along one direction, planted."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(4, n, WIDTH, generator=generator, dtype=torch.float64)
    mixed = drawn[3] @ torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) / 4 + 1.0
    return [mixed + 0.3 * drawn[side] + shift * PLANTED for side, shift in enumerate((0.0, 3.0, -3.0))]


PLANTED = torch.nn.functional.normalize(torch.arange(1.0, WIDTH + 1).double().cos(), dim=0)


def given(sides):
    return Activations.from_tensors(**{role: {LAYER: side} for role, side in zip(ROLES, sides, strict=True)})


def fit(method, activations) -> Editor:
    """As a method or an editor is fitted (again)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of edits that are long, on data as short as these
        return refit(method, activations) if isinstance(method, Editor) else method.fit(activations)


@cache
def fitted(name):
    return fit(method_named(name), given(rows()))


def edit_of(editor):
    """At the layer of the fit; of editors that edit it at several sites, the last of them."""
    return list(editor.edits.values())[-1]


def moved(editor, h):
    return edit_of(editor)(h) - h


def probes(seed=9):
    return 2 * torch.randn(25, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def close(found, expected, tolerance=1e-4):
    assert torch.linalg.vector_norm(found - expected) <= tolerance * (torch.linalg.vector_norm(expected) + 1e-9)


@pytest.mark.parametrize("name", NAMES)
class TestEveryMethod:
    def test_strength_zero_is_the_identity_and_rows_are_edited_by_themselves(self, name):
        editor = fitted(name)
        assert all(edit.token_local for edit in editor.edits.values())
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            h = probes().to(dtype)
            assert torch.equal(edit_of(editor.scaled(0.0))(h), h)
            edited = edit_of(editor)(h)
            assert edited.dtype == dtype
            assert not torch.equal(edited, h)
            one_by_one = torch.stack([edit_of(editor)(row) for row in h])
            close(one_by_one.double(), edited.double(), 1e-2 if dtype.itemsize == 2 else 1e-4)
            close(edit_of(editor)(h.view(5, 5, WIDTH)).view(25, WIDTH).double(), edited.double(), 1e-2)

    def test_it_is_saved_loaded_and_fitted_again_to_the_bit(self, name, tmp_path):
        editor = fitted(name).scaled(0.5).at_positions("generated")
        editor.save_pretrained(tmp_path)
        loaded = Editor.from_pretrained(tmp_path)
        assert same_editors(loaded, editor)
        assert all(torch.equal(loaded[site](probes()), editor[site](probes())) for site in editor.sites)
        assert fit(loaded, given(rows())).fingerprint == editor.fingerprint

    def test_the_order_of_demonstrations_does_not_matter(self, name):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
        # Halves that are held out in turn stay what they are.
        order = torch.stack([order[order % 2 == 0], order[order % 2 == 1]], dim=1).flatten()
        editor = fit(method_named(name), given([side[order] for side in rows()]))
        close(moved(editor, probes()), moved(fitted(name), probes()))

    def test_a_rotation_of_coordinates_is_carried_along(self, name):
        turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2)).double()).Q
        editor = fit(method_named(name), given([side @ turn for side in rows()]))
        found, expected = moved(editor, probes() @ turn), moved(fitted(name), probes()) @ turn
        if known(name).by_coordinate:
            assert torch.linalg.vector_norm(found - expected) > 0.01 * torch.linalg.vector_norm(expected)
        else:
            close(found, expected)

    def test_swapped_sides_do_what_they_should(self, name):
        editor, swapped = fitted(name), fit(fitted(name), given(rows()).swapped())
        assert swapped.sites == editor.sites
        promised, h = known(name).swapped, probes()
        if promised == "opposite":
            close(moved(swapped, h), -moved(editor, h))
        elif promised == "same":
            close(moved(swapped, h), moved(editor, h))
        elif promised == "inverse":
            close(edit_of(swapped)(edit_of(editor)(h)), h)

    def test_what_was_planted_is_found_as_the_mean_difference_finds_it(self, name):
        _, positive, negative = rows(400)
        data = given(rows(400))
        editor, mean = fit(method_named(name), data), fit(METHODS["mean-difference"].cls(), data)
        before = float((positive - negative).mean(0) @ PLANTED)
        if known(name).does == "moves":
            # All the way is 1, which a mean difference goes; and nowhere else.
            way = moved(editor, negative).mean(0)
            assert 0.25 < float(way @ PLANTED) / before < 4
            assert torch.nn.functional.cosine_similarity(way, moved(mean, negative).mean(0), dim=0) > 0.95
        elif known(name).does == "erases":
            after = (edit_of(editor)(positive) - edit_of(editor)(negative)).mean(0)
            assert abs(float(after @ PLANTED)) < 0.05 * before
        else:
            assert edit_of(editor)(negative).isfinite().all()

    def test_data_that_cannot_tell_are_fitted_or_refused_in_words(self, name):
        neutral, positive, negative = rows()
        constant = [side.clone() for side in (neutral, positive, negative)]
        for side in constant:
            side[:, 3] = 7.0
        odd = {
            "fewer rows than the width": [side[:5] for side in (neutral, positive, negative)],
            "one row": [side[:1] for side in (neutral, positive, negative)],
            "a constant coordinate": constant,
            "no variance": [side[:1].expand(N, WIDTH) for side in (neutral, positive, negative)],
            "equal sides": [neutral, positive, positive],
            "zeros": [torch.zeros(N, WIDTH)] * 3,
        }
        for what, sides in odd.items():
            refused = ""
            try:
                edits = list(fit(method_named(name), given(sides)).edits.values())
            except InputError as error:
                edits, refused = [], str(error)
            assert all(bool(edit(probes()).isfinite().all()) for edit in edits), what
            assert edits or what in ("one row", "no variance", "equal sides", "zeros"), refused
            assert edits or len(refused) > 40, what

    def test_large_activations_in_half_precision_do_not_overflow(self, name):
        halves = [(1e3 * side).half() for side in rows()]
        editor, expected = (
            fit(method_named(name), given(sides)) for sides in (halves, [half.double() for half in halves])
        )
        h = 1e3 * probes()
        close(edit_of(editor)(h), edit_of(expected)(h), 1e-3)

    def test_a_missing_side_is_named(self, name):
        method, whole = method_named(name), given(rows())
        for role in method.roles:
            fewer = replace(whole, sides={each: side for each, side in whole.sides.items() if each != role})
            with pytest.raises(InputError, match=f"needs .*{role}.* and there are no {role} ones"):
                method.fit(fewer)


def test_what_is_known_is_of_methods_that_are_there():
    assert KNOWN.keys() <= set(NAMES)
    assert LEFT_OUT.keys() <= METHODS.keys()
