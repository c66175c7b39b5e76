"""The monitor: its figures by hand, each trouble provoked in a real training and named.

No false alarm on runs that go well."""

import math, warnings
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
import tensorflow as tf, keras
from triplet_fashion.runs.diagnostics import (
    Diagnosis,
    diagnose,
    effective_rank,
    embedding_statistics,
)
from triplet_fashion.runs.monitor import CollapseMonitor, TrainingWarning
from triplet_fashion.loss import LosslessTripletLoss, TripletLoss
from triplet_fashion.mining import BatchTripletLoss
from triplet_fashion.model import triplet_model

quick = settings(max_examples=25, deadline=None, derandomize=True)
Adam, SGD = keras.optimizers.Adam, keras.optimizers.SGD


def products(noise=1.0, C=24, K=8, d=32, seed=0):
    rng, y = np.random.default_rng(seed), np.repeat(np.arange(C), K)
    return (rng.normal(size=(C, d))[y] + noise * rng.normal(size=(C * K, d))).astype('float32'), y


def pk(x, y, P=12, K=4, seed=0):
    rng = np.random.default_rng(seed)
    while True:
        i = np.concatenate(
            [
                rng.choice(np.flatnonzero(y == c), K, replace=False)
                for c in rng.choice(y.max() + 1, P, replace=False)
            ]
        )
        yield x[i], y[i]


def triplets(x, y, b=16, seed=0):
    rng = np.random.default_rng(seed)
    while True:
        a = rng.integers(0, len(y), b)
        p, n = (
            np.array([rng.choice(np.flatnonzero((y == y[i]) == same)) for i in a])
            for same in (True, False)
        )
        yield (x[a], x[p], x[n]), y[a]


def head(activation='l2', hidden=(64,), relu='relu', seed=0, d=32, out=16, first=()):
    keras.utils.set_random_seed(seed)
    last = (
        [keras.layers.Dense(out), keras.layers.UnitNormalization()]
        if activation == 'l2'
        else [keras.layers.Dense(out, activation)]
    )
    return keras.Sequential(
        [keras.Input((d,)), *first, *[keras.layers.Dense(h, relu) for h in hidden], *last]
    )


def watch(net, loss, optimizer, x, y, epochs=5, batches=None, data=None, steps=6, **kw):
    net.compile(optimizer, loss, jit_compile=False)
    monitor = CollapseMonitor((x, y) if data is None else data, **kw)
    batches = batches or (triplets(x, y) if len(net.inputs) == 3 else pk(x, y))
    return monitor, net.fit(
        batches, steps_per_epoch=steps, epochs=epochs, verbose=0, callbacks=[monitor]
    ).history


@pytest.fixture(autouse=True)
def told():
    "What the monitor warned of."
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('ignore')
        warnings.simplefilter('always', TrainingWarning)
        yield seen


# the figures


def by_hand(x, labels, margin):
    "Every pair and triplet in loops, float64."
    n, near, far, hits = len(x), [], [], []

    def d(i, j):
        return float(((x[i] - x[j]) ** 2).sum())

    for i in range(n):
        for j in range(n):
            if i != j:
                (near if labels[i] == labels[j] else far).append(d(i, j))
    for i in range(n):
        for p in range(n):
            for q in range(n):
                if i != p and labels[i] == labels[p] != labels[q]:
                    hits.append(d(i, q) <= d(i, p) + margin)
    return {
        'd+': np.mean(near),
        'd-': np.mean(far),
        'active': np.mean(hits),
        'overlap': np.mean([(a > b) + 0.5 * (a == b) for a in near for b in far]),
    }


@quick
@given(
    st.integers(0, 2**31), st.integers(2, 4), st.integers(2, 4), st.integers(1, 6), st.floats(0, 2)
)
def test_figures_by_brute_force(seed, P, K, d, margin):
    x, labels = np.random.default_rng(seed).normal(size=(P * K, d)), np.repeat(np.arange(P), K)
    signs = embedding_statistics(x, labels, margin=margin)
    for k, v in by_hand(x, labels, margin).items():
        assert signs[k] == pytest.approx(v, rel=1e-6, abs=1e-9), k
    plain = embedding_statistics(x, labels, squared=False)
    assert plain['d+'] == pytest.approx(
        np.mean(
            [
                np.linalg.norm(x[i] - x[j])
                for i in range(P * K)
                for j in range(P * K)
                if i != j and labels[i] == labels[j]
            ]
        ),
        rel=1e-6,
    )


@quick
@given(st.integers(0, 2**31), st.integers(2, 20), st.integers(1, 12), st.floats(1e-3, 1e3))
def test_rank_is_what_it_says(seed, n, d, scale):
    x = np.random.default_rng(seed).normal(size=(n, d))
    rank = effective_rank(x)
    assert 1 - 1e-9 <= rank <= min(n - 1, d) + 1e-9
    turn = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(d, d)))[0]
    assert effective_rank(scale * x @ turn + 5) == pytest.approx(
        rank, rel=1e-6
    )  # no change by turning, moving or scaling


def test_rank_at_the_ends():
    assert effective_rank(np.full((5, 3), 0.7)) == 0
    assert effective_rank(np.zeros((5, 3))) == 0
    assert effective_rank(np.outer(np.arange(5.0), [1, 2, 3])) == pytest.approx(1)
    assert effective_rank(np.vstack([np.eye(6), -np.eye(6)])) == pytest.approx(6)
    assert (
        effective_rank(
            np.float32(0.5)
            + np.float32(1e-8) * np.random.default_rng(0).normal(size=(9, 4)).astype('float32')
        )
        == 0
    )


def test_signs_of_troubled_embeddings():
    ids = np.repeat(np.arange(4), 3)
    equal = embedding_statistics(np.full((12, 5), 0.3), ids, margin=0.2)
    assert (
        equal['d+'],
        equal['d-'],
        equal['overlap'],
        equal['active'],
        equal['rank'],
        equal['spread'],
    ) == (0, 0, 0.5, 1, 0, 0)
    assert diagnose(equal).cause == 'collapse'
    corner = embedding_statistics(np.ones((12, 5)), ids, margin=0.2)
    assert corner['saturated'] == 1 and diagnose(corner).cause == 'saturation'
    bits = np.unpackbits(np.arange(1, 5, dtype='uint8')[:, None], axis=1)[ids].astype(
        float
    )  # perfect binary codes
    good = embedding_statistics(bits, ids, margin=0.2)
    assert good['saturated'] == 1 and good['overlap'] == 0 and diagnose(good).ok
    lost = embedding_statistics(np.where(bits > 0, np.nan, 1.0), ids)
    assert not lost['finite'] and diagnose(lost).cause == 'not a number' and diagnose(lost).stops
    assert embedding_statistics(bits * 3 - 1, ids)['saturated'] == 0  # no sigmoid
    for labels in (np.arange(12), np.zeros(12)):
        with pytest.raises(ValueError, match='two products'):
            embedding_statistics(bits, labels)


def measured(**kw):
    return {
        'd+': 0.5,
        'd-': 1.0,
        'overlap': 0.3,
        'active': 0.5,
        'saturated': 0.0,
        'rank': 9.0,
        'spread': 1.0,
        'finite': True,
        'margin': 0.2,
        'limit': 10,
        'loss': 0.3,
        'gradient': 1.0,
    } | kw


@pytest.mark.parametrize(
    'cause, kw, epochs',
    [
        ('collapse', dict(spread=1e-6), 3),
        ('collapse', {'d-': 1e-3}, 3),
        ('saturation', dict(saturated=0.99), 6),
        ('saturation', dict(saturated=0.99, spread=0.0), 3),
        ('dimensional collapse', dict(rank=1.2), 3),
        ('no active triplets', dict(active=0.0, loss=0.0, overlap=0.0), 3),
        ('nothing learned', dict(overlap=0.48), 12),
        ('stale BatchNorm', dict(stale=0.3), 3),
        ('exploding gradients', dict(loss=1e5, gradient=1e4), 3),
    ],
)
def test_patience(cause, kw, epochs):
    start, bad = measured(), measured(**kw)
    found = [diagnose([bad] * k, 3, start) for k in (epochs - 1, epochs)]
    assert found[0].ok and found[1].cause == cause and found[1].remedy
    assert diagnose([bad] * (epochs - 1) + [measured()], 3, start).ok  # over it
    assert found[1].stops == (cause not in ('nothing learned', 'stale BatchNorm'))
    assert cause in str(found[1]) and '\n' not in str(found[1])


def test_getting_better_is_no_trouble():
    assert diagnose(
        [measured(spread=1e-5, overlap=o) for o in (0.4, 0.35, 0.3)]
    ).ok  # order returns
    assert diagnose([measured(spread=s) for s in (1e-5, 2e-5, 4e-5)]).ok  # distances return
    assert not diagnose([measured(spread=1e-5, overlap=o) for o in (0.3, 0.3, 0.3)]).ok
    assert diagnose(
        [measured(saturated=0.95, loss=v) for v in (1.3, 1.29, 1.28, 1.27, 1.26, 1.25)]
    ).ok
    assert diagnose(
        [measured(margin=None, active=0.0, loss=0.0)] * 9
    ).ok  # no margin, nothing to run out of


def test_diagnosis_in_a_notebook():
    bad = Diagnosis('collapse', 'd- < d+ & more', 'do <this>', True)
    page = bad._repr_html_()
    assert '&lt;this&gt;' in page and 'd- &lt; d+ &amp; more' in page and '#cc3333' in page
    assert '#4e9a06' in Diagnosis('healthy', 'fine')._repr_html_()


# trainings that go well

HEALTHY = {
    'batch hard': (lambda s: head(seed=s), lambda: BatchTripletLoss('hard', margin=0.5), 2e-3, 1.0),
    'semi-hard': (lambda s: head(seed=s), lambda: BatchTripletLoss('semihard'), 2e-3, 1.0),
    'all, lossless': (
        lambda s: head('sigmoid', seed=s),
        lambda: BatchTripletLoss('all', kind='lossless'),
        1e-2,
        1.5,
    ),
    'three inputs, lossless': (
        lambda s: triplet_model(head('sigmoid', seed=s)),
        LosslessTripletLoss,
        1e-2,
        1.0,
    ),
    'three inputs, classic': (lambda s: triplet_model(head(seed=s)), TripletLoss, 2e-3, 1.5),
}


@pytest.mark.parametrize('name', HEALTHY)
def test_no_false_alarm(name, told):
    net, loss, rate, noise = HEALTHY[name]
    for seed in range(3 if name in ('batch hard', 'three inputs, lossless') else 1):
        x, y = products(noise, seed=seed)
        monitor, history = watch(net(seed), loss(), Adam(rate), x, y, epochs=7, steps=5)
        assert monitor.diagnosis.ok and len(monitor.measurements) == 7 and not told, (
            name,
            seed,
            str(monitor.diagnosis),
        )
        assert monitor.measurements[-1]['overlap'] < monitor.start['overlap']
        assert {'d+', 'd-', 'overlap', 'active', 'saturated', 'rank', 'gradient'} <= set(
            history
        ) and len(history['d+']) == 7


def test_photos_batchnorm_and_frozen_features(drawn):
    from triplet_fashion.base_network import base_network
    from triplet_fashion.generator import pk_dataset, triplet_dataset

    keras.utils.set_random_seed(0)
    net = base_network((32, 32, 3), 16, backbone='small', hidden=(), activation='l2')
    net.compile(Adam(2e-3), BatchTripletLoss('hard', margin=0.5), jit_compile=False)
    monitor = CollapseMonitor(pk_dataset(drawn, P=8, K=4, size=(32, 32), steps=1, fresh=False))
    history = net.fit(
        pk_dataset(drawn, P=8, K=4, size=(32, 32)), epochs=3, verbose=0, callbacks=[monitor]
    ).history
    assert (
        monitor.diagnosis.ok
        and 'stale' in history
        and monitor.sample.inputs.shape == (32, 32, 32, 3)
    )
    three = triplet_model(
        base_network((32, 32, 3), 16, backbone='small', hidden=(), trainable=False)
    )
    three.compile(Adam(1e-3), LosslessTripletLoss(), jit_compile=False)
    monitor = CollapseMonitor(triplet_dataset(drawn, size=(32, 32), steps=1, fresh=False))
    history = three.fit(
        triplet_dataset(drawn, size=(32, 32), steps=2), epochs=2, verbose=0, callbacks=[monitor]
    ).history
    assert monitor.diagnosis.ok and 'stale' not in history  # frozen: nothing runs behind
    assert (
        monitor.sample.pairs[0].sum() >= 20
        and monitor.sample.pairs[1].sum() > 2 * monitor.sample.pairs[0].sum()
    )


# and trainings that do not


def dead():
    "A head whose relus let nothing through."
    net = head()
    net.layers[0].bias.assign(-100 * tf.ones(64))
    net.layers[1].bias.assign(tf.ones(16))
    return net


TROUBLES = {
    'collapse': lambda: watch(
        head(hidden=(128, 128, 128)),
        BatchTripletLoss('hard', margin=0.5),
        Adam(0.1),
        *products(2.0),
        steps=8,
    ),
    'collapse, semi-hard says 0': lambda: watch(
        dead(), BatchTripletLoss('semihard'), Adam(0.01), *products(1.0)
    ),
    'saturation': lambda: watch(
        triplet_model(head('sigmoid')),
        LosslessTripletLoss(),
        Adam(1e-3),
        1000 * products(3.0)[0],
        products()[1],
        epochs=12,
    ),
    'saturation, all in one corner': lambda: watch(
        head('sigmoid', hidden=(128, 128, 128)),
        BatchTripletLoss('hard', margin=0.5),
        Adam(0.1),
        *products(2.0),
        steps=8,
    ),
    'dimensional collapse': lambda: watch(
        head(hidden=(1,), relu=None),
        BatchTripletLoss('hard', margin=0.5),
        Adam(0.01),
        *products(1.0),
    ),
    'no active triplets': lambda: watch(
        head(), BatchTripletLoss('all', margin=1e-4), Adam(1e-3), *products(0.2)
    ),
    'exploding gradients': lambda: watch(
        triplet_model(head(None)),
        TripletLoss(margin=1.0),
        SGD(0.4),
        *products(0.6),
        epochs=8,
        steps=8,
    ),
    'nothing learned, labels shuffled': lambda: watch(
        head(hidden=()),
        BatchTripletLoss('hard', margin=0.5),
        Adam(1e-3),
        products()[0],
        np.random.default_rng(1).permutation(products()[1]),
        epochs=13,
        steps=2,
    ),
    'nothing learned, rate too low': lambda: watch(
        head(), BatchTripletLoss('hard', margin=0.5), Adam(1e-9), *products(2.0), epochs=13, steps=2
    ),
    'stale BatchNorm': lambda: watch(
        head('sigmoid', first=[keras.layers.BatchNormalization(momentum=0.999)]),
        BatchTripletLoss('hard', margin=0.5),
        Adam(2e-3),
        products()[0] + 500,
        products()[1],
        epochs=6,
        steps=8,
    ),
}


@pytest.mark.parametrize('name', TROUBLES)
def test_each_trouble_is_named(name, told):
    cause = name.split(',')[0]
    monitor, history = TROUBLES[name]()
    assert monitor.diagnosis.cause == cause, str(monitor.diagnosis)
    warned = [str(w.message) for w in told if w.category is TrainingWarning]
    assert warned and cause in warned[-1] and monitor.diagnosis.remedy in warned[-1]
    assert monitor.model.stop_training == (cause not in ('nothing learned', 'stale BatchNorm'))
    if 'semi-hard' in name:
        assert max(history['loss'][1:]) == 0  # the loss alone would have said: perfect
    monitor.plot()


def test_bad_input_stops_at_once_and_is_found(told):
    x, y = products()
    x[77, 3] = np.inf
    monitor, history = watch(
        head(),
        BatchTripletLoss('all'),
        Adam(1e-3),
        x,
        y,
        batches=tf.data.Dataset.from_tensor_slices((x, y)).batch(64).repeat(),
    )
    assert (
        monitor.diagnosis.cause == 'not a number'
        and 'row 77' in monitor.diagnosis.says
        and 'step 2 of epoch 1' in monitor.diagnosis.says
    )
    assert len(history['loss']) == 1 and monitor.measurements == []
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(64)
    monitor, _ = watch(
        head(), BatchTripletLoss('all'), Adam(1e-3), x, y, batches=data.repeat(), data=data
    )
    assert 'in batch 2' in monitor.diagnosis.says


def root_loss(y, codes):
    a, p, n = tf.split(codes, 3, axis=-1)
    return tf.nn.relu(
        tf.sqrt(tf.reduce_sum((a - p) ** 2, -1)) - tf.sqrt(tf.reduce_sum((a - n) ** 2, -1)) + 0.5
    )


def test_gradient_of_equal_codes():
    net = head(None)
    net.layers[-1].kernel.assign(tf.zeros_like(net.layers[-1].kernel))
    monitor, _ = watch(triplet_model(net), root_loss, Adam(1e-3), *products())
    assert (
        monitor.diagnosis.cause == 'not a number'
        and 'two embeddings are equal' in monitor.diagnosis.says
        and 'before the first step' in monitor.diagnosis.says
    )
    net = head(None)
    net.layers[-1].kernel.assign(tf.zeros_like(net.layers[-1].kernel))
    monitor, history = watch(
        triplet_model(net), TripletLoss(squared=False), Adam(1e-3), *products(), epochs=1
    )  # this package's: no NaN there
    assert np.isfinite(history['loss']).all() and monitor.diagnosis.cause != 'not a number'


def test_weights_that_are_nan_from_the_start():
    net = head()
    net.layers[0].kernel.assign(np.nan * net.layers[0].kernel)
    monitor, _ = watch(net, BatchTripletLoss('all'), Adam(1e-3), *products())
    assert (
        monitor.diagnosis.cause == 'not a number'
        and 'before the first step' in monitor.diagnosis.says
    )


# the callback


def test_it_changes_nothing():
    "The same weights with and without the monitor, dropout and BatchNorm included."

    def train(watched):
        net = head(first=[keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)])
        net.compile(Adam(1e-3), BatchTripletLoss('hard'), jit_compile=False)
        net.fit(
            pk(*products()),
            steps_per_epoch=3,
            epochs=2,
            verbose=0,
            callbacks=[CollapseMonitor(products())] * watched,
        )
        return net.get_weights()

    for a, b in zip(train(True), train(False)):
        np.testing.assert_array_equal(a, b)


def test_a_loss_with_memory_keeps_it():
    class Remembering(keras.losses.Loss):
        def __init__(self):
            super().__init__()
            self.queue, self.calls = (
                tf.Variable(tf.zeros((2, 16)), trainable=False),
                tf.Variable(0.0, trainable=False),
            )

        def call(self, y, codes):
            self.calls.assign_add(1.0)
            self.queue.assign(codes[:2])
            return tf.reduce_sum((codes[1:] - codes[:-1]) ** 2, -1)

    loss = Remembering()
    watch(head(), loss, Adam(1e-3), *products(), epochs=2, steps=3)
    assert float(loss.calls) == 6


def test_warn_goes_on_and_tells_once(told):
    monitor, history = watch(
        head(),
        BatchTripletLoss('all', margin=1e-4),
        Adam(1e-3),
        *products(0.2),
        epochs=6,
        on_trouble='warn',
    )
    assert len(history['loss']) == 6 and monitor.diagnosis.cause == 'no active triplets'
    assert sum(w.category is TrainingWarning for w in told) == 1


def test_every_and_verbose(capsys):
    monitor, history = watch(
        head(),
        BatchTripletLoss('hard', margin=0.5),
        Adam(1e-3),
        *products(),
        epochs=4,
        steps=2,
        every=2,
        verbose=1,
    )
    assert [s['epoch'] for s in monitor.measurements] == [2, 4] and len(history['rank']) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [l.split(':')[0] for l in lines if l.startswith('epoch')] == ['epoch 2', 'epoch 4']


def test_gradient_is_that_of_the_loss():
    net, (x, y) = head(), products()
    loss = BatchTripletLoss('hard', margin=0.5)
    net.compile(Adam(1e-3), loss)
    monitor = CollapseMonitor((x, y))
    monitor.set_model(net)
    monitor.on_train_begin()
    with tf.GradientTape() as tape:
        value = loss(monitor.sample.labels, net(monitor.sample.inputs))
    norm = tf.linalg.global_norm(tape.gradient(value, [v.value for v in net.trainable_variables]))
    assert monitor.start['gradient'] == pytest.approx(float(norm), rel=1e-4) and monitor.start[
        'loss'
    ] == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize('kind', ('mixed_bfloat16', 'mixed_float16'))
def test_half_precision(kind):
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((32,)),
            keras.layers.Dense(32, 'relu', dtype=kind),
            keras.layers.Dense(16, 'sigmoid', dtype=kind),
        ]
    )
    monitor, _ = watch(
        net, BatchTripletLoss('hard', margin=0.5), Adam(1e-3), *products(), epochs=1, steps=3
    )
    assert monitor.diagnosis.ok and math.isfinite(monitor.measurements[-1]['gradient'])


def test_what_it_refuses():
    x, y = products()
    with pytest.raises(ValueError, match="on_trouble='shout'"):
        CollapseMonitor((x, y), on_trouble='shout')
    with pytest.raises(ValueError, match='no two products'):
        CollapseMonitor((x, np.arange(len(x))))
    with pytest.raises(ValueError, match='data holds triplets'):
        watch(head(), BatchTripletLoss(), Adam(1e-3), x, y, data=next(triplets(x, y)))
    with pytest.raises(ValueError, match='not looked at a training'):
        CollapseMonitor((x, y)).plot()


def test_sample_is_spread_and_fixed():
    x, y = products(C=50)
    monitor = CollapseMonitor((x, y))
    assert (
        len(monitor.sample.inputs) == 32
        and len(np.unique(monitor.sample.labels)) == 8
        and monitor.sample.labels.max() == 49
    )
    np.testing.assert_array_equal(monitor.sample.inputs, CollapseMonitor((x, y)).sample.inputs)
    shuffled = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(400, seed=0).batch(16)
    assert (
        len(CollapseMonitor(shuffled).sample.inputs) >= 4
    )  # several batches, until there are pairs
    two = CollapseMonitor((x[:16], y[:16]))
    assert len(np.unique(two.sample.labels)) == 2


# labels and settings as users have them

CALM = dict(epochs=2, steps=2)


@pytest.mark.parametrize(
    'make',
    [
        lambda y: [f'p{i}' for i in y],
        lambda y: 4006381333931 + y,
        lambda y: [None if i == 3 else int(i) for i in y],
        lambda y: np.where(y == 3, np.nan, y),
        lambda y: np.array([f'p{i}'.encode() for i in y], object),
    ],
    ids=['text', 'EAN codes', 'None', 'NaN', 'bytes'],
)
def test_labels_of_any_kind_are_watched(make):
    x, y = products()
    monitor, _ = watch(head(), BatchTripletLoss(), Adam(1e-3), x, y, data=(x, make(y)), **CALM)
    whole, _ = watch(
        head(),
        BatchTripletLoss(),
        Adam(1e-3),
        x[y != 3],
        y[y != 3],
        batches=pk(x, y),
        data=(x[y != 3], y[y != 3]),
        **CALM,
    )
    assert math.isfinite(monitor.start['overlap'])
    if any(o is None or o != o for o in make(y)):
        assert monitor.start['overlap'] == pytest.approx(whole.start['overlap'], abs=1e-6)


def test_photos_of_unknown_products_are_in_no_pair():
    x, y = products(C=6, K=4)
    known = embedding_statistics(x[:16], y[:16])
    for unknown in (np.nan, None, -1):
        labels = [unknown if i > 3 else i for i in y.tolist()]
        seen = embedding_statistics(x, labels)
        assert all(
            seen[k] == pytest.approx(known[k], abs=1e-12) for k in ('d+', 'd-', 'overlap', 'active')
        )


def test_embeddings_that_are_not_finite_are_said_so():
    x, y = products(C=6, K=4)
    for bad in (np.nan, np.inf):
        x[3, 1] = bad
        assert math.isnan(effective_rank(x))
        assert diagnose(embedding_statistics(x, y)).cause == 'not a number'
    assert math.isnan(effective_rank(x * np.nan))


@pytest.mark.parametrize(
    'call,says',
    [
        (lambda x, y: embedding_statistics(x, y[:5]), '5 labels for embeddings of shape'),
        (lambda x, y: embedding_statistics(x, y, margin=np.nan), 'margin=nan'),
        (lambda x, y: effective_rank(x[0]), r'embeddings must have shape \(n, d\)'),
        (lambda x, y: CollapseMonitor((x, y), photos=np.nan), 'photos=nan must be a whole number'),
        (lambda x, y: CollapseMonitor((x, y), every=0), 'every=0 must be'),
        (lambda x, y: CollapseMonitor((x, y), patience=-1), 'patience=-1 must be'),
        (lambda x, y: CollapseMonitor((x, [None] * len(y))), 'holds no two products'),
    ],
)
def test_settings_that_mean_nothing_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call(*products(C=6, K=4))
