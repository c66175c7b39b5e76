"The commands, as a person types them."

import json, os, re, resource, shutil, subprocess, sys, warnings
from pathlib import Path

import numpy as np, pytest
from PIL import Image

from triplet_fashion import cli
from triplet_fashion.commands import console, judging, report
from triplet_fashion.persistence import load_bundle

COMMANDS = (
    'triplet_demo',
    'triplet_audit',
    'triplet_train',
    'triplet_eval',
    'triplet_embed',
    'triplet_search',
    'triplet_export',
)
root = Path(__file__).resolve().parents[1]


HELP = """
import sys
from triplet_fashion.cli import {0}
try: {0}.main(['--help'])
except SystemExit: pass
assert not {{'tensorflow', 'keras', 'matplotlib'}} & set(sys.modules)
"""


@pytest.mark.parametrize('name', COMMANDS)
def test_help_answers_at_once_and_without_tensorflow(name):
    code = HELP.format(name)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'usage: {name}')
    assert (
        after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.5
    )  # seconds of processor time


def test_every_option_is_explained():
    for name in COMMANDS:
        for action in console.argument_parser(getattr(cli, name))._actions:
            assert action.help, (name, action.dest)


def test_settings_ini_installs_all_commands():
    text = (root / 'settings.ini').read_text()
    for name in COMMANDS:
        assert f'{name}=triplet_fashion.cli:{name}.main' in text


@pytest.fixture(scope='module')
def run(drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp('cli') / 'run'
    cli.triplet_train.main(
        [str(drawn.root), '--out', str(out), '--size', '32', '--epochs', '2', '--steps', '3']
    )
    return out


def test_train_leaves_a_run(run):
    assert {'network', 'checkpoints', 'report.html', 'scores.json', 'neighbours.png'} <= {
        p.name for p in run.iterdir()
    }
    rows = json.loads((run / 'scores.json').read_text())['rows']
    assert [r['embedding'] for r in rows] == [
        'trained network',
        'untrained network',
        'colour histogram',
        'raw pixels',
        'chance',
    ]
    page = (run / 'report.html').read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == [] and 'R@1' in page
    assert len(list((run / 'checkpoints').glob('00000?-*.weights.h5'))) == 2


def test_a_run_says_what_it_was_trained_on_and_what_it_is_worth(run):
    from triplet_fashion.persistence import bundle_info

    d, rows = bundle_info(run / 'network'), json.loads((run / 'scores.json').read_text())['rows']
    assert (
        d['data']['photos'] == 60 and d['data']['products'] == 10 and len(d['data']['sha256']) == 64
    )
    assert (
        d['meta']['figures'] == {n: rows[0][n] for n in ('R@1', 'MAP@R')}
        and len(d['meta']['history']['loss']) == 2
    )
    assert len(d['meta']['class_names']) == 12 and d['meta']['protocol'].startswith('12 queries')


def test_a_network_on_a_frozen_backbone_stands_beside_it_and_beside_random_weights(drawn):
    import keras
    from triplet_fashion.base_network import base_network
    from triplet_fashion.training import fit

    body = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
    )
    run = fit(
        drawn,
        net=base_network((32, 32, 3), 8, backbone=body, trainable=False),
        epochs=1,
        steps=1,
        verbose=0,
        monitor=None,
    )
    assert set(judging.baselines_for(run)) == {
        'frozen backbone',
        'PCA of frozen features',
        'LDA of frozen features',
        'untrained network',
        'colour histogram',
        'raw pixels',
        'chance',
    }
    assert set(judging.baselines_for(run, quick=True)) == {
        'frozen backbone',
        'colour histogram',
        'raw pixels',
        'chance',
    }


def test_a_run_is_not_overwritten_unless_told(run, drawn):
    with pytest.raises(SystemExit, match='already holds a run'):
        cli.triplet_train.main([str(drawn.root), '--out', str(run)])


KILLED = '''
import json, os, signal, sys, traceback
from triplet_fashion import cli, evaluation, persistence
from triplet_fashion.runs.schedules import LearningRateLogger

photos, out = sys.argv[1:]
args = '--size 32 --epochs 3 --steps 2 --quiet'.split()
def strike(*args, **kw): os.kill(os.getpid(), signal.SIGKILL)
def in_training():
    def after(self, epoch, logs=None): epoch and strike()
    LearningRateLogger.on_epoch_end = after
def while_judging(): evaluation.scoreboard = strike

def run(patch=lambda: None, **env):
    "The command in a process of its own; its exit status."
    child = os.fork()
    if not child:
        os.environ.update(env)
        patch()
        try: cli.triplet_train.main([photos, '--out', out, '--resume', out + '/kept', *args])
        except SystemExit as e: print(e); os._exit(2)
        except BaseException: traceback.print_exc(); os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def cluster(i):
    workers = {'worker': ['localhost:1', 'localhost:2']}
    return json.dumps({'cluster': workers, 'task': {'type': 'worker', 'index': i}})

killed = run(in_training), run(while_judging)
print([*killed, run(TF_CONFIG=cluster(1)), run(TF_CONFIG=cluster(0)), run()])
'''


def test_the_same_command_goes_on_wherever_it_was_killed(fresh_python, drawn, tmp_path):
    """In training; while judging; then, everything trained, as one of two machines whose other is
    long gone; and it is refused once judged."""
    got = fresh_python.run(KILLED, drawn.root, tmp_path / 'run')
    assert '[-9, -9, 0, 0, 2]' in got.stdout, got.stdout[-2000:] + got.stderr[-3000:]
    assert 'already holds a run' in got.stdout
    assert {'network', 'report.html', 'scores.json'} <= {
        p.name for p in (tmp_path / 'run').iterdir()
    }
    assert len(load_bundle(tmp_path / 'run' / 'network')[1]['history']['loss']) == 3


def test_more_epochs_from_the_best_checkpoint_with_a_log(drawn, tmp_path):
    args = [
        str(drawn.root),
        '--size',
        '32',
        '--steps',
        '2',
        '--quiet',
        '--quick',
        '--precision',
        'auto',
    ]
    cli.triplet_train.main(
        [*args, '--out', str(tmp_path / 'a'), '--epochs', '1', '--resume', str(tmp_path / 'kept')]
    )
    best = tmp_path / 'kept' / 'best.npz'
    with pytest.raises(SystemExit, match='ask for more'):
        cli.triplet_train.main(
            [*args, '--out', str(tmp_path / 'b'), '--epochs', '1', '--resume', str(best)]
        )
    cli.triplet_train.main(
        [
            *args,
            '--out',
            str(tmp_path / 'b'),
            '--epochs',
            '4',
            '--resume',
            str(best),
            '--log',
            str(tmp_path / 'log'),
            '--checkpoints',
            '2',
        ]
    )
    assert len(load_bundle(tmp_path / 'b' / 'network')[1]['history']['loss']) == 3
    assert [p.name[:6] for p in sorted((tmp_path / 'b' / 'checkpoints').iterdir())] == [
        '000003',
        '000004',
    ]
    names = {p.name for p in (tmp_path / 'log').rglob('*')}
    assert {'history.csv', 'projector_config.pbtxt', 'photos.png'} <= names and any(
        n.startswith('events.') for n in names
    )
    assert (tmp_path / 'log' / 'history.csv').read_text().splitlines()[0].startswith('epoch,')


def test_eval(run, drawn, capsys, tmp_path):
    rows = cli.triplet_eval(
        str(run), str(drawn.root), out=str(tmp_path / 'e.html'), failures=str(tmp_path / 'why')
    )
    out = capsys.readouterr().out
    assert (
        '72 queries of 12 products' in out
        and 'this network' in out
        and (tmp_path / 'e.html').stat().st_size > 20_000
    )
    names = [r['embedding'] for r in rows]
    for name in (
        'this network',
        'untrained network',
        'colour histogram',
        'chance',
    ):  # ten products were trained on, two were not: never in one figure
        assert {f'{name}, seen products', f'{name}, unseen products'} <= set(names)
    page = (tmp_path / 'e.html').read_text()
    for kind in ('unseen', 'seen'):
        assert f'same or not, {kind} products, no threshold is stored' in out
    part = drawn.subset(
        np.isin(
            drawn.labels,
            [
                c
                for c in drawn.products
                if drawn.class_names[c] in load_bundle(run / 'network')[1]['trained_on']
            ],
        )
    )
    row = rows[names.index('this network, seen products')]
    assert (
        row['queries'] == len(part)
        and row['R@1 interval'][0] <= row['R@1'] <= row['R@1 interval'][1]
        and f"{row['AUC']:.3f}" in out
        and 'no match' in out
    )
    why = page[page.index('Why it failed</h2>') :]
    assert (
        'All queries together: 10 of their 12 products were seen' in why and why.count('<img') > 40
    )
    tables = {
        p.stem: p.read_text(encoding='utf-8').splitlines() for p in (tmp_path / 'why').iterdir()
    }
    assert sorted(tables) == [
        'confused_products',
        'false_accepts',
        'false_rejects',
        'hubs',
        'worst_queries',
    ]
    assert (
        tables['worst_queries'][0].startswith('query,product,rank')
        and len(tables['worst_queries']) == 21
        and tables['worst_queries'][1].split(',')[0] in drawn.ids
    )


def test_eval_uses_the_stored_threshold(run, drawn, capsys, tmp_path):
    from triplet_fashion.failures import false_rejects
    from triplet_fashion.verification import fit_threshold
    from triplet_fashion.persistence import load_bundle, save_bundle
    from triplet_fashion.encoder import encode

    net, meta = load_bundle(run / 'network')
    meta['threshold'] = t = fit_threshold(
        encode(drawn, net), drawn.labels, fmr='eer', n=500, metric='euclidean'
    )
    del meta['trained_on']
    save_bundle(tmp_path / 'run' / 'network', net, **meta)
    rows = cli.triplet_eval(
        str(tmp_path / 'run'), str(drawn.root), quick=True, failures=str(tmp_path / 'why')
    )
    out = capsys.readouterr().out
    assert (
        'the threshold stored with the network, euclidean distance' in out
        and f'{t.value:.4g}' in out
    )
    rejects = false_rejects(encode(drawn, net), drawn.labels, t)
    assert 0 < rejects.total and len(
        (tmp_path / 'why' / 'false_rejects.csv').read_text().splitlines()
    ) == 1 + len(rejects)  # by the threshold's own distance
    missed = float(re.search(r'^FNMR  +(\S+)', out, re.M)[1])
    assert missed == pytest.approx(rejects.total / 180, abs=6e-4)  # all pairs of 12 products of 6
    assert [r['embedding'] for r in rows] == [
        'this network',
        'colour histogram',
        'raw pixels',
        'chance',
    ]


def lean(run, to):
    "The run without what it was trained on."
    from triplet_fashion.persistence import load_bundle, save_bundle

    net, meta = load_bundle(run / 'network')
    meta.pop('trained_on')
    save_bundle(to / 'network', net, **meta)
    return str(to)


def test_eval_searches_the_gallery_it_is_given(run, drawn, capsys, tmp_path):
    "The same folder: every photo finds the others of its product, as without a gallery."
    it = lean(run, tmp_path / 'run')
    (alone,) = (
        r
        for r in cli.triplet_eval(it, str(drawn.root), quick=True)
        if r['embedding'] == 'this network'
    )
    capsys.readouterr()
    rows = cli.triplet_eval(
        it,
        str(drawn.root),
        gallery=str(drawn.root),
        quick=True,
        out=str(tmp_path / 'e.html'),
        failures=str(tmp_path / 'why'),
    )
    out, err = capsys.readouterr()
    assert 'note: --gallery has no effect' in err
    assert (
        rows[0]['R@1'] == alone['R@1'] < 1
        and rows[0]['MAP@R'] == alone['MAP@R']
        and rows[0]['5-NN'] < 1
    )
    assert (
        f'searched among the 72 photos of {drawn.name}, without itself' in out
        and 'training' not in out
        and 'no match there' not in out
    )
    line = (
        (tmp_path / 'why' / 'worst_queries.csv')
        .read_text(encoding='utf-8')
        .splitlines()[1]
        .split(',')
    )
    assert line[0] != line[4] and Path(line[0]).is_file() and Path(line[4]).is_file()


def test_eval_counts_what_has_no_match_in_the_gallery(run, drawn, capsys, tmp_path):
    "A gallery of other photos without one of the products; and one with none of them."
    q, g = tmp_path / 'queries', tmp_path / 'shelf'
    for path, label, name in zip(drawn.paths, drawn.labels, drawn.ids):
        home = q if name.endswith(('000.jpg', '001.jpg')) else g
        if home == g and label == 3:
            continue
        (home / drawn.class_names[label]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, home / drawn.class_names[label])
    row, *_ = cli.triplet_eval(lean(run, tmp_path / 'run'), str(q), gallery=str(g), quick=True)
    out = capsys.readouterr().out
    assert (row['queries'], row['skipped']) == (22, 2)
    assert (
        '24 queries of 12 products, each searched among the 44 photos of shelf; ' in out
        and '2 queries have no match there and are not counted' in out
    )
    photo(tmp_path / 'strange' / 'thing' / '1.jpg', 1)
    with pytest.raises(SystemExit, match='no query has a photo of its product in strange'):
        cli.triplet_eval.main([str(run), str(q), '--gallery', str(tmp_path / 'strange')])


def test_what_was_judged_is_said(drawn):
    half = np.arange(72) % 2 > 0
    train, rest = drawn.subset(half), drawn.subset(~half)
    assert judging.training_protocol(rest, train)[1].endswith(
        'The classes were seen in training, these photos were not.'
    )
    assert judging.training_protocol(drawn, train)[1].endswith(
        'The classes were seen in training, and so were 36 of these photos.'
    )
    assert (
        '1 queries have no match there'
        in judging.training_protocol(drawn.subset(np.arange(72) > 4))[1]
    )
    with pytest.raises(ValueError, match='every product has one photo'):
        judging.training_protocol(drawn.subset([0, 8]))
    with pytest.raises(ValueError, match='--val'):
        judging.training_protocol(drawn.subset([]), drawn)


def test_training_can_keep_the_best_epoch(drawn, tmp_path, capsys):
    cli.triplet_train.main(
        [
            str(drawn.root),
            '--out',
            str(tmp_path / 'run'),
            '--size',
            '32',
            '--epochs',
            '2',
            '--steps',
            '1',
            '--quiet',
            '--quick',
            '--restore-best',
        ]
    )
    out, (net, meta) = capsys.readouterr().out, load_bundle(tmp_path / 'run' / 'network')
    best = 1 + int(np.argmax(meta['history']['val_MAP@R']))
    assert f'Epoch {best} was kept, the best of 2 on 12 of these photos' in out
    from triplet_fashion.evaluation import evaluate
    from triplet_fashion.encoder import encode

    aside = drawn.subset([drawn.class_names[c] not in meta['trained_on'] for c in drawn.labels])
    assert evaluate(encode(aside, net), aside)['MAP@R'] == pytest.approx(
        max(meta['history']['val_MAP@R']), abs=1e-6
    )


def test_search_finds_the_same_photo_first_and_prints_and_draws(run, drawn, capsys, tmp_path):
    photo = tmp_path / '새 사진 (1).jpg'
    shutil.copy(drawn.paths[7], photo)
    cli.triplet_search.main(
        [
            str(run),
            str(photo),
            '--catalog',
            str(drawn.root),
            '--k',
            '3',
            '--out',
            str(tmp_path / 's.html'),
        ]
    )
    out = capsys.readouterr().out
    assert drawn.ids[7] in out
    assert '새 사진 (1).jpg' in (tmp_path / 's.html').read_text()


def test_embed_then_search_in_the_file(run, drawn, capsys, tmp_path):
    cli.triplet_embed.main([str(run), str(drawn.root), '--out', str(tmp_path / 'i.npz')])
    found = cli.triplet_search(
        str(run),
        [drawn.paths[0], drawn.paths[20]],
        catalog=str(tmp_path / 'i.npz'),
        k=2,
        out=str(tmp_path / 's.html'),
    )
    assert [len(h) for h in found] == [2, 2]


def test_embed_leaves_nothing_beside_its_file_and_goes_on_after_a_kill(
    run, drawn, tmp_path, monkeypatch
):
    from triplet_fashion.search import ImageIndex

    out, save = tmp_path / 'i.npz', ImageIndex.save

    def killed(self, file):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageIndex, 'save', killed)
    with pytest.raises(SystemExit, match='stopped'):
        cli.triplet_embed.main([str(run), str(drawn.root), '--out', str(out)])
    parts = {p: p.stat().st_mtime_ns for p in (tmp_path / 'i.npz.parts').glob('part-*')}
    assert parts

    def looked(self, file):
        assert {p: p.stat().st_mtime_ns for p in parts} == parts
        return save(self, file)

    monkeypatch.setattr(ImageIndex, 'save', looked)
    assert len(cli.triplet_embed(str(run), str(drawn.root), out=str(out))) == 72
    assert [p.name for p in tmp_path.iterdir()] == ['i.npz']


@pytest.mark.parametrize(
    'error', [ImportError('pip install this'), RuntimeError('no engine agrees')]
)
def test_an_error_is_one_line(error, capsys):
    def triplet_fails():
        raise error

    with pytest.raises(SystemExit, match=f'^triplet_fails: {error}$'):
        console.command(triplet_fails).main([])


def test_audit_lists_what_is_wrong(drawn, tmp_path, capsys):
    folder = tmp_path / '사진들 (2)'
    shutil.copytree(drawn.root, folder)
    home = folder / drawn.class_names[0]
    (home / 'cut.jpg').write_bytes(Path(drawn.paths[0]).read_bytes()[:900])
    (home / 'note.jpg').write_text('not a photo')
    cli.triplet_audit.main([str(folder), '--out', str(tmp_path / 'bad.txt')])
    out = capsys.readouterr().out
    assert 'cut.jpg' in out and 'note.jpg' in out and '2 to leave out' in out
    assert (tmp_path / 'bad.txt').read_text(encoding='utf-8').splitlines()[
        0
    ] == 'path,problem' and len((tmp_path / 'bad.txt').read_text().splitlines()) == 3
    from triplet_fashion.catalog import Catalog

    assert Catalog.from_dir(folder).exclude(tmp_path / 'bad.txt').ids == drawn.ids


def test_audit_shows_copies_and_leaks(drawn, tmp_path, capsys):
    from PIL import Image

    folder = tmp_path / 'shop & <co>'
    shutil.copytree(drawn.root, folder)
    (folder / 'sale').mkdir()
    for v in range(6):
        Image.open(drawn.paths[v]).save(folder / 'sale' / f'{v}.webp', quality=60)
    cli.triplet_audit.main(
        [
            str(folder),
            '--near',
            '--out',
            str(tmp_path / 'list.csv'),
            '--report',
            str(tmp_path / 'r.html'),
        ]
    )
    out = capsys.readouterr().out
    assert (
        'may be one product' in out
        and out.count('near copy in two products: ') == 6
        and len((tmp_path / 'list.csv').read_text().splitlines()) == 13
    )
    page = (tmp_path / 'r.html').read_text()
    assert (
        'sale' in page
        and page.count('<img') > 6
        and '<co>' not in page
        and 'http://' not in page.replace('http://www.w3.org', '')
    )
    audit = cli.triplet_audit(str(folder), against=str(drawn.root))
    assert (
        len(audit.leaks) == 72 + 6
        and '78 to leave out' in capsys.readouterr().out
        and len(audit.clean) == 0
    )


def test_audit_options(drawn, run, tmp_path, capsys):
    folder = tmp_path / 'c'
    shutil.copytree(drawn.root, folder)
    (folder / 'alone').mkdir()
    shutil.move(folder / drawn.ids[0], folder / 'alone' / '1.jpg')
    cli.triplet_audit.main([str(folder)])
    assert (
        '1 products with one photo, learned from in views of it where photos are augmented:\n'
        'one photo: alone'
        in capsys.readouterr().out
    )
    assert len(cli.triplet_audit(str(folder), min_side=1000).table) == 72
    with pytest.raises(SystemExit, match='no photos in its 13 folders'):
        cli.triplet_audit.main([str(folder), '--layout', 'nested'])
    cli.triplet_embed.main([str(run), str(folder), '--out', str(tmp_path / 'i.npz')])
    (folder / 'alone' / '2.jpg').write_bytes((folder / drawn.ids[30]).read_bytes() + b'x')
    capsys.readouterr()
    assert (
        cli.triplet_audit(str(folder), embeddings=str(tmp_path / 'i.npz')).searched == 'embeddings'
        and '1 photos are not in' in capsys.readouterr().out
    )
    with pytest.raises(SystemExit, match='goes without --against'):
        cli.triplet_audit.main([str(folder), '--embeddings', 'i.npz', '--against', str(folder)])


def test_bad_photos_are_counted_and_left_out_of_a_run(drawn, tmp_path, capsys):
    folder = tmp_path / '옷 사진 (3)'
    shutil.copytree(drawn.root, folder)
    for i, name in enumerate(drawn.class_names[:4]):
        (folder / name / 'cut.jpg').write_bytes(Path(drawn.paths[6 * i]).read_bytes()[:900])
        (folder / name / 'empty.png').touch()
    cli.triplet_train.main(
        [
            str(folder),
            '--out',
            str(tmp_path / 'run'),
            '--size',
            '32',
            '--epochs',
            '1',
            '--steps',
            '2',
            '--quiet',
            '--quick',
        ]
    )
    assert '80 photos examined, 8 to leave out' in capsys.readouterr().out
    (loss,) = load_bundle(tmp_path / 'run' / 'network')[1]['history']['loss']
    assert np.isfinite(loss)


def wrong(folder):
    with pytest.raises(SystemExit) as e:
        cli.triplet_train.main([str(folder), '--out', str(folder.parent / 'out'), '--epochs', '1'])
    assert not (folder.parent / 'out' / 'network').exists()
    return str(e.value)


def photo(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(shade).integers(0, 255, (40, 40, 3), 'uint8')).save(path)


def test_folders_that_cannot_train_say_why_in_one_line(tmp_path):
    empty, loose, single, alone = (tmp_path / n for n in ('empty', 'loose', 'single', 'alone'))
    empty.mkdir()
    photo(loose / 'a.jpg')
    for i in range(3):
        photo(single / 'only' / f'{i}.jpg', i)
    photo(alone / 'product' / '1.jpg')
    assert 'empty' in wrong(empty)
    assert 'folder' in wrong(loose)
    assert '1 product' in wrong(single)
    assert '1 product' in wrong(alone)
    assert 'no such folder' in wrong(tmp_path / 'missing')
    for text in (wrong(empty), wrong(single)):
        assert text.startswith('triplet_train: ') and '\n' not in text


def test_wrong_runs_photos_and_catalogues(run, drawn, tmp_path):
    for args, text in [
        ([str(tmp_path), str(drawn.paths[0]), '--catalog', str(drawn.root)], 'holds no run'),
        ([str(run), 'gone.jpg', '--catalog', str(drawn.root)], 'gone.jpg'),
        ([str(run), str(drawn.paths[0])], '--catalog'),
    ]:
        with pytest.raises(SystemExit, match=text):
            cli.triplet_search.main(args)


def test_unknown_backbone(drawn, tmp_path):
    with pytest.raises(SystemExit, match='ResNet50'):
        cli.triplet_train.main(
            [str(drawn.root), '--out', str(tmp_path / 'o'), '--backbone', 'ResNet5']
        )


@pytest.mark.timeout(900)  # a whole training
def test_demo_reaches_its_figures(tmp_path):
    rows = cli.triplet_demo(out=str(tmp_path / 'demo'))
    best, *others = (r['R@1'] for r in rows)
    assert best >= 0.90 and best > max(others) + 0.2, rows
    assert (tmp_path / 'demo' / 'report.html').stat().st_size > 100_000


def test_export_writes_what_another_engine_opens(run, drawn, capsys, tmp_path):
    from triplet_fashion.export import load_export

    made = cli.triplet_export(str(run), str(tmp_path / 'out'), 'litert', sample=str(drawn.root))
    assert 'network.tflite' in capsys.readouterr().out
    assert made.note['threshold'] == load_bundle(run / 'network')[1].get('threshold')
    assert load_export(tmp_path / 'out').note == made.note


# --- numbers and words that mean nothing


@pytest.mark.parametrize(
    'option, value, said',
    [
        ('--epochs', '0', 'a whole number, 1 or more'),
        ('--size', '0', 'a whole number, 1 or more'),
        ('--size', '2.5', 'a whole number, 1 or more'),
        ('--steps', '-1', 'a whole number, 1 or more'),
        ('--checkpoints', '0', 'a whole number, 1 or more'),
        ('--rate', 'nan', 'a number above 0'),
        ('--rate', '0', 'a number above 0'),
        ('--rate', 'inf', 'a number above 0'),
        ('--learn', '2', 'a share, from 0 to 1'),
        ('--seed', '-1', 'a whole number, 0 or more'),
        ('--precision', 'x', 'float32'),
        ('--recipe', 'best', 'scratch'),
    ],
)
def test_a_value_that_means_nothing_is_named_before_anything_else(option, value, said, capsys):
    with pytest.raises(SystemExit) as e:
        cli.triplet_train.main(['no such folder', f'{option}={value}'])
    err = capsys.readouterr().err
    assert e.value.code == 2 and f'argument {option}: ' in err and value in err and said in err


def test_the_words_that_options_take_are_those_of_the_functions_behind_them():
    from triplet_fashion.export import FORMATS
    from triplet_fashion.training import Recipe

    assert set(cli.triplet_train.kinds['recipe']) == {'auto', *Recipe.names}
    assert set(cli.triplet_export.kinds['format']) == set(FORMATS)
    assert set(cli.triplet_export.kinds['precision']) == {
        precision for form in FORMATS.values() for precision in form.precisions
    }


# --- consoles

SHOUT = '''
import sys
from pathlib import Path
from triplet_fashion.commands.console import command

@command
def shout():
    "Print what few consoles can show, then do the work."
    for stream in sys.stdout, sys.stderr:
        for _ in range(2000): print('\\xa0 옷 \\udce9 … \\u2212', file=stream, flush=True)
    print('\\xa0 옷 \\udce9 … \\u2212')
    Path('done').write_text('done')
    raise ValueError('옷 \\udce9 is gone')

shout.main(sys.argv[1:])
'''


@pytest.mark.parametrize(
    'env, shell',
    [
        (dict(PYTHONIOENCODING='cp949'), ''),
        (dict(PYTHONIOENCODING='ascii', PYTHONUNBUFFERED='1'), ''),
        (dict(PYTHONIOENCODING='utf-8:strict'), ''),
        (dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0'), ''),
        ({}, '| head -1'),
        ({}, '2>&1 | head -1'),
        ({}, '>&- 2>&-'),
        ({}, '> /dev/full 2>&1'),
    ],
)
def test_no_console_ends_the_work(env, shell, tmp_path):
    "Letters that it does not know, a reader that has gone, a closed stream, a full disk."
    (tmp_path / 'shout.py').write_text(SHOUT, encoding='utf-8')
    env = (
        {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(('PYTHONIO', 'PYTHONUNBUFFERED', 'LC_', 'LANG'))
        }
        | dict(PYTHONPATH=str(root))
        | env
    )
    call = f'"{sys.executable}" shout.py {shell if "|" in shell else shell + "; echo rc=$?"}'
    done = subprocess.run(['bash', '-c', call], cwd=tmp_path, env=env, capture_output=True)
    assert (tmp_path / 'done').exists(), done.stderr[-2000:]
    assert b'Traceback' not in done.stdout + done.stderr
    if '|' not in shell:
        assert (
            b'rc=1' in done.stdout
        )  # of the ValueError, not 120 of a stream that could not be closed
    if '2>&' not in shell:
        assert rb'\udce9 is gone' in done.stderr


def test_help_goes_to_any_console():
    env = os.environ | dict(PYTHONIOENCODING='ascii', PYTHONPATH=str(root))
    code = (
        'from triplet_fashion.cli import triplet_audit as f\n'
        'f.__doc__ = "\\xa0 옷"\n'
        'f.main(["--help"])'
    )
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and r'\uc637' in done.stdout, done.stderr


def test_names_that_are_not_utf8_are_audited_listed_and_drawn(drawn, tmp_path):
    "On a console that shows nothing but ASCII."
    odd = tmp_path / 'shop' / os.fsdecode(b'caf\xe9')
    shutil.copytree(drawn.root, tmp_path / 'shop')
    odd.mkdir()
    shutil.copy(drawn.paths[0], odd / os.fsdecode(b'z\xe9ro.jpg'))
    (odd / os.fsdecode(b'\xe9.jpg')).touch()
    code = 'import sys; from triplet_fashion.cli import triplet_audit as f; f.main(sys.argv[1:])'
    env = os.environ | dict(PYTHONIOENCODING='ascii', PYTHONPATH=str(root))
    done = subprocess.run(
        [sys.executable, '-c', code, 'shop', '--out', 'l.csv', '--report', 'r.html'],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and r'caf\udce9' in done.stdout, done.stderr
    assert r'caf\udce9' in (tmp_path / 'r.html').read_text(encoding='utf-8')
    from triplet_fashion.catalog import Catalog

    assert (
        len(Catalog.from_dir(tmp_path / 'shop').exclude(tmp_path / 'l.csv')) == 71
    )  # without the empty file, and without the photo that two products have


# --- errors


def failing(error):
    def triplet_fails():
        raise error

    return console.command(triplet_fails)


def test_errors_of_tensorflow_and_of_memory_are_sentences():
    import tensorflow as tf

    broken = tf.errors.InvalidArgumentError(
        None,
        None,
        '{{function_node __wrapped__X}} a.jpg: Expected image\n'
        '\t [[{{node Y}}]] [Op:IteratorGetNext]',
    )
    with pytest.raises(
        SystemExit, match='^triplet_fails: TensorFlow could not go on: a.jpg: Expected image$'
    ):
        failing(broken).main([])
    for error in MemoryError(), tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating'):
        with pytest.raises(
            SystemExit, match='the memory of this machine does not suffice: give a smaller --size'
        ):
            failing(error).main([])


def test_a_fault_of_the_package_keeps_its_traceback_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    with pytest.raises(
        SystemExit, match='^triplet_fails: KeyError: .*This is a fault of triplet_fashion'
    ) as e:
        failing(KeyError('옷')).main([])
    (kept,) = tmp_path.iterdir()
    assert str(e.value).endswith(str(kept)) and "KeyError: '옷'" in kept.read_text(encoding='utf-8')
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'missing'))
    with pytest.raises(SystemExit, match='TRIPLET_FASHION_DEBUG=1 shows the traceback'):
        failing(KeyError('x')).main([])
    monkeypatch.setenv('TRIPLET_FASHION_DEBUG', '1')
    with pytest.raises(KeyError):
        failing(KeyError('x')).main([])


def test_warnings_are_notes(capsys):
    def triplet_warns():
        warnings.warn('7 photos are left out')

    console.command(triplet_warns).main([])
    assert capsys.readouterr().err == 'note: 7 photos are left out\n'


# --- places to write to


def places(tmp_path):
    "Files and folders that cannot be written to, and what is said of them."
    (tmp_path / 'folder').mkdir(exist_ok=True)
    (tmp_path / 'file').touch()
    file = {
        str(tmp_path / 'folder'): 'is a folder',
        str(tmp_path / 'file' / 'x'): 'is not a folder',
        '/dev/null': 'is not a regular file',
        '/proc/new/x': 'cannot be made',
    }
    folder = {
        str(tmp_path / 'file'): 'is a file',
        str(tmp_path / 'file' / 'x'): 'is not a folder',
        '/dev/null': 'is a file',
        '/proc/new/x': 'cannot be made',
    }
    return file, folder


@pytest.mark.parametrize(
    'command, args, option, folder',
    [
        ('audit', [], '--out', False),
        ('audit', [], '--report', False),
        ('train', [], '--out', True),
        ('train', [], '--log', True),
        ('train', [], '--resume', True),
        ('eval', [], '--out', False),
        ('eval', [], '--failures', True),
        ('embed', [], '--out', False),
        ('search', ['--catalog'], '--out', False),
        ('demo', [], '--out', True),
    ],
)
def test_a_place_that_cannot_be_written_to_is_named_before_the_work(
    command, args, option, folder, run, drawn, tmp_path, monkeypatch
):
    from triplet_fashion.catalog import Catalog

    def work(*a, **kw):
        raise AssertionError('the work has begun')

    monkeypatch.setattr(Catalog, 'audit', work)
    monkeypatch.chdir(tmp_path)
    given = {
        'audit': [drawn.root],
        'train': [drawn.root],
        'demo': [],
        'search': [run, drawn.paths[0], '--catalog', drawn.root],
    }.get(command, [run, drawn.root])
    for place, said in places(tmp_path)[folder].items():
        if option == '--resume' and place == str(tmp_path / 'file'):
            continue  # a file to begin from
        with pytest.raises(SystemExit) as e:
            getattr(cli, f'triplet_{command}').main([*map(str, given), option, place])
        text = str(e.value)
        assert (
            text.startswith(f'triplet_{command}: {option}={place!r}')
            and said in text
            and '\n' not in text
            and '.part' not in text
        )


def test_export_names_its_place_and_each_format_has_one(run, tmp_path, monkeypatch):
    from triplet_fashion import export

    def stop(bundle, out, *args, **kw):
        raise ValueError(f'out is {out}')

    monkeypatch.setattr(export, 'export', stop)
    for args, out in [
        ([], 'exported'),
        (['--format', 'onnx'], 'exported-onnx'),
        (['--precision', 'bfloat16'], 'exported-bfloat16'),
        (['--format', 'litert', '--precision', 'int8'], 'exported-litert-int8'),
        (['--format', 'onnx', '--out', str(tmp_path / 'x')], str(tmp_path / 'x')),
    ]:
        with pytest.raises(SystemExit, match=f'out is {out}$'):
            cli.triplet_export.main([str(run), *args])
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match='--out=.*is a file'):
        cli.triplet_export.main([str(run), '--out', str(tmp_path / 'file')])


def test_an_audit_makes_the_folders_of_its_files(drawn, tmp_path):
    cli.triplet_audit.main(
        [
            str(drawn.root),
            '--out',
            str(tmp_path / 'new' / 'list.csv'),
            '--report',
            str(tmp_path / 'other' / 'r.html'),
        ]
    )
    assert (tmp_path / 'new' / 'list.csv').is_file() and (tmp_path / 'other' / 'r.html').is_file()


# --- little to show


@pytest.mark.parametrize('products, views', [(p, v) for p in (1, 2, 9) for v in (1, 2, 4)])
def test_a_small_catalogue_gets_its_report(products, views, drawn, tmp_path):
    from triplet_fashion.evaluation import scoreboard

    some = drawn.subset([(l < products) and (i % 6 < views) for i, l in enumerate(drawn.labels)])
    x = {
        id(c): np.random.default_rng(0).normal(size=(len(c), 4)).astype('float32')
        for c in (some, drawn)
    }
    for gallery in (
        [None, drawn] if views > 1 else [drawn]
    ):  # alone, photos of one view find nothing
        rows = scoreboard({'random': lambda c: x[id(c)]}, some, gallery)
        judged = judging.Judged(
            some, gallery, 'Said.', rows, [x[id(c)] for c in (some, gallery) if c is not None]
        )
        page = report.report_page(tmp_path / 'r.html', 'Small', judged).read_text(encoding='utf-8')
        assert ('There are none: a triplet takes' in page) == (views == 1 or products == 1)
        triplets = 0 if views == 1 or products == 1 else min(6, products)
        assert page.count('tf-tile tf-query') == min(8, len(some)) + triplets


@pytest.fixture(scope='module')
def small_run(drawn):
    "What `fit` gives, on a few photos."
    from triplet_fashion.training import fit

    return fit(drawn, size=(32, 32), epochs=1, steps=1, verbose=0, show_plan=lambda plan: None)


@pytest.fixture
def trained(small_run, drawn, tmp_path, monkeypatch):
    "The command without its training: a run of 4 products with 4 photos each."
    from triplet_fashion import training

    monkeypatch.setattr(training, 'fit', lambda *args, **kw: small_run)
    shop = tmp_path / 'shop'
    for i in range(24):
        if i % 6 > 3:
            continue
        (shop / drawn.ids[i]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn.paths[i], shop / drawn.ids[i])
    return lambda *args: cli.triplet_train.main(
        [str(shop), '--out', str(tmp_path / 'run'), '--size', '32', '--quiet', *args]
    )


def test_a_small_catalogue_is_trained_judged_and_reported(trained, tmp_path, capsys):
    trained('--quick', '--weights', 'none', '--restore-best')
    out, err = capsys.readouterr()
    assert {'network', 'scores.json', 'report.html', 'neighbours.png'} <= {
        p.name for p in (tmp_path / 'run').iterdir()
    }
    assert (
        re.search(r'no --val: \d of 16 photos, of \d of 4 products, are kept aside', out)
        and 'no threshold: it takes four products' in out
        and '\xa0' not in out
    )
    for option in '--quick', '--weights none', '--restore-best':
        assert f'note: {option} has no effect' in err


def test_a_page_that_cannot_be_written_costs_no_figures(trained, tmp_path, monkeypatch, capsys):
    def full(*args, **kw):
        raise OSError(28, 'the disk is full')

    monkeypatch.setattr(report, 'report_page', full)
    with pytest.raises(SystemExit, match='the disk is full'):
        trained()
    rows = json.loads((tmp_path / 'run' / 'scores.json').read_text())['rows']
    assert (
        rows[0]['embedding'] == 'trained network' and 'trained network' in capsys.readouterr().out
    )
    with pytest.raises(
        SystemExit, match='already holds a run: choose another --out, or say --overwrite'
    ):
        trained()


def test_what_fails_in_judging_can_be_judged_later(trained, tmp_path, monkeypatch):
    from triplet_fashion import evaluation

    def fails(*args, **kw):
        raise ValueError('judging fails')

    monkeypatch.setattr(evaluation, 'scoreboard', fails)
    kept = f'The network is kept: triplet_eval {tmp_path / "run"} {tmp_path / "shop"} judges it'
    with pytest.raises(SystemExit, match=f'judging fails\n{kept}'):
        trained()
    assert (tmp_path / 'run' / 'network').exists()
    with pytest.raises(
        SystemExit,
        match='trained and not judged: triplet_eval .* judges it, --overwrite trains anew',
    ):
        trained()
    (tmp_path / 'run' / 'scores.json').write_text('{}')  # of a network before
    with pytest.raises(SystemExit, match='judging fails'):
        trained('--overwrite')
    assert not (tmp_path / 'run' / 'scores.json').exists()


# --- photos that vanish


@pytest.fixture
def vanishing(drawn, tmp_path, monkeypatch):
    "A folder of which a photo vanishes and one breaks, as soon as it has been audited."
    from triplet_fashion.catalog import Catalog

    shutil.copytree(drawn.root, tmp_path / 'shop')
    audit = Catalog.audit

    def then_lost(self, *args, **kw):
        found = audit(self, *args, **kw)
        if self.root == str(tmp_path / 'shop'):
            (tmp_path / 'shop' / drawn.ids[7]).unlink()
            (tmp_path / 'shop' / drawn.ids[20]).write_bytes(b'no photo')
        return found

    monkeypatch.setattr(Catalog, 'audit', then_lost)
    return tmp_path / 'shop'


def test_photos_that_vanish_are_left_out_and_named(
    vanishing, run, drawn, small_run, tmp_path, monkeypatch, capsys
):
    from triplet_fashion import training

    lost = drawn.ids[7], drawn.ids[20]
    monkeypatch.setattr(training, 'fit', lambda *args, **kw: small_run)

    def restore():
        for i in (7, 20):
            shutil.copy(drawn.paths[i], vanishing / drawn.ids[i])
        return capsys.readouterr()

    cli.triplet_eval.main([str(run), str(vanishing), '--quick', '--out', str(tmp_path / 'e.html')])
    out, err = restore()
    assert '70 queries of 12 products' in out and all(f'{name}: ' in err for name in lost)
    cli.triplet_train.main(
        [
            str(drawn.root),
            '--val',
            str(vanishing),
            '--out',
            str(tmp_path / 'run'),
            '--size',
            '32',
            '--quiet',
        ]
    )
    out, err = restore()
    assert '70 queries' in out and all(f'{name}: ' in err for name in lost)
    cli.triplet_embed.main([str(run), str(vanishing), '--out', str(tmp_path / 'i.npz')])
    out, err = restore()
    assert '70 embeddings' in out and 'left out' in err
    cli.triplet_search.main(
        [str(run), drawn.paths[0], '--catalog', str(vanishing), '--out', str(tmp_path / 's.html')]
    )
    out, err = restore()
    assert drawn.ids[0] in out and 'left out' in err


def test_queries_that_are_no_photos_are_named_and_the_others_searched(run, drawn, tmp_path, capsys):
    cli.triplet_embed.main([str(run), str(drawn.root), '--out', str(tmp_path / 'i.npz')])
    (tmp_path / 'note.jpg').write_text('no photo')
    bad = [str(tmp_path / 'gone.jpg'), str(tmp_path / 'note.jpg'), str(tmp_path)]
    search = ['--catalog', str(tmp_path / 'i.npz'), '--out', str(tmp_path / 's.html'), '--k', '1']
    cli.triplet_search.main([str(run), drawn.paths[0], *bad, drawn.paths[9], *search])
    out, err = capsys.readouterr()
    assert out.count('1 nearest') == 2 and all(
        f'cannot be searched with: {path}: ' in err for path in bad
    )
    with pytest.raises(SystemExit, match='none of the photos can be searched with: .*gone.jpg'):
        cli.triplet_search.main([str(run), *bad, *search])


# --- a folder of the user


def test_embed_leaves_a_folder_of_the_user_alone(run, drawn, tmp_path):
    mine = tmp_path / 'i.npz.parts'
    mine.mkdir()
    (mine / 'notes.txt').write_text('mine')
    (mine / 'part-000000.npz').write_text('mine too')
    cli.triplet_embed.main([str(run), str(drawn.root), '--out', str(tmp_path / 'i.npz')])
    assert sorted(p.name for p in tmp_path.iterdir()) == ['i.npz', 'i.npz.parts']
    assert {p.name: p.read_text() for p in mine.iterdir()} == {
        'notes.txt': 'mine',
        'part-000000.npz': 'mine too',
    }


def test_a_list_without_a_file_is_said(drawn, capsys):
    cli.triplet_audit.main([str(drawn.root), '--near'])
    assert 'note: --near has no effect without --out' in capsys.readouterr().err


def test_files_to_begin_from_are_looked_for_first(drawn, tmp_path):
    for option, file in [
        ('--backbone', 'gone.keras'),
        ('--weights', 'gone.h5'),
        ('--resume', 'gone.npz'),
    ]:
        with pytest.raises(SystemExit, match=f"{option}='{file}': there is no such file"):
            cli.triplet_train.main([str(drawn.root), '--out', str(tmp_path / 'o'), option, file])
