"Losses over all pairs against their formulas and pytorch-metric-learning; the memory."

from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
import tensorflow as tf, keras
from learning import with_gradient
from triplet_fashion.contrastive import (
    AcrossSets,
    CrossBatchMemory,
    MultiSimilarityLoss,
    SupConLoss,
    WeightedLosslessLoss,
)
from triplet_fashion.mining import BatchTripletLoss, PairMask

quick = settings(max_examples=40, deadline=None, derandomize=True)
referee = np.load(Path(__file__).parent / 'referees' / 'contrastive.npz')
across = np.load(Path(__file__).parent / 'referees' / 'proxies.npz')
LOSSES = dict(
    supcon=SupConLoss,
    ms=MultiSimilarityLoss,
    mined=lambda **kw: MultiSimilarityLoss(mining=0.1, **kw),
    lossless=WeightedLosslessLoss,
)


def by_formula(kind, x, labels):
    "Mean over the anchors that count, float64, an anchor at a time."
    x = np.asarray(x, 'float64')
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    s = unit @ unit.T
    near = ((x[:, None] - x) ** 2).sum(-1) / x.shape[1]
    out, some = [], False
    for i in range(len(x)):
        P = [j for j in range(len(x)) if j != i and labels[j] == labels[i]]
        Q = [j for j in range(len(x)) if labels[j] != labels[i]]
        some |= bool(P and Q)
        if kind in ('ms', 'mined'):
            if kind == 'mined':
                P, Q = (
                    [p for p in P if Q and s[i, p] - 0.1 < s[i, Q].max()],
                    [q for q in Q if P and s[i, q] + 0.1 > s[i, P].min()],
                )
            out.append(
                np.log1p(np.exp(-2 * (s[i, P] - 0.5)).sum()) / 2
                + np.log1p(np.exp(50 * (s[i, Q] - 0.5)).sum()) / 50
            )
        elif P and Q:
            if kind == 'supcon':
                out.append(np.log(np.exp(s[i, P + Q] / 0.1).sum()) - s[i, P].mean() / 0.1)
            else:
                w = np.exp(-near[i, Q] / 0.03)
                out.append(
                    -np.log(1 - near[i, P] + 1e-8).mean()
                    - 0.05 * (w / w.sum() * np.log(near[i, Q] + 1e-8)).sum()
                )
    return np.mean(out) if some else 0.0


@quick
@given(
    st.sampled_from(['supcon', 'ms', 'mined', 'lossless']),
    st.lists(st.integers(0, 3), min_size=2, max_size=10),
    st.integers(2, 5),
    st.integers(0, 2**31),
)
def test_against_the_formula(kind, labels, d, seed):
    x = np.random.default_rng(seed).random((len(labels), d))
    value, grad = with_gradient(LOSSES[kind](dtype='float64'), labels, x)
    expect = by_formula(kind, x, labels)
    assert (
        value == pytest.approx(expect, rel=1e-6, abs=1e-9)
        and np.isfinite(grad).all()
        and (expect or (grad == 0).all())
    )
    assert with_gradient(LOSSES[kind](), labels, x.astype('float32'))[0] == pytest.approx(
        by_formula(kind, x.astype('float32'), labels), rel=2e-5, abs=1e-6
    )


@pytest.mark.parametrize('kind', ['supcon', 'ms', 'lossless'])
def test_gradient_by_finite_differences(kind):
    rng = np.random.default_rng(3)
    x, labels, move = rng.random((10, 3)), np.repeat([0, 1, 2], [4, 3, 3]), rng.normal(size=(10, 3))
    # the shares of the weighted loss are not differentiated: at t = infinity they are constant
    loss = LOSSES[kind](dtype='float64', **(dict(temperature=1e9) if kind == 'lossless' else {}))
    _, grad = with_gradient(loss, labels, x)
    up, down = (float(loss(labels, x + s * move)) for s in (1e-6, -1e-6))
    assert (grad * move).sum() == pytest.approx((up - down) / 2e-6, rel=1e-4)


@pytest.mark.parametrize(
    'key, loss',
    [
        ('supcon|0.1', SupConLoss()),
        ('supcon|0.5', SupConLoss(0.5)),
        ('ms|all', MultiSimilarityLoss()),
        ('ms|other', MultiSimilarityLoss(5.0, 20.0, 0.2)),
        ('ms|mined', MultiSimilarityLoss(mining=0.1)),
    ],
)
def test_equals_pytorch_metric_learning(key, loss):
    value, grad = with_gradient(loss, referee['labels'], referee['x'].astype('float32'))
    assert value == pytest.approx(referee[key][0], rel=1e-5)
    np.testing.assert_allclose(grad.ravel(), referee[key][1:], rtol=1e-5, atol=1e-6)


def test_all_pairs_is_the_plain_lossless_loss():
    x, labels = (
        np.random.default_rng(0).random((12, 4)).astype('float32'),
        np.repeat(np.arange(4), 3),
    )
    for N in (None, 6):
        a, ga = with_gradient(WeightedLosslessLoss(push=1.0, temperature=1e7, N=N), labels, x)
        b, gb = with_gradient(BatchTripletLoss('all', kind='lossless', N=N), labels, x)
        assert a == pytest.approx(b, rel=1e-5)
        np.testing.assert_allclose(ga, gb, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('kind', LOSSES)
@pytest.mark.parametrize(
    'labels', [[0] * 6, list(range(6)), [0]], ids=('one product', 'one photo each', 'one photo')
)
def test_no_valid_triplet(kind, labels):
    x = np.random.default_rng(0).random((len(labels), 4)).astype('float32')
    for loss in (LOSSES[kind](), CrossBatchMemory(LOSSES[kind](), 9)):
        value, grad = with_gradient(loss, labels, x)
        assert value == 0 and (grad == 0).all()


@pytest.mark.parametrize('xla', (False, True), ids=('graph', 'xla'))
@pytest.mark.parametrize('kind', LOSSES)
def test_degenerate_codes(kind, xla):
    "All equal, all zero, two equal among others: finite."
    labels = np.repeat([0, 1], 4)
    x = np.random.default_rng(0).random((8, 5)).astype('float32')
    x[1], x[4] = x[0], x[0]
    loss = tf.function(LOSSES[kind](), jit_compile=xla)
    for embeddings in (x, x * 0 + 0.3, x * 0):
        value, grad = with_gradient(loss, labels, embeddings)
        assert np.isfinite(value) and np.isfinite(grad).all()


def test_nan_is_not_hidden():
    x = np.random.default_rng(0).random((8, 3)).astype('float32')
    x[2, 1] = np.nan
    for kind in ('supcon', 'ms', 'lossless'):
        assert np.isnan(float(LOSSES[kind]()(np.repeat([0, 1], 4), x)))


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('kind', ['supcon', 'ms', 'lossless'])
def test_half_precision_codes(kind, dtype):
    x = tf.cast(np.random.default_rng(0).random((12, 8)), dtype)
    labels = np.repeat(np.arange(4), 3)
    value, grad = with_gradient(LOSSES[kind](), labels, x)
    assert value == pytest.approx(by_formula(kind, tf.cast(x, 'float64').numpy(), labels), rel=1e-5)
    assert grad.dtype == x.dtype.as_numpy_dtype and np.isfinite(grad.astype('float32')).all()


@pytest.mark.parametrize(
    'make, word',
    [
        (lambda: SupConLoss(-1), 'temperature=-1'),
        (lambda: MultiSimilarityLoss(beta=0), 'beta=0'),
        (lambda: WeightedLosslessLoss(temperature=0), 'temperature=0'),
        (lambda: WeightedLosslessLoss(epsilon=0), 'epsilon=0'),
        (lambda: CrossBatchMemory(SupConLoss(), 0), 'size=0'),
        (lambda: CrossBatchMemory(keras.losses.Hinge()), 'Hinge'),
        (lambda: SupConLoss()([0, 1, 2], np.zeros((4, 2), 'float32')), '3 labels for 4 embeddings'),
        (lambda: SupConLoss()(None, np.zeros((4, 2))), 'needs the labels'),
        (lambda: SupConLoss()(np.eye(4), np.zeros((4, 2))), 'argmax'),
        (lambda: SupConLoss()([0, 1], np.zeros((2, 3, 4))), 'embeddings must have shape'),
    ],
)
def test_wrong_settings(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_reductions_and_weights():
    x, labels = np.random.default_rng(1).random((9, 3)).astype('float32'), np.repeat([0, 1, 2], 3)
    for kind, make in LOSSES.items():
        each = make(reduction=None)(labels, x).numpy()
        assert each.shape == (9,)
        assert float(make()(labels, x)) == pytest.approx(each.mean(), rel=1e-6) and float(
            make(reduction='sum')(labels, x)
        ) == pytest.approx(each.sum(), rel=1e-6)
        assert float(make()(labels, x, sample_weight=np.eye(9)[4])) == pytest.approx(
            each[4] / 9, rel=1e-6
        )


# ---- the memory


def feed(loss, batches):
    out = []
    for labels, x in batches:
        out.append(with_gradient(loss, labels, tf.constant(x, tf.float32))[0])
    return out


@pytest.mark.parametrize(
    'name, loss',
    [
        ('supcon', SupConLoss()),
        ('ms', MultiSimilarityLoss()),
        ('triplet', BatchTripletLoss('nonzero', margin=0.4)),
    ],
)
def test_memory_equals_pytorch_metric_learning(name, loss):
    rows = referee['order'].reshape(5, 6)
    values = feed(
        CrossBatchMemory(loss, 12), [(referee['labels'][i], referee['x'][i]) for i in rows]
    )
    np.testing.assert_allclose(values, referee[f'memory|{name}'], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'loss',
    [
        SupConLoss(),
        MultiSimilarityLoss(mining=0.1),
        WeightedLosslessLoss(),
        *(
            BatchTripletLoss(m, kind=k)
            for m in ('semihard', 'all', 'hard')
            for k in ('classic', 'lossless')
        ),
    ],
    ids=lambda l: f'{l.name} {getattr(l, "mining", "")} {getattr(l, "kind", "")}',
)
def test_memory_is_a_larger_batch(loss):
    "The last batch costs what it costs in one batch of all; no gradient to what is remembered."
    rng = np.random.default_rng(0)
    x, labels = rng.random((18, 4)).astype('float32'), np.tile([0, 1, 2], 6)
    loss = type(loss).from_config({**loss.get_config(), 'reduction': 'sum'})
    memory = CrossBatchMemory(loss, 100)
    feed(memory, [(labels[i : i + 6], x[i : i + 6]) for i in (0, 6)])
    value, grad = with_gradient(memory, labels[12:], x[12:])
    order = np.r_[12:18, 6:12, 0:6]
    flat = type(loss).from_config({**loss.get_config(), 'reduction': None})

    def whole(t):
        return flat.compute(
            t, PairMask.from_labels(labels[12:], labels[order[6:]]), tf.constant(x[order[6:]])
        )

    t = tf.constant(x[12:])
    with tf.GradientTape() as tape:
        tape.watch(t)
        total = tf.reduce_sum(whole(t))
    assert value == pytest.approx(float(total), rel=1e-5)
    np.testing.assert_allclose(grad, tape.gradient(total, t), rtol=1e-5, atol=1e-7)
    each = flat(labels[order], x[order]).numpy()[:6]  # no memory at all: one batch of eighteen
    if isinstance(loss, (SupConLoss, WeightedLosslessLoss)):
        assert value == pytest.approx(each.sum(), rel=1e-4)


def test_memory_is_a_queue():
    memory = CrossBatchMemory(SupConLoss(), 5)
    feed(memory, [([i, i], [[i, 1.0], [i, 2.0]]) for i in range(2)])
    assert int(memory.filled) == 4 and memory.labels.numpy().tolist() == [1, 1, 0, 0, 0]
    feed(memory, [([7] * 9, np.arange(18.0).reshape(9, 2))])  # a batch larger than the memory
    assert int(memory.filled) == 5 and memory.embeddings.numpy()[:, 0].tolist() == [0, 2, 4, 6, 8]
    memory.forget()
    assert int(memory.filled) == 0


@pytest.mark.parametrize('xla', (False, True), ids=('graph', 'xla'))
def test_fit_remembers_and_evaluate_does_not(xla):
    x = np.random.default_rng(0).random((24, 5)).astype('float32')
    labels = np.repeat(np.arange(6), 4)
    net = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)])
    loss = CrossBatchMemory(SupConLoss(), 16)
    net.compile('adam', loss, jit_compile=xla)
    net.fit(x, labels, batch_size=8, epochs=2, shuffle=False, verbose=0)
    kept = loss.embeddings.numpy()
    assert int(loss.filled) == 16 and loss.labels.numpy().tolist() == [*labels[16:], *labels[8:16]]
    net.evaluate(x, labels, batch_size=8, verbose=0)
    np.testing.assert_array_equal(kept, loss.embeddings.numpy())
    again = keras.models.clone_model(net)
    again.compile(
        'adam', keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    )
    assert again.loss.get_config() == loss.get_config() and again.loss.embeddings is None


def test_fit_save_and_reopen(tmp_path):
    x = np.random.default_rng(0).random((24, 5)).astype('float32')
    labels = np.repeat(np.arange(6), 4)
    for i, loss in enumerate(
        (
            SupConLoss(0.2),
            MultiSimilarityLoss(mining=0.1),
            WeightedLosslessLoss(push=0.1, N=8),
            CrossBatchMemory(BatchTripletLoss('all'), 30),
        )
    ):
        net = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8, activation='sigmoid')])
        net.compile(keras.optimizers.Adam(0.01), loss)
        history = net.fit(x, labels, batch_size=24, epochs=4, verbose=0).history['loss']
        assert i == 3 or history[-1] < history[0]
        net.save(tmp_path / f'{i}.keras')
        again = keras.models.load_model(tmp_path / f'{i}.keras')
        assert again.loss.get_config() == loss.get_config()


def test_memory_takes_labels_of_another_integer_type():
    memory = CrossBatchMemory(SupConLoss(), 9)
    feed(memory, [(np.array([0, 0, 1], t), np.eye(3)) for t in ('int32', 'int64', 'uint8')])
    assert memory.labels.numpy().tolist() == [0, 0, 1] * 3


# what holds for every loss over a labelled batch

EVERY = {
    f'{mining} {kind}': partial(BatchTripletLoss, mining, kind)
    for mining in ('semihard', 'all', 'nonzero', 'hard', 'easy')
    for kind in ('classic', 'lossless')
} | LOSSES
every = pytest.mark.parametrize('make', EVERY.values(), ids=EVERY)
IDS, X = np.repeat(np.arange(4), 3), np.random.default_rng(0).random((12, 8)).astype('float32')


@every
@pytest.mark.parametrize('rows', [slice(None), slice(2, 3)], ids=['all rows', 'one row'])
def test_a_network_that_gives_nan_shows_a_nan_loss(make, rows):
    x = X.copy()
    x[rows] = np.nan
    assert np.isnan(float(make()(IDS, x)))
    assert np.isnan(float(CrossBatchMemory(make(), 4)(IDS, x)))
    each = make(reduction=None)(IDS, x).numpy()
    assert np.isnan(each[rows]).all()


@pytest.mark.parametrize('kind', ['ms', 'mined', 'supcon'])
def test_infinite_codes_show_a_nan_loss(kind):
    x = X.copy()
    x[5, 1] = np.inf
    assert np.isnan(float(LOSSES[kind]()(IDS, x)))


def test_terminate_on_nan_fires():
    net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    net.compile('sgd', MultiSimilarityLoss(mining=0.1))
    net.set_weights([np.full_like(w, np.nan) for w in net.get_weights()])
    history = net.fit(
        X, IDS, batch_size=12, epochs=5, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()]
    ).history['loss']
    assert len(history) == 1 and np.isnan(history[0])


@every
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'mixed_float16'])
def test_a_loss_of_half_precision_is_computed_in_float32(make, dtype):
    whole, half = make()(IDS, X), make(dtype=dtype)
    value = half(IDS, X)
    assert value.dtype == {'mixed_float16': 'float16'}.get(dtype, dtype)
    assert float(value) == pytest.approx(float(whole), rel=2**-8 if dtype == 'bfloat16' else 2**-11)
    again = type(half).from_config(half.get_config())
    assert again(IDS, X).dtype == value.dtype and float(again(IDS, X)) == float(value)


@every
@pytest.mark.parametrize('reduction', [None, 'mean'])
def test_an_empty_batch_gives_what_keras_gives(make, reduction):
    ids, embeddings = np.zeros(0, 'int64'), np.zeros((0, 8), 'float32')
    keras_own, loss = keras.losses.MeanSquaredError(reduction=reduction), make(reduction=reduction)
    for own in (loss, CrossBatchMemory(make(reduction=reduction), 4)):
        np.testing.assert_array_equal(own(ids, embeddings), keras_own(embeddings, embeddings))
    rows = tf.TensorSpec((None, 8))
    graph = tf.function(loss, input_signature=[tf.TensorSpec((None,), tf.int64), rows])
    np.testing.assert_array_equal(
        graph(ids, embeddings),
        tf.function(keras_own, input_signature=[rows, rows])(embeddings, embeddings),
    )
    assert np.isfinite(graph(IDS, X)).all()


EAN = 4006381333931
SAME_PRODUCTS = {
    'EAN codes that differ by 2**32': np.array([EAN, EAN + 2**32, 5, 6])[IDS],
    'neighbours above 2**53': (2**53 + np.arange(4))[IDS],
    'a list': [EAN + i for i in IDS.tolist()],
    'text': [f'n{i}' for i in IDS],
    'whole floats': (EAN + IDS).astype('float64'),
    'a tensor of floats': tf.constant(IDS + 2**24 - 9, tf.float32),
    'a column': pd.Series(IDS, dtype='Int64'),
    'objects': np.array([EAN + int(i) for i in IDS], object),
    'bytes': [f'{i}'.encode() for i in IDS],
    'one column': (EAN + IDS)[:, None],
    'both Unicode forms': [
        ('Cafe\u0301' if k % 2 else 'Caf\u00e9') + str(i) for k, i in enumerate(IDS)
    ],
}


@pytest.mark.parametrize('labels', SAME_PRODUCTS.values(), ids=SAME_PRODUCTS)
@pytest.mark.parametrize('kind', ['supcon', 'hard classic'])
def test_labels_of_any_kind_are_the_same_products(labels, kind):
    assert float(EVERY[kind]()(labels, X)) == float(EVERY[kind]()(IDS, X))


@pytest.mark.parametrize(
    'dtype,large', [('float16', 2**11), ('bfloat16', 2**8), ('float32', 2**24), ('float64', 2**53)]
)
def test_floats_that_merge_labels_are_refused(dtype, large):
    labels = tf.cast(tf.constant(IDS), dtype)
    assert float(SupConLoss()(labels, X)) == float(SupConLoss()(IDS, X))
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=f'labels of type {dtype} must be whole numbers below {large:,}.*give them as int64',
    ):
        SupConLoss()(labels + tf.cast(large, dtype), X)
    with pytest.raises(tf.errors.InvalidArgumentError, match='must be whole numbers'):
        tf.function(SupConLoss())(labels + tf.cast(0.5, dtype), X)


@pytest.mark.parametrize(
    'labels',
    [[0.5] * 12, [2**64 + i for i in range(12)], [*'aaa', *range(9)]],
    ids=['halves', 'beyond int64', 'text and numbers'],
)
def test_labels_that_mean_nothing_name_themselves(labels):
    with pytest.raises(ValueError, match='^labels'):
        SupConLoss()(labels, X)


UNKNOWN = {
    'NaN': [0, 0, 1, 1, np.nan, np.nan],
    'a tensor of NaN': tf.constant([0, 0, 1, 1, np.nan, np.nan]),
    'None': [0, 0, 1, 1, None, None],
    '-1': [0, 0, 1, 1, -1, -1],
    'no text': ['a', 'a', 'b', 'b', '', None],
    'pandas': pd.array([0, 0, 1, 1, None, None], 'Int64'),
}


@every
def test_photos_of_unknown_products_are_in_no_pair(make):
    known, all_six = (
        make(reduction='sum')(IDS[[0, 1, 3, 4]], X[:4]),
        make(reduction='sum')(UNKNOWN['NaN'], X[:6]),
    )
    scale = (
        1 if make in (LOSSES['ms'], LOSSES['mined']) else 6 / 4
    )  # the others count per anchor of the batch
    assert float(all_six) == pytest.approx(float(known) * scale, rel=1e-5)


@pytest.mark.parametrize('labels', UNKNOWN.values(), ids=UNKNOWN)
def test_a_missing_label_is_no_product(labels):
    assert float(SupConLoss(reduction='sum')(labels, X[:6])) == pytest.approx(
        float(SupConLoss(reduction='sum')(IDS[[0, 1, 3, 4]], X[:4])) * 6 / 4, rel=1e-5
    )


def test_the_memory_pairs_no_unknown_products():
    memory = CrossBatchMemory(SupConLoss(), 6)
    with_gradient(memory, UNKNOWN['NaN'], X[:6])
    assert memory.labels.numpy().tolist() == [0, 0, 1, 1, -1, -1]
    one = CrossBatchMemory(SupConLoss(), 4)
    with_gradient(one, [0, 0, 1, 1], X[:4])
    assert float(memory([0, 1, 2], X[6:9])) == pytest.approx(
        float(one([0, 1, 2], X[6:9])), rel=1e-6
    )


def test_the_memory_keeps_labels_whole():
    "The first batch has small ids; those of the second would be equal in 32 bits."
    memory = CrossBatchMemory(SupConLoss(), 8)
    with_gradient(memory, np.array([0, 0, 1, 1], 'int32'), X[:4])
    with_gradient(memory, np.array([EAN, EAN, EAN + 2**32, EAN + 2**32]), X[4:8])
    assert memory.labels.numpy().tolist() == [EAN, EAN, EAN + 2**32, EAN + 2**32, 0, 0, 1, 1]
    with_gradient(memory, tf.constant([7.0, 7.0, 8.0, 8.0]), X[8:])
    assert memory.labels.numpy()[:4].tolist() == [7, 7, 8, 8]


@pytest.mark.parametrize(
    'make, name',
    [
        (lambda v: BatchTripletLoss(margin=v), 'margin'),
        (lambda v: SupConLoss(v), 'temperature'),
        (lambda v: MultiSimilarityLoss(alpha=v), 'alpha'),
        (lambda v: MultiSimilarityLoss(base=v), 'base'),
        (lambda v: MultiSimilarityLoss(mining=v), 'mining'),
        (lambda v: WeightedLosslessLoss(push=v), 'push'),
        (lambda v: WeightedLosslessLoss(N=v), 'N'),
        (lambda v: WeightedLosslessLoss(epsilon=v), 'epsilon'),
        (lambda v: CrossBatchMemory(SupConLoss(), v), 'size'),
        (lambda v: BatchTripletLoss(kind='lossless', N=v), 'N'),
    ],
)
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, -2, '1'])
def test_settings_that_mean_nothing_are_named(make, name, value):
    with pytest.raises(ValueError, match=f'^{name}='):
        make(value)


# ---- the memory's own settings


@pytest.mark.parametrize('reduction', ['sum', 'sum_over_batch_size', 'none', None])
def test_the_memory_has_a_reduction_and_a_type_of_its_own(reduction):
    x, labels = np.random.default_rng(0).random((6, 3)), np.repeat([0, 1], 3)
    inner = SupConLoss(reduction='sum', dtype='float64')
    loss = CrossBatchMemory(inner, 5, reduction=reduction, dtype='float16')
    value = loss(labels, x)
    expect = SupConLoss(reduction=reduction, dtype='float64')(labels, x)
    assert value.dtype == 'float16' and value.shape == expect.shape
    kept = CrossBatchMemory(inner, 5)
    assert kept(labels, x).dtype == 'float64' and kept.reduction == 'sum'
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config() and again.reduction == loss.reduction


def test_a_memory_refuses_embeddings_of_another_length():
    loss = CrossBatchMemory(SupConLoss(), 5)
    loss.build(4)
    with pytest.raises(ValueError, match='length 4, and was given some of length 3'):
        loss([0, 0, 1], np.eye(3))


# ---- two sets


@pytest.mark.parametrize(
    'key, loss',
    [
        ('supcon', SupConLoss()),
        ('triplet', BatchTripletLoss('nonzero', margin=0.4)),
        ('ms', MultiSimilarityLoss()),
    ],
)
def test_across_sets_equals_pytorch_metric_learning(key, loss):
    "Its ref_emb: queries are anchors, the gallery is what they are compared with."
    labels, is_query = across['labels'], across['is_query']
    y = np.stack([labels, np.where(is_query, 0, 1)], 1)
    value, grad = with_gradient(AcrossSets(loss, anchors=0), y, across['x'].astype('float32'))
    # multi-similarity is a mean over all photos of the batch here, over the anchors there
    share = len(labels) / is_query.sum() if key == 'ms' else 1
    assert value * share == pytest.approx(across[f'across|{key}'][0], rel=1e-5)
    np.testing.assert_allclose(
        grad.ravel() * share, across[f'across|{key}'][1:], rtol=1e-4, atol=1e-6
    )


def test_pairs_across_sets_by_hand():
    pairs = PairMask.from_labels(['a', 'a', 'b', 'a']).across(['q', 'g', 'g', 'q'])
    assert pairs.positive.numpy().astype(int).tolist() == [
        [0, 1, 0, 0],
        [1, 0, 0, 1],
        [0, 0, 0, 0],
        [0, 1, 0, 0],
    ]
    assert pairs.negative.numpy().astype(int).tolist() == [
        [0, 0, 1, 0],
        [0, 0, 0, 0],
        [1, 0, 0, 1],
        [0, 0, 1, 0],
    ]
    one_way = PairMask.from_labels(['a', 'a', 'b', 'a']).across(['q', 'g', 'g', None], anchors='q')
    assert one_way.positive.numpy().sum() == 1 and one_way.negative.numpy().sum() == 1


@pytest.mark.parametrize(
    'make',
    [SupConLoss, MultiSimilarityLoss, WeightedLosslessLoss, lambda: BatchTripletLoss('hard')],
)
def test_pairs_within_a_set_do_not_count(make):
    "What two photos of one set have to do with each other changes nothing."
    labels, roles = [0, 1, 0, 1], [0, 0, 1, 1]
    y = np.stack([labels, roles], 1)
    x = np.random.default_rng(0).random((4, 3)).astype('float32')
    loss = AcrossSets(make())
    value = float(loss(y, x))
    assert value > 0 and value == pytest.approx(
        float(loss(y[[0, 3, 2, 1]], x[[0, 3, 2, 1]])), rel=1e-5
    )
    texts = np.array([['a', 'shop'], ['b', 'shop'], ['a', 'street'], ['b', 'street']])
    assert float(loss(texts, x)) == pytest.approx(value, rel=1e-6)
    assert float(loss(np.stack([labels, [0] * 4], 1), x)) == 0  # one set only


@pytest.mark.parametrize('xla', [False, True], ids=['graph', 'xla'])
def test_fit_across_sets_save_and_reopen(xla, tmp_path):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels, roles = np.repeat(np.arange(6), 4), np.tile([0, 1], 12)
    x = (rng.normal(size=(6, 5))[labels] + 2.0 * roles[:, None]).astype('float32')
    net = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)])
    loss = AcrossSets(SupConLoss(), anchors=0)
    net.compile(keras.optimizers.Adam(0.03), loss, jit_compile=xla)
    history = net.fit(x, np.stack([labels, roles], 1), batch_size=24, epochs=20, verbose=0).history[
        'loss'
    ]
    assert history[-1] < 0.8 * history[0]
    net.save(tmp_path / 'net.keras')
    again = keras.models.load_model(tmp_path / 'net.keras')
    assert again.loss.get_config() == loss.get_config() and again.loss.anchors == 0


@pytest.mark.parametrize(
    'make, word',
    [
        (
            lambda: AcrossSets(SupConLoss())([0, 0, 1], np.eye(3)),
            r'needs labels and roles, shape \(b, 2\)',
        ),
        (lambda: AcrossSets(CrossBatchMemory(SupConLoss())), 'CrossBatchMemory is not'),
        (lambda: CrossBatchMemory(AcrossSets(SupConLoss())), 'AcrossSets is not'),
        (lambda: AcrossSets(keras.losses.MeanSquaredError()), 'MeanSquaredError is not'),
        (
            lambda: AcrossSets(SupConLoss(), anchors='query')([[0, 0], [0, 1]], np.eye(2)),
            "anchors='query'",
        ),
    ],
)
def test_across_sets_refuses(make, word):
    with pytest.raises(ValueError, match=word):
        make()
