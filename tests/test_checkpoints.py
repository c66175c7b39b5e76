"""Runs that are killed, damaged files, full disks, callbacks that know things, names of files."""

import json, os, resource, sys

import keras
import numpy as np
import pytest
from learning import Strike
import tensorflow as tf

from triplet_fashion.base_network import base_network
from triplet_fashion.runs.checkpoints import (
    Checkpoint,
    EpochWeights,
    continue_from,
    plain_value,
    run_epochs,
    run_identity,
)
from triplet_fashion.runs.state import (
    callback_state,
    pack_value,
    read_state,
    training_variables,
    unpack_value,
    write_state,
)
from triplet_fashion.contrastive import SupConLoss
from triplet_fashion.runs.diagnostics import Diagnosis
from triplet_fashion.runs.monitor import CollapseMonitor
from triplet_fashion.generator import pk_dataset
from triplet_fashion.photos.augmentation import Augment
from triplet_fashion.training import fit


# ---- killed for real

KILLED = '''
import hashlib, json, os, random, signal, sys, time
from pathlib import Path
import keras, numpy as np, tensorflow as tf
from triplet_fashion.base_network import base_network
from triplet_fashion.catalog import Catalog
from triplet_fashion.runs.checkpoints import RunFolder
from triplet_fashion.runs.state import read_state, training_variables
from triplet_fashion.contrastive import CrossBatchMemory, SupConLoss
from triplet_fashion.photos.augmentation import Augment
from triplet_fashion.training import fit

mode, photos, out, most, seed = sys.argv[1:]

def train(name):
    """The command that is given again and again; at its end a file with every figure and a digest
    of every variable."""
    folder, L = Path(out)/name, keras.layers
    seen, unseen = Catalog.from_dir(photos).split(.34, seed=1)
    keras.utils.set_random_seed(3)
    augment = [Augment()] if mode == 'memory' else []
    two = mode in ('deep', 'averaged', 'proxies')   # stages
    deeper = [L.Conv2D(8, 3)] if two else []
    lower = keras.Sequential([
        keras.Input((48, 48, 3)), *augment, L.Conv2D(6, 5, strides=4, use_bias=False),
        L.BatchNormalization(), L.ReLU(), L.SpatialDropout2D(.2), *deeper,
        L.GlobalAveragePooling2D()])
    net = base_network(
        (48, 48, 3), 12, lower, hidden=(16,), dropout=.3, rescale='unit',
        activation='sigmoid' if mode == 'original' else 'l2',
        trainable=mode != 'frozen' and not two)
    memory = CrossBatchMemory(SupConLoss(), 70)
    deep = dict(recipe='deep', P=5, K=4, unfreeze=.34, tune_epochs=2, copies=2)
    kw = dict(
        memory=dict(recipe='scratch', P=5, K=4, loss=memory), frozen=dict(P=5, K=4),
        deep=deep, averaged=deep | dict(ema=.8, tune_share=.7),
        proxies=deep | dict(loss='arcface'),
        original=dict(recipe='original', batch_size=8, schedule='cosine'))[mode]
    early = keras.callbacks.EarlyStopping('loss', patience=3)
    calls = [early, keras.callbacks.CSVLogger(f'{folder}.csv')]
    run = fit(
        seen, valid=unseen, net=net, size=(48, 48), epochs=3, steps=9, verbose=0,
        restore_best=True, callbacks=calls, run_dir=RunFolder(folder, steps=2), **kw)
    def sha(x): return hashlib.sha256(np.asarray(x).tobytes()).hexdigest()
    digest = {k: sha(v) for k, v in training_variables(run.model).items()}
    note, arrays = read_state(max(folder.rglob('best.npz')))
    best = [note['epoch'], {k: sha(v) for k, v in arrays.items() if not k.startswith('kept/')}]
    tables = Path(f'{folder}.csv').read_text(), next(folder.rglob('history.csv')).read_text()
    said = [run.history, run.best_epoch, early.best, early.wait, *tables, digest, best]
    part = Path(f'{folder}.part')
    part.write_text(json.dumps(said))
    part.replace(f'{folder}.json')

def start(name):
    "A process of its own, forked before TensorFlow has any thread."
    child = os.fork()
    if child: return child
    try: train(name); os._exit(0)
    except BaseException:
        import traceback; traceback.print_exc()
        os._exit(1)

def files(pattern='[0-9]*.npz'): return sorted(str(p) for p in (Path(out)/'cut').rglob(pattern))

whole, rng, kills = start('whole'), random.Random(int(seed)), 0
while not (Path(out)/'cut.json').exists():
    before, child, ended, status = files(), start('cut'), 0, 0
    # once while features are computed, before there is any checkpoint
    early = mode == 'frozen' and not kills
    while not ended and (not files('.*.npy.*.part') if early else files() == before):
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(.002)
    if status: sys.exit('the run ended by itself, and not well')
    if kills < int(most) and not ended:
        time.sleep(0 if early else rng.random()*.1)
        os.kill(child, signal.SIGKILL)
        kills += 1
    if not ended and os.waitpid(child, 0)[1] not in (0, signal.SIGKILL):
        sys.exit('the run that was killed did not go on')
assert os.waitpid(whole, 0)[1] == 0
print(kills)
'''


@pytest.mark.parametrize(
    'mode, kills',
    [
        ('memory', 3),
        ('frozen', 2),
        ('deep', 3),
        ('averaged', 3),
        ('proxies', 2),
        ('original', 1),
    ],
)
def test_a_run_killed_at_random_moments_ends_as_if_undisturbed(
    fresh_python, drawn, tmp_path, mode, kills
):
    """SIGKILL wherever it strikes; everything equal to the last bit: weights, optimizer, random
    states, memory, figures, logs."""
    got = fresh_python.run(
        KILLED, mode, drawn.root, tmp_path, kills, os.environ.get('KILL_SEED', '5')
    )
    assert got.returncode == 0, got.stderr[-3000:]
    assert int(got.stdout.split()[-1]) == kills
    whole, cut = (json.loads((tmp_path / f'{name}.json').read_text()) for name in ('whole', 'cut'))
    for a, b in zip(whole, cut):
        assert a == b
    epochs = 5 if mode in ('deep', 'averaged', 'proxies') else 3
    assert len(whole[0]['loss']) == epochs and [l.split(',')[0] for l in whole[4].splitlines()] == [
        'epoch',
        *map(str, range(epochs)),
    ]
    assert whole[-1][0] == whole[1]  # the best is of the best epoch
    kinds = {k.split('/')[0] for k in whole[-2]}
    assert kinds == {'network', 'optimizer', 'running'} | ({'loss'} if mode == 'memory' else set())


# ---- small runs in this process


def small(loss=None, width=8):
    keras.utils.set_random_seed(0)
    lower = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(4, 3, strides=4, activation='relu'),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    net = base_network(
        (16, 16, 3), width, lower, hidden=(), activation='l2', dropout=0.3, rescale='unit'
    )
    net.compile(keras.optimizers.Adam(1e-2), loss or SupConLoss(), jit_compile=False)
    return net


def batches_of(catalog, **kw):
    return lambda epoch, step: pk_dataset(
        catalog,
        P=4,
        K=3,
        size=(16, 16),
        steps=4,
        augment=True,
        first_epoch=epoch,
        first_step=step,
        **kw,
    )


def equal(a, b):
    a, b = training_variables(a), training_variables(b)
    assert list(a) == list(b)
    for k in a:
        assert np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes(), k


@pytest.fixture(scope='module')
def undisturbed(drawn):
    net = small()
    return run_epochs(net, batches_of(drawn), 2), net


def test_the_loop_is_fit(drawn, undisturbed):
    net = small()
    assert (
        net.fit(batches_of(drawn)(0, 0), epochs=2, verbose=0, shuffle=False).history
        == undisturbed[0]
    )
    equal(net, undisturbed[1])


@pytest.mark.parametrize('at', [1, 4, 5, 8])
def test_stopped_at_any_step(drawn, tmp_path, undisturbed, at):
    "In an epoch, at its last step, and before anything was saved."
    whole, a = undisturbed
    with pytest.raises(KeyboardInterrupt):
        run_epochs(small(), batches_of(drawn), 2, [Strike(at)], Checkpoint(tmp_path, steps=2))
    assert (
        run_epochs(b := small(), batches_of(drawn), 2, checkpoint=Checkpoint(tmp_path, steps=2))
        == whole
    )
    equal(a, b)


def test_a_complete_run_returns_at_once(drawn, tmp_path):
    told = run_epochs(a := small(), batches_of(drawn), 2, checkpoint=Checkpoint(tmp_path))

    def none(epoch, step):
        raise AssertionError('no step is left')

    assert run_epochs(b := small(), none, 2, checkpoint=Checkpoint(tmp_path)) == told
    equal(a, b)


def test_a_run_that_stopped_itself_stays_stopped(drawn, tmp_path):
    class Enough(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

        def on_train_end(self, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_epochs(small(), batches_of(drawn), 3, [Enough()], Checkpoint(tmp_path, steps=1))
    assert (
        len(
            run_epochs(small(), batches_of(drawn), 3, checkpoint=Checkpoint(tmp_path, steps=1))[
                'loss'
            ]
        )
        == 1
    )


def test_the_newest_few_and_the_best_are_kept(drawn, tmp_path):
    class Judge(keras.callbacks.Callback):
        best_epoch = None

        def on_epoch_end(self, epoch, logs=None):
            self.best_epoch = [1, 2, 2, 2][epoch]

    net, held = small(), []

    class Hold(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            held.append([np.array(w) for w in self.model.get_weights()])

    run_epochs(net, batches_of(drawn), 4, [Judge(), Hold()], Checkpoint(tmp_path, steps=1, keep=2))
    assert sorted(p.name for p in tmp_path.glob('[!.]*')) == [
        '000003-000003.npz',
        '000004-000000.npz',
        'best.npz',
        'history.csv',
    ]
    note, arrays = read_state(tmp_path / 'best.npz')
    assert (note['epoch'], note['step']) == (2, 0)
    for v, w in zip(net.weights, held[1]):
        name = next(k for k, o in training_variables(net).items() if o is v)
        np.testing.assert_array_equal(arrays[name], w)


def test_a_kill_leaves_no_best_that_is_older_than_its_run(drawn, tmp_path, monkeypatch):
    """Struck down right after the best, before it has its number: the run that goes on ends with
    the same best."""

    class Judge(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.best_epoch = epoch + 1

    def run(folder):
        return run_epochs(
            small(), batches_of(drawn), 3, [Judge()], Checkpoint(tmp_path / folder, steps=2)
        )

    whole, links, link = run('whole'), [], os.link

    def strike(*a):
        links.append(a)
        if len(links) == 2:
            raise KeyboardInterrupt
        return link(*a)

    monkeypatch.setattr(os, 'link', strike)
    with pytest.raises(KeyboardInterrupt):
        run('cut')
    assert (
        read_state(tmp_path / 'cut' / 'best.npz')[0]['epoch'] == 2
        and Checkpoint(tmp_path / 'cut').files()[-1].name == '000001-000002.npz'
    )
    assert run('cut') == whole
    (a, x), (b, y) = (read_state(tmp_path / f / 'best.npz') for f in ('whole', 'cut'))
    assert a == b and all(x[k].tobytes() == y[k].tobytes() for k in x)


def test_a_checkpoint_is_not_for_keras_fit(drawn, tmp_path):
    with pytest.raises(RuntimeError, match='run_dir='):
        small().fit(batches_of(drawn)(0, 0), epochs=1, verbose=0, callbacks=[Checkpoint(tmp_path)])


def test_checkpoints_can_be_continued_from(drawn, tmp_path, undisturbed):
    whole, a = undisturbed
    run_epochs(small(), batches_of(drawn), 1, checkpoint=Checkpoint(tmp_path))
    (file,) = Checkpoint(tmp_path).files()
    epoch = continue_from(b := small(), file)
    assert run_epochs(b, batches_of(drawn), 2, initial_epoch=epoch)['loss'] == whole['loss'][1:]
    equal(a, b)
    bare = keras.models.clone_model(small())  # not compiled, to serve
    continue_from(bare, file)
    other = small()
    other.compile(keras.optimizers.SGD(0.1), SupConLoss())
    with pytest.warns(UserWarning, match='optimizer begins anew'):
        assert continue_from(other, file) == 1
    for v, w in zip(bare.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(v, w)
    with pytest.raises(ValueError, match='does not fit this network'):
        continue_from(small(width=9), file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match='damaged'):
        continue_from(small(), file)


def test_the_history_file(drawn, tmp_path):
    told = run_epochs(small(), batches_of(drawn), 2, checkpoint=Checkpoint(tmp_path))
    assert (tmp_path / 'history.csv').read_text().splitlines() == [
        'epoch,loss',
        *(f'{i},{l}' for i, l in enumerate(told['loss'], 1)),
    ]


def test_other_settings_are_refused_by_name(drawn, tmp_path):
    kw = dict(
        net=None,
        size=(16, 16),
        epochs=1,
        steps=1,
        P=4,
        K=2,
        out_dims=8,
        verbose=0,
        monitor=None,
        run_dir=tmp_path,
    )
    fit(drawn, **kw)
    with pytest.raises(ValueError, match=r'another run: P was 4, now 3\.'):
        fit(drawn, **kw | dict(P=3))
    with pytest.raises(ValueError, match='another run: photos was'):
        fit(drawn.subset(np.arange(60)), **kw)
    with pytest.raises(ValueError, match='learning_rate was'):
        fit(drawn, learning_rate=0.5, **kw)
    with pytest.raises(ValueError, match='random state of its own'):
        fit(drawn, augment=Augment(), **kw)
    with pytest.raises(ValueError, match='photos watched'):
        fit(drawn, valid=drawn.subset(np.arange(60, 72)), **kw)


def test_another_machine_is_a_warning(drawn, tmp_path, monkeypatch):
    run_epochs(small(), batches_of(drawn), 1, checkpoint=Checkpoint(tmp_path))
    monkeypatch.setattr(tf.config.threading, 'get_intra_op_parallelism_threads', lambda: 999)
    with pytest.warns(UserWarning, match='threads was .*, now 999.*last bits'):
        run_epochs(small(), batches_of(drawn), 1, checkpoint=Checkpoint(tmp_path))


def test_a_network_that_does_not_fit(drawn, tmp_path):
    run_epochs(small(), batches_of(drawn), 1, checkpoint=Checkpoint(tmp_path))
    with pytest.raises(ValueError, match=r'does not fit.*network/\d has shape'):
        run_epochs(small(width=9), batches_of(drawn), 1, checkpoint=Checkpoint(tmp_path))


# ---- files


@pytest.fixture(scope='module')
def saved(drawn, tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    run_epochs(small(), batches_of(drawn), 2, checkpoint=Checkpoint(folder, steps=2))
    return folder


@pytest.mark.parametrize('harm', ['cut', 'flip', 'empty', 'text'])
def test_a_damaged_newest_falls_back_to_the_one_before(drawn, tmp_path, saved, undisturbed, harm):
    for p in saved.iterdir():
        (tmp_path / p.name).write_bytes(p.read_bytes())
    newest = Checkpoint(tmp_path).files()[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(
        {'cut': data[: len(data) // 2], 'flip': bytes(data), 'empty': b'', 'text': b'hello'}[harm]
    )
    with pytest.warns(UserWarning, match=f'{newest.name} is damaged'):
        told = run_epochs(
            again := small(), batches_of(drawn), 2, checkpoint=Checkpoint(tmp_path, steps=2)
        )
    assert told == undisturbed[0]
    equal(again, undisturbed[1])


def test_all_damaged_is_an_error(tmp_path):
    for name in ('000001-000000.npz', '000002-000000.npz'):
        (tmp_path / name).write_bytes(b'x')
    with pytest.raises(ValueError, match='no older one is left'), pytest.warns(UserWarning):
        Checkpoint(tmp_path).open(small())


@pytest.mark.skipif(sys.platform == 'win32', reason='needs limits of POSIX')
def test_a_full_disk_is_a_clear_error_and_harms_nothing(drawn, tmp_path, undisturbed):
    "The system refuses bytes past a limit, in the middle of a file, as a full disk does."
    net, kept = small(), Checkpoint(tmp_path, steps=2)
    with pytest.raises(KeyboardInterrupt):
        run_epochs(net, batches_of(drawn), 2, [Strike(4)], kept)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
    try:
        with pytest.raises(
            OSError,
            match=r'000001-000000\.npz could not be written: the disk is full.*'
            'Make room or choose another folder',
        ):
            run_epochs(small(), batches_of(drawn), 2, checkpoint=Checkpoint(tmp_path, steps=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert before.items() <= {p.name: p.read_bytes() for p in tmp_path.iterdir()}.items()
    assert not list(tmp_path.glob('.*.part*'))
    assert (
        run_epochs(again := small(), batches_of(drawn), 2, checkpoint=Checkpoint(tmp_path, steps=2))
        == undisturbed[0]
    )
    equal(again, undisturbed[1])


def test_states_of_any_type(tmp_path):
    arrays = {
        'a/b': np.arange(6.0).reshape(2, 3),
        'half': np.asarray(tf.constant([1.5, -2], tf.bfloat16)),
        'none': np.zeros((0, 3), 'int8'),
        'one': np.array(7),
        'turned': np.arange(6.0).reshape(2, 3).T,
    }
    write_state(tmp_path / 'x.npz', {'nan': float('nan'), 'deep': [1, {'k': None}]}, arrays)
    note, got = read_state(tmp_path / 'x.npz')
    assert np.isnan(note['nan']) and note['deep'] == [1, {'k': None}]
    assert list(got) == list(arrays)
    for k in arrays:
        assert got[k].dtype == arrays[k].dtype and got[k].shape == arrays[k].shape
        assert got[k].tobytes() == arrays[k].tobytes()
    with pytest.raises(FileNotFoundError):
        read_state(tmp_path / 'y.npz')


def test_values_come_back_as_they_were():
    held = []

    def pack(x):
        return json.loads(json.dumps(pack_value(x, lambda a: held.append(a) or len(held) - 1)))

    x = {
        'a': [1, 2.5, None, True],
        3: (np.float32(0.5), {'s', 't'}),
        'w': [np.arange(3), np.zeros((2, 2))],
    }
    got = unpack_value(pack(x), held.__getitem__)
    assert got['a'] == x['a'] and got[3] == (0.5, {'s', 't'})
    for a, b in zip(got['w'], x['w']):
        np.testing.assert_array_equal(a, b)
    for odd in ([lambda: 0], Diagnosis('healthy', ''), Diagnosis):
        with pytest.raises(TypeError, match='nothing to write down'):
            pack_value(odd, id)


def test_of_keras_callbacks_what_they_were_told_is_not_kept():
    early = keras.callbacks.EarlyStopping('loss', patience=3)
    early.on_train_begin()
    state = callback_state(early)
    assert set(state) == {'wait', 'stopped_epoch', 'best', 'best_weights', 'best_epoch'}
    assert callback_state(keras.callbacks.LambdaCallback()) == {}


# ---- what a checkpoint may set


def noted(folder, name, state):
    "A complete checkpoint in which somebody wrote another state of a callback."
    checkpoint = Checkpoint(folder)
    checkpoint.open(small())
    path = checkpoint.save(1, 0)
    note, arrays = read_state(path)
    write_state(path, note | {'callbacks': [{'is': name, **state}]}, arrays)


def went_on(folder, *callbacks):
    "Open a folder as a run does that goes on."
    checkpoint = Checkpoint(folder)
    checkpoint.open(small(), callbacks)
    checkpoint.on_train_begin()


class Own(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.count, self.best, self.list, self.path, self.on = 0, None, [], 'log.txt', True


def test_a_prepared_checkpoint_does_not_redirect_a_callback(tmp_path):
    theirs = dict(filepath='/etc/passwd', save_best_only=True, verbose=9, best=0.25)
    noted(tmp_path, 'ModelCheckpoint', {'state': theirs})
    mine = keras.callbacks.ModelCheckpoint(str(tmp_path / 'mine.keras'))
    with pytest.warns(UserWarning, match='ModelCheckpoint, which is not put back'):
        went_on(tmp_path, mine)
    assert (mine.filepath, mine.save_best_only, mine.verbose, mine.best) == (
        str(tmp_path / 'mine.keras'),
        False,
        0,
        0.25,
    )


@pytest.mark.parametrize(
    'name, value',
    [
        ('path', '/etc/passwd'),
        ('path', 3),
        ('count', 3),
        ('count', '3'),
        ('count', {'list': [1]}),
        ('list', {'list': ['/etc']}),
        ('on', 1),
        ('on_epoch_end', 1),
        ('__class__', 1),
        ('model', 1),
        ('new', 'text'),
        ('new', {'dict': [['/etc/x', 1]]}),
    ],
)
def test_nothing_is_put_into_ones_own_callback_past_its_load_state_dict(tmp_path, name, value):
    noted(tmp_path, 'Own', {'state': {name: value}})
    own = Own()
    before = dict(vars(own))
    with pytest.warns(UserWarning, match=f'{name} of Own, which is not put back'):
        went_on(tmp_path, own)
    assert {k: vars(own)[k] for k in before if k not in ('params', '_model')} == {
        k: v for k, v in before.items() if k not in ('params', '_model')
    }


@pytest.mark.parametrize(
    'state',
    [{'state': {'count': {'odd': 1}}}, {'state': {'best': {'array': 'gone'}}}, {'state': 3}, {}],
)
def test_a_state_that_makes_no_sense_is_an_error_in_words(tmp_path, state):
    noted(tmp_path, 'Own', state)
    with pytest.raises(ValueError, match='the checkpoint in .* is damaged: Own cannot be put back'):
        went_on(tmp_path, Own())


def test_a_callback_that_cannot_say_what_it_knows_is_warned_of_when_a_run_goes_on(
    drawn, tmp_path, recwarn
):
    with pytest.raises(KeyboardInterrupt):
        run_epochs(small(), batches_of(drawn), 2, [Own(), Strike(4)], Checkpoint(tmp_path, steps=1))
    assert not [w for w in recwarn if 'state_dict' in str(w.message)]  # not when it begins
    early = keras.callbacks.EarlyStopping('loss')
    with pytest.warns(UserWarning, match='^Own: begins anew in a run that goes on.*state_dict'):
        run_epochs(small(), batches_of(drawn), 2, [Own(), early], Checkpoint(tmp_path, steps=1))
    recwarn.clear()
    run_epochs(small(), batches_of(drawn), 2, [Own()], Checkpoint(tmp_path))
    assert not [w for w in recwarn if 'state_dict' in str(w.message)]  # nor when it is complete


def test_a_callback_may_say_itself_what_it_knows(drawn, tmp_path):
    class Own2(Own):
        def on_epoch_end(self, epoch, logs=None):
            self.list.append(f'epoch {epoch}')

        def state_dict(self):
            return {'lines': self.list, 'weights': np.arange(3.0)}

        def load_state_dict(self, state):
            self.list, self.weights = state['lines'], state['weights']

    run_epochs(small(), batches_of(drawn), 2, [Own2()], Checkpoint(tmp_path))
    again = Own2()
    run_epochs(small(), batches_of(drawn), 2, [again], Checkpoint(tmp_path))
    assert again.list == ['epoch 0', 'epoch 1'] and again.weights.tolist() == [0, 1, 2]

    class Own3(Own2):
        def state_dict(self):
            return {'model': self.model}

    with pytest.raises(TypeError, match=r'Own3.state_dict\(\) holds what a checkpoint cannot keep'):
        run_epochs(small(), batches_of(drawn), 1, [Own3()], Checkpoint(tmp_path / '3'))


def test_keras_callbacks_come_back(drawn, tmp_path):
    def made():
        return [
            keras.callbacks.EarlyStopping('loss', patience=9, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau('loss', patience=9),
            keras.callbacks.ModelCheckpoint(
                str(tmp_path / 'm.weights.h5'), 'loss', save_weights_only=True, save_best_only=True
            ),
        ]

    def net():
        model = small()
        model.compile(keras.optimizers.Adam(1e-2), SupConLoss(), jit_compile=False)
        return model

    run_epochs(net(), batches_of(drawn), 2, first := made(), Checkpoint(tmp_path / 'run'))
    run_epochs(net(), batches_of(drawn), 2, again := made(), Checkpoint(tmp_path / 'run'))
    for a, b in zip(first, again):
        assert a.best == b.best and getattr(a, 'wait', 0) == getattr(b, 'wait', 0)
    for a, b in zip(first[0].best_weights, again[0].best_weights):
        np.testing.assert_array_equal(a, b)


def test_monitors_say_what_they_know(drawn):
    monitor = CollapseMonitor((np.zeros((4, 16, 16, 3)), [0, 0, 1, 1]))
    monitor.measurements, monitor.start = [{'d+': 0.5}], {'d+': 1.0}
    monitor.diagnosis = Diagnosis('collapse', 'all equal', stops=True)
    assert monitor.state_dict()['told'] == [] and not monitor.state_dict()['is_over']
    monitor.load_state_dict(monitor.state_dict() | {'told': ['collapse']})
    other = CollapseMonitor((np.zeros((4, 16, 16, 3)), [0, 0, 1, 1]))
    other.load_state_dict(
        unpack_value(json.loads(json.dumps(pack_value(monitor.state_dict(), None))), None)
    )
    assert other.state_dict() == monitor.state_dict() and other.diagnosis == monitor.diagnosis


# ---- one run in a folder, and names in order


def test_a_second_run_in_a_folder_is_refused(drawn, tmp_path):
    class Second(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            run_epochs(small(), batches_of(drawn), 1, checkpoint=Checkpoint(tmp_path))

    with pytest.raises(BlockingIOError, match=f'another run is training in {tmp_path}: wait'):
        run_epochs(small(), batches_of(drawn), 1, [Second()], Checkpoint(tmp_path))
    run_epochs(small(), batches_of(drawn), 1, checkpoint=Checkpoint(tmp_path))  # free again
    with Checkpoint(tmp_path).locked():
        run_epochs(small(), batches_of(drawn), 1, checkpoint=Checkpoint(tmp_path, writes=False))


@pytest.mark.skipif(sys.platform == 'win32', reason='needs locks of POSIX')
def test_a_killed_run_leaves_its_folder_free(fresh_python, tmp_path):
    code = '''
import os, sys
from triplet_fashion.runs.checkpoints import Checkpoint
with Checkpoint(sys.argv[1]).locked(): os.kill(os.getpid(), 9)
'''
    assert fresh_python.run(code, tmp_path).returncode == -9
    assert (tmp_path / '.lock').exists()
    with Checkpoint(tmp_path).locked():
        pass


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path):
    names = ['000009-000010.npz', '999999-999999.npz', '999999-1000000.npz', '1000000-000000.npz']
    for name in reversed([*names, 'best.npz', 'a-1.npz', '1-x.npz']):
        (tmp_path / name).touch()
    assert [p.name for p in Checkpoint(tmp_path).files()] == names


def test_weights_of_epochs_are_kept_in_the_order_of_their_numbers(tmp_path):
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    callback = EpochWeights(tmp_path, keep=2)
    callback.set_model(net)
    for epoch in (999_997, 999_998, 999_999):
        callback.on_epoch_end(epoch, {'loss': 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        '1000000-1.0000.weights.h5',
        '999999-1.0000.weights.h5',
    ]
    callback.on_epoch_end(0, {'loss': 1})  # a run begun anew keeps what it just wrote
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        '000001-1.0000.weights.h5',
        '1000000-1.0000.weights.h5',
    ]


def test_leftovers_of_dead_runs_go(fresh_python, drawn, tmp_path):
    run_epochs(small(), batches_of(drawn), 1, checkpoint=Checkpoint(tmp_path))
    code = '''
import os, sys
from triplet_fashion.storage.files import atomic_write
with atomic_write(sys.argv[1] + "/history.csv"): os._exit(0)
'''
    fresh_python.run(code, tmp_path).check_returncode()
    assert len(list(tmp_path.glob('.history.csv.*'))) == 1
    Checkpoint(tmp_path).open(small())
    assert not list(tmp_path.glob('.history.csv.*'))


def test_identities_do_not_depend_on_the_process():
    "Layers made later in a process get other names; what they do is the same."
    a, b = small(), small()
    assert [l.name for l in a.layers] != [l.name for l in b.layers] or a.name == b.name
    assert run_identity({'x': 1}, a) == run_identity({'x': 1}, b)
    assert run_identity({'x': 1}, a) != run_identity({'x': 1}, small(width=9))
    assert (
        run_identity({}, a, model=a)['weights that stay as they are']
        == run_identity({}, b)['weights that stay as they are']
    )
    assert (
        plain_value({'loss': SupConLoss(0.1)}) != plain_value({'loss': SupConLoss(0.2)})
        and plain_value(len) == 'len'
    )


def test_keep_needs_a_second(tmp_path):
    with pytest.raises(ValueError, match='keep=1'):
        Checkpoint(tmp_path, keep=1)


FULL = '''
import resource, sys
from pathlib import Path
import keras
from triplet_fashion.runs.checkpoints import EpochWeights

folder = Path(sys.argv[1])
net = keras.Sequential([keras.Input((30,)), *[keras.layers.Dense(30) for _ in range(30)]])
net.compile('adam', 'mse')
net.optimizer.build(net.trainable_variables)
callback = EpochWeights(folder)
callback.set_model(net)
callback.on_epoch_end(0, {'loss': 1.08834})
size, = (p.stat().st_size for p in folder.iterdir())
for share in (.01, .2, .4, .6, .8, .9, .95, .99):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share*size), resource.RLIM_INFINITY))
    try: callback.on_epoch_end(1, {'loss': share})
    except OSError as e: assert 'the disk is full' in str(e), e
    else: sys.exit(f'{share} of the room was enough')
'''


@pytest.mark.skipif(sys.platform == 'win32', reason='needs limits of POSIX')
def test_seed_checkpoints_survive_a_full_disk(fresh_python, tmp_path):
    """HDF5 that runs out of room in the middle of a file may take the process along: so it never
    comes to that."""
    got = fresh_python.run(FULL, tmp_path)
    assert got.returncode == 0, (got.returncode, got.stderr[-2000:])
    assert [p.name for p in tmp_path.iterdir()] == ['000001-1.0883.weights.h5']
