"Every notebook is a test of its own: `pytest -k 00_loss` runs one."
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
NOTEBOOKS = sorted(p for p in NBS.rglob('*.ipynb') if not any(s[0] in '._' for s in p.relative_to(NBS).parts))
# A process each: no notebook sees the seeds, layers and figures of another, and its memory is given back.
# They are forked from one that has imported what most of them import, and that runs nothing itself.
NURSERY = """
import json
import os
import sys
from pathlib import Path

import matplotlib.pyplot
import tensorflow
from nbdev.config import get_config
from nbdev.test import test_nb

root, flags = Path(sys.argv[1]), get_config().tst_flags.split()

def run(path, log):
    "Run a notebook as `nbdev_test` does, and end this process."
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    for fd in 1, 2: os.dup2(out, fd)
    ok, _ = test_nb(Path(path), skip_flags=flags, basepath=root)
    sys.exit(not ok)

for line in sys.stdin:   # orders, each answered by the status of the notebook's process
    child = os.fork()
    if not child: run(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope='module')
def nursery():
    "Python with everything imported, from which the processes of notebooks are forked."
    pytest.importorskip('nbdev', reason="nbdev is not installed: pip install -e '.[dev]'")
    env = {**os.environ, 'IN_TEST': '1', 'PYTHONHASHSEED': '0'}
    call = [sys.executable, '-c', NURSERY, str(ROOT)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with subprocess.Popen(call, cwd=NBS, env=env, text=True, start_new_session=True, **pipes) as p:
        yield p
        os.killpg(p.pid, signal.SIGKILL)   # with a notebook that did not come back


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.relative_to(NBS).with_suffix('').as_posix())
def test_notebook(path, nursery, tmp_path):
    log = tmp_path/'log'
    nursery.stdin.write(json.dumps([str(path), str(log)]) + '\n')
    nursery.stdin.flush()
    status = nursery.stdout.readline().strip()
    if status == '0': return
    said = log.read_text(errors='replace')
    pytest.fail(f'{path.name}, status {status}\n{said[-12000:]}', pytrace=False)


def test_there_are_notebooks():
    assert NBS/'index.ipynb' in NOTEBOOKS
