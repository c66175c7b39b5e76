"""Untrusted files: each of thousands of hostile networks gives a clean error or a network.

Loads run in a process of their own under an audit hook. `FUZZ=10 pytest tests/test_fuzz.py` tries
ten times as many; `python tests/test_fuzz.py 17 1` repeats input 17 alone, and 300 1000 in place of
17 1 tries inputs 300 to 1299.
"""

import base64
import collections
import faulthandler
import io
import json
import marshal
import os
import random
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
import pytest

batch, per_input_s, batch_s = 250, 60, 600
old_nets = Path(__file__).parent / 'referees' / 'keras2_nets'
old_pairs = (
    ('base.json', 'base.h5'),
    ('base_2_1.json', 'base.h5'),
    ('model.json', 'model.h5'),
    ('model_2_1.json', 'model.h5'),
    ('base.json', 'whole.h5'),
)


# what is mutated: {file name: bytes}


def sources(folder):
    "Files of a small network in each form, by the name of the form."
    import keras
    from keras import layers
    import numpy as np
    from triplet_fashion.runs.checkpoints import Checkpoint
    from triplet_fashion.persistence import save_bundle, save_model
    from triplet_fashion.search import ImageIndex

    i = keras.Input((8, 8, 3), name='photo')
    x = layers.BatchNormalization()(
        layers.Conv2D(4, 3, activation='relu', kernel_regularizer='l2')(
            layers.Rescaling(1 / 255)(i)
        )
    )
    head = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5), layers.UnitNormalization()], name='head'
    )
    net = keras.Model(
        i, head(layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x))), name='small'
    )
    save_model(net, folder / 'n.json', folder / 'n.weights.h5')
    index = ImageIndex(np.eye(5), list('abcde'), [0, 0, 1, 1, 1])
    with zipfile.ZipFile(
        save_bundle(folder / 'b', net, index, class_names=['a', 'b'], figure=0.5)
    ) as z:
        held = {n: z.read(n) for n in sorted(z.namelist())}
    net.save(folder / 'n.keras')
    Source.net = net
    shutil.unpack_archive(folder / 'n.keras', folder / 'k', 'zip')

    def read(p, *names):
        return {n: (p / n).read_bytes() for n in names}

    (folder / 'run').mkdir()
    kept = Checkpoint(folder / 'run')
    kept.open(learner(net), callbacks(folder))
    place = kept.save(1, 0)
    return dict(
        two=[read(folder, 'n.json', 'n.weights.h5')],
        tfz=[held],
        index=[{'index.npz': held['index.npz']}],
        keras=[read(folder / 'k', 'metadata.json', 'config.json', 'model.weights.h5')],
        old=[read(old_nets, *p) for p in old_pairs],
        whole=[read(old_nets, 'whole.h5')],
        backbone=[read(folder / 'k', 'metadata.json', 'config.json', 'model.weights.h5')],
        weights=[read(folder, 'n.weights.h5')],
        resume=[read(place.parent, place.name)],
        further=[read(place.parent, place.name)],
    )


def learner(net):
    "The network of `sources`, ready to train."
    net.compile('adam', 'mse', jit_compile=False)
    return net


def callbacks(folder):
    "Callbacks that a checkpoint knows something of."
    import keras

    return [
        keras.callbacks.ModelCheckpoint(
            str(folder / 'best.weights.h5'), 'loss', save_weights_only=True
        ),
        keras.callbacks.EarlyStopping('loss'),
        keras.callbacks.History(),
    ]


# mutations


def bytes_edit(r, data):
    "Flips, runs, copies, cuts."
    d = bytearray(data)
    if not d:
        return b'\0'
    if r.random() < 0.15:
        return bytes(d[: r.randrange(len(d))])
    for _ in range(r.choice([1, 1, 2, 4, 16])):
        k, m = r.randrange(len(d)), r.random()
        if m < 0.4:
            d[k] ^= 1 << r.randrange(8)
        elif m < 0.6:
            d[k] = r.choice([0, 255, 127, 128, r.randrange(256)])
        elif m < 0.8:
            d[k : k + 8] = r.choice(
                [b'\xff' * 8, b'\0' * 8, r.randrange(len(d)).to_bytes(8, 'little')]
            )
        else:
            j, n = r.randrange(len(d)), r.choice([4, 32, 256])
            d[k : k + n] = d[j : j + n]
    return bytes(d)


def hostile(r):
    "Values that a description should not hold: code, what reaches for the system, too much."
    target = 'touch CANARY'
    code = base64.b64encode(
        marshal.dumps(compile('__import__("os").system("touch CANARY")', 'evil', 'exec'))
    ).decode()

    def of(module, name, config, **kw):
        return dict(
            module=module,
            class_name=name,
            config=config,
            registered_name=kw.get('registered_name', name),
        )

    deep = []
    for _ in range(r.choice([50, 2000])):
        deep = [deep]
    return r.choice(
        [
            lambda: of(
                'keras.layers',
                'Lambda',
                dict(
                    name='l',
                    function=dict(
                        class_name='__lambda__', config=dict(code=code, defaults=None, closure=None)
                    ),
                ),
            ),
            lambda: dict(
                class_name='__lambda__', config=dict(code=code, defaults=None, closure=None)
            ),
            lambda: dict(
                class_name='Lambda',
                name='l',
                config=dict(name='l', function=[code, None, None], function_type='lambda'),
                inbound_nodes=[],
            ),
            lambda: of(
                *r.choice(
                    [
                        ('os', 'system'),
                        ('subprocess', 'run'),
                        ('subprocess', 'Popen'),
                        ('builtins', 'exec'),
                        ('builtins', 'eval'),
                        ('posix', 'system'),
                        ('pickle', 'loads'),
                    ]
                ),
                target,
            ),
            lambda: dict(
                module='builtins',
                class_name='function',
                config=r.choice(['exec', 'eval', 'open', 'system', 'relu']),
                registered_name='function',
            ),
            lambda: of('keras.utils', 'get_file', dict(fname='x', origin='http://127.0.0.1:9/x')),
            lambda: of('keras.models', 'load_model', dict(filepath='/etc/passwd')),
            lambda: of(
                'keras.layers',
                r.choice(['TFSMLayer', 'StringLookup', 'TextVectorization', 'IntegerLookup']),
                dict(filepath='/etc', vocabulary='/etc/passwd', name='t'),
            ),
            lambda: of('keras.src.saving.serialization_lib', 'deserialize_keras_object', {}),
            lambda: dict(
                class_name='__tensor__', config=dict(value=[1, 'x', [2]], dtype='float32')
            ),
            lambda: dict(
                class_name='__numpy__',
                config=dict(value=[[1], 2], dtype=r.choice(['object', 'V9', 'nothing'])),
            ),
            lambda: dict(class_name='__bytes__', config=dict(value=r.choice([3, 'text', None]))),
            lambda: dict(class_name='__slice__', config={}),
            lambda: dict(
                class_name='TFOpLambda',
                name='o',
                config=dict(name='o', function='io.write_file'),
                inbound_nodes=[],
            ),
            lambda: r.choice(
                [
                    None,
                    True,
                    -1,
                    0,
                    1.5,
                    1e308,
                    float('nan'),
                    10**9,
                    2**31,
                    2**63,
                    10**40,
                    '',
                    'x',
                    '../../x',
                    'os.system',
                    'x' * 3000,
                    '\0',
                    '\ud800',
                    [],
                    {},
                    [None],
                    [[]],
                ]
            ),
            lambda: [None, r.choice([10**6, 2**40]), r.choice([10**6, 10**12]), 3],
            lambda: deep,
        ]
    )()


def places(o, found=None):
    "All (container, key) of a JSON."
    found = [] if found is None else found
    for k in o if isinstance(o, dict) else range(len(o)) if isinstance(o, list) else ():
        found.append((o, k))
        places(o[k], found)
    return found


KEYS = (
    'class_name',
    'module',
    'registered_name',
    'config',
    'batch_shape',
    'batch_input_shape',
    'units',
    'filters',
    'layers',
    'name',
)
CLASSES = (
    'Lambda',
    'os',
    'system',
    'builtins',
    'keras.src.models.functional',
    'Dense',
    'Functional',
    'Sequential',
    'Bidirectional',
    'TimeDistributed',
)
MORE_KEYS = (
    'class_name',
    'module',
    'shared_object_id',
    'build_config',
    'extra',
    'trainable',
    'dtype',
)


def change(r, o, k, all_of_them):
    "Edit one value in a structure, or what is beside it."
    m = r.random()
    if m < 0.45:
        o[k] = hostile(r)
    elif m < 0.6 and isinstance(o[k], int):
        o[k] = r.choice([0, -1, 2**20, 2**31, 2**62, 10**30])
    elif m < 0.6 and isinstance(o[k], str):
        o[k] = r.choice([*CLASSES, o[k] + '/..'])
    elif m < 0.75:
        p, q = r.choice(all_of_them)
        o[k] = json.loads(json.dumps(p[q]))
    elif m < 0.9:
        del o[k]
    elif isinstance(o, list):
        o += o[: r.choice([1, 3])]
    else:
        value = hostile(r)
        o[str(r.choice(MORE_KEYS))] = value


def json_edit(r, data):
    "One to three edits of a structure."
    m = r.random()
    if m < 0.04:
        return b'[' * r.choice([100, 100_000]) + data
    if m < 0.07:
        return b'{"class_name":' * r.choice([900, 50_000]) + b'1' + b'}' * r.choice([900, 50_000])
    if m < 0.1:
        return data.replace(
            b'{', b'{"class_name": "Lambda", ', r.randrange(1, 9)
        )  # the same key twice
    d = json.loads(data)
    for _ in range(r.choice([1, 1, 2, 3])):
        all_of_them = places(d)
        if not all_of_them:
            break
        named = [(o, k) for o, k in all_of_them if k in KEYS]
        o, k = r.choice(named if named and r.random() < 0.5 else all_of_them)
        change(r, o, k, all_of_them)
    return json.dumps(d).encode()


def h5_extra(r, f, name, kind):
    "Add to an HDF5 file what Keras never writes: links, circles, what lies elsewhere."
    import h5py, numpy as np

    if kind == 1:
        f['extra'] = h5py.SoftLink(r.choice(['/', '/extra', '/' + name]))
    elif kind == 2:
        f['extra'] = h5py.ExternalLink('/etc/passwd', '/x')
    elif kind == 3:
        f['extra'] = f['/']  # a circle
    elif kind == 4:
        f.create_dataset('extra', (10 ** r.choice([6, 9, 12]),), 'f4')  # declared, not held
    elif kind == 5:
        zeros = np.zeros(10**6, 'f4')
        f.create_dataset('extra', (10**6,), 'f4', compression='gzip', data=zeros)
    elif kind == 6:
        f.create_dataset('extra', (10,), 'f4', external=[('/etc/passwd', 0, 40)])
    elif kind == 7:
        f['extra'] = np.array(['a', 'b'], object)
    elif kind == 8:
        f['extra'] = np.dtype('f4')
    else:
        f['extra'] = f[name].ref


def h5_change(r, f, names, name, kind):
    "Remove, replace, rename or mislabel what an HDF5 file holds."
    import h5py, numpy as np

    if kind == 0:
        del f[name]
    elif kind == 9:
        del f[name]
        f[name] = r.choice(
            [
                np.zeros(3, 'f4'),
                np.zeros((2, 2), 'i8'),
                np.float64(3),
                np.full((5,), np.nan, 'f2'),
                np.zeros(0),
            ]
        )
    elif kind == 10:
        value = r.choice(
            ['', 'x', 3, [1.0, 2.0], ['a', 'b'], '{"class_name": "Lambda"}', b'[' * 9000]
        )
        f.attrs[r.choice(['layer_names', 'model_config', 'weight_names'])] = value
    elif kind == 11:
        with_attrs = [n for n in names if len(f[n].attrs)]
        if with_attrs:
            o = f[r.choice(with_attrs)]
            value = r.choice(['', 'x', 3, ['../x', '/etc'], [b'a', b'a'], h5py.Empty('f4')])
            o.attrs[r.choice(list(o.attrs))] = value
    elif name == 'layers':
        f.move(name, 'x')
    else:
        target = r.choice(['layers', 'moved', '가', 'model_weights']) + r.choice(['', '/x'])
        f.move(name, target)


def h5_edit(r, data):
    "A file changed by HDF5's own means."
    import h5py

    out = io.BytesIO(data)
    with h5py.File(out, 'r+') as f:
        names = []
        f.visit(names.append)
        name = r.choice(names)
        kind = r.randrange(14)
        if kind in (0, 9, 10, 11, 12):
            h5_change(r, f, names, name, kind)
        else:
            h5_extra(r, f, name, kind)
    return out.getvalue()


def npz_edit(r, data):
    "Arrays changed one by one: notes, shapes, kinds, heads that promise more than there is."
    import numpy as np

    out, (m, n) = io.BytesIO(), (r.random(), r.randrange(1, 9))
    with np.load(io.BytesIO(data)) as z:
        arrays = dict(z)
    if m < 0.4:
        arrays['meta'] = np.frombuffer(json_edit(r, arrays['meta'].tobytes()), 'uint8')
    elif m < 0.8:
        arrays[r.choice(['embeddings', 'labels', 'probe', 'meta', 'more'])] = r.choice(
            [
                np.zeros(n),
                np.zeros((n, 5)),
                np.array(['a'] * n),
                np.full((5, 5), np.nan),
                np.zeros((5, 5), 'complex64'),
                np.float64(1),
                np.zeros((0, 5)),
                np.arange(5),
            ]
        )
    else:
        del arrays[r.choice(list(arrays))]
    (np.savez if r.random() < 0.9 else np.savez_compressed)(out, **arrays)
    return (
        out.getvalue()
        if m < 0.7
        else out.getvalue().replace(
            b"'shape': (5,", b"'shape': (%d," % 10 ** r.choice([2, 6, 9, 15]), 1
        )
    )


def state_edit(r, data):
    "A checkpoint whose note or arrays are others, with a checksum that is right again."
    import numpy as np
    from triplet_fashion.runs.state import read_state, write_state

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'state.npz'
        path.write_bytes(data)
        note, arrays = read_state(path)
        if r.random() < 0.6:
            note = json.loads(json_edit(r, json.dumps(note).encode()))
        else:
            arrays[r.choice([*arrays, 'network/99', 'loss/0', 'kept/x'])] = r.choice(
                [
                    np.zeros(3),
                    np.zeros((2, 2), 'i8'),
                    np.float64(3),
                    np.array(['a', 'b']),
                    np.full((5,), np.nan, 'f2'),
                    np.zeros((0, 5)),
                ]
            )
        write_state(path, note, arrays)
        if r.random() < 0.1:
            with (
                zipfile.ZipFile(path) as z,
                zipfile.ZipFile(Path(folder) / 'packed.npz', 'w', zipfile.ZIP_DEFLATED) as packed,
            ):
                for n in z.namelist():
                    packed.writestr(n, z.read(n))
            path = Path(folder) / 'packed.npz'
        return path.read_bytes()


def edit(r, name, data):
    if r.random() < 0.3:
        return bytes_edit(r, data)
    changed = {'.json': json_edit, '.npz': npz_edit, '.h5': h5_edit}[Path(name).suffix]
    if re.fullmatch(r'\d+-\d+.npz', name):
        changed = state_edit
    try:
        return changed(r, data)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return bytes_edit(r, data)  # HDF5 would not write it


def signed(files, old):
    "A bundle whose checksums are right again, as an attacker writes it; version 1 now and then."
    import hashlib

    try:
        d = json.loads(files['manifest.json'])
    except (ValueError, RecursionError):
        return files
    if not isinstance(d, dict) or not isinstance(d.get('files'), dict):
        return files
    for n in files:
        if n != 'manifest.json' and n in d['files']:
            d['files'][n] = dict(bytes=len(files[n]), sha256=hashlib.sha256(files[n]).hexdigest())
    if old:
        d = {k: v for k, v in d.items() if k != 'digest'} | dict(version=1)
    else:
        rest = {k: v for k, v in d.items() if k != 'digest'}
        try:
            text = json.dumps(rest, indent=1, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            pass
        else:
            d['digest'] = hashlib.sha256(text).hexdigest()
    return files | {'manifest.json': json.dumps(d).encode()}


def spoil_entry(r, z, entry, data, kind):
    "Return an entry of an archive and its contents, spoiled in one way; None where it is left out."
    n = entry.filename
    if kind == 0:
        elsewhere = ['../x', '../../x', '/tmp/x', 'a/../../x', '..\\x', 'C:\\x']
        entry.filename = r.choice([*elsewhere, './' + n, n + '/', '', n + '\0.exe', 'x/' + n])
    elif kind == 1:
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        data = b'/etc/passwd'
    elif kind == 2:
        z.writestr(entry, data)
        entry = zipfile.ZipInfo(n)
    elif kind == 3:
        data = bytes(10 ** r.choice([6, 8]))
        entry.compress_type = zipfile.ZIP_DEFLATED
    elif kind == 4:
        entry.compress_type = r.choice([zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    elif kind == 5:
        entry = None
    return entry, data


def pack(r, files, spoil):
    """A zip archive; where `spoil` says so, one that is not what it seems.

    Its names lead elsewhere, it has links, doubles, bombs, or lies about sizes."""
    out = io.BytesIO()
    kind = r.randrange(7) if spoil else None
    with zipfile.ZipFile(out, 'w') as z:
        import warnings

        warnings.simplefilter('ignore')  # names that come twice
        evil = r.choice(list(files))
        for n, data in files.items():
            entry = zipfile.ZipInfo(n)
            if n == evil:
                entry, data = spoil_entry(r, z, entry, data, kind)
            if entry is not None:
                z.writestr(entry, data)
    d = bytearray(out.getvalue())
    if kind == 6:
        for sign, at in (b'PK\3\4', 18), (b'PK\1\2', 20):
            k = d.find(sign)
            struct.pack_into(
                '<II', d, k + at, *r.choice([(0, 0), (10, 10), (2**31, 2**32 - 2), (len(d), 10)])
            )
    return bytes(d)


def case(number, sources, folder):
    "Writes input `number`; the arguments to load it with, and the form."
    r = random.Random(number)
    form = r.choice(
        [
            'two',
            'two',
            'tfz',
            'tfz',
            'tfz',
            'keras',
            'keras',
            'old',
            'old',
            'whole',
            'index',
            'backbone',
            'weights',
            'resume',
            'resume',
            'further',
        ]
    )
    files = dict(r.choice(sources[form]))
    zipped, m = form in ('tfz', 'keras', 'backbone'), r.random()
    if not zipped or m < 0.55:
        for name in r.sample(sorted(files), r.choice([1, 1, 1, min(2, len(files))])):
            files[name] = edit(r, name, files[name])
    if form == 'tfz' and r.random() < 0.85:
        files = signed(files, r.random() < 0.3)
    if zipped:
        data = pack(r, files, 0.55 <= m < 0.8)
        path = folder / ('net.tfz' if form == 'tfz' else 'net.keras')
        path.write_bytes(bytes_edit(r, data) if m >= 0.8 else data)
        return form, [path]
    for n, data in files.items():
        (folder / n).write_bytes(data)
    return form, [folder] if form == 'resume' else [folder / n for n in files]


# the process that loads them


HOME = (
    *{
        os.path.realpath(p)
        for p in (
            sys.prefix,
            sys.base_prefix,
            os.path.dirname(os.__file__),
            Path(__file__).parents[1],
        )
    },
    '<frozen',
    '<string>',
    '<__array_function__',
)
FORBIDDEN = (
    'os.system',
    'os.exec',
    'os.fork',
    'os.posix_spawn',
    'os.spawn',
    'socket.',
    'pickle.',
    'urllib.',
    'ftplib.',
    'webbrowser.',
    'ctypes.dlopen',
)


def writes(args):
    "Tell whether a file is opened for writing."
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    return set(args[1] or '') & set('wax+') or (args[2] or 0) & flags


def is_bad(event, args, inside, allowed):
    "Tell whether an audit event is more than a load may do."
    if event == 'open':
        return writes(args) and not inside(args[0])
    if event == 'subprocess.Popen':
        return list(args[1][:3]) != allowed
    if event in ('os.rename', 'os.link', 'os.symlink'):
        return not inside(args[1])
    if event in ('os.remove', 'os.mkdir', 'os.rmdir', 'os.chmod', 'os.truncate'):
        return args[-1] in (-1, None) and not inside(args[0])
    if event == 'exec':
        name = args[0].co_filename
        return not os.path.realpath(name).startswith(HOME) and not name.startswith(HOME)
    if event == 'marshal.loads':
        caller = sys._getframe(2).f_code.co_filename  # of the hook
        return not caller.startswith('<frozen importlib')
    return event.startswith(FORBIDDEN)


def watch(work, seen):
    "From here on what a load does beyond reading is noted in `seen`."
    from triplet_fashion.storage.untrusted import TEXT_READER

    allowed = [sys.executable, '-c', TEXT_READER]

    def inside(p):
        if isinstance(p, int):
            return True
        return os.path.realpath(os.fsdecode(p)).startswith((str(work), '/dev/null'))

    def hook(event, args):
        if seen is None or not seen['on']:
            return
        seen['on'] = False
        try:
            if is_bad(event, args, inside, allowed):
                seen['events'].append(f'{event} {str(args)[:300]}')
        finally:
            seen['on'] = True

    sys.addaudithook(hook)


def fresh():
    "The network of `sources` again."
    import keras

    return keras.models.clone_model(Source.net)


class Source:
    net = None


def resumed(folder):
    "Goes on from a checkpoint; no callback may come to write elsewhere."
    from triplet_fashion.runs.checkpoints import Checkpoint
    import warnings

    kept, calls = Checkpoint(folder, writes=False), callbacks(folder)
    settings = [
        {
            k: v
            for k, v in vars(c).items()
            if k in ('filepath', 'patience', 'monitor', 'save_freq', 'verbose')
        }
        for c in calls
    ]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        kept.open(net := learner(fresh()), calls)
        kept.on_train_begin()
    assert settings == [
        {k: v for k, v in vars(c).items() if k in s} for c, s in zip(calls, settings)
    ]
    return net


def outcome(form, args):
    "What a load gives: a network, or a clean error; anything else is a defect."
    import keras, numpy as np
    from triplet_fashion.base_network import base_network
    from triplet_fashion.runs.checkpoints import continue_from
    from triplet_fashion.persistence import bundle_info, load_bundle, load_model
    from triplet_fashion.search import ImageIndex

    try:
        if form == 'tfz':
            assert isinstance(bundle_info(args[0]), dict)
            net, meta = load_bundle(args[0])
            assert isinstance(meta, dict)
        elif form == 'backbone':
            net = base_network((8, 8, 3), 4, str(args[0]), hidden=(), rescale=None)
        elif form == 'weights':
            net = base_network((8, 8, 3), 4, fresh(), weights=str(args[0]), hidden=(), rescale=None)
        elif form == 'further':
            assert type(continue_from(net := learner(fresh()), args[0])) is int
        elif form == 'resume':
            net = resumed(args[0])
        elif form == 'index':
            assert len(ImageIndex.load(args[0]))
            return 'index', ''
        else:
            net = load_model(*args)
        assert isinstance(net, keras.Model) and all(
            np.asarray(w).shape == tuple(w.shape) for w in net.weights
        )
        return 'network', ''
    except (ValueError, FileNotFoundError) as e:
        text = str(e)
        if isinstance(e, UnicodeError) or not any(str(a) in text for a in args):
            return f'DEFECT {type(e).__name__} that names no file', text
        return 'FileNotFoundError' if isinstance(e, FileNotFoundError) else 'ValueError', text
    except BaseException as e:
        return f'DEFECT {type(e).__name__}', str(e)


def load_all(start, n):
    "Tries inputs `start` to `start + n`; one line of JSON each."
    import resource

    faulthandler.enable()
    work = Path(os.path.realpath(tempfile.mkdtemp()))
    (work / 'in').mkdir()
    (work / 'tmp').mkdir()
    (work / 'cwd').mkdir()
    tempfile.tempdir = str(work / 'tmp')
    out = sys.stdout
    seen = dict(on=False, events=[])
    try:
        (work / 'src').mkdir()
        src = sources(work / 'src')
        outcome('two', [work / 'src' / 'n.json', work / 'src' / 'n.weights.h5'])
        outcome('old', [old_nets / 'base.json', old_nets / 'base.h5'])  # what is imported late
        watch(work, seen)
        os.chdir(work / 'cwd')
        size = (
            int(Path('/proc/self/statm').read_text().split()[0]) * 4096
            if os.path.exists('/proc/self/statm')
            else 0
        )
        if size:
            resource.setrlimit(
                resource.RLIMIT_AS, (size + (3 << 30),) * 2
            )  # what takes more memory fails
        before = sorted(os.listdir(work))
        for i in range(start, start + n):
            print(json.dumps(dict(at=i)), file=out, flush=True)
            shutil.rmtree(work / 'in')
            (work / 'in' / 'a').mkdir(parents=True)
            form, args = case(i, src, work / 'in' / 'a')
            files = sorted(p.relative_to(work) for p in (work / 'in').rglob('*'))
            faulthandler.dump_traceback_later(per_input_s, exit=True)
            seen['on'] = True
            what, text = outcome(form, args)
            seen['on'] = False
            faulthandler.cancel_dump_traceback_later()
            left = (
                sorted(os.listdir(work)) != before
                or os.listdir(work / 'tmp')
                or os.listdir(work / 'cwd')
                or sorted(p.relative_to(work) for p in (work / 'in').rglob('*')) != files
            )
            if left:
                seen['events'].append(
                    f'files left: {[str(p.relative_to(work)) for p in work.rglob("*")]}'
                )
            if seen['events']:
                what, text = 'DEFECT more than reading', '; '.join(seen['events'])
            seen['events'].clear()
            print(
                json.dumps(dict(at=i, form=form, what=what, text=text[:600])), file=out, flush=True
            )
    finally:
        shutil.rmtree(work, ignore_errors=True)


@pytest.mark.skipif(sys.platform == 'win32', reason='needs the resource module')
@pytest.mark.parametrize('start', range(0, batch * int(os.environ.get('FUZZ', 1)), batch))
def test_hostile_files(start):
    env = dict(
        os.environ,
        PYTHONPATH=str(Path(__file__).parents[1]),
        PYTHONDONTWRITEBYTECODE='1',
        TF_CPP_MIN_LOG_LEVEL='3',
        CUDA_VISIBLE_DEVICES='',
    )
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
        try:
            code = subprocess.run(
                [sys.executable, __file__, str(start), str(batch)],
                stdout=out,
                stderr=err,
                env=env,
                timeout=batch_s,
            ).returncode
        except subprocess.TimeoutExpired:
            code = 'no end'
        out.seek(0)
        err.seek(0)
        lines, said = [json.loads(l) for l in out if l.startswith('{')], err.read()
    results = [l for l in lines if 'what' in l]
    assert code == 0, (
        f'input {lines[-1]["at"] if lines else None} ended the process: {code}\n{said[-3000:]}'
    )
    assert not [l for l in results if l['what'].startswith('DEFECT')]
    counts = collections.Counter(l['what'] for l in results)
    assert (
        sum(counts.values()) == batch
        and counts['network'] > batch // 30
        and counts['ValueError'] > batch // 3
    ), counts


def test_inputs_are_the_same_each_time(tmp_path):
    src = dict(two=[{'n.json': b'{"class_name": "a", "config": {"layers": [1, 2]}}'}])

    def random_one():
        return [json_edit(random.Random(i), src['two'][0]['n.json']) for i in range(20)]

    assert random_one() == random_one() and len(set(random_one())) > 10


if __name__ == '__main__':
    load_all(int(sys.argv[1]), int(sys.argv[2]))
