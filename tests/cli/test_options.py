import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Optional

import pytest
from typer.exceptions import TyperException

import sea_lens as sl
from sea_lens.cli.app import built
from sea_lens.cli.options import Of, as_options, docs_of, spread, words_of
from sea_lens.methods.method import settings_of
from sea_lens.methods.sea.feature_space import ELU, FeatureMap, SquaredExponential, Tanh


def library(
    data: str,
    *,
    kind: Literal["a", "b"] = "a",
    share: float | tuple[float, float] | None = 0.5,
    centered: bool = False,
    feature_map: FeatureMap | None = None,
    sizes: Sequence[int] | None = None,
    layer_sets: Sequence[Sequence[int]] = (),
    measure: Literal["answers"] | Callable[[str], float] = "answers",
    groups: Callable[[], int] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    folder: str | None = None,
) -> None:
    """Does something.

    Args:
        data: Not an option.
        kind: One of `"a"` and `"b"`,
            told over two lines: here.
        share: A share. None is all.
        seed: Of draws.

    Raises:
        InputError: Never.
    """


@dataclass(frozen=True)
class Base:
    """A part.

    Attributes:
        n: How many.
    """

    n: Optional[int] = None


@dataclass(frozen=True)
class Group(Base):
    """More of it.

    Attributes:
        seed: Of this.
    """

    seed: int = 0


@pytest.fixture
def taken():
    """What a command with the keywords of `library` gets from words."""
    got = []

    def command(*, group: Group, options: dict) -> None:
        got.append((group, options))

    typed = built(spread(command, options=Of(library)), "command")

    def take(*words):
        typed(list(words), standalone_mode=False)
        return got[-1]

    return take


def test_texts_of_docstrings_become_help_by_name():
    found = docs_of(library)
    assert found["kind"] == "One of a and b, told over two lines: here."
    assert found["share"] == "A share. Left out is all."
    assert docs_of(Group) == {"n": "How many.", "seed": "Of this."}


def test_defaults_are_the_functions_own(taken):
    group, options = taken()
    assert group == Group()
    assert options == {
        "kind": "a",
        "share": 0.5,
        "centered": False,
        "feature_map": None,
        "sizes": None,
        "layer_sets": [],
        "measure": "answers",
        "seed": 0,
        "confidence": 0.95,
    }


def test_words_become_values_of_the_functions_types(taken):
    words = "--kind b --share 0.9,0.5 --centered --feature-map tanh:4 --size 3 --size 4 --layer-set 0,1 --n 7 --seed 5"
    group, options = taken(*words.split())
    assert group == Group(7, 5)
    assert options["seed"] == 5  # shared by both
    assert (options["kind"], options["share"], options["centered"]) == ("b", (0.9, 0.5), True)
    assert (options["feature_map"], options["sizes"], options["layer_sets"]) == (Tanh(4.0), [3, 4], [(0, 1)])


@pytest.mark.parametrize(
    "words",
    [
        "--seed -1",
        "--seed 18446744073709551616",
        "--seed 1.5",
        "--confidence 1",
        "--confidence nan",
        "--kind c",
        "--share much",
        "--share 0.1,0.2,0.3",
        "--feature-map cubic",
        "--feature-map tanh:wide",
        "--size 3,4",
        "--folder x",
        "--groups x",
    ],
)
def test_other_words_are_refused(taken, words):
    with pytest.raises(TyperException) as refused:
        taken(*words.split())
    assert refused.value.format_message().startswith(("Invalid value for '--", "No such option"))


def test_options_shared_by_parts_with_different_defaults_keep_both():
    got = []

    @dataclass(frozen=True)
    class Other:
        seed: int = 42

    def command(*, group: Group, other: dict) -> None:
        got.append((group.seed, other["seed"]))

    typed = built(spread(command, other=Of(Other)), "command")
    typed([], standalone_mode=False)
    typed(["--seed", "3"], standalone_mode=False)
    assert got == [(0, 42), (3, 3)]


def test_a_grid_holds_the_values_that_are_given():
    got = []

    def command(*, values: dict) -> None:
        got.append(values)

    typed = built(spread(command, values=Of(library, repeated=True)), "command")
    typed([], standalone_mode=False)
    typed(
        "--share 0.5 --share 0.9,1 --centered --no-centered --feature-map none --feature-map elu".split(),
        standalone_mode=False,
    )
    assert got == [{}, {"share": [0.5, (0.9, 1.0)], "centered": [True, False], "feature_map": [None, ELU()]}]


def test_values_of_a_protocol_are_those_that_are_registered():
    read = words_of(FeatureMap | None)
    assert [read(word) for word in ("none", "squared-exponential", "elu:2")] == [None, SquaredExponential(), ELU(2.0)]


@pytest.mark.parametrize(
    "method",
    [
        sl.SEA((0.9, 0.5), center=True, feature_map=SquaredExponential(2.0), feature_unit=1.5),
        sl.SEA(0.998, ranks=(3, 1), merge="sum"),
        sl.ITI(n_heads=3, d_head=4),
        sl.MidSteer(switch=False, clip=True),
        sl.DirectionalAblation(at=("resid_pre", "mlp_out")),
        sl.GaussianTransport(),
    ],
)
def test_settings_as_options_are_read_back(method):
    taken, got = Of(type(method)), []

    def command(*, settings: dict) -> None:
        got.append(settings)

    typed = as_options(taken, settings_of(method))
    built(spread(command, settings=taken), "command")(shlex.split(typed), standalone_mode=False)
    assert settings_of(type(method)(**got[0])) == settings_of(method)
    assert (typed == "") == (method == type(method)())


def test_none_is_none_also_where_the_default_is_something_else(taken):
    assert taken()[1]["share"] == 0.5
    assert taken(*"--share none --n none --feature-map none".split())[1]["share"] is None


def test_keywords_without_a_type_are_left_out():
    """As those of a benchmark of a user's own, which must not break the command that lists it."""

    def untyped(model, questions, *, editor=None, depth: int = 3, progress=True):
        """Measures something."""

    assert [one.name for one in Of(untyped).options()] == ["depth"]
