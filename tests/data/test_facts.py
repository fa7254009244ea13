"""Facts to edit: the subject stands in every prompt once, and what contradicts itself is refused."""

import pytest

import sea_lens as sl
from sea_lens.data.facts import check_facts
from sea_lens.errors import InputError


@pytest.mark.usefixtures("without_type_checks")
def test_the_subject_is_put_into_prompts():
    fact = sl.FactEdit("Oslo", "The {x} of {} is", "cod", same_subject=[sl.KnownFact("{} is in", "Norway")])
    assert fact.text == "The {x} of Oslo is"
    assert fact.about(fact.same_subject[0].prompt) == "Oslo is in"
    assert fact.same_subject == (sl.KnownFact("{} is in", "Norway"),)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": "Oslo is"}, "has it 0 times"),
        ({"prompt": "{} and {}"}, "has it 2 times"),
        ({"subject": " "}, "not empty"),
        ({"target_new": ""}, "not empty"),
        ({"same_subject": (sl.KnownFact("Oslo is in", "Norway"),)}, "has it 0 times"),
        ({"neighborhood": ("Bergen is in",)}, "KnownFact"),
    ],
)
def test_what_names_no_subject_or_object_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        sl.FactEdit(**{"subject": "Oslo", "prompt": "{} is", "target_new": "cold", **change})


def test_facts_that_contradict_each_other_are_refused():
    one, other = (sl.FactEdit("Oslo", "{} is", target) for target in ("cold", "warm"))
    assert check_facts((one, one)) == [one, one]
    with pytest.raises(InputError, match="'cold' and one to 'warm'"):
        check_facts([one, other])
    with pytest.raises(InputError, match="At least one fact"):
        check_facts([])
