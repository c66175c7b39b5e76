"applications: encodings, and the seed's tests with its faults put right and one argument away."

import warnings

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

keras = pytest.importorskip('keras')
from triplet_fashion.applications import (
    anchor_all_test,
    anchor_positive_test,
    anchor_test,
    encode,
    get_triplets,
    item_to_encoding,
    load_test_data,
    log_distance,
    triplet_test,
)
from triplet_fashion.catalog import Catalog
from triplet_fashion.metrics import nearest, triplet_accuracy
from triplet_fashion.verification import fit_threshold
from triplet_fashion.photos.image import PhotoError

SIZE = 16, 12  # height and width differ, so that a mix-up shows
few = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(scope='module')
def net():
    "An untrained network with outputs between 0 and 1."
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((*SIZE, 3)),
            keras.layers.Rescaling(1 / 64, -2),
            keras.layers.Flatten(),
            keras.layers.Dense(8, 'sigmoid'),
        ]
    )


@pytest.fixture(scope='module')
def photos():
    "Forty photos of five classes, labels out of order."
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(5), 8))
    base = rng.integers(0, 256, (5, *SIZE, 3))
    return np.clip(base[labels] + rng.normal(size=(40, *SIZE, 3)) * 40, 0, 255).astype(
        'uint8'
    ), labels


@pytest.fixture(scope='module')
def folder(photos, tmp_path_factory):
    "The same as files, in folders with awkward names."
    root = tmp_path_factory.mktemp('shop')
    for k, (image, label) in enumerate(zip(*photos)):
        (root / f'({label}) 옷 no.{label}').mkdir(exist_ok=True)
        Image.fromarray(image).save(root / f'({label}) 옷 no.{label}' / f'{k:02}.png')
    return root


@pytest.fixture(autouse=True)
def close():
    yield
    import matplotlib.pyplot as plt

    plt.close('all')


def code(d2, n=128):
    return np.full(n, (d2 / n) ** 0.5)


def coder(*codes):
    "A network for photos whose first pixel holds the row of `codes` to answer with."
    codes = np.array(codes)
    return lambda x: codes[np.asarray(x)[:, 0, 0, 0].astype(int)]


def numbered(*values):
    return np.tile(np.reshape(values, (-1, 1, 1, 1)), (1, 4, 4, 3)).astype('uint8')


# encode


def test_encode_is_the_network_whatever_holds_the_photos(net, photos, folder):
    images, labels = photos
    expected = net.predict(images, verbose=0)
    cat = Catalog.from_dir(folder)
    order = [int(p[-6:-4]) for p in cat.paths]
    for batch_size in (7, 40, 64):
        got = encode(images, net, batch_size)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(encode(cat, net, 9), expected[order], atol=1e-6)
    np.testing.assert_allclose(encode(cat.paths, net), expected[order], atol=1e-6)
    np.testing.assert_allclose(encode(list(images), net), expected, atol=1e-6)
    np.testing.assert_allclose(encode(images.astype('float32'), net), expected, atol=1e-6)
    for item in (images[3], cat.paths[order.index(3)]):
        one = item_to_encoding(item, net)
        assert one.shape == (1, 8)
        np.testing.assert_allclose(one, expected[3:4], atol=1e-6)


def test_encode_takes_a_function_and_shows_progress(photos, folder, capsys):
    def mean(x):
        return x.mean((1, 2))

    assert encode(photos[0], mean).shape == (40, 3)
    assert encode(Catalog.from_dir(folder), mean, 16, progress=True, size=SIZE).shape == (40, 3)
    assert '3 of 3' in capsys.readouterr().err


def test_encode_refuses_early(net, photos, tmp_path, folder):
    images, _ = photos
    calls = []

    def fail(images, message, error=ValueError, model=net, **kw):
        with pytest.raises(error, match=message):
            encode(images, model, **kw)

    fail(np.zeros((2, 12, 16, 3)), 'photos are 12x16, the network takes 16x12')
    fail(images[0], r'\(n, height, width, 3\)')
    fail(images[:0], 'holds no photos')
    fail([], 'holds no photos')
    fail([images[0], images[0][:4]], 'not all of one size')
    fail(Catalog.from_dir(folder).paths[0], 'is one path')
    fail(
        [folder / 'lost.jpg', *Catalog.from_dir(folder).paths],
        '1 of 41 files do not exist, the first is .*lost.jpg',
        FileNotFoundError,
    )
    fail(Catalog.from_dir(folder), 'photos of any size', model=lambda x: calls.append(x))
    fail(Catalog.from_dir(folder), 'photos are 8x8, the network takes 16x12', size=(8, 8))
    bad = tmp_path / 'bad.jpg'
    bad.write_bytes(b'not a photo')
    fail([bad], 'bad.jpg', PhotoError)
    three = [keras.Input((*SIZE, 3), name=k) for k in ('anchor', 'positive', 'negative')]
    joint = keras.Model(three, keras.layers.Concatenate()([net(x) for x in three]))
    fail(images, '3 inputs: encode with the base network', model=joint)
    fail(
        images,
        r'photos are \(n, height, width, 3\)',
        model=keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)]),
    )
    assert not calls


def test_encode_warns_of_photos_in_0_to_1(net, photos):
    with pytest.warns(UserWarning, match='0..255'):
        encode(photos[0] / 255, net)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        encode(photos[0].astype('float32'), net)
        encode(np.zeros((2, *SIZE, 3)), net)


def test_networks_of_any_size_and_half_precision(photos):
    any_size = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D(dtype='float16')]
    )
    e = encode(photos[0], any_size)
    assert e.dtype == np.float32
    np.testing.assert_allclose(e, photos[0].mean((1, 2)), rtol=2e-3)


# test data and triplets


def test_load_test_data(photos, folder):
    images, labels = photos
    cat = Catalog.from_dir(folder)
    x, y = load_test_data(folder, SIZE)
    assert x.dtype == np.uint8 and x.shape == images.shape and y.dtype == np.int32
    assert sorted(o.tobytes() for o in x) == sorted(o.tobytes() for o in images)
    assert all((o == images[labels == k]).all((1, 2, 3)).any() for o, k in zip(x, y))
    assert (np.diff(y) < 0).any()  # mixed
    np.testing.assert_array_equal(load_test_data(cat, SIZE)[0], x)  # and the same again
    assert not np.array_equal(load_test_data(cat, SIZE, seed=1)[1], y)
    np.testing.assert_array_equal(load_test_data(cat, SIZE, limit=7)[0], x[:7])
    ordered = load_test_data(cat, (8, 8), shuffle=False)
    assert ordered[0].shape == (40, 8, 8, 3) and (ordered[1] == cat.labels).all()
    assert (np.diff(load_test_data(cat, SIZE, limit=20, shuffle=False)[1]) >= 0).all()
    with pytest.raises(ValueError, match='limit=0'):
        load_test_data(cat, SIZE, limit=0)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        load_test_data(folder / 'nowhere')


@few
@given(st.lists(st.integers(0, 4), min_size=3, max_size=30), st.integers(0, 5))
def test_get_triplets_are_triplets(labels, seed):
    x, sizes = np.arange(len(labels)), np.bincount(labels)
    y = np.array(labels)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        if np.count_nonzero(sizes) < 2 or sizes.max() < 2:
            with pytest.raises(ValueError, match='labels'):
                get_triplets(x, y, 5, seed)
            return
        a, p, n = get_triplets(x, y, 50, seed)
    assert (a != p).all() and (y[a] == y[p]).all() and (y[a] != y[n]).all()
    lone = (sizes == 1).sum()
    assert [str(w.message).split(' classes')[0] for w in caught] == (
        [f'{lone} of {(sizes > 0).sum()}'] if lone else []
    )


def test_get_triplets_of_photos(photos):
    a, p, n = get_triplets(*photos, 30, seed=3)
    assert a.shape == p.shape == n.shape == (30, *SIZE, 3) and a.dtype == np.uint8
    for u, v in zip((a, p, n), get_triplets(*photos, 30, seed=3)):
        np.testing.assert_array_equal(u, v)
    assert not np.array_equal(get_triplets(*photos, 30)[0], get_triplets(*photos, 30)[0])
    with pytest.raises(ValueError, match=r'shape \(40,\)'):
        get_triplets(photos[0], photos[1][:5], 3)


# triplet test


def test_triplet_test_counts(net, photos):
    a, p, n = get_triplets(*photos, 60, seed=0)
    result = triplet_test(a, p, n, net)
    ea, ep, en = (net.predict(x, verbose=0).astype(float) for x in (a, p, n))
    near, far = ((ea - ep) ** 2).sum(1), ((ea - en) ** 2).sum(1)
    np.testing.assert_allclose(result.d_ap, near, atol=1e-5)
    assert result.counts == dict(right=(near < far).sum(), wrong=(near > far).sum(), tied=0)
    assert result.accuracy == pytest.approx(triplet_accuracy(ea, ep, en))
    assert (np.diff((near - far)[result.wrong]) <= 1e-9).all()
    for text in (repr(result), result._repr_html_()):
        assert f'{result.accuracy:.3f}' in text


def test_triplet_test_and_the_seeds_criterion():
    "PARITY 16: p + n < N is not p < n."
    a, p, n = numbered(0, 0, 0), numbered(1, 3, 0), numbered(2, 4, 0)
    model = coder(code(0), code(60), code(10), code(1), code(127.5))
    mine, seeds = triplet_test(a, p, n, model), triplet_test(a, p, n, model, criterion='original')
    assert (
        mine.right.tolist() == [False, True, False]
        and mine.counts == dict(right=1, wrong=1, tied=1)
        and mine.accuracy == 0.5
    )
    assert seeds.right.tolist() == [True, False, True] and seeds.counts == dict(
        right=2, wrong=1, tied=0
    )
    assert triplet_test(a, p, n, model, criterion='original', N=500).accuracy == 1
    with pytest.raises(ValueError, match="'best' is neither"):
        triplet_test(a, p, n, model, criterion='best')
    with pytest.raises(ValueError, match='3, 3, 2 photos'):
        triplet_test(a, p, n[:2], model)


def test_a_collapsed_network_is_no_good():
    a = numbered(*range(9))

    def collapsed(x):
        return np.full((len(x), 128), 0.5)

    assert triplet_test(a, a, a, collapsed, criterion='original').accuracy == 1
    assert triplet_test(a, a, a, collapsed).accuracy == 0.5


def test_nan_is_named(photos):
    x = photos[0][:4]
    with pytest.raises(ValueError, match='NaN or infinity for 4 of 4 photos'):
        triplet_test(x, x, x, lambda x: np.full((len(x), 3), np.nan))


def test_wrong_triplets_are_rows_of_three():
    model = coder([0.0], [0.9], [0.1])
    result = triplet_test(numbered(*[0] * 50), numbered(*[1] * 50), numbered(*[2] * 50), model)
    fig = result.show(limit=5, columns=2)
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert len(titles) == 15 and titles[:3] == ['anchor 0', 'positive 0.81', 'negative 0.01']
    assert fig.get_size_inches().max() < 12
    assert len([ax for ax in result.show(limit=1).axes]) == 3
    right = triplet_test(numbered(0), numbered(2), numbered(1), model)
    assert right.show() is None and right.accuracy == 1


# distances


@few
@given(st.integers(1, 64), st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1e-3, 0.1, 1]))
def test_log_distance_is_the_formula(n, seed, scale):
    x = np.random.default_rng(seed).random((5, n)) * scale
    y = np.random.default_rng(seed + 1).random(n) * scale
    d = ((x - y) ** 2).sum(1)
    np.testing.assert_allclose(
        log_distance(x, y, N=n), -np.log(1 - d / n + 1e-8), rtol=1e-7, atol=1.01e-8
    )


def test_log_distance_ends():
    one, zero = np.ones(128), np.zeros(128)
    assert log_distance(zero, zero) == 0 and log_distance(one, zero) == pytest.approx(-np.log(1e-8))
    tiny = log_distance(np.full(128, 1e-9), zero)
    assert tiny == pytest.approx(1e-18, rel=1e-6)  # in float32 this is 0
    d = np.float32(1e-9) ** 2 * 128
    assert -np.log(-d / np.float32(128) + np.float32(1) + np.float32(1e-8)) == 0
    steps = log_distance(np.linspace(0, 1, 999)[:, None] * one, zero)
    assert (np.diff(steps) > 0).all() and np.isfinite(steps).all()
    unit = np.array([[1.0, 0], [-1, 0], [0, 1]])  # rows of length one: the largest is 4
    np.testing.assert_allclose(
        log_distance(unit, unit[0]), [0, -np.log(1e-8), np.log(2)], atol=1e-7
    )
    with pytest.raises(ValueError, match='go up to 162, beyond N=2'):
        log_distance(np.full(2, 9.0), np.zeros(2))


# anchor tests


def test_anchor_test_counts(net, photos):
    images, labels = photos
    e = net.predict(images, verbose=0).astype(float)
    for anchor in (0, 17, -1):
        k = anchor % 40
        d = -np.log(1 - ((e - e[k]) ** 2).sum(1) / 8 + 1e-8)
        others = [i for i in range(40) if i != k][:25]
        right = [(d[i] < 0.02) == (labels[i] == labels[k]) for i in others]
        result = anchor_test(images, labels, net, anchor=anchor, threshold=0.02, test_size=25)
        assert (
            result.indices.tolist() == others and result.anchor == k and result.label == labels[k]
        )
        np.testing.assert_allclose(result.distances, d[others], atol=1e-5)
        assert result.counts == dict(
            right=sum(right), wrong=25 - sum(right)
        ) and result.accuracy == pytest.approx(np.mean(right))


@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
def test_a_threshold_goes_from_the_choice_through_the_bundle_into_the_anchor_tests(
    net, photos, tmp_path, metric
):
    from triplet_fashion.model import triplet_model
    from triplet_fashion.persistence import load_bundle, save_bundle

    images, labels = photos
    x = encode(images, net)
    chosen = fit_threshold(x, labels, fmr='eer', metric=metric)
    save_bundle(tmp_path / 'net', net, threshold=chosen)
    again, meta = load_bundle(tmp_path / 'net')
    assert (
        meta['threshold'] == chosen.note()
        and triplet_model(again).threshold == chosen.note()
        and not hasattr(triplet_model(net), 'threshold')
    )
    for test in (anchor_test, anchor_all_test, anchor_positive_test):
        a, b, seed = (
            test(images, labels, model, anchor=5, threshold=t)
            for model, t in ((again, None), (net, chosen), (net, None))
        )
        assert (a.threshold, a.metric) == (chosen.value, metric) and (
            seed.threshold,
            seed.metric,
        ) == (0.1, None)
        np.testing.assert_array_equal(a.similar, b.similar)
        want = nearest(x[5:6], x, k=40, metric=metric)
        far = want[0][0][np.argsort(want[1][0])][a.indices]
        np.testing.assert_allclose(a.distances, far, rtol=1e-4, atol=1e-6)
        assert 0 < a.similar.sum() and (a.similar == (far < chosen.value)).mean() > 0.95
    save_bundle(tmp_path / 'triplet', triplet_model(again))
    assert load_bundle(tmp_path / 'triplet')[0].threshold == chosen.note()


def test_the_seeds_anchor_label():
    "PARITY 17: the anchor is images[100], its label was taken from images[0]."
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 150)
    labels[[0, 100]] = 0, 1
    images, perfect = numbered(*labels), coder(*np.eye(5))
    assert anchor_test(images, labels, perfect, anchor=100, N=2).accuracy == 1
    seeds = anchor_test(images, labels, perfect, anchor=100, N=2, anchor_label=labels[0])
    assert (
        seeds.indices.tolist() == list(range(100))
        and seeds.counts['wrong'] == np.isin(labels[:100], [0, 1]).sum()
    )


def test_count_anchor_is_the_seeds_free_hit():
    "PARITY 19: with nothing recognised, the anchor alone is a hit."
    images, labels = numbered(*range(8)), np.zeros(8, int)
    blind = coder(*np.eye(8))
    fair, free = (
        anchor_positive_test(images, labels, blind, anchor=2, N=2, count_anchor=c)
        for c in (False, True)
    )
    assert (fair.counts, fair.accuracy) == (dict(right=0, wrong=7), 0)
    assert (free.counts, free.accuracy) == (dict(right=1, wrong=7), 1 / 8)
    both = [
        anchor_all_test(
            images, np.arange(8), blind, N=2, count_anchor=c, test_size=5
        ).indices.tolist()
        for c in (False, True)
    ]
    assert both == [[1, 2, 3, 4, 5], [0, 1, 2, 3, 4]]


def test_anchor_positive_is_the_class(net, photos):
    images, labels = photos
    result = anchor_positive_test(images, labels, net, anchor=5, threshold=0.02)
    assert result.indices.tolist() == [i for i in np.flatnonzero(labels == labels[5]) if i != 5]
    assert result.right.tolist() == result.similar.tolist() == (result.distances < 0.02).tolist()


def test_catalogues_and_paths(net, photos, folder):
    cat = Catalog.from_dir(folder)
    images, labels = load_test_data(cat, SIZE, shuffle=False)
    for test in (anchor_test, anchor_all_test, anchor_positive_test):
        expected = test(images, labels, net, anchor=12)
        for got in (
            test(cat, None, net, anchor=12),
            test(cat.paths, cat.labels, net, anchor=12),
            test(str(folder), None, net, anchor=12),
        ):
            np.testing.assert_allclose(got.distances, expected.distances, atol=1e-6)
    with pytest.raises(TypeError, match='d must be a Catalog or a folder'):
        load_test_data(7)
    fig = anchor_positive_test(cat, None, net).show()
    assert (
        len(fig.axes) == 8 and fig.axes[0].get_title().split()[-1] == cat.class_names[0].split()[-1]
    )


def test_grid_captions_and_colours(net, photos):
    images, labels = photos
    result = anchor_test(images, labels, net, threshold=0.02)
    axes = result.show(limit=None).axes
    assert axes[0].get_title() == f'Anchor\nlabel: {labels[0]}'
    seen = [(ax.get_title(), ax.title.get_color()) for ax in axes[1:] if ax.get_title()]
    assert len(seen) == 39
    for (title, color), i, d in zip(seen, result.indices, result.distances):
        verdict, label, shown = title.split('\n')
        assert (
            verdict == ('SIMILAR' if d < 0.02 else 'NOT SIMILAR')
            and label == f'label: {labels[i]}'
            and float(shown) == pytest.approx(d, abs=0.0051)
        )
        assert color == ('blue' if (d < 0.02) == (labels[i] == labels[0]) else 'red')
    wrong = [ax for ax in result.show(limit=100, wrong=True).axes if ax.get_title()]
    assert len(wrong) == 1 + result.counts['wrong'] and {
        ax.title.get_color() for ax in wrong[1:]
    } == {'red'}


def test_grid_stays_small():
    "The original notebook's figure is 300 x 300 inches whatever it holds."
    x = np.zeros((5000, 4, 4, 3), 'uint8')
    result = anchor_test(x, np.zeros(5000), lambda x: np.zeros((len(x), 4)), test_size=4999)
    assert result.show().get_size_inches().max() < 12
    fig = result.show(limit=None)
    assert '300 of 4999' in fig.get_suptitle() and sum(bool(ax.images) for ax in fig.axes) == 301


def test_anchor_all_keeps_no_photos(net, photos):
    result = anchor_all_test(*photos, net)
    assert result.photos is None and len(result.indices) == 39
    with pytest.raises(ValueError, match='kept no photos'):
        result.show()
    ax = result.plot()
    assert ax.get_ylabel() == 'distance from the anchor'
    for text in (repr(result), result._repr_html_()):
        assert f'{result.accuracy:.3f}' in text


def test_anchor_tests_refuse(net, photos):
    images, labels = photos
    for call, message in [
        (lambda: anchor_test(images, labels, net, anchor=40), 'anchor=40, but there are 40 photos'),
        (
            lambda: anchor_test(images, labels[:9], net),
            r'labels must hold one label a photo, shape \(40,\)',
        ),
        (lambda: anchor_all_test(images, None, net), 'labels are needed'),
        (lambda: anchor_positive_test(images[:3], [0, 1, 1], net), 'photo 0 has no other photo'),
        (
            lambda: anchor_test(images, labels, lambda x: x.reshape(len(x), -1).astype(float)),
            'beyond N=576',
        ),
        (
            lambda: anchor_test(images, labels, lambda x: np.full((len(x), 2), np.nan)),
            'NaN or infinity for 40 of 40',
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_real_photos(clothing):
    "Photos of real shops pass through; their colours alone tell little."
    from triplet_fashion.evaluation import color_histogram

    cat = Catalog.from_dir(clothing / 'validation')
    images, labels = load_test_data(cat, (64, 64), limit=60)
    result = triplet_test(*get_triplets(images, labels, 100, seed=0), color_histogram)
    assert 0.4 < result.accuracy < 0.8 and sum(result.counts.values()) == 100
