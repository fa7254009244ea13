"""The house: imports run one way, importing the package is quick, and each public name can be had."""

import ast
from functools import cache
from pathlib import Path

import pytest

import sea_lens as sl

PACKAGE = Path(sl.__file__).parent
ORDER = [
    *("data", "models", "sae", "editing", "serving", "methods", "analysis"),
    *("evaluation", "worlds", "plotting", "page", "cli"),
]


@cache
def nodes():
    """What each of our files is made of."""
    return {path: list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))) for path in PACKAGE.rglob("*.py")}


@cache
def imports():
    """Every import of one of our modules in another: (importer, imported)."""
    return list(_imports())


def _imports():
    for path, found in nodes().items():
        importer = path.relative_to(PACKAGE).with_suffix("").parts
        for node in found:
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sea_lens":
                yield importer, (*node.module.split(".")[1:], "")


def level(parts):
    return ORDER.index(parts[0]) if parts[0] in ORDER else -1


def test_imports_run_one_way():
    arrows = [(importer, imported) for importer, imported in imports() if importer != ("__init__",)]
    assert [(one, other) for one, other in arrows if level(other) > level(one)] == []
    assert {importer[0] for importer, _ in imports()} >= set(ORDER[1:])  # it does look at files


def test_no_module_goes_in_a_circle():
    arrows = {}
    for importer, imported in imports():
        arrows.setdefault(".".join(importer), set()).add(".".join(imported).rstrip("."))
    finished, path = set(), []

    def visit(module):
        assert module not in path, f"{' -> '.join([*path, module])}"
        if module in finished:
            return
        path.append(module)
        for other in arrows.get(module, ()):
            visit(other)
        finished.add(path.pop())

    for module in list(arrows):
        visit(module)


def test_each_package_says_in_one_sentence_what_it_is():
    for package in ORDER:
        doc = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8")))
        assert doc, package
        assert doc.split("\n")[0].endswith("."), package


def test_every_public_name_can_be_had_and_no_other():
    for name in sl.__all__:
        assert getattr(sl, name) is not None
    assert set(dir(sl)) == set(sl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fit_see'"):
        sl.fit_see  # noqa: B018


def test_isinstance_is_not_asked_of_what_other_libraries_make():
    """From Python 3.12 it overlooks attributes that `__getattr__` gives, as a bridge's blocks are: no model would pass."""
    theirs = {"Model", "ModelConfig", "Tokenizer", "HasTokenizer", "ReadsTexts", "KeyValueCache"}
    asked = []
    for path, found in nodes().items():
        for node in found:
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                names = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
                asked += [(str(path.relative_to(PACKAGE)), node.lineno)] if names & theirs else []
    assert asked == []
