"Pictures and reports: the right photos in the right frames, and one file that needs nothing else."

import contextlib
import os
import re
import shutil
import subprocess
import warnings

import numpy as np
import pytest
from common import Page
from hypothesis import given, settings, strategies as st

from triplet_fashion.display import Table, Tile
from triplet_fashion.explore import (
    embedding_map,
    failure_rows,
    gallery,
    neighbour_rows,
    principal_axes,
)
from triplet_fashion.explore import triplet_rows, worst_triplets, write_projector
from triplet_fashion.failures import failures
from triplet_fashion.evaluation import color_histogram
from triplet_fashion.photos.loading import load_images
from triplet_fashion.search import Hit, Hits, HitsList, ImageIndex
from triplet_fashion.pages import Html, figure_png, html_report
from triplet_fashion.triplets import Triplets, hard_triplets

quick = settings(max_examples=30, deadline=None, derandomize=True)
LONG = '(5598)' + 'Zippered_Faux_Leather_Joggers_' * 6
KOREAN = '(77) 줄무늬 크루넥 니트 스웨터 (남색)'


@pytest.fixture(autouse=True)
def closed():
    yield
    import matplotlib.pyplot as plt

    plt.close('all')


@pytest.fixture(scope='module')
def drawn_x(drawn):
    return color_histogram(load_images(drawn.paths, (48, 48)), bins=4)


def cosine(x):
    u = np.asarray(x, 'float64') / np.linalg.norm(x, axis=1, keepdims=True)
    return 1 - u @ u.T


# --- neighbours


def test_rows_hold_the_nearest_others(drawn, drawn_x):
    d = cosine(drawn_x)
    np.fill_diagonal(d, np.inf)
    rows = neighbour_rows(
        drawn.paths, drawn_x, drawn.labels, queries=[0, 30, 71], k=5, class_names=drawn.class_names
    )
    for i, row in zip([0, 30, 71], rows):
        want = np.argsort(d[i], kind='stable')[:5]
        assert [t.photo for t in row] == [drawn.paths[j] for j in [i, *want]]
        assert [t.frame for t in row[1:]] == [
            'hit' if drawn.labels[j] == drawn.labels[i] else 'miss' for j in want
        ]
        assert (
            row[0].note == f'query · {sum(t.frame == "hit" for t in row)}/5'
            and row[1].note == f'1 · {d[i, want[0]]:.3f}'
        )


def test_a_file_does_not_find_itself_in_a_gallery(drawn, drawn_x):
    order = np.random.default_rng(0).permutation(72)
    kw = dict(queries=[0, 30, 71], class_names=drawn.class_names)
    shelf = [drawn.paths[i] for i in order], drawn_x[order], drawn.labels[order]
    assert neighbour_rows(
        drawn.paths, drawn_x, drawn.labels, k=5, gallery=shelf, **kw
    ) == neighbour_rows(drawn.paths, drawn_x, drawn.labels, k=5, **kw)
    assert [
        len(r)
        for r in neighbour_rows(drawn.paths, drawn_x, drawn.labels, k=100, gallery=shelf, **kw)
    ] == [72] * 3
    apart = [f'{p}.x' for p in shelf[0]]  # other files: the nearest is the copy
    assert [
        r[1].photo
        for r in neighbour_rows(
            drawn.paths, drawn_x, drawn.labels, k=5, gallery=(apart, *shelf[1:]), **kw
        )
    ] == [f'{drawn.paths[i]}.x' for i in (0, 30, 71)]


def test_failures_are_drawn_from_the_right_list(drawn, drawn_x):
    "A gallery in reverse: positions in it are not positions among the queries."
    back = np.arange(72)[::-1]
    shelf = [drawn.paths[i] for i in back]
    why = failures(
        drawn_x,
        drawn.labels,
        drawn.paths,
        threshold=0.1,
        n=5,
        gallery=(drawn_x[back], drawn.labels[back], shelf),
        class_names=drawn.class_names,
    )
    columns = {
        'worst queries': ('query', 'found first', 'should have found'),
        'confused products': ('closest', 'and'),
        'false accepts': ('photo', 'other photo'),
        'false rejects': ('photo', 'other photo'),
    }
    for name, table in why.items():
        with (
            pytest.raises(ValueError, match='give gallery_photos')
            if 'false' not in name
            else contextlib.nullcontext()
        ):
            failure_rows(table, drawn.paths)
        rows = failure_rows(table, drawn.paths, shelf)
        if name == 'hubs':
            assert [t.photo for t in rows[0]] == table.column('photo') and rows[0][
                0
            ].note == f"named {table[0]['named']}"
            continue
        assert [[t.photo for t in r] for r in rows] == [
            [row[c] for c in columns[name]] for row in table
        ]
        for row in rows:
            home = [os.path.dirname(t.photo) for t in row]
            assert [t.frame for t in row] == ['query'] + [
                'hit' if h == home[0] else 'miss' for h in home[1:]
            ]
            assert [t.title for t in row] == [os.path.basename(h) for h in home]
    empty = failures(np.eye(4)[[0, 0, 1, 1]], [0, 0, 1, 1], threshold=0.5)
    assert failure_rows(empty['confused products'], list('abcd')) == []


def test_queries_are_of_different_products_and_repeat_by_seed(drawn, drawn_x):
    def titles(n, seed):
        return [
            r[0].photo for r in neighbour_rows(drawn.paths, drawn_x, drawn.labels, n, seed=seed)
        ]

    assert titles(12, 0) == titles(12, 0) != titles(12, 1)
    assert len({os.path.dirname(p) for p in titles(12, 3)}) == 12
    assert len(titles(1000, 0)) == len(set(titles(1000, 0))) == len(drawn)


def test_a_gallery_of_its_own(drawn, drawn_x):
    rows = neighbour_rows(
        drawn.paths[:6],
        drawn_x[:6],
        drawn.labels[:6],
        [2],
        k=100,
        gallery=(drawn.paths, drawn_x, drawn.labels),
    )
    assert len(rows[0]) == len(drawn) and drawn.paths[2] not in [
        t.photo for t in rows[0][1:]
    ]  # its own file is no find


def test_copies_do_not_push_out_neighbours():
    x = np.ones(
        (6, 2)
    )  # all at distance 0: ties in order of index, the query never among its neighbours
    rows = neighbour_rows(
        np.zeros((6, 8, 8, 3), 'uint8'),
        x,
        np.arange(6),
        queries=[4],
        k=3,
        class_names=list('abcdef'),
    )
    assert [t.title for t in rows[0]] == ['e', 'a', 'b', 'c']


def test_lengths_must_agree(drawn, drawn_x):
    for f in (neighbour_rows, worst_triplets):
        with pytest.raises(ValueError, match='71 photos, 72 embeddings'):
            f(drawn.paths[1:], drawn_x, drawn.labels)


# --- triplets


def test_triplets_of_different_products(drawn, drawn_x):
    t = hard_triplets(drawn_x, drawn.labels).hardest(drawn.labels, n=8)
    assert len(set(drawn.labels[t.anchor])) == len(t.anchor) == 8
    rows = triplet_rows(drawn.paths, t, drawn.labels, drawn.class_names)
    assert [[x.frame for x in r] for r in rows] == [['query', 'hit', 'miss']] * 8
    gap = float(t.d_ap[0]) - float(t.d_an[0])
    assert rows[0][0].note == (f'wrong by {gap:.3f}' if gap > 0 else f'right by {-gap:.3f}')


def test_no_triplet_is_said():
    with pytest.raises(ValueError, match='one product with two photos'):
        worst_triplets(np.zeros((3, 8, 8, 3)), np.eye(3), [0, 1, 2])
    with pytest.raises(ValueError, match="'cos'"):
        worst_triplets(np.zeros((3, 8, 8, 3)), np.eye(3), [0, 0, 1], metric='cos')


# --- figures


def test_figures_have_a_tile_for_each_photo(drawn, drawn_x):
    rows = neighbour_rows(drawn.paths, drawn_x, drawn.labels, queries=5, k=4)
    assert len(gallery(rows).axes) == 25 and len(gallery(rows, max_rows=2).axes) == 10
    assert len(gallery(rows[0]).axes) == 5
    assert len(worst_triplets(drawn.paths, drawn_x, drawn.labels, n=5).axes) == 15
    index = ImageIndex(drawn_x, drawn.ids, drawn.labels, drawn.class_names, root=drawn.root)
    assert len(gallery(index.search(drawn.ids[:3], k=2)).axes) == 9
    with pytest.raises(ValueError, match='no rows'):
        gallery([])


def test_any_name_is_drawn_without_a_warning(drawn):
    names = [LONG, KOREAN, 'costs $5 and $6_7', '\U0001f457', '', '<b>&amp;']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        png = figure_png(
            gallery(
                [[Tile(drawn.paths[0], n, 'note', 'hit') for n in names]], title='$x_1', heads=['a']
            ),
            close=True,
        )
    assert png.startswith(b'\x89PNG')


def test_figure_png_is_the_same_for_the_same_figure(drawn):
    def png():
        return figure_png(gallery([[Tile(drawn.paths[0], 'q', '', 'query')]]), dpi=50, close=True)

    assert png() == png()


# --- the map


@quick
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), d=st.integers(1, 6))
def test_principal_axes_against_the_covariance(seed, n, d):
    x = np.random.default_rng(seed).normal(size=(n, d))
    xy, share = principal_axes(x, 2)
    values = (
        np.sort(np.linalg.eigvalsh(np.atleast_2d(np.cov(x.T, bias=True))))[::-1]
        if n > 1
        else np.zeros(d)
    )
    want = np.pad(values, (0, 2))[:2]
    np.testing.assert_allclose((xy**2).mean(0), want, atol=1e-9)
    np.testing.assert_allclose(share * values.sum(), want, atol=1e-9)
    np.testing.assert_allclose(principal_axes(-x + 5)[0] ** 2, xy**2, atol=1e-9)


def test_maps(drawn, drawn_x):
    from matplotlib.offsetbox import AnnotationBbox

    fig = embedding_map(
        drawn_x, drawn.labels, drawn.paths, {int(i): KOREAN for i in drawn.labels}, n_photos=9
    )
    assert (
        sum(isinstance(a, AnnotationBbox) for a in fig.axes[0].artists) <= 9
        and len(fig.axes[0].get_legend().get_texts()) == 12
    )
    assert embedding_map(np.ones((3, 4))).axes[0].get_legend() is None  # all in one place
    assert (
        embedding_map([[1.0, 2.0]]).axes
        and embedding_map([[1.0], [2.0]], [5, 6], np.zeros((2, 9, 9, 3))).axes
    )
    with pytest.raises(ValueError, match='72 embeddings but 3 labels'):
        embedding_map(drawn_x, [1, 2, 3])
    with pytest.raises(ValueError, match='NaN'):
        embedding_map([[1.0, np.nan]])


# --- reports


def sample(drawn, x, path):
    "The report that a training run leaves, with awkward names in it."
    import matplotlib.pyplot as plt

    y, names = (
        drawn.labels,
        {int(i): n for i, n in enumerate(drawn.class_names)} | {3: LONG, 5: KOREAN},
    )
    fig, ax = plt.subplots(figsize=(8, 3))
    ax.plot([1.4, 0.9, 0.7, 0.6], label='training')
    figures = {
        'Recall@1': (0.931, 'share of photos whose nearest photo shows the same product'),
        'Photos': 72,
        'Training': ('2 min 48 s', 'on 2 cores'),
    }
    scores = [
        {
            'Embedding': n,
            'Recall@1': v,
            'Recall@5': v + 0.05,
            'Recall@10': v + 0.06,
            'MAP@R': v - 0.2,
            'Triplet accuracy': 0.9 + v / 20,
        }
        for n, v in [
            ('Trained network', 0.931),
            ('Untrained network', 0.4),
            ('Colour histogram', 0.35),
            ('Raw pixels', 0.3),
        ]
    ]
    return html_report(
        path,
        f'Report on {KOREAN}',
        [
            ('Result', [figures, 'Measured on products never seen in training.']),
            ('Baselines', [Table(scores, best='max', caption='Cosine distance.')]),
            ('Training', [(fig, 'Loss by epoch')]),
            (
                'Neighbours',
                [
                    (
                        neighbour_rows(drawn.paths, x, y, 4, k=7, class_names=names),
                        'Green: the same product.',
                    )
                ],
            ),
            (
                'Worst triplets',
                [triplet_rows(drawn.paths, hard_triplets(x, y).hardest(y, 4), y, names)],
            ),
            (
                'Audit',
                [
                    (
                        ['photo', 'problem'],
                        [
                            [f'{KOREAN}/사진 (1).jpg', 'truncated'],
                            ['x' * 300 + '.jpg', 'too small'],
                        ],
                    )
                ],
            ),
        ],
        subtitle='Four minutes, two cores.',
    )


def test_a_report_needs_nothing_else(drawn, drawn_x, tmp_path):
    file = sample(drawn, drawn_x, tmp_path / 'out' / 'report.html')
    text = file.read_text(encoding='utf-8')
    page = Page(text)
    assert [p.name for p in file.parent.iterdir()] == [
        'report.html'
    ] and file.stat().st_size < 3_000_000
    assert (
        all(a['src'].startswith('data:image/') and 'alt' in a for a in page.all('img'))
        and len(page.all('img')) == 1 + 4 * 8 + 4 * 3
    )
    assert (
        not page.all('script')
        and not page.all('link')
        and 'http://' not in text
        and 'https://' not in text
        and '@import' not in text
    )
    assert {a['href'] for a in page.all('a')} == {f'#{a["id"]}' for a in page.all('section')}
    assert (
        page.words.count('Recall@1') == 2
        and '0.931' in page.words
        and f'Report on {KOREAN}' in page.words
    )
    strong = re.findall('<strong>(.*?)</strong>', text)
    assert strong == ['0.931', '0.981', '0.991', '0.731', '0.947']


def test_reports_repeat_byte_for_byte(drawn, drawn_x, tmp_path):
    assert (
        sample(drawn, drawn_x, tmp_path / 'a.html').read_bytes()
        == sample(drawn, drawn_x, tmp_path / 'b.html').read_bytes()
    )


def test_everything_is_escaped(drawn, tmp_path):
    evil = '"><script>alert(1)</script>'
    hits = Hits(
        [Hit(1, evil, 0, evil, 0.1, drawn.paths[0])], query=drawn.paths[1], label=0, name=evil
    )
    text = html_report(
        tmp_path / 'r.html',
        evil,
        [
            (
                evil,
                [
                    evil,
                    {evil: (evil, evil)},
                    [{evil: evil}],
                    ([evil], [[evil]]),
                    Table([[evil]], [evil], evil),
                    hits,
                    (hits, evil),
                    (np.zeros((4, 4, 3), 'uint8'), evil),
                ],
            )
        ],
        subtitle=evil,
        footer=evil,
        lang=evil,
    ).read_text()
    page = Page(text)
    assert not page.all('script') and '<script' not in text and text.count('&lt;script&gt;') > 20


MEASURE = """<p id="out"></p><script>onload = () => {
    out.textContent = [...document.querySelectorAll('iframe')].map(f => {
        const d = f.contentDocument, img = [...d.images]
        const wider = d.documentElement.scrollWidth - d.documentElement.clientWidth
        return [wider, img.filter(i => !i.naturalWidth).length, img.length].join(' ')
    }).join(';')
}</script>"""


def test_blocks(drawn, tmp_path):
    def text(*blocks):
        return html_report(tmp_path / 'r.html', 't', [('s', list(blocks))]).read_text()

    class Shown:
        def _repr_html_(self):
            return '<i>shown</i>'

    assert '<i>shown</i>' in text(Shown()) and '<u>raw</u>' in text(Html('<u>raw</u>'))
    from pathlib import Path

    assert 'data:image/png' in text(Path(drawn.paths[0])) and 'data:image/png' in text(
        (Path(drawn.paths[0]), 'a caption')
    )
    assert 'No rows.' in text([]) and 'No rows.' in text((['a'], []))
    assert '>–</td>' in text([{'a': 1, 'b': None}, {'a': float('nan')}])
    assert (
        text(
            HitsList(
                [
                    Hits(
                        [Hit(1, 'i', 0, 'n', 0.5, drawn.paths[0])],
                        query=drawn.paths[1],
                        label=0,
                        name='q',
                    )
                ]
                * 2
            )
        ).count('tf-hit"')
        == 2
    )
    assert '<p>one</p>' in html_report(tmp_path / 'r.html', 't', [('s', 'one')]).read_text()
    assert (
        'id="s2"'
        in html_report(tmp_path / 'r.html', 't', {'first': ['a'], 'second': {'n': 1}}).read_text()
    )


def test_a_report_fits_desktop_and_phone(drawn, drawn_x, tmp_path):
    chromium = (
        shutil.which('chromium')
        or shutil.which('chromium-browser')
        or shutil.which('google-chrome')
    )
    if not chromium:
        pytest.skip('chromium is not installed')
    from html import escape

    text = escape(sample(drawn, drawn_x, tmp_path / 'r.html').read_text(encoding='utf-8'))
    frames = ''.join(
        f'<iframe style="width:{w}px;height:800px" srcdoc="{text}"></iframe>'
        for w in (1280, 390, 320)
    )
    page = f'<body>{frames}{MEASURE}'
    (tmp_path / 'measure.html').write_text(page, encoding='utf-8')
    out = subprocess.run(
        [
            chromium,
            '--headless=new',
            '--no-sandbox',
            '--disable-gpu',
            f'--user-data-dir={tmp_path}/profile',
            '--virtual-time-budget=8000',
            '--dump-dom',
            f'file://{tmp_path}/measure.html',
        ],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    found = re.search('<p id="out">(.*?)</p>', out)[1]
    assert found == ';'.join(['0 0 45'] * 3), (
        found
    )  # nothing wider than the page, no picture missing


def test_the_projector_gets_what_it_reads(drawn, drawn_x, tmp_path):
    """Numbers, names and thumbnails in one order; odd names stay one line; an unreadable photo is a
    grey card."""
    from PIL import Image

    photos, names = (
        list(drawn.paths),
        {c: f'{n}\t{KOREAN}\n' for c, n in enumerate(drawn.class_names)},
    )
    (tmp_path / 'bad.jpg').write_bytes(b'no photo')
    photos[1] = str(tmp_path / 'bad.jpg')
    folder = write_projector(tmp_path / 'log', photos, drawn_x, drawn.labels, names, side=32)
    assert sorted(p.name for p in folder.iterdir()) == [
        'embeddings.tsv',
        'photos.png',
        'photos.tsv',
        'projector_config.pbtxt',
    ]
    np.testing.assert_allclose(
        np.loadtxt(folder / 'embeddings.tsv', delimiter='\t'), drawn_x, rtol=1e-5, atol=1e-12
    )
    head, *lines = (folder / 'photos.tsv').read_text(encoding='utf-8').splitlines()
    assert (
        head == 'product\tphoto'
        and len(lines) == len(drawn)
        and all(line.count('\t') == 1 for line in lines)
        and KOREAN in lines[0]
    )
    sheet, n = np.asarray(Image.open(folder / 'photos.png')), int(np.ceil(np.sqrt(len(drawn))))
    assert (
        sheet.shape == (n * 32, n * 32, 3)
        and sheet[:32, :32].std() > 5
        and sheet[-32:, -32:].std()
        == (0 if n * n > len(drawn) else pytest.approx(sheet[-32:, -32:].std()))
    )
    config = (folder / 'projector_config.pbtxt').read_text()
    assert 'tensor_path: "embeddings.tsv"' in config and config.count('single_image_dim: 32') == 2
    with pytest.raises(ValueError, match='as many of each'):
        write_projector(tmp_path / 'log', photos[1:], drawn_x, drawn.labels)
    with pytest.raises(ValueError, match='1 to 1,048,576'):
        write_projector(tmp_path / 'log', [], np.zeros((0, 3)), [])


def test_the_projector_of_tensorboard_finds_them(drawn, drawn_x, tmp_path):
    config = pytest.importorskip(
        'tensorboard.plugins.projector.projector_config_pb2', reason='needs tensorboard'
    )
    from google.protobuf import text_format

    folder = write_projector(tmp_path, drawn.paths, drawn_x, drawn.labels)
    [e] = text_format.Parse(
        (folder / 'projector_config.pbtxt').read_text(), config.ProjectorConfig()
    ).embeddings
    assert all(
        (folder / p).exists() for p in (e.tensor_path, e.metadata_path, e.sprite.image_path)
    ) and list(e.sprite.single_image_dim) == [64, 64]


# --- little to show, odd names, full disks


def test_a_photo_alone_is_a_row_without_neighbours(drawn, drawn_x):
    rows = neighbour_rows(drawn.paths[:1], drawn_x[:1], drawn.labels[:1])
    assert [[t.note for t in row] for row in rows] == [['query · 0/0']]
    assert neighbour_rows([], np.zeros((0, 4)), []) == []


def test_rows_that_are_not_there_are_said_in_a_report(tmp_path):
    triplets = triplet_rows([], Triplets(*[np.zeros(0, int)] * 5), [])
    text = html_report(
        tmp_path / 'r.html', 't', [('s', [(triplets, 'Anchor, positive, negative.')])]
    ).read_text()
    assert 'Nothing to show. Anchor, positive, negative.' in text


ODD = os.fsdecode(b'caf\xe9')  # a name in bytes that are not UTF-8


def test_names_that_are_not_utf8_are_readable_in_a_report_and_in_the_projector(
    drawn, drawn_x, tmp_path
):
    hits = Hits(
        [Hit(1, f'{ODD}/1.jpg', 0, ODD, 0.1, drawn.paths[0])], query=drawn.paths[1], name=ODD
    )
    page = html_report(
        tmp_path / 'r.html', ODD, [(ODD, [ODD, {ODD: 1}, [{ODD: ODD}], hits])], subtitle=ODD
    )
    assert page.read_text(encoding='utf-8').count(r'caf\udce9') > 8
    photos = [f'{tmp_path}/{ODD}/{i}.jpg' for i in range(len(drawn))]
    folder = write_projector(tmp_path / 'log', photos, drawn_x, drawn.labels, [ODD] * 12)
    assert r'caf\udce9' in (folder / 'photos.tsv').read_text(encoding='utf-8').splitlines()[1]


def test_a_projector_that_cannot_be_written_whole_leaves_the_old_one(
    drawn, drawn_x, tmp_path, monkeypatch
):
    folder = write_projector(tmp_path / 'log', drawn.paths, drawn_x, drawn.labels)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(self, *args, **kw):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('PIL.Image.Image.save', full)
    with pytest.raises(OSError, match='photos.png could not be written: the disk is full'):
        write_projector(folder, drawn.paths[:9], drawn_x[:9], drawn.labels[:9])
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_places_that_cannot_be_written_to_are_called_by_their_names(drawn, drawn_x, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(NotADirectoryError, match='folder=.*is a file'):
        write_projector(tmp_path / 'file', drawn.paths, drawn_x, drawn.labels)
    with pytest.raises(IsADirectoryError, match='is a folder'):
        html_report(tmp_path, 't', [])
