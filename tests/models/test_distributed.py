"""Two processes come to the results of one, and none waits for one that failed."""

import multiprocessing
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import sea_lens
from sea_lens import SeaLensWarning
from sea_lens.models.distributed import every_process, from_each, from_first, in_turn, n_processes, rank, share_of
from tests.models.distributed_work import main, results


@pytest.fixture(scope="module")
def two(llama, tmp_path_factory):
    """The folder of two processes, and what each found. They are forks, so nothing is imported or built again."""
    folder, context = tmp_path_factory.mktemp("two"), multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        running = [context.Process(target=main, args=(folder, number, llama), daemon=True) for number in range(2)]
        for process in running:
            process.start()
    for process in running:
        process.join(500)
        process.kill()
    errors = "\n".join(path.read_text() for path in folder.glob("error-*.txt"))
    assert [process.exitcode for process in running] == [0, 0], errors
    return folder, [torch.load(folder / f"found-{number}.pt", weights_only=True) for number in range(2)]


@pytest.fixture(scope="module")
def one(llama, tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return results(llama, tmp_path_factory.mktemp("one"))


def test_work_is_split_and_put_together_in_the_order_of_ranks(two):
    for number, found in enumerate(found["report"] for found in two[1]):
        assert found["rank"] == [number, 2]
        assert found["share"] == [[0, 2, 4, 6], [1, 3, 5]][number]
        assert found["ragged"] == [[0.0], [10.0, 11.0]]
        assert found["every"] == [True, False]
        assert found["first"] == {"rank": 0}
        assert found["shows"] == [number == 0, False]
        assert found["alone"] == [0, 1, [0], number == 0]
        assert found["rows"] == [0, 1]
    assert (two[0] / "order.txt").read_text() == "01"


@pytest.mark.parametrize("block", ["together", "in_turn"])
def test_an_error_of_one_process_is_one_of_all_and_nobody_waits(two, block):
    for number, found in enumerate(found["report"] for found in two[1]):
        for failing in range(2):
            if number == failing:
                assert found[f"{block} {failing}"] == "ValueError: disk full"
            else:
                assert found[f"{block} {failing}"].startswith(f"RuntimeError: Process {failing} of 2 stopped")


def test_results_are_those_of_one_process(two, one):
    """Activations and scores bit for bit; sums, which are added up in another order, to rounding."""
    for found in (found["results"] for found in two[1]):
        assert found.keys() == one.keys()
        for name, value in found.items():
            torch.testing.assert_close(
                value,
                one[name],
                rtol=0,
                atol=1e-5 if name.endswith("W") else 0,
                msg=lambda text, name=name: name + text,
            )
    for name in (name for name in one if name.endswith("W")):
        assert torch.equal(two[1][0]["results"][name], two[1][1]["results"][name])


def test_what_is_finished_leaves_nothing_else(two):
    found = {path.name for name in ("collection", "sums") for path in (two[0] / name).iterdir()}
    assert found == {"activations.safetensors", "collection.json", "statistics.safetensors", "statistics.json"}
    assert not list(two[0].rglob("*.partial"))


# --- alone -----------------------------------------------------------------------------------------------------------


def test_a_process_that_is_alone_does_all():
    assert (rank(), n_processes(), list(share_of("abc")), from_first("a")) == (0, 1, ["a", "b", "c"], "a")
    rows = torch.randn(3, 2)
    assert torch.equal(next(from_each(rows)), rows)
    assert every_process(True)
    assert not every_process(False)
    with pytest.raises(ValueError, match="disk full"), in_turn():
        raise ValueError("disk full")


def test_processes_that_were_launched_but_never_joined_are_warned_about(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.warns(SeaLensWarning, match=r"2 processes, but torch.distributed is not initialised"):
        assert n_processes() == 1


UNDER_A_LAUNCHER = """
import sys, torch, sea_lens as sl
torch.set_num_threads(1)
launched = len(sys.argv) > 2
if launched:
    from accelerate import Accelerator
    assert Accelerator(cpu=True).num_processes == 2
model, world = sl.load_organism()
demonstrations = world.demonstrations()[:12]
activations = sl.collect_activations(model, demonstrations, batch_size=4, progress=False)
editor, questions = sl.MeanDifference().fit(activations), world.questions()[:12]
result = sl.evaluate_truthfulqa(model, questions, editor, batch_size=4, progress=False)
number = torch.distributed.get_rank() if launched else 0
torch.save([activations.positive[3], torch.tensor(result.table["edited"].tolist())], f"{sys.argv[1]}/{launched}-{number}.pt")
"""


def test_a_users_script_under_torchrun_finds_what_it_finds_alone(tmp_path):
    """The real launcher and accelerate's group, started once: forks do the rest of this file, in a group of torch's."""
    script = tmp_path / "script.py"
    script.write_text(UNDER_A_LAUNCHER)
    root = str(Path(sea_lens.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for before, after in (([], []), (launcher, ["launched"])):
        command = [sys.executable, *before, str(script), str(tmp_path), *after]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert ran.returncode == 0, ran.stderr[-3000:]
    alone, *others = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("False-0", "True-0", "True-1")
    )
    for found in others:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, alone, strict=True))
