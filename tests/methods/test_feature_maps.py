import math

import numpy as np
import pytest
import torch

from sea_lens.errors import InputError
from sea_lens.methods.sea.feature_space import (
    ELU,
    KNOWN,
    SATURATION,
    FeatureMap,
    Identity,
    SquaredExponential,
    Tanh,
    bounded,
    check_map,
    parameters_of,
)

SCALES = [1e-3, 0.07, 1.0, 30.0, 1e3]
MAPS = [Identity(), *(kind(scale) for kind in (SquaredExponential, Tanh, ELU) for scale in SCALES)]
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("feature_map", MAPS, ids=str)
def test_the_inverse_gives_every_activation_back_bit_for_bit(feature_map, dtype):
    x = inside(feature_map, dtype)
    assert len(x) > 150
    back = feature_map.inverse(feature_map.forward(x.double()))
    assert torch.equal(back.to(dtype), x)


@pytest.mark.parametrize("feature_map", MAPS, ids=str)
def test_in_float64_the_inverse_is_good_to_eight_digits(feature_map):
    x = inside(feature_map)
    back = feature_map.inverse(feature_map.forward(x))
    assert ((back - x).abs() <= 1e-8 * x.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("feature_map", [Identity(), Tanh(1100.0), SquaredExponential(1000.0)], ids=str)
def test_massive_activations_come_back_where_the_domain_covers_them(feature_map, dtype):
    x = torch.tensor([-3000.0, -1234.5, -0.01, 0.0, 1e-4, 17.0, 999.0, 3000.0], dtype=dtype)
    low, high = feature_map.domain
    assert low < -3000 < 3000 < high
    assert torch.equal(feature_map.inverse(feature_map.forward(x.double())).to(dtype), x)


def test_elu_covers_massive_activations_above_zero_only():
    low, high = ELU(5.0).domain
    x = torch.tensor([low, 0.9 * low, 3000.0])
    assert (-17 < low < -3, high) == (True, math.inf)
    assert torch.equal(ELU(5.0).inverse(ELU(5.0).forward(x.double())).float(), x)


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


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("kind", BY_HAND, ids=lambda kind: kind.__name__)
def test_maps_are_their_formulas(kind, scale):
    x = np.random.default_rng(0).uniform(-4, 4, 50)
    parameters = () if kind is Identity else (scale,)
    np.testing.assert_allclose(kind(*parameters).forward(torch.tensor(x)), BY_HAND[kind](x, *parameters), rtol=1e-11)


@pytest.mark.parametrize("scale", SCALES)
def test_saturating_maps_end_at_a_known_share_of_their_range_from_their_limits(scale):
    for kind, limit in ((SquaredExponential, 1.0), (Tanh, 1.0), (ELU, scale)):
        low, high = kind(scale).domain
        left = 1 + float(kind(scale).forward(torch.tensor(low, dtype=torch.float64))) / limit
        assert 0.99 < left / math.exp(-SATURATION) < 2.01
        assert (high == -low) is (kind is not ELU)


@pytest.mark.parametrize("value", [0.0, 0, -1.0, float("nan"), float("inf"), -float("inf"), "1", None])
@pytest.mark.parametrize(("kind", "parameter"), [(SquaredExponential, "length_scale"), (Tanh, "scale"), (ELU, "alpha")])
@pytest.mark.usefixtures("without_type_checks")
def test_impossible_parameters_are_refused_by_name(kind, parameter, value):
    with pytest.raises(
        InputError, match=f"{kind.__name__}'s {parameter} must be a finite number above zero, and {value!r}"
    ):
        kind(value)


def test_features_are_bounded_by_those_of_the_domain():
    features = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    tanh_end, elu_end = np.tanh(Tanh(1.0).domain[1]), 2 * np.expm1(ELU(2.0).domain[0])
    np.testing.assert_allclose(bounded(Tanh(30.0), features), np.clip(features, -tanh_end, tanh_end), rtol=1e-14)
    np.testing.assert_allclose(bounded(ELU(2.0), features), np.clip(features, elu_end, None), rtol=1e-14)
    assert torch.equal(bounded(Identity(), features * 1e300), features * 1e300)


@pytest.mark.parametrize("feature_map", MAPS, ids=str)
def test_a_map_is_made_again_from_its_name_and_parameters(feature_map):
    assert KNOWN[type(feature_map).__name__](**parameters_of(feature_map)) == feature_map


def test_only_our_maps_have_parameters_to_write_down():
    assert parameters_of(Tanh(2.0)) == {"scale": 2.0}
    assert parameters_of(Identity()) == parameters_of(ARCSINH) == {}


# --- maps of one's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature_map", [*MAPS, ARCSINH, CUBE_ROOT])
def test_maps_that_are_one_pass_the_check(feature_map):
    check_map(feature_map)
    assert isinstance(feature_map, FeatureMap)


class NoInverse:
    domain = (-1.0, 1.0)

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    "value", ["tanh", 1.0, torch.tanh, object(), NoInverse()], ids=lambda value: type(value).__name__
)
@pytest.mark.usefixtures("without_type_checks")
def test_what_is_no_map_is_refused(value):
    with pytest.raises(InputError, match=r"with a domain, forward\(x\) and inverse\(features\), such as Tanh\(2\.0\)"):
        check_map(value)


@pytest.mark.parametrize(
    ("feature_map", "where"),
    [
        (OwnMap(torch.tanh, torch.tanh, (-2.0, 2.0)), "-2"),
        (OwnMap(lambda x: x, lambda y: 1.001 * y), "-10000"),
        (OwnMap(torch.tanh, torch.atanh), "-10000"),
        (OwnMap(torch.tanh, torch.atanh, (-2.0, 100.0)), r"\d\d?(\.5)?"),
        (OwnMap(torch.abs, torch.abs, (-3.0, 3.0)), "-3"),
        (OwnMap(lambda x: torch.exp(-(x**2) / 2), lambda y: -2 * torch.log(y), (-5.0, 5.0)), "-5"),  # as published
        (OwnMap(lambda x: x, lambda y: torch.where(y > 4.9, 0, y), (-5.0, 5.0)), r"4\.9\d*"),
    ],
    ids=[
        "not its inverse",
        "off by a thousandth",
        "saturated",
        "saturated above",
        "sign lost",
        "published",
        "one place",
    ],
)
def test_a_map_that_is_not_inverted_is_refused(feature_map, where):
    with pytest.raises(InputError, match=f"^OwnMap is not inverted: {where} comes back as .*narrow its domain"):
        check_map(feature_map)


@pytest.mark.parametrize("offset", [1.0, -1e-9])
def test_a_map_that_moves_zero_is_refused(offset):
    shifted = OwnMap(lambda x: torch.asinh(x) + offset, lambda y: torch.sinh(y - offset), (-9.0, 9.0))
    with pytest.raises(InputError, match=f"must send 0 to 0, and OwnMap sends it to {offset:g}"):
        check_map(shifted)


@pytest.mark.parametrize("domain", [(0.0, 5.0), (-5.0, 0.0), (1.0, 2.0), (-2.0, -1.0), (1.0, -1.0), (math.nan, 1.0)])
def test_a_domain_that_does_not_straddle_zero_is_refused(domain):
    with pytest.raises(InputError, match="must reach from below to above zero, and OwnMap's is"):
        check_map(OwnMap(torch.asinh, torch.sinh, domain))


def test_a_class_of_maps_is_no_map():
    with pytest.raises(InputError, match="Tanh"):
        check_map(Tanh)


@pytest.mark.parametrize("sign", [-1.0])
def test_a_map_that_decreases_is_refused(sign):
    with pytest.raises(InputError, match="increas"):
        check_map(OwnMap(lambda x: sign * torch.asinh(x), lambda y: torch.sinh(sign * y)))


def test_a_map_without_values_at_the_ends_of_its_domain_is_refused():
    with pytest.raises(InputError, match="domain"):
        check_map(OwnMap(lambda x: x / (1 + x.abs()), lambda y: y / (1 - y.abs())))


def test_a_map_is_not_checked_outside_its_domain():
    check_map(OwnMap(lambda x: torch.asin(x / 0.1), lambda y: 0.1 * torch.sin(y), (-0.1, 0.1)))
