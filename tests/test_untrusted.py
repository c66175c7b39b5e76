"Every door that a network's file comes in by refuses the same harm, naming the file."

import io, json, os, re, sys, zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers, ops

from triplet_fashion.base_network import base_network
from triplet_fashion.runs.checkpoints import Checkpoint, continue_from
from triplet_fashion.runs.state import read_state, write_state
from triplet_fashion.persistence import load_bundle, load_model, save_bundle, save_model
from triplet_fashion.storage.untrusted import checked_weights, load_keras_file

SHAPE = 8, 8, 3


def small(name='small'):
    keras.utils.set_random_seed(0)
    i = keras.Input(SHAPE)
    return keras.Model(
        i, layers.Flatten(name='flat')(layers.Conv2D(4, 3, name='conv')(i)), name=name
    )


# ---- networks in one file

NETWORKS = dict(
    load_model=load_model,
    backbone=lambda path: base_network(SHAPE, 4, str(path), hidden=(), rescale=None),
    load_keras_file=load_keras_file,
)


def repacked(path, method=zipfile.ZIP_STORED, **changed):
    "Write a `.keras` file again with other content."
    with zipfile.ZipFile(path) as z:
        files = {n: z.read(n) for n in z.namelist()}
    files |= {n.replace('_', '.'): data for n, data in changed.items()}
    with zipfile.ZipFile(path, 'w', method) as z:
        for name, data in files.items():
            z.writestr(name, data)


def config_of(path):
    with zipfile.ZipFile(path) as z:
        return z.read('config.json').decode()


def bomb(path):
    repacked(path, zipfile.ZIP_DEFLATED, **{'model_weights_h5': bytes(100_000_000)})


def code(path):
    i = keras.Input(SHAPE)
    keras.Model(i, layers.Flatten()(layers.Lambda(lambda x: x)(i))).save(path)


def pieces(path):
    i = keras.Input(SHAPE)
    keras.Model(i, layers.Flatten()(ops.split(i, 2, axis=1)[0])).save(path)
    text = config_of(path)
    assert text.count('"indices_or_sections": 2') == 1
    repacked(
        path,
        config_json=text.replace('"indices_or_sections": 2', '"indices_or_sections": 100000000'),
    )


def numbers(path):
    repacked(path, config_json=config_of(path).replace('"filters": 4', '"filters": 4000000000'))


def system(path):
    harm = dict(module='os', class_name='system', config='touch harm', registered_name='system')
    repacked(path, config_json=json.dumps(harm))


def nested(path):
    repacked(path, config_json='[' * 200_000)


def long(path):
    repacked(path, config_json='[' + '1,' * 9_000_000 + '1]')


def more(path):
    repacked(path, extra='x')


def cut(path):
    path.write_bytes(path.read_bytes()[:-700])


def words(path):
    path.write_text('hello')


def link(path):
    with zipfile.ZipFile(path) as z:
        held = io.BytesIO(z.read('model.weights.h5'))
    with h5py.File(held, 'r+') as f:
        f['more'] = h5py.ExternalLink('/etc/passwd', '/x')
    repacked(path, model_weights_h5=held.getvalue())


HARMS = {
    bomb: 'decompression bomb',
    code: 'Lambda, which can run code',
    pieces: 'indices_or_sections=100000000',
    numbers: r'describes a network of \d{3},',
    system: 'uses system',
    nested: 'no JSON',
    long: 'more than 16 MB',
    more: 'holds',
    cut: 'no zip archive|is no HDF5',
    words: 'no zip archive|no HDF5',
    link: 'ExternalLink',
}


@pytest.mark.parametrize('harm', HARMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize('door', NETWORKS)
def test_no_door_opens_a_harmful_network(tmp_path, monkeypatch, door, harm):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'net.keras'
    small().save(path)
    harm(path)
    with pytest.raises(ValueError, match=f'net.keras.*({HARMS[harm]})'):
        NETWORKS[door](path)
    assert [p.name for p in tmp_path.iterdir()] == ['net.keras']


@pytest.mark.parametrize('door', NETWORKS)
@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_door_opens_a_sound_network(tmp_path, door, method):
    path, net = tmp_path / 'net.keras', small()
    net.save(path)
    repacked(path, method)
    opened = NETWORKS[door](path)
    for a, b in zip(net.get_weights(), opened.get_weights()):
        np.testing.assert_array_equal(a, b)


# ---- weights


def into_small(path):
    return continue_from(small(), path)


def into_backbone(path):
    return base_network(SHAPE, 4, small(), weights=str(path), hidden=(), rescale=None)


def beside_json(path):
    save_model(small(), path.parent / 'n.json', path.parent / 'other.h5')
    return load_model(path.parent / 'n.json', path)


WEIGHTS = dict(continue_from=into_small, weights=into_backbone, load_model=beside_json)


def linked(f):
    f['more'] = h5py.ExternalLink('/etc/passwd', '/x')


def circle(f):
    f['more'] = f['/']


def packed(f):
    f.create_dataset('more', data=np.zeros(10**6, 'f4'), compression='gzip')


def promised(f):
    f.create_dataset('more', (10**12,), 'f4')


def elsewhere(f):
    f.create_dataset('more', (10,), 'f4', external=[('/etc/passwd', 0, 40)])


WEIGHT_HARMS = {
    linked: 'ExternalLink',
    circle: 'again',
    packed: 'in pieces or packed',
    promised: 'declares',
    elsewhere: 'lies in another file',
}


@pytest.mark.parametrize('harm', WEIGHT_HARMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize('door', WEIGHTS)
def test_no_door_opens_harmful_weights(tmp_path, door, harm):
    path = tmp_path / 'net.weights.h5'
    small().save_weights(path)
    WEIGHTS[door](path)
    with h5py.File(path, 'r+') as f:
        harm(f)
    with pytest.raises(ValueError, match=f'net.weights.h5.*{WEIGHT_HARMS[harm]}'):
        WEIGHTS[door](path)


def test_weights_of_a_named_backbone_pass_the_door(tmp_path):
    path = tmp_path / 'net.weights.h5'
    keras.applications.MobileNetV2(weights=None, include_top=False, alpha=0.35).save_weights(path)
    kw = dict(
        in_dims=(32, 32, 3), out_dims=4, backbone='MobileNetV2', alpha=0.35, weights=path, hidden=()
    )
    base_network(**kw)
    with h5py.File(path, 'r+') as f:
        linked(f)
    with pytest.raises(ValueError, match='base_network: .*net.weights.h5.*ExternalLink'):
        base_network(**kw)


def test_weights_may_lie_in_a_keras_file(tmp_path):
    net = small()
    net.save(tmp_path / 'net.keras')
    with checked_weights(tmp_path / 'net.keras') as name:
        assert name.endswith('model.weights.h5')
    bomb(tmp_path / 'net.keras')
    with pytest.raises(ValueError, match='net.keras is a decompression bomb'):
        into_small(tmp_path / 'net.keras')


# ---- checkpoints


def as_callback(folder):
    checkpoint = Checkpoint(folder.parent)
    checkpoint.open(learner())


def learner():
    net = small()
    net.compile('sgd', 'mse', jit_compile=False)
    return net


STATES = dict(
    read_state=read_state,
    continue_from=lambda path: continue_from(learner(), path),
    resume=as_callback,
)


def write_again(path, arrays, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', method) as z:
        for name, data in arrays.items():
            z.writestr(f'{name}.npy', data)


def stored(path):
    with zipfile.ZipFile(path) as z:
        return {n.removesuffix('.npy'): z.read(n) for n in z.namelist()}


def deflated(path):
    write_again(path, stored(path), zipfile.ZIP_DEFLATED)


def halved(path):
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])


def pickled(path):
    held = io.BytesIO()
    np.save(held, np.array([os.system], object), allow_pickle=True)
    write_again(path, stored(path) | {'array/network/0': held.getvalue()})


def longer(path):
    arrays = stored(path)
    arrays['array/network/0'] = re.sub(
        rb"'shape': \([^)]*\)",
        lambda m: b"'shape': (9, 9, 9, 99)".ljust(len(m[0])),
        arrays['array/network/0'],
    )
    write_again(path, arrays)


def unsigned(path):
    arrays = stored(path)
    k = 'array/network/0'
    write_again(path, arrays | {k: arrays[k][:-1] + bytes([arrays[k][-1] ^ 1])})


STATE_HARMS = deflated, halved, pickled, longer, unsigned


@pytest.fixture
def state(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.open(learner())
    return checkpoint.save(1, 0)


@pytest.mark.parametrize('harm', STATE_HARMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize('door', STATES)
def test_no_door_opens_a_harmful_checkpoint(state, door, harm):
    STATES[door](state)
    harm(state)
    with pytest.raises(ValueError, match='000001-000000.npz is damaged'):
        STATES[door](state)


@pytest.mark.parametrize(
    'note', [3, [], {}, {'epoch': 'one'}, {'epoch': 1, 'step': 0, 'done': False, 'stopped': False}]
)
@pytest.mark.parametrize('door', ['continue_from', 'resume'])
def test_a_note_that_says_something_else_is_refused(state, door, note):
    write_state(state, note, read_state(state)[1])
    with pytest.raises(ValueError, match='000001-000000.npz is damaged: its note has no'):
        STATES[door](state)


def test_a_checkpoint_of_another_network_is_refused_before_it_is_read(state, monkeypatch):
    monkeypatch.setattr(np, 'load', lambda *a, **kw: pytest.fail('it was read'))
    other = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ValueError, match='does not fit this network'):
        continue_from(other, state)


# ---- memory

MEMORY = '''
import re, sys, zipfile, io
from pathlib import Path
import numpy as np, h5py, keras
from triplet_fashion.base_network import base_network
from triplet_fashion.runs.checkpoints import continue_from
from triplet_fashion.runs.state import read_state
from triplet_fashion.persistence import load_model
folder = Path(sys.argv[1])
keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]).save(folder/'small.keras')
load_model(folder/'small.keras')

def peak():
    status = Path('/proc/self/status').read_text()
    return int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) >> 10
def reset(): Path('/proc/self/clear_refs').write_text('5')

def zeros(n, head=b''):
    "A stream of zeros, so that making the bomb takes no memory."
    yield head
    for _ in range(n >> 20): yield bytes(1 << 20)

with zipfile.ZipFile(folder/'bomb.keras', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
    z.writestr('config.json', zipfile.ZipFile(folder/'small.keras').read('config.json'))
    with z.open('model.weights.h5', 'w') as f:
        for block in zeros(1 << 29): f.write(block)
head = io.BytesIO()
np.lib.format.write_array_header_1_0(head, dict(descr='|u1', fortran_order=False, shape=(1 << 29,)))
with zipfile.ZipFile(folder/'bomb.npz', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
    with z.open('array/network/0.npy', 'w') as f:
        for block in zeros(1 << 29, head.getvalue()): f.write(block)

net = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
bomb, state = folder/'bomb.keras', folder/'bomb.npz'
doors = dict(
    load_model=lambda: load_model(bomb),
    backbone=lambda: base_network((8, 8, 3), 4, str(bomb)),
    weights=lambda: base_network((8, 8, 3), 4, net, weights=str(bomb)),
    continue_keras=lambda: continue_from(net, bomb),
    read_state=lambda: read_state(state),
    continue_npz=lambda: continue_from(net, state))
for name, door in doors.items():
    reset()
    before = peak()
    try: door()
    except ValueError as e: assert 'bomb' in str(e), e
    else: sys.exit(f'{name} opened it')
    assert peak() - before < 300, (name, peak() - before)
'''


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_bombs_take_no_memory_at_any_door(fresh_python, tmp_path):
    "Files that unpack to half a gigabyte: no door takes 300 MB before it refuses them."
    done = fresh_python.run(MEMORY, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


# ---- what the user says


@keras.saving.register_keras_serializable('of_untrusted')
class Ours(layers.Layer):
    def call(self, x):
        return 2 * x


class Mine(layers.Layer):
    def call(self, x):
        return 3 * x


def thrice(x):
    return 3 * x


def whose(layer):
    return keras.Sequential([keras.Input(SHAPE), layer, layers.Flatten()])


@pytest.mark.parametrize(
    'layer, given',
    [
        (lambda: Mine(), {'Mine': Mine}),
        (lambda: layers.Activation(thrice), {'thrice': thrice}),
        (lambda: layers.Dense(2, activation=thrice), {'thrice': thrice}),
        (lambda: layers.Lambda(thrice), {'Lambda': layers.Lambda, 'thrice': thrice}),
        (lambda: layers.Lambda(lambda x: x / 255), {'Lambda': layers.Lambda}),
    ],
    ids=['layer', 'function', 'activation', 'named lambda', 'lambda'],
)
@pytest.mark.filterwarnings('ignore:the layer')
def test_the_advice_of_an_error_opens_the_file(tmp_path, layer, given):
    "Each name that the errors ask for, one after the other, until the file opens."
    net, handed = whose(layer()), {}
    save_bundle(tmp_path / 'b', net)
    for _ in given:
        with pytest.raises(ValueError, match='custom_objects=') as e:
            load_bundle(tmp_path / 'b', custom_objects=handed)
        name = re.search(r"custom_objects=\{'([^']+)': ", str(e.value))[1]
        handed[name] = given[name]
    x = np.random.default_rng(0).random((2, *SHAPE), 'float32')
    np.testing.assert_array_equal(load_bundle(tmp_path / 'b', custom_objects=handed)[0](x), net(x))


def test_the_advice_for_a_registered_class_that_was_not_imported(tmp_path):
    net = whose(Ours())
    save_bundle(tmp_path / 'b', net)
    registered = keras.saving.get_custom_objects()
    key = next(k for k in registered if k.endswith('Ours'))
    taken = registered.pop(key)
    try:
        with pytest.raises(ValueError, match=re.escape(f"custom_objects={{'{key}': ...}}")):
            load_bundle(tmp_path / 'b')
        load_bundle(tmp_path / 'b', custom_objects={key: Ours})
    finally:
        registered[key] = taken


def test_a_word_for_one_layer_is_no_word_for_another(tmp_path):
    path = tmp_path / 'net.keras'
    code(path)
    for given in ({'StringLookup': layers.StringLookup}, {'Mine': Mine}):
        with pytest.raises(ValueError, match='Lambda'):
            load_model(path, custom_objects=given)
