"""features: where networks are cut, what is kept on disk, when it is invalid, and what happens when
things go wrong."""

import os
import pwd
import shutil
import threading

import numpy as np
import pytest

keras = pytest.importorskip('keras')
import tensorflow as tf
from triplet_fashion import features as room
from triplet_fashion.base_network import backbone_of, base_network, freeze, head_of, unfreeze
from triplet_fashion.catalog import Catalog
from triplet_fashion.cutting import cut_network
from triplet_fashion.encoder import Encoder, encode
from triplet_fashion.features import FeatureCache, compute_features, features
from triplet_fashion.photos.unreadable import without_unreadable
from triplet_fashion.generator import augmentation, image_dataset, pk_dataset
from triplet_fashion.photos.image import PhotoError
from triplet_fashion.photos.loading import Preprocessing
from triplet_fashion.engines import ENGINES, LazyEngine, make_engine
from triplet_fashion.graphs import fingerprint
from triplet_fashion.storage.files import atomic_write

SIZE = 48, 40


def pixels(cat, size=SIZE):
    return np.concatenate([x.numpy() for x, _ in image_dataset(cat, size=size)])


def mobile(seed=0, **kw):
    keras.utils.set_random_seed(seed)
    return base_network(
        (*SIZE, 3),
        8,
        'MobileNetV2',
        weights=None,
        hidden=(16,),
        activation='l2',
        **{'alpha': 0.35} | kw,
    )


def small(seed=0):
    keras.utils.set_random_seed(seed)
    return base_network(
        (*SIZE, 3), 8, 'small', weights=None, hidden=(), activation='l2', trainable=False
    )


@pytest.fixture(scope='module')
def net():
    return mobile()


@pytest.fixture
def photos():
    return np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3)).astype('float32')


@pytest.fixture(scope='module')
def few(drawn):
    return drawn.subset(range(0, len(drawn), 4))


# the cut


def check(net, lower, upper, x):
    np.testing.assert_allclose(upper(lower(x)), net(x), atol=1e-6)
    assert not lower.trainable_weights
    assert {id(w) for w in upper.trainable_weights} == {id(w) for w in net.trainable_weights}
    assert {id(w) for w in lower.weights} | {id(w) for w in upper.weights} == {
        id(w) for w in net.weights
    }
    assert len(lower.outputs) == 1 and None not in lower.output_shape[1:]


@pytest.mark.parametrize('share', [0.2, 0.5, 0.8, 1.0])
def test_lower_and_upper_are_the_network(net, photos, share):
    lower, upper = cut_network(freeze(net, share))
    check(net, lower, upper, photos)


def test_the_cut_never_passes_what_learns_and_goes_no_lower_than_it_must(net):
    sizes = []
    for share in np.linspace(0.1, 1, 10):
        freeze(net, share)
        sizes.append(len(cut_network(net, slack=0)[0].weights))
        assert sizes[-1] <= sum(not w.trainable for w in net.weights)
    assert sizes == sorted(sizes) and len(set(sizes)) > 5
    freeze(net, 0.5)
    for slack in 0, 0.1:
        assert np.prod(cut_network(net, slack=slack)[0].output_shape[1:]) >= np.prod(
            cut_network(net, slack=0.1)[0].output_shape[1:]
        )


@pytest.mark.parametrize('backbone', ['ResNet50', 'DenseNet121', 'EfficientNetB0', 'small'])
def test_backbones_of_all_kinds(backbone, photos):
    net = freeze(base_network((*SIZE, 3), 8, backbone, weights=None, hidden=()), n_stages=2)
    check(net, *cut_network(net), photos)


def test_models_inside_models_shortcuts_around_everything_and_shared_layers(photos):
    def block(k):
        x = i = keras.Input((*SIZE, 4))
        return keras.Model(
            i,
            keras.layers.Add()([x, keras.layers.Conv2D(4, 3, padding='same')(x)]),
            name=f'block{k}',
        )

    body = keras.Sequential(
        [
            keras.Input((*SIZE, 3)),
            keras.layers.Conv2D(4, 1),
            keras.Sequential([block(1), block(2)], name='twice'),
            block(3),
        ],
        name='body',
    )
    net = freeze(base_network((*SIZE, 3), 8, body, hidden=()), 1.0)
    body.get_layer('block3').layers[1].trainable = True
    lower, upper = cut_network(net)
    check(net, lower, upper, photos)
    assert (
        lower.layers[-1].name.startswith('add') and len(lower.weights) == 6
    )  # below block 3, above the two inside 'twice'
    x = i = keras.Input((*SIZE, 3))
    far = keras.Model(
        i, keras.layers.Concatenate()([x, keras.layers.Conv2D(4, 3, padding='same')(x)])
    )  # the photo itself passes by
    net = freeze(base_network((*SIZE, 3), 8, far, hidden=()), 1.0)
    check(net, *cut_network(net), photos)
    conv = keras.layers.Conv2D(3, 3, padding='same')
    shared = keras.Sequential(
        [keras.Input((*SIZE, 3)), conv, conv, keras.layers.GlobalAveragePooling2D()]
    )
    net = freeze(base_network((*SIZE, 3), 8, shared, hidden=()), 1.0)
    check(net, *cut_network(net), photos)


def test_asking_for_a_cut(net):
    freeze(net, 0.5)
    assert len(cut_network(net, share=0.3)[0].weights) < len(cut_network(net)[0].weights)
    assert cut_network(net, n_stages=1)[0].output_shape[1] == SIZE[0] // 2
    with pytest.raises(ValueError, match='learns and lies below'):
        cut_network(net, share=0.9)
    with pytest.raises(ValueError, match='share is 2'):
        cut_network(net, share=2.0)
    with pytest.raises(ValueError, match='nothing of base_network'):
        cut_network(unfreeze(net))

    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match='not made of layers'):
        cut_network(Own(name='own'))


def test_training_the_upper_part_trains_the_network_and_leaves_frozen_norms_alone(photos):
    net = freeze(mobile(1), 0.6)
    lower, upper = cut_network(net)
    x, before = lower(photos), [np.array(w) for w in net.weights]
    moving = [np.array(w) for w in net.non_trainable_weights]
    upper.compile(keras.optimizers.SGD(0.1), 'mse')
    upper.fit(np.asarray(x), np.eye(8, dtype='float32')[:3], epochs=2, verbose=0)
    check(net, lower, upper, photos)
    for a, b in zip(moving, net.non_trainable_weights):
        np.testing.assert_array_equal(a, b)
    assert sum(not np.array_equal(a, b) for a, b in zip(before, net.weights)) > 5


def test_a_step_above_the_cut_is_the_step_of_the_whole(photos):
    """Same loss and same gradients, the lower part once computed, as training the whole network
    with its lower part frozen."""
    net = freeze(mobile(2), 0.6)
    lower, upper = cut_network(net)
    y = np.eye(8, dtype='float32')[:3]

    def gradients(model, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
        return float(loss), {
            w.path: g
            for w, g in zip(
                model.trainable_weights,
                tape.gradient(loss, [w.value for w in model.trainable_weights]),
            )
        }

    (a, whole), (b, part) = gradients(net, photos), gradients(upper, lower(photos, training=False))
    assert abs(a - b) < 1e-6 and whole.keys() == part.keys()
    for k in whole:
        np.testing.assert_allclose(whole[k], part[k], atol=1e-5)


def test_mixed_precision_is_cut_too(photos):
    old = keras.config.dtype_policy()
    keras.config.set_dtype_policy('mixed_bfloat16')
    try:
        net = freeze(mobile(), 0.5)
    finally:
        keras.config.set_dtype_policy(old)
    lower, upper = cut_network(net)
    np.testing.assert_allclose(upper(tf.cast(lower(photos), tf.float16)), net(photos), atol=0.02)


# what is kept


def test_features_are_the_backbones_whatever_the_store(few, tmp_path):
    net = small()
    expected = np.asarray(backbone_of(net)(pixels(few)), 'float32')
    store = FeatureCache()
    for where in (
        None,
        store,
        store,
        str(tmp_path / 'new' / 'folder'),
        tmp_path / 'new' / 'folder',
    ):
        got = features(net, few, where, batch_size=7)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-4)
        encoder = Encoder(net, feature_cache=where)
        np.testing.assert_allclose(encoder.encode(few), np.asarray(net(pixels(few))), atol=1e-5)
    assert isinstance(got, np.memmap) and not got.flags.writeable
    assert len(list((tmp_path / 'new' / 'folder').glob('*.npy'))) == 1
    np.testing.assert_allclose(np.asarray(head_of(net)(got)), encode(few, net), atol=1e-5)


def test_the_second_call_reads_no_photo(few, tmp_path, monkeypatch):
    net = small()
    first = np.array(features(net, few, tmp_path))
    monkeypatch.setattr(room, 'image_dataset', lambda *a, **kw: pytest.fail('computed again'))
    np.testing.assert_array_equal(features(net, few, tmp_path), first)
    freeze(net)  # what is frozen does not change what the backbone makes
    features(small(), few, tmp_path)  # equal layers and weights, another object


def test_a_change_of_anything_is_noticed(drawn, tmp_path):
    root, where = tmp_path / 'photos', tmp_path / 'kept'
    shutil.copytree(drawn.root, root)
    cat = Catalog.from_dir(root).subset(range(6))
    lower = backbone_of(small())

    def made(cat=cat, lower=lower, **kw):
        n = len(list(where.glob('*.npy'))) if where.exists() else 0
        compute_features(lower, cat, where, **kw)
        return len(list(where.glob('*.npy'))) - n

    assert made() == 1 and made() == 0
    assert (
        made(fit='crop') == made(dtype='float32') == made(copies=2) == made(copies=2, seed=1) == 1
    )
    assert made(copies=2, augment=augmentation(crop=0.3)) == 1
    assert made(copies=2, augment=True) == made(copies=2, seed=1) == 0
    assert made(cat.subset([0, 1])) == 1
    assert made(lower=backbone_of(small(seed=1))) == 1
    s = os.stat(cat.paths[0])
    os.utime(cat.paths[0], ns=(s.st_atime_ns, s.st_mtime_ns + 1))
    assert made() == 1
    with open(cat.paths[0], 'ab') as f:
        f.write(b'x')
    os.utime(cat.paths[0], ns=(s.st_atime_ns, s.st_mtime_ns))
    assert made() == 1
    for f in where.iterdir():
        f.unlink()  # safe to delete
    assert made() == 1


def test_the_whole_folder_may_move(drawn, tmp_path):
    shutil.copytree(drawn.root, tmp_path / 'a')
    first = features(small(), Catalog.from_dir(tmp_path / 'a').subset(range(3)), tmp_path / 'kept')
    (tmp_path / 'a').rename(tmp_path / 'b')
    assert (
        features(
            small(), Catalog.from_dir(tmp_path / 'b').subset(range(3)), tmp_path / 'kept'
        ).filename
        == first.filename
    )


def test_fingerprint_counts_what_matters(photos):
    def made(name='a', units=4, act='relu', seed=0):
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [keras.Input((5,)), keras.layers.Dense(units, act, name=name)], name=f'net_{name}'
        )

    assert fingerprint(made()) == fingerprint(made('b'))
    frozen = made()
    frozen.trainable = False
    assert fingerprint(frozen) == fingerprint(made())
    prints = {fingerprint(o) for o in (made(), made(units=5), made(act='tanh'), made(seed=1))}
    assert len(prints) == 4


def test_a_cache_in_memory_notices_changes_too(few):
    net, store = small(), FeatureCache()
    before = features(net, few, store)
    assert np.shares_memory(features(small(), few, store), before)  # equal layers and weights
    net.layers[1].weights[0].assign(net.layers[1].weights[0] * 2)
    assert not np.array_equal(features(net, few, store), before) and len(store.memory) == 2


def test_half_precision_is_kept_apart(few, tmp_path):
    net = small()
    half, full = (np.array(features(net, few, tmp_path, engine=e)) for e in ('tf-bf16', 'tf'))
    assert not np.array_equal(half, full) and len(list(tmp_path.glob('*.npy'))) == 2
    np.testing.assert_allclose(full, np.asarray(backbone_of(net)(pixels(few))), atol=1e-4)


@pytest.fixture(scope='module')
def unkept(few, drawn):
    """A network, its features of two catalogues, and the engine that computed them with nothing
    kept."""
    net = freeze(mobile(), 1.0)
    cold = LazyEngine(backbone_of(net), photos=10**6)
    return net, [np.array(features(net, c, engine=cold)) for c in (drawn, few)], cold


@pytest.mark.parametrize('kept_first', [False, True])
def test_a_run_that_goes_on_takes_the_engine_it_had(unkept, few, drawn, tmp_path, kept_first):
    """Which engine computes does not depend on what is kept already: the numbers of a run that is
    resumed must not either."""
    net, fresh, cold = unkept
    warm = LazyEngine(backbone_of(net), photos=10**6)
    if kept_first:
        features(net, drawn, tmp_path, engine=LazyEngine(backbone_of(net), photos=10**6))
    again = [np.array(features(net, c, tmp_path, engine=warm)) for c in (drawn, few)]
    assert cold.name == warm.name == 'litert'
    for x, y in zip(fresh, again):
        np.testing.assert_array_equal(x, y)


def test_one_engine_serves_several_calls(few, drawn, tmp_path, monkeypatch):
    made, net = [], small(seed=9)
    keep = ENGINES['tf']
    monkeypatch.setitem(ENGINES, 'tf', lambda *a: made.append(1) or keep(*a))
    engine = LazyEngine(backbone_of(net))
    features(net, few, tmp_path, engine=engine)
    features(net, drawn.subset(range(5)), tmp_path, engine=engine)
    assert made == [1] and engine.name == 'tf'
    features(net, few, tmp_path)  # kept: no engine is built
    assert made == [1]
    for other in make_engine(backbone_of(net), 'litert'), LazyEngine(backbone_of(small(seed=8))):
        net.layers[1].weights[0].assign(net.layers[1].weights[0] * 2)
        with pytest.raises(ValueError, match='made of another network'):
            features(net, few, engine=other)
    with pytest.raises(ValueError, match="'litrt' is unknown"):
        features(net, few, engine='litrt')


def test_the_users_folder_for_features(tmp_path, monkeypatch):
    monkeypatch.setenv('TRIPLET_FASHION_CACHE', str(tmp_path / 'own'))
    assert (
        FeatureCache.user_folder() == tmp_path / 'own' / 'features'
        and (tmp_path / 'own' / 'features').is_dir()
    )
    monkeypatch.delenv('TRIPLET_FASHION_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    folder = FeatureCache.user_folder()
    assert folder == tmp_path / 'triplet_fashion' / 'features'
    for name, days in (('old', 40), ('new', 20)):
        (folder / name).touch()
        os.utime(folder / name, (os.path.getatime(folder), os.path.getmtime(folder) - days * 86400))
    assert [p.name for p in FeatureCache.user_folder().iterdir()] == ['new']
    monkeypatch.setenv('XDG_CACHE_HOME', '/dev/null')
    assert FeatureCache.user_folder() is None


def test_a_user_without_a_home_has_no_folder(monkeypatch):
    "In a container the user may have a number and no name, and no HOME."

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, 'getpwuid', unknown)
    for key in 'TRIPLET_FASHION_CACHE', 'XDG_CACHE_HOME', 'HOME':
        monkeypatch.delenv(key, raising=False)
    assert FeatureCache.user_folder() is None
    monkeypatch.setenv('TRIPLET_FASHION_CACHE', '~nobody-of-that-name/kept')
    assert FeatureCache.user_folder() is None


@pytest.mark.parametrize('kind', ['folder', 'memory'])
def test_a_cache_computes_once(few, tmp_path, kind, monkeypatch):
    lower = backbone_of(small())
    cache = FeatureCache.of(tmp_path if kind == 'folder' else None)
    assert FeatureCache.of(cache) is cache
    plain, copied = (np.array(cache.get(lower, few, copies=n)) for n in (1, 2))
    assert plain.shape[:2] == (len(few), 1) and copied.shape[:2] == (len(few), 2)
    np.testing.assert_array_equal(plain, compute_features(lower, few))
    assert len(list(tmp_path.iterdir())) == (2 if kind == 'folder' else 0)
    assert len(cache.memory) == (0 if kind == 'folder' else 2)
    monkeypatch.setattr(room, 'image_dataset', lambda *a, **kw: pytest.fail('computed again'))
    np.testing.assert_array_equal(cache.get(lower, few), plain)


def test_a_cache_knows_size_and_fit(few):
    lower, cache = backbone_of(small()), FeatureCache()
    how = (Preprocessing(SIZE, fit) for fit in ('stretch', 'crop'))
    whole, cropped = (cache.get(lower, few, preprocessing=o) for o in how)
    assert len(cache.memory) == 2 and not np.array_equal(whole, cropped)
    assert cache.get(lower, few) is whole


# copies


def test_copies_are_augmented_seeded_and_in_order(few, tmp_path):
    lower, upper = cut_network(freeze(mobile(), n_stages=2))
    plain = compute_features(lower, few, dtype='float32')
    assert plain.shape == (len(few), 1, *lower.output_shape[1:])
    np.testing.assert_allclose(plain[:, 0], lower(pixels(few)), atol=1e-4)
    a, b = (compute_features(lower, few, tmp_path / k, copies=3, seed=5) for k in 'ab')
    assert a.dtype == np.float16 and a.shape == (len(few), 3, *lower.output_shape[1:])
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a[:, 0], a[:, 1])
    assert not np.array_equal(a, compute_features(lower, few, copies=3, seed=6))
    slight = compute_features(
        lower,
        few,
        copies=2,
        augment=augmentation(flip=False, crop=0.02, light=0.02),
        dtype='float32',
        batch_size=5,
    )

    def rows(x):
        return x.reshape(len(few), -1)

    near = [
        np.linalg.norm(rows(plain) - o, axis=1).argmin() for c in (0, 1) for o in rows(slight[:, c])
    ]
    assert near == [*range(len(few))] * 2
    brighter = compute_features(
        lower, few, augment=lambda x, seed: tf.clip_by_value(x * 1.2, 0, 255), dtype='float32'
    )
    bright = np.clip(pixels(few) * np.float32(1.2), 0, 255)
    np.testing.assert_allclose(brighter[:, 0], lower(bright), atol=1e-3)


def test_rows_feed_pk_batches(few, tmp_path):
    lower, _ = cut_network(freeze(mobile(), n_stages=3))
    kept = compute_features(lower, few, tmp_path)
    x, y = next(iter(pk_dataset(few, P=2, K=2, size=SIZE, inputs=kept[:, 0])))
    assert x.dtype == tf.float32 and x.shape == (4, *lower.output_shape[1:])
    for row, label in zip(x.numpy(), y):
        assert any(
            np.array_equal(row, kept[i, 0].astype('float32'))
            for i in np.flatnonzero(few.labels == int(label))
        )


# when things go wrong


def test_a_bad_photo_is_named(few, tmp_path):
    bad = tmp_path / 'bad.jpg'
    bad.write_bytes(b'not a photo')
    cat = Catalog([*few.paths, str(bad)], [*few.labels, 0], few.class_names)
    with pytest.raises(PhotoError, match='bad.jpg'):
        features(small(), cat, tmp_path / 'kept')
    assert not list((tmp_path / 'kept').iterdir())
    gone = Catalog([*few.paths, 'gone.jpg'], [*few.labels, 0], few.class_names)
    for store in None, FeatureCache(), tmp_path / 'kept':
        with pytest.raises(PhotoError, match='gone.jpg'):
            features(small(), gone, store)
        with pytest.raises((PhotoError, FileNotFoundError), match='gone.jpg'):
            Encoder(small(), feature_cache=store).encode(gone)


def test_photos_that_vanish_or_break_are_left_out_and_named(few, tmp_path):
    "Those that were bad before, and one that breaks while the others are looked through."
    shutil.copytree(few.root, tmp_path / 'shop')
    cat, net = Catalog.from_dir(tmp_path / 'shop'), small()
    os.unlink(cat.paths[0])
    with open(cat.paths[1], 'r+b') as f:
        f.truncate(50)

    def make(catalog):
        return features(net, catalog)

    rows, good, bad = without_unreadable(make, cat)
    assert len(good) == len(rows) == len(cat) - 2 and sorted(p for p, _ in bad) == sorted(
        cat.paths[:2]
    )
    for path in cat.paths:
        open(path, 'w').close()
    with pytest.raises(PhotoError):
        without_unreadable(make, cat)


def test_an_error_of_tensorflow_is_never_shown(few, monkeypatch):
    "Not even where every photo can be read when it is looked at again."

    def breaks(*a, **kw):
        raise tf.errors.UnknownError(None, None, 'the disk went away')

    class Breaks:
        def map(self, f):
            return self

        def __iter__(self):
            yield breaks()

    monkeypatch.setattr(room, 'image_dataset', lambda *a, **kw: Breaks())
    with pytest.raises(RuntimeError, match='the disk went away') as said:
        features(small(), few)
    assert not isinstance(said.value, tf.errors.OpError)


def test_a_folders_name_will_do_and_an_empty_catalog_is_named(drawn, tmp_path):
    net = small()
    for call in features, lambda net, c: encode(c, net):
        np.testing.assert_allclose(call(net, str(drawn.root)), call(net, drawn), atol=1e-6)
    np.testing.assert_array_equal(
        compute_features(backbone_of(net), drawn.root, tmp_path),
        compute_features(backbone_of(net), drawn, tmp_path),
    )
    for call in features, lambda net, c: compute_features(backbone_of(net), c):
        with pytest.raises(ValueError, match='holds no photos'):
            call(net, drawn.subset([]))
        with pytest.raises(TypeError, match='must be a Catalog'):
            call(net, 5)


def damaged(whole):
    "A file with one byte changed anywhere, cut off anywhere, and grown."
    yield from (
        whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :]
        for i in [*range(130), *range(130, len(whole), 997), *range(len(whole) - 33, len(whole))]
    )
    yield from (whole[:n] for n in (0, 1, 31, 32, 33, 50, len(whole) // 2, len(whole) - 1))
    yield whole + b'x'
    yield bytes(len(whole))


def test_damage_of_any_kind_means_computing_anew(few, tmp_path, monkeypatch):
    """A flipped bit in head, data or checksum, a part of the file, another array: never an error,
    never taken for features."""
    one, net = few.subset([0]), small()
    first = np.array(features(net, one, tmp_path))
    (file,) = tmp_path.glob('*.npy')
    whole, anew = file.read_bytes(), []

    class Photos:
        def map(self, f):
            return self

        def __iter__(self):
            yield tf.zeros((1, *SIZE, 3))

    monkeypatch.setattr(room, 'image_dataset', lambda *a, **kw: Photos())

    class Known:
        name = 'tf'

        def is_of(self, model):
            return True

        def __call__(self, images):
            anew.append(1)
            return first

    for n, data in enumerate(damaged(whole), 1):
        file.write_bytes(data)
        np.testing.assert_array_equal(features(net, one, tmp_path, engine=Known()), first)
        assert file.read_bytes() == whole and len(anew) == n
    file.unlink()
    file.mkdir()
    with pytest.raises(IsADirectoryError, match=file.name):
        features(net, one, tmp_path)


def test_four_threads_and_two_processes_of_one_number_share_a_store(few, tmp_path, monkeypatch):
    """The name of an unfinished file belongs to one writer alone; in two containers the number of a
    process may be the same."""
    monkeypatch.setattr(os, 'getpid', lambda: 1)
    net, start, given = small(), threading.Barrier(4), {}

    def one(k):
        start.wait()
        given[k] = np.array(features(net, few, tmp_path))

    threads = [threading.Thread(target=one, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k in range(4):
        np.testing.assert_array_equal(given[k], given[0])
    np.testing.assert_allclose(given[0], np.asarray(backbone_of(net)(pixels(few))), atol=1e-4)
    assert [f.suffix for f in tmp_path.iterdir()] == ['.npy']


def test_unfinished_files_of_writers_that_are_no_more_are_swept(few, tmp_path):
    with atomic_write(tmp_path / 'other.npy') as part:
        name = part.name
    dead = tmp_path / name.replace(f'-{os.getpid()}-', '-999999999-')
    dead.write_bytes(b'half')
    features(small(), few, tmp_path)
    assert not dead.exists()


def test_a_full_disk_is_told_before_and_leaves_nothing(few, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(100, 100, 0))
    monkeypatch.setattr(room, 'image_dataset', lambda *a, **kw: pytest.fail('a photo was read'))
    with pytest.raises(OSError, match='the disk is full.*Make room'):
        features(small(), few, tmp_path)
    assert not list(tmp_path.iterdir())


def test_float16_refuses_what_does_not_fit(few):
    loud = keras.Sequential(
        [
            keras.Input((*SIZE, 3)),
            keras.layers.Rescaling(1e4),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    with pytest.raises(ValueError, match="dtype='float32'"):
        compute_features(loud, few)
    assert compute_features(loud, few, dtype='float32').max() > 65504


def test_lite0_through_litert(lite0, few, tmp_path):
    net = freeze(base_network((64, 64, 3), 16, str(lite0), activation='l2'), 0.67)
    lower, upper = cut_network(net)
    kept = compute_features(lower, few, tmp_path, engine='litert', dtype='float32')
    x = pixels(few, (64, 64))
    np.testing.assert_allclose(upper(np.asarray(kept[:, 0])), net(x), atol=1e-5)
