"""Every example in a docstring of the package runs, and every public name has one."""

import doctest
import inspect
import pkgutil
from dataclasses import is_dataclass
from functools import partial, wraps
from importlib import import_module

import pytest

import sea_lens as sl
from sea_lens.analysis import effects
from sea_lens.editing import registry
from sea_lens.evaluation import benchmark
from sea_lens.methods import method

FINDER = doctest.DocTestFinder(exclude_empty=True)
MODULES = ["sea_lens", *(one.name for one in pkgutil.walk_packages(sl.__path__, "sea_lens."))]
OF_USERS = ("sea_lens.methods.method.Method", "sea_lens.editing.edits.Edit")
"""Protocols that users implement and that are not among the public names."""
PUBLIC = {name: getattr(sl, name) for name in sl.__all__ if callable(getattr(sl, name))}
PUBLIC |= {f"plotting.{name}": getattr(sl.plotting, name) for name in sl.plotting.__all__}
PUBLIC |= {name: getattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in OF_USERS}


def examples_of(module):
    """The examples of a module that run, object by object."""
    if module.endswith("__main__"):
        return []
    found = FINDER.find(import_module(module), module)
    return [one for one in found if not all(doctest.SKIP in each.options for each in one.examples)]


WITH_EXAMPLES = [module for module in MODULES if module != "sea_lens" and examples_of(module)]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """The names that the package's own docstring makes, from which the other examples go on."""
    (first,) = examples_of("sea_lens")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sl, "load_organism", lambda: import_module("tiny").EMBEDDED["load_organism"]("cpu"))
        ran = doctest.DocTestRunner(verbose=False).run(first, clear_globs=False)
    assert ran.failed == 0
    return {name: value for name, value in first.globs.items() if name in ("pd", "torch", "sl", "dataclass")} | {
        name: first.globs[name]
        for name in ("model", "world", "demonstrations", "activations", "editor", "fitting", "questions")
    }


ONCE = (
    "compare compare_methods data_efficiency evaluate_truthfulqa measure_effects probe_activations study tune".split()
)
"""What takes long, and stands in several examples with the same words."""


@pytest.fixture(scope="module")
def once():
    """Runs such a call once; the next example with the same words gets its result."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ONCE:
            patched.setattr(sl, name, kept(getattr(sl, name)))
        yield


def kept(function):
    results = {}

    @wraps(function)
    def call(*args, **options):
        key = words_for([args, options])
        if key not in results:
            results[key] = function(*args, **options)
        return results[key]

    return call


def words_for(value):
    """What tells an argument apart: editors by what they do, settings by their fields, models and data by themselves."""
    if isinstance(value, list | tuple):
        return tuple(map(words_for, value))
    if isinstance(value, dict):
        return tuple((name, words_for(one)) for name, one in value.items())
    if isinstance(value, partial):
        return words_for([value.func, value.args, value.keywords])
    plain = isinstance(value, int | float | str) or (is_dataclass(type(value)) and hasattr(value, "fit"))
    return getattr(value, "fingerprint", None) or (repr(value) if plain else id(value))


@pytest.fixture
def registries():
    """What examples register is gone afterwards: other tests count what the library itself has."""
    benchmark.benchmarks()  # which are registered when first asked for
    tables = [method.METHODS, effects.EFFECTS, benchmark._REGISTERED, registry._BY_NAME, registry._BY_CLASS]
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


@pytest.mark.usefixtures("without_type_checks", "shared_models", "registries", "once")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_run(module, lines, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chat_template = lines["model"].tokenizer.chat_template
    public = {f"{one.__module__}.{one.__name__}" for one in PUBLIC.values()}
    said = []
    for one in examples_of(module):
        is_public = any(f"{one.name}.".startswith(f"{name}.") for name in public)
        one.globs = dict(lines) if is_public else {**one.globs, **lines}  # users see no names of the module
        doctest.DocTestRunner(verbose=False).run(one, out=said.append)
    lines["model"].tokenizer.chat_template = chat_template
    assert "".join(said) == ""


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name):
    assert doctest.DocTestParser().get_examples(inspect.getdoc(PUBLIC[name]) or ""), f"{name} has no example"
