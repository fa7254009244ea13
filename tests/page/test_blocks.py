"""The page is built, and what its controls call gives what a user sees. Gradio is needed; a browser is not."""

from importlib.util import find_spec

import pytest
import torch
from tiny import make_editor

import sea_lens as sl
import sea_lens.page as pages
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.page.desk import AS_FITTED

pytestmark = (
    pytest.mark.skipif(  # it is imported when the page is built: for seconds, which a worker without these tests saves
        find_spec("gradio") is None, reason='Gradio is not here: pip install "sea-lens[page]"'
    )
)

PROMPT = "<anyone> Q Marek pet A"


@pytest.fixture(scope="module")
def page(organism):
    edit = sl.AffineEdit.of_shift(40 * torch.randn(128, generator=torch.Generator().manual_seed(1)))
    return pages.build(
        organism[0],
        {"shift": sl.Editor({1: edit})},
        examples=[PROMPT],
        neutral_texts=["<truthful> Q Bram job A clerk ."],
    )


def called(page, name):
    """The function behind a control, by its name."""
    return next(one.fn for one in page.fns.values() if getattr(getattr(one.fn, "func", one.fn), "__name__", "") == name)


def test_it_listens_here_alone_and_tells_nobody(page):
    assert page.analytics_enabled is False
    assert page.launch.keywords["share"] is False
    assert not page.launch.keywords["run_history"]
    fonts = [*page.launch.keywords["theme"]._font, *page.launch.keywords["theme"]._font_mono]
    assert not any("Google" in type(font).__name__ for font in fonts)
    assert "http" not in page.launch.keywords["css"]
    assert page.enable_queue
    assert page._queue.max_size == 32


def test_its_functions_give_answers_words_and_tokens(page):
    *_, (answers, words, tokens, said, asked) = called(page, "answered")(
        PROMPT, False, [], "shift", AS_FITTED, 1, 0, 3, 2
    )
    assert "Edited" in answers
    assert "Damage: " in words
    assert tokens.count("<label") >= 6
    assert (said[0][0], asked) == (PROMPT, PROMPT)
    *_, (answers, words, *_) = called(page, "answered_again")(PROMPT, False, said, "shift", AS_FITTED, 0, 0, 3, 2)
    assert "Strength 0 is no edit" in words
    (problem,) = called(page, "answered")(PROMPT, False, [], "shift", AS_FITTED, 1, 3, 0, 2)
    assert "lies behind the last" in problem[1]
    assert list(called(page, "answered_again")("", False, [], "shift", AS_FITTED, 1, 0, 3, 2)) == []


@pytest.mark.usefixtures("without_type_checks")
def test_what_cannot_be_built_is_said(organism):
    with pytest.raises(InputError, match="needs an editor for this model"):
        pages.build(organism[0])
    editor = make_editor()
    for words, model, editors, options in [
        ("editors are a mapping", "organism", ["folder"], {}),
        ("one by 3", "organism", {3: editor}, {}),
        ("one by ''", "organism", {"": editor}, {}),
        (
            r"editors\['a'\] must be an Editor, its folder or its name on the hub, and 3 was given",
            "organism",
            {"a": 3},
            {},
        ),
        (r"editors\['a'\] must be a text or a path, and '' was given", "organism", {"a": ""}, {}),
        ("TransformerBridge is needed, and an int was given", 3, {"a": editor}, {}),
        ("examples must be a list of texts, or None, and 'abc' was given.$", "organism", None, {"examples": "abc"}),
        ("examples are prompts to click, and ' ' is blank", "organism", None, {"examples": ["a", " "]}),
        ("neutral_texts must be a list of texts", "organism", None, {"neutral_texts": [3]}),
        ("max_new_tokens must be a whole number from 1 on", "organism", None, {"max_new_tokens": 0}),
        ("max_new_tokens is 1 to 128 on the page, and 500", "organism", None, {"max_new_tokens": 500}),
    ]:
        with pytest.raises((InputError, ModelMismatchError), match=words):
            pages.build(model, editors, **options)
    with pytest.raises(InputError, match="no text to measure damage on"):
        pages.build(organism[0], {"a": sl.Editor({1: sl.AffineEdit.of_shift(torch.ones(128))})}, neutral_texts=[""])
