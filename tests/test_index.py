"""The index as a database: columns and conditions, groups, limits, boxes; its file, with one writer
and many readers, whole whatever moment a process is killed at."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from test_search import distances, patches

from triplet_fashion.catalog import Catalog
from triplet_fashion.search import ImageIndex

quick = settings(max_examples=40, deadline=None, derandomize=True)
METRICS = ['cosine', 'euclidean', 'sqeuclidean']


@pytest.fixture(scope='module')
def net():
    return patches()


@pytest.fixture(scope='module')
def index(drawn, net):
    return ImageIndex.build(drawn, net, columns=dict(price=np.arange(len(drawn)) % 10))


def shop(n=60, d=4, seed=0, **kw):
    "An index of products with three photos each, and columns of every type."
    rng = np.random.default_rng(seed)
    columns = dict(
        price=rng.integers(0, 9, n),
        weight=[None if i % 7 == 0 else float(i) for i in range(n)],
        season=[['summer', 'winter', None][i % 3] for i in range(n)],
        stock=rng.random(n) < 0.5,
        since=np.datetime64('2026-01-01') + np.arange(n),
    )
    return ImageIndex(
        rng.normal(size=(n, d)),
        [f'{i}.jpg' for i in range(n)],
        np.arange(n) // 3,
        columns=columns,
        **kw,
    )


def ids(hits):
    return [hit.id for hit in hits]


# --- columns


def assert_same_columns(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name])


def test_columns_have_types_and_survive(tmp_path):
    index = shop()
    kinds = {name: values.dtype.kind for name, values in index.columns.items()}
    assert kinds == dict(price='i', weight='f', season='O', stock='b', since='M')
    back = ImageIndex.load(index.save(tmp_path / 'i.npz'))
    assert_same_columns(back.columns, index.columns)
    hit = back.search('4.jpg', k=1)[0]
    assert hit.columns['season'] == 'winter' and hit.columns['weight'] == 4
    assert 'season' in str(back.search('4.jpg', k=1))


@pytest.mark.parametrize('kind', ['frame', 'indexed', 'csv', 'tsv', 'parquet', 'dict'])
def test_tables_are_matched_by_id(kind, tmp_path):
    pd = pytest.importorskip('pandas', reason='pandas is not installed')
    table = pd.DataFrame(
        dict(id=['007', 'b', 'a', 'unused'], price=[3, 2, 1, 0], kind=['x', None, 'z', 'w'])
    )
    if kind == 'indexed':
        table = table.set_index('id')
    elif kind == 'dict':
        table = {name: table[name].tolist() for name in table}
    elif kind == 'parquet':
        pytest.importorskip('pyarrow', reason='pyarrow is not installed')
        table.to_parquet(tmp_path / 't.parquet')
    elif kind != 'frame':
        table.to_csv(tmp_path / f't.{kind}', index=False, sep=',' if kind == 'csv' else '\t')
    given = tmp_path / f't.{kind}' if (tmp_path / f't.{kind}').exists() else table
    columns = ImageIndex(np.eye(3), ['a', 'b', '007'], columns=given).columns
    assert columns['price'].tolist() == [1, 2, 3] and columns['kind'].tolist() == ['z', None, 'x']


@pytest.mark.parametrize(
    'columns, message',
    [
        (dict(price=[1, 2]), "column 'price' has shape"),
        (dict(price=[1, 'x', 2.5]), "column 'price' mixes float, int, str"),
        (dict(ean=[2**60 + 1, None, 3]), "column 'ean' has gaps.*give it as text"),
        (dict(id=['a', 'b'], price=[1, 2]), "no row has the id 'c'"),
        (dict(id=['a', 'a', 'b', 'c'], price=[1, 2, 3, 4]), "'a' stands in two rows"),
        (dict(product=list('abc')), "cannot be called 'product'"),
        (3, 'columns is a int'),
        ('none.csv', 'there is no table'),
    ],
)
def test_columns_that_mean_nothing_are_named(columns, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ImageIndex(np.eye(3), list('abc'), columns=columns)


# --- conditions, groups


@quick
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 70),
    k=st.integers(1, 12),
    share=st.floats(0, 1),
    metric=st.sampled_from(METRICS),
    grouped=st.booleans(),
    several=st.booleans(),
)
def test_conditions_and_groups_are_those_of_a_look_at_all(
    seed, n, k, share, metric, grouped, several
):
    rng = np.random.default_rng(seed)
    x, query = rng.normal(size=(n, 3)).astype('float32'), rng.normal(size=(4, 3)).astype('float32')
    x[:: max(1, n // 5)] = x[0]
    labels, allowed = rng.integers(0, 5, n), rng.random(n) < share
    index = ImageIndex(x, range(n), labels, metric=metric, columns=dict(fits=allowed))
    query = query if several else query[:1]
    by = 'product' if grouped else None
    found = index.search(query, k=k, where=dict(fits=True), group_by=by)
    for hits, row in zip(found, index.search(query, k=n)):
        order = [int(hit.id) for hit in row if allowed[int(hit.id)]]
        if grouped:
            first = {}
            for i in order:
                first.setdefault(labels[i], i)
            order = list(first.values())
        assert ids(hits) == [str(i) for i in order[:k]]
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
        if not allowed.any():
            assert hits.note == 'no photo fits the condition'


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('share', [0.03, 0.6])
def test_conditions_on_many_photos(metric, share):
    "Several blocks of the search: once copied to a gallery of its own, once by a mask."
    rng = np.random.default_rng(0)
    x, q = rng.normal(size=(40_000, 8)), rng.normal(size=(5, 8))
    fits = rng.random(len(x)) < share
    index = ImageIndex(x, range(len(x)), np.arange(len(x)) // 4, metric=metric)
    at = np.flatnonzero(fits)
    for queries in (q, q[:1]):
        d = distances(queries, x.astype('float32')[at], metric)
        found = index.search(queries, k=9, where=lambda columns: fits)
        for hits, row in zip(found, d):
            assert [int(i) for i in ids(hits)] == at[np.argsort(row, kind='stable')[:9]].tolist()
        for hits in index.search(queries, k=30, where=lambda columns: fits, group_by='product'):
            assert len({hit.label for hit in hits}) == len(hits) == 30


def test_kinds_of_conditions():
    index = shop()
    columns = index.columns

    def fitting(**where):
        return sorted(int(hit.id[:-4]) for hit in index.search('0.jpg', k=99, where=where))

    for where, wanted in [
        (dict(price=3), columns['price'] == 3),
        (dict(price=[3, 4]), np.isin(columns['price'], [3, 4])),
        (dict(price=(3, None), stock=True), (columns['price'] >= 3) & columns['stock']),
        (dict(weight=None), np.isnan(columns['weight'])),
        (dict(weight=(None, 10)), columns['weight'] <= 10),
        (dict(season='summer'), columns['season'] == 'summer'),
        (dict(season=None), columns['season'] == None),  # noqa: E711 - of each photo
        (dict(since=('2026-02-01', None)), columns['since'] >= np.datetime64('2026-02-01')),
        (dict(product=['0', '4']), np.isin(index.labels, [0, 4])),
    ]:
        assert fitting(**where) == np.flatnonzero(wanted).tolist(), where
    assert len(index.search('0.jpg', k=99, group_by='season')) == 2 + 20
    for where, message in [
        (dict(colour='red'), "no column 'colour'; there are price, weight"),
        (dict(season=('a', 'b')), 'least, most'),
        (lambda c: c['price'], 'must give true or false for each of 60'),
        ('price', 'give a dictionary'),
    ]:
        with pytest.raises(ValueError, match=message):
            index.search('0.jpg', where=where)
    with pytest.raises(ValueError, match="group_by is 'colour'; there are 'price'"):
        index.search('0.jpg', group_by='colour')


def test_photos_that_are_left_out(drawn, index):
    every = ids(index.search(drawn.paths[3], k=9))
    assert every[0] == drawn.ids[3]
    assert ids(index.search(drawn.paths[3], k=8, exclude=drawn.ids[3])) == every[1:]
    assert ids(index.search(drawn.paths[3], k=8, exclude_self=True)) == every[1:]
    assert ids(index.search(drawn.paths[3], k=7, exclude=every[:2])) == every[2:]
    rest = index.search(drawn.paths[3], k=99, exclude=drawn.subset(range(6)), group_by='product')
    assert not {hit.id for hit in rest} & set(drawn.ids[:6])
    with pytest.raises(ValueError, match="'none.jpg' is not in this index.*exclude"):
        index.search(drawn.paths[3], exclude=['none.jpg'])


# --- limits


def test_a_limit_says_what_is_not_in_the_catalog():
    index = ImageIndex([[1.0, 0], [0.8, 0.6], [0, 1]], list('abc'))
    assert ids(index.search([1.0, 0], threshold=0.3)) == ['a', 'b']
    assert ids(index.search([1.0, 0], min_similarity=0.75)) == ['a', 'b']
    assert ids(index.search([1.0, 0], min_similarity=1)) == ['a']
    hits = index.search([-1.0, -0.2], threshold=0.3, k=1)
    assert not hits and 'not in the catalog: the nearest photo is 1.196' in hits.note
    assert 'not in the catalog' in str(hits)
    assert [len(h) for h in index.search([[1.0, 0], [-1, -1]], threshold=0.1)] == [1, 0]
    for kw, message in [
        (dict(threshold=0.1, min_similarity=0.9), 'give one of them'),
        (dict(threshold='bundle'), 'has none'),
        (dict(threshold=dict(value=0.1, metric='euclidean')), 'for euclidean distances'),
    ]:
        with pytest.raises(ValueError, match=message):
            index.search([1.0, 0], **kw)
    with pytest.raises(ValueError, match='min_similarity is for the cosine'):
        ImageIndex(np.eye(2), list('ab'), metric='euclidean').search([1.0, 0], min_similarity=0.5)


def test_the_threshold_of_a_bundle(drawn, tmp_path):
    from triplet_fashion.persistence import load_bundle, save_bundle
    from triplet_fashion.verification import fit_threshold

    net = patches()
    index = ImageIndex.build(drawn, net)
    threshold = fit_threshold(index.embeddings, drawn.labels, fmr=0.05)
    bundle = save_bundle(tmp_path / 'b.tfz', net, index, threshold=threshold)
    again, _ = load_bundle(bundle, index=tmp_path / 'i.npz')
    index = ImageIndex.load(tmp_path / 'i.npz', net=again)
    hits = index.search(drawn.paths[0], k=99, threshold='bundle')
    assert 0 < len(hits) < len(drawn) and all(h.distance < float(threshold) for h in hits)
    assert ids(index.search(drawn.paths[0], k=99, threshold=threshold)) == ids(hits)
    note = index.search(np.zeros((48, 48, 3), 'uint8'), threshold='bundle').note
    fmr, fnmr = (threshold.note()[name] for name in ('fmr', 'fnmr'))
    assert note.startswith('not in the catalog') and f'{fmr:.1%}' in note and f'{fnmr:.1%}' in note


# --- boxes


def test_a_box_is_what_is_searched_with(drawn, index, tmp_path):
    a, b = (Image.open(drawn.paths[i]).resize((100, 120)) for i in (2, 40))
    both = Image.new('RGB', (230, 140), 'white')
    both.paste(a, (10, 5))
    both.paste(b, (120, 15))
    left, right = (10, 5, 110, 125), (120, 15, 220, 135)
    both.save(tmp_path / 'both.png')
    path = tmp_path / 'both.png'
    for query in (both, np.asarray(both), path, path.read_bytes()):
        found = index.search(query, k=1, box=[left, right])
        assert [hits[0].id for hits in found] == [drawn.ids[2], drawn.ids[40]]
        assert index.search(query, k=1, box=right)[0].id == drawn.ids[40]
    inside = index.search(drawn.ids[2], k=1, box=(0, 0, *Image.open(drawn.paths[2]).size))
    assert inside[0].id == drawn.ids[2] and inside[0].distance < 1e-5
    for kw, message in [
        (dict(box=(0, 0, 300, 10)), 'does not lie in the photo, which is 230 pixels wide'),
        (dict(box=(5, 5, 5, 10)), 'does not lie'),
        (dict(box=(1, 2, 3)), r'give \(x0, y0, x1, y1\)'),
        (dict(box='all'), r'give \(x0, y0, x1, y1\)'),
    ]:
        with pytest.raises(ValueError, match=message):
            index.search(both, **kw)
    for query in ([both, both], index.embeddings[0]):
        with pytest.raises(ValueError, match='one query that is a photo'):
            index.search(query, box=left)


# --- growing


def test_embeddings_join_with_their_ids(tmp_path):
    index = shop()
    price = dict(price=[7])
    assert index.add(np.ones((1, 4)), ids=['new'], labels=['a new one'], columns=price) == 1
    hit = index.search(np.ones(4), k=1)[0]
    assert (hit.id, hit.name) == ('new', 'a new one')
    assert hit.columns['price'] == 7 and hit.columns['season'] is None
    index.add([[2.0, 1, 1, 1], [5, 0, 0, 0]], ids=['3.jpg', 8], labels=[1, None])
    assert index.ids[-2:] == ['new', '8'] and index.embeddings[3].tolist() == [2, 1, 1, 1]
    assert index.columns['season'][3] == 'summer' and len(index) == 62
    assert index.labels[[3, -1]].tolist() == [1, -1]
    back = ImageIndex.load(index.save(tmp_path / 'i.npz'))
    assert back.ids == index.ids and back.class_names == index.class_names
    assert_same_columns(back.columns, index.columns)
    for args, message in [
        ((np.ones((1, 3)), ['x']), 'have 3 numbers, this index holds 4'),
        ((np.ones((2, 4)), ['x', 'x']), "'x' appears more than once"),
        ((np.ones((2, 4)), None), 'embeddings need ids'),
        ((np.full((1, 4), np.nan), ['x']), 'not finite'),
    ]:
        with pytest.raises(ValueError, match=message):
            index.add(*args)
    with pytest.raises(ValueError, match='no labels'):
        ImageIndex(np.eye(2), list('ab')).add([[1.0, 2.0]], ids=['c'], labels=['coat'])


def test_files_that_have_changed_are_found(drawn, net, tmp_path):
    catalog = Catalog.from_dir(shutil.copytree(drawn.root, tmp_path / 'c'))
    index = ImageIndex.build(catalog, net, columns=dict(n=range(len(catalog))))
    index = ImageIndex.load(index.save(tmp_path / 'i.npz'), net=net)
    assert index.update() == 0
    for path in catalog.paths[:3]:
        os.utime(path)  # touched: the same content
    shutil.copy(catalog.paths[30], catalog.paths[0])
    stamp = os.stat(catalog.paths[40])
    size = len(Path(catalog.paths[40]).read_bytes())
    data = Path(catalog.paths[50]).read_bytes()
    Path(catalog.paths[40]).write_bytes(data[:size].ljust(size, b'\0'))  # other content, same size
    os.utime(catalog.paths[40], ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))
    os.remove(catalog.paths[5])
    before = index.embeddings
    with pytest.warns(UserWarning, match='1 of 72 files'):
        assert index.update() == 2
    assert [p for p, _ in index.skipped] == [index.paths[5]]
    changed = np.flatnonzero((before != index.embeddings).any(axis=1))
    assert set(changed) <= {0, 40} and 0 in changed
    assert index.columns['n'].tolist() == list(range(len(catalog)))
    assert index.ids == catalog.ids and index.labels.tolist() == catalog.labels.tolist()
    np.testing.assert_allclose(index.embeddings[0], index.embeddings[30], atol=1e-6)
    with pytest.raises(ValueError, match='no network'):
        shop().update()


# --- the file


def test_what_a_writer_does_is_in_the_file(tmp_path):
    file = shop().save(tmp_path / 'i.npz')
    reader, early = ImageIndex.load(file), ImageIndex.load(file)
    writer = ImageIndex.load(file, write=True)
    assert not reader.refresh()
    writer.add(np.ones((1, 4)), ids=['new'], labels=['n'], columns=dict(season=['fall']))
    writer.remove(['0.jpg', '1.jpg'])
    assert reader.refresh() and not reader.refresh() and '0.jpg' in early.ids
    for other in (reader, ImageIndex.load(file)):
        assert other.ids == writer.ids and other.class_names == writer.class_names
        assert_same_columns(other.columns, writer.columns)
        assert str(other.search(np.ones(4))) == str(writer.search(np.ones(4)))
    with pytest.raises(BlockingIOError, match='open for writing elsewhere'):
        ImageIndex.load(file, write=True)
    with pytest.raises(BlockingIOError, match='open for writing elsewhere'):
        shop().save(file)
    writer.save(file)
    assert reader.refresh() and reader.ids == writer.ids and early.refresh()
    writer.remove('2.jpg')
    writer.close()
    with ImageIndex.load(file, write=True) as again:
        assert '2.jpg' not in again.ids
        again.save(file)
    assert [p.name for p in tmp_path.iterdir()] == ['i.npz'] and early.refresh()
    assert early.ids == again.ids
    early.remove('5.jpg')
    with pytest.raises(ValueError, match='has changes of its own'):
        early.refresh()
    with pytest.raises(ValueError, match='not opened from a file'):
        shop().refresh()


def test_saving_over_an_index_ends_its_changes(tmp_path):
    file = shop().save(tmp_path / 'i.npz')
    with ImageIndex.load(file, write=True) as writer:
        writer.remove('0.jpg')
    assert (tmp_path / 'i.npz.changes').exists()
    old = (tmp_path / 'i.npz.changes').read_bytes()
    shop(seed=1).save(file)
    assert [p.name for p in tmp_path.iterdir()] == ['i.npz']
    (tmp_path / 'i.npz.changes').write_bytes(old)  # killed before they were removed
    assert ImageIndex.load(file).ids == shop().ids


def test_changes_do_not_outgrow_the_file(tmp_path):
    file = shop().save(tmp_path / 'i.npz')
    with ImageIndex.load(file, write=True) as writer:
        for i in range(6):
            writer.add(np.full((20_000, 4), i + 1.0), ids=range(i * 20_000, (i + 1) * 20_000))
    assert (tmp_path / 'i.npz').stat().st_size > 1e6
    assert len(ImageIndex.load(file)) == 60 + 120_000


def test_a_large_file_is_mapped(tmp_path):
    "40 MB: opened without being read, searched as one in memory, checked where that is asked for."
    x = np.random.default_rng(0).normal(size=(80_000, 128)).astype('float32')
    index = ImageIndex(x, [f'shop/{i}.jpg' for i in range(len(x))], np.arange(len(x)) // 4)
    file = index.save(tmp_path / 'i.npz')
    back = ImageIndex.load(file)
    assert isinstance(back.embeddings.base, np.memmap) and not back.embeddings.flags.writeable
    assert ids(back.search(x[7], k=5)) == ids(index.search(x[7], k=5))
    assert back.ids == index.ids and len(ImageIndex.load(file, check=True)) == len(x)
    with ImageIndex.load(file, write=True) as writer:
        writer.remove('shop/7.jpg')
    assert len(ImageIndex.load(file)) == len(x) - 1
    np.testing.assert_array_equal(np.load(file)['embeddings'], x)
    data = bytearray(file.read_bytes())
    data[20_000_000] ^= 1
    file.write_bytes(data)
    assert len(ImageIndex.load(file)) and len(back) == len(x)
    with pytest.raises(ValueError, match='i.npz.*not a whole index file'):
        ImageIndex.load(file, check=True)
    file.write_bytes(data[:-1000])
    with pytest.raises(ValueError, match='i.npz.*not a whole index file'):
        ImageIndex.load(file)


def python(code, *args):
    "Run code in a process of its own, which imports no TensorFlow."
    order = [sys.executable, '-c', code, *map(str, args)]
    return subprocess.run(order, capture_output=True, text=True, timeout=280)


WRITER = """
import os, sys, random, signal, time
import numpy as np
from triplet_fashion.search import ImageIndex

def work(file, pipe, seed):
    random.seed(seed)
    index = ImageIndex.load(file, write=True)
    for i in range(10**6):
        if random.random() < .6 or len(index) < 4:
            id = f'{seed}-{i}'
            index.add(np.full((1, 3), i + 1.), ids=[id], labels=['p'], columns=dict(n=[i]))
            said = f'add {id}'
        elif random.random() < .9:
            id = random.choice(index.ids)
            index.remove(id)
            said = f'remove {id}'
        else:
            index.save(file)
            continue
        os.write(pipe, (said + chr(10)).encode())

file, kills = sys.argv[1], int(sys.argv[2])
known, rng = set(ImageIndex.load(file).ids), random.Random(0)
acknowledged = 0
for seed in range(kills):
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(out)
        work(file, into, seed)
    os.close(into)
    said = b''
    for _ in range(rng.randrange(4)): said += os.read(out, 65536)
    time.sleep(rng.uniform(0, .03))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while data := os.read(out, 65536): said += data
    os.close(out)
    for line in said.decode().splitlines(): # what is written to a pipe at once comes whole
        what, id = line.split()
        known.add(id) if what == 'add' else known.discard(id)
        acknowledged += 1
    index = ImageIndex.load(file)
    found = set(index.ids)
    assert len(found) == len(index) == len(index.labels) == len(index.columns['n'])
    assert len(found ^ known) <= 1, (seed, found ^ known) # one more may have been made, not told
    known = found
print(kills, acknowledged, len(known))
"""


def test_a_writer_that_is_killed_loses_nothing(tmp_path):
    "Killed at any moment of adding, removing and saving, many times, the file goes on each time."
    columns = dict(n=[0] * 5)
    file = ImageIndex(np.ones((5, 3)), list('abcde'), list('ppqqr'), columns=columns).save(
        tmp_path / 'i.npz'
    )
    done = python(WRITER, file, 100)
    assert done.returncode == 0, done.stderr[-2000:]
    kills, acknowledged, _ = map(int, done.stdout.split())
    assert kills == 100 and acknowledged > kills / 2
    left = {p.name for p in tmp_path.iterdir() if not p.name.endswith('.part')}
    assert left <= {'i.npz', 'i.npz.changes'}


READER = """
import sys, time
import numpy as np
from triplet_fashion.search import ImageIndex
index, seen, end = ImageIndex.load(sys.argv[1]), 0, time.monotonic() + 60
while index.ids[-1] != 'end' and time.monotonic() < end:
    index.refresh()
    hits = index.search(np.ones(3), k=10**6)
    assert len(hits) == len(index) >= seen, (len(hits), seen)
    seen = len(index)
assert index.ids[-1] == 'end', seen
print(seen)
"""


def test_many_read_while_one_writes(tmp_path):
    file = ImageIndex(np.ones((5, 3)), list('abcde'), columns=dict(n=[0] * 5)).save(
        tmp_path / 'i.npz'
    )

    with ThreadPoolExecutor(3) as pool, ImageIndex.load(file, write=True) as writer:
        reading = [pool.submit(python, READER, file) for _ in range(3)]
        start, i = time.monotonic(), 0
        while time.monotonic() - start < 5:
            writer.add(np.ones((1, 3)) * (i + 1), ids=[i], columns=dict(n=[i]))
            if i % 50 == 49:
                writer.save(file)
            i += 1
        writer.add(np.ones((1, 3)), ids=['end'], columns=dict(n=[0]))
        for done in (r.result() for r in reading):
            assert done.returncode == 0, done.stderr[-2000:]
            assert int(done.stdout) == len(writer)
