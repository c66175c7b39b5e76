"""Two workers on loopback, as real processes, beside one process with the whole batch.

Workers that are killed; the command line under TF_CONFIG."""

import contextlib, json, os, shutil, signal, socket, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from triplet_fashion.generator import pk_dataset, triplet_dataset
from triplet_fashion.persistence import load_bundle
from triplet_fashion.runs.distributed import (
    as_worker_lost,
    resolve_strategy,
    is_chief,
    worker_shard,
)

ENV = {k: v for k, v in os.environ.items() if k != 'TF_CONFIG'} | {
    'PYTHONPATH': str(Path(__file__).parents[1]),
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'CUDA_VISIBLE_DEVICES': '-1',
}

# ---- real processes

NURSERY = """
import json, os, signal, sys, time, traceback
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from triplet_fashion import cli
from triplet_fashion.base_network import base_network
from triplet_fashion.catalog import Catalog
from triplet_fashion.runs.checkpoints import RunFolder
from triplet_fashion.training import Recipe, fit
from triplet_fashion.runs.distributed import resolve_strategy, worker_shard

SETTINGS = {
    'pk': dict(recipe='scratch', P=6, K=4, clipnorm=.5),
    'bn': dict(recipe='scratch', P=6, K=4),
    'original': dict(recipe='original', batch_size=8, learning_rate=1e-2),
    'odd': dict(recipe='original', batch_size=10, learning_rate=2e-3),
    'frozen': dict(P=6, K=4),
    'stops': dict(P=6, K=4, epochs=5),
    'strong': dict(recipe=Recipe(), P=6, K=4, augment=True)}
WATCHED = 'pk', 'strong'

class Kill(keras.callbacks.Callback):
    def __init__(self, left):
        super().__init__()
        self.left, self.how = abs(left), signal.SIGKILL if left > 0 else signal.SIGSTOP
    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0: os.kill(os.getpid(), self.how)

class Stop(keras.callbacks.Callback):
    "Worker 1 wants to stop after the first epoch, the chief after the second."
    def __init__(self, index):
        super().__init__()
        self.index = index
    def on_epoch_end(self, epoch, logs=None): self.model.stop_training = epoch == 1 - self.index

def train_one(photos, name, workers, kill, more):
    train, unseen = Catalog.from_dir(photos).split(1/3)
    keras.utils.set_random_seed(0)
    care = dict(kernel_regularizer=keras.regularizers.L2(1e-2)) if name in WATCHED else {}
    norms = [layers.BatchNormalization()] if name in ('bn', 'strong') else []
    lower = keras.Sequential([
        keras.Input((32, 32, 3)), layers.Conv2D(8, 5, strides=4, activation='relu', **care),
        *norms, layers.GlobalAveragePooling2D()])
    net = base_network(
        (32, 32, 3), 12, lower, hidden=(16,), rescale='unit', dropout=.3*(name == 'strong'),
        trainable=name not in ('frozen', 'stops'),
        activation='sigmoid' if name in ('original', 'odd') else 'l2')
    if name == 'odd':   # 4 batches of 10, and 7 left over
        train, more = train.subset(range(47)), more | dict(steps=None if workers else 4)
    calls, watched = [Kill(kill)], name in WATCHED
    if name == 'stops': calls.append(Stop(worker_shard(workers)[0]))
    return fit(
        train, valid=unseen if watched else None, net=net, size=(32, 32), verbose=0,
        runner=workers, callbacks=calls, monitor='warn' if watched else None,
        **dict(epochs=2, steps=4) | SETTINGS[name] | more)

def trainings(photos, out, jobs, kill=0, devices=0):
    "Jobs one after the other: on this worker, or alone and on so many devices."
    mirrored = None
    if devices:
        cpu, = tf.config.list_physical_devices('CPU')
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()]*devices)
    multi = resolve_strategy('auto')
    if devices: mirrored = resolve_strategy('mirrored', [f'CPU:{i}' for i in range(devices)])
    index = worker_shard(multi)[0]
    for name in jobs:
        kinds = {'alone': None} if devices else {f'worker{index}': multi}
        if devices and name in ('pk', 'odd'): kinds['mirrored'] = mirrored
        for kind, workers in kinds.items():
            if name == 'differing':
                return train_one(photos, 'pk', workers, kill, dict(learning_rate=.01*(1 + index)))
            kept = {}
            if name in WATCHED and not devices:
                kept['run_dir'] = RunFolder(f'{out}/kept/{name}', steps=2)
            run = train_one(photos, name, workers, kill, kept)
            history = json.dumps(run.history)
            np.savez(f'{out}/{name}.{kind}.npz', *run.net.get_weights(), history=history)

def child(what, args, log, env):
    out = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
    for fd in (1, 2): os.dup2(out, fd)
    os.environ.update(env)
    try: cli.triplet_train.main(args) if what == 'train' else trainings(*args)
    except BaseException: traceback.print_exc()
    else: os._exit(0)
    os._exit(1)

for line in sys.stdin:   # orders, each answered by a line
    order = json.loads(line)
    if 'log' in order: answer = os.fork() or child(**order)
    else:
        end = time.monotonic() + order['seconds']
        while not (gone := os.waitpid(order['pid'], os.WNOHANG))[0] and time.monotonic() < end:
            time.sleep(.05)
        answer = os.waitstatus_to_exitcode(gone[1]) if gone[0] else None
    print(json.dumps(answer), flush=True)
"""


class Worker:
    "A process forked by the nursery, which has imported TensorFlow but not yet woken it."

    def __init__(self, nursery, **order):
        self.nursery, self.log, self.rc = nursery, Path(order['log']), None
        self.pid = self.ask(**order)

    def ask(self, **order):
        self.nursery.stdin.write(json.dumps(order) + '\n')
        self.nursery.stdin.flush()
        return json.loads(self.nursery.stdout.readline())

    def wait(self, seconds):
        if self.rc is None:
            self.rc = self.ask(pid=self.pid, seconds=seconds)
        return self.rc

    @property
    def said(self):
        return self.log.read_text(errors='replace')


@pytest.fixture(scope='module')
def nursery():
    "Python with everything imported, from which processes are forked."
    with subprocess.Popen(
        [sys.executable, '-c', NURSERY],
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as p:
        try:
            yield p
        finally:
            p.kill()


@contextlib.contextmanager
def processes(nursery, folder, what, *args, envs):
    "Processes, one for each of `envs`, that are gone afterwards, whatever happens."
    procs = [
        Worker(nursery, what=what, args=a, log=str(folder / f'{time.monotonic_ns()}.log'), env=e)
        for a, e in zip(args, envs, strict=True)
    ]
    try:
        yield procs
    finally:
        for p in procs:
            if p.rc is None:
                os.kill(p.pid, signal.SIGKILL)
                p.wait(10)


def tf_configs(n=2):
    "TF_CONFIG for each of `n` workers, on ports that are free."
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in socks:
            s.bind(('localhost', 0))
        cluster = {'worker': [f'localhost:{s.getsockname()[1]}' for s in socks]}
    return [
        {'TF_CONFIG': json.dumps({'cluster': cluster, 'task': {'type': 'worker', 'index': i}})}
        for i in range(n)
    ]


def result(out, name, kind):
    with np.load(out / f'{name}.{kind}.npz') as z:
        return [z[k] for k in z.files if k != 'history'], json.loads(str(z['history']))


def apart(a, b):
    "Largest difference of (weights, losses), the latter as a share."
    (w, h), (v, g) = a, b
    return max(float(np.abs(p - q).max()) for p, q in zip(w, v, strict=True)), float(
        np.max(np.abs(np.divide(h['loss'], g['loss']) - 1))
    )


JOBS = 'pk', 'original', 'bn', 'frozen', 'odd'


@pytest.fixture(scope='module')
def trained(nursery, drawn, tmp_path_factory):
    """Folder of what two workers, one process, and one process with two devices made of the same
    runs; what the workers said last."""
    out = tmp_path_factory.mktemp('trained')
    here = [str(drawn.root), str(out)]
    with processes(
        nursery,
        out,
        'trainings',
        *[[*here, [*JOBS, 'strong', 'stops', 'differing']]] * 2,
        [*here, JOBS, 0, 2],
        envs=[*tf_configs(), {}],
    ) as procs:
        codes = [p.wait(240) for p in procs]
        assert codes == [1, 1, 0], '\n'.join(p.said[-2000:] for p in procs)
        return out, [p.said for p in procs]


@pytest.mark.parametrize('name', JOBS)
def test_two_workers_or_two_devices_train_as_one_process(trained, name):
    alone = result(trained[0], name, 'alone')
    for kind in 'worker0', 'worker1', *(['mirrored'] if name in ('pk', 'odd') else []):
        weights, loss = apart(result(trained[0], name, kind), alone)
        # BatchNorm's variance is summed up otherwise on many replicas: as mean of squares less
        # square of mean
        assert (
            (weights < 2e-4 and loss < 1e-3) if name == 'bn' else (weights < 2e-5 and loss < 2e-6)
        ), (kind, weights, loss)
    assert apart(result(trained[0], name, 'worker0'), result(trained[0], name, 'worker1')) == (0, 0)


def test_callbacks_see_the_same_on_all_workers_and_one_process(trained):
    histories = [result(trained[0], 'pk', kind)[1] for kind in ('worker0', 'worker1', 'alone')]
    assert {'val_MAP@R', 'learning_rate', 'd+'} <= set(histories[0]) == set(histories[2])
    assert histories[0] == histories[1]
    for k in histories[0]:
        np.testing.assert_allclose(histories[0][k], histories[2][k], atol=1e-4, err_msg=k)


def test_only_the_chief_writes(trained):
    assert {p.name for p in (trained[0] / 'kept' / 'pk').glob('*.npz')} >= {
        '000002-000000.npz',
        'best.npz',
    }
    assert len((trained[0] / 'kept' / 'pk' / 'history.csv').read_text().splitlines()) == 3


def test_workers_that_differ_are_told_at_once(trained):
    for said in trained[1][:2]:
        assert 'ValueError: workers [1] begin with other settings' in said, said[-2000:]


def test_all_stop_where_the_chief_does(trained):
    for kind in 'worker0', 'worker1':
        assert len(result(trained[0], 'stops', kind)[1]['loss']) == 2


def test_a_checkpoint_of_two_workers_goes_on_in_one_process(nursery, drawn, trained, tmp_path):
    kept = shutil.copytree(trained[0] / 'kept' / 'pk', tmp_path / 'kept' / 'pk')
    for p in kept.glob('000002-*.npz'):
        p.unlink()
    assert sorted(p.name for p in kept.glob('0*.npz'))[-1] == '000001-000002.npz'
    with processes(
        nursery, tmp_path, 'trainings', [str(drawn.root), str(tmp_path), ['pk']], envs=[{}]
    ) as (one,):
        assert one.wait(120) == 0, one.said[-2000:]
    weights, loss = apart(result(tmp_path, 'pk', 'worker0'), result(trained[0], 'pk', 'alone'))
    assert weights < 2e-5 and loss < 2e-6


def test_a_killed_worker_is_an_error_within_a_minute_and_a_restart_ends_as_if_undisturbed(
    nursery, drawn, trained, tmp_path
):
    "With dropout, BatchNorm and augmentation."
    job = [str(drawn.root), str(tmp_path), ['strong']]
    with processes(nursery, tmp_path, 'trainings', job, [*job, 7], envs=tf_configs()) as (
        chief,
        other,
    ):
        assert other.wait(120) == -signal.SIGKILL
        assert chief.wait(60) == 1, 'the chief still waits, a minute after its peer was killed'
    assert 'WorkerLost: a worker is lost' in chief.said and 'run_dir=FOLDER' in chief.said, (
        chief.said[-2000:]
    )
    assert [p.name for p in sorted((tmp_path / 'kept' / 'strong').glob('0*.npz'))][
        -1
    ] == '000001-000002.npz'
    with processes(nursery, tmp_path, 'trainings', job, job, envs=tf_configs()) as procs:
        assert [p.wait(120) for p in procs] == [0, 0]
    for kind in 'worker0', 'worker1':
        again, whole = result(tmp_path, 'strong', kind), result(trained[0], 'strong', kind)
        assert apart(again, whole) == (0, 0) and again[1] == whole[1]


def test_a_worker_that_only_stands_still_is_noticed(nursery, drawn, tmp_path):
    "Its connections stay open: nothing but a missing sign of life tells."
    job = [str(drawn.root), str(tmp_path), ['frozen']]
    with processes(nursery, tmp_path, 'trainings', job, [*job, -3], envs=tf_configs()) as (
        chief,
        other,
    ):
        assert chief.wait(120) == 1 and other.wait(0) is None
    assert 'WorkerLost' in chief.said, chief.said[-2000:]


def test_triplet_train_under_tf_config(nursery, drawn, tmp_path):
    args = [
        str(drawn.root),
        '--size',
        '32',
        '--epochs',
        '1',
        '--steps',
        '2',
        '--quiet',
        '--resume',
        str(tmp_path / 'kept'),
        '--out',
    ]
    with processes(
        nursery,
        tmp_path,
        'train',
        *[[*args, str(tmp_path / f'run{i}')] for i in range(2)],
        envs=tf_configs(),
    ) as procs:
        assert [p.wait(120) for p in procs] == [0, 0], '\n'.join(p.said[-2000:] for p in procs)
    net, meta = load_bundle(tmp_path / 'run0' / 'network')
    assert net.input_shape[1:3] == (32, 32) and len(meta['history']['loss']) == 1
    assert (
        not list((tmp_path / 'run1').iterdir())
        and (tmp_path / 'kept' / '000001-000000.npz').exists()
    )


# ---- shards of a batch


def rows_seen(make, n):
    "Photos by worker over one epoch, from datasets that carry row numbers in place of pixels."
    return [
        np.concatenate(
            [
                np.ravel(tf.nest.flatten(x)[0]).astype(int)
                for x, _ in make((i, n)).take(make((i, n)).info['steps'])
            ]
        )
        for i in range(n)
    ]


@pytest.mark.parametrize('n', [2, 3])
def test_no_photo_comes_twice_in_an_epoch(drawn, n):
    numbers = np.arange(len(drawn), dtype='float32')[:, None]
    mined = rows_seen(lambda shard: pk_dataset(drawn, P=6, K=3, inputs=numbers, shard=shard), n)
    anchors = rows_seen(
        lambda shard: triplet_dataset(drawn, batch_size=12, inputs=numbers, shard=shard), n
    )
    for seen in (mined, anchors):
        assert len({len(s) for s in seen}) == 1
        assert sorted(np.concatenate(seen)) == list(range(len(drawn)))


@pytest.mark.parametrize('n', [2, 3])
def test_uneven_products_are_shared_out_too(drawn, n):
    "Some photos come twice then, as they do in one process, and no others."
    few = drawn.subset(np.flatnonzero(np.arange(len(drawn)) % 6 < 2 + drawn.labels % 5))
    numbers = np.arange(len(few), dtype='float32')[:, None]
    assert len(set(few.counts())) == 5
    (alone,) = rows_seen(lambda shard: pk_dataset(few, P=6, K=3, inputs=numbers, shard=shard), 1)
    shared = rows_seen(lambda shard: pk_dataset(few, P=6, K=3, inputs=numbers, shard=shard), n)
    assert {len(s) for s in shared} == {len(alone) // n} and sorted(
        np.concatenate(shared)
    ) == sorted(alone)


def test_shards_make_up_the_batch_of_one_process(drawn):
    numbers = np.arange(len(drawn), dtype='float32')[:, None]

    def batches(shard):
        return [
            (np.ravel(x), np.ravel(y))
            for x, y in pk_dataset(drawn, P=6, K=4, inputs=numbers, shard=shard).take(3)
        ]

    whole, shards = batches((0, 1)), [batches((i, 2)) for i in range(2)]
    for b, pair in zip(whole, zip(*shards)):
        for k in range(2):
            np.testing.assert_array_equal(b[k], np.concatenate([p[k] for p in pair]))


def test_a_batch_that_does_not_divide(drawn):
    with pytest.raises(ValueError, match='a batch that n divides'):
        pk_dataset(drawn, P=3, K=3, size=(32, 32), shard=(0, 2))


# ---- what the page tells to type


def blocks(root, word):
    "Shell lines of the page that make TF_CONFIG, in the code block that holds `word`."
    cells = json.loads(
        (root / 'nbs' / 'tutorials' / 'many_workers.ipynb').read_text(encoding='utf-8')
    )['cells']
    found = [
        b
        for c in cells
        if c['cell_type'] == 'markdown'
        for b in ''.join(c['source']).split('```')[1::2]
        if word in b
    ]
    assert len(found) == 1, (word, len(found))
    return '\n'.join(
        line.strip()
        for line in found[0].splitlines()
        if line.strip().startswith(('hosts=', 'export TF_CONFIG='))
    )


@pytest.mark.skipif(os.name == 'nt', reason='a POSIX shell')
@pytest.mark.parametrize(
    'word, env, hosts',
    [
        (
            'JOB_COMPLETION_INDEX',
            {'JOB_COMPLETION_INDEX': '2'},
            [f'fashion-{i}.fashion:2222' for i in range(4)],
        ),
        (
            'SLURM_PROCID',
            {'SLURM_PROCID': '2', 'SLURM_JOB_NODELIST': 'n[1-4]'},
            [f'n{i}:2222' for i in range(1, 5)],
        ),
    ],
)
def test_the_sketches_make_a_tf_config(root, tmp_path, word, env, hosts):
    (tmp_path / 'scontrol').write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames n[1-4]" ] && printf "n1\\nn2\\nn3\\nn4\\n"\n'
    )
    (tmp_path / 'scontrol').chmod(0o700)
    said = subprocess.run(
        ['sh', '-c', blocks(root, word) + '\nprintf %s "$TF_CONFIG"'],
        env={'PATH': f"{tmp_path}:{os.environ['PATH']}"} | env,
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert json.loads(said.stdout) == {
        'cluster': {'worker': hosts},
        'task': {'type': 'worker', 'index': 2},
    }, said.stderr


# ---- words for strategies


def test_words_for_strategies(monkeypatch):
    assert (
        resolve_strategy(None) is None
        and resolve_strategy('none') is None
        and resolve_strategy('auto') is None
    )
    assert is_chief(None) and worker_shard(None) == (0, 1)
    one = tf.distribute.OneDeviceStrategy('CPU:0')
    assert resolve_strategy(one) is one and worker_shard(one) == (0, 1)
    with pytest.raises(ValueError, match="runner='all'"):
        resolve_strategy('all')
    with pytest.raises(ValueError, match='TF_CONFIG is not set'):
        resolve_strategy('multi')
    monkeypatch.setenv('TF_CONFIG', '{cluster')
    with pytest.raises(ValueError, match='no JSON'):
        resolve_strategy('auto')
    monkeypatch.setenv(
        'TF_CONFIG',
        json.dumps(
            {'cluster': {'worker': ['localhost:1']}, 'task': {'type': 'worker', 'index': 0}}
        ),
    )
    assert resolve_strategy('auto') is None  # a job of one


def test_too_late_for_several_machines(monkeypatch):
    tf.constant(1.0)  # wakes TensorFlow
    monkeypatch.setenv(*tf_configs()[0].popitem())
    with pytest.raises(RuntimeError, match='before anything else'):
        resolve_strategy('multi')


@pytest.mark.parametrize('kind', ['ResourceExhausted', 'InvalidArgument'])
def test_an_error_of_this_machine_is_told_as_it_is(kind):
    error = getattr(tf.errors, kind + 'Error')(
        None, None, 'lossless_triplet_loss: outputs must lie in [0, 1]'
    )
    assert as_worker_lost(error) is error


def test_batches_that_devices_cannot_share(drawn):
    from triplet_fashion.training import Recipe

    nine, five = Recipe.named(P=3, K=3), Recipe.named('original', batch_size=5)
    with pytest.raises(
        ValueError, match='P=3, K=3: a batch of 9 does not divide among 2 devices: choose P or K'
    ):
        nine.fitted_to(drawn, 2)
    with pytest.raises(ValueError, match='batch_size=5: a batch of 5 .* choose a batch_size'):
        five.fitted_to(drawn, 2)
    assert Recipe.named('original', batch_size=10).fitted_to(drawn.subset(range(47)), 2).steps == 4
    wide = Recipe.named('strong', backbone='ResNet50', batch=21, K=3)
    assert [wide.fitted_to(drawn, n).P for n in (1, 2)] == [7, 6]


def test_a_lost_worker_is_named_without_a_trace():
    error = as_worker_lost(
        tf.errors.InternalError(
            None,
            None,
            'Graph execution error:\n\nDetected at node x\n  File "a.py"\n\n'
            'Collective ops is aborted by: reset by peer',
        )
    )
    assert isinstance(error, ConnectionError) and str(error).endswith(
        'TensorFlow says: Collective ops is aborted by: reset by peer'
    )
