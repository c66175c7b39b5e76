"""Products with one photo: two views of it are a pair. Positions, pixels, features, trainings; what
is unreadable, sharded and taken up again; and what a catalog without them never notices."""

import dataclasses
import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings, strategies as st
from PIL import Image

from triplet_fashion.catalog import Catalog
from triplet_fashion.datasets import draw_catalog
from triplet_fashion.evaluation import BASELINES
from triplet_fashion.encoder import encode
from triplet_fashion.generator import augmentation, pk_dataset, triplet_dataset
from triplet_fashion.metrics import retrieval_metrics
from triplet_fashion.photos.augmentation import ViewAugmentation
from triplet_fashion.photos.sampling import PKSampler, TripletSampler
from triplet_fashion.training import Recipe, fit

SIZES = st.lists(st.integers(1, 5), min_size=2, max_size=9)
few = settings(max_examples=60, deadline=None, derandomize=True)
SMALL = dict(size=(32, 32), out_dims=8, monitor=None, verbose=0, epochs=2)


def shuffled(sizes, seed=0):
    "Class ids, in no order, of products with so many photos."
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def epochs(sampler, n=2):
    "Positions of the batches of some epochs."
    steps = range(n * sampler.steps)
    return [sampler.batch(*divmod(i, sampler.steps)).positions for i in steps]


def equal(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def arrays(ds):
    "The batches of a dataset, each as one list of arrays."
    return [[x.numpy() for x in tf.nest.flatten(b)] for b in ds]


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    return draw_catalog(tmp_path_factory.mktemp('drawn'), 12, 4, size=(40, 40))


@pytest.fixture(scope='module')
def half(drawn):
    "Products 0 to 5 with one photo, the other six with four."
    keep = np.unique(drawn.labels, return_index=True)[1][:6]
    return drawn.subset(np.union1d(keep, np.flatnonzero(drawn.labels > 5)))


@pytest.fixture(scope='module')
def singles(drawn):
    return drawn.subset(np.unique(drawn.labels, return_index=True)[1])


# ---- positions


@few
@given(sizes=SIZES, seed=st.integers(0, 99), batch_size=st.integers(1, 9))
def test_triplets_of_single_photos(sizes, seed, batch_size):
    y = shuffled(sizes, seed)
    count = np.bincount(y)
    sampler = TripletSampler(y, min(batch_size, len(y)), seed=seed, singles=True)
    a, p, n = np.concatenate(epochs(sampler, 1)).T
    assert sorted(a) == list(range(len(y)))  # each photo is the anchor once
    assert (y[a] == y[p]).all() and (y[a] != y[n]).all()
    assert np.array_equal(a == p, count[y[a]] == 1)
    views = sampler.views(np.stack([a, p, n], 1))
    assert np.array_equal(views[:, 1], count[y[p]] == 1) and not views[:, [0, 2]].any()


@few
@given(
    sizes=SIZES,
    seed=st.integers(0, 99),
    P=st.integers(2, 6),
    K=st.integers(2, 4),
    n=st.integers(1, 4),
)
def test_groups_of_single_photos(sizes, seed, P, K, n):
    y, P = shuffled(sizes, seed), min(P, len(sizes))
    count = np.bincount(y)
    whole = PKSampler(y, P, K, seed=seed, singles=True)
    assert whole.steps == -(-sum(K if m == 1 else m for m in sizes) // (P * K))
    for rows in epochs(whole):
        for photos, views in zip(rows.reshape(P, K), whole.views(rows).reshape(P, K)):
            single = count[y[photos[0]]] == 1
            assert len({*y[photos]}) == 1 and len({*photos}) == min(K, count[y[photos[0]]])
            assert views.tolist() == [*range(K)] if single else not views.any()
    if (P * K) % n:
        return
    shards = [whole.shard(i, n) for i in range(n)]
    for i, rows in enumerate(epochs(whole)):
        own = [s.batch(*divmod(i, whole.steps)).positions for s in shards]
        assert np.array_equal(np.concatenate(own), rows)
        views = [s.views(positions) for s, positions in zip(shards, own)]
        assert np.array_equal(np.concatenate(views), whole.views(rows))


@few
@given(sizes=st.lists(st.integers(2, 6), min_size=2, max_size=8), seed=st.integers(0, 99))
def test_without_single_photos_nothing_changes(sizes, seed):
    y = shuffled(sizes, seed)
    for make in (
        lambda **kw: PKSampler(y, 2, 3, seed=seed, **kw),
        lambda **kw: TripletSampler(y, 4, seed=seed, **kw),
    ):
        plain, other = make(), make(singles=True)
        assert equal(epochs(plain), epochs(other)) and plain.state_dict(3) == other.state_dict(3)


@few
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_a_state_knows_whether_single_photos_come(sizes, seed):
    y = shuffled(sizes, seed)
    assume(1 in sizes and sum(m > 1 for m in sizes) >= 2)
    for make in (
        lambda **kw: PKSampler(y, 2, 2, steps=3, seed=seed, **kw),
        lambda **kw: TripletSampler(y, 2, steps=3, seed=seed, **kw),
    ):
        used, left_out = make(singles=True), make()
        state = json.loads(json.dumps(used.state_dict(4)))
        again = make(singles=True)
        again.load_state_dict(state)
        rest = [again.batch(1, step).positions for step in (1, 2)]
        assert equal(rest, epochs(used)[4:])
        with pytest.raises(ValueError, match='other photos or settings'):
            left_out.load_state_dict(state)


# ---- positions, with photos that cannot be read


@few
@given(data=st.data(), sizes=SIZES, seed=st.integers(0, 99))
def test_what_is_left_of_a_product_is_enough(data, sizes, seed):
    "A product whose other photos cannot be read is a product with one photo."
    y = shuffled(sizes, seed)
    lost = data.draw(st.sets(st.integers(0, len(y) - 1), min_size=1))
    count = np.bincount(np.delete(y, list(lost)), minlength=len(sizes))
    P = min(4, len(sizes))
    groups, triplets = (
        PKSampler(y, P, 3, seed=seed, singles=True),
        TripletSampler(y, len(y), seed=seed, singles=True),
    )
    rows = groups.batch(0, 0).positions
    if (count > 0).sum() < 2:
        if np.isin(rows, list(lost)).any():
            with pytest.raises(ValueError, match='left with one that can be read'):
                groups.replace(rows, lost)
        with pytest.raises(ValueError, match='no two products are left'):
            triplets.replace(triplets.batch(0, 0).positions, lost)
        return
    made = groups.replace(rows, lost)
    assert not np.isin(made, list(lost)).any()
    for was, photos in zip(y[rows.reshape(P, 3)[:, 0]], made.reshape(P, 3)):
        c = y[photos[0]]
        assert len({*y[photos]}) == 1 and (c == was or count[was] == 0)
        assert c != was or len({*photos}) == min(3, count[c])
    drawn = triplets.batch(0, 0).positions
    a, p, n = triplets.replace(drawn, lost).T
    assert not np.isin([a, p, n], list(lost)).any()
    assert (y[a] == y[p]).all() and (y[a] != y[n]).all()
    assert np.array_equal(a == p, count[y[a]] == 1) or (count[y[a[a == p]]] <= 1).all()
    stays = count[y[drawn[:, 0]]] > 0
    assert np.array_equal(y[a][stays], y[drawn[:, 0]][stays])


# ---- pixels


def test_views_of_a_photo_differ_in_pixels(half):
    for augment in (True, 'views', augmentation(crop=0.3)):
        ds = pk_dataset(half, 12, 3, (32, 32), augment=augment)
        assert ds.info['singles'] == half.class_names[:6] and ds.info['left_out'] == []
        assert (ds.info['photos'], ds.info['products']) == (30, 12)
        for x, y in arrays(ds):
            for group in x[np.isin(y, range(6))].reshape(6, 3, -1):
                apart = [np.abs(group[i] - group[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
                assert min(apart) > 1  # level of 255
    ds = triplet_dataset(half, 30, (32, 32), augment=True)
    for a, p, n, y in arrays(ds):
        one = y < 6
        assert one.any() and np.abs(a - p)[one].mean((1, 2, 3)).min() > 1


def test_views_are_of_single_photos_only(half):
    "Others are augmented as if there were none."
    whole, alone = (pk_dataset(half, 12, 2, (32, 32), augment=a) for a in (True, augmentation()))
    for (x, y), (mild, _) in zip(arrays(whole), arrays(alone), strict=True):
        changed = np.abs(x - mild).max((1, 2, 3)) > 0
        assert np.array_equal(changed, y < 6)


def test_equal_views_are_no_pair(half, singles):
    "Nothing augmented: two equal photos would teach nothing, and products with one are left out."
    rows = np.arange(len(half), dtype='float32')[:, None]
    for how in (dict(size=(8, 8)), dict(inputs=rows)):
        for ds in (pk_dataset(half, 6, 2, **how), triplet_dataset(half, **how)):
            info = ds.info
            assert info['left_out'] == half.class_names[:6] and info['singles'] == []
    for make in (pk_dataset, triplet_dataset):
        with pytest.raises(ValueError, match='none of its 12 products.*augment=True makes them'):
            make(singles)
        with pytest.raises(ValueError, match="singles='keep' is unknown"):
            make(half, singles='keep')


def test_left_out_is_as_it_was(half):
    "What `singles='leave out'` gives are the batches of a catalog without them, pixel for pixel."
    several = half.subset(half.labels > 5)
    for make in (
        lambda c, **kw: pk_dataset(c, 4, 3, (16, 16), augment=True, seed=3, **kw),
        lambda c, **kw: triplet_dataset(several, 4, (16, 16), augment=True, seed=3, **kw),
    ):
        one = arrays(make(several))
        assert all(map(equal, one, arrays(make(several, singles='leave out'))))
    ds = pk_dataset(half, 4, 3, (16, 16), augment=True, singles='leave out')
    assert ds.info['left_out'] == half.class_names[:6] and (arrays(ds)[0][1] > 5).all()


@pytest.mark.parametrize('kind', ['pk', 'triplet'])
def test_views_again_from_any_place_and_in_shards(half, kind):
    def make(**kw):
        how = dict(size=(16, 16), augment=True, seed=4) | kw
        if kind == 'pk':
            return pk_dataset(half, 4, 3, **how)
        return triplet_dataset(half, 6, **how)

    whole = arrays(make())
    state = json.loads(json.dumps(make().state(2)))
    assert all(map(equal, arrays(make(state=state)), whole[2:]))
    shards = [arrays(make(shard=(i, 2))) for i in range(2)]
    for i, batch in enumerate(whole):
        both = [np.concatenate(parts) for parts in zip(*(s[i] for s in shards))]
        for x, y in zip(both, batch):
            np.testing.assert_allclose(x, y, atol=1e-3)


@pytest.mark.filterwarnings('ignore:.*stands in')
@pytest.mark.parametrize('cache', [True, False])
def test_a_product_whose_other_photo_breaks_shows_views(tmp_path, cache):
    paths, labels = [], np.repeat(np.arange(4), 2)
    for i, c in enumerate(labels):
        noise = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        paths.append(tmp_path / f'{i}.png')
        Image.fromarray(noise).save(paths[-1])
    paths[1].write_bytes(b'no photo')
    catalog = Catalog(paths, labels)
    for _ in range(2):
        ds = pk_dataset(catalog, 4, 2, (20, 20), augment=True, cache=cache)
        for x, y in [*arrays(ds), *arrays(ds)]:
            assert sorted(y) == [0, 0, 1, 1, 2, 2, 3, 3]
            first, second = x[y == 0]
            assert np.abs(first - second).mean() > 1
        assert len(ds.bad_photos()) == 1
    plain = pk_dataset(catalog, 3, 2, (20, 20), augment=True, cache=cache, singles='leave out')
    assert all((y != 0).all() for _, y in [*arrays(plain), *arrays(plain)])


@few
@given(
    copies=st.integers(2, 5), K=st.integers(2, 4), epoch=st.integers(0, 6), seed=st.integers(0, 9)
)
def test_views_are_different_copies_of_features(copies, K, epoch, seed):
    labels = np.array([0, 1, 1, 2, 3, 3, 3, 4])
    catalog = Catalog([f'{i}.png' for i in range(len(labels))], labels)
    rows = np.arange(len(labels) * copies, dtype='float32').reshape(len(labels), copies, 1)
    ds = pk_dataset(catalog, 5, K, inputs=rows, copies=copies, seed=seed, first_epoch=epoch)
    assert ds.info['singles'] == ['0', '2', '4']
    for x, y in arrays(ds):
        for c in (0, 2, 4):
            seen = x[y == c].ravel()
            assert len({*seen}) == min(K, copies)
            assert {*(seen // copies)} == {float(np.flatnonzero(labels == c)[0])}
    triplets = triplet_dataset(catalog, 8, inputs=rows, copies=copies, seed=seed, first_epoch=epoch)
    for a, p, n, y in arrays(triplets):
        assert (a != p).all()


@few
@given(
    seed=st.integers(0, 2**40),
    n=st.integers(1, 5),
    h=st.integers(4, 20),
    w=st.integers(4, 20),
)
def test_a_view_depends_on_its_photo_and_place_alone(seed, n, h, w):
    x = np.random.default_rng(seed).uniform(0, 255, (n, h, w, 3)).astype('float32')
    views = ViewAugmentation()
    made = views(x, (seed, 3)).numpy()
    assert made.shape == x.shape and made.min() >= 0 and made.max() <= 255
    assert np.array_equal(made, views(x, (seed, 3)).numpy())
    other = x.copy()
    other[1:] = 0
    np.testing.assert_array_equal(views(other, (seed, 3)).numpy()[0], made[0])


def test_a_projection_by_hand():
    "Turned by nothing, mirrored or not, twice as near: the middle half, each pixel twice."
    x = np.zeros((40, 9, 9, 3), 'float32')
    x[:, 4, 4] = 240
    still = dict(turn=0, zoom=(1, 1), shift=0, tilt=0, light=0, warmth=0, surround=0)
    mirrored = ViewAugmentation(**still)(x, 1).numpy()
    np.testing.assert_allclose(mirrored, x, atol=1e-3)  # the middle stays in the middle
    x[:] = np.linspace(0, 240, 9)[None, None, :, None]
    made = ViewAugmentation(**still)(x, 1).numpy()
    is_same = np.abs(made - x).max((1, 2, 3)) < 1e-2
    is_mirror = np.abs(made - x[:, :, ::-1]).max((1, 2, 3)) < 1e-2
    assert (is_same ^ is_mirror).all() and 8 < is_mirror.sum() < 32
    moved = ViewAugmentation(**still | dict(flip=False, zoom=(0.5, 2)))(x, 1).numpy()
    slopes = np.diff(moved[:, 4, 3:6, 0]).mean(1) / 30
    assert slopes.min() >= 0.49 and slopes.max() <= 2.01 and np.ptp(slopes) > 1


# ---- trainings


def backbone(size=32):
    "A backbone of two layers."
    i = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(6, 5, 4, activation='tanh', name='c1')(i)
    x = keras.layers.Conv2D(8, 3, 2, activation='tanh', name='c2')(x)
    return keras.Model(i, keras.layers.GlobalAveragePooling2D()(x), name='two_layers')


def test_fit_uses_them(half, singles):
    run = fit(half, recipe='scratch', P=6, K=2, **SMALL)
    assert run.plan['products with one photo'] == '6, in augmented views of it'
    assert (run.plan['photos'], run.plan['products']) == (30, 12)
    assert run.recipe.singles == 'augment' and len(run.history['loss']) == 2
    run = fit(singles, recipe='scratch', steps=2, **SMALL | dict(monitor='warn'))
    assert (run.recipe.P, run.recipe.K) == (12, 3) and run.plan['photos'] == 12


def test_fit_leaves_them_out_where_nothing_is_augmented(half, singles):
    for how, said in (
        (dict(recipe='scratch', augment=False), '6, as nothing is augmented'),
        (dict(recipe='scratch', singles='leave out'), 6),
        (dict(recipe='original', batch_size=4, steps=2), '6, as nothing is augmented'),
    ):
        run = fit(half, **how, **SMALL)
        assert run.plan['products with one photo, left out'] == said
        assert run.plan['products'] == 6 and run.recipe.singles == 'leave out'
        with pytest.raises(ValueError, match='none of its 12 products'):
            fit(singles, **how, **SMALL)


def test_a_head_learns_from_views_of_them(half, singles):
    how = dict(recipe='strong', backbone=backbone(), rescale=None) | SMALL
    for catalog in (half, singles):
        run = fit(catalog, **how)
        n = int((catalog.counts() == 1).sum())
        assert run.plan['products with one photo'] == f'{n}, in features of augmented views of it'
        assert run.plan['photos'] == len(catalog)
        assert np.isfinite(encode(catalog, run.net)).all()
    run = fit(half, singles='leave out', **how)
    assert run.plan['products with one photo, left out'] == 6


@pytest.mark.parametrize('unfreeze', [0.5, 1])
def test_fine_tuning_uses_them(singles, unfreeze):
    how = dict(recipe='deep', backbone=backbone(), rescale=None, unfreeze=unfreeze)
    if unfreeze < 1:
        how |= dict(copies=3)
    run = fit(singles, tune_epochs=2, **how, **SMALL | dict(monitor='warn'))
    assert len(run.history['loss']) == 4 and np.isfinite(run.history['loss']).all()


@pytest.mark.parametrize('frozen', [False, True])
def test_a_run_with_single_photos_goes_on_where_it_was(half, tmp_path, frozen):
    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                raise KeyboardInterrupt

    how = dict(recipe='strong', backbone=backbone(), rescale=None)
    if not frozen:
        how = dict(recipe='scratch', P=4, K=2)
    how |= SMALL | dict(epochs=3, seed=2)
    whole = fit(half, **how).net.get_weights()
    with pytest.raises(KeyboardInterrupt):
        fit(half, run_dir=tmp_path, callbacks=[Kill()], **how)
    again = fit(half, run_dir=tmp_path, **how).net.get_weights()
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_photo_that_cannot_be_read_makes_a_product_single(half, tmp_path):
    "Frozen, so that it is left out before the first step: what is left is shown in views."
    paths = [*half.paths]
    first = int(np.flatnonzero(half.labels == 6)[0])
    for i in range(first + 1, first + 4):
        paths[i] = tmp_path / f'{i}.jpg'
        paths[i].write_bytes(b'no photo')
    broken = Catalog(paths, half.labels, half.class_names)
    how = dict(recipe='strong', backbone=backbone(), rescale=None) | SMALL
    with pytest.warns(UserWarning, match='3 photos could not be read'):
        run = fit(broken, **how)
    assert len(run.info['singles']) == 7 and run.info['photos'] == 27


def test_single_photos_watched_are_searched_and_do_not_ask(half, drawn):
    "They are distractors: in the gallery, and no query, as nothing relevant is there to find."
    shown = np.random.default_rng(0).normal(size=(len(half), 4))
    r = retrieval_metrics(shown, half.labels, ks=(1,))
    assert r.ranks.counted.sum() == 24 and len(half) == 30
    without = half.labels > 5
    assert r['MAP@R'] < retrieval_metrics(shown[without], half.labels[without], ks=(1,))['MAP@R']
    with warnings.catch_warnings(action='ignore'):
        run = fit(drawn, valid=half, recipe='original', batch_size=8, steps=2, **SMALL)
    assert len(run.history['val_loss']) == len(run.history['val_MAP@R']) == 2


def test_recipes_know_what_to_do():
    assert Recipe.named('original').singles == 'leave out'
    assert Recipe.named('scratch').singles == Recipe().singles == 'augment'
    assert Recipe.named('scratch', augment='views').augment == 'views'
    for name, value in dict(singles='keep', augment='view').items():
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(Recipe.named('scratch'), **{name: value})


def test_one_photo_each_teaches_to_know_products(tmp_path):
    "60 drawn products with one photo each, then 20 others: far ahead of their colours."
    catalog = draw_catalog(tmp_path, 80, 6, size=(48, 48), seed=7)
    train, unseen = catalog.split(valid=0.25, by='product', seed=0)
    one = train.subset(np.unique(train.labels, return_index=True)[1])
    run = fit(one, recipe='scratch', size=(48, 48), epochs=50, steps=6, verbose=0, monitor=None)

    def found(embeddings):
        return retrieval_metrics(np.asarray(embeddings), unseen.labels, ks=(1,))['R@1']

    base = max(found(BASELINES[name](unseen)) for name in ('colour histogram', 'raw pixels'))
    assert found(encode(unseen, run.net)) > base + 0.1
