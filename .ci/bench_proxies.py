"""Losses with and without proxies, for many products with few photos: heads on frozen features.

    python .ci/bench_proxies.py --backbone FILE.keras [--products 1400] [--views 3] [--seeds 3]
    python .ci/bench_proxies.py --backbone FILE.keras --folder PRODUCTS
    python .ci/bench_proxies.py --backbone FILE.keras --kinds TRAIN VALIDATION
    python .ci/bench_proxies.py --backbone FILE.keras --noise 0.25 --products 200 --views 10

Drawn products (the harder setting), or with --folder a folder of photos for each product. The
products are parted: 50 % are learned from, on 20 % each loss chooses its setting and rate by MAP@R
(one run each, as many for every loss), the other 30 % are judged. A query is a photo of a judged
product, searched among all other photos of judged products; a hit shows the same product. With
--kinds two folders of photos of the same kinds: what is learned from is searched, half of the
photos of VALIDATION are the queries on which settings are chosen, the other half are judged.
--noise is the share of the photos learned from whose labels are shuffled among themselves;
what is searched or judged keeps its own.

Every row: the same features, start, epochs, batches and photos (recipe `products`, with --kinds
`strong`, or --recipe). R@1: share of queries whose nearest photo is a hit. MAP@R as in metrics.
Each is the mean over seeds; in brackets the interval (95 %) over products (with --kinds: over
queries), drawn 1,000 times with replacement. Ahead: the mean difference in MAP@R from the first
loss on the same queries, with its interval. Seconds: median wall time of a training. --store keeps
drawings and features.
"""

import argparse
import os
import tempfile
import time
import warnings

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
import keras
import numpy as np

from triplet_fashion.base_network import base_network, separate, standardize
from triplet_fashion.catalog import Catalog
from triplet_fashion.contrastive import MultiSimilarityLoss, SupConLoss
from triplet_fashion.datasets import draw_catalog
from triplet_fashion.encoder import Encoder
from triplet_fashion.features import features
from triplet_fashion.metrics import retrieval_metrics
from triplet_fashion.proxies import ProxyAnchorLoss, SubCenterArcFaceLoss
from triplet_fashion.training import Recipe, fit

SETTINGS = {
    'supcon': (SupConLoss, [dict(temperature=0.1), dict(temperature=0.2)]),
    'multi-similarity': (MultiSimilarityLoss, [{}, dict(mining=0.1)]),
    'proxy-anchor': (ProxyAnchorLoss, [dict(alpha=32), dict(alpha=8)]),
    'arcface': (
        SubCenterArcFaceLoss,
        [dict(sub_centers=1, scale=8, margin=0.5), dict(sub_centers=1, scale=16, margin=0.3)],
    ),
    'sub-center arcface': (
        SubCenterArcFaceLoss,
        [dict(sub_centers=2, scale=8, margin=0.5), dict(sub_centers=2, scale=16, margin=0.3)],
    ),
}


class Judged:
    "Photos that are asked about, and where they are searched."

    def __init__(self, queries, gallery=None):
        self.queries, self.gallery = queries, gallery

    def by(self, encode):
        "Return the metrics of an embedding."
        own = encode(self.queries), self.queries.labels
        if self.gallery is None:
            return retrieval_metrics(*own, ks=(1,))
        return retrieval_metrics(*own, encode(self.gallery), self.gallery.labels, ks=(1,))


def parts(args, tmp):
    "Return the photos to learn from, those to choose on and those to judge on."
    if args.kinds:
        train = Catalog.of(args.kinds[0])
        asked = Catalog.from_dir(args.kinds[1], class_names=train.class_names)
        choose, judge = asked.split(0.5, by='photo', seed=0)
        return train, Judged(choose, train), Judged(judge, train)
    if args.folder:
        photos = Catalog.of(args.folder)
    else:
        photos = draw_catalog(
            f'{args.store or tmp}/drawn', args.products, args.views, size=(96, 96), hard=True
        )
    rest, judge = photos.split(0.3, seed=0)
    train, choose = rest.split(2 / 7, seed=0)
    return train, Judged(choose), Judged(judge)


def with_noise(train, share):
    "Return photos of which a share have their labels shuffled."
    rng, labels = np.random.default_rng(0), train.labels.copy()
    some = rng.permutation(len(labels))[: round(share * len(labels))]
    labels[some] = labels[rng.permutation(some)]
    return Catalog(train.paths, labels, train.class_names, train.root)


class Networks:
    "Networks whose heads begin at the same standardization and discriminant, computed once."

    def __init__(self, train, args, store):
        self.args, self.recipe = (
            args,
            Recipe.named(args.recipe, backbone=args.backbone),
        )
        net, self.set = self.plain(), {}
        x = features(net, train, store)
        separate(standardize(net, x), x, train.labels)
        for layer in net.layers:
            if layer.name in ('standardize', 'discriminant'):
                self.set[layer.name] = layer.get_weights()

    def plain(self):
        "Return a network that has learned nothing."
        names = 'hidden', 'activation', 'dropout', 'stages', 'discriminant', 'colors'
        how = {k: getattr(self.recipe, k) for k in names}
        side = self.args.size
        return base_network(
            (side, side, 3), self.recipe.out_dims, self.args.backbone, trainable=False, **how
        )

    def of_seed(self, seed):
        "Return a network whose other weights are drawn by a seed."
        keras.utils.set_random_seed(seed)
        net = self.plain()
        for name, weights in self.set.items():
            net.get_layer(name).set_weights(weights)
        return net


def trained(loss, rate, seed, train, networks, store):
    "Return the embedding that a loss teaches, and the seconds it took."
    net, begun = networks.of_seed(seed), time.perf_counter()
    fit(
        train,
        net=net,
        recipe=networks.recipe.name,
        loss=loss,
        learning_rate=rate,
        epochs=networks.args.epochs,
        seed=seed,
        verbose=0,
        monitor=None,
        feature_cache=store,
    )
    took = time.perf_counter() - begun
    return Encoder(net, feature_cache=store).encode, took


def chosen(name, train, judged, networks, store):
    "Return the setting and rate of a loss that are best by MAP@R."
    make, settings = SETTINGS[name]
    best = {}
    for i, setting in enumerate(settings):
        for rate in networks.args.rates:
            encode, _ = trained(make(**setting), rate, 0, train, networks, store)
            best[i, rate] = judged.by(encode)['MAP@R']
    if networks.args.show:
        for (i, rate), score in best.items():
            print(f'    {name} {settings[i]} {rate:g}: MAP@R {score:.3f}', flush=True)
    i, rate = max(best, key=best.get)
    return settings[i], rate


def interval(values, groups, n=1000):
    "Return the mean of values of queries, and its interval over groups drawn anew."
    ids, inverse = np.unique(groups, return_inverse=True)
    total, count = (np.bincount(inverse, w, len(ids)) for w in (values, np.ones(len(values))))
    times = np.random.default_rng(0).multinomial(len(ids), np.full(len(ids), 1 / len(ids)), n)
    low, high = np.quantile(times @ total / (times @ count), (0.025, 0.975))
    return values.mean(), low, high


def row(found, base, seconds, by_product):
    "Return the figures of a loss, in words."
    counted = found[0].ranks.counted
    groups = found[0].ranks.labels[counted] if by_product else np.arange(counted.sum())
    cells = []
    each = {k: np.mean([f.per_query(k) for f in found], axis=0) for k in ('R@1', 'MAP@R')}
    for values in each.values():
        cells.append('{:.3f} [{:.3f}, {:.3f}]'.format(*interval(values, groups)))
    gain = each['MAP@R'] - np.mean([f.per_query('MAP@R') for f in base], axis=0)
    cells.append('{:+.3f} [{:+.3f}, {:+.3f}]'.format(*interval(gain, groups)))
    return ' | '.join([*cells, f'{np.median(seconds):.0f}'])


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--backbone', required=True)
    p.add_argument('--products', type=int, default=1400)
    p.add_argument('--views', type=int, default=3)
    p.add_argument('--folder')
    p.add_argument('--kinds', nargs=2, metavar=('TRAIN', 'VALIDATION'))
    p.add_argument('--noise', type=float, default=0.0, help='share of labels that are shuffled')
    p.add_argument('--recipe', help='strong or products; left out: as above')
    p.add_argument('--rates', nargs='+', type=float, default=[5e-4, 2e-3], help='to choose from')
    p.add_argument('--size', type=int, default=96)
    p.add_argument('--epochs', type=int, default=20)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--only', nargs='*', choices=SETTINGS, default=[*SETTINGS])
    p.add_argument('--store', help='a folder that keeps what is drawn, and its features')
    p.add_argument('--show', action='store_true', help='print the scores of all settings')
    args = p.parse_args()
    args.recipe = args.recipe or ('strong' if args.kinds else 'products')
    warnings.filterwarnings('ignore')
    with tempfile.TemporaryDirectory() as tmp:
        store = f'{args.store or tmp}/features'
        train, choose, judge = parts(args, tmp)
        given, train = train.labels, with_noise(train, args.noise)
        wrong = np.mean(given != train.labels)
        print(
            f'{len(train):,} photos of {len(train.products):,} products learned from, '
            f'{wrong:.1%} with wrong labels; settings chosen on '
            f'{len(choose.queries):,} queries, judged on {len(judge.queries):,}; '
            f'{args.seeds} seeds\n'
        )
        print('| loss | R@1 | MAP@R | ahead in MAP@R | seconds |\n|---|---|---|---|---|')
        base, networks = None, Networks(train, args, store)
        for name in args.only:
            setting, rate = chosen(name, train, choose, networks, store)
            make = SETTINGS[name][0]
            runs = [
                trained(make(**setting), rate, seed, train, networks, store)
                for seed in range(args.seeds)
            ]
            found = [judge.by(encode) for encode, _ in runs]
            base = base or found
            said = ', '.join(f'{k}={v}' for k, v in {**setting, 'rate': rate}.items())
            figures = row(found, base, [s for _, s in runs], not args.kinds)
            print(f'| {name} ({said}) | {figures} |', flush=True)


if __name__ == '__main__':
    main()
