"Losses with proxies against formulas, Keras and pytorch-metric-learning; proxies are trained."

from pathlib import Path

import keras
import numpy as np
import pytest
from learning import Strike
import tensorflow as tf

from triplet_fashion.base_network import base_network
from triplet_fashion.catalog import Catalog
from triplet_fashion.contrastive import AcrossSets, CrossBatchMemory, SupConLoss
from triplet_fashion.learning_rate import find_learning_rate
from triplet_fashion.proxies import (
    ProxyAnchorLoss,
    ProxyHead,
    SubCenterArcFaceLoss,
    proxy_model,
)
from triplet_fashion.runs.checkpoints import RunFolder
from triplet_fashion.runs.state import training_variables
from triplet_fashion.training import Recipe, fit

referee = np.load(Path(__file__).parent / 'referees' / 'proxies.npz')
LOSSES = [ProxyAnchorLoss, SubCenterArcFaceLoss]
IDS = np.array([0, 2, 1])
COSINES = np.array([[0.6, 0.0, -0.6], [0.2, 0.1, 0.9], [-0.5, 0.3, 0.4]], 'float32')


def with_gradients(loss, head, labels, x):
    "Return the loss, and its gradients by embeddings and proxies, in one row."
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(labels, head(x))
    grads = tape.gradient(value, [x, head.proxies.value])
    return np.concatenate([[float(value)], *(np.ravel(g) for g in grads)])


def head_of_referee(K, dtype):
    head = ProxyHead(8, K, dtype=dtype)
    head.build((None, 6))
    head.proxies.assign(referee['proxies'][:, :K])
    return head


@pytest.mark.parametrize('dtype, close', [('float64', 1e-7), ('float32', 2e-4)])
@pytest.mark.parametrize('key', [k for k in referee.files if k.startswith(('anchor', 'arcface'))])
def test_equals_pytorch_metric_learning(key, dtype, close):
    "Values and gradients by embeddings and proxies; a batch lacks some of the eight products."
    kind, *settings = key.split('|')
    if kind == 'anchor':
        K, loss = 1, ProxyAnchorLoss(*map(float, settings), dtype=dtype)
    else:
        K = int(settings[0])
        loss = SubCenterArcFaceLoss(K, *map(float, settings[1:]), dtype=dtype)
    found = with_gradients(
        loss, head_of_referee(K, dtype), referee['labels'], referee['x'].astype(dtype)
    )
    np.testing.assert_allclose(found, referee[key], rtol=close, atol=close)


# ---- by hand


def test_proxy_anchor_by_hand():
    "Two photos of product 0, one of product 1, none of product 2; alpha 1, margin 0."
    s = np.array([[0.5, 0.1, 0.0], [0.2, -0.4, 0.3], [0.0, 0.8, -0.2]])
    pull = np.log1p(np.exp(-0.5) + np.exp(-0.2)) + np.log1p(np.exp(-0.8))
    push = np.log1p(np.exp(0.0)) + np.log1p(np.exp(0.1) + np.exp(-0.4))
    push += np.log1p(np.exp(0.0) + np.exp(0.3) + np.exp(-0.2))
    loss = ProxyAnchorLoss(margin=0, alpha=1, dtype='float64')
    assert float(loss([0, 0, 1], s)) == pytest.approx(pull / 2 + push / 3, rel=1e-12)


def test_arcface_by_hand():
    "The angle to the own proxy is made larger by the margin, before a softmax of scaled cosines."
    own, other, margin, scale = 0.6, 0.3, 0.4, 5
    turned = np.cos(np.arccos(own) + margin)
    expect = np.log(np.exp(scale * turned) + np.exp(scale * other)) - scale * turned
    loss = SubCenterArcFaceLoss(1, margin, scale, dtype='float64')
    assert float(loss([1], np.array([[other, own]]))) == pytest.approx(expect, rel=1e-12)


@pytest.mark.parametrize('smooth', [0.0, 0.1, 0.5])
def test_label_smoothing_is_that_of_keras(smooth):
    loss = SubCenterArcFaceLoss(1, margin=0, scale=3, label_smoothing=smooth)
    keras_own = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smooth)
    expect = float(keras_own(np.eye(3)[IDS], 3 * COSINES))
    assert float(loss(IDS, COSINES)) == pytest.approx(expect, rel=1e-5)


def test_a_product_counts_by_its_nearest_sub_center():
    head = ProxyHead(2, sub_centers=2)
    head.build((None, 2))
    head.proxies.assign([[[1, 0], [0, 3]], [[-1, 0], [0, -5]]])
    np.testing.assert_allclose(head(np.float32([[0, 2], [-4, 0]])), [[1, 0], [0, 1]], atol=1e-7)


def test_arcface_falls_with_the_cosine_everywhere():
    "No angle is made so large that the loss falls again; and its gradient is finite at both ends."
    s = tf.constant(np.linspace(-1, 1, 201), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(s)
        loss = SubCenterArcFaceLoss(1, margin=1.0, scale=1, reduction=None)
        values = loss(np.zeros(201, int), tf.stack([s, tf.zeros_like(s)], 1))
    assert (np.diff(values) < 1e-6).all() and np.isfinite(tape.gradient(values, s)).all()


def test_proxies_begin_at_the_means_of_their_photos():
    "Every second photo of a product makes its second sub-centre; without photos a proxy stays."
    head = ProxyHead(3, sub_centers=2, length=0.5)
    head.build((None, 2))
    before = head.proxies.numpy()
    photos = [[2.0, 0.0], [0.0, 1.0], [0.0, -3.0], [5.0, 0.0], [0.0, 1.0]]
    head.start_at(np.float32(photos), [1, 0, 1, 1, 1])
    after = head.proxies.numpy()
    np.testing.assert_allclose(after[0, 0], [0, 0.5], atol=1e-6)
    np.testing.assert_allclose(after[1, 0], [0.5, 0], atol=1e-6)  # the first and the third
    np.testing.assert_array_equal(after[1, 1], before[1, 1])  # the second and fourth cancel out
    np.testing.assert_array_equal(after[[0, 2], 1], before[[0, 2], 1])


# ---- the contract of Keras


@pytest.mark.parametrize('make', LOSSES)
def test_reductions_and_weights(make):
    each = make(reduction=None)(IDS, COSINES).numpy()
    assert each.shape == (3,)
    assert float(make(reduction='sum')(IDS, COSINES)) == pytest.approx(each.sum(), rel=1e-6)
    assert float(make()(IDS, COSINES)) == pytest.approx(each.mean(), rel=1e-6)
    weights = np.array([1.0, 0.0, 3.0])
    found = float(make()(IDS, COSINES, sample_weight=weights))
    assert found == pytest.approx((weights * each).mean(), rel=1e-6)


@pytest.mark.parametrize('dtype', [None, 'float16', 'bfloat16', 'float64'])
@pytest.mark.parametrize('make', LOSSES)
def test_dtypes(make, dtype):
    loss, expect = make(dtype=dtype), float(make(dtype='float64')(IDS, COSINES))
    value = loss(IDS, COSINES)
    assert value.dtype == (dtype or 'float32')
    assert float(value) == pytest.approx(expect, rel=1e-2 if 'float16' in str(dtype) else 1e-5)
    assert make.from_config(loss.get_config())(IDS, COSINES).dtype == value.dtype


@pytest.mark.parametrize(
    'loss',
    [
        ProxyAnchorLoss(0.2, 8.0, reduction='sum', name='mine', dtype='float16'),
        SubCenterArcFaceLoss(2, 0.2, 8.0, 0.1, reduction='sum', name='mine', dtype='bfloat16'),
    ],
)
def test_config_round_trip(loss):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    assert keras.saving.get_registered_name(type(loss)) == f'triplet_fashion>{type(loss).__name__}'


@pytest.mark.parametrize('make', LOSSES)
def test_photos_of_unknown_products_count_for_nothing(make):
    more = np.concatenate([COSINES, [[0.9, 0.9, 0.9]]]).astype('float32')
    value = float(make()([*IDS, None], more))
    assert value == pytest.approx(float(make()(IDS, COSINES)), rel=1e-6)
    assert float(make()([None], more[:1])) == 0


@pytest.mark.parametrize('make', LOSSES)
@pytest.mark.parametrize('column', [False, True])
def test_labels_of_several_kinds(make, column):
    expect = float(make()(IDS, COSINES))
    for kind in ('int32', 'uint8', 'float32'):
        labels = IDS.astype(kind)
        assert float(make()(labels[:, None] if column else labels, COSINES)) == expect


@pytest.mark.parametrize('make', LOSSES)
@pytest.mark.parametrize(
    'labels, x, error, word',
    [
        ([0, 1, 3], COSINES, tf.errors.InvalidArgumentError, 'labels must be 0 to 2'),
        (['a', 'b', 'c'], COSINES, ValueError, 'not text'),
        ([0, 1], COSINES, ValueError, '2 labels for 3 cosines'),
        (None, COSINES, ValueError, 'needs the labels'),
        (IDS, COSINES[None], ValueError, r'shape \(b, n_classes\)'),
    ],
)
def test_batches_that_mean_nothing(make, labels, x, error, word):
    with pytest.raises(error, match=word):
        make()(labels, x)


@pytest.mark.parametrize(
    'make, word',
    [
        (lambda: ProxyAnchorLoss(alpha=0), 'alpha=0'),
        (lambda: ProxyAnchorLoss(margin=-1), 'margin=-1'),
        (lambda: SubCenterArcFaceLoss(sub_centers=0), 'sub_centers=0'),
        (lambda: SubCenterArcFaceLoss(margin=28.6), 'radians'),
        (lambda: SubCenterArcFaceLoss(label_smoothing=1), 'label_smoothing=1'),
        (lambda: ProxyHead(0), 'n_classes=0'),
        (lambda: ProxyHead(3, length=0), 'length=0'),
        (lambda: CrossBatchMemory(ProxyAnchorLoss()), 'ProxyAnchorLoss is not'),
        (lambda: AcrossSets(ProxyAnchorLoss()), 'ProxyAnchorLoss is not'),
        (lambda: Recipe.named('original', loss=ProxyAnchorLoss()), "batches='pk'"),
        (lambda: Recipe.named('original', loss='proxy-anchor'), "'lossless'"),
        (lambda: Recipe.named('original', loss=AcrossSets(SupConLoss())), "batches='pk'"),
    ],
)
def test_settings_that_mean_nothing(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_a_network_of_another_kind_is_refused():
    three = [keras.Input((4,)) for _ in range(3)]
    net = keras.Model(three, keras.layers.Concatenate()(three))
    with pytest.raises(ValueError, match='one input into embeddings'):
        proxy_model(net, 3)
    with pytest.raises(ValueError, match='no Input yet'):
        proxy_model(keras.Sequential([keras.layers.Dense(3)]), 3)


# ---- trained by Keras


def data():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(6), 4)
    return (rng.normal(size=(6, 5))[ids] + 0.3 * rng.normal(size=(24, 5))).astype('float32'), ids


def net_of(width=3):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(width)])


@pytest.mark.parametrize('xla', [False, True], ids=['graph', 'xla'])
@pytest.mark.parametrize('make', LOSSES)
def test_network_and_proxies_are_trained_by_the_optimizer(make, xla, tmp_path):
    (x, ids), net = data(), net_of()
    model = proxy_model(net, 6, sub_centers=2)
    start = model.layers[-1].proxies.numpy()
    model.compile(keras.optimizers.Adam(0.05), make(), jit_compile=xla)
    history = model.fit(x, ids, batch_size=24, epochs=60, verbose=0).history['loss']
    assert history[-1] < 0.8 * history[0]
    assert np.abs(model.layers[-1].proxies.numpy() - start).min() > 0
    assert (model.predict(x, verbose=0).argmax(1) == ids).mean() > 0.8
    model.save(tmp_path / 'model.keras')
    again = keras.models.load_model(tmp_path / 'model.keras')
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    assert again.loss.get_config() == model.loss.get_config()


def test_the_network_is_saved_without_its_proxies(tmp_path):
    (x, ids), net = data(), net_of()
    model = proxy_model(net, 6)
    model.compile('adam', ProxyAnchorLoss())
    model.fit(x, ids, verbose=0)
    net.save(tmp_path / 'net.keras')
    again = keras.models.load_model(tmp_path / 'net.keras')
    assert again.output_shape == (None, 3) and len(again.weights) == 2
    np.testing.assert_array_equal(again.predict(x, verbose=0), net.predict(x, verbose=0))


@pytest.mark.parametrize('policy', ['mixed_bfloat16', 'mixed_float16'])
def test_under_mixed_precision_proxies_stay_exact(policy):
    (x, ids), inner = data(), keras.layers.Dense(3, dtype=policy)
    net = keras.Sequential([keras.Input((5,)), inner])
    model = proxy_model(net, 6)
    model.compile('adam', ProxyAnchorLoss())
    model.fit(x, ids, verbose=0)
    head = model.layers[-1]
    assert head.proxies.dtype == 'float32' and model.output.dtype == 'float32'
    assert np.isfinite(head.proxies.numpy()).all()


# ---- trained by `fit`


def tiny(trainable=False):
    keras.utils.set_random_seed(3)
    layers = keras.layers
    lower = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(4, 5, strides=4, activation='relu'),
            layers.Conv2D(8, 3),
            layers.GlobalAveragePooling2D(),
        ]
    )
    return base_network(
        (32, 32, 3), 8, lower, hidden=(16,), activation='l2', trainable=trainable, rescale='unit'
    )


SMALL = dict(P=5, K=3, size=(32, 32), epochs=2, steps=3, verbose=0)


@pytest.mark.parametrize('loss', ['proxy-anchor', 'arcface', SubCenterArcFaceLoss(sub_centers=2)])
@pytest.mark.parametrize('trainable', [False, True], ids=['frozen', 'whole'])
def test_fit_knows_them_by_name(drawn, loss, trainable):
    "Of a part of a catalog, the products that have photos get proxies, and no others."
    train, unseen = drawn.split(0.34, seed=1)
    recipe = 'scratch' if trainable else 'strong'
    run = fit(train, valid=unseen, recipe=recipe, net=tiny(trainable), loss=loss, **SMALL)
    assert np.isfinite(run.history['loss']).all() and len(run.history['val_MAP@R']) == 2
    assert train.num_classes == 12 and run.model.output_shape == (None, 8)
    K = run.model.layers[-1].sub_centers
    assert K == getattr(loss, 'sub_centers', 1) and run.net.output_shape == (None, 8)
    assert not any(isinstance(layer, ProxyHead) for layer in run.net._flatten_layers())


def test_proxies_of_a_frozen_network_begin_at_their_photos(drawn):
    "Before the first step each photo is nearer to its own proxy than to most."
    run = fit(drawn, recipe='strong', net=tiny(), loss='proxy-anchor', learning_rate=1e-9, **SMALL)
    x = np.stack(
        [
            keras.utils.img_to_array(keras.utils.load_img(p, target_size=(32, 32)))
            for p in drawn.paths
        ]
    )
    own = run.net.predict(x, verbose=0)
    centers = run.model.layers[-1].proxies.numpy()[:, 0]
    means = np.stack([own[drawn.labels == c].mean(0) for c in range(12)])
    cosines = (centers * means).sum(1) / np.linalg.norm(centers, axis=1)
    assert (cosines / np.linalg.norm(means, axis=1) > 0.99).all()


@pytest.mark.parametrize('at', [2, 5, 8])
@pytest.mark.parametrize('loss', ['proxy-anchor', SubCenterArcFaceLoss(sub_centers=2)])
def test_a_run_that_goes_on_has_the_proxies_it_had(drawn, tmp_path, loss, at):
    "In the head's stage and in the second one, whose proxies are those of the first."
    how = SMALL | dict(recipe='deep', loss=loss, unfreeze=0.5, tune_epochs=2, copies=2, seed=1)
    whole = fit(drawn, net=tiny(), monitor=None, **how)
    folder = RunFolder(tmp_path, steps=1)
    with pytest.raises(KeyboardInterrupt):
        fit(drawn, net=tiny(), monitor=None, run_dir=folder, callbacks=[Strike(at)], **how)
    run = fit(drawn, net=tiny(), monitor=None, run_dir=folder, **how)
    expect, found = training_variables(whole.model), training_variables(run.model)
    assert list(expect) == list(found)
    for k, v in expect.items():
        assert np.asarray(v).tobytes() == np.asarray(found[k]).tobytes(), k
    assert run.history == whole.history


def test_the_monitor_measures_embeddings_not_cosines(drawn):
    run = fit(drawn, recipe='strong', net=tiny(), loss='arcface', **SMALL)
    assert all(0 <= d <= 4 for d in run.history['d+'] + run.history['d-'])  # of unit length


def test_find_learning_rate_with_proxies(drawn):
    found = find_learning_rate(
        drawn, recipe='strong', net=tiny(), loss='proxy-anchor', steps=20, P=5, K=3, size=(32, 32)
    )
    assert len(found.losses) >= 10


def test_more_sub_centers_than_photos_are_refused_before_a_photo_is_read():
    gone = Catalog([f'{i}.jpg' for i in range(9)], np.repeat([0, 1, 2], 3))
    with pytest.raises(ValueError, match='sub_centers=3, but half of the products have 3 photos'):
        fit(gone, recipe='strong', net=tiny(), loss=SubCenterArcFaceLoss(3), **SMALL)


def test_a_catalog_of_one_product_is_refused(drawn):
    one = Catalog(drawn.paths[:6], [0] * 6, ['a'])
    with pytest.raises(ValueError):
        fit(one, recipe='strong', net=tiny(), loss='proxy-anchor', **SMALL)
