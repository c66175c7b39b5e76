"""What it is worth to compare photos of customers with those of the shop only.

    python .ci/bench_roles.py --backbone FILE.keras [--first 10] [--seeds 5]
    python .ci/bench_roles.py --scratch [--first 10] [--seeds 3]

Drawn products with eight photos each. Four of them are the shop's, as they are drawn; four become
customers' photos: turned, zoomed, tilted, in other light, their surroundings painted over. Five of
eight products are learned from and the others are judged: a query is a customer's photo, searched
among all photos of the shop, a hit shows the same product. The network is a head on a frozen
backbone (recipe `products`), or with --scratch `small` from random weights. All ways take the
same photos, P x K, steps and epochs; what differs is which pairs the loss compares, and that with
roles half of the K photos of each product are customers'.

The seed changes split and network. R@1: share of queries whose nearest photo is a hit, MAP@R as in
metrics, each the mean over seeds; ahead: the mean difference in R@1 from the first way on the same
seeds, with its interval (95 %, t).
"""

import argparse
import os
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
import numpy as np
from PIL import Image

from bench_few_photos import T
from triplet_fashion.catalog import Catalog
from triplet_fashion.contrastive import AcrossSets, SupConLoss
from triplet_fashion.datasets import draw_catalog
from triplet_fashion.encoder import Encoder
from triplet_fashion.evaluation import BASELINES
from triplet_fashion.metrics import retrieval_metrics
from triplet_fashion.photos.augmentation import ViewAugmentation
from triplet_fashion.training import fit

WAYS = {
    'all pairs, roles ignored': SupConLoss(),
    'customer with shop, both ways': AcrossSets(SupConLoss()),
    'customer with shop, customers as anchors': AcrossSets(SupConLoss(), anchors='customer'),
}


def two_sets(folder, products, side):
    "Return drawn photos, half of them in the style of customers."
    drawn = draw_catalog(f'{folder}/drawn', products, 8, size=(side, side))
    is_asked = np.arange(len(drawn)) % 8 < 4
    asked, view = drawn.subset(is_asked), ViewAugmentation(surround=1.0)
    paths = [f'{folder}/customers/{name}' for name in asked.ids]
    for at in np.array_split(np.arange(len(asked)), len(asked) // 32):
        photos = np.stack([np.asarray(Image.open(asked.paths[i])) for i in at])
        for i, photo in zip(at, np.asarray(view(photos, seed=int(at[0]))).astype('uint8')):
            Path(paths[i]).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(paths[i], quality=90)
    asked = Catalog(paths, asked.labels, drawn.class_names, folder, roles='customer')
    return asked + drawn.subset(~is_asked).with_role('shop')


def found(encode, photos):
    "Return the metrics of customers' photos searched among those of the shop."
    asked, shop = (photos.subset(photos.roles == role) for role in ('customer', 'shop'))
    return retrieval_metrics(
        np.asarray(encode(asked)), asked.labels, np.asarray(encode(shop)), shop.labels, ks=(1,)
    )


def learned(train, loss, seed, args, folder):
    "Return the embedding that a loss teaches."
    how = dict(recipe='scratch', size=64, weight_decay='auto')
    if args.backbone:
        how = dict(recipe='products', backbone=args.backbone, size=args.side)
        how['feature_cache'] = f'{folder}/features'
    if args.epochs:
        how['epochs'] = args.epochs
    run = fit(train, loss=loss, P=10, K=8, seed=seed, verbose=0, monitor=None, **how)
    return Encoder(run.net, feature_cache=how.get('feature_cache')).encode


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--backbone')
    p.add_argument('--scratch', action='store_true')
    p.add_argument('--products', type=int, default=160)
    p.add_argument('--side', type=int, default=96, help='of drawn photos, pixels')
    p.add_argument('--epochs', type=int)
    p.add_argument('--first', type=int, default=10, help='seed to begin with')
    p.add_argument('--seeds', type=int, default=5)
    args = p.parse_args()
    if bool(args.backbone) == args.scratch:
        p.error('give --backbone FILE or --scratch')
    warnings.filterwarnings('ignore')
    scores = {}
    with tempfile.TemporaryDirectory() as folder:
        photos = two_sets(folder, args.products, args.side)
        print(photos, flush=True)
        for seed in range(args.first, args.first + args.seeds):
            train, unseen = photos.split(3 / 8, seed=seed)
            ways = {'colour histogram': BASELINES['colour histogram']}
            ways |= {way: learned(train, loss, seed, args, folder) for way, loss in WAYS.items()}
            for way, encode in ways.items():
                r = found(encode, unseen)
                scores.setdefault(way, []).append((r['R@1'], r['MAP@R']))
                print(f'  seed {seed}: {way:44} {r["R@1"]:.3f} {r["MAP@R"]:.3f}', flush=True)
    base = np.array(scores['all pairs, roles ignored'])
    print('| way | R@1 | MAP@R | ahead in R@1 |\n|---|---|---|---|')
    for way, each in scores.items():
        each = np.array(each)
        r1, map_r = each.mean(0)
        d = (each - base)[:, 0]
        wide = T.get(len(d) - 1, 2) * d.std(ddof=1) / len(d) ** 0.5 if len(d) > 2 else np.nan
        print(f'| {way} | {r1:.3f} | {map_r:.3f} | {d.mean():+.3f} +- {wide:.3f} |')


if __name__ == '__main__':
    main()
