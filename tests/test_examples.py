"The examples in docstrings: each is run, with what `from its.module import *` gives, and says what it prints."

import doctest
import importlib
import pkgutil

import pytest

import triplet_fashion

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules():
    "Yield every module of the package."
    for info in pkgutil.walk_packages(triplet_fashion.__path__, 'triplet_fashion.'):
        if '._' not in info.name:
            yield importlib.import_module(info.name)


def documented(module):
    "Yield (name, object) of what a module defines and shows: public, and not of another module."
    for name, thing in vars(module).items():
        if not name.startswith('_') and getattr(thing, '__module__', None) == module.__name__:
            yield name, thing


def examples():
    "Yield a doctest for each docstring that holds one."
    finder = doctest.DocTestFinder(recurse=True, exclude_empty=True)
    for module in modules():
        for name, thing in documented(module):
            yield from finder.find(thing, f'{module.__name__}.{name}', module)


FOUND = {test.name.removeprefix('triplet_fashion.'): test for test in examples() if test.examples}


@pytest.mark.parametrize('name', FOUND)
def test_an_example_says_what_it_prints(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(FOUND[name], out=said.append)
    assert runner.tries and not runner.failures, ''.join(said)


def test_what_a_newcomer_calls_has_an_example():
    assert len(FOUND) >= 60, sorted(FOUND)


def test_a_wrong_example_fails():
    test = doctest.DocTestParser().get_doctest('>>> 1 + 1\n3\n', {}, 'wrong', None, 0)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(test, out=lambda text: None)
    assert runner.failures == 1
