"""Photo files as people really have them, made from fixed numbers.

Nothing is resized or counted out by Pillow: their pixels are the same with each of its versions."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def scene(h=60, w=90):
    "Return a smooth picture without symmetry."
    y, x = np.mgrid[:h, :w]
    x, y = x * 90 // w, y * 60 // h
    levels = np.stack([2 * x + y, 3 * y, 250 - 2 * x], -1)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def grey():
    return Image.fromarray(np.asarray(scene())[..., 0].copy())


def clear(mode='RGBA'):
    "Return the scene, or its grey, from transparent at the left to opaque."
    im = scene() if mode == 'RGBA' else grey()
    alpha = np.broadcast_to(np.arange(90) * 255 // 89, (60, 90))
    im.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return im


def palette(colours):
    "Return a picture of so many colours."
    places = (np.arange(60)[:, None] // 4 + np.arange(90) // 6) % colours
    im = Image.fromarray(places.astype(np.uint8)).convert('P')
    im.putpalette(np.random.default_rng(8).integers(0, 256, 3 * colours).astype(np.uint8).tobytes())
    return im


def saved(im, kind, **kw):
    "Return a picture as the bytes of a file."
    out = io.BytesIO()
    im.save(out, kind, **kw)
    return out.getvalue()


def exif(k):
    "Return an EXIF note with an orientation."
    entry = struct.pack('>HHIHH', 0x0112, 3, 1, k, 0)
    return b'MM\0*' + struct.pack('>IH', 8, 1) + entry + bytes(4)


def chunk(kind, data):
    "Return a chunk of a PNG."
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def deep_png():
    "Return a PNG of 16 bits a colour, which Pillow does not write."
    rows = np.asarray(scene()).astype('>u2') * 257
    pixels = b''.join(b'\0' + row.tobytes() for row in rows)
    head = struct.pack('>IIBBBBB', 90, 60, 16, 2, 0, 0, 0)
    parts = chunk(b'IHDR', head), chunk(b'IDAT', zlib.compress(pixels)), chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def lying_png():
    "Return a PNG that an EXIF chunk turns."
    png = saved(scene(), 'PNG')
    at = png.index(b'IDAT') - 4
    return png[:at] + chunk(b'eXIf', exif(6)) + png[at:]


def jpegs():
    "Return {name: bytes} of JPEG files."

    def jpeg(im=None, **kw):
        return saved(im or scene(), 'JPEG', quality=95, **kw)

    files = {f'orientation {k}': jpeg(exif=b'Exif\0\0' + exif(k)) for k in range(1, 9)}
    files |= {
        'grey': jpeg(grey()),
        'cmyk': jpeg(scene().convert('CMYK')),
        'progressive': jpeg(progressive=True),
        'subsampled': jpeg(subsampling=2),
        'huge': jpeg(scene(1200, 1800)),
        'huge and lying': jpeg(scene(800, 1200), exif=b'Exif\0\0' + exif(6)),
        'very wide': jpeg(scene(8, 1500)),
        'one pixel': jpeg(scene().crop((0, 0, 1, 1))),
        'small': jpeg(scene(9, 7)),
    }
    return {f'{name}.jpg': data for name, data in files.items()}


def pngs():
    "Return {name: bytes} of PNG files."

    def png(im=None, **kw):
        return saved(im or scene(), 'PNG', **kw)

    deep_grey = Image.fromarray((np.arange(5400, dtype=np.uint16) * 12).reshape(60, 90))
    files = {f'palette of {b} bits': png(palette(2**b), bits=b) for b in (1, 2, 4, 8)}
    files |= {
        'plain': png(),
        'grey': png(grey()),
        'one bit': png(Image.fromarray(np.asarray(grey()) > 99)),
        'transparent': png(clear()),
        'transparent grey': png(clear('LA')),
        'transparent colour': png(palette(16), bits=4, transparency=0),
        '16 bits grey': png(deep_grey),
        '16 bits': deep_png(),
        'lying': lying_png(),
        'large': png(scene(400, 600)),
    }
    return {f'{name}.png': data for name, data in files.items()}


def others():
    "Return {name: bytes} of GIF, WebP, BMP and TIFF files, and of a PNG under a wrong name."
    moving = dict(save_all=True, append_images=[palette(16).rotate(180)])
    return {
        'plain.gif': saved(palette(16), 'GIF'),
        'transparent.gif': saved(palette(16), 'GIF', transparency=0),
        'moving.gif': saved(palette(16), 'GIF', **moving),
        'plain.bmp': saved(scene(), 'BMP'),
        'palette.bmp': saved(palette(200), 'BMP'),
        'lying.tif': saved(scene(), 'TIFF', tiffinfo={0x0112: 6}),
        'is a png.jpg': saved(scene(), 'PNG'),
        'plain.webp': saved(scene(), 'WEBP', lossless=True),
        'transparent.webp': saved(clear(), 'WEBP', lossless=True, exact=True),
        'lying.webp': saved(scene(), 'WEBP', lossless=True, exif=exif(8)),
    }


def broken_files():
    "Return {name: bytes} of files that are no photos."
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3)).astype(np.uint8)
    jpeg, png = (saved(Image.fromarray(noise), kind) for kind in ('JPEG', 'PNG'))
    height = jpeg.index(b'\xff\xc0') + 5
    return {
        'cut.jpg': jpeg[: len(jpeg) // 2],
        'cut.png': png[: len(png) // 2],
        'head only.jpg': jpeg[:40],
        'height of 0.jpg': jpeg[:height] + b'\0\0' + jpeg[height + 2 :],
        'page.jpg': b'<html>404</html>',
        'empty.jpg': b'',
    }


def good_files():
    return jpegs() | pngs() | others()


def is_lossy(name):
    return name in jpegs()
