"The mean of a photo and its mirrored one is a network like any other."

import numpy as np
import pytest
from triplet_fashion.base_network import base_network, with_mirrored
from triplet_fashion.datasets import draw_catalog
from triplet_fashion.encoder import Encoder
from triplet_fashion.export import export, load_export
from triplet_fashion.persistence import load_bundle, save_bundle
from triplet_fashion.search import ImageIndex

rng = np.random.default_rng(0)
photos = rng.integers(0, 256, (3, 32, 32, 3)).astype('uint8')


@pytest.fixture(scope='module')
def net():
    return base_network((32, 32, 3), 8, backbone='small', hidden=(), activation='l2')


@pytest.mark.parametrize('activation', ['l2', 'sigmoid'])
def test_it_is_the_mean_and_unit_vectors_stay_so(activation):
    net = base_network((32, 32, 3), 8, backbone='small', hidden=(), activation=activation)
    mean = (np.asarray(net(photos)) + np.asarray(net(photos[:, :, ::-1]))) / 2
    if activation == 'l2':
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    both = with_mirrored(net)
    np.testing.assert_allclose(both(photos), mean, atol=1e-6)
    assert len(both.weights) == len(net.weights)


def test_weights_are_shared(net):
    both, before = with_mirrored(net), net.get_weights()
    was = np.asarray(both(photos))
    net.set_weights([*before[:-2], -before[-2], before[-1]])
    assert np.abs(was - np.asarray(both(photos))).max() > 1e-4
    net.set_weights(before)


def test_engines_bundle_index_and_export_take_it(net, tmp_path):
    both = with_mirrored(net)
    expected = np.asarray(both(photos))
    for engine in None, 'tf':
        np.testing.assert_allclose(Encoder(both, engine).encode(photos), expected, atol=1e-5)
    catalog = draw_catalog(tmp_path / 'drawn', 4, 2, size=(32, 32))
    index = ImageIndex.build(catalog, both)
    back, _ = load_bundle(save_bundle(tmp_path / 'both.tfz', both))
    np.testing.assert_allclose(back(photos), expected, atol=1e-6)
    index.net = back
    assert index.search(catalog.paths[0], k=1)[0].id == catalog.ids[0]
    run = load_export(export(both, tmp_path / 'out', sample=photos))
    np.testing.assert_allclose(run(photos), expected, atol=1e-4)
