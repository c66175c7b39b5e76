"One photo, one picture: every way to pixels side by side, over the files that people really have."

import io, struct, zlib
import numpy as np
import pytest
from PIL import Image, features

keras = pytest.importorskip('keras')
from triplet_fashion.display import thumbnail
from triplet_fashion.encoder import encode
from triplet_fashion.export import export, load_export
from triplet_fashion.generator import image_dataset, photo_error
from triplet_fashion.photos.image import PhotoError, photo_problem, photo_size, read_image
from triplet_fashion.photos.loading import load_images

SIZE = (30, 22)
FITS = ('stretch', 'crop', 'pad')


# the files


def scene(h=60, w=90):
    "A smooth picture without symmetry."
    y, x = np.mgrid[:h, :w]
    x, y = x * 90 // w, y * 60 // h
    return Image.fromarray(
        np.stack([2 * x + y, 3 * y, 250 - 2 * x], -1).clip(0, 255).astype(np.uint8)
    )


def saved(im, fmt, **kw):
    out = io.BytesIO()
    im.save(out, fmt, **kw)
    return out.getvalue()


def exif(k, order=b'MM'):
    "An EXIF note that holds an orientation and an entry before it."

    def n(v, size):
        return v.to_bytes(size, 'big' if order == b'MM' else 'little')

    def entry(tag, v):
        return n(tag, 2) + n(3, 2) + n(1, 4) + n(v, 2) + b'\0\0'

    return order + n(42, 2) + n(8, 4) + n(2, 2) + entry(0x0100, 8) + entry(0x0112, k) + n(0, 4)


def late_exif(jpeg, note):
    "A JPEG whose EXIF stands between the frame header and the scan."
    at = jpeg.index(b'\xff\xc0')
    at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], 'big')
    note = b'Exif\0\0' + note
    return jpeg[:at] + b'\xff\xe1' + (len(note) + 2).to_bytes(2, 'big') + note + jpeg[at:]


def segment(jpeg, marker, data):
    return jpeg[:2] + b'\xff' + marker + (len(data) + 2).to_bytes(2, 'big') + data + jpeg[2:]


def without_height(jpeg):
    at = jpeg.index(b'\xff\xc0') + 5
    return jpeg[:at] + b'\0\0' + jpeg[at + 2 :]


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def before(png, kind, new):
    "A PNG with a chunk before the first one of a kind."
    at = png.index(kind) - 4
    return png[:at] + new + png[at:]


def clear(mode='RGBA'):
    "The scene, from transparent to opaque."
    im = scene().convert(mode)
    im.putalpha(Image.linear_gradient('L').resize(im.size))
    return im


def with_a_hole():
    "A palette picture of 16 colours, the first of which is black and transparent."
    im = scene().quantize(15)
    x = np.asarray(im) + 1
    x[10:30, 20:50] = 0
    hole = Image.fromarray(x.astype(np.uint8), 'P')
    hole.putpalette([0, 0, 0] + im.getpalette()[:45])
    return hole


def part_of_a_canvas(transparent):
    "A GIF whose frame covers a part of its canvas only."
    data = bytearray(saved(with_a_hole(), 'GIF', **(dict(transparency=0) if transparent else {})))
    data[6:10] = struct.pack('<HH', 100, 70)
    at = data.index(b',\0\0\0\0Z\0<\0')
    data[at + 1 : at + 5] = struct.pack('<HH', 7, 5)
    return bytes(data)


def jpegs():
    def j(im=None, **kw):
        return saved(im or scene(), 'JPEG', **(dict(quality=95) | kw))

    files = {
        f'orientation {k}': j(exif=b'Exif\0\0' + exif(k, (b'MM', b'II')[k % 2]))
        for k in range(1, 9)
    }
    files |= {
        'plain': j(),
        'grey': j(scene().convert('L')),
        'cmyk': j(scene().convert('CMYK')),
        'progressive': j(progressive=True),
        'large': j(scene(800, 1200)),
        'large and lying': j(scene(800, 1200), exif=b'Exif\0\0' + exif(6)),
        'huge aspect': j(scene(8, 1500)),
        'one pixel': j(scene().resize((1, 1))),
        'small': j(scene(9, 7)),
        'late exif': late_exif(j(), exif(6)),
        'exif behind xmp': segment(
            segment(j(), b'\xe1', b'Exif\0\0' + exif(8)),
            b'\xe1',
            b'http://ns.adobe.com/xap/1.0/\0<x/>',
        ),
        'long head': segment(segment(j(), b'\xe1', b'Exif\0\0' + exif(5)), b'\xe2', bytes(60_000)),
        'xmp orientation': segment(
            j(), b'\xe1', b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
        ),
        'damaged exif': j(exif=b'Exif\0\0MM\0*\xff\xff\xff\xff junk'),
        'exif without orientation': j(exif=b'Exif\0\0' + exif(1).replace(b'\1\x12', b'\1\x13')),
        'orientation 9': j(exif=b'Exif\0\0' + exif(9)),
        'subsampled': j(subsampling=2),
        'fill bytes': j()[:2] + b'\xff' * 5 + j()[2:],
        'mpo': saved(
            scene(), 'MPO', save_all=True, append_images=[scene().rotate(180)], quality=95
        ),
    }
    files['cmyk without its mark'] = files['cmyk'].replace(b'Adobe', b'Adebo')
    return {f'{n}.jpg': d for n, d in files.items()}


def pngs():
    def p(im=None, **kw):
        return saved(im or scene(), 'PNG', **kw)

    files = {
        f'orientation {k}': before(p(), b'IDAT', chunk(b'eXIf', exif(k, (b'MM', b'II')[k % 2])))
        for k in range(1, 9)
    }
    files |= {f'palette of {b} bits': p(scene().quantize(2**b), bits=b) for b in (1, 2, 4, 8)}
    files |= {
        f'clear palette of {b} bits': p(
            with_a_hole().quantize(2**b) if b < 4 else with_a_hole(), bits=b, transparency=0
        )
        for b in (1, 2, 4, 8)
    }
    grey = Image.fromarray((np.arange(5400, dtype=np.uint16) * 12).reshape(60, 90))
    files |= {
        'rgb': p(),
        'rgba': p(clear()),
        'grey': p(scene().convert('L')),
        'grey and alpha': p(clear('LA')),
        'one bit': p(scene().convert('1')),
        '16 bits grey': p(grey),
        'one bit with key': p(scene().convert('1'), transparency=0),
        'grey with key': p(scene().convert('L').quantize(4).convert('L'), transparency=0),
        'rgb with key': p(
            scene().quantize(8).convert('RGB'),
            transparency=tuple(scene().quantize(8).convert('RGB').getpixel((0, 0))),
        ),
        'exif behind the pixels': before(p(), b'IEND', chunk(b'eXIf', exif(6))),
        'lying and clear': before(p(clear()), b'IDAT', chunk(b'eXIf', exif(8))),
        'one pixel': p(scene().resize((1, 1))),
        'large': p(scene(400, 600)),
        'animated': p(save_all=True, append_images=[scene().rotate(180)]),
    }
    rgb16 = np.asarray(scene()).astype('>u2') * 257
    head = struct.pack('>IIBBBBB', 90, 60, 16, 2, 0, 0, 0)
    files['16 bits rgb'] = (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', head)
        + chunk(b'IDAT', zlib.compress(b''.join(b'\0' + r.tobytes() for r in rgb16)))
        + chunk(b'IEND', b'')
    )
    return {f'{n}.png': d for n, d in files.items()}


def gifs():
    moves = dict(save_all=True, append_images=[with_a_hole().rotate(180)], disposal=2)
    return {
        'plain.gif': saved(scene().quantize(64), 'GIF'),
        'grey.gif': saved(scene().convert('L'), 'GIF'),
        'clear.gif': saved(with_a_hole(), 'GIF', transparency=0),
        'comment.gif': saved(with_a_hole(), 'GIF', transparency=0, comment=b'c' * 900),
        'animated.gif': saved(with_a_hole(), 'GIF', **moves),
        'animated and clear.gif': saved(with_a_hole(), 'GIF', transparency=0, **moves),
        'interlaced.gif': saved(with_a_hole(), 'GIF', transparency=0, interlace=1),
        'part.gif': part_of_a_canvas(False),
        'part and clear.gif': part_of_a_canvas(True),
        'one pixel.gif': saved(scene().resize((1, 1)).quantize(2), 'GIF'),
    }


def webps():
    if not features.check('webp'):
        return {}

    def w(im=None, **kw):
        return saved(im or scene(), 'WEBP', **(dict(lossless=True) | kw))

    files = {f'orientation {k}': w(exif=exif(k)) for k in (1, 3, 5, 6, 8)}
    files |= {
        'exif with its word': w(exif=b'Exif\0\0' + exif(6)),
        'rgb': w(),
        'lossy': w(lossless=False, quality=95),
        'clear': w(clear()),
        'clear and lying': w(clear(), exif=exif(6)),
        'animated': w(save_all=True, append_images=[scene().rotate(180)]),
        'xmp orientation': w(xmp=b'<x tiff:Orientation="6"/>'),
    }
    return {f'{n}.webp': d for n, d in files.items()}


def others():
    files = {
        '24 bits.bmp': saved(scene(), 'BMP'),
        '32 bits.bmp': saved(clear(), 'BMP'),
        'palette.bmp': saved(scene().quantize(200), 'BMP'),
        'grey.bmp': saved(scene().convert('L'), 'BMP'),
        'one bit.bmp': saved(scene().convert('1'), 'BMP'),
        'rgb.tif': saved(scene(), 'TIFF'),
        'lying.tif': saved(scene(), 'TIFF', tiffinfo={0x0112: 6}),
        'cmyk.tif': saved(scene().convert('CMYK'), 'TIFF'),
        'clear.tif': saved(clear(), 'TIFF'),
        'packed.tif': saved(scene(), 'TIFF', compression='tiff_lzw'),
        'pages.tif': saved(scene(), 'TIFF', save_all=True, append_images=[scene().rotate(180)]),
        'rgb.ppm': saved(scene(), 'PPM'),
        'grey.pgm': saved(scene().convert('L'), 'PPM'),
        'rgba.tga': saved(clear(), 'TGA'),
    }
    if features.check('jpg_2000'):
        files['rgb.jp2'] = saved(scene(), 'JPEG2000')
    if features.check('avif'):
        files['lying.avif'] = saved(scene(), 'AVIF', exif=exif(6))
    return files


def bad():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3)).astype(np.uint8))
    jpeg, png = saved(noise, 'JPEG'), saved(noise, 'PNG')
    return {
        'cut.jpg': jpeg[: len(jpeg) // 2],
        'cut.png': png[: len(png) // 2],
        'no height.jpg': without_height(saved(scene(), 'JPEG')),
        'postscript.jpg': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n',
        'page.jpg': b'<html>404</html>',
        'head only.jpg': jpeg[:40],
        'cut.gif': saved(noise.quantize(64), 'GIF')[:900],
    }


GOOD = jpegs() | pngs() | gifs() | webps() | others()
BAD = bad()
NOT_SERVED = (
    'one bit.bmp',
    *(n for n in GOOD if n in ('animated.webp', 'cmyk without its mark.jpg')),
    *(n for n in GOOD if n.endswith(('.tif', '.ppm', '.pgm', '.tga', '.jp2', '.avif'))),
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "All files, under their names."
    path = tmp_path_factory.mktemp('odd')
    for name, data in (GOOD | BAD).items():
        (path / name).write_bytes(data)
    return path


@pytest.fixture(scope='module')
def see():
    "A network that gives back the pixels it is shown."
    photo = keras.Input((*SIZE, 3))
    return keras.Model(photo, keras.layers.Flatten()(photo))


@pytest.fixture(scope='module')
def served(see, tmp_path_factory):
    return load_export(export(see, tmp_path_factory.mktemp('served') / 'e'))


def apart(a, b):
    "(mean, largest) difference of two pictures, levels of 255."
    gap = abs(np.asarray(a, float).ravel() - np.asarray(b, float).ravel())
    return gap.mean(), gap.max()


def test_there_are_many_files():
    assert len(GOOD) > 80


# what a file shows


@pytest.mark.parametrize(
    'name',
    [
        n
        for n in GOOD
        if n.startswith(
            (
                'orientation',
                'exif',
                'late',
                'long head',
                'lying',
                'large and lying',
                'clear and lying',
            )
        )
    ],
)
def test_turned_files_stand_upright(name, folder):
    "Five to eight stand on their side."
    on_side = any(
        s in name
        for s in (
            'orientation 5',
            'orientation 6',
            'orientation 7',
            'orientation 8',
            'late',
            'long',
            'behind',
            'lying',
            'its word',
        )
    )
    h, w = photo_size(folder / name)
    assert (h > w) == on_side and read_image(folder / name).shape == (h, w, 3)


@pytest.mark.parametrize(
    'name',
    [n for n in GOOD if n.endswith('.gif') and 'clear' in n]
    + ['clear palette of 4 bits.png', 'clear palette of 8 bits.png'],
)
def test_what_is_transparent_is_white(name, folder):
    x = read_image(folder / name)
    assert (x == 255).all(-1).mean() > 0.1


# side by side


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('name', GOOD)
def test_paths_bytes_files_and_images_are_one(name, fit, folder):
    want = read_image(folder / name, SIZE, fit)
    assert photo_problem(folder / name, min_side=1) is None
    data = GOOD[name]
    with open(folder / name, 'rb') as file, Image.open(folder / name) as im:
        assert np.array_equal(read_image(data, SIZE, fit), want)
        assert np.array_equal(read_image(io.BytesIO(data), SIZE, fit), want)
        assert np.array_equal(read_image(file, SIZE, fit), want)
        mean, most = apart(read_image(im, SIZE, fit), want)
        assert mean < 1 and most <= 12, (mean, most)  # a JPEG file is decoded at a smaller size
        assert np.array_equal(
            read_image(im), read_image(folder / name)
        )  # at its own size there is no difference


@pytest.mark.parametrize('fit', FITS)
def test_datasets_and_encodings_see_what_read_image_sees(fit, folder, see):
    paths = [str(folder / name) for name in GOOD]
    want = load_images(paths, SIZE, fit=fit)
    batches = np.concatenate([x for x, _ in image_dataset(paths, SIZE, 16, fit=fit)])
    rows = encode(paths, see, fit=fit)
    for name, w, batch, row in zip(GOOD, want, batches, rows):
        assert apart(batch, w)[1] <= 1, (name, 'image_dataset', apart(batch, w))
        assert apart(row, w)[1] <= 1, (name, 'encode', apart(row, w))


@pytest.mark.parametrize('name', [n for n in GOOD if n not in NOT_SERVED])
def test_the_saved_model_sees_what_read_image_sees(name, folder, served):
    mean, most = apart(served.files([GOOD[name]])[0], read_image(folder / name, SIZE))
    assert mean < 1 and most <= 6, (mean, most)


@pytest.mark.parametrize('name', NOT_SERVED)
def test_the_saved_model_refuses_what_it_cannot_decode(name, served):
    with pytest.raises(ValueError, match='send PNG|send RGB|first frame|JPEG, PNG'):
        served.files([GOOD[name]])


@pytest.mark.parametrize('name', GOOD)
def test_thumbnails_show_what_read_image_shows(name, folder):
    h, w = photo_size(folder / name)
    scale = min(1, 24 / max(h, w))
    size = max(1, round(h * scale)), max(1, round(w * scale))
    assert np.array_equal(np.asarray(thumbnail(folder / name, 24)), read_image(folder / name, size))


# bad photos


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('name', BAD)
def test_a_bad_photo_is_bad_by_every_way(name, fit, folder, see, served):
    path = folder / name
    assert photo_problem(path)
    for photo in (path, BAD[name], io.BytesIO(BAD[name])):
        with pytest.raises(PhotoError):
            read_image(photo, SIZE, fit)
    with pytest.raises(PhotoError, match=name):
        load_images([path], SIZE, fit=fit)
    good = str(folder / 'plain.jpg')
    rows = encode([good, str(path)], see, fit=fit, bad=(lost := {}))
    assert np.isnan(rows[1]).all() and not np.isnan(rows[0]).any() and list(lost) == [str(path)]
    with pytest.raises(Exception) as e:
        list(image_dataset([good, str(path)], SIZE, fit=fit))
    assert photo_error(e.value).path == str(path)
    if fit == 'stretch':
        with pytest.raises(ValueError):
            served.files([BAD[name]])
