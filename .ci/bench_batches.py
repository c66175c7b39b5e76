"""How fast photos become batches, measured side by side on this machine.

    python .ci/bench_batches.py [FOLDER] [--rounds N] [--only 300x300 400x533 750x1101 wait memory]

FOLDER holds photos in folders by product or class, drawn ones if absent. From them three sets are made in a temporary folder:
as they are (drawn: 400 x 533), 300 x 300 and 750 x 1101, saved by Pillow at quality 75. Every way runs once per round, one after
the other in the same process, the first round is not counted; images/s are medians over rounds, a ratio is the median of the ratios
within a round. A set is filled up with copies where FOLDER has fewer photos, so that a pass is long beside the time it takes to begin. Nothing is kept in memory (cache=False). Batches hold 32 photos of 224 x 224.

    bare          tf.data: read_file, decode_jpeg, tf.image.resize (four neighbours), AUTOTUNE, batch, prefetch
    bare, smooth  the same with antialias=True, every source pixel counted; a quarter of the photos
    full size     image_dataset with reduced decoding switched off: every pixel decoded, then four neighbours, in the same pipeline
    seed's way    flow_from_directory on the folders of two products for each batch, as the seed's generator; 3 x 16 photos. Both generators
                  get a Keras ImageDataGenerator: one that rescales, and one ("moves") that flips, turns and zooms too; each is compared with its like
    wait          share of a training step spent waiting for the next batch: small network at 64 x 64, P=10, K=4, augmented
    memory        peak resident memory in MB (VmHWM) of a process that takes 40 batches of 8 x 4 photos of 224 x 224 out of so many paths; "imports" is one that takes none.
                  cache=False keeps nothing; 'auto', the default of pk_dataset and triplet_dataset, keeps up to 512 MB of pixels: of 2,000 photos 301 MB, of 20,000 none
"""

import argparse, contextlib, glob, itertools, os, random, re, subprocess, sys, tempfile, time, warnings
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

SETS = {'300x300': ((300, 300), 6800), '400x533': (None, 6800), '750x1101': ((750, 1101), 2400)}


def make_set(photos, folder, size, n):
    "`n` of the photos in folders of products of 20, resaved at `size`, or linked as they are."
    paths = []
    for i, p in enumerate(
        itertools.islice(itertools.cycle(photos[:: max(1, len(photos) // n)]), n)
    ):
        out = folder / f'{i // 20:03}' / f'{i % 20:03}.jpg'
        out.parent.mkdir(parents=True, exist_ok=True)
        if size:
            Image.open(p).convert('RGB').resize(size, Image.Resampling.BICUBIC).save(
                out, quality=75
            )
        else:
            out.symlink_to(os.path.abspath(p))
        paths.append(str(out))
    return paths


def bare(paths, **kw):
    import tensorflow as tf

    def read(p):
        return tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(p), channels=3), (224, 224), **kw)

    return (
        tf.data.Dataset.from_tensor_slices(paths)
        .map(read, tf.data.AUTOTUNE)
        .batch(32)
        .prefetch(tf.data.AUTOTUNE)
    )


def full_size(cat):
    "image_dataset that decodes every pixel, as its plan is made here where the reduction of a photo is said to be 1."
    from triplet_fashion.generator import image_dataset
    from triplet_fashion.photos import image

    ds, before = image_dataset(cat, cache=False), (image.dct_scale, image.reduce_factors)
    image.dct_scale, image.reduce_factors = lambda *a: 1, lambda *a: (1, 1)
    for _ in ds:
        pass
    image.dct_scale, image.reduce_factors = before
    return ds


def keras_generators():
    "A generator that only rescales, and one that moves photos too."
    import tensorflow as tf

    make = tf.keras.preprocessing.image.ImageDataGenerator
    return {
        '': make(rescale=1 / 255),
        ', moves': make(rescale=1 / 255, horizontal_flip=True, rotation_range=20, zoom_range=0.2),
    }


def seeds_way(folder, gen, batches):
    "Anchors, positives and negatives from three fresh directory iterators a batch."
    products = sorted(os.listdir(folder))
    for _ in range(batches):
        a, n = random.sample(products, 2)
        yield tuple(
            next(
                gen.flow_from_directory(folder, classes=[c], target_size=(224, 224), batch_size=16)
            )[0]
            for c in (a, a, n)
        )


def count(ds):
    "(photos a second, photos a second of CPU time)."
    t, c, n = time.perf_counter(), time.process_time(), 0
    for batch in ds:
        x = batch[0] if len(batch) == 2 else batch
        n += sum(len(o) for o in x) if isinstance(x, tuple) else len(x)
    return n / (time.perf_counter() - t), n / (time.process_time() - c)


def speed(name, paths, folder, rounds):
    import io
    from triplet_fashion.catalog import Catalog
    from triplet_fashion.generator import (
        image_dataset,
        input_triplet_gen,
        pk_dataset,
        triplet_dataset,
    )

    cat = Catalog.from_dir(folder)
    ways = {
        'bare': bare(paths),
        'bare, smooth': bare(paths[::4], antialias=True),
        'full size': full_size(cat),
        'image_dataset': image_dataset(cat, cache=False),
        'pk_dataset': pk_dataset(cat, 8, 4, cache=False),
        'triplet_dataset': triplet_dataset(cat, 16, steps=len(cat) // 48 + 1, cache=False),
    }
    if name != '750x1101':
        for what, gen in keras_generators().items():
            it = input_triplet_gen(gen, folder, batch_size=16, cache=False)
            ways |= {
                f'input_triplet_gen{what}': lambda it=it, n=len(paths) // (192 if what else 48): (
                    itertools.islice(it, n)
                ),
                f"seed's way{what}": lambda gen=gen: seeds_way(folder, gen, 6),
            }
    got = {k: [] for k in ways}
    for _ in range(rounds + 1):
        for k, ds in ways.items():
            with contextlib.redirect_stdout(io.StringIO()):
                got[k].append(count(ds() if callable(ds) else ds))
    got, against = (
        {k: np.array(v[1:]).T for k, v in got.items()},
        [o for o in ('bare', 'full size', 'bare, smooth', "seed's way") if o in ways],
    )

    def like(k, o):
        return got[o + ', moves' if o == "seed's way" and k.endswith('moves') else o]

    print(
        f'\n{name}: {len(paths)} photos, {rounds} rounds; in brackets: ratio of photos per second of CPU time\n{"":26}{"images/s":>10}'
        + ''.join(f'{"/ " + o:>20}' for o in against)
    )
    for k, (v, cpu) in got.items():
        print(
            f'{k:26}{np.median(v):10.0f}'
            + ''.join(
                f'{np.median(v / like(k, o)[0]):13.2f} ({np.median(cpu / like(k, o)[1]):.2f})'
                for o in against
            ),
            flush=True,
        )


def wait(folder, cached, steps=120):
    "Share of the time of training steps spent in waiting for data."
    import keras
    from triplet_fashion.base_network import base_network
    from triplet_fashion.catalog import Catalog
    from triplet_fashion.generator import pk_dataset
    from triplet_fashion.mining import BatchTripletLoss

    net = base_network((64, 64, 3), 64, backbone='small', hidden=(), activation='l2')
    net.compile(keras.optimizers.Adam(1e-3), BatchTripletLoss(mining='hard', margin=0.5))
    it, waits, works = (
        iter(
            pk_dataset(
                Catalog.from_dir(folder),
                10,
                4,
                (64, 64),
                steps=steps + 20,
                augment=True,
                cache=cached,
            )
        ),
        [],
        [],
    )
    for i in range(steps + 20):
        t0 = time.perf_counter()
        x, y = next(it)
        t1 = time.perf_counter()
        net.train_on_batch(x, y)
        t2 = time.perf_counter()
        if i >= 20:
            waits.append(t1 - t0)
            works.append(t2 - t1)
    print(
        f'{"photos kept in memory" if cached else "every photo decoded each time":32} waiting {sum(waits) / (sum(waits) + sum(works)):6.1%} of the step; median wait {np.median(waits) * 1e3:.1f} ms, work {np.median(works) * 1e3:.1f} ms',
        flush=True,
    )


def memory(paths, n, cache):
    "Run in a process of its own. Its ru_maxrss would not do: a child is born with that of its parent."
    from triplet_fashion.catalog import Catalog
    from triplet_fashion.generator import pk_dataset

    many = [paths[i % len(paths)] for i in range(n)]
    cat = Catalog(many, np.arange(n) // 20, [str(i) for i in range(n // 20)])
    for batch in pk_dataset(cat, 8, 4, steps=40, cache=cache) if n else ():
        pass
    print(int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1]) // 1024)


def main():
    arg = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arg.add_argument('folder', nargs='?')
    arg.add_argument('--rounds', type=int, default=5)
    arg.add_argument('--only', nargs='+', default=[*SETS, 'wait', 'memory'])
    arg.add_argument('--memory', type=int, help=argparse.SUPPRESS)
    arg.add_argument('--cache', action='store_true', help=argparse.SUPPRESS)
    o = arg.parse_args()
    warnings.simplefilter('ignore')
    if o.memory is not None:
        return memory(
            sorted(glob.glob(f'{o.folder}/*/*.jpg')), o.memory, 'auto' if o.cache else False
        )
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        if o.folder:
            photos = sorted(p for p in map(str, Path(o.folder).rglob('*.jpg')))
        else:
            from triplet_fashion.datasets import draw_catalog

            photos = draw_catalog(tmp / 'drawn', 40, 10, size=(533, 400)).paths
        sets = {
            k: make_set(photos, tmp / k, *v)
            for k, v in SETS.items()
            if k in o.only or k == '400x533'
        }
        for k in sets:
            if k in o.only:
                speed(k, sets[k], str(tmp / k), o.rounds)
        if 'wait' in o.only:
            print()
            for cached in (True, False):
                wait(str(tmp / '400x533'), cached)
        if 'memory' in o.only:
            print()
            for n, cache in (
                (0, False),
                (2_000, False),
                (20_000, False),
                (2_000, True),
                (20_000, True),
            ):
                run = [
                    sys.executable,
                    __file__,
                    str(tmp / '400x533'),
                    '--memory',
                    str(n),
                    *['--cache'] * cache,
                ]
                name = f'{n:6} paths, cache={"auto" if cache else False}' if n else 'imports'
                print(
                    f'{name:28} {subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip():>5} MB at most',
                    flush=True,
                )


if __name__ == '__main__':
    main()
