"""Two processes under torchrun come to the results of one."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from test_answer_scores import questions, random_editor
from test_streaming import SHARING, collect

from sea_lens import Activations, SeaLensWarning
from sea_lens.methods.sea.statistics import collect_statistics
from sea_lens.methods.sea.streaming import SEAFitter
from sea_lens.models.activations import ROLES
from sea_lens.models.distributed import every_process, from_each, in_turn, n_processes, rank, share_of
from sea_lens.models.log_probs import score_answers
from sea_lens.models.streaming import ActivationStream


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder with what two processes found."""
    folder, here = tmp_path_factory.mktemp("two"), Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(here / "work_of_one_process.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def assert_same_sums(one, other, tolerance=0.0):
    assert (one.kind, one.n, one.demonstrations) == (other.kind, other.n, other.demonstrations)
    for layer in one.layers:
        for ours, theirs in zip(one._sides[layer], other._sides[layer], strict=True):
            scale = tolerance * float(theirs.comoment.abs().max())
            torch.testing.assert_close(ours.comoment, theirs.comoment, atol=scale, rtol=0)
            torch.testing.assert_close(ours.neutral_mean, theirs.neutral_mean, atol=scale, rtol=0)
        assert torch.equal(one._sample.rows[layer], other._sample.rows[layer])


def test_tensors_come_in_the_order_of_ranks(two):
    for number in range(2):
        found = json.loads((two / f"found-{number}.json").read_text())
        assert found["rank"] == [number, 2]
        assert found["share"] == [[0, 2, 4, 6], [1, 3, 5]][number]
        assert found["ragged"] == [[0.0], [10.0, 11.0]]
        assert found["every"] == [True, False]
    assert (two / "order.txt").read_text() == "01"


@pytest.mark.parametrize("name", ["plain", "kept"])
def test_activations_are_those_of_one_process_bit_for_bit(two, llama, name):
    expected = collect(llama, batch_size=1)
    for number in range(2):
        found = Activations.load(two / f"activations-{name}-{number}.safetensors")
        assert found.demonstrations == expected.demonstrations
        for role in ROLES:
            assert all(torch.equal(found[role][layer], expected[role][layer]) for layer in expected.layers)
    files = {path.name for path in (two / "collection").iterdir()}
    assert files == {"activations.safetensors", "collection.json"}


@pytest.mark.parametrize(("name", "batch_size"), [("plain", 1), ("kept", 1), ("few", 8)])
def test_sums_are_those_of_the_shares_merged_in_the_order_of_ranks(two, llama, name, batch_size):
    """To the bit; of one process that sees all batches in turn, to 1e-12."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        stream = ActivationStream(llama, SHARING, batch_size=batch_size)
        in_turn_ = collect_statistics(llama, SHARING, batch_size=batch_size, progress=False)
    merged = SEAFitter()
    for number in range(2):
        share = SEAFitter()
        for batch in range(number, len(stream), 2):
            share.update(stream[batch])
        merged.merge(share)
    merged.demonstrations = SHARING.fingerprint
    for number in range(2):
        found = SEAFitter.load(two / f"statistics-{name}-{number}.safetensors")
        assert_same_sums(found, merged)
        assert_same_sums(found, in_turn_, tolerance=1e-12)
    assert {path.name for path in (two / "statistics").iterdir()} == {"statistics.json", "statistics.safetensors"}


# --- alone -----------------------------------------------------------------------------------------------------------


def test_a_process_that_is_alone_does_all():
    assert (rank(), n_processes(), list(share_of("abc"))) == (0, 1, ["a", "b", "c"])
    rows = torch.randn(3, 2)
    assert torch.equal(next(from_each(rows)), rows)
    assert every_process(True)
    assert not every_process(False)
    with in_turn():
        pass


def test_processes_that_were_launched_but_never_joined_are_warned_about(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.warns(SeaLensWarning, match=r"2 processes, but torch.distributed is not initialised"):
        assert n_processes() == 1


@pytest.mark.parametrize("name", ["plain", "kept"])
def test_scores_are_those_of_one_process_bit_for_bit(two, llama, name):
    expected = score_answers(llama, questions(), random_editor(llama), batch_size=2, progress=False).log_probabilities
    for number in range(2):
        found = torch.load(two / f"scores-{name}-{number}.pt", weights_only=True)
        assert torch.equal(found.nan_to_num(9.0), expected.nan_to_num(9.0))
