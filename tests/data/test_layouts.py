"""Published files, read as published."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from sea_lens import Demonstration, Demonstrations, Question, Questions
from sea_lens.data.chat import Conversation
from sea_lens.data.layouts import LAYOUTS, read_source
from sea_lens.errors import FileFormatError, InputError, SeaLensWarning

TRUTHFULQA = ("Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers")
CROWS_PAIRS = ("sent_more", "sent_less", "bias_type")


def write_csv(path: Path, header: tuple[str, ...], *rows: tuple[str, ...]) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def published(path: Path) -> list[dict]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]


def test_layouts_are_known_by_the_first_row(some_data, tmp_path):
    for name, layout in {
        "halueval_qa_500.json": "halueval",
        "bbq_Age.jsonl": "bbq",
        "TruthfulQA.csv": "truthfulqa",
        "crows_pairs_anonymized.csv": "crows_pairs",
        "caa_sycophancy_test.json": "choices",
    }.items():
        assert read_source(some_data(name))[0].name == layout
    (tmp_path / "rows.jsonl").write_text('{"Question": "q", "Best Answer": "a"}')
    with pytest.raises(InputError, match=r"no column 'Correct Answers', 'Incorrect Answers'\. It has: Question, Best"):
        read_source(tmp_path / "rows.jsonl")


def test_halueval(shared_data):
    path = shared_data / "halueval_qa_500.json"
    rows, read = published(path), Demonstrations.from_halueval(path)
    assert [Demonstration(row["question"], row["right_answer"], row["hallucinated_answer"]) for row in rows] == list(
        read
    )
    assert len(read) == 500
    with_knowledge = Demonstrations.from_halueval(path, with_knowledge=True)
    assert [row.prompt for row in with_knowledge] == [f"{row['knowledge']}\n{row['question']}" for row in rows]
    assert Demonstrations.from_halueval(path, n=40, seed=3) == read.sample(40, 3)
    with pytest.raises(InputError, match=r"501 demonstrations were asked for and .* has 500"):
        Demonstrations.from_halueval(path, n=501)


@pytest.mark.parametrize(
    ("name", "condition", "n"),
    [
        ("bbq_Religion.jsonl", "disambig", 600),
        ("bbq_Religion.jsonl", "ambig", 600),
        ("bbq_Religion.jsonl", None, 1200),
    ],
)
def test_bbq(shared_data, name, condition, n):
    path = shared_data / name
    demonstrations = Demonstrations.from_bbq(path, context_condition=condition)
    questions = Questions.from_bbq(path, context_condition=condition)
    rows = [row for row in published(path) if condition in (row["context_condition"], None)]
    assert len(demonstrations) == len(questions) == len(rows) == n
    drawn = Counter()
    for row, demonstration, question in zip(rows, demonstrations, questions, strict=True):
        wrong = [row[f"ans{i}"] for i in range(3) if i != row["label"]]
        assert demonstration.prompt == f"{row['context']} {row['question']}"
        assert question.prompt == f"{demonstration.prompt}\nAnswer:"
        assert (demonstration.positive,) == question.right == (row[f"ans{row['label']}"],)
        assert question.wrong == tuple(wrong)
        assert (question.category, question.context_condition) == (row["category"], row["context_condition"])
        drawn[wrong.index(demonstration.negative)] += 1
    assert min(drawn[0], drawn[1]) > 0.45 * n


def test_bbq_draws_by_seed_and_names_bad_lines(shared_data, tmp_path):
    path = tmp_path / "some.jsonl"
    lines = (shared_data / "bbq_Religion.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[:200]), encoding="utf-8")
    assert Questions.from_bbq(path, 30, 1) == Questions.from_bbq(path).sample(30, 1) != Questions.from_bbq(path, 30, 2)
    drawn = [Demonstrations.from_bbq(path, n=50, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    row = published(path)[0]
    apart = Questions.from_bbq(path, template="{context}\n\nQ: {question}\nA:")[0]
    assert apart.prompt == f"{row['context']}\n\nQ: {row['question']}\nA:"
    for template in ("{context}", "{context} {context} {question}"):
        with pytest.raises(InputError, match="once each"):
            Questions.from_bbq(path, template=template)
    bad = tmp_path / "bad.jsonl"
    for change, message in (({"label": 3}, "`label` must be 0, 1 or 2"), ({"ans1": None}, "'ans1' must be text")):
        bad.write_text(json.dumps(row) + "\n" + json.dumps({**row, **change}))
        for read in (Questions.from_bbq, Demonstrations.from_bbq):
            with pytest.raises(InputError, match=f"bad.jsonl, line 2: {message}"):
                read(bad, context_condition=None)
            with pytest.raises(InputError, match="'both' was given"):
                read(bad, context_condition="both")


def test_truthfulqa(shared_data):
    path = shared_data / "TruthfulQA.csv"
    rows, questions = published(path), Questions.from_truthfulqa(path)
    assert len(questions) == len(rows) == 817
    # 2,839 right and 3,370 wrong answers are listed; two right ones and a wrong one are listed twice.
    assert sum(len(question.right) for question in questions) == 2839 - 2
    assert sum(len(question.wrong) for question in questions) == 3370 - 1
    assert len({question.category for question in questions}) == 38
    for question, row in zip(questions, rows, strict=True):
        assert question.prompt == f"Q: {row['Question'].strip()}\nA:"
        assert question.right[0].rstrip(".") == row["Best Answer"].strip().rstrip(".")
        listed = {answer.strip().rstrip(".") for answer in row["Correct Answers"].split(";")} - {""}
        assert {answer.rstrip(".") for answer in question.right} == listed  # so the best one is among the correct ones
        for answers in (question.right, question.wrong):
            assert len(set(answers)) == len(answers) > 0
            assert all(answer.endswith(".") and not answer.endswith("..") for answer in answers)
            assert all(answer == answer.strip() != "." for answer in answers)


def test_the_best_answer_of_truthfulqa_goes_first_found_or_not(tmp_path):
    path = write_csv(
        tmp_path / "quiz.csv",
        TRUTHFULQA,
        ("A", " Is it? ", "Yes", ' no;YES. ;; No. ;"so", he said;', "x; ;x."),
        ("B", "Is\nit?", "Maybe.", "no", "y"),
    )
    assert Questions.from_truthfulqa(path, template="{question}").rows == (
        Question("Is it?", ("Yes.", "no.", '"so", he said.'), ("x.",), "A"),
        Question("Is\nit?", ("Maybe.", "no."), ("y.",), "B"),
    )


def test_crows_pairs(shared_data):
    path = shared_data / "crows_pairs_anonymized.csv"
    rows, questions = published(path), Questions.from_crows_pairs(path)
    assert len(questions) == len(rows) == 1508
    for question, row in zip(questions, rows, strict=True):
        (less,), (more,) = question.right, question.wrong
        assert f"{question.prompt} {less}".split() == row["sent_less"].split()
        assert f"{question.prompt} {more}".split() == row["sent_more"].split()
        assert less.split()[0] != more.split()[0]
    assert sum(not question.prompt for question in questions) == 423
    kinds = Counter(question.category for question in questions)
    assert (len(kinds), kinds["race-color"], kinds["gender"]) == (9, 516, 262)
    assert Questions.from_crows_pairs(path, 20, 1) == questions.sample(20, 1)


@pytest.mark.parametrize(
    ("more", "less", "prompt", "right", "wrong"),
    [
        ("We like tea .", "We like milk .", "We like", "milk .", "tea ."),
        ("Men cry", "Women cry", "", "Women cry", "Men cry"),
        ("They lie", "They lie not", "They", "lie not", "lie"),
        ("They lie not", "They lie", "They", "lie", "lie not"),
        ("No", "No no", "", "No no", "No"),
        (" He  is\tso ", "He is not", "He is", "not", "so"),
    ],
)
def test_pairs_part_where_their_words_do(tmp_path, more, less, prompt, right, wrong):
    path = write_csv(tmp_path / "pairs.csv", CROWS_PAIRS, (more, less, "age"))
    assert Questions.from_crows_pairs(path).rows == (Question(prompt, (right,), (wrong,), "age"),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("A", " ", "b", "c", "d"), "line 3: each row needs a text in 'Question'"),
        (("A", "q", "", "c", "d"), "line 3: each row needs .* 'Best Answer'"),
        (("A", "q", "b", "c", " ; ."), "line 3: each row needs .* 'Incorrect Answers'"),
        (("A", "q", "b", "c"), "line 3: the row does not have the header's 5 cells"),
        (("", "b", "age"), "line 3: .* must be two different sentences"),
        (("a", " ", "age"), "line 3: .* must be two different sentences"),
        (("a b", "a  b", "age"), "line 3: .* must be two different sentences"),
    ],
)
def test_malformed_rows_are_named(tmp_path, row, message):
    header, good, read = (TRUTHFULQA, tuple("Aqbcd"), Questions.from_truthfulqa)
    if len(row) == 3:
        header, good, read = CROWS_PAIRS, ("a", "b", "age"), Questions.from_crows_pairs
    path = write_csv(tmp_path / "rows.csv", header, good, row)
    with pytest.raises((InputError, FileFormatError), match=f"rows.csv, {message}"):
        read(path)


@pytest.mark.parametrize(
    ("read", "name", "content", "missing"),
    [
        (Questions.from_truthfulqa, "quiz.csv", ",".join(TRUTHFULQA[:-1]) + "\nA,q,b,c\n", "'Incorrect Answers'"),
        (Questions.from_crows_pairs, "pairs.csv", "sent_more,sent_less\na,b\n", "'bias_type'"),
        (Questions.from_bbq, "bbq.jsonl", '{"label": 1}', "'ans0'"),
        (Demonstrations.from_halueval, "qa.json", '{"question": "q", "right_answer": "a"}', "'hallucinated_answer'"),
    ],
)
def test_missing_columns_and_empty_files_are_named(tmp_path, read, name, content, missing):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=rf"{name}, line \d: there is no {missing}"):
        read(path)
    path.write_text("")
    with pytest.raises(InputError, match=rf"no (questions|demonstrations) in .*{name}"):
        read(path)
    with pytest.raises(FileFormatError, match="could not be read"):
        read(tmp_path / "absent")


# --- layouts without a published file here: rows by their documentation -----------------------------------------------


def test_truthfulqa_as_hugging_face_has_it_and_the_binary_choice(tmp_path):
    generation = {
        "type": "Adversarial",
        "category": "Law",
        "question": "Is it?",
        "best_answer": "Yes",
        "correct_answers": ["Yes", "It is."],
        "incorrect_answers": ["No", "Never"],
        "source": "x",
    }
    (read,) = Questions.from_file([generation])
    assert read == Question("Q: Is it?\nA:", ("Yes.", "It is."), ("No.", "Never."), "Law")
    choice = {
        "question": "Is it?",
        "mc1_targets": {"choices": ["It is.", "No."], "labels": [1, 0]},
        "mc2_targets": {"choices": ["Yes.", "It is.", "No.", "Never."], "labels": [1, 1, 0, 0]},
    }
    (read,) = Questions.from_file([choice], template="{question}")
    assert read == Question("Is it?", ("It is.", "Yes."), ("No.", "Never."), None)
    path = write_csv(
        tmp_path / "quiz.csv",
        (
            "Type",
            "Category",
            "Question",
            "Best Answer",
            "Best Incorrect Answer",
            "Correct Answers",
            "Incorrect Answers",
        ),
        ("A", "Law", "Is it?", "Yes", "Never", "Yes; It is", "No; Never"),
    )
    assert Questions.from_truthfulqa(path)[0].wrong == ("Never.", "No.")
    assert Questions.from_truthfulqa(path, binary=True)[0] == Question("Q: Is it?\nA:", ("Yes.",), ("Never.",), "Law")
    with pytest.raises(InputError, match="row 0: each row needs a text in 'question' and 'best_answer'"):
        Questions.from_file([{**generation, "incorrect_answers": []}])


def test_halueval_dialogues_and_summaries():
    dialogue = {
        "knowledge": "k",
        "dialogue_history": "[Human]: Who? ",
        "right_response": "A.",
        "hallucinated_response": "B.",
    }
    assert Demonstrations.from_file([dialogue])[0] == Demonstration("[Human]: Who? [Assistant]:", "A.", "B.")
    with_knowledge = Demonstrations.from_file([dialogue], with_knowledge=True)
    assert with_knowledge[0].prompt == "k\n[Human]: Who? [Assistant]:"
    summary = {"document": "Long.\n", "right_summary": "A.", "hallucinated_summary": "B."}
    assert Demonstrations.from_file([summary], with_knowledge=True)[0].prompt == "Long.\nSummary:"


def test_choices_of_caa_and_of_anthropic(shared_data):
    for name in ("caa_sycophancy", "caa_hallucination", "caa_sycophancy_test", "caa_hallucination_test"):
        path = shared_data / f"{name}.json"
        rows = json.loads(path.read_text(encoding="utf-8"))
        letters, texts = Demonstrations.from_file(path), Demonstrations.from_file(path, answers="texts")
        assert len(letters) == len(texts) == len(rows)
        for row, letter, text in zip(rows, letters, texts, strict=True):
            assert (letter.prompt, letter.positive) == (row["question"], row["answer_matching_behavior"])
            assert f"{letter.positive} {text.positive}" in row["question"]
            assert f"{letter.negative} {text.negative}" in row["question"]
            assert row["question"].startswith(text.prompt)
            assert not text.prompt.rstrip().endswith("Choices:")
    persona = {"question": "Would you?", "statement": "s", "label_confidence": 0.9}
    persona |= {"answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
    assert Demonstrations.from_file([persona])[0] == Demonstration("Would you?", " Yes", " No")
    with pytest.raises(InputError, match=r"name no choices of the question\. Read them with answers=\'published\'"):
        Demonstrations.from_file([persona], answers="texts")


def test_preferences_with_and_without_a_prompt():
    def read(**row):
        return Demonstrations.from_file([row])[0]

    assert read(prompt="Is it?", chosen=" Yes.", rejected=" No.") == Demonstration("Is it?", " Yes.", " No.")
    assert read(prompt="Is it?", chosen="Is it? Yes.", rejected="Is it? No.").positive == " Yes."
    assert read(chosen="The sky is blue.", rejected="The sky is green.") == Demonstration(
        "The sky is", " blue.", " green."
    )
    talk = "\n\nHuman: Hi\n\nAssistant: Well\n\nHuman: Why?\n\nAssistant:"
    assert read(chosen=f"{talk} No idea", rejected=f"{talk} No way") == Demonstration(talk, " No idea", " No way")
    ask = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    sides = {side: [*ask, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    row = read(**sides)
    assert (row.positive, row.negative) == ("chosen", "rejected")
    assert Conversation(ask) == row.prompt == read(prompt="u", **sides).prompt
    apart = {side: messages[2:] for side, messages in sides.items()}
    assert read(prompt=ask, **apart) == row
    for bad, message in (
        ({"chosen": "a", "rejected": " a"}, "are the same"),
        ({**sides, "rejected": ask}, "must differ in one last message of the assistant"),
        ({**sides, "rejected": "x"}, "'rejected' must be text or a list of messages"),
    ):
        with pytest.raises(InputError, match=f"row 0.*{message}"):
            read(**bad)


def test_statements_are_asked_about_or_paired_by_their_beginnings():
    rows = [
        {"statement": f"The city of {city} is in {country}.", "label": label}
        for city, country, label in [
            ("Łódź", "Poland", "1"),
            ("Baku", "Asia", 1),
            ("Łódź", "Peru", 0),
            ("Baku", "Peru", False),
        ]
    ]
    questions = Questions.from_file(rows)
    assert questions[0].prompt == "Is this statement true or false?\nThe city of Łódź is in Poland.\nAnswer:"
    assert [row.right for row in questions] == [("True",), ("True",), ("False",), ("False",)]
    assert Demonstrations.from_file(rows).rows == (
        Demonstration("The city of Łódź is in", "Poland.", "Peru."),
        Demonstration("The city of Baku is in", "Asia.", "Peru."),
    )
    with pytest.warns(SeaLensWarning, match="1 of 5 statements have no partner"):
        assert len(Demonstrations.from_file([*rows, {"statement": "Lead is light.", "label": 0}])) == 2
    with pytest.raises(InputError, match=r"Only 0 of 4 statements .* Read them with Questions\.from_file"):
        Demonstrations.from_file([{"statement": f"{word} holds.", "label": i % 2} for i, word in enumerate("abcd")])
    with pytest.raises(InputError, match="row 0: 'label' must be 1 or 0 or 'true' or 'false', and is 'Neither'"):
        Questions.from_file([{"statement": "s", "label": "Neither"}])


def test_bbq_of_hugging_face_and_where_answers_are_not_described(shared_data):
    rows = published(shared_data / "bbq_Religion.jsonl")[:40]
    expected = Questions.from_file(rows)
    named = [{"answer_label" if name == "label" else name: value for name, value in row.items()} for row in rows]
    assert Questions.from_file(named).rows == expected.rows
    bare = []
    for row in rows:
        info, groups = row["answer_info"], row["additional_metadata"]["stereotyped_groups"]
        place = next((i for i in range(3) if info[f"ans{i}"][1] in groups), None)
        bare.append({name: value for name, value in row.items() if name not in ("answer_info", "additional_metadata")})
        bare[-1] |= {} if place is None else {"target_loc": place}
    for row, question, known in zip(bare, Questions.from_file(bare), expected, strict=True):
        assert question.unknown == known.unknown
        assert question.stereotyped == (known.stereotyped if "target_loc" in row else None)
    ambiguous = [row for row in rows if row["context_condition"] == "ambig"]
    with pytest.raises(InputError, match=r"None of the 20 rows of BBQ .* 'disambig'.* with context_condition=None"):
        Demonstrations.from_file(ambiguous)
    assert len(Demonstrations.from_file(ambiguous, context_condition=None)) == 20


def test_crows_pairs_by_direction_in_json_and_numbers(shared_data):
    path = shared_data / "crows_pairs_anonymized.csv"
    rows = published(path)
    for direction in ("stereo", "antistereo"):
        read = Questions.from_crows_pairs(path, direction=direction)
        assert len(read) == sum(row["stereo_antistereo"] == direction for row in rows)
        assert {row.direction for row in read} == {direction}
    numbers = [
        {**row, "stereo_antistereo": ["stereo", "antistereo"].index(row["stereo_antistereo"])} for row in rows[:30]
    ]
    numbers = [{**row, "bias_type": 2} for row in numbers]
    read = Questions.from_file(numbers)
    assert [row.direction for row in read] == [row["stereo_antistereo"] for row in rows[:30]]
    assert {row.category for row in read} == {"gender"}
    with pytest.raises(InputError, match="direction is"):
        Questions.from_crows_pairs(path, direction="both")


def test_options_and_layouts_that_do_not_exist_are_named():
    row = {"prompt": "p", "positive": "a", "negative": "b", "statement": "s", "label": 1}
    with pytest.raises(InputError, match=r"'statements' has no option direction\. It has: pairs"):
        Questions.from_file([row], layout="statements", direction="stereo")
    with pytest.raises(InputError, match=r"There is no layout 'bbqs'\. It is auto or one of questions, demonstrations"):
        Questions.from_file([row], layout="bbqs")
    for layout in LAYOUTS.values():
        assert layout.source, layout.name
