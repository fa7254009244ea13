"""Control vectors for llama.cpp: what is read back does what the editor does, and all else is refused with the reason."""

import numpy as np
import pytest
import torch
from conftest import low_rank

import sea_lens as sl
from sea_lens.editing.control_vector import control_vectors, export_control_vector
from sea_lens.editing.edits import SequenceEdit
from sea_lens.errors import InputError


@pytest.fixture
def gguf():
    return pytest.importorskip("gguf", reason="gguf is not installed: pip install 'sea-lens[gguf]'")


def shifts(llama, *layers, strength=0.5):
    drawn = torch.Generator().manual_seed(0)
    width = llama.cfg.d_model
    return sl.Editor(
        {layer: sl.AffineEdit.of_shift(torch.randn(width, generator=drawn), strength=strength) for layer in layers}
    )


def read_as_llama_cpp(gguf, path, n_layers, width):
    """What `common_control_vector_load_one` makes of a file: the rows of layers 1, 2, and so on."""
    reader = gguf.GGUFReader(path)
    rows = np.zeros((n_layers - 1, width), np.float32)
    for tensor in reader.tensors:
        word, number = tensor.name.split(".")
        assert (word, tensor.tensor_type, tensor.data.shape) == ("direction", gguf.GGMLQuantizationType.F32, (width,))
        assert int(number) > 0  # else: "invalid (zero) direction tensor layer index"
        rows[int(number) - 1] += tensor.data
    return reader, rows


def test_what_llama_cpp_adds_after_its_blocks_is_the_edit(gguf, llama, tmp_path):
    n_layers, width = llama.cfg.n_layers, llama.cfg.d_model
    editor = shifts(llama, 1, n_layers - 1).scaled(3.0)
    path = export_control_vector(editor, tmp_path / "new" / "steer.gguf", model_hint="llama")
    assert [one.name for one in path.parent.iterdir()] == ["steer.gguf"]
    reader, rows = read_as_llama_cpp(gguf, path, n_layers, width)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 2

    ids = torch.arange(2, 14)[None]
    with torch.no_grad(), editor.attached(llama):
        expected = llama(ids)
    blocks = llama.original_model.model.layers
    hooks = [
        blocks[number].register_forward_hook(
            lambda block, given, out, row=rows[number - 1]: out + torch.from_numpy(row)
        )
        for number in range(1, n_layers)  # `for (il = 1; il < n_layer; il++)`, added to the output of block il
    ]
    with torch.no_grad():
        steered = llama(ids)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(steered, expected, atol=1e-5)
    with torch.no_grad():
        assert (llama(ids) - expected).abs().max() > 0.1


def test_a_fitted_mean_difference_is_exported_with_its_models_name(gguf, llama, demos, tmp_path, sea_lens):
    data = sl.Demonstrations.from_jsonl(demos)[:6]
    fitted = sl.MeanDifference().fit(sl.collect_activations(sl.load_model("organism"), data, progress=False))
    later = fitted.at_layers([1, 3])
    later.save_pretrained(tmp_path / "editor")
    code, out, _ = sea_lens("export", tmp_path / "editor", tmp_path / "out.gguf", "--strength", "0.5")
    assert code == 0
    assert "edits layers 1, 3." in out
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert reader.get_field("controlvector.model_hint").contents() == "sea-lens-organism"
    assert {one.name for one in reader.tensors} == {"direction.1", "direction.3"}
    for one in reader.tensors:
        shift = fitted[int(one.name[-1])](torch.zeros(fitted.width)) / 2
        assert np.allclose(one.data, shift, atol=1e-6)
    later.at_positions("not first").save_pretrained(tmp_path / "sparing")
    words = ["export", tmp_path / "sparing", tmp_path / "sparing.gguf"]
    code, _, err = sea_lens(*words)
    assert (code, "added to every token" in err) == (2, True)
    assert sea_lens(*words, "--all-tokens")[0] == 0
    fitted.save_pretrained(tmp_path / "all")
    code, _, err = sea_lens("export", tmp_path / "all", tmp_path / "all.gguf")
    assert (code, "no control vector at layer 0" in err) == (2, True)
    assert not (tmp_path / "all.gguf").exists()


def test_everything_else_is_refused_with_the_reason(llama):
    shift, width = torch.ones(llama.cfg.d_model), llama.cfg.d_model
    nothing = torch.zeros(width, 0)
    plain = sl.AffineEdit.of_shift(shift)
    turn = low_rank(torch.linalg.qr(torch.ones(width, 1))[0], torch.tensor([0.5]))
    for edits, message in [
        ({1: turn}, "has rank 1: what it adds depends on the token"),
        ({1: sl.AffineEdit(nothing, nothing, shift=shift, keep=0.9)}, "keeps 0.9 of the activation"),
        ({1: sl.AffineEdit(nothing, nothing, shift=shift, restore_norm=True)}, "restores each token's norm"),
        ({1: SequenceEdit((plain, plain))}, "is a SequenceEdit"),
        ({"blocks.1.hook_mlp_out": plain}, "is not at resid_post"),
        ({0: plain, 1: plain}, "no control vector at layer 0"),
        ({1: plain.scaled(0.0)}, "changes nothing"),
    ]:
        with pytest.raises(InputError, match=message):
            control_vectors(sl.Editor(edits))
    editor = sl.Editor({0: plain.scaled(0.0), 1: plain})  # what changes nothing needs no direction
    assert list(control_vectors(editor)) == [1]
    for positions in ("not first", "generated", [0, 2]):
        with pytest.raises(InputError, match=r"added to every token, and this editor edits .*at_positions\(\"all\"\)"):
            control_vectors(editor.at_positions(positions))
    assert list(control_vectors(editor.at_positions("generated").at_positions("all"))) == [1]
