import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import low_rank
from safetensors.torch import load_file, save_file

from sea_lens import Activations, AffineEdit, Editor, EditorCard, Site, Tanh, fit_sea
from sea_lens.errors import FileFormatError, InputError


def random_roles(seed):
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(20, 32, generator=generator) for layer in range(3)}


@pytest.fixture(scope="module")
def editor(llama):
    activations = Activations.from_tensors(
        neutral=random_roles(0), positive=random_roles(1), negative=random_roles(2), model=llama
    )
    return fit_sea(activations, ranks=(3, 2), center=True)


@pytest.fixture
def folder(editor, tmp_path):
    editor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def same(one, other):
    return (one.sites, one.card, str(one.where)) == (other.sites, other.card, str(other.where)) and all(
        torch.equal(one[layer].right, other[layer].right)
        and torch.equal(one[layer].left, other[layer].left)
        and (one[layer].shift is None) == (other[layer].shift is None)
        and (one[layer].shift is None or torch.equal(one[layer].shift, other[layer].shift))
        and one[layer].right.dtype == other[layer].right.dtype
        and all(
            getattr(one[layer], fact) == getattr(other[layer], fact) for fact in ("strength", "restore_norm", "keep")
        )
        for layer in one.layers
    )


@pytest.mark.parametrize(
    "view",
    [
        lambda e: e,
        lambda e: e.scaled(1 / 3),
        lambda e: e.last_layers(2).scaled(-0.7).at_positions(4),
        lambda e: e.at_layers([1]).scaled(0.0),
        lambda e: replace(e, edits={layer: edit.cast(torch.bfloat16) for layer, edit in e.edits.items()}),
        lambda e: replace(e, edits={layer: replace(e[layer], shift=None, restore_norm=False) for layer in e.layers}),
        lambda e: replace(e, edits={layer: replace(e[layer], keep=0.5) for layer in e.layers}),
    ],
    ids=["whole", "scaled", "layers, strength, positions", "identity", "bfloat16", "no shift, no norm", "half kept"],
)
def test_saving_and_loading_is_bit_identical(editor, llama, tmp_path, view):
    saved = view(editor)
    saved.save_pretrained(tmp_path / "deeper" / "saved")
    for place in (tmp_path / "deeper" / "saved", str(tmp_path / "deeper" / "saved")):
        loaded = Editor.from_pretrained(place)
        assert same(loaded, saved)
        assert repr(loaded) == repr(saved)
    tokens = torch.arange(2, 12)[None]
    with torch.no_grad():
        expected = llama.run_with_hooks(tokens, fwd_hooks=saved.fwd_hooks())
        with loaded.attached(llama):
            assert torch.equal(llama(tokens), expected)


def test_what_is_written_is_safetensors_json_and_a_card(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "editor.safetensors"]
    names = {f"blocks.{layer}.hook_resid_post.{part}" for layer in range(3) for part in ("left", "right", "shift")}
    assert set(load_file(folder / "editor.safetensors")) == names
    config = json.loads((folder / "config.json").read_text())
    assert config["card"]["method"] == "sea"
    assert config["card"]["model"] == {
        "name": "tiny-llama",
        "n_layers": 3,
        "d_model": 32,
        "weights": "raw",
        "n_heads": 4,
        "beginning_token": True,
    }


def test_the_model_card_names_the_library_and_shows_its_use(folder):
    card = (folder / "README.md").read_text()
    assert "library_name: sea_lens" in card
    assert "activation-editing" in card
    assert "```python\nimport sea_lens as sl" in card
    assert "method sea, fitted on 20 demonstrations with tiny-llama, editing layers 0-2" in card
    assert 'sl.load_model("tiny-llama")' in card
    assert f'sl.Editor.from_pretrained("{folder.name}")' in card
    assert 'sl.generate(model, [{"role": "user", "content": "..."}], editor)' in card


def test_saving_again_overwrites_and_leaves_a_card_of_your_own_alone(editor, folder):
    readme = folder / "README.md"
    editor.scaled(0.5).at_layers([2]).save_pretrained(folder)
    assert same(Editor.from_pretrained(folder), editor.scaled(0.5).at_layers([2]))
    assert "editing layers 2." in readme.read_text()
    readme.write_text("Mine.")
    editor.save_pretrained(folder)
    assert readme.read_text() == "Mine."


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sea-lens-organism", "organism"),
        ("smollm2-b179c9523d0e6a0f-float32", "smollm2"),
        ("you/model-7b", "you/model-7b"),
    ],
)
def test_the_card_loads_a_model_by_the_name_that_load_model_knows(editor, tmp_path, name, shown):
    Editor(editor.edits, replace(editor.card, model=replace(editor.card.model, name=name))).save_pretrained(tmp_path)
    assert f'sl.load_model("{shown}")' in (tmp_path / "README.md").read_text()


def test_a_card_cannot_break_out_of_the_code_it_shows(editor, tmp_path):
    info = replace(editor.card.model, name='a"); import os  # `\n```')
    Editor(editor.edits, replace(editor.card, model=info)).save_pretrained(tmp_path)
    line = next(line for line in (tmp_path / "README.md").read_text().splitlines() if "load_model" in line)
    assert line.startswith('model = sl.load_model("a ); import os  #')
    assert line.count('"') == 2


def test_one_edit_at_several_layers_can_be_saved(tmp_path):
    edit = low_rank(torch.eye(4)[:, :2].contiguous(), torch.tensor([1.0, -1.0]), torch.ones(4))
    shared = Editor({0: edit, 1: edit, 2: edit.scaled(0.5)}, EditorCard("by hand", {}))
    shared.save_pretrained(tmp_path)
    assert same(Editor.from_pretrained(tmp_path), shared)


def test_what_is_loaded_computes_the_same_bits(tmp_path):
    """Wherever in the file a tensor begins: sums are rounded in another order over memory that is aligned otherwise."""
    generator = torch.Generator().manual_seed(0)
    left, right, center = (torch.randn(12, 101, n, generator=generator) for n in (1, 1, 1))
    edits = {layer: AffineEdit(left[layer], right[layer], center[layer, :, 0].clone()) for layer in range(12)}
    h = torch.randn(50, 101, generator=generator)
    one = Editor(
        {layer: replace(edit, left=edit.left.clone(), right=edit.right.clone()) for layer, edit in edits.items()}
    )
    one.save_pretrained(tmp_path)
    loaded = Editor.from_pretrained(tmp_path)
    assert all(torch.equal(loaded[layer](h), one[layer](h)) for layer in range(12))


def test_a_position_mask_is_not_saved(editor, tmp_path):
    with pytest.raises(InputError, match="where is a OfBatch, which cannot be saved"):
        editor.at_positions(torch.ones(1, 4, dtype=torch.bool)).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "editor.safetensors").exists()


# --- files that are not what was saved -------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["{", "", "[1, 2]", '"text"', "null", "{}", '{"model_type": "llama"}', b"\xff\xfe"])
def test_a_config_that_is_not_an_editors(folder, content):
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileFormatError, match=r"could not be read as JSON|does not hold an editor of sea_lens"):
        Editor.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "editor.safetensors"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileFormatError, match=name):
        Editor.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_tensors(folder, keep):
    path = folder / "editor.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileFormatError, match=r"editor\.safetensors is missing, truncated or not"):
        Editor.from_pretrained(folder)


def test_tampered_tensors(folder):
    path = folder / "editor.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="was changed after it was saved"):
        Editor.from_pretrained(folder)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda config: config["edits"]["blocks.0.hook_resid_post"]["fields"].update(strength=2.0),
        lambda config: config["edits"].pop("blocks.1.hook_resid_post"),
        lambda config: config["card"].update(method="leace"),
        lambda config: config.update(where={"kind": "prompt", "fields": {}}),
        lambda config: config.update(sha256="0" * 64),
        lambda config: config.pop("sha256"),
    ],
)
def test_tampered_json(folder, tamper):
    config = json.loads((folder / "config.json").read_text())
    tamper(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match="was changed after it was saved"):
        Editor.from_pretrained(folder)


def test_tensors_of_another_editor(editor, folder, tmp_path):
    replace(editor, edits={**editor.edits, Site(0): editor[1]}).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "editor.safetensors").replace(folder / "editor.safetensors")
    with pytest.raises(FileFormatError, match="was changed after it was saved"):
        Editor.from_pretrained(folder)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(FileFormatError, match="does not hold an editor of sea_lens"):
        Editor.from_pretrained(tmp_path)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileFormatError, match=r"There is no folder .*Give the folder of an editor"):
        Editor.from_pretrained(tmp_path / "nowhere")


def test_misspelt_options_are_refused(folder):
    with pytest.raises(TypeError, match="revison"):
        Editor.from_pretrained(folder, revison="main")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["config.json", "editor.safetensors"])
@pytest.mark.parametrize("write", [pickle.dumps, None], ids=["pickle", "torch.save"])
def test_no_code_is_run(folder, tmp_path, name, write):
    mark = tmp_path / "ran"
    if write is None:
        torch.save(Payload(mark), folder / name)
    else:
        (folder / name).write_bytes(write(Payload(mark)))
    with pytest.raises(FileFormatError, match=name):
        Editor.from_pretrained(folder)
    assert not mark.exists()
    if write is not None:  # the payload does work where code is run
        pickle.loads((folder / name).read_bytes())
        assert mark.exists()


# --- files of version 0.1 --------------------------------------------------------------------------------------------

OF_0_1 = Path(__file__).parent / "files_of_0_1"


@pytest.mark.parametrize("name", ["linear", "feature_space", "published", "projections"])
def test_an_editor_of_0_1_still_does_what_it_did(name, tmp_path):
    known = json.loads((OF_0_1 / "edited.json").read_text())
    h, editor = torch.tensor(known["h"]), Editor.from_pretrained(OF_0_1 / name)
    for layer, edited in known["edited"][name].items():
        torch.testing.assert_close(editor[int(layer)](h), torch.tensor(edited), rtol=1e-5, atol=1e-6)
    editor.save_pretrained(tmp_path)
    assert Editor.from_pretrained(tmp_path).fingerprint == editor.fingerprint
    assert editor.card.versions["sea-lens"] == "0.1.0"


def test_what_else_an_editor_of_0_1_says():
    linear, projections = (Editor.from_pretrained(OF_0_1 / name) for name in ("linear", "projections"))
    assert str(linear.where) == "positions from 1 on"
    assert linear[0].strength == 0.5
    assert linear.card.settings["center"] is True
    assert linear.card.settings["ranks"] == (2, 1)
    assert linear.card.reports[Site(2)]["rank_positive"] == 2
    assert {site.name for site in projections.sites} == {"mlp_out"}
    feature_map = Editor.from_pretrained(OF_0_1 / "feature_space").card.settings["feature_map"]
    assert feature_map == Tanh(2.0)


def test_activations_of_0_1_are_read():
    activations = Activations.load(OF_0_1 / "activations.safetensors")
    assert (activations.layers, activations.n, activations.roles) == ([0, 2], 20, ["neutral", "positive", "negative"])


# --- forged files ----------------------------------------------------------------------------------------------------


def forge(folder, change):
    """Changes the JSON of an editor and gives it a right digest."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("sha256")
    change(config)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update((folder / "editor.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "sha256": digest.hexdigest()}))


FIRST = "blocks.0.hook_resid_post"


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["edits"][FIRST]["fields"].update(strength="strong"),
        lambda c: c["edits"][FIRST]["fields"].update(strength=float("inf")),
        lambda c: c["edits"][FIRST]["fields"].update(strength=True),
        lambda c: c["edits"][FIRST]["fields"].update(restore_norm="no"),
        lambda c: c["edits"][FIRST]["fields"].update(left={"tensor": "blocks.1.hook_resid_post.shift"}),
        lambda c: c["edits"][FIRST]["fields"].update(left={"tensor": "nowhere"}),
        lambda c: c["edits"][FIRST]["fields"].pop("right"),
        lambda c: c["edits"][FIRST]["fields"].update(loud=1),
        lambda c: c["edits"][FIRST].update(kind="os.system"),
        lambda c: c["edits"].update({FIRST: "text"}),
        lambda c: c["edits"].update({"blocks.-1.hook_resid_post": c["edits"][FIRST]}),
        lambda c: c["edits"].update({FIRST: {"kind": "Tanh", "fields": {"scale": 1.0}}}),
        lambda c: c.update(edits={}),
        lambda c: c.update(where={"kind": "from", "fields": {"first": "abc"}}),
        lambda c: c.update(where={"kind": "Tanh", "fields": {}}),
        lambda c: c.update(card=3),
        lambda c: c["card"].update(reports={"nowhere": {}}),
    ],
)
def test_a_forged_editor_with_a_right_digest_is_refused(folder, change):
    forge(folder, change)
    with pytest.raises((FileFormatError, InputError)):
        Editor.from_pretrained(folder)


def test_json_of_a_hundred_thousand_brackets_is_refused(folder):
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(FileFormatError, match="could not be read as JSON"):
        Editor.from_pretrained(folder)
