"Every notebook is a test of its own: `pytest -k 00_loss` runs one."

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / 'nbs'
NOTEBOOKS = sorted(
    p for p in NBS.rglob('*.ipynb') if not any(s[0] in '._' for s in p.relative_to(NBS).parts)
)
# A process each: no notebook sees the seeds, layers and figures of another, and its memory is given back.
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
