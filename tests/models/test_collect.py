"""Activations of demonstrations, against those of single texts."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import D_MODEL, Passes, build_bridge, make_editor
from einops import rearrange
from safetensors.torch import save_file

from sea_lens import Activations, Demonstrations, Editor, Site, collect_activations
from sea_lens.errors import FileFormatError, HookNeverFiredError, InputError, ModelMismatchError, SeaLensWarning
from sea_lens.methods.sea.published import PublishedEdit
from sea_lens.models import demonstration_texts
from sea_lens.models.activations import ROLES
from sea_lens.models.sites import NAMES
from sea_lens.models.stream import ActivationStream
from sea_lens.models.tokens import TokenizedAnswer, join, token_ids

DEMONSTRATIONS = Demonstrations.from_lists(
    prompts=["Q: who made it?", "a", "Where does the sun go at night?", "Color:", "Q: how many?"],
    positives=["we did!", "bcd", "to the west", "blue .", "seven"],
    negatives=["no one.", "efg", "into a tree", "salt", "a lot"],
    neutrals=["it was she", "hij, k?", "it", "red...", "a few"],
)
FEW_SHOT = "Answer with few words. Q: sea? A: blue. Q: "
SHARING = Demonstrations.from_lists(
    prompts=[FEW_SHOT + question for question in ("who made it? A:", "and the sun, where does it go? A:", "one")],
    positives=["we did!", "west", "to the moon;"],
    negatives=["no one", "into a tree", ""],
    neutrals=["she", "it sinks", "it is..."],
)
BOTH = ("positive", "negative")


def collect(model, demonstrations=DEMONSTRATIONS, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeaLensWarning)
        return collect_activations(model, demonstrations, *args, progress=False, **options)


def span(model, answer, token):
    """The positions that stand for a text, written down anew."""
    positions = list(range(answer.answer_start, len(answer.ids)))
    if token == "last":
        return [len(answer.ids) - 1]
    if token == "last_content":
        content = [p for p in positions if model.tokenizer.decode([answer.ids[p]]).isalnum()]
        return content[-1:] or [len(answer.ids) - 1]
    return (positions or [len(answer.ids) - 1]) if token == "mean" else [positions[token]]


@torch.no_grad()
def read_off(model, row, role, sites, token="last", editor=None):
    """By site, the vector of one unpadded text, heads side by side."""
    answer = TokenizedAnswer.of(model, row.prompt, getattr(row, role))
    chosen, found = span(model, answer, token), {}

    def keep(site):
        def hook(tensor, hook):
            found[site] = rearrange(tensor, "b p ... -> b p (...)")[0, chosen].mean(0)

        return site.hook_name, hook

    edits = [] if editor is None else editor.fwd_hooks(model)
    with model.hooks(fwd_hooks=[*edits, *map(keep, sites)]):
        model(torch.tensor([answer.ids]), use_cache=False)
    return found


def assert_read_off(model, activations, demonstrations, token="last", editor=None):
    for role in activations.roles:
        for index, row in enumerate(demonstrations):
            for site, vector in read_off(model, row, role, activations.sites, token, editor).items():
                torch.testing.assert_close(activations[role][site][index], vector, atol=5e-5, rtol=1e-4)


def same(one, other):
    return (one.sites, one.roles) == (other.sites, other.roles) and all(
        torch.equal(one[role][site], other[role][site]) for role in one.roles for site in one.sites
    )


# --- the right numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["last_content", "mean", 0, -1])
def test_activations_equal_those_of_single_texts(llama, token):
    activations = collect(llama, token=token, batch_size=4)
    assert (activations.layers, activations.n, activations.token) == ([0, 1, 2], 5, token)
    assert_read_off(llama, activations, DEMONSTRATIONS, token=token)


@pytest.mark.parametrize("token", ["last", "mean", "last_content"])
def test_a_shared_beginning_changes_nothing(llama, token):
    """An empty answer's token is the prompt's last."""
    for options in ({"batch_size": 1}, {"batch_size": 2}, {"batch_size": 3, "share_prefix": False}):
        assert_read_off(llama, collect(llama, SHARING, token=token, **options), SHARING, token=token)


def test_any_sites_are_gathered_in_one_pass(bridge):
    """Heads lie side by side."""
    lacking = {"resid_mid"} if bridge.cfg.model_name == "tiny-gpt-neox" else set()
    names = [name for name in NAMES if name not in lacking | {"unembed.hook_in"}]
    collect(bridge, layers=[0])  # the model has been tried by now
    with Passes(bridge) as passes:
        found = collect(bridge, layers=[0, -1], site=[*names, "unembed.hook_in"], batch_size=100)
    assert passes.n <= 2  # the second tells the widths
    assert len(found.sites) == 2 * len(names) + 1
    assert found.sites == sorted(found.sites)
    assert_read_off(bridge, found, DEMONSTRATIONS)
    row = DEMONSTRATIONS[3]
    ids = torch.tensor([token_ids(bridge, join(row.prompt, row.positive))])
    with torch.no_grad():
        last = bridge.original_model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
    torch.testing.assert_close(found.positive["unembed.hook_in"][3], last, atol=5e-5, rtol=1e-4)


def test_sites_are_asked_for_in_any_form(llama):
    whole = collect(llama, site=["resid_post", "mlp_out"])
    named = collect(llama, layers=["blocks.1.hook_mlp_out", Site(2), 0])
    assert list(map(str, named.sites)) == [
        "blocks.0.hook_resid_post",
        "blocks.1.hook_mlp_out",
        "blocks.2.hook_resid_post",
    ]
    for site in named.sites:
        torch.testing.assert_close(named.negative[site], whole.negative[site], atol=2e-5, rtol=1e-5)
    assert collect(llama, layers=["unembed.hook_in"]).sites == [Site(None, "unembed.hook_in")]
    assert collect(llama, site="unembed.hook_in").sites == [Site(None, "unembed.hook_in")]


def test_token_choices_differ(llama):
    """So that the tests above could tell them apart."""
    found = [collect(llama, token=token).neutral[1] for token in ("last", "last_content", "mean", 0)]
    assert all((found[i] - found[j]).abs().max() > 0.1 for i in range(4) for j in range(i))


def test_demonstrations_without_neutral_answers_have_two_sides(llama):
    rows = [(row.prompt, row.positive, row.negative) for row in SHARING]
    found, whole = collect(llama, Demonstrations.from_lists(*zip(*rows, strict=True))), collect(llama, SHARING)
    assert found.roles == list(BOTH)
    for role in BOTH:
        torch.testing.assert_close(found[role][1], whole[role][1], atol=2e-5, rtol=1e-5)
    with pytest.raises(InputError, match=r"1 of 2 demonstrations have no neutral .*with_neutral_answers\(model\)"):
        collect(llama, replace(DEMONSTRATIONS, rows=(replace(DEMONSTRATIONS[0], neutral=None), DEMONSTRATIONS[1])))


def test_a_pass_has_so_many_rows_and_stops_at_the_last_layer(llama):
    every, reached, sizes = collect(llama, batch_size=5), [], []
    watch = [(f"blocks.{layer}.hook_mlp_out", lambda t, hook: reached.append(hook.layer())) for layer in range(3)]
    watch += [("blocks.0.hook_in", lambda tensor, hook: sizes.append(tensor.shape[:2]))]
    with llama.hooks(fwd_hooks=watch):
        some = collect(llama, layers=[1, 0], batch_size=4)
        assert set(reached) == {0, 1}
        collect(llama, SHARING, layers=[0], batch_size=2)  # the beginnings stop there as well
    longest = max(
        len(token_ids(llama, join(row.prompt, getattr(row, role)))) for row in DEMONSTRATIONS for role in ROLES
    )
    assert max(size.numel() for size in sizes) <= 4 * longest
    assert max(size[0] for size in sizes) > 1
    assert reached[-1] == 0
    for layer in some.layers:
        torch.testing.assert_close(some.positive[layer], every.positive[layer], atol=2e-5, rtol=1e-5)
    # After the last block there is nothing to stop at, but logits are of one token.
    made = []
    with llama.hooks(fwd_hooks=[("unembed.hook_out", lambda tensor, hook: made.append(tensor.shape[:2].numel()))]):
        collect(llama)
    assert set(made) == {1}


def test_what_is_shared_is_run_once(llama):
    """The few-shot prompt for all, and each prompt once for its three completions."""
    collect(llama, SHARING)  # the model has been tried by now
    texts = [len(row.prompt) + 1 + len(" " + getattr(row, role)) for row in SHARING for role in ROLES]
    with Passes(llama) as few:
        collect(llama, SHARING, batch_size=1)
    with Passes(llama) as many:
        collect(llama, SHARING, batch_size=1, share_prefix=False)
    assert many.tokens == pytest.approx(sum(texts), abs=3)
    assert few.tokens < many.tokens - 8 * (len(FEW_SHOT) - 1) - 2 * len("and the sun, where does it go?")


def test_a_beginning_longer_than_a_sliding_window():
    model = build_bridge("mistral", sliding_window=8)
    shared, apart = (collect(model, SHARING, batch_size=3, share_prefix=share) for share in (True, False))
    wide = collect(build_bridge("mistral"), SHARING, batch_size=3)
    for role in ROLES:
        torch.testing.assert_close(shared[role][2], apart[role][2], atol=1e-5, rtol=1e-5)
    assert (shared.neutral[2] - wide.neutral[2]).abs().max() > 0.01  # the window did something


def test_the_model_is_left_as_it_was(llama):
    weights = {name: value.clone() for name, value in llama.state_dict().items()}
    activations = collect(llama, editor=make_editor())
    assert all(torch.equal(value, weights[name]) for name, value in llama.state_dict().items())
    assert not any(point.fwd_hooks for point in llama.hook_dict.values())
    assert not any(tensor.requires_grad for role in ROLES for tensor in activations[role].values())


def test_half_precision_models_give_float32():
    model = build_bridge("llama", dtype=torch.bfloat16)
    activations = collect(model)
    assert activations.neutral[0].dtype == torch.float32
    expected = read_off(model, DEMONSTRATIONS[0], "neutral", [Site(2)])[Site(2)].float()
    torch.testing.assert_close(activations.neutral[2][0], expected, atol=0.1, rtol=0.05)


# --- as a stream -----------------------------------------------------------------------------------------------------


def test_a_stream_holds_every_demonstration_once_the_longest_first(llama, monkeypatch):
    whole = collect(llama, SHARING, batch_size=2)
    first = sum(len(token_ids(llama, join(SHARING[0].prompt, getattr(SHARING[0], role)))) for role in ROLES)
    for kept in (10**6, first):  # of what is beyond, texts are tokenized again
        monkeypatch.setattr(demonstration_texts, "KEPT_TOKENS", kept)
        stream = ActivationStream(llama, SHARING, batch_size=2)
        assert [stream.rows(number).tolist() for number in range(len(stream))] == [[1, 0], [2]]
        for batch, rows in zip(stream, ([1, 0], [2]), strict=True):
            for role in ROLES:
                assert torch.equal(batch[role][1], whole[role][1][rows])
    with pytest.raises(IndexError, match="Batch 2 was asked for, and there are 2"):
        stream[2]


# --- what is refused, what is warned about ---------------------------------------------------------------------------


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": [0, 3]}, ModelMismatchError, r"Layers \[3\] do not exist.*0 to 2"),
        ({"layers": []}, InputError, "No layers were given"),
        ({"site": "resid_end"}, ModelMismatchError, "no site 'resid_end'.*It has:.*attn.hook_z.*resid_post"),
        ({"token": "first"}, InputError, "'last_content' or 'mean' or a whole number, and 'first' was given"),
        ({"token": 3}, InputError, r"Demonstration 2 \(neutral\) has an answer of 3 tokens, so there is no token 3"),
        ({"token": -4}, InputError, r"Demonstration 2 \(neutral\) has an answer of 3 tokens, so there is no token -4"),
        ({"batch_size": 0}, InputError, "batch_size must be at least 1, and 0"),
    ],
)
def test_impossible_arguments(llama, options, error, message):
    with pytest.raises(error, match=message), Passes(llama, stop_after=0):
        collect(llama, **options)


def test_texts_that_cannot_be_collected_are_named(llama):
    rows = Demonstrations.from_lists(["a", "b" * 130], ["c", "d"], ["e", "f"], ["g", "h"])
    with pytest.raises(InputError, match=r"Demonstration 1 \(neutral\) is 133 tokens long.*context is 128"):
        collect(llama, rows)
    model = build_bridge("llama")
    with torch.no_grad():
        model.original_model.get_input_embeddings().weight[token_ids(model, "#")[-1]] = float("nan")
    rows = Demonstrations.from_lists(["a", "b"], ["c", "d"], ["e", "f #"], ["g", "h"])
    # In a row with it, what no text sees is NaN times zero for its neighbors.
    where = r"blocks\.0\.hook_resid_post, blocks\.1\.hook_resid_post, .*: .*Demonstration 1 \(negative\)"
    with pytest.raises(InputError, match=rf"NaN or infinity in the activations at {where}"):
        collect(model, rows)


def test_confounds_are_warned_about_unasked(llama):
    confounded = Demonstrations.from_lists(
        ["Who?", "What?"], ["me", "it"], ["somebody else.", "some other thing."], ["you", "he"]
    )
    with pytest.warns(SeaLensWarning) as caught:
        collect_activations(llama, confounded, progress=False)
    assert any("length alone" in str(warning.message) for warning in caught)
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


@pytest.mark.parametrize(("reached", "left"), [(0, 3), (1, 3), (2, 1)])
def test_a_killed_collection_goes_on_where_it_stopped(llama, tmp_path, reached, left):
    whole = collect(llama, batch_size=4)  # a batch of 4 demonstrations in 2 passes, and one of 1 in 1
    with pytest.raises(KeyboardInterrupt), Passes(llama, stop_after=reached):
        collect(llama, batch_size=4, folder=tmp_path / "run")
    with pytest.raises(FileFormatError, match="no finished collection"):
        Activations.load(tmp_path / "run")
    with Passes(llama) as passes:
        resumed = collect(llama, batch_size=4, folder=tmp_path / "run")
    assert passes.n == left
    assert same(resumed, whole)


def test_a_finished_collection_is_read_back(llama, tmp_path):
    options = {"folder": tmp_path, "site": ["resid_post", "attn.hook_z"], "editor": make_editor()}
    first = collect(llama, **options)
    with Passes(llama) as passes:
        second = collect(llama, **options)
    assert passes.n <= 1  # which tells the widths
    assert same(first, second)
    assert same(Activations.load(tmp_path), first)
    facts = ("token", "model", "demonstrations", "editor")
    assert [getattr(second, fact) for fact in facts] == [getattr(first, fact) for fact in facts]
    assert (first.model.name, first.demonstrations) == ("tiny-llama", DEMONSTRATIONS.fingerprint)
    assert first.editor == make_editor().fingerprint
    assert collect(llama).editor is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["activations.safetensors", "collection.json"]


@pytest.fixture(scope="module")
def finished(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    collect(llama, folder=folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"layers": [0]}, "sites"),
        ({"site": "mlp_out"}, "sites"),
        ({"token": "mean"}, "token"),
        ({"batch_size": 3}, "batch_size"),
        ({"demonstrations": DEMONSTRATIONS[:3]}, "demonstrations"),
        ({"editor": make_editor()}, "editor"),
        ({"editor": make_editor().at_positions(1)}, "editor"),
        ({"model": build_bridge("llama", initializer_range=0.3)}, "weights"),
        ({"model": build_bridge("gpt2")}, "model, weights"),
    ],
)
def test_a_folder_of_another_collection_is_refused(llama, finished, changes, difference):
    with pytest.raises(FileFormatError, match=f"differs in {difference}. Choose another folder"):
        collect(**{"model": llama, "demonstrations": DEMONSTRATIONS, **changes}, folder=finished)


def test_a_model_that_is_edited_already_is_told_from_one_that_is_not(llama, finished, tmp_path):
    editor = make_editor()
    with editor.attached(llama):
        with pytest.raises(FileFormatError, match="differs in attached"):
            collect(llama, folder=finished)
        edited = collect(llama, folder=tmp_path)
    assert edited.editor == editor.fingerprint
    assert same(edited, collect(llama, editor=editor))
    with llama.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda tensor, hook: 2 * tensor)]):
        with pytest.raises(InputError, match="hooks of your own"):
            collect(llama, folder=tmp_path / "other")
        assert not same(collect(llama), Activations.load(finished))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:40]),
        lambda path: save_file({"batch": torch.ones(1, 3, 3 * D_MODEL)}, path),
    ],
    ids=["truncated", "not ours"],
)
def test_a_damaged_batch_is_collected_again(llama, tmp_path, damage):
    whole = collect(llama, batch_size=4)
    with pytest.raises(KeyboardInterrupt), Passes(llama, stop_after=2):
        collect(llama, folder=tmp_path, batch_size=4)
    (batch,) = tmp_path.glob("*.safetensors")
    damage(batch)
    assert same(collect(llama, folder=tmp_path, batch_size=4), whole)


def test_a_damaged_manifest_is_refused_and_what_is_not_finite_is_not_kept(tmp_path):
    model = build_bridge("llama")
    (tmp_path / "collection.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"could not be read.*Delete the folder"):
        collect(model, folder=tmp_path)
    (tmp_path / "collection.json").unlink()
    with torch.no_grad():
        model.original_model.get_input_embeddings().weight.fill_(float("inf"))
    with pytest.raises(InputError, match="NaN or infinity"):
        collect(model, folder=tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    assert json.loads((tmp_path / "collection.json").read_text())["token"] == "last"


# --- under an editor --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [None, 3, "generated", "prompt"])
@pytest.mark.parametrize("name", ["resid_post", "attn.hook_z"])
def test_edited_activations_equal_those_of_single_texts_run_edited(llama, name, where):
    editor = make_editor(site=name) if where is None else make_editor(site=name).at_positions(where)
    for demonstrations in (DEMONSTRATIONS, SHARING):
        activations = collect(llama, demonstrations, editor=editor, batch_size=4)
        plain = collect(llama, demonstrations, batch_size=4)
        if where in (None, 3):
            assert_read_off(llama, activations, demonstrations, editor=editor)
        assert not same(activations, plain)


def test_the_beginnings_are_edited_too(bridge):
    editor = make_editor().at_positions(5)
    shared = collect(bridge, SHARING, editor=editor)
    assert_read_off(bridge, shared, SHARING, editor=editor)
    assert (shared.neutral[2] - collect(bridge, SHARING).neutral[2]).abs().max() > 0.1


def test_prompt_and_generated_tokens_are_told_apart(llama):
    """The last token of an answer is edited by the one choice alone."""
    plain, editor = collect(llama, SHARING), make_editor(layers=(0,))
    generated, prompt = (
        collect(llama, SHARING, editor=editor.at_positions(where)) for where in ("generated", "prompt")
    )
    rows = [0, 1]  # the third has an empty negative answer
    for role in ROLES:
        expected = editor[0](plain[role][0])
        torch.testing.assert_close(generated[role][0][rows], expected[rows], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(prompt[role][0][rows], plain[role][0][rows], atol=2e-5, rtol=1e-4)
        assert (prompt[role][2] - plain[role][2]).abs().max() > 0.01
    torch.testing.assert_close(prompt.negative[0][2], editor[0](plain.negative[0][2]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("site", ["resid_post", "mlp_out"])
def test_at_an_edited_layer_the_edited_value_is_collected(llama, site):
    """The edit applied by hand to what the unedited model has there."""
    plain, editor = collect(llama, site=site), make_editor(layers=(1, 2), site=site)
    edited = collect(llama, site=site, editor=editor)
    for role in ROLES:
        assert torch.equal(edited[role][0], plain[role][0])
        torch.testing.assert_close(edited[role][1], editor[1](plain[role][1]), atol=2e-5, rtol=1e-4)
        assert (edited[role][1] - plain[role][1]).abs().max() > 0.1
        # Above it, more than this layer's edit has changed.
        assert (edited[role][2] - editor[2](plain[role][2])).abs().max() > 0.01
    assert same(collect(llama, site=site, editor=make_editor(site=site, strength=0.0)), plain)


def test_by_the_published_rule_texts_are_run_one_by_one(llama):
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(D_MODEL, 2, generator=generator)).Q for _ in range(2)]
    editor = Editor({1: PublishedEdit(*bases)})
    assert not ActivationStream(llama, SHARING, editor=editor).shares_prefix
    assert_read_off(llama, collect(llama, SHARING, editor=editor, batch_size=8), SHARING, editor=editor)


def test_editors_that_do_nothing_here(llama):
    with pytest.raises(HookNeverFiredError, match="edited no token of any text"):
        collect(llama, editor=make_editor().at_positions(100))
    with pytest.raises(ModelMismatchError, match=r"Layers \[7\] do not exist"):
        collect(llama, editor=make_editor(layers=(7,)))
    clean = Demonstrations.from_lists(["Who?", "What?"], ["her", "one"], ["him", "two"], ["you", "six"])
    with (
        pytest.warns(SeaLensWarning, match=r"first site is blocks\.2.* and the last one collected is blocks\.1"),
        pytest.raises(HookNeverFiredError),
    ):
        collect_activations(llama, clean, layers=[0, 1], editor=make_editor(layers=(2,)), progress=False)
