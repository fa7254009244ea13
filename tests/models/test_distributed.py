"""Two processes come to the results of one, and none waits for one that failed."""

import multiprocessing
import warnings

import pytest
import torch
from torch.distributed import run
from torch.distributed.launcher.api import elastic_launch

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


def what_a_user_does(model, world):
    """Activations at one layer, and scores of an editor that is fitted on them."""
    demonstrations, questions = world.demonstrations()[:12], world.questions()[:12]
    activations = sea_lens.collect_activations(model, demonstrations, batch_size=4, progress=False)
    editor = sea_lens.MeanDifference().fit(activations)
    result = sea_lens.evaluate_truthfulqa(model, questions, editor, batch_size=4, progress=False)
    return activations.positive[3].tolist(), result.table["edited"].tolist()


def under_a_launcher():
    """What a user's script does with accelerate, on one of two processes."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # what other tests left in the process that this is a fork of
    assert Accelerator(cpu=True).num_processes == n_processes() == 2
    found = what_a_user_does(*sea_lens.load_organism("cpu"))
    torch.distributed.destroy_process_group()
    return found


def test_what_a_user_does_under_torchrun_is_what_is_found_alone(organism):
    """The launcher's own command line, agent and environment, and the group of accelerate; workers are forks."""
    alone = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # as `--standalone` is read
    config, _, _ = run.config_from_args(run.parse_args([*alone, "--nproc-per-node", "2", "script.py"]))
    config.start_method = "fork"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = elastic_launch(config, under_a_launcher)()
    assert found.keys() == {0, 1}
    assert found[0] == found[1] == what_a_user_does(*organism)
