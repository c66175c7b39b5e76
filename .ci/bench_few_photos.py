"""What products with one photo are worth: two views of the photo are learned from as if they were
two photos.

    python .ci/bench_few_photos.py --one [--first 2] [--seeds 5]
    python .ci/bench_few_photos.py --half [--first 2] [--seeds 6]
    python .ci/bench_few_photos.py PRODUCTS --backbone FILE.keras [--first 0] [--seeds 5]

--one: 200 drawn products with one photo each are learned from, by the network `small` from
scratch. --half: 80 drawn products, of which half have one photo and the others four; using the
single ones beside leaving them out, as many steps each. PRODUCTS holds a folder of photos for
each product: 70 % of the products are learned from, one photo of each, with the recipe `products`
on a frozen backbone; beside it the same recipe on all photos of these products.

What is judged are products that were not learned from, 60 drawn ones with eight photos each or
the other 30 % of PRODUCTS: a query is one of their photos, searched among the others, a hit is a
photo of the same product. R@1: share of queries whose nearest photo is a hit; MAP@R as in
metrics. The seed changes catalogue, split and network. Each figure is the median over seeds, with
the least and the largest; gains are means of differences over the same seeds, with their interval
(95 %, t).
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
import numpy as np
from triplet_fashion.base_network import base_network
from triplet_fashion.catalog import Catalog
from triplet_fashion.datasets import draw_catalog
from triplet_fashion.encoder import Encoder
from triplet_fashion.features import features
from triplet_fashion.evaluation import BASELINES
from triplet_fashion.metrics import retrieval_metrics
from triplet_fashion.training import fit

T = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
UNSEEN = 60


def first_photos(catalog, products=None):
    "Return the first photo of some products, or of all, and every photo of the others."
    first = np.unique(catalog.labels, return_index=True)[1]
    is_first = np.isin(np.arange(len(catalog)), first)
    rest = np.zeros(len(catalog), bool) if products is None else ~np.isin(catalog.labels, products)
    return catalog.subset(is_first | rest)


def drawn(folder, products, views, seed):
    "Return drawn products to learn from, and others that are judged."
    whole = draw_catalog(Path(folder) / f'{seed}', products + UNSEEN, views, seed=seed)
    return whole.split(UNSEEN / (products + UNSEEN), by='product', seed=seed)


def learned(train, seed, **how):
    "Return the embedding that a recipe learns from `train`."
    run = fit(train, seed=seed, verbose=0, monitor=None, **how)
    return Encoder(run.net, feature_cache=how.get('feature_cache')).encode


def one_photo_each(seed, args, folder):
    "Yield (way, embedding, photos judged) for products with one photo each."
    train, unseen = drawn(folder, 200, 8, seed)
    how = dict(recipe='scratch', size=args.size, epochs=args.epochs)
    yield 'colour histogram', BASELINES['colour histogram'], unseen
    yield 'raw pixels', BASELINES['raw pixels'], unseen
    yield 'one photo each', learned(first_photos(train), seed, **how), unseen


def half_of_them(seed, args, folder):
    "Yield (way, embedding, photos judged) for products of which half have one photo."
    train, unseen = drawn(folder, 80, 8, seed)
    ones, several = np.split(np.random.default_rng(seed).permutation(train.products), 2)
    is_kept = np.concatenate([np.flatnonzero(train.labels == c)[:4] for c in train.products])
    train = first_photos(train.subset(np.sort(is_kept)), ones)
    how = dict(recipe='scratch', size=args.size, epochs=args.epochs, steps=8)
    yield 'colour histogram', BASELINES['colour histogram'], unseen
    for augment in args.augment:
        aug = {'True': True}.get(augment, augment)
        for singles in 'leave out', 'augment':
            e = learned(train, seed, augment=aug, singles=singles, **how)
            yield f'augment={aug!r}, singles={singles!r}', e, unseen


def real(seed, args, folder):
    "Yield (way, embedding, photos judged) for one photo of each of the products of a folder."
    train, unseen = Catalog.of(args.products).split(0.3, seed=seed)
    store = f'{folder}/features'
    how = dict(recipe='products', backbone=args.backbone, feature_cache=store)
    size = (320, 320, 3)
    frozen = base_network(size, backbone=args.backbone, stages='all', trainable=False)
    yield 'colour histogram', BASELINES['colour histogram'], unseen
    yield 'raw pixels', BASELINES['raw pixels'], unseen
    yield 'the backbone alone', lambda photos: features(frozen, photos, store), unseen
    yield 'one photo each', learned(first_photos(train), seed, **how), unseen
    yield 'all their photos', learned(train, seed, **how), unseen


def line(way, found, seconds):
    "Print the figures of one way."
    said = f'{way:44}'
    for name in ('R@1', 'MAP@R'):
        x = [r[name] for r in found]
        said += f'  {name} {np.median(x):.3f} ({min(x):.3f} to {max(x):.3f})'
    print(f'{said}  {np.median(seconds):5.0f} s', flush=True)


def gain(way, other, found):
    "Print how far a way is ahead of another on the same seeds."
    d = np.array([a['R@1'] - b['R@1'] for a, b in zip(found[way], found[other])])
    if len(d) < 3:
        return
    wide = T.get(len(d) - 1, 2) * d.std(ddof=1) / len(d) ** 0.5
    low, high = d.mean() - wide, d.mean() + wide
    print(f'{way} ahead of {other}: {d.mean():+.3f} ({low:+.3f} to {high:+.3f})')


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('products', nargs='?')
    p.add_argument('--one', action='store_true')
    p.add_argument('--half', action='store_true')
    p.add_argument('--backbone')
    p.add_argument('--first', type=int, default=2, help='seed to begin with')
    p.add_argument('--seeds', type=int, default=5)
    p.add_argument('--size', type=int, default=64, help='side of drawn photos')
    p.add_argument('--epochs', type=int, default=60)
    p.add_argument('--augment', nargs='+', default=['True'], help="of --half: True, views")
    args = p.parse_args()
    ways = one_photo_each if args.one else half_of_them if args.half else real
    found, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.first, args.first + args.seeds):
            begun = time.perf_counter()
            for way, embed, photos in ways(seed, args, folder):
                r = retrieval_metrics(np.asarray(embed(photos)), photos.labels, ks=(1, 5))
                found.setdefault(way, []).append(r)
                seconds.setdefault(way, []).append(time.perf_counter() - begun)
                print(f"  seed {seed}: {way:44} {r['R@1']:.3f} {r['MAP@R']:.3f}", flush=True)
                begun = time.perf_counter()
    for way in found:
        line(way, found[way], seconds[way])
    pairs = [(way, way.replace("'augment'", "'leave out'")) for way in found]
    pairs += [(way, 'colour histogram') for way in found if 'photo' in way]
    for way, other in pairs:
        if way != other:
            gain(way, other, found)


if __name__ == '__main__':
    main()
