"""Batches: what meets in them, that they repeat by seed, and that bad folders and photos end in
words rather than loops."""

import gc, itertools, time, warnings
from pathlib import Path
import numpy as np
import pytest
from PIL import Image

import keras
import tensorflow as tf
from triplet_fashion.catalog import Catalog
from triplet_fashion.generator import (
    augmentation,
    bad_report,
    image_dataset,
    input_triplet_gen,
    photo_error,
    pk_dataset,
    show_batch,
    triplet_dataset,
)
from triplet_fashion.photos.augmentation import Augment
from triplet_fashion.photos.image import PhotoError, read_image
from triplet_fashion.photos.keras_generator import transform_images
from triplet_fashion.photos.loading import ImageLoader, Preprocessing, load_images, plan_decode
from triplet_fashion.photos.sampling import PKSampler, TripletSampler

ImageDataGenerator = tf.keras.preprocessing.image.ImageDataGenerator


def flat(tmp_path, sizes, start=0):
    "Products of so many photos each; photo k of product c is one grey level, 20*c + k + start."
    for c, m in enumerate(sizes):
        (tmp_path / f'p{c:02}').mkdir(parents=True)
        for k in range(m):
            Image.new('RGB', (20, 20), (20 * c + k + start,) * 3).save(
                tmp_path / f'p{c:02}' / f'{k}.png'
            )
    return Catalog.from_dir(tmp_path) if any(sizes) else tmp_path


def grey(images):
    return np.asarray(images)[:, 0, 0, 0].round().astype(int)


def tiny_net(side=8):
    ins = [keras.Input((side, side, 3), name=n) for n in ('anchor', 'positive', 'negative')]
    base = keras.Sequential(
        [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    net = keras.Model(ins, keras.layers.Concatenate()([base(i) for i in ins]))
    net.compile('sgd', loss=lambda y, out: keras.ops.mean(keras.ops.square(out), axis=-1))
    return net


# datasets


def test_image_dataset_keeps_order_and_pixels(drawn):
    x, y = zip(*image_dataset(drawn, (24, 32), batch_size=20))
    assert [len(i) for i in x] == [20, 20, 20, 12] and x[0].dtype == tf.float32
    assert np.array_equal(np.concatenate(x), load_images(drawn.paths, (24, 32))) and np.array_equal(
        np.concatenate(y), drawn.labels
    )
    for cache in (True, 'auto'):
        ds = image_dataset(drawn, (24, 32), 20, cache=cache)
        for _ in range(2):
            assert np.array_equal(np.concatenate([i for i, _ in ds]), np.concatenate(x))
    assert [len(i) for i, _ in image_dataset(str(drawn.root), 8, 72)] == [72]
    assert len(image_dataset(drawn, 8, 20)) == 4


def test_image_dataset_errors(drawn, tmp_path):
    (tmp_path / 'bad.jpg').write_bytes(b'nope')
    with pytest.raises(Exception, match='bad.jpg: not an image'):
        list(image_dataset([drawn.paths[0], tmp_path / 'bad.jpg'], 8))
    with pytest.raises(ValueError, match='no photos'):
        image_dataset(drawn[[]])
    with pytest.raises(ValueError, match="cache must be True, False or 'auto'"):
        image_dataset(drawn, cache='yes')
    with pytest.raises(ValueError, match='size'):
        image_dataset(drawn, size=None)


ODD_NAMES = ['gone.jpg', 'a: missing: b.jpg', '여름 옷.jpg', 'two\nlines.jpg', b'caf\xe9.jpg']


@pytest.mark.parametrize('name', ODD_NAMES)
@pytest.mark.parametrize('cache', [True, False])
def test_the_photo_behind_an_error_is_named(name, cache, drawn, tmp_path):
    "In a loop and in predict, whatever letters its name has."
    import os

    path = os.path.join(str(tmp_path), os.fsdecode(name))
    net = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    ds = image_dataset([drawn.paths[0], path], 8, 2, cache=cache)
    for use in (list, lambda ds: net.predict(ds, verbose=0)):
        with pytest.raises(tf.errors.OpError) as e:
            use(ds)
        found = photo_error(e.value)
        assert (
            type(found) is PhotoError
            and found.path == path
            and found.problem == 'missing: no such file'
        )


def test_other_errors_are_no_photos():
    with pytest.raises(tf.errors.OpError) as e:
        tf.io.decode_png(b'no')
    assert photo_error(e.value) is None and photo_error(ValueError('x')) is None
    mine = PhotoError('a.jpg', 'missing: no such file')
    assert photo_error(mine) is mine


@pytest.mark.parametrize('cache', [True, False])
@pytest.mark.parametrize(
    'make',
    [
        lambda c, **k: triplet_dataset(c, 6, (8, 8), **k),
        lambda c, **k: pk_dataset(c, 2, 2, (8, 8), **k),
    ],
    ids=['triplets', 'pk'],
)
def test_photos_that_vanish_break_or_change_are_left_out_and_named(make, cache, tmp_path):
    "After the dataset was made; a plain JPEG among them, which TensorFlow reads."
    cat = flat(tmp_path, [4, 4, 4])
    Image.new('RGB', (20, 20), (7,) * 3).save(tmp_path / 'p00' / '3.png', 'JPEG')
    ds = make(cat, cache=cache)
    (tmp_path / 'p00' / '0.png').unlink()
    (tmp_path / 'p01' / '1.png').write_bytes((tmp_path / 'p01' / '1.png').read_bytes()[:40])
    (tmp_path / 'p00' / '3.png').write_bytes(b'\xff\xd8\xff')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(4):
            list(ds)
    named = {
        path[-9:].replace('\\', '/'): problem.split(':')[0] for path, problem in ds.bad_photos()
    }
    assert set(named) == {'p00/0.png', 'p01/1.png', 'p00/3.png'} and named['p00/0.png'] == 'missing'
    assert all(name in bad_report(ds) for name in named)


def test_too_few_photos_left_is_an_error_of_ours(tmp_path):
    cat = flat(tmp_path, [2, 2])
    ds = triplet_dataset(cat, 4, (8, 8))
    for path in cat.paths[:3]:
        Path(path).write_bytes(b'')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(tf.errors.OpError) as e:
            list(ds)
        found = photo_error(e.value)
        assert type(found) is ValueError and 'no two products are left' in str(found)
        with pytest.raises(ValueError, match='no two products are left'):
            next(input_triplet_gen(None, tmp_path, batch_size=4, target_size=(8, 8)))


MEANINGLESS = [
    dict(size=0),
    dict(size=(8, -1)),
    dict(size=8.5),
    dict(size='8'),
    dict(size=(8, None)),
    dict(size=float('nan')),
    dict(size=True),
    dict(size=[]),
    dict(cache='yes'),
    dict(cache=2),
    dict(fit='zoom'),
]


@pytest.mark.parametrize(
    'kw', MEANINGLESS + [dict(batch_size=b) for b in (0, -1, 2.5, True, '8', None)], ids=str
)
def test_settings_that_mean_nothing_are_named_by_image_dataset(kw, drawn):
    with pytest.raises(ValueError, match=next(iter(kw))):
        image_dataset(drawn, **kw)


MORE = MEANINGLESS + [
    dict(steps=0),
    dict(steps=1.5),
    dict(seed=-1),
    dict(seed=0.5),
    dict(first_epoch=-1),
    dict(first_step=9999),
    dict(copies=0),
    dict(copies=2),
    dict(shard=(2, 2)),
    dict(inputs=np.zeros(72)),
    dict(augment='yes'),
]


@pytest.mark.parametrize('kw', MORE + [dict(batch_size=0), dict(batch_size=2.5)], ids=str)
def test_settings_that_mean_nothing_are_named_by_triplet_dataset(kw, drawn):
    with pytest.raises((ValueError, TypeError), match=next(iter(kw))):
        triplet_dataset(drawn, **dict(batch_size=6) | kw)


@pytest.mark.parametrize(
    'kw',
    MORE
    + [
        dict(P=0),
        dict(P=2.5),
        dict(K=0),
        dict(K=1),
        dict(K='4'),
        dict(per_category=2),
        dict(categories=True, per_category=0),
        dict(categories=['a']),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_named_by_pk_dataset(kw, drawn):
    with pytest.raises((ValueError, TypeError), match=list(kw)[-1]):
        pk_dataset(drawn, **dict(P=4, K=3) | kw)


def test_image_dataset_takes_a_catalog_a_folder_or_files(drawn, tmp_path):
    assert len(next(iter(image_dataset(str(drawn.root), 8, 5)))[0]) == 5
    with pytest.raises(TypeError, match='list of files, not of bytes'):
        image_dataset([b'...'])
    with pytest.raises(Exception, match='nowhere'):
        image_dataset(tmp_path / 'nowhere')


@pytest.mark.parametrize('augment', [None, True])
@pytest.mark.parametrize(
    'make',
    [
        lambda c, **k: triplet_dataset(c, 16, (12, 12), **k),
        lambda c, **k: pk_dataset(c, 4, 3, (12, 12), **k),
    ],
    ids=['triplets', 'pk'],
)
def test_same_seed_same_batches_epoch_for_epoch(make, augment, drawn):
    def epoch(ds):
        return [np.concatenate([np.ravel(t) for t in tf.nest.flatten(b)]) for b in ds]

    def same(a, b):
        return len(a) == len(b) and all(np.array_equal(i, j) for i, j in zip(a, b))

    a, b, plain = (
        make(drawn, augment=augment, seed=3),
        make(drawn, augment=augment, seed=3),
        make(drawn, augment=augment, seed=3, cache=False),
    )
    one, two = epoch(a), epoch(a)
    assert (
        same(one, epoch(b))
        and same(two, epoch(b))
        and same(one, epoch(plain))
        and not same(one, two)
    )
    assert same(two, epoch(make(drawn, augment=augment, seed=3, first_epoch=1)))
    assert not same(one, epoch(make(drawn, augment=augment, seed=4)))
    still = make(drawn, augment=augment, seed=3, fresh=False)
    assert same(epoch(still), one) and same(epoch(still), one)
    assert len(one) == len(a) == a.info['steps']


def test_triplet_dataset(tmp_path):
    cat = flat(tmp_path, [3, 1, 5, 2])
    ds = triplet_dataset(cat, batch_size=4, size=(8, 8))
    assert len(ds) == 3 and ds.info == dict(
        steps=3,
        photos=10,
        products=3,
        left_out=['p01'],
        singles=[],
        epoch='3 batches, 10 anchors',
        coverage=dict(photos=3),
        bad={},
    )
    anchors = []
    for (a, p, n), y in ds:
        a, p, n = grey(a), grey(p), grey(n)
        assert (
            (a // 20 == p // 20).all()
            and (a != p).all()
            and (a // 20 != n // 20).all()
            and (a // 20 == y.numpy()).all()
            and y.dtype == tf.int32
        )
        anchors += list(a)
    assert sorted(anchors) == [0, 1, 2, 40, 41, 42, 43, 44, 60, 61]
    assert [len(y) for _, y in triplet_dataset(cat, 4, (8, 8), steps=7)] == [4] * 7


def test_pk_dataset(tmp_path):
    cat = flat(tmp_path, [3, 1, 5, 2])
    ds = pk_dataset(cat, P=2, K=3, size=(8, 8))
    assert len(ds) == 2 and ds.info['left_out'] == ['p01'] and ds.info['photos'] == 10
    for x, y in pk_dataset(cat, P=3, K=2, size=(8, 8), steps=5):
        assert (
            x.shape == (6, 8, 8, 3)
            and (grey(x) // 20 == y.numpy()).all()
            and len(set(grey(x))) == 6
        )


@pytest.mark.parametrize(
    'sizes,text',
    [([4], 'needs a second one'), ([1, 1, 1], 'none of its 3 products has 2 photos or more')],
)
def test_too_little_is_said_at_once(sizes, text, tmp_path):
    flat(tmp_path, sizes)
    for make in (triplet_dataset, pk_dataset):
        with pytest.raises(ValueError, match=text):
            make(tmp_path)
    with pytest.raises(ValueError, match='2 are needed|holds 1 products'):
        input_triplet_gen(None, tmp_path)


def test_pk_errors(drawn):
    with pytest.raises(ValueError, match='P=13, but .* has 12 products'):
        pk_dataset(drawn, P=13)
    for kw in (dict(P=1), dict(K=1)):
        with pytest.raises(ValueError, match='a triplet needs 2 products and 2 photos'):
            pk_dataset(drawn, **kw)


@pytest.mark.parametrize('cache', [True, False])
def test_a_photo_gone_bad_is_stood_in_for_and_named(cache, tmp_path):
    cat = flat(tmp_path, [3, 3])
    (tmp_path / 'p00' / '1.png').write_bytes(b'')
    ds = triplet_dataset(cat, 6, (8, 8), cache=cache)
    with pytest.warns(UserWarning, match='1.png: empty file.*stands in'):
        (a, p, n), y = next(iter(ds))
    assert (
        sorted(grey(a)) == [0, 2, 2, 20, 21, 22]
        and ds.info['bad'] == {1: 'empty file: 0 bytes'}
        and (grey(a) != grey(p)).all()
    )
    for k in (0, 2):
        (tmp_path / 'p00' / f'{k}.png').write_bytes(b'')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(Exception, match='1 product is left with two that can be read'):
            list(pk_dataset(cat, 2, 2, (8, 8)))
        with pytest.raises(Exception, match='no two products are left'):
            list(triplet_dataset(cat, 6, (8, 8)))


@pytest.mark.filterwarnings('ignore:.*stands in')
@pytest.mark.parametrize('cache', [True, False])
def test_the_last_photo_of_a_product_gone_bad(cache, tmp_path):
    """A product with one photo gives negatives; one with two, of which one is gone, would pair
    a photo with itself."""
    cat = flat(tmp_path, [3, 1, 3, 2])
    for p in ('p01/0.png', 'p03/1.png'):
        (tmp_path / p).write_bytes(b'')
    good = {0, 1, 2, 40, 41, 42, 60}
    ds = triplet_dataset(cat, 4, (8, 8), cache=cache)
    for e in range(6):
        for (a, p, n), y in ds:
            a, p, n = grey(a), grey(p), grey(n)
            assert (
                (a // 20 == p // 20).all()
                and (a != p).all()
                and (a // 20 != n // 20).all()
                and (a // 20 == y.numpy()).all()
                and good.issuperset([*a, *p, *n])
            )
    assert sorted(ds.info['bad']) == [
        3,
        8,
    ] and '2 of 8 photos could not be read; others stood in for them' in bad_report(ds)
    pk = pk_dataset(cat, 3, 2, (8, 8), cache=cache)
    for x, y in (b for e in range(4) for b in pk):
        assert (
            (grey(x) // 20 == y.numpy()).all()
            and good.issuperset(grey(x))
            and all(len(set(o)) == 2 for o in grey(x).reshape(3, 2))
        )
    gen = input_triplet_gen(
        ImageDataGenerator(), tmp_path, batch_size=4, target_size=8, seed=0, cache=cache
    )
    for (a, p, n), y in itertools.islice(gen, 12):
        assert (
            (grey(a) != grey(p)).all()
            and (grey(a) // 20 == y).all()
            and 60 not in [*grey(a), *grey(p)]
            and good.issuperset([*grey(a), *grey(n)])
        )


@pytest.mark.filterwarnings('ignore:.*stands in')
@pytest.mark.parametrize(
    'make',
    [
        lambda c, **k: triplet_dataset(c, 5, (8, 8), **k),
        lambda c, **k: pk_dataset(c, 3, 2, (8, 8), **k),
    ],
    ids=['triplets', 'pk'],
)
def test_what_stands_in_does_not_depend_on_when_it_was_found(make, tmp_path):
    cat = flat(tmp_path, [3, 4, 3, 5, 2])
    for p in ('p00/0.png', 'p01/2.png', 'p04/0.png'):
        (tmp_path / p).write_bytes(b'')

    def batches(ds):
        return [np.concatenate([np.ravel(t) for t in tf.nest.flatten(b)]) for b in ds]

    ds = make(cat)
    batches(ds)
    second = batches(ds)  # all are known by now
    assert all(
        np.array_equal(a, b) for a, b in zip(second, batches(make(cat, first_epoch=1)), strict=True)
    )
    assert all(
        np.array_equal(a, b)
        for a, b in zip(
            second[1:], batches(make(cat, first_epoch=1, first_step=1, cache=False)), strict=True
        )
    )


@pytest.mark.parametrize(
    'recipe,kw', [('original', dict(batch_size=6)), ('scratch', dict(P=4, K=2))]
)
def test_training_goes_on_when_a_photo_breaks_between_epochs(recipe, kw, tmp_path, monkeypatch):
    """Through fit: one is the last photo of its product, one of a product with two. The closing
    warning counts and names both."""
    from triplet_fashion.photos import loading
    from triplet_fashion.training import fit

    monkeypatch.setattr(loading, 'MAX_CACHE_BYTES', 0)
    cat = flat(tmp_path, [4, 4, 4, 1, 2, 4])
    lost = [tmp_path / 'p03' / '0.png', tmp_path / 'p04' / '1.png']

    class Break(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            for p in lost if epoch == 0 else []:
                p.write_bytes(p.read_bytes()[:40])

    with pytest.warns(UserWarning) as said:
        run = fit(
            cat,
            recipe=recipe,
            size=(32, 32),
            epochs=4,
            callbacks=[Break()],
            monitor=None,
            out_dims=4,
            verbose=0,
            hidden=(),
            **kw,
        )
    texts = [str(w.message) for w in said]
    closing = [t for t in texts if 'could not be read' in t]
    assert (
        sum('stands in' in t for t in texts) == len(lost)
        and len(run.history['loss']) == 4
        and np.isfinite(run.history['loss']).all()
    )
    assert (
        len(closing) == 1
        and closing[0].startswith(f'{len(lost)} of ')
        and all(str(p) in closing[0] for p in lost)
    )


def test_own_augmentation(drawn):
    ds = pk_dataset(
        drawn, 2, 2, (8, 8), steps=2, augment=lambda x, seed: 0 * x + tf.cast(seed[1], tf.float32)
    )
    assert [float(tf.reduce_max(x)) for x, _ in ds] == [0.0, 1.0]


def test_datasets_train(drawn):
    net = tiny_net()
    h = net.fit(
        triplet_dataset(drawn, 16, (8, 8), augment=True),
        validation_data=triplet_dataset(drawn, 16, (8, 8), fresh=False),
        epochs=2,
        verbose=0,
    )
    assert len(h.history['val_loss']) == 2 and np.isfinite(h.history['loss']).all()


def count_plans(monkeypatch, sizes):
    "Note in the list `sizes` how many photos each batch plans to read."
    plan = ImageLoader.plan

    def counted(self, positions):
        sizes.append(len(positions))
        return plan(self, positions)

    monkeypatch.setattr(ImageLoader, 'plan', counted)


@pytest.mark.parametrize(
    'make',
    [
        lambda c, **k: triplet_dataset(c, 5, (12, 12), **k),
        lambda c, **k: pk_dataset(c, 4, 3, (12, 12), **k),
        lambda c, **k: pk_dataset(
            c, 4, 3, (12, 12), steps=2, categories=['ab'[i % 2] for i in range(12)], **k
        ),
    ],
    ids=['triplets', 'pk', 'categories'],
)
def test_going_on_in_the_middle_of_an_epoch(make, drawn, monkeypatch):
    import json

    def flat_(ds):
        return [np.concatenate([np.ravel(t) for t in tf.nest.flatten(b)]) for b in ds]

    whole = make(drawn, augment=True, seed=3)
    batches = flat_(whole) + flat_(whole) + flat_(whole)
    for at in (1, 2 * whole.info['steps'] + 1):
        state = json.loads(json.dumps(make(drawn, augment=True, seed=3).state(at)))
        ds = make(drawn, augment=True, cache=False, state=state)
        rest = flat_(ds) + (flat_(ds) if at < 2 * whole.info['steps'] else [])
        assert len(rest) >= 1 and all(np.array_equal(a, b) for a, b in zip(batches[at:], rest)), at
        assert ds.state(2) == make(drawn, seed=3).state(at + 2)
    read = []
    count_plans(monkeypatch, read)
    n = len(flat_(make(drawn, seed=3, first_step=whole.info['steps'] - 1)))
    assert n == 1 == len(read)  # what is left out is not read


@pytest.mark.parametrize(
    'kw',
    [
        dict(seed=None),
        dict(seed=-1),
        dict(seed=1.5),
        dict(steps=0),
        dict(steps=-2),
        dict(first_epoch=-1),
    ],
)
def test_numbers_that_cannot_be_are_named(kw, drawn):
    for make in (triplet_dataset, pk_dataset):
        with pytest.raises(ValueError, match=f'{next(iter(kw))}=.*expected a whole number'):
            make(drawn, size=8, **kw)
    for make in (
        triplet_dataset,
        image_dataset,
        lambda c, **k: input_triplet_gen(None, c.root, **k),
    ):
        for n in (0, -1, 2.5):
            with pytest.raises(ValueError, match='batch_size=.*expected a whole number, 1 or more'):
                make(drawn, batch_size=n)
    with pytest.raises(ValueError, match='seed=-1'):
        input_triplet_gen(None, drawn.root, seed=-1)


@pytest.mark.parametrize('cache', [True, False])
@pytest.mark.parametrize('first_step', [0, 2])
def test_an_error_in_planning_is_no_silent_end(cache, first_step, drawn, monkeypatch):
    ds = triplet_dataset(drawn, 16, (8, 8), cache=cache, first_step=first_step)
    deals = pk_dataset(drawn, 4, 3, (8, 8), cache=cache, first_step=first_step)

    def breaks(*a, **k):
        raise RuntimeError('the plan broke')

    for kind in (TripletSampler, PKSampler):
        monkeypatch.setattr(kind, 'batch', breaks)
    for d in (ds, deals):
        with pytest.raises(Exception, match='the plan broke'):
            list(d)
    monkeypatch.undo()
    assert (
        len(list(ds)) == len(ds) if not first_step else len(list(ds)) > 0
    )  # the next pass is planned anew


def test_a_state_that_does_not_fit(drawn):
    state = pk_dataset(drawn, 4, 3, 8).state(2)
    for ds in (
        lambda: pk_dataset(drawn, 4, 2, 8, state=state),
        lambda: pk_dataset(drawn.subset(np.arange(60)), 4, 3, 8, state=state),
        lambda: triplet_dataset(drawn, 12, 8, state=state),
    ):
        with pytest.raises(ValueError, match='other photos or settings'):
            ds()
    with pytest.raises(ValueError, match='what `.state'):
        pk_dataset(drawn, state=dict(epoch=1))
    with pytest.raises(ValueError, match='first_step=6, but an epoch has 6 steps'):
        pk_dataset(drawn, 4, 3, 8, first_step=6)
    still = pk_dataset(drawn, 4, 3, 8, fresh=False)
    assert still.state(8)['epoch'] == 0 and still.state(8)['step'] == 2


@pytest.fixture(scope='module')
def every_kind(tmp_path_factory):
    "Files of many kinds, all of one smooth scene, in two products."
    d = tmp_path_factory.mktemp('kinds')
    y, x = np.mgrid[:150, :210]
    im = Image.fromarray(np.stack([x + 20, y + 60, 240 - x], -1).clip(0, 255).astype(np.uint8))
    turn = Image.Exif()
    turn[0x0112] = 6
    none = Image.Exif()
    none[0x0112] = 1
    none[0x010E] = 'x' * 30_000
    for i in '01':
        (d / i).mkdir()
        for name, kind, kw in [
            ('plain.jpg', im, {}),
            ('prog.jpg', im, dict(progressive=True)),
            ('444.jpg', im, dict(subsampling=0)),
            ('grey.jpg', im.convert('L'), {}),
            ('cmyk.jpg', im.convert('CMYK'), {}),
            ('turned.jpg', im, dict(exif=turn)),
            ('note.jpg', im, dict(exif=none)),
            ('icc.jpg', im, dict(icc_profile=b'p' * 9000)),
            ('wide.jpg', im.resize((900, 90)), {}),
            ('large.jpg', im.resize((1300, 1100)), {}),
            ('tiny.jpg', im.resize((17, 19)), {}),
            ('a.png', im, {}),
            ('b.webp', im, {}),
        ]:
            kind.save(d / i / name, **kw)
        (d / i / 'a.png').rename(d / i / 'lies.jpg')  # a PNG by the name of a JPEG
    return Catalog.from_dir(d)


@pytest.mark.parametrize('fit', ['stretch', 'crop', 'pad'])
@pytest.mark.parametrize('size', [(64, 64), (40, 72), (160, 100)])
def test_both_ways_to_a_photos_pixels_agree(every_kind, fit, size):
    x = np.concatenate([x for x, _ in image_dataset(every_kind, size, 5, fit=fit)])
    gap = np.abs(x - load_images(every_kind.paths, size, fit=fit))
    assert gap.max() <= 1 and (gap > 0).mean() < 0.01
    plans = [plan_decode(path, Preprocessing(size, fit)) for path in every_kind.paths]
    slow = {Path(path).name for path, plan in zip(every_kind.paths, plans) if plan.factor == 0}
    assert {'cmyk.jpg', 'turned.jpg', 'lies.jpg', 'b.webp'} <= slow
    if size == (64, 64):
        assert (
            not {'plain.jpg', 'prog.jpg', '444.jpg', 'grey.jpg', 'note.jpg', 'icc.jpg', 'tiny.jpg'}
            & slow
        )


def test_both_ways_agree_on_real_photos(clothing):
    paths = sorted(clothing.glob('validation/*/*.jpg'))[::7]
    for size in (224, 64):
        gap = np.abs(
            np.concatenate([x for x, _ in image_dataset(paths, size)]) - load_images(paths, size)
        )
        assert gap.max() <= 1 and (gap > 0).mean() < 1e-3


@pytest.mark.filterwarnings('ignore:.*stands in')
@pytest.mark.parametrize('cache', [True, False])
def test_jpegs_that_turn_bad_between_epochs(cache, drawn, tmp_path):
    import shutil

    cat = Catalog.from_dir(shutil.copytree(drawn.root, tmp_path / 'drawn'))
    ds = pk_dataset(cat, 4, 6, (16, 16), cache=cache)
    assert len(list(ds)) == 3 and bad_report(ds) == ''
    one, two, three = (Path(cat.paths[i]) for i in (3, 20, 41))
    data = one.read_bytes()
    one.write_bytes(data[: len(data) * 2 // 3])
    two.unlink()
    data = bytearray(three.read_bytes())
    at = data.index(b'\xff\xc4') + 5
    data[at : at + 16] = b'\xff' * 16
    three.write_bytes(bytes(data))  # its code table
    for e in range(2):
        assert sum(len(y) for _, y in ds) == 72
    fresh = pk_dataset(cat, 4, 6, (16, 16), cache=cache)
    for e in range(2):
        assert sum(len(y) for _, y in fresh) == 72
    for d in (fresh,) if cache else (ds, fresh):
        assert sorted(d.info['bad']) == [3, 20, 41] and [p for p, _ in d.bad_photos()] == [
            str(o) for o in (one, two, three)
        ]
        assert bad_report(d).startswith('3 of 72 photos could not be read') and str(
            two
        ) in bad_report(d)
    with pytest.raises(Exception, match=f'{one.name}: truncated'):
        list(image_dataset(cat.paths[:8], 16))


def test_stopping_early_leaves_nothing_hanging(drawn, monkeypatch):
    "Once a pass is dropped, nobody goes on planning batches of it."
    planned = []
    count_plans(monkeypatch, planned)
    many = drawn.subset(np.arange(3000) % 72)
    for make in (
        lambda: pk_dataset(drawn, 4, 3, (16, 16), steps=500, cache=False),
        lambda: triplet_dataset(drawn, 4, (16, 16), steps=500, cache=False),
        lambda: image_dataset(many, (16, 16), 6),
    ):
        planned.clear()
        for batch in make():
            break
        gc.collect()
        time.sleep(0.2)
        n = len(planned)
        time.sleep(0.3)
        assert 1 <= n < 100 and len(planned) == n


def test_layers_augment_too(drawn):
    keras_layer = keras.layers.RandomFlip('horizontal', seed=1)
    x, _ = next(iter(pk_dataset(drawn, 4, 3, (16, 16), augment=keras_layer)))
    plain, _ = next(iter(pk_dataset(drawn, 4, 3, (16, 16))))
    assert x.shape == plain.shape and not np.array_equal(x, plain)
    layer = Augment(light=0.3, hue=0.2, seed=4)
    assert np.array_equal(layer(plain), plain) and not np.array_equal(
        layer(plain, training=True), plain
    )
    again = Augment.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    a, b = (Augment(seed=4)(plain, training=True).numpy() for _ in range(2))
    assert np.array_equal(a, b)


@pytest.mark.parametrize('policy', ['float32', 'mixed_float16', 'mixed_bfloat16'])
@pytest.mark.parametrize('dtype', ['uint8', 'int32', 'float32'])
def test_the_layer_gives_float32_in_training_and_out_of_it(policy, dtype):
    x = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3)).astype(dtype)
    layer = Augment(dtype=policy, light=0, crop=0)
    symbolic = layer(keras.Input((6, 6, 3), dtype=dtype))
    assert symbolic.dtype == 'float32' and symbolic.shape == (None, 6, 6, 3)
    assert layer(x).dtype == layer(x, training=True).dtype == tf.float32
    assert np.array_equal(layer(x), x)  # pixels are not rounded
    for one, before in zip(layer(x, training=True).numpy(), x):  # nor those that are mirrored
        assert np.abs(one - before).max() < 0.01 or np.abs(one - before[:, ::-1]).max() < 0.01


@pytest.mark.parametrize('dtype', ['uint8', 'float32'])
def test_a_network_that_begins_with_the_layer_predicts_as_it_trains(dtype):
    net = keras.Sequential(
        [keras.Input((6, 6, 3), dtype=dtype), Augment(), keras.layers.Conv2D(2, 3)]
    )
    x = np.full((2, 6, 6, 3), 200, dtype)
    assert (
        net(x, training=True).dtype == tf.float32 and net.predict(x, verbose=0).dtype == np.float32
    )


def test_whole_numbers_are_augmented_as_floats_are():
    x = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3)).astype('uint8')
    for kw in (
        dict(),
        dict(flip=False, crop=0),
        dict(light=0, hue=0.2),
        dict(flip=False, crop=0, light=0),
    ):
        got = augmentation(**kw)(x, 1)
        assert got.dtype == tf.float32 and np.array_equal(
            got, augmentation(**kw)(x.astype('float32'), 1)
        )


def test_hue_is_off_unless_asked_for():
    x = tf.constant(np.full((40, 6, 6, 3), (180.0, 60.0, 60.0), 'float32'))
    assert np.allclose(augmentation(light=0)(x, 1), x, atol=1e-3)
    out = augmentation(False, 0, 0, hue=0.5)(x, 1).numpy()[:, 0, 0]
    assert out.argmax(1).tolist() != [0] * 40 and set(out.argmax(1)) == {0, 1, 2}
    with pytest.raises(ValueError, match='hue'):
        augmentation(hue=0.6)


# augmentation


def test_augmentation_stays_in_range_and_keeps_shape():
    x = tf.constant(np.random.default_rng(0).integers(0, 256, (9, 20, 30, 3)).astype('float32'))
    out = augmentation(crop=0.5, light=0.9)(x, 1).numpy()
    assert out.shape == x.shape and out.dtype == np.float32 and out.min() >= 0 and out.max() <= 255
    assert tf.function(augmentation())(x, tf.constant([1, 2])).shape == x.shape
    for kw in (dict(crop=1.0), dict(light=-0.1)):
        with pytest.raises(ValueError, match='shares between 0 and 1'):
            augmentation(**kw)


def test_augmentation_parts():
    x = tf.constant(
        np.tile(np.linspace(50, 200, 40, dtype='float32')[None, None, :, None], (64, 16, 1, 3))
    )
    flipped = augmentation(crop=0, light=0)(x, 2).numpy()
    falls = flipped[:, 0, 0, 0] > flipped[:, 0, -1, 0]
    assert (
        0.25 < falls.mean() < 0.75
        and np.allclose(flipped[falls], x.numpy()[falls][:, :, ::-1], atol=0.01)
        and np.allclose(flipped[~falls], x.numpy()[~falls], atol=0.01)
    )
    crop = augmentation(flip=False, crop=0.2, light=0)(x, 2).numpy()[:, 0, :, 0]
    width = (crop[:, -1] - crop[:, 0]) / 150
    assert (
        (np.diff(crop) > 0).all()
        and width.min() >= 0.8 - 1e-3
        and width.max() <= 1
        and width.std() > 0.03
        and crop.min() >= 50 - 1e-3
    )
    light = augmentation(flip=False, crop=0, light=0.1)(x, 2).numpy()
    ratio = light.mean((1, 2, 3)) / 125
    assert 0.9 - 1e-3 <= ratio.min() < 0.94 and 1.06 < ratio.max() <= 1.1 + 1e-3


# the seed's generator


@pytest.fixture(scope='module')
def gen():
    return ImageDataGenerator(rescale=1 / 255)


@pytest.mark.parametrize('nested', [False, True])
def test_default_batches(nested, gen, tmp_path):
    cat = flat(tmp_path / 'flat', [3, 5, 2, 4])
    if nested:
        for n in cat.class_names:
            (tmp_path / 'deep' / n).mkdir(parents=True)
            (tmp_path / 'flat' / n).rename(tmp_path / 'deep' / n / n)
    it = input_triplet_gen(
        gen, tmp_path / ('deep' if nested else 'flat'), 4, 7, target_size=(8, 8), seed=0
    )
    seen = []
    for (a, p, n), y in itertools.islice(it, 4):
        assert (
            a.shape == p.shape == n.shape == (7, 8, 8, 3)
            and a.dtype == np.float32
            and y.dtype == np.int32
        )
        a, p, n = (grey(255 * t) for t in (a, p, n))
        assert (
            (a // 20 == p // 20).all()
            and (a != p).all()
            and (a // 20 != n // 20).all()
            and (a // 20 == y).all()
        )
        seen += list(a)
    assert sorted(seen[:14]) == sorted(
        20 * c + k for c, m in enumerate([3, 5, 2, 4]) for k in range(m)
    )  # every photo once


def test_the_seeds_habits_on_request(gen, tmp_path):
    flat(tmp_path, [6, 6, 6, 5])
    with pytest.warns(
        UserWarning, match='leaves out 1 of 4 products, with fewer than 6 photos: p03'
    ):
        it = input_triplet_gen(gen, tmp_path, 4, 6, (8, 8), seed=1, like_original=True)
    same, products = [], set()
    for (a, p, n), y in itertools.islice(it, 150):
        a, p, n = (grey(255 * t) for t in (a, p, n))
        assert (
            np.array_equal(y, np.ones((6, 1)))
            and len(set(a // 20)) == len(set(n // 20)) == 1
            and set(a // 20) != set(n // 20)
        )
        assert sorted(a) == sorted(p) == [20 * (a[0] // 20) + k for k in range(6)]
        same += list(a == p)
        products |= set(a // 20)
    assert abs(np.mean(same) - 1 / 6) < 0.04 and products == {0, 1, 2}


def test_skipped_products_are_counted_and_no_loop_without_end(gen, tmp_path):
    flat(tmp_path, [3, 1, 4, 1])
    with pytest.warns(
        UserWarning, match='leaves out 2 of 4 products, with fewer than 2 photos: p01, p03'
    ):
        it = input_triplet_gen(gen, tmp_path, batch_size=16, target_size=8)
    assert next(it)[0][0].shape == (16, 8, 8, 3)
    with pytest.raises(
        ValueError, match='0 of 4 products have 16 photos or more, 2 are needed.*smaller batch_size'
    ):
        input_triplet_gen(gen, tmp_path, like_original=True)
    with pytest.raises(ValueError, match='num_classes=9, but .* holds 4 products'):
        input_triplet_gen(gen, tmp_path, 9)
    with pytest.raises(FileNotFoundError):
        input_triplet_gen(gen, tmp_path / 'nowhere')
    with pytest.raises(TypeError, match='int has no flow_from_directory'):
        input_triplet_gen(3, tmp_path)


def test_num_classes_takes_the_first(gen, drawn):
    it = input_triplet_gen(gen, drawn.root, 3, 8, (8, 8), seed=0)
    assert set(np.concatenate([y for _, y in itertools.islice(it, 6)])) == {0, 1, 2}


@pytest.mark.parametrize('like_original', [False, True])
def test_generator_repeats_by_seed_random_transforms_included(like_original, drawn):
    gen = ImageDataGenerator(
        rescale=1 / 255, horizontal_flip=True, brightness_range=(0.8, 1.2), channel_shift_range=10.0
    )

    def batches(seed):
        return [
            np.stack(x)
            for x, _ in itertools.islice(
                input_triplet_gen(
                    gen,
                    drawn.root,
                    batch_size=4,
                    target_size=(8, 8),
                    seed=seed,
                    like_original=like_original,
                ),
                3,
            )
        ]

    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    a, b = batches(2), batches(2)
    assert all(np.array_equal(i, j) for i, j in zip(a, b)) and np.array_equal(
        np.random.get_state()[1], state
    )
    assert (
        not np.array_equal(a[0], a[1])
        and not np.array_equal(a[0], batches(3)[0])
        and not np.array_equal(batches(None)[0], batches(None)[0])
    )


@pytest.mark.parametrize('fill', ['nearest', 'reflect'])
@pytest.mark.parametrize('h,w', [(24, 40), (41, 24), (30, 30)])
def test_photos_move_as_keras_moves_them(fill, h, w):
    "Keras' own random transform, photo by photo, is the referee."
    kw = dict(
        rotation_range=40,
        zoom_range=0.4,
        shear_range=20,
        width_shift_range=0.3,
        height_shift_range=[-3, 2],
        channel_shift_range=20,
        horizontal_flip=True,
        vertical_flip=True,
        fill_mode=fill,
        rescale=1 / 255,
    )
    x = np.random.default_rng(h).integers(0, 256, (12, h, w, 3)).astype(np.float32)
    for gen in (
        ImageDataGenerator(**kw),
        ImageDataGenerator(rotation_range=9),
        ImageDataGenerator(horizontal_flip=True),
        ImageDataGenerator(rescale=2.0),
        ImageDataGenerator(samplewise_center=True),
        ImageDataGenerator(zoom_range=0.2, preprocessing_function=lambda im: im + np.random.rand()),
    ):
        rng, state = np.random.default_rng(5), np.random.get_state()
        want = [
            gen.standardize(gen.random_transform(im.copy(), seed=int(rng.integers(2**31))))
            for im in x
        ]
        got = transform_images(gen, x.copy(), np.random.default_rng(5))
        np.random.set_state(state)
        assert got.dtype == np.float32 and np.allclose(
            got, want, atol=0.01 * (gen.rescale or 1), rtol=1e-5
        )


def test_pixels_are_those_of_read_image(drawn):
    (a, p, n), y = next(
        input_triplet_gen(None, drawn.root, batch_size=6, target_size=(16, 16), seed=0)
    )
    known = {read_image(f, (16, 16)).tobytes() for f in drawn.paths}
    assert all(im.astype(np.uint8).tobytes() in known for t in (a, p, n) for im in t)


def test_anything_with_flow_from_directory(drawn):
    class Flow:
        def __init__(self, n):
            self.classes, self.filepaths = np.arange(n) // 6, [f'{i}.jpg' for i in range(n)]

        def __len__(self):
            return 72

        def __getitem__(self, i):
            return np.full((1, 8, 8, 3), i, np.float32), np.array([i // 6])

    class Gen:
        def flow_from_directory(self, directory, **kw):
            self.seen = kw
            return Flow(72)

    g = Gen()
    (a, p, n), y = next(input_triplet_gen(g, drawn.root, batch_size=5, target_size=(8, 8), seed=0))
    assert (
        (grey(a) // 6 == y).all() and (grey(a) != grey(p)).all() and g.seen['target_size'] == (8, 8)
    )
    g.flow_from_directory = lambda *a, **k: iter([])
    with pytest.raises(TypeError, match='needs `classes` and'):
        input_triplet_gen(g, drawn.root)


def test_generator_goes_into_fit(gen, drawn):
    net = tiny_net()
    h = net.fit(
        input_triplet_gen(gen, drawn.root, 12, 4, (8, 8), seed=0),
        validation_data=input_triplet_gen(gen, drawn.root, 12, 4, (8, 8), like_original=True),
        steps_per_epoch=3,
        validation_steps=2,
        epochs=2,
        verbose=0,
    )
    assert len(h.history['val_loss']) == 2


def test_bad_photo_in_the_seeds_generator(gen, tmp_path):
    flat(tmp_path, [4, 4])
    (tmp_path / 'p01' / '2.png').write_bytes(b'junk')
    for like_original in (False, True):
        with pytest.warns(UserWarning, match='2.png.*stands in'):
            list(
                itertools.islice(
                    input_triplet_gen(
                        gen,
                        tmp_path,
                        batch_size=4,
                        target_size=8,
                        seed=0,
                        like_original=like_original,
                    ),
                    4,
                )
            )


def test_show_batch(drawn):
    import matplotlib.pyplot as plt

    ax = show_batch(next(iter(triplet_dataset(drawn, 4, (16, 16)))))
    assert [t.get_text() for t in ax.get_yticklabels()] == ['anchor', 'positive', 'negative']
    ax = show_batch(next(iter(pk_dataset(drawn, 3, 4, (16, 16)))), class_names=drawn.class_names)
    assert len(ax.get_yticklabels()) == 3 and ax.get_yticklabels()[0].get_text().startswith('(00')
    show_batch(next(iter(image_dataset(drawn, 16, 5))))
    show_batch(np.zeros((3, 8, 8, 3)))
    plt.close('all')


def test_real_photos(clothing):
    cat = Catalog.from_dir(clothing / 'validation')
    x, y = next(iter(pk_dataset(cat, P=10, K=3, size=(64, 64), steps=1, augment=True)))
    assert (
        x.shape == (30, 64, 64, 3)
        and len(set(y.numpy())) == 10
        and 60 < float(tf.reduce_mean(x)) < 220
    )
