"runtimes: every engine gives Keras' numbers, whatever layers are called, photos come as, or precision is."
import subprocess, sys, warnings

import numpy as np
import pytest

keras = pytest.importorskip('keras')
from triplet_fashion import runtimes
from triplet_fashion.base_network import base_network, freeze
from triplet_fashion.runtimes import ENGINES, in_precision, runtime

OPTIONAL = {'openvino': ['openvino'], 'openvino-bf16': ['openvino'], 'onnxruntime': ['onnxruntime', 'tf2onnx']}
SHAPE = 16, 12, 3


@pytest.fixture(scope='module')
def net():
    "A backbone with awkward names, a shortcut and depthwise convolutions, with scaling and a head."
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input(SHAPE, name='_in')
    x = keras.layers.Conv2D(8, 3, padding='same', name='_stem')(x)
    x = keras.layers.BatchNormalization(name='a b')(x)
    y = keras.layers.DepthwiseConv2D(3, padding='same', name='ünlü (1)')(keras.layers.ReLU(6., name='__relu')(x))
    x = keras.layers.Add(name='_')([x, y])
    body = keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name='_pool')(x), name='_body')
    net = base_network(SHAPE, 6, body, hidden=(5,), activation='l2', rescale='torch')
    bn = body.get_layer('a b')
    bn.moving_mean.assign(np.linspace(-1, 1, 8)); bn.moving_variance.assign(np.linspace(.5, 2, 8))
    return net


@pytest.fixture(scope='module')
def photos(): return np.random.default_rng(0).integers(0, 256, (11, *SHAPE)).astype('uint8')


def keras_says(net, x): return np.asarray(net(np.asarray(x, 'float32'), training=False), 'float32')


@pytest.mark.parametrize('name', list(ENGINES))
def test_engines_agree_with_keras_for_any_number_of_photos(name, net, photos):
    for package in OPTIONAL.get(name, []): pytest.importorskip(package)
    expected, names = keras_says(net, photos), [l.name for l in net._flatten_layers()]
    run = runtime(net, name, photos, batch_size=8)
    tolerance = .05 if name.endswith('bf16') else 1e-5
    for n in (11, 1, 4, 8, 9):
        got = run(photos[:n])
        assert got.dtype == np.float32 and got.shape == (n, 6)
        np.testing.assert_allclose(got, expected[:n], atol=tolerance)
    np.testing.assert_allclose(run(photos.astype('float32')), expected, atol=tolerance)
    np.testing.assert_allclose(run(photos[::2]), expected[::2], atol=tolerance)          # not contiguous
    assert [l.name for l in net._flatten_layers()] == names
    assert run.name == name


def test_auto_reports_every_engine_and_takes_one_that_agrees(net, photos):
    run = runtime(net, 'auto', photos)
    rows = {r['runtime']: r for r in run.report}
    assert list(rows) == ['tf', 'litert', 'openvino', 'onnxruntime']
    assert rows[run.name]['verdict'] == 'agrees'
    assert rows['tf']['verdict'] == rows['litert']['verdict'] == 'agrees'
    agreeing = {k: r['images/s'] for k, r in rows.items() if r['verdict'] == 'agrees'}
    assert run.name == max(agreeing, key=agreeing.get)
    text = run._repr_markdown_()
    assert f'**{run.name}**' in text and 'largest difference' in text and 'agree with Keras' in text
    for name, r in rows.items():
        if r['verdict'] != 'agrees': assert "pip install 'triplet_fashion[export]'" in r['verdict']
    np.testing.assert_allclose(run(photos), keras_says(net, photos), atol=1e-5)


def test_auto_passes_over_what_fails_disagrees_or_is_nan(net, photos, monkeypatch):
    engines = {'tf': ENGINES['tf'], 'litert': lambda *a: (lambda x: keras_says(net, x) + np.float32(1e-3)),
               'openvino': lambda *a: (lambda x: np.full((len(x), 6), np.nan, 'float32')), 'onnxruntime': lambda *a: 1/0,
               'short': lambda *a: (lambda x: np.zeros((len(x), 5), 'float32')), 'loud': lambda *a: (lambda x: [][1])}
    monkeypatch.setattr(runtimes, 'ENGINES', engines)
    monkeypatch.setattr(runtimes, '_NEEDS', {'gone': ['no_such_package']})
    engines['gone'] = None
    run = runtime(net, 'auto', photos)
    verdicts = {r['runtime']: r['verdict'] for r in run.report}
    assert run.name == 'tf'
    assert verdicts['litert'].startswith('disagrees') and verdicts['openvino'].startswith('disagrees')
    assert 'ZeroDivisionError' in verdicts['onnxruntime'] and '(11, 5)' in verdicts['short'] and 'IndexError' in verdicts['loud']
    assert 'no_such_package not installed' in verdicts['gone']
    assert runtime(net, 'auto', photos, tolerance=.01).report[1]['verdict'] == 'agrees'     # 0.001 apart, of numbers up to 1
    with pytest.raises(RuntimeError, match='disagrees'): runtime(net, 'litert', photos)
    with pytest.raises(ImportError, match='pip install'): runtime(net, 'gone', photos)
    del engines['tf']
    with pytest.raises(RuntimeError, match='no runtime agrees'): runtime(net, 'auto', photos)


def test_the_fastest_wins(net, photos, monkeypatch):
    import time
    said = {}
    def known(x):
        "Computed once, so that only the pause counts when an engine is timed."
        if (key := np.asarray(x, 'float32').tobytes()) not in said: said[key] = keras_says(net, x)
        return said[key]
    def paced(seconds):
        def engine(*_):
            def run(x): time.sleep(seconds); return known(x)
            return run
        return engine
    monkeypatch.setattr(runtimes, 'ENGINES', {'tf': paced(.2), 'litert': paced(.02), 'openvino': paced(.1)})
    monkeypatch.setattr(runtimes, '_NEEDS', {})
    assert runtime(net, 'auto', photos).name == 'litert'
    few = runtime(net, 'auto', photos, photos=20)
    assert few.name == 'tf' and [r['verdict'] for r in few.report[1:]] == ['not tried for 20 photos']*2
    some = runtime(net, 'auto', photos, photos=1500)      # too many for tf, few enough for litert
    assert some.name == 'litert' and some.report[2]['verdict'].startswith('not tried')


def test_half_precision_networks(photos):
    keras.utils.set_random_seed(1)
    old = keras.config.dtype_policy()
    keras.config.set_dtype_policy('mixed_bfloat16')
    try: half = base_network(SHAPE, 6, 'small', weights=None, hidden=())
    finally: keras.config.set_dtype_policy(old)
    full = in_precision(half, 'float32')
    assert {l.compute_dtype for l in full._flatten_layers()} == {'float32'}
    for name in 'tf', 'litert': np.testing.assert_allclose(runtime(half, name, photos)(photos), keras_says(half, photos), atol=.02)
    np.testing.assert_allclose(runtime(half, 'litert', photos)(photos), keras_says(full, photos), atol=1e-5)
    again = in_precision(full, 'mixed_bfloat16')
    leaves = lambda net: [(l.name, l.compute_dtype) for l in net._flatten_layers() if l.weights and not isinstance(l, keras.Model)]
    assert leaves(again) == leaves(half)


@pytest.mark.parametrize('policy', ['mixed_bfloat16', 'float32'])
def test_statistics_of_the_input_go_along(policy):
    "Normalization keeps what it computes with beside its weights: EfficientNet has one, a user's backbone may, at any depth."
    norm = keras.layers.Normalization()
    norm.adapt(np.random.default_rng(0).uniform(0, 255, (50, 8, 8, 3)))
    i = keras.Input((8, 8, 3))
    inner = keras.Model(i, keras.layers.GlobalAveragePooling2D()(norm(i)))
    net, x = keras.Sequential([keras.Input((8, 8, 3)), inner, keras.layers.Dense(4)]), np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3)).astype('uint8')
    np.testing.assert_allclose(in_precision(net, policy)(x), keras_says(net, x), atol=.05 if policy != 'float32' else 1e-6)


def test_precision_is_only_a_permission(net, photos):
    names = [r['runtime'] for r in runtime(net, 'auto', photos, precision='bfloat16').report]
    assert names == list(ENGINES)
    assert runtime(net, 'tf', photos, precision='bfloat16').name == 'tf-bf16'
    assert not any(l.compute_dtype == 'bfloat16' for l in net._flatten_layers())


def test_a_network_that_takes_integers():
    net = keras.Sequential([keras.Input((4, 4, 3), dtype='uint8'), keras.layers.Rescaling(1/255), keras.layers.Flatten(), keras.layers.Dense(3)])
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype('uint8')
    for name in 'tf', 'litert': np.testing.assert_allclose(runtime(net, name, x)(x), np.asarray(net(x)), atol=1e-5)


def test_weights_are_those_at_the_time_of_making(photos):
    net = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(2)])
    frozen, live = runtime(net, 'litert', photos), runtime(net, 'tf', photos)
    before = keras_says(net, photos)
    net.layers[-1].kernel.assign(net.layers[-1].kernel*2)
    np.testing.assert_allclose(frozen(photos), before, rtol=1e-4)
    np.testing.assert_allclose(live(photos), keras_says(net, photos), rtol=1e-5)


def test_refusals(net, photos):
    for kw, message in [(dict(name='fastest'), "'fastest' is unknown: use 'auto', 'tf'"), (dict(precision='int8'), "precision is 'int8'")]:
        with pytest.raises(ValueError, match=message): runtime(net, sample=photos, **kw)
    a, b = keras.Input((2,)), keras.Input((2,))
    with pytest.raises(ValueError, match='2 inputs'): runtime(keras.Model([a, b], keras.layers.Add()([a, b])))
    any_size = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    with pytest.raises(ValueError, match='give sample'): runtime(any_size)
    run = runtime(any_size, 'litert', photos)
    np.testing.assert_allclose(run(photos[:3]), photos[:3].mean((1, 2)), rtol=1e-5)
    with pytest.raises(ValueError, match='made for'): run(photos[:, :8])
    with pytest.raises(ValueError, match='made for'): run(photos[:0])


def test_nothing_is_said_aloud(net, photos, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        runtime(net, 'litert', photos)
    assert 'deprecat' not in capfd.readouterr().err.lower()


def test_openvino_sends_no_telemetry():
    "It would fork a process for each message, from a thread, beside threads at work; what was imported by others before stays as it is."
    pytest.importorskip('openvino')
    code = """
import multiprocessing, sys
multiprocessing.Process.start = lambda self: started.append(self)
started = []
import keras, numpy as np
from triplet_fashion.runtimes import runtime
net = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3), keras.layers.GlobalAveragePooling2D()])
x = np.ones((2, 8, 8, 3), 'float32')
assert 'openvino' not in sys.modules, 'imported before it is needed'
print(runtime(net, 'openvino', x)(x).shape)
import time; time.sleep(1)     # a message would be on its way by now
assert not started and not any(m.startswith('openvino_telemetry') for m in sys.modules), started
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and '(2, 2)' in done.stdout, done.stderr[-2000:]


def test_the_real_backbone(lite0, photos):
    x = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3)).astype('uint8')
    net = freeze(base_network((96, 96, 3), 16, str(lite0), activation='l2'))
    run = runtime(net, 'litert', x)
    np.testing.assert_allclose(run(x), keras_says(net, x), atol=1e-5)
    backbone = keras.models.load_model(lite0, compile=False)      # takes photos of any size
    run = runtime(backbone, 'litert', x)
    expected = keras_says(backbone, x)
    assert np.abs(run(x) - expected).max() < 1e-4*np.abs(expected).max()
