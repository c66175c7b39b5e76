"""Features of several stages: pooled as NumPy pools them, standardized in the network, and
everywhere a network goes."""

import keras
import numpy as np
import pytest
from keras import layers

from triplet_fashion.base_network import MeanAndDeviation, backbone_of, backbone_stages
from triplet_fashion.base_network import base_network, freeze, head_of, standardize
from triplet_fashion.catalog import Catalog
from triplet_fashion.cutting import cut_network
from triplet_fashion.encoder import encode
from triplet_fashion.features import features
from triplet_fashion.persistence import load_bundle, save_bundle
from triplet_fashion.engines import make_engine
from triplet_fashion.evaluation import before_training
from triplet_fashion.learning_rate import find_learning_rate
from triplet_fashion.training import Recipe, fit

rng = np.random.default_rng(0)
PHOTOS = rng.integers(0, 256, (6, 48, 48, 3)).astype('uint8')


def pretrained(path):
    """Save a small backbone with a sum in it, as one that was learned elsewhere is given, and
    return the name of the file."""
    x = photo = keras.Input((None, None, 3))
    for width in 8, 12:
        x = layers.Conv2D(width, 3, strides=2, padding='same', activation='relu')(x)
        x = layers.Add()([x, layers.Conv2D(width, 3, padding='same')(x)])
    keras.Model(photo, layers.GlobalAveragePooling2D()(x)).save(path)
    return str(path)


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp('backbone') / 'mine.keras')


@pytest.fixture(scope='module')
def net(backbone):
    keras.utils.set_random_seed(0)
    made = base_network(
        (48, 48, 3), 8, backbone, hidden=(), activation='l2', trainable=False, stages='all'
    )
    return standardize(made, backbone_of(made).predict(PHOTOS, verbose=0))


@pytest.mark.parametrize('policy', ['float32', 'mixed_bfloat16'])
def test_means_and_deviations_are_those_of_numpy(policy):
    x = rng.normal(3, 2, (2, 7, 5, 4)).astype('float32')
    want = np.concatenate([x.mean((1, 2)), x.std((1, 2))], axis=1)
    got = np.asarray(keras.ops.cast(MeanAndDeviation(dtype=policy)(x), 'float32'))
    np.testing.assert_allclose(got, want, rtol=1e-5 if policy == 'float32' else 1e-2)


def test_a_flat_channel_has_a_gradient():
    import tensorflow as tf

    x = tf.Variable(np.ones((1, 3, 3, 2), 'float32'))
    with tf.GradientTape() as tape:
        out = tf.reduce_sum(MeanAndDeviation()(x))
    assert np.isfinite(tape.gradient(out, x).numpy()).all()


@pytest.mark.parametrize('name', ['ResNet50', 'MobileNetV2', 'EfficientNetB0', 'VGG16'])
def test_the_last_means_are_what_the_backbone_pools_itself(name):
    keras.utils.set_random_seed(1)
    last = base_network((64, 64, 3), 4, name, weights=None, hidden=())
    keras.utils.set_random_seed(1)
    several = base_network((64, 64, 3), 4, name, weights=None, hidden=(), stages='all')
    photos = rng.integers(0, 256, (2, 64, 64, 3)).astype('float32')
    usual, more = (backbone_of(n).predict(photos, verbose=0) for n in (last, several))
    width = usual.shape[1]
    np.testing.assert_allclose(more[:, -2 * width : -width], usual, rtol=1e-3, atol=1e-5)
    assert more.shape[1] > 2 * width


@pytest.mark.parametrize(
    'name, n', [('EfficientNetB0', 6), ('MobileNetV3Small', 5), ('ResNet50', 5)]
)
def test_blocks_that_squeeze_are_no_stages(name, n):
    made = base_network((224, 224, 3), 4, name, weights=None, hidden=())
    assert len(backbone_stages(made)) == n


def test_numbers_choose_stages(backbone):
    keras.utils.set_random_seed(0)
    all_of_them = base_network((48, 48, 3), 4, backbone, hidden=(), stages='all')
    first = base_network((48, 48, 3), 4, backbone, hidden=(), stages=[1])
    both = backbone_of(all_of_them).predict(PHOTOS, verbose=0)
    np.testing.assert_allclose(
        backbone_of(first).predict(PHOTOS, verbose=0), both[:, :16], rtol=1e-6
    )
    assert both.shape[1] == 2 * 8 + 2 * 12


@pytest.mark.parametrize('stages', ['first', None, [], [0], [3], [1.5], [True], 2])
def test_stages_that_are_not_there_are_named(backbone, stages):
    with pytest.raises(ValueError, match=r"stages is .*such as \[1, 2\].* has 2"):
        base_network((48, 48, 3), 4, backbone, stages=stages)


def test_a_channel_that_never_changes_is_not_blown_up(backbone):
    made = base_network((48, 48, 3), 4, backbone, hidden=(), stages='all')
    x = rng.normal(size=(20, 40)).astype('float32')
    x[:, 3] = 5.0
    standardize(made, x)
    x[:, 3] = 5.001
    assert np.abs(np.asarray(made.get_layer('standardize')(x))).max() < 5


def test_a_head_without_standardization_stays_as_it_is(backbone):
    usual = base_network((48, 48, 3), 4, backbone, hidden=())
    before = usual.get_weights()
    assert standardize(usual, np.ones((3, 12))) is usual
    for a, b in zip(before, usual.get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('engine', ['litert', 'openvino', 'onnxruntime'])
def test_every_engine_computes_them(net, engine):
    want = net.predict(PHOTOS.astype('float32'), verbose=0)
    try:
        run = make_engine(net, engine, PHOTOS.astype('float32'))
    except (ImportError, ValueError) as e:
        if 'not installed' in str(e):
            pytest.skip(str(e))
        raise
    np.testing.assert_allclose(run(PHOTOS.astype('float32')), want, atol=1e-4)


def test_a_bundle_keeps_statistics_and_embeddings(net, tmp_path):
    save_bundle(tmp_path / 'bundle', net)
    again, _ = load_bundle(tmp_path / 'bundle')
    np.testing.assert_allclose(encode(PHOTOS, again), encode(PHOTOS, net), atol=1e-6)
    for name in 'mean', 'variance':
        np.testing.assert_allclose(
            getattr(again.get_layer('standardize'), name),
            getattr(net.get_layer('standardize'), name),
            rtol=1e-6,
        )


def test_fit_standardizes_with_the_photos_it_learns_from(drawn, backbone):
    run = fit(
        drawn,
        recipe='products',
        backbone=backbone,
        size=(48, 48),
        out_dims=8,
        epochs=2,
        verbose=0,
        colors=False,
    )
    assert run.recipe.stages == 'all' and run.plan['recipe'] == 'products'
    rows = np.asarray(run.net.get_layer('standardize')(features(run.net, drawn)))
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-3)
    ((name, before),) = before_training(run).items()
    np.testing.assert_allclose(before(drawn), rows, rtol=1e-4, atol=1e-4)
    assert name == 'frozen backbone' and head_of(run.net).layers[0].name == 'standardize'


def test_the_same_seed_gives_the_same_network(drawn, backbone, tmp_path):
    how = dict(
        recipe='products', backbone=backbone, size=(48, 48), out_dims=8, epochs=2, verbose=0, seed=3
    )
    a, b = fit(drawn, **how), fit(drawn, run_dir=tmp_path / 'run', **how)
    for x, y in zip(a.net.get_weights(), b.net.get_weights()):
        np.testing.assert_array_equal(x, y)


def test_a_range_test_leaves_the_network_as_it_was(drawn, net):
    before = net.predict(PHOTOS, verbose=0)
    find_learning_rate(drawn, 'products', net=net, steps=12)
    np.testing.assert_array_equal(net.predict(PHOTOS, verbose=0), before)


def test_what_does_not_go_together_is_said(drawn, backbone):
    with pytest.raises(ValueError, match="stages is 'none'"):
        fit(drawn, recipe='products', backbone=backbone, size=48, stages='none', verbose=0)
    assert (
        fit(drawn, recipe='products', size=(32, 32), epochs=1, steps=1, verbose=0)
        .plan['recipe']
        .startswith('scratch, as')
    )


def many_each(catalog, each):
    "The photos of `catalog` again and again, until two products have so many each."
    kept = catalog.subset(np.isin(catalog.labels, catalog.products[:2]))
    times = -(-each * 2 // len(kept))
    return Catalog(list(kept.paths) * times, list(kept.labels) * times, kept.class_names, kept.root)


@pytest.mark.parametrize('photos,chosen', [('few', 'products'), ('many', 'strong')])
def test_the_photos_choose_the_recipe(drawn, backbone, photos, chosen):
    catalog = drawn if photos == 'few' else many_each(drawn, 100)
    run = fit(
        catalog, backbone=backbone, size=48, epochs=1, steps=1, out_dims=8, verbose=0, monitor=None
    )
    assert run.plan['recipe'].startswith(f'{chosen}, as the photos look like')
    assert run.recipe.stages == 'all' and bool(run.recipe.discriminant) == (chosen == 'products')


def test_the_network_chooses_the_recipe(drawn, backbone, net):
    how = dict(epochs=1, steps=1, verbose=0, monitor=None)
    assert fit(drawn, net=net, **how).plan['recipe'] == 'strong'
    own = base_network(
        (48, 48, 3), 4, backbone, hidden=(), stages='all', discriminant=4, trainable=False
    )
    assert fit(drawn, net=own, **how).plan['recipe'] == 'products'
    assert fit(drawn, size=32, **how).plan['recipe'].startswith('scratch, as')
    with pytest.raises(ValueError, match="recipe='auto' is chosen by the photos"):
        Recipe.named('auto')


def test_the_recipe_says_at_which_size_photos_are_read(drawn, backbone, tmp_path):
    how = dict(backbone=backbone, epochs=1, steps=1, out_dims=8, verbose=0, monitor=None)
    wide = fit(
        drawn,
        recipe=Recipe.named('products', backbone=str(backbone), size=64),
        epochs=1,
        steps=1,
        verbose=0,
        monitor=None,
    )
    assert wide.net.input_shape[1:3] == wide.recipe.size == (64, 64)
    assert (
        Recipe.named('products').size == 224
        and Recipe.named('products', backbone=str(backbone)).size == 320
    )  # from scratch, and not
    x = keras.Input((40, 56, 3))
    fixed = keras.Model(x, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(x)))
    fixed.save(tmp_path / 'fixed.keras')
    for own in fixed, str(tmp_path / 'fixed.keras'):  # takes no other size
        assert fit(drawn, **how | dict(backbone=own)).net.input_shape[1:3] == (40, 56)
    with pytest.raises(ValueError, match="size=0: expected"):
        Recipe.named('strong', backbone='ResNet50', size=0)


def test_only_the_last_stage_where_a_part_of_the_backbone_learns(backbone):
    own = dict(backbone=str(backbone))
    assert (
        Recipe.named('strong', **own).stages
        == Recipe.named('deep', stages='all', **own).stages
        == 'all'
    )
    for name, changes in (
        ('strong', dict(unfreeze=0.5)),
        ('deep', {}),
        ('strong', dict(trainable=0.5)),
    ):
        assert Recipe.named(name, **changes, **own).stages == 'last'


@pytest.mark.parametrize('share', [0.3, 0.6, 0.8, 1.0])
@pytest.mark.parametrize('stages', ['all', [1, 2]])
@pytest.mark.parametrize('colors', [False, True])
def test_a_network_of_stages_is_cut_with_what_is_pooled_below(backbone, share, stages, colors):
    kw = dict(discriminant=4, colors=True) if colors else {}
    net = base_network((48, 48, 3), 4, backbone, hidden=(), stages=stages, trainable=False, **kw)
    lower, upper = cut_network(freeze(net, share))
    np.testing.assert_allclose(upper(lower(PHOTOS)), net(PHOTOS), atol=1e-5)
    assert not lower.trainable_weights
    if share == 0.8:  # inside the second stage: its map, means and deviations of the first, colours
        assert lower.output_shape == (None, 12 * 12 * 12 + 2 * 8 + colors * 8**3)
    assert {id(w) for w in upper.trainable_weights} == {id(w) for w in net.trainable_weights}


def test_deep_tunes_a_network_of_all_stages(drawn, backbone, tmp_path):
    how = dict(
        recipe='deep',
        stages='all',
        backbone=str(backbone),
        size=(48, 48),
        out_dims=8,
        hidden=(16,),
        epochs=2,
        tune_epochs=2,
        copies=2,
        verbose=0,
        monitor=None,
        seed=1,
    )
    run = fit(drawn, feature_cache=False, **how)
    assert head_of(run.net).layers[0].name == 'standardize' and len(run.history['loss']) == 4
    before = backbone_of(base_network((48, 48, 3), 8, str(backbone), stages='all', trainable=False))
    kept = [
        np.array_equal(a, b)
        for a, b in zip(backbone_of(run.net).get_weights(), before.get_weights())
    ]
    assert kept[0] and not kept[-1]
    again = fit(drawn, run_dir=tmp_path / 'run', **how)
    for a, b in zip(run.net.get_weights(), again.net.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_networks_with_wide_blocks_are_asked_at_the_ends_of_stages():
    every = base_network((64, 64, 3), 8, 'ResNet50', weights=None, stages='all', trainable=False)
    assert head_of(every).input_shape == (None, 2 * (64 + 256 + 512 + 1024 + 2048))
