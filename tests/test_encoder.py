"Encoding in bulk: odd files, parts on disk, kills at any moment, a cluster."

import os, re, shutil, signal, subprocess, sys, textwrap, threading, time
from pathlib import Path

import numpy as np, pytest
from PIL import Image

keras = pytest.importorskip('keras')
from triplet_fashion.base_network import base_network
from triplet_fashion.encoder import Encoder, encode, read_encodings
from triplet_fashion.photos.image import PhotoError, read_image
from triplet_fashion.photos.loading import load_images
from triplet_fashion.engines import make_engine
from triplet_fashion.storage.files import atomic_write

SIZE = 32, 24


def network():
    keras.utils.set_random_seed(0)
    return base_network((*SIZE, 3), 6, 'small', None, hidden=(), activation='l2')


@pytest.fixture(scope='module')
def net():
    return network()


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    """Photos as they come: turned by EXIF, CMYK, 16 bits, palette, WebP, a Korean name, and three
    that are none."""
    folder, rng = tmp_path_factory.mktemp('odd'), np.random.default_rng(0)

    def picture():
        return Image.fromarray(rng.integers(0, 256, (60, 50, 3)).astype('uint8')).resize(
            (50, 60), Image.Resampling.BICUBIC
        )

    exif = Image.Exif()
    exif[0x112] = 6
    picture().save(folder / 'turned.jpg', exif=exif)
    picture().convert('CMYK').save(folder / 'cmyk.jpg')
    Image.fromarray((rng.random((40, 30)) * 65535).astype('uint16')).save(folder / 'deep.png')
    picture().quantize(16).save(folder / 'palette.png')
    picture().save(folder / 'web.webp')
    picture().save(folder / '옷 #1 (남색).jpg')
    picture().save(folder / 'cut.jpg')
    (folder / 'cut.jpg').write_bytes((folder / 'cut.jpg').read_bytes()[:400])
    (folder / 'empty.jpg').write_bytes(b'')
    (folder / 'text.jpg').write_text('no photo')
    return folder


BAD = 'cut.jpg', 'empty.jpg', 'text.jpg'


def one_by_one(net, paths):
    return np.concatenate(
        [net.predict(read_image(p, SIZE)[None].astype('float32'), verbose=0) for p in paths]
    )


def test_rows_are_those_of_predict_whatever_the_file(net, odd):
    good = sorted(p for p in odd.iterdir() if p.name not in BAD)
    np.testing.assert_allclose(
        encode(good, net, batch_size=4), one_by_one(net, good), atol=2e-3
    )  # a fast JPEG may differ by one level of 255
    np.testing.assert_allclose(
        encode([p for p in good if p.suffix != '.jpg'], net),
        one_by_one(net, [p for p in good if p.suffix != '.jpg']),
        atol=1e-5,
    )


@pytest.mark.parametrize('batch_size', [1, 3, 64])
def test_bad_photos_are_named_and_the_others_stay_in_their_places(net, odd, batch_size):
    paths = sorted(odd.iterdir())
    with pytest.raises(PhotoError, match='cut.jpg'):
        encode(paths, net, batch_size)
    with pytest.warns(UserWarning, match='3 of 9 photos could not be read') as said:
        rows = encode(paths, net, batch_size, bad='nan')
    assert all(b in str(said[-1].message) for b in BAD)
    assert [p.name for p, r in zip(paths, rows) if np.isnan(r).any()] == sorted(
        BAD
    ) and np.isfinite(rows).all(1).sum() == 6
    good = [p for p in paths if p.name not in BAD]
    np.testing.assert_allclose(
        rows[np.isfinite(rows).all(1)], encode(good, net, batch_size), atol=1e-5
    )
    with pytest.raises(ValueError, match="bad='skip'"):
        encode(paths, net, bad='skip')


@pytest.fixture(params=['.npz', '.parquet'])
def suffix(request, monkeypatch):
    "Either kind of part."
    if request.param == '.parquet':
        pytest.importorskip('pyarrow', reason='needs pyarrow')
    monkeypatch.setattr('triplet_fashion.storage.parts.part_suffix', lambda: request.param)
    return request.param


def test_parts_hold_ids_rows_and_problems(net, odd, tmp_path, suffix):
    paths = sorted(odd.iterdir())
    with pytest.warns(UserWarning, match='3 of 9'):
        rows = encode(paths, net, 2, out=tmp_path / 'out', part_size=4)
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
        'encoding.json',
        *(f'part-00000{k}{suffix}' for k in range(3)),
    ]
    ids, same, problems = read_encodings(tmp_path / 'out')
    assert ids == [str(p) for p in paths] and {Path(p).name for p in problems} == set(BAD)
    np.testing.assert_array_equal(rows, same)
    if suffix == '.parquet':
        import pyarrow.parquet as pq

        assert pq.read_table(tmp_path / 'out' / 'part-000000.parquet').column_names == [
            'id',
            'embedding',
            'problem',
        ]


def test_a_complete_folder_costs_nothing_and_a_lost_part_is_made_again(net, drawn, tmp_path):
    out = tmp_path / 'out'
    rows = encode(drawn, net, out=out, part_size=20)
    assert read_encodings(out)[0] == list(drawn.ids)
    stamps = {p.name: p.stat().st_mtime_ns for p in out.glob('part-*')}
    lost = sorted(out.glob('part-*'))[2]
    lost.unlink()
    with pytest.raises(ValueError, match='1 of 4 parts are missing'):
        read_encodings(out)
    np.testing.assert_allclose(
        encode(drawn, net, out=out, part_size=20), rows, atol=1e-6
    )  # other batches: the last bit may differ
    assert [n for n, t in stamps.items() if (out / n).stat().st_mtime_ns != t] == [lost.name]


def test_parts_of_other_work_are_refused_by_name(net, drawn, tmp_path):
    encode(drawn, net, out=tmp_path / 'out', part_size=50)
    other = network()
    other.layers[-2].set_weights([w + 0.1 for w in other.layers[-2].get_weights()])
    for what, call in (
        ('model', lambda o: encode(drawn, other, out=o, part_size=50)),
        ('part_size', lambda o: encode(drawn, net, out=o, part_size=51)),
        ('photos', lambda o: encode(drawn.paths[:-1], net, out=o, part_size=50)),
        ('fit', lambda o: encode(drawn, net, out=o, part_size=50, fit='pad')),
    ):
        with pytest.raises(ValueError, match=f'made with other.*{what}'):
            call(tmp_path / 'out')
    (tmp_path / 'loose').mkdir()
    (tmp_path / 'loose' / 'part-000000.npz').write_bytes(b'')
    with pytest.raises(ValueError, match='parts but no encoding.json'):
        encode(drawn, net, out=tmp_path / 'loose')


def test_a_photo_that_changed_belongs_to_other_work(net, drawn, tmp_path):
    paths = [tmp_path / f'{i}.png' for i in range(3)]
    for p, q in zip(paths, drawn.paths):
        Image.open(q).convert('RGB').resize((24, 32)).save(p)
    encode(paths, net, out=tmp_path / 'out')
    Image.new('RGB', (24, 32)).save(paths[1])
    with pytest.raises(ValueError, match='made with other photos'):
        encode(paths, net, out=tmp_path / 'out')


def test_arrays_go_into_parts_too(net, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (11, *SIZE, 3)).astype('uint8')
    rows = encode(x, net, 3, out=tmp_path / 'out', part_size=4)
    np.testing.assert_allclose(rows, encode(x, net), atol=1e-6)
    assert read_encodings(tmp_path / 'out')[0] == [str(i) for i in range(11)]


def test_a_network_that_goes_on_learning_is_not_remembered(net, drawn):
    "The graph is kept with the model, its numbers are not."
    ours = network()
    first = encode(drawn.paths[:4], ours)
    ours.layers[-2].set_weights([-w for w in ours.layers[-2].get_weights()])
    np.testing.assert_allclose(encode(drawn.paths[:4], ours), -first, atol=1e-5)


def test_engines_and_halves(net, drawn):
    rows = encode(drawn, net)
    np.testing.assert_allclose(encode(drawn, net, engine='litert'), rows, atol=1e-4)
    made = make_engine(net, 'auto', photos=10**6)
    np.testing.assert_allclose(encode(drawn, net, engine=made), rows, atol=1e-4)
    np.testing.assert_allclose(encode(drawn, net, precision='bfloat16'), rows, atol=0.1)
    with pytest.raises(ValueError, match='coreml'):
        encode(drawn, net, engine='coreml')


def colours(x):
    return np.asarray(x, 'float32').mean((1, 2))


def greys(x):
    return np.asarray(x, 'float32').mean((1, 2, 3))[:, None]


def test_parts_belong_to_one_function(drawn, tmp_path):
    """A function is known by its name and code; one without a name of its own is refused before it
    is called."""

    def make():
        return lambda x: colours(x)

    rows = encode(drawn.paths[:4], colours, out=tmp_path / 'out', size=(8, 8))
    np.testing.assert_array_equal(
        encode(drawn.paths[:4], colours, out=tmp_path / 'out', size=(8, 8)), rows
    )
    with pytest.raises(ValueError, match='made with other model'):
        encode(drawn.paths[:4], greys, out=tmp_path / 'out', size=(8, 8))
    import functools

    for f in (lambda x: colours(x)), make(), functools.partial(colours), network().predict_on_batch:
        with pytest.raises(ValueError, match='cannot be told from others'):
            encode(drawn.paths[:4], f, out=tmp_path / 'lambda', size=SIZE)
    assert encode(drawn.paths[:4], lambda x: colours(x), size=(8, 8)).shape == (4, 3)


def test_an_engine_of_another_network_is_refused(net, drawn):
    """Same shape, other numbers; and the same network after it learned on, which a frozen engine
    does not know of."""
    ours = network()
    made, live = make_engine(ours, 'litert'), make_engine(ours, 'tf')
    other = network()
    other.layers[-2].set_weights([w + 0.1 for w in other.layers[-2].get_weights()])
    for m in made, live:
        encode(drawn.paths[:3], ours, engine=m)
        with pytest.raises(ValueError, match='made of another network'):
            encode(drawn.paths[:3], other, engine=m)
    ours.layers[-2].set_weights([-w for w in ours.layers[-2].get_weights()])
    encode(drawn.paths[:3], ours, engine=live)
    with pytest.raises(ValueError, match='before model learned on'):
        encode(drawn.paths[:3], ours, engine=made)


def test_damaged_parts_and_notes_are_named(net, drawn, tmp_path):
    out = tmp_path / 'out'
    encode(drawn, net, out=out, part_size=30)
    part, note = sorted(out.glob('part-*'))[1], out / 'encoding.json'
    good, said = part.read_bytes(), note.read_text()
    for data in b'', good[: len(good) // 2], b'not a part':
        part.write_bytes(data)
        for call in (
            (lambda: encode(drawn, net, out=out, part_size=30)),
            (lambda: read_encodings(out)),
        ):
            with pytest.raises(ValueError, match=f'{part.name} is damaged.*delete it'):
                call()
    part.unlink()
    encode(drawn, net, out=out, part_size=30)
    for text in '', '{', '[]', '{"parts": "x"}', '[' * 5000:
        note.write_text(text)
        for call in (
            (lambda: encode(drawn, net, out=out, part_size=30)),
            (lambda: read_encodings(out)),
        ):
            with pytest.raises(ValueError, match='encoding.json'):
                call()
    note.write_text(said)
    read_encodings(out)
    with pytest.raises(FileNotFoundError, match='nothing.*holds no encodings'):
        read_encodings(tmp_path / 'nothing')


def test_numbers_that_make_no_sense(net, drawn, tmp_path):
    for kw in dict(batch_size=0), dict(batch_size=-1), dict(batch_size=1.5), dict(part_size=0):
        with pytest.raises(ValueError, match=f'{next(iter(kw))}=.*whole number'):
            encode(drawn, net, **kw)


def test_the_choice_is_said(net, drawn, capsys):
    encode(drawn, net, engine='auto', progress=True)
    assert f'encoded by {make_engine(net, photos=len(drawn))}' in capsys.readouterr().err
    encode(drawn, net, engine='auto')
    assert capsys.readouterr().err == '' and not hasattr(net, 'encoding_engine')


def test_a_run_that_goes_on_takes_the_engine_it_had(drawn, tmp_path, monkeypatch):
    "How many photos there are in all counts, not how many are left."
    from triplet_fashion import encoder as module

    asked = []

    class Noted(module.LazyEngine):
        def __init__(self, *a):
            asked.append(a[3])
            super().__init__(*a)

    monkeypatch.setattr(module, 'LazyEngine', Noted)
    ours = network()
    encode(drawn, ours, out=tmp_path / 'out', part_size=20, engine='auto')
    sorted((tmp_path / 'out').glob('part-*'))[1].unlink()
    encode(drawn, ours, out=tmp_path / 'out', part_size=20, engine='auto')
    assert asked == [len(drawn)] * 2


def test_progress_comes_to_its_end(net, drawn, tmp_path):
    said = []
    encode(drawn, net, 16, progress=lambda i, n: said.append((i, n)))
    assert said == [(i, 5) for i in range(1, 6)]
    said.clear()
    encode(
        drawn,
        net,
        16,
        progress=lambda i, n: said.append((i, n)),
        out=tmp_path / 'out',
        part_size=20,
    )
    assert said[-1] == (5, 5)


def test_the_next_photos_are_read_while_these_are_computed(drawn, monkeypatch):
    """Inside the first call of the model the photos of the second batch are already being read: it
    waits for that, in vain where nothing overlaps."""
    from triplet_fashion.photos.loading import ImageLoader

    second, load, waited = threading.Event(), ImageLoader.load, []

    def loads(self, positions):
        if positions[0] == 4:
            second.set()
        return load(self, positions)

    monkeypatch.setattr(ImageLoader, 'load', loads)

    def model(x):
        waited.append(second.wait(20))
        return colours(x)

    encode(drawn.paths[:12], model, 4, size=(8, 8))
    assert waited == [True] * 3


def test_bad_photos_in_a_dictionary(net, odd, tmp_path):
    import warnings

    paths, bad = sorted(odd.iterdir()), {}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        encode(paths, net, 4, bad=bad)
    assert {Path(p).name for p in bad} == set(BAD)
    again = {}
    encode(paths, net, 4, bad=again, out=tmp_path / 'out')
    assert again == bad


def test_half_written_parts_of_others_stay(net, drawn, tmp_path):
    """On a disk of many machines: what a process of another machine is writing is not swept away, a
    dead one's of this machine is."""
    out = tmp_path / 'out'
    out.mkdir()
    with atomic_write(out / 'part-000000.npz') as part:
        mine = part.name
    (out / 'part-000000.npz').unlink()
    (tag,) = re.findall(r'[.]([0-9a-f]{8})-', mine)
    dead, elsewhere = f'-{10**9 - 1}-', f'.{"0" * 8}-'
    names = dict(
        theirs=mine.replace(f'.{tag}-', elsewhere),
        ours=mine.replace(f'-{os.getpid()}-', dead),
        running=mine,
    )
    names['stale'] = names['theirs'].replace('000000', '000001')
    for n in names.values():
        (out / n).write_bytes(b'half')
    os.utime(out / names['stale'], (0, 0))
    encode(drawn, net, out=out, part_size=40)
    assert sorted(p.name for p in out.glob('.*')) == sorted([names['theirs'], names['running']])


def test_a_changed_byte_is_noticed_or_harmless(net, odd, tmp_path, suffix):
    """In a part and in the note, wherever it is: nothing but the rows, ids and problems that were
    written ever comes back."""
    paths, out = (
        [p for p in sorted(odd.iterdir()) if p.suffix == '.png'] + [odd / 'text.jpg'],
        tmp_path / 'out',
    )
    encode(paths, net, out=out, bad={}, part_size=10)
    ids, rows, problems = read_encodings(out)
    noticed = {}
    for file in out.iterdir():
        whole = file.read_bytes()
        for i in range(len(whole)):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
            try:
                again = read_encodings(out)
            except ValueError as e:
                assert file.name in str(e) and 'damaged' in str(e)
                noticed[file.name] = noticed.get(file.name, 0) + 1
                continue
            assert again[0] == ids and again[2] == problems
            np.testing.assert_array_equal(again[1], rows)
        file.write_bytes(whole)
    assert noticed[f'part-000000{suffix}'] > 4 * rows.size and noticed['encoding.json'] > 200


def test_parts_that_changed_places_are_noticed(net, drawn, tmp_path, suffix):
    encode(drawn.subset(range(6)), net, out=tmp_path, part_size=3)
    a, b = sorted(tmp_path.glob('part-*'))
    a.rename(tmp_path / 'aside')
    b.rename(a)
    (tmp_path / 'aside').rename(b)
    with pytest.raises(ValueError, match='a part of other photos'):
        read_encodings(tmp_path)


def test_names_that_are_no_text_survive(net, drawn, tmp_path, suffix):
    """A file name is bytes: from an old archive it need not be UTF-8. Nor need what is wrong with
    such a photo."""
    names = [
        b'caf\xe9.jpg',
        b'"quoted".jpg',
        '옷.jpg'.encode(),
        b'back\\slash.jpg',
        b'\xff\xfe.jpg',
    ]
    paths = [os.path.join(tmp_path, os.fsdecode(n)) for n in names]
    for p, q in zip(paths[:-1], drawn.paths):
        shutil.copy(q, p)
    Path(paths[-1]).write_bytes(b'half')
    bad = {}
    rows = encode(paths, net, out=tmp_path / 'out', bad=bad)
    ids, same, problems = read_encodings(tmp_path / 'out')
    assert ids == paths and list(problems) == list(bad) == paths[-1:]
    np.testing.assert_array_equal(rows, same)
    np.testing.assert_array_equal(encode(paths, net, out=tmp_path / 'out', bad={}), rows)


FITS = 'stretch', 'crop', 'pad'


@pytest.mark.parametrize('fit', FITS)
def test_an_odd_header_makes_a_bad_photo(net, drawn, tmp_path, fit):
    "Whatever stands where a JPEG's header has height, width, precision and channels."
    good = Path(drawn.paths[0]).read_bytes()
    at = good.index(b'\xff\xc0')
    odd = {
        'height': (5, b'\0\0'),
        'width': (7, b'\0\0'),
        'both': (5, b'\0\0\0\0'),
        'huge': (5, b'\xff\xff\xff\xff'),
        'precision': (4, b'\x0c'),
        'channels': (9, b'\0'),
        'length': (2, b'\0\0'),
        'thin': (5, b'\xff\xff\0\1'),
    }
    paths = [tmp_path / 'good.jpg']
    paths[0].write_bytes(good)
    for name, (i, data) in odd.items():
        paths.append(tmp_path / f'{name}.jpg')
        paths[-1].write_bytes(good[: at + i] + data + good[at + i + len(data) :])
    bad = {}
    rows = encode(paths, net, fit=fit, bad=bad)
    assert set(map(str, paths[1:4])) <= set(bad) and str(paths[0]) not in bad
    assert [np.isnan(r).all() for r in rows] == [str(p) in bad for p in paths]
    for p in bad:
        with pytest.raises(PhotoError, match=Path(p).name):
            encode([paths[0], p], net, fit=fit)


def test_a_photo_that_is_gone_is_a_bad_photo(net, drawn, tmp_path):
    paths = [*drawn.paths[:3], str(tmp_path / 'gone.jpg')]
    for out in None, tmp_path / 'out':
        bad = {}
        rows = encode(paths, net, bad=bad, out=out)
        assert list(bad) == paths[3:] and bad[paths[3]].startswith('missing')
        assert np.isfinite(rows[:3]).all() and np.isnan(rows[3]).all()
    with pytest.raises(FileNotFoundError, match='gone.jpg'):
        encode(paths, net)
    with pytest.raises(FileNotFoundError, match='2 of 2 files do not exist'):
        encode([tmp_path / 'a.jpg', tmp_path / 'b.jpg'], net, bad='nan')


def test_a_photo_that_vanishes_meanwhile_is_named(net, drawn, tmp_path, monkeypatch):
    "It is there when the work begins and gone when its batch is read."
    from triplet_fashion import encoder as module

    path, keep = tmp_path / 'late.jpg', module.ImageLoader

    def gone_by_then(*a, **kw):
        path.unlink()
        return keep(*a, **kw)

    monkeypatch.setattr(module, 'ImageLoader', gone_by_then)
    for model in net, colours:
        for bad in None, {}:
            shutil.copy(drawn.paths[0], path)
            if bad is None:
                with pytest.raises(PhotoError, match='late.jpg: missing'):
                    encode([*drawn.paths[:2], path], model, size=SIZE)
            else:
                assert np.isnan(
                    encode([*drawn.paths[:2], path], model, size=SIZE, bad=bad)[2]
                ).all() and list(bad) == [str(path)]


def test_a_folders_name_will_do_and_no_photos_are_named(net, drawn, tmp_path):
    rows = encode(drawn, net)
    np.testing.assert_allclose(encode(drawn.root, net), rows, atol=1e-6)
    encode(str(drawn.root), net, out=tmp_path / 'out')
    assert read_encodings(tmp_path / 'out')[0] == list(drawn.ids)
    for none in [], drawn.subset([]), np.zeros((0, *SIZE, 3)):
        with pytest.raises(ValueError, match='holds no photos'):
            encode(none, net)
    with pytest.raises(ValueError, match='is one path: give a list'):
        encode(drawn.paths[0], net)


def test_a_folder_for_parts_that_cannot_be_made_is_said_before_the_work(
    net, drawn, tmp_path, monkeypatch
):
    monkeypatch.setattr('triplet_fashion.encoder.ImageLoader', lambda *a: pytest.fail('work began'))
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(NotADirectoryError, match='out='):
        encode(drawn, net, out=tmp_path / 'file')


RUN = textwrap.dedent('''
    import sys
    sys.path[:0] = sys.argv[4:6]
    from test_encoder import network
    from triplet_fashion.catalog import Catalog
    from triplet_fashion.encoder import encode
    encode(Catalog.from_dir(sys.argv[1]), network(), 4, out=sys.argv[2], part_size=int(sys.argv[3]))
''')


def test_killed_at_any_moment_and_gone_on(net, drawn, tmp_path):
    """SIGKILL after the first, the third, the sixth part: no part is written twice, none is half
    there, and the rows are those of an undisturbed run."""
    out, here = tmp_path / 'out', Path(__file__).parent

    def start():
        return subprocess.Popen(
            [sys.executable, '-c', RUN, drawn.root, out, '4', here.parent, here],
            env=os.environ | {'TF_CPP_MIN_LOG_LEVEL': '3'},
        )

    def written():
        return (
            {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob('part-*')}
            if out.exists()
            else {}
        )

    before = {}
    for k in (1, 6):
        job, end = start(), time.time() + 120
        while len(written()) < k and job.poll() is None and time.time() < end:
            time.sleep(0.002)
        job.send_signal(signal.SIGKILL)
        job.wait()
        now = written()
        assert len(now) >= k and {n: now[n] for n in before} == before
        before = now
    rows = encode(drawn, net, 4, out=out, part_size=4)
    assert {n: written()[n] for n in before} == before and not list(out.glob('.*'))
    np.testing.assert_allclose(rows, encode(drawn, net, 4), atol=1e-6)


def test_a_cluster_makes_each_part_once_though_a_worker_is_killed(net, drawn, odd, tmp_path):
    """And a second work on it: a photo that cannot be read, and an engine that the worker makes
    once, by name or as an `InferenceEngine`."""
    ray = pytest.importorskip('ray', reason='needs Ray, triplet_fashion[cluster]')
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=10**8,
        _temp_dir='/tmp/ray_' + str(os.getpid()),
    )
    out, seen, killed, stop = tmp_path / 'out', {}, [], threading.Event()

    def workers():
        for p in Path('/proc').iterdir():
            if not p.name.isdigit():
                continue
            try:
                said = (p / 'cmdline').read_bytes()
            except OSError:
                continue
            if said.startswith(b'ray::') and b'MapBatches(_Worker)' in said:
                yield int(p.name)

    def watch():
        while not stop.is_set():
            for p in out.glob('part-*'):
                try:
                    seen.setdefault(p.name, set()).add(p.stat().st_ino)
                except OSError:
                    pass
            if seen and not killed:
                for pid in list(workers())[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.005)

    look = threading.Thread(target=watch)
    try:
        look.start()
        rows = encode(drawn, net, 4, out=out, part_size=3, cluster='auto')
        with pytest.warns(UserWarning, match='1 of 9 photos could not be read') as said:
            few = encode(
                [*drawn.paths[:8], odd / 'text.jpg'],
                net,
                4,
                out=tmp_path / 'few',
                part_size=2,
                cluster='auto',
                workers=1,
                engine=make_engine(net, 'litert'),
            )
        with pytest.raises(PhotoError, match='text.jpg'):
            encode(
                [*drawn.paths[:8], odd / 'text.jpg'],
                net,
                4,
                out=tmp_path / 'few',
                part_size=2,
                cluster='auto',
                engine='litert',
                bad='raise',
            )
    finally:
        stop.set()
        look.join()
        ray.shutdown()
    assert killed and len(seen) == 24 and {len(s) for s in seen.values()} == {1}
    np.testing.assert_allclose(rows, encode(drawn, net, 4), atol=1e-6)
    assert np.isnan(few[8]).all() and 'text.jpg' in str(said[-1].message)
    np.testing.assert_allclose(few[:8], rows[:8], atol=1e-4)


def test_what_a_cluster_cannot_do_is_said(net, drawn, tmp_path):
    pytest.importorskip('ray', reason='needs Ray, triplet_fashion[cluster]')
    with pytest.raises(ValueError, match='needs out'):
        encode(drawn, net, cluster='auto')
    with pytest.raises(ValueError, match='encodes files'):
        encode(np.zeros((2, *SIZE, 3), 'uint8'), net, out=tmp_path, cluster='auto')


def test_without_ray_the_extra_is_named(net, drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ImportError, match=r'triplet_fashion\[cluster\]'):
        encode(drawn, net, out=tmp_path, cluster='auto')


def test_a_keras_model_of_ones_own_gets_floats(drawn):
    "A subclassed network has no layers to make an engine of: it is called as it is."

    class Net(keras.Model):
        def call(self, images):
            assert images.dtype == 'float32'
            return keras.ops.mean(images, axis=(1, 2))

    found = encode(drawn.paths[:5], Net(), 2, size=(8, 8))
    assert np.allclose(found, load_images(drawn.paths[:5], (8, 8)).mean((1, 2)), atol=1)


# the encoder


@pytest.fixture
def built(monkeypatch):
    "Names of the engines built from here on."
    from triplet_fashion.engines import ENGINES

    names = []

    def noting(name, build):
        def noted(*a):
            names.append(name)
            return build(*a)

        return noted

    for name, build in list(ENGINES.items()):
        monkeypatch.setitem(ENGINES, name, noting(name, build))
    return names


def negate(net):
    net.layers[-2].set_weights([-w for w in net.layers[-2].get_weights()])


def test_an_encoder_encodes_as_the_function_does(net, drawn, tmp_path):
    encoder = Encoder(net)
    rows = encode(drawn, net)
    for photos in drawn, drawn.root, drawn.paths:
        np.testing.assert_array_equal(encoder.encode(photos), rows)
    folder = encoder.encode_to(tmp_path / 'out', drawn, part_size=20)
    np.testing.assert_allclose(read_encodings(folder)[1], rows, atol=1e-6)
    pixels = load_images(drawn.paths[:3], SIZE)
    assert np.allclose(encoder.encode(pixels, batch_size=1), rows[:3], atol=2e-3)


@pytest.mark.parametrize('engine', [None, 'tf', 'litert', 'auto'])
def test_an_encoder_builds_its_engine_once(drawn, tmp_path, built, engine):
    ours = network()
    before = set(vars(ours))
    encoder = Encoder(ours, engine, batch_size=4)
    for photos in drawn.paths[:3], drawn.paths[3:9], load_images(drawn.paths[:2], SIZE):
        encoder.encode(photos)
    encoder.encode_to(tmp_path, drawn.paths[:9], part_size=3)
    assert built == ['litert' if engine == 'litert' else 'tf']
    assert set(vars(ours)) == before  # nothing is kept with the network


@pytest.mark.parametrize('engine', [None, 'litert'])
def test_an_encoder_follows_a_network_that_learns(drawn, built, engine):
    ours = network()
    encoder = Encoder(ours, engine)
    first = encoder.encode(drawn.paths[:4])
    negate(ours)
    np.testing.assert_allclose(encoder.encode(drawn.paths[:4]), -first, atol=1e-4)
    assert built == (['tf'] if engine is None else ['litert'] * 2)


def test_an_encoder_makes_a_new_graph_when_the_layers_change(drawn, built):
    ours = network()
    encoder = Encoder(ours)
    encoder.encode(drawn.paths[:4])
    ours.add(keras.layers.Rescaling(2.0))
    few = drawn.paths[:4]
    np.testing.assert_allclose(encoder.encode(few), encode(few, ours), atol=1e-6)
    assert built == ['tf'] * 2


def test_an_encoder_sees_that_statistics_of_the_photos_are_others(drawn):
    "A graph holds a copy of the numbers of Normalization layers."
    norm = keras.layers.Normalization()
    norm.adapt(np.full((4, *SIZE, 3), 9.0) + np.arange(4.0)[:, None, None, None])
    net = keras.Sequential([keras.Input((*SIZE, 3)), norm, keras.layers.GlobalAveragePooling2D()])
    encoder = Encoder(net)
    first = encoder.encode(drawn.paths[:3])
    norm.set_weights([w * 2 if w.ndim else w for w in norm.get_weights()])
    norm.finalize_state()
    second = encoder.encode(drawn.paths[:3])
    np.testing.assert_allclose(second, encode(drawn.paths[:3], net), rtol=1e-5)
    assert not np.allclose(first, second)


def test_auto_takes_another_engine_when_many_photos_come(drawn, built, monkeypatch):
    from triplet_fashion import encoder as module

    keep = module.choose_engine

    def by_number(*a):
        return keep(*a) if a[3] < 20 else keep(*a)._replace(engine='litert')

    monkeypatch.setattr(module, 'choose_engine', by_number)
    monkeypatch.setattr('triplet_fashion.engines.choose_engine', by_number)
    encoder = Encoder(network(), 'auto')
    for n in 3, 5, 30, 40:
        encoder.encode(drawn.paths[:n])
    assert built == ['tf', 'litert']


def test_an_encoder_is_copied_without_its_engine(drawn):
    import copy, pickle

    encoder = Encoder(network(), batch_size=5)
    rows = encoder.encode(drawn.paths[:6])
    for other in copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder)):
        assert other.batch_size == 5
        np.testing.assert_allclose(other.encode(drawn.paths[:6]), rows, atol=1e-6)


def test_an_encoder_says_what_it_cannot_do(net, drawn, tmp_path):
    with pytest.raises(ValueError, match="on_error='skip'"):
        Encoder(net).encode(drawn, 'skip')
    with pytest.raises(ValueError, match='coreml'):
        Encoder(net, 'coreml')
    with pytest.raises(ValueError, match='batch_size=0'):
        Encoder(net, batch_size=0)
    with pytest.raises(ValueError, match='part_size=0'):
        Encoder(net).encode_to(tmp_path, drawn, 0)
    with pytest.raises(ValueError, match='photos are 8x8, the network takes 32x24'):
        Encoder(net, size=(8, 8)).encode(drawn)
    with pytest.raises(ValueError, match='engine and precision are for Keras models'):
        Encoder(colours, 'tf', size=SIZE).encode(drawn)


def test_threads_share_an_encoder(drawn, built):
    from concurrent.futures import ThreadPoolExecutor

    encoder, start = Encoder(network()), threading.Barrier(4)

    def one(_):
        start.wait()
        return encoder.encode(drawn.paths[:10])

    with ThreadPoolExecutor(4) as pool:
        a, *others = pool.map(one, range(4))
    for b in others:
        np.testing.assert_array_equal(a, b)
    assert built == ['tf']


def test_for_a_few_batches_and_no_more_nothing_is_built(drawn, built):
    ours, pixels = network(), load_images(drawn.paths[:5], SIZE)
    few = encode(pixels, ours, 2)
    assert built == [] and few.dtype == np.float32
    np.testing.assert_allclose(encode(pixels, ours, 1), few, atol=1e-6)
    assert built == ['tf']
