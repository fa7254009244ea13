"""Feature maps against their formulas, and edits made in their space on models and on disk."""

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from sea_lens import (
    ELU,
    SEA,
    Activations,
    Editor,
    FeatureMap,
    Identity,
    SeaLensWarning,
    SquaredExponential,
    Tanh,
    register_value,
)
from sea_lens.errors import FileFormatError, InputError
from sea_lens.methods.sea.feature_space import SATURATION, FeatureSpaceEdit, bounded, check_map

MAPS = [Identity(), *(kind(scale) for kind in (SquaredExponential, Tanh, ELU) for scale in (1e-3, 1.0, 30.0))]
BY_HAND = {
    Identity: lambda x: x,
    SquaredExponential: lambda x, l: np.sign(x) * (1 - np.exp(-(x**2) / (2 * l**2))),  # noqa: E741
    Tanh: lambda x, s: (np.exp(2 * x / s) - 1) / (np.exp(2 * x / s) + 1),
    ELU: lambda x, a: np.array([y if y > 0 else a * (np.exp(y) - 1) for y in x]),
}


class OwnMap:
    """A user's map: any pair of functions."""

    def __init__(self, forward, inverse, domain=(-math.inf, math.inf)):
        self.forward, self.inverse, self.domain = forward, inverse, domain


ARCSINH = OwnMap(torch.asinh, torch.sinh)
CUBE_ROOT = OwnMap(lambda x: x.sign() * x.abs() ** (1 / 3), lambda y: y**3)


def inside(feature_map, dtype=torch.float64, most=3000.0):
    """Numbers of a dtype in the domain: evenly spaced, ever smaller ones, zero, and what lies next to its ends."""
    found = [torch.zeros(1, dtype=torch.float64)]
    for end in feature_map.domain:
        reach = max(-most, min(most, end))
        found += [reach * torch.linspace(0, 1, 401, dtype=torch.float64), reach * 10.0 ** -torch.arange(0.0, 20.0)]
    x = torch.cat(found).to(dtype)
    low, high = feature_map.domain
    return x[(x.double() >= low) & (x.double() <= high)].unique()


@pytest.mark.parametrize("feature_map", MAPS, ids=str)
def test_the_inverse_gives_every_activation_back(feature_map):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):  # bit for bit, massive ones included
        x = inside(feature_map, dtype)
        assert len(x) > 150
        assert torch.equal(feature_map.inverse(feature_map.forward(x.double())).to(dtype), x)
    x = inside(feature_map)
    assert ((feature_map.inverse(feature_map.forward(x)) - x).abs() <= 1e-8 * x.abs()).all()


@pytest.mark.parametrize("feature_map", MAPS, ids=str)
def test_maps_increase_keep_signs_and_send_zero_to_zero(feature_map):
    low, high = feature_map.domain
    x = torch.linspace(max(low, -50.0), min(high, 50.0), 2001, dtype=torch.float64)
    features = feature_map.forward(x)
    assert (features.diff() > 0).all()
    assert torch.equal(features.sign(), x.sign())
    zero = torch.zeros(2, 3, dtype=torch.float64)
    assert torch.equal(feature_map.forward(zero), zero)
    assert torch.equal(feature_map.inverse(zero), zero)


@pytest.mark.parametrize("kind", BY_HAND, ids=lambda kind: kind.__name__)
def test_maps_are_their_formulas_and_end_at_a_known_share_of_their_range(kind):
    x = np.random.default_rng(0).uniform(-4, 4, 50)
    for scale in (0.5, 3.0):
        feature_map = kind() if kind is Identity else kind(scale)
        parameters = () if kind is Identity else (scale,)
        np.testing.assert_allclose(feature_map.forward(torch.tensor(x)), BY_HAND[kind](x, *parameters), rtol=1e-11)
        if kind is not Identity:
            low, limit = feature_map.domain[0], scale if kind is ELU else 1.0
            left = 1 + float(feature_map.forward(torch.tensor(low, dtype=torch.float64))) / limit
            assert 0.99 < left / math.exp(-SATURATION) < 2.01


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "1", None])
@pytest.mark.parametrize(("kind", "parameter"), [(SquaredExponential, "length_scale"), (Tanh, "scale"), (ELU, "alpha")])
@pytest.mark.usefixtures("without_type_checks")
def test_impossible_parameters_are_refused_by_name(kind, parameter, value):
    with pytest.raises(InputError, match=f"{kind.__name__}'s {parameter} must be a finite number above zero"):
        kind(value)


def test_features_are_bounded_by_those_of_the_domain():
    features = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    tanh_end, elu_end = np.tanh(Tanh(1.0).domain[1]), 2 * np.expm1(ELU(2.0).domain[0])
    np.testing.assert_allclose(bounded(Tanh(30.0), features), np.clip(features, -tanh_end, tanh_end), rtol=1e-14)
    np.testing.assert_allclose(bounded(ELU(2.0), features), np.clip(features, elu_end, None), rtol=1e-14)
    assert torch.equal(bounded(Identity(), features * 1e300), features * 1e300)


# --- maps of one's own -----------------------------------------------------------------------------------------------


NARROW = OwnMap(lambda x: torch.asin(x * 10), lambda y: torch.sin(y) / 10, (-0.1, 0.1))


@pytest.mark.parametrize("feature_map", [*MAPS, ARCSINH, CUBE_ROOT, NARROW])
def test_maps_that_are_one_pass_the_check(feature_map):
    check_map(feature_map)
    assert isinstance(feature_map, FeatureMap)


@pytest.mark.parametrize("value", ["tanh", 1.0, torch.tanh, object(), Tanh])
@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_map_is_refused(value):
    with pytest.raises(InputError, match=r"with a domain, forward\(x\) and inverse\(features\), such as Tanh\(2\.0\)"):
        check_map(value)


@pytest.mark.parametrize(
    ("feature_map", "why"),
    [
        (OwnMap(torch.tanh, torch.tanh, (-2.0, 2.0)), "is not inverted: -2 comes back"),
        (OwnMap(lambda x: x, lambda y: 1.001 * y), "is not inverted: -10000 comes back"),
        (OwnMap(torch.tanh, torch.atanh, (-2.0, 100.0)), "is not inverted"),
        (OwnMap(torch.abs, torch.abs, (-3.0, 3.0)), "is not inverted: -3 comes back"),
        (
            OwnMap(lambda x: torch.exp(-(x**2) / 2), lambda y: -2 * torch.log(y), (-5.0, 5.0)),
            "is not inverted",
        ),  # as published
        (OwnMap(lambda x: x, lambda y: torch.where(y > 4.9, 0, y), (-5.0, 5.0)), r"is not inverted: 4\.9"),
        (OwnMap(lambda x: torch.asinh(x) + 1, lambda y: torch.sinh(y - 1), (-9.0, 9.0)), "must send 0 to 0"),
        (OwnMap(torch.asinh, torch.sinh, (0.0, 5.0)), "must reach from below to above zero"),
        (OwnMap(torch.asinh, torch.sinh, (math.nan, 1.0)), "must reach from below to above zero"),
        (OwnMap(lambda x: -torch.asinh(x), lambda y: torch.sinh(-y)), "increas"),
        (OwnMap(lambda x: x / (1 + x.abs()), lambda y: y / (1 - y.abs())), "domain"),
    ],
)
def test_a_map_with_a_flaw_is_refused(feature_map, why):
    with pytest.raises(InputError, match=why):
        check_map(feature_map)


# --- editors in feature spaces ---------------------------------------------------------------------------------------

KINDS = {
    "identity": {"feature_map": Identity()},
    "squared exponential": {"feature_map": SquaredExponential(1 / 3)},
    "tanh": {"feature_map": Tanh(0.1 + 0.2), "center": True, "merge": "average"},
    "tanh, merged as activations": {"feature_map": Tanh(2.0), "merge_space": "activations", "merge": "sum"},
    "elu": {"feature_map": ELU(0.7), "center": True, "feature_unit": 1.0},
}


def fitted(model=None, dtype=torch.float32, **settings):
    generator = torch.Generator().manual_seed(0)
    roles = [{layer: torch.randn(30, 32, generator=generator) for layer in range(3)} for _ in range(3)]
    data = Activations.from_tensors(neutral=roles[0], positive=roles[1], negative=roles[2], model=model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return SEA(0.99, **settings).fit(data, dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_attached_to_a_model_it_edits_as_by_hand_in_every_dtype(llama, kind):
    editor, tokens = fitted(llama, **KINDS[kind]), torch.arange(40, 49)[None]
    with torch.no_grad(), editor.at_layers([1]).attached(llama):
        logits = llama(tokens, use_cache=False)
    assert isinstance(editor[1], FeatureSpaceEdit)
    by_hand = [("blocks.1.hook_resid_post", lambda tensor, hook: editor[1](tensor))]
    with torch.no_grad(), llama.hooks(fwd_hooks=by_hand):
        assert torch.equal(llama(tokens, use_cache=False), logits)
    assert (llama(tokens, use_cache=False) - logits).abs().max() > 1e-3
    x = 3 * torch.randn(7, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = editor[1](x)
    for dtype, tolerance in ((torch.float16, 0.02), (torch.bfloat16, 0.05), (torch.float32, 1e-4)):
        found = editor[1](x.to(dtype))
        assert found.dtype == dtype
        assert (found.double() - exact).norm() < tolerance * exact.norm()
    assert torch.equal(editor.scaled(0.0)[1](x), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading_is_bit_identical(tmp_path, kind, dtype):
    saved = fitted(dtype=dtype, **KINDS[kind]).scaled(1 / 3).at_positions(2)
    saved.save_pretrained(tmp_path)
    loaded = Editor.from_pretrained(tmp_path)
    assert (loaded.fingerprint, loaded.card, repr(loaded)) == (saved.fingerprint, saved.card, repr(saved))
    assert loaded[0].parts[0].left.dtype == dtype
    assert (loaded[0].feature_map, loaded[0].unit) == (saved[0].feature_map, saved[0].unit)


@register_value("cube root of the tests")
@dataclass(frozen=True)
class CubeRoot:
    """A map of a user's own, registered."""

    scale: float = 1.0
    domain = (-1e3, 1e3)

    def forward(self, x):
        return x.sign() * (x.abs() / self.scale) ** (1 / 3)

    def inverse(self, features):
        return self.scale * features**3


def test_an_editor_with_a_registered_map_of_ones_own_is_saved_and_loaded_and_another_is_not(tmp_path):
    saved = fitted(feature_map=CubeRoot(2.0), center=True)
    saved.save_pretrained(tmp_path)
    loaded = Editor.from_pretrained(tmp_path)
    assert loaded.card.settings["feature_map"] == CubeRoot(2.0)
    assert loaded.fingerprint == saved.fingerprint
    with pytest.raises(InputError, match="OwnMap, which cannot be saved"):
        fitted(feature_map=ARCSINH).save_pretrained(tmp_path / "other")
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("cube root of the tests", "square root"))
    with pytest.raises(FileFormatError):
        Editor.from_pretrained(tmp_path)


def test_impossible_edits_are_refused():
    edit = fitted(feature_map=Tanh(2.0))[0]
    for change in ({"unit": 0.0}, {"weight": math.nan}, {"strength": math.inf}, {"parts": ()}):
        with pytest.raises(InputError):
            replace(edit, **change)
