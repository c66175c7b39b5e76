"Encoding in bulk: odd files, parts on disk, kills at any moment, a cluster."
import os, signal, subprocess, sys, textwrap, threading, time
from pathlib import Path

import numpy as np, pytest
from PIL import Image

keras = pytest.importorskip('keras')
from triplet_fashion.base_network import base_network
from triplet_fashion.catalog import Catalog
from triplet_fashion.encoding import encode, encode_cluster, read_encodings
from triplet_fashion.photo import PhotoError, read_image
from triplet_fashion.runtimes import runtime

SIZE = 32, 24


def network():
    keras.utils.set_random_seed(0)
    return base_network((*SIZE, 3), 6, 'small', None, hidden=(), activation='l2')


@pytest.fixture(scope='module')
def net(): return network()


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    "Photos as they come: turned by EXIF, CMYK, 16 bits, palette, WebP, a Korean name, and three that are none."
    folder, rng = tmp_path_factory.mktemp('odd'), np.random.default_rng(0)
    picture = lambda: Image.fromarray(rng.integers(0, 256, (60, 50, 3)).astype('uint8')).resize((50, 60), Image.Resampling.BICUBIC)
    exif = Image.Exif(); exif[0x112] = 6
    picture().save(folder/'turned.jpg', exif=exif)
    picture().convert('CMYK').save(folder/'cmyk.jpg')
    Image.fromarray((rng.random((40, 30))*65535).astype('uint16')).save(folder/'deep.png')
    picture().quantize(16).save(folder/'palette.png')
    picture().save(folder/'web.webp')
    picture().save(folder/'옷 #1 (남색).jpg')
    picture().save(folder/'cut.jpg'); (folder/'cut.jpg').write_bytes((folder/'cut.jpg').read_bytes()[:400])
    (folder/'empty.jpg').write_bytes(b'')
    (folder/'text.jpg').write_text('no photo')
    return folder


BAD = 'cut.jpg', 'empty.jpg', 'text.jpg'


def one_by_one(net, paths): return np.concatenate([net.predict(read_image(p, SIZE)[None].astype('float32'), verbose=0) for p in paths])


def test_rows_are_those_of_predict_whatever_the_file(net, odd):
    good = sorted(p for p in odd.iterdir() if p.name not in BAD)
    np.testing.assert_allclose(encode(good, net, batch_size=4), one_by_one(net, good), atol=2e-3)   # a fast JPEG may differ by one level of 255
    np.testing.assert_allclose(encode([p for p in good if p.suffix != '.jpg'], net), one_by_one(net, [p for p in good if p.suffix != '.jpg']), atol=1e-5)


@pytest.mark.parametrize('batch_size', [1, 3, 64])
def test_bad_photos_are_named_and_the_others_stay_in_their_places(net, odd, batch_size):
    paths = sorted(odd.iterdir())
    with pytest.raises(PhotoError, match='cut.jpg'): encode(paths, net, batch_size)
    with pytest.warns(UserWarning, match='3 of 9 photos could not be read') as said: rows = encode(paths, net, batch_size, bad='nan')
    assert all(b in str(said[-1].message) for b in BAD)
    assert [p.name for p, r in zip(paths, rows) if np.isnan(r).any()] == sorted(BAD) and np.isfinite(rows).all(1).sum() == 6
    good = [p for p in paths if p.name not in BAD]
    np.testing.assert_allclose(rows[np.isfinite(rows).all(1)], encode(good, net, batch_size), atol=1e-5)
    with pytest.raises(ValueError, match="bad='skip'"): encode(paths, net, bad='skip')


@pytest.mark.parametrize('suffix', ['.npz', '.parquet'])
def test_parts_hold_ids_rows_and_problems(net, odd, tmp_path, monkeypatch, suffix):
    if suffix == '.parquet': pytest.importorskip('pyarrow', reason='needs pyarrow')
    monkeypatch.setattr('triplet_fashion.encoding._suffix', lambda: suffix)
    paths = sorted(odd.iterdir())
    with pytest.warns(UserWarning, match='3 of 9'): rows = encode(paths, net, 2, out=tmp_path/'out', part_size=4)
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['encoding.json', *(f'part-00000{k}{suffix}' for k in range(3))]
    ids, same, problems = read_encodings(tmp_path/'out')
    assert ids == [str(p) for p in paths] and {Path(p).name for p in problems} == set(BAD)
    np.testing.assert_array_equal(rows, same)
    if suffix == '.parquet':
        import pyarrow.parquet as pq
        assert pq.read_table(tmp_path/'out'/'part-000000.parquet').column_names == ['id', 'embedding', 'problem']


def test_a_complete_folder_costs_nothing_and_a_lost_part_is_made_again(net, drawn, tmp_path):
    out = tmp_path/'out'
    rows = encode(drawn, net, out=out, part_size=20)
    assert read_encodings(out)[0] == list(drawn.ids)
    stamps = {p.name: p.stat().st_mtime_ns for p in out.glob('part-*')}
    lost = sorted(out.glob('part-*'))[2]
    lost.unlink()
    with pytest.raises(ValueError, match='1 of 4 parts are missing'): read_encodings(out)
    np.testing.assert_allclose(encode(drawn, net, out=out, part_size=20), rows, atol=1e-6)   # other batches: the last bit may differ
    assert [n for n, t in stamps.items() if (out/n).stat().st_mtime_ns != t] == [lost.name]


def test_parts_of_other_work_are_refused_by_name(net, drawn, tmp_path):
    encode(drawn, net, out=tmp_path/'out', part_size=50)
    other = network(); other.layers[-2].set_weights([w + .1 for w in other.layers[-2].get_weights()])
    for what, call in (('model', lambda o: encode(drawn, other, out=o, part_size=50)), ('part_size', lambda o: encode(drawn, net, out=o, part_size=51)),
                       ('photos', lambda o: encode(drawn.paths[:-1], net, out=o, part_size=50)), ('fit', lambda o: encode(drawn, net, out=o, part_size=50, fit='pad'))):
        with pytest.raises(ValueError, match=f'made with other.*{what}'): call(tmp_path/'out')
    (tmp_path/'loose').mkdir(); (tmp_path/'loose'/'part-000000.npz').write_bytes(b'')
    with pytest.raises(ValueError, match='parts but no encoding.json'): encode(drawn, net, out=tmp_path/'loose')


def test_a_photo_that_changed_belongs_to_other_work(net, drawn, tmp_path):
    paths = [tmp_path/f'{i}.png' for i in range(3)]
    for p, q in zip(paths, drawn.paths): Image.open(q).convert('RGB').resize((24, 32)).save(p)
    encode(paths, net, out=tmp_path/'out')
    Image.new('RGB', (24, 32)).save(paths[1])
    with pytest.raises(ValueError, match='made with other photos'): encode(paths, net, out=tmp_path/'out')


def test_arrays_go_into_parts_too(net, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (11, *SIZE, 3)).astype('uint8')
    rows = encode(x, net, 3, out=tmp_path/'out', part_size=4)
    np.testing.assert_allclose(rows, encode(x, net), atol=1e-6)
    assert read_encodings(tmp_path/'out')[0] == [str(i) for i in range(11)]


def test_a_network_that_goes_on_learning_is_not_remembered(net, drawn):
    "The graph is kept with the model, its numbers are not."
    ours = network()
    first = encode(drawn.paths[:4], ours)
    ours.layers[-2].set_weights([-w for w in ours.layers[-2].get_weights()])
    np.testing.assert_allclose(encode(drawn.paths[:4], ours), -first, atol=1e-5)


def test_runtimes_and_halves(net, drawn):
    rows = encode(drawn, net)
    np.testing.assert_allclose(encode(drawn, net, runtime='litert'), rows, atol=1e-4)
    made = runtime(net, 'auto', photos=10**6)
    np.testing.assert_allclose(encode(drawn, net, runtime=made), rows, atol=1e-4)
    np.testing.assert_allclose(encode(drawn, net, precision='bfloat16'), rows, atol=.1)
    with pytest.raises(ValueError, match='coreml'): encode(drawn, net, runtime='coreml')


RUN = textwrap.dedent('''
    import sys
    sys.path[:0] = sys.argv[4:6]
    from test_encoding import network
    from triplet_fashion.catalog import Catalog
    from triplet_fashion.encoding import encode
    encode(Catalog.from_dir(sys.argv[1]), network(), 4, out=sys.argv[2], part_size=int(sys.argv[3]))
''')


def test_killed_at_any_moment_and_gone_on(net, drawn, tmp_path):
    "SIGKILL after the first, the third, the sixth part: no part is written twice, none is half there, and the rows are those of an undisturbed run."
    out, here = tmp_path/'out', Path(__file__).parent
    start = lambda: subprocess.Popen([sys.executable, '-c', RUN, drawn.root, out, '4', here.parent, here], env=os.environ | {'TF_CPP_MIN_LOG_LEVEL': '3'})
    written = lambda: {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob('part-*')} if out.exists() else {}
    before = {}
    for k in (1, 6):
        job, end = start(), time.time() + 120
        while len(written()) < k and job.poll() is None and time.time() < end: time.sleep(.002)
        job.send_signal(signal.SIGKILL); job.wait()
        now = written()
        assert len(now) >= k and {n: now[n] for n in before} == before
        before = now
    rows = encode(drawn, net, 4, out=out, part_size=4)
    assert {n: written()[n] for n in before} == before and not list(out.glob('.*'))
    np.testing.assert_allclose(rows, encode(drawn, net, 4), atol=1e-6)


def test_a_cluster_makes_each_part_once_though_a_worker_is_killed(net, drawn, tmp_path):
    ray = pytest.importorskip('ray', reason='needs Ray, triplet_fashion[cluster]')
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8, _temp_dir='/tmp/ray_' + str(os.getpid()))
    out, seen, killed, stop = tmp_path/'out', {}, [], threading.Event()
    def workers():
        for p in Path('/proc').iterdir():
            if not p.name.isdigit(): continue
            try: said = (p/'cmdline').read_bytes()
            except OSError: continue
            if said.startswith(b'ray::') and b'MapBatches(_Worker)' in said: yield int(p.name)
    def watch():
        while not stop.is_set():
            for p in out.glob('part-*'):
                try: seen.setdefault(p.name, set()).add(p.stat().st_ino)
                except OSError: pass
            if seen and not killed:
                for pid in list(workers())[:1]: os.kill(pid, signal.SIGKILL); killed.append(pid)
            time.sleep(.005)
    look = threading.Thread(target=watch)
    try:
        look.start()
        rows = encode(drawn, net, 4, out=out, part_size=3, cluster='auto')
    finally:
        stop.set(); look.join(); ray.shutdown()
    assert killed and len(seen) == 24 and {len(s) for s in seen.values()} == {1}
    np.testing.assert_allclose(rows, encode(drawn, net, 4), atol=1e-6)


def test_what_a_cluster_cannot_do_is_said(net, drawn, tmp_path):
    pytest.importorskip('ray', reason='needs Ray, triplet_fashion[cluster]')
    with pytest.raises(ValueError, match='needs out'): encode(drawn, net, cluster='auto')
    with pytest.raises(ValueError, match='encodes files'): encode(np.zeros((2, *SIZE, 3), 'uint8'), net, out=tmp_path, cluster='auto')


def test_without_ray_the_extra_is_named(net, drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ImportError, match=r'triplet_fashion\[cluster\]'): encode(drawn, net, out=tmp_path, cluster='auto')
