"""What a trained head is worth beside PCA and LDA of the same features, and what its size costs.

    python .ci/bench_sizes.py TRAIN VALIDATION --backbone FILE.keras [--recipe strong] [--seeds 3]

TRAIN and VALIDATION hold a folder of photos for each product. Queries are the photos of
VALIDATION, searched among those of TRAIN where that has the same products, else among each other.
R@1: share of queries whose nearest photo is of their product; MAP@R as in metrics; intervals
(95 %): whole products drawn anew. LDA (shrunk by 0.1) and PCA are fitted to TRAIN, to the features
of the last stage and to those that the recipe gives its head.
"""

import tempfile

from bench_head import arguments  # first: it makes TensorFlow quiet
from triplet_fashion.base_network import base_network
from triplet_fashion.catalog import Catalog
from triplet_fashion.encoder import Encoder
from triplet_fashion.evaluation import baselines, scoreboard
from triplet_fashion.sizes import embedding_size
from triplet_fashion.training import Recipe, fit

FREE = 'frozen backbone', 'PCA of frozen features', 'LDA of frozen features'


def line(name, row):
    "Print the scores of an embedding with their intervals."
    text = ''.join(
        '   {} {:.3f} ({:.3f} to {:.3f})'.format(key, row[key], *row[f'{key} interval'])
        for key in ('R@1', 'MAP@R')
    )
    print(f'{name:34}{text}', flush=True)


def main():
    args = arguments(__doc__, recipe='strong', seeds=3)
    train, valid = Catalog.of(args.train), Catalog.of(args.validation)
    same = set(valid.class_names) <= set(train.class_names)
    gallery = train if same else None
    recipe = Recipe.named(args.recipe, backbone=args.backbone)
    with tempfile.TemporaryDirectory() as store:
        for stages in dict.fromkeys(['last', recipe.stages]):
            shape = (recipe.size, recipe.size, 3)
            net = base_network(shape, backbone=args.backbone, stages=stages, trainable=False)
            ways = {name: way for name, way in baselines(net, store).items() if name in FREE}
            for row in scoreboard(ways, valid, gallery, store, seen=train, ks=(1,)):
                if row['embedding'] in FREE:
                    line(f'{row["embedding"]}, {stages}', row)
        for seed in range(args.seeds):
            how = dict(verbose=0, monitor=None, feature_cache=store)
            run = fit(train, recipe=recipe, seed=seed, **how)
            encode = Encoder(run.net, feature_cache=store).encode
            line(
                f'{args.recipe}, seed {seed}',
                scoreboard({'it': encode}, valid, gallery, store, ks=(1,))[0],
            )
            searched = (encode(train), train) if same else ()
            print(embedding_size(encode(valid), valid, *searched), flush=True)


if __name__ == '__main__':
    main()
