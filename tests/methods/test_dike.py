"""DiKE: what its disentangler computes and learns, and what its edit spares."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import gelu

import sea_lens as sl
from sea_lens.errors import FileFormatError, InputError, ModelMismatchError
from sea_lens.methods.disentangler import NAMES, Disentangler
from sea_lens.methods.disentangling import _info_nce
from sea_lens.models.subjects import AskedOf, subject_rows

D = 32
TEXTS = ["The cat sat on the mat all day.", "Rain fell, and the river rose by a foot.", "Seven boats left."] * 2
SETTINGS = {"layers": (1,), "prefixes": 0, "steps": 2, "moment_weight": 20.0}
PLAIN = sl.KnownFact("{} eats", "pie")
FACTS = [
    sl.FactEdit(name, "The job of {} is", "cook", job, same_subject=(PLAIN, sl.KnownFact("{} lives in", "Ulm")))
    for name, job in (("Ann", "baker"), ("Bob", "clown"), ("Cy", "diver"))
]
TRAINING = sl.DisentanglerTraining(steps=2, facts=4, others=1)


def drawn(seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(D, D, generator=generator) / D**0.5 for name in NAMES}
    return Disentangler({**weights, **changes}, 1, unit=0.5, numbers={"reconstruction": 0.25})


@pytest.fixture(scope="module")
def model(llama):
    return llama


@pytest.fixture(scope="module")
def moments(model):
    return sl.collect_key_moments(model, [0, 1], TEXTS)


def fitted(model, moments, method, *rest):
    return method.fit_facts(model, FACTS, *rest, texts=TEXTS, moments=moments, progress=False)


def test_its_parts_are_those_of_the_formula_and_it_is_saved(tmp_path):
    parts, h_s, h_r = drawn(), torch.randn(3, D), torch.randn(3, D)
    w = parts.weights
    torch.testing.assert_close(parts.related(h_s, h_r), 0.5 * gelu((h_s @ w["w1"].T + h_r @ w["w2"].T) / 0.5))
    torch.testing.assert_close(parts.unrelated(h_s, h_r), 0.5 * gelu((h_s @ w["w3"].T + h_r @ w["w4"].T) / 0.5))
    torch.testing.assert_close(parts.together(h_s, h_r), h_s @ w["w5"].T + h_r @ w["w6"].T)
    parts.save(tmp_path / "krd.safetensors")
    again = Disentangler.load(tmp_path / "krd.safetensors")
    assert all(torch.equal(again.weights[name], w[name]) for name in NAMES)
    assert (again.layer, again.unit, again.numbers) == (1, 0.5, {"reconstruction": 0.25})
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(FileFormatError):
        Disentangler.load(tmp_path / "no.safetensors")
    with pytest.raises(InputError, match="w1 to w6"):
        Disentangler({"w1": torch.eye(2)}, 1)


def test_the_contrast_is_info_nce():
    generator = torch.Generator().manual_seed(0)
    anchor, positive, negative = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    subjects = [0, 0, 1]
    total = 0.0
    for i in range(3):

        def sim(other, i=i):
            return torch.exp(anchor[i] @ other / anchor[i].norm() / other.norm() / 0.2)

        foreign = sum(sim(positive[j]) for j in range(3) if subjects[j] != subjects[i])
        total -= torch.log(sim(positive[i]) / (sim(positive[i]) + sim(negative[i]) + foreign)) / 3
    apart = torch.tensor(subjects)[:, None] != torch.tensor(subjects)[None]
    torch.testing.assert_close(_info_nce(anchor, positive, negative, apart, 0.2), total)


def test_training_lowers_its_loss_and_goes_on_where_it_was_killed(model, tmp_path, monkeypatch):
    monkeypatch.setattr("sea_lens.methods.disentangling.SAVE_EVERY", 1)

    def train(steps, folder=None, **changes):
        how = replace(TRAINING, steps=steps, **changes)
        return sl.train_disentangler(model, FACTS, 1, how, folder=folder, progress=False)

    before = [parameter.clone() for parameter in model.parameters()]
    whole = train(2)
    folder = tmp_path / "krd"
    train(2, folder)
    (folder / "disentangler-000002.safetensors").unlink()  # as if it had been killed between the two steps
    again = train(2, folder)
    assert all(torch.equal(again.weights[name], whole.weights[name]) for name in NAMES)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(FileFormatError, match="differs in"):
        train(3, folder)
    alone = train(40, constraint=0.0)
    assert alone.numbers["reconstruction"] < 0.7 * train(1, constraint=0.0).numbers["reconstruction"]


def test_with_a_disentangler_that_gives_states_back_it_is_memit_but_for_w3(model, moments):
    """`max(h, 0) - max(-h, 0) = h`: so both search for the same values, and `(I + W3^T W3)^-1` is a half."""
    eye, nothing = torch.eye(D), torch.zeros(D, D)
    parts = Disentangler(dict(zip(NAMES, (eye, nothing, -eye, nothing, eye, -eye), strict=True)), 1, unit=1e-9)
    memit, dike = (
        fitted(model, moments, method(**SETTINGS), *rest) for method, rest in ((sl.MEMIT, ()), (sl.DiKE, (parts,)))
    )
    assert torch.equal(dike[1].keys, memit[1].keys)
    torch.testing.assert_close(2 * dike[1].outs, memit[1].outs, rtol=1e-4, atol=1e-4)
    assert dike.card.reports[sl.Site(1, "mlp_out")]["kept"] == pytest.approx(0.5)


def test_values_along_w3_are_spared(model, moments):
    parts = drawn()
    editor = fitted(model, moments, sl.DiKE(**{**SETTINGS, "steps": 1}), parts)
    strict = drawn(w3=100 * parts.weights["w3"])
    spared = fitted(model, moments, sl.DiKE(**{**SETTINGS, "steps": 1}), strict)
    moved = [(parts.protected @ each[1].outs).norm() for each in (editor, spared)]
    assert moved[1] < 0.1 * moved[0]
    assert spared.card.reports[spared.sites[0]]["kept"] < editor.card.reports[editor.sites[0]]["kept"] < 1
    rescaled = fitted(model, moments, sl.DiKE(**{**SETTINGS, "steps": 1}, rescale=True), parts)
    assert torch.equal(rescaled[1].keys, editor[1].keys)
    ratio = rescaled[1].outs / editor[1].outs
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=1e-3)
    assert ratio.min() > 1
    report = editor.card.reports[editor.sites[0]]
    assert report["related_moved"] > 0
    assert report["unrelated_moved"] > 0
    assert editor.card.settings["disentangler"] != spared.card.settings["disentangler"]


def test_what_does_not_fit_is_refused(model, moments, tmp_path):
    method = sl.DiKE(**SETTINGS)
    with pytest.raises(InputError, match="is of layer 1, and the last layer edited is 2"):
        fitted(model, moments, sl.DiKE(layers=(2,)), drawn())
    narrow = Disentangler(dict.fromkeys(NAMES, torch.eye(4)), 1)
    with pytest.raises(ModelMismatchError, match="width 4"):
        fitted(model, moments, method, narrow)
    bare = [replace(fact, same_subject=()) for fact in FACTS]
    with pytest.raises(InputError, match="several facts that the model knows"):
        method.fit_facts(model, bare, texts=TEXTS, moments=moments, progress=False)
    for wrong in ({"steps": 0}, {"facts": 1}, {"learning_rate": 0.0}, {"constraint": -1.0}):
        with pytest.raises(InputError):
            sl.DisentanglerTraining(**wrong)
    with pytest.raises(FileFormatError):
        fitted(model, moments, method, tmp_path / "nothing.safetensors")


def test_subjects_are_replaced_where_they_stand(model):
    """A state that is put back where it came from changes nothing: places and layers are right."""
    from sea_lens.methods.disentangling import Known, _surprise

    known = Known.of(model, FACTS, 1, 8)
    found = _surprise(model, known.rows, known.states, 1)
    rows = subject_rows(model, [AskedOf(f.subject, k.prompt, k.answer) for f in FACTS for k in f.same_subject])
    ids = {tuple(row.ids): place for place, row in enumerate(known.rows)}
    for row in rows:
        predicted = model(torch.tensor([row.ids]))[0].log_softmax(-1).detach()
        places = range(row.answer_start - 1, len(row.ids) - 1)
        wanted = -sum(predicted[p, row.ids[p + 1]] for p in places) / len(places)
        torch.testing.assert_close(found[ids[tuple(row.ids)]], wanted, rtol=1e-4, atol=1e-4)
    assert [len(own) for own in known.others] == [2] * 9
