"""Folders and tables as catalogues, their parts and sums, the drawn catalogue, and moving
folders without losing a file."""

import csv, os, shutil, signal, subprocess, sys, time, unicodedata, warnings
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from common import tree
from hypothesis import given, settings, strategies as st
from PIL import Image

from triplet_fashion import datasets
from triplet_fashion.labels import Labels
from triplet_fashion.catalog import Catalog, class_dict, listdir_fullpath, sub_dir
from triplet_fashion.datasets import draw_catalog


def fill(root, *names, content=None):
    "Files by relative name, each with its own name as its content."
    for n in names:
        p = root / n
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(content if content is not None else n.encode())
    return root


# listing


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    fill(tmp_path, *(f'p{k}/{j}.jpg' for k in (3, 1, 2) for j in (2, 0, 1)))
    want, real, scan = Catalog.from_dir(tmp_path), os.listdir, os.scandir
    monkeypatch.setattr(os, 'listdir', lambda d: real(d)[::-1])

    class Back(list):
        def __enter__(self):
            return self

        def __exit__(self, *a):
            pass

    monkeypatch.setattr(
        os, 'scandir', lambda d: Back(sorted(scan(d), key=lambda e: e.name[::-1], reverse=True))
    )
    assert Catalog.from_dir(tmp_path).paths == want.paths
    assert class_dict(tmp_path) == {0: 'p1', 1: 'p2', 2: 'p3'} == want.class_dict


def test_the_seeds_listing(tmp_path):
    fill(tmp_path, 'b/1.jpg', 'a/1.jpg', '.DS_Store', 'Thumbs.db', 'notes.txt')
    (tmp_path / '.git').mkdir()
    assert listdir_fullpath(tmp_path) == [str(tmp_path / n) for n in ('a', 'b', 'notes.txt')]
    assert sorted(listdir_fullpath(tmp_path, hidden=True)) == sorted(
        os.path.join(tmp_path, f) for f in os.listdir(tmp_path)
    )
    assert class_dict(str(tmp_path)) == {0: 'a', 1: 'b'}


@pytest.mark.parametrize(
    'layout,found',
    [
        ('flat', ['a/1.jpg', 'a/2.PNG']),
        ('nested', ['a/a/3.jpg', 'b/b/4.webp']),
        ('auto', ['a/1.jpg', 'a/2.PNG', 'a/a/3.jpg', 'b/b/4.webp']),
    ],
)
def test_layouts(layout, found, tmp_path):
    cat = Catalog.from_dir(
        fill(tmp_path, 'a/1.jpg', 'a/2.PNG', 'a/a/3.jpg', 'b/b/4.webp'), layout=layout
    )
    assert cat.ids == found and cat.class_names == ['a', 'b']


def test_what_is_left_out_is_counted_with_its_reason(tmp_path):
    fill(
        tmp_path,
        'a/1.jpg',
        'a/readme.txt',
        'a/._1.jpg',
        'a/sub/2.jpg',
        'loose.jpg',
        '.DS_Store',
        'b/x.psd',
        '__MACOSX/a/1.jpg',
    )
    (tmp_path / 'a/gone.jpg').symlink_to(tmp_path / 'nowhere.jpg')
    os.mkfifo(tmp_path / 'a/pipe.jpg')
    with pytest.warns(
        UserWarning,
        match='1 photos in 1 sub-folders of product folders, '
        "such as 'a/sub', are not used. Move them up",
    ):
        cat = Catalog.from_dir(tmp_path)
    assert cat.ids == ['a/1.jpg'] and cat.class_names == ['a', 'b'] and list(cat.products) == [0]
    reasons = {Path(p).relative_to(tmp_path).as_posix(): r for p, r in cat.skipped}
    assert reasons == {
        'a/readme.txt': 'not a photo by its name',
        'a/._1.jpg': 'hidden or system file',
        'a/sub': 'sub-folder',
        'a/sub/2.jpg': 'photo in a sub-folder',
        'loose.jpg': 'photo outside any product folder',
        '.DS_Store': 'hidden or system file',
        '__MACOSX': 'hidden or system file',
        'b/x.psd': 'not a photo by its name',
        'b': 'product folder without photos',
        'a/gone.jpg': 'link that leads nowhere',
        'a/pipe.jpg': 'not a regular file',
    }
    assert (
        repr(cat) == f'{tmp_path.name}: 1 photos of 1 products, '
        '1 photos in sub-folders not used, 7 other entries left out'
    )
    assert 'not listed, not a photo by its name' in str(cat.audit())


@pytest.mark.parametrize(
    'names,error,text',
    [
        ([], ValueError, 'is empty'),
        (['1.jpg', '2.jpg'], ValueError, 'holds 2 photos but no folders'),
        (['readme.txt'], ValueError, 'holds no folders'),
        (['a/readme.txt', 'b/x.txt'], ValueError, r'no photos in its 2 folders \(a, b\)'),
        (['men/tees/1/1.jpg'], ValueError, 'right above the products'),
        (['.git/a.jpg'], ValueError, 'holds no folders'),
    ],
)
def test_folders_that_are_no_catalogue(names, error, text, tmp_path):
    with pytest.raises(error, match=text) as e:
        Catalog.from_dir(fill(tmp_path, *names))
    assert str(tmp_path) in str(e.value)


def test_roots_that_are_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        Catalog.from_dir(tmp_path / 'nowhere')
    (tmp_path / 'f').touch()
    with pytest.raises(NotADirectoryError, match='is a file'):
        Catalog.from_dir(tmp_path / 'f')
    with pytest.raises(ValueError, match="layout must be one of auto, flat, nested, not 'deep'"):
        Catalog.from_dir(tmp_path, layout='deep')


def test_links_that_go_round(tmp_path):
    fill(tmp_path, 'a/1.jpg')
    (tmp_path / 'self').symlink_to(tmp_path / 'self')
    (tmp_path / 'up').symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / 'a/a').symlink_to(tmp_path / 'a', target_is_directory=True)
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b/b').symlink_to(tmp_path, target_is_directory=True)
    cat = Catalog.from_dir(tmp_path)
    assert (
        cat.ids == ['a/1.jpg'] and cat.exclude([]).ids == cat.ids
    )  # listed twice, a photo would be its own positive
    reasons = {os.path.relpath(p, tmp_path): r for p, r in cat.skipped}
    assert (
        reasons['a/a'] == reasons['b/b'] == 'link that goes round'
        and reasons['self'] == 'link that leads nowhere'
    )
    assert Catalog.from_dir(tmp_path, layout='flat').ids == ['a/1.jpg']


def test_what_lies_deeper_is_left_out_with_its_reason(tmp_path, monkeypatch):
    fill(tmp_path, 'a/a/1.jpg', 'a/a/old/2.jpg', 'a/a/a/3.jpg', 'b/b/4.jpg', 'b/5.jpg', 'c/6.jpg')
    cat = Catalog.from_dir(tmp_path)
    assert cat.ids == ['a/a/1.jpg', 'b/5.jpg', 'b/b/4.jpg', 'c/6.jpg']
    assert {os.path.relpath(p, tmp_path): r for p, r in cat.skipped} == {
        'a/a/old': 'sub-folder',
        'a/a/a': 'sub-folder',
        'a/a/old/2.jpg': 'photo in a sub-folder',
        'a/a/a/3.jpg': 'photo in a sub-folder',
    }
    real = os.scandir

    def scandir(d):
        if str(d).endswith('b/b'):
            raise PermissionError(13, 'Permission denied', str(d))
        return real(d)

    monkeypatch.setattr(os, 'scandir', scandir)
    cat = Catalog.from_dir(tmp_path)
    assert (
        cat.ids == ['a/a/1.jpg', 'b/5.jpg', 'c/6.jpg']
        and (str(tmp_path / 'b/b'), 'folder that cannot be read: Permission denied') in cat.skipped
    )
    (tmp_path / 'c/6.jpg').unlink()
    shutil.rmtree(tmp_path / 'b')
    (tmp_path / 'a/a/1.jpg').unlink()
    with pytest.raises(
        ValueError,
        match="only further folders such as '(a/)+a'|only further folders such as 'a/a/old'",
    ):
        Catalog.from_dir(tmp_path)


def test_photos_below_a_product_are_counted_as_not_used(tmp_path):
    names = [
        f'{p}/{c}/{n}/{k}.jpg'
        for p in ('shirt', 'coat')
        for c in ('red', 'blue')
        for n in ('x', '')
        for k in range(5)
    ]
    fill(
        tmp_path,
        *(n.replace('//', '/') for n in names),
        'shirt/front.jpg',
        'coat/front.jpg',
        'coat/red/.hidden/1.jpg',
        'coat/red/notes.txt',
    )
    (tmp_path / 'coat/red/round').symlink_to(tmp_path, target_is_directory=True)
    with pytest.warns(
        UserWarning, match="40 photos in 4 sub-folders of product folders, such as 'coat/blue'"
    ):
        cat = Catalog.from_dir(tmp_path)
    assert (
        len(cat) == 2
        and '40 photos in sub-folders not used' in repr(cat)
        and 'photo in a sub-folder' in str(cat.audit())
    )
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert 'not used' not in repr(
            Catalog.from_dir(fill(tmp_path / 'flat', 'a/1.jpg', 'a/empty/notes.txt'))
        )


def test_names_in_two_unicode_forms_are_one_name(tmp_path):
    name = '여름 원피스 (파랑)'
    nfd = unicodedata.normalize('NFD', name)
    linux, mac = (
        Catalog.from_dir(fill(tmp_path / d, f'{n}/{n}/1.jpg', 'zz/1.jpg', 'aa/1.jpg'))
        for d, n in (('linux', name), ('mac', nfd))
    )
    assert len(linux) == len(mac) == 3 and list(linux.labels) == list(mac.labels)
    shared = Catalog.from_dir(tmp_path / 'mac', class_names=linux)
    assert shared.class_names == linux.class_names and list(shared.labels) == list(linux.labels)


def test_names_that_are_not_text(tmp_path):
    folder = os.fsencode(tmp_path) + b'/a\xff'
    os.mkdir(folder)
    open(folder + b'/1.jpg', 'wb').close()
    cat = Catalog.from_dir(tmp_path)
    assert (
        len(cat) == 1
        and cat._repr_html_().encode()
        and cat.audit()._repr_html_().encode()
        and str(cat.audit())
    )


def test_ids_shared_with_another_catalogue(tmp_path):
    train = Catalog.from_dir(fill(tmp_path / 'train', 'a/1.jpg', 'b/1.jpg', 'd/1.jpg'))
    val = fill(tmp_path / 'val', 'c/1.jpg', 'd/2.jpg', 'b/2.jpg')
    assert dict(zip(Catalog.from_dir(val).ids, Catalog.from_dir(val).labels)) == {
        'b/2.jpg': 0,
        'c/1.jpg': 1,
        'd/2.jpg': 2,
    }
    shared = Catalog.from_dir(val, class_names=train.class_names)
    assert dict(zip(shared.ids, shared.labels)) == {'b/2.jpg': 1, 'd/2.jpg': 2, 'c/1.jpg': 3}
    assert shared.class_names == ['a', 'b', 'd', 'c'] and train.class_names == ['a', 'b', 'd']


def test_fifty_thousand_files_in_seconds(tmp_path):
    for c in range(500):
        (tmp_path / f'p{c}').mkdir()
        for k in range(100):
            os.close(os.open(f'{tmp_path}/p{c}/{k}.jpg', os.O_CREAT))
    start = time.process_time()
    cat = Catalog.from_dir(tmp_path)
    assert len(cat) == 50_000 and cat.num_classes == 500 and time.process_time() - start < 5


def test_listing_imports_no_tensorflow(tmp_path, root):
    fill(tmp_path, 'a/1.jpg', 'b/1.jpg')
    code = f"""
import sys
from triplet_fashion.catalog import Catalog
c = Catalog.from_dir({str(tmp_path)!r})
c.audit()
print(len(c), sorted({{'tensorflow', 'keras', 'matplotlib'}} & set(sys.modules)))"""
    assert (
        subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, cwd=root, check=True
        ).stdout
        == '2 []\n'
    )


# the object


def test_wrong_columns_name_themselves():
    with pytest.raises(ValueError, match='2 paths but 1 labels'):
        Catalog(['a', 'b'], [0], ['x'])
    with pytest.raises(ValueError, match='labels hold 1, but there are 1 class_names'):
        Catalog(['a', 'b'], [0, 1], ['x'])
    with pytest.raises(ValueError, match='labels hold -1'):
        Catalog(['a'], [-1], ['x'])
    with pytest.raises(ValueError, match="holds 'x' twice"):
        Catalog(['a'], [0], ['x', 'x'])


# labels and names

PRODUCTS = {
    'text': ['hat', 'coat', 'hat'],
    'EAN codes': [4006381333931, 4006381333931 - 2**32, 4006381333931],
    'ids': [1, 0, 1],
    'whole floats': [1.0, 0.0, 1.0],
    'NumPy text': np.array(['hat', 'coat', 'hat']),
    'uint64': np.array([2**64 - 1, 7, 2**64 - 1], np.uint64),
    'a column': pd.Series(['hat', 'coat', 'hat'], index=[5, 6, 7]),
    'nullable integers': pd.array([9, 8, 9], 'Int64'),
    'categories': pd.Categorical(['hat', 'coat', 'hat']),
    'NumPy scalars': [np.int64(5), np.int8(3), np.int64(5)],
}


@pytest.mark.parametrize('labels', PRODUCTS.values(), ids=PRODUCTS)
def test_any_label_is_a_product(labels):
    cat = Catalog(['1', '2', '3'], labels)
    assert cat.labels.tolist() == [1, 0, 1] and cat.labels.dtype == np.int32
    assert [cat.class_names[l] for l in cat.labels] == [
        str(int(l) if isinstance(l, float) else l) for l in labels
    ]


@pytest.mark.parametrize('missing', [None, np.nan, pd.NA, ''], ids=repr)
@pytest.mark.parametrize('names', [None, ['coat'], {'coat': 'x'}], ids=repr)
def test_a_missing_label_is_no_product(missing, names):
    with pytest.raises(
        ValueError, match='^labels: 1 of 2 photos have no label, the first at position 1'
    ):
        Catalog(['1', '2'], ['coat', missing], names)


def test_names_say_what_labels_mean():
    paths = ['1', '2', '3']
    by_name = Catalog(paths, ['hat', 'coat', 'hat'], ['coat', 'hat', 'tee'])
    assert by_name.labels.tolist() == [1, 0, 1] and by_name.num_classes == 3
    assert Catalog(paths, by_name.labels, by_name.class_dict).class_names == ['coat', 'hat', 'tee']
    ean = Catalog(
        paths, [4006381333931, 9, 4006381333931], {4006381333931: 'coat', 9: 'hat', 12: 'tee'}
    )
    assert ean.class_names == ['hat', 'tee', 'coat'] and ean.labels.tolist() == [2, 0, 2]
    assert Catalog(paths, ['x', 'y', 'x'], {'y': 'coat', 'x': 'hat'}).labels.tolist() == [0, 1, 0]
    assert Catalog(paths, ['hat', 'coat', 'hat'], {0: 'coat', 1: 'hat'}).labels.tolist() == [
        1,
        0,
        1,
    ]
    kinds = Catalog(paths, [1, 0, 1], ['a', 'b'], categories=['top', 'hat'])
    assert Catalog(['4'], ['b'], kinds).categories == ['top', 'hat'] and Catalog(
        ['4'], ['b'], kinds
    ).labels.tolist() == [1]
    assert Catalog(['4'], ['b'], Labels(['b', 'a'])).labels.tolist() == [1] and Catalog(
        ['4', '5'], Labels(['b', 'a'])
    ).class_names == ['a', 'b']
    numbers = Catalog(paths, [0, 1, 0], [10, np.int64(11)])
    assert (
        numbers.class_names == ['10', '11']
        and (numbers + by_name).num_classes == 5
        and '11' in Catalog([], [], numbers).class_names
    )


@pytest.mark.parametrize(
    'labels,names,says',
    [
        (
            [0, 2**32],
            ['a', 'b'],
            'labels hold 4294967296, but there are 2 class_names.*{label: name}',
        ),
        (
            ['a', 'c'],
            ['a', 'b'],
            "labels hold 'c', which is not among the 2 class_names \\('a', 'b'\\)",
        ),
        ([0, 1], {0: 'a', 2: 'b'}, 'labels hold 1, which is not among the keys'),
        ([0, 1], ['a', None], 'class_names has no name at position 1'),
        ([0, 1], 'ab', "class_names must hold one name a class, not 'ab'"),
        ([0, 1], ['e\u0301', '\u00e9'], 'twice'),
        ([0, 0.5], ['a', 'b'], 'labels hold 0.5'),
        (['a', 1], None, 'labels mix text'),
        (5, None, 'labels must hold one label a photo, not 5'),
        ([[0, 1], [1, 0]], ['a', 'b'], r'the shape is \(2, 2\)'),
        (Labels(['a', None], missing='unlabelled'), None, 'labels: some photos are unlabelled'),
    ],
)
def test_labels_and_names_that_do_not_fit_name_themselves(labels, names, says):
    with pytest.raises(ValueError, match=says):
        Catalog(['1', '2'], labels, names)


def test_two_catalogues_are_matched_by_name():
    nfd, nfc = (unicodedata.normalize(form, '한글 Café') for form in ('NFD', 'NFC'))
    mac, pc = (
        Catalog(['1', '2', '3'], [0, 1, 2], ['x', 'y', nfd]),
        Catalog(['4', '5'], [0, 1], [nfc, 'x']),
    )
    assert pc.labels_as(mac).tolist() == [2, 0] and mac.labels_as(pc).tolist() == [1, 2, 0]
    assert mac.labels_as(mac).tolist() == mac.labels.tolist()
    assert pc.labels_as([]).tolist() == pc.labels.tolist()
    assert pc.labels_as({5: nfd}).tolist() == [5, 6] and mac.labels_as(
        {8: 'y', 3: 'x'}
    ).tolist() == [3, 8, 9]
    assert Catalog([], []).labels_as(mac).tolist() == []
    with pytest.raises(ValueError, match='keys must be class ids'):
        pc.labels_as({'a': 'x'})
    assert len((mac + pc).class_names) == 3


def test_parts_keep_ids_and_empty_parts_work():
    cat = Catalog([f'{k}.jpg' for k in range(6)], [0, 0, 1, 2, 2, 2], list('abcd'))
    assert cat.labels.dtype == np.int32 and cat[-1] == ('5.jpg', 2)
    assert cat[1:3].paths == ['1.jpg', '2.jpg'] and cat[np.array([5, 0])].labels.tolist() == [2, 0]
    assert cat[cat.labels == 2].class_names == list('abcd')
    assert (
        len(cat[[]]) == 0
        and len(cat.subset(np.zeros(6, bool))) == 0
        and list(cat[[]].products) == []
    )
    assert cat.at_least(3).paths == ['3.jpg', '4.jpg', '5.jpg'] and len(cat.at_least(4)) == 0
    assert cat.exclude(['0.jpg', 'unknown.jpg']).paths == cat.paths[1:]
    assert len(cat.sample(99)) == 6 and cat.sample(3, seed=1).paths != cat.sample(3, seed=2).paths
    with pytest.raises(ValueError, match='n=-1: expected 0 or more'):
        cat.sample(-1)
    with pytest.raises(TypeError, match='n=2.5: expected a whole number'):
        cat.sample(2.5)
    with pytest.raises(ValueError, match='a mask of 2 for 6'):
        cat.subset(np.array([True, False]))
    with pytest.raises(IndexError):
        cat.subset([6])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=12),
    valid=st.floats(0.01, 0.99),
    by=st.sampled_from(['product', 'photo']),
    seed=st.integers(0, 99),
)
def test_splits_part_a_catalogue(sizes, valid, by, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    cat = Catalog(
        [f'{k}.jpg' for k in range(len(labels))], labels, [f'c{k}' for k in range(len(sizes))]
    )
    a, b = cat.split(valid, by, seed)
    assert (
        sorted(a.paths + b.paths) == sorted(cat.paths)
        and a.class_names == b.class_names == cat.class_names
    )
    assert cat.split(valid, by, seed)[1].paths == b.paths
    if by == 'product':
        assert len(a) and len(b) and not set(a.products) & set(b.products)
    else:
        assert set(a.products) == set(cat.products)
        assert all(
            abs((b.labels == c).sum() - valid * n) < 1 + 1e-9 or n == 1 for c, n in enumerate(sizes)
        )


@pytest.mark.parametrize('valid', [0.1, 0.2, 0.5, 0.9])
def test_products_with_two_photos_stand_on_both_sides_of_a_split(valid):
    labels = [*range(22), *np.repeat(np.arange(22, 31), 2)]
    cat = Catalog([str(k) for k in range(40)], labels)
    for seed in range(20):
        train, held = cat.split(valid, seed=seed)
        assert (
            (train.counts() > 1).any()
            and (held.counts() > 1).any()
            and len(held.products) == round(valid * 31)
        )
        assert abs((held.counts() > 1).sum() - valid * 9) <= 1


def test_a_split_that_can_hold_no_pair_says_so():
    cat = Catalog(list('abcde'), [0, 1, 2, 3, 3])
    with pytest.warns(UserWarning, match='only one of its 4 products has two photos or more'):
        train, held = cat.split(0.5)
    assert (train.counts() > 1).sum() == 1 and len(held) == 2


def test_splits_of_products_with_two_photos_each_are_what_they_were():
    "The benchmarks are trained on these."
    cat = Catalog([str(k) for k in range(24)], np.repeat(np.arange(12), 2))
    assert [cat.split(seed=s)[1].products.tolist() for s in range(4)] == [
        [2, 9],
        [8, 11],
        [0, 2],
        [7, 11],
    ]


def test_split_errors():
    one = Catalog(['a', 'b'], [0, 0], ['x'])
    with pytest.raises(ValueError, match='1 product: nothing to hold out'):
        one.split()
    with pytest.raises(ValueError, match='between 0 and 1, not 1.5'):
        one.split(1.5)
    with pytest.raises(ValueError, match='between 0 and 1, not nan'):
        one.split(np.nan)
    with pytest.raises(ValueError, match="between 0 and 1, not '0.2'"):
        one.split('0.2')
    with pytest.raises(ValueError, match="by must be"):
        one.split(by='class')
    with pytest.raises(ValueError, match='k=-1: expected 0 or more'):
        one.at_least(-1)
    with pytest.raises(TypeError, match='k=nan: expected a whole number'):
        one.at_least(np.nan)


def test_pictures(drawn):
    import matplotlib.pyplot as plt

    html = drawn._repr_html_()
    assert (
        html.count('<img') == 8
        and 'and 4 more' in html
        and len(html) < 100_000
        and str(drawn.root) not in html
    )
    ax = drawn.show(products=3, photos=4)
    assert [t.get_text() for t in ax.get_yticklabels()][0].startswith('(0000)') and len(
        ax.get_yticks()
    ) == 3
    with pytest.raises(ValueError, match='nothing to show'):
        drawn[[]].show()
    plt.close('all')


def test_pictures_escape_names_and_survive_bad_photos(tmp_path):
    import matplotlib.pyplot as plt

    cat = Catalog.from_dir(
        fill(tmp_path, '<script>alert(1)</script>'.replace('/', '|') + '/1.jpg', 'b $x$/2.jpg')
    )
    assert '<script>' not in cat._repr_html_() and '<script>' not in cat.audit()._repr_html_()
    cat.show().figure.canvas.draw()
    plt.close('all')


# tables


def table(path, text, encoding='utf-8'):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize('mark', [',', ';', '\t', '|'])
@pytest.mark.parametrize('bom', ['', '\ufeff'])
def test_tables_with_any_separator(mark, bom, tmp_path):
    fill(tmp_path, 'a/1.jpg', 'b/1.jpg', '옷/사진 (1).jpg', 'b/x,y;z.jpg')
    rows = [
        ['Label', 'PATH', 'note'],
        ['tee', 'a/1.jpg', ''],
        ['앞치마', '옷/사진 (1).jpg', 'x'],
        ['tee', 'b/1.jpg', ''],
        ['hat', '"b/x,y;z.jpg"' if mark in ',;' else 'b/x,y;z.jpg', ''],
    ]
    cat = Catalog.from_csv(table(tmp_path / 't.csv', bom + '\r\n'.join(mark.join(r) for r in rows)))
    assert (
        cat.ids == ['a/1.jpg', '옷/사진 (1).jpg', 'b/1.jpg', 'b/x,y;z.jpg']
        and cat.class_names == ['hat', 'tee', '앞치마']
        and cat.labels.tolist() == [1, 2, 1, 0]
        and cat.categories is None
    )


def test_splits_of_a_table_share_ids_and_categories(tmp_path):
    fill(tmp_path / 'p', *'abcd')
    path = table(
        tmp_path / 't.csv',
        'path,label,split,category\na,x,train,top\nb,y,valid,hat\nc,x,valid,top\nd,z,train,\n',
    )
    train, valid = (
        Catalog.from_csv(path, root=tmp_path / 'p', split=s) for s in ('train', 'valid')
    )
    assert train.ids == ['a', 'd'] and valid.ids == ['b', 'c'] and valid.labels.tolist() == [1, 0]
    assert train.class_names == valid.class_names == ['x', 'y', 'z'] and train.categories == [
        'top',
        'hat',
        '',
    ]
    assert Catalog.from_csv(path, root=tmp_path / 'p', class_names=['z', 'y']).labels.tolist() == [
        2,
        1,
        2,
        0,
    ]


def test_photos_of_a_table_that_are_not_there(tmp_path):
    fill(tmp_path, 'a', 'b')
    path = table(tmp_path / 't.csv', 'path,label\na,x\nb,x\nc,y\nd/e,y\n')
    with pytest.raises(FileNotFoundError, match=r'2 of its 4 photos are not in .* \(c, d/e\)'):
        Catalog.from_csv(path)
    cat = Catalog.from_csv(path, missing='skip')
    assert (
        cat.ids == ['a', 'b']
        and cat.num_classes == 2
        and [Path(p).name for p, _ in cat.skipped] == ['c', 'e']
        and 'not listed, in the table but not there' in str(cat.audit())
    )
    with pytest.raises(FileNotFoundError, match='4 of its 4'):
        Catalog.from_csv(path, root=tmp_path / 'elsewhere', missing='skip')
    with pytest.raises(FileNotFoundError):
        Catalog.from_csv(tmp_path / 'none.csv')


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    data=st.data(),
    mark=st.sampled_from(',;\t|'),
    end=st.sampled_from(['\n', '\r\n', '\r']),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    bom=st.booleans(),
)
def test_a_table_is_what_csv_reads(data, mark, end, quoting, bom, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / 'referee'
    if not folder.exists():
        fill(folder, *(f'{k}.jpg' for k in range(3)))
    cell = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=8)
    rows = [[data.draw(cell), f'{k}.jpg', data.draw(cell.filter(str.strip))] for k in range(3)]
    with open(folder / 't.csv', 'w', newline='', encoding='utf-8-sig' if bom else 'utf-8') as f:
        csv.writer(f, delimiter=mark, lineterminator=end, quoting=quoting).writerows(
            [['a;b,c|"', 'path', 'label'], *rows]
        )
    cat = Catalog.from_csv(folder / 't.csv')

    def nfc(s):
        return unicodedata.normalize('NFC', s.strip())

    assert cat.ids == [r[1] for r in rows] and [nfc(cat.class_names[l]) for l in cat.labels] == [
        nfc(r[2]) for r in rows
    ]


@pytest.mark.parametrize(
    'text,names',
    [
        ('path, label\n"a", "coat, red"\n"b", "hat"\n', ['coat, red', 'hat']),
        ('path,label\na,"two\nlines"\nb,"say ""hi"" now"\n', ['say "hi" now', 'two\nlines']),
        ('"path; or file",path,label\n-,a,x\n-,b,y\n', ['x', 'y']),
        ('path,label\r\r\na,x\r\rb,y', ['x', 'y']),
        ('path,label,,\na,x,,\nb,y,,\n', ['x', 'y']),
        ('path,label,note\na,x\nb,y\n', ['x', 'y']),
        ('path,label\na,5" heel\nb,y\n', ['5" heel', 'y']),
        ('\n\npath|label\na|x;1,2\nb|y\n', ['x;1,2', 'y']),
    ],
)
def test_tables_as_they_come(text, names, tmp_path):
    assert Catalog.from_csv(table(fill(tmp_path, 'a', 'b') / 't.csv', text)).class_names == names


@pytest.mark.parametrize(
    'text,says',
    [
        (
            'path,label\na,coat, red\nb,hat\n',
            'line 2 has 3 cells for 2 columns: a cell that holds the separator needs quotes',
        ),
        ('path,label\na,x\nb\n', 'line 3 has 1 cells, and 2 or more are needed'),
        ('path,label,split\na,x,train\nb,x\n', 'line 3 has 2 cells, and 3'),
        ('path,label\na,"x\n\nb,y\n', 'line 2: unexpected end of data. Is there a quote'),
        ('path,label\na,"x" 1\n', "line 2: ',' expected after '\"'"),
        ('path,label\na,x\nb,\0y\n', "line 3 holds a NUL character.*encoding='utf-16'"),
        (
            'path,label\na,"l1\nl2"\nb,' + 'x' * 200_000 + '\n',
            r'line 4: field larger than field limit \(131072\)',
        ),
        ('path,label,Label\na,x,y\n', "two columns 'label'"),
        (
            'path,label,split\na,x,train\nb,x,train\n./a,x,valid\n',
            "line 4: ./a is in split 'valid' here and in 'train' above",
        ),
        ('path,label\na,x\nb,y\nb/../a,y\n', "line 4: b/../a is 'y' here and 'x' above"),
    ],
)
def test_tables_that_contradict_themselves_name_the_line(text, says, tmp_path):
    with pytest.raises(ValueError, match='t.csv.*' + says):
        Catalog.from_csv(table(fill(tmp_path, 'a', 'b') / 't.csv', text))


def test_encodings_of_tables(tmp_path):
    path = table(fill(tmp_path, 'a') / 't.csv', 'path,label\na,원피스\n', 'utf-16')
    with pytest.raises(ValueError, match="'utf-16'"):
        Catalog.from_csv(path)
    assert Catalog.from_csv(path, encoding='utf-16').class_names == ['원피스']
    assert Catalog.from_csv(
        table(path, '\ufeffpath,label\na,x\n'), encoding='utf-8'
    ).class_names == ['x']
    with pytest.raises(ValueError, match="encoding='utf-ate' is not known"):
        Catalog.from_csv(path, encoding='utf-ate')


def test_a_label_in_two_unicode_forms_is_no_contradiction(tmp_path):
    nfd, nfc = unicodedata.normalize('NFD', 'Café'), unicodedata.normalize('NFC', 'Café')
    path = table(
        fill(tmp_path, 'a', 'b') / 't.csv',
        f'path,label,category\na,{nfd},hat\na,{nfc},hat\nb,{nfc},hat\n',
    )
    cat = Catalog.from_csv(path)
    assert (
        len(cat) == 2
        and cat.num_classes == 1
        and Catalog.from_csv(path, class_names=[nfc, 'x']).labels.tolist() == [0, 0]
    )


def test_windows_tables(tmp_path):
    fill(tmp_path, 'a/1.jpg')
    assert Catalog.from_csv(table(tmp_path / 't.csv', 'path,label\r\na\\1.jpg,x\r\n')).ids == [
        'a/1.jpg'
    ]
    korean = table(tmp_path / 'k.csv', 'path,label\na/1.jpg,원피스\n', 'cp949')
    with pytest.raises(ValueError, match="encoding='cp949'"):
        Catalog.from_csv(korean)
    assert Catalog.from_csv(korean, encoding='cp949').class_names == ['원피스']


@pytest.mark.parametrize(
    'text,match',
    [
        ('', 'is empty'),
        ('path,label\n', 'no lines'),
        ('file,label\na,x\n', "no column 'path'.*file, label"),
        ('a,x\nb,y\n', "no column 'path' and no column 'label'"),
        ('path,label\na,\n', 'line 2: label is empty'),
        ('path,label\n,x\n', 'line 2: path is empty'),
        ('path,label\na,x\n\na,y\n', "line 4: a is 'y' here and 'x' above"),
        ('path,label,category\na,x,top\nb,x,hat\n', "line 3: 'x' is 'hat' here and 'top' above"),
    ],
)
def test_tables_that_are_wrong_say_where(text, match, tmp_path):
    fill(tmp_path, 'a', 'b')
    with pytest.raises(ValueError, match=match) as e:
        Catalog.from_csv(table(tmp_path / 't.csv', text))
    assert 't.csv' in str(e.value)


def test_columns_by_other_names(tmp_path):
    fill(tmp_path, 'a', 'b')
    cat = Catalog.from_csv(
        table(tmp_path / 't.csv', 'Image,SKU\na,x\nb,y\n'), files='image', label='sku'
    )
    assert cat.ids == ['a', 'b'] and cat.class_names == ['x', 'y']
    with pytest.raises(ValueError, match="no column 'image'.*path, label"):
        Catalog.from_csv(table(tmp_path / 'u.csv', 'path,label\na,x\n'), files='image')
    with pytest.raises(ValueError, match='line 2: image is empty'):
        Catalog.from_csv(table(tmp_path / 'v.csv', 'image,label\n,x\n'), files='image')


def test_a_line_that_stands_twice_counts_once(tmp_path):
    fill(tmp_path, 'a')
    assert len(Catalog.from_csv(table(tmp_path / 't.csv', 'path,label\na,x\na,x\n'))) == 1
    with pytest.raises(ValueError, match="only 'a', 'b'"):
        Catalog.from_csv(table(tmp_path / 's.csv', 'path,label,split\na,x,a\nb,x,b\n'), split='c')
    with pytest.raises(ValueError, match='missing must be'):
        Catalog.from_csv(tmp_path / 't.csv', missing='ignore')


# sums, categories, lists to leave out


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    a=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=12),
    b=st.lists(st.tuples(st.integers(0, 9), st.integers(3, 9)), max_size=12),
)
def test_sums_are_united_by_name(a, b):
    def make(pairs, names):
        return Catalog(
            [f'{c}/{p}' for p, c in pairs], [names.index(f'c{c}') for _, c in pairs], names
        )

    x, y = make(a, [f'c{k}' for k in range(6)]), make(b, [f'c{k}' for k in (9, 8, 7, 6, 5, 4, 3)])
    both = x + y
    assert both.class_names[:6] == x.class_names and both.num_classes == 10
    assert set(zip(both.paths, [both.class_names[l] for l in both.labels])) == {
        (f'{c}/{p}', f'c{c}') for p, c in a + b
    }
    assert both.paths[: len(x)] == x.paths and both.labels[: len(x)].tolist() == x.labels.tolist()


def test_sums_of_folders(tmp_path):
    a, b = (
        Catalog.from_dir(fill(tmp_path / d, *names))
        for d, names in (
            ('a', ['x/1.jpg', 'y/1.jpg', 'y/no.txt']),
            ('b', ['w/1.jpg', unicodedata.normalize('NFD', '옷') + '/1.jpg']),
        )
    )
    both = sum([a, b])
    assert (
        both.root == str(tmp_path)
        and both.ids
        == ['a/x/1.jpg', 'a/y/1.jpg', 'b/w/1.jpg', unicodedata.normalize('NFD', 'b/옷/1.jpg')]
        and len(both.skipped) == 1
    )
    assert (both + Catalog(['q'], [0], ['옷'])).labels[-1] == both.labels[3]
    (tmp_path / 'link').symlink_to(tmp_path / 'a', target_is_directory=True)
    for way in (tmp_path / 'link', tmp_path / 'b/../a', Path(os.path.relpath(tmp_path / 'a'))):
        assert len(a + Catalog.from_dir(way)) == len(a)  # the same files
    with pytest.raises(TypeError):
        a + [1]
    with pytest.raises(TypeError):
        5 + a


def test_categories_stay_with_their_products():
    a = Catalog(list('pqr'), [0, 1, 1], ['x', 'y'], categories=['top', 'hat'])
    b = Catalog(['s'], [1], ['x', 'z'], categories=['top', 'shoe'])
    for part in (a[1:], a.at_least(2), a.sample(1), a.exclude(['p']), a.split(0.5)[0]):
        assert part.categories == ['top', 'hat']
    assert (a + b).categories == ['top', 'hat', 'shoe'] and (
        a + Catalog(['t'], [0], ['z'])
    ).categories == ['top', 'hat', '']
    assert (Catalog(['t'], [0], ['z']) + a).categories == ['', 'top', 'hat'] and Catalog(
        ['t'], [0], ['z']
    ).categories is None
    with pytest.raises(ValueError, match='1 categories for 2 class_names'):
        Catalog([], [], ['x', 'y'], categories=['top'])


def test_drawn_products_have_categories(drawn):
    assert len(drawn.categories) == 12 and len(set(drawn.categories)) > 3 and all(drawn.categories)
    assert draw_catalog(drawn.root, 12, 6, seed=0).categories == drawn.categories


def test_lists_of_photos_to_leave_out(tmp_path):
    cat = Catalog.from_dir(fill(tmp_path / 'c', 'a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'b/2, new.jpg'))
    for name, text in [
        ('l.txt', f'# mine\na/2.jpg\n\n{cat.paths[3]}\n'),
        ('l.csv', 'path,problem\na/2.jpg,dark\n"b/2, new.jpg",x\n'),
        ('l.tsv', 'a/2.jpg\tdark\nb/2, new.jpg\tx\n'),
    ]:
        assert (
            cat.exclude(table(tmp_path / name, text)).ids
            == ['a/1.jpg', 'b/1.jpg']
            == cat.exclude(str(tmp_path / name)).ids
        ), name
    assert (
        cat.exclude('a/1.jpg').ids == cat.ids[1:]
        and len(cat.exclude(table(tmp_path / 'empty.txt', ''))) == 4
    )
    with pytest.raises(ValueError, match='none of its 1 photos'):
        cat.exclude(table(tmp_path / 'other.txt', 'z/1.jpg\n'))
    with pytest.raises(FileNotFoundError):
        cat.exclude(tmp_path / 'gone.txt')
    with pytest.warns(UserWarning, match='none of the 2 photos given, such as z/1.jpg, is in'):
        assert len(cat.exclude(['z/1.jpg', 'z/2.jpg'])) == 4
    assert len(cat.exclude([])) == 4


# the drawn catalogue


def test_drawn_catalogue_is_the_same_byte_for_byte(tmp_path):
    a, b, c = (
        draw_catalog(tmp_path / n, 3, 2, seed=s, size=(32, 48))
        for n, s in (('a', 4), ('b', 4), ('c', 5))
    )
    assert tree(tmp_path / 'a') == tree(tmp_path / 'b') and tree(tmp_path / 'a') != tree(
        tmp_path / 'c'
    )
    assert len(a) == 6 and a.ids == b.ids and Image.open(a.paths[0]).size == (48, 32)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ['a', 'b', 'c'] and not a.audit().table
    part = draw_catalog(tmp_path / 'more', 4, 3, seed=4, size=(32, 48))
    assert {k: v for k, v in tree(tmp_path / 'a').items() if k.endswith('jpg')}.items() <= tree(
        tmp_path / 'more'
    ).items() and len(part) == 12


def test_a_harder_drawn_catalogue(tmp_path):
    easy, a, b = (
        draw_catalog(tmp_path / n, 3, 4, size=(32, 48), **k)
        for n, k in (('easy', {}), ('a', dict(hard=True)), ('b', dict(hard=True)))
    )
    assert (
        tree(tmp_path / 'a') == tree(tmp_path / 'b')
        and a.ids == easy.ids
        and a.categories == easy.categories
    )
    jpgs = [{v for k, v in tree(tmp_path / n).items() if k.endswith('jpg')} for n in ('easy', 'a')]
    assert not jpgs[0] & jpgs[1]
    assert (
        'hard' not in (tmp_path / 'easy/.drawn.json').read_text()
    )  # a folder drawn before there was a choice is known again
    assert draw_catalog(tmp_path / 'a', 3, 4, size=(32, 48), hard=True).paths == a.paths
    with pytest.raises(FileExistsError):
        draw_catalog(tmp_path / 'a', 3, 4, size=(32, 48))
    with pytest.raises(TypeError, match="hard='very'"):
        draw_catalog(tmp_path / 'c', 3, 4, hard='very')


def test_drawn_catalogue_is_complete_or_not_there(tmp_path, monkeypatch):
    real, calls = datasets.draw_photo, []

    def breaks(*a, **k):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError('power cut')
        return real(*a, **k)

    monkeypatch.setattr(datasets, 'draw_photo', breaks)
    with pytest.raises(RuntimeError):
        draw_catalog(tmp_path / 'd', 3, 3, size=(32, 32))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(datasets, 'draw_photo', real)
    (tmp_path / 'd').mkdir()
    assert len(draw_catalog(tmp_path / 'd', 3, 3, size=(32, 32))) == 9
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/tax.txt').touch()
    with pytest.raises(FileExistsError, match='mine is not empty'):
        draw_catalog(tmp_path / 'mine', 3, 3)
    with pytest.raises(FileExistsError):
        draw_catalog(tmp_path / 'd', 3, 4, size=(32, 32))
    with pytest.raises(ValueError, match='at least 1'):
        draw_catalog(tmp_path / 'e', 0)


def test_an_incomplete_drawn_catalogue_is_not_taken_for_whole(tmp_path):
    cat = draw_catalog(tmp_path / 'd', 2, 2, size=(32, 32))
    os.unlink(cat.paths[0])
    with pytest.raises(FileExistsError):
        draw_catalog(tmp_path / 'd', 2, 2, size=(32, 32))


# one level deeper


def deeper(names):
    return {f'{n.split("/")[0]}/{n}': n.encode() for n in names}


FILES = ['a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'b/x/y.jpg', '여름 (파랑)/1.jpg']


def cross_device(monkeypatch, old, new):
    "Renames from `old` to `new` fail as between file systems."
    real = os.rename

    def rename(a, b, **k):
        if str(a).startswith(str(old)) and str(b).startswith(str(new)):
            raise OSError(18, 'Invalid cross-device link')
        return real(a, b, **k)

    monkeypatch.setattr(os, 'rename', rename)


@pytest.mark.parametrize('across', [False, True])
def test_sub_dir_moves_one_level_deeper(across, tmp_path, monkeypatch):
    old, new = fill(tmp_path / 'old', *FILES, 'loose.txt', '.hidden/1.jpg'), tmp_path / 'new'
    if across:
        cross_device(monkeypatch, old, new)
    plan = sub_dir(old, new, dry_run=True)
    assert (
        plan == [(str(old / n), str(new / n / n)) for n in ('a', 'b', '여름 (파랑)')]
        and not new.exists()
    )
    assert sub_dir(str(old), str(new)) == plan
    assert tree(new) == deeper(FILES) and tree(old) == {
        n: n.encode() for n in ('loose.txt', '.hidden/1.jpg')
    }
    assert (
        sub_dir(old, new) == [] and len(Catalog.from_dir(new, layout='nested')) == 4
    )  # b/x is a sub-folder


def test_sub_dir_across_real_file_systems(tmp_path):
    shm = Path('/dev/shm')
    if (
        not shm.is_dir()
        or not os.access(shm, os.W_OK)
        or os.stat(shm).st_dev == os.stat(tmp_path).st_dev
    ):
        pytest.skip('no second file system to write to')
    new = shm / f'sub_dir-{os.getpid()}'
    try:
        sub_dir(fill(tmp_path / 'old', *FILES), new)
        assert tree(new) == deeper(FILES) and tree(tmp_path / 'old') == {}
    finally:
        shutil.rmtree(new, ignore_errors=True)


@pytest.mark.parametrize('taken', ['b/b/1.jpg', 'b/b', 'b'])
def test_sub_dir_overwrites_nothing(taken, tmp_path):
    old, new = fill(tmp_path / 'old', *FILES), fill(tmp_path / 'new', taken, content=b'precious')
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match='nothing moved: 1 destinations'):
        sub_dir(old, new)
    with pytest.raises(FileExistsError):
        sub_dir(old, new, dry_run=True)
    assert tree(tmp_path) == before


def test_sub_dir_refuses_what_would_lose_files(tmp_path):
    old = fill(tmp_path / 'old', *FILES)
    for new in (old, old / 'new', tmp_path / 'x/../old'):
        with pytest.raises(ValueError, match='lies inside'):
            sub_dir(old, new)
    (old / 'link').symlink_to('a')
    with pytest.raises(ValueError, match='link is a link'):
        sub_dir(old, tmp_path / 'new')
    with pytest.raises(FileNotFoundError, match='no such folder'):
        sub_dir(tmp_path / 'gone', tmp_path / 'new')
    with pytest.raises(NotADirectoryError):
        sub_dir(old / 'a/1.jpg', tmp_path / 'new')
    assert len(tree(old)) == len(FILES) + 0 and not (tmp_path / 'new').exists()


@pytest.mark.parametrize('across', [False, True])
def test_links_inside_a_product_stay_links(across, tmp_path, monkeypatch):
    old, new = fill(tmp_path / 'old', *FILES), tmp_path / 'new'
    (old / 'a/link').symlink_to('1.jpg')
    if across:
        cross_device(monkeypatch, old, new)
    sub_dir(old, new)
    assert os.readlink(new / 'a/a/link') == '1.jpg' and tree(new) == deeper(FILES) | {
        'a/a/link': b'a/1.jpg'
    }
    assert list(old.iterdir()) == []


def test_names_as_long_as_names_can_be(tmp_path, monkeypatch):
    name = '가' * 84  # 252 bytes
    old, new = fill(tmp_path / 'old', f'{name}/1.jpg'), tmp_path / 'new'
    cross_device(monkeypatch, old, new)
    sub_dir(old, new)
    assert tree(new) == {f'{name}/{name}/1.jpg': f'{name}/1.jpg'.encode()} and [
        p.name for p in new.iterdir()
    ] == [name]


def test_names_that_meet_are_refused(tmp_path):
    name = '여름'
    fill(tmp_path / 'old', f'{name}/1.jpg', f'{unicodedata.normalize("NFD", name)}/2.jpg')
    with pytest.raises(FileExistsError, match='nothing moved: 2'):
        sub_dir(tmp_path / 'old', tmp_path / 'new')


def test_a_bad_copy_costs_nothing(tmp_path, monkeypatch):
    "A disk that loses bytes: the original stays."
    old, new = fill(tmp_path / 'old', *FILES), tmp_path / 'new'
    cross_device(monkeypatch, old, new)
    monkeypatch.setattr(shutil, 'copyfile', lambda a, b, **k: Path(b).write_bytes(b'?'))
    monkeypatch.setattr(shutil, 'copy2', lambda a, b, **k: Path(b).write_bytes(b'?'))
    monkeypatch.setattr(
        shutil,
        'copytree',
        lambda a, b, **k: (
            os.makedirs(b),
            [
                Path(b, f).write_bytes(b'?')
                for f in os.listdir(a)
                if os.path.isfile(os.path.join(a, f))
            ],
        ),
    )
    with pytest.raises(OSError, match='differs from'):
        sub_dir(old, new)
    assert tree(old) == {n: n.encode() for n in FILES}


KILLER = '''
import os, shutil, sys
from pathlib import Path
from triplet_fashion.catalog import sub_dir
root, across = Path(sys.argv[1]), sys.argv[2] == 'across'
FILES = ['a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'b/x/y.jpg']
old, new = root/'old', root/'new'

def child(k):
    "Move, but die before system call number k, half of the file written where it is a copy."
    calls = [0]
    def dies(f, half=None):
        def g(*a, **kw):
            calls[0] += 1
            if calls[0] == k:
                if half: half(*a)
                os._exit(9)
            if across and f is rename and str(a[0]).startswith(str(old)):
                raise OSError(18, 'cross-device')
            return f(*a, **kw)
        return g
    rename = os.rename
    def half(src, dst, **kw): Path(dst).write_bytes(Path(src).read_bytes()[:3])
    os.mkdir, os.unlink = dies(os.mkdir), dies(os.unlink)
    os.rmdir, os.rename = dies(os.rmdir), dies(rename)
    shutil.copyfile = dies(shutil.copyfile, half)
    sub_dir(old, new)
    os._exit(0)

for k in range(1, 200):
    for d in (old, new): shutil.rmtree(d, ignore_errors=True)
    for n in FILES:
        (old/n).parent.mkdir(parents=True, exist_ok=True)
        (old/n).write_bytes(n.encode())
    # killed at call k, killed at call k of the second try, then left alone
    for attempt, again in enumerate((k, k, 10**9)):
        pid = os.fork()
        if not pid: child(again)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for n in FILES:
            c = n.split('/')[0]
            copies = [p for p in (old/n, new/c/n) if p.exists()]
            assert copies and all(p.read_bytes() == n.encode() for p in copies), (k, n, copies)
        if code == 0: break
    assert code == 0, (k, code)
    moved = {str(p.relative_to(new)) for p in new.rglob('*') if p.is_file()}
    assert moved == {f"{n.split('/')[0]}/{n}" for n in FILES}, k
    assert not list(old.iterdir()), k
    if not attempt: break   # ran through without being killed: k is past the last call
print('killed', k-1)
'''


@pytest.mark.parametrize('how,least', [('rename', 5), ('across', 15)])
def test_sub_dir_killed_at_every_point_loses_nothing_and_goes_on(how, least, tmp_path, root):
    done = subprocess.run(
        [sys.executable, '-c', KILLER, str(tmp_path), how],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) >= least


def test_ids_are_made_once(drawn):
    "A loop over `catalog.ids[i]` must not grow with the square of the photos."
    assert drawn.ids is drawn.ids


MOVER = """
import os, sys, time
from triplet_fashion import catalog
old, new, how = sys.argv[1:4]
real = os.rename
def rename(a, b, **k):
    time.sleep(.002)
    if how == 'across' and str(a).startswith(old) and str(b).startswith(new):
        raise OSError(18, 'cross-device')
    return real(a, b, **k)
os.rename = rename
print('go', flush=True)
catalog.sub_dir(old, new)
"""


@pytest.mark.parametrize('how', ['rename', 'across'])
def test_killed_at_random_moments_loses_nothing(how, tmp_path, root):
    """SIGKILL, again and again, until one run gets through: every file is always in the old
    place or whole in the new one."""
    rng, (old, new) = np.random.default_rng(5), (tmp_path / 'old', tmp_path / 'new')
    names = {f'c{c}/{k}.jpg': rng.bytes(60_000) for c in range(60) for k in range(4)}

    def nested(n):
        return f'{n.split("/")[0]}/{n}'

    for n, b in names.items():
        fill(old, n, content=b)
    kills = 0
    for _ in range(40):
        child = subprocess.Popen(
            [sys.executable, '-c', MOVER, str(old), str(new), how],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        child.stdout.readline()
        if kills < 5:
            time.sleep(rng.random() * 0.07)
            child.send_signal(signal.SIGKILL)
        code = child.wait()
        kills += code == -signal.SIGKILL
        for n, b in names.items():
            copies = [p for p in (old / n, new / nested(n)) if p.exists()]
            assert copies and all(p.read_bytes() == b for p in copies), (
                n,
                copies,
                child.stderr.read(),
            )
        if code == 0:
            break
    assert code == 0, child.stderr.read()
    assert (
        kills
        and tree(new) == {nested(n): b for n, b in names.items()}
        and not any(p.is_file() for p in old.rglob('*'))
    )


def test_the_drawn_catalog_is_found_beside_catalogs():
    from triplet_fashion import catalog, datasets

    assert catalog.draw_catalog is datasets.draw_catalog
    with pytest.raises(AttributeError, match="no attribute 'draw_catalogue'"):
        catalog.draw_catalogue
