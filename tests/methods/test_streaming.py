"""Sums over batches, machines and kills against the fit of all activations at once."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from methods.oracles import quiet_fit

from sea_lens import SEA, Activations, Demonstrations, SeaLensWarning, Site, Tanh, collect_activations, register_value
from sea_lens.errors import FileFormatError, InputError
from sea_lens.methods.sea.statistics import collect_statistics
from sea_lens.methods.sea.streaming import SAMPLE, SEAFitter

D = 16


def activations(n, offset=0.0, layers=(0, 2), d=D, seed=0, site="resid_post", token="last"):
    """A decaying spectrum about a common offset; positives and negatives each add directions of their own."""
    generator = torch.Generator().manual_seed(seed)
    roles = {"neutral": {}, "positive": {}, "negative": {}}
    for layer in layers:
        scales = 0.7 ** torch.arange(d, dtype=torch.float64)
        neutral = torch.randn(n, d, generator=generator, dtype=torch.float64) * scales
        roles["neutral"][layer] = (neutral + offset).float()
        for role, shift in (("positive", 1), ("negative", 4)):
            noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
            rows = neutral.roll(shift, dims=1) + 0.3 * neutral + 0.05 * noise + offset
            roles[role][layer] = rows.float()
    return Activations.from_tensors(**roles, site=site, token=token)


def part(whole, rows):
    sides = {role: {site: whole[role][site][rows] for site in whole.sites} for role in whole.roles}
    return Activations.from_tensors(**sides, token=whole.token)


def fitter_of(whole, sizes, **settings):
    fitter = SEAFitter(**settings)
    for rows in torch.arange(whole.n).split(sizes):
        fitter.update(part(whole, rows))
    return fitter


def quiet_from(fitter, method, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return fitter.fit(method, dtype=torch.float64, progress=False, **options)


def assert_same_edits(one, other, tolerance=1e-8):
    assert one.sites == other.sites
    x = torch.randn(40, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for site in one.sites:
        torch.testing.assert_close(one[site](x), other[site](x), atol=tolerance, rtol=tolerance)


METHODS = [
    SEA(0.99),
    SEA((0.9, 0.999), center=True),
    SEA(ranks=(3, 2), merge="sum"),
    SEA(0.8, spectrum="singular_values", projections="positive", center=True),
]


@pytest.mark.parametrize("n", [9, 60])
def test_editors_equal_those_of_the_fit_in_memory(n):
    """With fewer demonstrations than dimensions, and with more."""
    whole = activations(n, offset=2.0)
    for sizes in (n, [1, n - 4, 3]):
        fitter = fitter_of(whole, sizes)
        for method in METHODS:
            found, expected = quiet_from(fitter, method), quiet_fit(method, whole)
            assert_same_edits(found, expected)
            for site, report in expected.card.reports.items():
                assert found.card.reports[site].displacement == pytest.approx(report.displacement, abs=1e-9)
                assert found.card.reports[site].numbers == report.numbers
            assert found.card.settings == expected.card.settings


def test_an_offset_of_ten_thousand_spreads_loses_nothing():
    """Float32 activations, summed in float64: a float32 sum would have lost the centered covariance."""
    whole, method = activations(500, offset=1e4), SEA(ranks=(5, 4), center=True)
    assert_same_edits(quiet_from(fitter_of(whole, 32), method), quiet_fit(method, whole))
    h, g = whole.neutral[0], whole.positive[0]
    naive = torch.linalg.svd(h.T @ g - torch.outer(h.sum(0), g.sum(0)) / whole.n)[0][:, :5].double()
    h, g = (side.double() - side.double().mean(0) for side in (h, g))
    exact = torch.linalg.svd(h.T @ g)[0][:, :5]
    assert (naive @ naive.T - exact @ exact.T).norm() > 0.1


@register_value("arcsinh of the tests")
@dataclass(frozen=True)
class Arcsinh:
    """A feature map of a user's own."""

    scale: float = 1.0
    domain = (-np.inf, np.inf)

    def forward(self, x):
        return torch.arcsinh(x / self.scale)

    def inverse(self, features):
        return self.scale * torch.sinh(features)


@pytest.mark.parametrize("feature_map", [Tanh(2.0), Arcsinh(0.3)])
def test_editors_of_a_feature_space_equal_those_of_the_fit_in_memory(feature_map, tmp_path):
    whole, features = activations(40), {"feature_map": feature_map, "feature_unit": 0.5}
    fitter = fitter_of(whole, 13, **features)
    fitter.save(tmp_path / "fitter.safetensors")
    for merge_space in ("features", "activations"):
        method = SEA(0.9, center=True, merge_space=merge_space, **features)
        for source in (fitter, SEAFitter.load(tmp_path / "fitter.safetensors")):
            assert_same_edits(quiet_from(source, method), quiet_fit(method, whole))
        settings = {"explained_variance": 0.9, "center": True, "merge_space": merge_space}
        assert_same_edits(quiet_from(fitter, None, **settings), quiet_fit(method, whole))


def test_merging_fitters_in_any_order_is_the_fit_of_all():
    whole, method = activations(50, offset=100.0, token=-1), SEA(ranks=(3, 2), center=True)
    for order in ([0, 1, 2], [2, 1, 0]):
        merged = SEAFitter()
        for number in order:
            merged.merge(fitter_of(part(whole, torch.arange(50).split(20)[number]), 6)).merge(SEAFitter())
        assert (merged.n, merged.token, merged.layers) == (50, -1, [0, 2])
        assert_same_edits(quiet_from(merged, method), quiet_fit(method, whole))


def same_sums(one, other):
    return (one.kind, one.n, one.demonstrations) == (other.kind, other.n, other.demonstrations) and all(
        torch.equal(a.comoment, b.comoment)
        and torch.equal(a.neutral_mean, b.neutral_mean)
        and torch.equal(a.other_mean, b.other_mean)
        and torch.equal(one._sample[site], other._sample[site])
        for site in one.sites
        for a, b in zip(one._sides[site], other._sides[site], strict=True)
    )


def test_saving_and_loading_is_exact_and_goes_on(tmp_path):
    whole = activations(40)
    once, path = fitter_of(whole, 10), tmp_path / "fitter.safetensors"
    fitter_of(part(whole, torch.arange(20)), 10).save(path)
    written = path.read_bytes()
    loaded = SEAFitter.load(path)
    for start in (20, 30):
        assert loaded.update(part(whole, torch.arange(start, start + 10))) is loaded
    assert path.read_bytes() == written  # tensors that are added to in place are not the file's own memory
    assert same_sums(loaded, once)


def test_the_card_says_how_many_rows_an_edit_was_measured_on():
    whole, method = activations(2 * SAMPLE, layers=(1,)), SEA(ranks=(3, 2))
    expected = quiet_fit(method, whole).card.reports[Site(1)]
    chosen = torch.arange(2 * SAMPLE) % 2 == 0
    for fitter in (fitter_of(whole, 100), SEAFitter().update(whole, measured=chosen)):
        found = quiet_from(fitter, method).card.reports[Site(1)]
        assert found.measured_on == SAMPLE
        assert found.displacement == pytest.approx(expected.displacement, rel=0.1)
    assert torch.equal(fitter._sample[Site(1)], whole.neutral[1][::2])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"site": "mlp_out"}, "mlp_out"),
        ({"token": "mean"}, "token"),
        ({"layers": (0, 1)}, "sites"),
        ({"d": 8}, "widths"),
    ],
)
def test_activations_of_another_kind_are_refused(change, named):
    fitter = SEAFitter().update(activations(5))
    with pytest.raises(InputError, match=named):
        fitter.update(activations(5, **change))
    with pytest.raises(InputError, match=named):
        fitter.merge(SEAFitter().update(activations(5, **change)))
    assert fitter.n == 5


def test_what_a_fitter_cannot_do_is_refused(tmp_path):
    with pytest.raises(InputError, match="Give feature_unit as a number"):
        SEAFitter(feature_map=Tanh(1.0))
    empty = SEAFitter()
    for attempt in (empty.fit, lambda: empty.save(tmp_path / "empty"), lambda: empty.token):
        with pytest.raises(InputError, match=r"no activations|Layers \[\]"):
            attempt()
    fitter = fitter_of(activations(5), 5)
    for wrong, message in (
        ({"ranks": 5, "center": True}, "1 to 4"),
        ({"layers": [1]}, r"Layers \[1\] were asked for.*\[0, 2\]"),
        ({"feature_map": Tanh(1.0), "feature_unit": 1.0}, "sums are of features"),
    ):
        with pytest.raises(InputError, match=message):
            fitter.fit(progress=False, **wrong)
    with pytest.raises(InputError, match="sums are of features"):
        fitter.merge(SEAFitter(feature_map=Tanh(1.0), feature_unit=1.0))
    same = torch.full((6, D), 0.1)
    fitter = SEAFitter().update(
        Activations.from_tensors(neutral={0: same}, positive={0: same * 3}, negative={0: same * 7})
    )
    with pytest.raises(InputError, match="all rows are the same"):
        fitter.fit(center=True, progress=False)


def test_damaged_and_other_files_are_refused(tmp_path):
    path = tmp_path / "fitter.safetensors"
    with pytest.raises(FileFormatError, match="missing"):
        SEAFitter.load(path)
    activations(5).save(path)
    with pytest.raises(FileFormatError, match="not a fitter's file"):
        SEAFitter.load(path)
    fitter_of(activations(20), 20).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FileFormatError, match="truncated"):
        SEAFitter.load(path)
    unregistered = type("Unknown", (Arcsinh,), {})()
    with pytest.raises(InputError, match="Register its class"):
        fitter_of(activations(20), 20, feature_map=unregistered, feature_unit=2.0).save(path)


# --- from a model ----------------------------------------------------------------------------------------------------

ROWS = Demonstrations.from_lists(
    prompts=[f"{'Say it plainly. ' if index % 2 else ''}Q{index}: what is {index}?" for index in range(24)],
    positives=[f"it is {index}" for index in range(24)],
    negatives=[f"a {'tree' if index % 3 else 'moon'}" for index in range(24)],
    neutrals=[f"number {index % 7}" for index in range(24)],
)


def collect(model, demonstrations=ROWS, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return collect_statistics(model, demonstrations, progress=False, **options)


def test_the_editor_is_that_of_collecting_and_fitting(llama):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        whole = collect_activations(llama, ROWS, batch_size=8, progress=False, token="mean")
    for features in ({}, {"feature_map": Tanh(2.0), "feature_unit": 1.5}):
        method = SEA(ranks=(3, 2), center=True, **features)
        expected = quiet_fit(method, whole)
        found = quiet_from(collect(llama, batch_size=8, token="mean", **features), method)
        x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for layer in range(3):
            torch.testing.assert_close(found[layer](x), expected[layer](x), atol=1e-8, rtol=1e-8)
            assert (found[layer](x) - x).abs().max() > 0.1
        assert (found.card.model, found.card.demonstrations) == (expected.card.model, ROWS.fingerprint)
        assert (found.card.token, found.card.n_demonstrations) == ("mean", 24)


def killed_after(monkeypatch, updates):
    """Kills a collection when it has updated its sums so often; tells how often it did."""
    plain, count = SEAFitter.update, []

    def update(self, *arguments, **options):
        if len(count) == updates:
            raise KeyboardInterrupt
        count.append(1)
        return plain(self, *arguments, **options)

    monkeypatch.setattr(SEAFitter, "update", update)
    return count


@pytest.mark.parametrize(("reached", "left"), [(0, 4), (1, 4), (3, 2)])
def test_a_killed_collection_goes_on_to_the_same_bits(llama, tmp_path, monkeypatch, reached, left):
    """Four batches; saved after two."""
    options = {"batch_size": 6, "save_every": 2}
    whole = collect(llama, **options)
    with monkeypatch.context() as patch:
        killed_after(patch, reached)
        with pytest.raises(KeyboardInterrupt):
            collect(llama, folder=tmp_path, **options)
    with pytest.raises(FileFormatError, match="missing"):
        SEAFitter.load(tmp_path)
    for expected in (left, 0):
        with monkeypatch.context() as patch:
            count = killed_after(patch, None)
            assert same_sums(collect(llama, folder=tmp_path, **options), whole)
        assert len(count) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["statistics.json", "statistics.safetensors"]
    assert same_sums(SEAFitter.load(tmp_path), whole)


def test_neutral_answers_are_asked_for_before_the_model_runs(llama):
    with pytest.raises(InputError, match=r"2 of 2 demonstrations have none\. Call demonstrations.with_neutral_answers"):
        collect(llama, Demonstrations.from_lists(["a", "b"], ["c", "d"], ["e", "f"]))
    whole = activations(5)
    without = Activations.from_tensors(positive={0: whole.positive[0]}, negative={0: whole.negative[0]})
    with pytest.raises(InputError, match="there are no neutral ones"):
        SEAFitter().update(without)


def test_folders_of_other_statistics_and_processes_are_refused(llama, tmp_path, monkeypatch):
    few = {"demonstrations": ROWS[:4], "folder": tmp_path / "done"}
    collect(llama, **few)
    for change, named in (
        ({"token": "mean"}, "token"),
        ({"demonstrations": ROWS[:5]}, "demonstrations"),
        ({"feature_map": Tanh(1.0), "feature_unit": 1.0}, "feature_map"),
    ):
        with pytest.raises(FileFormatError, match=f"differs in {named}"):
            collect(llama, **{**few, **change})
    with monkeypatch.context() as patch:
        killed_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            collect(llama, folder=tmp_path, batch_size=8, save_every=1)
    (tmp_path / "statistics-share-0-of-1.safetensors").rename(tmp_path / "statistics-share-1-of-2.safetensors")
    with pytest.raises(FileFormatError, match="begun by 2 processes, and this is a run of 1"):
        collect(llama, folder=tmp_path, batch_size=8)
