import warnings

import pytest
import torch
from test_collect import Passes, make_editor

from sea_lens import Demonstrations, SeaLensWarning, Tanh, collect_activations, fit_sea
from sea_lens.errors import FileFormatError, InputError
from sea_lens.methods.sea.statistics import collect_statistics
from sea_lens.methods.sea.streaming import SEAFitter

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


def same(one, other):
    return (one.kind, one.n, one.demonstrations) == (other.kind, other.n, other.demonstrations) and all(
        torch.equal(a.comoment, b.comoment)
        and torch.equal(a.neutral_mean, b.neutral_mean)
        and torch.equal(a.other_mean, b.other_mean)
        and torch.equal(one._sample.rows[layer], other._sample.rows[layer])
        for layer in one.layers
        for a, b in zip(one._sides[layer], other._sides[layer], strict=True)
    )


@pytest.mark.parametrize("features", [{}, {"feature_map": Tanh(2.0), "feature_unit": 1.5}])
def test_the_editor_is_that_of_collecting_and_fitting(llama, features):
    settings = {"ranks": (3, 2), "center": True, "progress": False, "dtype": torch.float64}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        activations = collect_activations(llama, ROWS, batch_size=8, progress=False, token="mean")
        expected = fit_sea(activations, **settings, **features)
        found = collect(llama, batch_size=8, token="mean", **features).fit(**settings)
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for layer in range(3):
        torch.testing.assert_close(found[layer](x), expected[layer](x), atol=1e-8, rtol=1e-8)
        assert (found[layer](x) - x).abs().max() > 0.1
    assert found.card.hyper_parameters == expected.card.hyper_parameters
    assert (found.card.model, found.card.demonstrations) == (expected.card.model, ROWS.fingerprint)
    assert (found.card.token, found.card.n_demonstrations) == ("mean", 24)


@pytest.mark.parametrize(("reached", "left"), [(0, 15), (4, 15), (11, 7)])
def test_a_killed_collection_goes_on_to_the_same_bits(llama, tmp_path, reached, left):
    """Four batches of 3 passes each, and one more for the prompts of the first three; saved after two batches."""
    options = {"batch_size": 6, "save_every": 2}
    with Passes(llama) as passes:
        whole = collect(llama, **options)
    with pytest.raises(KeyboardInterrupt), Passes(llama, stop_after=reached):
        collect(llama, folder=tmp_path, **options)
    with pytest.raises(FileFormatError, match="missing"):
        SEAFitter.load(tmp_path)
    with Passes(llama) as passes_left:
        resumed = collect(llama, folder=tmp_path, **options)
    assert same(resumed, whole)
    assert (passes.n, passes_left.n) == (15, left)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["statistics.json", "statistics.safetensors"]
    with Passes(llama) as none:
        assert same(collect(llama, folder=tmp_path, **options), whole)
    assert none.n == 0
    assert same(SEAFitter.load(tmp_path), whole)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"layers": [0]}, "layers"),
        ({"token": "mean"}, "token"),
        ({"batch_size": 3}, "batch_size"),
        ({"demonstrations": ROWS[:5]}, "demonstrations"),
        ({"feature_map": Tanh(1.0), "feature_unit": 1.0}, "features"),
        ({"editor": make_editor()}, "editor"),
        ({"share_prefix": False}, "share_prefix"),
    ],
)
def test_a_folder_of_other_statistics_is_refused(llama, tmp_path, changes, difference):
    collect(llama, ROWS[:4], folder=tmp_path)
    with pytest.raises(FileFormatError, match=f"statistics that differs in {difference}"):
        collect(llama, **{"demonstrations": ROWS[:4], **changes}, folder=tmp_path)


def test_work_begun_by_another_number_of_processes_is_refused(llama, tmp_path):
    with pytest.raises(KeyboardInterrupt), Passes(llama, stop_after=8):
        collect(llama, folder=tmp_path, batch_size=8, save_every=1)
    (tmp_path / "statistics-share-0-of-1.safetensors").rename(tmp_path / "statistics-share-1-of-2.safetensors")
    with pytest.raises(FileFormatError, match="begun by 2 processes, and this is a run of 1"):
        collect(llama, folder=tmp_path, batch_size=8)


def test_errors_and_warnings_are_those_of_collect_activations(llama):
    with pytest.raises(InputError, match="have no neutral completion"):
        collect(llama, Demonstrations.from_lists(["a", "b"], ["c", "d"], ["e", "f"]))
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        collect(llama, batch_size=0)
    with pytest.raises(InputError, match="Give feature_unit as a number"):
        collect(llama, feature_map=Tanh(1.0))
    confounded = Demonstrations.from_lists(["Who?", "What?"], ["me", "it"], ["no one.", "a thing."], ["you", "he"])
    with pytest.warns(SeaLensWarning, match="end in a period"):
        collect_statistics(llama, confounded, progress=False)
