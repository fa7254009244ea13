import pytest
import torch

import sea_lens as sl
from sea_lens.errors import InputError
from sea_lens.methods.sea.operators import OfRows
from sea_lens.methods.sea.rows import Rows
from sea_lens.methods.sea.spectral import CrossCovariance

METHODS = [
    sl.SEA(0.9),
    sl.SEA(0.9, center=True),
    sl.SEA(ranks=3, projections="positive"),
    sl.SEA(0.9, feature_map=sl.Tanh(3.0), merge_space="activations"),
    sl.MeanDifference(),
    sl.LEACE(),
]


def data(n: int = 40, d: int = 24) -> sl.Activations:
    generator = torch.Generator("cpu").manual_seed(0)
    shared = torch.randn(n, d, generator=generator, device="cpu")
    sides = {
        role: {3: shared + torch.randn(n, d, generator=generator, device="cpu") + number}
        for number, role in enumerate(("neutral", "positive", "negative"))
    }
    return sl.Activations.from_tensors(**sides)


def tensors(editor: sl.Editor) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(editor[3]).items() if isinstance(value, torch.Tensor)}


@pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_cpu_by_name_is_where_activations_lie_to_the_bit(method):
    plain = method.fit(data())
    for device in ("cpu", torch.device("cpu")):
        assert plain.fingerprint == method.fit(data(), device=device).fingerprint


@pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_nothing_is_made_on_another_device_than_the_activations(method):
    """A tensor made without a device would be one without numbers here, and could not be used with the others."""
    activations, plain = data(), method.fit(data())
    with torch.device("meta"):
        editor = method.fit(activations)
    assert editor.fingerprint == plain.fingerprint
    assert all(tensor.device.type == "cpu" for tensor in tensors(editor).values())


def test_neither_is_anything_of_large_decompositions():
    generator = torch.Generator("cpu").manual_seed(0)
    h, f = (torch.randn(520, 540, generator=generator) * torch.arange(1, 541) ** -0.5 for _ in range(2))
    g = h + f
    plain = [CrossCovariance.of(h, g, True).explaining(share).basis for share in (0.5, 0.99)]
    rough = OfRows(Rows(h, True), Rows(g), exact=False).energy
    with torch.device("meta"):
        covariance = CrossCovariance.of(h, g, True)
        found = [covariance.explaining(share).basis for share in (0.5, 0.99)]
        assert rough == OfRows(Rows(h, True), Rows(g), exact=False).energy
    assert all(torch.equal(one, other) for one, other in zip(plain, found, strict=True))


def test_sides_that_share_rows_share_them_elsewhere():
    h, g, f = torch.randn(3, 10, 16).unbind()
    positive, negative = CrossCovariance.all_on(CrossCovariance.of_sides(h, [g, f], True), torch.device("cpu"))
    assert positive.rows[0] is negative.rows[0]
    assert positive.rows[1] is not negative.rows[1]


def test_sums_can_be_fitted_elsewhere_too():
    fitter = sl.SEAFitter().update(data())
    assert fitter.fit(sl.SEA(0.9)).fingerprint == fitter.fit(sl.SEA(0.9), device="cpu").fingerprint


@pytest.mark.parametrize("method", [sl.SEA(0.9), sl.MeanDifference(), sl.LEACE()], ids=str)
@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "mps"])
def test_a_device_that_is_not_there_or_has_no_float64_is_refused(method, device):
    with pytest.raises(InputError, match=r"no device .* here\. Leave device out|float64, which .* Leave device out"):
        method.fit(data(), device=device)
