"Photos of every kind into pixels, and every kind of bad file into one line."

import io, os, pickle, subprocess, sys
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps, features

from triplet_fashion.photos.image import (
    PHOTO_FORMATS,
    PHOTO_SUFFIXES,
    PhotoError,
    open_image,
    photo_problem,
    photo_size,
    read_image,
    track,
)
from triplet_fashion.photos.loading import load_images


@pytest.fixture(scope='module')
def scene():
    "A smooth picture without symmetry, uint8 (60, 90, 3)."
    y, x = np.mgrid[:60, :90]
    return np.stack([2 * x + y, 3 * y, 250 - 2 * x], -1).clip(0, 255).astype(np.uint8)


def encoded(im, fmt, **kw):
    buf = io.BytesIO()
    im.save(buf, fmt, **kw)
    return buf.getvalue()


KINDS = {
    'grey.jpg': ('L', 'JPEG', {}),
    'rgb.jpg': ('RGB', 'JPEG', dict(quality=95)),
    'cmyk.jpg': ('CMYK', 'JPEG', dict(quality=95)),
    'progressive.jpg': ('RGB', 'JPEG', dict(progressive=True)),
    'rgb.png': ('RGB', 'PNG', {}),
    'rgba.png': ('RGBA', 'PNG', {}),
    'la.png': ('LA', 'PNG', {}),
    'one.png': ('1', 'PNG', {}),
    'palette.png': ('P', 'PNG', {}),
    'palette.gif': ('P', 'GIF', {}),
    'rgb.bmp': ('RGB', 'BMP', {}),
    'rgb.tif': ('RGB', 'TIFF', {}),
    'cmyk.tif': ('CMYK', 'TIFF', {}),
    'rgb.ppm': ('RGB', 'PPM', {}),
    'grey.pgm': ('L', 'PPM', {}),
    'rgb.tga': ('RGB', 'TGA', {}),
    'rgb.jp2': ('RGB', 'JPEG2000', {}),
    'rgb.dib': ('RGB', 'DIB', {}),
    'rgb.webp': ('RGB', 'WEBP', dict(lossless=True)),
    'rgba.webp': ('RGBA', 'WEBP', dict(lossless=True)),
}


@pytest.mark.parametrize('name', KINDS)
def test_every_kind_reads_as_rgb(name, scene, tmp_path):
    mode, fmt, kw = KINDS[name]
    if fmt in ('WEBP', 'JPEG2000') and not features.check(
        dict(WEBP='webp', JPEG2000='jpg_2000')[fmt]
    ):
        pytest.skip(f'this Pillow was built without {fmt}')
    im = Image.fromarray(scene).convert(mode)
    (tmp_path / name).write_bytes(encoded(im, fmt, **kw))
    out = read_image(tmp_path / name)
    assert out.shape == (60, 90, 3) and out.dtype == np.uint8 and out.flags.writeable
    if mode not in ('1', 'P'):
        want = np.asarray(im.convert('RGB')).astype(int)
        assert abs(out.astype(int) - want).mean() < 6
    assert name.endswith(PHOTO_SUFFIXES) and photo_problem(tmp_path / name) is None
    assert read_image(tmp_path / name, (30, 20)).shape == (30, 20, 3)


def test_sixteen_bit_png(tmp_path):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / 'deep.png')
    assert read_image(tmp_path / 'deep.png')[0, :, 0].tolist() == [0, 1, 128, 255]


def test_colours_of_sixteen_bits_that_are_transparent(tmp_path):
    "Written by hand: Pillow reads them but does not write them."
    import struct, zlib

    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    def png(path, pixels, colour, key):
        rows = b''.join(b'\0' + r.tobytes() for r in pixels.astype('>u2'))
        path.write_bytes(
            b'\x89PNG\r\n\x1a\n'
            + chunk(
                b'IHDR',
                struct.pack('>IIBBBBB', pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0),
            )
            + chunk(b'tRNS', struct.pack(f'>{len(key)}H', *key))
            + chunk(b'IDAT', zlib.compress(rows))
            + chunk(b'IEND', b'')
        )
        return read_image(path)[0].tolist()

    assert png(tmp_path / 'grey.png', np.array([[1000, 30000]]), 0, [1000]) == [
        [255] * 3,
        [116] * 3,
    ]
    assert png(
        tmp_path / 'rgb.png',
        np.array([[[1000, 2000, 3000], [30000, 2000, 3000]]]),
        2,
        [1000, 2000, 3000],
    ) == [[255] * 3, [117, 7, 11]]


def test_a_tiff_of_32_bits_with_values_of_8(tmp_path):
    Image.fromarray(np.array([[0, 90, 255]], np.int32)).save(tmp_path / 'few.tif')
    Image.fromarray(np.array([[0, 257, 65535]], np.int32)).save(tmp_path / 'many.tif')
    assert read_image(tmp_path / 'few.tif')[0, :, 0].tolist() == [0, 90, 255] and read_image(
        tmp_path / 'many.tif'
    )[0, :, 0].tolist() == [0, 1, 255]


def test_heic_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / 'phone.heic').write_bytes(b'\0\0\0\x18ftypheic' + bytes(300))
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    assert photo_problem(tmp_path / 'phone.heic') == (
        'unreadable: a HEIC photo, for which Pillow needs pillow-heif: pip install pillow-heif'
    )


def test_transparency_shows_white(tmp_path):
    im = Image.new('P', (20, 20), 0)
    im.putpalette([0, 0, 0, 200, 10, 10])
    im.paste(1, (0, 0, 10, 20))
    im.save(tmp_path / 'cut.png', transparency=0)
    out = read_image(tmp_path / 'cut.png')
    assert out[5, 15].tolist() == [255] * 3 and out[5, 5].tolist() == [200, 10, 10]
    half = Image.new('RGBA', (20, 20), (0, 0, 0, 128))
    half.save(tmp_path / 'half.png')
    assert abs(int(read_image(tmp_path / 'half.png')[0, 0, 0]) - 127) <= 1
    Image.new('RGB', (20, 20), (9, 9, 9)).save(tmp_path / 'key.png', transparency=(9, 9, 9))
    assert read_image(tmp_path / 'key.png')[0, 0].tolist() == [255] * 3


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new('RGB', (20, 20), c) for c in ('red', 'blue')]
    frames[0].save(tmp_path / 'moves.gif', save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / 'moves.gif')[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize('k', range(1, 9))
@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('size', [None, (20, 40)])
def test_exif_orientation_against_pillow(k, fmt, size, scene, tmp_path):
    if fmt == 'WEBP' and not features.check('webp'):
        pytest.skip('this Pillow was built without WebP')
    exif = Image.Exif()
    exif[0x0112] = k
    (tmp_path / 'o').write_bytes(
        encoded(
            Image.fromarray(scene),
            fmt,
            exif=exif,
            **dict(JPEG=dict(quality=95), WEBP=dict(lossless=True)).get(fmt, {}),
        )
    )
    upright = ImageOps.exif_transpose(Image.open(tmp_path / 'o')).convert('RGB')
    if size:
        upright = upright.resize(size[::-1], Image.Resampling.BILINEAR)
    out = read_image(tmp_path / 'o', size).astype(int)
    assert out.shape == np.asarray(upright).shape
    gap = abs(out - np.asarray(upright).astype(int))
    assert gap.max() <= 6 and gap.mean() < 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_lose_the_photo(scene, tmp_path):
    (tmp_path / 'e.jpg').write_bytes(
        encoded(Image.fromarray(scene), 'JPEG', exif=b'Exif\x00\x00MM\x00*\xff\xff\xff\xff junk')
    )
    assert read_image(tmp_path / 'e.jpg').shape == (60, 90, 3)


@pytest.mark.parametrize('fit', ['stretch', 'crop', 'pad'])
@pytest.mark.parametrize('size', [(1, 1), (7, 300), (300, 7), 64, np.int64(5)])
def test_fits_give_the_size_asked_for(fit, size, scene, tmp_path):
    Image.fromarray(scene).save(tmp_path / 's.png')
    want = (int(size),) * 2 if np.isscalar(size) else size
    assert read_image(tmp_path / 's.png', size, fit).shape == (*want, 3)


def test_reduced_decoding_changes_little(scene, tmp_path):
    big = Image.fromarray(scene).resize((1440, 960), Image.Resampling.BICUBIC)
    big.save(tmp_path / 'big.jpg', quality=95)
    slow = np.asarray(
        Image.open(tmp_path / 'big.jpg').convert('RGB').resize((96, 64), Image.Resampling.BILINEAR)
    ).astype(int)
    assert abs(read_image(tmp_path / 'big.jpg', (64, 96)).astype(int) - slow).mean() < 1


@pytest.mark.parametrize(
    'fmt,name',
    [('JPEG', 'x.jpg'), ('PNG', 'x.png'), ('GIF', 'x.gif'), ('TIFF', 'x.tif'), ('BMP', 'x.bmp')],
)
@pytest.mark.parametrize('share', [0.02, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused_by_name(fmt, name, share, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), fmt)
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    problem = photo_problem(tmp_path / name)
    assert problem and problem.split(':')[0] in ('truncated', 'not an image', 'unreadable')
    with pytest.raises(PhotoError, match=name) as e:
        read_image(tmp_path / name, 32)
    assert e.value.problem == problem and e.value.path == str(tmp_path / name)


@pytest.mark.parametrize(
    'content,kind',
    [
        (b'', 'empty file'),
        (b'<html>404</html>', 'not an image'),
        (b'\xff\xd8\xff\xe0', 'not an image'),
        (b'\0' * 5000, 'not an image'),
    ],
)
def test_what_is_no_photo(content, kind, tmp_path):
    (tmp_path / 'f.jpg').write_bytes(content)
    assert photo_problem(tmp_path / 'f.jpg').startswith(kind)
    with pytest.raises(PhotoError, match='f.jpg'):
        read_image(tmp_path / 'f.jpg')


FUZZED = [
    'JPEG',
    'PNG',
    'GIF',
    'TIFF',
    'BMP',
    'DIB',
    'PPM',
    'TGA',
    'WEBP',
    'JPEG2000',
    'AVIF',
    'MPO',
]


@pytest.fixture(scope='module')
def wholes():
    "A small sound file of each format that this Pillow writes."
    Image.init()
    im = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3)).astype(np.uint8))
    return {
        fmt: encoded(im.quantize(16) if fmt == 'GIF' else im, fmt)
        for fmt in FUZZED
        if fmt in Image.SAVE
    }


@pytest.mark.filterwarnings('ignore')
@settings(max_examples=250, deadline=2000, derandomize=True)
@given(data=st.data())
def test_no_bytes_raise_anything_else(data, wholes, tmp_path_factory):
    """Bytes changed in the head or anywhere, cut or with something behind: a picture or a
    PhotoError, in little time."""
    bad = bytearray(wholes[data.draw(st.sampled_from(sorted(wholes)))])
    for _ in range(data.draw(st.integers(0, 8))):
        end = data.draw(st.sampled_from([64, len(bad)]))
        bad[data.draw(st.integers(0, min(end, len(bad)) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        bad = bad[: data.draw(st.integers(1, len(bad)))]
    bad += data.draw(st.sampled_from([b'', b'\0' * 40, bytes(bad)]))
    path = tmp_path_factory.getbasetemp() / 'fuzz.bin'
    path.write_bytes(bytes(bad))
    problem = photo_problem(path)
    assert problem is None or ':' in problem and '\n' not in problem
    try:
        pixels = read_image(path, 16)
    except PhotoError as e:
        assert 'fuzz.bin' in str(e)
    else:
        assert pixels.shape == (16, 16, 3) and np.array_equal(read_image(bytes(bad), 16), pixels)


def test_names_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'loop.jpg').symlink_to(tmp_path / 'loop.jpg')
    (tmp_path / 'nowhere.jpg').symlink_to(tmp_path / 'gone.jpg')
    kinds = {
        n: photo_problem(tmp_path / n).split(':')[0]
        for n in ('pipe.jpg', 'loop.jpg', 'nowhere.jpg', 'gone.jpg', '')
    }
    assert kinds == {
        'pipe.jpg': 'not an image',
        'loop.jpg': 'unreadable',
        'nowhere.jpg': 'missing',
        'gone.jpg': 'missing',
        '': 'not an image',
    }
    assert photo_problem('a\0b.jpg').startswith('unreadable')


def test_korean_name_with_spaces(tmp_path, scene):
    path = tmp_path / '여름 원피스 (파랑).jpg'
    Image.fromarray(scene).save(path)
    assert photo_problem(path) is None
    path.write_bytes(b'no photo')
    with pytest.raises(PhotoError, match='여름 원피스'):
        read_image(path)


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_a_hundred_megapixels(tmp_path):
    Image.new('L', (10_000, 10_000), 90).save(tmp_path / 'studio.jpg')
    assert photo_problem(tmp_path / 'studio.jpg') is None
    assert (
        read_image(tmp_path / 'studio.jpg', 64)[3, 3].tolist() == [90] * 3
    )  # decoded at an eighth
    with pytest.raises(PhotoError, match='too many pixels: 10000 x 10000'):
        read_image(tmp_path / 'studio.jpg')
    Image.new('1', (10_000, 10_000)).save(tmp_path / 'wide.png')
    assert photo_problem(tmp_path / 'wide.png').startswith('too many pixels')
    Image.new('1', (20_000, 10_000)).save(tmp_path / 'bomb.png')
    assert photo_problem(tmp_path / 'bomb.png').startswith('too many pixels')


PEAK = """
import re, sys, warnings
from pathlib import Path
from triplet_fashion.photos.image import photo_problem
def peak():   # kB; ru_maxrss would be that of the parent
    return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])
warnings.simplefilter('ignore')
before = peak()
print(photo_problem(sys.argv[1]).split(':')[0], (peak()-before)//1024)
"""


def test_a_bomb_is_refused_before_it_goes_off(tmp_path, root):
    """A PNG of 144 megapixels, under twice Pillow's limit, says how large it is in its first
    bytes: nothing needs to be decoded."""
    if not os.path.exists('/proc/self/status'):
        pytest.skip('peak memory of one process is read from /proc')
    Image.new('L', (12_000, 12_000)).save(tmp_path / 'bomb.png')
    out = subprocess.run(
        [sys.executable, '-c', PEAK, str(tmp_path / 'bomb.png')],
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
    ).stdout
    kind, grown = out.rsplit(' ', 1)
    assert kind == 'too many pixels' and int(grown) < 40  # MB; decoded it takes 137


def test_pixel_limit_is_pillows_own(tmp_path, scene, monkeypatch):
    Image.fromarray(scene).save(tmp_path / 's.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 5000)
    with pytest.warns(Image.DecompressionBombWarning):
        assert photo_problem(tmp_path / 's.png').startswith('too many pixels: 90 x 60')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    assert photo_problem(tmp_path / 's.png') is None


def test_small_photos_are_reported_but_can_be_read(tmp_path):
    Image.new('RGB', (15, 40)).save(tmp_path / 's.png')
    assert photo_problem(tmp_path / 's.png') == 'too small: 15 x 40 pixels, at least 16 wanted'
    assert photo_problem(tmp_path / 's.png', min_side=15) is None
    assert read_image(tmp_path / 's.png').shape == (40, 15, 3)


def test_wrong_arguments_name_themselves(tmp_path):
    with pytest.raises(ValueError, match="fit must be one of stretch, crop, pad, not 'zoom'"):
        read_image('x.jpg', fit='zoom')
    for size in [(3,), (0, 3), (2.5, 3), (1, 2, 3)]:
        with pytest.raises(ValueError, match='size must be'):
            read_image('x.jpg', size)
    with pytest.raises(ValueError, match='size is needed'):
        load_images([], None)


def test_error_survives_pickling():
    e = pickle.loads(pickle.dumps(PhotoError('a.jpg', 'truncated: x')))
    assert (e.path, e.problem, str(e)) == ('a.jpg', 'truncated: x', 'a.jpg: truncated: x')


def test_many_photos_in_order_with_any_number_of_threads(tmp_path):
    paths = []
    for i in range(40):
        paths.append(tmp_path / f'{i}.png')
        Image.new('RGB', (20 + i, 30), (i, 2 * i, 3 * i)).save(paths[-1])
    done = []
    for workers in (1, 2, 7):
        out = load_images(paths, (8, 9), workers, progress=lambda d, n: done.append((d, n)))
        assert out.shape == (40, 8, 9, 3) and out[:, 4, 4, 0].tolist() == list(range(40))
    assert done[-1] == (40, 40) and len(done) == 120
    paths[17].write_bytes(b'oops')
    with pytest.raises(PhotoError, match='17.png'):
        load_images(paths, 8)


def test_progress_goes_to_stderr(capsys):
    assert list(track(range(250), label='photos')) == list(range(250))
    out, err = capsys.readouterr()
    assert out == '' and err.endswith('photos 250 of 250\n') and err.count('\r') <= 126
    list(track([], progress=True))
    assert capsys.readouterr().err == ''


def test_real_photos(clothing):
    paths = sorted(clothing.glob('validation/*/*.jpg'))[::30]
    assert all(photo_problem(p) is None for p in paths)
    assert load_images(paths, 64).std() > 20


def test_reading_imports_no_tensorflow(tmp_path, scene, root):
    Image.fromarray(scene).save(tmp_path / 's.png')
    code = f"""
import sys
from triplet_fashion.photos.image import read_image
read_image({str(tmp_path / 's.png')!r}, 32)
print(sorted({{'tensorflow', 'keras', 'matplotlib'}} & set(sys.modules)))"""
    assert (
        subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, cwd=root, check=True
        ).stdout
        == '[]\n'
    )


# files from anybody

FOREIGN = {
    'PostScript': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n{} loop\n',
    'PostScript behind a DOS head': b'\xc5\xd0\xd3\xc6'
    + (32).to_bytes(4, 'little')
    + bytes(24)
    + b'%!PS-Adobe-3.0 EPSF-3.0\n{} loop\n',
    'PDF': b'%PDF-1.4\n1 0 obj\n<<>>\nendobj\n',
    'FITS': b'SIMPLE  =                    T'.ljust(80)
    + b'BITPIX  =                    8'.ljust(80),
    'QOI': b'qoif' + (9000).to_bytes(4, 'big') * 2 + b'\3\0' + b'\xfd' * 2000,
    'WMF': b'\xd7\xcd\xc6\x9a' + bytes(60),
    'XPM': b'/* XPM */\nstatic char *a[] = {\n"1 1 1 1",\n"a c #ffffff",\n"a"};\n',
}


@pytest.mark.parametrize('kind', FOREIGN)
def test_what_is_no_photo_format_is_not_opened(kind, tmp_path, monkeypatch):
    "Whatever its name says: no interpreter is started, and nothing is decoded."

    def started(*a, **k):
        raise AssertionError('a program was started')

    monkeypatch.setattr(subprocess, 'Popen', started)
    (tmp_path / 'coat.jpg').write_bytes(FOREIGN[kind])
    assert photo_problem(tmp_path / 'coat.jpg').startswith('not an image')
    for photo in (tmp_path / 'coat.jpg', FOREIGN[kind], io.BytesIO(FOREIGN[kind])):
        with pytest.raises(PhotoError, match='not an image'):
            read_image(photo)


@pytest.mark.parametrize(
    'fmt', ['EPS', 'PDF', 'ICO', 'PCX', 'SGI', 'IM', 'PSD', 'ICNS', 'DDS', 'MSP', 'SPIDER', 'XBM']
)
def test_formats_that_the_package_does_not_name_are_refused(fmt, scene):
    Image.init()
    if fmt not in Image.SAVE:
        return  # Pillow reads it and does not write it
    im = (
        Image.fromarray(scene)
        .resize((64, 64))
        .convert(dict(MSP='1', XBM='1', SPIDER='F').get(fmt, 'RGB'))
    )
    assert fmt not in PHOTO_FORMATS
    with pytest.raises(PhotoError, match='bytes: '):
        open_image(encoded(im, fmt))


@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'GIF', 'TIFF', 'BMP', 'PPM'])
@pytest.mark.parametrize('size', [None, (31, 22)])
def test_bytes_files_and_images_are_read_as_paths_are(fmt, size, scene, tmp_path):
    data = encoded(Image.fromarray(scene), fmt)
    (tmp_path / 'a').write_bytes(data)
    want = read_image(tmp_path / 'a', size)
    with open(tmp_path / 'a', 'rb') as file:
        for photo in (data, bytearray(data), memoryview(data), io.BytesIO(data), file, file):
            assert np.array_equal(read_image(photo, size), want), type(photo)
    apart = abs(read_image(Image.open(tmp_path / 'a'), size).astype(int) - want).max()
    assert apart <= (2 if fmt == 'JPEG' else 0)  # a JPEG file is decoded at a half
    assert (
        photo_size(data) == photo_size(tmp_path / 'a') == (60, 90) and photo_problem(data) is None
    )


@pytest.mark.parametrize('size', [None, (30, 20)])
def test_an_image_of_the_users_stays_as_it_was(size, scene, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene).resize((720, 480)).save(tmp_path / 'phone.jpg', exif=exif, quality=95)
    im = Image.open(tmp_path / 'phone.jpg')
    first = read_image(im, size)
    assert im.size == (720, 480) and im.getexif()[0x0112] == 6 and im.format == 'JPEG'
    assert photo_size(im) == photo_size(tmp_path / 'phone.jpg') == (720, 480)
    assert np.array_equal(read_image(im, size), first)
    assert abs(first.astype(int) - read_image(tmp_path / 'phone.jpg', size)).max() <= 8
    twice = read_image(ImageOps.exif_transpose(im), size)  # is not turned twice
    assert twice.shape == first.shape and abs(twice.astype(int) - first).max() <= 2


def test_images_made_in_memory_are_read(scene):
    im = Image.fromarray(scene)
    clear = im.convert('RGBA')
    clear.putalpha(0)
    assert read_image(clear).min() == 255 and np.array_equal(read_image(im), scene)
    assert read_image(Image.fromarray(np.array([[0, 65535]], np.uint16)))[0, :, 0].tolist() == [
        0,
        255,
    ]
    with pytest.raises(PhotoError, match='image: unreadable: 0 x 5 pixels'):
        read_image(Image.new('RGB', (0, 5)))


def test_what_holds_no_photo_is_named(tmp_path):
    for photo in (None, 7, ['a.jpg'], np.zeros((3, 3, 3), np.uint8)):
        with pytest.raises(TypeError, match='give a path, bytes, a binary file object'):
            read_image(photo)
    (tmp_path / 'a.jpg').write_text('x')
    with open(tmp_path / 'a.jpg') as file, pytest.raises(TypeError, match="mode 'rb'"):
        read_image(file)
    with pytest.raises(PhotoError, match='bytes: empty file'):
        read_image(b'')


def test_only_exif_turns_a_photo(scene, tmp_path):
    "XMP and the text of a PNG do not, as in a browser."
    from PIL.PngImagePlugin import PngInfo

    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngInfo()
    text.add_text('Raw profile type exif', '\nexif\n    26\n' + exif.tobytes().hex())
    im = Image.fromarray(scene)
    for data in (
        encoded(im, 'JPEG', xmp=xmp),
        encoded(im, 'WEBP', xmp=xmp),
        encoded(im, 'PNG', pnginfo=text),
        encoded(im, 'JPEG', xmp=xmp, exif=Image.Exif()),
    ):
        assert read_image(data).shape == (60, 90, 3)
    assert read_image(encoded(im, 'JPEG', xmp=xmp.replace(b'6', b'1'), exif=exif)).shape == (
        90,
        60,
        3,
    )


def without_height(jpeg):
    "A JPEG whose frame header says that it is 0 pixels high."
    at = jpeg.index(b'\xff\xc0') + 5
    return jpeg[:at] + b'\0\0' + jpeg[at + 2 :]


@pytest.mark.parametrize('fit', ['stretch', 'crop', 'pad'])
def test_a_jpeg_without_height_is_a_bad_photo(fit, scene):
    with pytest.raises(PhotoError, match='bytes: not an image'):
        read_image(without_height(encoded(Image.fromarray(scene), 'JPEG')), 32, fit)


def test_a_jpeg_of_endless_scans_is_refused_at_once():
    "Ten bytes make a scan, and each scan goes over all pixels: 350 KB would take minutes."
    data = encoded(Image.new('L', (2000, 2000)), 'JPEG', progressive=True)
    last = data.rindex(b'\xff\xda')
    scan = data[last : last + 10]
    assert read_image(data, 32).shape == (32, 32, 3)
    problem = photo_problem(data[:-2] + 30_000 * scan + b'\xff\xd9')
    assert problem.startswith('unreadable: 30,0') and 'scans' in problem


def test_one_name_for_many_photos_is_named():
    with pytest.raises(ValueError, match=r"paths='shop' is one name.*Catalog.from_dir"):
        load_images('shop', 32)
