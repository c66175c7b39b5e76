"""Every notebook is a test of its own: `pytest -k 00_loss` runs one.

What the notebooks, the package and its pages say is read for words that have a better one."""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / 'nbs'
NOTEBOOKS = sorted(
    p for p in NBS.rglob('*.ipynb') if not any(s[0] in '._' for s in p.relative_to(NBS).parts)
)
# A process each: no notebook sees the seeds and layers of another, and its memory is given back.
RUN = """
import sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
path, root = map(Path, sys.argv[1:])
ok, seconds = test_nb(path, skip_flags=get_config().tst_flags.split(), basepath=root)
sys.exit(not ok)
"""


@pytest.mark.parametrize(
    'path', NOTEBOOKS, ids=lambda p: p.relative_to(NBS).with_suffix('').as_posix()
)
def test_notebook(path, fresh_python):
    "As `nbdev_test` runs it."
    pytest.importorskip('nbdev', reason="nbdev is not installed: pip install -e '.[dev]'")
    out = fresh_python.run(RUN, path, ROOT, cwd=NBS, timeout=590, IN_TEST='1')
    if not out.returncode:
        return
    said = f'{out.stdout[-4000:]}\n{out.stderr[-8000:]}'
    pytest.fail(f'{path.name}, status {out.returncode}\n{said}', pytrace=False)


def test_there_are_notebooks():
    assert NBS / 'index.ipynb' in NOTEBOOKS


# ---- words

# None of these is the field's word; "the seed" is right of random numbers only.
NEVER = re.compile(
    r"""\b(
      strangers? | lessons? | deaf | heaps?\ of\ distances | mended | charged | laps? | decks?
    | dealt | staff | twins? | deepen(s|ed|ing)? | by\ heart | kept\ aside | gone\ silent
    | near\ cop(y|ies) | likeness(es)? | half\ files?
    | the\ seed's | the\ seed\ (notebook|recipe|package|code|model|network|tests?|did|does|has)
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
# Values that are kept in files, and printed lines that tests compare: why they stay.
EXCEPTIONS = {
    'near copy in another split': 'a finding by name, which reports and files hold',
    'near copy in two products': 'the same',
    'near copy in a product': 'the same',
    'near copies not looked for': 'a row of the table of findings',
    'are kept aside': 'a line that `triplet_train` prints',
    'is kept aside whole': 'the same line',
    'by strangers': 'the name of a column',
}


def comments(code):
    "Yield the comments of a module; docments are among them."
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def prose():
    "Yield (file, text): markdown of notebooks and pages, strings and comments of the package."
    for path in [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md']:
        yield path.name, path.read_text(encoding='utf-8')
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            if cell['cell_type'] == 'markdown':
                yield path.name, ''.join(cell['source'])
    for path in sorted((ROOT / 'triplet_fashion').rglob('*.py')):
        if path.name == '_modidx.py':
            continue
        code = path.read_text(encoding='utf-8')
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.name, node.value
        for comment in comments(code):
            yield path.name, comment


def wrong_words(text):
    "Return the words of a text that are never right, each with what stands around it."
    for words in EXCEPTIONS:
        text = text.replace(words, '')
    return [text[max(0, m.start() - 40) : m.end() + 20] for m in NEVER.finditer(text)]


def test_every_term_is_the_fields():
    found = [f'{file}: {words!r}' for file, text in prose() for words in wrong_words(text)]
    assert not found, '\n'.join(found)


def test_every_exception_is_needed():
    said = [text for file, text in prose()]
    assert not [words for words in EXCEPTIONS if not any(words in text for text in said)]


@pytest.mark.parametrize('text', ['Two strangers', 'one lap', 'the seed notebook', "The seed's"])
def test_a_wrong_word_is_found(text):
    assert wrong_words(text)


@pytest.mark.parametrize('text', ['an overlap', 'the seed of a batch', 'seed: of what is drawn'])
def test_a_right_word_is_not_found(text):
    assert not wrong_words(text)


# ---- Run All


def code_cells(path):
    "Yield (directives, statements) of the code cells of a notebook, without magics."
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        lines = ''.join(cell['source']).splitlines()
        if cell['cell_type'] != 'code':
            continue
        directives = [line[2:].strip() for line in lines if line.startswith('#|')]
        code = '\n'.join(line for line in lines if line[:1] not in ('%', '!'))
        yield directives, ast.parse(code).body


def is_import(statement):
    "Tell whether a statement imports, perhaps what is not everywhere."
    if isinstance(statement, ast.Try):
        return all(map(is_import, statement.body))
    return isinstance(statement, (ast.Import, ast.ImportFrom))


def is_shown(directives):
    "Tell whether a cell is a demo's: readers see it, and the package does not hold it."
    return not any(d.startswith(('hide', 'export', 'default_exp')) for d in directives)


def named(statement):
    "Tell whether a statement is `_all_ = [...]`, which says what an import is for."
    return isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == '_all_'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_imports_stand_in_cells_of_their_own(path):
    for directives, body in code_cells(path):
        others = [s for s in body if not is_import(s) and not named(s)]
        assert not (others and any(map(is_import, body))), ast.unparse(body)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_reader_imports_first(path):
    "The first cell that is shown holds imports, so that what follows can be copied."
    shown = [body for directives, body in code_cells(path) if is_shown(directives) and body]
    assert not shown or all(map(is_import, shown[0])), ast.unparse(shown[0])


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_every_cell_runs_in_jupyter(path):
    "What only shows is Markdown: Jupyter does not know that a cell is not to be run."
    assert not any(d == 'eval: false' for directives, _ in code_cells(path) for d in directives)
