"From positions to pixels: plans by hand, the cache, bad photos, two decoders over odd files."

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

tf = pytest.importorskip('tensorflow')
from test_pixels import BAD, FITS, GOOD, SIZE

import triplet_fashion
from triplet_fashion.photos.decoding import decode_photos, map_or_else
from triplet_fashion.photos.image import PhotoError, read_image
from triplet_fashion.photos.loading import (
    DecodePlan,
    ImageLoader,
    PixelCache,
    Preprocessing,
    ArrayLoader,
    plan_decode,
)
from triplet_fashion.photos.sampling import Batch, PKSampler


@pytest.fixture
def photos(tmp_path):
    "Four products of three photos each, every photo in a colour of its own."
    paths = [tmp_path / f'{i}.png' for i in range(12)]
    for i, path in enumerate(paths):
        Image.new('RGB', (20, 20), (20 * i, 255 - 20 * i, 7)).save(path)
    return paths


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp('odd')
    for name, data in (GOOD | BAD).items():
        (folder / name).write_bytes(data)
    return folder


def jpeg(path, height, width):
    Image.new('RGB', (width, height), 'red').save(path)
    return path


# preprocessing and plans


def test_preprocessing_is_a_value():
    assert Preprocessing(96) == Preprocessing([96, 96]) == Preprocessing((96, 96), 'stretch')
    assert len({Preprocessing(96), Preprocessing((96, 96)), Preprocessing(96, 'pad')}) == 2
    assert Preprocessing((30, 20)).shape == (30, 20, 3)


@pytest.mark.parametrize(
    'given,text',
    [
        (dict(size=0), 'size must be'),
        (dict(size='big'), 'size must be'),
        (dict(size=8, fit='cover'), "not 'cover'"),
    ],
)
def test_preprocessing_that_means_nothing_is_named(given, text):
    with pytest.raises(ValueError, match=text):
        Preprocessing(**given)


def test_a_loader_needs_a_size():
    with pytest.raises(ValueError, match='size is needed: photos of different sizes do not stack'):
        ImageLoader([], Preprocessing())


@pytest.mark.parametrize(
    'dims,size,fit,expected',
    [
        # at least as large as wanted, less a fifth: 400 is 4 times 100, 380 is not
        ((400, 400), (100, 100), 'stretch', DecodePlan(4, 0, 0, 100, 100, 100, 100)),
        ((100, 100), (100, 100), 'stretch', DecodePlan(1, 0, 0, 100, 100, 100, 100)),
        ((50, 60), (100, 100), 'stretch', DecodePlan(1, 0, 0, 50, 60, 100, 100)),
        # a square from the middle of a picture 200 x 300, which is decoded at a half: 100 x 150
        ((200, 300), (100, 100), 'crop', DecodePlan(2, 0, 25, 100, 100, 100, 100)),
        # the whole of it on a page of 100 x 100: 67 rows
        ((200, 300), (100, 100), 'pad', DecodePlan(2, 0, 0, 100, 150, 67, 100)),
        # twice too long on one side after the reduction: Pillow's
        ((100, 400), (100, 100), 'stretch', DecodePlan(0)),
    ],
)
def test_a_plan_worked_by_hand(dims, size, fit, expected, tmp_path):
    assert plan_decode(jpeg(tmp_path / 'a.jpg', *dims), Preprocessing(size, fit)) == expected


def test_what_is_no_plain_jpeg_goes_through_pillow(photos, tmp_path):
    (tmp_path / 'page.jpg').write_bytes(b'<html>404</html>')
    for path in (photos[0], tmp_path / 'page.jpg', tmp_path / 'gone.jpg'):
        assert plan_decode(path, Preprocessing(8)) == DecodePlan(0)


# the cache


@pytest.mark.parametrize(
    'cache,n,kept',
    [(True, 10**3, True), (False, 1, False), ('auto', 3, True), ('auto', 10**5, False)],
)
def test_a_cache_where_it_is_asked_for(cache, n, kept):
    assert (PixelCache.of(cache, n, (224, 224, 3)) is not None) == kept


def test_a_cached_photo_is_read_once(photos, monkeypatch):
    loader, read = ImageLoader(photos, Preprocessing(8), cache=True), []
    one = ImageLoader.read

    def counted(self, position):
        read.append(int(position))
        return one(self, position)

    monkeypatch.setattr(ImageLoader, 'read', counted)
    first = loader.load([3, 3, 5])
    again = loader.load([5, 3])
    assert sorted(read) == [3, 5] and np.array_equal(first[[2, 0]], again)


# loading


def test_photos_come_in_the_order_asked_for(photos):
    images = ImageLoader(photos, Preprocessing(8)).load([11, 0, 4])
    assert images.shape == (3, 8, 8, 3) and images.dtype == np.uint8
    assert images[:, 0, 0, 0].tolist() == [220, 0, 80]
    assert ImageLoader(photos, Preprocessing(8)).load([]).shape == (0, 8, 8, 3)


@pytest.mark.parametrize('decode', [ImageLoader.load, decode_photos], ids=['pillow', 'tensorflow'])
def test_an_unreadable_photo_raises_or_stays_black(decode, photos):
    photos[2].write_bytes(b'')
    positions = np.array([1, 2, 3])
    with pytest.raises(PhotoError, match='2.png: empty file'):
        decode(ImageLoader(photos, Preprocessing(8)), positions)
    loader = ImageLoader(photos, Preprocessing(8), on_error='blank')
    images = decode(loader, positions)
    assert loader.unreadable == {2: 'empty file: 0 bytes'}
    assert not images[1].any() and images[0].any() and images[2].any()


def test_another_photo_takes_the_place_of_an_unreadable_one(photos):
    labels = np.repeat(np.arange(4), 3)
    sampler = PKSampler(labels, P=2, K=2, seed=0)
    positions = sampler.batch(0, 0).positions
    photos[positions[0]].write_bytes(b'broken')
    loader = ImageLoader(photos, Preprocessing(8), on_error='replace')
    with pytest.warns(UserWarning, match='Another photo stands in'):
        loaded, images = loader.load_or_replace(positions, sampler.replace)
    assert list(loader.unreadable) == [positions[0]]
    assert labels[loaded].tolist() == labels[positions].tolist()
    assert images[:, 0, 0, 0].tolist() == [20 * i for i in loaded]


def test_without_a_replacement_it_is_an_error(photos):
    photos[0].write_bytes(b'broken')
    loader = ImageLoader(photos, Preprocessing(8), on_error='replace')
    with pytest.warns(UserWarning), pytest.raises(PhotoError):
        loader.load_or_replace(np.array([0, 1]))


def test_triplets_come_column_by_column(photos):
    rows = np.array([[0, 1, 2], [3, 4, 5]])
    _, images = ImageLoader(photos, Preprocessing(8)).load_or_replace(rows)
    assert images[:, 0, 0, 0].tolist() == [0, 60, 20, 80, 40, 100]


def test_the_loader_is_the_only_way_from_a_file_to_pixels_of_a_size():
    package = Path(triplet_fashion.__file__).parent
    readers = {
        path.stem
        for path in package.rglob('*.py')
        if re.search(r'\bread_image\(|tf\.io\.decode', path.read_text())
    }
    readers -= {'benchmark_files', 'queries'}  # which cut garments out of whole pictures
    assert readers == {'image', 'loading', 'decoding', 'serving'}


def test_the_loader_needs_no_tensorflow(photos):
    code = (
        'import sys; from triplet_fashion.photos.loading import *; '
        f'load_images([{str(photos[0])!r}], 8); print("tensorflow" in sys.modules)'
    )
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == 'False'


# two decoders, many files


@pytest.mark.parametrize('fit', FITS)
def test_both_decoders_see_what_read_image_sees(fit, odd):
    loader = ImageLoader([odd / name for name in GOOD], Preprocessing(SIZE, fit))
    every = np.arange(len(loader))
    by_pillow, by_tensorflow = loader.load(every), decode_photos(loader, every)
    for name, a, b in zip(GOOD, by_pillow, by_tensorflow):
        assert np.array_equal(a, read_image(odd / name, SIZE, fit)), name
        assert np.abs(a.astype(int) - b).max() <= 1, name


@pytest.mark.parametrize('cache', [True, False])
def test_a_pipeline_sees_the_same(cache, odd):
    loader = ImageLoader([odd / name for name in GOOD], Preprocessing(SIZE), cache)
    every = np.arange(len(loader))
    want = decode_photos(loader, every)
    batches = tf.data.Dataset.range(len(loader)).batch(16).enumerate()
    ds = loader.as_dataset(batches.map(lambda step, at: Batch(0, step, at)))
    for _ in range(2):  # the second pass comes from the cache, where there is one
        found = list(ds.as_numpy_iterator())
        assert [int(batch.step) for batch, _ in found] == list(range(len(found)))
        assert np.array_equal(np.concatenate([images for _, images in found]), want)


@pytest.mark.parametrize('name', BAD)
def test_a_bad_file_is_named_by_both(name, odd):
    loader = ImageLoader([odd / 'plain.jpg', odd / name], Preprocessing(SIZE))
    for decode in (loader.load, lambda positions: decode_photos(loader, positions)):
        with pytest.raises(PhotoError, match=name):
            decode(np.arange(2))


# a second try


def test_what_fails_is_tried_the_other_way_in_order():
    def fast(x):
        return tf.debugging.check_numerics(1 / x, 'no inverse')

    numbers = tf.data.Dataset.from_tensor_slices([1.0, 2.0, 0.0, 4.0, 0.0, 5.0])
    found = list(map_or_else(numbers, fast, tf.negative, 3).as_numpy_iterator())
    assert np.allclose(found, [1, 0.5, 0, 0.25, 0, 0.2])


def test_an_error_from_further_up_is_not_the_decoders():
    def source(x):
        return tf.debugging.check_numerics(1 / x, 'the source broke')

    numbers = tf.data.Dataset.from_tensor_slices([1.0, 0.0, 2.0]).map(source)
    with pytest.raises(tf.errors.InvalidArgumentError, match='the source broke'):
        list(map_or_else(numbers, tf.identity, tf.identity, 2))


def test_where_both_ways_fail_the_second_one_says_why():
    def fails(x):
        return tf.debugging.check_numerics(x / 0.0, 'fast')

    def fails_too(x):
        return tf.debugging.check_numerics(x / 0.0, 'slow')

    numbers = tf.data.Dataset.from_tensor_slices([1.0, 2.0])
    with pytest.raises(tf.errors.InvalidArgumentError, match='slow'):
        list(map_or_else(numbers, fails, fails_too, 2))


# rows


def test_rows_show_the_next_copy_in_each_epoch():
    rows = np.arange(12.0).reshape(3, 2, 2)  # photos, copies, numbers
    loader = ArrayLoader(rows, copies=2)
    assert loader.load(np.array([0, 1]), 0).tolist() == [[0, 1], [6, 7]]
    assert loader.load(np.array([0, 1]), 1).tolist() == [[2, 3], [4, 5]]
    assert loader.load(np.array([0, 1]), 2).tolist() == [[0, 1], [6, 7]]


@pytest.mark.parametrize(
    'shape,copies,text', [((4,), 1, 'one row of numbers a photo'), ((4, 3, 2), 2, 'copies=2')]
)
def test_rows_of_another_shape_are_named(shape, copies, text):
    with pytest.raises(ValueError, match=text):
        ArrayLoader(np.zeros(shape), copies)
