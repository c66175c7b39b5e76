"What every test may ask for, and the run's last lines: what was skipped and why."

import json
import os
import tempfile
import zipfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from nursery import Nursery

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('MPLBACKEND', 'Agg')
_cache = tempfile.TemporaryDirectory()
os.environ['TRIPLET_FASHION_CACHE'] = _cache.name  # not the user's

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared'


# Files that take longest begin first, so that no process is left with one of them at the end.
SECONDS = dict(
    test_cli=150,
    test_training=120,
    test_checkpoints=95,
    test_export=95,
    test_distributed=75,
    test_persistence=70,
    test_encoder=60,
    test_generator=55,
    test_features=45,
    test_diagnostics=40,
    test_engines=40,
    test_stages=35,
    test_site=30,
    test_evaluation=30,
    test_base_network=30,
    test_golden=20,
    test_notebooks=10,
)  # of a notebook


def pytest_collection_modifyitems(items):
    items.sort(key=lambda i: -SECONDS.get(i.path.stem, 0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "Share out whole files, as `--dist loadfile` does; notebooks one by one, each is a process."
    if config.getvalue('dist') != 'loadfile':
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid):
            if '::test_notebook[' in nodeid:
                return nodeid
            return super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # in the order of the collection
    return Files(config, log)


def _shared(name):
    "A path beside the checkout, or a skip that says what is absent."
    path = SHARED / name
    if not path.exists():
        pytest.skip(f'../shared/{name} is not beside this checkout')
    return path


@pytest.fixture(scope='session')
def root():
    "The checkout."
    return ROOT


@pytest.fixture(scope='session')
def fresh_python():
    "Processes that have imported TensorFlow: `fresh_python.run(code, *args, **env)`."
    made = Nursery()
    yield made
    made.end()


@pytest.fixture(scope='session')
def clothing():
    "The folder of real clothing photos: `train/CLASS/*.jpg` and `validation/CLASS/*.jpg`."
    return _shared('clothing')


@pytest.fixture(scope='session')
def lite0():
    "The file of a small ImageNet-trained backbone, where this Keras is new enough to open it."
    path = _shared('lite0/lite0.keras')
    with zipfile.ZipFile(path) as z:
        wrote = json.loads(z.read('metadata.json'))['keras_version']

    def minor(v):
        return tuple(map(int, v.split('.')[:2]))

    if minor(version('keras')) < minor(wrote):
        pytest.skip(f'{path.name} was written by Keras {wrote}, this is Keras {version("keras")}')
    return path


@pytest.fixture(scope='session')
def drawn(tmp_path_factory):
    "A drawn catalogue of 12 products with 6 views each."
    from triplet_fashion.datasets import draw_catalog

    return draw_catalog(tmp_path_factory.mktemp('drawn'), n_products=12, n_views=6, seed=0)


def _reason(report):
    "Why a test was skipped or is known to fail."
    if getattr(report, 'wasxfail', None) is not None:
        return f'known to fail: {report.wasxfail}'
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix('Skipped: ').splitlines()[0]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    reports = [r for key in ('skipped', 'xfailed') for r in terminalreporter.stats.get(key, [])]
    reasons = Counter(_reason(r) for r in reports)
    terminalreporter.section('skipped: what and why')
    for reason, n in reasons.most_common():
        terminalreporter.line(f'{n:4d}  {reason}')
    if not reasons:
        terminalreporter.line('nothing')


@pytest.fixture(scope='module')
def referee():
    "Input and figures stored by tests/referees/metrics.py."
    data = json.loads((Path(__file__).parent / 'referees' / 'metrics.json').read_text())
    return {k: np.array(v) if isinstance(v, list) else v for k, v in data.items()}
