"""Docstrings of what is public say what comes back and what is raised."""

import ast
import inspect
import re
import textwrap

import sea_lens as sl
from sea_lens import errors

PLURALS = {"Activations", "Demonstrations", "Features", "Hooks", "Questions", "Those"}
"""First words of docstrings that end as a verb's third person does, and name what comes back."""
PUBLIC = {name: getattr(sl, name) for name in sl.__all__ if name not in ("METHODS", "plotting")}
FUNCTIONS = {name: found for name, found in PUBLIC.items() if inspect.isfunction(found)}


def methods_of(cls):
    """The public methods of a class by name, those of our own base classes too; properties are none."""
    for name in dir(cls):
        found = inspect.getattr_static(cls, name)
        function = inspect.unwrap(getattr(found, "__func__", found))
        if inspect.isfunction(function) and not name.startswith("_") and function.__module__.startswith("sea_lens"):
            yield name, function


METHODS = {
    f"{name}.{method}": function
    for name, cls in PUBLIC.items()
    if inspect.isclass(cls)
    for method, function in methods_of(cls)
}


def returns_something(function):
    return inspect.signature(function).return_annotation not in (None, "None", "Self", inspect.Signature.empty)


def has(section, doc):
    return re.search(rf"^{section}:$", doc, re.MULTILINE) is not None


def begins_with_a_verb(doc):
    first = re.match(r"\w*", doc)[0]
    return re.fullmatch(r"[A-Z][a-z]+s", first) is not None and first not in PLURALS


def test_there_is_something_to_look_at():
    assert len(FUNCTIONS) > 60
    assert len(METHODS) > 150
    assert begins_with_a_verb("Reads a file.")
    assert not begins_with_a_verb("The same edit.")


def test_every_public_function_says_what_comes_back():
    said = {name: inspect.getdoc(one) for name, one in FUNCTIONS.items() if returns_something(one)}
    assert len(said) > 60
    assert [name for name, doc in said.items() if not has("Returns", doc)] == []


def test_every_public_method_says_what_comes_back():
    """In a section, or in its first sentence, which then is no verb."""
    said = {name: inspect.getdoc(one) or "Is" for name, one in METHODS.items() if returns_something(one)}
    silent = [name for name, doc in said.items() if begins_with_a_verb(doc)]
    assert [name for name in silent if not (has("Returns", said[name]) or has("Yields", said[name]))] == []


def test_what_comes_back_is_not_read_as_a_type():
    """Of `x: y` in a section's first line, the site and editors take x for the type."""
    docs = {name: inspect.getdoc(one) or "" for name, one in {**FUNCTIONS, **METHODS}.items()}
    first = {name: re.search(r"^Returns:\n +(.*)", doc, re.MULTILINE) for name, doc in docs.items()}
    assert [name for name, found in first.items() if found and ": " in found[1]] == []


def errors_in(function):
    """Errors of ours that a function's own body raises."""
    body = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = (
        node.exc.func for node in ast.walk(body) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    )
    return {ast.unparse(kind) for kind in raised} & set(vars(errors))


def test_what_is_raised_is_said():
    silent = {
        name: kinds
        for name, function in {**FUNCTIONS, **METHODS}.items()
        if (kinds := {kind for kind in errors_in(function) if kind not in (inspect.getdoc(function) or "")})
    }
    assert silent == {}
    assert errors_in(sl.refit) == {"InputError"}
