import pytest

import sea_lens as sl
from sea_lens.errors import FileFormatError, InputError
from sea_lens.models.hub import did_you_mean, official_names, offline


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("organsim", "Did you mean organism"),
        ("smolm2", "Did you mean smollm2?"),
        ("gemma3", "Did you mean gemma3-270m"),
        ("knowledge_organism", "Did you mean knowledge-organism"),
        ("pythia-70", "Did you mean EleutherAI/pythia-70m"),
        ("gpt2", "this machine is offline|HF_HUB_OFFLINE is set"),
        ("./smoll", "There is no folder or file './smoll'. Did you mean smollm?"),
    ],
)
def test_a_name_that_is_no_model_is_refused_with_those_like_it(tmp_path, monkeypatch, name, told):
    (tmp_path / "smollm").mkdir()
    monkeypatch.chdir(tmp_path)
    with offline(), pytest.raises(InputError, match=told) as refused:
        sl.load_model(name)
    assert "organism, bias-organism" in str(refused.value)
    assert not ("Did you mean" in str(refused.value) and name in official_names().values())


def test_what_was_downloaded_before_is_loaded_without_the_hub(tmp_path, monkeypatch):
    """The hub is asked for once, and the files in the cache are those of a folder."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    from sea_lens.worlds.load import WEIGHTS

    kept = tmp_path / repo_folder_name(repo_id="some/organism", repo_type="model")
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("a" * 40)
    (kept / "snapshots").mkdir()
    (kept / "snapshots" / ("a" * 40)).symlink_to(WEIGHTS)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    assert sl.load_model("some/organism").cfg.n_layers == 4


def test_an_editor_that_is_nowhere_is_refused_with_folders_like_it(tmp_path, monkeypatch):
    (tmp_path / "editor-2").mkdir()
    monkeypatch.chdir(tmp_path)
    with offline(), pytest.raises(FileFormatError, match=r"no folder editor_2 with an editor.*mean editor-2\?"):
        sl.Editor.from_pretrained("editor_2")
    with offline(), pytest.raises(FileFormatError, match="Give the folder of an SAE"):
        sl.load_sae("./editor_2")


def test_names_are_compared_in_any_case_and_without_their_owner():
    assert did_you_mean("GPT", ["openai/gpt2", "organism"]) == " Did you mean openai/gpt2?"
    assert did_you_mean("ab/gpt-2", {"gpt2": "openai/gpt2"}) == " Did you mean openai/gpt2?"
    assert did_you_mean("nothing", ["organism"]) == ""
