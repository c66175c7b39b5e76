"""What was tried for better embeddings of products never seen, beside the recipe `products`.

    python .ci/bench_embeddings.py PRODUCTS --backbone FILE.keras [--distractors FOLDER]
    python .ci/bench_embeddings.py PRODUCTS --backbone FILE.keras --queries FOLDER

PRODUCTS holds a folder of photos for each product. In each split, numbered from --first on, 70 %
of the products are learned from and the others are judged. A query is one photo of those that has
another of its product, searched among all of their photos and those of the distractors; with
--queries it is a photo in that folder of a product held out, searched among all photos of
PRODUCTS, and those of the products learned from are learned from too. A hit is a photo of the same
product. R@1, R@5: share of queries with a hit among the 1 or 5 nearest; MAP@R as in metrics; means
over queries, splits and seeds. Gain: mean difference from the recipe `products` over the same
queries, splits and seeds, with its interval (95 %) over products drawn anew.

Features are computed once, of each photo and of the mirrored one.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
import numpy as np
import tensorflow as tf
from triplet_fashion.base_network import (
    backbone_of,
    base_network,
    head_of,
    refinalize_normalization,
)
from triplet_fashion.catalog import Catalog
from triplet_fashion.contrastive import SupConLoss
from triplet_fashion.discriminant import discriminant
from triplet_fashion.encoder import FeatureCache
from triplet_fashion.metrics import retrieval_metrics
from triplet_fashion.runs.recipes import Recipe
from triplet_fashion.runs.stages import TrainingSet, head_stage

FIGURES = 'R@1', 'R@5', 'MAP@R'
BASE = 'recipe products'


class SmoothSupCon(SupConLoss):
    "SupCon in which each anchor should find, by a share `eps`, photos of other products."

    def __init__(self, eps=0.1, **kwargs):
        super().__init__(**kwargs)
        self.eps = eps

    def compute(self, embeddings, pairs, memory=None):
        "Compute losses of anchors (b,): between those of the right pairs and of all the others."
        own = super().compute(embeddings, pairs, memory)
        cosines = tf.matmul(embeddings, embeddings, transpose_b=True) / self.temperature
        seen = tf.where(pairs.positive | pairs.negative, cosines, -1e9)
        shares = cosines - tf.reduce_logsumexp(seen, axis=1, keepdims=True)
        negative = tf.cast(pairs.negative, cosines.dtype)
        others = tf.math.divide_no_nan(
            tf.reduce_sum(shares * negative, axis=1), tf.reduce_sum(negative, axis=1)
        )
        return (1 - self.eps) * own - self.eps * tf.where(pairs.valid, others, 0)


class Rows(NamedTuple):
    "Features of photos, of the mirrored ones, and the product of each."

    plain: np.ndarray
    mirrored: np.ndarray
    names: np.ndarray

    def subset(self, some):
        return Rows(*(o[some] for o in self))

    def with_rows(self, other):
        return Rows(*(np.concatenate(pair) for pair in zip(self, other)))


class Split(NamedTuple):
    "What is learned from, what asks, what is searched, and whether the queries are its first rows."

    train: Rows
    queries: Rows
    gallery: Rows
    own: bool


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def catalog_of(names):
    "Return a catalog of rows: no photo is read any more."
    return Catalog([f'/{n}/{i}.jpg' for i, n in enumerate(names)], names, root='/')


def mirror(photos, seed):
    return photos[:, :, ::-1]


def rows_of(net, folder, cache, is_distractor=False):
    "Compute the features of photos in a folder; a distractor is a product of its own."
    catalog, model = Catalog.of(folder), backbone_of(net)
    names = np.array([str(catalog.class_names[i]) for i in catalog.labels])
    if is_distractor:
        names = np.array([f'distractor {i}' for i in range(len(names))])
    ways = {}, dict(augment=mirror)
    return Rows(*(cache.get(model, catalog, dtype='float32', **way)[:, 0] for way in ways), names)


def split_of(photos, seed, others=None, queries=None):
    "Return the parts of a split."
    train = catalog_of(photos.names).split(0.3, seed=seed)[0]
    learned = np.unique([str(train.class_names[i]) for i in train.labels])
    is_learned = np.isin(photos.names, learned)
    mine, held = photos.subset(is_learned), photos.subset(~is_learned)
    if queries is None:
        return Split(mine, held, held if others is None else held.with_rows(others), True)
    known = np.isin(queries.names, learned)
    return Split(mine.with_rows(queries.subset(known)), queries.subset(~known), photos, False)


def judged(embed, split, flip=False):
    "Return the metrics of an embedding, a function of features."

    def rows(part):
        e = embed(part.plain)
        return unit(e + embed(part.mirrored)) if flip else e

    ids = np.arange(len(split.gallery.names))
    how = dict(query_ids=ids[: len(split.queries.names)], gallery_ids=ids) if split.own else {}
    q, g = split.queries, split.gallery
    return retrieval_metrics(rows(q), q.names, rows(g), g.names, ks=(1, 5), **how)


def trained(net, split, seed, start, **changes):
    "Return the embedding, a function of features, that the head of `products` learns."
    net.set_weights(start)
    refinalize_normalization(net)
    names = split.train.names
    recipe = Recipe.named('products', backbone=net, **changes).fitted_to(catalog_of(names))
    train = TrainingSet(catalog_of(names), split.train.plain)
    steps = train.batches(recipe, seed).info['steps'] * recipe.epochs
    head_stage(net, recipe, train, seed=seed, steps=steps).run(monitor=None)
    head = head_of(net)
    parts = {id(rows): np.asarray(head(rows)) for part in split[:3] for rows in part[:2]}
    return lambda rows: parts[id(rows)]


def of_columns(net, split, columns, colors):
    "Return the discriminant of some of the features, and that of the colours beside it."
    x, names = split.train.plain, split.train.names
    mean, deviation = (f(x[:, columns], axis=0, dtype='float64') for f in (np.mean, np.std))
    deviation = np.maximum(deviation, 1e-3 * deviation.mean())
    some, shift = discriminant((x[:, columns] - mean) / deviation, names, 64)
    hues, hue_shift = discriminant(x[:, colors], names, 64, shrinkage=1.0)

    def embed(rows):
        a = (rows[:, columns] - mean) / deviation @ some + shift
        return unit(np.concatenate([a, 0.5 * (rows[:, colors] @ hues + hue_shift)], axis=1))

    return embed


def side_by_side(embeds, split, dims=128):
    "Return embeddings beside each other, turned to the `dims` directions in which photos differ."

    def joined(rows):
        return np.concatenate([embed(rows) for embed in embeds], axis=1)

    learned = joined(split.train.plain)
    directions = np.linalg.svd(learned - learned.mean(axis=0), full_matrices=False)[2][:dims].T
    return lambda rows: unit(joined(rows) @ directions)


def mean_of(embeds):
    return lambda rows: unit(sum(embed(rows) for embed in embeds))


def ways(net, split, seed, start):
    "Yield (way, embedding, whether photos are mirrored) of a split and a seed."

    def head(seed=seed, **changes):
        return trained(net, split, seed, start, **changes)

    n, n_colors = split.train.plain.shape[1], 512
    colors, features = np.arange(n - n_colors, n), np.arange(n - n_colors)
    base = head()
    yield BASE, base, False
    yield 'its start, the discriminants alone', of_columns(net, split, features, colors), False
    yield 'a photo and its mirrored one', base, True
    seeds = [base, *(head(seed + 100 * i) for i in (1, 2))]
    yield 'three heads, seeds, PCA', side_by_side(seeds, split), False
    yield 'three heads, seeds, mean', mean_of(seeds), False
    losses = [base, *(head(loss=loss) for loss in ('hard', 'multi-similarity'))]
    yield 'three heads, losses, PCA', side_by_side(losses, split), False
    thirds = [of_columns(net, split, part, colors) for part in np.array_split(features, 3)]
    yield 'discriminants of three parts, PCA', side_by_side(thirds, split), False
    whole = of_columns(net, split, features, colors)
    yield 'those and the whole, PCA', side_by_side([*thirds, whole], split), False
    rng = np.random.default_rng(seed)
    some = [rng.permutation(features)[: len(features) // 4] for _ in range(10)]
    random = [of_columns(net, split, columns, colors) for columns in some]
    yield 'discriminants of ten random quarters, PCA', side_by_side(random, split), False
    for eps in 0.05, 0.1:
        yield f'label smoothing {eps}', head(loss=SmoothSupCon(eps)), False
    for ema in 0.9, 0.97:
        yield f'averaged weights, {ema}', head(ema=ema), False


def gain(ours, base, figure, n=2000):
    "Return the mean difference over the same queries, and its interval over products drawn anew."
    found = {}
    for a, b in zip(ours, base):
        labels = a.ranks.labels[a.ranks.counted]
        for label, d in zip(labels, a.per_query(figure) - b.per_query(figure)):
            found.setdefault(label, []).append(d)
    total, count = (np.array([f(v) for v in found.values()], float) for f in (sum, len))
    times = np.random.default_rng(0).multinomial(len(total), np.full(len(total), 1 / len(total)), n)
    return total.sum() / count.sum(), *np.quantile(times @ total / (times @ count), (0.025, 0.975))


def table(found, base):
    "Print a row for each way."
    print(f'{"way":44}' + ''.join(f'{f:>7}' for f in FIGURES) + '   gain in R@1, in MAP@R')
    for way, metrics in found.items():
        means = ''.join(f'{np.mean([m[f] for m in metrics]):7.3f}' for f in FIGURES)
        gains = (gain(metrics, found[base], f) for f in ('R@1', 'MAP@R'))
        said = ', '.join('{:+.3f} ({:+.3f} to {:+.3f})'.format(*g) for g in gains)
        print(f'{way:44}{means}   {said}')


def heads(args, folder):
    "Compare heads on features computed once."
    recipe = Recipe.named('products', backbone=args.backbone)
    head = {k: getattr(recipe, k) for k in ('discriminant', 'colors', 'hidden', 'dropout')}
    net = base_network(
        (*recipe.sides, 3), backbone=args.backbone, stages='all', activation='l2',
        trainable=False, **head,
    )  # fmt: skip
    start, cache = net.get_weights(), FeatureCache(folder)
    photos = rows_of(net, args.products, cache)
    others = rows_of(net, args.distractors, cache, True) if args.distractors else None
    queries = rows_of(net, args.queries, cache) if args.queries else None
    found = {}
    for number in range(args.first, args.first + args.splits):
        split = split_of(photos, number, others, queries)
        for seed in range(args.seeds):
            for way, embed, flip in ways(net, split, seed, start):
                found.setdefault(way, []).append(judged(embed, split, flip))
    table(found, BASE)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('products')
    p.add_argument('--backbone', required=True)
    p.add_argument('--distractors')
    p.add_argument('--queries')
    p.add_argument('--first', type=int, default=0, help='number of the first split')
    p.add_argument('--splits', type=int, default=5)
    p.add_argument('--seeds', type=int, default=2)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        heads(args, Path(folder))


if __name__ == '__main__':
    main()
