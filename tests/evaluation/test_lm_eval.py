"""lm-eval's numbers of an edited model are those of its own HFLM on the wrapped model under the editor's hooks."""

import copy
import json
import math
import random
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build_bridge, with_few_tasks

from sea_lens.errors import HookNeverFiredError, InputError, ModelMismatchError
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.lm_eval import _task_manager, evaluate_lm_eval
from sea_lens.evaluation.lm_eval_backends import left_as_it_was
from sea_lens.evaluation.lm_eval_results import BOOTSTRAP, OF_FEW, STDERR_ONLY, score_table
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
doc_to_target: "{{{{choices[label]}}}} abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
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
STORIES = """
task: local_stories
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/colors.jsonl
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}} {{{{choices[0]}}}} {{{{choices[1]}}}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
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
    (folder / "stories.yaml").write_text(STORIES.format(folder=folder))
    (folder / "group.yaml").write_text(GROUP)
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Without lm-eval's look around the machine and its worker processes, which take seconds; no number depends on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        patch.setenv("DISABLE_MULTIPROC", "1")
        yield


def directly(bridge, tasks, folder, hooks=()):
    """lm-eval on the wrapped model, as its manual says."""
    harness = HFLM(pretrained=bridge.original_model, tokenizer=copy.deepcopy(bridge.tokenizer), backend="causal")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    with bridge.hooks(fwd_hooks=list(hooks)):
        return lm_eval.simple_evaluate(model=harness, tasks=tasks, task_manager=manager)


TASKS = ["local_group", "local_told"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the runs of `measured` are kept."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def measured(llama, folder, kept, editor_of):
    """The group and the generation task, on one model, unedited and edited."""
    return evaluate_lm_eval(
        llama, TASKS, editor_of(llama), task_folder=folder, folder=kept, damage=False, progress=False
    )


def test_numbers_are_those_of_lm_eval_itself_on_the_model_with_and_without_hooks(llama, folder, measured, editor_of):
    table, samples = measured.table, measured.per_row
    assert set(table.index) >= {"local_group acc", "local_colors acc_norm", "local_numbers acc", "local_told chrf"}
    for column, hooks in (("unedited", ()), ("edited", editor_of(llama).fwd_hooks())):
        theirs = directly(llama, TASKS, folder, hooks)
        found = {**theirs["results"], **theirs["groups"]}
        for name, value in table[column].items():
            task, metric = name.split(" ")
            assert value == pytest.approx(found[task][f"{metric},none"], rel=1e-9)
        for task in ("local_colors", "local_told"):
            said = [sample["filtered_resps"] for sample in theirs["samples"][task]]
            ours = samples[samples["task"] == task][f"response {column}"].tolist()
            if task == "local_told":
                assert ours == [text for (text,) in said]
            else:
                likely = [[value for value, _ in json.loads(text)] for text in ours]
                assert np.array(likely) == pytest.approx(np.array([[v for v, _ in row] for row in said]), abs=1e-4)
    assert table.loc["local_told chrf", "unedited"] != table.loc["local_told chrf", "edited"]


@pytest.mark.parametrize("kind", ["published", "from a position on"])
def test_edits_that_look_at_the_pass_are_those_of_texts_alone(llama, folder, editor_of, published_of, kind):
    # Generated answers are padded on the left: positions do not count padding, and what mixes tokens runs rows alone.
    editor = published_of(llama) if kind == "published" else editor_of(llama).at_positions(12)
    found = evaluate_lm_eval(
        llama, ["local_told"], editor, task_folder=folder, limit=4, damage=False, progress=False
    ).per_row
    with editor.attached(llama):
        theirs = directly(llama, ["local_told"], folder)["samples"]["local_told"]
    assert found["response edited"].tolist() == [sample["filtered_resps"][0] for sample in theirs[:4]]


def test_means_over_samples_have_paired_intervals_and_other_metrics_lm_evals_errors(measured):
    table, rows = measured.table, measured.per_row
    assert table.loc["local_told chrf", "interval"] == STDERR_ONLY
    assert table.loc["local_told chrf", ["low", "high", "p_value"]].isna().all()
    assert table.loc["local_told chrf", "edited_stderr"] > 0
    assert (table.drop("local_told chrf")["interval"] == OF_FEW).all()
    assert table["n"].to_dict() == {name: 2 * N if name.startswith("local_group") else N for name in table.index}
    accuracy = table.loc["local_colors acc"]
    chosen = rows[rows["task"] == "local_colors"]
    plain, edited = chosen["acc unedited"].to_numpy(), chosen["acc edited"].to_numpy()
    assert accuracy["change"] == pytest.approx(edited.mean() - plain.mean())
    seen = np.append(edited - plain, [1, -1])  # Bonett and Price (2012)
    reach = 1.959964 * seen.std() / np.sqrt(N + 2)
    assert [accuracy["low"], accuracy["high"]] == pytest.approx([seen.mean() - reach, seen.mean() + reach], abs=1e-6)
    assert (measured.scale("local_colors acc"), measured.scale("local_told chrf")) == (SHARE, Scale(best=math.inf))
    assert measured.scale("local_group acc") == SHARE
    pooled = rows[rows["task"].isin(["local_colors", "local_numbers"])]
    assert table.loc["local_group acc", "edited"] == pytest.approx(pooled["acc edited"].mean())
    assert measured.headline == "local_group acc"
    assert measured.score == table.loc["local_group acc", "edited"]


def test_perplexities_have_paired_intervals_over_texts(llama, folder, editor_of):
    found = evaluate_lm_eval(
        llama, ["local_stories"], editor_of(llama), task_folder=folder, damage=False, progress=False, seed=3
    )
    table, rows = found.table, found.per_row
    rolled = [directly(llama, ["local_stories"], folder, hooks) for hooks in ((), editor_of(llama).fwd_hooks())]
    sums, words, sizes = [], [], []
    for each in rolled:
        samples = each["samples"]["local_stories"]
        sums.append([sample["word_perplexity"][0] for sample in samples])
        words.append([sample["word_perplexity"][1] for sample in samples])
        sizes.append([sample["bits_per_byte"][1] for sample in samples])
    assert words[0] == words[1]
    per_word = {"local_stories word_perplexity": (words[0], np.exp), "local_stories bits_per_byte": (sizes[0], None)}
    drawn = np.random.default_rng(0).integers(N, size=(20_000, N))
    for name, (weights, grown) in per_word.items():

        def metric(logs, counts, grown=grown):
            loss = -logs.sum(-1) / counts.sum(-1)
            return loss / np.log(2) if grown is None else grown(loss)

        plain, edited, counts = map(np.array, (sums[0], sums[1], weights))
        row = table.loc[name]
        assert row["change"] == pytest.approx(metric(edited, counts) - metric(plain, counts))
        changes = metric(edited[drawn], counts[drawn]) - metric(plain[drawn], counts[drawn])
        spread = changes.std()
        assert row["low"] == pytest.approx(np.quantile(changes, 0.025), abs=0.25 * spread)
        assert row["high"] == pytest.approx(np.quantile(changes, 0.975), abs=0.25 * spread)
        assert 0 < row["p_value"] <= 1
        assert row["interval"] == BOOTSTRAP
        assert math.isinf(found.scale(name).best)
    assert "word_perplexity edited" not in rows


def test_the_result_says_what_made_it_and_is_saved(measured, tmp_path):
    made = measured.provenance
    assert made["versions"]["lm-eval"] == lm_eval.__version__
    assert made["tasks"]["local_colors"]["version"] == 3
    assert made["tasks"]["local_colors"]["n_shot"] == 0
    assert made["tasks"]["local_colors"]["samples"] == {"original": N, "effective": N}
    assert made["tasks"]["local_told"]["config"]["generation_kwargs"]["max_gen_toks"] == 6
    assert made["editor"]["method"] == "by hand"
    measured.save(tmp_path)
    back = Evaluation.load(tmp_path)
    pd.testing.assert_frame_equal(back.table, measured.table, check_exact=True)
    pd.testing.assert_frame_equal(back.per_row, measured.per_row, check_exact=True)
    assert str(back.scales) == str(measured.scales)


def test_the_model_is_left_as_it_was(folder, editor_of):
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
    found = evaluate_lm_eval(
        model, ["local_colors"], editor_of(model), limit=2, task_folder=folder, damage=False, progress=False
    )
    assert (found.per_row["response unedited"] != found.per_row["response edited"]).all()
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
    """As lm-eval returns them, of one task."""
    samples = [
        {
            "doc_id": n,
            "doc_hash": doc_hash,
            "filter": "none",
            "target": 0,
            "filtered_resps": ["said"],
            "metrics": {"acc": v},
        }
        for n, v in enumerate(map(float, values))
    ]
    found = {f"{name},none": value for name, value in scores.items()}
    nothing = {"groups": {}, "group_subtasks": {}, "higher_is_better": {}}
    return {"t": {**nothing, "results": {"t": found}, "samples": {"t": samples}}}


def test_scores_without_samples_are_left_out_and_runs_on_different_samples_not_compared():
    runs = [results({"acc": 0.5, "bias": math.nan}, [0, 1]), results({"acc": 1.0, "bias": math.nan}, [1, 1])]
    table, scales = score_table(runs, 0, 0.95)
    assert table.index.tolist() == list(scales) == ["t acc"]
    assert table.loc["t acc", ["n", "unedited", "edited", "change"]].tolist() == [2, 0.5, 1.0, 0.5]
    with pytest.raises(InputError, match="did not see the same samples of t"):
        score_table([results({"acc": 1.0}, [1]), results({"acc": 1.0}, [1], "other")], 0, 0.95)


def test_finished_tasks_are_kept_and_the_unedited_model_is_not_run_again(
    llama, folder, kept, monkeypatch, measured, editor_of
):
    calls, run = [], lm_eval.simple_evaluate
    monkeypatch.setattr(
        lm_eval, "simple_evaluate", lambda **options: (calls.append(options["tasks"][0]), run(**options))[1]
    )
    options = {"task_folder": folder, "folder": kept, "damage": False, "progress": False}
    again = evaluate_lm_eval(llama, TASKS, editor_of(llama), **options)
    assert not calls
    assert again.table.equals(measured.table)
    assert again.per_row.equals(measured.per_row)
    evaluate_lm_eval(llama, ["local_told"], editor_of(llama, 1), **options)
    assert calls == ["local_told"]
    for path in kept.rglob("*.jsonl"):
        if "local_told" in path.with_suffix(".json").read_text():
            path.write_text(path.read_text()[:99])  # damaged, and so done again
    again = evaluate_lm_eval(llama, TASKS, editor_of(llama), **options)
    assert calls[1:] == ["local_told", "local_told"]
    assert again.table.equals(measured.table)


def test_without_an_editor_there_is_one_column_of_numbers_and_options_are_passed_on(folder, measured):
    model = build_bridge("llama", torch.bfloat16)
    found = evaluate_lm_eval(
        model,
        ["local_colors"],
        num_fewshot=1,
        limit=4,
        task_folder=folder,
        model_options={"add_bos_token": False},
        options={"fewshot_random_seed": 3},
        progress=False,
    )
    assert found.table.columns.tolist() == ["n", "value", "low", "high", "stderr", "interval"]
    assert found.table["n"].tolist() == [4, 4]
    assert found.provenance["options"]["limit"] == 4
    assert found.provenance["tasks"]["local_colors"]["n_shot"] == 1
    assert {parameter.dtype for parameter in model.original_model.parameters()} == {torch.bfloat16}
    rows = measured.per_row[measured.per_row["task"] == "local_colors"]
    assert (found.per_row["response"].to_numpy() != rows["response unedited"][:4].to_numpy()).all()


def test_that_lm_eval_is_missing_is_said_with_the_remedy(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r'pip install "sea-lens\[eval\]"'):
        evaluate_lm_eval(llama, ["hellaswag"])


@pytest.mark.usefixtures("without_type_checks")
def test_what_cannot_be_run_is_refused(llama, folder, tmp_path, editor_of):
    for tasks in ([], "local_told", ["local_told", "local_told"]):
        with pytest.raises(InputError, match=r"list of different lm-eval tasks|tasks must be a list"):
            evaluate_lm_eval(llama, tasks)
    for limit in (0, -0.5, 1.5, math.inf, math.nan):
        with pytest.raises(InputError, match=r"limit is a number of samples|limit must be"):
            evaluate_lm_eval(llama, ["local_told"], limit=limit)
    with pytest.raises(InputError, match="There is no folder"):
        evaluate_lm_eval(llama, ["local_told"], task_folder=tmp_path / "none")
    with pytest.raises(ModelMismatchError, match="d_model"):
        evaluate_lm_eval(build_bridge("llama", hidden_size=16), ["local_told"], editor_of(llama))
    beyond = editor_of(llama).at_positions(500)
    with pytest.raises(HookNeverFiredError):
        evaluate_lm_eval(llama, ["local_colors"], beyond, task_folder=folder, limit=1, progress=False)
    with pytest.raises(ModelMismatchError, match="A TransformerBridge is needed"):
        evaluate_lm_eval(llama.original_model, ["local_told"])


def test_tasks_of_its_own_are_known_and_others_refused(monkeypatch):
    with_few_tasks(monkeypatch)
    assert "hellaswag" in _task_manager(["hellaswag"], None).all_tasks
    with pytest.raises(InputError, match=r"lm-eval has no task no_such_task_here\. List its tasks"):
        _task_manager(["hellaswag", "no_such_task_here"], None)
