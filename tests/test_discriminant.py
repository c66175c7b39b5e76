"The linear discriminant: its definition, unseen products, and where it is in a network."

import numpy as np
import pytest

from triplet_fashion.base_network import backbone_of, base_network, separate, standardize
from triplet_fashion.discriminant import discriminant
from triplet_fashion.persistence import load_bundle, save_bundle
from triplet_fashion.training import Recipe, fit
from test_stages import backbone  # noqa: F401, a fixture

rng = np.random.default_rng(0)


def shop(products, d=40, views=4, seed=0):
    "Return features and labels: products differ in ten directions, photos far more in the others."
    r = np.random.default_rng(seed)
    labels = np.repeat(np.arange(products), views)
    x = np.concatenate(
        [
            r.normal(size=(products, 10))[labels] + 0.3 * r.normal(size=(len(labels), 10)),
            3 * r.normal(size=(len(labels), d - 10)),
        ],
        axis=1,
    )
    turn = np.linalg.qr(np.random.default_rng(99).normal(size=(d, d)))[0]
    return x @ turn, labels


def covariance_within(x, labels):
    apart = np.concatenate(
        [x[labels == c] - x[labels == c].mean(axis=0) for c in np.unique(labels)]
    )
    return apart.T @ apart / len(x)


def right_at_1(x, labels):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    near = x @ x.T - 9 * np.eye(len(x))
    return np.mean(labels[near.argmax(axis=1)] == labels)


@pytest.mark.parametrize('n, d', [(200, 12), (20, 60)])
def test_photos_of_one_product_differ_equally_in_all_directions_kept(n, d):
    x, labels = rng.normal(size=(n, d)) + 5, np.arange(n) % 9
    kernel, _ = discriminant(x, labels, dims=8, shrinkage=0.1)
    centred = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    basis = vectors[:, values > 1e-6 * values[-1]]
    within = covariance_within(x, labels)
    shrunk = within + 0.1 * np.trace(within) / basis.shape[1] * (basis @ basis.T)
    found = kernel.T @ shrunk @ kernel
    np.testing.assert_allclose(found / found[0, 0], np.eye(8), atol=1e-3)


def test_products_never_seen_are_found_better():
    (x, labels), (other, others) = shop(60), shop(60, seed=1)
    kernel, bias = discriminant(x, labels, dims=16)
    assert right_at_1(other @ kernel + bias, others) > right_at_1(other, others) + 0.3


def test_the_order_and_the_names_of_products_do_not_matter():
    x, labels = shop(12)
    a, b = discriminant(x, labels, 8)
    order = rng.permutation(len(x))
    c, d = discriminant(x[order], np.array([f'product {i:02}' for i in labels])[order], 8)
    np.testing.assert_allclose(
        np.abs(x @ a + b), np.abs(x @ c + d), atol=1e-4
    )  # the sign of a direction is free


def test_length_is_one_on_average_and_the_middle_is_zero():
    x, labels = shop(12)
    kernel, bias = discriminant(x, labels, 64)
    found = x @ kernel + bias
    np.testing.assert_allclose(np.linalg.norm(found, axis=1).mean(), 1, rtol=1e-5)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    assert (
        kernel.shape == (40, 64) and not kernel[:, 11:].any() and kernel[:, :11].any(axis=0).all()
    )


@pytest.mark.parametrize(
    'x, labels, said',
    [
        (np.ones((4, 3)), [0, 0, 1, 1], 'all rows of features are equal'),
        (rng.normal(size=(4, 3)), [0, 1, 2, 3], 'two photos'),
        (rng.normal(size=(4, 3)), [0, 0, 0, 0], 'two products'),
        (np.repeat([[1.0, 2], [3, 5]], 2, axis=0), [0, 0, 1, 1], 'do not differ at all'),
        (rng.normal(size=(4, 3)), [0, 0, 1], '4 rows of features, 3 labels'),
    ],
)
def test_what_cannot_be_computed_is_said(x, labels, said):
    with pytest.raises(ValueError, match=said):
        discriminant(x, labels)


@pytest.mark.parametrize('wrong', [0, -1, float('nan')])
def test_shrinkage_is_above_zero(wrong):
    with pytest.raises(ValueError, match='shrinkage is'):
        discriminant(*shop(4), shrinkage=wrong)


def test_the_head_begins_as_the_discriminant(backbone):
    net = base_network(
        (48, 48, 3),
        6,
        backbone,
        hidden=(),
        activation='l2',
        trainable=False,
        stages='all',
        discriminant=6,
    )
    photos = rng.integers(0, 256, (12, 48, 48, 3)).astype('uint8')
    rows, labels = backbone_of(net).predict(photos, verbose=0), np.repeat(np.arange(4), 3)
    separate(standardize(net, rows), rows, labels)
    kernel, bias = discriminant(np.asarray(net.get_layer('standardize')(rows)), labels, 6)
    want = np.asarray(net.get_layer('standardize')(rows)) @ kernel + bias
    np.testing.assert_allclose(
        net.predict(photos, verbose=0),
        want / np.linalg.norm(want, axis=1, keepdims=True),
        atol=1e-4,
    )
    assert (
        not net.get_layer('discriminant').trainable_weights
        and net.get_layer('embedding').trainable_weights
    )


def test_fit_computes_it_and_a_bundle_keeps_it(drawn, backbone, tmp_path):
    how = dict(recipe='products', backbone=backbone, size=(48, 48), epochs=2, verbose=0)
    run = fit(drawn, **how)
    assert run.recipe.discriminant == 128 and np.any(
        run.net.get_layer('discriminant').get_weights()[0]
    )
    save_bundle(tmp_path / 'bundle', run.net)
    again, _ = load_bundle(tmp_path / 'bundle')
    photos = rng.integers(0, 256, (4, 48, 48, 3)).astype('uint8')
    np.testing.assert_allclose(
        again.predict(photos, verbose=0), run.net.predict(photos, verbose=0), atol=1e-6
    )
    assert not again.get_layer('discriminant').trainable_weights
    more = fit(drawn, run_dir=tmp_path / 'run', **how)
    for a, b in zip(run.net.get_weights(), more.net.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_keeps_the_discriminant_in_float32(drawn, backbone):
    run = fit(
        drawn,
        recipe='products',
        backbone=backbone,
        size=(48, 48),
        epochs=1,
        verbose=0,
        precision='bfloat16',
    )
    assert np.isfinite(run.net.predict(np.zeros((1, 48, 48, 3), 'uint8'), verbose=0)).all()
    assert np.any(run.net.get_layer('discriminant').get_weights()[0])


@pytest.mark.parametrize('wrong', [-1, 1.5, True, 'all'])
def test_a_number_that_is_none_is_named(backbone, wrong):
    with pytest.raises(ValueError, match='discriminant is'):
        base_network((48, 48, 3), 4, backbone, trainable=False, discriminant=wrong)


def test_it_needs_features_that_stay(backbone):
    for learns in True, 0.5:
        with pytest.raises(ValueError, match='give trainable=False'):
            base_network((48, 48, 3), 4, backbone, trainable=learns, discriminant=8)
    assert Recipe.named('products', backbone=str(backbone)).discriminant == 128


def test_a_network_that_was_trained_keeps_what_its_embedding_rests_on(drawn, backbone):
    how = dict(size=(48, 48), epochs=1, verbose=0)
    net = fit(drawn, recipe='products', backbone=backbone, **how).net
    before = [net.get_layer(name).get_weights() for name in ('standardize', 'discriminant')]
    fit(drawn.subset(drawn.labels < 6), recipe='strong', net=net, **how)
    for name, weights in zip(('standardize', 'discriminant'), before):
        for a, b in zip(weights, net.get_layer(name).get_weights()):
            np.testing.assert_array_equal(a, b)
