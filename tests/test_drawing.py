"The drawn wardrobe: the same everywhere, never the same twice, and hard enough."

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triplet_fashion.photos import drawing
from triplet_fashion.photos.drawing import (
    COLORS,
    GRAPHICS,
    KINDS,
    PALETTES,
    PLACES,
    Garment,
    draw_flat,
    draw_photo,
    draw_place,
    fabric,
    garment,
    pattern_pieces,
    photo_quality,
    photo_view,
    product_name,
    shade_relief,
)

few = settings(max_examples=15, deadline=None, derandomize=True)
number = st.integers(0, 5000)
ROOT = Path(drawing.__file__).parents[2]


def digest(pairs, **kw):
    return hashlib.sha256(b''.join(draw_photo(p, v, **kw).tobytes() for p, v in pairs)).hexdigest()


def forget():
    "Clear every cache of the module."
    caches = [f for f in vars(drawing).values() if hasattr(f, 'cache_clear')]
    assert draw_flat in caches and fabric in caches
    for f in caches:
        f.cache_clear()


# ---- the same everywhere


def said_by(code, seed):
    "Return what another process prints that hashes with another seed."
    env = {'PYTHONHASHSEED': seed, 'PYTHONPATH': str(ROOT)}
    out = subprocess.run(
        [sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True
    )
    return out.stdout.strip()


PRINT_DIGEST = """
import hashlib
from triplet_fashion.photos.drawing import draw_photo
pairs, kw = {pairs}, {kw}
print(hashlib.sha256(b"".join(draw_photo(p, v, **kw).tobytes() for p, v in pairs)).hexdigest())
"""


@pytest.mark.parametrize('kw', [{}, {'hard': True}])
def test_the_same_in_another_process_with_another_hash_seed(kw):
    pairs = [(2, 0), (21, 1), (15, 7)]
    said = [said_by(PRINT_DIGEST.format(pairs=pairs, kw=kw), seed) for seed in '17']
    assert said == [digest(pairs, **kw)] * 2


def test_order_and_caches_do_not_matter():
    pairs = [(p, v) for p in (4, 12, 40) for v in (0, 2, 5)]
    once = {pair: digest([pair]) for pair in pairs}
    forget()
    assert {pair: digest([pair]) for pair in reversed(pairs)} == once


@few
@given(
    number,
    st.integers(0, 40),
    st.integers(0, 2**40),
    st.sampled_from([(16, 16), (64, 64), (40, 97), (90, 33)]),
)
def test_every_number_is_a_photo(product, view, seed, size):
    a = draw_photo(product, view, seed=seed, size=size)
    assert a.shape == (*size, 3) and a.dtype == np.uint8
    assert a.std() > 4  # something is on it
    assert np.array_equal(a, draw_photo(product, view, seed=seed, size=size))


# fmt: off
GOLDEN = {
    (0, 0): [
        184, 201, 224, 133, 141, 154, 155, 170, 189,
        195, 214, 238, 123, 130, 141, 161, 177, 197,
        183, 201, 224, 138, 148, 162, 157, 172, 192,
    ],
    (15, 3): [
        166, 156, 145, 86, 79, 76, 177, 167, 155,
        117, 109, 101, 79, 70, 61, 140, 131, 122,
        97, 87, 79, 92, 82, 73, 123, 114, 105,
    ],
    (21, 5): [
        193, 172, 150, 130, 117, 111, 205, 183, 161,
        170, 152, 133, 55, 54, 64, 184, 165, 145,
        136, 121, 108, 75, 70, 72, 161, 144, 128,
    ],
    (54, 1): [
        102, 106, 118, 39, 44, 63, 78, 85, 95,
        54, 59, 88, 23, 30, 60, 43, 45, 66,
        61, 65, 85, 34, 40, 65, 42, 49, 62,
    ],
    (100, 7): [
        216, 204, 187, 98, 104, 110, 214, 201, 184,
        186, 175, 162, 115, 117, 116, 206, 191, 174,
        98, 100, 102, 84, 92, 97, 123, 121, 117,
    ],
}
# fmt: on


@pytest.mark.parametrize('pair', sorted(GOLDEN))
def test_golden_thumbnails(pair):
    "The mean levels of a 3 x 3 grid, to a few levels, as another Pillow may round otherwise."
    got = np.asarray(Image.fromarray(draw_photo(*pair)).resize((3, 3), Image.BOX), int).ravel()
    assert np.abs(got - GOLDEN[pair]).max() <= 3


def test_numpy_numbers_are_numbers():
    assert np.array_equal(
        draw_photo(np.int64(7), np.int32(2), seed=np.uint8(1)), draw_photo(7, 2, seed=1)
    )


def test_a_seed_is_another_wardrobe():
    assert not np.array_equal(draw_photo(7, 2), draw_photo(7, 2, seed=1))
    assert [garment(p).kind for p in range(20)] != [garment(p, 1).kind for p in range(20)]


# ---- products


def test_names_are_unique_folder_names():
    names = [product_name(p) for p in range(2000)]
    assert len(set(names)) == len({n.lower() for n in names}) == 2000
    assert all(re.fullmatch(r'\(\d{4}\)[A-Z][A-Za-z_-]+', n) and len(n) < 80 for n in names)
    assert product_name(12345).startswith('(12345)')
    assert product_name(garment(15)) == product_name(15)


@pytest.mark.parametrize('seed', [0, 5])
def test_products_differ_in_what_a_person_sees(seed):
    gs = [garment(p, seed) for p in range(700)]
    assert len({(g.kind, g.fabric, g.colors) for g in gs}) == 700
    assert {g.kind for g in gs} == set(KINDS)


def test_colours_are_shared():
    "Colour alone must not name the product."
    share = [garment(p).colors for p in range(200)]
    assert max(map(share.count, share)) >= 5
    assert all(c in COLORS for p in PALETTES for c in p)


def test_flats_of_different_products_differ():
    def alpha(g):
        return np.asarray(draw_flat(g, 64), int)

    flats = [alpha(garment(p)) for p in range(100)]
    gaps = [np.abs(a - b).mean() for i, a in enumerate(flats) for b in flats[:i]]
    assert min(gaps) > 1


@few
@given(number, st.integers(0, 99))
def test_the_garment_is_on_the_canvas(product, seed):
    g = garment(product, seed)
    a = np.asarray(draw_flat(g, 200).getchannel('A'))
    assert not (a[0].any() or a[-1].any() or a[:, 0].any() or a[:, -1].any())
    assert 0.04 < (a > 128).mean() < 0.6
    assert np.abs(a.astype(int) - a[:, ::-1]).mean() < 14  # near enough symmetric


PAINTS = set(
    """accent base belt buckle button cord crease cuff dark inside label rip rivet seam second
    teeth thread tier trim zip  rib shell sleeve""".split()
)


def test_pieces_can_be_sewn():
    "Each is of a kind that there is, in a paint that there is, with as many points as it needs."
    paints = set()
    for p in range(400):
        for what, pts, paint, k in pattern_pieces(garment(p)):
            assert what in ('cloth', 'line', 'fold', 'button', 'stamp')
            assert len(pts) >= (1 if what == 'button' else 2 if what == 'line' else 3)
            assert np.isfinite(np.array(pts)).all()
            paints.add(paint)
    assert paints == PAINTS


@pytest.mark.parametrize('kind', sorted(KINDS))
def test_every_word_of_the_table_is_drawn(kind):
    "No choice of a column is lost on the way to the picture."
    row, g = KINDS[kind], next(g for g in map(garment, range(400)) if g.kind == kind)
    g = replace(g, graphic='', fabric=next(f for f in row['fabric'] if f != 'graphic'))
    if g.neck == 'strap':
        g = replace(g, neck=row['neck'][0])
    for column, words in row.items():
        if column == 'block' or len(words) < 2:
            continue
        seen = {
            draw_flat(
                replace(g, **{column: w}, graphic='sun' if w == 'graphic' else ''), 100
            ).tobytes()
            for w in words
        }
        assert len(seen) == len(words), column


@pytest.mark.parametrize('name', GRAPHICS)
def test_every_graphic_is_drawn(name):
    g = replace(garment(1), fabric='graphic', graphic='')
    assert draw_flat(replace(g, graphic=name), 100).tobytes() != draw_flat(g, 100).tobytes()


def test_a_garment_of_ones_own():
    g = replace(garment(15), colors=('Red', 'White', 'Black'), fabric='dots')
    assert not np.array_equal(draw_photo(g, 0), draw_photo(15, 0))
    assert np.array_equal(draw_photo(garment(15), 0), draw_photo(15, 0))
    assert isinstance(g, Garment) and hash(g) != hash(garment(15))


# ---- views


def test_eight_views_are_eight_places():
    for p in range(30):
        for first in (0, 8):
            assert len({photo_view(p, first + i).place for i in range(8)}) == 8
    assert len({tuple(photo_view(p, i).place for i in range(8)) for p in range(30)}) > 20


def test_views_differ():
    photos = [draw_photo(9, v, size=(48, 48)).astype(int) for v in range(12)]
    assert min(np.abs(a - b).mean() for i, a in enumerate(photos) for b in photos[:i]) > 6


def test_quality():
    q = [photo_quality(p, v) for p in range(40) for v in range(8)]
    assert min(q) >= 55 and max(q) <= 95 and len(set(q)) > 30
    assert q[17] == photo_view(2, 1).quality == photo_quality(2, 1, seed=0)


@pytest.mark.parametrize('place', PLACES)
def test_places(place):
    v = replace(photo_view(5, 0), place=place)
    a = draw_place(v, 60, 40)
    assert (
        a.shape == (40, 60, 3)
        and a.dtype == np.float32
        and np.isfinite(a).all()
        and 20 < a.mean() < 260
    )


def covered(product, view, size):
    "Return where a photo changes with the colour of the garment, a bool (h, w)."
    bare = replace(view, blur=0, grain=0)
    black, white = (replace(garment(product), colors=(c, c, c)) for c in ('Black', 'White'))
    black, white = (draw_photo(g, bare, size=size).astype(int) for g in (black, white))
    return np.abs(black - white).max(2) > 50


def test_the_garment_is_in_the_frame():
    "Shifting, turning and cropping leave most of it there."
    for p in range(20):
        for v in range(8):
            cloth = covered(p, photo_view(p, v), (64, 64))
            assert cloth.mean() > 0.07
            assert cloth[20:44, 20:44].mean() > 0.24


def test_light_falls_on_the_side_that_faces_it():
    slope = np.tile(np.arange(20, dtype=np.float32), (20, 1))  # rises to the right: faces the left
    assert shade_relief(slope, (-1.0, 0.0), 0.1)[5, 5] > 1
    assert shade_relief(slope, (1.0, 0.0), 0.1)[5, 5] < 1
    assert shade_relief(slope, (0.0, -1.0), 0.1)[5, 5] == 1


# ---- as a shop takes them


def shop(n, views=4, **kw):
    return [[photo_view(p, v, hard=True, **kw) for v in range(views)] for p in range(n)]


# Photos as they were before there was a harder setting: mean levels (red, green, blue).
PLAIN = {
    (1, 0): [81.0, 80.5, 91.7],
    (2, 0): [133.1, 132.7, 128.3],
    (5, 3): [210.6, 174.2, 156.4],
    (9, 7): [152.5, 121.9, 97.9],
    (18, 4): [146.5, 126.0, 102.4],
    (33, 1): [147.9, 115.2, 106.2],
    (40, 2): [114.2, 112.1, 111.7],
    (61, 6): [142.5, 159.7, 151.3],
    (77, 5): [188.4, 165.7, 151.6],
    (120, 0): [158.4, 153.3, 163.4],
    (200, 2): [123.3, 91.8, 78.6],
    (450, 9): [123.1, 127.5, 132.4],
}


def test_photos_are_as_they_were():
    for pair, levels in PLAIN.items():
        assert np.abs(draw_photo(*pair).mean((0, 1)) - levels).max() < 1
        assert np.array_equal(draw_photo(*pair), draw_photo(*pair, hard=False))
        v = photo_view(*pair)
        assert (v.side, v.color, v.model, v.stage) == ('front', '', None, ())


@few
@given(
    number,
    st.integers(0, 40),
    st.integers(0, 2**40),
    st.sampled_from([(16, 16), (64, 64), (40, 97), (90, 33)]),
)
def test_every_number_is_a_photo_of_a_shop(product, view, seed, size):
    a = draw_photo(product, view, seed=seed, size=size, hard=True)
    assert a.shape == (*size, 3) and a.dtype == np.uint8 and a.std() > 4
    forget()
    assert np.array_equal(a, draw_photo(product, view, seed=seed, size=size, hard=True))


SHOP = {
    (2, 0): [169, 127, 131, 172, 124, 128, 142, 96, 95, 157, 99, 97],
    (15, 1): [144, 123, 104, 202, 172, 144, 119, 102, 87, 173, 148, 125],
    (21, 2): [68, 69, 88, 87, 87, 105, 53, 57, 76, 71, 74, 94],
    (60, 3): [133, 110, 99, 153, 130, 118, 109, 89, 83, 131, 111, 105],
    (100, 0): [99, 120, 122, 74, 83, 91, 77, 96, 106, 69, 82, 92],
}


@pytest.mark.parametrize('pair', sorted(SHOP))
def test_golden_thumbnails_of_a_shop(pair):
    got = np.asarray(
        Image.fromarray(draw_photo(*pair, hard=True)).resize((2, 2), Image.BOX), int
    ).ravel()
    assert np.abs(got - SHOP[pair]).max() <= 3


def test_four_shoots_are_shared_by_all_products():
    views = shop(60)
    assert all(sorted(v.model for v in four) == [0, 1, 2, 3] for four in views)
    days = {
        (v.model, v.place, v.tint, v.light, v.warmth, v.tilt, v.sway, v.stage)
        for four in views
        for v in four
    }
    assert len(days) == 4
    assert (
        len({tuple(v.model for v in four) for four in views}) > 15
    )  # each product in an order of its own
    assert (
        len({v.seed for four in views for v in four}) == 240
    )  # each photo with creases of its own


def test_the_place_is_the_same_in_all_photos_of_a_shoot():
    first = {v.model: draw_place(v, 32, 32) for v in shop(1)[0]}
    for v in sum(shop(8), []):
        assert np.array_equal(draw_place(v, 32, 32), first[v.model])
    for v in sum(shop(2, seed=1), []):
        assert v.place == 'studio' or not np.array_equal(draw_place(v, 32, 32), first[v.model])


def test_front_back_and_close_up():
    for four in shop(40):
        assert [v.side for v in four] == ['front', 'back', 'front', 'front']
        assert [v.zoom > 2 for v in four] == [False, False, True, False]
    front = replace(photo_view(33, 0, hard=True), color='')
    assert not np.array_equal(draw_photo(33, front), draw_photo(33, replace(front, side='back')))
    assert all(
        min(
            np.abs(
                draw_photo(p, v).astype(int) - draw_photo(p, replace(v, model=None)).astype(int)
            ).mean()
            for v in four[:2]
        )
        > 2
        for p, four in enumerate(shop(6))
    )  # somebody wears it


def test_close_ups_show_cloth():
    "Its middle is the garment, of trousers too."
    for p in range(40):
        v = photo_view(p, 2, hard=True)
        plain = replace(v, grain=0, blur=0)
        bare = draw_photo(replace(garment(p), colors=('Mint', 'Mint', 'Mint')), plain).astype(int)
        assert (
            np.abs(draw_photo(p, plain).astype(int) - bare)[40:88, 40:88].max(2) > 8
        ).mean() > 0.5 or 'Mint' in garment(p).colors, p


def test_the_shop_dyes_one_photo_of_a_third_of_the_products():
    views = shop(300, views=8)
    assert 0.25 < np.mean([bool(eight[0].color) for eight in views]) < 0.42
    assert not any(v.color for eight in views for v in eight[1:])
    for p, (v, *_) in enumerate(views):
        if not v.color:
            continue
        assert all(
            sum(abs(a - b) for a, b in zip(COLORS[v.color], COLORS[c])) > 100
            for c in garment(p).colors
        )


def test_a_dyed_photo_differs_in_colour_and_in_nothing_else():
    dyed = [(p, v) for p, (v,) in enumerate(shop(60, views=1)) if v.color]
    for p, v in dyed[:8]:
        own, g = replace(v, color=''), garment(p)
        assert np.abs(draw_photo(p, v).astype(int) - draw_photo(p, own)).mean() > 3
        assert np.array_equal(
            draw_photo(p, v), draw_photo(replace(g, colors=(v.color, *g.colors[1:])), own)
        )


def test_a_shop_s_quality():
    assert photo_quality(7, 1, hard=True) == photo_view(7, 1, hard=True).quality
    assert {70 <= v.quality < 93 for v in sum(shop(40), [])} == {True}


# ---- hard enough


def recall(x, labels):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    s = x @ x.T
    np.fill_diagonal(s, -1)
    return (labels[s.argmax(1)] == labels).mean()


def test_colour_and_coarse_pixels_are_not_enough():
    x = np.stack([draw_photo(p, v, seed=3, size=(64, 64)) for p in range(60) for v in range(8)])
    labels, n = np.repeat(np.arange(60), 8), len(x)
    bins = (x // 32).astype(int) @ [64, 8, 1]
    histogram = np.stack([np.bincount(b.ravel(), minlength=512) for b in bins]).astype(float)
    raw = x.reshape(n, 16, 4, 16, 4, 3).mean((2, 4)).reshape(n, -1)
    assert recall(x.mean((1, 2)), labels) < 0.25
    assert recall(histogram, labels) < 0.45
    assert recall(np.sqrt(histogram), labels) < 0.55
    assert recall(raw, labels) < 0.55


def test_a_shop_hides_products_from_colours():
    found = {}
    for hard in (False, True):
        x = np.stack(
            [draw_photo(p, v, size=(64, 64), hard=hard) for p in range(40) for v in range(4)]
        )
        bins = (x // 32).astype(int) @ [64, 8, 1]
        found[hard] = recall(
            np.stack([np.bincount(b.ravel(), minlength=512) for b in bins]).astype(float),
            np.repeat(np.arange(40), 4),
        )
    assert found[True] < 0.05 < found[False] / 2


# ---- faults


@pytest.mark.parametrize(
    'call, error, says',
    [
        (lambda: draw_photo(-1, 0), ValueError, 'product=-1'),
        (lambda: draw_photo(0, -2), ValueError, 'view=-2'),
        (lambda: draw_photo(0, 0, seed=-3), ValueError, 'seed=-3'),
        (lambda: draw_photo(1.5, 0), TypeError, 'product=1.5'),
        (lambda: draw_photo(0, 0, size=(8, 64)), ValueError, 'size=(8, 64)'),
        (lambda: draw_photo(0, 0, size=(64, 5000)), ValueError, 'size=(64, 5000)'),
        (lambda: product_name('tee'), TypeError, "product='tee'"),
        (lambda: photo_quality(0, 0.5), TypeError, 'view=0.5'),
        (lambda: draw_photo(0, 0, hard='yes'), TypeError, "hard='yes'"),
        (lambda: draw_photo(0, 0, hard=2), TypeError, 'hard=2'),
        (lambda: photo_view(0, 0, hard=None), TypeError, 'hard=None'),
        (lambda: photo_quality(0, -1, hard=True), ValueError, 'view=-1'),
        (lambda: draw_photo(-1, 0, hard=True), ValueError, 'product=-1'),
        (lambda: draw_photo(0, 0, hard=True, size=(8, 64)), ValueError, 'size=(8, 64)'),
        (lambda: draw_photo(0, photo_view(0, 0), hard=True), ValueError, 'hard=True'),
    ],
)
def test_faults_name_the_culprit(call, error, says):
    with pytest.raises(error, match=re.escape(says)):
        call()


def test_no_tensorflow():
    code = (
        'import sys, triplet_fashion.photos.drawing;'
        'assert not {"tensorflow", "keras", "matplotlib"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
