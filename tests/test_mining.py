"In-batch mining against brute force and pytorch-metric-learning's figures; empty batches."

from pathlib import Path
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
import tensorflow as tf, keras
from learning import with_gradient
from triplet_fashion.contrastive import SupConLoss
from triplet_fashion.mining import BatchTripletLoss, mined_triplets, pairwise_distances

quick = settings(max_examples=30, deadline=None, derandomize=True)
MINING = ('semihard', 'semihard-nearest', 'all', 'nonzero', 'hard', 'easy')
referee = np.load(Path(__file__).parent / 'referees' / 'mining.npz')


def one_negative(d, d_ap, Q):
    "The nearest negative beyond the positive; the farthest of all where none is."
    beyond = [j for j in Q if d[j] > d_ap]
    if beyond:
        return [min(beyond, key=lambda j: d[j])]
    return [max(Q, key=lambda j: d[j])] if Q else []


def brute_force(
    x, labels, mining, margin, kind='classic', soft=False, squared=False, N=None, beta=None
):
    "Mean over the chosen triplets in float64, each looked at; and their number."
    x = np.asarray(x, 'float64')
    near = ((x[:, None] - x) ** 2).sum(-1)
    d = near if squared else near**0.5
    N = N or x.shape[1]
    beta = beta or N
    total = count = 0
    for i in range(len(x)):
        P = [j for j in range(len(x)) if j != i and labels[j] == labels[i]]
        Q = [j for j in range(len(x)) if labels[j] != labels[i]]
        if mining in ('hard', 'easy') and P and Q:
            P, Q = (
                [(max if mining == 'hard' else min)(P, key=lambda j: d[i, j])],
                [min(Q, key=lambda j: d[i, j])],
            )
        for p in P:
            for n in one_negative(d[i], d[i, p], Q) if mining == 'semihard-nearest' else Q:
                gap = d[i, p] - d[i, n]
                if (
                    mining == 'nonzero'
                    and not gap + margin > 0
                    or mining == 'semihard'
                    and not -margin < gap < 0
                ):
                    continue
                count += 1
                if kind == 'lossless':
                    total += -np.log(1 - near[i, p] / beta + 1e-8) - np.log(
                        1 - (N - near[i, n]) / beta + 1e-8
                    )
                else:
                    total += np.log1p(np.exp(gap)) if soft else max(0, gap + margin)
    return (total / count if count else 0.0), count


@quick
@given(
    st.sampled_from(MINING),
    st.lists(st.integers(0, 3), min_size=1, max_size=9),
    st.integers(1, 4),
    st.floats(0.01, 1),
    st.integers(0, 2**31),
    st.sampled_from(
        [
            {},
            dict(soft=True),
            dict(squared=True),
            dict(kind='lossless'),
            dict(kind='lossless', squared=True, N=5, beta=7),
        ]
    ),
)
def test_against_brute_force(mining, labels, d, margin, seed, kw):
    x = np.random.default_rng(seed).random((len(labels), d))
    expect, count = brute_force(x, labels, mining, margin, **kw)
    value, grad = with_gradient(
        BatchTripletLoss(mining, margin=margin, dtype='float64', **kw), labels, x
    )
    assert value == pytest.approx(expect, rel=1e-6, abs=1e-9)
    assert np.isfinite(grad).all() and (count or (grad == 0).all())
    single, grad32 = with_gradient(
        BatchTripletLoss('all', margin=margin, **kw), labels, x.astype('float32')
    )
    assert single == pytest.approx(
        brute_force(x.astype('float32'), labels, 'all', margin, **kw)[0], rel=1e-5, abs=2e-6
    )
    assert np.isfinite(grad32).all()


@pytest.mark.parametrize('mining', MINING)
@pytest.mark.parametrize(
    'kw',
    [{}, dict(soft=True), dict(squared=True), dict(kind='lossless'), dict(kind='lossless', N=9)],
    ids=str,
)
def test_gradient_by_finite_differences(mining, kw):
    rng = np.random.default_rng(3)
    x, labels, move = rng.random((10, 3)), np.repeat([0, 1, 2], [4, 3, 3]), rng.normal(size=(10, 3))
    _, grad = with_gradient(BatchTripletLoss(mining, margin=0.3, dtype='float64', **kw), labels, x)
    up, down = (brute_force(x + s * move, labels, mining, 0.3, **kw)[0] for s in (1e-6, -1e-6))
    assert (grad * move).sum() == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize('key', [k for k in referee.files if '|' in k])
def test_equals_pytorch_metric_learning(key):
    mining, soft, squared = key.split('|')
    loss = BatchTripletLoss(
        mining, margin=float(referee['margin']), soft=soft == '1', squared=squared == '1'
    )
    value, grad = with_gradient(loss, referee['labels'], referee['x'].astype('float32'))
    assert value == pytest.approx(referee[key][0], rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(grad.ravel(), referee[key][1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('mining', MINING)
@pytest.mark.parametrize('kw', [{}, dict(soft=True), dict(kind='lossless')], ids=str)
@pytest.mark.parametrize(
    'labels', [[0] * 6, list(range(6)), [0]], ids=('one product', 'one photo each', 'one photo')
)
def test_no_valid_triplet(mining, kw, labels):
    x = np.random.default_rng(0).random((len(labels), 4)).astype('float32')
    value, grad = with_gradient(BatchTripletLoss(mining, **kw), labels, x)
    assert value == 0 and (grad == 0).all()


@pytest.mark.parametrize('xla', (False, True), ids=('graph', 'xla'))
@pytest.mark.parametrize('mining', MINING)
def test_identical_embeddings(mining, xla):
    x, labels = np.full((8, 5), 0.3, 'float32'), np.repeat([0, 1], 4)
    for kw, level in (
        ({}, 0.2),
        (dict(kind='lossless'), -np.log(1e-8)),
        (dict(soft=True), np.log(2)),
        (dict(squared=True), 0.2),
    )[: 1 if xla else 4]:
        loss = BatchTripletLoss(mining, **kw)
        value, grad = with_gradient(tf.function(loss, jit_compile=xla) if xla else loss, labels, x)
        assert value == pytest.approx(0 if mining == 'semihard' else level, rel=1e-6)
        assert (grad == 0).all()


@pytest.mark.parametrize('kind', ('classic', 'lossless'))
def test_two_equal_photos_among_others(kind):
    x = np.random.default_rng(0).random((8, 5)).astype('float32')
    x[1], x[4] = x[0], x[0]  # as positive and as negative
    for mining in MINING:
        value, grad = with_gradient(BatchTripletLoss(mining, kind=kind), np.repeat([0, 1], 4), x)
        assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize('mining', MINING)
def test_xla_and_unknown_batch_size(mining):
    rng = np.random.default_rng(0)
    x, labels = rng.random((18, 7)).astype('float32'), np.repeat(np.arange(6), 3)
    for kw in ({}, dict(kind='lossless'))[: 2 if mining == 'nonzero' else 1]:
        loss = BatchTripletLoss(mining, **kw)
        expect = with_gradient(loss, labels, x)

        @tf.function(
            input_signature=[tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None, 7), tf.float32)]
        )
        def graph(l, x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = loss(l, x)
            return value, tape.gradient(value, x)

        for run in (graph, tf.function(graph.python_function, jit_compile=True)):
            value, grad = run(tf.constant(labels, tf.int64), tf.constant(x))
            assert float(value) == pytest.approx(expect[0], rel=1e-5)
            np.testing.assert_allclose(grad, expect[1], rtol=1e-4, atol=1e-6)


def test_lossless_at_the_corners():
    "Equal embeddings, opposite corners and the float32 neighbours of both, against float64."
    x = np.array([[0, 0], [1e-9, 0], [1, 1], [1, 1 - 6e-8], [0, 1e-4], [1, 1]], 'float32')
    labels = [0, 0, 1, 0, 1, 1]
    value, grad = with_gradient(BatchTripletLoss('all', kind='lossless'), labels, x)
    assert value == pytest.approx(brute_force(x, labels, 'all', 0.2, kind='lossless')[0], rel=1e-6)
    assert np.isfinite(grad).all()


def test_unit_length_codes():
    x = np.random.default_rng(0).normal(size=(12, 16))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype('float32')
    x[1] = -x[0]
    labels = np.repeat(np.arange(4), 3)
    for mining in MINING:
        value, grad = with_gradient(BatchTripletLoss(mining, kind='lossless', N=4), labels, x)
        assert np.isfinite(grad).all() and np.isfinite(value)
    with pytest.raises(tf.errors.InvalidArgumentError, match='N=1'):
        BatchTripletLoss('all', kind='lossless', N=1)(labels, x)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r'must lie in \[0, 1\]'):
        BatchTripletLoss('all', kind='lossless')(labels, x)


def test_mean_is_over_triplets_not_anchors():
    rng = np.random.default_rng(1)
    x, labels = (
        rng.random((9, 3)).astype('float32'),
        np.array([0] * 5 + [1] * 3 + [2]),
    )  # unequal products, one with a single photo
    loss = BatchTripletLoss('all')
    each = BatchTripletLoss('all', reduction=None)(labels, x).numpy()
    assert each.shape == (9,) and each[-1] == 0
    assert each.mean() == pytest.approx(brute_force(x, labels, 'all', 0.2)[0], rel=1e-5)
    assert float(BatchTripletLoss('all', reduction='sum')(labels, x)) == pytest.approx(
        each.sum(), rel=1e-6
    )
    assert float(loss(labels, x, sample_weight=np.eye(9)[0])) == pytest.approx(
        each[0] / 9, rel=1e-6
    )


def test_labels_of_every_kind():
    x = np.random.default_rng(0).random((4, 3)).astype('float32')
    expect = float(BatchTripletLoss('hard')([0, 0, 1, 1], x))
    big = 2**40
    for labels in (
        [[0], [0], [1], [1]],
        [256.0, 256.0, 257.0, 257.0],
        np.array([big, big, big + 1, big + 1]),
        ['a', 'a', 'b', 'b'],
        np.array([3, 3, 1, 1], 'uint8'),
    ):
        for dtype in (None, 'bfloat16', 'float16'):
            assert float(BatchTripletLoss('hard', dtype=dtype)(labels, x)) == pytest.approx(
                expect, abs=0.02 if dtype else 1e-7
            )
    for labels, word in ((np.eye(4), 'argmax'), (None, 'labels')):
        with pytest.raises(ValueError, match=word):
            BatchTripletLoss()(labels, x)


def test_half_precision_codes():
    x, labels = np.random.default_rng(0).random((12, 8)), np.repeat(np.arange(4), 3)
    for kind in ('float16', 'bfloat16'):
        xk = tf.cast(x, kind)
        value, grad = with_gradient(BatchTripletLoss('all', kind='lossless'), labels, xk)
        assert value == pytest.approx(
            brute_force(tf.cast(xk, 'float64').numpy(), labels, 'all', 0.2, kind='lossless')[0],
            rel=1e-5,
        )
        assert np.isfinite(grad.astype('float32')).all() and grad.dtype == xk.dtype.as_numpy_dtype


def test_nan_is_not_hidden():
    x = np.random.default_rng(0).random((8, 3)).astype('float32')
    x[2, 1] = np.nan
    for mining in MINING:
        assert np.isnan(float(BatchTripletLoss(mining)(np.repeat([0, 1], 4), x)))


@pytest.mark.parametrize(
    'kw, word',
    [
        (dict(mining='softhard'), 'softhard'),
        (dict(kind='L2'), 'L2'),
        (dict(kind='lossless', soft=True), 'soft'),
        (dict(kind='lossless', N=4, beta=2), 'beta=2'),
        (dict(kind='lossless', epsilon=0), 'epsilon'),
    ],
)
def test_wrong_settings(kw, word):
    with pytest.raises(ValueError, match=word):
        BatchTripletLoss(**kw)


def test_fit_save_and_reopen(tmp_path):
    x = np.random.default_rng(0).random((24, 5)).astype('float32')
    labels = np.repeat(np.arange(6), 4)
    net = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8, activation='sigmoid')])
    for i, loss in enumerate(
        (
            BatchTripletLoss('nonzero', margin=0.3, soft=True),
            BatchTripletLoss('hard', kind='lossless', beta=9.0),
        )
    ):
        net.compile('adam', loss)
        history = net.fit(x, labels, batch_size=24, epochs=3, verbose=0).history['loss']
        assert history[-1] < history[0]
        net.save(tmp_path / f'{i}.keras')
        again = keras.models.load_model(tmp_path / f'{i}.keras')
        assert again.loss.get_config() == loss.get_config()
        assert again.evaluate(x, labels, batch_size=24, verbose=0) == net.evaluate(
            x, labels, batch_size=24, verbose=0
        )


def test_distances_are_exact_for_close_pairs():
    u = np.random.default_rng(0).random((1, 128)).astype('float32')
    v = u + np.float32(1e-4)
    assert pairwise_distances(u, v).numpy()[0, 0] == pytest.approx(
        ((u.astype('f8') - v) ** 2).sum(), rel=1e-6
    )
    w = np.zeros((2, 128), 'float32')
    w[1, 3] = 1e-3
    assert pairwise_distances(w).numpy()[0, 1] == pytest.approx(1e-6, rel=1e-6)


@quick
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31), st.booleans()
)
def test_distances_and_gradients(n, m, d, seed, squared):
    rng = np.random.default_rng(seed)
    x, y, G = rng.normal(size=(n, d)), rng.normal(size=(m, d)), rng.normal(size=(n, m))
    tx, ty = tf.constant(x), tf.constant(y)
    with tf.GradientTape() as tape:
        tape.watch([tx, ty])
        D = pairwise_distances(tx, ty, squared=squared)
        total = tf.reduce_sum(D * G)
    diff = x[:, None] - y
    near = (diff**2).sum(-1)
    np.testing.assert_allclose(D, near if squared else near**0.5, rtol=1e-9, atol=1e-12)
    W = 2 * G if squared else G / near**0.5
    for g, expect in zip(
        tape.gradient(total, [tx, ty]),
        ((W[..., None] * diff).sum(1), -(W[..., None] * diff).sum(0)),
    ):
        np.testing.assert_allclose(
            g, expect, rtol=1e-7, atol=1e-7 * np.abs(W).max() * np.abs(diff).max() * max(n, m)
        )


def test_distances_refuse():
    for args, word in (
        ((np.zeros(3, 'float32'),), r'\(3,\)'),
        ((np.zeros((2, 3)), np.zeros((2, 4))), 'length 3'),
    ):
        with pytest.raises(ValueError, match=word):
            pairwise_distances(*args)
    assert pairwise_distances(np.zeros((0, 3), 'float32'), np.zeros((2, 3), 'float32')).shape == (
        0,
        2,
    )


def test_large_batch_stays_in_blocks():
    "1,024 embeddings of length 128: the tensor of all differences alone would be 512 MB."
    rng = np.random.default_rng(0)
    x = rng.random((1024, 128)).astype('float32')
    labels = np.repeat(np.arange(128), 8)
    resource = pytest.importorskip('resource')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    value, grad = with_gradient(BatchTripletLoss('semihard'), labels, x)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert np.isfinite(value) and np.isfinite(grad).all() and grown < 400, f'{grown:.0f} MB'


# ---- semi-hard as TensorFlow Addons has it


def addons(labels, x, margin=1.0):
    "Its definition, in NumPy: a negative for each pair of one product, by squared distances."
    d = ((x[:, None] - x) ** 2).sum(-1)
    same = labels[:, None] == labels
    total, pairs = 0.0, 0
    for a, p in np.argwhere(same & ~np.eye(len(x), dtype=bool)):
        negatives = d[a][~same[a]]
        outside = negatives[negatives > d[a, p]]
        chosen = outside.min() if outside.size else negatives.max()
        total, pairs = total + max(0.0, margin + d[a, p] - chosen), pairs + 1
    return total / pairs


@quick
@given(st.integers(0, 2**31), st.integers(3, 14), st.floats(0.1, 2))
def test_semihard_nearest_is_that_of_addons(seed, n, margin):
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(n, 3)), np.r_[0, 0, 1, rng.integers(0, 3, n - 3)]
    loss = BatchTripletLoss('semihard-nearest', margin=margin, squared=True, dtype='float64')
    assert float(loss(labels, x)) == pytest.approx(addons(labels, x, margin), rel=1e-9, abs=1e-12)


def test_semihard_nearest_by_hand():
    """On a line: 0 and 1 are coats; hats at 0.5, 1.1 and 3.

    Anchor 0, positive at distance 1: beyond are 1.1 and 3, the nearest gives 0.2 + 1 - 1.1 = 0.1.
    Anchor 1, positive at distance 1: beyond is only 3, at 2: 0. Of the hats, (0.5, 1.1): coats are
    at 0.5 and 0.5, none beyond 0.6, so the farthest: 0.3; and so on."""
    x, labels = np.array([[0], [1], [0.5], [1.1], [3]]), list('cchhh')
    each = {
        (0, 1): 0.1,
        (1, 0): 0.0,
        (2, 3): 0.2 + 0.6 - 0.5,
        (2, 4): 0.2 + 2.5 - 0.5,
        (3, 2): 0.2 + 0.6 - 1.1,
        (3, 4): 0.2 + 1.9 - 1.1,
        (4, 2): 0.2 + 2.5 - 3.0,
        (4, 3): 0.2 + 1.9 - 2.0,
    }
    loss = BatchTripletLoss('semihard-nearest', margin=0.2, dtype='float64')
    expect = np.mean([max(0, v) for v in each.values()])
    assert float(loss(labels, x)) == pytest.approx(expect, rel=1e-9)
    found = mined_triplets(loss, labels, x)
    assert [*zip(found.anchors, found.positives)] == [*each]
    assert found.losses == pytest.approx([max(0, v) for v in each.values()], abs=1e-12)


# ---- which triplets


@pytest.mark.parametrize('mining', MINING)
@pytest.mark.parametrize(
    'kw', [{}, dict(soft=True), dict(squared=True), dict(kind='lossless')], ids=str
)
def test_the_mean_of_mined_triplets_is_the_loss(mining, kw):
    rng = np.random.default_rng(4)
    x, labels = rng.random((15, 4)), np.repeat([0, 1, 2, 3], [5, 5, 4, 1])
    loss = BatchTripletLoss(mining, margin=0.15, dtype='float64', **kw)
    found = mined_triplets(loss, labels, x)
    expect, count = brute_force(x, labels, mining, 0.15, **kw)
    assert len(found) == count and found.losses.mean() == pytest.approx(expect, rel=1e-9)
    assert (labels[found.anchors] == labels[found.positives]).all()
    assert (labels[found.anchors] != labels[found.negatives]).all()
    assert (found.anchors != found.positives).all()
    assert len({*zip(found.anchors, found.positives, found.negatives)}) == count


def test_active_triplets_are_those_with_a_loss():
    "Coats at 0 and 1; hats at 1.1 and 9: the far hat is not active for any coat."
    found = mined_triplets(
        BatchTripletLoss('all', margin=0.2), list('cchh'), np.float32([[0], [1], [1.1], [9]])
    )
    named = {
        (a, p, n)
        for a, p, n in zip(
            found.anchors[found.active],
            found.positives[found.active],
            found.negatives[found.active],
        )
    }
    assert len(found) == 8
    assert named == {(0, 1, 2), (1, 0, 2), (2, 3, 0), (2, 3, 1), (3, 2, 1)}
    assert repr(found) == 'MinedTriplets: 8, of them 5 active'


def test_batches_without_triplets_have_none_mined():
    for mining in MINING:
        for labels in ([0, 0, 0], [0, 1, 2], [None] * 3):
            assert len(mined_triplets(BatchTripletLoss(mining), labels, np.eye(3))) == 0


def test_mined_triplets_of_what_mines_none():
    with pytest.raises(TypeError, match='SupConLoss chooses no triplets'):
        mined_triplets(SupConLoss(), [0, 0, 1], np.eye(3))
    with pytest.raises(ValueError, match='2 labels for 3'):
        mined_triplets(BatchTripletLoss(), [0, 0], np.eye(3))
