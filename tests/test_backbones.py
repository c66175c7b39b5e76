"Backbones of any kind: tokens, inner layers, keras-hub, functions, files; all works on each."

import os
import threading

import keras
import numpy as np
import pytest
from keras import layers, ops

from triplet_fashion.backbones import find_backbone, open_backbone
from triplet_fashion.base_network import (
    backbone_of,
    base_network,
    freeze,
    is_frozen,
    unfreeze,
)
from triplet_fashion.cli import triplet_train
from triplet_fashion.encoder import Encoder, FeatureCache, encode
from triplet_fashion.evaluation import scoreboard
from triplet_fashion.engines import in_precision, make_engine, uses_half_precision
from triplet_fashion.export import FORMATS, export, load_export
from triplet_fashion.graphs import onnx_model
from triplet_fashion.input_scaling import InputScaling
from triplet_fashion.onnx_files import read_onnx
from triplet_fashion.persistence import load_bundle, save_bundle
from triplet_fashion.photos.loading import Preprocessing, load_images
from triplet_fashion.pooling import ClassToken, GeneralizedMean
from triplet_fashion.search import ImageIndex
from triplet_fashion.training import fit


@pytest.fixture
def photos():
    return np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3)).astype('uint8')


def patches(n_first=0, name='patches'):
    "Return a model whose tokens are the mean colours of 16 patches, after `n_first` zeros."
    x = photo = keras.Input((32, 32, 3))
    x = layers.Reshape((16, 3))(layers.AveragePooling2D(8)(x))
    if n_first:
        x = layers.ZeroPadding1D((n_first, 0))(x)
    return keras.Model(photo, x, name=name)


# ---- pooling


@pytest.mark.parametrize('pooling', ['mean', 'avg', 'auto'])
def test_tokens_of_patches_alone_are_averaged(photos, pooling):
    net = base_network((32, 32, 3), 4, patches(), pooling=pooling, hidden=())
    found = backbone_of(net).predict(photos, verbose=0)
    np.testing.assert_allclose(found, photos.mean((1, 2)), rtol=1e-4)


@pytest.mark.parametrize('n_first, pooling', [(1, 'auto'), (5, 'auto'), (0, 'cls'), (1, 'cls')])
def test_a_first_token_is_taken_where_there_is_one(photos, n_first, pooling):
    net = base_network((32, 32, 3), 4, patches(n_first), pooling=pooling, hidden=())
    found = backbone_of(net).predict(photos, verbose=0)
    want = np.zeros((5, 3)) if n_first else photos[:, :8, :8].mean((1, 2))
    np.testing.assert_allclose(found, want, rtol=1e-4)


def test_gem_lies_between_mean_and_maximum(photos):
    maps = keras.Sequential([keras.Input((32, 32, 3)), layers.AveragePooling2D(8)], name='maps')
    net = base_network((32, 32, 3), 4, maps, pooling='gem', hidden=())
    found = backbone_of(net).predict(photos, verbose=0)
    cells = photos.reshape(5, 4, 8, 4, 8, 3).mean((2, 4)).reshape(5, 16, 3)
    np.testing.assert_allclose(found, (cells**3).mean(1) ** (1 / 3), rtol=1e-4)
    assert (found > cells.mean(1)).all() and (found < cells.max(1)).all()


def test_ways_to_pool_that_mean_nothing_are_named():
    maps = keras.Sequential([keras.Input((32, 32, 3)), layers.AveragePooling2D(8)], name='maps')
    with pytest.raises(ValueError, match="pooling is 'max', not one of auto, cls"):
        base_network((32, 32, 3), 4, maps, pooling='max')
    with pytest.raises(ValueError, match="pooling='cls' takes the first of tokens .* maps"):
        base_network((32, 32, 3), 4, maps, pooling='cls')


@pytest.mark.parametrize('layer', [ClassToken(), GeneralizedMean(2.5)])
def test_pooling_layers_come_back_from_their_config(layer):
    x = np.random.default_rng(0).random((2, 3, 4)).astype('float32')
    again = type(layer).from_config(layer.get_config())
    np.testing.assert_array_equal(again(x), layer(x))
    assert tuple(layer.compute_output_shape((2, 3, 4))) == (2, 4)


# ---- pixels


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
def test_a_preprocessing_scales_each_colour(photos, order):
    how = Preprocessing(
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), scale=1 / 255, order=order, source='a note'
    )
    want = (photos / 255 - np.array(how.mean)) / np.array(how.std)
    if order == 'bgr':
        want = want[..., ::-1]
    layer = InputScaling(how)
    np.testing.assert_allclose(layer(photos), want, atol=1e-5)
    np.testing.assert_array_equal(
        InputScaling.from_config(layer.get_config())(photos), layer(photos)
    )


def test_a_backbone_gets_its_pixels_as_it_wants_them(photos):
    mean = keras.Sequential([keras.Input((32, 32, 3)), layers.GlobalAveragePooling2D()])
    how = Preprocessing(mean=0.5, std=0.25, scale=1 / 255)
    net = base_network((32, 32, 3), 4, mean, rescale=how, hidden=())
    want = (photos.mean((1, 2)) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(backbone_of(net).predict(photos, verbose=0), want, atol=1e-4)


@pytest.mark.parametrize(
    'given, said',
    [
        (dict(order='grb'), "order must be 'rgb' or 'bgr', not 'grb'"),
        (dict(std=(1, 0, 1)), 'nothing divides by 0'),
        (dict(mean=(1, 2)), r'mean is \(1, 2\), not a number for each'),
        (dict(mean='x'), 'mean is .x., not a number'),
    ],
)
def test_a_preprocessing_that_means_nothing_is_named(given, said):
    with pytest.raises(ValueError, match=said):
        Preprocessing(**given)


# ---- functions


def mean_color(photos):
    assert photos.dtype == np.uint8
    return photos.mean(axis=(1, 2))


def test_a_function_is_a_backbone(drawn, photos, tmp_path):
    net = base_network((32, 32, 3), 4, mean_color, hidden=(8,), activation='l2')
    assert is_frozen(net)
    np.testing.assert_allclose(
        backbone_of(net).predict(photos, verbose=0), photos.mean((1, 2)), rtol=1e-5
    )
    run = fit(drawn, drawn, net=net, recipe='strong', epochs=1, verbose=0, feature_cache=False)
    embeddings = Encoder(run.net).encode(drawn)
    assert embeddings.shape == (len(drawn), 4) and np.isfinite(embeddings).all()
    assert scoreboard({'mine': run.net}, drawn)[0]['embedding'] == 'mine'


def test_a_recipe_makes_a_network_on_a_function(drawn):
    run = fit(drawn, recipe='strong', backbone=mean_color, size=32, epochs=1, verbose=0)
    assert run.recipe.stages == 'last' and is_frozen(run.net)
    with pytest.raises(ValueError, match='an ONNX file or a function stays frozen'):
        fit(drawn, recipe='deep', backbone=mean_color, size=32, epochs=1, verbose=0)


def test_a_bundle_asks_for_the_function(photos, tmp_path):
    net = base_network((32, 32, 3), 4, mean_color, hidden=())
    save_bundle(tmp_path / 'n.tfz', net)
    with pytest.raises(ValueError, match="function mean_color, which is not known.*custom_objects"):
        load_bundle(tmp_path / 'n.tfz')
    again = load_bundle(tmp_path / 'n.tfz', custom_objects={'mean_color': mean_color})[0]
    np.testing.assert_array_equal(again.predict(photos, verbose=0), net.predict(photos, verbose=0))
    with pytest.raises(ValueError, match='answers otherwise'):
        load_bundle(tmp_path / 'n.tfz', custom_objects={'mean_color': lambda p: p.max(axis=(1, 2))})
    with pytest.raises(ValueError, match='is a function, which no file can hold'):
        export(net, tmp_path / 'out', 'onnx')


def test_features_of_functions_of_one_name_are_kept_apart(drawn, tmp_path):
    "A cache knows a function by what it answers."

    def made(factor):
        def features(photos):
            return factor * photos.mean(axis=(1, 2))

        return features

    cache = FeatureCache(tmp_path / 'features')
    one, two = (backbone_of(base_network((32, 32, 3), 4, made(f), hidden=())) for f in (1, 2))
    a, b = (np.asarray(cache.get(net, drawn)) for net in (one, two))
    np.testing.assert_allclose(b, 2 * a, rtol=1e-5)


def test_a_function_goes_to_the_workers_of_a_cluster(drawn, tmp_path):
    "As the backbone of a network and alone, with what it holds; or it is said why it cannot."
    ray = pytest.importorskip('ray', reason="pip install 'triplet_fashion[cluster]'")
    factor, lock = np.array([1, 2, 3]), threading.Lock()

    def weighted(photos):
        return photos.mean(axis=(1, 2)) * factor

    def locked(photos):
        with lock:
            return photos.mean(axis=(1, 2))

    def cluster(model, name, **how):
        how |= dict(size=(32, 32), part_size=24, cluster='auto', workers=1)
        return encode(drawn, model, out=tmp_path / name, **how)

    where = dict(_temp_dir=f'/tmp/ray_{os.getpid()}', object_store_memory=10**8)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, **where)
    try:
        net = base_network((32, 32, 3), 4, weighted, hidden=(8,), activation='l2')
        weighted.__qualname__ = 'weighted'  # as if defined outside of others
        for name, model in dict(network=net, function=weighted).items():
            found = cluster(model, name)
            np.testing.assert_allclose(found, encode(drawn, model, size=(32, 32)), atol=1e-5)
        with pytest.raises(ValueError, match='model cannot be sent to a cluster.*what it holds'):
            cluster(base_network((32, 32, 3), 4, locked), 'locked')
        nameless = base_network((32, 32, 3), 4, lambda photos: photos.mean(axis=(1, 2)))
        with pytest.raises(ValueError, match='lambda, which has no name. Define a function with'):
            cluster(nameless, 'nameless')
        assert not (tmp_path / 'nameless').exists()
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    'function, said',
    [
        (lambda photos: photos, r'gives \(1, 32, 32, 3\) of 1 photos, not \(n, d\)'),
        (lambda photos: np.zeros((3, 4)), r'gives \(3, 4\) of 1 photos'),
        (lambda photos: np.full((len(photos), 2), np.nan), 'not finite'),
    ],
)
def test_functions_that_give_no_features_are_named(function, said):
    with pytest.raises(ValueError, match=said):
        base_network((32, 32, 3), 4, function)


def test_the_function_of_an_application_is_its_name():
    assert find_backbone(keras.applications.MobileNetV2) == 'MobileNetV2'


# ---- inner layers


class Block(layers.Layer):
    "Adds something to tokens, as a block of a transformer does."

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm, self.dense = layers.LayerNormalization(), layers.Dense(6, activation='relu')

    def call(self, x):
        return x + self.dense(self.norm(x))


@keras.saving.register_keras_serializable(package='tests')
class Blocks(layers.Layer):
    "Three blocks in one layer."

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Block(name=f'block_{i}') for i in range(3)]

    def build(self, shape):
        for block in self.blocks:
            block.norm.build(shape)
            block.dense.build(shape)
            block.built = True
        self.built = True

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def transformer():
    "Return a model of patches and three blocks, features of whose blocks no graph gives."
    photo = keras.Input((32, 32, 3))
    x = layers.Reshape((16, 6))(layers.Conv2D(6, 8, strides=8)(photo))
    return keras.Model(photo, Blocks(name='blocks')(x), name='transformer')


@pytest.mark.parametrize(
    'stages, width',
    [('all', 18), ([1, 3], 12), (['block_1'], 6), (['block_0', 'blocks'], 12), (['reshape'], 6)],
)
def test_blocks_inside_a_layer_give_features(photos, stages, width):
    keras.utils.set_random_seed(0)
    keras.backend.clear_session()
    model = transformer()
    net = base_network(
        (32, 32, 3), 4, model, stages=stages, pooling='mean', trainable=False, rescale='unit'
    )
    features = backbone_of(net)
    assert features.output_shape == (None, width)
    x = model.layers[2](model.layers[1](InputScaling('unit')(photos)))
    by_hand = [x]
    for block in model.layers[3].blocks:
        by_hand.append(block(by_hand[-1]))
    of_name = dict(reshape=0, block_0=1, block_1=2, blocks=3)
    chosen = [1, 2, 3] if stages == 'all' else [of_name.get(s, s) for s in stages]
    want = np.concatenate([ops.mean(by_hand[i], axis=1) for i in chosen], axis=1)
    np.testing.assert_allclose(features.predict(photos, verbose=0), want, atol=1e-5)


def test_names_that_are_not_there_are_told_with_some_that_are():
    keras.backend.clear_session()
    with pytest.raises(ValueError, match="no layer 'block_9'; it has .*block"):
        base_network((32, 32, 3), 4, transformer(), stages=['block_9'])


def test_a_network_on_inner_layers_is_saved_and_freezes_in_part(photos, tmp_path):
    net = base_network((32, 32, 3), 4, transformer(), stages='all', hidden=(), trainable=False)
    save_bundle(tmp_path / 'n.tfz', net)
    again = load_bundle(tmp_path / 'n.tfz')[0]
    np.testing.assert_array_equal(again.predict(photos, verbose=0), net.predict(photos, verbose=0))
    whole = len(unfreeze(net).trainable_weights)
    some = len(unfreeze(net, 1 / 3).trainable_weights)
    assert 2 < some < whole
    assert is_frozen(freeze(net))


def test_a_vision_transformer_of_functional_layers_gives_its_sums(photos):
    photo = keras.Input((32, 32, 3))
    x = layers.Reshape((16, 6))(layers.Conv2D(6, 8, strides=8)(photo))
    for _ in range(2):
        x = layers.Add()([x, layers.MultiHeadAttention(2, 3)(x, x)])
    vit = keras.Model(photo, x, name='vit')
    net = base_network((32, 32, 3), 4, vit, stages='all', trainable=False)
    assert backbone_of(net).output_shape == (None, 12)


# ---- files


def test_an_onnx_file_is_opened_by_its_path(photos, tmp_path):
    onnx = pytest.importorskip('onnx', reason="pip install 'triplet_fashion[export]'")
    mean = keras.Sequential([keras.Input((32, 32, 3)), layers.GlobalAveragePooling2D()])
    mean.export(
        tmp_path / 'mean.onnx',
        format='onnx',
        verbose=False,
        input_signature=[keras.InputSpec('float32', (None, 32, 32, 3))],
    )
    assert onnx.load(tmp_path / 'mean.onnx')
    how = dict(rescale=Preprocessing(), trainable=False, hidden=())
    net = base_network((32, 32, 3), 4, tmp_path / 'mean.onnx', **how)
    found = backbone_of(net).predict(photos, verbose=0)
    np.testing.assert_allclose(found, photos.mean((1, 2)), rtol=1e-4)
    with pytest.raises(ValueError, match=r'size says \(16, 16\), .*mean.onnx says \(32, 32\)'):
        base_network((16, 16, 3), 4, tmp_path / 'mean.onnx', **how)
    with pytest.raises(FileNotFoundError, match='no backbone file none.onnx'):
        open_backbone('none.onnx')


def shop_file(folder):
    "Write a network of random weights, for photos of 24 x 24, as an ONNX file."
    keras.utils.set_random_seed(0)
    convolution = layers.Conv2D(16, 5, strides=4)
    shop = keras.Sequential([keras.Input((24, 24, 3)), convolution, layers.GlobalMaxPooling2D()])
    takes = [keras.InputSpec('float32', (None, 24, 24, 3))]
    shop.export(folder / 'shop.onnx', format='onnx', verbose=False, input_signature=takes)
    return folder / 'shop.onnx'


def lite0_file(path, folder):
    "Write a file of Keras as an ONNX file for photos of 96 x 96."
    pytest.importorskip('onnx', reason="pip install 'triplet_fashion[export]'")
    model = keras.models.load_model(path, compile=False)
    made = onnx_model(model, (None, 96, 96, 3))
    (folder / 'lite0.onnx').write_bytes(made.SerializeToString())
    return folder / 'lite0.onnx'


def inner_tensors(path):
    "Return the names of two maps inside an ONNX file and of its output."
    graph = read_onnx(path).graph
    sums = [node.output[0] for node in graph.node if node.op_type == 'Add']
    return [*sums[-2:], graph.output[0].name]


def test_fit_takes_an_onnx_file_and_reads_photos_at_its_size(drawn, tmp_path):
    "Recipe, features, evaluation, index and bundle on a backbone that is a file."
    pytest.importorskip('onnx', reason="pip install 'triplet_fashion[export]'")
    shop_file(tmp_path)
    how = dict(rescale=Preprocessing(mean=127.5, std=127.5), epochs=2, verbose=0, out_dims=8)
    run = fit(drawn, recipe='strong', backbone=tmp_path / 'shop.onnx', **how)
    assert run.net.input_shape == (None, 24, 24, 3) and is_frozen(run.net)
    index = ImageIndex.build(drawn, run.net)
    assert drawn.paths[0].endswith(index.search(drawn.paths[0], 1)[0].id)
    bundle = save_bundle(tmp_path / 'b.tfz', run.net)
    (tmp_path / 'shop.onnx').unlink()
    again = load_bundle(bundle)[0]
    np.testing.assert_allclose(
        Encoder(again).encode(drawn), Encoder(run.net).encode(drawn), atol=1e-6
    )


@pytest.mark.parametrize('kind', ['file', 'function'])
def test_half_precision_leaves_what_is_computed_outside(photos, tmp_path, kind):
    backbone, size = mean_color, 32
    if kind == 'file':
        pytest.importorskip('onnx', reason="pip install 'triplet_fashion[export]'")
        backbone, size = shop_file(tmp_path), 24
    how = dict(rescale=Preprocessing(std=255.0), trainable=False, activation='l2')
    net = base_network((size, size, 3), 4, backbone, **how)
    x = photos[:, :size, :size]
    half = in_precision(net, 'mixed_bfloat16')
    assert uses_half_precision(half)
    np.testing.assert_allclose(half.predict(x, verbose=0), net.predict(x, verbose=0), atol=0.05)


def test_the_command_trains_on_an_onnx_file(drawn, tmp_path):
    pytest.importorskip('onnx', reason="pip install 'triplet_fashion[export]'")
    file, out = shop_file(tmp_path), tmp_path / 'run'
    with pytest.warns(UserWarning, match='says how its pixels are scaled'):
        triplet_train(str(drawn.root), out=str(out), backbone=str(file), epochs=1)
    assert load_bundle(out / 'network')[0].input_shape == (None, 24, 24, 3)


# ---- from photos to what is shipped


def small_model():
    "Return a Keras model of random weights, for photos of 32 x 32."
    return keras.Sequential(
        [keras.Input((32, 32, 3)), layers.Conv2D(8, 5, strides=4), layers.GlobalMaxPooling2D()],
        name='mine',
    )


@pytest.mark.parametrize('kind', ['model', 'hub', 'file', 'function', 'tensors of a file'])
def test_a_backbone_of_any_kind_goes_the_whole_way(drawn, tmp_path, request, kind):
    "Trained, judged, kept in a bundle, opened again, encoded, searched, exported."
    keras.utils.set_random_seed(0)
    train, valid = drawn.split(valid=0.25, by='product', seed=0)
    backbone, how = mean_color, dict(size=32)
    given = dict(custom_objects=dict(mean_color=mean_color)) if kind == 'function' else {}
    if kind == 'model':
        backbone = small_model()
    elif kind == 'hub':
        backbone = hub_backbones()['vit']()
    elif kind != 'function':
        backbone = lite0_file(request.getfixturevalue('lite0'), tmp_path)
        how = dict(rescale=Preprocessing())
        if kind != 'file':
            how['stages'] = inner_tensors(backbone)
    run = fit(train, recipe='strong', backbone=backbone, epochs=1, out_dims=8, verbose=0, **how)
    assert is_frozen(run.net)
    board = scoreboard({'it': run.net}, valid, ks=(1,))
    assert 0 <= board[0]['R@1'] <= 1
    bundle = save_bundle(tmp_path / 'b.tfz', run.net, data=train)
    again = load_bundle(bundle, **given)[0]
    expected = Encoder(run.net).encode(valid)
    np.testing.assert_allclose(Encoder(again).encode(valid), expected, atol=1e-5)
    hit = ImageIndex.build(valid, again).search(valid.paths[0], 1)[0]
    assert valid.paths[0].endswith(hit.id)
    if kind == 'function':
        with pytest.raises(ValueError, match='is a function, which no file can hold'):
            export(again, tmp_path / 'out', 'onnx')
        return
    made = load_export(export(again, tmp_path / 'out', 'onnx', sample=valid))
    side = again.input_shape[1]
    photos = load_images(valid.paths, (side, side))
    np.testing.assert_allclose(made(photos), Encoder(again).encode(photos), atol=1e-4)


# ---- keras-hub


def hub_backbones():
    "Return small backbones of keras-hub with random weights: a function and the width of features."
    hub = pytest.importorskip('keras_hub', reason="pip install 'triplet_fashion[hub]'")
    m, size = hub.models, dict(image_shape=(32, 32, 3))
    vit = dict(num_layers=3, num_heads=2, hidden_dim=16)
    dino = dict(num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32)
    tower = dict(patch_size=8, hidden_dim=16, num_layers=2, num_heads=2, intermediate_dim=32)
    words = dict(vocabulary_size=50, embedding_dim=16, hidden_dim=16, num_layers=2, num_heads=2)
    words |= dict(intermediate_dim=32, max_sequence_length=8)
    return {
        'vit': lambda: m.ViTBackbone(patch_size=8, mlp_dim=32, **vit, **size),
        'dinov2': lambda: m.DINOV2Backbone(
            patch_size=8, position_embedding_shape=(32, 32), **dino, **size
        ),
        'dinov3': lambda: m.DINOV3Backbone(patch_size=8, **dino, **size),
        'siglip': lambda: m.SigLIPBackbone(
            m.SigLIPVisionEncoder(**tower, **size), m.SigLIPTextEncoder(**words)
        ),
        'clip': lambda: m.CLIPBackbone(
            m.CLIPVisionEncoder(**tower, **size), m.CLIPTextEncoder(**words), 16
        ),
    }


@pytest.mark.parametrize('name', ['vit', 'dinov2', 'dinov3', 'siglip', 'clip'])
def test_a_backbone_of_keras_hub_is_saved_and_exported(photos, tmp_path, name):
    keras.utils.set_random_seed(0)
    how = dict(hidden=(), activation='l2', trainable=False)
    net = base_network((32, 32, 3), 4, hub_backbones()[name](), **how)
    expected = net.predict(photos, verbose=0)
    save_bundle(tmp_path / 'n.tfz', net)
    again = load_bundle(tmp_path / 'n.tfz')[0]
    np.testing.assert_allclose(again.predict(photos, verbose=0), expected, atol=1e-6)
    for form in FORMATS if name == 'vit' else ['onnx']:
        found = load_export(export(net, tmp_path / form, form))(photos)
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=form)


@pytest.mark.parametrize('engine', ['litert', 'openvino', 'onnxruntime'])
def test_every_engine_computes_a_vit(photos, engine):
    "Its exact GELU, too, for which ONNX has no operation of the name that TensorFlow gives."
    keras.utils.set_random_seed(0)
    net = base_network((32, 32, 3), 4, hub_backbones()['vit'](), hidden=(), trainable=False)
    made = make_engine(net, sample=photos, name=engine)
    assert made.name == engine
    np.testing.assert_allclose(made(photos), net.predict(photos, verbose=0), atol=1e-4)


def test_of_tokens_the_class_token_is_what_keras_hub_gives(photos):
    keras.utils.set_random_seed(0)
    vit = hub_backbones()['vit']()
    net = base_network((32, 32, 3), 4, vit, hidden=(), trainable=False)
    want = np.asarray(vit(photos.astype('float32')))[:, 0]
    np.testing.assert_allclose(backbone_of(net).predict(photos, verbose=0), want, atol=1e-5)


@pytest.mark.parametrize('name', ['vit', 'dinov2'])
def test_blocks_of_keras_hub_are_features(photos, name):
    net = base_network(
        (32, 32, 3), 4, hub_backbones()[name](), stages='all', trainable=False, hidden=()
    )
    assert backbone_of(net).output_shape == (None, 16 * (3 if name == 'vit' else 2))


@pytest.mark.parametrize('recipe', ['strong', 'deep', 'products'])
def test_a_vit_of_keras_hub_trains(drawn, tmp_path, recipe):
    "On features, then in part; what was learned is what is opened again."
    keras.utils.set_random_seed(0)
    how = dict(epochs=1, size=32, out_dims=8, verbose=0)
    if recipe == 'deep':
        how['tune_epochs'] = 1
    run = fit(drawn, recipe=recipe, backbone=hub_backbones()['vit'](), **how)
    save_bundle(tmp_path / 'n.tfz', run.net)
    again = load_bundle(tmp_path / 'n.tfz')[0]
    a, b = (Encoder(net).encode(drawn) for net in (run.net, again))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_model_for_more_than_photos_is_named():
    photo, words = keras.Input((8, 8, 3)), keras.Input((4,))
    both = keras.Model({'images': photo, 'words': words}, layers.Flatten()(photo), name='both')
    with pytest.raises(ValueError, match='both has the inputs images, words, not photos alone'):
        base_network((8, 8, 3), 4, both)
