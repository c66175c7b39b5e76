"Exports: every format and precision against Keras, bytes against read_image, odd names, damage."

import io, json, os
from functools import lru_cache

import numpy as np, pytest
from PIL import Image

keras = pytest.importorskip('keras')
import tensorflow as tf
from triplet_fashion.base_network import base_network
from triplet_fashion.catalog import Catalog
from triplet_fashion.export import (
    FORMATS,
    export,
    export_report,
    in_small_batches,
    load_export,
)
from triplet_fashion.model import triplet_model
from triplet_fashion.persistence import save_bundle
from triplet_fashion.photos.image import read_image
from triplet_fashion.photos.loading import load_images
from triplet_fashion.photos.serving import file_decoder

L = keras.layers
NEEDS = {'onnx': ('onnxruntime', 'tf2onnx'), 'openvino': ('openvino',)}
EXACT = {'float32': 1e-4, 'float16': 1e-2, 'bfloat16': 0.1, 'int8': 0.5}


def need(name):
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module, reason=f'needs {module}, triplet_fashion[export]')


def network():
    keras.utils.set_random_seed(0)
    return base_network((48, 40, 3), 8, 'small', None, hidden=(16,), activation='l2')


@pytest.fixture(scope='module')
def net():
    return network()


@pytest.fixture(scope='module')
def photos(clothing):
    return Catalog.from_dir(clothing / 'validation').sample(40, seed=0)


@pytest.mark.parametrize('n', [1, 31, 32, 33, 70])
def test_many_photos_go_through_in_small_groups(n):
    """Memory does not grow with the number of photos: at most 32 are in the network at a time, and
    every one comes back in its place."""
    sizes = []

    def run(x):
        sizes.append(len(x))
        return np.asarray(x).reshape(len(x), -1)[:, :1]

    got = in_small_batches(run)(np.arange(n * 2 * 2 * 3, dtype='float32').reshape(n, 2, 2, 3))
    np.testing.assert_array_equal(got[:, 0], np.arange(n) * 12)
    assert max(sizes) <= 32 and sum(sizes) == n


@pytest.mark.parametrize(
    'format,precision', [(f, p) for f in FORMATS for p in FORMATS[f].precisions]
)
def test_every_way_agrees_with_keras_on_real_photos(net, photos, tmp_path, format, precision):
    need(format)
    made = load_export(export(net, tmp_path / 'out', format, precision, sample=photos))
    x = load_images(photos.paths, (48, 40))
    expected = net.predict(x, verbose=0)
    got = made(x)
    assert got.dtype == np.float32 and got.shape == expected.shape
    assert abs(got - expected).max() <= EXACT[precision] * abs(expected).max()
    np.testing.assert_allclose(
        made(x[:3]), got[:3], atol=1e-5 if precision != 'bfloat16' else 0.05
    )  # any number of photos
    assert (
        made.note['precision'] == precision
        and made.note['size'] == [48, 40]
        and made.note['out_dims'] == 8
    )


def test_lite0_as_a_server_gets_it(lite0, photos, tmp_path):
    "JPEG bytes in, embedding out: as Keras on read_image's pixels, R@1 on nearest photos the same."
    net = base_network((224, 224, 3), 16, str(lite0), activation='l2')
    made = load_export(export(net, tmp_path / 'out', sample=photos.subset(range(8))))
    got = made.files([open(p, 'rb').read() for p in photos.paths[:12]])
    expected = net.predict(load_images(photos.paths[:12], (224, 224)), verbose=0)
    assert (got * expected).sum(1).min() > 0.999
    np.testing.assert_allclose(
        made(load_images(photos.paths[:4], (224, 224))), expected[:4], atol=1e-4
    )


def saved(im, format='JPEG', **kw):
    out = io.BytesIO()
    im.save(out, format, **kw)
    return out.getvalue()


decoder = lru_cache(file_decoder)  # tracing its graph takes longer than decoding many files


def decoded(data, size):
    return decoder(size)(tf.constant([data])).numpy()[0]


@pytest.mark.parametrize('size', [(48, 40), (224, 224), (30, 90)])
def test_files_become_the_pixels_of_read_image(photos, size):
    """Photos as they are, turned eight ways with either byte order, large, grey, palette,
    transparent, 16 bits, BMP, GIF."""
    first = Image.open(photos.paths[0]).convert('RGB')

    def exif(k, order):
        return (lambda e: (e.__setitem__(0x0112, k), e)[1])(Image.Exif())

    cases = {f'photo {i}': open(p, 'rb').read() for i, p in enumerate(photos.paths[:6])}
    for k in range(1, 9):
        cases[f'turned {k}'] = saved(first, exif=exif(k, 'II').tobytes(), quality=95)
    cases |= {
        'large': saved(first.resize((1600, 2100))),
        'grey': saved(first.convert('L')),
        'palette': saved(first.quantize(32), 'PNG'),
        'png': saved(first, 'PNG'),
        'bmp': saved(first, 'BMP'),
        'wide': saved(first.resize((1300, 90))),
        'gif': saved(first.quantize(64), 'GIF'),
        'tiny': saved(first.resize((9, 7))),
    }
    clear = first.convert('RGBA')
    clear.putalpha(Image.linear_gradient('L').resize(first.size))
    cases['transparent'] = saved(clear, 'PNG')
    for name, data in cases.items():
        apart = abs(decoded(data, size) - read_image(io.BytesIO(data), size).astype('float32'))
        assert apart.mean() < 1 and np.percentile(apart, 99) <= 4, (name, apart.mean(), apart.max())


@pytest.fixture(scope='module')
def tutorial(root):
    "`pixels` as the tutorial on serving gives it: Pillow and NumPy alone."
    notebook = json.loads(
        (root / 'nbs' / 'tutorials' / 'serving.ipynb').read_text(encoding='utf-8')
    )
    cells = [''.join(c['source']) for c in notebook['cells']]
    at = next(i for i, code in enumerate(cells) if 'def pixels(' in code)
    imports, code, space = cells[at - 1], cells[at], {}
    exec(imports + '\n' + code[: code.index('\nx = ')], space)
    return space['pixels']


@pytest.mark.parametrize('size', [(48, 40), (224, 224), (30, 90)])
def test_the_steps_in_the_tutorial_give_the_pixels_of_read_image(photos, tutorial, size):
    """Real photos of many sizes, turned eight ways, grey, palette, transparent: a difference of one
    level of 255 at most."""
    first = Image.open(photos.paths[0]).convert('RGB')

    def exif(k):
        return (lambda e: (e.__setitem__(0x0112, k), e)[1])(Image.Exif()).tobytes()

    cases = {f'photo {i}': open(p, 'rb').read() for i, p in enumerate(photos.paths[:12])}
    cases |= {f'turned {k}': saved(first, exif=exif(k), quality=95) for k in range(1, 9)}
    clear = first.convert('RGBA')
    clear.putalpha(Image.linear_gradient('L').resize(first.size))
    cases |= {
        'large': saved(first.resize((1600, 2100))),
        'large png': saved(first.resize((1000, 1300)), 'PNG'),
        'grey': saved(first.convert('L')),
        'palette': saved(first.quantize(32), 'PNG'),
        'wide': saved(first.resize((1300, 90))),
        'tiny': saved(first.resize((9, 7))),
        'transparent': saved(clear, 'PNG'),
        'cmyk': saved(first.convert('CMYK')),
    }
    for name, data in cases.items():
        got = tutorial(io.BytesIO(data), *size)
        assert got.dtype == np.float32 and got.shape == (1, *size, 3)
        apart = abs(got[0] - read_image(io.BytesIO(data), size).astype('float32'))
        assert apart.max() <= 1 or name == 'transparent' and apart.max() <= 2, (
            name,
            apart.mean(),
            apart.max(),
        )


def test_orientation_is_read_in_either_byte_order_and_never_guessed():
    first = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (2, 2, 3)).astype('uint8')
    ).resize((16, 24), Image.Resampling.BICUBIC)

    def tiff(order, k, tag=0x0112, kind=3, times=1):
        def n(v, size):
            return v.to_bytes(size, 'little' if order == b'II' else 'big')

        return (
            order
            + n(42, 2)
            + n(8, 4)
            + n(2, 2)
            + n(0x0100, 2)
            + n(3, 2)
            + n(1, 4)
            + n(8, 2)
            + b'\0\0'
            + n(tag, 2)
            + n(kind, 2)
            + n(times, 4)
            + (n(k, 2) + b'\0\0' if kind == 3 else n(k, 4))
            + n(0, 4)
        )

    notes = [
        tiff(order, k, *more)
        for order in (b'II', b'MM')
        for k in (0, 1, 3, 6, 8, 9, 60000)
        for more in ((), (0x0113,), (0x0112, 4), (0x0112, 5), (0x0112, 3, 0))
    ]
    rng = np.random.default_rng(0)
    notes += [rng.bytes(n) for n in (0, 5, 40, 300) for _ in range(5)] + [
        b'II*\0' + rng.bytes(40),
        b'MM\0*\0\0\0\x08\xff\xff',
        b'II\0*' + tiff(b'II', 6)[4:],
    ]
    for note in notes:
        data = saved(first, exif=b'Exif\0\0' + note, quality=95)
        assert abs(decoded(data, (12, 8)) - read_image(data, (12, 8))).max() <= 4, note


@pytest.mark.parametrize('format', FORMATS)
def test_layers_may_have_any_name(tmp_path, format):
    need(format)
    keras.utils.set_random_seed(0)
    i = keras.Input((16, 16, 3), name='photo in')
    body = keras.Model(
        i,
        L.GlobalAveragePooling2D(name='_pool')(L.Conv2D(4, 3, name='_conv (1)')(i)),
        name='옷 body',
    )
    net = keras.Sequential([keras.Input((16, 16, 3)), body, L.Dense(5, name='a.b c')], name='_net')
    made, x = (
        load_export(export(net, tmp_path / 'exported 옷', format)),
        np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3)).astype('uint8'),
    )
    np.testing.assert_allclose(
        made(x), np.asarray(net(x.astype("float32"), training=False)), rtol=1e-3, atol=1e-3
    )
    assert [l.name for l in net.layers] == ['옷 body', 'a.b c']


def test_bundles_and_three_inputs(net, tmp_path):
    save_bundle(tmp_path / 'bundle', triplet_model(net), threshold={'value': 0.3})
    made = load_export(export(tmp_path / 'bundle', tmp_path / 'out', 'litert'))
    x = np.random.default_rng(1).integers(0, 256, (3, 48, 40, 3)).astype('uint8')
    np.testing.assert_allclose(made(x), net.predict(x, verbose=0), atol=1e-4)
    assert made.note['threshold'] == {'value': 0.3}
    with pytest.raises(ValueError, match='only a savedmodel'):
        made.files([b''])
    with pytest.raises(ValueError, match=r'takes photos \(n, 48, 40, 3\)'):
        made(x[:, :-1])


def test_an_export_is_whole_or_not_there(net, tmp_path, monkeypatch):
    out = export(net, tmp_path / 'out', 'litert')
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(ValueError, match='differs from Keras'):
        export(net, out, 'litert', 'float16', tolerance=1e-9)

    def full(*a):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(FORMATS['litert'], 'write', full)
    with pytest.raises(OSError, match='No space'):
        export(net, out, 'litert')
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before and [
        p.name for p in tmp_path.iterdir()
    ] == ['out']
    monkeypatch.undo()
    export(net, out, 'litert', 'float16')  # replaces an export
    assert load_export(out).note['precision'] == 'float16'
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'letter.txt').write_text('dear')
    with pytest.raises(FileExistsError, match='mine is there and no export'):
        export(net, tmp_path / 'mine', 'litert')


def test_an_export_changes_places_in_one_step_and_a_link_stays(net, tmp_path, monkeypatch):
    """A process that dies while the new export takes the old one's place leaves one of them whole,
    under its name or where the next call finds it."""
    from triplet_fashion.storage import folders

    (tmp_path / 'disk').mkdir()
    (tmp_path / 'out').symlink_to(tmp_path / 'disk' / 'out')
    out = export(net, tmp_path / 'out', 'litert')

    class Killed(BaseException):
        pass

    def dies(*a):
        raise Killed

    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(folders, 'exchange_folders', lambda *a: False)
        real = os.replace
        m.setattr(
            os,
            'replace',
            lambda a, b: dies() if str(b) == str(tmp_path / 'disk' / 'out') else real(a, b),
        )
        export(net, out, 'litert', 'float16')
    assert load_export(out).note['precision'] == 'float32' and not out.exists()
    export(net, out, 'litert', 'float16')
    assert (
        load_export(out).note['precision'] == 'float16'
        and out.is_symlink()
        and [p.name for p in (tmp_path / 'disk').iterdir()] == ['out']
    )


def test_changed_exports_are_refused(net, tmp_path):
    out = export(net, tmp_path / 'out', 'litert')
    data = bytearray((out / 'network.tflite').read_bytes())
    data[len(data) // 2] ^= 1
    (out / 'network.tflite').write_bytes(data)
    with pytest.raises(ValueError, match='network.tflite is not the file that was exported'):
        load_export(out)
    note = json.loads((out / 'export.json').read_text())
    for change in (
        dict(size=None),
        dict(size=[48]),
        dict(size=['48', '40']),
        dict(size=[48, True]),
        dict(out_dims='8'),
        dict(files=[1]),
        dict(files=3),
        dict(files={'a': 1}),
        dict(precision=['float32']),
        dict(format=3),
        dict(file=None),
    ):
        (out / 'export.json').write_text(json.dumps(note | change))
        with pytest.raises(ValueError, match='does not describe'):
            load_export(out)
    for text, words in (
        ('{', 'no JSON'),
        ('[' * 100_000, 'no JSON'),
        ('[]', 'does not describe'),
        (
            json.dumps(
                {
                    'format': 'triplet_fashion export, litert',
                    'precision': 'float32',
                    'file': '../../x.tflite',
                }
            ),
            'does not describe',
        ),
    ):
        (out / 'export.json').write_text(text)
        with pytest.raises(ValueError, match=words):
            load_export(out)
    with pytest.raises(FileNotFoundError, match='no export'):
        load_export(tmp_path)


def test_what_cannot_be_exported_is_said_first(net, tmp_path, monkeypatch):
    for words, a, kw in (
        ("'savedmodel', 'onnx'", (net, tmp_path / 'x', 'coreml'), {}),
        ("'float16', 'int8'", (net, tmp_path / 'x', 'litert', 'bfloat16'), {}),
        ('needs sample', (net, tmp_path / 'x', 'onnx', 'int8'), {}),
        ('sample has shape', (net, tmp_path / 'x'), dict(sample=np.zeros((2, 40, 48, 3), 'uint8'))),
        (
            'photos of one size',
            (keras.Sequential([keras.Input((7,)), L.Dense(2)]), tmp_path / 'x'),
            {},
        ),
    ):
        with pytest.raises(ValueError, match=words):
            export(*a, **kw)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'triplet_fashion\[export\]'):
        export(net, tmp_path / 'x', 'onnx')
    assert not list(tmp_path.iterdir())


def test_the_report_goes_on_where_one_way_fails(net, drawn, monkeypatch):
    def fails(*a):
        raise RuntimeError('this converter has no such layer')

    monkeypatch.setattr(FORMATS['litert'], 'write', fails)
    rows = export_report(net, drawn, drawn, ways=[('litert', 'float32'), ('savedmodel', 'float32')])
    assert (
        rows[1]
        == dict(
            format='litert',
            precision='float32',
            problem='export: base_network cannot be exported as litert: '
            'RuntimeError: this converter has no such layer',
        )
        and rows[2]['change'] == 0
    )


def test_the_report_counts_what_is_lost(net, drawn):
    rows = export_report(net, drawn, drawn, ways=[('litert', 'float32'), ('litert', 'int8')])
    assert [(r['format'], r['precision']) for r in rows] == [
        ('keras', 'float32'),
        ('litert', 'float32'),
        ('litert', 'int8'),
    ]
    assert (
        rows[0]['change'] == 0
        and rows[1]['R@1'] == pytest.approx(rows[0]['R@1'], abs=0.02)
        and rows[2]['MB'] < 0.5 * rows[1]['MB']
        and rows[2]['difference'] > rows[1]['difference']
    )


def test_another_format_does_not_delete_an_export(net, tmp_path):
    """Nor what a user has put beside it; the same format takes the old one's place, in whatever
    precision."""
    need('onnx')
    out = export(net, tmp_path / 'out', 'litert')
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for format in ('savedmodel', 'onnx', 'openvino'):
        with pytest.raises(
            FileExistsError,
            match='holds network.tflite, which this export would delete: give another folder',
        ):
            export(net, out, format)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    export(net, out, 'litert', 'float16')
    (out / 'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='holds notes.txt'):
        export(net, out, 'litert')
    assert (out / 'notes.txt').read_text() == 'mine'


@pytest.mark.parametrize('policy', ['mixed_bfloat16', 'mixed_float16'])
@pytest.mark.parametrize('format', FORMATS)
def test_what_was_trained_in_half_precision_is_exported_in_float32(format, policy, tmp_path):
    need(format)
    old = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(policy)
        net = network()
    finally:
        keras.config.set_dtype_policy(old)
    x = np.random.default_rng(1).integers(0, 256, (5, 48, 40, 3)).astype('uint8')
    made = load_export(export(net, tmp_path / 'out', format))
    assert made.note['precision'] == 'float32' and made(x).dtype == np.float32
    assert abs(made(x) - net.predict(x, verbose=0)).max() < 0.05


@pytest.mark.parametrize('format', FORMATS)
def test_networks_that_take_whole_numbers(format, tmp_path):
    need(format)
    i = keras.Input((16, 16, 3), dtype='uint8')
    net = keras.Model(i, L.GlobalAveragePooling2D()(L.Rescaling(1 / 255)(i)))
    x = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3)).astype('uint8')
    np.testing.assert_allclose(
        load_export(export(net, tmp_path / 'out', format))(x), net.predict(x, verbose=0), atol=1e-4
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.d = L.Dense(4)

    def call(self, x):
        return self.d(keras.ops.reshape(x, (-1, 768)))


def odd_networks():
    i, grey, small = (
        keras.Input((16, 16, 3)),
        keras.Input((16, 16, 1)),
        keras.Input((None, None, 3)),
    )
    flat = L.Flatten()(i)
    built = Subclassed()
    built(np.zeros((1, 16, 16, 3), 'float32'))
    return {
        'two outputs': keras.Model(i, [L.Dense(4)(flat), L.Dense(2)(flat)]),
        'grey': keras.Model(grey, L.Flatten()(grey)),
        'any size': keras.Model(small, L.GlobalAveragePooling2D()(small)),
        'subclassed': built,
        'not built': keras.Sequential([L.Flatten()]),
        'three inputs of its own': keras.Model(
            [i, keras.Input((16, 16, 3)), keras.Input((16, 16, 3))], flat
        ),
        'a vector': keras.Model(v := keras.Input((7,)), L.Dense(2)(v)),
    }


@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('name', odd_networks())
def test_odd_networks_are_refused_before_the_work(name, format, tmp_path):
    with pytest.raises(ValueError, match=r'^export: .*wanted is a network for photos of one size'):
        export(odd_networks()[name], tmp_path / 'out', format)
    assert not list(tmp_path.iterdir())


def test_what_a_converter_cannot_do_is_one_sentence(tmp_path):
    "Sorting has no counterpart in LiteRT's own operations."
    i = keras.Input((8, 8, 3))
    net = keras.Model(
        i, L.Lambda(lambda x: tf.raw_ops.Cross(a=x[:, 0, 0], b=x[:, 0, 1]))(i), name='odd'
    )
    with pytest.raises(ValueError, match='^export: odd cannot be exported as litert: ') as e:
        export(net, tmp_path / 'out', 'litert')
    assert '\n' not in str(e.value) and len(str(e.value)) < 500 and not list(tmp_path.iterdir())


def test_settings_that_mean_nothing_are_named(net, tmp_path):
    for tolerance in (-1, float('nan')):
        with pytest.raises(ValueError, match='tolerance'):
            export(net, tmp_path / 'out', tolerance=tolerance)


def test_files_that_cannot_be_decoded_are_named(net, tmp_path):
    made = load_export(export(net, tmp_path / 'out'))
    good = saved(Image.new('RGB', (20, 20)))
    for bad, words in (
        (b'', 'another kind'),
        (b'%!PS', 'JPEG, PNG, GIF, BMP'),
        (good[:200], 'photo 1 cannot be decoded'),
        (saved(Image.new('RGB', (20, 20)), 'TIFF'), 'send pixels'),
    ):
        with pytest.raises(ValueError, match=words):
            made.files([good, bad, good])
    with pytest.raises(TypeError, match='not str'):
        made.files(['a.jpg'])


@pytest.mark.parametrize('format', FORMATS)
def test_threads_may_share_an_export(net, tmp_path, format):
    from concurrent.futures import ThreadPoolExecutor

    need(format)
    made = load_export(export(net, tmp_path / 'out', format))
    photos = [np.full((2, 48, 40, 3), 10 * k, 'uint8') for k in range(24)]
    want = [made(x) for x in photos]
    with ThreadPoolExecutor(8) as pool:
        for a, b in zip(pool.map(made, photos), want):
            np.testing.assert_array_equal(a, b)


def test_the_report_takes_folders(net, drawn):
    rows = export_report(
        net, str(drawn.root), None, gallery=str(drawn.root), ways=[('litert', 'float32')]
    )
    assert rows[1]['change'] == 0


@pytest.mark.parametrize('format', FORMATS)
def test_constants_of_a_network_stay_inside(format, tmp_path):
    "Normalization computes with a mean that is no weight: no format may ask for it as an input."
    need(format)
    keras.utils.set_random_seed(0)
    norm = L.Normalization()
    norm.adapt(np.random.default_rng(0).uniform(0, 255, (50, 8, 8, 3)))
    net = keras.Sequential([keras.Input((8, 8, 3)), norm, L.Flatten(), L.Dense(4)])
    x = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype('uint8')
    made = load_export(export(net, tmp_path / 'out', format, sample=x))
    np.testing.assert_allclose(made(x), net.predict(x, verbose=0), atol=1e-5)


def test_constants_of_a_network_are_no_inputs_of_its_onnx_file(tmp_path):
    "Keras alone asks for them; where the first half fails, `constant_model` can go."
    need('onnx')
    import onnxruntime

    net = keras.Sequential([keras.Input((8, 8, 3)), L.Normalization(), L.Flatten()])
    net.layers[0].adapt(np.arange(192.0).reshape(1, 8, 8, 3))
    x = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype('float32')
    net(x)
    net.export(tmp_path / 'theirs.onnx', format='onnx', verbose=False)
    made = load_export(export(net, tmp_path / 'ours', 'onnx'))

    def inputs(path):
        return onnxruntime.InferenceSession(str(path)).get_inputs()

    assert len(inputs(tmp_path / 'theirs.onnx')) > 1
    assert len(inputs(tmp_path / 'ours' / 'network.onnx')) == 1
    np.testing.assert_allclose(made(x), net.predict(x, verbose=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('format', ['onnx', 'openvino', 'litert'])
def test_files_are_written_by_keras(tmp_path, monkeypatch, format):
    need(format)
    written, write = [], keras.Model.export

    def watched(model, path, format, **settings):
        written.append(format)
        return write(model, path, format, **settings)

    monkeypatch.setattr(keras.Model, 'export', watched)
    net = keras.Sequential([keras.Input((8, 8, 3)), L.Flatten(), L.Dense(4)])
    export(net, tmp_path / format, format)
    assert written == [format]