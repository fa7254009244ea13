"""What demonstrations and questions share: choosing rows, templates, fingerprints."""

import copy
import dataclasses
import hashlib
import json
import tracemalloc

import pytest

from sea_lens import Demonstration, Demonstrations, Question, Questions
from sea_lens.data.prompts import PromptRows, tokenizer_of
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.models.tokens import TokenizedAnswer, join, token_ids

CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'developer' %}{{ raise_exception('no role') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
ROWS = (
    Demonstration("Is it, so?", 'yes, "so"', "no,\nnever", "peut-être"),
    Demonstration("日本の首都は", "東京 🗼", "京都\u2028", ""),
    Demonstration(" spaces\t", " x ", "\\n", "a\r\nb"),
)


def demonstrations(n: int, per_prompt: int = 1) -> Demonstrations:
    return Demonstrations.from_lists(
        [f"q{i // per_prompt}" for i in range(n)], [f"yes {i}" for i in range(n)], [f"no {i}" for i in range(n)]
    )


def questions(n: int, per_prompt: int = 1) -> Questions:
    return Questions.from_demonstrations(demonstrations(n, per_prompt))


def chat_tokenizer(model, template=CHAT):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def test_sample_is_seeded_and_without_replacement():
    rows = questions(20)
    sample = rows.sample(12, seed=5)
    assert isinstance(sample, Questions)
    assert sample == rows.sample(12, seed=5) != rows.sample(12, seed=6)
    assert len(set(sample)) == 12
    assert set(sample) < set(rows) == set(rows.sample(20))
    for n in (0, -1, 21):
        with pytest.raises(
            InputError, match=f"{n} questions were asked for and lists has 20. Give a number from 1 to 20"
        ):
            rows.sample(n)


@pytest.mark.parametrize("seed", range(3))
def test_split_is_disjoint_complete_and_by_prompt(seed):
    rows = demonstrations(40, per_prompt=4)
    first, second = rows.split(0.3, seed)
    assert (first, second) == rows.split(0.3, seed) != rows.split(0.3, seed + 1)
    assert (len(first), len(second)) == (12, 28)
    assert {row.prompt for row in first}.isdisjoint(row.prompt for row in second)
    assert sorted([*first, *second], key=rows.rows.index) == list(rows)


def test_split_needs_two_parts():
    for fraction in (0.0, 1.0, -0.5, 1.5, 0.01, float("nan"), float("inf")):
        with pytest.raises(InputError, match="leaves a part empty"):
            demonstrations(5).split(fraction)
    with pytest.raises(InputError, match="Splitting 1 different prompts"):
        demonstrations(4, per_prompt=4).split(0.5)


def test_slices_and_items():
    rows = demonstrations(6)
    assert rows[1:5:2] == Demonstrations((rows.rows[1], rows.rows[3]))
    assert rows[-1] == rows.rows[5]
    assert list(rows) == list(rows.rows)
    with pytest.raises(InputError, match="no demonstrations"):
        rows[6:]
    with pytest.raises(IndexError):
        rows[6]


@pytest.mark.parametrize("field", ["question", "prompt"])
def test_a_prompt_template_touches_nothing_but_its_field(field):
    prompts = ["f(x) = {x}", "{question}", "{prompt} {0} {{}} %s $a \\1"]
    framed = Questions.from_lists(prompts, ["a"] * 3, ["b"] * 3).with_prompt_template('{"q": "{' + field + '}"}\nA:')
    assert [row.prompt for row in framed] == [f'{{"q": "{prompt}"}}\nA:' for prompt in prompts]
    assert all((row.right, row.wrong) == (("a",), ("b",)) for row in framed)


def test_a_prompt_template_without_one_field_is_refused():
    for template in ("", "{}", "{Question}", "{question} {question}", "{question} {prompt}"):
        with pytest.raises(InputError, match="exactly once"):
            demonstrations(2).with_prompt_template(template)


def test_a_chat_template_ends_in_exactly_one_bos(llama):
    tokenizer = chat_tokenizer(llama)
    plain, framed = demonstrations(2), demonstrations(2).with_chat_template(tokenizer)
    assert framed[1].prompt == "<bos>[user]q1[assistant]"
    bos = tokenizer.bos_token_id
    for row in (*plain, *framed):
        for ids in (
            token_ids(llama, row.prompt),
            token_ids(llama, join(row.prompt, row.positive)),
            TokenizedAnswer.of(llama, row.prompt, row.positive).ids,
        ):
            assert ids[0] == bos
            assert ids.count(bos) == 1
    assert [row.positive for row in framed] == [row.positive for row in plain]
    assert demonstrations(1).with_chat_template(tokenizer, system="Be {brief}.")[0].prompt == (
        "<bos>[system]Be {brief}.[user]q0[assistant]"
    )


def test_a_chat_template_that_is_missing_or_refuses(llama):
    for reader in (chat_tokenizer(llama, None), llama):
        with pytest.raises(InputError, match=r"no chat template. Use with_prompt_template"):
            demonstrations(2).with_chat_template(reader)
    tokenizer = chat_tokenizer(llama, CHAT.replace("developer", "system"))
    assert demonstrations(2).with_chat_template(tokenizer)[0].prompt == "<bos>[user]q0[assistant]"
    with pytest.raises(InputError, match="refused these messages: no role"):
        demonstrations(2).with_chat_template(tokenizer, system="Be brief.")


def test_a_tokenizer_is_read_off_its_model(llama):
    assert tokenizer_of(llama) is tokenizer_of(llama.tokenizer) is llama.tokenizer

    class Nameless:
        tokenizer = None

    with pytest.raises(ModelMismatchError, match="no tokenizer"):
        tokenizer_of(Nameless())


def test_rows_of_another_type_are_refused(without_type_checks):
    assert Questions([Question("q", "one", ["two"])]).rows == (Question("q", ("one",), ("two",)),)
    for rows, kind in [
        ((("q", "a", "b"),), Demonstrations),
        (ROWS, Questions),
        ("abc", Questions),
        (3, Demonstrations),
    ]:
        with pytest.raises(InputError, match=r"must be a (list of )?(Demonstration|Question)"):
            kind(rows)
    for make in (
        lambda: Demonstration(3, "a", "b"),
        lambda: Demonstration("q", "a", None),
        lambda: Question("q", 3, "a"),
        lambda: demonstrations(3).sample(1.5),
        lambda: demonstrations(3).split("half"),
        lambda: demonstrations(3).with_prompt_template(None),
        lambda: demonstrations(3).with_answer_ending(None),
    ):
        with pytest.raises(InputError):
            make()


def test_rows_never_change():
    rows = Demonstrations(ROWS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        rows.rows = ()
    for other in (
        rows.sample(2),
        rows.split()[0],
        rows.with_answer_ending("!"),
        rows.with_prompt_template("Q: {prompt}"),
    ):
        assert other != rows == Demonstrations(ROWS)


def test_the_fingerprint_is_of_the_texts_and_their_order():
    rows = Demonstrations(ROWS)
    prints = [rows.fingerprint, Demonstrations(ROWS[::-1]).fingerprint, Demonstrations(ROWS[:2]).fingerprint]
    for name in ("prompt", "positive", "negative", "neutral"):
        changed = dataclasses.replace(ROWS[1], **{name: getattr(ROWS[1], name) + "."})
        prints.append(Demonstrations((ROWS[0], changed, ROWS[2])).fingerprint)
    prints.append(Demonstrations((ROWS[0], dataclasses.replace(ROWS[1], neutral=None), ROWS[2])).fingerprint)
    prints += [Demonstrations((Demonstration(*texts),)).fingerprint for texts in (("ab", "c", "d"), ("a", "bc", "d"))]
    asked = [("p", ("a", "b"), ("c",), "d"), ("p", ("b", "a"), ("c",), "d"), ("p", ("a",), ("b", "c"), "d")]
    prints += [Questions((Question(*texts),)).fingerprint for texts in asked]
    assert len(set(prints)) == len(prints)
    assert Demonstrations(ROWS, source="elsewhere").fingerprint == rows.fingerprint
    # As in 0.1: editor cards hold it.
    whole = json.dumps([dataclasses.asdict(row) for row in ROWS], ensure_ascii=False)
    assert rows.fingerprint == hashlib.sha256(whole.encode()).hexdigest()[:16]
    many = demonstrations(3000)
    tracemalloc.start()
    assert many.fingerprint
    assert tracemalloc.get_traced_memory()[1] < 100 * len(many)
    tracemalloc.stop()


@pytest.mark.parametrize("rows", [demonstrations(7), questions(7)], ids=["demonstrations", "questions"])
def test_rows_show_themselves_briefly_and_as_a_table(rows: PromptRows):
    assert len(repr(rows).splitlines()) == 1
    assert rows.table.to_dict("records") == [vars(row) for row in rows]
    long = dataclasses.replace(rows, rows=(dataclasses.replace(rows[0], prompt="<p>" * 1000), *rows[1:]))
    assert len(repr(long)) < 150
    page = long._repr_html_()
    assert page.count("<tr") == 6  # a header and five rows
    assert "<p><p>" not in page
