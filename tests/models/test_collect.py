import json
import warnings

import pytest
import torch
from conftest import D_MODEL, build_bridge
from safetensors.torch import save_file

from sea_lens import Activations, Demonstrations, Editor, EditorCard, collect_activations
from sea_lens import cache as shards
from sea_lens.editing.affine import AffineEdit
from sea_lens.errors import FileFormatError, InputError, ModelMismatchError, SeaLensWarning
from sea_lens.models.activations import ROLES
from sea_lens.models.bridge import weights_digest
from sea_lens.models.tokens import TokenizedAnswer, token_ids

DEMONSTRATIONS = Demonstrations.from_lists(
    prompts=["Q: who made it?", "a", "Where does the sun go at night?", "Color:", "Q: how many?"],
    positives=["we did!", "bcd", "to the west", "blue .", "seven"],
    negatives=["no one.", "efg", "into a tree", "salt", "a lot"],
    neutrals=["it was she", "hij, k?", "it", "red...", "a few"],
)


def collect(model, demonstrations=DEMONSTRATIONS, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return collect_activations(model, demonstrations, *args, progress=False, **options)


def span(model, answer, token):
    """The positions that stand for a text, written down anew."""
    positions = list(range(answer.answer_start, len(answer.ids)))
    if token == "last":
        return positions[-1:]
    if token == "last_content":
        return [p for p in positions if model.tokenizer.decode([answer.ids[p]]).isalnum()][-1:]
    return positions if token == "mean" else [positions[token]]


def read_off(model, row, role, site, token):
    """`{layer: vector}` of one unpadded text by TransformerLens's own cache."""
    answer = TokenizedAnswer.of(model, row.prompt, getattr(row, role))
    with torch.no_grad():
        _, cache = model.run_with_cache(
            torch.tensor([answer.ids]),
            names_filter=lambda name: name.endswith(f"hook_{site}"),
            output_attentions=False,
        )
    chosen = span(model, answer, token)
    return {layer: cache[f"blocks.{layer}.hook_{site}"][0, chosen].mean(0) for layer in range(model.cfg.n_layers)}


def same(one, other):
    return one.layers == other.layers and all(
        torch.equal(one[role][layer], other[role][layer]) for role in ROLES for layer in one.layers
    )


class Passes:
    """Counts forward passes of a model by a hook on it; `stop_after` of them, the user presses Ctrl-C."""

    def __init__(self, model, stop_after=None):
        self.model, self.stop_after, self.n = model, stop_after, 0

    def __enter__(self):
        self.context = self.model.hooks(fwd_hooks=[("blocks.0.hook_in", self.count)])
        self.context.__enter__()
        return self

    def __exit__(self, *exception):
        return self.context.__exit__(*exception)

    def count(self, tensor, hook):
        if self.n == self.stop_after:
            raise KeyboardInterrupt
        self.n += 1


# --- the right numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["last", "last_content", "mean", 0, -1])
def test_activations_equal_those_of_single_texts(bridge, token):
    activations = collect(bridge, token=token, batch_size=4)
    assert (activations.layers, activations.n, activations.token) == ([0, 1, 2], 5, token)
    for role in ROLES:
        for index, row in enumerate(DEMONSTRATIONS):
            for layer, vector in read_off(bridge, row, role, "resid_post", token).items():
                torch.testing.assert_close(activations[role][layer][index], vector, atol=2e-5, rtol=1e-5)


def test_mlp_outputs_equal_those_of_single_texts(bridge):
    activations = collect(bridge, site="mlp_out")
    assert activations.site == "mlp_out"
    for index, row in enumerate(DEMONSTRATIONS):
        for layer, vector in read_off(bridge, row, "negative", "mlp_out", "last").items():
            torch.testing.assert_close(activations.negative[layer][index], vector, atol=2e-5, rtol=1e-5)


def test_token_choices_differ(llama):
    """So that the test above could tell them apart."""
    choices = ["last", "last_content", "mean", 0]
    found = [collect(llama, token=token).neutral[1] for token in choices]
    assert all((found[i] - found[j]).abs().max() > 0.1 for i in range(4) for j in range(i))


def test_batches_change_nothing(bridge):
    alone = collect(bridge, batch_size=1)
    for batch_size in (2, 7, 100):
        batched = collect(bridge, batch_size=batch_size)
        for role in ROLES:
            for layer in alone.layers:
                torch.testing.assert_close(batched[role][layer], alone[role][layer], atol=2e-5, rtol=1e-5)


def test_one_forward_pass_serves_all_layers_and_stops_at_the_last(llama):
    with Passes(llama) as passes:
        every = collect(llama, batch_size=5)
    assert passes.n == 3
    reached = []
    watch = [(f"blocks.{layer}.hook_mlp_out", lambda t, hook: reached.append(hook.layer())) for layer in range(3)]
    with llama.hooks(fwd_hooks=watch):
        some = collect(llama, layers=[1, 0], batch_size=100)
    assert reached == [0, 1]
    assert some.layers == [0, 1]
    for layer in some.layers:
        torch.testing.assert_close(some.positive[layer], every.positive[layer], atol=2e-5, rtol=1e-5)
    assert same(collect(llama, layers=(2, 2), batch_size=5), collect(llama, layers=[2], batch_size=5))


def test_the_model_is_left_as_it_was(bridge):
    tokens = torch.tensor([token_ids(bridge, "a text")])
    with torch.no_grad():
        logits = bridge(tokens)
    weights = {name: value.clone() for name, value in bridge.state_dict().items()}
    activations = collect(bridge)
    assert all(torch.equal(value, weights[name]) for name, value in bridge.state_dict().items())
    with torch.no_grad():
        assert torch.equal(bridge(tokens), logits)
    assert not any(point.fwd_hooks for point in bridge.hook_dict.values())
    assert not any(tensor.requires_grad for role in ROLES for tensor in activations[role].values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_give_float32(dtype):
    model = build_bridge("llama", dtype=dtype)
    activations = collect(model)
    assert activations.neutral[0].dtype == torch.float32
    expected = read_off(model, DEMONSTRATIONS[0], "neutral", "resid_post", "last")[2].float()
    torch.testing.assert_close(activations.neutral[2][0], expected, atol=0.1, rtol=0.05)


def test_where_they_come_from_is_recorded(llama):
    activations = collect(llama, token=-1)
    assert activations.model.name == "tiny-llama"
    assert activations.demonstrations == DEMONSTRATIONS.fingerprint
    assert "token -1, from tiny-llama" in repr(activations)


# --- what is refused, what is warned about ---------------------------------------------------------------------------


def test_missing_neutral_completions(llama):
    rows = Demonstrations.from_lists(["a", "b"], ["c", "d"], ["e", "f"])
    with pytest.raises(InputError, match=r"2 of 2 demonstrations have no neutral .*with_neutral_answers\(model\)"):
        collect(llama, rows)


def test_a_text_beyond_the_context(llama):
    rows = Demonstrations.from_lists(["a", "b" * 130], ["c", "d"], ["e", "f"], ["g", "h"])
    with pytest.raises(InputError, match=r"Demonstration 1 \(neutral\) is 133 tokens long.*context is 128"):
        collect(llama, rows)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": [0, 3]}, ModelMismatchError, r"Layers \[3\] do not exist.*0 to 2"),
        ({"layers": [-1]}, ModelMismatchError, r"Layers \[-1\] do not exist"),
        ({"layers": []}, InputError, "No layers were given"),
        ({"site": "resid_end"}, ModelMismatchError, "no site 'resid_end'"),
        ({"token": "first"}, InputError, '"last_content", "mean" or an integer, and \'first\' was given'),
        ({"token": 3}, InputError, r"Demonstration 2 \(neutral\) has an answer of 3 tokens, so there is no token 3"),
        ({"token": -4}, InputError, r"Demonstration 2 \(neutral\) has an answer of 3 tokens, so there is no token -4"),
        ({"batch_size": 0}, InputError, "batch_size must be at least 1, and 0"),
    ],
)
def test_impossible_arguments(llama, options, error, message):
    with pytest.raises(error, match=message), Passes(llama, stop_after=0):
        collect(llama, **options)


def test_nan_activations_name_the_demonstration():
    model = build_bridge("llama")
    with torch.no_grad():
        model.original_model.get_input_embeddings().weight[token_ids(model, "#")[-1]] = float("nan")
    rows = Demonstrations.from_lists(["a", "b"], ["c", "d"], ["e", "f #"], ["g", "h"])
    with pytest.raises(
        InputError, match=r"NaN or infinity .* layers \[0, 1, 2\], in 1 texts .*: Demonstration 1 \(negative\)"
    ):
        collect(model, rows)


def test_confounds_are_warned_about_unasked(llama):
    confounded = Demonstrations.from_lists(
        ["Who?", "What?"], ["me", "it"], ["somebody else.", "some other thing."], ["you", "he"]
    )
    with pytest.warns(SeaLensWarning) as caught:
        collect_activations(llama, confounded, progress=False)
    messages = [str(warning.message) for warning in caught]
    assert any("end in a period" in message for message in messages)
    assert any("length alone" in message for message in messages)


def test_clean_demonstrations_are_not_warned_about(llama):
    clean = Demonstrations.from_lists(["Who?", "What?"], ["her", "one"], ["him", "two"], ["you", "six"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", SeaLensWarning)
        collect_activations(llama, clean, token="last_content", progress=False)


def test_answers_without_content_are_warned_about(llama):
    rows = Demonstrations.from_lists(["Who?", "What?"], ["her", ";;;"], ["him", "two"], ["you", "six"])
    with pytest.warns(SeaLensWarning, match=r"1 answers hold no content token \(first: Demonstration 1 \(positive\)\)"):
        activations = collect_activations(llama, rows, token="last_content", progress=False)
    assert torch.equal(activations.positive[2][1], collect(llama, rows).positive[2][1])


# --- killed and run again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reached", "left"), [(0, 4), (1, 4), (3, 1)])
def test_a_killed_collection_goes_on_where_it_stopped(bridge, tmp_path, reached, left):
    whole = collect(bridge, batch_size=4)  # a batch of 4 demonstrations in 3 passes, and one of 1 in 1
    with pytest.raises(KeyboardInterrupt), Passes(bridge, stop_after=reached):
        collect(bridge, batch_size=4, folder=tmp_path / "run")
    with pytest.raises(FileFormatError, match="no finished collection"):
        Activations.load(tmp_path / "run")
    with Passes(bridge) as passes:
        resumed = collect(bridge, batch_size=4, folder=tmp_path / "run")
    assert passes.n == left
    assert same(resumed, whole)


def test_a_kill_while_a_batch_is_written_leaves_no_half_batch(llama, tmp_path, monkeypatch):
    whole = collect(llama, batch_size=4)

    def die(tensors, path, metadata):
        path.with_name(path.name + ".partial").write_bytes(b"half a f")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "save_tensors", die)
        with pytest.raises(KeyboardInterrupt):
            collect(llama, batch_size=4, folder=tmp_path)
    assert same(collect(llama, batch_size=4, folder=tmp_path), whole)


def test_a_finished_collection_is_read_back(llama, tmp_path):
    first = collect(llama, folder=tmp_path)
    with Passes(llama) as passes:
        second = collect(llama, folder=tmp_path)
    assert passes.n == 0
    assert same(first, second)
    assert same(Activations.load(tmp_path), first)
    assert (second.site, second.token, second.model) == (first.site, first.token, first.model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["activations.safetensors", "collection.json"]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"layers": [0]}, "layers"),
        ({"token": "mean"}, "token"),
        ({"site": "mlp_out"}, "site"),
        ({"batch_size": 3}, "batch_size"),
        ({"demonstrations": DEMONSTRATIONS[:3]}, "demonstrations"),
    ],
)
def test_a_folder_of_another_collection_is_refused(llama, tmp_path, changes, difference):
    collect(llama, folder=tmp_path)
    with pytest.raises(FileFormatError, match=f"differs in {difference}. Choose another folder"):
        collect(llama, **{"demonstrations": DEMONSTRATIONS, **changes}, folder=tmp_path)


def test_a_folder_of_another_model_is_refused(bridge, llama, tmp_path):
    if bridge.cfg.model_name == llama.cfg.model_name:
        pytest.skip("the same model")
    collect(llama, folder=tmp_path)
    with pytest.raises(FileFormatError, match="differs in model"):
        collect(bridge, folder=tmp_path)


def test_a_folder_with_a_damaged_manifest_is_refused(llama, tmp_path):
    (tmp_path / "collection.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"could not be read.*Delete the folder"):
        collect(llama, folder=tmp_path)


def test_another_model_of_the_same_name_is_refused(llama, tmp_path):
    collect(llama, folder=tmp_path)
    other = build_bridge("llama", initializer_range=0.3)
    with pytest.raises(FileFormatError, match="differs in weights"):
        collect(other, folder=tmp_path)
    half = build_bridge("llama", torch.bfloat16)
    assert weights_digest(half) != weights_digest(llama) == weights_digest(build_bridge("llama"))


def test_activations_that_are_not_finite_stop_the_first_batch_and_are_not_kept(llama, tmp_path):
    name = "blocks.1.hook_resid_post"
    with (
        llama.hooks(fwd_hooks=[(name, lambda tensor, hook: tensor * float("inf"))]),
        pytest.raises(InputError, match=r"NaN or infinity in the activations of layers \[1, 2\].*Demonstration"),
    ):
        collect(llama, folder=tmp_path)
    assert not list(tmp_path.glob("collection-*"))
    assert collect(llama, folder=tmp_path).n == len(DEMONSTRATIONS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:40]),
        lambda path: save_file({"other": torch.zeros(2)}, path),
        lambda path: save_file({"batch": torch.ones(1, 3, D_MODEL)}, path),
    ],
    ids=["truncated", "another key", "another shape"],
)
def test_a_damaged_batch_is_collected_again(llama, tmp_path, damage):
    whole = collect(llama, batch_size=4)
    collect(llama, folder=tmp_path, batch_size=4)
    (tmp_path / "activations.safetensors").unlink()
    save_file({"batch": torch.zeros(4, 3, D_MODEL)}, tmp_path / "collection-000001.safetensors")
    damage(tmp_path / "collection-000001.safetensors")
    found = collect(llama, folder=tmp_path, batch_size=4)
    assert all(torch.equal(found[role][layer], whole[role][layer]) for role in ROLES for layer in whole.layers)
    (tmp_path / "activations.safetensors").unlink()
    (tmp_path / "collection.json").write_text("[]")
    with pytest.raises(FileFormatError, match="not a collection's"):
        collect(llama, folder=tmp_path, batch_size=4)


# --- under an editor --------------------------------------------------------------------------------------------------


def make_editor(layers=(0, 2), site="resid_post", strength=1.0):
    generator = torch.Generator().manual_seed(0)
    edits = {
        layer: AffineEdit(
            torch.linalg.qr(torch.randn(D_MODEL, 2, generator=generator)).Q,
            torch.tensor([1.5, -1.0]),
            torch.randn(D_MODEL, generator=generator),
            strength=strength,
        )
        for layer in layers
    }
    return Editor(edits, EditorCard("by hand", {}, site=site))


@pytest.mark.parametrize("positions", [None, 3])
@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_edited_activations_equal_those_of_single_texts_run_edited(bridge, site, positions):
    editor = make_editor(site=site)
    if positions is not None:
        editor = editor.at_positions(positions)
    activations = collect(bridge, editor=editor, batch_size=4)
    for role in ROLES:
        for index, row in enumerate(DEMONSTRATIONS):
            # Its hooks are added after the editor's, so that its cache holds edited values; see the test below as well.
            with editor.attached(bridge), warnings.catch_warnings():
                warnings.simplefilter("ignore", SeaLensWarning)
                found = read_off(bridge, row, role, "resid_post", "last")
            for layer, vector in found.items():
                torch.testing.assert_close(activations[role][layer][index], vector, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_at_an_edited_layer_the_edited_value_is_collected(bridge, site):
    """The edit applied by hand to what the unedited model has there."""
    plain, editor = collect(bridge, site=site), make_editor(layers=(1, 2), site=site)
    edited = collect(bridge, site=site, editor=editor)
    for role in ROLES:
        assert torch.equal(edited[role][0], plain[role][0])
        torch.testing.assert_close(edited[role][1], editor[1](plain[role][1]), atol=2e-5, rtol=1e-4)
        assert (edited[role][1] - plain[role][1]).abs().max() > 0.1
        # Above it, more than this layer's edit has changed.
        assert (edited[role][2] - editor[2](plain[role][2])).abs().max() > 0.01


def test_an_editor_leaves_no_hooks_and_a_strength_of_zero_changes_nothing(bridge):
    plain = collect(bridge)
    assert same(collect(bridge, editor=make_editor(strength=0.0)), plain)
    collect(bridge, editor=make_editor())
    assert not any(point.fwd_hooks for point in bridge.hook_dict.values())
    assert same(collect(bridge), plain)


def test_the_editor_is_recorded(llama, tmp_path):
    editor = make_editor()
    found = collect(llama, editor=editor, folder=tmp_path)
    assert found.editor == editor.fingerprint
    assert collect(llama).editor is None
    with Passes(llama) as passes:
        again = collect(llama, editor=editor, folder=tmp_path)
    assert passes.n == 0
    assert same(found, again)
    assert again.editor == editor.fingerprint


@pytest.mark.parametrize("other", [None, make_editor(strength=0.5), make_editor().at_positions(1)])
def test_a_folder_of_another_edit_is_refused(llama, tmp_path, other):
    collect(llama, editor=make_editor(), folder=tmp_path / "edited")
    with pytest.raises(FileFormatError, match=r"differs in editor\. Choose another folder"):
        collect(llama, editor=other, folder=tmp_path / "edited")
    collect(llama, folder=tmp_path / "plain")
    with pytest.raises(FileFormatError, match=r"differs in editor\. Choose another folder"):
        collect(llama, editor=make_editor(), folder=tmp_path / "plain")


def test_a_collection_begun_before_editors_goes_on(llama, tmp_path):
    collect(llama, folder=tmp_path)
    manifest = json.loads((tmp_path / "collection.json").read_text())
    del manifest["editor"]
    (tmp_path / "collection.json").write_text(json.dumps(manifest))
    assert collect(llama, folder=tmp_path).editor is None


def test_editors_that_cannot_be_collected_under(llama):
    editor = make_editor()
    with pytest.raises(InputError, match=r"position mask of one batch.*at_positions\(1\)"):
        collect(llama, editor=editor.at_positions(torch.ones(15, 8, dtype=torch.bool)))
    with pytest.raises(InputError, match="from position 100 on, and the longest text has 44 tokens"):
        collect(llama, editor=editor.at_positions(100))
    with pytest.raises(ModelMismatchError, match=r"Layers \[7\] do not exist"):
        collect(llama, editor=make_editor(layers=(7,)))
    clean = Demonstrations.from_lists(["Who?", "What?"], ["her", "one"], ["him", "two"], ["you", "six"])
    with pytest.warns(SeaLensWarning, match="first layer is 2 and the last one collected is 1"):
        collect_activations(llama, clean, layers=[0, 1], editor=make_editor(layers=(2,)), progress=False)
