"The index: exact, the same in whatever form a query comes, whole on disk, never silently wrong."

import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from triplet_fashion.catalog import Catalog
from triplet_fashion.display import thumbnail
from triplet_fashion.search import Hit, Hits, HitsList, ImageIndex

quick = settings(max_examples=30, deadline=None, derandomize=True)


def distances(q, x, metric):
    "Straight from the formulas, float64 (q, n)."
    q, x = np.asarray(q, 'float64'), np.asarray(x, 'float64')
    if metric == 'cosine':
        return (
            1
            - (q / np.linalg.norm(q, axis=1, keepdims=True))
            @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
        )
    d = ((q[:, None] - x[None]) ** 2).sum(-1)
    return np.sqrt(d) if metric == 'euclidean' else d


def patches(offset=-1.0, pool=16, side=48):
    "A network without training: the mean colours of a photo's patches."
    import keras

    return keras.Sequential(
        [
            keras.Input((side, side, 3)),
            keras.layers.Rescaling(1 / 127.5, offset=offset),
            keras.layers.AveragePooling2D(pool),
            keras.layers.Flatten(),
        ]
    )


@pytest.fixture(scope='module')
def net():
    return patches()


@pytest.fixture(scope='module')
def index(drawn, net):
    return ImageIndex.build(drawn, net)


def tiny(n=6, d=3, **kw):
    return ImageIndex(
        np.random.default_rng(0).normal(size=(n, d)),
        [f'p{i // 2}/{i}.jpg' for i in range(n)],
        [i // 2 for i in range(n)],
        **kw,
    )


# --- exactness


@quick
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 40),
    q=st.integers(1, 5),
    k=st.integers(1, 50),
    metric=st.sampled_from(['cosine', 'euclidean', 'sqeuclidean']),
)
def test_the_nearest_are_the_nearest(seed, n, q, k, metric):
    rng = np.random.default_rng(seed)
    x, query = rng.normal(size=(n, 4)).astype('float32'), rng.normal(size=(q, 4)).astype('float32')
    found = ImageIndex(x, [str(i) for i in range(n)], metric=metric).search(query, k=k)
    want = np.sort(distances(query, x, metric), axis=1)[:, :k]
    assert len(found) == q and all(len(h) == min(k, n) for h in found)
    np.testing.assert_allclose(
        [[h.distance for h in hits] for hits in found], want, rtol=1e-5, atol=1e-6
    )
    assert all([h.rank for h in hits] == list(range(1, len(hits) + 1)) for hits in found)


def test_equal_distances_come_in_the_order_of_the_index():
    index = ImageIndex(np.ones((5, 2)), list('edcba'))
    assert [h.id for h in index.search([1.0, 1.0], k=5)] == list('edcba')


def test_hits_say_what_was_found(drawn, index):
    hit = index.search(drawn.paths[8], k=1)[0]
    name = drawn.class_names[drawn.labels[8]]
    assert hit[:4] == (1, drawn.ids[8], drawn.labels[8], name)
    assert os.path.samefile(hit.path, drawn.paths[8]) and hit.distance == pytest.approx(0, abs=1e-6)


# --- queries


def test_one_photo_gives_the_same_hits_in_every_form(drawn, index):
    path = drawn.paths[10]
    pixels = np.asarray(Image.open(path))
    want = [h.id for h in index.search(path)]
    at = drawn.ids.index(drawn.ids[10])
    for query in [
        Path(path),
        pixels,
        pixels.astype('float32'),
        Image.open(path),
        index.embeddings[at],
        list(map(float, index.embeddings[at])),
        drawn.ids[10],
    ]:
        hits = index.search(query)
        assert isinstance(hits, Hits) and [h.id for h in hits] == want
    for query in [
        [path],
        pixels[None],
        index.embeddings[at : at + 1],
        [pixels],
        drawn.subset([10]),
    ]:
        several = index.search(query)
        assert isinstance(several, HitsList) and [h.id for h in several[0]] == want
    mixed = index.search([path, pixels, index.embeddings[at], drawn.ids[10]])
    assert len(mixed) == 4 and all([h.id for h in hits] == want for hits in mixed)


def test_images_of_any_size_are_brought_to_the_networks(drawn, index):
    big = Image.open(drawn.paths[3]).resize((301, 257))
    assert index.search(np.asarray(big), k=1)[0].id == drawn.ids[3]


def test_exclude_self_leaves_out_the_file_but_not_a_copy(drawn, net, tmp_path):
    for name in ['one', 'two']:
        (tmp_path / 'shop' / name).mkdir(parents=True)
    for i, to in enumerate(['one/a.jpg', 'one/b.jpg', 'two/c.jpg']):
        shutil.copy(drawn.paths[10 * i], tmp_path / 'shop' / to)
    shutil.copy(drawn.paths[0], tmp_path / 'shop/two/copy of a.jpg')
    index = ImageIndex.build(Catalog.from_dir(tmp_path / 'shop'), net)
    found = index.search(tmp_path / 'shop/one/a.jpg', k=9, exclude_self=True)
    assert (
        len(found) == 3
        and 'one/a.jpg' not in [h.id for h in found]
        and found[0].id == 'two/copy of a.jpg'
    )
    assert (
        len(index.search(np.asarray(Image.open(drawn.paths[0])), k=9, exclude_self=True)) == 4
    )  # an image has no file
    link = tmp_path / 'link'
    link.symlink_to(tmp_path / 'shop', target_is_directory=True)
    assert len(index.search(link / 'one/a.jpg', k=9, exclude_self=True)) == 3


def test_an_id_needs_no_network(drawn, index):
    bare = ImageIndex(
        index.embeddings, index.ids, index.labels, index.class_names
    )  # no network, no folder
    assert [h.id for h in bare.search(index.ids[5])] == [h.id for h in index.search(index.ids[5])]
    with pytest.raises(ValueError, match='no network'):
        bare.search(np.zeros((48, 48, 3), 'uint8'))


@pytest.mark.parametrize(
    'query, message',
    [
        (np.zeros(5), 'neither an embedding'),
        (np.zeros((20, 20)), 'neither an embedding'),
        ([], 'no query'),
        (np.full(3, np.nan), 'not finite'),
        (np.zeros((20, 20, 4)), 'neither'),
    ],
)
def test_queries_that_make_no_sense(query, message):
    with pytest.raises(ValueError, match=message):
        tiny().search(query)


@pytest.mark.parametrize('k', [0, -1, 2.5, None])
def test_k_must_be_a_count(k):
    with pytest.raises(ValueError, match='k is'):
        tiny().search(np.ones(3), k=k)


def test_a_missing_and_a_broken_query_are_named(index, tmp_path):
    with pytest.raises(FileNotFoundError, match='none.jpg'):
        index.search('none.jpg')
    (tmp_path / 'torn.jpg').write_bytes(b'\xff\xd8\xff\xe0 torn')
    with pytest.raises(ValueError, match='torn.jpg'):
        index.search(tmp_path / 'torn.jpg')


def test_catalogue_queries_are_matched_by_product_name(drawn, index):
    other = Catalog(drawn.paths[:2], [1, 0], ['unheard of', drawn.class_names[0]], drawn.root)
    first, second = index.search(other, k=1)
    assert [t.frame for t in first.tiles] == ['query', 'hit'] and [
        t.frame for t in second.tiles
    ] == ['query', 'miss']


# --- construction


@pytest.mark.parametrize(
    'args, message',
    [
        ((np.zeros((0, 3)), []), 'at least one'),
        ((np.zeros(3), ['a']), 'shape'),
        ((np.ones((2, 3)), ['a']), 'one id for each'),
        ((np.ones((2, 3)), ['a', 'a']), "'a' appears more"),
        ((np.ones((2, 3)), ['a', 'b'], [1]), 'labels must hold one label a photo'),
        (([[1, np.inf], [1, 2]], ['bad.jpg', 'b']), 'bad.jpg'),
        ((np.ones((2, 3)), ['a', 'b'], [0, 7], ['only one']), 'class id 7'),
    ],
)
def test_construction_faults(args, message):
    with pytest.raises(ValueError, match=message):
        ImageIndex(*args)


def test_bad_photos_are_left_out_and_reported(drawn, net, tmp_path):
    for p, i in zip(drawn.paths[:12], drawn.ids):
        (tmp_path / i).parent.mkdir(exist_ok=True)
        shutil.copy(p, tmp_path / i)
    catalog = Catalog.from_dir(tmp_path)
    torn, text = Path(catalog.paths[0]), Path(catalog.paths[7])
    torn.write_bytes(torn.read_bytes()[:400])
    text.write_text('not a photo')
    with pytest.warns(UserWarning, match='2 of 12 photos'):
        index = ImageIndex.build(catalog, net, batch_size=1)
    assert len(index) == 10 and [p for p, _ in index.skipped] == [str(torn), str(text)]
    want = ImageIndex.build(catalog.exclude([str(torn), str(text)]), net)
    np.testing.assert_allclose(index.embeddings, want.embeddings, atol=1e-6)
    assert index.ids == want.ids and index.labels.tolist() == want.labels.tolist()
    for p in catalog.paths:
        Path(p).write_text('not a photo')
    with pytest.raises(ValueError, match='none of the 12 photos'):
        ImageIndex.build(catalog, net)


# --- the network


def test_a_network_of_another_width_is_refused(index, tmp_path):
    narrow, file = patches(pool=24), index.save(tmp_path / 'i.npz')
    with pytest.raises(ValueError, match='gives 12 numbers a photo, this index holds 27'):
        ImageIndex.load(file, net=narrow)
    with pytest.raises(ValueError, match='gives 12 numbers'):
        index.net = narrow
    assert index.net is not narrow


def test_a_network_with_other_weights_is_refused(index, net, tmp_path):
    file = index.save(tmp_path / 'i.npz')
    with pytest.raises(ValueError, match='not the one'):
        ImageIndex.load(file, net=patches(offset=0.0))
    assert ImageIndex.load(file, net=net).net is net


# --- on disk


def test_round_trip(drawn, index, net, tmp_path):
    file = index.save(tmp_path / 'new folder' / '색인 (1).idx')
    assert file.name == '색인 (1).idx' and [p.name for p in file.parent.iterdir()] == [file.name]
    back = ImageIndex.load(file, net=net)
    assert np.array_equal(back.embeddings, index.embeddings) and back.embeddings.dtype == np.float32
    assert (back.ids, back.class_names, back.metric, back.root) == (
        index.ids,
        index.class_names,
        index.metric,
        index.root,
    )
    assert back.labels.tolist() == index.labels.tolist()
    assert str(back.search(drawn.paths[4])) == str(index.search(drawn.paths[4]))


@quick
@given(
    ids=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5, unique=True),
    labelled=st.booleans(),
)
def test_any_name_survives(ids, labelled, tmp_path_factory):
    index = ImageIndex(
        np.ones((len(ids), 2)),
        ids,
        range(len(ids)) if labelled else None,
        ids if labelled else None,
    )
    back = ImageIndex.load(index.save(tmp_path_factory.mktemp('names') / 'i.npz'))
    assert (
        back.ids == ids
        and back.class_names == index.class_names
        and (back.labels is None) == (not labelled)
    )


def test_names_that_are_no_utf8_survive(tmp_path):
    name = os.fsdecode(b'caf\xe9.jpg')
    assert ImageIndex.load(ImageIndex([[1.0, 2.0]], [name]).save(tmp_path / 'i.npz')).ids == [name]


def test_the_same_index_gives_the_same_bytes(tmp_path):
    assert tiny().save(tmp_path / 'a').read_bytes() == tiny().save(tmp_path / 'b').read_bytes()


@pytest.mark.parametrize('share', [0, 0.01, 0.3, 0.7, 0.95, 0.999])
def test_a_truncated_file_is_named(share, tmp_path):
    file = tiny(50, 8).save(tmp_path / 'cut.npz')
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match='cut.npz.*not a whole index file'):
        ImageIndex.load(file)


def test_a_flipped_byte_is_noticed(tmp_path):
    file = tiny(50, 8).save(tmp_path / 'flip.npz')
    data = bytearray(file.read_bytes())
    data[600] ^= 255  # among the embeddings
    file.write_bytes(data)
    with pytest.raises(ValueError, match='flip.npz'):
        ImageIndex.load(file)


def write_others(folder):
    np.save(folder / 'array.npy', np.ones(3))
    np.savez(folder / 'other.npz', embeddings=np.ones((2, 2)))
    np.savez(
        folder / 'pickled.npz', embeddings=np.ones((1, 2)), meta=np.array([{'a': 1}], dtype=object)
    )
    np.savez(
        folder / 'format.npz',
        embeddings=np.ones((1, 2)),
        meta=np.frombuffer(json.dumps(dict(format='else')).encode(), 'uint8'),
    )
    np.savez(
        folder / 'list.npz', embeddings=np.ones((1, 2)), meta=np.frombuffer(b'[1, 2]', 'uint8')
    )
    (folder / 'text.npz').write_text('hello')
    Image.new('RGB', (9, 9)).save(folder / 'photo.png')


@pytest.mark.parametrize(
    'name',
    ['array.npy', 'other.npz', 'pickled.npz', 'format.npz', 'list.npz', 'text.npz', 'photo.png'],
)
def test_other_files_are_refused(name, tmp_path):
    write_others(tmp_path)
    with pytest.raises(ValueError, match=f'{name}.*not a whole index file'):
        ImageIndex.load(tmp_path / name)


def test_a_missing_file_and_a_newer_version(tmp_path):
    with pytest.raises(FileNotFoundError, match='no.npz'):
        ImageIndex.load(tmp_path / 'no.npz')
    with np.load(tiny().save(tmp_path / 'v.npz')) as z:
        arrays = dict(z)
    meta = json.loads(arrays['meta'].tobytes()) | dict(version=99)
    np.savez(
        tmp_path / 'v.npz', **arrays | dict(meta=np.frombuffer(json.dumps(meta).encode(), 'uint8'))
    )
    with pytest.raises(ValueError, match='newer version'):
        ImageIndex.load(tmp_path / 'v.npz')


def changed(file, **arrays):
    "The index file with other arrays; `meta` as a dictionary of changes or as text."
    with np.load(file) as z:
        old = dict(z)
    meta = arrays.get('meta')
    if isinstance(meta, dict):
        arrays['meta'] = json.dumps(json.loads(old['meta'].tobytes()) | meta).encode()
    if 'meta' in arrays:
        arrays['meta'] = np.frombuffer(arrays['meta'], 'uint8')
    np.savez(file, **old | arrays)


@pytest.mark.parametrize(
    'arrays',
    [
        dict(meta=b'[]'),
        dict(meta=b'{"format": "triplet_fashion.ImageIndex"}'),
        dict(meta=b'[' * 100_000),
        dict(ids=np.frombuffer(b'abc', 'uint8')),
        dict(ids=np.frombuffer(b'aaaaaa', 'uint8'), id_ends=np.arange(1, 7)),
        dict(id_ends=np.arange(6)[::-1].copy()),
        dict(id_ends=np.zeros(5, 'int64')),
        dict(stamps=np.zeros((6, 2), 'int64')),
        dict(meta=dict(version='1')),
        dict(meta=dict(version=True)),
        dict(meta=dict(class_names=3)),
        dict(meta=dict(class_names=[[0]])),
        dict(meta=dict(size=[1])),
        dict(meta=dict(size=['a', 'b'])),
        dict(meta=dict(root=3)),
        dict(meta=dict(metric='manhattan')),
        dict(labels=np.zeros((6, 2))),
        dict(labels=np.array(['a'] * 6)),
        dict(embeddings=np.zeros(6)),
        dict(embeddings=np.array([['a']] * 6)),
        dict(embeddings=np.full((6, 3), np.nan)),
        dict(probe=np.zeros(4)),
        dict(probe=np.array(['x'] * 3)),
        dict(more=np.zeros(2)),
    ],
)
def test_a_strange_index_is_one_clean_error(tmp_path, arrays):
    file = tiny().save(tmp_path / 'odd.npz')
    changed(file, **arrays)
    with pytest.raises(ValueError, match='odd.npz.*not a whole index file'):
        ImageIndex.load(file)


def test_an_index_that_claims_more_than_it_holds(tmp_path):
    """A header of a few bytes that promises a terabyte, and zeros packed a thousand to one, are
    refused before memory is asked for."""
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, dict(descr='<f4', fortran_order=False, shape=(10**9, 256))
    )
    for method, data in (
        (zipfile.ZIP_STORED, header.getvalue()),
        (zipfile.ZIP_DEFLATED, header.getvalue() + bytes(10**7)),
        (zipfile.ZIP_LZMA, header.getvalue() + bytes(10**7)),
    ):
        with zipfile.ZipFile(tmp_path / 'bomb.npz', 'w', method) as z:
            z.writestr('embeddings.npy', data)
            z.writestr('meta.npy', b'')
        with pytest.raises(ValueError, match='bomb.npz.*(too short|no part of an index)'):
            ImageIndex.load(tmp_path / 'bomb.npz')


def test_a_build_that_was_killed_goes_on(drawn, net, index, tmp_path):
    "With `out` the embeddings lie in parts: the second call computes nothing again."
    first = ImageIndex.build(drawn, net, out=tmp_path / 'parts')
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / 'parts').glob('part-*')}
    again = ImageIndex.build(drawn, net, out=tmp_path / 'parts')
    np.testing.assert_array_equal(first.embeddings, again.embeddings)
    np.testing.assert_allclose(first.embeddings, index.embeddings, atol=1e-6)
    assert stamps and {p: p.stat().st_mtime_ns for p in stamps} == stamps


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tiny().save(tmp_path / 'i.npz')
    old = file.read_bytes()

    def full(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='disk full'):
        tiny(20).save(file)
    assert file.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ['i.npz']


def test_photos_that_moved(drawn, index, tmp_path):
    file = index.save(tmp_path / 'i.npz')
    shutil.copytree(drawn.root, tmp_path / 'moved')
    back = ImageIndex.load(file, root=tmp_path / 'moved')
    hit = back.search(drawn.ids[0], k=1)[0]
    assert Path(hit.path).is_relative_to(tmp_path / 'moved') and os.path.isfile(hit.path)


# --- growing


def test_add(drawn, net, tmp_path):
    half = np.arange(len(drawn)) % 2 == 0
    index = ImageIndex.build(drawn.subset(half), net)
    assert index.add(drawn) == (~half).sum() and index.add(drawn) == 0
    whole = ImageIndex.build(drawn, net)
    assert sorted(index.ids) == sorted(whole.ids)
    for i in [1, 6, 40]:
        assert [h.id for h in index.search(drawn.paths[i], k=3)] == [
            h.id for h in whole.search(drawn.paths[i], k=3)
        ]
    (tmp_path / '새 상품 (1)').mkdir()
    (tmp_path / drawn.class_names[3]).mkdir()
    shutil.copy(drawn.paths[0], tmp_path / '새 상품 (1)' / 'x.jpg')
    shutil.copy(drawn.paths[20], tmp_path / drawn.class_names[3] / '000 new.jpg')
    assert index.add(Catalog.from_dir(tmp_path)) == 2
    by_name = {Path(p).name: index.class_names[int(c)] for p, c in zip(index.paths, index.labels)}
    assert by_name['x.jpg'] == '새 상품 (1)' and by_name['000 new.jpg'] == drawn.class_names[3]
    assert len(set(index.class_names.values())) == len(index.class_names) == drawn.num_classes + 1
    back = ImageIndex.load(index.save(tmp_path / 'i.npz'), net=net)
    assert back.add(Catalog.from_dir(tmp_path)) == 0 and all(map(os.path.isfile, back.paths))


def test_add_needs_a_network_and_labels(drawn, net):
    with pytest.raises(ValueError, match='no network'):
        tiny().add(drawn)
    index = ImageIndex(np.ones((1, 27)), ['a'], net=net)
    with pytest.raises(ValueError, match='no labels'):
        index.add(drawn)


# --- showing


def test_a_table_lines_up_whatever_the_script():
    hits = Hits(
        [Hit(1, 'a/1.jpg', 0, '줄무늬 니트', 0.5, ''), Hit(10, 'b/2.jpg', 1, 'Tee', 12.25, '')],
        name='q',
    )
    head, names, first, second = str(hits).splitlines()
    assert head == 'q: 2 nearest, cosine distance' and first.split() == [
        '1',
        '0.5000',
        '줄무늬',
        '니트',
        'a/1.jpg',
    ]
    assert (
        names.index('photo') == second.index('b/2.jpg') == first.index('a/1.jpg') + 5
    )  # five letters that take two columns each
    assert (
        str(Hits(name='q')) == 'q: 0 nearest, cosine distance' and repr(HitsList()) == 'no queries'
    )


def test_html_is_escaped():
    html = Hits(
        [Hit(1, 'x', 0, '<img src=x onerror=alert(1)>', 0.5, 'gone.jpg')],
        query='gone.jpg',
        label=0,
        name='"><script>',
    )._repr_html_()
    assert '<script' not in html and '<img src=x' not in html and '&lt;script&gt;' in html


def test_pictures_draw_any_name(drawn):
    import matplotlib.pyplot as plt

    names = [
        '줄무늬 니트 (남색)',
        'costs $5 and $6_7',
        'a' * 200,
        '\U0001f457 dress',
        '',
        'e\u0301te\u0301',
    ]
    hits = Hits(
        [Hit(i, n, i, n, 0.1, drawn.paths[i]) for i, n in enumerate(names)],
        query=drawn.paths[0],
        label=0,
        name='q',
    )
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fig = hits.show()
        fig.canvas.draw()
    assert sum(ax.axison for ax in fig.axes) == 7
    plt.close(fig)


def test_importing_brings_no_tensorflow():
    code = (
        'import sys, triplet_fashion.search, triplet_fashion.explore\n'
        "heavy = {'tensorflow', 'keras', 'matplotlib.pyplot'}\n"
        'print(sorted(heavy & set(sys.modules)))'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]'


def test_real_photos(clothing, net, tmp_path):
    catalog = Catalog.from_dir(clothing / 'validation').sample(30, seed=0)
    index = ImageIndex.build(catalog, net)
    found = index.search(catalog, k=2)
    assert [h[0].id for h in found] == catalog.ids and all(h[0].distance < 1e-5 for h in found)


# --- labels and ids are whatever the user has

EAN = 4006381333931


@pytest.mark.parametrize(
    'labels, names',
    [
        (['coat', 'hat', 'coat'], ['coat', 'hat', 'coat']),
        (np.array(['coat', 'hat', 'coat'], object), ['coat', 'hat', 'coat']),
        ([EAN, EAN + 2**32, EAN], [str(EAN), str(EAN + 2**32), str(EAN)]),
        (np.array([EAN, EAN + 2**32, EAN]), [str(EAN), str(EAN + 2**32), str(EAN)]),
        ([EAN, None, float('nan')], [str(EAN), '', '']),
        (['coat', None, ''], ['coat', '', '']),
        ([5.0, 9.0, float('nan')], ['5', '9', '']),
        (['Caf\u00e9', 'Cafe\u0301', 'hat'], ['Caf\u00e9', 'Caf\u00e9', 'hat']),
    ],
)
def test_labels_stay_what_they_are(labels, names, tmp_path):
    index = ImageIndex(np.eye(3), list('abc'), labels)
    back = ImageIndex.load(index.save(tmp_path / 'i.npz'))
    for one in (index, back):
        found = [one.search(i, k=1)[0] for i in 'abc']
        assert [h.name for h in found] == names and one.labels.dtype == np.int64
        assert [h.label is None for h in found] == [not n for n in names]
    if isinstance(labels, list) and labels[0] == EAN:
        assert index.search('a', k=1)[0].label == EAN


def test_labels_of_tables(tmp_path):
    pd = pytest.importorskip('pandas')
    index = ImageIndex(
        np.eye(3), pd.Series(['a', 'b', 'c']), pd.Series(['coat', None, 'hat'], index=[7, 8, 9])
    )
    assert [index.search(i, k=1)[0].name for i in 'abc'] == ['coat', '', 'hat']
    index = ImageIndex(np.eye(3), list('abc'), pd.array([EAN, None, 3], dtype='Int64'))
    assert [index.search(i, k=1)[0].name for i in 'abc'] == [str(EAN), '', '3']


def test_names_and_class_ids_meet():
    for labels in (['hat', 'coat'], [7, 3]):
        index = ImageIndex(np.eye(2), ['a', 'b'], labels, {3: 'coat', 7: 'hat'})
        assert index.labels.tolist() == [7, 3] and index.search('a', k=1)[0].name == 'hat'
    assert (
        ImageIndex(np.eye(2), ['a', 'b'], ['k7', 'k3'], {'k3': 'coat', 'k7': 'hat'})
        .search('a', k=1)[0]
        .name
        == 'hat'
    )
    both = ImageIndex(np.eye(2), ['a', 'b'], [0, 1], ['Cafe\u0301', 'Caf\u00e9'])
    assert both.labels.tolist() == [0, 0] and len(both.class_names) == 1
    assert ImageIndex(np.eye(2), [1, Path('b')]).ids == ['1', 'b']


@pytest.mark.parametrize(
    'args, message',
    [
        ((['a', 'b'], ['coat', 3]), 'labels mix text'),
        ((['a', 'b'], [1.5, 2]), 'labels hold 1.5'),
        ((['a', 'b'], 'ab'), 'labels must hold one label a photo'),
        ((['a', 'b'], ['coat', 'hat'], ['coat']), "labels hold 'hat'.*class_names"),
        ((['a', 'b'], [0, 1], ['tee', 'tee']), "two products 'tee'"),
        ((['a', 'b'], [0, 1], {-1: 'none', 0: 'a', 1: 'b'}), 'class id -1'),
        ((['a', 'b'], [2**63, 1]), 'labels hold 9223372036854775808'),
        (([1.5, 2],), 'ids hold 1.5'),
        ((['a', None],), 'ids hold None'),
        (('ab',), "ids='ab' is one text"),
    ],
)
def test_labels_and_ids_that_mean_nothing_are_named(args, message):
    with pytest.raises(ValueError, match=message):
        ImageIndex(np.eye(2), *args)


def test_unlabelled_photos_are_nobodys_hit():
    index = ImageIndex(np.eye(2), ['a', 'b'], [None, 'coat'])
    assert [t.frame for t in index.search('b', k=2).tiles] == ['query', 'hit', None]
    assert [t.frame for t in index.search('a', k=2).tiles] == ['query', None, None]


def spell(catalog, form, root):
    "The first two products' photos under names in one Unicode form."
    import unicodedata

    for i, p in enumerate(catalog.paths[:8]):
        to = root / unicodedata.normalize(form, ['한글 Café', 'x'][i // 6]) / f'{form}{i}.jpg'
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, to)
    return Catalog.from_dir(root)


def test_both_forms_of_a_name_are_one_product(drawn, net, tmp_path):
    mac, pc = spell(drawn, 'NFD', tmp_path / 'mac'), spell(drawn, 'NFC', tmp_path / 'pc')
    index = ImageIndex.build(mac, net)
    assert [t.frame for t in index.search(pc, k=2)[0].tiles] == ['query', 'hit', 'hit']
    assert index.add(pc) == 8 and len(index.class_names) == 2 and len(np.unique(index.labels)) == 2


# --- every form of a photo goes the same way


def odd_photos(photo):
    "One photo as files that need care: turned by EXIF, transparent, deep, with a palette."
    exif = Image.Exif()
    exif[0x0112] = 6
    lying, mask = photo.transpose(Image.Transpose.ROTATE_90), Image.new('L', photo.size, 255)
    mask.paste(0, (0, 0, 60, 60))
    clear = photo.copy()
    clear.putalpha(mask)
    deep = Image.fromarray(np.asarray(photo.convert('L')).astype(np.uint16) * 257)
    for im, kind, kw in (
        (lying, 'JPEG', dict(exif=exif, quality=95)),
        (lying, 'PNG', dict(exif=exif)),
        (lying, 'WEBP', dict(exif=exif)),
        (lying, 'TIFF', dict(exif=exif)),
        (clear, 'PNG', {}),
        (clear, 'GIF', {}),
        (deep, 'PNG', {}),
        (photo.quantize(16), 'PNG', {}),
    ):
        buffer = io.BytesIO()
        im.save(buffer, kind, **kw)
        yield kind, buffer.getvalue()


def test_queries_and_thumbnails_see_what_the_index_saw(drawn, index, tmp_path):
    for i, (kind, data) in enumerate(odd_photos(Image.open(drawn.paths[8]).resize((200, 160)))):
        path = tmp_path / f'{i}.{kind.lower()}'
        path.write_bytes(data)
        want, picture = [(h.id, h.distance) for h in index.search(path)], thumbnail(path, 60)
        for query in (
            data,
            bytearray(data),
            io.BytesIO(data),
            open(path, 'rb'),
            [io.BytesIO(data)],
        ):
            found = index.search(query)
            assert [
                (h.id, h.distance) for h in (found[0] if isinstance(query, list) else found)
            ] == want, (kind, query)
        opened = index.search(Image.open(path))
        assert [h.id for h in opened] == [o for o, _ in want] and opened[
            0
        ].distance == pytest.approx(want[0][1], abs=0.002), kind
        for photo in (data, io.BytesIO(data), Image.open(path)):
            np.testing.assert_allclose(
                np.asarray(thumbnail(photo, 60), float), np.asarray(picture, float), atol=12
            )


def test_a_folder_stands_for_its_catalogue(drawn, net, index):
    built = ImageIndex.build(drawn.root, net)
    assert built.ids == index.ids and built.add(drawn.root) == 0
    assert [h[0].id for h in built.search(drawn.root, k=1)] == drawn.ids
    with pytest.raises(TypeError, match='must be a Catalog or a folder'):
        ImageIndex.build(3, net)


def test_broken_photos_among_queries_are_named_and_the_others_searched(drawn, index, tmp_path):
    (tmp_path / 'torn.jpg').write_bytes(b'\xff\xd8\xff\xe0 torn')
    with pytest.warns(UserWarning, match='3 of 4 queries'):
        found = index.search(
            [tmp_path / 'torn.jpg', drawn.paths[3], tmp_path / 'gone.jpg', b'no photo'], k=2
        )
    assert [len(h) for h in found] == [0, 2, 0, 0] and found[1][0].id == drawn.ids[3]
    assert 'torn.jpg' in str(found[0]) and 'gone.jpg' in str(found[2]) and found[0].problem
    assert found._repr_html_().count('<figure') == 6 and 'cannot be read' in found._repr_html_()
    cat = Catalog(
        [*drawn.paths[:2], str(tmp_path / 'gone.jpg')], [0, 0, 0], drawn.class_names, drawn.root
    )
    with pytest.warns(UserWarning, match='1 of 3 queries'):
        assert [len(h) for h in index.search(cat, k=2)] == [2, 2, 0]
    for query in ([tmp_path / 'torn.jpg'], b'', io.BytesIO(b'x' * 50)):
        with pytest.raises(ValueError):
            index.search(query)


# --- many at once, replaced, removed


def test_two_threads_add_and_others_search(drawn, net):
    from concurrent.futures import ThreadPoolExecutor

    parts = [drawn.subset(np.arange(len(drawn)) % 6 == r) for r in range(6)]
    index = ImageIndex.build(parts[0], net)

    def look(i):
        hits = index.search(index.embeddings[0], k=1000)
        assert len({h.id for h in hits}) == len(hits) and len(hits) % 12 == 0
        return all(h.name == h.id.split('/')[0] for h in hits)

    with ThreadPoolExecutor(10) as pool:
        adds = [pool.submit(index.add, p) for p in [*parts[1:], parts[3]]]
        assert all(pool.map(look, range(60)))
    [a.result() for a in adds]
    assert sorted(index.ids) == sorted(drawn.ids) and all(map(os.path.isfile, index.paths))


def test_a_replaced_photo_is_encoded_anew(drawn, net, tmp_path):
    cat = Catalog.from_dir(shutil.copytree(drawn.root, tmp_path / 'c'))
    index = ImageIndex.build(cat, net)
    shutil.copy(cat.paths[30], cat.paths[0])
    index = ImageIndex.load(index.save(tmp_path / 'i.npz'), net=net)
    assert (
        index.add(cat) == 1
        and len(index) == len(cat)
        and index.ids == cat.ids
        and index.add(cat) == 0
    )
    assert {h.id for h in index.search(cat.paths[30], k=2)} == {cat.ids[0], cat.ids[30]}


def test_photos_are_taken_out(drawn, net):
    index = ImageIndex.build(drawn, net)
    assert (
        index.remove(drawn.ids[0]) == 1
        and index.remove([drawn.paths[1], drawn.ids[2]]) == 2
        and index.remove(drawn.subset([3, 4])) == 2
    )
    assert index.ids == drawn.ids[5:] and index.labels.tolist() == drawn.labels[5:].tolist()
    assert index.search(drawn.paths[6], k=1)[0].id == drawn.ids[6]
    with pytest.raises(ValueError, match="is not in this index .*nothing was removed"):
        index.remove([drawn.ids[9], drawn.ids[0]])
    with pytest.raises(ValueError, match='needs one'):
        index.remove(drawn.ids[5:])
    assert len(index) == len(drawn) - 5


def test_an_index_can_be_pickled():
    import pickle

    back = pickle.loads(pickle.dumps(tiny()))
    assert back.ids == tiny().ids and str(back.search(np.ones(3))) == str(tiny().search(np.ones(3)))


def test_the_second_search_prepares_nothing():
    "The gallery's copy is 4 MB: the first search makes it."
    import tracemalloc

    x = np.random.default_rng(0).normal(size=(16_000, 64)).astype('float32')
    index, peaks = ImageIndex(x, [str(i) for i in range(len(x))]), []
    for _ in range(2):
        tracemalloc.start()
        try:
            index.search(x[0])
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < x.nbytes / 4 < x.nbytes < peaks[0]


def test_an_index_on_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    from collections import namedtuple

    file = tiny().save(tmp_path / 'i.npz')
    old = file.read_bytes()
    monkeypatch.setattr(
        shutil, 'disk_usage', lambda _: namedtuple('usage', 'total used free')(10**9, 10**9, 10)
    )
    with pytest.raises(OSError, match='i.npz could not be written: the disk is full'):
        tiny(20).save(file)
    assert file.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ['i.npz']
    with pytest.raises(IsADirectoryError, match='is a folder'):
        tiny().save(tmp_path)
