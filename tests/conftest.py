"""Hands on what `tiny.py` holds to processes that run tests: the controller of several need not import it for seconds."""

import gc
from importlib import import_module

import pytest

pytest.register_assert_rewrite("tiny")


def pytest_configure(config):
    is_worker, is_alone = hasattr(config, "workerinput"), not config.getoption("numprocesses", None)
    if is_worker or is_alone:
        gc.disable()  # until all is imported and collected: that makes a million objects and hardly any garbage
        config.pluginmanager.register(import_module("tiny"), "tiny")


def __getattr__(name):
    """What tests import from here; pytest looks for names of its own, too."""
    if name.startswith(("pytest", "__")):
        raise AttributeError(name)
    return getattr(import_module("tiny"), name)
