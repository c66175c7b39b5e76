"Networks on disk: exact round trips, crashes, damage, foreign and unsafe files."

import hashlib, json, os, shutil, subprocess, sys, threading, time, zipfile
from pathlib import Path
import h5py, keras, numpy as np, pytest
from keras import layers
from triplet_fashion.base_network import base_network, head_of
from triplet_fashion.model import compile_triplet, triplet_model
from triplet_fashion.persistence import (
    bundle_info,
    fingerprint,
    load_bundle,
    load_model,
    save_bundle,
    save_model,
)
from triplet_fashion.storage import keras2
from triplet_fashion.storage.keras2 import Keras2Reader
from triplet_fashion.storage.untrusted import build_network, check_class

rng = np.random.default_rng(0)
x = rng.integers(0, 256, (2, 32, 32, 3)).astype('uint8')


def run(m):
    return m.predict([x] * 3 if len(m.inputs) == 3 else x, verbose=0)


@pytest.fixture(scope='module')
def net():
    return base_network((32, 32, 3), 6, backbone='small', hidden=(8,))


def parts(path):
    "Return the parts of a bundle, bytes by name."
    with zipfile.ZipFile(path) as z:
        return {n: z.read(n) for n in z.namelist()}


def put(path, **changed):
    "Write a bundle again with other parts; the name has _ for its dot, None leaves a part out."
    changed = {k.replace('_json', '.json').replace('_npz', '.npz'): v for k, v in changed.items()}
    with_changes = parts(path) | changed
    with zipfile.ZipFile(path, 'w') as z:
        for name, data in with_changes.items():
            if data is not None:
                z.writestr(name, data)


def manifest_of(path):
    return json.loads(parts(path)['manifest.json'])


def resign(path, drop=(), **changes):
    "Change the manifest and put its checksum right again, as one who means it would."
    d = {k: v for k, v in (manifest_of(path) | changes).items() if k not in ('digest', *drop)}
    text = json.dumps(d, indent=1, ensure_ascii=False)
    d['digest'] = hashlib.sha256(text.encode()).hexdigest()
    put(path, manifest_json=json.dumps(d))


def with_loss(model):
    compile_triplet(model)
    model.fit([x] * 3, np.zeros(2), verbose=0)
    return model


@pytest.mark.parametrize(
    'name', ['w.h5', 'w.weights.h5', 'w.hdf5', '000001-1.0883.h5', '가중치 (1).h5']
)
def test_any_weights_name(net, tmp_path, name):
    save_model(net, tmp_path / 'net.json', tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(['net.json', name])
    np.testing.assert_array_equal(
        run(load_model(str(tmp_path / 'net.json'), str(tmp_path / name))), run(net)
    )


@pytest.mark.parametrize('joint', [True, False])
@pytest.mark.parametrize('compiled', [True, False])
def test_three_inputs(net, tmp_path, joint, compiled):
    model = triplet_model(net, joint)
    if compiled:
        with_loss(model)
    save_model(model, tmp_path / 'm.json', tmp_path / 'm.h5')
    back = load_model(tmp_path / 'm.json', tmp_path / 'm.h5')
    np.testing.assert_array_equal(run(back), run(model))
    assert not back.compiled and 'compile_config' not in (tmp_path / 'm.json').read_text()
    assert [i.name for i in back.inputs] == ['anchor', 'positive', 'negative']
    compile_triplet(back).fit([x] * 3, np.zeros(2), verbose=0)  # and it goes on training


@pytest.mark.parametrize(
    'kw',
    [
        dict(backbone='small', activation='l2', dropout=0.3),
        dict(backbone='MobileNetV2', weights=None, alpha=0.35),
        dict(backbone='ResNet50', weights=None, rescale='original', trainable=0.5),
    ],
)
def test_base_networks(tmp_path, kw):
    net = base_network((32, 32, 3), 6, hidden=(8,), **kw)
    save_model(net, tmp_path / 'n.json', tmp_path / 'n.h5')
    back = load_model(tmp_path / 'n.json', tmp_path / 'n.h5')
    np.testing.assert_array_equal(run(back), run(net))
    assert len(back.trainable_weights) == len(net.trainable_weights)
    head_of(back)


def test_user_backbone(lite0, tmp_path):
    net = base_network((64, 64, 3), 6, backbone=lite0, hidden=())
    y = rng.integers(0, 256, (2, 64, 64, 3)).astype('uint8')
    back, meta = load_bundle(save_bundle(tmp_path / 'b', net))
    np.testing.assert_array_equal(back.predict(y, verbose=0), net.predict(y, verbose=0))
    assert meta == {}


def test_plain_keras_reads_it(net, tmp_path):
    save_model(net, tmp_path / 'n.json', tmp_path / 'n.weights.h5')
    back = keras.models.model_from_json((tmp_path / 'n.json').read_text())
    back.load_weights(tmp_path / 'n.weights.h5')
    np.testing.assert_array_equal(run(back), run(net))


def keras_2_weights(net, path):
    "The layout of Keras 2's weight files, written by hand."
    with h5py.File(path, 'w') as f:
        f.attrs['layer_names'], f.attrs['keras_version'] = (
            [l.name.encode() for l in net.layers],
            b'2.2.4-tf',
        )
        for l in net.layers:
            g = f.create_group(l.name)
            ws = l.trainable_weights + l.non_trainable_weights
            g.attrs['weight_names'] = [f'{l.name}/w{i}:0'.encode() for i in range(len(ws))]
            for i, w in enumerate(ws):
                g[f'{l.name}/w{i}:0'] = w.numpy()


def test_keras_2_weights_into_our_architecture(net, tmp_path):
    save_model(net, tmp_path / 'n.json', tmp_path / 'n.h5')
    keras_2_weights(net, tmp_path / 'old.h5')
    np.testing.assert_allclose(
        run(load_model(tmp_path / 'n.json', tmp_path / 'old.h5')), run(net), atol=1e-6
    )


# the original notebook's own files: what Keras 2 wrote, and what it answered

OLD = Path(__file__).parent / 'referees' / 'keras2_nets'
answers = np.load(OLD / 'answers.npz')


def same(net, y, tol=1e-5):
    "A base or three-input network answers as Keras 2 did."
    x, n = answers['x'], len(net.inputs)
    np.testing.assert_allclose(
        net.predict([x] * n if n > 1 else x, verbose=0), np.concatenate([y] * n, -1), atol=tol
    )


@pytest.mark.parametrize(
    'json_name,h5_name,y',
    [
        ('base.json', 'base.h5', 'y'),
        ('model.json', 'model.h5', 'y'),
        ('base_2_1.json', 'base.h5', 'y'),
        ('model_2_1.json', 'model.h5', 'y'),
        ('model.json', 'whole.h5', 'after'),
        ('model_2_1.json', 'whole.h5', 'after'),
        ('whole.h5', None, 'after'),
        (None, 'whole.h5', 'after'),
    ],
)
def test_files_of_keras_2(json_name, h5_name, y, tmp_path):
    net = load_model(json_name and OLD / json_name, h5_name and OLD / h5_name)
    same(net, answers[y])
    assert not net.compiled and [l.name for l in net.layers][-1] in ('dense_1', 'concatenate')
    save_model(
        net, tmp_path / 'new.json', tmp_path / 'new.h5'
    )  # and from here on it is a network like any other
    same(load_model(tmp_path / 'new.json', tmp_path / 'new.h5'), answers[y])


def test_the_old_base_trains_on():
    net = load_model(OLD / 'base_2_1.json', OLD / 'base.h5')
    model = compile_triplet(triplet_model(net))
    before = net.get_weights()[0].copy()
    model.fit([answers['x'], answers['x'][::-1], answers['x'][[1, 2, 0]]], np.zeros(3), verbose=0)
    assert np.abs(net.get_weights()[0] - before).max() > 0


def old_json(layers_, name='net', cls='Sequential'):
    return dict(
        class_name=cls,
        config=dict(name=name, layers=layers_),
        keras_version='2.2.4-tf',
        backend='tensorflow',
    )


@pytest.mark.parametrize(
    'layer,words',
    [
        (
            dict(class_name='Lambda', config=dict(name='cut', function=['code', None, None])),
            'Lambda layer .cut., which holds code',
        ),
        (dict(class_name='Attention9', config=dict(name='a')), 'class Attention9'),
        (
            dict(
                class_name='TFOpLambda',
                config=dict(name='tf.io.write_file', function='io.write_file'),
            ),
            'TFOpLambda .io.write_file',
        ),
        (
            dict(class_name='BatchNormalization', config=dict(name='bn', virtual_batch_size=4)),
            'bn .BatchNormalization. has virtual_batch_size=4',
        ),
        (
            dict(
                class_name='Dense',
                config=dict(
                    name='d', units=3, activation=dict(class_name='function', config='os.system')
                ),
            ),
            'layer d has an activation of its own',
        ),
        (
            dict(
                class_name='Dense',
                config=dict(
                    name='d', units=3, kernel_initializer=dict(class_name='serialize', config={})
                ),
            ),
            'uses serialize',
        ),
        (dict(class_name='Dense', config=3), 'without class or config'),
        (
            dict(
                class_name='Dense',
                config=dict(name='d', units=10**12, batch_input_shape=[None, 10**9]),
            ),
            'wants|more than|describe',
        ),
    ],
)
def test_old_layers_that_are_refused(layer, words, tmp_path):
    (tmp_path / 'old.json').write_text(
        json.dumps(
            old_json(
                [
                    dict(
                        class_name='InputLayer',
                        config=dict(batch_input_shape=[None, 4], dtype='float32', name='i'),
                    ),
                    layer,
                ]
            )
        )
    )
    with pytest.raises(ValueError, match=f'old.json.*({words})'):
        load_model(tmp_path / 'old.json', OLD / 'base.h5')


def test_weights_of_another_old_network(tmp_path):
    with pytest.raises(ValueError, match='model.h5 are not those of sequential'):
        load_model(OLD / 'base.json', OLD / 'model.h5')
    with pytest.raises(ValueError, match='base.h5 holds weights only: give the JSON'):
        load_model(OLD / 'base.h5')
    text = (OLD / 'base.json').read_text().replace('"units": 5', '"units": 7')
    (tmp_path / 'b.json').write_text(text)
    with pytest.raises(ValueError, match='base.h5 are not those'):
        load_model(tmp_path / 'b.json', OLD / 'base.h5')


def referee():
    return pytest.importorskip('tf_keras', reason='needs tf_keras, Keras 2 as a package')


def against_keras_2(
    k,
    net,
    folder,
    n=1,
    tol=1e-5,
    forms=(('n.json', 'n.h5'), ('n21.json', 'n.h5'), ('w.h5',), ('n.json', 'w.h5')),
):
    "Write a Keras 2 network in every form and compare what opens."
    sys.path.insert(0, str(OLD.parent))
    import keras2_nets

    x = np.random.default_rng(1).uniform(0, 255, (2, *net.inputs[0].shape[1:])).astype('float32')
    y = net.predict([x] * n if n > 1 else x, verbose=0)
    keras2_nets.write(net, folder, 'n')
    net.save(folder / 'w.h5')
    (folder / 'n21.json').write_text(keras2_nets.as_in_2_1(net.to_json()))
    for files in forms:
        back = load_model(*(folder / f for f in files))
        np.testing.assert_allclose(
            back.predict([x] * n if n > 1 else x, verbose=0), y, atol=tol, err_msg=str(files)
        )
    return back


def test_resnet50_of_the_original_notebook(tmp_path):
    "The original notebook's networks at a small size, written by Keras 2 itself."
    k = referee()
    net = k.Sequential(
        [
            k.applications.ResNet50(
                include_top=False, weights=None, pooling='avg', input_shape=(32, 32, 3)
            ),
            k.layers.Dense(1024, activation='relu'),
            k.layers.Dense(128, activation='sigmoid'),
        ]
    )
    inputs = [k.Input((32, 32, 3), name=n) for n in ('anchor', 'positive', 'negative')]
    back = against_keras_2(
        k,
        k.Model(inputs, k.layers.concatenate([net(i) for i in inputs])),
        tmp_path,
        3,
        forms=(('n21.json', 'n.h5'), ('w.h5',)),
    )
    assert back.count_params() == 25_817_088


@pytest.mark.parametrize('freeze,activation', [(0, 'tanh'), (7, 'linear'), (99, 'softmax')])
def test_old_bases(tmp_path, freeze, activation):
    "Backbones frozen in part: Keras 2 writes the weights of those in another order."
    k = referee()
    sys.path.insert(0, str(OLD.parent))
    import keras2_nets

    net = keras2_nets.base(
        (20, 24, 3), 7, activation, keras2_nets.resnet((20, 24, 3), freeze=freeze), 9
    )
    back = against_keras_2(k, keras2_nets.shaken(net, np.random.default_rng(2)), tmp_path)
    assert len(back.trainable_weights) == len(net.trainable_weights)


def test_old_functional_idioms(tmp_path):
    "training=False, x*2 + 1 between layers, a layer called twice, an output that is not used."
    k = referee()
    sys.path.insert(0, str(OLD.parent))
    import keras2_nets

    i = k.Input((16, 16, 3), name='photo')
    x = keras2_nets.shaken(keras2_nets.resnet((16, 16, 3)), np.random.default_rng(3))(
        k.layers.Rescaling(1 / 127.5, -1)(i) * 2.0 + 1.0, training=False
    )
    twice = k.layers.Dense(6, activation='relu', name='a/b')
    x = k.layers.LeakyReLU(0.2)(k.layers.Concatenate()([twice(x), twice(twice(x))]))
    against_keras_2(k, k.Model(i, k.layers.Dense(3)(k.layers.Dropout(0.5)(x))), tmp_path)


OLD_LAYERS = dict(
    Dense=dict(units=3),
    Conv2D=dict(filters=3, kernel_size=3, padding='same'),
    DepthwiseConv2D=dict(kernel_size=3, depth_multiplier=2),
    SeparableConv2D=dict(filters=3, kernel_size=3),
    BatchNormalization={},
    LayerNormalization={},
    UnitNormalization={},
    Normalization={},
    Rescaling=dict(scale=0.5, offset=0.1),
    Activation=dict(activation='tanh'),
    ReLU=dict(max_value=1.0, negative_slope=0.1, threshold=0.2),
    LeakyReLU=dict(alpha=0.2),
    PReLU=dict(shared_axes=[1, 2]),
    ELU=dict(alpha=0.7),
    Softmax={},
    ZeroPadding2D=dict(padding=((1, 0), (2, 1))),
    Cropping2D=dict(cropping=1),
    UpSampling2D=dict(interpolation='bilinear'),
    MaxPooling2D=dict(pool_size=3, strides=2, padding='same'),
    AveragePooling2D={},
    GlobalAveragePooling2D=dict(keepdims=True),
    GlobalMaxPooling2D={},
    Flatten={},
    Reshape=dict(target_shape=(2, -1)),
    Permute=dict(dims=(2, 3, 1)),
    RepeatVector=dict(n=2),
    Dropout=dict(rate=0.3),
    SpatialDropout2D=dict(rate=0.3),
    GaussianNoise=dict(stddev=0.1),
    GaussianDropout=dict(rate=0.1),
    ActivityRegularization=dict(l2=0.1),
    Dot=dict(axes=-1),
)  # those that are not here take two inputs and no argument


@pytest.mark.parametrize('name', sorted(keras2.KERAS_2_LAYERS))
def test_every_layer_that_is_let_in(name, tmp_path):
    "Each layer on the list, written by Keras 2 and opened here, answers as it did there."
    k = referee()
    r, shape = np.random.default_rng(5), (5,) if name == 'RepeatVector' else (6, 6, 2)
    i, two = (
        k.Input(shape),
        name
        in ('Add', 'Subtract', 'Multiply', 'Average', 'Maximum', 'Minimum', 'Concatenate', 'Dot'),
    )
    layer = getattr(k.layers, name)(**OLD_LAYERS.get(name, {}))
    o = layer([k.layers.Rescaling(2.0)(i), k.layers.Rescaling(-0.5, 0.3)(i)] if two else i)
    net = k.Model(i, o)
    if net.weights:
        net.set_weights([(r.uniform(0.5, 2, w.shape)).astype(w.dtype) for w in net.get_weights()])
    if name == 'Normalization':
        layer.finalize_state()
    sys.path.insert(0, str(OLD.parent))
    import keras2_nets

    x = r.normal(size=(3, *shape)).astype('float32')
    keras2_nets.write(net, tmp_path, 'n')
    if net.weights:
        back = load_model(tmp_path / 'n.json', tmp_path / 'n.h5')
    else:
        back = Keras2Reader('n.json').build(json.loads((tmp_path / 'n.json').read_text()))
    np.testing.assert_allclose(np.asarray(back(x)), np.asarray(net(x)), atol=1e-5)


def test_every_activation(tmp_path):
    "All functions of Keras 2; one of them, hard_sigmoid, means another function today."
    k = referee()
    names = [
        n
        for n in dir(k.activations)
        if n[0] != '_'
        and n not in ('get', 'serialize', 'deserialize')
        and callable(getattr(k.activations, n))
    ]
    assert {'relu', 'sigmoid', 'hard_sigmoid', 'gelu', 'softmax'} <= set(names)
    i = k.Input((3, 3, 2))
    net = k.Model(
        i,
        [f for n in names for f in (k.layers.Dense(4, activation=n)(i), k.layers.Activation(n)(i))],
    )
    sys.path.insert(0, str(OLD.parent))
    import keras2_nets

    keras2_nets.write(keras2_nets.shaken(net, np.random.default_rng(0)), tmp_path, 'n')
    x = np.random.default_rng(1).normal(size=(20, 3, 3, 2)).astype('float32') * 3
    back = load_model(tmp_path / 'n.json', tmp_path / 'n.h5')
    for n, a, b in zip(np.repeat(names, 2), net(x), back(x)):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), atol=1e-5, err_msg=n)
    save_model(back, tmp_path / 'new.json', tmp_path / 'new.h5')
    for a, b in zip(back(x), load_model(tmp_path / 'new.json', tmp_path / 'new.h5')(x)):
        np.testing.assert_array_equal(a, b)


# faults


def test_missing_files(net, tmp_path):
    save_model(net, tmp_path / 'n.json', tmp_path / 'n.h5')
    with pytest.raises(FileNotFoundError, match='gone.json'):
        load_model(tmp_path / 'gone.json', tmp_path / 'n.h5')
    with pytest.raises(FileNotFoundError, match='gone.h5'):
        load_model(tmp_path / 'n.json', tmp_path / 'gone.h5')
    with pytest.raises(FileNotFoundError, match='no file'):
        load_bundle(tmp_path / 'gone')
    put(save_bundle(tmp_path / 'b', net), manifest_json=None)
    with pytest.raises(FileNotFoundError, match='b is not a bundle'):
        load_bundle(tmp_path / 'b')


@pytest.mark.parametrize('content', [b'', b'{', b'[1, 2', b'\xff\xfe', b'not json'])
def test_broken_json(net, tmp_path, content):
    (tmp_path / 'bad.json').write_bytes(content)
    with pytest.raises(ValueError, match='bad.json is no JSON'):
        load_model(tmp_path / 'bad.json', 'x.h5')


@pytest.mark.parametrize(
    'content',
    [
        '{}',
        '[]',
        '3',
        '"x"',
        'null',
        '{"module": "keras.layers", "class_name": "Dense", "config": {"units": 3}, '
        '"registered_name": null}',
    ],
)
def test_json_of_something_else(tmp_path, content):
    (tmp_path / 'odd.json').write_text(content)
    with pytest.raises(ValueError, match='odd.json describes|odd.json does not describe'):
        load_model(tmp_path / 'odd.json', 'x.h5')


@pytest.mark.parametrize('keep', [0, 100, 0.5, 0.99])
def test_truncated_weights(net, tmp_path, keep):
    save_model(net, tmp_path / 'n.json', tmp_path / 'n.h5')
    data = (tmp_path / 'n.h5').read_bytes()
    (tmp_path / 'n.h5').write_bytes(
        data[: keep if keep >= 1 or keep == 0 else int(len(data) * keep)]
    )
    with pytest.raises(ValueError, match='n.h5'):
        load_model(tmp_path / 'n.json', tmp_path / 'n.h5')


@pytest.mark.parametrize(
    'other', [dict(hidden=()), dict(hidden=(8, 8)), dict(hidden=(9,)), dict(out_dims=7)]
)
def test_weights_of_another_network(net, tmp_path, other):
    save_model(net, tmp_path / 'n.json', tmp_path / 'n.h5')
    save_model(
        base_network(
            **{'in_dims': (32, 32, 3), 'out_dims': 6, 'backbone': 'small', 'hidden': (8,), **other}
        ),
        tmp_path / 'o.json',
        tmp_path / 'o.h5',
    )
    with pytest.raises(ValueError, match='o.h5 are not those of base_network'):
        load_model(tmp_path / 'n.json', tmp_path / 'o.h5')


def test_unbuilt(tmp_path):
    with pytest.raises(ValueError, match='has no weights yet'):
        save_model(keras.Sequential([layers.Dense(2)]), tmp_path / 'a', tmp_path / 'b')
    assert not list(tmp_path.iterdir())


@keras.saving.register_keras_serializable(package='of_a_test')
class Known(layers.Layer):
    def call(self, x):
        return 2 * x


class Unknown(layers.Layer):
    def call(self, x):
        return 3 * x


def test_own_layers(tmp_path):
    def backbone(layer):
        return keras.Sequential(
            [keras.Input((32, 32, 3)), layers.GlobalAveragePooling2D(), layer()]
        )

    for layer in Known, Unknown:
        net = base_network((32, 32, 3), 6, backbone=backbone(layer), hidden=())
        save_model(net, tmp_path / 'n.json', tmp_path / 'n.h5')
        if layer is Unknown:
            with pytest.raises(ValueError, match='uses Unknown, which is not known here'):
                load_model(tmp_path / 'n.json', tmp_path / 'n.h5')
        back = load_model(tmp_path / 'n.json', tmp_path / 'n.h5', {'Unknown': Unknown})
        np.testing.assert_array_equal(run(back), run(net))


def test_no_code_is_run(tmp_path):
    net = keras.Sequential([keras.Input((32, 32, 3)), layers.Lambda(lambda t: t), layers.Flatten()])
    with pytest.warns(UserWarning, match='holds code'):
        save_model(net, tmp_path / 'l.json', tmp_path / 'l.h5')
    with pytest.raises(ValueError, match='l.json uses the layer Lambda'):
        load_model(tmp_path / 'l.json', tmp_path / 'l.h5')
    for module, name in (
        ('os', 'system'),
        ('builtins', 'exec'),
        ('subprocess', 'run'),
        ('keras.utils', 'get_file'),
    ):
        target = tmp_path / 'done'
        (tmp_path / 'evil.json').write_text(
            json.dumps(
                dict(module=module, class_name=name, config=f'touch {target}', registered_name=name)
            )
        )
        with pytest.raises(ValueError, match='evil.json'):
            load_model(tmp_path / 'evil.json', tmp_path / 'l.h5')
        assert not target.exists()


# crashes


class Killed(BaseException):
    pass


def kill_at(monkeypatch, k):
    "The k-th rename does not happen, and nothing after it: what a killed process leaves."
    real, count, dead = os.replace, [0], [False]

    def replace(*args):
        count[0] += 1
        if count[0] >= k:
            dead[0] = True
        if dead[0]:
            raise Killed
        real(*args)

    rmtree, unlink = shutil.rmtree, Path.unlink
    monkeypatch.setattr(os, 'replace', replace)
    monkeypatch.setattr(shutil, 'rmtree', lambda *a, **kw: None if dead[0] else rmtree(*a, **kw))
    monkeypatch.setattr(Path, 'unlink', lambda *a, **kw: None if dead[0] else unlink(*a, **kw))


@pytest.mark.parametrize('k', [1, 2])
def test_kill_in_two_files(net, tmp_path, monkeypatch, k):
    a, b = tmp_path / 'n.json', tmp_path / 'n.h5'
    save_model(net, a, b)
    new = base_network((32, 32, 3), 6, backbone='small', hidden=(8,))
    with monkeypatch.context() as m, pytest.raises(Killed):
        kill_at(m, k)
        save_model(new, a, b)
    np.testing.assert_array_equal(run(load_model(a, b)), run(net if k == 1 else new))
    save_model(new, a, b)  # what the crash left is in nobody's way
    np.testing.assert_array_equal(run(load_model(a, b)), run(new))


@pytest.mark.parametrize('k', [1, 2, 3, 4])
def test_kill_in_bundle(net, tmp_path, monkeypatch, k):
    path, last = save_bundle(tmp_path / 'b', net, note='old'), 4  # two parts, then the bundle
    new = base_network((32, 32, 3), 6, backbone='small', hidden=(8,))
    with monkeypatch.context() as m:
        kill_at(m, k)
        if k < last:
            with pytest.raises(Killed):
                save_bundle(path, new, note='new')
        else:
            save_bundle(path, new, note='new')
    back, meta = load_bundle(path)
    assert meta == {'note': 'old' if k < last else 'new'}
    np.testing.assert_array_equal(run(back), run(net if k < last else new))
    save_bundle(path, new, note='again')
    assert load_bundle(path)[1] == {'note': 'again'}


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs processes that fork')
def test_killed_at_any_moment(fresh_python, tmp_path):
    "Processes that save without end are killed: a whole bundle every time, and no leftovers."
    code = '''
import itertools, os, random, signal, sys, time, keras
from triplet_fashion.persistence import bundle_info, save_bundle
net = keras.Sequential([keras.Input((40,)), keras.layers.Dense(40)], name='dense')
r, before = random.Random(0), 0
path = save_bundle(os.path.join(sys.argv[1], 'b.tfz'), net, note=0)
begun = time.monotonic()
save_bundle(path, net, note=0)
took = time.monotonic() - begun
for trial in range(24):
    pid = os.fork()
    if not pid:
        for i in itertools.count(before + 1): save_bundle(path, net, note=i)
    time.sleep(r.uniform(0, 4*took))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    now = bundle_info(path)['meta']['note']
    assert now >= before, (now, before)
    before = now
assert before > 0, before
save_bundle(path, net)
assert os.listdir(sys.argv[1]) == ['b.tfz'], os.listdir(sys.argv[1])
'''
    done = fresh_python.run(code, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_readers_during_saves(tmp_path):
    "Whoever reads while a bundle is saved over and over gets one of its states, whole."
    nets = [
        keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(
                    2, kernel_initializer='zeros', bias_initializer=keras.initializers.Constant(i)
                ),
            ],
            name='dense',
        )
        for i in range(2)
    ]
    path, stop, seen, wrong = (
        save_bundle(tmp_path / 'b.tfz', nets[0], note=0),
        threading.Event(),
        set(),
        [],
    )

    def read(load):
        while not stop.is_set():
            try:
                if load:
                    net, meta = load_bundle(path)
                    seen.add((meta['note'], float(net.get_weights()[1][0])))
                else:
                    bundle_info(path)
            except Exception as e:
                wrong.append(e)
            time.sleep(0.001)

    readers = [threading.Thread(target=read, args=(load,)) for load in (False, False, True)]
    for t in readers:
        t.start()
    try:
        for i in range(1, 31):
            save_bundle(path, nets[i % 2], note=i % 2)
            time.sleep(0.01)
    finally:
        stop.set()
        for t in readers:
            t.join()
    assert not wrong, wrong[:3]
    assert seen <= {(0, 0.0), (1, 1.0)} and seen
    assert [p.name for p in tmp_path.iterdir()] == ['b.tfz']


def test_links_stay_links(net, tmp_path):
    "A bundle is saved where a link leads, twice."
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'run').mkdir()
    for name in 'b', 'b.tfz':
        link = tmp_path / 'run' / name
        link.symlink_to(tmp_path / 'disk' / name)
        for note in 1, 2:
            save_bundle(link, net, note=note)
            assert link.is_symlink() and load_bundle(link)[1] == load_bundle(
                tmp_path / 'disk' / name
            )[1] == {'note': note}
    assert (
        sorted(p.name for p in (tmp_path / 'run').iterdir())
        == sorted(p.name for p in (tmp_path / 'disk').iterdir())
        == ['b', 'b.tfz']
    )
    (tmp_path / 'link.h5').symlink_to(tmp_path / 'disk' / 'w.h5')
    save_model(net, tmp_path / 'n.json', tmp_path / 'link.h5')
    assert (tmp_path / 'link.h5').is_symlink() and (tmp_path / 'disk' / 'w.h5').is_file()


def test_old_leftovers_are_swept_and_strangers_files_are_not(net, tmp_path):
    tag = '0123abcd-1-0123abcd.part'
    mine, others = (
        [f'.n.json.{tag}', f'.n.h5.{tag}.weights.h5'],
        ['.n.json.swp', '.n.json.bak.part', f'n.json.{tag}'],
    )
    for n in mine + others:
        (tmp_path / n).write_text('x')
        os.utime(tmp_path / n, (0, 0))
    (tmp_path / f'.n.json.89abcdef-{tag[9:]}').write_text(
        'of a save on another machine that is going on'
    )
    save_model(net, tmp_path / 'n.json', tmp_path / 'n.h5')
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*others, f'.n.json.89abcdef-{tag[9:]}', 'n.json', 'n.h5']
    )


def test_two_names_for_two_files(net, tmp_path):
    with pytest.raises(ValueError, match='is the name of both files'):
        save_model(net, tmp_path / 'x', tmp_path / '.' / 'x')
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == 'win32', reason='needs the resource module')
def test_full_disk(fresh_python, tmp_path):
    "A process whose writes fail after so many bytes: the old bundle stays, nothing beside it."
    code = '''
import os, resource, signal, sys, keras
from triplet_fashion.persistence import load_bundle, save_bundle
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
net = keras.Sequential([keras.Input((100,)), keras.layers.Dense(100)], name='dense')
for name in 'b', 'b.tfz':
    path = save_bundle(os.path.join(sys.argv[1], name), net, note='old')
    for n in 0, 500, 3000, 20_000, 40_000, 48_000:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))
        try: save_bundle(path, net, note='new')
        except OSError: pass
        else: sys.exit(f'{path} was written with room for {n} bytes')
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,)*2)
        assert load_bundle(path)[1] == {'note': 'old'}, n
    there = sorted(os.listdir(sys.argv[1]))
    assert there == ['b', 'b.tfz'][:1 + bool(path.suffix)], there
    save_bundle(path, net, note='new')
    assert load_bundle(path)[1] == {'note': 'new'}
'''
    done = fresh_python.run(code, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_error_while_saving_leaves_the_old_one(net, tmp_path, monkeypatch):
    folder = save_bundle(tmp_path / 'b', net, note='old')
    with pytest.raises(ValueError, match='figure cannot be kept as JSON'):
        save_bundle(folder, net, figure=object())
    with pytest.raises(ValueError, match='loss cannot be kept as JSON'):
        save_bundle(folder, net, loss=float('nan'))

    def full(*a):
        raise OSError('No space left on device')

    monkeypatch.setattr(type(net), 'save_weights', full)
    with pytest.raises(OSError, match="the disk is full.*Make room"):
        save_bundle(folder, net)
    assert load_bundle(folder)[1] == {'note': 'old'} and [p.name for p in tmp_path.iterdir()] == [
        'b'
    ]


# networks that do not fit the form


class Sub(keras.Model):
    def __init__(self):
        super().__init__()
        self.d = layers.Dense(4)

    def call(self, x):
        return self.d(keras.ops.reshape(x, (-1, 3072)))


class Silent(layers.Layer):
    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, x):
        return self.scale(x)


def odd_networks():
    i = keras.Input((32, 32, 3))
    flat = layers.Flatten()(i)
    sub = Sub()
    sub(np.zeros((1, 32, 32, 3), 'float32'))
    return {
        '2 outputs': keras.Model(i, [flat, flat]),
        'does not know its inputs': sub,
        'cannot be saved': keras.Model(i, Silent(lambda z: 2 * z)(flat)),
        '2 inputs': keras.Model(
            [i, j := keras.Input((32, 32, 3))], layers.Flatten()(layers.Add()([i, j]))
        ),
        'the numbers in an embedding are not known': keras.Model(k := keras.Input((None,)), k),
    }


@pytest.mark.parametrize('words', odd_networks())
def test_odd_networks_are_refused_in_words(tmp_path, words):
    with pytest.raises(ValueError, match=words):
        save_bundle(tmp_path / 'b', odd_networks()[words])
    assert not list(tmp_path.iterdir())


def test_a_layer_that_holds_code_is_warned_of(tmp_path):
    i = keras.Input((8, 8, 3))
    net = keras.Model(i, layers.Flatten()(layers.Lambda(lambda z: z / 255, name='by_hand')(i)))
    with pytest.warns(
        UserWarning,
        match=r"the layer by_hand of .* is a Lambda.*_objects=\{'Lambda': keras.layers.Lambda\}",
    ):
        save_bundle(tmp_path / 'b', net)
    with pytest.warns(UserWarning, match='by_hand'):
        save_model(net, tmp_path / 'n.json', tmp_path / 'n.h5')
    for opened in (
        load_bundle(tmp_path / 'b', {'Lambda': layers.Lambda})[0],
        load_model(tmp_path / 'n.json', tmp_path / 'n.h5', {'Lambda': layers.Lambda}),
    ):
        np.testing.assert_array_equal(
            opened(x[:, :8, :8].astype('float32')), net(x[:, :8, :8].astype('float32'))
        )


def test_an_error_tells_versions_that_differ(net, tmp_path, monkeypatch):
    b = save_bundle(
        tmp_path / 'b', keras.Sequential([keras.Input((32, 32, 3)), Unknown(), layers.Flatten()])
    )
    with pytest.raises(ValueError, match='Unknown') as e:
        load_bundle(b)
    assert 'was saved with Keras' not in str(e.value)
    monkeypatch.setattr(keras, '__version__', '99.1')
    with pytest.raises(ValueError, match=r'Unknown.*was saved with Keras 3.*this is Keras 99\.1'):
        load_bundle(b)


def test_no_temporary_folder_is_named(net, tmp_path, monkeypatch):
    path = save_bundle(tmp_path / 'b.tfz', net)
    net.save(tmp_path / 'n.keras')

    def none(*a, **kw):
        raise FileNotFoundError(2, 'No usable temporary directory found')

    monkeypatch.setattr('tempfile.gettempdir', none)
    monkeypatch.setattr('tempfile.tempdir', None)
    for load, file in (load_bundle, path), (load_model, tmp_path / 'n.keras'):
        with pytest.raises(OSError, match=f'{file.name} needs a temporary folder.*TMPDIR'):
            load(file)


# bundle


def test_bundle(net, tmp_path):
    meta = dict(
        class_names=['코트 (A)', 'b'],
        threshold=np.float32(0.25),
        ids=np.arange(3),
        root=Path('x'),
        nested={'a': [1, None, True]},
    )
    path = save_bundle(str(tmp_path / 'run' / 'b'), net, **meta)
    assert sorted(parts(path)) == ['architecture.json', 'manifest.json', 'model.weights.h5']
    back, got = load_bundle(path)
    np.testing.assert_array_equal(run(back), run(net))
    assert got == dict(
        class_names=['코트 (A)', 'b'],
        threshold=0.25,
        ids=[0, 1, 2],
        root='x',
        nested={'a': [1, None, True]},
    )
    d = manifest_of(path)
    assert (
        d['input_shape'] == [[32, 32, 3]]
        and d['out_dims'] == 6
        and set(d['files']) == {'architecture.json', 'model.weights.h5'}
    )


def test_bundle_moves(net, tmp_path):
    shutil.move(save_bundle(tmp_path / 'a', net), tmp_path / 'c')
    np.testing.assert_array_equal(run(load_bundle(tmp_path / 'c')[0]), run(net))


@pytest.mark.parametrize('file', ['architecture.json', 'model.weights.h5'])
def test_one_changed_bit_of_a_part(net, tmp_path, file):
    path = save_bundle(tmp_path / 'b', net)
    data = bytearray(parts(path)[file])
    data[len(data) // 2] ^= 1
    put(path, **{file: bytes(data)})
    with pytest.raises(ValueError, match=f'b: {file} is not the file that was saved'):
        load_bundle(path)
    put(path, **{file: None})
    with pytest.raises(FileNotFoundError, match=f'b: {file} is missing'):
        load_bundle(path)


def test_one_changed_bit_of_the_file(net, tmp_path):
    "A bit of a part is an error; one of the archive's own, such as a date, an error or no matter."
    path = save_bundle(tmp_path / 'b', net, note='as saved')
    data, want = path.read_bytes(), run(net)
    with zipfile.ZipFile(path) as z:
        starts = sorted(i.header_offset for i in z.infolist())
    own = {at for start in (*starts, z.start_dir) for at in range(start, start + 64)}
    for at in sorted(
        {*range(0, len(data), len(data) // 40), *starts, z.start_dir + 10, len(data) - 1}
    ):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            found, meta = load_bundle(path)
        except (ValueError, FileNotFoundError) as e:
            assert str(path) in str(e)
            continue
        assert at in own or at > z.start_dir, (
            f'byte {at} of {len(data)} is changed, and nobody says so'
        )
        np.testing.assert_array_equal(run(found), want)
        assert meta == {'note': 'as saved'}


@pytest.mark.parametrize(
    'manifest,words',
    [
        ('{', 'manifest.json is no JSON'),
        ('[]', 'not the manifest'),
        ('{"format": "x"}', 'not the manifest'),
        ('{"format": "triplet_fashion bundle", "version": 3}', 'version 3'),
        ('{"format": "triplet_fashion bundle", "version": 2}', 'not the manifest that was saved'),
        ('{"format": "triplet_fashion bundle", "version": 1}', 'not the file that was saved'),
    ],
)
def test_bad_manifest(net, tmp_path, manifest, words):
    path = save_bundle(tmp_path / 'b', net)
    put(path, manifest_json=manifest)
    with pytest.raises(ValueError, match=words):
        load_bundle(path)


V1 = Path(__file__).parent / 'fixtures' / 'bundle_v1.tfz'


def test_a_bundle_of_version_1_opens():
    "Written by an earlier version of the package, with what it answered."
    net, meta = load_bundle(V1)
    y = np.load(V1.with_suffix('.npy'))
    x = np.random.default_rng(0).integers(0, 256, (len(y), *net.input_shape[1:])).astype('uint8')
    np.testing.assert_allclose(net.predict(x, verbose=0), y, atol=1e-6)
    assert meta['class_names'] == ['코트 (A)', 'boot'] and net.threshold['interval'] == [
        0.14104018360376358,
        0.3106345981359482,
    ]
    assert bundle_info(V1)['version'] == 1


def test_what_a_bundle_says_of_its_making(net, drawn, tmp_path):
    "Versions, the data, its class names; a name that is no UTF-8 is kept as well as JSON can."
    import platform, tensorflow

    d = bundle_info(
        save_bundle(
            tmp_path / 'b', net, data=drawn, odd=os.fsdecode(b'a\xff'), history={'loss': [1.0]}
        )
    )
    assert (
        d['python'] == platform.python_version()
        and d['tensorflow'] == tensorflow.__version__
        and d['numpy'] == np.__version__
        and d['keras'] == keras.__version__
    )
    assert d['data'] == fingerprint(drawn) and d['meta'] == dict(
        class_names=list(drawn.class_names), odd='a?', history={'loss': [1.0]}
    )
    assert load_bundle(save_bundle(tmp_path / 'c', net, data=drawn, class_names=['x']))[1][
        'class_names'
    ] == ['x']


def test_an_index_that_is_none_or_of_another_network(net, tmp_path):
    from triplet_fashion.search import ImageIndex

    (tmp_path / 'text.npz').write_text('not an index')
    np.savez(
        tmp_path / 'other.npz', embeddings=np.zeros((2, 6), 'float32'), meta=np.zeros(60, 'uint8')
    )
    np.savez(tmp_path / 'bare.npz', np.zeros(3))
    for name in 'text', 'other', 'bare':
        with pytest.raises(ValueError, match=f'{name}.npz is not the file of an ImageIndex'):
            save_bundle(tmp_path / 'b', net, index=tmp_path / f'{name}.npz')
    wide = ImageIndex(np.eye(7), list('abcdefg'))
    with pytest.raises(ValueError, match=r'shape \(7, 7\), the network gives 6'):
        save_bundle(tmp_path / 'b', net, index=wide)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['bare.npz', 'other.npz', 'text.npz']
    save_bundle(
        tmp_path / 'b', triplet_model(net), index=ImageIndex(np.eye(6), list('abcdef'))
    )  # of one photo, whatever the net
    for content, words in (
        (wide.save(tmp_path / 'w.npz').read_bytes(), 'index.npz holds embeddings of shape'),
        (b'text', 'index.npz is not the file'),
    ):
        put(tmp_path / 'b', index_npz=content)
        said = dict(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        resign(tmp_path / 'b', files=manifest_of(tmp_path / 'b')['files'] | {'index.npz': said})
        with pytest.raises(ValueError, match=words):
            load_bundle(tmp_path / 'b')


@pytest.mark.parametrize(
    'change,words',
    [
        (dict(N=7), 'says N 7, the network has 6'),
        (dict(out_dims=5), 'says out_dims 5'),
        (dict(input_shape=[[32, 33, 3]]), 'says input_shape .*33'),
        (dict(preprocessing=[]), 'says preprocessing'),
        (
            dict(preprocessing=[['InputScaling', {'mode': 'caffe'}]]),
            'says preprocessing .*caffe.*has .*tf',
        ),
        (dict(input_dtype=['uint8']), 'says input_dtype'),
    ],
)
def test_a_manifest_of_another_network(net, tmp_path, change, words):
    path = save_bundle(tmp_path / 'b', net)
    resign(path, **change)
    with pytest.raises(ValueError, match=f'b: the manifest {words}'):
        load_bundle(path)
    ((key, value),) = change.items()
    resign(path, drop=[key])
    with pytest.raises(ValueError, match=f'the manifest says {key} None'):
        load_bundle(path)  # left out is no way round


@pytest.mark.parametrize(
    'file', ['architecture.json', 'model.weights.h5', 'manifest.json', 'index.npz', 'b.tfz']
)
@pytest.mark.parametrize('keep', [0, 0.3, -1])
def test_truncated_bundles(net, tmp_path, file, keep):
    from triplet_fashion.search import ImageIndex

    path = save_bundle(tmp_path / 'b.tfz', net, index=ImageIndex(np.eye(6), list('abcdef')))

    def cut(data):
        return data[: int(keep * len(data)) if keep >= 0 else keep]

    if file == 'b.tfz':
        path.write_bytes(cut(path.read_bytes()))
    else:
        put(path, **{file: cut(parts(path)[file])})
    for f in bundle_info, load_bundle:
        with pytest.raises(
            ValueError,
            match=f'{file}.*(is not the file that was saved|is no JSON|is no zip archive)',
        ):
            f(path)


def test_one_file_holds_everything(net, tmp_path):
    "A .tfz with index, data and threshold opens elsewhere; the index finds what it found."
    from triplet_fashion.verification import fit_threshold
    from triplet_fashion.search import ImageIndex

    r, products = np.random.default_rng(0), np.repeat(np.arange(8), 4)
    e = r.normal(size=(8, 6))[products] + r.normal(size=(32, 6)) * 0.3
    index, threshold = (
        ImageIndex(e, [f'{p}/{i}.jpg' for i, p in enumerate(products)], products),
        fit_threshold(e, products, fmr='eer'),
    )
    save_bundle(
        tmp_path / 'b.tfz',
        net,
        index,
        data=index.ids,
        threshold=threshold,
        class_names=list('abcdefgh'),
    )
    shutil.move(tmp_path / 'b.tfz', tmp_path / 'c.tfz')
    back, meta = load_bundle(tmp_path / 'c.tfz', index=tmp_path / 'i.npz')
    np.testing.assert_array_equal(run(back), run(net))
    same = ImageIndex.load(tmp_path / 'i.npz')
    assert same.ids == index.ids and [h.id for h in same.search(e[3], k=9)] == [
        h.id for h in index.search(e[3], k=9)
    ]
    low, high = back.threshold['interval']
    assert (
        low <= back.threshold['value'] <= high
        and low < high
        and meta['threshold'] == back.threshold == json.loads(json.dumps(threshold.note()))
    )
    assert bundle_info(tmp_path / 'c.tfz')['data'] == fingerprint(index.ids) and sorted(
        bundle_info(tmp_path / 'c.tfz')['files']
    ) == ['architecture.json', 'index.npz', 'model.weights.h5']
    save_bundle(tmp_path / 'd', back, tmp_path / 'i.npz')  # the file of an index will do
    assert parts(tmp_path / 'd')['index.npz'] == (tmp_path / 'i.npz').read_bytes()
    with pytest.raises(FileNotFoundError, match='there is no index in .*e'):
        load_bundle(save_bundle(tmp_path / 'e', net), index=tmp_path / 'j.npz')


def test_fingerprint_tells_catalogues_apart(drawn):
    f = fingerprint
    assert (
        f(drawn) == f(drawn) == f(drawn.subset(range(len(drawn))[::-1]))
        and f(drawn)['photos'] == 72
        and f(drawn)['products'] == 12
    )
    assert f(['a', 'b']) == f(['b', 'a']) and f(['a', 'b'])['products'] is None
    others = [
        f(i)['sha256']
        for i in (
            ['a', 'b'],
            ['a'],
            ['ab'],
            ['a', 'B'],
            ['a', 'b', 'b'],
            [os.fsdecode(b'a\xff'), 'b'],
        )
    ]
    assert len(set(others)) == 6


@pytest.mark.parametrize(
    'text,words',
    [
        ('{"format": "triplet_fashion bundle", "version": true}', 'version True'),
        ('{"format": "triplet_fashion bundle", "version": 2.0}', 'version 2.0'),
        ('{"format": "triplet_fashion bundle", "version": 2, "name": "\\ud800"}', 'half a letter'),
        ('{"format": "triplet_fashion bundle", "version": 1, "meta": {"loss": NaN}}', 'NaN'),
        (
            '{"format": "triplet_fashion bundle", "version": 1, '
            '"files": {"model.weights.h5": {"bytes": "x", "sha256": ""}}}',
            'no list of files',
        ),
        (
            '{"format": "triplet_fashion bundle", "version": 1, '
            '"files": {"model.weights.h5": {"bytes": true, "sha256": ""}}}',
            'no list of files',
        ),
        (
            '{"format": "triplet_fashion bundle", "version": 1, "files": {"model.weights.h5": {}}}',
            'no list of files',
        ),
    ],
)
def test_manifests_that_say_strange_things(net, tmp_path, text, words):
    path = save_bundle(tmp_path / 'b', net)
    put(path, manifest_json=text)
    for f in bundle_info, load_bundle:
        with pytest.raises(ValueError, match=f'manifest.json.*{words}'):
            f(path)


def test_packed_archives(net, tmp_path):
    "LZMA and bzip2 are refused before they are unpacked: damaged ones end in errors of their own."
    held = parts(save_bundle(tmp_path / 'b', net))

    def packed(name, method):
        with zipfile.ZipFile(tmp_path / name, 'w', method) as z:
            for part, data in held.items():
                z.writestr(part, data)
        return tmp_path / name

    for method in zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2:
        with pytest.raises(ValueError, match='p.tfz.*packed in a way'):
            load_bundle(packed('p.tfz', method))
    np.testing.assert_array_equal(
        run(load_bundle(packed('q.tfz', zipfile.ZIP_DEFLATED))[0]), run(net)
    )


def test_names_that_are_not_for_load_model(net, tmp_path):
    with pytest.raises(ValueError, match='give the names'):
        load_model(None, None)
    for name in 'b', 'b.tfz', 'b.zip':
        with pytest.raises(ValueError, match='is a bundle: use load_bundle'):
            load_model(save_bundle(tmp_path / name, net))


def test_json_that_asks_for_too_much(net, tmp_path, monkeypatch):
    "A line of text that would keep Keras busy for hours is refused; what a network needs is not."
    from keras import ops

    i = keras.Input((8, 8, 3))
    save_model(keras.Model(i, ops.split(i, 2, axis=1)[0]), tmp_path / 'n.json', tmp_path / 'n.h5')
    text = (tmp_path / 'n.json').read_text()
    assert load_model(tmp_path / 'n.json', tmp_path / 'n.h5').output_shape == (None, 4, 8, 3)
    assert text.count('"indices_or_sections": 2') == 1
    for n in '50000000', 'true', str(list(range(5000))):
        (tmp_path / 'n.json').write_text(
            text.replace('"indices_or_sections": 2', f'"indices_or_sections": {n}')
        )
        with pytest.raises(ValueError, match='n.json has indices_or_sections=.* in Split'):
            load_model(tmp_path / 'n.json', tmp_path / 'n.h5')
    (tmp_path / 'n.json').write_text(
        text.replace('"Split"', '"Unstack"')
        .replace('keras.src.ops.numpy', 'keras.src.ops.core')
        .replace('"indices_or_sections": 2', '"num": 50000000')
    )
    with pytest.raises(ValueError, match='n.json has num=50000000 in Unstack'):
        load_model(tmp_path / 'n.json', tmp_path / 'n.h5')


def test_layers_back_to_front(net, tmp_path):
    "Keras looks through all layers once for each before its input: a thousand took minutes."
    x = i = keras.Input((4,))
    for k in range(150):
        x = layers.ReLU(name=f'l{k}')(x)
    config = json.loads(keras.Model(i, x).to_json())
    assert len(build_network(config, 'n.json').layers) == 151
    twice = layers.Dense(4, name='twice')
    loop = twice(layers.ReLU()(twice(i)))  # a layer that is called on what comes after it
    assert len(build_network(json.loads(keras.Model(i, loop).to_json()), 'n.json').layers) == 3
    config['config']['layers'].reverse()
    with pytest.raises(ValueError, match='n.json has 150 layers before what they are called on'):
        build_network(config, 'n.json')


def chain(n):
    "JSON of Keras 2: layers one after the other, each listed before the one that it is called on."

    def layer(k):
        return dict(
            class_name='ReLU',
            name=f'l{k}',
            config=dict(name=f'l{k}'),
            inbound_nodes=[[[f'l{k - 1}', 0, 0, {}]]],
        )

    first = dict(
        class_name='InputLayer',
        name='l0',
        config=dict(batch_input_shape=[None, 4], dtype='float32', name='l0'),
        inbound_nodes=[],
    )
    return dict(
        class_name='Functional',
        config=dict(
            name='net',
            layers=[layer(k) for k in range(n, 0, -1)] + [first],
            input_layers=[['l0', 0, 0]],
            output_layers=[[f'l{n}', 0, 0]],
        ),
        keras_version='2.2.4-tf',
    )


FIRST = chain(1)['config']['layers'][0]


def test_old_layers_in_any_order(monkeypatch):
    build = Keras2Reader('n.json').build
    assert [l.name for l in build(chain(60)).layers] == [f'l{k}' for k in range(61)]
    looked, references = [], keras2.node_references
    monkeypatch.setattr(
        keras2, 'node_references', lambda node: looked.append(node) or references(node)
    )
    build(chain(200))
    assert len(looked) < 4 * 200  # not once for each pair of layers
    lost = chain(3)
    del lost['config']['layers'][1]
    with pytest.raises(ValueError, match='called on something that is not in the network'):
        build(lost)


@pytest.mark.parametrize(
    'config',
    [chain(5001), dict(class_name='Sequential', config=[FIRST] * 5001)],
    ids=['functional', 'sequential'],
)
def test_old_layers_and_not_too_many(config):
    with pytest.raises(ValueError, match='n.json has more than 5,000 layers'):
        Keras2Reader('n.json').build(config)


def test_texts_of_many_groups_are_read_in_one_go(tmp_path, monkeypatch):
    "Names as texts of variable length, as other programs write them: one process reads them all."
    net = keras.Sequential([keras.Input((2,)), *(layers.Dense(2, name=f'd{i}') for i in range(12))])
    (tmp_path / 'n.json').write_text(
        json.dumps(
            old_json(
                [
                    dict(
                        class_name='InputLayer',
                        config=dict(batch_input_shape=[None, 2], dtype='float32', name='i'),
                    ),
                    *(
                        dict(class_name='Dense', config=dict(name=l.name, units=2))
                        for l in net.layers
                    ),
                ]
            )
        )
    )
    keras_2_weights(net, tmp_path / 'old.h5')
    with h5py.File(tmp_path / 'old.h5', 'r+') as f:
        assert all(f[l.name].attrs.get_id('weight_names').dtype.kind == 'O' for l in net.layers)
    calls, run_ = [], subprocess.run
    monkeypatch.setattr(subprocess, 'run', lambda *a, **kw: calls.append(a) or run_(*a, **kw))
    y = np.ones((1, 2), 'float32')
    np.testing.assert_allclose(
        load_model(tmp_path / 'n.json', tmp_path / 'old.h5').predict(y, verbose=0),
        net.predict(y, verbose=0),
        rtol=1e-6,
    )
    assert len(calls) == 1


@pytest.mark.parametrize(
    'module,name,kw',
    [
        ('os', 'Mine', dict(registered_name=None)),
        ('os', 'Mine', dict(registered_name='zzz')),
        ('os', 'function', dict(registered_name='of_a_test>Known')),
        ('os', 'function', dict(registered_name='Mine')),
    ],
)
def test_a_name_you_know_from_a_module_you_do_not(module, name, kw):
    "Keras looks up the registered name, then the module's: a known name elsewhere is not known."
    part = dict(module=module, class_name=name, config='system' if name == 'function' else {}, **kw)
    with pytest.raises(ValueError, match='n.json uses'):
        check_class(part, {'Mine': Known, 'of_a_test>Known': Known}, 'n.json')
    check_class(
        dict(module='anything', class_name='Mine', config={}, registered_name='Mine'),
        {'Mine': Known},
        'n.json',
    )


def test_never_takes_the_place_of_something_else(net, tmp_path):
    (tmp_path / 'photos').mkdir()
    with pytest.raises(FileExistsError, match='photos is a folder: a bundle is one file'):
        save_bundle(tmp_path / 'photos', net)
    (tmp_path / 'f').write_text('1')
    with pytest.raises(FileExistsError, match='f is there and no bundle'):
        save_bundle(tmp_path / 'f', net)
    assert (tmp_path / 'f').read_text() == '1' and not list((tmp_path / 'photos').iterdir())
    with pytest.raises(IsADirectoryError, match='photos is a folder'):
        load_bundle(tmp_path / 'photos')
