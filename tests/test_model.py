"The three-input network: one pass or three, the same function; its compilation and its errors."

import keras, numpy as np, pytest, tensorflow as tf
from keras import layers
from triplet_fashion.base_network import base_network, res_base_network
from triplet_fashion.loss import LosslessTripletLoss, TripletLoss
from triplet_fashion.model import (
    StackTriplets,
    UnstackTriplets,
    compile_triplet,
    draw_model,
    build_optimizer,
    fuse_batchnorm,
    triplet_model,
)

rng = np.random.default_rng(0)


def size(ws):
    return sum(int(np.prod(w.shape)) for w in ws)


@pytest.fixture
def net():
    return base_network((32, 32, 3), 6, backbone='small', hidden=())


@pytest.fixture(scope='module')
def photos():
    return [rng.integers(0, 256, (5, 32, 32, 3)).astype('float32') for _ in range(3)]


@pytest.mark.parametrize('joint', [True, False])
def test_row_7_of_the_original_notebook(joint):
    model = triplet_model(res_base_network((224, 224, 3), 128, weights=None), joint)
    assert [i.name for i in model.inputs] == ['anchor', 'positive', 'negative']
    assert [i.shape for i in model.inputs] == [(None, 224, 224, 3)] * 3 and model.output_shape == (
        None,
        384,
    )
    assert model.count_params() == 25_817_088
    assert (size(model.trainable_weights), size(model.non_trainable_weights)) == (
        25_763_968,
        53_120,
    )


def test_stack_and_unstack_by_hand():
    a, p, n = (np.arange(4.0).reshape(2, 2) + k for k in (0, 10, 20))
    stacked = StackTriplets()([a, p, n])
    np.testing.assert_array_equal(stacked, [a[0], p[0], n[0], a[1], p[1], n[1]])
    np.testing.assert_array_equal(UnstackTriplets()(stacked), np.hstack([a, p, n]))
    assert StackTriplets().compute_output_shape([(None, 8, 8, 3)] * 3) == (None, 8, 8, 3)
    assert UnstackTriplets().compute_output_shape((None, 7)) == (None, 21)


@pytest.mark.parametrize('b', [None, 2])
@pytest.mark.parametrize('dtype', ['uint8', 'float16', 'float32'])
def test_stacking_keeps_a_known_batch_size_and_the_type(b, dtype):
    photos = [keras.Input((6, 5, 3), batch_size=b, dtype=dtype) for _ in 'apn']
    stacked = StackTriplets()(photos)
    assert stacked.shape == (b and 3 * b, 6, 5, 3) and stacked.dtype == dtype
    embeddings = keras.Input((8,), batch_size=b and 3 * b, dtype=dtype)
    back = UnstackTriplets()(embeddings)
    assert back.shape == (b, 24) and back.dtype == dtype
    net = keras.Model(photos, stacked)
    out = net([np.full((2, 6, 5, 3), k, dtype) for k in range(3)])
    assert out.shape == (6, 6, 5, 3) and keras.backend.standardize_dtype(out.dtype) == dtype


def test_photos_of_any_size_are_stacked():
    photos = [keras.Input((None, None, 3)) for _ in 'apn']
    net = keras.Model(photos, StackTriplets()(photos))
    assert net.output_shape == (None, None, None, 3)
    assert net.predict([np.zeros((2, 7, 4, 3), 'float32')] * 3, verbose=0).shape == (6, 7, 4, 3)


def test_rows_that_are_no_triplets_are_refused():
    with pytest.raises(ValueError, match='three rows a triplet, not 7 rows'):
        UnstackTriplets()(keras.Input((8,), batch_size=7))


def test_one_pass_equals_three(net, photos):
    want = np.hstack([net.predict(x, verbose=0) for x in photos])
    for joint in True, False:
        np.testing.assert_allclose(
            triplet_model(net, joint).predict(photos, verbose=0), want, atol=1e-6
        )


def test_uint8_is_the_same_photo(net, photos):
    model = triplet_model(net)
    np.testing.assert_allclose(
        model.predict([x.astype('uint8') for x in photos], verbose=0),
        model.predict(photos, verbose=0),
        atol=1e-6,
    )


def test_gradients_are_those_of_three_passes(photos):
    "Without BatchNorm both ways are the same function in training as well."
    x = i = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(
        layers.Conv2D(4, 3, activation='softplus')(layers.Rescaling(1 / 255)(x))
    )
    base = base_network((32, 32, 3), 6, backbone=keras.Model(i, x), hidden=())
    loss, grads = LosslessTripletLoss(), []
    for joint in True, False:
        model = triplet_model(base, joint)
        with tf.GradientTape() as tape:
            value = loss(None, model(photos, training=True))
        grads.append([value, *tape.gradient(value, model.trainable_variables)])
    for one, three in zip(*grads):
        np.testing.assert_allclose(one, three, rtol=1e-3, atol=1e-3 * np.abs(three).max())


@pytest.mark.parametrize('joint', [True, False])
def test_json_round_trip(net, photos, joint):
    model = triplet_model(net, joint)
    back = keras.models.model_from_json(model.to_json())
    back.set_weights(model.get_weights())
    np.testing.assert_array_equal(back.predict(photos, verbose=0), model.predict(photos, verbose=0))
    assert back.count_params() == model.count_params()


def test_saved_whole(net, photos, tmp_path):
    model = compile_triplet(triplet_model(net))
    model.save(tmp_path / 'm.keras')
    back = keras.models.load_model(tmp_path / 'm.keras')
    np.testing.assert_array_equal(back.predict(photos, verbose=0), model.predict(photos, verbose=0))


def test_compile_defaults(net):
    model = compile_triplet(triplet_model(net))
    assert isinstance(model.loss, LosslessTripletLoss) and isinstance(
        model.optimizer, keras.optimizers.Adam
    )
    assert (
        float(model.optimizer.learning_rate) == pytest.approx(1e-4)
        and model.optimizer.clipnorm == 5.0
    )
    sgd = keras.optimizers.SGD(0.1)
    assert compile_triplet(model, optimizer=sgd).optimizer is sgd
    assert compile_triplet(model, clipnorm=None).optimizer.clipnorm is None


class Traced(layers.Layer):
    "Counts how often its graph is made."

    times = 0

    def call(self, x):
        Traced.times += 1
        return x


def test_one_trace_for_all_steps(photos):
    traces = []
    for prepare in lambda m: m, build_optimizer:
        inp = keras.Input((32, 32, 3))
        model = keras.Model(inp, layers.Dense(4)(layers.GlobalAveragePooling2D()(Traced()(inp))))
        model.compile('adam', 'mse', jit_compile=False)
        assert prepare(model) is model
        Traced.times = 0
        model.fit(photos[0], np.zeros((5, 4)), batch_size=5, epochs=3, verbose=0)
        traces.append(Traced.times)
    assert traces[0] > traces[1], traces
    assert build_optimizer(model).optimizer.built and len(model.optimizer.variables) == 2 + 2 * 2


def norm_step(net, x, **kw):
    "Output, gradients and statistics of one training call."
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = net(x, training=True)
        loss = tf.reduce_mean(tf.cast(y, 'float32') ** 3)
    return [
        np.asarray(a, 'float32')
        for a in (
            y,
            *tape.gradient(loss, [x, *(w.value for w in net.trainable_variables)]),
            *net.get_weights(),
        )
    ]


@pytest.mark.parametrize('dtype,limit', [('float32', 1e-5), ('mixed_bfloat16', 2e-2)])
@pytest.mark.parametrize(
    'kw',
    [
        {},
        dict(scale=False),
        dict(center=False),
        dict(scale=False, center=False),
        dict(momentum=0.5, epsilon=1.001e-5),
        dict(axis=3),
    ],
)
def test_fused_norm_is_kerass(kw, dtype, limit):
    inp = keras.Input((6, 5, 7))
    norm = layers.BatchNormalization(
        gamma_initializer='random_uniform', beta_initializer='random_normal', dtype=dtype, **kw
    )
    plain = keras.Model(inp, norm(inp))
    one = fuse_batchnorm(keras.models.clone_model(plain))
    one.set_weights(plain.get_weights())
    x = tf.constant(rng.normal(2, 3, (4, 6, 5, 7)).astype('float32'))
    for a, b in zip(norm_step(plain, x), norm_step(one, x)):
        assert a.shape == b.shape and np.abs(a - b).max() <= limit * max(np.abs(a).max(), 1)
    assert one(x, training=True).dtype == plain(x, training=True).dtype
    plain.set_weights(one.get_weights())
    assert (one(x).numpy() == plain(x).numpy()).all()  # outside training: Keras' own


def test_fused_norm_of_one_number():
    one = fuse_batchnorm(
        keras.Sequential([keras.Input((1, 1, 2)), layers.BatchNormalization(momentum=0.0)])
    )
    one(tf.constant([[[[3.0, 4.0]]]]), training=True)
    assert [w.tolist() for w in one.get_weights()[2:]] == [[3.0, 4.0], [0.0, 0.0]]


@pytest.mark.parametrize('what', ['synchronized', 'flat', 'axis', 'epsilon', 'frozen', 'float64'])
def test_where_fused_norm_does_not_fit(what, monkeypatch):
    shape = (7,) if what == 'flat' else (6, 5, 7)
    kw = {
        'axis': dict(axis=1),
        'epsilon': dict(epsilon=1e-7),
        'float64': dict(dtype='float64'),
    }.get(what, {})
    net = fuse_batchnorm(keras.Sequential([keras.Input(shape), layers.BatchNormalization(**kw)]))
    if what == 'frozen':
        net.trainable = False
    if what == 'synchronized':
        net.layers[0].synchronized = True
    seen = []
    monkeypatch.setattr(
        layers.BatchNormalization,
        'call',
        lambda self, x, training=None, mask=None: seen.append(what) or x,
    )
    net(rng.normal(size=(4, *shape)), training=True)
    assert seen == [what]


def test_fused_norm_is_saved_as_keras(net, tmp_path):
    before = net.to_json()
    compile_triplet(triplet_model(net))
    assert net.to_json() == before and any('call' in vars(l) for l in net._flatten_layers())
    net.save(tmp_path / 'net.keras')
    back = keras.models.load_model(tmp_path / 'net.keras', compile=False)
    x = rng.integers(0, 256, (3, 32, 32, 3)).astype('float32')
    assert (back(x).numpy() == net(x).numpy()).all() and not any(
        'call' in vars(l) for l in back._flatten_layers()
    )


@pytest.mark.parametrize('joint', [True, False])
def test_fit_with_the_default(net, photos, joint):
    model = compile_triplet(triplet_model(net, joint), learning_rate=1e-3)
    data = tf.data.Dataset.from_tensors((tuple(photos), np.ones(5, 'float32'))).repeat(8)
    losses = model.fit(data, verbose=0).history['loss'] + model.fit(data, verbose=0).history['loss']
    assert np.isfinite(losses).all() and losses[1] < losses[0]


def test_shared_base_learns(net, photos):
    before = [w.copy() for w in net.get_weights()]
    compile_triplet(triplet_model(net)).fit(photos, np.zeros(5), verbose=0)
    assert any((a != b).any() for a, b in zip(before, net.get_weights()))


@pytest.mark.parametrize(
    'words,kw,activation',
    [
        ('N=128, the codes have 6', dict(loss=LosslessTripletLoss(N=128)), 'sigmoid'),
        ('N=5', dict(loss=TripletLoss(N=5)), 'l2'),
        ('embedding ends in linear', {}, None),
        ('ends in relu', {}, 'relu'),
        ('unit_length ends in vectors of length 1', {}, 'l2'),
    ],
)
@pytest.mark.parametrize('joint', [True, False])
def test_loss_must_fit_the_base(words, kw, activation, joint):
    model = triplet_model(
        base_network((32, 32, 3), 6, backbone='small', hidden=(), activation=activation), joint
    )
    with pytest.raises(ValueError, match=words):
        compile_triplet(model, **kw)
    compile_triplet(model, TripletLoss())


def test_errors_name_the_model(net):
    with pytest.raises(ValueError, match='base_network has 1 inputs'):
        compile_triplet(net)
    i = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match='maps should turn one input into codes'):
        triplet_model(keras.Model(i, layers.Conv2D(2, 3)(i), name='maps'))


def test_pixels_stay_exact_under_mixed_precision(photos):
    old = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy('mixed_bfloat16')
        net = base_network((32, 32, 3), 6, backbone='small', hidden=())
        model = triplet_model(net)
        out, want = (
            model.predict(photos, verbose=0),
            np.hstack([net.predict(x, verbose=0) for x in photos]),
        )
    finally:
        keras.config.set_dtype_policy(old)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, want, atol=0.02)


def test_drawing(net):
    import matplotlib.pyplot as plt

    for joint in True, False:
        texts = [t.get_text() for t in draw_model(triplet_model(net, joint)).texts]
        assert {'anchor', 'positive', 'negative', '[a|p|n]\n(b, 18)'} <= set(texts) and texts.count(
            'base_network'
        ) == (1 if joint else 3)
    plt.close('all')
