"""Losses over a labelled batch beside pytorch-metric-learning's, turn by turn.

    python .ci/bench_mining.py --torch PYTHON [--rounds 5] [--products 64]

PYTHON is an interpreter of an environment with torch and pytorch-metric-learning. A figure is the time of loss and gradient with respect to
256 codes of length 128 (unit length, at random), milliseconds, the median of 20 after 3 that do not count; the table shows the median over the
rounds, in which the two take turns in processes of their own, and their ratio: below 1 this package is the faster one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

MARGIN = 0.2


def codes(products):
    import numpy as np

    x = np.random.default_rng(0).normal(size=(256, 128)).astype('float32')
    return x / np.linalg.norm(x, axis=1, keepdims=True), np.repeat(
        np.arange(products), 256 // products
    )


def median_ms(once):
    times = []
    for _ in range(23):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[3:])


def ours(products):
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    import tensorflow as tf
    from triplet_fashion.contrastive import MultiSimilarityLoss, SupConLoss
    from triplet_fashion.mining import BatchTripletLoss

    x, labels = map(tf.constant, codes(products))
    losses = {
        m: BatchTripletLoss(m, margin=MARGIN)
        for m in ('semihard', 'hard', 'all', 'nonzero', 'easy')
    }
    losses |= {
        'SupCon': SupConLoss(),
        'multi-similarity': MultiSimilarityLoss(),
        'multi-similarity, mined': MultiSimilarityLoss(mining=0.1),
    }

    def step(loss):
        @tf.function
        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = loss(labels, x)
            return value, tape.gradient(value, x)

        return lambda: run(x)[1].numpy()

    return {name: median_ms(step(loss)) for name, loss in losses.items()}


def theirs(products):
    import torch
    from pytorch_metric_learning import distances, losses, miners, reducers

    x, labels = codes(products)
    labels, distance = torch.tensor(labels), distances.LpDistance(normalize_embeddings=False)

    def triplet(**kw):
        return losses.TripletMarginLoss(MARGIN, distance=distance, **kw)

    pairs = {
        'semihard': (miners.TripletMarginMiner(MARGIN, 'semihard', distance=distance), triplet()),
        'hard': (miners.BatchHardMiner(distance=distance), triplet()),
        'all': (None, triplet(reducer=reducers.MeanReducer())),
        'nonzero': (None, triplet()),
        'easy': (miners.BatchEasyHardMiner('easy', 'hard', distance=distance), triplet()),
        'SupCon': (None, losses.SupConLoss()),
        'multi-similarity': (None, losses.MultiSimilarityLoss()),
        'multi-similarity, mined': (miners.MultiSimilarityMiner(), losses.MultiSimilarityLoss()),
    }

    def step(miner, loss):
        def run():
            t = torch.tensor(x, requires_grad=True)
            loss(t, labels, miner(t, labels) if miner else None).backward()

        return run

    return {name: median_ms(step(*pair)) for name, pair in pairs.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--torch', help='Python of the other environment')
    parser.add_argument('--side', choices=['ours', 'theirs'])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--products', type=int, default=64, choices=[2**k for k in range(1, 8)])
    args = parser.parse_args()
    if args.side:
        return print(json.dumps({'ours': ours, 'theirs': theirs}[args.side](args.products)))
    if not args.torch:
        parser.error(
            '--torch PYTHON is needed: an environment with torch and pytorch-metric-learning'
        )
    rounds = {'ours': [], 'theirs': []}
    for _ in range(args.rounds):
        for side, python in (('ours', sys.executable), ('theirs', args.torch)):
            out = subprocess.run(
                [python, __file__, '--side', side, '--products', str(args.products)],
                capture_output=True,
                text=True,
            )
            if out.returncode:
                sys.exit(out.stderr[-2000:])
            rounds[side].append(json.loads(out.stdout.splitlines()[-1]))
    print(
        f'| P = {args.products}, K = {256 // args.products} | this package, ms | pytorch-metric-learning, ms | ratio |\n|---|---|---|---|'
    )
    for name in rounds['ours'][0]:
        a, b = ([r[name] for r in rounds[side]] for side in ('ours', 'theirs'))
        print(
            f'| {name} | {statistics.median(a):.1f} | {statistics.median(b):.1f} | {statistics.median(x / y for x, y in zip(a, b)):.2f} |'
        )


if __name__ == '__main__':
    main()
