"Colours counted beside the features of a backbone: by definition, at every scaling, in every file."

import keras
import numpy as np
import pytest
from PIL import Image
from test_stages import pretrained

from triplet_fashion.base_network import (
    backbone_of,
    backbone_stages,
    base_network,
    freeze,
    separate,
    standardize,
    unfreeze,
)
from triplet_fashion.catalog import Catalog
from triplet_fashion.colors import ColorHistogram
from triplet_fashion.discriminant import discriminant
from triplet_fashion.evaluation import evaluate
from triplet_fashion.export import FORMATS, export, load_export
from triplet_fashion.encoder import encode
from triplet_fashion.persistence import load_bundle, save_bundle
from triplet_fashion.engines import make_engine
from triplet_fashion.training import Recipe, fit

rng = np.random.default_rng(0)
PHOTOS = rng.integers(0, 256, (6, 48, 48, 3)).astype('uint8')
LABELS = np.repeat([0, 1, 2], 2)


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp('backbone') / 'mine.keras')


@pytest.fixture(scope='module')
def net(backbone):
    return learned(backbone)


def learned(backbone, **how):
    "Return a network whose head is computed of the photos above."
    keras.utils.set_random_seed(0)
    how = (
        dict(hidden=(), activation='l2', trainable=False, stages='all', discriminant=8, colors=True)
        | how
    )
    made = base_network((48, 48, 3), 8, backbone, **how)
    rows = backbone_of(made).predict(PHOTOS, verbose=0)
    return separate(standardize(made, rows), rows, LABELS)


def counted(photo, bins):
    "Return how much of a photo has which colour, one pixel after the other."
    shares = np.zeros((bins,) * 3)
    for pixel in photo.reshape(-1, 3) / 255 * (bins - 1):
        low = np.floor(pixel).astype(int)
        part = pixel - low
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, part, 1 - part))
            if weight:
                shares[tuple(low + corner)] += weight
    return shares.reshape(-1) / (photo.size // 3)


@pytest.mark.parametrize('bins', [2, 5, 8])
def test_each_pixel_counts_for_the_steps_beside_it(bins):
    photos = rng.integers(0, 256, (3, 20, 30, 3)).astype('uint8')
    photos[0] = 255
    want = np.sqrt([counted(p, bins) + 1e-4 for p in photos]) - 0.01
    np.testing.assert_allclose(ColorHistogram(bins)(photos), want, atol=1e-5)


@pytest.mark.parametrize('side, step', [(63, 1), (127, 1), (128, 2), (320, 5)])
def test_large_photos_are_looked_at_in_steps(side, step):
    photo = rng.integers(0, 256, (1, side, side, 3)).astype('uint8')
    want = np.sqrt(counted(photo[0, ::step, ::step], 4) + 1e-4) - 0.01
    np.testing.assert_allclose(ColorHistogram(4)(photo)[0], want, atol=1e-5)


def test_a_network_for_photos_of_any_size_has_colours_too():
    anything = keras.Sequential([keras.Input((None, None, 3)), ColorHistogram(4)])
    for side in 16, 48:
        photo = rng.integers(0, 256, (2, side, side, 3)).astype('float32')
        np.testing.assert_allclose(anything(photo), ColorHistogram(4)(photo), atol=1e-6)


def test_half_precision_does_not_round_the_pixels():
    got = ColorHistogram(dtype='mixed_bfloat16')(PHOTOS)
    assert got.dtype == 'bfloat16'
    np.testing.assert_allclose(keras.ops.cast(got, 'float32'), ColorHistogram()(PHOTOS), atol=2e-3)


@pytest.mark.parametrize('rescale', ['none', 'caffe', 'torch', 'tf', 'unit'])
def test_the_colours_are_those_of_the_photo_at_any_scaling(backbone, rescale):
    net = base_network(
        (48, 48, 3),
        8,
        backbone,
        hidden=(),
        trainable=False,
        rescale=rescale,
        stages='all',
        discriminant=8,
        colors=True,
    )
    found = backbone_of(net).predict(PHOTOS, verbose=0)[:, -512:]
    want = ColorHistogram()(
        PHOTOS[..., ::-1] if rescale == 'caffe' else PHOTOS
    )  # its channels come as B, G, R
    np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.parametrize('stages', ['all', 'last', [1]])
def test_features_of_the_backbone_stay_as_they_were(backbone, stages):
    bare, with_colors = (
        base_network(
            (48, 48, 3),
            8,
            backbone,
            hidden=(),
            trainable=False,
            stages=stages,
            discriminant=8,
            colors=c,
        )
        for c in (False, True)
    )
    rows, more = (backbone_of(n).predict(PHOTOS, verbose=0) for n in (bare, with_colors))
    np.testing.assert_allclose(more[:, :-512], rows, atol=1e-4)
    assert more.shape[1] == rows.shape[1] + 512


def test_the_head_is_two_discriminants_side_by_side(net):
    rows = backbone_of(net).predict(PHOTOS, verbose=0)
    shares = rows[:, -512:]
    standard = np.asarray(net.get_layer('standardize')(rows))
    np.testing.assert_allclose(standard[:, -512:], shares, atol=1e-6)
    kernel, bias = net.get_layer('discriminant').get_weights()
    mine, own = (
        discriminant(standard[:, :-512], LABELS, 4),
        discriminant(shares, LABELS, 4, shrinkage=1.0),
    )
    np.testing.assert_allclose(kernel[:-512, :4], mine[0], atol=1e-5)
    np.testing.assert_allclose(kernel[-512:, 4:], own[0] / 2, atol=1e-5)
    assert not kernel[-512:, :4].any() and not kernel[:-512, 4:].any()
    np.testing.assert_allclose(bias, np.concatenate([mine[1], own[1] / 2]), atol=1e-5)


def test_colours_that_never_differ_weigh_nothing(backbone):
    keras.utils.set_random_seed(0)
    net = base_network(
        (48, 48, 3),
        8,
        backbone,
        hidden=(),
        trainable=False,
        stages='all',
        discriminant=8,
        colors=True,
    )
    rows = backbone_of(net).predict(PHOTOS, verbose=0)
    rows[:, -512:] = rows[:1, -512:]
    separate(standardize(net, rows), rows, LABELS)
    kernel = net.get_layer('discriminant').get_weights()[0]
    assert not kernel[:, 4:].any() and kernel[:-512, :4].any()


@pytest.mark.parametrize('engine', ['litert', 'openvino', 'onnxruntime'])
def test_every_engine_counts_them(net, engine):
    photos = PHOTOS.astype('float32')
    try:
        run = make_engine(net, engine, photos)
    except ImportError as e:
        pytest.skip(str(e))
    np.testing.assert_allclose(run(photos), net.predict(photos, verbose=0), atol=3e-4)


def test_a_bundle_and_a_keras_file_keep_them(net, tmp_path):
    want = net.predict(PHOTOS, verbose=0)
    save_bundle(tmp_path / 'bundle', net)
    np.testing.assert_allclose(
        load_bundle(tmp_path / 'bundle')[0].predict(PHOTOS, verbose=0), want, atol=1e-6
    )
    net.save(tmp_path / 'net.keras')
    np.testing.assert_allclose(
        keras.saving.load_model(tmp_path / 'net.keras').predict(PHOTOS, verbose=0), want, atol=1e-6
    )


@pytest.mark.parametrize('format', FORMATS)
def test_an_export_counts_them(net, format, tmp_path):
    try:
        out = export(net, tmp_path / 'out', format, sample=PHOTOS)
    except ImportError as e:
        pytest.skip(str(e))
    np.testing.assert_allclose(load_export(out)(PHOTOS), net.predict(PHOTOS, verbose=0), atol=3e-4)


def test_stages_and_freezing_count_as_without_colours(backbone):
    layers = [
        [l.name for l in s if l.weights]
        for n in (False, True)
        for s in backbone_stages(
            base_network(
                (48, 48, 3),
                8,
                backbone,
                hidden=(),
                trainable=False,
                discriminant=8,
                stages='all',
                colors=n,
            )
        )
    ]
    assert layers[: len(layers) // 2] == layers[len(layers) // 2 :]
    net = base_network(
        (48, 48, 3),
        8,
        backbone,
        hidden=(),
        trainable=False,
        discriminant=8,
        stages='all',
        colors=True,
    )
    assert len(unfreeze(net).trainable_weights) > len(freeze(net).trainable_weights) == 2


@pytest.mark.parametrize(
    'wrong, said',
    [
        (dict(colors=1), 'not True or False'),
        (dict(colors='all'), 'not True or False'),
        (dict(colors=True, discriminant=0), 'or colors=False'),
        (dict(colors=True, discriminant=1), 'Give discriminant=128'),
    ],
)
def test_colours_that_nothing_weighs_are_refused(backbone, wrong, said):
    with pytest.raises(ValueError, match=said):
        base_network((48, 48, 3), 4, backbone, trainable=False, **(dict(discriminant=8) | wrong))


@pytest.mark.parametrize('wrong', [1, 2.5, True, '8'])
def test_bins_are_a_whole_number(wrong):
    with pytest.raises(ValueError, match='bins is'):
        ColorHistogram(wrong)


@pytest.mark.parametrize(
    'how',
    [dict(black=255), dict(white=0), dict(black=0, white=(1, 1, 0)), dict(white=float('nan'))],
)
def test_black_is_darker_than_white(how):
    with pytest.raises(ValueError, match='darker than white'):
        ColorHistogram(**how)


@pytest.fixture(scope='module')
def blind(backbone, tmp_path_factory):
    "Save the backbone with a first layer that takes red, green and blue for the same."
    model = keras.saving.load_model(backbone)
    first = next(l for l in model.layers if l.weights)
    kernel, bias = first.get_weights()
    first.set_weights([np.broadcast_to(kernel.mean(axis=2, keepdims=True), kernel.shape), bias])
    path = tmp_path_factory.mktemp('blind') / 'blind.keras'
    model.save(path)
    return str(path)


@pytest.fixture(scope='module')
def dyed(tmp_path_factory):
    "Draw four cloths, coarse to fine, in ten equally bright colours, three photos of each."
    folder = tmp_path_factory.mktemp('dyed')
    hues = rng.permutation(
        [(r, g, 360 - r - g) for r in (60, 90, 120, 150, 180) for g in (80, 140)]
    )
    for cloth, size in enumerate((1, 2, 4, 8)):
        for i, hue in enumerate(hues):
            (folder / f'cloth {cloth} colour {i}').mkdir()
            for view in range(3):
                weave = np.kron(rng.normal(0, 20, (48 // size, 48 // size)), np.ones((size, size)))[
                    ..., None
                ]
                photo = hue + weave + rng.normal(0, 8)
                Image.fromarray(photo.clip(0, 255).astype('uint8')).save(
                    folder / f'cloth {cloth} colour {i}' / f'{view}.png'
                )
    return Catalog.of(folder)


def test_what_the_backbone_does_not_see_is_found_by_colour(dyed, blind):
    train, valid = dyed.split(0.5, seed=0)
    how = dict(recipe='products', backbone=blind, size=48, epochs=1, verbose=0)

    def right(**more):
        return evaluate(encode(valid, fit(train, **how, **more).net), valid)['R@1']

    assert Recipe.named('products', backbone=blind).colors is True
    assert right() > right(colors=False) + 0.3


def test_colors_weigh_more_where_asked(backbone):
    net, kernels = learned(backbone), []
    rows = backbone_of(net).predict(PHOTOS, verbose=0)
    for weight in (0.5, 0.75):
        separate(net, rows, LABELS, color_weight=weight)
        kernels.append(net.get_layer('discriminant').get_weights()[0])
    n = rows.shape[1] - 512
    np.testing.assert_array_equal(kernels[0][:n], kernels[1][:n])
    np.testing.assert_allclose(1.5 * kernels[0][n:], kernels[1][n:], rtol=1e-5)
    np.testing.assert_array_equal(
        kernels[0], learned(backbone).get_layer('discriminant').get_weights()[0]
    )
