"The base network: counts, scaling against Keras' own, backbones of every kind, stages, errors."

import importlib, json, warnings
import keras, numpy as np, pytest
from keras import layers
from triplet_fashion.base_network import (
    backbone_of,
    backbone_stages,
    base_network,
    freeze,
    head_of,
    res_base_network,
    unfreeze,
)
from triplet_fashion.input_scaling import InputScaling, application_scaling

rng = np.random.default_rng(0)
rgb = rng.integers(0, 256, (2, 6, 5, 3)).astype('uint8')


def size(ws):
    return sum(int(np.prod(w.shape)) for w in ws)


modules = dict(
    VGG16='vgg16',
    VGG19='vgg19',
    ResNet50='resnet',
    ResNet101='resnet',
    ResNet152='resnet',
    ResNet50V2='resnet_v2',
    ResNet101V2='resnet_v2',
    ResNet152V2='resnet_v2',
    DenseNet121='densenet',
    DenseNet169='densenet',
    DenseNet201='densenet',
    Xception='xception',
    InceptionV3='inception_v3',
    InceptionResNetV2='inception_resnet_v2',
    MobileNet='mobilenet',
    MobileNetV2='mobilenet_v2',
    NASNetMobile='nasnet',
    NASNetLarge='nasnet',
    MobileNetV3Small='mobilenet_v3',
    MobileNetV3Large='mobilenet_v3',
)
modules |= {f'EfficientNetB{i}': 'efficientnet' for i in range(8)}
modules |= {
    f'EfficientNetV2{s}': 'efficientnet_v2' for s in ('B0', 'B1', 'B2', 'B3', 'S', 'M', 'L')
}
modules |= {f'ConvNeXt{s}': 'convnext' for s in ('Tiny', 'Small', 'Base', 'Large', 'XLarge')}


@pytest.fixture(scope='module')
def resnet():
    return res_base_network((224, 224, 3), 128, weights=None)


@pytest.fixture
def small():
    return base_network((32, 32, 3), 8, backbone='small', hidden=(16,))


NAN = float('nan')


def tiny(out=4, pooled=True, name='tiny', inputs=(None, None, 3)):
    x = i = keras.Input(inputs)
    x = layers.Conv2D(out, 3, strides=2, padding='same')(x)
    if pooled:
        x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(i, x, name=name)


def test_parameters_of_the_original_notebook(resnet):
    assert resnet.count_params() == 25_817_088
    assert (
        size(resnet.trainable_weights) == 25_763_968
        and size(resnet.non_trainable_weights) == 53_120
    )
    assert resnet.input_shape == (None, 224, 224, 3) and resnet.output_shape == (None, 128)
    assert [l.name for l in resnet.layers] == ['scaling', 'resnet50', 'hidden_1', 'embedding']
    assert (
        resnet.layers[0].mode == 'caffe'
        and resnet.layers[-1].activation is keras.activations.sigmoid
    )


def test_every_application_is_known():
    here = {n for n in dir(keras.applications) if n[0].isupper()}
    assert here <= modules.keys(), 'a new application: give it its scaling'
    for name in here:
        application_scaling(name)


@pytest.mark.parametrize('name', modules)
def test_scaling_is_that_of_keras(name):
    module = importlib.import_module(f'keras.applications.{modules[name]}')
    want = module.preprocess_input(rgb.astype('float32'))
    mode = application_scaling(name)
    got = rgb.astype('float32') if mode == 'none' else InputScaling(mode)(rgb)
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-5, atol=1e-5 * 255)


@pytest.mark.parametrize(
    'name',
    ['EfficientNetB0', 'EfficientNetV2B0', 'EfficientNetV2S', 'ConvNeXtTiny', 'MobileNetV3Small'],
)
def test_built_in_scaling_is_there(name):
    inner = getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling='avg'
    )
    assert isinstance(inner.layers[1], (layers.Rescaling, layers.Normalization))
    assert application_scaling(name) == 'none'


@pytest.mark.parametrize(
    'name,mode',
    [
        ('MobileNetV2', 'tf'),
        ('DenseNet121', 'torch'),
        ('VGG16', 'caffe'),
        ('MobileNetV3Small', None),
    ],
)
def test_auto_scaling_inside_the_net(name, mode):
    keras.utils.set_random_seed(0)
    net = base_network((32, 32, 3), 4, backbone=name.lower(), weights=None, hidden=())
    found = [l for l in net.layers if isinstance(l, InputScaling)]
    assert [l.mode for l in found] == ([mode] if mode else [])
    x = rng.integers(0, 256, (2, 32, 32, 3)).astype('float32')
    inner = next(l for l in net.layers if isinstance(l, keras.Model))
    prepared = importlib.import_module(f'keras.applications.{modules[name]}').preprocess_input(
        x.copy()
    )
    want = net.layers[-1](inner(prepared, training=False))
    np.testing.assert_allclose(net.predict(x.astype('uint8'), verbose=0), want, atol=1e-4)


def test_golden_scaling():
    x = np.array([[10.0, 100.0, 250.0]])
    gold = dict(
        caffe=[[250 - 103.939, 100 - 116.779, 10 - 123.68]],
        tf=[[10 / 127.5 - 1, 100 / 127.5 - 1, 250 / 127.5 - 1]],
        unit=x / 255,
        original=x / 255,
        torch=[
            [(10 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (250 / 255 - 0.406) / 0.225]
        ],
    )
    for mode, want in gold.items():
        np.testing.assert_allclose(InputScaling(mode)(x), want, atol=1e-4)


@pytest.mark.parametrize('dtype', ['uint8', 'int32', 'float16', 'float32', 'float64'])
def test_scaling_takes_any_dtype(dtype):
    y = InputScaling('tf')(rgb.astype(dtype))
    assert keras.backend.standardize_dtype(y.dtype) == 'float32'
    np.testing.assert_allclose(y, rgb / 127.5 - 1, atol=1e-6)


def test_scaling_before_rounding():
    "Half precision must not round the pixels: 200.4 and 200 are two values."
    layer = InputScaling('caffe', dtype='mixed_bfloat16')
    y = layer(np.array([[[[123.3, 116.4, 103.2]]]], 'float32'))
    assert keras.backend.standardize_dtype(y.dtype) == 'bfloat16'
    np.testing.assert_allclose(
        np.asarray(y).astype('float32').ravel(),
        [103.2 - 103.939, 116.4 - 116.779, 123.3 - 123.68],
        rtol=0.01,
    )


def test_scaling_config_round_trip():
    layer = InputScaling('torch', name='s')
    back = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert back.mode == 'torch' and back.name == 's'
    assert InputScaling('tf').compute_output_shape((None, 8, 8, 3)) == (None, 8, 8, 3)


def test_rescale_argument():
    def modes(**kw):
        return [
            l.mode
            for l in base_network((32, 32, 3), 4, hidden=(), **kw).layers
            if isinstance(l, InputScaling)
        ]

    assert modes(backbone='small') == ['tf'] and modes(backbone=tiny()) == []
    assert modes(backbone='small', rescale='original') == ['original'] and modes(
        backbone=tiny(), rescale='torch'
    ) == ['torch']
    assert (
        modes(backbone='small', rescale=None) == []
        and modes(backbone='small', rescale='none') == []
    )
    with pytest.raises(ValueError, match="mode 'bgr'"):
        modes(backbone='small', rescale='bgr')
    with pytest.raises(ValueError, match="say rescale="):
        modes(backbone='MobileNetV3Small', weights=None, include_preprocessing=False)
    assert modes(
        backbone='MobileNetV3Small', weights=None, include_preprocessing=False, rescale='tf'
    ) == ['tf']


def test_original_scaling_is_one_argument_away():
    net = res_base_network((32, 32, 3), 4, weights=None, rescale='original')
    x = rng.integers(0, 256, (2, 32, 32, 3)).astype('uint8')
    inner = net.get_layer('resnet50')
    y = inner(x.astype('float32') / 255, training=False)
    for l in net.layers[2:]:
        y = l(y)
    np.testing.assert_allclose(net.predict(x, verbose=0), y, atol=1e-5)


def test_original_scaling_blinds_imagenet_weights(lite0, clothing):
    "Photos divided by 255 look all the same to a frozen backbone that was trained on 0..255."
    from PIL import Image

    paths = [
        p for c in sorted((clothing / 'validation').iterdir()) for p in sorted(c.glob('*.jpg'))[:3]
    ]
    x = np.stack([np.asarray(Image.open(p).convert('RGB').resize((96, 96))) for p in paths])

    def likeness(**kw):
        f = backbone_of(base_network((96, 96, 3), 8, backbone=lite0, hidden=(), **kw)).predict(
            x, verbose=0
        )
        f /= np.linalg.norm(f, axis=1, keepdims=True)
        return (f @ f.T)[~np.eye(len(f), dtype=bool)].mean()

    assert likeness() < 0.6 and likeness(rescale='original') > 0.97


def test_no_network_is_said(monkeypatch, tmp_path):
    "A download that fails, wherever the test runs: the opener answers as without a network."
    import urllib.error

    def closed(*args, **kw):
        raise urllib.error.URLError('Name or service not known')

    for place in 'keras.src.utils.file_utils.urlretrieve', 'urllib.request.urlopen':
        monkeypatch.setattr(place, closed)
    monkeypatch.setattr('keras.src.backend.config._KERAS_DIR', str(tmp_path), raising=False)
    monkeypatch.setattr('keras.config.keras_home', lambda: str(tmp_path), raising=False)
    monkeypatch.setattr(
        'keras.src.utils.file_utils.config.keras_home', lambda: str(tmp_path), raising=False
    )
    with pytest.raises(ConnectionError) as e:
        res_base_network((32, 32, 3), 4)
    for words in (
        'ImageNet weights of ResNet50',
        'network',
        'weights=None',
        "weights='FILE.h5'",
        "backbone='FILE.keras'",
        "backbone='small'",
    ):
        assert words in str(e.value)


def test_local_weights(tmp_path):
    kw = dict(backbone='MobileNetV2', hidden=(), alpha=0.35)
    a = base_network((32, 32, 3), 4, weights=None, **kw)
    a.layers[1].save_weights(tmp_path / 'm.weights.h5')
    b = base_network((32, 32, 3), 4, weights=tmp_path / 'm.weights.h5', **kw)
    x = rng.uniform(0, 255, (2, 32, 32, 3)).astype('float32')
    np.testing.assert_allclose(
        backbone_of(a).predict(x, verbose=0), backbone_of(b).predict(x, verbose=0), atol=1e-6
    )
    with pytest.raises(FileNotFoundError, match='nowhere.h5'):
        base_network((32, 32, 3), 4, weights='nowhere.h5', **kw)
    with (
        pytest.raises(ValueError, match='m.weights.h5 does not fit VGG16 '),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')
        base_network((32, 32, 3), 4, 'VGG16', weights=tmp_path / 'm.weights.h5')


def test_local_weights_of_small(tmp_path, small):
    small.get_layer('small').save_weights(tmp_path / 's.weights.h5')
    other = base_network((32, 32, 3), 8, backbone='small', weights=tmp_path / 's.weights.h5')
    x = rng.uniform(0, 255, (2, 32, 32, 3)).astype('float32')
    np.testing.assert_allclose(
        backbone_of(small).predict(x, verbose=0),
        backbone_of(other).predict(x, verbose=0),
        atol=1e-6,
    )
    with pytest.raises(FileNotFoundError, match='gone.weights.h5'):
        base_network((32, 32, 3), 8, 'small', weights='gone.weights.h5')


@pytest.mark.parametrize('pooled', [True, False])
def test_any_model(pooled):
    net = base_network(
        (40, 24, 3), 5, backbone=tiny(pooled=pooled), hidden=(7, 6), activation=None, dropout=0.1
    )
    want = ['tiny', *([] if pooled else ['pool']), 'hidden_1', 'hidden_2', 'dropout', 'embedding']
    assert [l.name for l in net.layers] == want and net.output_shape == (None, 5)
    assert backbone_of(net).output_shape == (None, 4) and backbone_of(net).input_shape == (
        None,
        40,
        24,
        3,
    )


def test_keras_file(tmp_path):
    model = tiny(pooled=False)
    model.save(tmp_path / 'b.keras')
    net = base_network((32, 32, 3), 5, backbone=tmp_path / 'b.keras', hidden=())
    x = rng.uniform(0, 255, (2, 32, 32, 3)).astype('float32')
    np.testing.assert_allclose(
        backbone_of(net).predict(x, verbose=0), np.asarray(model(x)).mean((1, 2)), atol=1e-4
    )


def test_lite0(lite0):
    net = base_network((64, 96, 3), 16, backbone=str(lite0))
    assert backbone_of(net).output_shape == (None, 1280) and net.output_shape == (None, 16)
    assert not any(isinstance(l, InputScaling) for l in net.layers)  # it takes 0..255 itself
    x = rng.integers(0, 256, (2, 64, 96, 3)).astype('uint8')
    want = keras.models.load_model(lite0)(x.astype('float32'))
    np.testing.assert_allclose(backbone_of(net).predict(x, verbose=0), want, atol=1e-4)
    assert len(backbone_stages(net)) == 5  # sizes are not in the file: they follow in_dims
    assert (
        sum(l.count_params() for s in backbone_stages(net) for l in s)
        == net.layers[0].count_params()
    )


def test_a_file_that_asks_for_more_than_it_holds(tmp_path):
    "A hundred billion numbers in a file of some kilobytes are refused before memory is taken."
    import shutil

    tiny(pooled=False).save(tmp_path / 'b.keras')
    shutil.unpack_archive(tmp_path / 'b.keras', tmp_path / 'b', 'zip')
    text = (tmp_path / 'b' / 'config.json').read_text()
    assert text.count('"filters": 4') == 1
    (tmp_path / 'b' / 'config.json').write_text(
        text.replace('"filters": 4', '"filters": 4000000000')
    )
    shutil.make_archive(tmp_path / 'c', 'zip', tmp_path / 'b')
    (tmp_path / 'c.zip').rename(tmp_path / 'c.keras')
    with pytest.raises(
        ValueError, match=r'c.keras cannot be opened.*describes a network of 1\d\d,000,000,00'
    ):
        base_network((32, 32, 3), 5, backbone=tmp_path / 'c.keras')


def test_unsafe_file_is_refused(tmp_path):
    x = keras.Input((8, 8, 3))
    y = layers.GlobalAveragePooling2D()(layers.Lambda(lambda t: t)(x))
    keras.Model(x, y).save(tmp_path / 'l.keras')
    with pytest.raises(ValueError, match='l.keras cannot be opened'):
        base_network((8, 8, 3), 4, tmp_path / 'l.keras')


@pytest.mark.parametrize(
    'words,kw',
    [
        ('such as EfficientNetB0', dict(backbone='EfficientNet-B0')),
        ("no backbone 'model.h5'", dict(backbone='model.h5')),
        ('not a name, a path', dict(backbone=7)),
        ('in_dims is 32', dict(in_dims=32)),
        (r'in_dims is \(32, 32\)', dict(in_dims=(32, 32))),
        (r'in_dims is \(32, 32, 1\)', dict(in_dims=(32, 32, 1))),
        ('out_dims is 0', dict(out_dims=0)),
        ('out_dims is 1.5', dict(out_dims=1.5)),
        ('alpha would go to', dict(backbone=tiny(), alpha=1)),
        (
            r'takes pictures \(8, 8, 3\), in_dims is \(32, 32, 3\)',
            dict(backbone=tiny(inputs=(8, 8, 3))),
        ),
        (
            'gives',
            dict(
                backbone=keras.Sequential(
                    [keras.Input((32, 32, 3)), layers.Reshape((32, 32, 3, 1))]
                )
            ),
        ),
        ('trainable is 7', dict(trainable=7.0)),
        ('trainable is -0.5', dict(trainable=-0.5)),
        ('trainable is nan', dict(trainable=NAN)),
        ("trainable is 'half'", dict(trainable='half')),
        (r'hidden is \(0,\)', dict(hidden=(0,))),
        ('hidden is 1024', dict(hidden=1024)),
        ('dropout is 1,', dict(dropout=1)),
        ('dropout is nan', dict(dropout=NAN)),
        ('out_dims is True', dict(out_dims=True)),
        ('weights is 7', dict(weights=7)),
        ("activation is 'sigmoyd'", dict(activation='sigmoyd')),
        (r'takes pictures \(32, 32, 1\)', dict(backbone=tiny(inputs=(32, 32, 1)))),
        ('2 outputs', dict(backbone=keras.Model(i := keras.Input((32, 32, 3)), [i, i]))),
        ('does not know its inputs', dict(backbone=keras.Sequential([layers.Flatten()]))),
    ],
)
def test_errors_name_the_argument(words, kw):
    with pytest.raises(ValueError, match=words):
        base_network(
            **{'in_dims': (32, 32, 3), 'out_dims': 4, 'backbone': 'small', 'weights': None, **kw}
        )


@pytest.mark.parametrize(
    'kw', [dict(share=NAN), dict(share='half'), dict(n_stages=1.5), dict(n_stages=99)]
)
@pytest.mark.parametrize('change', [freeze, unfreeze])
def test_amounts_that_mean_nothing_are_named(small, change, kw):
    with pytest.raises(ValueError, match=f'{next(iter(kw))} is '):
        change(small, **kw)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='gone.keras'):
        base_network((32, 32, 3), 4, tmp_path / 'gone.keras')
    with pytest.raises(ValueError, match='ends in .keras'):
        base_network((32, 32, 3), 4, str(tmp_path / 'model.h5'))
    (tmp_path / 'bad.keras').write_bytes(b'no zip')
    with pytest.raises(ValueError, match='bad.keras cannot be opened'):
        base_network((32, 32, 3), 4, tmp_path / 'bad.keras')


def test_halves_share_weights(small):
    x = rng.uniform(0, 255, (3, 32, 32, 3)).astype('float32')
    low, high = backbone_of(small), head_of(small)
    np.testing.assert_allclose(
        high.predict(low.predict(x, verbose=0), verbose=0), small.predict(x, verbose=0), atol=1e-6
    )
    before = small.predict(x, verbose=0)
    high.compile('sgd', 'mse')
    high.fit(low.predict(x, verbose=0), np.ones((3, 8)), epochs=3, verbose=0)
    after = small.predict(x, verbose=0)
    assert abs(after - before).max() > 1e-4  # the head's training is the net's
    np.testing.assert_allclose(high.predict(low.predict(x, verbose=0), verbose=0), after, atol=1e-6)


def test_sigmoid_and_unit_length(small):
    x = rng.uniform(0, 255, (5, 32, 32, 3)).astype('float32')
    y = small.predict(x, verbose=0)
    assert y.dtype == np.float32 and (y > 0).all() and (y < 1).all()
    net = base_network((32, 32, 3), 8, backbone='small', activation='l2')
    np.testing.assert_allclose(np.linalg.norm(net.predict(x, verbose=0), axis=1), 1, atol=1e-5)


def test_mixed_precision_ends_in_float32():
    old = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy('mixed_bfloat16')
        net = base_network((32, 32, 3), 4, backbone='small', activation='l2')
        y = net.predict(rng.uniform(0, 255, (2, 32, 32, 3)).astype('float32'), verbose=0)
    finally:
        keras.config.set_dtype_policy(old)
    assert y.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), 1, atol=1e-5)


def test_stages_of_resnet(resnet):
    stages = backbone_stages(resnet)
    assert [next(l.name for l in s if l.weights) for s in stages] == [
        'conv1_conv',
        *(f'conv{i}_block1_1_conv' for i in range(2, 6)),
    ]
    assert sum(l.count_params() for s in stages for l in s) == 23_587_712


def test_freeze_and_unfreeze(resnet):
    head = 2048 * 1024 + 1024 + 1024 * 128 + 128
    assert size(freeze(resnet).trainable_weights) == head
    assert size(unfreeze(resnet, 0.0).trainable_weights) == head
    assert (
        size(unfreeze(resnet, n_stages=1).trainable_weights)
        == size(freeze(resnet, n_stages=4).trainable_weights)
        > head
    )
    learns = {l.name for s in backbone_stages(resnet) for l in s if l.trainable_weights}
    assert (
        all(n.startswith('conv5') and not n.endswith('_bn') for n in learns)
        and 'conv5_block3_3_conv' in learns
    )
    a = size(freeze(resnet, 0.7).trainable_weights)
    assert a == size(unfreeze(resnet, 0.3).trainable_weights)
    assert size(unfreeze(resnet, 0.3, batchnorm=True).trainable_weights) > a
    assert size(unfreeze(resnet).trainable_weights) == 25_763_968
    for bad in dict(share=1.2), dict(share=-1), dict(n_stages=6), dict(n_stages=-1):
        with pytest.raises(ValueError):
            freeze(resnet, **bad)
        with pytest.raises(ValueError):
            unfreeze(resnet, **bad)


@pytest.mark.parametrize('trainable', [False, 0.5])
def test_frozen_batchnorm_neither_learns_nor_measures(trainable):
    net = base_network((32, 32, 3), 4, backbone='small', hidden=(), trainable=trainable)
    inner = next(l for l in net.layers if isinstance(l, keras.Model))
    old = {w.path: w.numpy() for w in inner.weights}
    net.compile('sgd', 'mse')
    net.fit(rng.uniform(0, 255, (4, 32, 32, 3)), np.zeros((4, 4)), epochs=2, verbose=0)
    changed = {w.path for w in inner.weights if not np.array_equal(w.numpy(), old[w.path])}
    if trainable is False:
        assert not changed
    else:
        assert changed and all(p.endswith('kernel') for p in changed)


def test_only_nets_of_this_room():
    for f in backbone_of, head_of, backbone_stages, freeze:
        with pytest.raises(ValueError, match='not a net of scaling, backbone and head'):
            f(tiny())


def test_json_round_trip(small):
    back = keras.models.model_from_json(small.to_json())
    back.set_weights(small.get_weights())
    x = rng.uniform(0, 255, (2, 32, 32, 3)).astype('float32')
    np.testing.assert_array_equal(back.predict(x, verbose=0), small.predict(x, verbose=0))
    assert head_of(back).layers and json.loads(small.to_json())['config']['layers']


def test_small_is_quick_and_learns():
    "Plain convolutions only (depthwise ones are slow); a handful of steps tells red from blue."
    net = base_network((32, 32, 3), 4, backbone='small', hidden=())
    assert not any(
        isinstance(l, (layers.DepthwiseConv2D, layers.SeparableConv2D))
        for l in net.get_layer('small').layers
    )
    assert net.count_params() < 1_000_000
    keras.utils.set_random_seed(0)
    net = base_network((32, 32, 3), 1, backbone='small', hidden=())
    y = np.arange(16) % 2
    x = rng.uniform(0, 80, (16, 32, 32, 3))
    x[y == 0, ..., 0] += 120
    x[y == 1, ..., 2] += 120
    net.compile(keras.optimizers.Adam(3e-3), 'binary_crossentropy')
    net.fit(x.astype('float32'), y.astype('float32')[:, None], epochs=30, verbose=0)
    assert ((net.predict(x.astype('float32'), verbose=0).ravel() > 0.5) == y).all()
