"The commands, as a person types them."
import json, re, resource, shutil, subprocess, sys
from pathlib import Path

import numpy as np, pytest
from PIL import Image

from triplet_fashion import cli

COMMANDS = 'triplet_demo', 'triplet_audit', 'triplet_train', 'triplet_eval', 'triplet_embed', 'triplet_search', 'triplet_export'
root = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize('name', COMMANDS)
def test_help_answers_at_once_and_without_tensorflow(name):
    code = f"import sys\nfrom triplet_fashion.cli import {name} as f\ntry: f.main(['--help'])\nexcept SystemExit: pass\nassert not {{'tensorflow', 'keras', 'matplotlib'}} & set(sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'usage: {name}')
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < .5   # seconds of processor time


def test_every_option_is_explained():
    for name in COMMANDS:
        for action in cli._parser(getattr(cli, name))._actions: assert action.help, (name, action.dest)


def test_settings_ini_installs_all_commands():
    text = (root/'settings.ini').read_text()
    for name in COMMANDS: assert f'{name}=triplet_fashion.cli:{name}.main' in text


@pytest.fixture(scope='module')
def run(drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp('cli')/'run'
    cli.triplet_train.main([str(drawn.root), '--out', str(out), '--size', '32', '--epochs', '2', '--steps', '3'])
    return out


def test_train_leaves_a_run(run):
    assert {'network', 'checkpoints', 'report.html', 'scores.json', 'neighbours.png'} <= {p.name for p in run.iterdir()}
    rows = json.loads((run/'scores.json').read_text())['rows']
    assert [r['embedding'] for r in rows] == ['trained network', 'untrained network', 'colour histogram', 'raw pixels', 'chance']
    page = (run/'report.html').read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == [] and 'R@1' in page
    assert len(list((run/'checkpoints').glob('00000?-*.weights.h5'))) == 2


def test_a_run_is_not_overwritten_unless_told(run, drawn):
    with pytest.raises(SystemExit, match='already holds a run'): cli.triplet_train.main([str(drawn.root), '--out', str(run)])


KILLED = '''
import json, os, signal, sys, traceback
from triplet_fashion import cli, evaluation, persistence, training

photos, out = sys.argv[1:]
def strike(*args, **kw): os.kill(os.getpid(), signal.SIGKILL)
def in_training():
    def after(self, epoch, logs=None): epoch and strike()
    training._LogRate.on_epoch_end = after
def while_judging(): evaluation.scoreboard = strike

def run(patch=lambda: None, **env):
    "The command in a process of its own; its exit status."
    child = os.fork()
    if not child:
        os.environ.update(env)
        patch()
        try: cli.triplet_train.main([photos, '--out', out, '--size', '32', '--epochs', '3', '--steps', '2', '--quiet', '--resume', out + '/kept'])
        except SystemExit as e: print(e); os._exit(2)
        except BaseException: traceback.print_exc(); os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

cluster = lambda i: json.dumps({'cluster': {'worker': ['localhost:1', 'localhost:2']}, 'task': {'type': 'worker', 'index': i}})
print([run(in_training), run(while_judging), run(TF_CONFIG=cluster(1)), run(TF_CONFIG=cluster(0)), run()])
'''


def test_the_same_command_goes_on_wherever_it_was_killed(drawn, tmp_path):
    "In training; while judging; then, everything trained, as one of two machines whose other is long gone; and it is refused once judged."
    got = subprocess.run([sys.executable, '-c', KILLED, str(drawn.root), str(tmp_path/'run')], capture_output=True, text=True, cwd=root, timeout=240)
    assert '[-9, -9, 0, 0, 2]' in got.stdout, got.stdout[-2000:] + got.stderr[-3000:]
    assert 'already holds a run' in got.stdout
    assert {'network', 'report.html', 'scores.json'} <= {p.name for p in (tmp_path/'run').iterdir()}
    assert len(cli._open_run(tmp_path/'run')[1]['history']['loss']) == 3


def test_more_epochs_from_the_best_checkpoint_with_a_log(drawn, tmp_path):
    args = [str(drawn.root), '--size', '32', '--steps', '2', '--quiet', '--precision', 'auto']
    cli.triplet_train.main([*args, '--out', str(tmp_path/'a'), '--epochs', '1', '--resume', str(tmp_path/'kept')])
    best = tmp_path/'kept'/'best.npz'
    with pytest.raises(SystemExit, match='ask for more'): cli.triplet_train.main([*args, '--out', str(tmp_path/'b'), '--epochs', '1', '--resume', str(best)])
    cli.triplet_train.main([*args, '--out', str(tmp_path/'b'), '--epochs', '4', '--resume', str(best), '--log', str(tmp_path/'log'), '--checkpoints', '2'])
    assert len(cli._open_run(tmp_path/'b')[1]['history']['loss']) == 3
    assert [p.name[:6] for p in sorted((tmp_path/'b'/'checkpoints').iterdir())] == ['000003', '000004']
    names = {p.name for p in (tmp_path/'log').rglob('*')}
    assert {'history.csv', 'projector_config.pbtxt', 'photos.png'} <= names and any(n.startswith('events.') for n in names)
    assert (tmp_path/'log'/'history.csv').read_text().splitlines()[0].startswith('epoch,')


def test_eval(run, drawn, capsys, tmp_path):
    rows = cli.triplet_eval(str(run), str(drawn.root), out=str(tmp_path/'e.html'), failures=str(tmp_path/'why'))
    out = capsys.readouterr().out
    assert '72 queries of 12 products' in out and 'this network' in out and (tmp_path/'e.html').stat().st_size > 20_000
    names = [r['embedding'] for r in rows]
    for name in 'this network', 'untrained network', 'colour histogram', 'chance':       # ten products were trained on, two were not: never in one figure
        assert {f'{name}, seen products', f'{name}, unseen products'} <= set(names)
    assert 'no threshold is stored' in out and 'AUC' in out and 'Why it failed' in (tmp_path/'e.html').read_text()
    assert sorted(p.name for p in (tmp_path/'why').iterdir())[0] == 'confused_products.csv'


def test_eval_uses_the_stored_threshold(run, drawn, capsys, tmp_path):
    from triplet_fashion.metrics import fit_threshold
    from triplet_fashion.persistence import load_bundle, save_bundle
    from triplet_fashion.training import embed
    net, meta = load_bundle(run/'network')
    meta['threshold'] = t = fit_threshold(embed(net, drawn), drawn.labels, fmr='eer', n=500)
    del meta['trained_on']
    save_bundle(tmp_path/'run'/'network', net, **meta)
    rows = cli.triplet_eval(str(tmp_path/'run'), str(drawn.root), quick=True)
    out = capsys.readouterr().out
    assert 'the threshold stored with the network' in out and f'{t.value:.4g}' in out
    assert [r['embedding'] for r in rows] == ['this network', 'colour histogram', 'raw pixels', 'chance']


def test_search_finds_the_same_photo_first_and_prints_and_draws(run, drawn, capsys, tmp_path):
    photo = tmp_path/'새 사진 (1).jpg'
    shutil.copy(drawn.paths[7], photo)
    cli.triplet_search.main([str(run), str(photo), '--catalog', str(drawn.root), '--k', '3', '--out', str(tmp_path/'s.html')])
    out = capsys.readouterr().out
    assert drawn.ids[7] in out
    assert '새 사진 (1).jpg' in (tmp_path/'s.html').read_text()


def test_embed_then_search_in_the_file(run, drawn, capsys, tmp_path):
    cli.triplet_embed.main([str(run), str(drawn.root), '--out', str(tmp_path/'i.npz')])
    found = cli.triplet_search(str(run), [drawn.paths[0], drawn.paths[20]], catalog=str(tmp_path/'i.npz'), k=2, out=str(tmp_path/'s.html'))
    assert [len(h) for h in found] == [2, 2]


def test_audit_lists_what_is_wrong(drawn, tmp_path, capsys):
    folder = tmp_path/'사진들 (2)'
    shutil.copytree(drawn.root, folder)
    home = folder/drawn.class_names[0]
    (home/'cut.jpg').write_bytes(Path(drawn.paths[0]).read_bytes()[:900])
    (home/'note.jpg').write_text('not a photo')
    cli.triplet_audit.main([str(folder), '--out', str(tmp_path/'bad.txt')])
    out = capsys.readouterr().out
    assert 'cut.jpg' in out and 'note.jpg' in out and '2 to leave out' in out
    assert (tmp_path/'bad.txt').read_text(encoding='utf-8').splitlines()[0] == 'path,problem' and len((tmp_path/'bad.txt').read_text().splitlines()) == 3
    from triplet_fashion.catalog import Catalog
    assert Catalog.from_dir(folder).exclude(tmp_path/'bad.txt').ids == drawn.ids


def test_audit_shows_copies_and_leaks(drawn, tmp_path, capsys):
    from PIL import Image
    folder = tmp_path/'shop & <co>'
    shutil.copytree(drawn.root, folder)
    (folder/'sale').mkdir()
    for v in range(6): Image.open(drawn.paths[v]).save(folder/'sale'/f'{v}.webp', quality=60)
    cli.triplet_audit.main([str(folder), '--near', '--out', str(tmp_path/'list.csv'), '--report', str(tmp_path/'r.html')])
    out = capsys.readouterr().out
    assert 'may be one product' in out and out.count('near copy in two products: ') == 6 and len((tmp_path/'list.csv').read_text().splitlines()) == 13
    page = (tmp_path/'r.html').read_text()
    assert 'sale' in page and page.count('<img') > 6 and '<co>' not in page and 'http://' not in page.replace('http://www.w3.org', '')
    audit = cli.triplet_audit(str(folder), against=str(drawn.root))
    assert len(audit.leaks) == 72+6 and '78 to leave out' in capsys.readouterr().out and len(audit.clean) == 0


def test_bad_photos_are_counted_and_left_out_of_a_run(drawn, tmp_path, capsys):
    folder = tmp_path/'옷 사진 (3)'
    shutil.copytree(drawn.root, folder)
    for i, name in enumerate(drawn.class_names[:4]):
        (folder/name/'cut.jpg').write_bytes(Path(drawn.paths[6*i]).read_bytes()[:900])
        (folder/name/'empty.png').touch()
    cli.triplet_train.main([str(folder), '--out', str(tmp_path/'run'), '--size', '32', '--epochs', '1', '--steps', '2', '--quiet'])
    assert '80 photos examined, 8 to leave out' in capsys.readouterr().out
    loss, = cli._open_run(tmp_path/'run')[1]['history']['loss']
    assert np.isfinite(loss)


def wrong(folder):
    with pytest.raises(SystemExit) as e: cli.triplet_train.main([str(folder), '--out', str(folder.parent/'out'), '--epochs', '1'])
    assert not (folder.parent/'out'/'network').exists()
    return str(e.value)


def photo(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(shade).integers(0, 255, (40, 40, 3), 'uint8')).save(path)


def test_folders_that_cannot_train_say_why_in_one_line(tmp_path):
    empty, loose, single, alone = (tmp_path/n for n in ('empty', 'loose', 'single', 'alone'))
    empty.mkdir()
    photo(loose/'a.jpg')
    for i in range(3): photo(single/'only'/f'{i}.jpg', i)
    for i in range(3): photo(alone/f'product {i}'/'1.jpg', i)
    assert 'empty' in wrong(empty)
    assert 'folder' in wrong(loose)
    assert '1 product' in wrong(single)
    assert '2 photos' in wrong(alone) or 'one photo' in wrong(alone)
    assert 'no such folder' in wrong(tmp_path/'missing')
    for text in (wrong(empty), wrong(single)): assert text.startswith('triplet_train: ') and '\n' not in text


def test_wrong_runs_photos_and_catalogues(run, drawn, tmp_path):
    for args, text in [([str(tmp_path), str(drawn.paths[0]), '--catalog', str(drawn.root)], 'holds no run'),
                       ([str(run), 'gone.jpg', '--catalog', str(drawn.root)], 'gone.jpg'), ([str(run), str(drawn.paths[0])], '--catalog')]:
        with pytest.raises(SystemExit, match=text): cli.triplet_search.main(args)


def test_unknown_backbone_and_recipe(drawn, tmp_path):
    for extra, text in [(['--backbone', 'ResNet5'], 'ResNet50'), (['--recipe', 'best'], 'best')]:
        with pytest.raises(SystemExit, match=text): cli.triplet_train.main([str(drawn.root), '--out', str(tmp_path/'o'), *extra])


def test_demo_reaches_its_figures(tmp_path):
    rows = cli.triplet_demo(out=str(tmp_path/'demo'))
    best, *others = (r['R@1'] for r in rows)
    assert best >= .90 and best > max(others) + .2, rows
    assert (tmp_path/'demo'/'report.html').stat().st_size > 100_000


def test_export_writes_what_another_runtime_opens(run, drawn, capsys, tmp_path):
    from triplet_fashion.export import load_export
    made = cli.triplet_export(str(run), str(tmp_path/'out'), 'litert', sample=str(drawn.root))
    assert 'network.tflite' in capsys.readouterr().out and made.note['threshold'] is None or 'value' in made.note['threshold']
    assert load_export(tmp_path/'out').note == made.note
    with pytest.raises(SystemExit, match="'savedmodel', 'onnx'"): cli.triplet_export.main([str(run), '--out', str(tmp_path/'x'), '--format', 'coreml'])
