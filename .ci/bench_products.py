"""How well recipes tell products apart that they have never seen, on a folder of real photos.

    python .ci/bench_products.py PRODUCTS --backbone FILE.keras [--distractors FOLDER] [--recipes strong products] [--splits 5] [--seeds 1] [--peer PYTHON]
    python .ci/bench_products.py PRODUCTS --backbone FILE.keras --queries FOLDER
    python .ci/bench_products.py KINDS --backbone FILE.keras --seen FOLDER
    python .ci/bench_products.py --drawn [easy] --backbone FILE.keras

PRODUCTS holds a folder of photos for each product. In each split 70 % of the products are learned from and the others are judged: a query is one photo of
those that has another of its product, searched among all of their photos and those of the distractors, and a hit is a photo of the same product. R@1, R@5: share of
queries with a hit among the 1 or 5 nearest. MAP@R as in metrics. With --queries, a folder of other photos of the same products, those of the products held out are
the queries, and all photos of PRODUCTS are searched; those of the products learned from are learned from too. With --seen, a folder of other photos of the same
kinds, all photos of KINDS are learned from and searched, and those of the folder are the queries: the kinds are seen in training, the photos are not. With --drawn,
60 drawn products with four photos each, the harder setting or the easy one.

Each figure is a mean over queries, splits and seeds. Ahead: the mean difference in R@1 from the colour histogram on the same queries, with the interval (95 %) of it
over products drawn anew. Seconds: of training, features computed before. PYTHON has torch and pytorch-metric-learning: its SupCon and batch-hard train a head on the
features of recipe `products` (with --seen: `strong`), standardized; the last lines say how far each recipe is ahead of the better one of them.
"""

import argparse
import os
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
import numpy as np
from triplet_fashion.base_network import base_network, standardize
from triplet_fashion.catalog import Catalog
from triplet_fashion.datasets import draw_catalog
from triplet_fashion.evaluation import BASELINES
from triplet_fashion.encoder import Encoder
from triplet_fashion.features import features
from triplet_fashion.metrics import retrieval_metrics
from triplet_fashion.training import Recipe, fit

FIGURES = 'R@1', 'R@5', 'MAP@R'
PEERS = {
    'supcon': 2e-3,
    'hard': 3e-4,
}  # losses of pytorch-metric-learning, and rates for products; for kinds 3e-4


def names(catalog):
    return np.array([str(catalog.class_names[i]) for i in catalog.labels])


def judged(way, valid, others=None, queries=None):
    "Return the figures of an embedding: of queries in `valid`, or of its own photos, each among the others and the distractors."
    own = np.asarray(way(valid))
    if queries:
        return retrieval_metrics(
            np.asarray(way(queries)), names(queries), own, names(valid), ks=(1, 5)
        )
    rest = np.asarray(way(others)) if others else np.empty((0, own.shape[1]), own.dtype)
    ids = np.arange(len(own) + len(rest))
    labels = names(valid).tolist() + [None] * len(rest)
    return retrieval_metrics(
        own,
        names(valid),
        np.concatenate([own, rest]),
        labels,
        ks=(1, 5),
        query_ids=ids[: len(own)],
        gallery_ids=ids,
    )


def parts(catalog, others, queries, seen, seed):
    "Return the photos to learn from, and what `judged` takes after the embedding."
    if seen:
        return catalog, (catalog, None, seen)
    train, valid = catalog.split(0.3, seed=seed)
    if not queries:
        return train, (valid, others)
    mine = np.isin(names(queries), np.unique(names(train)))
    return train + queries.subset(mine), (catalog, None, queries.subset(~mine))


def frozen(args, stages, size):
    "Return the backbone under a head that has learned nothing."
    return base_network((size, size, 3), backbone=args.backbone, stages=stages, trainable=False)


def sizes(name, args):
    "Return the side of the photos that a recipe reads."
    if name == 'scratch':
        return args.scratch_size
    return args.size or Recipe.named(name, backbone=args.backbone).size


def trained(name, seed, train, args, store):
    "Return the embedding that a recipe learns from `train`, and the seconds it took."
    recipe = Recipe.named(name, backbone='small' if name == 'scratch' else args.backbone)
    size = sizes(name, args)
    if not recipe.trainable:
        features(frozen(args, recipe.stages, size), train, store)  # kept for the run that is timed
    begun = time.perf_counter()
    run = fit(
        train, recipe=recipe, seed=seed, verbose=0, monitor=None, size=size, feature_cache=store
    )
    return Encoder(run.net, feature_cache=store).encode, time.perf_counter() - begun


def by_peer(loss, seed, train, photos, args, store):
    "Return the embedding that pytorch-metric-learning learns from the features of the recipe, and the seconds it took."
    name = 'strong' if args.seen else 'products'
    recipe = Recipe.named(name, backbone=args.backbone)
    size, head = (
        sizes(name, args),
        {k: getattr(recipe, k) for k in ('stages', 'discriminant', 'colors')},
    )
    net = base_network((size, size, 3), backbone=args.backbone, trainable=False, **head)
    learned = features(net, train, store)
    first = standardize(net, learned).get_layer('standardize')

    def standardized(c):
        return np.asarray(first(features(net, c, store)))

    asked = [c for c in photos if c]
    rows = np.concatenate([standardized(c) for c in asked])
    how = (
        dict(loss=loss, seed=seed, rate=3e-4)
        if args.seen
        else dict(loss=loss, seed=seed, rate=PEERS[loss], hidden=0, batch='24x2', epochs=60)
    )
    with tempfile.TemporaryDirectory() as tmp:
        np.savez(f'{tmp}/in.npz', x=standardized(train), y=train.labels, q=rows)
        told = [f'--{k}={v}' for k, v in how.items()]
        script = Path(__file__).with_name('pml_head.py')
        subprocess.run(
            [args.peer, script, f'{tmp}/in.npz', f'{tmp}/out.npz', *told],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        with np.load(f'{tmp}/out.npz') as z:
            found, seconds = z['q'], float(z['seconds'])
    cuts = np.split(found, np.cumsum([len(c) for c in asked])[:-1])
    return (lambda c: next(e for a, e in zip(asked, cuts) if a is c)), seconds


def ahead(ours, base, n=2000):
    "Return the mean difference in R@1 over the same queries, and its interval over products drawn anew."
    gain = {}
    for split, (a, b) in enumerate(zip(ours, base)):
        for label, d in zip(
            a.ranks.labels[a.ranks.counted], a.per_query('R@1') - b.per_query('R@1')
        ):
            gain.setdefault((split, label), []).append(d)
    total, count = (np.array([f(v) for v in gain.values()], float) for f in (sum, len))
    times = np.random.default_rng(0).multinomial(len(total), np.full(len(total), 1 / len(total)), n)
    return total.sum() / count.sum(), *np.quantile(times @ total / (times @ count), (0.025, 0.975))


def line(name, found, base, seconds=None):
    "Print the figures of one way."
    means = ''.join(f'{np.mean([r[f] for r in found]):8.3f}' for f in FIGURES)
    gain = '{:+.3f} ({:+.3f} to {:+.3f})'.format(*ahead(found, base))
    print(
        f'{name:28}{means}   {gain}' + (f'{np.median(seconds):10.0f}' if seconds else ''),
        flush=True,
    )


def compared(args, splits, store):
    "Print a line for each way; return the figures of all that were trained."
    histogram = [judged(BASELINES['colour histogram'], *photos) for _, photos in splits]
    print(
        f'{"way":28}' + ''.join(f'{f:>8}' for f in FIGURES) + '   ahead of the histogram   seconds',
        flush=True,
    )
    line('colour histogram', histogram, histogram)
    line(
        'raw pixels', [judged(BASELINES['raw pixels'], *photos) for _, photos in splits], histogram
    )
    for stages in 'last', 'all':
        net = frozen(args, stages, args.size or 224)
        line(
            f'frozen, {stages}',
            [judged(lambda c: features(net, c, store), *photos) for _, photos in splits],
            histogram,
        )
    found = {}
    ways = [
        (name, lambda *o, name=name: trained(name, *o[:2], args, store)) for name in args.recipes
    ]
    if args.peer:
        ways += [
            (f'peer, {loss}', lambda *o, loss=loss: by_peer(loss, *o, args, store))
            for loss in PEERS
        ]
    for name, way in ways:
        rows = [(way(seed, *split), split[1]) for seed in range(args.seeds) for split in splits]
        found[name] = [judged(e, *photos) for (e, _), photos in rows]
        line(name, found[name], histogram * args.seeds, [t for (_, t), _ in rows])
    return found


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('products', nargs='?')
    p.add_argument('--backbone', required=True)
    p.add_argument('--distractors')
    p.add_argument('--queries')
    p.add_argument('--seen')
    p.add_argument('--drawn', nargs='?', const='hard', choices=('hard', 'easy'))
    p.add_argument('--recipes', nargs='+', default=['strong', 'products', 'scratch'])
    p.add_argument(
        '--size',
        type=int,
        help='side of the photos for the backbone (default: as each recipe says)',
    )
    p.add_argument('--scratch-size', type=int, default=96)
    p.add_argument('--splits', type=int, default=5)
    p.add_argument('--seeds', type=int, default=1)
    p.add_argument('--peer')
    args = p.parse_args()
    warnings.filterwarnings('ignore', 'optimizer')
    with tempfile.TemporaryDirectory() as tmp:
        photos = (
            draw_catalog(f'{tmp}/drawn', 60, 4, hard=args.drawn == 'hard')
            if args.drawn
            else Catalog.of(args.products)
        )
        others, queries, seen = (
            Catalog.of(o) if o else None for o in (args.distractors, args.queries, args.seen)
        )
        splits = [
            parts(photos, others, queries, seen, i) for i in range(1 if seen else args.splits)
        ]
        found = compared(args, splits, f'{tmp}/features')
        peers = [name for name in found if name.startswith('peer')]
        if not peers:
            return
        best = max(peers, key=lambda name: np.mean([r['R@1'] for r in found[name]]))
        for name in args.recipes:
            print(
                '{:28}{:+.3f} ({:+.3f} to {:+.3f}) ahead of {}'.format(
                    name, *ahead(found[name], found[best]), best
                )
            )


if __name__ == '__main__':
    main()
