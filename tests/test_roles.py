"""Photos of two sets, customers' and the shop's: roles in catalogs, in batches, in trainings."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings, strategies as st

from triplet_fashion.catalog import Catalog
from triplet_fashion.contrastive import AcrossSets, SupConLoss
from triplet_fashion.datasets import draw_catalog
from triplet_fashion.generator import pk_dataset
from triplet_fashion.photos.sampling import PKSampler
from triplet_fashion.training import fit

few = settings(max_examples=60, deadline=None, derandomize=True)
SMALL = dict(size=(32, 32), out_dims=8, monitor=None, verbose=0, epochs=2)
LOSS = AcrossSets(SupConLoss())


def frozen():
    "Settings of a head on features that are quick to compute."
    layers = [keras.Input((32, 32, 3)), keras.layers.AveragePooling2D(8), keras.layers.Flatten()]
    return dict(recipe='strong', backbone=keras.Sequential(layers), hidden=(), K=4, stages='last')


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    "Twelve products, each with three photos of customers and two of the shop; one has no customer."
    drawn = draw_catalog(tmp_path_factory.mktemp('drawn'), 13, 5, size=(40, 40))
    view = np.arange(len(drawn)) % 5
    asked = drawn.subset((view < 3) & (drawn.labels < 12)).with_role('customer')
    return asked + drawn.subset(view > 2).with_role('shop')


def test_roles_stay_with_their_photos(both):
    assert both.count_roles().tolist() == [2] * 12 + [1]
    train, valid = both.split(0.25)
    for part in (train, valid, both[::-1], both.sample(20), both.exclude(both.paths[:3])):
        known = dict(zip(both.paths, both.roles))
        assert part.roles.tolist() == [known[p] for p in part.paths]
    again = both + both.subset(both.roles == 'shop')  # a photo counts once
    assert again.roles.tolist() == both.roles.tolist()
    assert (both + Catalog(['x.jpg'], ['hat'])).roles is None
    with pytest.raises(ValueError, match='2 paths but 1 roles'):
        Catalog(['1.jpg', '2.jpg'], ['hat', 'coat'], roles=['shop'])


@few
@given(
    counts=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=9),
    K=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_each_product_of_a_batch_shows_both_sets(counts, K, seed):
    labels = np.repeat(np.arange(len(counts)), np.sum(counts, 1))
    roles = np.concatenate([np.repeat([0, 1], n) for n in counts])
    targets = np.stack([labels, roles], 1)
    able = [c for c, n in enumerate(counts) if min(n)]
    if len(able) < 2:
        with pytest.raises(ValueError, match='P=2'):
            PKSampler(targets, 2, K, seed=seed)
        return
    sampler = PKSampler(targets, 2, K, seed=seed)
    seen = set()
    for i in range(sampler.coverage['photos']):
        rows = sampler.batch(*divmod(i, sampler.steps)).positions.reshape(2, K)
        for group in rows:
            own = roles[group]
            assert len({*labels[group]}) == 1 and labels[group[0]] in able
            assert (own == 0).sum() == (K + 1) // 2 and (own == 1).sum() == K // 2
        seen |= {*rows.ravel()}
    assert seen == {*np.flatnonzero(np.isin(labels, able))}
    state = json.loads(json.dumps(sampler.state_dict()))
    with pytest.raises(ValueError, match='other photos or settings'):
        PKSampler(labels, 2, K, seed=seed).load_state_dict(state)


def test_batches_say_label_and_role(both):
    ds = pk_dataset(both, 4, 4, size=(8, 8), roles=True)
    for _, y in ds:
        assert y.shape == (16, 2) and y.dtype == tf.int32
        assert y.numpy()[:, 1].reshape(4, 4).tolist() == [[0, 0, 1, 1]] * 4  # customer, shop
    assert ds.info['left_out'] == [both.class_names[12]] and ds.info['products'] == 12
    plain = pk_dataset(both, 4, 4, size=(8, 8))
    assert plain.info['products'] == 13 and next(iter(plain))[1].shape == (16,)


def test_three_sets_need_three_places():
    targets = np.stack([np.repeat([0, 1], 3), [0, 1, 2] * 2], 1)
    with pytest.raises(ValueError, match='K=2, but a product has photos of 3 sets'):
        PKSampler(targets, 2, 2)
    assert sorted(PKSampler(targets, 2, 3).batch(0, 0).positions) == [*range(6)]


@pytest.mark.parametrize(
    'make, anchors',
    [(lambda: dict(recipe='scratch', K=4), None), (frozen, None), (frozen, 'customer')],
    ids=['photos', 'features', 'anchors'],
)
def test_fit_compares_customers_with_the_shop(both, make, anchors):
    loss, told = AcrossSets(SupConLoss(), anchors), []
    run = fit(both, loss=loss, **SMALL | make(), show_plan=told.append)
    assert run.info['products'] == 12 and np.isfinite(run.history['loss']).all()
    assert told[0]['products with photos of one role, left out'] == 1
    assert run.model.loss.anchors == (None if anchors is None else 0)
    assert loss.anchors == anchors  # the one that was given stays


def test_a_monitor_and_a_validation_set(both):
    train, valid = both.split(0.3, seed=1)
    how = SMALL | dict(recipe='scratch', K=4, monitor='warn', epochs=1)
    run = fit(train, valid, loss=LOSS, **how)
    assert len(run.history['val_MAP@R']) == 1 and len(run.history['d+']) == 1


def test_a_killed_run_goes_on_where_it_was(both, tmp_path):
    how = SMALL | frozen() | dict(loss=LOSS)
    whole = fit(both, **how)

    def stop(epoch, logs):
        raise KeyboardInterrupt

    killed = keras.callbacks.LambdaCallback(on_epoch_end=stop)
    with pytest.raises(KeyboardInterrupt):
        fit(both, **how, run_dir=tmp_path, callbacks=[killed])
    again = fit(both, **how, run_dir=tmp_path)
    for a, b in zip(whole.net.get_weights(), again.net.get_weights(), strict=True):
        assert np.array_equal(a, b)
    roles = both.roles[::-1]
    other = Catalog(both.paths, both.labels, both.class_names, both.root, roles=roles)
    with pytest.raises(ValueError, match='photos'):
        fit(other, **how, run_dir=tmp_path)


@pytest.mark.parametrize(
    'roles, how, said',
    [
        (None, {}, "its photos have no roles.*with_role\\('customer'\\)"),
        ('shop', {}, 'photos of two roles'),
        (
            ...,
            dict(loss=AcrossSets(SupConLoss(), 'street')),
            "'street' is none.*'customer', 'shop'",
        ),
        (..., dict(batches='triplet', batch_size=4), 'takes labelled photos'),
    ],
    ids=['none', 'one', 'anchors', 'triplets'],
)
def test_what_cannot_be_compared_is_said_before_a_photo_is_read(both, roles, how, said):
    paths = [f'gone/{i}.jpg' for i in range(len(both))]
    roles = both.roles if roles is ... else roles
    photos = Catalog(paths, both.labels, both.class_names, roles=roles)
    with pytest.raises(ValueError, match=said):
        fit(photos, **SMALL | dict(recipe='scratch', loss=LOSS) | how)
