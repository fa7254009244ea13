"""Files of facts: rows in CounterFact's layout, and our own layout there and back."""

import gzip
import hashlib
import json

import pytest

import sea_lens as sl
from sea_lens.data.fact_files import COUNTERFACT_SHA256, read_facts, write_facts
from sea_lens.errors import FileFormatError, InputError


def counterfact_row(case: int = 0, **changes):
    """A row with the fields of `counterfact.json`, as its readers in ROME and MEMIT take them apart."""
    rewrite = {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": f"Person {case}",
    }
    return {
        "case_id": case,
        "pararel_idx": 2796,
        "requested_rewrite": rewrite,
        "paraphrase_prompts": [
            f"Shayna does this. Person {case}, a native speaker of",
            f"Person {case} spoke the language",
        ],
        "neighborhood_prompts": [f"The native language of Neighbor {number} is" for number in range(10)],
        "attribute_prompts": ["The mother tongue of Bruce is"],
        "generation_prompts": [f"Person {case} lives in"],
        **changes,
    }


def test_counterfact_rows_are_read(tmp_path):
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps([counterfact_row(0), counterfact_row(1)], indent=1))
    first, second = read_facts(path)
    assert first.text == "The mother tongue of Person 0 is"
    assert second.subject == "Person 1"
    assert (first.target_new, first.target_true, first.relation) == ("English", "French", "P103")
    assert first.paraphrases == tuple(counterfact_row(0)["paraphrase_prompts"])
    # Neighbors have the true object, and no edit is to change that.
    assert [known.answer for known in first.neighborhood] == ["French"] * 10
    assert first.same_subject == ()
    assert first.generation == ("Person 0 lives in",)
    assert read_facts(path, n=1, seed=3) == read_facts(path, n=1, seed=3)


def test_a_file_is_told_by_its_hash(tmp_path):
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps([counterfact_row()]))
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(read_facts(path, sha256=own.upper())) == 1
    with pytest.raises(FileFormatError, match=f"{own}, and {COUNTERFACT_SHA256} was expected"):
        read_facts(path, sha256=COUNTERFACT_SHA256)
    with pytest.raises(InputError, match="sha256 is of a file"):
        read_facts([counterfact_row()], sha256=own)


def test_our_own_layout_comes_back_as_it_was_written(tmp_path):
    known = sl.KnownFact("{} eats", "rice"), sl.KnownFact("Timo Lund lives in", "Łódź")
    whole = sl.FactEdit("Ada", "{} lives in", "Lima", "Oslo", ("Home of Ada:",), known[:1], known[1:], "home", ("Ada",))
    facts = (whole, sl.FactEdit("Bo", "{} is", "old"))
    write_facts(facts, tmp_path / "facts.jsonl")
    assert read_facts(tmp_path / "facts.jsonl") == facts
    packed = tmp_path / "facts.json.gz"
    rows = [json.loads(line) for line in (tmp_path / "facts.jsonl").read_text(encoding="utf-8").splitlines()]
    packed.write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert read_facts(packed) == facts == read_facts(rows)


OWN = {"subject": "Ada", "prompt": "{} lives in", "target_new": "Lima"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (counterfact_row(requested_rewrite={"prompt": "{} is"}), "requested_rewrite.*there is no"),
        (counterfact_row(requested_rewrite="none"), "must be an object"),
        (counterfact_row(paraphrase_prompts=[3]), "'paraphrase_prompts' must be text"),
        ({"prompt": "{} lives in"}, "there is no 'subject'"),
        ({**OWN, "prompt": "Ada lives in"}, "has it 0 times"),
        ({**OWN, "same_subject": ["rice"]}, "'same_subject' 1 must be an object"),
        ({**OWN, "neighborhood": [{"prompt": "Bo lives in"}]}, "'neighborhood' 1: there is no 'answer'"),
    ],
)
def test_errors_name_the_row(row, said):
    with pytest.raises(InputError, match=said) as caught:
        read_facts([OWN, row])
    assert "row 1" in str(caught.value)


def test_too_few_facts_are_said(tmp_path):
    with pytest.raises(InputError, match="2 facts were asked for, and the list has 1"):
        read_facts([OWN], n=2)
    with pytest.raises(InputError, match="holds no facts"):
        read_facts([])
