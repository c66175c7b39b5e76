"""How well recipes tell products apart that they have never seen, on a folder of real photos.

    python .ci/bench_products.py PRODUCTS --backbone FILE.keras [--distractors FOLDER] [--recipes strong products] [--splits 5] [--seeds 1]
    python .ci/bench_products.py PRODUCTS --queries FOLDER --backbone FILE.keras

PRODUCTS holds a folder of photos for each product. In each split 70 % of the products are learned from and the others are judged: a query is one photo of
those that has another of its product, searched among all of their photos and those of the distractors, and a hit is a photo of the same product. R@1, R@5: share of queries
with a hit among the 1 or 5 nearest. With --queries, a folder of other photos of the same products, those of the products held out are the queries, and all
photos of PRODUCTS are searched; those of the products learned from are learned from too. MAP@R as in metrics. Each figure is a mean over queries, splits and seeds. Ahead: the mean difference in R@1 from the
colour histogram on the same queries, with the interval (95 %) of it over products drawn anew. Seconds: of training, features computed before.
"""
import argparse
import os
import tempfile
import time
import warnings

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
import numpy as np
from triplet_fashion.base_network import base_network
from triplet_fashion.catalog import Catalog
from triplet_fashion.evaluation import BASELINES
from triplet_fashion.features import embed, features
from triplet_fashion.metrics import retrieval_metrics
from triplet_fashion.training import fit

FIGURES = 'R@1', 'R@5', 'MAP@R'


def names(catalog): return np.array([str(catalog.class_names[i]) for i in catalog.labels])


def judged(way, valid, others=None, queries=None):
    "Return the figures of an embedding: of queries in `valid`, or of its own photos, each among the others and the distractors."
    own = np.asarray(way(valid))
    if queries: return retrieval_metrics(np.asarray(way(queries)), names(queries), own, names(valid), ks=(1, 5))
    rest = np.asarray(way(others)) if others else np.empty((0, own.shape[1]), own.dtype)
    ids = np.arange(len(own) + len(rest))
    labels = names(valid).tolist() + [None]*len(rest)
    return retrieval_metrics(own, names(valid), np.concatenate([own, rest]), labels, ks=(1, 5),
                             query_ids=ids[:len(own)], gallery_ids=ids)


def parts(catalog, others, queries, seed):
    "Return the photos to learn from, and what `judged` takes after the embedding."
    train, valid = catalog.split(.3, seed=seed)
    if not queries: return train, (valid, others)
    mine = np.isin(names(queries), np.unique(names(train)))
    return train + queries.subset(mine), (catalog, None, queries.subset(~mine))


def trained(recipe, seed, train, args, store):
    "Return the embedding that a recipe learns from `train`, and the seconds it took."
    small = recipe == 'scratch'
    own = dict(backbone='small') if small else dict(backbone=args.backbone)
    how = dict(size=(96, 96) if small else (args.size, args.size), store=store)
    if not small:   # features first: they are kept for the run that is timed
        stages = 'all' if recipe == 'products' else 'last'
        net = base_network((args.size, args.size, 3), backbone=args.backbone, stages=stages, trainable=False)
        features(net, train, store)
    begun = time.perf_counter()
    run = fit(train, recipe=recipe, seed=seed, verbose=0, doctor=None, **how, **own)
    return (lambda c: embed(run.net, c, store)), time.perf_counter() - begun


def ahead(ours, base, n=2000):
    "Return the mean difference in R@1 over the same queries, and its interval over products drawn anew."
    gain = {}
    for split, (a, b) in enumerate(zip(ours, base)):
        for label, d in zip(a.labels[a.counted], a.per_query('R@1') - b.per_query('R@1')):
            gain.setdefault((split, label), []).append(d)
    total, count = (np.array([f(v) for v in gain.values()], float) for f in (sum, len))
    times = np.random.default_rng(0).multinomial(len(total), np.full(len(total), 1/len(total)), n)
    return total.sum()/count.sum(), *np.quantile(times@total/(times@count), (.025, .975))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('products')
    p.add_argument('--backbone', required=True)
    p.add_argument('--distractors')
    p.add_argument('--queries')
    p.add_argument('--recipes', nargs='+', default=['strong', 'products', 'scratch'])
    p.add_argument('--size', type=int, default=224)
    p.add_argument('--splits', type=int, default=5)
    p.add_argument('--seeds', type=int, default=1)
    args = p.parse_args()
    warnings.filterwarnings('ignore', 'optimizer')
    catalog = Catalog.of(args.products)
    others = Catalog.of(args.distractors) if args.distractors else None
    queries = Catalog.of(args.queries) if args.queries else None
    splits = [parts(catalog, others, queries, i) for i in range(args.splits)]
    histogram = [judged(BASELINES['colour histogram'], *photos) for _, photos in splits]
    print(f'{"way":20}' + ''.join(f'{f:>8}' for f in FIGURES) + '   ahead of the histogram   seconds', flush=True)

    def line(name, found, base, seconds=None):
        means = ''.join(f'{np.mean([r[f] for r in found]):8.3f}' for f in FIGURES)
        gain = '{:+.3f} ({:+.3f} to {:+.3f})'.format(*ahead(found, base))
        print(f'{name:20}{means}   {gain}' + (f'{np.median(seconds):10.0f}' if seconds else ''), flush=True)

    with tempfile.TemporaryDirectory() as store:
        for name in ('colour histogram', 'raw pixels'):
            line(name, [judged(BASELINES[name], *photos) for _, photos in splits], histogram)
        for stages in ('last', 'all'):
            net = base_network((args.size, args.size, 3), backbone=args.backbone, stages=stages, trainable=False)
            line(f'frozen, {stages}', [judged(lambda c: features(net, c, store), *photos) for _, photos in splits], histogram)
        for recipe in args.recipes:
            found, seconds = [], []
            for seed in range(args.seeds):
                for train, photos in splits:
                    way, took = trained(recipe, seed, train, args, store)
                    found.append(judged(way, *photos))
                    seconds.append(took)
            line(recipe, found, histogram*args.seeds, seconds)


if __name__ == '__main__': main()
