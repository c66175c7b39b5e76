"The official files of four benchmarks, drawn small, read, and broken on purpose."

from functools import partial
import json, os, shutil
from pathlib import Path
import numpy as np
import pytest
from PIL import Image

from triplet_fashion.datasets import (
    Benchmark,
    draw_benchmark,
    read_consumer2shop,
    read_deepfashion2,
    read_inshop,
    read_sop,
)

READ = dict(
    inshop=read_inshop,
    consumer2shop=read_consumer2shop,
    deepfashion2=read_deepfashion2,
    sop=read_sop,
)


@pytest.fixture(scope='module')
def drawn_once(tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            made[name] = draw_benchmark(name, tmp_path_factory.mktemp('datasets') / name, 8, 4)
        return made[name]

    return make


@pytest.fixture
def at(drawn_once, tmp_path):
    "A copy of a drawn benchmark that a test may break."
    return lambda name: Path(shutil.copytree(drawn_once(name), tmp_path / name))


def text(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')
    return path


def touch(root, *names):
    for n in names:
        (root / n).parent.mkdir(parents=True, exist_ok=True)
        (root / n).touch()


# what all have in common


@pytest.mark.parametrize(
    'name,splits',
    [
        ('inshop', ['train', 'query', 'gallery']),
        ('consumer2shop', ['train', 'val', 'val_gallery', 'query', 'gallery']),
        ('deepfashion2', ['train', 'query', 'gallery']),
        ('sop', ['train', 'test']),
    ],
)
def test_splits_share_their_ids(name, splits, drawn_once):
    b = READ[name](drawn_once(name))
    assert list(b) == splits and all(getattr(b, s) is b[s] for s in splits)
    assert all(
        c.class_names == b.train.class_names
        and c.categories == b.train.categories
        and len(c.categories) == c.num_classes
        for c in b.values()
    )
    assert all(os.path.isfile(p) for c in b.values() for p in c.paths) and all(b.train.categories)
    assert not set(b.train.products) & {p for s in splits[1:] for p in b[s].products}
    assert not set(b.train.paths) & {p for s in splits[1:] for p in b[s].paths}
    if 'query' in b:
        assert set(b.query.products) <= set(b.gallery.products) and not set(b.query.paths) & set(
            b.gallery.paths
        )
    assert (
        b.name in repr(b)
        and f'{len(b.train)} photos' in repr(b)
        and '<table>' in b._repr_html_()
        and not b.complete
    )
    with pytest.raises(AttributeError, match=f"no 'valid': its splits are {', '.join(splits)}"):
        b.valid


@pytest.mark.parametrize('name', list(READ))
def test_folders_that_are_no_benchmark(name, tmp_path):
    with pytest.raises(FileNotFoundError, match='no such folder'):
        READ[name](tmp_path / 'gone')
    with pytest.raises(FileNotFoundError, match='is missing.*(official layout|unpack)'):
        READ[name](tmp_path)


@pytest.mark.parametrize('name', list(READ))
def test_photos_that_are_missing(name, at):
    root = at(name)
    whole = READ[name](root)
    victim = next(iter(whole.values())).paths[0]
    os.unlink(victim)
    with pytest.raises(FileNotFoundError, match=r'1 of the .* such as .*unpack'):
        READ[name](root)
    part = READ[name](root, missing='skip')
    assert victim not in part.train.paths and victim in [p for p, _ in part.train.skipped]
    assert sum(map(len, part.values())) < sum(map(len, whole.values()))
    with pytest.raises(ValueError, match='missing must be'):
        READ[name](root, missing='no')


def test_drawn_benchmarks_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="not 'cub'"):
        draw_benchmark('cub', tmp_path)
    with pytest.raises(ValueError, match='at least 4 products'):
        draw_benchmark('sop', tmp_path, 3)
    (tmp_path / 'x').touch()
    with pytest.raises(FileExistsError):
        draw_benchmark('sop', tmp_path)


def test_official_sizes():
    "What says whether a folder is the whole benchmark."
    from triplet_fashion.catalog import Catalog

    b = Benchmark('b', dict(train=Catalog(['1', '2'], [0, 1], ['a', 'b'])), 'p', dict(train=(2, 2)))
    assert b.complete and 'official size' in repr(b)
    b.official['train'] = (25882, 3997)
    assert not b.complete and '25,882 of 3,997 officially' in repr(b)


def spread(photos, products, first=0):
    "Product of each of so many photos, every product at least once."
    return [first + k % products for k in range(photos)]


def test_lists_of_the_published_size_are_complete(tmp_path, monkeypatch):
    """Lists as long as the published ones, photos that need not be there: the counts are those
    of the papers and of each dataset's own readme."""
    monkeypatch.setattr(os.path, 'isfile', lambda p: True)
    (tmp_path / 'in/Img/img').mkdir(parents=True)
    rows = [
        (c, s)
        for s, o in dict(
            train=spread(25882, 3997),
            query=spread(14218, 3985, 3997),
            gallery=spread(12612, 3985, 3997),
        ).items()
        for c in o
    ]
    text(
        tmp_path / 'in/Eval/list_eval_partition.txt',
        [
            '52712',
            'image_name item_id evaluation_status',
            *(f'img/W/D/id_{c:08}/{k}.jpg id_{c:08} {s}' for k, (c, s) in enumerate(rows)),
        ],
    )
    b = read_inshop(tmp_path / 'in')
    assert (
        b.complete
        and b.sizes == dict(train=(25882, 3997), query=(14218, 3985), gallery=(12612, 3985))
        and len(b.train.class_names) == 7982
    )
    k = 0
    for s, photos in (('train', spread(59551, 11318)), ('test', spread(60502, 11316, 11318))):
        lines = [f'{k + i + 1} {c + 1} 1 bicycle_final/{c}_{i}.JPG' for i, c in enumerate(photos)]
        text(tmp_path / f'sop/Ebay_{s}.txt', ['image_id class_id super_class_id path', *lines])
        k += len(lines)
    b = read_sop(tmp_path / 'sop')
    assert (
        b.complete
        and b.sizes == dict(train=(59551, 11318), test=(60502, 11316))
        and len(b.train.class_names) == 22634
    )
    text(
        tmp_path / 'sop/Ebay_test.txt',
        (tmp_path / 'sop/Ebay_test.txt').read_text().splitlines()[:-1],
    )
    assert not read_sop(tmp_path / 'sop').complete


# In-shop


def test_inshop_by_hand(tmp_path):
    "The head of the published list, padded as it is there."
    rows = [
        'img/WOMEN/Dresses/id_00000002/02_1_front.jpg                  id_00000002 train      ',
        'img/WOMEN/Dresses/id_00000002/02_2_side.jpg                   id_00000002 train      ',
        'img/MEN/Denim/id_00000080/01_1_front.jpg                      id_00000080 query      ',
        'img/MEN/Denim/id_00000080/01_4_full.jpg                       id_00000080 gallery    ',
    ]
    text(
        tmp_path / 'Eval/list_eval_partition.txt',
        ['4', 'image_name item_id evaluation_status', *rows],
    )
    touch(tmp_path / 'Img', *(r.split()[0] for r in rows))
    b = read_inshop(tmp_path)
    assert b.train.class_names == ['id_00000002', 'id_00000080'] and b.train.categories == [
        'WOMEN/Dresses',
        'MEN/Denim',
    ]
    assert b.train.ids == [
        'Img/img/WOMEN/Dresses/id_00000002/02_1_front.jpg',
        'Img/img/WOMEN/Dresses/id_00000002/02_2_side.jpg',
    ]
    assert b.query.labels.tolist() == b.gallery.labels.tolist() == [1]
    shutil.move(tmp_path / 'Img/img', tmp_path / 'Img/img_highres')
    assert read_inshop(tmp_path, photos='img_highres').query.ids == [
        'Img/img_highres/MEN/Denim/id_00000080/01_1_front.jpg'
    ]
    with pytest.raises(FileNotFoundError, match='unpack Img/img.zip'):
        read_inshop(tmp_path)
    shutil.move(tmp_path / 'Img/img_highres', tmp_path / 'img')
    shutil.move(tmp_path / 'Eval/list_eval_partition.txt', tmp_path)
    assert len(read_inshop(tmp_path).train) == 2  # without the folders Eval and Img


@pytest.mark.parametrize(
    'change,match',
    [
        (lambda l: l[1:], 'first line must be a number'),
        (lambda l: ['x', *l[1:]], 'first line must be a number'),
        (lambda l: l[:-1], 'says 32 in its first line but lists 31'),
        (lambda l: [l[0], 'a b', *l[2:]], 'second "image_name'),
        (lambda l: [*l[:-1], l[-1].rsplit(' ', 1)[0]], 'line 34: 2 columns and not 3'),
        (
            lambda l: [*l[:-1], l[-1].replace('gallery', 'valid')],
            "line 34: evaluation_status is 'valid'",
        ),
        (lambda l: [], 'first line'),
    ],
)
def test_inshop_lists_that_are_wrong(change, match, at):
    root = at('inshop')
    path = root / 'Eval/list_eval_partition.txt'
    text(path, change(path.read_text().splitlines()))
    with pytest.raises(ValueError, match=match) as e:
        read_inshop(root)
    assert 'list_eval_partition.txt' in str(e.value)


def with_lines(root, change):
    "The list of a drawn benchmark with its rows changed."
    path = root / 'Eval/list_eval_partition.txt'
    lines = path.read_text().splitlines()
    rows = [' '.join(l.split()) for l in lines[2:]]
    rows = change(rows)
    return text(path, [str(len(rows)), lines[1], *rows])


@pytest.mark.parametrize(
    'change,says',
    [
        (
            lambda r: [*r, r[0].replace('train', 'gallery')],
            r"line 35: img/\S+ is 'gallery' here and 'train' in line 3",
        ),
        (
            lambda r: [*r, r[0].replace(' id_00000001', ' id_00000002')],
            r"line 35: img/\S+ is 'id_00000002' here and 'id_00000001' in line 3",
        ),
        (
            lambda r: [*r[:-1], '', r[-1].replace('gallery', 'train')],
            "line 35: id_00000008 is 'train' here and 'test' in line 31",
        ),
    ],
)
def test_inshop_lists_that_contradict_themselves(change, says, at):
    root = at('inshop')
    path = with_lines(root, change)
    text(
        path,
        [
            str(len([l for l in path.read_text().splitlines()[2:] if l])),
            *path.read_text().splitlines()[1:],
        ],
    )
    with pytest.raises(ValueError, match='list_eval_partition.txt, ' + says):
        read_inshop(root)


@pytest.mark.parametrize('name', ['inshop', 'consumer2shop'])
def test_a_line_of_a_list_that_stands_twice_is_told_and_counts_once(name, at):
    root = at(name)
    whole = READ[name](root)
    with_lines(root, lambda r: [*r, r[0], r[1]])
    with pytest.warns(
        UserWarning,
        match='2 lines repeat another one, the first in line .*, '
        'which repeats line 3: each counts once',
    ):
        again = READ[name](root)
    assert again.sizes == whole.sizes and {k: o.tolist() for k, o in again.pairs.items()} == {
        k: o.tolist() for k, o in whole.pairs.items()
    }


# Consumer-to-shop


@pytest.mark.parametrize(
    'change,says',
    [
        (
            lambda r: [*r, r[0].replace('train', 'test')],
            "id_00000001 is 'test' here and 'train' in line 3",
        ),
        (
            lambda r: [*r, r[0].replace(' id_00000001', ' id_00000002')],
            r"img/\S+ is 'id_00000002' here and 'id_00000001' in line 3",
        ),
    ],
)
def test_consumer2shop_lists_that_contradict_themselves(change, says, at):
    root = at('consumer2shop')
    with_lines(root, change)
    with pytest.raises(ValueError, match=says):
        read_consumer2shop(root)


def test_consumer2shop_by_hand(tmp_path):
    read = partial(read_consumer2shop, gallery='val+test')

    def line(item, a, b, s):
        home = f'img/CLOTHING/Blouse/{item}'
        return f'{home}/comsumer_{a:02}.jpg   {home}/shop_{b:02}.jpg  {item} {s}'

    rows = [
        line('id_1', 1, 1, 'train'),
        line('id_1', 2, 1, 'train'),
        line('id_2', 1, 1, 'val'),
        line('id_3', 1, 1, 'test'),
        line('id_3', 1, 2, 'test'),
        line('id_3', 2, 2, 'test'),
    ]
    text(
        tmp_path / 'Eval/list_eval_partition.txt',
        [str(len(rows)), 'image_pair_name_1 image_pair_name_2 item_id evaluation_status', *rows],
    )
    touch(tmp_path / 'Img', *{p for r in rows for p in r.split()[:2]})
    b = read(tmp_path)

    def short(c):
        return ['/'.join(Path(p).parts[-2:]) for p in c.paths]

    assert short(b.train) == [
        'id_1/comsumer_01.jpg',
        'id_1/shop_01.jpg',
        'id_1/comsumer_02.jpg',
    ] and b.train.roles.tolist() == ['customer', 'shop', 'customer']
    assert short(b.query) == ['id_3/comsumer_01.jpg', 'id_3/comsumer_02.jpg'] and short(b.val) == [
        'id_2/comsumer_01.jpg'
    ]
    assert short(b.gallery) == ['id_2/shop_01.jpg', 'id_3/shop_01.jpg', 'id_3/shop_02.jpg']
    assert (
        b.pairs['train'].tolist() == [[0, 1], [2, 1]]
        and b.pairs['val'].tolist() == [[0, 0]]
        and b.pairs['query'].tolist() == [[0, 1], [0, 2], [1, 2]]
    )
    assert b.train.categories == ['CLOTHING/Blouse'] * 3
    text(
        tmp_path / 'Eval/list_eval_partition.txt',
        ['9', 'image_pair_name_1 image_pair_name_2 item_id evaluation_status', *rows],
    )  # the photos counted, and not the pairs
    assert read(tmp_path).sizes == b.sizes
    text(
        tmp_path / 'Eval/list_eval_partition.txt',
        ['7', 'image_pair_name_1 image_pair_name_2 item_id evaluation_status', *rows],
    )
    with pytest.warns(UserWarning, match='says 7 in its first line but lists 6'):
        assert read(tmp_path).sizes == b.sizes
    text(
        tmp_path / 'Eval/list_eval_partition.txt',
        ['6', 'image_pair_name_1 image_pair_name_2 item_id evaluation_status', *rows],
    )
    shutil.copytree(tmp_path / 'Img/img', tmp_path / 'Img/img_highres')
    assert read(tmp_path, photos='img_highres').val.ids == [
        'Img/img_highres/CLOTHING/Blouse/id_2/comsumer_01.jpg'
    ]
    os.unlink(b.gallery.paths[1])
    part = read(tmp_path, missing='skip')
    assert part.pairs['query'].tolist() == [[0, 1], [1, 1]] and len(part.query) == 2
    own = read_consumer2shop(tmp_path, missing='skip')
    assert short(own.gallery) == ['id_3/shop_02.jpg'] and short(own.val_gallery) == [
        'id_2/shop_01.jpg'
    ]
    assert own.pairs['val'].tolist() == [[0, 0]] and own.pairs['query'].tolist() == [[0, 0], [1, 0]]
    with pytest.raises(ValueError, match="gallery must be 'test' or 'val.test', not 'val'"):
        read_consumer2shop(tmp_path, gallery='val')


@pytest.mark.parametrize(
    'gallery,says',
    [
        ('test', 'the shop photos of the test items'),
        ('val+test', 'the shop photos of the validation and test items'),
    ],
)
def test_the_protocol_of_consumer2shop_names_its_gallery(gallery, says, drawn_once):
    b = read_consumer2shop(drawn_once('consumer2shop'), gallery=gallery)
    assert says in b.protocol and says in repr(b) and says in b._repr_html_()
    shops = b.gallery if gallery == 'val+test' else b.val_gallery
    assert all(b.val.labels[i] == shops.labels[j] for i, j in b.pairs['val']) and len(
        b.pairs['val']
    )
    assert all(b.query.labels[i] == b.gallery.labels[j] for i, j in b.pairs['query']) and set(
        b.query.products
    ) == set(b.gallery.products) - (set(b.val.products) if gallery == 'val+test' else set())


# DeepFashion2


def test_deepfashion2_by_hand(tmp_path):
    def item(style, box, name='vest'):
        return dict(
            category_name=name,
            category_id=5,
            style=style,
            bounding_box=box,
            landmarks=[0],
            segmentation=[[0]],
        )

    notes = dict(
        train=[
            dict(
                source='user',
                pair_id=1,
                item1=item(1, [0, 0, 10, 20]),
                item2=item(0, [10, 0, 30, 20]),
            ),
            dict(
                source='shop',
                pair_id=1,
                item1=item(1, [5, 5, 25, 40]),
                item2=item(2, [1, 1, 9, 9], 'skirt'),
            ),
            dict(source='shop', pair_id=2, item1=item(1, [0, 0, 5, 5])),
        ],
        validation=[
            dict(source='user', pair_id=1, item1=item(1, [0, 0, 10, 20])),
            dict(
                source='shop', pair_id=1, item1=item(1, [0, 0, 30, 40]), item2=item(0, [3, 3, 9, 9])
            ),
            dict(source='shop', pair_id=7, item1=item(0, [0, 0, 99, 99])),
        ],
    )
    for split, all_notes in notes.items():
        for k, o in enumerate(all_notes, 1):
            text(tmp_path / split / f'annos/{k:06}.json', [json.dumps(o)])
            (tmp_path / split / 'image').mkdir(exist_ok=True)
            Image.fromarray(np.random.default_rng(k).integers(0, 255, (40, 30, 3), 'uint8')).save(
                tmp_path / split / f'image/{k:06}.jpg'
            )
    b = read_deepfashion2(tmp_path)

    def names(c):
        return [c.class_names[l] for l in c.labels]

    assert names(b.train) == [
        'train/000001-1',
        'train/000001-1',
        'train/000001-2',
        'train/000002-1',
    ] and b.train.roles.tolist() == ['customer', 'shop', 'shop', 'shop']
    assert names(b.query) == ['validation/000001-1'] and names(b.gallery) == [
        'validation/000001-1',
        'validation/000001-0-000002-item2',
        'validation/000007-0-000003-item1',
    ]
    assert (
        b.boxes['train'][1].tolist() == [5, 5, 25, 40]
        and b.pairs['train'].tolist() == [[0, 1]]
        and b.pairs['query'].tolist() == [[0, 0]]
    )
    assert b.train.categories[b.train.labels[2]] == 'skirt' and b.train.ids[:2] == [
        'train/image/000001.jpg',
        'train/image/000002.jpg',
    ]
    cut = read_deepfashion2(tmp_path, crops=tmp_path / 'cut')
    assert cut.sizes == b.sizes and cut.boxes == {} and names(cut.gallery) == names(b.gallery)
    assert [Image.open(p).size for p in cut.gallery.paths] == [
        (30, 40),
        (6, 6),
        (30, 40),
    ]  # the last box reaches out of its photo
    before = {p: os.stat(p).st_mtime_ns for p in cut.train.paths}
    assert {
        p: os.stat(p).st_mtime_ns
        for p in read_deepfashion2(tmp_path, crops=tmp_path / 'cut').train.paths
    } == before
    assert not [p for p in (tmp_path / 'cut').rglob('*') if 'part' in p.name]


def test_deepfashion2_faults(at, tmp_path):
    root = at('deepfashion2')
    note = root / 'train/annos/000001.json'
    good = json.loads(note.read_text())
    (root / 'train/image/000002.jpg').write_bytes(b'broken')
    b = read_deepfashion2(root, crops=tmp_path / 'cut')
    assert ('000002.jpg', 'not an image') in {
        (Path(p).name, r.split(':')[0]) for p, r in b.train.skipped
    } and not [p for p in b.train.paths if '000002_' in p]
    good['item1']['bounding_box'] = [5, 5, 5, 50]
    note.write_text(json.dumps(good))
    shutil.rmtree(tmp_path / 'cut')
    assert 'empty box' in {
        r.split(':')[0] for _, r in read_deepfashion2(root, crops=tmp_path / 'cut').train.skipped
    }
    note.write_text(json.dumps(good | dict(source='studio')))
    with pytest.raises(
        ValueError,
        match="000001.json is not an annotation.*source is 'studio' and neither user nor shop",
    ):
        read_deepfashion2(root)
    for text_ in (
        '{"source": "user"',
        '{"source": "user"}',
        '{"source": "user", "pair_id": 1, "item1": {}}',
        '[]',
    ):
        note.write_text(text_)
        with pytest.raises(ValueError, match='000001.json is not an annotation'):
            read_deepfashion2(root)


def test_pairs_are_all_pairs_of_one_product():
    from triplet_fashion.benchmark_files import same_product_pairs

    rng = np.random.default_rng(0)
    for n, m in [(0, 3), (3, 0), (20, 30)]:
        a, b = rng.integers(0, 6, n), rng.integers(0, 6, m)
        assert sorted(map(tuple, same_product_pairs(a, b))) == [
            tuple(o) for o in np.argwhere(a[:, None] == b[None])
        ]


# Stanford Online Products


@pytest.mark.parametrize(
    'rows,says',
    [
        (
            dict(
                train=['1 1 1 a_final/1.JPG', '2 1 1 a_final/1.JPG'], test=['3 2 1 a_final/2.JPG']
            ),
            "Ebay_train.txt, line 3: a_final/1.JPG is 'photo 2' here and 'photo 1' in line 2",
        ),
        (
            dict(
                train=['1 1 1 a_final/1.JPG', '2 1 2 b_final/2.JPG'], test=['3 2 1 a_final/3.JPG']
            ),
            "line 3: class 1 is 'super class 2' here and 'super class 1' in line 2",
        ),
        (dict(train=['1 1 1 a_final/1.JPG'], test=['2 1 1 a_final/2.JPG']), 'both list class 1'),
    ],
)
def test_sop_lists_that_contradict_themselves(rows, says, tmp_path):
    for s, lines in rows.items():
        text(tmp_path / f'Ebay_{s}.txt', ['image_id class_id super_class_id path', *lines])
        touch(tmp_path, *(l.split()[3] for l in lines))
    with pytest.raises(ValueError, match=says):
        read_sop(tmp_path)


def test_sop_by_hand(tmp_path):
    home = tmp_path / 'Stanford_Online_Products'
    train, test = (
        [
            '1 1 1 bicycle_final/111085122871_0.JPG',
            '2 1 1 bicycle_final/111085122871_1.JPG',
            '3 2 12 toaster_final/7_0.JPG',
        ],
        ['4 3 2 cabinet_final/9_0.JPG', '5 3 2 cabinet_final/9_1.JPG'],
    )
    for s, rows in (('train', train), ('test', test), ('info', train + test)):
        text(home / f'Ebay_{s}.txt', ['image_id class_id super_class_id path', *rows])
    touch(home, *(r.split()[3] for r in train + test))
    for root in (home, tmp_path):
        b = read_sop(root)
        assert b.train.class_names == ['00001', '00002', '00003'] and b.train.categories == [
            'bicycle',
            'toaster',
            'cabinet',
        ]
        assert (
            b.train.labels.tolist() == [0, 0, 1]
            and b.test.labels.tolist() == [2, 2]
            and b.test.ids == ['cabinet_final/9_0.JPG', 'cabinet_final/9_1.JPG']
        )
    for s, rows, match in [
        ('train', train[:2], 'lists 2 photos but .* begins at number 4'),
        ('train', train[1:] + train[:1], None),
        ('train', [train[0], train[2]], 'lines are missing'),
        ('test', test[1:], 'begins at number 5'),
        ('test', ['4 x 2 a.JPG'], 'line 2: three numbers and a path'),
        ('info', train, 'has 4 lines, the two splits list 5'),
        ('test', ['4 3 2'], 'line 2'),
    ]:
        keep = (home / f'Ebay_{s}.txt').read_text()
        text(home / f'Ebay_{s}.txt', ['image_id class_id super_class_id path', *rows])
        if match is None:
            assert len(read_sop(home).train) == 3
        else:
            with pytest.raises(ValueError, match=match):
                read_sop(home)
        (home / f'Ebay_{s}.txt').write_text(keep)
    text(home / 'Ebay_test.txt', ['path', 'x'])
    with pytest.raises(ValueError, match='Ebay_test.txt is not a list'):
        read_sop(home)


def test_totals_where_splits_have_no_published_size(tmp_path, monkeypatch):
    """Consumer-to-shop's list with as many photos and items as the benchmark has (its page),
    and with one photo less."""
    monkeypatch.setattr(os.path, 'isfile', lambda p: True)
    (tmp_path / 'Img/img').mkdir(parents=True)
    each = spread(239557 - 33881, 33881)  # customers' photos, and one of the shop for each item

    def status(c):
        return 'train' if c < 20000 else 'val' if c < 25000 else 'test'

    rows = [
        f'img/C/D/id_{c:08}/comsumer_{k}.jpg img/C/D/id_{c:08}/shop_1.jpg id_{c:08} {status(c)}'
        for k, c in enumerate(each)
    ]

    def read(rows):
        text(
            tmp_path / 'Eval/list_eval_partition.txt',
            [
                str(len(rows)),
                'image_pair_name_1 image_pair_name_2 item_id evaluation_status',
                *rows,
            ],
        )
        return read_consumer2shop(tmp_path)

    b = read(rows)
    assert b.complete and 'photos in the list: 239,557, the official number' in repr(b)
    b = read(rows[:-1])
    assert (
        not b.complete
        and 'photos in the list: 239,556, officially 239,557' in repr(b)
        and '239,556' in b._repr_html_()
    )


def test_photos_of_deepfashion2_beside_what_was_released(at):
    b = READ['deepfashion2'](at('deepfashion2'))
    here = {what: n for what, (n, _) in b.totals.items()}
    assert here['photos in train'] == len(set(b.train.paths)) and here[
        "customers' photos in validation"
    ] == len(set(b.query.paths))
    assert not b.complete and 'officially 32,153' in repr(b)
