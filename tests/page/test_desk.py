"""What stands behind the page: settings, both answers as the library gives them, bounds, several users."""

from threading import Thread

import pytest
import torch

import sea_lens as sl
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.page.cards import cards_html, findings, header_html, verdict_html, view_html, where_text
from sea_lens.page.desk import CONTROL, KEPT, SPARING, WHERES, Desk, Setting, Turn
from sea_lens.worlds.demo import collect


@pytest.fixture(scope="module")
def editor(organism):
    return sl.SEA(0.5, center=True).fit(collect(*organism)).first_layers(3).scaled(2.0)


FEW = ["<truthful> Q Bram job A clerk .", "<truthful> Q Yara food A yoghurt ."]
pytestmark = pytest.mark.filterwarnings("ignore::sea_lens.errors.SeaLensWarning")


@pytest.fixture
def desk(organism, editor):
    return Desk(organism[0], {"sea": editor}, texts=FEW)


@pytest.fixture(scope="module")
def prompt(organism):
    """A question that the edit answers otherwise."""
    return organism[1].questions(organism[1].held_out[-1:])[0].prompt


def last(shown):
    *_, found = shown
    return found


def test_both_answers_are_the_librarys_and_words_and_damage_come_with_them(organism, editor, desk, prompt):
    found = last(desk.ask([], prompt, Setting("sea", max_new_tokens=4)))
    (turn,) = found.turns
    assert turn.plain == sl.generate(organism[0], prompt, max_new_tokens=4)
    assert turn.edited == sl.generate(organism[0], prompt, editor, max_new_tokens=4)
    assert turn.plain != turn.edited
    assert found.damage.kl == sl.measure_damage(organism[0], [], editor, texts=FEW).kl
    assert found.view.finding == sl.view_tokens(organism[0], prompt, editor, answer=turn.edited, damage=False).finding
    assert findings(found, desk)[0].startswith("The edit changes the answer.")
    assert "does not break the model" in verdict_html(found, desk)
    assert turn.edited.split()[0] in cards_html(found)
    assert view_html(found).count("<label") == len(found.view.tokens)


def test_it_comes_step_by_step(desk, prompt):
    doing = [shown.doing for shown in desk.ask([], prompt, Setting("sea", max_new_tokens=4))]
    assert list(dict.fromkeys(doing)) == [
        "the plain model answers",
        "the edited model answers",
        "looking at the tokens",
        "measuring the damage",
        "",
    ]
    assert doing.count("the edited model answers") == 5  # the card, and each token


def test_strength_0_and_layers_that_are_not_edited_are_said(desk, prompt):
    found = last(desk.ask([], prompt, Setting("sea", strength=0.0, max_new_tokens=4)))
    assert found.turns[0].plain == found.turns[0].edited
    assert (found.damage.kl, found.view.moved) == (0, 0)
    assert findings(found, desk) == ["Strength 0 is no edit: both answers are the plain model's."]
    found = last(desk.ask([], prompt, Setting("sea", first=3, max_new_tokens=4)))
    assert (found.editor, found.view, found.damage) == (None, None, None)
    assert findings(found, desk) == ["Nothing is edited: sea edits layers 0-2, and none of them is chosen."]
    assert found.turns[0].plain == found.turns[0].edited


def test_an_edit_beyond_the_text_does_nothing_and_a_broken_model_is_told(organism, prompt):
    far = sl.Editor({1: sl.AffineEdit.of_shift(shift())})
    desk = Desk(organism[0], {"far": far.at_positions(99), "shift": far}, texts=FEW)
    found = last(desk.ask([], prompt, Setting("far", max_new_tokens=1)))
    assert findings(found, desk)[0].startswith("At this setting the edit does nothing here")
    found = last(desk.ask([], prompt, Setting("shift", max_new_tokens=1)))
    assert "Damage: breaks the model" in verdict_html(found, desk)
    assert "breaks the model" in cards_html(found)


def shift():
    return 300 * torch.randn(128, generator=torch.Generator().manual_seed(0))


def test_settings_choose_layers_tokens_and_strength(desk, editor):
    found = desk.edited(Setting("sea", "the prompt alone", -0.5, 1, 3))
    assert found.layers == [1, 2]
    assert found.fingerprint == editor.at_layers([1, 2]).at_positions("prompt").scaled(-0.5).fingerprint
    assert desk.edited(Setting("sea", SPARING)).fingerprint == editor.at_positions("all").fingerprint
    assert desk.edited(Setting(f"{CONTROL}sea")).fingerprint == sl.random_editor_like(editor, seed=0).fingerprint
    for where in WHERES:
        assert desk.edited(Setting("sea", where)).layers == editor.layers
    for wrong in (Setting("see"), Setting("sea", "nowhere"), Setting("sea", strength=5.0)):
        with pytest.raises(InputError, match="no such setting"):
            desk.edited(wrong)


def test_too_much_is_refused_before_the_model_runs(desk, prompt):
    for asked, told in ((" ", "is empty"), ("Q " * 3000, "4000 characters"), ("Q " * 200, "tokens long")):
        with pytest.raises(InputError, match=told):
            next(desk.ask([], asked, Setting("sea")))
    found = next(desk.ask([], prompt, Setting("sea", max_new_tokens=10**9)))
    assert found.setting.max_new_tokens == 128
    with pytest.raises(InputError, match="no chat template"):
        next(desk.ask([], prompt, Setting("sea"), chat=True))


def test_users_at_once_get_what_each_gets_alone(desk, organism, editor, prompt):
    settings = [Setting("sea", strength=strength, max_new_tokens=3) for strength in (1.0, 0.0, -1.0, 0.5)]
    alone = [last(Desk(organism[0], {"sea": editor}, texts=FEW).ask([], prompt, one)).turns for one in settings]
    found = [None] * len(settings)

    def use(number):
        found[number] = last(desk.ask([], prompt, settings[number])).turns

    users = [Thread(target=use, args=(number,)) for number in range(len(settings))]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert found == alone
    assert len({turns[0].edited for turns in found}) > 1


def test_a_user_who_leaves_does_not_keep_the_model(desk, prompt):
    shown = desk.ask([], prompt, Setting("sea", max_new_tokens=8))
    next(shown), next(shown)
    shown.close()
    assert last(desk.ask([], prompt, Setting("sea", max_new_tokens=2))).turns[0].edited


def test_what_was_said_is_kept_and_not_without_bound(desk, prompt):
    last(desk.ask([], prompt, Setting("sea", max_new_tokens=2)))
    kept = dict(desk._kept)
    assert [key[0] for key in kept] == ["answer", "answer", "view", "damage"]
    last(desk.ask([], prompt, Setting("sea", max_new_tokens=2)))
    assert dict(desk._kept) == kept
    for number in range(2 * KEPT):
        desk._keep(number, number)
    assert len(desk._kept) == KEPT


def test_conversations_have_a_history_on_each_side(desk, prompt, monkeypatch):
    template = "{% for m in messages %}{{ m.content }} . {% endfor %}"
    monkeypatch.setattr(desk.model.tokenizer, "chat_template", template)
    before = [Turn(prompt, "rabbit", "spaniel")]
    found = last(desk.ask(before, "Q Gus pet A", Setting("sea", max_new_tokens=1), chat=True))
    assert found.turns[0] == before[0]
    asked = {side: f"{prompt} . {getattr(before[0], side)} . Q Gus pet A . " for side in ("plain", "edited")}
    assert found.turns[1].plain == sl.generate(desk.model, asked["plain"], max_new_tokens=1)
    assert found.turns[1].edited == sl.generate(desk.model, asked["edited"], desk.editors["sea"], max_new_tokens=1)
    assert cards_html(found).count("sl-asked") == 4


def test_nothing_that_is_typed_becomes_html(desk):
    found = last(desk.ask([], "<script>alert(1)</script>", Setting("sea", max_new_tokens=1)))
    for html in (cards_html(found), verdict_html(found, desk), view_html(found), header_html(desk)):
        assert "<script" not in html
    assert "&lt;script&gt;" in cards_html(found)
    assert "every token" in where_text(desk, "sea")


def test_a_desk_needs_an_editor_that_fits(organism):
    with pytest.raises(InputError, match="needs an editor"):
        Desk(organism[0], {})
    with pytest.raises(ModelMismatchError):
        Desk(organism[0], {"other": sl.Editor({9: sl.AffineEdit.of_shift(shift())})})
