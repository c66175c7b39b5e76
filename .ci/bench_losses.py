"""Losses and samplers side by side on a folder of photos: the head of a frozen network, one table.

    python .ci/bench_losses.py TRAIN [VALIDATION] --backbone lite0.keras [--recipe strong] [--samplers 10x8 5x16] [--seeds 3] [--only supcon ...] [--set copies=1] [--peer PYTHON]

A query is a photo of VALIDATION, the gallery is TRAIN, a hit is a photo of the same class. Without VALIDATION, recipes are being chosen: a fifth of the
photos of each class of TRAIN are the queries, the rest are learned from and searched. R@1: the nearest photo is a hit. 5-NN: the five nearest vote for the right
class. MAP@R: mean of the precisions at the ranks of the hits among the first R, R photos of the class in the gallery. Each figure is the mean over the seeds;
in brackets the 95 % interval over queries, drawn 1,000 times with replacement, each with its mean over the seeds; then the standard deviation over seeds. Every row: the
same network, epochs and rate. Sampler: classes x photos of each in a batch, as many batches an epoch as there are photos for.
Seconds: median wall time of a training, features of the frozen backbone not counted, what lies above them counted (with --recipe deep, the features at
the cut and their augmented copies too). --peer adds pytorch-metric-learning's rows (see pml_head.py), each run right after ours of the same seed.
"""

import argparse
import ast
import os
import subprocess
import tempfile
import time
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
import keras
import numpy as np
from triplet_fashion.base_network import base_network
from triplet_fashion.catalog import Catalog
from triplet_fashion.contrastive import (
    CrossBatchMemory,
    MultiSimilarityLoss,
    SupConLoss,
    WeightedLosslessLoss,
)
from triplet_fashion.metrics import knn_accuracy, retrieval_metrics
from triplet_fashion.mining import BatchTripletLoss
from triplet_fashion.encoder import Encoder
from triplet_fashion.features import features
from triplet_fashion.training import Recipe, fit

ROWS = {  # name: loss, activation of the head
    'semihard': (lambda: BatchTripletLoss('semihard', margin=0.2), 'l2'),
    'hard': (lambda: BatchTripletLoss('hard', margin=0.5), 'l2'),
    'multi-similarity': (MultiSimilarityLoss, 'l2'),
    'multi-similarity, mined': (lambda: MultiSimilarityLoss(mining=0.1), 'l2'),
    'supcon': (SupConLoss, 'l2'),
    'supcon, memory of 512': (lambda: CrossBatchMemory(SupConLoss(), 512), 'l2'),
    'lossless, all pairs': (lambda: BatchTripletLoss('all', kind='lossless'), 'sigmoid'),
    'lossless, push 0.05': (lambda: WeightedLosslessLoss(temperature=1e6), 'sigmoid'),
    'lossless, weighted': (lambda: WeightedLosslessLoss(push=1.0), 'sigmoid'),
    'lossless, weighted, push 0.05': (WeightedLosslessLoss, 'sigmoid'),
}

PEERS = 'semihard', 'hard', 'multi-similarity', 'supcon'


def figures(q, g, val, train):
    "Mean R@1, 5-NN and MAP@R, and R@1 and MAP@R of each query."
    found = retrieval_metrics(q, val.labels, g, train.labels, ks=(1,))
    each = [found.per_query(name) for name in ('R@1', 'MAP@R')]
    return found['R@1'], knn_accuracy(q, val.labels, g, train.labels), found['MAP@R'], *each


def one(row, seed, train, val, backbone, store, recipe, changes):
    "Figures and seconds of one training; of a frozen backbone the features are there before the clock starts."
    loss, activation = ROWS[row]
    keras.utils.set_random_seed(seed)
    net = base_network(
        backbone=keras.models.load_model(backbone, compile=False),
        trainable=False,
        activation=activation,
        dropout=0.2,
    )
    for c in (train, val):
        features(net, c, store)
    start = time.perf_counter()
    fit(
        train,
        net=net,
        recipe=recipe,
        loss=loss(),
        feature_cache=store,
        seed=seed,
        verbose=0,
        monitor=None,
        **changes,
    )
    took = time.perf_counter() - start
    encoder = Encoder(net, feature_cache=store)
    return *figures(*(encoder.encode(c) for c in (val, train)), val, train), took


def peer(python, loss, seed, train, val, backbone, store):
    "The same from pytorch-metric-learning's head on the same features."
    net = base_network(backbone=keras.models.load_model(backbone, compile=False), trainable=False)
    np.savez(
        f'{store}/peer.npz',
        x=features(net, train, store),
        y=train.labels,
        q=features(net, val, store),
    )
    subprocess.run(
        [
            python,
            Path(__file__).with_name('pml_head.py'),
            f'{store}/peer.npz',
            f'{store}/out.npz',
            '--loss',
            loss,
            '--seed',
            str(seed),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    with np.load(f'{store}/out.npz') as z:
        return *figures(z['q'], z['x'], val, train), float(z['seconds'])


def cells(runs):
    "A row of the table."
    r1, knn, mapr, *each, seconds = zip(*runs)
    draws = np.random.default_rng(0).integers(0, len(each[0][0]), (1000, len(each[0][0])))

    def cell(values, per_query):
        low, high = np.percentile(np.mean(per_query, 0)[draws].mean(1), [2.5, 97.5])
        return f'{np.mean(values):.3f} [{low:.3f}, {high:.3f}] ± {np.std(values):.3f}'

    return (
        cell(r1, each[0]),
        f'{np.mean(knn):.3f} ± {np.std(knn):.3f}',
        cell(mapr, each[1]),
        f'{np.median(seconds):.1f}',
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('train')
    parser.add_argument('val', nargs='?')
    parser.add_argument('--backbone', required=True)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--only', nargs='*', choices=ROWS)
    parser.add_argument(
        '--samplers', nargs='+', default=['10x8'], help='classes x photos of each in a batch'
    )
    parser.add_argument(
        '--recipe', choices=[r for r in Recipe.names if r != 'original'], default='strong'
    )
    parser.add_argument(
        '--set',
        nargs='+',
        default=[],
        metavar='NAME=VALUE',
        help='settings of the recipe to change',
    )
    parser.add_argument(
        '--peer',
        help="a Python that has pytorch-metric-learning: its losses of the same names follow each row, seed by seed",
    )
    args = parser.parse_args()
    train = Catalog.from_dir(args.train)
    if args.val:
        val = Catalog.from_dir(args.val, class_names=train.class_names)
    else:
        train, val = train.split(0.2, by='photo', seed=0)
    changes = {k: ast.literal_eval(v) for k, v in (o.split('=') for o in args.set)}
    print(
        f'{len(val):,} queries, {len(train):,} photos learned from and searched, {args.seeds} seeds\n'
    )
    print('| loss | sampler | R@1 | 5-NN | MAP@R | seconds |\n|---|---|---|---|---|---|')
    with tempfile.TemporaryDirectory() as store:
        for row in args.only or ROWS:
            for sampler in args.samplers:
                (P, K), got = (
                    map(int, sampler.split('x')),
                    {row: [], f'{row}, pytorch-metric-learning': []},
                )
                for seed in range(args.seeds):
                    got[row].append(
                        one(
                            row,
                            seed,
                            train,
                            val,
                            args.backbone,
                            store,
                            args.recipe,
                            changes | dict(P=P, K=K),
                        )
                    )
                    if args.peer and row in PEERS and sampler == args.samplers[0]:
                        got[f'{row}, pytorch-metric-learning'].append(
                            peer(args.peer, row, seed, train, val, args.backbone, store)
                        )
                for name, runs in got.items():
                    if runs:
                        print(
                            f'| {name} | {"10x8" if name != row else sampler} |',
                            ' | '.join(cells(runs)),
                            '|',
                            flush=True,
                        )


if __name__ == '__main__':
    main()
