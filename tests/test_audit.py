"""What spoils a training, made on purpose and found: bad files, copies in every place, leaks,
with a hash and with embeddings."""

import csv, os, shutil, subprocess, sys, warnings
from collections import Counter
from pathlib import Path
import numpy as np
import pytest
from common import tree
from hypothesis import given, settings, strategies as st
from PIL import Image

from triplet_fashion.catalog import Catalog
from triplet_fashion.photos import audit as audit_module, duplicates
from triplet_fashion.photos.audit import audit_photos, load_exclusions, photo_facts
from triplet_fashion.photos.drawing import draw_photo
from triplet_fashion.photos.duplicates import (
    detail_similarity,
    hamming_distance,
    near_pairs,
    perceptual_hash,
)


def fill(root, *names, content=None):
    "Files by relative name, each with its own name as its content."
    for n in names:
        p = root / n
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(content if content is not None else n.encode())
    return root


def photos(root, *names):
    "Small real photos, all different."
    for i, n in enumerate(names):
        p = root / n
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(
            np.random.default_rng(i).integers(0, 256, (24, 24, 3)).astype(np.uint8)
        ).save(p)
    return root


def resave(source, target, size=None, **save):
    target.parent.mkdir(parents=True, exist_ok=True)
    im = Image.open(source)
    im.resize(size or im.size).save(target, **save)
    return target


# one file


@pytest.fixture(scope='module')
def page():
    return Image.fromarray(draw_photo(3, 1, size=(160, 120)))


def exif(k):
    e = Image.Exif()
    e[0x0112] = k
    return e


def test_what_can_be_read_is_noted_and_looks_the_same(page, tmp_path):
    deep = np.asarray(page).astype(np.uint16) * 257
    lying = page.transpose(Image.Transpose.ROTATE_90)
    cases = {
        'plain.png': (page, {}, []),
        'print.jpg': (page.convert('CMYK'), dict(quality=95), ['CMYK']),
        'p.png': (page.quantize(256), {}, ['palette']),
        'alpha.png': (page.convert('RGBA'), {}, ['alpha']),
        '웹 (1).webp': (page, dict(quality=95), []),
        'turned.jpg': (lying, dict(exif=exif(6), quality=95), ['turned']),
        'frames.gif': (
            page,
            dict(save_all=True, append_images=[page.rotate(180)]),
            ['palette', 'animated'],
        ),
        'png.jpg': (page, dict(format='PNG'), ['wrong extension']),
        'noext': (page, dict(format='JPEG', quality=95), []),
        'fine.JPEG': (page, dict(quality=95), []),
        'x.tif': (page, {}, []),
    }
    for name, (im, save, want) in cases.items():
        im.save(tmp_path / name, **save)
        facts = photo_facts(tmp_path / name)
        assert facts.problem is None and [n.split(':')[0] for n in facts.notes] == want, (
            name,
            facts[:2],
        )
        assert abs(facts.tile.astype(int) - photo_facts(tmp_path / 'plain.png').tile).mean() < 6, (
            name
        )
    for name, im, want in [
        ('l.png', page.convert('L'), ['grey']),
        ('rgb.png', page.convert('L').convert('RGB'), ['grey']),
        ('16.png', Image.fromarray(deep[..., 1]), ['16-bit', 'grey']),
        ('la.png', page.convert('LA'), ['alpha', 'grey']),
        ('1.png', page.convert('1'), ['grey']),
    ]:
        im.save(tmp_path / name)
        assert [n.split(':')[0] for n in photo_facts(tmp_path / name).notes] == want, name


def test_what_is_noted_as_turned_is_what_says_so(page, tmp_path):
    "A TIFF, which Pillow turns, is noted too; a JPEG whose XMP alone says so is left as it is."
    page.save(tmp_path / 't.tif', exif=exif(6))
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
        b'</rdf:RDF></x:xmpmeta>'
    )
    page.save(tmp_path / 'x.jpg', xmp=xmp)
    assert Image.open(tmp_path / 'x.jpg').getexif()[0x0112] == 6
    assert [n.split(':')[0] for n in photo_facts(tmp_path / 't.tif').notes] == [
        'turned'
    ] and photo_facts(tmp_path / 'x.jpg').notes == ()


def test_sixteen_bits_in_colour(page, tmp_path):
    "Written by hand: Pillow reads 16-bit RGB but does not write it."
    import struct, zlib

    deep = np.asarray(page).astype('>u2') * 257

    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    rows = b''.join(b'\0' + r.tobytes() for r in deep)
    (tmp_path / '16.png').write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', page.width, page.height, 16, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(rows))
        + chunk(b'IEND', b'')
    )
    facts = photo_facts(tmp_path / '16.png')
    assert facts.problem is None and facts.notes[0].startswith('16-bit')


def test_what_cannot_be_used_says_why(page, tmp_path):
    page.save(tmp_path / 'whole.jpg')
    whole = (tmp_path / 'whole.jpg').read_bytes()
    Image.new('1', (10_000, 9_900)).save(tmp_path / 'bomb.png')
    page.resize((15, 40)).save(tmp_path / 'tiny.png')
    os.mkfifo(tmp_path / 'pipe.jpg')
    for name, content, kind in [
        ('cut.jpg', whole[: len(whole) // 2], 'truncated'),
        ('none.jpg', b'', 'empty file'),
        ('web.jpg', b'<html>', 'not an image'),
        ('bomb.png', None, 'too many pixels'),
        ('tiny.png', None, 'too small'),
        ('pipe.jpg', None, 'not an image'),
        ('gone.jpg', None, 'missing'),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            facts = photo_facts(tmp_path / name)
        assert facts.problem.split(':')[0] == kind and facts.tile is None, (name, facts)
    assert photo_facts(tmp_path / 'tiny.png', min_side=15).problem is None


def test_a_hundred_megapixels(tmp_path):
    big = Image.new('L', (10_000, 10_000), 200)
    big.paste(30, (2000, 2000, 6000, 8000))
    big.save(tmp_path / 'big.jpg', quality=50)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        audit = audit_photos([tmp_path / 'big.jpg'])
    assert audit.table == [] and audit.note_counts == {'grey': 1, 'large': 1}


# hashes and pairs


def test_hashes_are_the_librarys(page):
    import imagehash

    tile = np.asarray(page.resize((64, 64)))
    h = imagehash.phash(Image.fromarray(tile), 16)
    code = perceptual_hash(tile)
    assert (
        code.dtype == np.uint64
        and code.shape == (4,)
        and (np.unpackbits(code.view(np.uint8)) == h.hash.ravel()).all()
    )
    other = imagehash.phash(Image.fromarray(tile[::-1].copy()), 16)
    assert hamming_distance(code, perceptual_hash(tile[::-1].copy())) == h - other


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n=st.integers(0, 60), m=st.integers(1, 60), limit=st.integers(0, 256), seed=st.integers(0, 99)
)
def test_pairs_are_all_pairs(n, m, limit, seed):
    rng = np.random.default_rng(seed)

    def bits(k):
        return rng.random((k, 256)) < rng.random()

    a, b = bits(n), bits(m)

    def pack(x):
        return np.packbits(x, 1).view(np.uint64).reshape(-1, 4)

    d = (a[:, None] != b[None]).sum(-1)
    i, j, far = near_pairs(pack(a), pack(b), limit, most=m)
    assert (
        sorted(zip(i, j)) == [tuple(o) for o in np.argwhere(d <= limit)] and (far == d[i, j]).all()
    )
    own = (a[:, None] != a[None]).sum(-1)
    i, j, far = near_pairs(pack(a), threshold=limit, most=n + 1)
    assert sorted(zip(i, j)) == [tuple(o) for o in np.argwhere(np.triu(own <= limit, 1))]


def test_pairs_across_blocks_and_the_nearest_kept(monkeypatch):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**63, (1500, 4), np.uint64)
    codes[1400:] = codes[:100]
    i, j, d = near_pairs(codes, threshold=20)
    assert (i == np.arange(100)).all() and (j == i + 1400).all() and (d == 0).all()
    real = duplicates.pair_blocks
    monkeypatch.setattr(duplicates, 'pair_blocks', lambda n, m, t: real(n, m, t, 7, 13))
    assert [o.tolist() for o in near_pairs(codes, threshold=20)] == [
        i.tolist(),
        j.tolist(),
        d.tolist(),
    ]
    e = rng.normal(size=(200, 5))
    e[:, 0] += 3
    i, j, d = near_pairs(e, e, threshold=2, most=4)
    u = e / np.linalg.norm(e, axis=1, keepdims=True)
    assert len(i) == 800 and np.allclose(
        d.reshape(200, 4), np.sort(1 - u @ u.T, 1)[:, :4], atol=1e-5
    )


def test_bits_without_numpy_2(monkeypatch):
    a, b = np.random.default_rng(0).integers(0, 2**63, (2, 30, 4), np.uint64)
    want = hamming_distance(a, b)
    monkeypatch.delattr(np, 'bitwise_count', raising=False)
    assert (hamming_distance(a, b) == want).all() and (
        hamming_distance(a[:, None], b[None]).diagonal() == want
    ).all()


# audits


def test_audit_finds_each_fault_once(tmp_path):
    photos(tmp_path, *(f'{c}/{k}.png' for c in 'abcde' for k in range(4)))
    fill(tmp_path, 'a/cut.png', content=(tmp_path / 'a/0.png').read_bytes()[:500])
    fill(tmp_path, 'a/web.jpg', content=b'<html>')
    fill(tmp_path, 'b/none.jpg', content=b'')
    Image.new('RGB', (9, 40)).save(tmp_path / 'b/dot.png')
    shutil.copy(tmp_path / 'c/0.png', tmp_path / 'd/twin.png')
    shutil.copy(tmp_path / 'c/1.png', tmp_path / 'c/twin.png')
    shutil.copy(tmp_path / 'c/1.png', tmp_path / 'c/twin2.png')
    for k in (1, 2, 3):
        (tmp_path / f'e/{k}.png').unlink()
    before, steps = tree(tmp_path), []
    cat = Catalog.from_dir(tmp_path)
    audit = cat.audit(progress=lambda done, n: steps.append((done, n)))
    assert {
        Path(o['path']).relative_to(tmp_path).as_posix(): o['problem'].split(':')[0]
        for o in audit.table
    } == {
        'a/cut.png': 'truncated',
        'a/web.jpg': 'not an image',
        'b/none.jpg': 'empty file',
        'b/dot.png': 'too small',
        'c/0.png': 'same file in two products',
        'd/twin.png': 'same file in two products',
        'c/twin.png': 'same file twice in a product',
        'c/twin2.png': 'same file twice in a product',
    }
    assert audit.counts['same file in two products'] == 2 and sum(audit.counts.values()) == 8
    assert 'd/twin.png' in next(o['problem'] for o in audit.table if o['path'].endswith('c/0.png'))
    assert (
        len(audit.clean) == len(cat) - 8
        and not audit.clean.audit().table
        and audit.clean.num_classes == 5
    )
    assert [cat.class_names[c] for c in audit.singles] == ['e'] and len(audit.emptied) == 0
    assert (
        (len(cat), len(cat)) in steps and all(i <= n for i, n in steps) and tree(tmp_path) == before
    )
    assert 'truncated' in repr(audit) and '<table>' in audit._repr_html_()


def test_a_photo_of_two_products_is_no_copy_of_itself(tmp_path):
    "DeepFashion2 whole: a photo that shows two garments stands under both."
    from triplet_fashion.datasets import draw_benchmark, read_deepfashion2

    b = read_deepfashion2(draw_benchmark('deepfashion2', tmp_path / 'df2', 8, 4))
    assert len(set(b.train.paths)) < len(b.train)
    looked = []
    audit = b.train.audit(progress=lambda done, n: looked.append(n))
    assert (
        audit.table == []
        and audit.duplicates == []
        and len(audit.clean) == len(b.train)
        and looked[0] == len(set(b.train.paths))
    )
    assert b.query.audit(against=b.gallery).leaks == []
    copy = shutil.copy(b.train.paths[0], tmp_path / 'copy.jpg')
    mine = int(b.train.labels[1])  # the second garment of the same photo
    assert b.train.paths[0] == b.train.paths[1] and b.train.labels[0] != mine
    assert (b.train + Catalog([copy], [0], [b.train.class_names[mine]])).audit().counts == {
        'same file twice in a product': 1
    }
    assert (b.train + Catalog([copy], [0], ['other'])).audit().counts == {
        'same file in two products': 2
    }
    e = np.random.default_rng(0).normal(size=(len(set(b.train.paths)), 8))[
        np.unique(b.train.paths, return_inverse=True)[1]
    ]
    assert b.train.audit(embeddings=e).duplicates == []


def test_a_product_is_not_merged_with_itself(tmp_path):
    "Two copies in one product and a third in another: the products may be one, each is itself."
    first = tmp_path / 'first.png'
    Image.fromarray(draw_photo(3, 0)).save(first)
    paths = [first, *(shutil.copy(first, tmp_path / f'{k}.png') for k in range(2))]
    audit = audit_photos(paths, ['a', 'a', 'b'], near=False)
    assert audit.counts == {'same file in two products': 3}
    assert [(o['product'], o['other']) for o in audit.merge_candidates] == [('b', 'a')]


def test_a_photo_that_vanishes_during_the_audit(drawn, tmp_path, monkeypatch):
    cat = Catalog.from_dir(shutil.copytree(drawn.root, tmp_path / 'c'))
    real = duplicates.find_exact_duplicates

    def late(*a):
        os.unlink(cat.paths[3])
        os.unlink(cat.paths[5])
        return real(*a)

    monkeypatch.setattr(duplicates, 'find_exact_duplicates', late)
    assert cat.audit().table == []


def test_progress_is_shown_for_many_photos(shop, monkeypatch, capsys):
    shop.audit()
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(audit_module, 'MANY_PHOTOS', 20)
    shop.audit()
    err = capsys.readouterr().err
    assert all(
        o in err
        for o in (
            f'photos examined {len(shop)} of {len(shop)}',
            'blocks of pairs 1 of 1',
            'pairs looked at',
        )
    )
    shop.audit(progress=False)
    assert capsys.readouterr().err == ''


def test_audit_of_a_product_with_nothing_left(tmp_path):
    audit = Catalog.from_dir(
        fill(photos(tmp_path, 'a/1.png', 'a/2.png'), 'b/1.jpg', 'b/2.jpg')
    ).audit()
    assert [audit.catalog.class_names[c] for c in audit.emptied] == [
        'b'
    ] and 'product with no photo left' in str(audit)


def test_audit_of_nothing():
    audit = Catalog([], [], ['a']).audit()
    assert (
        audit.table == []
        and audit.duplicates == []
        and len(audit.clean) == 0
        and repr(audit)
        and audit._repr_html_()
    )
    assert audit_photos([]).table == []
    with pytest.raises(ValueError, match='nothing to show'):
        audit.show()


@pytest.fixture
def shop(drawn, tmp_path):
    """The drawn catalogue with near copies: of one photo elsewhere, of one within its product,
    and of a whole product under another name."""
    root = tmp_path / '옷 가게'
    shutil.copytree(drawn.root, root)
    home = [root / n for n in drawn.class_names]
    resave(home[0] / '000.jpg', home[1] / 'again.webp', quality=50)
    resave(home[2] / '000.jpg', home[2] / 'small.jpg', size=(70, 70), quality=60)
    for v in range(6):
        resave(
            home[3] / f'{v:03}.jpg', root / 'sale (새)' / f'{v}.jpg', size=(100, 100), quality=55
        )
    return Catalog.from_dir(root)


def test_near_copies_and_products_that_are_one(shop):
    audit = shop.audit()
    assert audit.table == [] and audit.searched == 'hash' and len(audit.clean) == len(shop)
    assert Counter(o['kind'] for o in audit.duplicates) == {
        'near copy in two products': 7,
        'near copy in a product': 1,
    }
    assert [
        (o['product'], o['other'], o['copies'], o['share']) for o in audit.merge_candidates
    ] == [('sale (새)', shop.class_names[3], 6, 1.0)]
    out = {Path(p).relative_to(shop.root).as_posix() for p in audit.exclusions(near=True)}
    assert (
        len(out) == 2 + 1 + 12
        and f'{shop.class_names[2]}/small.jpg' in out
        and f'{shop.class_names[2]}/000.jpg' not in out
    )
    assert len(shop.exclude(audit.exclusions(near=True))) == len(shop) - 15
    assert [o['kind'] for o in audit.worst(2)] == ['near copy in two products'] * 2 and len(
        {os.path.dirname(o['path']) for o in audit.worst(2)}
    ) == 2
    assert (
        len(shop.audit(share=0.1).merge_candidates) == 2
        and shop.audit(near=False).duplicates == []
        and shop.audit(threshold=0).duplicates == []
    )


def test_audit_is_drawn_and_said(shop):
    import matplotlib.pyplot as plt

    audit = shop.audit()
    fig = audit.show()
    assert sum(bool(ax.images) for ax in fig.axes) == 6
    html = audit._repr_html_()
    assert (
        html.count('<img') == 12
        and 'products that may be one' in html
        and str(shop.root) not in html
        and len(html) < 120_000
    )
    assert 'near copy in two products, pairs' in repr(audit) and '7' in repr(audit)
    plt.close('all')


def test_other_colours_are_other_products(tmp_path):
    "The same cut in the same pose, in five colours: alike to a grey hash."
    base = Image.fromarray(draw_photo(7, 0, seed=1)).convert('HSV').split()
    for k in range(5):
        (tmp_path / f'c{k}').mkdir()
        Image.merge(
            'HSV',
            (
                base[0].point(lambda x: (x + 51 * k) % 256),
                base[1].point(lambda x: min(255, x + 40)),
                base[2],
            ),
        ).convert('RGB').save(tmp_path / f'c{k}/1.png')
    cat = Catalog.from_dir(tmp_path)
    codes = np.stack([perceptual_hash(photo_facts(p).tile) for p in cat.paths])
    assert len(near_pairs(codes)[0]) > 3 and cat.audit().duplicates == []


def test_other_prints_are_other_products(tmp_path):
    "One tee in one place with another print: within the bits of a copy, not within its detail."
    base = np.asarray(Image.fromarray(draw_photo(1, 1, seed=0, size=(192, 192)))).copy()
    y, x = np.mgrid[:48, :48]
    for k, on in enumerate(
        [(x // 6 + y // 6) % 2, (x // 4) % 2, (y // 8) % 2, (x - 24) ** 2 + (y - 24) ** 2 < 400]
    ):
        (tmp_path / f'c{k}').mkdir()
        im = base.copy()
        im[80:128, 72:120][on.astype(bool)] = 235
        Image.fromarray(im).save(tmp_path / f'c{k}/1.png')
    cat = Catalog.from_dir(tmp_path)
    tiles = [photo_facts(p).tile for p in cat.paths]
    i, j, d = near_pairs(np.stack([perceptual_hash(t) for t in tiles]))
    assert (
        len(i) >= 3
        and max(detail_similarity(tiles[a], tiles[b]) for a, b in zip(i, j)) < 0.9
        and cat.audit().duplicates == []
    )
    assert detail_similarity(tiles[0], tiles[0]) == pytest.approx(
        1, abs=1e-5
    ) and detail_similarity(tiles[0], tiles[1]) == pytest.approx(
        detail_similarity(tiles[1], tiles[0]), abs=1e-6
    )


def test_blank_photos_are_no_copies(tmp_path):
    for k, shade in enumerate([255, 254, 10, 128]):
        (tmp_path / str(k)).mkdir()
        Image.new('RGB', (40, 40 + k), (shade,) * 3).save(tmp_path / f'{k}/a.png')
    audit = Catalog.from_dir(tmp_path).audit()
    assert audit.duplicates == [] and audit.note_counts == {'blank': 4}


def test_a_placeholder_everywhere_stays_small(tmp_path, page):
    """One picture saved a little differently in 120 products: pairs grow with the photos, not
    with their square."""
    for k in range(120):
        (tmp_path / f'{k:03}').mkdir()
        page.save(tmp_path / f'{k:03}/1.jpg', quality=40 + k % 50, comment=str(k).encode())
    audit = Catalog.from_dir(tmp_path).audit()
    assert 120 <= len(audit.duplicates) <= 20 * 120 and len(audit.exclusions(near=True)) == 120


def test_leaks_between_splits(shop, drawn, tmp_path):
    train, valid = drawn.split(0.25)
    assert valid.audit(against=train).leaks == [] == train.audit(against=valid).leaks
    leaky = valid + Catalog(
        [
            resave(train.paths[3], tmp_path / 'x.webp', quality=60),
            shutil.copy(train.paths[9], tmp_path / 'y.jpg'),
        ],
        [0, 0],
        ['odd'],
    )
    audit = leaky.audit(against=train)
    assert (
        audit.counts == {'near copy in another split': 1, 'same file in another split': 1}
        and audit.clean.paths == valid.paths
    )
    assert {o['other'] for o in audit.leaks} == {
        train.paths[3],
        train.paths[9],
    } and audit.merge_candidates == []
    assert (
        audit_photos(leaky.paths, leaky.labels, leaky.class_names, against=train.paths).counts
        == audit.counts
    )
    assert train.audit(against=train).counts == {'same file in another split': len(train)}


def test_leaks_that_cannot_be_read_elsewhere(drawn, tmp_path):
    (tmp_path / 'bad.jpg').write_bytes(b'x')
    assert drawn[:3].audit(against=[tmp_path / 'bad.jpg', tmp_path / 'gone.jpg']).table == []


def test_with_embeddings(shop):
    rng = np.random.default_rng(0)
    e = rng.normal(size=(len(shop), 16))
    e[5], e[40] = e[0] + 0.01, e[1] * 3
    audit = shop.audit(embeddings=e)
    pairs = {
        (shop.paths.index(o['path']), shop.paths.index(o['other'])): o['distance']
        for o in audit.duplicates
    }
    assert (
        set(pairs) == {(0, 5), (1, 40)}
        and audit.searched == 'embeddings'
        and max(pairs.values()) < 1e-3
    )
    train, valid = shop[:40], shop[40:]
    assert len(valid.audit(against=train, embeddings=e[40:], against_embeddings=e[:40]).leaks) == 1
    for kw, match in [
        (dict(embeddings=e[:3]), r'embeddings of shape \(3, 16\) for'),
        (dict(embeddings=e, against=train), 'against_embeddings'),
        (dict(embeddings=np.full_like(e, np.nan)), 'row 0 is not finite'),
    ]:
        with pytest.raises(ValueError, match=match):
            shop.audit(**kw)


def test_without_imagehash(shop, root):
    code = f"""
import sys; sys.modules['imagehash'] = None
from triplet_fashion.catalog import Catalog
cat = Catalog.from_dir({str(shop.root)!r})[:6]
audit = cat.audit()
assert audit.searched is None
assert 'near copies not looked for' in repr(audit) and 'pip install' in repr(audit)
try: cat.audit(near=True)
except ImportError as e: print(e)
"""
    out = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
        env={**os.environ, 'PYTHONIOENCODING': 'utf-8'},
    ).stdout
    assert "pip install 'ImageHash>=4.3'" in out


def test_the_list_is_kept_and_read(shop, tmp_path):
    fill(Path(shop.root), 'sale (새)/no.jpg', 'sale (새)/bad, "x".jpg')
    cat = Catalog.from_dir(shop.root)
    audit = cat.audit()
    path = audit.save(tmp_path / '목록.csv')
    rows = list(csv.reader(path.open(encoding='utf-8')))
    assert rows[0] == ['path', 'problem'] and {r[0] for r in rows[1:]} == {
        'sale (새)/no.jpg',
        'sale (새)/bad, "x".jpg',
    } == set(load_exclusions(path))
    assert cat.exclude(path).paths == audit.clean.paths == shop.paths
    moved = shutil.move(shop.root, tmp_path / 'moved')
    assert Catalog.from_dir(moved).exclude(path).ids == shop.ids
    again = Catalog.from_dir(moved).audit()
    near = again.save(tmp_path / 'near.csv', near=True)
    assert (
        len(load_exclusions(near)) == 2 + 15
        and [p.name for p in tmp_path.iterdir() if 'part' in p.name] == []
    )
    assert len(load_exclusions(Catalog([], [], ['a']).audit().save(tmp_path / 'none.csv'))) == 0


@pytest.mark.parametrize(
    'name',
    [
        '#1 tee',
        'a\nb',
        '#x\n#y',
        'say "hi", friend',
        '"',
        'a;b\tc',
        'plain',
        '\u2028odd\x85',
        ' lead',
    ],
)
def test_the_list_keeps_every_name(name, tmp_path):
    cat = Catalog.from_dir(
        fill(
            photos(tmp_path / 'c', 'good/1.png', 'good/2.png'),
            f'{name}/1.jpg',
            f'{name}/2, "x".jpg',
            '#z/3.jpg',
        )
    )
    audit = cat.audit()
    path = audit.save(tmp_path / 'l.csv')
    assert sorted(load_exclusions(path)) == sorted(
        [f'{name}/1.jpg', f'{name}/2, "x".jpg', '#z/3.jpg']
    ) and cat.exclude(path).ids == ['good/1.png', 'good/2.png']
    path.write_text('# mine\n\n' + path.read_text() + '\n# the end\n')
    assert cat.exclude(path).ids == cat.exclude(audit).ids == ['good/1.png', 'good/2.png']


def test_memory_does_not_grow_with_the_pairs():
    import tracemalloc

    codes = np.random.default_rng(0).integers(0, 2**63, (6000, 4), np.uint64)
    peaks = []
    for n in (1500, 6000):
        tracemalloc.start()
        near_pairs(codes[:n])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 120e6 and peaks[1] < 3.5 * peaks[0]


def test_memory_of_an_audit_hardly_grows_with_the_photos(tmp_path, monkeypatch):
    """Bytes that Python holds at most: a pass keeps some hundred a photo and none of the
    pixels, which would be 12,288."""
    import tracemalloc

    real = duplicates.pair_blocks
    monkeypatch.setattr(duplicates, 'pair_blocks', lambda n, m, t: real(n, m, t, 20, 20))
    cat = Catalog.from_dir(photos(tmp_path, *(f'{k // 10:02}/{k}.png' for k in range(500))))
    peaks = []
    for part in (cat[:20], cat[:100], cat):  # the first one imports what is needed
        tracemalloc.start()
        part.audit()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 400 * 2000


def test_audit_of_real_photos(clothing):
    audit = Catalog.from_dir(clothing / 'validation').sample(120).audit()
    assert audit.counts.get('truncated', 0) == 0 and len(audit.clean) >= 110


def test_copies_in_real_photos(clothing):
    "Re-saved real photos are found in a split of real photos, and nothing else is."
    cat = Catalog.from_dir(clothing / 'validation')
    valid, train = cat[::3], cat[1::3]
    before = len(valid.audit(against=train).leaks)
    folder = Path(os.environ.get('TMPDIR', '/tmp')) / f'audit-{os.getpid()}'
    try:
        copies = [
            str(resave(p, folder / f'{k}.jpg', size=(200, 266), quality=60))
            for k, p in enumerate(train.paths[:12])
        ]
        found = Catalog(valid.paths + copies, [0] * (len(valid) + 12), ['all']).audit(against=train)
        assert len(found.leaks) == before + 12 and {o['path'] for o in found.leaks} >= set(copies)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# many copies, many pages


def copies(folder, n, products=1):
    "`n` hard links to one photo, and a different one."
    folder.mkdir(parents=True)
    photos(folder, 'source.png', 'other.png')
    paths = []
    for i in range(n):
        os.link(folder / 'source.png', folder / f'{i}.png')
        paths.append(str(folder / f'{i}.png'))
    return [*paths, str(folder / 'other.png')], [i % products for i in range(n)] + [0]


def count_calls(call):
    "How many Python functions of this thread a call takes, and what it gives."
    calls = [0]

    def note(frame, event, arg):
        calls[0] += event == 'call'

    sys.setprofile(note)
    try:
        found = call()
    finally:
        sys.setprofile(None)
    return calls[0], found


@pytest.mark.parametrize('products', [1, 3])
def test_copies_take_time_in_proportion(products, tmp_path):
    counts = []
    for n in (100, 800):
        paths, labels = copies(tmp_path / f'{n}', n, products)
        calls, audit = count_calls(lambda: audit_photos(paths, labels, near=False))
        assert len(audit.table) == (n if products > 1 else n - 1) and len(audit.duplicates) == n - 1
        counts.append(calls)
    assert counts[1] < 12 * counts[0]


def many_pages(path, n, broken=None):
    """A TIFF of `n` pages that share one small picture; the next-page link of page `broken`
    leads outside the file."""
    import struct

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8).tobytes()
    tags = [
        (256, 3, 32),
        (257, 3, 32),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, 32),
        (279, 4, len(pixels)),
    ]
    size = 2 + 12 * len(tags) + 4
    out = [struct.pack('<2sHI', b'II', 42, 8 + len(pixels)), pixels]
    for k in range(n):
        at = 8 + len(pixels) + k * size
        following = 0 if k == n - 1 else 2**31 if k == broken else at + size
        out.append(
            struct.pack('<H', len(tags))
            + b''.join(struct.pack('<HHII', t, kind, 1, v) for t, kind, v in tags)
            + struct.pack('<I', following)
        )
    path.write_bytes(b''.join(out))
    return path


def test_many_pages_of_a_tiff_are_not_counted(tmp_path):
    import time

    took = []
    for n in (2, 4000):
        path = many_pages(tmp_path / f'{n}.tif', n)
        start = time.perf_counter()
        facts = photo_facts(path)
        took.append(time.perf_counter() - start)
        assert facts.problem is None and 'animated: several pages' in facts.notes
    assert took[1] < 20 * took[0] + 0.1
    assert not any(
        n.startswith('animated') for n in photo_facts(many_pages(tmp_path / '1.tif', 1)).notes
    )


def test_a_damaged_later_page_is_no_fault_of_the_first(tmp_path):
    facts = photo_facts(many_pages(tmp_path / 'broken.tif', 3, broken=0))
    assert facts.problem is None and facts.tile is not None


# labels and folders


def test_labels_of_lists_are_whatever_the_user_has(tmp_path):
    photos(tmp_path, 'a/1.png', 'b/1.png')
    shutil.copy(tmp_path / 'a/1.png', tmp_path / 'b/2.png')
    paths = [str(tmp_path / p) for p in ('a/1.png', 'b/2.png', 'b/1.png')]
    for labels in (
        ['coat', 'hat', 'hat'],
        [4006381333931, 4006381333931 + 2**32, 7],
        np.array(['coat', 'hat', 'hat']),
    ):
        assert audit_photos(paths, labels).counts == {'same file in two products': 2}
    assert audit_photos(paths, ['Caf\u00e9', 'Cafe\u0301', 'x']).counts == {
        'same file twice in a product': 1
    }
    assert audit_photos(paths, ['coat', 'hat', 'hat'], ['hat', 'coat']).counts == {
        'same file in two products': 2
    }
    for labels, match in (
        (['coat', None, 'hat'], 'labels: 1 of 3 photos have no label'),
        ([0, 1], 'labels must hold one label a photo'),
        ([0, 1, 'x'], 'labels mix text'),
    ):
        with pytest.raises(ValueError, match=match):
            audit_photos(paths, labels)
    with pytest.raises(ValueError, match="labels hold 'hat', which is not among the 1 class_names"):
        audit_photos(paths, ['coat', 'hat', 'hat'], ['coat'])


def test_a_folders_name_stands_for_its_catalogue(shop):
    assert audit_photos(str(shop.root)).duplicates == shop.audit().duplicates
    assert len(audit_photos(shop[:6].paths, against=shop.root).leaks) == 6
    with pytest.raises(FileNotFoundError, match='nowhere'):
        audit_photos('nowhere')


# other colours and labels, small on white


def bottle(colour, word, size=(82, 310), ground=255, side=512):
    from PIL import ImageDraw, ImageFont

    im = Image.new('RGB', (side, side), (ground,) * 3)
    pen, (w, h) = ImageDraw.Draw(im), size
    left, top = (side - w) // 2, (side - h) // 2 + 20
    pen.rounded_rectangle((left, top, left + w, top + h), 22, fill=colour)
    pen.rectangle((left + 13, top - 30, left + w - 13, top + 2), fill=(60, 60, 60))
    pen.text((left + 14, top + h // 2), word, fill='white', font=ImageFont.load_default(22))
    return im


VARIANTS = [
    ((226, 200, 80), 'Banana'),
    ((222, 150, 30), 'Orange'),
    ((205, 85, 35), 'Carrot'),
    ((110, 130, 205), 'Power'),
]


@pytest.mark.parametrize('ground', [255, 235])
def test_variants_small_on_a_plain_ground_are_other_products(ground, tmp_path):
    for colour, word in VARIANTS:
        (tmp_path / word).mkdir()
        bottle(colour, word, ground=ground).save(tmp_path / word / '1.png')
    audit = Catalog.from_dir(tmp_path).audit(near=True)
    assert audit.duplicates == [] and audit.merge_candidates == []


def test_copies_of_small_objects_are_still_found(tmp_path):
    from PIL import ImageEnhance

    originals, again = [], []
    for colour, word in VARIANTS:
        im = bottle(colour, word)
        im.save(tmp_path / f'{word}.png')
        originals.append(str(tmp_path / f'{word}.png'))
        ways = {
            'q40.jpg': (im, dict(quality=40)),
            'half.jpg': (im.resize((256, 256)), dict(quality=80)),
            'cut.png': (im.crop((8, 8, 504, 504)), {}),
            'light.jpg': (ImageEnhance.Brightness(im).enhance(1.05), {}),
            'dark.jpg': (ImageEnhance.Brightness(im).enhance(0.95), {}),
        }
        for way, (copy, save) in ways.items():
            copy.save(tmp_path / f'{word}-{way}', **save)
            again.append(str(tmp_path / f'{word}-{way}'))
    audit = audit_photos(again, range(len(again)), against=originals)
    found = {
        (os.path.basename(o['path']).split('-')[0], Path(o['other']).stem) for o in audit.leaks
    }
    assert found == {(word, word) for _, word in VARIANTS} and len(
        {o['path'] for o in audit.leaks}
    ) == len(again)


def test_a_list_on_a_full_disk_keeps_the_old_one(shop, tmp_path, monkeypatch):
    audit = shop.audit()
    old = audit.save(tmp_path / 'new' / 'l.csv').read_bytes()

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='l.csv could not be written: the disk is full'):
        audit.save(tmp_path / 'new' / 'l.csv', near=True)
    assert (tmp_path / 'new' / 'l.csv').read_bytes() == old and len(
        list((tmp_path / 'new').iterdir())
    ) == 1
    with pytest.raises(IsADirectoryError, match='is a folder'):
        audit.save(tmp_path)


def test_class_names_are_taken_as_a_catalog_takes_them(tmp_path):
    paths = [str(tmp_path / f'{i}.png') for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(draw_photo(i, 0, size=(32, 32))).save(path)
    labels, names = [9, 3, 9], {9: 'hat', 3: 'coat'}
    found, catalog = audit_photos(paths, labels, names).catalog, Catalog(paths, labels, names)
    assert found.class_names == catalog.class_names == ['coat', 'hat']
    assert found.labels.tolist() == catalog.labels.tolist() == [1, 0, 1]
