"""MEMIT against the published rule written out: its closed form, its search for values, its way through the layers."""

import pytest
import torch
from conftest import build_bridge

import sea_lens as sl
from sea_lens.errors import FileFormatError, InputError, ModelMismatchError
from sea_lens.methods.closed_form import least_change
from sea_lens.methods.method import METHODS, method_of
from sea_lens.methods.values import Search, Start, find_values, prefixes_of
from sea_lens.models.down_projection import down_projection, gain_of_mlp
from sea_lens.models.key_moments import KeyMoments
from sea_lens.models.subjects import AskedOf, subject_rows

FACTS = [
    sl.FactEdit("Ann", "Is {} tall? A:", "yes"),
    sl.FactEdit("Bob of Ulm", "{} eats", "pie"),
    sl.FactEdit("Cy", "The job of {} is", "cook"),
]
TEXTS = ["The cat sat on the mat all day.", "Rain fell, and the river rose by a foot.", "Seven boats left."] * 2
SETTINGS = {"layers": (0, 1), "prefixes": 2, "steps": 3, "ridge": 0.0, "moment_weight": 20.0}


def columns(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def model(llama):
    return llama


@pytest.fixture(scope="module")
def moments(model):
    return sl.collect_key_moments(model, [0, 1, 2], TEXTS, batch_size=2)


@pytest.fixture(scope="module")
def editor(model, moments):
    return sl.MEMIT(**SETTINGS).fit_facts(model, FACTS, texts=TEXTS, moments=moments, progress=False)


@pytest.mark.parametrize("protect", [False, True])
def test_the_closed_form_is_where_the_objective_has_no_gradient_and_equals_least_squares(protect):
    keys, residuals, others = columns(9, 3), columns(6, 3, seed=1), columns(9, 40, seed=2)
    w3 = columns(4, 6, seed=3) if protect else torch.zeros(4, 6, dtype=torch.float64)
    change = least_change(keys, residuals, others @ others.T, w3)
    found = (change.outs @ change.keys.T).requires_grad_()
    terms = [found @ keys - residuals, found @ others, w3 @ found @ keys, w3 @ found @ others]
    sum(term.square().sum() for term in terms).backward()
    assert found.grad.abs().max() < 1e-11
    stacked = torch.cat([torch.eye(6, dtype=torch.float64), w3])
    wanted = torch.cat([torch.cat([residuals, torch.zeros(4, 3, dtype=torch.float64)]), torch.zeros(10, 40)], dim=1)
    # [I; W3] D [K, K0] = [[R, 0], [0, 0]], one side after the other: both have full rank.
    left = torch.linalg.lstsq(stacked, wanted).solution
    best = torch.linalg.lstsq(torch.cat([keys, others], dim=1).T, left.T).solution.T
    torch.testing.assert_close(found.detach(), best, rtol=1e-11, atol=1e-12)
    if not protect:
        memit = residuals @ keys.T @ torch.linalg.inv(others @ others.T + keys @ keys.T)
        torch.testing.assert_close(found.detach(), memit, rtol=1e-11, atol=1e-12)
        assert torch.equal(least_change(keys, residuals, others @ others.T).outs, change.outs)
    solo = least_change(keys[:, :1], residuals[:, :1], others @ others.T)
    reached = solo.outs @ solo.keys.T @ keys[:, :1]
    torch.testing.assert_close(reached, residuals[:, :1] * solo.reached)
    assert 0 < float(solo.reached) < 1


def test_values_are_protected_along_the_rows_given():
    keys, residual, others = columns(5, 1), columns(4, 1, seed=1), columns(5, 20, seed=2)
    along = residual.T / residual.norm()
    assert least_change(keys, residual, others @ others.T, 1e6 * along).outs.norm() < 1e-9
    across = columns(1, 4, seed=3)
    across -= across @ along.T * along
    torch.testing.assert_close(least_change(keys, residual, others @ others.T, across).outs, residual)


def test_a_singular_covariance_names_its_layer_and_the_remedy(model, moments):
    few = sl.collect_key_moments(model, [0, 1], TEXTS[2:3])
    with pytest.raises(
        InputError, match=r"singular in layer 0 \(18 neutral tokens, keys of width 64\).*more neutral text"
    ):
        sl.MEMIT(**SETTINGS).fit_facts(model, FACTS, texts=TEXTS, moments=few, progress=False)
    assert sl.MEMIT(**{**SETTINGS, "ridge": 0.1, "steps": 1, "kl": 0.0}).fit_facts(
        model, FACTS, moments=few, progress=False
    )
    with pytest.raises(InputError, match="layer 2 is edited"):
        sl.MEMIT(layers=(2,), steps=1).fit_facts(model, FACTS, moments=few, progress=False)


def test_moments_are_means_over_every_token_whatever_the_batch(model, moments, tmp_path):
    keys = []
    for text in TEXTS:
        ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
        ids = torch.cat([torch.tensor([[0]]), ids], dim=1)
        keys.append(model.run_with_cache(ids)[1]["blocks.1.mlp.hook_post"][0].detach().double())
    every = torch.cat(keys)
    assert moments.n_tokens == len(every)
    torch.testing.assert_close(moments.moments[1], every.T @ every / len(every), rtol=1e-5, atol=1e-6)
    assert len(moments.samples[1]) == len(every)
    moments.save(tmp_path / "m.safetensors")
    again = KeyMoments.load(tmp_path / "m.safetensors")
    assert all(torch.equal(again.moments[layer], moments.moments[layer]) for layer in (0, 1, 2))
    assert again.n_tokens == moments.n_tokens
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(FileFormatError):
        KeyMoments.load(tmp_path / "no.safetensors")


def test_the_subjects_last_token_is_found(model):
    for row, fact in zip(
        subject_rows(model, [AskedOf(f.subject, f.prompt, f.target_new, "Hm. ") for f in FACTS]), FACTS, strict=True
    ):
        text = model.tokenizer.decode(row.ids)
        assert text[text.index(fact.subject) :].startswith(fact.subject)
        assert model.tokenizer.decode(row.ids[: row.subject + 1]).endswith(fact.subject)
        assert model.tokenizer.decode(row.ids[row.answer_start :]).strip() == fact.target_new
    with pytest.raises(InputError, match="is not in the prompt"):
        subject_rows(model, [AskedOf("Ann", "Is she tall?")])


def by_hand(model, fact, layer, search, prefixes):
    """`compute_z.py`: the value of one fact, row by row, without padding."""
    rows = subject_rows(model, [AskedOf(fact.subject, fact.prompt, fact.target_new, before) for before in prefixes])
    (essence,) = subject_rows(model, [AskedOf(fact.subject, search.essence)])
    name = f"blocks.{layer}.hook_resid_post"

    def logits(row, delta):
        place = torch.zeros(len(row.ids), 1)
        place[row.subject] = 1
        hooks = [(name, lambda tensor, hook: tensor + place * delta)]
        return model.run_with_hooks(torch.tensor([row.ids]), fwd_hooks=hooks)[0].log_softmax(-1)

    (plain,) = subject_rows(model, [AskedOf(fact.subject, fact.prompt)])
    h = model.run_with_cache(torch.tensor([plain.ids]))[1][name][0, plain.subject].detach()
    before = logits(essence, torch.zeros(32))[essence.subject].detach()
    delta = torch.zeros(32, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=search.learning_rate)
    for step in range(search.steps):
        adam.zero_grad()
        nll = []
        for row in rows:
            places = range(row.answer_start - 1, len(row.ids) - 1)
            nll.append(-sum(logits(row, delta)[p, row.ids[p + 1]] for p in places) / len(places))
        after = logits(essence, delta)[essence.subject]
        kl = search.kl * (after.exp() * (after - before)).sum()
        loss = torch.stack(nll).mean() + kl + search.weight_decay * delta.norm() / h.norm() ** 2
        if loss < 5e-2 or step == search.steps - 1:
            break
        loss.backward()
        adam.step()
        with torch.no_grad():
            delta *= min(1.0, float(search.clamp * h.norm() / delta.norm()))
    return h, delta.detach(), loss.detach()


def test_values_are_those_of_the_published_search(model):
    search, facts = Search(3, 0.5, 0.5, 0.0625, 0.1, "{} is a"), FACTS[:2]
    prefixes = prefixes_of(model, TEXTS, 2)
    assert prefixes[0] == ""
    assert prefixes[1] == "The cat sa. "
    wanted = [by_hand(model, fact, 1, search, prefixes) for fact in facts]
    assert any(float(delta.norm() / h.norm()) > 0.099 for h, delta, _ in wanted)  # the limit is met
    start = Start(torch.stack([h for h, _, _ in wanted]))
    for batch_size in (1, 64):
        added, losses = find_values(model, facts, 1, search, start, prefixes, batch_size=batch_size, progress=False)
        torch.testing.assert_close(added, torch.stack([delta for _, delta, _ in wanted]), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(losses, torch.stack([loss for _, _, loss in wanted]), rtol=1e-3, atol=1e-3)
    assert all(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
def test_layers_are_edited_one_after_the_other_as_the_published_code_does(model, moments, editor):
    """`memit_main.py` with the weights really changed between the layers, in float64 but for the model's passes."""
    prefixes = prefixes_of(model, TEXTS, 2)
    clean = {fact.subject: by_place(model, fact, "", "blocks.1.hook_resid_post") for fact in FACTS}
    search = sl.MEMIT(**SETTINGS).search
    start = Start(torch.stack(list(clean.values())))
    added, _ = find_values(model, FACTS, 1, search, start, prefixes, batch_size=32, progress=False)
    wanted = start.states + added
    kept = {layer: down_projection(model, layer).weight.clone() for layer in (0, 1)}
    try:
        for number, layer in enumerate((0, 1)):
            k = torch.stack(
                [
                    torch.stack([by_place(model, fact, b, f"blocks.{layer}.mlp.hook_post") for b in prefixes])
                    for fact in FACTS
                ]
            ).double()
            k = ((k[:, 0] + k[:, 1:].mean(1)) / 2).T
            now = torch.stack([by_place(model, fact, "", "blocks.1.hook_resid_post") for fact in FACTS]).double()
            c = 20.0 * moments.moments[layer] + k @ k.T
            change = (wanted.double() - now).T / (2 - number) @ torch.linalg.solve(c, k).T
            torch.testing.assert_close(editor[layer].matrix, change, rtol=1e-3, atol=1e-4)
            down_projection(model, layer).weight.copy_(kept[layer].double() + change)
    finally:
        for layer, weight in kept.items():
            down_projection(model, layer).weight.copy_(weight)


def by_place(model, fact, before, name):
    (row,) = subject_rows(model, [AskedOf(fact.subject, fact.prompt, before=before)])
    return model.run_with_cache(torch.tensor([row.ids]))[1][name][0, row.subject].detach()


def chance(model, fact):
    (row,) = subject_rows(model, [AskedOf(fact.subject, fact.prompt, fact.target_new)])
    with torch.no_grad():
        predicted = model(torch.tensor([row.ids]))[0].log_softmax(-1)
    return float(sum(predicted[p, row.ids[p + 1]] for p in range(row.answer_start - 1, len(row.ids) - 1)))


def test_weights_do_the_same_and_the_editor_is_saved(model, editor, tmp_path):
    before = [chance(model, fact) for fact in FACTS]
    with editor.attached(model):
        after = [chance(model, fact) for fact in FACTS]
    with sl.WeightEdit(editor).attached(model):
        written = [chance(model, fact) for fact in FACTS]
    assert all(abs(late - early) > 0.01 for early, late in zip(before, after, strict=True))
    assert written == pytest.approx(after, abs=1e-3)
    editor.save_pretrained(tmp_path)
    again = sl.Editor.from_pretrained(tmp_path)
    assert again.fingerprint == editor.fingerprint
    assert again.card == editor.card
    assert method_of(again) == sl.MEMIT(**SETTINGS)
    assert "of what it should move values by" in repr(again)
    report = editor.card.reports[sl.Site(0, "mlp_out")]
    assert 0 < report["reached"] < 1
    assert report["kept"] == pytest.approx(1)
    assert 0 < report["read_50"] < report["read_99"] <= report["read_most"] < 1


def test_it_is_listed_and_says_what_it_needs(model, editor, moments):
    assert METHODS["memit"].summary.startswith("Changes facts")
    with pytest.raises(InputError, match=r"MEMIT\(\)\.fit_facts\(model, facts\)"):
        sl.MEMIT().fit(sl.Activations.from_tensors(positive={0: torch.ones(2, 32)}, negative={0: torch.ones(2, 32)}))
    with editor.attached(model):
        model(torch.tensor([[3, 4]]))
        with pytest.raises(InputError, match="an editor is attached"):
            sl.MEMIT(**SETTINGS).fit_facts(model, FACTS, moments=moments, progress=False)
    for wrong in (
        {"moment_weight": 0.0},
        {"ridge": -1.0},
        {"steps": 0},
        {"clamp": 0.0},
        {"kl": -1.0},
        {"prefixes": -1},
    ):
        with pytest.raises(InputError):
            sl.MEMIT(**wrong)
    with pytest.raises(ModelMismatchError, match="do not exist"):
        sl.MEMIT(layers=(7,)).fit_facts(model, FACTS, progress=False)
    narrow = KeyMoments({layer: columns(8, 8) for layer in (0, 1)}, {layer: torch.zeros(1, 8) for layer in (0, 1)}, 9)
    with pytest.raises(ModelMismatchError, match="of width 8"):
        sl.MEMIT(**{**SETTINGS, "steps": 1}).fit_facts(model, FACTS, texts=TEXTS, moments=narrow, progress=False)


def test_new_objects_become_likelier_even_where_a_norm_follows_the_mlps():
    gemma = build_bridge("gemma2")
    assert gain_of_mlp(gemma, 1) == pytest.approx(1, rel=1e-4)
    fact = FACTS[0]
    editor = sl.MEMIT(layers=(0, 1), steps=4, prefixes=0).fit_facts(gemma, [fact], texts=TEXTS, progress=False)
    before = chance(gemma, fact)
    with editor.attached(gemma):
        assert chance(gemma, fact) > before + 0.5
