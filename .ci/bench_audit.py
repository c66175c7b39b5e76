"""How long an audit takes and how much memory it needs, measured on this machine.

    python .ci/bench_audit.py [FOLDER] [--sizes 2000 20000]

FOLDER holds photos in folders by product or class, drawn ones of 400 x 533 if absent. Each size is a catalog of so many files in products
of 20: the photos of FOLDER, filled up with copies that are cropped, mirrored and saved anew, so that no two are the same file and few look alike.
Making them is not measured. Each catalog is audited in a process of its own, with near copies looked for.

    seconds    from the call of audit() to its result, files read from the disk's cache
    photos/s   photos examined per second of that time
    memory     peak resident memory of the process in MB (VmHWM); "start" is what it is before the audit, libraries imported
    found      photos to leave out, and pairs of copies
"""

import argparse, itertools, json, re, subprocess, sys, tempfile, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image


def make(photos, folder, n):
    "`n` different files: the photos in turn, each time cut and mirrored in another way."
    rng = np.random.default_rng(0)
    for i, p in enumerate(itertools.islice(itertools.cycle(photos), n)):
        out = folder / f'{i // 20:05}' / f'{i % 20:02}.jpg'
        out.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(p) as im:
            w, h = im.size
            x, y = rng.integers(0, w // 3), rng.integers(0, h // 3)
            im = im.convert('RGB').resize(
                (w, h), Image.Resampling.BILINEAR, box=(x, y, x + w * 2 // 3, y + h * 2 // 3)
            )
            if i // len(photos) % 2:
                im = im.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            im.save(out, quality=75)


def peak():
    return int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1]) // 1024


def audit(folder):
    "Run in a process of its own."
    from triplet_fashion.catalog import Catalog

    cat = Catalog.from_dir(folder)
    cat[:20].audit()
    start, t = peak(), time.perf_counter()
    found = cat.audit(progress=False)
    print(
        json.dumps(
            [
                len(cat),
                time.perf_counter() - t,
                start,
                peak(),
                len(found.table),
                len(found.duplicates),
            ]
        )
    )


def main():
    arg = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arg.add_argument('folder', nargs='?')
    arg.add_argument('--sizes', nargs='+', type=int, default=[2000, 20000])
    arg.add_argument('--audit', action='store_true', help=argparse.SUPPRESS)
    o = arg.parse_args()
    if o.audit:
        return audit(o.folder)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        if o.folder:
            photos = sorted(map(str, Path(o.folder).rglob('*.jpg')))
        else:
            from triplet_fashion.datasets import draw_catalog

            photos = draw_catalog(tmp / 'drawn', 60, 10, size=(533, 400)).paths
        print(f'{"photos":>8}{"seconds":>10}{"photos/s":>10}{"start":>8}{"memory":>8}   found')
        for n in o.sizes:
            make(photos, tmp / str(n), n)
            run = subprocess.run(
                [sys.executable, __file__, str(tmp / str(n)), '--audit'],
                capture_output=True,
                text=True,
                check=True,
            )
            n, seconds, start, top, out, pairs = json.loads(run.stdout.splitlines()[-1])
            print(
                f'{n:8,}{seconds:10.0f}{n / seconds:10.0f}{start:8}{top:8}   {out} to leave out, {pairs} pairs',
                flush=True,
            )


if __name__ == '__main__':
    main()
