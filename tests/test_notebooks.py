"Every notebook is a test of its own: `pytest -k 00_loss` runs one."
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if not any(s[0] in '._' for s in p.relative_to(NBS).parts))
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


def run(path):
    "Run a notebook as `nbdev_test` does."
    env = {**os.environ, 'IN_TEST': '1', 'PYTHONHASHSEED': '0'}
    call = [sys.executable, '-c', RUN, str(path), str(ROOT)]
    return subprocess.run(call, cwd=NBS, env=env, capture_output=True, text=True, errors='replace')


@pytest.fixture(scope='module')
def running(request):
    "The notebooks that this run selected, two at a time: half of a notebook's time is one core importing."
    pytest.importorskip('nbdev', reason="nbdev is not installed: pip install -e '.[dev]'")
    wanted = [i.callspec.params['path'] for i in request.session.items if i.path == request.path and hasattr(i, 'callspec')]
    with ThreadPoolExecutor(2) as pool:
        yield {path: pool.submit(run, path) for path in wanted}
        pool.shutdown(wait=False, cancel_futures=True)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.relative_to(NBS).with_suffix('').as_posix())
def test_notebook(path, running):
    out = running[path].result()
    if out.returncode: pytest.fail(f'{path.name}\n{out.stdout[-4000:]}\n{out.stderr[-8000:]}', pytrace=False)


def test_there_are_notebooks():
    assert NBS/'index.ipynb' in NOTEBOOKS
