"""A small network from scratch on drawn photos, judged on products it never saw; ours beside pytorch-metric-learning's.

    python .ci/bench_scratch.py --peer PYTHON [--products 180] [--views 8] [--size 64] [--epochs 16] [--seeds 3] [--rates 1e-3 2e-3] [--batches 16x4 21x3] [--decays 0 0.5]

Two thirds of the products are learned from, the rest is judged on: a query is one photo of those, searched among the others of them, a hit is a photo of
the same product. R@1: share of queries whose nearest photo is a hit; MAP@R as in metrics. The same network ('small', 128 numbers), photos at the same size, as many
photos seen, augmentation of the same strength, Adam with a rate that falls along a cosine. Each figure: mean over seeds and their standard deviation (catalog,
split and network change with the seed). --rates, --batches (products x photos), --decays (of weights, AdamW): of the peer, each combination is tried; ours are the recipe's.
PYTHON has torch and pytorch-metric-learning.
"""

import argparse, itertools, os, subprocess, tempfile, time
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
import numpy as np
from triplet_fashion.datasets import draw_catalog
from triplet_fashion.encoder import encode
from triplet_fashion.metrics import retrieval_metrics
from triplet_fashion.photos.loading import load_images
from triplet_fashion.training import fit

LOSSES = 'hard', 'semihard', 'multi-similarity', 'supcon'


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--peer')
    p.add_argument('--products', type=int, default=180)
    p.add_argument('--views', type=int, default=8)
    p.add_argument('--size', type=int, default=64)
    p.add_argument('--epochs', type=int, default=16)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--rates', nargs='+', type=float, default=[1e-3, 2e-3])
    p.add_argument('--ours', nargs='+', default=['hard'])
    p.add_argument('--batches', nargs='+', default=['16x4', '21x3'])
    p.add_argument('--decays', nargs='+', type=float, default=[0.0, 0.5])
    p.add_argument('--losses', nargs='+', default=LOSSES, choices=LOSSES, help='of the peer')
    p.add_argument('--first', type=int, default=0, help='seed to begin with')
    o = p.parse_args()
    got, size = {}, (o.size, o.size)
    for seed in range(o.first, o.first + o.seeds):
        with tempfile.TemporaryDirectory() as tmp:
            train, unseen = draw_catalog(
                Path(tmp) / 'photos', o.products, o.views, seed=seed
            ).split(valid=1 / 3, by='product', seed=seed)

            def score(e):
                return [
                    (m := retrieval_metrics(e, unseen.labels, ks=(1,)))['R@1'],
                    m['MAP@R'],
                ]

            for loss in o.ours:
                start = time.perf_counter()
                run = fit(
                    train,
                    recipe='scratch',
                    loss=loss,
                    size=size,
                    epochs=o.epochs,
                    seed=seed,
                    verbose=0,
                    monitor=None,
                )
                took = time.perf_counter() - start
                got.setdefault(f'triplet_fashion, {loss}', []).append(
                    [*score(encode(unseen, run.net)), took]
                )
            seen = o.epochs * run.plan['steps an epoch'] * run.recipe.P * run.recipe.K
            if not o.peer:
                continue
            np.savez(
                f'{tmp}/photos.npz',
                x=load_images(train.paths, size),
                y=train.labels,
                q=load_images(unseen.paths, size),
            )
            for loss, rate, batch, decay in itertools.product(
                o.losses, o.rates, o.batches, o.decays
            ):
                P, K = map(int, batch.split('x'))
                told = dict(
                    loss=loss,
                    seed=seed,
                    steps=round(seen / (P * K)),
                    rate=rate,
                    P=P,
                    K=K,
                    decay=decay,
                )
                subprocess.run(
                    [
                        o.peer,
                        Path(__file__).with_name('pml_small.py'),
                        f'{tmp}/photos.npz',
                        f'{tmp}/out.npz',
                        *(f'--{k}={v}' for k, v in told.items()),
                    ],
                    check=True,
                    stderr=subprocess.DEVNULL,
                )
                with np.load(f'{tmp}/out.npz') as z:
                    got.setdefault(
                        f'pytorch-metric-learning, {loss}, {rate:g}, {batch}, decay {decay:g}', []
                    ).append([*score(z['q']), float(z['seconds'])])
        print(
            f'seed {seed}: {len(train)} photos of {len(train.products)} products learned from, {len(unseen)} of {len(unseen.products)} judged on, {seen} photos seen',
            flush=True,
        )
    print('\n| | R@1 | MAP@R | seconds |\n|---|---|---|---|')
    for name, r in got.items():
        m, s = np.mean(r, 0), np.std(r, 0)
        print(
            f'| {name} | {m[0]:.3f} ± {s[0]:.3f} | {m[1]:.3f} ± {s[1]:.3f} | {np.median(r, 0)[2]:.0f} |',
            flush=True,
        )


if __name__ == '__main__':
    main()
