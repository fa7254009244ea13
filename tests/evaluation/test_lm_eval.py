"""lm-eval's numbers of an edited model are those of its own HFLM on the wrapped model under the editor's hooks."""

import copy
import json
import math
import random
import sys

import numpy as np
import pytest
import torch
from conftest import build_bridge

from sea_lens import Activations, fit_sea
from sea_lens.errors import HookNeverFiredError, InputError, ModelMismatchError
from sea_lens.evaluation.lm_eval import evaluate_lm_eval, left_as_it_was
from sea_lens.evaluation.lm_eval_results import BOOTSTRAP, STDERR_ONLY, Sample, Score, TaskResults, score_table
from sea_lens.evaluation.metrics import SHARE, Scale

lm_eval = pytest.importorskip("lm_eval", reason='lm-eval is not installed: pip install "sea-lens[eval]"')
HFLM = pytest.importorskip("lm_eval.models.huggingface").HFLM
TaskManager = pytest.importorskip("lm_eval.tasks").TaskManager

N = 9
CHOICE = """
task: local_{name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/{name}.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}} A:"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 3
"""
TOLD = """
task: local_told
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/colors.jsonl
test_split: test
output_type: generate_until
doc_to_text: "Say {{{{question}}}}:"
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 6
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
  - metric: chrf
    aggregation: chrf
    higher_is_better: true
metadata:
  version: 1
"""
GROUP = """
group: local_group
task: [local_colors, local_numbers]
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
metadata:
  version: 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A multiple-choice and a generation task, and a group, as files."""
    folder = tmp_path_factory.mktemp("tasks")
    generator = random.Random(0)
    for name, words in (("colors", "red blue green grey"), ("numbers", "one two three four")):
        rows = []
        for number in range(N):
            choices = generator.sample(words.split(), 3)
            rows.append({"question": f"{name} {number}", "choices": choices, "label": generator.randrange(3)})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(CHOICE.format(name=name, folder=folder))
    (folder / "told.yaml").write_text(TOLD.format(folder=folder))
    (folder / "group.yaml").write_text(GROUP)
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Without lm-eval's look around the machine and its worker processes, which take seconds; no number depends on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        patch.setenv("DISABLE_MULTIPROC", "1")
        yield


def random_editor(bridge, seed=0):
    generator = torch.Generator().manual_seed(seed)
    roles = [{layer: torch.randn(20, 32, generator=generator) for layer in range(3)} for _ in range(3)]
    return fit_sea(
        Activations.from_tensors(neutral=roles[0], positive=roles[1], negative=roles[2], model=bridge), ranks=4
    )


def directly(bridge, tasks, folder, hooks=(), batch_size=1):
    """lm-eval on the wrapped model, as its manual says."""
    harness = HFLM(
        pretrained=bridge.original_model,
        tokenizer=copy.deepcopy(bridge.tokenizer),
        backend="causal",
        batch_size=batch_size,
    )
    with bridge.hooks(fwd_hooks=list(hooks)):
        return lm_eval.simple_evaluate(
            model=harness,
            tasks=tasks,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        )


@pytest.fixture(scope="module")
def measured(llama, folder):
    """The group and the generation task, on one model, unedited and edited."""
    return evaluate_lm_eval(
        llama, random_editor(llama), ["local_group", "local_told"], task_folder=folder, progress=False
    )


def test_numbers_are_those_of_lm_eval_itself_on_the_model_with_and_without_hooks(llama, folder, measured):
    table = measured.table
    for column, hooks in (("unedited", ()), ("edited", random_editor(llama).fwd_hooks())):
        theirs = directly(llama, ["local_group", "local_told"], folder, hooks)
        for task, metric in (
            ("local_group", "acc"),
            ("local_colors", "acc"),
            ("local_colors", "acc_norm"),
            ("local_numbers", "acc"),
            ("local_told", "exact_match"),
            ("local_told", "chrf"),
        ):
            found = {**theirs["results"], **theirs.get("groups", {})}[task]
            assert table.loc[f"{task} {metric}", column] == pytest.approx(found[f"{metric},none"], rel=1e-9)
        samples = measured.per_row
        for task in ("local_colors", "local_told"):
            said = [sample["filtered_resps"] for sample in theirs["samples"][task]]
            ours = samples[samples["task"] == task][f"response {column}"].tolist()
            if task == "local_told":
                assert ours == [text for (text,) in said]
            else:
                likely = [[value for value, _ in json.loads(text)] for text in ours]
                assert np.array(likely) == pytest.approx(np.array([[v for v, _ in row] for row in said]), abs=1e-4)
    told = samples[samples["task"] == "local_told"]
    assert (told["response unedited"] != told["response edited"]).any()
    assert table.loc["local_told chrf", "unedited"] != table.loc["local_told chrf", "edited"]


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "gpt-neox"])
def test_other_architectures_are_edited_too(architecture, folder):
    model = build_bridge(architecture)
    editor = random_editor(model)
    found = evaluate_lm_eval(model, editor, ["local_colors"], task_folder=folder, progress=False).per_row
    for column, hooks in (("unedited", ()), ("edited", editor.fwd_hooks())):
        theirs = directly(model, ["local_colors"], folder, hooks)["samples"]["local_colors"]
        ours = [[value for value, _ in json.loads(text)] for text in found[f"response {column}"]]
        expected = [[value for value, _ in sample["filtered_resps"]] for sample in theirs]
        assert np.array(ours) == pytest.approx(np.array(expected), abs=1e-4)
    assert (found["response unedited"] != found["response edited"]).all()


def test_means_over_samples_have_paired_intervals_and_other_metrics_lm_evals_errors(measured):
    table, rows = measured.table, measured.per_row
    assert table.loc["local_told chrf", "interval"] == STDERR_ONLY
    assert table.loc["local_told chrf", ["low", "high", "p_value"]].isna().all()
    assert table.loc["local_told chrf", "edited_stderr"] > 0
    assert (table.drop("local_told chrf")["interval"] == BOOTSTRAP).all()
    assert table["n"].to_dict() == {name: 2 * N if name.startswith("local_group") else N for name in table.index}
    accuracy = table.loc["local_colors acc"]
    chosen = rows[rows["task"] == "local_colors"]
    plain, edited = chosen["acc unedited"].to_numpy(), chosen["acc edited"].to_numpy()
    assert accuracy["change"] == pytest.approx(edited.mean() - plain.mean())
    drawn = np.random.default_rng(1).integers(N, size=(20000, N))
    low, high = np.quantile((edited - plain)[drawn].mean(1), [0.025, 0.975])
    assert [accuracy["low"], accuracy["high"]] == pytest.approx([low, high], abs=1 / N + 1e-9)
    assert (measured.scale("local_colors acc"), measured.scale("local_told chrf")) == (SHARE, Scale(best=math.inf))
    assert measured.scale("local_group acc") == SHARE
    pooled = rows[rows["task"].isin(["local_colors", "local_numbers"])]
    assert table.loc["local_group acc", "edited"] == pytest.approx(pooled["acc edited"].mean())
    assert measured.headline == "local_group acc"
    assert measured.score == table.loc["local_group acc", "edited"]


def test_the_result_says_what_made_it_and_is_saved(measured, tmp_path):
    made = measured.provenance
    assert made["versions"]["lm-eval"] == lm_eval.__version__
    assert made["tasks"]["local_colors"]["version"] == 3
    assert made["tasks"]["local_colors"]["n_shot"] == 0
    assert made["tasks"]["local_colors"]["samples"] == {"original": N, "effective": N}
    assert made["tasks"]["local_told"]["config"]["generation_kwargs"]["max_gen_toks"] == 6
    assert made["editor"]["method"] == "sea"
    names = {path.name for path in measured.save(tmp_path)}
    assert names == {"evaluation.json", "metrics.csv", "rows.csv"}
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["metrics"]["local_group acc"]["edited"] == pytest.approx(measured.score)
    assert "local group acc" in measured.to_markdown()


def test_the_model_is_left_as_it_was(folder):
    model = build_bridge("gpt2")
    model.enable_compatibility_mode()  # tied embeddings become two that differ
    hf_model = model.original_model
    hf_model.train()
    next(iter(hf_model.modules())).eval()  # a mixture, to be kept
    modes = [module.training for module in hf_model.modules()]
    weights = {name: tensor.clone() for name, tensor in hf_model.state_dict().items()}
    generation, padding = hf_model.generation_config.to_dict(), model.tokenizer.padding_side
    ids = torch.tensor([[0, 5, 6, 7]])
    with torch.no_grad():
        before = model(ids)
    torch.manual_seed(5), np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5), np.random.seed(5)
    editor = random_editor(model)
    evaluate_lm_eval(model, editor, ["local_colors"], limit=2, task_folder=folder, progress=False)
    assert (torch.rand(1), np.random.rand()) == expected
    drawn = random.getstate()  # the tests' type checks draw from it too, so it is looked at closer by
    with left_as_it_was(hf_model):
        random.seed(1)
    assert random.getstate() == drawn
    assert [module.training for module in hf_model.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in hf_model.state_dict().items())
    assert hf_model.generation_config.to_dict() == generation
    assert model.tokenizer.padding_side == padding
    assert "tie_weights" not in vars(hf_model)
    with torch.no_grad():
        assert torch.equal(model(ids), before)


def results(scores, values, doc_hash="h"):
    samples = [Sample("t", n, doc_hash, "none", 0, ["said"], {"acc": float(value)}) for n, value in enumerate(values)]
    found = tuple(Score("t", name, "none", value, math.nan) for name, value in scores.items())
    return {"t": TaskResults(found, tuple(samples), {"t": ["t"]}, {})}


def test_scores_that_no_sample_defines_are_left_out():
    runs = [results({"acc": 0.5, "bias": math.nan}, [0, 1]), results({"acc": 1.0, "bias": math.nan}, [1, 1])]
    table = score_table(runs, 0, 0.95)
    assert table.index.tolist() == ["t acc"]
    assert table.loc["t acc", ["n", "unedited", "edited", "change"]].tolist() == [2, 0.5, 1.0, 0.5]


def test_runs_on_different_samples_are_not_compared():
    with pytest.raises(InputError, match="did not see the same samples of t"):
        score_table([results({"acc": 1.0}, [1]), results({"acc": 1.0}, [1], "other")], 0, 0.95)


def test_half_precision_models_stay_half(folder):
    dtype = torch.bfloat16
    model = build_bridge("llama", dtype)
    found = evaluate_lm_eval(model, random_editor(model), ["local_told"], task_folder=folder, progress=False)
    assert {parameter.dtype for parameter in model.original_model.parameters()} == {dtype}
    assert found.table["edited"].notna().all()


def test_finished_tasks_are_kept_and_the_unedited_model_is_not_run_again(
    llama, folder, tmp_path, monkeypatch, measured
):
    calls, run = [], lm_eval.simple_evaluate

    def counted(**options):
        if len(calls) == 2:
            calls.append("killed")
            raise KeyboardInterrupt
        calls.append(options["tasks"][0])
        return run(**options)

    monkeypatch.setattr(lm_eval, "simple_evaluate", counted)
    tasks = ["local_group", "local_told"]
    options = {"task_folder": folder, "folder": tmp_path, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        evaluate_lm_eval(llama, random_editor(llama), tasks, **options)
    assert calls == [*tasks, "killed"]
    resumed = evaluate_lm_eval(llama, random_editor(llama), tasks, **options)
    assert calls[3:] == tasks
    assert resumed.table.equals(measured.table)
    assert resumed.per_row.equals(measured.per_row)
    evaluate_lm_eval(llama, random_editor(llama, seed=1), ["local_told"], **options)
    assert calls[5:] == ["local_told"]
    for path in tmp_path.glob("local_told-edited-*.json"):
        path.write_text("{")  # damaged, and so done again
    again = evaluate_lm_eval(llama, random_editor(llama), tasks, **options)
    assert calls[6:] == ["local_told"]
    assert again.table.equals(measured.table)


def test_without_an_editor_there_is_one_column_of_numbers(llama, folder, measured):
    found = evaluate_lm_eval(llama, None, ["local_colors"], limit=4, task_folder=folder, progress=False)
    assert found.table.columns.tolist() == ["n", "value", "low", "high", "stderr", "interval"]
    assert found.table["n"].tolist() == [4, 4]
    rows = measured.per_row[measured.per_row["task"] == "local_colors"]
    assert found.per_row["response"].tolist() == rows["response unedited"].tolist()[:4]
    assert found.provenance["options"]["limit"] == 4


def test_options_of_both_lm_eval_and_its_model_are_passed_on(llama, folder):
    options = {"task_folder": folder, "progress": False}
    plain = evaluate_lm_eval(llama, None, ["local_colors"], **options)
    bare = evaluate_lm_eval(llama, None, ["local_colors"], model_options={"add_bos_token": False}, **options)
    assert plain.per_row["response"].tolist() != bare.per_row["response"].tolist()
    shots = evaluate_lm_eval(
        llama, None, ["local_colors"], num_fewshot=1, limit=2, options={"fewshot_random_seed": 3}, **options
    )
    assert shots.provenance["tasks"]["local_colors"]["n_shot"] == 1
    assert shots.per_row["response"].tolist() != plain.per_row["response"].tolist()[:2]


def test_that_lm_eval_is_missing_is_said_with_the_remedy(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r'pip install "sea-lens\[eval\]"'):
        evaluate_lm_eval(llama, None, ["hellaswag"])


@pytest.mark.usefixtures("without_type_checks")
def test_what_cannot_be_run_is_refused(llama, folder, tmp_path):
    for tasks in ([], "local_told", ["local_told", "local_told"]):
        with pytest.raises(InputError, match="list of different lm-eval tasks"):
            evaluate_lm_eval(llama, None, tasks)
    with pytest.raises(InputError, match="batch_size"):
        evaluate_lm_eval(llama, None, ["local_told"], batch_size=0)
    with pytest.raises(InputError, match="There is no folder"):
        evaluate_lm_eval(llama, None, ["local_told"], task_folder=tmp_path / "none")
    with pytest.raises(ModelMismatchError, match="d_model"):
        evaluate_lm_eval(build_bridge("llama", hidden_size=16), random_editor(llama), ["local_told"])
    with pytest.raises(HookNeverFiredError):
        evaluate_lm_eval(
            llama, random_editor(llama).at_positions(500), ["local_colors"], task_folder=folder, progress=False
        )
    bare = type("Bare", (), {"cfg": llama.cfg})()
    with pytest.raises(ModelMismatchError, match="wraps none"):
        evaluate_lm_eval(bare, None, ["local_told"])
