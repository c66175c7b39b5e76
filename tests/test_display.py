"Tables, tiles and pages: any name as it is, any value as a reader wants it, whole files."

import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from common import Page
from hypothesis import given, settings, strategies as st
from PIL import Image

from triplet_fashion import display
from triplet_fashion.display import Table, Tile, contact_sheet, draw_sheet, format_value
from triplet_fashion.display import shorten, text_width, thumbnail, wrap
from triplet_fashion.pages import Html, block_html, figure_png, html_report, tile_rows

ODD = os.fsdecode(b'caf\xe9')  # a name in bytes that are not UTF-8
EVIL = '"><script>alert(1)</script>&amp;'
KOREAN, CHINESE = '(77) 줄무늬 크루넥 니트', '纯棉短袖T恤'
ARABIC = 'معطف أزرق (كبير)'
LONG = 'Zippered_Faux_Leather_Joggers_' * 12
NAMES = [
    ODD,
    EVIL,
    KOREAN,
    CHINESE,
    ARABIC,
    LONG,
    '',
    'two\nlines\tand\x1b[31m',
    '\u202eturned',
    'costs $5_$6',
]


@pytest.fixture(autouse=True)
def closed():
    yield
    import matplotlib.pyplot as plt

    plt.close('all')


# --- text


def test_widths_are_those_of_a_console():
    assert [text_width(t) for t in ('tee', '줄무늬', 'e\u0301', '\u200dx', CHINESE)] == [
        3,
        6,
        1,
        1,
        13 - 2,
    ]
    assert shorten('줄무늬 니트', 8) == '줄무늬…' and shorten('tee', 3) == 'tee'
    assert shorten(ODD, 20) == r'caf\udce9'


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(), st.integers(2, 30), st.integers(1, 3))
def test_captions_keep_their_width(name, width, lines):
    out = wrap(name, width, lines).split('\n')
    assert len(out) <= lines and all(text_width(line) <= width for line in out)


def test_values_are_written_for_readers():
    cases = {
        0.91666: '0.917',
        12345: '12,345',
        12345.6: '12,346',
        2.5e-5: '2.5e-05',
        -2.5e-5: '-2.5e-05',
        6e-8: '0.000',
        -6e-8: '0.000',
        float('inf'): 'inf',
        True: 'yes',
        'a<b': 'a<b',
        ODD: r'caf\udce9',
    }
    assert {v: format_value(v) for v in cases} == cases
    assert [
        format_value(v)
        for v in (None, float('nan'), np.float32('nan'), np.bool_(False), np.int64(7))
    ] == ['–', '–', '–', 'no', '7']
    assert format_value(0.25, digits=4) == '0.2500'
    pandas = pytest.importorskip('pandas', reason='needs pandas')
    assert format_value(pandas.NA) == format_value(pandas.NaT) == '–'


# --- tables


def test_any_name_is_printed_on_one_line_and_in_line():
    table = Table([[name, i] for i, name in enumerate(NAMES)], ['name', 'n'])
    lines = repr(table).splitlines()
    assert len(lines) == 1 + len(NAMES) and repr(table).encode('utf-8')
    assert len({text_width(line) for line in lines}) == 1
    assert not re.search('[\x00-\x09\x1b\u202e]', repr(table)) and r'caf\udce9' in lines[1]
    assert max(map(text_width, lines)) < 100 and table[5]['name'] == LONG


def test_what_stands_last_is_whole():
    assert LONG in repr(Table([['a', LONG]], ['n', 'name']))


def test_any_name_is_text_in_html():
    table = Table([[name] for name in NAMES], [EVIL], EVIL)
    page = Page(table.to_html())
    assert not [tag for tag, _ in page.tags if tag == 'script'] and table._repr_html_().encode(
        'utf-8'
    )
    assert page.words.count(EVIL) == 3
    assert all(name in page.words for name in (KOREAN, CHINESE, ARABIC, LONG, r'caf\udce9'))


def test_columns_of_numbers_stand_at_the_right_with_gaps_in_them():
    table = Table(
        [['a', 1, 0.5, 'x'], ['b', None, float('nan'), 2], ['c', '', 12.25, True]],
        ['name', 'n', 'score', 'mixed'],
    )
    assert [table.is_numeric(j) for j in range(4)] == [False, True, True, False]
    assert repr(table).splitlines() == [
        'name  n   score  mixed',
        'a     1   0.500  x',
        'b     –       –  2',
        'c        12.250  yes',
    ]
    assert table.to_html().count('class="num"') == 2 * 4
    assert not Table([[None], ['']], ['gaps']).is_numeric(0)


def test_rows_may_be_dicts_short_or_none_at_all():
    table = Table([dict(a=1), dict(b=2)])
    assert (
        table.header == ['a', 'b']
        and table[0] == dict(a=1, b=None)
        and table.column('b') == [None, 2]
    )
    assert [row['a'] for row in table] == [1, None] and len(table) == 2
    assert repr(Table([[1], [1, 2, 3]], ['x', 'y'])).splitlines() == ['x  y', '1  –', '1  2']
    assert (
        repr(Table([['accuracy', 0.5]])) == 'accuracy  0.500'
        and '<th' not in Table([['accuracy', 0.5]]).to_html()
    )
    for empty in (Table([], ['a', 'b'], 'none'), Table([]), Table(iter([]))):
        assert 'No rows.' in empty.to_html() and isinstance(repr(empty), str) and len(empty) == 0
        Page(empty.to_html())
    nothing = Table([], [], title='3 photos, all fine')
    assert repr(nothing) == '3 photos, all fine' and 'No rows' not in nothing.to_html()


def test_a_long_table_is_cut_and_says_so():
    rows = [dict(i=i, v=i / 7) for i in range(30_000)]
    assert repr(Table(rows)).splitlines()[-1] == '... and 29,980 more rows'
    assert '29,980 more of 30,000 rows are not shown.' in Table(rows)._repr_html_()
    assert (
        Table(rows).to_html(200).count('<tr>') == 201
        and Table(rows[:500]).to_html().count('<tr>') == 501
    )
    short = Table(rows, max_rows=3, best=dict(v='max'))
    assert (
        short.to_html(200).count('<tr>') == 4 and '<strong>' not in short.to_html()
    )  # the best is below the cut


def test_the_best_may_be_shared_smallest_or_absent():
    table = Table(
        [['a', 1, 0.5], ['b', 1, 0.25], ['c', 3, None]],
        ['name', 'loss', 'score'],
        best=dict(loss='min'),
    )
    assert (
        table.best_rows(1) == [0, 1]
        and table.best_rows(2) == []
        and table.to_html().count('<strong>1</strong>') == 2
    )
    assert Table([['a', None]], ['name', 'score'], best='max').best_rows(1) == []


def test_a_group_is_named_once():
    table = Table([['x', 1], ['x', 2], ['y', 2], ['x', 3]], ['group', 'n'], grouped=True)
    assert [row[0] for row in table.texts(9)] == ['x', '', 'y', 'x'] and table[1]['group'] == 'x'


def test_csv_keeps_all_rows_digits_and_bytes(tmp_path, monkeypatch):
    table = Table([[ODD, 0.123456789], ['x,"y"', None]], ['name', 'n'], max_rows=1)
    table.to_csv(tmp_path / 'new' / 't.csv')
    whole = (tmp_path / 'new' / 't.csv').read_bytes()
    assert whole.splitlines() == [b'name,n', b'caf\xe9,0.123456789', b'"x,""y""",']

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(OSError, match='t.csv could not be written: the disk is full'):
        table.to_csv(tmp_path / 'new' / 't.csv')
    assert (tmp_path / 'new' / 't.csv').read_bytes() == whole and len(
        list((tmp_path / 'new').iterdir())
    ) == 1
    with pytest.raises(IsADirectoryError, match='is a folder'):
        table.to_csv(tmp_path)


# --- photos and tiles


def test_thumbnails_stand_upright(tmp_path):
    photo = Image.new('RGB', (400, 200), 'red')
    exif = photo.getexif()
    exif[274] = 6
    for name in ('turned.jpg', 'turned.tif'):
        photo.save(tmp_path / name, exif=exif)
        assert thumbnail(tmp_path / name, 100).size == (50, 100)
    assert thumbnail(np.zeros((10, 20, 3)), 100).size == (20, 10)  # never enlarged
    assert thumbnail(np.zeros((10, 20, 3)), 100, square=True).getpixel((50, 5)) == (255, 255, 255)


def test_what_cannot_be_read_is_a_grey_card(tmp_path):
    (tmp_path / 'page.jpg').write_text('<html>')
    for photo in (tmp_path / 'none.jpg', tmp_path / 'page.jpg', b''):
        for square in (False, True):
            card = thumbnail(photo, 30, square)
            assert card.size == (30, 30) and card.getpixel((0, 0)) == (229, 231, 235)
    assert Tile(tmp_path / 'none.jpg').html().startswith('<figure')


def test_a_photo_is_the_same_in_any_form(tmp_path):
    Image.fromarray(np.arange(60 * 80 * 3).reshape(60, 80, 3).astype('uint8')).save(
        tmp_path / 'a.png'
    )
    data = (tmp_path / 'a.png').read_bytes()
    want = np.asarray(thumbnail(tmp_path / 'a.png', 40))
    for photo in (
        data,
        bytearray(data),
        io.BytesIO(data),
        Image.open(io.BytesIO(data)),
        str(tmp_path / 'a.png'),
    ):
        np.testing.assert_allclose(np.asarray(thumbnail(photo, 40), float), want, atol=2)


def test_tiles_hold_any_name_in_html_and_in_a_figure():
    import matplotlib.pyplot as plt

    for name in NAMES:
        html = Tile(np.zeros((4, 4, 3)), name, name, 'hit').html()
        page = Page(html)
        assert html.encode('utf-8') and {tag for tag, _ in page.tags} == {
            'figure',
            'div',
            'img',
            'b',
            'span',
        }
    _, axes = plt.subplots(1, len(NAMES))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for ax, name in zip(axes, NAMES):
            Tile(np.zeros((4, 4, 3)), name, name, 'miss').draw(ax)
        draw_sheet(np.zeros((len(NAMES), 8, 8, 3), 'uint8'), 1, NAMES).figure.canvas.draw()
        assert figure_png(axes[0].figure).startswith(b'\x89PNG')


def test_a_name_asks_for_no_more_fonts_than_it_needs():
    ax = draw_sheet(np.zeros((2, 8, 8, 3), 'uint8'), 1, ['coat', '코트'])
    plain, korean = (label.get_fontfamily() for label in ax.get_yticklabels())
    assert plain == ['DejaVu Sans'] and korean[:1] == plain
    assert [label.get_text() for label in ax.get_yticklabels()][0] == 'coat'


def test_frames_have_their_colors():
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_hex

    found = {}
    for frame in ('query', 'hit', 'miss', None):
        ax = plt.figure().add_subplot()
        Tile(np.zeros((4, 4, 3)), frame=frame).draw(ax)
        found[frame] = to_hex(ax.spines['top'].get_edgecolor())
    assert found == {'query': '#334155', 'hit': '#15803d', 'miss': '#dc2626', None: '#cbd5e1'}


def test_contact_sheets():
    sheet = contact_sheet([np.full((10, 20, 3), i, np.uint8) for i in range(5)], columns=3, gap=2)
    assert (
        sheet.size == (64, 22)
        and sheet.getpixel((22, 12)) == (4, 4, 4)
        and sheet.getpixel((50, 15)) == (255, 255, 255)
    )
    with pytest.raises(ValueError, match='photos: none given'):
        contact_sheet([])


# --- pages


def test_rows_of_tiles_are_known_as_such():
    a, b = Tile('a'), Tile('b')

    class Found:
        tiles = [a, b]

    assert tile_rows([a, b]) == tile_rows(Found()) == [[a, b]] and tile_rows([Found(), [a]]) == [
        [a, b],
        [a],
    ]
    for other in ('text', [], [[]], {}, 3, Table([[1]], tiles=[1]), [1, a], None):
        assert tile_rows(other) is None


def test_a_block_of_each_kind(tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path / 'a.png')

    class Shown:
        def _repr_html_(self):
            return '<i>shown</i>'

    tiles = [Tile(tmp_path / 'a.png', 'name')]
    blocks = {EVIL: '<p>&quot;&gt;&lt;script', Html('<u>raw</u>'): '<u>raw</u>'}
    for block, text in blocks.items():
        assert block_html(block).startswith(text)
    for block in (tmp_path / 'a.png', np.zeros((4, 4, 3), 'uint8'), Image.new('RGB', (4, 4))):
        assert 'data:image/png' in block_html(block) and '<figcaption>why' in block_html(
            (block, 'why')
        )
    assert 'tf-tile' in block_html(tiles) and 'why</p>' in block_html((tiles, 'why'))
    assert '<dd class="value">0.500</dd><dd class="says">why' in block_html(dict(a=(0.5, 'why')))
    assert '<td class="num">1</td>' in block_html([dict(a=1)]) == block_html((['a'], [[1]]))
    assert 'No rows.' in block_html([]) and 'Nothing to show. why' in block_html(([], 'why'))
    assert '<i>shown</i>' in block_html(Shown()) and block_html({1, 2}) is None is block_html(
        (1, 2)
    )


def test_a_page_with_every_odd_name_is_whole(tmp_path):
    tiles = [Tile(tmp_path / 'none.jpg', name, name) for name in NAMES]
    blocks = [
        *NAMES,
        {name: (name, name) for name in NAMES},
        Table([[n] for n in NAMES], [ODD], ODD),
        (tiles, ODD),
    ]
    for name in NAMES:
        file = html_report(
            tmp_path / 'page.html', name, {name: blocks, 'empty': [], 'one': 'text'}, name, name
        )
        page = Page(file.read_text(encoding='utf-8'))
        assert not [tag for tag, _ in page.tags if tag in ('script', 'link')]
        assert len([tag for tag, _ in page.tags if tag == 'section']) == 3
    assert 'Nothing to show.' in page.words and r'caf\udce9' in page.words


def test_a_page_asks_for_nothing_and_follows_the_readers_light(tmp_path):
    text = html_report(tmp_path / 'r.html', 't', []).read_text(encoding='utf-8')
    assert 'This report has no sections.' in text and 'prefers-color-scheme:dark' in text
    assert not re.search('https?://|@import|url\\(', text)
    policy = next(dict(a)['content'] for t, a in Page(text).tags if 'http-equiv' in a)
    assert policy.split() == [
        "default-src",
        "'none';",
        'img-src',
        'data:;',
        'style-src',
        "'unsafe-inline'",
    ]


def test_a_block_that_cannot_be_shown_is_named_and_the_old_page_stays(tmp_path):
    file = html_report(tmp_path / 'r.html', 'old', [])
    with pytest.raises(TypeError, match="section 'Figures': a block of type set"):
        html_report(file, 'new', [('Figures', ['fine', {1, 2}])])
    assert '<title>old</title>' in file.read_text() and [p.name for p in tmp_path.iterdir()] == [
        'r.html'
    ]


def test_importing_brings_neither_pillow_nor_matplotlib():
    code = (
        f'import sys, {display.__name__};'
        'print([m for m in ("PIL", "matplotlib", "tensorflow") if m in sys.modules])'
    )
    out = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert out.stdout.strip() == '[]', out.stderr
