"The project around the notebooks: card, imports, what is made from what, what is shipped."

import ast
import base64
import configparser
import filecmp
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from email import message_from_string
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LIB = 'triplet_fashion'
NOTEBOOKS = sorted(
    p
    for p in (ROOT / 'nbs').rglob('*.ipynb')
    if not any(s[0] in '._' for s in p.relative_to(ROOT).parts)
)
EXPORTS = {
    p: m[1]
    for p in NOTEBOOKS
    if (m := re.search(r'#\| default_exp ([\w.]+)', p.read_text(encoding='utf-8')))
}
ROOMS = [p for p in EXPORTS if p.parent == ROOT / 'nbs']
INTERNALS = [p for p in EXPORTS if p.parent != ROOT / 'nbs']
MODULES = sorted(
    '.'.join(p.relative_to(ROOT / LIB).with_suffix('').parts)
    for p in (ROOT / LIB).rglob('*.py')
    if p.name[0] != '_'
)
LIGHT = [
    'storage.files',
    'storage.folders',
    'labels',
    'display',
    'tables',
    'class_names',
    'benchmark_files',
    'product_folders',
    'photos.image',
    'photos.sampling',
    'photos.loading',
    'photos.duplicates',
    'photos.audit',
    'photos.drawing',
    'catalog',
    'datasets',
    'groups',
    'neighbors',
    'ranking',
    'triplets',
    'metrics',
    'verification',
    'failures',
    'scores',
    'columns',
    'index_data',
    'index_file',
    'hits',
    'search',
    'explore',
    'commands.console',
    'commands.report',
    'cli',
]
NOT_FOR_USERS = [
    'nbdev',
    'execnb',
    'ghapi',
    'IPython',
    'pytest',
    'ruff',
    'hypothesis',
    'smalldocs',
    'ziamath',
    'imagehash',
]

config = configparser.ConfigParser(delimiters=['='])
config.read(ROOT / 'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']


def python(*args, cwd=ROOT, **env):
    "Run this Python apart, with the package of the checkout, outside any notebook test."
    env = {k: v for k, v in {**os.environ, 'PYTHONPATH': str(cwd), **env}.items() if k != 'IN_TEST'}
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        errors='replace',
    )


def ok(out):
    assert out.returncode == 0, f'{out.args}\n{out.stdout[-3000:]}\n{out.stderr[-6000:]}'
    return out.stdout


def text(x):
    return x if isinstance(x, str) else ''.join(x)


def cells(path):
    return json.loads(path.read_text(encoding='utf-8'))['cells']


@pytest.fixture
def copy(tmp_path):
    "A copy of what the package is made from."
    dest = tmp_path / 'project'
    dest.mkdir()
    skip = shutil.ignore_patterns('.*', '__pycache__', '_proc', '_docs')
    for name in ('nbs', LIB, '.ci'):
        shutil.copytree(ROOT / name, dest / name, symlinks=True, ignore=skip)
    for path in ROOT.iterdir():
        if path.is_file() and path.name[0] != '.':
            shutil.copy(path, dest)
    return dest


# ---- the card


def test_card():
    assert cfg['lib_name'] == cfg['lib_path'] == cfg['repo'] == LIB
    assert f'__version__ = "{cfg["version"]}"' in (ROOT / LIB / '__init__.py').read_text()
    assert f'## {cfg["version"]}\n' in (ROOT / 'CHANGELOG.md').read_text()
    names = {re.split(r'[<>=!~;\[]', r)[0] for r in cfg['requirements'].split()}
    assert {'tensorflow', 'numpy', 'matplotlib', 'pillow', 'fastcore'} <= names
    assert not names & set(NOT_FOR_USERS)
    assert not re.search(r'fastcore\S*<', cfg['requirements']), (
        "the developers' pin is not for users"
    )


def test_python_and_keras_are_new_enough_to_open_files_from_anybody():
    assert cfg['min_python'] == '3.11' and 'keras>=3.15.1' in cfg['requirements'].split()


def test_card_pins_nbdev():
    dev = cfg['dev_requirements'].split()
    for pin in 'nbdev>=2.4.14,<3', 'execnb<0.2', 'fastcore<2', 'ghapi<2':
        assert pin in dev


def test_commands_exist():
    for line in cfg['console_scripts'].split():
        name, target = line.split('=')
        module, function = target.removesuffix('.main').split(':')
        tree = ast.parse(
            (ROOT / module.replace('.', '/')).with_suffix('.py').read_text(encoding='utf-8')
        )
        assert function in {d.name for d in tree.body if isinstance(d, ast.FunctionDef)}, line


def test_nbdev_writes_no_pyproject():
    assert not (ROOT / 'pyproject.toml').exists()


# ---- imports


@pytest.mark.parametrize('name', ['', *LIGHT])
def test_import_leaves_tensorflow_alone(name):
    module = f'{LIB}.{name}'.rstrip('.')
    heavy = "sorted({'tensorflow', 'keras', 'matplotlib.pyplot'} & set(sys.modules))"
    assert ok(python('-c', f'import sys, {module}; print({heavy})')).strip() == '[]'


def test_every_module_with_a_users_install():
    "Nothing that only the dev extra brings is needed."
    code = f'''
import importlib, sys
for name in {NOT_FOR_USERS}: sys.modules[name] = None
for name in {MODULES}: importlib.import_module(f'{LIB}.{{name}}')
'''
    ok(python('-c', code, TF_CPP_MIN_LOG_LEVEL='3'))


# ---- the rooms


def test_every_room_has_its_module():
    assert ROOMS and sorted(EXPORTS.values()) == MODULES
    assert all(re.match(r'\d\d_', p.name) for p in ROOMS)


@pytest.mark.parametrize('path', EXPORTS, ids=lambda p: p.stem)
def test_room(path):
    name, src = EXPORTS[path], [text(c['source']) for c in cells(path)]
    assert name.split('.')[-1] == path.stem[3:] and name.split('.')[:-1] in ([], [path.parent.name])
    assert re.fullmatch(rf'# {name}\n+> \S[^\n]+', src[0].strip()), (
        'the first cell is `# name` and `> one line`, no more'
    )
    assert any(f'#| default_exp {name}' in s for s in src[1:3])


def script(name):
    "Return a script of `.ci` as a module."
    path = ROOT / '.ci' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layers = script('layers')


@pytest.mark.parametrize('path', EXPORTS, ids=lambda p: p.stem)
def test_imports_go_down(path):
    """A room imports from rooms above it and from internals, an internal module from internals alone.

    Those of `runs` are the exception: they stand between the rooms that they train by and
    `training`. So are those of `commands`, which stand right above `cli`."""
    runs = [p for p in INTERNALS if p.parent.name == 'runs']
    commands = [p for p in INTERNALS if p.parent.name == 'commands']
    below, training = (
        [p for p in ROOMS if p.stem < '19'],
        [p for p in ROOMS if '19' <= p.stem < '26'],
    )
    internals = [p for p in INTERNALS if p not in runs + commands]
    cli = [p for p in ROOMS if p.stem >= '26']
    bottom_up = [*internals, *below, *runs, *training, *commands, *cli]
    order, name = [EXPORTS[p] for p in bottom_up], EXPORTS[path]
    for other in layers.imports(name):
        if path in internals:
            assert other in [EXPORTS[p] for p in internals] and other != name, (
                f'{name} imports from {other}'
            )
        elif other:
            assert order.index(other) < order.index(name), (
                f'{name} imports from {other}, a room below it'
            )


def test_every_module_stands_in_one_layer():
    listed = [name for _, modules in layers.layers() for name in modules]
    assert sorted(listed) == MODULES, 'the list of layers in CONTRIBUTING.md'


def test_no_import_leads_to_a_layer_above():
    level = {m: i for i, (_, modules) in enumerate(layers.layers()) for m in modules}
    up = [(m, o) for m in MODULES for o in layers.imports(m) if level[o] > level[m]]
    assert not up


def test_the_picture_of_the_layers_is_the_current_one(copy):
    ok(python('.ci/layers.py', '--check'))
    assert layers.PICTURE.stat().st_size < 100_000
    tables = copy / LIB / 'tables.py'
    tables.write_text(tables.read_text() + 'from .storage import files\n')
    out = python('.ci/layers.py', '--check', cwd=copy)
    assert out.returncode == 1 and 'python .ci/layers.py' in out.stderr
    ok(python('.ci/layers.py', cwd=copy))
    ok(python('.ci/layers.py', '--check', cwd=copy))


# ---- the gate

HOLDS_THE_GIL = """
import ctypes
def test_waits_for_ever(): ctypes.PyDLL(None).sleep(60)   # a call that keeps Python's lock, as two threads that wait for each other do
"""


def test_a_hang_in_c_ends_the_run_with_its_stacks(tmp_path):
    (tmp_path / 'test_hang.py').write_text(HOLDS_THE_GIL)
    shutil.copy(ROOT / 'pytest.ini', tmp_path)
    begun = time.monotonic()
    out = python(
        '-m',
        'pytest',
        '-o',
        'timeout=1',
        '-o',
        'faulthandler_timeout=2',
        '-o',
        'testpaths=.',
        cwd=tmp_path,
    )
    assert out.returncode and time.monotonic() - begun < 40
    assert 'test_waits_for_ever' in out.stderr + out.stdout and 'Timeout' in out.stderr + out.stdout


STEPS = """
export PYTHONFAULTHANDLER=1
fine() { true; }
fails() { false; echo 'goes on'; }
hangs() { python -c 'import time; time.sleep(60)'; }
step good 20 fine; step bad 20 fails; step slow 2 hangs
echo "failed: ${failed[*]}"
"""


@pytest.mark.skipif(
    not shutil.which('bash') or not shutil.which('pkill'), reason='bash and pkill are not here'
)
def test_a_step_of_the_gate_ends_at_its_limit(tmp_path):
    step = re.search(r'^failed=\(\)$.*?^\}.*?$', (ROOT / '.ci/run').read_text(), re.M | re.S)[0]
    (tmp_path / 'steps.sh').write_text('set -euo pipefail\n' + step + STEPS)
    begun = time.monotonic()
    out = subprocess.run(['bash', tmp_path / 'steps.sh'], capture_output=True, text=True)
    assert time.monotonic() - begun < 30 and 'failed: bad slow' in out.stdout
    assert 'over its 2 s' in out.stdout and 'goes on' not in out.stdout
    assert 'most recent call first' in out.stderr


def test_counts_of_style_only_fall(copy):
    ok(python('.ci/style.py', '--lower', cwd=copy))
    before = json.loads((copy / '.ci/style.json').read_text())
    loss = copy / LIB / 'loss.py'
    kept = loss.read_text()

    loss.write_text(kept + 'one = 1; two = 2\n')
    out = python('.ci/style.py', '--lower', cwd=copy)
    assert out.returncode == 1 and 'triplet_fashion E702' in out.stdout
    assert json.loads((copy / '.ci/style.json').read_text()) == before

    loss.write_text('short = 1\n')
    ok(python('.ci/style.py', '--lower', cwd=copy))
    assert (
        json.loads((copy / '.ci/style.json').read_text())['triplet_fashion E501']
        < before['triplet_fashion E501']
    )


# ---- stored outputs

FOREIGN = re.compile(
    r'(?<![\w.~:/<])/(?:tmp|home|root|work|usr|opt|var|mnt|Users)/[\w.]|[A-Z]:\\\\\w|Traceback \(most recent|\b0x[0-9a-f]{6,}'
    r'|site-packages|\bWARNING\b|\w*Warning: |\d+(?:\.\d+)?\s?ms/step'
)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_outputs(path):
    "Outputs that anybody's run would give: no paths, addresses, times, warnings."
    shown = 0
    for cell in cells(path):
        if cell['cell_type'] != 'code':
            shown += '![' in text(cell['source'])
            continue
        for out in cell['outputs']:
            shown += 1
            assert out['output_type'] != 'error' and out.get('name') != 'stderr', text(
                cell['source']
            )
            data = {k: v for k, v in out.get('data', {}).items() if not k.startswith('image/')}
            said = '\n'.join(map(text, [out.get('text', ''), *data.values()]))
            said = re.sub(r'base64,[\w+/=]+', '', said)
            assert not (m := FOREIGN.search(said)), (
                f'{m[0]!r} in the output of:\n{text(cell["source"])}'
            )
    assert shown, 'no stored output: python .ci/store_outputs.py'


# ---- in step


def test_export_leaves_no_diff(copy):
    pytest.importorskip('nbdev', reason="nbdev is not installed: pip install -e '.[dev]'")
    ok(python('-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()', cwd=copy))

    def names(d):
        return sorted(p.relative_to(d).as_posix() for p in (d / LIB).rglob('*.py'))

    assert names(copy) == names(ROOT)
    same, differ, gone = filecmp.cmpfiles(ROOT, copy, names(ROOT), shallow=False)
    assert not differ + gone, f'out of step with the notebooks, run nbdev_export: {differ + gone}'
    assert not (copy / 'pyproject.toml').exists()


def test_clean_leaves_no_diff(copy):
    pytest.importorskip('nbdev', reason="nbdev is not installed: pip install -e '.[dev]'")
    ok(python('-c', 'from nbdev.clean import nbdev_clean; nbdev_clean()', cwd=copy))
    dirty = [
        p.name for p in NOTEBOOKS if p.read_bytes() != (copy / p.relative_to(ROOT)).read_bytes()
    ]
    assert not dirty, f'run nbdev_clean: {dirty}'


def test_readme_in_step():
    ok(python('.ci/readme.py', '--check'))


def test_readme_says_how_to_start():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert re.search(r'^pip install .*&& triplet_demo$', readme, re.M)
    assert re.search(r'^pip install .*&& pytest$', readme, re.M)
    for path in re.findall(r'!\[[^\]]*\]\(([^)]+)\)', readme):
        assert (ROOT / path).is_file(), path


def index(copy, *cells):
    "Replace the copy's index.ipynb."
    nb = dict(
        cells=[
            dict(cell_type='code' if len(c) > 1 else 'markdown', source=c[0], outputs=list(c[1:]))
            for c in cells
        ]
    )
    (copy / 'nbs' / 'index.ipynb').write_text(json.dumps(nb))


def test_readme_from_cells(copy):
    out = dict(output_type='execute_result', data={'text/plain': ['3']})
    index(
        copy,
        ['# me\n\n> one line\n'],
        ['#| hide\nimport x', out],
        ['## Tests -'],
        ['#| eval: false\n1 + 2', out],
        [
            '![p](images/results.jpg) and [licence](LICENSE) and [web](https://x.org)\n\n```\n[a](b.c)\n```'
        ],
    )
    ok(python('.ci/readme.py', cwd=copy))
    want = (
        '# me\n\none line\n\n```python\n1 + 2\n```\n\n```\n3\n```\n\n'
        '![p](nbs/images/results.jpg) and [licence](LICENSE) and [web](https://x.org)\n\n```\n[a](b.c)\n```\n'
    )
    assert (copy / 'README.md').read_text().split('-->\n\n')[1] == want
    ok(python('.ci/readme.py', '--check', cwd=copy))
    (copy / 'README.md').write_text(want)
    assert python('.ci/readme.py', '--check', cwd=copy).returncode == 1


def test_readme_takes_stored_pictures_along(copy):
    index(
        copy,
        [
            'plot()',
            dict(output_type='display_data', data={'image/png': 'AAAA', 'text/plain': '<Figure>'}),
        ],
    )
    ok(python('.ci/readme.py', cwd=copy))
    assert (
        '(nbs/images/index-1.png)' in (copy / 'README.md').read_text()
        and '<Figure>' not in (copy / 'README.md').read_text()
    )
    assert (copy / 'nbs/images/index-1.png').read_bytes() == b'\0\0\0'
    ok(python('.ci/readme.py', '--check', cwd=copy))
    (copy / 'nbs/images/index-1.png').write_bytes(b'old')
    assert 'index-1.png' in python('.ci/readme.py', '--check', cwd=copy).stderr


def test_stored_pictures_are_small():
    "Photos become JPEG, plots keep PNG with fewer colours; both keep the width that they were drawn for."
    store_outputs = script('store_outputs')
    smooth = np.add.outer(np.arange(200), np.arange(300))[..., None] // 2 % [251, 241, 239]
    photo = (smooth + np.random.default_rng(0).integers(0, 5, smooth.shape)).astype(np.uint8)
    plot = np.full((200, 300, 3), 255, np.uint8)
    plot[50:52] = plot[:, 70:72] = [31, 119, 180]

    def stored(pixels):
        png = store_outputs.base64_of(
            Image.fromarray(pixels), 'PNG', dpi=(200, 200), compress_level=1
        )
        data = {'image/png': png}
        sizes = {'image/png': dict(width=300, height=200)}
        store_outputs.compress_picture(data, sizes)
        ((mime, text),) = data.items()
        with Image.open(io.BytesIO(base64.b64decode(text))) as im:
            return mime, sizes, im.convert('RGB')

    mime, sizes, im = stored(photo)
    assert mime == 'image/jpeg' and sizes == {'image/jpeg': dict(width=150, height=100)}
    assert np.abs(np.asarray(im, int) - photo).mean() < 4
    mime, _, im = stored(plot)
    assert mime == 'image/png' and np.array_equal(im, plot)


@pytest.mark.parametrize(
    'cell, says',
    [
        (['[gone](images/no.png)'], 'images/no.png'),
        (
            ['1/0', dict(output_type='error', ename='ZeroDivisionError', data={})],
            'ZeroDivisionError',
        ),
    ],
)
def test_readme_refuses(copy, cell, says):
    index(copy, cell)
    out = python('.ci/readme.py', cwd=copy)
    assert out.returncode == 1 and says in out.stderr and 'Traceback' not in out.stderr


# ---- what is shipped


@pytest.fixture(scope='module')
def dists(tmp_path_factory):
    "The sdist, and the wheel built from it."
    pytest.importorskip('build', reason="build is not installed: pip install -e '.[dev]'")
    tmp = tmp_path_factory.mktemp('dist')
    src = tmp / 'src'
    shutil.copytree(
        ROOT,
        src,
        symlinks=True,
        ignore=shutil.ignore_patterns('.*', '__pycache__', '_*s', 'build', 'dist', '*.egg-info'),
    )
    ok(python('-m', 'build', '--no-isolation', '--outdir', tmp / 'dist', cwd=src))
    return tmp / 'dist'


def test_sdist(dists):
    (path,) = dists.glob('*.tar.gz')
    with tarfile.open(path) as f:
        names = {n.partition('/')[2] for n in f.getnames()}
    want = {
        'settings.ini',
        'setup.py',
        'README.md',
        'LICENSE',
        'CHANGELOG.md',
        *(f'{LIB}/{m.replace(".", "/")}.py' for m in MODULES),
    }
    assert want <= names
    assert not [n for n in names if '__pycache__' in n or n.endswith('.pyc')]


def test_wheel(dists):
    (path,) = dists.glob('*.whl')
    assert path.name == f'{LIB}-{cfg["version"]}-py3-none-any.whl'
    with zipfile.ZipFile(path) as f:
        names = set(f.namelist())

        def read(name):
            return f.read(next(n for n in names if n.endswith(f'.dist-info/{name}'))).decode()

        meta, entry = message_from_string(read('METADATA')), read('entry_points.txt')
    assert {n for n in names if '.dist-info/' not in n} == {
        p.relative_to(ROOT).as_posix() for p in (ROOT / LIB).rglob('*.py')
    }
    assert any(n.endswith('LICENSE') for n in names)
    needs = [r for r in meta.get_all('Requires-Dist') if 'extra ==' not in r]
    assert sorted(re.split(r'[<>=!~ ]', r)[0] for r in needs) == [
        'fastcore',
        'keras',
        'matplotlib',
        'numpy',
        'pillow',
        'tensorflow',
    ]
    assert meta['Requires-Python'] == f'>={cfg["min_python"]}'
    for line in cfg['console_scripts'].split():
        assert line.split('=')[0] in entry
    assert '# triplet_fashion' in meta.get_payload()
