"Backbones in ONNX files: against ONNX Runtime alone, in every shape that files come in, and files from anybody."

import hashlib
import importlib.util
import json
import shutil
import sys
import types
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from keras import layers

onnx = pytest.importorskip('onnx', reason="pip install 'triplet_fashion[export]'")
onnxruntime = pytest.importorskip('onnxruntime', reason="pip install 'triplet_fashion[export]'")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from triplet_fashion.base_network import backbone_of, base_network, is_frozen  # noqa: E402
from triplet_fashion.encoder import Encoder  # noqa: E402
from triplet_fashion.engines import make_engine  # noqa: E402
from triplet_fashion.evaluation import baselines, scoreboard  # noqa: E402
from triplet_fashion.export import FORMATS, export, load_export  # noqa: E402
from triplet_fashion.input_scaling import read_preprocessing  # noqa: E402
from triplet_fashion.onnx_backbone import IMAGENET, OnnxBackbone, open_onnx  # noqa: E402
from triplet_fashion.onnx_engines import OnnxComputation, choose_onnx_engine  # noqa: E402
from triplet_fashion.onnx_files import photo_input  # noqa: E402
from triplet_fashion.outside import computed_outside  # noqa: E402
from triplet_fashion.persistence import (  # noqa: E402
    load_bundle,
    load_model,
    save_bundle,
    save_model,
)
from triplet_fashion.photos.loading import Preprocessing  # noqa: E402
from triplet_fashion.training import fit  # noqa: E402

AS_IT_IS = Preprocessing()
TYPES = dict(float32=TensorProto.FLOAT, float16=TensorProto.FLOAT16, uint8=TensorProto.UINT8)


def write(path, nodes, inputs, outputs, arrays, **how):
    "Write an ONNX file; inputs and outputs are (name, type, dims)."
    weights = [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]
    values = [[helper.make_tensor_value_info(*o) for o in part] for part in (inputs, outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, i, o, **kw) for op, i, o, kw in nodes], 'net', *values, weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    onnx.save(model, path, **how)
    return path


def convolution(path, batch='n', size=(16, 16), dtype='float32', **how):
    "Write a network as PyTorch exports it: channels first, an average of eight channels."
    kind, rng = np.dtype(dtype), np.random.default_rng(0)
    W = rng.normal(size=(8, 3, 4, 4)).astype('float16' if kind == 'float16' else 'float32')
    nodes = [
        ('Conv', ['x', 'W'], ['map'], dict(strides=[4, 4])),
        ('GlobalAveragePool', ['map'], ['mean'], {}),
        ('Flatten', ['mean'], ['features'], {}),
    ]
    if kind == 'uint8':
        nodes = [('Cast', ['photo'], ['x'], dict(to=TensorProto.FLOAT)), *nodes]
    given = 'photo' if kind == 'uint8' else 'x'
    out = TYPES['float32' if kind == 'uint8' else dtype]
    return write(
        path,
        nodes,
        [(given, TYPES[dtype], [batch, 3, *size])],
        [('features', out, [batch, 8])],
        dict(W=W),
        **how,
    )


def alone(path, photos, output=None):
    "What ONNX Runtime gives of photos (n, h, w, 3)."
    session = onnxruntime.InferenceSession(str(path))
    name, kind = session.get_inputs()[0].name, session.get_inputs()[0].type
    dtype = {'tensor(float16)': 'float16', 'tensor(uint8)': 'uint8'}.get(kind, 'float32')
    rows = photos.transpose(0, 3, 1, 2).astype(dtype)
    return session.run(output and [output], {name: rows})[0]


@pytest.fixture
def photos():
    return np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3)).astype('uint8')


# ---- values


@pytest.mark.parametrize('dtype', TYPES)
def test_the_features_are_those_of_onnx_runtime(tmp_path, photos, dtype):
    path = convolution(tmp_path / 'net.onnx', dtype=dtype)
    net = open_onnx(path, preprocessing=AS_IT_IS)
    assert net.name == 'net' and net.output_shape == (None, 8) and not net.weights
    found = net.predict(photos, verbose=0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, alone(path, photos), rtol=2e-3 if dtype == 'float16' else 1e-5
    )


@pytest.mark.parametrize('n', [1, 4, 5, 8])
def test_a_file_for_four_photos_takes_any_number(tmp_path, n):
    photos = np.random.default_rng(n).integers(0, 256, (n, 16, 16, 3)).astype('float32')
    fixed = open_onnx(convolution(tmp_path / 'four.onnx', batch=4), preprocessing=AS_IT_IS)
    free = open_onnx(convolution(tmp_path / 'any.onnx'), preprocessing=AS_IT_IS)
    a, b = (np.asarray(net(photos)) for net in (fixed, free))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_channels_last_are_seen_by_where_the_three_stands(tmp_path, photos):
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(4, 3), layers.ReLU()])
    expected = np.asarray(net(photos.astype('float32'))).mean((1, 2))
    net.export(tmp_path / 'keras.onnx', format='onnx', verbose=False)
    opened = open_onnx(tmp_path / 'keras.onnx', preprocessing=AS_IT_IS)
    np.testing.assert_allclose(opened.predict(photos, verbose=0), expected, rtol=1e-4, atol=1e-3)


def test_inner_tensors_stand_side_by_side(tmp_path, photos):
    path = convolution(tmp_path / 'net.onnx')
    both = open_onnx(path, outputs=['map', 'features'], preprocessing=AS_IT_IS)
    assert both.output_shape == (None, 16)
    found = both.predict(photos, verbose=0)
    np.testing.assert_allclose(found[:, :8], found[:, 8:], rtol=1e-4, atol=1e-4)  # the map's mean


def test_of_tokens_the_first_or_the_mean(tmp_path, photos):
    "Patches of 4 x 4, flattened: sixteen tokens of 48 numbers."
    shape = np.array([0, 3, 4, 4, 4, 4])
    path = write(
        tmp_path / 'tokens.onnx',
        [
            ('Reshape', ['x', 'shape'], ['split'], {}),
            ('Transpose', ['split'], ['turned'], dict(perm=[0, 2, 4, 1, 3, 5])),
            ('Reshape', ['turned', 'flat'], ['tokens'], {}),
        ],
        [('x', TensorProto.FLOAT, ['n', 3, 16, 16])],
        [('tokens', TensorProto.FLOAT, ['n', 16, 48])],
        dict(shape=shape, flat=np.array([0, 16, 48])),
    )
    first, mean = (open_onnx(path, pooling=p, preprocessing=AS_IT_IS) for p in ('cls', 'mean'))
    x = photos.astype('float32').transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(first.predict(photos, verbose=0), x[:, :, :4, :4].reshape(5, 48))
    means = x.reshape(5, 3, 4, 4, 4, 4).mean((2, 4)).reshape(5, 48)
    np.testing.assert_allclose(mean.predict(photos, verbose=0), means, rtol=1e-5)
    with pytest.raises(ValueError, match="pooling is 'max'"):
        open_onnx(path, pooling='max')


def clip_like(path):
    "Write a network of two towers, photos and words, with the names that CLIP has."
    rng = np.random.default_rng(0)
    write(
        path,
        [
            ('GlobalAveragePool', ['pixel_values'], ['mean'], {}),
            ('Flatten', ['mean'], ['flat'], {}),
            ('MatMul', ['flat', 'P'], ['image_embeds'], {}),
            ('Gather', ['E', 'input_ids'], ['text_embeds'], {}),
            ('Transpose', ['text_embeds'], ['turned'], dict(perm=[1, 0])),
            ('MatMul', ['image_embeds', 'turned'], ['logits'], {}),
        ],
        [
            ('input_ids', TensorProto.INT64, ['t']),
            ('pixel_values', TensorProto.FLOAT, ['n', 3, 'h', 'w']),
        ],
        [('logits', TensorProto.FLOAT, ['n', 't']), ('image_embeds', TensorProto.FLOAT, ['n', 5])],
        dict(P=rng.normal(size=(3, 5)).astype('float32'), E=np.ones((9, 5), 'float32')),
    )
    return path


def test_of_clip_the_image_tower_is_taken(tmp_path, photos):
    path = clip_like(tmp_path / 'clip.onnx')
    net = open_onnx(path, size=(16, 16), preprocessing=AS_IT_IS)
    P = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    np.testing.assert_allclose(
        net.predict(photos, verbose=0), photos.mean((1, 2)).astype('float32') @ P, rtol=1e-4
    )
    with pytest.raises(ValueError, match='logits depends on input_ids too'):
        open_onnx(path, outputs='logits', size=(16, 16))
    with pytest.raises(
        ValueError, match="no tensor 'pooled'. Its outputs are logits, image_embeds"
    ):
        open_onnx(path, outputs='pooled', size=(16, 16))
    with pytest.raises(ValueError, match=r'any size: give size=\(height, width\)'):
        open_onnx(path, preprocessing=AS_IT_IS)


# ---- pixels


TIMM = dict(
    architecture='vit',
    pretrained_cfg=dict(
        input_size=[3, 16, 16], mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4], crop_mode='center'
    ),
)
SIGLIP = dict(
    image_mean=[0.5] * 3,
    image_std=[0.5] * 3,
    rescale_factor=1 / 255,
    do_rescale=True,
    do_normalize=True,
    size=dict(height=16, width=16),
)
CLIP = dict(
    SIGLIP, do_center_crop=True, crop_size=dict(height=16, width=16), size=dict(shortest_edge=20)
)


@pytest.mark.parametrize(
    'name, note, mean, std, fit',
    [
        ('config.json', TIMM, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 'crop'),
        ('preprocessor_config.json', SIGLIP, (0.5,) * 3, (0.5,) * 3, 'stretch'),
        ('preprocessor_config.json', CLIP, (0.5,) * 3, (0.5,) * 3, 'crop'),
    ],
)
def test_the_note_beside_a_file_is_read(tmp_path, photos, name, note, mean, std, fit):
    path = convolution(tmp_path / 'net.onnx')
    (tmp_path / name).write_text(json.dumps(note))
    said = read_preprocessing(path)
    assert said.fit == fit and said.size == (16, 16) and said.source == str(tmp_path / name)
    found = open_onnx(path).predict(photos, verbose=0)
    scaled = ((photos / 255 - np.array(mean)) / np.array(std)).astype('float32')
    np.testing.assert_allclose(found, alone(path, scaled), rtol=1e-4, atol=1e-5)


def test_without_a_note_the_guess_is_said(tmp_path, photos):
    path = convolution(tmp_path / 'net.onnx')
    with pytest.warns(
        UserWarning, match='nothing beside .*net.onnx says how its pixels are scaled'
    ):
        guessed = open_onnx(path)
    imagenet = open_onnx(path, preprocessing=IMAGENET)
    np.testing.assert_array_equal(*(n.predict(photos, verbose=0) for n in (guessed, imagenet)))


def test_an_argument_that_contradicts_the_note_is_said(tmp_path):
    path = convolution(tmp_path / 'net.onnx')
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(SIGLIP))
    with pytest.warns(UserWarning, match=r'preprocessor_config.json says mean=\(0.5, 0.5, 0.5\)'):
        open_onnx(path, preprocessing=IMAGENET)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        open_onnx(path, preprocessing=Preprocessing(mean=0.5, std=0.5, scale=1 / 255))


def test_notes_of_other_things_are_passed_over_and_senseless_ones_named(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(dict(model_type='bert', hidden_size=8)))
    assert read_preprocessing(tmp_path) is None
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(dict(size=16)))
    with pytest.raises(ValueError, match='preprocessor_config.json does not say .*image_mean'):
        read_preprocessing(tmp_path)


def test_sizes_that_contradict_each_other_are_named(tmp_path):
    path = convolution(tmp_path / 'net.onnx')
    with pytest.raises(ValueError, match=r'size says \(8, 8\), .*net.onnx says \(16, 16\)'):
        open_onnx(path, size=(8, 8), preprocessing=AS_IT_IS)


# ---- engines


@pytest.fixture
def installed(monkeypatch):
    "Return a function that hides all engines but those named."
    find = importlib.util.find_spec

    def only(*names):
        hidden = {'openvino', 'onnxruntime'} - {*names}
        monkeypatch.setattr('importlib.util.find_spec', lambda o: None if o in hidden else find(o))
        for name in hidden:
            monkeypatch.setitem(sys.modules, name, None)

    return only


def engine_of(net):
    "Return the engine that computes the ONNX file of a network."
    return computed_outside(net).computation.engine


@pytest.mark.parametrize('dtype', TYPES)
@pytest.mark.parametrize('engine', ['openvino', 'onnxruntime'])
def test_either_engine_gives_the_same(tmp_path, photos, dtype, engine):
    path = convolution(tmp_path / 'net.onnx', dtype=dtype)
    net = open_onnx(path, preprocessing=AS_IT_IS, engine=engine)
    assert engine_of(net) == engine
    found = net.predict(photos, verbose=0)
    rtol = 5e-3 if dtype == 'float16' else 1e-4
    np.testing.assert_allclose(found, alone(path, photos), rtol=rtol, atol=rtol)


@pytest.mark.parametrize('engine', ['openvino', 'onnxruntime'])
def test_one_engine_is_enough(tmp_path, photos, installed, engine):
    path = convolution(tmp_path / 'net.onnx')
    expected = alone(path, photos)
    installed(engine)
    net = open_onnx(path, preprocessing=AS_IT_IS)
    assert engine_of(net) == engine
    np.testing.assert_allclose(net.predict(photos, verbose=0), expected, rtol=1e-4)
    other = dict(openvino='onnxruntime', onnxruntime='openvino')[engine]
    with pytest.raises(ImportError, match=f"needs {other}: pip install 'triplet_fashion.export.'"):
        open_onnx(path, preprocessing=AS_IT_IS, engine=other)


def test_without_an_engine_it_says_what_to_install(tmp_path, installed):
    path = convolution(tmp_path / 'net.onnx')
    installed()
    with pytest.raises(ImportError, match='needs openvino or onnxruntime: pip install'):
        open_onnx(path, preprocessing=AS_IT_IS)
    with pytest.raises(ValueError, match="engine is 'tensorrt', not 'auto', 'openvino' or"):
        open_onnx(path, preprocessing=AS_IT_IS, engine='tensorrt')


def test_the_engine_asked_for_is_that_of_the_bundle(tmp_path, photos):
    for engine in 'auto', 'openvino', 'onnxruntime':
        path = convolution(tmp_path / 'net.onnx')
        backbone = open_onnx(path, preprocessing=IMAGENET, engine=engine)
        net = base_network((16, 16, 3), 4, backbone, trainable=False, hidden=())
        save_bundle(tmp_path / f'{engine}.tfz', net)
        again = load_bundle(tmp_path / f'{engine}.tfz')[0]
        np.testing.assert_allclose(
            again.predict(photos, verbose=0), net.predict(photos, verbose=0), atol=1e-6
        )
        assert computed_outside(again).engine == engine
        assert engine_of(again) == choose_onnx_engine(engine)


@pytest.mark.parametrize(
    'answer, said',
    [
        (lambda x: 1.01 * x, 'differs from ONNX Runtime by 1.0e-02 of the largest number'),
        (lambda x: np.full_like(x, np.nan), 'differs from ONNX Runtime by nan'),
        (lambda x: x[:, :1], r'gives \(5, 1\), ONNX Runtime gives \(5, 8\)'),
        (lambda x: 1 / 0, 'fails: division by zero'),
    ],
)
def test_an_engine_that_is_wrong_is_not_used(tmp_path, photos, monkeypatch, answer, said):
    path = convolution(tmp_path / 'net.onnx')
    rows = np.ascontiguousarray(photos.transpose(0, 3, 1, 2), 'float32')
    expected = alone(path, photos)

    class Wrong:
        "Stands for OpenVINO."

        def __getattr__(self, name):
            return lambda *args: self

        def infer(self, given):
            return dict(features=answer(expected))

    wrong = types.SimpleNamespace(Core=Wrong, __spec__=importlib.util.find_spec('openvino'))
    monkeypatch.setitem(sys.modules, 'openvino', wrong)
    content = path.read_bytes()
    with pytest.warns(UserWarning, match=f'OpenVINO {said}.* ONNX Runtime computes'):
        computation = OnnxComputation(content, ['features'])
        np.testing.assert_array_equal(computation(rows)[0], expected)
    assert computation.engine == 'onnxruntime'
    with pytest.raises(RuntimeError, match=f"engine 'openvino' {said}"):
        OnnxComputation(content, ['features'], 'openvino')(rows)


@pytest.mark.parametrize('engine', ['openvino', 'onnxruntime'])
def test_threads_share_an_engine(tmp_path, engine):
    path = convolution(tmp_path / 'net.onnx')
    computation = OnnxComputation(path.read_bytes(), ['features'], engine)
    x = np.random.default_rng(0).normal(size=(24, 3, 16, 16)).astype('float32')
    with ThreadPoolExecutor(8) as pool:
        found = np.concatenate([o[0] for o in pool.map(computation, np.split(x, 24))])
    expected = alone(path, x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# ---- the package works on it


@pytest.fixture
def net(tmp_path):
    backbone = open_onnx(convolution(tmp_path / 'net.onnx'), preprocessing=IMAGENET)
    return base_network((16, 16, 3), 4, backbone, trainable=False, hidden=(), activation='l2')


def test_two_files_a_keras_file_and_a_bundle_hold_the_file_itself(net, tmp_path, photos):
    expected = net.predict(photos, verbose=0)
    (tmp_path / 'net.onnx').unlink()
    save_model(net, tmp_path / 'n.json', tmp_path / 'n.weights.h5')
    net.save(tmp_path / 'n.keras')
    save_bundle(tmp_path / 'n.tfz', net)
    opened = [
        load_model(tmp_path / 'n.json', tmp_path / 'n.weights.h5'),
        load_model(tmp_path / 'n.keras'),
        load_bundle(tmp_path / 'n.tfz')[0],
    ]
    for other in opened:
        np.testing.assert_array_equal(other.predict(photos, verbose=0), expected)


def test_a_bundle_with_another_onnx_file_in_it_is_refused(net, tmp_path):
    other = open_onnx(convolution(tmp_path / 'other.onnx', batch=4), preprocessing=IMAGENET)
    other = base_network((16, 16, 3), 4, other, trainable=False, hidden=(), activation='l2')
    save_model(net, tmp_path / 'a.json', tmp_path / 'a.weights.h5')
    save_model(other, tmp_path / 'b.json', tmp_path / 'b.weights.h5')
    with pytest.raises(ValueError, match='is not the one it was made of'):
        load_model(tmp_path / 'a.json', tmp_path / 'b.weights.h5')


def test_without_its_weights_it_says_what_is_missing(net, photos):
    bare = keras.Sequential.from_config(net.get_config())
    with pytest.raises(Exception, match='has no ONNX file yet: it comes with the weights'):
        bare(photos)


def test_it_is_frozen_and_trains_a_head(drawn, tmp_path):
    "The same features as of the Keras network that the file was made of, and so the same head."
    keras.utils.set_random_seed(0)
    shop = keras.Sequential(
        [keras.Input((32, 32, 3)), layers.Conv2D(16, 5, strides=4), layers.GlobalMaxPooling2D()]
    )
    shop(np.zeros((1, 32, 32, 3)))
    shop.export(tmp_path / 'shop.onnx', format='onnx', verbose=False)
    how = dict(recipe='strong', size=(32, 32), epochs=2, verbose=0, seed=3)
    heads = {}
    for backbone in shop, open_onnx(tmp_path / 'shop.onnx', preprocessing=AS_IT_IS):
        keras.utils.set_random_seed(1)
        net = base_network((32, 32, 3), 8, backbone, trainable=False, hidden=(16,), activation='l2')
        assert is_frozen(net) and backbone_of(net).output_shape == (None, 16)
        run = fit(drawn, drawn, net=net, feature_cache=False, **how)
        heads[backbone.name] = run
    a, b = heads.values()
    np.testing.assert_allclose(a.history['loss'], b.history['loss'], rtol=1e-3)
    codes = [Encoder(run.net).encode(drawn) for run in (a, b)]
    np.testing.assert_allclose(*codes, atol=2e-3)


def test_it_is_judged_beside_what_can_be_had_of_it(net, drawn):
    "Its backbone alone; random weights of an ONNX file there are none."
    board = scoreboard({'mine': net, **baselines(net)}, drawn)
    assert [row['embedding'] for row in board] == [
        'mine',
        'frozen backbone',
        'colour histogram',
        'raw pixels',
        'chance',
    ]


def test_only_tensorflow_hands_it_on(net, photos):
    expected = net.predict(photos, verbose=0)
    for how in {}, dict(name='tf'), dict(precision='bfloat16', name='auto'):
        engine = make_engine(net, sample=photos, **how)
        assert engine.name == 'tf'
        np.testing.assert_allclose(engine(photos), expected, atol=1e-6)
    for how in dict(name='litert'), dict(name='openvino'), dict(name='tf', precision='bfloat16'):
        with pytest.raises(ValueError, match="computed outside of TensorFlow, which engine='tf'"):
            make_engine(net, sample=photos, **how)


@pytest.mark.parametrize('form', [form for form in FORMATS if form != 'onnx'])
def test_what_would_not_run_elsewhere_is_not_exported(net, tmp_path, form):
    with pytest.raises(ValueError, match="format='onnx' takes it along, no other does"):
        export(net, tmp_path / 'out', format=form)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'how',
    [{}, dict(batch=4), dict(dtype='float16'), dict(dtype='uint8')],
    ids=['any', 'four', 'half', 'bytes'],
)
@pytest.mark.parametrize('colors', [False, True])
def test_backbone_and_head_leave_as_one_onnx_file(tmp_path, photos, how, colors):
    "Scaled by what `IMAGENET` says, or as bytes; ONNX Runtime alone gives what Keras gave."
    said = AS_IT_IS if how.get('dtype') == 'uint8' else IMAGENET
    backbone = open_onnx(convolution(tmp_path / 'net.onnx', **how), preprocessing=said)
    more = dict(discriminant=4, colors=True) if colors else {}
    net = base_network((16, 16, 3), 4, backbone, trainable=False, activation='l2', **more)
    out = export(net, tmp_path / 'out', 'onnx', tolerance=2e-3)
    session = onnxruntime.InferenceSession(str(out / 'network.onnx'))
    x = photos[:4].astype('float32')
    found = session.run(None, {session.get_inputs()[0].name: x})[0]
    np.testing.assert_allclose(found, net.predict(x, verbose=0), atol=2e-3)
    np.testing.assert_allclose(load_export(out)(photos), net.predict(photos, verbose=0), atol=2e-3)


def test_inner_maps_and_features_leave_together(tmp_path, photos):
    path = convolution(tmp_path / 'net.onnx')
    net = base_network(
        (16, 16, 3), 4, path, rescale=IMAGENET, trainable=False, stages=['map', 'features']
    )
    made = load_export(export(net, tmp_path / 'out', 'onnx'))
    np.testing.assert_allclose(made(photos), net.predict(photos, verbose=0), atol=1e-5)


def test_an_export_in_bytes_of_eight_bits(net, tmp_path, photos):
    made = load_export(export(net, tmp_path / 'out', 'onnx', 'int8', sample=photos))
    np.testing.assert_allclose(made(photos), net.predict(photos, verbose=0), atol=0.2)


def test_a_name_instead_of_the_file_is_found_beside_the_bundle(tmp_path, photos):
    path = convolution(tmp_path / 'net.onnx')
    backbone = open_onnx(path, preprocessing=IMAGENET, keep='name')
    net = base_network((16, 16, 3), 4, backbone, trainable=False, hidden=())
    expected = net.predict(photos, verbose=0)
    home = tmp_path / 'home'
    home.mkdir()
    save_bundle(home / 'n.tfz', net)
    net.save(home / 'n.keras')
    with pytest.raises(ValueError, match='net.onnx, which does not lie in .*home: put it there'):
        load_bundle(home / 'n.tfz')
    shutil.copy(path, home)
    for opened in load_bundle(home / 'n.tfz')[0], load_model(home / 'n.keras'):
        np.testing.assert_array_equal(opened.predict(photos, verbose=0), expected)
    convolution(home / 'net.onnx', batch=4)
    with pytest.raises(ValueError, match='is not the one it was made of'):
        load_bundle(home / 'n.tfz')
    with pytest.raises(ValueError, match="keep is 'sha'"):
        open_onnx(path, keep='sha')


def test_of_stages_it_has_names_only(tmp_path):
    path = convolution(tmp_path / 'net.onnx')
    backbone = open_onnx(path, preprocessing=IMAGENET)
    with pytest.raises(ValueError, match="stages is 'all', but net has no layers with weights"):
        base_network((16, 16, 3), 4, backbone, trainable=False, stages='all')
    with pytest.raises(ValueError, match="stages is 'all'; of an ONNX file give the names"):
        base_network((16, 16, 3), 4, path, trainable=False, stages='all')
    with pytest.raises(ValueError, match="rescale is 'tf'; for an ONNX file give"):
        base_network((16, 16, 3), 4, path, trainable=False, rescale='tf')
    with pytest.raises(ValueError, match="no tensor 'block'. Its outputs are features"):
        base_network((16, 16, 3), 4, path, rescale=IMAGENET, trainable=False, stages=['block'])


# ---- files from anybody


def test_weights_in_a_file_beside_it_are_taken_along(tmp_path, photos):
    whole = convolution(tmp_path / 'whole.onnx')
    folder = tmp_path / 'parts'
    folder.mkdir()
    how = dict(save_as_external_data=True, location='net.data', size_threshold=0)
    path = convolution(folder / 'net.onnx', **how)
    assert (folder / 'net.data').exists()
    a, b = (open_onnx(p, preprocessing=AS_IT_IS) for p in (whole, path))
    shutil.rmtree(folder)
    np.testing.assert_array_equal(*(n.predict(photos, verbose=0) for n in (a, b)))


@pytest.mark.parametrize('place', ['../secret', '/etc/hostname'])
def test_weights_outside_of_its_folder_are_refused(tmp_path, place):
    (tmp_path / 'secret').write_bytes(bytes(8 * 3 * 16 * 4))
    folder = tmp_path / 'net'
    folder.mkdir()
    how = dict(save_as_external_data=True, location='net.data', size_threshold=0)
    path = convolution(folder / 'net.onnx', **how)
    content = onnx.load(path, load_external_data=False)
    for tensor in content.graph.initializer:
        next(e for e in tensor.external_data if e.key == 'location').value = place
    path.write_bytes(content.SerializeToString())
    with pytest.raises(
        ValueError, match='^open_onnx: .*net.onnx is no ONNX file that can be opened'
    ):
        open_onnx(path, preprocessing=AS_IT_IS)


def test_a_bundle_whose_onnx_file_names_other_files_is_refused(tmp_path, photos):
    how = dict(save_as_external_data=True, location='net.data', size_threshold=0)
    path = convolution(tmp_path / 'net.onnx', **how)
    content = path.read_bytes()
    source = photo_input(onnx.load(path, load_external_data=False))
    layer = OnnxBackbone(
        source, dict(features=(None, 8)), hashlib.sha256(content).hexdigest(), content, name='onnx'
    )
    x = keras.Input((16, 16, 3))
    net = keras.Model(x, layer(x))
    save_model(net, tmp_path / 'n.json', tmp_path / 'n.weights.h5')
    with pytest.raises(ValueError, match='has weights in other files, which it may not name'):
        load_model(tmp_path / 'n.json', tmp_path / 'n.weights.h5')


@pytest.mark.parametrize('size', [0, 10, 300])
def test_half_a_file_is_named(tmp_path, size):
    path = convolution(tmp_path / 'net.onnx')
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match='net.onnx'):
        open_onnx(path, preprocessing=AS_IT_IS)


def test_what_is_no_network_of_photos_is_named(tmp_path):
    flat = write(
        tmp_path / 'flat.onnx',
        [('Relu', ['x'], ['y'], {})],
        [('x', TensorProto.FLOAT, ['n', 7])],
        [('y', TensorProto.FLOAT, ['n', 7])],
        {},
    )
    with pytest.raises(ValueError, match=r'flat.onnx takes x \(None, 7\): one input for photos'):
        open_onnx(flat)
    with pytest.raises(FileNotFoundError, match='open_onnx: no ONNX file'):
        open_onnx(tmp_path / 'none.onnx')
    with zipfile.ZipFile(tmp_path / 'zip.onnx', 'w') as z:
        z.writestr('a', 'b')
    with pytest.raises(ValueError, match='zip.onnx is no ONNX file'):
        open_onnx(tmp_path / 'zip.onnx')
