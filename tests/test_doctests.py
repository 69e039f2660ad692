"""The examples in docstrings give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import tokred


def with_examples():
    for found in pkgutil.walk_packages(tokred.__path__, "tokred."):
        module = importlib.import_module(found.name)
        if any(test.examples for test in doctest.DocTestFinder(exclude_empty=True).find(module)):
            yield found.name


@pytest.mark.parametrize("name", list(with_examples()))
def test_examples_give_what_they_say(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
