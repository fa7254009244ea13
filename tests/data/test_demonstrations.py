import copy
import dataclasses
import hashlib
import json
import tracemalloc
from collections import Counter

import pandas as pd
import pytest

from sea_lens import Demonstration, Demonstrations
from sea_lens.errors import FileFormatError, InputError
from sea_lens.models.tokens import TokenizedAnswer, join, token_ids

ROWS = (
    Demonstration("Is it, so?", 'yes, "so"', "no,\nnever", "peut-être"),
    Demonstration("日本の首都は", "東京 🗼", "京都\u2028", ""),
    Demonstration(" spaces\t", " x ", "\\n", "a\r\nb"),
)
CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'developer' %}{{ raise_exception('no role') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def letters(n: int, per_prompt: int = 1) -> Demonstrations:
    return Demonstrations.from_lists(
        [f"q{i // per_prompt}" for i in range(n)], [f"yes {i}" for i in range(n)], [f"no {i}" for i in range(n)]
    )


def chat_tokenizer(model, template=CHAT):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    return tokenizer


# --- reading ---------------------------------------------------------------------------------------------------------


def test_every_reader_gives_the_same_rows(tmp_path):
    lists = [[getattr(row, name) for row in ROWS] for name in ("prompt", "positive", "negative", "neutral")]
    frame = pd.DataFrame([dataclasses.asdict(row) for row in ROWS])
    frame.to_csv(tmp_path / "rows.csv", index=False, encoding="utf-8-sig")
    frame.to_json(tmp_path / "list.json", orient="records")
    frame.to_json(tmp_path / "lines.jsonl", orient="records", lines=True)
    read = [
        Demonstrations(ROWS),
        Demonstrations.from_lists(*lists),
        Demonstrations.from_dataframe(frame),
        Demonstrations.from_csv(tmp_path / "rows.csv"),
        Demonstrations.from_jsonl(tmp_path / "list.json"),
        Demonstrations.from_jsonl(tmp_path / "lines.jsonl"),
    ]
    for demonstrations in read:
        assert demonstrations.rows == ROWS
    assert len({demonstrations.fingerprint for demonstrations in read}) == 1
    assert read[3].source == str(tmp_path / "rows.csv")


def test_columns_of_other_names(tmp_path):
    frame = pd.DataFrame({"ask": ["p"], "good": ["a"], "bad": ["b"], "own": ["c"], "neutral": ["not this"]})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    names = {"prompt": "ask", "positive": "good", "negative": "bad", "neutral": "own"}
    for demonstrations in (
        Demonstrations.from_dataframe(frame, **names),
        Demonstrations.from_csv(tmp_path / "rows.csv", **names),
        Demonstrations.from_jsonl(tmp_path / "rows.jsonl", **names),
    ):
        assert demonstrations.rows == (Demonstration("p", "a", "b", "c"),)


@pytest.mark.parametrize("neutrals", [("c", "d"), (None, None), (None, "d"), ("c", None), ("", None)])
def test_round_trip_keeps_neutral_answers_row_by_row(tmp_path, neutrals):
    rows = tuple(Demonstration("é 🗼\u2028\n", "1", "2", neutral) for neutral in neutrals)
    Demonstrations(rows).to_jsonl(tmp_path / "rows.jsonl")
    assert Demonstrations.from_jsonl(tmp_path / "rows.jsonl").rows == rows
    assert len((tmp_path / "rows.jsonl").read_text(encoding="utf-8").split("\n")) == 3


def test_a_missing_column_is_named_with_those_there(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,positive,wrong\na,b,c\n")
    with pytest.raises(InputError, match=r"no column 'negative'. It has: prompt, positive, wrong.*negative="):
        Demonstrations.from_csv(tmp_path / "rows.csv")
    with pytest.raises(InputError, match="no column 'reply'"):
        Demonstrations.from_csv(tmp_path / "rows.csv", negative="wrong", neutral="reply")


def test_malformed_files_name_the_line(tmp_path):
    path = tmp_path / "rows"
    path.write_text('{"prompt":"a","positive":"b","negative":"c"}\nnot json\n')
    for read in (Demonstrations.from_jsonl, Demonstrations.from_halueval, Demonstrations.from_bbq):
        with pytest.raises(ValueError, match=r"rows, line [12]: "):
            read(path)
    path.write_text('{"prompt":"a","positive":"b","negative":"c"}\n{"prompt":"a","positive":"b"}\n')
    with pytest.raises(InputError, match="line 2: there is no 'negative'"):
        Demonstrations.from_jsonl(path)
    path.write_text("prompt,positive,negative\na,b,c\na,b\n")
    with pytest.raises(FileFormatError, match=r"rows, line 3: .*3 cells"):
        Demonstrations.from_csv(path)


@pytest.mark.parametrize("column", ["prompt", "positive"])
def test_an_empty_cell_of_a_data_frame_names_its_row(column):
    frame = pd.DataFrame([dataclasses.asdict(row) for row in ROWS], index=["x", "y", "z"])
    frame.loc["y", column] = float("nan")
    with pytest.raises(InputError, match=f"row y: '{column}' must be text, and is None"):
        Demonstrations.from_dataframe(frame)


@pytest.mark.parametrize("content", ["", "[]", "\n\n"])
def test_an_empty_file_has_no_demonstrations(tmp_path, content):
    (tmp_path / "rows").write_text(content)
    for name in ("from_jsonl", "from_csv", "from_halueval", "from_bbq"):
        with pytest.raises(InputError, match=r"no demonstrations in .*rows"):
            getattr(Demonstrations, name)(tmp_path / "rows")


def test_impossible_lists_are_refused():
    with pytest.raises(InputError, match="no demonstrations"):
        Demonstrations.from_lists([], [], [])
    with pytest.raises(InputError, match=r"one length.*'negatives': 1"):
        Demonstrations.from_lists(["p", "q"], ["a", "b"], ["c"])
    with pytest.raises(InputError, match=r"one length.*'neutrals': 1"):
        Demonstrations.from_lists(["p", "q"], ["a", "b"], ["c", "d"], ["e"])
    with pytest.raises(InputError, match="positive equals the negative in all 2"):
        Demonstrations.from_lists(["p", "q"], ["a", "b"], ["a", "b"])
    assert len(Demonstrations.from_lists(["p", "q"], ["a", "b"], ["a", "c"])) == 2


# --- published data sets ---------------------------------------------------------------------------------------------


def test_halueval_as_published(shared_data):
    path = shared_data / "halueval_qa_500.json"
    published = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    demonstrations = Demonstrations.from_halueval(path)
    assert len(demonstrations) == len(published) == 500
    for row, given in zip(demonstrations, published, strict=True):
        assert row == Demonstration(given["question"], given["right_answer"], given["hallucinated_answer"])
    with_knowledge = Demonstrations.from_halueval(path, with_knowledge=True)
    assert [row.prompt for row in with_knowledge] == [f"{row['knowledge']}\n{row['question']}" for row in published]
    assert Demonstrations.from_halueval(path, n=40, seed=3) == demonstrations.sample(40, 3)
    with pytest.raises(InputError, match=r"501 demonstrations were asked for and .* has 500"):
        Demonstrations.from_halueval(path, n=501)


@pytest.mark.parametrize(
    ("name", "condition", "n"),
    [
        ("bbq_disambig_4000.jsonl", "disambig", 4000),
        ("bbq_Age.jsonl", "disambig", 1840),
        ("bbq_Age.jsonl", "ambig", 1840),
        ("bbq_Age.jsonl", None, 3680),
    ],
)
def test_bbq_as_published(shared_data, name, condition, n):
    demonstrations = Demonstrations.from_bbq(shared_data / name, context_condition=condition)
    published = [json.loads(line) for line in (shared_data / name).read_text(encoding="utf-8").splitlines()]
    published = [row for row in published if condition in (row["context_condition"], None)]
    assert len(demonstrations) == len(published) == n
    drawn = Counter()
    for row, given in zip(demonstrations, published, strict=True):
        answers = [given["ans0"], given["ans1"], given["ans2"]]
        gold = answers.pop(given["label"])
        assert row.prompt == f"{given['context']} {given['question']}"
        assert row.positive == gold
        assert row.negative in answers
        drawn[answers.index(row.negative)] += 1
    assert min(drawn[0], drawn[1]) > 0.45 * n


def test_bbq_draws_by_seed_and_refuses_what_is_not_bbq(shared_data, tmp_path):
    path = shared_data / "bbq_Age.jsonl"
    read = Demonstrations.from_bbq(path, n=50, seed=1)
    assert len(read) == 50
    assert read == Demonstrations.from_bbq(path, n=50, seed=1) != Demonstrations.from_bbq(path, n=50, seed=2)
    with pytest.raises(InputError, match="'disambiguated' was given"):
        Demonstrations.from_bbq(path, context_condition="disambiguated")
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    (tmp_path / "bad.jsonl").write_text(json.dumps({**row, "label": 3}))
    with pytest.raises(InputError, match="line 1: `label` must be 0, 1 or 2, and is 3"):
        Demonstrations.from_bbq(tmp_path / "bad.jsonl", context_condition=None)


# --- choosing rows ---------------------------------------------------------------------------------------------------


def test_sample_is_seeded_and_without_replacement():
    demonstrations = letters(20)
    sample = demonstrations.sample(12, seed=5)
    assert sample == demonstrations.sample(12, seed=5) != demonstrations.sample(12, seed=6)
    assert len(set(sample)) == 12
    assert set(sample) < set(demonstrations)
    assert set(demonstrations.sample(20, seed=0)) == set(demonstrations)
    for n in (0, -1, 21):
        with pytest.raises(InputError, match=f"{n} demonstrations were asked for and lists has 20"):
            demonstrations.sample(n, seed=0)


@pytest.mark.parametrize("seed", range(3))
def test_split_is_disjoint_complete_and_by_prompt(seed):
    demonstrations = letters(40, per_prompt=4)
    first, second = demonstrations.split(0.3, seed)
    assert (first, second) == demonstrations.split(0.3, seed)
    assert (len(first), len(second)) == (12, 28)
    assert {row.prompt for row in first}.isdisjoint(row.prompt for row in second)
    assert sorted([*first, *second], key=str) == sorted(demonstrations, key=str)


def test_split_depends_on_its_seed_and_needs_two_parts():
    assert letters(20).split(0.5, 0) != letters(20).split(0.5, 1)
    for fraction in (0.0, 1.0, -0.5, 1.5, 0.01, float("nan"), float("inf")):
        with pytest.raises(InputError, match="leaves a part empty"):
            letters(5).split(fraction, 0)
    with pytest.raises(InputError, match="Splitting 1 different prompts"):
        letters(4, per_prompt=4).split(0.5, 0)


def test_slices_and_items():
    demonstrations = letters(6)
    assert demonstrations[1:5:2].rows == (demonstrations.rows[1], demonstrations.rows[3])
    assert isinstance(demonstrations[:2], Demonstrations)
    assert demonstrations[-1] == demonstrations.rows[5]
    assert list(demonstrations) == list(demonstrations.rows)
    with pytest.raises(InputError, match="no demonstrations"):
        demonstrations[6:]
    with pytest.raises(IndexError):
        demonstrations[6]


# --- changing texts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["question", "prompt"])
def test_a_prompt_template_touches_nothing_but_its_field(field):
    prompts = ["f(x) = {x}", "{question}", "{prompt} {0} {{}} %s $a \\1"]
    demonstrations = Demonstrations.from_lists(prompts, ["a"] * 3, ["b"] * 3, ["c"] * 3)
    framed = demonstrations.with_prompt_template('{"q": "{' + field + '}"}\nA:')
    assert [row.prompt for row in framed] == [f'{{"q": "{prompt}"}}\nA:' for prompt in prompts]
    assert all((row.positive, row.negative, row.neutral) == ("a", "b", "c") for row in framed)


@pytest.mark.parametrize("template", ["", "Q:", "{}", "{Question}", "{question} {question}", "{question} {prompt}"])
def test_a_prompt_template_without_one_field_is_refused(template):
    with pytest.raises(InputError, match="exactly once"):
        letters(2).with_prompt_template(template)


def test_a_chat_template_ends_in_exactly_one_bos(llama):
    tokenizer = chat_tokenizer(llama)
    plain, framed = letters(2), letters(2).with_chat_template(tokenizer)
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
    assert letters(2).with_chat_template(tokenizer, system="Be {brief}.")[0].prompt == (
        "<bos>[system]Be {brief}.[user]q0[assistant]"
    )


def test_a_chat_template_that_is_missing_or_refuses(llama):
    with pytest.raises(InputError, match=r"no chat template. Use with_prompt_template"):
        letters(2).with_chat_template(chat_tokenizer(llama, None))
    tokenizer = chat_tokenizer(llama, CHAT.replace("developer", "system"))
    assert letters(2).with_chat_template(tokenizer)[0].prompt == "<bos>[user]q0[assistant]"
    with pytest.raises(InputError, match="refused these messages: no role"):
        letters(2).with_chat_template(tokenizer, system="Be brief.")


def test_answers_get_the_same_ending():
    rows = (Demonstration("p.", "Delhi", "It is Mumbai. ", None), Demonstration("p?", "U.S. dollars!?", "No . ", "3.5"))
    ended = Demonstrations(rows).with_answer_ending(".")
    assert ended.rows == (
        Demonstration("p.", "Delhi.", "It is Mumbai.", None),
        Demonstration("p?", "U.S. dollars.", "No.", "3.5."),
    )
    assert ended.with_answer_ending(".") == ended
    assert ended.with_answer_ending("")[0].negative == "It is Mumbai"


def test_neutral_answers_are_the_models_own_and_do_not_depend_on_the_batch(llama):
    prompts = ["Where?", "A much longer question about nothing at all?", "W", "Why is {x}?", "", "Who? "]
    demonstrations = Demonstrations.from_lists(prompts, ["a"] * 6, ["b"] * 6)
    answered = demonstrations.with_neutral_answers(llama, 8, batch_size=6, progress=False)
    single = demonstrations.with_neutral_answers(llama, 8, batch_size=1, progress=False)
    assert answered == single
    assert [dataclasses.replace(row, neutral=None) for row in answered] == list(demonstrations)
    assert len({row.neutral for row in answered}) > 3
    ids = llama.to_tokens(prompts[1])
    generated = llama.generate(ids, max_new_tokens=8, do_sample=False, return_type="tokens", verbose=False)
    text = llama.tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
    assert answered[1].neutral == text.strip().split("\n")[0].rstrip()


# --- knowing what one has --------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_texts_and_their_order():
    demonstrations = Demonstrations(ROWS)
    prints = [demonstrations.fingerprint, Demonstrations(ROWS[::-1]).fingerprint, Demonstrations(ROWS[:2]).fingerprint]
    for name in ("prompt", "positive", "negative", "neutral"):
        changed = dataclasses.replace(ROWS[1], **{name: getattr(ROWS[1], name) + "."})
        prints.append(Demonstrations((ROWS[0], changed, ROWS[2])).fingerprint)
    unasked = dataclasses.replace(ROWS[1], neutral=None)
    prints.append(Demonstrations((ROWS[0], unasked, ROWS[2])).fingerprint)
    moved = [Demonstration("ab", "c", "d"), Demonstration("a", "bc", "d")]
    prints += [Demonstrations((row,)).fingerprint for row in moved]
    assert len(set(prints)) == len(prints)
    assert all(len(found) == 16 and int(found, 16) >= 0 for found in prints)
    assert Demonstrations(ROWS, source="elsewhere").fingerprint == demonstrations.fingerprint


def test_the_fingerprint_is_of_one_json_list_that_is_never_made():
    whole = json.dumps([dataclasses.asdict(row) for row in ROWS], ensure_ascii=False)
    assert Demonstrations(ROWS).fingerprint == hashlib.sha256(whole.encode()).hexdigest()[:16]
    many = letters(3000)
    tracemalloc.start()
    assert many.fingerprint
    assert tracemalloc.get_traced_memory()[1] < 100 * len(many)
    tracemalloc.stop()


def test_demonstrations_never_change(llama):
    demonstrations = Demonstrations(ROWS)
    before = demonstrations.fingerprint
    with pytest.raises(dataclasses.FrozenInstanceError):
        demonstrations.rows = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        demonstrations[0].prompt = "other"
    demonstrations.sample(2, 0)
    demonstrations.split(0.5, 0)
    demonstrations.with_answer_ending("!")
    demonstrations.with_prompt_template("Q: {question}")
    demonstrations.with_neutral_answers(llama, 1, progress=False)
    assert demonstrations.fingerprint == before
    assert demonstrations.rows == ROWS


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_missing_neutral_cells_of_a_data_frame_are_no_answers(missing):
    frame = pd.DataFrame(
        {"prompt": ["a", "b"], "positive": ["x", "y"], "negative": ["z", "w"], "neutral": ["m", missing]}
    )
    assert [row.neutral for row in Demonstrations.from_dataframe(frame)] == ["m", None]
