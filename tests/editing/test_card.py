import json

import pytest

from sea_lens import EditorCard
from sea_lens.editing.card import library_versions
from sea_lens.errors import FileFormatError
from sea_lens.models.bridge import ModelDescription


def test_a_card_survives_json():
    card = EditorCard(
        "sea",
        {"explained_variance": [0.9, 0.99], "ranks": None, "center": True},
        site="mlp_out",
        token=-1,
        model=ModelDescription("tiny", 3, 32, "raw"),
        n_demonstrations=20,
        demonstrations="abc",
        layers={0: {"rank": 2}, 2: {"rank": 0}},
        versions=library_versions(),
    )
    assert EditorCard.from_json(json.loads(json.dumps(card.to_json()))) == card
    assert EditorCard.from_json(EditorCard("by hand", {}).to_json()) == EditorCard("by hand", {})


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"method": "sea", "hyper_parameters": {}, "loud": 1},
        {"method": "sea", "hyper_parameters": {}, "layers": [1]},
        {"method": "sea", "hyper_parameters": {}, "layers": {"first": {}}},
        {"method": "sea", "hyper_parameters": {}, "model": {"name": "tiny"}},
        {"method": "sea", "hyper_parameters": {}, "model": "tiny"},
    ],
)
def test_what_is_not_a_card_is_refused(plain):
    with pytest.raises(FileFormatError, match="not an editor's card"):
        EditorCard.from_json(plain)


def test_versions_name_what_decides_an_edit():
    assert {"torch", "transformer-lens"} <= set(library_versions())
