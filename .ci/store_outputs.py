"""Run notebooks and store their outputs in them, as the docs show stored outputs only.

    python .ci/store_outputs.py                  # every notebook, in order
    python .ci/store_outputs.py 00_loss index    # these
    python .ci/store_outputs.py --slow           # `#| slow` cells too

Cells marked `#| eval: false` or `#| slow` are left as they are, output included. What a notebook writes to
stderr is not stored. A notebook that fails is left untouched, and the exit status says so. Photos are
stored as JPEG, plots as PNG of 256 colours, whichever is smaller.
"""

import argparse, base64, io, os, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
quiet = dict(TF_CPP_MIN_LOG_LEVEL='3', PYTHONHASHSEED='0', IN_TEST='1', COLUMNS='100')


def base64_of(im, *args, **kw):
    "Return a picture as a file in base64."
    out = io.BytesIO()
    im.save(out, *args, **kw)
    return base64.b64encode(out.getvalue()).decode()


def compress_picture(data, sizes):
    """Store a picture once, in the smaller form: photos as JPEG, plots as PNG of 256 colours.

    `data` and `sizes` are the `data` and `metadata` of an output."""
    from PIL import Image

    png = ''.join(data['image/png'])
    im = Image.open(io.BytesIO(base64.b64decode(png)))
    dpi, layers = im.info.get('dpi', (100, 100)), im.convert('RGBA')
    page = Image.new('RGB', im.size, 'white')
    page.paste(layers, mask=layers.getchannel('A'))
    jpeg = ''.join(data.pop('image/jpeg', '')) or base64_of(page, 'JPEG', quality=88)
    if len(jpeg) < len(png) / 2:
        del data['image/png']
        data['image/jpeg'] = jpeg
        if sizes.pop('image/png', None):  # as wide as drawn, at 100 pixels an inch
            width, height = (round(100 * side / dpi[0]) for side in im.size)
            sizes['image/jpeg'] = dict(width=width, height=height)
    elif page.getcolors(5_000):  # a plot; more are a photo in a plot, whose colours would change
        small = page.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        small = base64_of(small, 'PNG', optimize=True, dpi=dpi)
        if len(small) < len(png):
            data['image/png'] = small


def store(path, slow=False):
    "Run one notebook in this process and write it back with its outputs."
    from execnb.nbio import write_nb
    from execnb.shell import CaptureShell
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    from nbdev.process import NBProcessor

    nb = NBProcessor(path, rm_directives=False, process=True).nb
    flags = set() if slow else set(get_config().tst_flags.split())

    def skip(cell):
        directives = getattr(cell, 'directives_', None) or {}
        off = directives.get('eval:', [''])[0].lower() == 'false' or bool(flags & directives.keys())
        if cell.cell_type == 'code' and not off:
            cell.outputs = []
        return off

    shell = CaptureShell(path)
    os.chdir(path.parent)
    try:
        shell.run_all(nb, exc_stop=True, preproc=skip)
    except Exception:
        sys.exit(shell.prettytb(fname=path))
    for cell in nb.cells:
        if cell.cell_type != 'code':
            continue
        cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']
    outputs = [out for cell in nb.cells for out in cell.get('outputs', [])]
    for out in outputs if path.stem != 'index' else []:  # README's pictures are files of their own
        if 'image/png' not in out.get('data', {}):
            continue
        compress_picture(out['data'], out.setdefault('metadata', {}))
    clean_nb(nb)
    write_nb(nb, path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('names', nargs='*', help='notebooks by name, without the ending')
    parser.add_argument('--slow', action='store_true', help='run cells marked slow as well')
    parser.add_argument('--here', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    paths = sorted(
        p
        for p in (root / 'nbs').rglob('*.ipynb')
        if not any(s[0] in '._' for s in p.relative_to(root).parts)
    )
    if args.names:
        paths = [p for p in paths if p.stem in args.names]
    missing = set(args.names) - {p.stem for p in paths}
    if missing:
        parser.error(f'no such notebook: {", ".join(sorted(missing))}')
    if args.here:
        sys.path.insert(0, str(root))
        return store(paths[0], args.slow)
    failed = []
    for path in paths:  # a process each: no notebook sees another's imports, seeds or figures
        print(f'running {path.relative_to(root)}', flush=True)
        call = [sys.executable, __file__, path.stem, '--here'] + ['--slow'] * args.slow
        if subprocess.run(call, env={**os.environ, **quiet}).returncode:
            failed.append(path.stem)
    if failed:
        sys.exit(f'failed: {" ".join(failed)}')


if __name__ == '__main__':
    main()
