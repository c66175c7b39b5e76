"Every engine gives Keras' numbers, whatever layers are called, photos come as, or precision is."

import subprocess, sys, threading, warnings

import numpy as np
import pytest

keras = pytest.importorskip('keras')
import tensorflow as tf
from triplet_fashion import engines
from triplet_fashion.base_network import base_network, freeze
from triplet_fashion.engines import (
    ENGINES,
    LazyEngine,
    choose_engine,
    compare_engines,
    has_depthwise,
    in_precision,
    make_engine,
)

OPTIONAL = {
    'openvino': ['openvino'],
    'openvino-bf16': ['openvino'],
    'onnxruntime': ['onnxruntime', 'tf2onnx'],
}
SHAPE = 16, 12, 3


@pytest.fixture(scope='module')
def net():
    "A backbone with awkward names, a shortcut and depthwise convolutions, with scaling and a head."
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input(SHAPE, name='_in')
    x = keras.layers.Conv2D(8, 3, padding='same', name='_stem')(x)
    x = keras.layers.BatchNormalization(name='a b')(x)
    y = keras.layers.DepthwiseConv2D(3, padding='same', name='ünlü (1)')(
        keras.layers.ReLU(6.0, name='__relu')(x)
    )
    x = keras.layers.Add(name='_')([x, y])
    body = keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name='_pool')(x), name='_body')
    net = base_network(SHAPE, 6, body, hidden=(5,), activation='l2', rescale='torch')
    bn = body.get_layer('a b')
    bn.moving_mean.assign(np.linspace(-1, 1, 8))
    bn.moving_variance.assign(np.linspace(0.5, 2, 8))
    return net


@pytest.fixture(scope='module')
def photos():
    return np.random.default_rng(0).integers(0, 256, (11, *SHAPE)).astype('uint8')


def keras_says(net, x):
    return np.asarray(net(np.asarray(x, 'float32'), training=False), 'float32')


def in_threads(do, n=4):
    "Call `do(i)` in threads that start together, and return what they gave."
    start, given = threading.Barrier(n), [None] * n

    def one(i):
        start.wait()
        given[i] = do(i)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return given


@pytest.mark.parametrize('name', list(ENGINES))
def test_engines_agree_with_keras_for_any_number_of_photos(name, net, photos):
    for package in OPTIONAL.get(name, []):
        pytest.importorskip(package)
    expected, names = keras_says(net, photos), [l.name for l in net._flatten_layers()]
    run = make_engine(net, name, photos, batch_size=8)
    tolerance = 0.05 if name.endswith('bf16') else 1e-5
    for n in (11, 1, 4, 8, 9):
        got = run(photos[:n])
        assert got.dtype == np.float32 and got.shape == (n, 6)
        np.testing.assert_allclose(got, expected[:n], atol=tolerance)
    np.testing.assert_allclose(run(photos.astype('float32')), expected, atol=tolerance)
    np.testing.assert_allclose(run(photos[::2]), expected[::2], atol=tolerance)  # not contiguous
    assert [l.name for l in net._flatten_layers()] == names
    assert run.name == name


def dense():
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Conv2D(3, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )


def test_the_rule(net, monkeypatch):
    """The engine follows from network, number of photos, precision and what is installed, and from
    nothing else."""
    many = dict(shape=(224, 224, 3), photos=1000)
    assert choose_engine(net, **many).engine == choose_engine(net).engine == 'litert'
    assert choose_engine(dense(), **many).engine == choose_engine(dense()).engine == 'tf'
    for model in net, dense():
        assert choose_engine(model, (224, 224, 3), photos=100).engine == 'tf'
        assert choose_engine(model, (224, 224, 3), 'bfloat16', 100).engine == 'tf-bf16'
    monkeypatch.setattr(engines, 'missing_packages', lambda name: '')
    assert choose_engine(dense(), precision='bfloat16').engine == 'openvino-bf16'
    assert choose_engine(net, precision='bfloat16').engine == 'litert'
    monkeypatch.setattr(engines, 'missing_packages', lambda name: 'not installed')
    assert choose_engine(dense(), precision='bfloat16').engine == 'tf-bf16'
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: ['a card'])
    assert (
        choose_engine(net).engine == 'tf'
        and choose_engine(net, precision='bfloat16').engine == 'tf-bf16'
    )


@pytest.mark.parametrize(
    'layer, slow',
    [
        (lambda: keras.layers.DepthwiseConv2D(3), True),
        (lambda: keras.layers.SeparableConv2D(4, 3), True),
        (lambda: keras.layers.Conv2D(3, 3, groups=3), True),
        (lambda: keras.layers.Conv2D(3, 3), False),
        (lambda: keras.layers.GroupNormalization(3), False),
    ],
)
def test_depthwise_convolutions_are_seen_inside_other_models(layer, slow):
    inner = keras.Sequential([keras.Input(SHAPE), layer()])
    assert has_depthwise(keras.Sequential([keras.Input(SHAPE), inner])) is slow


def test_auto_is_the_rule_and_agrees(net, photos):
    run = make_engine(net, 'auto', photos)
    assert (run.name, run.why) == choose_engine(net, SHAPE)
    assert str(run) == f'{run.name}: {run.why}'
    np.testing.assert_allclose(run(photos), keras_says(net, photos), atol=1e-5)
    assert make_engine(net, 'auto', photos, photos=20).name == 'tf'


WRONG = {
    'far': (lambda *a: lambda x: np.full((len(x), 6), 1e-3, 'float32'), 'disagrees with Keras'),
    'nan': (
        lambda *a: lambda x: np.full((len(x), 6), np.nan, 'float32'),
        'disagrees with Keras: it gives NaN',
    ),
    'short': (
        lambda *a: lambda x: np.zeros((len(x), 5), 'float32'),
        r'fails: ValueError: gives \(11, 5\)',
    ),
    'unbuilt': (lambda *a: 1 / 0, 'fails: ZeroDivisionError'),
    'loud': (lambda *a: lambda x: [][1], 'fails: IndexError'),
}


@pytest.mark.parametrize('how', list(WRONG))
def test_an_engine_that_fails_or_differs_gives_way_to_tensorflow(how, net, photos, monkeypatch):
    engine, said = WRONG[how]
    monkeypatch.setitem(ENGINES, 'litert', engine)
    with pytest.warns(UserWarning, match=f'litert {said}.*TensorFlow computes'):
        run = make_engine(net, 'auto', photos)
    assert run.name == 'tf' and 'litert' in run.why
    np.testing.assert_allclose(run(photos), keras_says(net, photos), atol=1e-6)
    with pytest.raises(RuntimeError, match=f'litert {said}'):
        make_engine(net, 'litert', photos)


def test_tolerance_is_a_share_of_the_largest_number(net, photos, monkeypatch):
    monkeypatch.setitem(
        ENGINES, 'litert', lambda *a: lambda x: keras_says(net, x) + np.float32(1e-3)
    )
    assert make_engine(net, 'litert', photos, tolerance=0.01).name == 'litert'
    with pytest.raises(RuntimeError, match='disagrees'):
        make_engine(net, 'litert', photos)


def test_an_engine_that_is_not_installed(net, photos, monkeypatch):
    monkeypatch.setattr(engines, 'ENGINE_PACKAGES', {'openvino': ['no_such_package']})
    with pytest.raises(ImportError, match='no_such_package not installed: pip install'):
        make_engine(net, 'openvino', photos)
    with pytest.raises(ImportError, match='pip install'):
        LazyEngine(net, 'openvino')


def test_a_lazy_engine_is_made_once(net, photos, monkeypatch):
    made, keep = [], ENGINES['litert']
    monkeypatch.setitem(ENGINES, 'litert', lambda *a: made.append(1) or keep(*a))
    run = LazyEngine(net)
    assert run.name == 'auto' and not made
    for got in in_threads(lambda i: run(photos)):
        np.testing.assert_allclose(got, keras_says(net, photos), atol=1e-5)
    assert run.name == 'litert' and made == [1]
    assert run.is_of(net) and not run.is_of(dense())
    with pytest.raises(ValueError, match="'fastest' is unknown"):
        LazyEngine(net, 'fastest')


def test_engines_side_by_side(net, photos, monkeypatch):
    monkeypatch.setitem(ENGINES, 'broken', lambda *a: 1 / 0)
    monkeypatch.setitem(ENGINES, 'gone', None)
    monkeypatch.setitem(ENGINES, 'far', WRONG['far'][0])
    monkeypatch.setattr(engines, 'ENGINE_PACKAGES', {'gone': ['no_such_package']})
    report = compare_engines(net, photos, ['tf', 'litert', 'broken', 'gone', 'far'])
    verdicts = {r.engine: r.verdict for r in report.results}
    assert verdicts['tf'] == verdicts['litert'] == 'agrees'
    assert verdicts['broken'].startswith('fails: ZeroDivisionError') and verdicts['far'].startswith(
        'disagrees'
    )
    assert 'no_such_package not installed' in verdicts['gone']
    good = report.results[1]
    assert good.speed > 0 and good.difference < 1e-5 and (good.memory is None or good.memory >= 0)
    text = report._repr_markdown_()
    assert (
        '**litert**' in text
        and '| engine | images/s | largest difference | memory, MB | verdict |' in text
    )
    assert text.count('\n| ') == 7


def test_every_engine_is_compared_unless_told(net, monkeypatch):
    for name in list(ENGINES):
        monkeypatch.setitem(ENGINES, name, lambda *a: 1 / 0)
    assert [r.engine for r in compare_engines(net).results] == [
        'tf',
        'litert',
        'openvino',
        'onnxruntime',
    ]
    assert [r.engine for r in compare_engines(net, precision='bfloat16').results] == list(ENGINES)


def test_half_precision_networks(photos):
    keras.utils.set_random_seed(1)
    old = keras.config.dtype_policy()
    keras.config.set_dtype_policy('mixed_bfloat16')
    try:
        half = base_network(SHAPE, 6, 'small', weights=None, hidden=())
    finally:
        keras.config.set_dtype_policy(old)
    full = in_precision(half, 'float32')
    assert {l.compute_dtype for l in full._flatten_layers()} == {'float32'}
    for name in 'tf', 'litert':
        np.testing.assert_allclose(
            make_engine(half, name, photos)(photos), keras_says(half, photos), atol=0.02
        )
    np.testing.assert_allclose(
        make_engine(half, 'litert', photos)(photos), keras_says(full, photos), atol=1e-5
    )
    again = in_precision(full, 'mixed_bfloat16')

    def leaves(net):
        return [
            (l.name, l.compute_dtype)
            for l in net._flatten_layers()
            if l.weights and not isinstance(l, keras.Model)
        ]

    assert leaves(again) == leaves(half)


@pytest.mark.parametrize('policy', ['mixed_bfloat16', 'float32'])
def test_statistics_of_the_input_go_along(policy):
    """Normalization keeps what it computes with beside its weights: EfficientNet has one, a user's
    backbone may, at any depth."""
    norm = keras.layers.Normalization()
    norm.adapt(np.random.default_rng(0).uniform(0, 255, (50, 8, 8, 3)))
    i = keras.Input((8, 8, 3))
    inner = keras.Model(i, keras.layers.GlobalAveragePooling2D()(norm(i)))
    net, x = (
        keras.Sequential([keras.Input((8, 8, 3)), inner, keras.layers.Dense(4)]),
        np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3)).astype('uint8'),
    )
    np.testing.assert_allclose(
        in_precision(net, policy)(x), keras_says(net, x), atol=0.05 if policy != 'float32' else 1e-6
    )


def test_precision_of_an_engine_asked_for(net, photos):
    assert make_engine(net, 'tf', photos, precision='bfloat16').name == 'tf-bf16'
    assert not any(l.compute_dtype == 'bfloat16' for l in net._flatten_layers())


def test_a_network_that_takes_integers():
    net = keras.Sequential(
        [
            keras.Input((4, 4, 3), dtype='uint8'),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    x = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype('uint8')
    for name in 'tf', 'litert':
        np.testing.assert_allclose(make_engine(net, name, x)(x), np.asarray(net(x)), atol=1e-5)


def test_weights_are_those_at_the_time_of_making(photos):
    net = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(2)])
    frozen, live = make_engine(net, 'litert', photos), make_engine(net, 'tf', photos)
    before = keras_says(net, photos)
    net.layers[-1].kernel.assign(net.layers[-1].kernel * 2)
    np.testing.assert_allclose(frozen(photos), before, rtol=1e-4)
    np.testing.assert_allclose(live(photos), keras_says(net, photos), rtol=1e-5)


def test_refusals(net, photos):
    for kw, message in [
        (dict(name='fastest'), "'fastest' is unknown: use 'auto', 'tf'"),
        (dict(precision='int8'), "precision is 'int8'"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_engine(net, sample=photos, **kw)
    a, b = keras.Input((2,)), keras.Input((2,))
    with pytest.raises(ValueError, match='2 inputs'):
        make_engine(keras.Model([a, b], keras.layers.Add()([a, b])))
    any_size = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()]
    )
    with pytest.raises(ValueError, match='give sample'):
        make_engine(any_size)
    run = make_engine(any_size, 'litert', photos)
    np.testing.assert_allclose(run(photos[:3]), photos[:3].mean((1, 2)), rtol=1e-5)
    with pytest.raises(ValueError, match='made for'):
        run(photos[:, :8])
    with pytest.raises(ValueError, match='made for'):
        run(photos[:0])


def test_nothing_is_said_aloud(net, photos, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        make_engine(net, 'litert', photos)
    assert 'deprecat' not in capfd.readouterr().err.lower()


def test_openvino_sends_no_telemetry(fresh_python):
    """It would fork a process for each message, from a thread; what was imported by others before
    stays as it is."""
    pytest.importorskip('openvino')
    code = """
import multiprocessing, sys
multiprocessing.Process.start = lambda self: started.append(self)
started = []
import keras, numpy as np
from triplet_fashion.engines import make_engine
L = keras.layers
net = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(2, 3), L.GlobalAveragePooling2D()])
x = np.ones((2, 8, 8, 3), 'float32')
assert 'openvino' not in sys.modules, 'imported before it is needed'
print(make_engine(net, 'openvino', x)(x).shape)
import time; time.sleep(1)     # a message would be on its way by now
assert not started and not any(m.startswith('openvino_telemetry') for m in sys.modules), started
"""
    done = fresh_python.run(code, timeout=120)
    assert done.returncode == 0 and '(2, 2)' in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize('engine', ['openvino', 'onnxruntime', 'litert'])
def test_the_first_calls_of_an_engine_do_not_hang(engine, root):
    """In fresh processes whose threads change hands a thousand times as often as usual, two of them
    on a busy machine."""
    for package in OPTIONAL.get(engine, []):
        pytest.importorskip(package)
    n = '4' if engine == 'openvino' else '2'
    check = [
        sys.executable,
        root / '.ci' / 'check_engines.py',
        '--processes',
        n,
        '--at-once',
        n,
        '--engine',
        engine,
    ]
    done = subprocess.run(check, capture_output=True, text=True, timeout=280)
    assert done.stdout.split() == [n, 'right'], done.stdout + done.stderr


@pytest.mark.parametrize('engine', ['tf', 'litert'])
def test_threads_may_make_and_share_engines(engine, net, photos):
    "Making one touches what belongs to the process: names of layers, the console, warnings."
    names, console, shown = (
        [l.name for l in net._flatten_layers()],
        sys.stdout,
        warnings.showwarning,
    )
    made = in_threads(lambda i: make_engine(net, engine, photos))
    assert [l.name for l in net._flatten_layers()] == names
    assert sys.stdout is console and warnings.showwarning is shown
    expected = keras_says(net, photos)
    for got in in_threads(lambda i: made[0](photos[i:])) + [m(photos) for m in made]:
        np.testing.assert_allclose(got, expected[-len(got) :], atol=1e-5)


def test_the_real_backbone(lite0, photos):
    x = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3)).astype('uint8')
    net = freeze(base_network((96, 96, 3), 16, str(lite0), activation='l2'))
    run = make_engine(net, 'litert', x)
    np.testing.assert_allclose(run(x), keras_says(net, x), atol=1e-5)
    backbone = keras.models.load_model(lite0, compile=False)  # takes photos of any size
    run = make_engine(backbone, 'litert', x)
    expected = keras_says(backbone, x)
    assert np.abs(run(x) - expected).max() < 1e-4 * np.abs(expected).max()
