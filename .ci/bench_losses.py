"""Losses side by side on a folder of photos: the head of a frozen network, one table.

    python .ci/bench_losses.py TRAIN VALIDATION --backbone lite0.keras [--recipe strong] [--seeds 3] [--only supcon ...]

A query is a photo of VALIDATION, the gallery is TRAIN, a hit is a photo of the same class. R@1: the nearest photo is a hit. 5-NN:
the five nearest vote for the right class. MAP@R: mean of the precisions at the ranks of the hits among the first R, R photos of the class
in the gallery. Each figure is the mean over the seeds, with their standard deviation. Every row: the same network, batches, epochs and rate.
"""
import argparse
import os
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
import keras
import numpy as np
from triplet_fashion.base_network import base_network
from triplet_fashion.catalog import Catalog
from triplet_fashion.contrast import CrossBatchMemory, MultiSimilarityLoss, SupConLoss, WeightedLosslessLoss
from triplet_fashion.metrics import knn_accuracy, retrieval_metrics
from triplet_fashion.mining import BatchTripletLoss
from triplet_fashion.training import RECIPES, embed, features, fit

ROWS = {  # name: loss, activation of the head
    'semihard': (lambda: BatchTripletLoss('semihard', margin=.2), 'l2'),
    'hard': (lambda: BatchTripletLoss('hard', margin=.5), 'l2'),
    'multi-similarity': (MultiSimilarityLoss, 'l2'),
    'multi-similarity, mined': (lambda: MultiSimilarityLoss(mining=.1), 'l2'),
    'supcon': (SupConLoss, 'l2'),
    'supcon, memory of 512': (lambda: CrossBatchMemory(SupConLoss(), 512), 'l2'),
    'lossless, all pairs': (lambda: BatchTripletLoss('all', kind='lossless'), 'sigmoid'),
    'lossless, push 0.05': (lambda: WeightedLosslessLoss(temperature=1e6), 'sigmoid'),
    'lossless, weighted': (lambda: WeightedLosslessLoss(push=1.), 'sigmoid'),
    'lossless, weighted, push 0.05': (WeightedLosslessLoss, 'sigmoid'),
}


def one(row, seed, train, val, backbone, store, recipe):
    loss, activation = ROWS[row]
    keras.utils.set_random_seed(seed)
    net = base_network(backbone=backbone, trainable=False, activation=activation, dropout=.2)
    features(net, train, store)
    start = time.perf_counter()
    fit(train, net=net, recipe=RECIPES[recipe], loss=loss(), store=store, seed=seed, verbose=0)
    took = time.perf_counter() - start
    q, g = (embed(net, c, store) for c in (val, train))
    found = retrieval_metrics(q, val.labels, g, train.labels, ks=(1,))
    return found['R@1'], knn_accuracy(q, val.labels, g, train.labels), found['MAP@R'], took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('train'); parser.add_argument('val'); parser.add_argument('--backbone', required=True)
    parser.add_argument('--seeds', type=int, default=3); parser.add_argument('--only', nargs='*', choices=ROWS)
    parser.add_argument('--recipe', choices=[r for r in RECIPES if RECIPES[r]['batches'] == 'pk'], default='strong')
    args = parser.parse_args()
    train = Catalog.from_dir(args.train)
    val = Catalog.from_dir(args.val, class_names=train.class_names)
    body = keras.models.load_model(args.backbone, compile=False)
    store = {}
    print('| loss | R@1 | 5-NN | MAP@R | seconds |\n|---|---|---|---|---|')
    for row in args.only or ROWS:
        r = np.array([one(row, s, train, val, body, store, args.recipe) for s in range(args.seeds)])
        cell = lambda m, sd: f'{m:.3f} ± {sd:.3f}'
        print(f'| {row} |', ' | '.join(map(cell, r[:, :3].mean(0), r[:, :3].std(0))), f'| {np.median(r[:, 3]):.1f} |', flush=True)


if __name__ == '__main__': main()
