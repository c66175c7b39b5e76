"Triplet losses against float64 NumPy from the formula, in every precision and compiler."

import inspect, math
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
import tensorflow as tf, keras
from triplet_fashion.loss import (
    LosslessTripletLoss,
    TripletLoss,
    loss_levels,
    lossless_triplet_loss,
    triplet_loss,
)

quick = settings(max_examples=40, deadline=None, derandomize=True)


def golden(y, N, beta, epsilon=1e-8):
    "The lossless loss and its gradient in float64."
    a, p, n = np.split(np.asarray(y, 'float64'), 3, axis=1)
    fp = 1 - ((a - p) ** 2).sum(1) / beta + epsilon
    fn = 1 - (N - ((a - n) ** 2).sum(1)) / beta + epsilon
    gp, gn = 2 * (a - p) / (beta * fp)[:, None], -2 * (a - n) / (beta * fn)[:, None]
    return -np.log(fp) - np.log(fn), np.concatenate([gp + gn, -gp, -gn], axis=1)


def golden_classic(y, margin=0.2, squared=True):
    a, p, n = np.split(np.asarray(y, 'float64'), 3, axis=1)
    dp, dn = ((a - p) ** 2).sum(1), ((a - n) ** 2).sum(1)
    return np.maximum(0, (dp - dn if squared else dp**0.5 - dn**0.5) + margin)


def domain(N, seed=0):
    "Triplets from everywhere in [0, 1]^3N: both ends, corners, equal embeddings, steep sigmoids."
    rng = np.random.default_rng(seed)
    t = np.concatenate([[0], np.logspace(-9, -0.4, 60), 1 - np.logspace(-0.4, -9, 60), [1]])[
        :, None
    ]
    c = (rng.random((len(t), N)) < 0.5) * 1.0
    every, one = np.abs(c - t), c.copy()
    one[:, :1] = np.abs(c[:, :1] - t)  # a single number differs
    soft = rng.random(c.shape)
    near = np.clip(soft + 1e-6 * rng.choice([-1, 1], c.shape), 0, 1)  # |a-n| = 1e-6
    z = 1 / (1 + np.exp(-rng.normal(size=(60, 3 * N)) * rng.choice([0.01, 1, 10, 50], (60, 1))))
    return np.concatenate(
        [
            np.c_[a, p, n]
            for a, p, n in (
                (c, every, np.flip(every, 0)),
                (c, c, every),
                (c, every, 1 - c),
                (c, one, 1 - one),
                (c, 1 - one, one),
                (soft, near, near),
                (soft, soft, soft),
                (c, c, c),
                (c, 1 - c, c),
                (c, c, 1 - c),
                (c, 1 - c, 1 - c),
            )
        ]
        + [z]
    )


def with_gradient(fn, y):
    with tf.GradientTape() as tape:
        tape.watch(y)
        loss = fn(y)
    return loss, tape.gradient(loss, y)


@pytest.mark.parametrize('N', (1, 2, 16, 128, 2048))
@pytest.mark.parametrize('xla', (False, True), ids=('graph', 'xla'))
def test_exact_over_the_domain(N, xla):
    y = tf.constant(domain(N)[:: 4 if N == 2048 else 1], tf.float32)
    betas = N, 1.5 * N, 10 * N
    run = tf.function(
        lambda y: [
            with_gradient(lambda y: lossless_triplet_loss(None, y, beta=beta), y) for beta in betas
        ],
        jit_compile=xla,
    )
    for kind in ('float32', 'bfloat16', 'float16'):
        yk = tf.cast(y, kind)
        for beta, out in zip(
            betas, run(tf.cast(yk, tf.float32))
        ):  # the values that kind can hold, traced once
            ref, gref = golden(tf.cast(yk, tf.float64), N, beta)
            loss, grad = (t.numpy().astype('float64') for t in out)
            assert (np.abs(loss - ref) <= 1e-6 * np.maximum(1, np.abs(ref))).all()
            assert np.isfinite(grad).all()
            assert (np.abs(grad - gref) <= 1e-4 * np.abs(gref) + 1e-6).all()


@pytest.mark.parametrize('kind', ('float16', 'bfloat16'))
@pytest.mark.parametrize(
    'make',
    (
        lambda N: lambda y: lossless_triplet_loss(None, y),
        lambda N: lambda y: LosslessTripletLoss(reduction=None)(None, y),
    ),
    ids=('function', 'class'),
)
def test_half_precision_outputs(kind, make):
    for N in (1, 2, 16, 128):
        y = tf.cast(domain(N), kind)
        loss, grad = with_gradient(make(N), y)
        assert loss.dtype == tf.float32 and grad.dtype == y.dtype
        ref = golden(tf.cast(y, tf.float64), N, N)[0]
        assert (np.abs(loss.numpy() - ref) <= 1e-6 * np.maximum(1, np.abs(ref))).all()
        assert np.isfinite(tf.cast(grad, tf.float32).numpy()).all()


def test_float64_stays_float64():
    y = domain(16)
    loss = lossless_triplet_loss(None, y)
    assert loss.dtype == tf.float64
    np.testing.assert_allclose(loss, golden(y, 16, 16)[0], rtol=1e-7, atol=1e-7)


def test_peak_of_the_gradient():
    a = np.zeros((1, 128), 'float32')
    n = a.copy()
    n[0, 0] = 1e-3
    _, grad = with_gradient(lambda y: lossless_triplet_loss(None, y), tf.constant(np.c_[a, a, n]))
    assert abs(grad.numpy()[0, 256]) == pytest.approx(877.19, rel=1e-4)
    _, seed = with_gradient(
        lambda y: lossless_triplet_loss(None, y, stable=False), tf.constant(np.c_[a, a, n])
    )
    assert abs(seed.numpy()[0, 256]) == pytest.approx(1562.5, rel=1e-3)


def test_second_derivative():
    y = tf.constant([[0.2, 0.3, 0.4, 0.5, 0.9, 0.1]], tf.float64)

    def directional(y):
        return with_gradient(lambda y: lossless_triplet_loss(None, y), y)[1]

    with tf.GradientTape() as tape:
        tape.watch(y)
        g = tf.reduce_sum(directional(y) ** 2)
    second = tape.gradient(g, y).numpy()
    for k in range(6):
        e = np.zeros((1, 6))
        e[0, k] = 1e-6
        up, down = ((golden(y.numpy() + s * e, 2, 2)[1] ** 2).sum() for s in (1, -1))
        assert second[0, k] == pytest.approx((up - down) / 2e-6, rel=1e-4)


def test_signature_is_the_seeds():
    assert list(inspect.signature(lossless_triplet_loss).parameters)[:5] == [
        'y_true',
        'y_pred',
        'N',
        'beta',
        'epsilon',
    ]
    y = np.random.default_rng(0).random((3, 384)).astype('float32')
    np.testing.assert_allclose(
        lossless_triplet_loss(None, y, 128, 128, 1e-8), golden(y, 128, 128)[0], rtol=1e-6
    )
    np.testing.assert_allclose(
        lossless_triplet_loss(None, y, 128, 128, 1e-8, stable=False),
        golden(y, 128, 128)[0],
        rtol=1e-5,
    )


def test_seed_arithmetic_on_request():
    y = np.random.default_rng(0).random((8, 48)).astype('float32')
    assert np.isnan(lossless_triplet_loss(None, y, beta=2, stable=False).numpy()).all()  # beta < N
    assert np.isnan(
        lossless_triplet_loss(None, y * 4, stable=False).numpy()
    ).any()  # outputs outside [0, 1]
    assert np.isfinite(lossless_triplet_loss(None, y * 1.1, stable=False).numpy()).all()


@quick
@given(st.integers(1, 12), st.integers(1, 5), st.floats(0, 2), st.booleans(), st.integers(0, 2**31))
def test_classic_against_float64(N, b, margin, squared, seed):
    y = (np.random.default_rng(seed).normal(size=(b, 3 * N))).astype('float32')
    loss, grad = with_gradient(
        lambda y: triplet_loss(None, y, margin=margin, squared=squared), tf.constant(y)
    )
    np.testing.assert_allclose(
        loss, golden_classic(y, margin, squared), rtol=1e-6, atol=2e-6 * max(1, N)
    )
    assert np.isfinite(grad.numpy()).all()


@quick
@given(st.integers(1, 6), st.data())
def test_lossless_any_floats(N, data):
    unit = st.floats(0, 1, width=32)
    y = np.array([data.draw(st.lists(unit, min_size=3 * N, max_size=3 * N))], 'float32')
    loss, grad = with_gradient(lambda y: lossless_triplet_loss(None, y), tf.constant(y))
    ref = golden(y, N, N)[0]
    assert (
        np.abs(loss.numpy() - ref)[0] <= 1e-6 * max(1, ref[0]) and np.isfinite(grad.numpy()).all()
    )


@pytest.mark.parametrize('squared', (True, False))
@pytest.mark.parametrize('kind', ('float32', 'float16', 'bfloat16'))
def test_classic_equal_codes(squared, kind):
    y = tf.cast(np.full((2, 9), 0.3), kind)
    loss, grad = with_gradient(lambda y: triplet_loss(None, y, squared=squared), y)
    np.testing.assert_allclose(loss, 0.2, rtol=1e-6)
    assert (tf.cast(grad, tf.float32).numpy() == 0).all()


def test_classic_accuracy_of_wide_codes():
    y = np.random.default_rng(0).random((500, 3 * 128)).astype('float32')
    assert np.abs(triplet_loss(None, y, margin=50.0).numpy() - golden_classic(y, 50.0)).max() < 5e-6
    for xla in (False, True):
        assert (
            np.abs(
                tf.function(triplet_loss, jit_compile=xla)(None, y).numpy() - golden_classic(y)
            ).max()
            < 3e-6
        )


@pytest.mark.parametrize('fn', (triplet_loss, lossless_triplet_loss))
@pytest.mark.parametrize(
    'kw, width, word',
    [(dict(N=100), 384, 'N=100'), (dict(N=128), 300, 'N=128'), ({}, 10, '10 wide')],
)
def test_wrong_width(fn, kw, width, word):
    y = np.full((2, width), 0.5, 'float32')
    with pytest.raises(ValueError, match=word):
        fn(None, y, **kw)
    with pytest.raises(ValueError, match=word):
        tf.function(fn)(None, y, **kw)


def test_unknown_width():
    spec = [tf.TensorSpec((None, None), tf.float32)]
    with pytest.raises(ValueError, match='pass N'):
        tf.function(lambda y: lossless_triplet_loss(None, y), input_signature=spec)(
            np.zeros((1, 6), 'float32')
        )
    f = tf.function(lambda y: lossless_triplet_loss(None, y, N=2), input_signature=spec)
    assert f(np.full((1, 6), 0.5, 'float32')).shape == (1,)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        f(np.full((1, 9), 0.5, 'float32'))


@pytest.mark.parametrize(
    'kw, word',
    [
        (dict(beta=127), 'beta=127'),
        (dict(beta=float('nan')), 'beta=nan'),
        (dict(beta=float('inf')), 'beta=inf'),
        (dict(epsilon=0), 'epsilon=0'),
        (dict(epsilon=1e-60), 'epsilon=1e-60'),
    ],
)
def test_settings_out_of_range(kw, word):
    y = np.full((2, 384), 0.5, 'float32')
    with pytest.raises(ValueError, match=word):
        lossless_triplet_loss(None, y, **kw)
    with pytest.raises(ValueError, match=word):
        LosslessTripletLoss(N=128, **kw)
    with pytest.raises(ValueError, match=word):
        LosslessTripletLoss(**kw)(None, y) if 'beta' in kw else LosslessTripletLoss(**kw)


@pytest.mark.parametrize('bad', (-1e-6, 1.000001, 3.0))
def test_outputs_outside_the_box(bad):
    y = np.full((3, 6), 0.5, 'float32')
    y[1, 4] = bad
    for run in (lossless_triplet_loss, tf.function(lossless_triplet_loss), LosslessTripletLoss()):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r'must lie in \[0, 1\]'):
            run(None, y)
    xla = tf.function(lossless_triplet_loss, jit_compile=True)(None, y).numpy()
    assert np.isnan(xla[1]) and np.isfinite(xla[[0, 2]]).all()


def test_nan_outputs_stay_nan():
    y = np.full((3, 6), 0.5, 'float32')
    y[1, 4] = np.nan
    for xla in (False, True):
        out = tf.function(lossless_triplet_loss, jit_compile=xla)(None, y).numpy()
        assert np.isnan(out[1]) and np.isfinite(out[[0, 2]]).all()
    for squared in (True, False):
        out = triplet_loss(None, y, squared=squared).numpy()
        assert np.isnan(out[1]) and np.isfinite(out[[0, 2]]).all()


def test_fit_stops_with_the_reason():
    net = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(6, bias_initializer=keras.initializers.Constant(2.0)),
        ]
    )
    net.compile('sgd', LosslessTripletLoss(), jit_compile=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match='end the network in a sigmoid'):
        net.fit(np.zeros((4, 2)), np.zeros(4), verbose=0)
    net.compile('sgd', LosslessTripletLoss(), jit_compile=True)
    assert np.isnan(net.evaluate(np.zeros((4, 2)), np.zeros(4), verbose=0))


LOSSES = [
    TripletLoss(),
    TripletLoss(N=2, margin=0.5, squared=False, reduction='sum', name='t'),
    LosslessTripletLoss(),
    LosslessTripletLoss(N=2, beta=3.0, epsilon=1e-6, reduction=None, dtype='float64'),
]


@pytest.mark.parametrize('loss', LOSSES, ids=lambda l: l.name)
def test_config_round_trip(loss):
    for again in (
        type(loss).from_config(loss.get_config()),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss)),
        keras.losses.deserialize(keras.losses.serialize(loss)),
    ):
        assert type(again) is type(loss) and again.get_config() == loss.get_config()
    y = np.random.default_rng(0).random((4, 6)).astype('float32')
    np.testing.assert_array_equal(again(None, y), loss(None, y))
    assert keras.saving.get_registered_name(type(loss)).startswith('triplet_fashion>')


@pytest.mark.parametrize(
    'cls, fn', [(TripletLoss, triplet_loss), (LosslessTripletLoss, lossless_triplet_loss)]
)
def test_reductions_and_weights(cls, fn):
    y = np.random.default_rng(0).random((5, 9)).astype('float32')
    each, w = fn(None, y).numpy(), np.array([0, 1, 2, 3, 4], 'float32')
    for labels in (None, np.zeros(5), np.zeros((5, 1)), np.eye(5)):
        assert float(cls()(labels, y)) == pytest.approx(each.mean(), rel=1e-6)
    assert float(cls(reduction='sum')(None, y)) == pytest.approx(each.sum(), rel=1e-6)
    np.testing.assert_allclose(cls(reduction=None)(None, y), each, rtol=1e-6)
    assert float(cls()(None, y, sample_weight=w)) == pytest.approx((each * w).mean(), rel=1e-6)
    assert float(
        cls(reduction='mean_with_sample_weight')(None, y, sample_weight=w)
    ) == pytest.approx((each * w).sum() / w.sum(), rel=1e-6)


@pytest.mark.parametrize(
    'loss',
    [LosslessTripletLoss(beta=6.0), TripletLoss(margin=0.4), lossless_triplet_loss, triplet_loss],
    ids=('lossless', 'classic', 'lossless function', 'classic function'),
)
def test_compiled_model_saves_and_reopens(tmp_path, loss):
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(12, activation='sigmoid')])
    net.compile('adam', loss)
    x = np.random.default_rng(0).random((8, 3)).astype('float32')
    net.fit(x, np.zeros(8), verbose=0)
    net.save(tmp_path / 'net.keras')
    again = keras.models.load_model(tmp_path / 'net.keras')
    assert again.evaluate(x, np.zeros(8), verbose=0) == net.evaluate(x, np.zeros(8), verbose=0)
    assert np.isfinite(again.fit(x, np.zeros(8), verbose=0).history['loss']).all()


def test_mixed_precision_fit():
    for policy in ('mixed_bfloat16', 'mixed_float16'):
        net = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(12, activation='sigmoid', dtype=policy)]
        )
        net.compile(keras.optimizers.SGD(0.1), LosslessTripletLoss())
        assert np.isfinite(
            net.fit(np.ones((8, 3)), np.zeros(8), epochs=3, verbose=0).history['loss']
        ).all()


def test_levels_of_facts():
    levels = loss_levels()
    assert list(levels) == ['floor', 'random embeddings', 'collapse']
    assert levels['collapse'] == pytest.approx(18.42, abs=0.005)
    assert levels['random embeddings'] == pytest.approx(1.386, abs=0.01)
    assert loss_levels(n_classes=10)['floor'] == pytest.approx(0.588, abs=0.0005)
    assert loss_levels(n_classes=10**6)['floor'] == pytest.approx(math.log(2), abs=1e-5)
    assert loss_levels('classic', margin=0.3)['collapse'] == 0.3
    z = 1 / (1 + np.exp(-np.random.default_rng(0).normal(size=(4000, 384))))
    assert lossless_triplet_loss(None, z).numpy().mean() == pytest.approx(
        2.54, abs=0.01
    )  # a fresh network's outputs


@pytest.mark.parametrize('N', (1, 2, 5))
def test_levels_by_enumeration(N):
    "All 2^3N coin-flip triplets, one by one."
    y = np.array(np.meshgrid(*[[0, 1]] * (3 * N))).reshape(3 * N, -1).T
    for beta in (N, 2 * N):
        assert loss_levels(N=N, beta=beta)['random embeddings'] == pytest.approx(
            golden(y, N, beta)[0].mean(), rel=1e-9
        )
    for squared in (True, False):
        assert loss_levels('classic', N, margin=0.7, squared=squared)[
            'random embeddings'
        ] == pytest.approx(golden_classic(y, 0.7, squared).mean(), rel=1e-9)


@quick
@given(st.integers(2, 7), st.integers(1, 8), st.integers(0, 2**31), st.booleans())
def test_nothing_is_below_the_floor(C, N, seed, corners):
    embeddings = np.random.default_rng(seed).random((C, N))
    if corners:
        embeddings = np.round(embeddings)
    i, j = np.where(~np.eye(C, dtype=bool))
    y = np.c_[embeddings[i], embeddings[i], embeddings[j]]
    for beta in (N, 1.7 * N):
        assert (
            golden(y, N, beta)[0].mean() >= loss_levels(N=N, beta=beta, n_classes=C)['floor'] - 1e-9
        )
    for squared in (True, False):
        assert (
            golden_classic(y, 3.0, squared).mean()
            >= loss_levels('classic', N, margin=3.0, n_classes=C, squared=squared)['floor'] - 1e-9
        )


def test_levels_refuse():
    for kw, word in (
        (dict(loss='hinge'), 'hinge'),
        (dict(n_classes=1), 'n_classes=1'),
        (dict(beta=3), 'beta=3'),
    ):
        with pytest.raises(ValueError, match=word):
            loss_levels(**kw)


# half precision all the way, the classic loss's gradient, every reduction, policies

HALF = {'bfloat16': 2.0**-8, 'float16': 2.0**-11}  # half a unit in the last place, relative


def rounded_like(grad, ref, kind):
    "Tell whether `grad` is the exact gradient `ref`, rounded once to `kind` or its largest number."
    top, least = (
        (float(getattr(tf.as_dtype(kind), k)) for k in ('max', 'min')),
        {'bfloat16': 1e-30, 'float16': 6.1e-8}[kind],
    )
    high, low = top
    return (
        np.abs(grad - np.clip(ref, low, high))
        <= (HALF[kind] + 1e-4) * np.abs(np.clip(ref, low, high)) + least + 1e-6
    ).all()


@pytest.mark.parametrize(
    'N, xla',
    [(1, False), (2, False), (16, False), (128, False), (2048, False), (2, True), (128, True)],
)
def test_half_outputs_value_and_gradient(N, xla):
    "Outputs in bfloat16 or float16: the value to 1e-6, the gradient exact but for its rounding."
    y = domain(N, seed=1)[:: 16 if N == 2048 else 4]
    betas = N, 1.5 * N, 10 * N
    for kind in HALF:
        yk = tf.cast(y, kind)
        run = tf.function(
            lambda y: [
                with_gradient(lambda y: lossless_triplet_loss(None, y, beta=beta), y)
                for beta in betas
            ],
            jit_compile=xla,
        )
        for beta, (loss, grad) in zip(betas, run(yk)):
            ref, gref = golden(tf.cast(yk, tf.float64), N, beta)
            assert loss.dtype == tf.float32 and grad.dtype == yk.dtype
            assert (np.abs(loss.numpy() - ref) <= 1e-6 * np.maximum(1, np.abs(ref))).all()
            assert rounded_like(tf.cast(grad, tf.float64).numpy(), gref, kind)


def golden_classic_gradient(y, margin, squared):
    "The hinge's gradient in float64 and whether a row is too near its kink to say."
    a, p, n = np.split(np.asarray(y, 'float64'), 3, axis=1)
    dp, dn = (((a - o) ** 2).sum(1, keepdims=True) for o in (p, n))
    if squared:
        gp, gn, gap = 2 * (a - p), 2 * (a - n), dp - dn
    else:

        def unit(v, d):
            return np.divide(v, d**0.5, out=np.zeros_like(v), where=d > 0)

        gp, gn, gap = unit(a - p, dp), unit(a - n, dn), dp**0.5 - dn**0.5
    on = gap + margin > 0
    return np.concatenate([gp - gn, -gp, gn], axis=1) * on, np.abs(gap + margin)[:, 0] < 1e-4 * max(
        1, a.shape[1] ** 0.5
    )


@pytest.mark.parametrize(
    'N, xla',
    [(1, False), (2, False), (16, False), (128, False), (2048, False), (2, True), (128, True)],
)
@pytest.mark.parametrize('squared', (True, False))
def test_classic_over_the_domain(N, squared, xla):
    "Value and gradient from every precision, of equal and of nearly equal embeddings, too."
    y = domain(N, seed=2)[:: 16 if N == 2048 else 4]
    y = np.concatenate([y, 4 * y - 2])
    margins = 0.2, 1.7 * N
    run = tf.function(
        lambda y: [
            with_gradient(lambda y: triplet_loss(None, y, margin=m, squared=squared), y)
            for m in margins
        ],
        jit_compile=xla,
    )
    for kind in ('float32', *HALF):
        yk = tf.cast(y, kind)
        for margin, out in zip(margins, run(yk)):
            loss, grad = (tf.cast(t, tf.float64).numpy() for t in out)
            wide = tf.cast(yk, tf.float64).numpy()
            ref, (gref, kink) = (
                golden_classic(wide, margin, squared),
                golden_classic_gradient(wide, margin, squared),
            )
            assert (np.abs(loss - ref) <= 1e-6 * np.maximum(1, ref)).all()
            assert np.isfinite(grad).all()
            assert (
                np.abs(grad - gref)[~kink]
                <= (HALF.get(kind, 0) + 1e-4) * np.abs(gref)[~kink] + 2e-6
            ).all()
            assert kink.mean() < 0.6


@pytest.mark.parametrize(
    'cls, fn', [(TripletLoss, triplet_loss), (LosslessTripletLoss, lossless_triplet_loss)]
)
@pytest.mark.parametrize(
    'reduction', ('sum_over_batch_size', 'mean', 'sum', 'mean_with_sample_weight', 'none', None)
)
def test_every_reduction_against_float64(cls, fn, reduction):
    y, w = (
        np.random.default_rng(5).random((6, 12)).astype('float32'),
        np.array([0, 0.5, 1, 2, 0, 3], 'float32'),
    )
    each = golden(y, 4, 4)[0] if cls is LosslessTripletLoss else golden_classic(y)
    try:
        loss = cls(reduction=reduction)
    except ValueError:
        pytest.skip(f'this Keras has no reduction {reduction!r}')
    for weights, column in ((None, None), (w, w), (w, w[:, None]))[
        : 2 if reduction in ('none', None) else 3
    ]:
        v = each if weights is None else each * weights
        want = {
            'sum': v.sum(),
            'mean_with_sample_weight': v.sum() / (len(v) if weights is None else weights.sum()),
        }.get(reduction, v.mean())
        got = np.asarray(loss(np.zeros(6), y, sample_weight=column))
        np.testing.assert_allclose(
            got, v if reduction in ('none', None) else want, rtol=1e-5, atol=1e-7
        )
        if reduction not in ('none', None):
            assert got.shape == ()
    assert type(loss).from_config(loss.get_config()).reduction == reduction


@pytest.mark.parametrize(
    'policy, loss',
    [
        ('mixed_bfloat16', LosslessTripletLoss()),
        ('mixed_float16', LosslessTripletLoss()),
        ('bfloat16', LosslessTripletLoss()),
        ('mixed_bfloat16', TripletLoss()),
        ('mixed_float16', TripletLoss(squared=False)),
    ],
)
def test_policies_fit_save_reload(tmp_path, policy, loss):
    "Fit under a dtype policy, save the compiled model, reopen it, go on: the same losses."
    keras.utils.set_random_seed(0)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        net = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(8, 'relu'),
                keras.layers.Dense(12, activation='sigmoid'),
            ]
        )
    finally:
        keras.config.set_dtype_policy(before)
    net.compile(keras.optimizers.SGD(0.05, momentum=0.5), loss, jit_compile=False)
    x = np.random.default_rng(0).random((16, 6)).astype('float32')
    y = np.zeros(16)
    first = net.fit(x, y, epochs=2, verbose=0, shuffle=False).history['loss']
    net.save(tmp_path / 'net.keras')
    again = keras.models.load_model(tmp_path / 'net.keras')
    assert type(again.loss) is type(loss) and again.loss.get_config() == loss.get_config()
    go_on = [m.fit(x, y, epochs=2, verbose=0, shuffle=False).history['loss'] for m in (net, again)]
    assert np.isfinite(first + go_on[0]).all() and go_on[0][0] == go_on[1][0]
    if policy != 'mixed_float16':
        assert (
            go_on[0] == go_on[1]
        )  # there Keras keeps no optimizer state: its loss scaling is wrapped around it
    out = net.predict(x, verbose=0)
    assert float(loss(None, out)) == pytest.approx(
        net.evaluate(x, y, verbose=0), rel=1e-5
    )  # computed in float32, whatever the policy


@pytest.mark.parametrize('dtype', (None, 'float32', 'float64', 'mixed_bfloat16', 'mixed_float16'))
def test_dtype_of_the_loss(dtype):
    y = np.random.default_rng(0).random((4, 6)).astype('float32')
    loss = LosslessTripletLoss(dtype=dtype, reduction='sum')
    assert float(loss(None, y)) == pytest.approx(
        golden(y, 2, 2)[0].sum(), rel=1e-5 if dtype in (None, 'float32', 'float64') else 2e-2
    )
    assert type(loss).from_config(loss.get_config()).dtype == loss.dtype
