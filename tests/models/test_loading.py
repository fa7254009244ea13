import pytest
import torch

from sea_lens import load_model
from sea_lens.errors import InputError
from sea_lens.models.loading import register_model


def test_a_model_is_loaded_by_word_and_from_a_folder(stories):
    assert load_model("organism").cfg.model_name == "sea-lens-organism"
    model = load_model(str(stories), dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_what_is_no_model_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="not a model's folder"):
        load_model(str(tmp_path))
    with pytest.raises(InputError, match="No model could be loaded from"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="dtype is"):
        load_model(str(tmp_path), dtype="float7")
    with pytest.raises(InputError, match="already"):
        register_model("organism")(lambda device: None)
