"""What the losses and the monitor cost: medians of back-to-back runs and their ratios. `python .ci/bench_loss.py [check|resnet|monitor ...]`

check   a training step with and without the check that outputs lie in [0, 1] (same step, the check replaced by 'no row is outside')
resnet  loss and its gradient alone, as a share of a whole ResNet50 step (forward, loss, backward, Adam) at 224 x 224, float32
monitor  one look of CollapseMonitor as a share of an epoch, and what compiling it costs once
"""

import os, sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
from pathlib import Path
from statistics import median
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import keras
import numpy as np
import tensorflow as tf
from triplet_fashion import loss as losses
from triplet_fashion.base_network import base_network, res_base_network
from triplet_fashion.runs.monitor import CollapseMonitor
from triplet_fashion.loss import LosslessTripletLoss
from triplet_fashion.mining import BatchTripletLoss
from triplet_fashion.model import triplet_model


def timed(fn, runs):
    "Seconds of each of `runs` calls."
    out = []
    for _ in range(runs):
        start = perf_counter()
        fn()
        out.append(perf_counter() - start)
    return out


def turns(fns, runs):
    "Median seconds of each function, called in turn so that a noisy moment hits all of them."
    for fn in fns:
        fn()
        fn()
    times = [[] for _ in fns]
    for k in range(runs):
        for i in range(len(fns)) if k % 2 else reversed(range(len(fns))):
            times[i] += timed(fns[i], 1)
    return [median(t) for t in times]


def step_of(model, loss, x, y):
    "A compiled training step: forward, loss, backward, Adam."
    adam = keras.optimizers.Adam(1e-4)
    adam.build(model.trainable_variables)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        adam.apply(
            tape.gradient(value, [v.value for v in model.trainable_variables]),
            model.trainable_variables,
        )
        return value

    return lambda: step().numpy()


def alone(loss, y, codes):
    "The same loss and its gradient on codes that are given."
    codes = tf.constant(codes)

    @tf.function(autograph=False)
    def run():
        with tf.GradientTape() as tape:
            tape.watch(codes)
            value = loss(y, codes)
        return value, tape.gradient(value, codes)

    return lambda: run()[0].numpy()


def unchecked(step):
    "Trace `step` while the check of the range is switched off."
    kept = losses.outside_unit_cube
    losses.outside_unit_cube = lambda y, name='': tf.zeros(tf.shape(y)[:-1], tf.bool)
    try:
        step()
    finally:
        losses.outside_unit_cube = kept
    return step


def check():
    rng = np.random.default_rng(0)
    nets = {
        'small net, 64 x 64': lambda: base_network((64, 64, 3), 128, backbone='small', hidden=()),
        'head 1280-1024-128': lambda: keras.Sequential(
            [
                keras.Input((1280,)),
                keras.layers.Dense(1024, 'relu'),
                keras.layers.Dense(128, 'sigmoid'),
            ]
        ),
        'head 512-128, the least': lambda: keras.Sequential(
            [keras.Input((512,)), keras.layers.Dense(128, 'sigmoid')]
        ),
    }
    print(
        f'{"step of":26}{"triplets":>9}{"with, ms":>10}{"without":>10}{"ratio":>8}     {"loss+grad, us":>14}{"without":>9}'
    )
    for name, make in nets.items():
        for b in (16, 40):
            steps = []
            for free in (False, True):
                keras.utils.set_random_seed(0)
                net = make()
                x = [
                    rng.random((b, *net.input_shape[1:])).astype('float32')
                    * (255 if len(net.input_shape) == 4 else 1)
                    for _ in range(3)
                ]
                codes = rng.random((b, 384)).astype('float32')
                pair = (
                    step_of(triplet_model(net), LosslessTripletLoss(), x, np.zeros(b)),
                    alone(LosslessTripletLoss(), np.zeros(b), codes),
                )
                steps.append([unchecked(s) if free else s for s in pair])
            (w, wo), (lw, lwo) = (
                turns(s, 60 if len(net.input_shape) == 4 else 400) for s in zip(*steps)
            )
            print(
                f'{name:26}{b:9}{1e3 * w:10.3f}{1e3 * wo:10.3f}{w / wo:8.3f}     {1e6 * lw:14.0f}{1e6 * lwo:9.0f}   check = {(lw - lwo) / w:.2%} of the step'
            )


def resnet():
    rng = np.random.default_rng(0)
    x, ids = rng.random((48, 224, 224, 3)).astype('float32') * 255, np.repeat(np.arange(12), 4)
    net = res_base_network((224, 224, 3), 128, weights=None)
    whole = median(
        timed(step_of(net, BatchTripletLoss('hard', margin=0.5), tf.constant(x), ids), 3)[1:]
    )
    print(f'ResNet50 + head, 48 photos: {whole:.2f} s a step (median of 2)')
    codes = rng.random((48, 128)).astype('float32')
    cases = {
        f"BatchTripletLoss('{m}'), P x K = 12 x 4": (BatchTripletLoss(m, margin=0.5), ids, codes)
        for m in ('hard', 'semihard', 'all')
    }
    cases["BatchTripletLoss('all', kind='lossless')"] = (
        BatchTripletLoss('all', kind='lossless'),
        ids,
        codes,
    )
    cases['LosslessTripletLoss, 16 triplets'] = (
        LosslessTripletLoss(),
        np.zeros(16),
        codes.reshape(16, 384),
    )
    for (name, _), t in zip(cases.items(), turns([alone(*c) for c in cases.values()], 50)):
        print(f'{name:44}{1e3 * t:8.2f} ms  {t / whole:8.3%} of the step')


def monitor():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(100), 8)
    cases = {
        'small net, 64 x 64, batch-hard': (
            base_network((64, 64, 3), 128, backbone='small', hidden=(), activation='l2'),
            rng.random((800, 64, 64, 3)).astype('float32') * 255,
            ids,
            64,
        ),
        'head 1280-1024-128, batch-hard': (
            keras.Sequential(
                [
                    keras.Input((1280,)),
                    keras.layers.Dense(1024, 'relu'),
                    keras.layers.Dense(128),
                    keras.layers.UnitNormalization(),
                ]
            ),
            rng.random((3040, 1280)).astype('float32'),
            np.repeat(np.arange(380), 8),
            80,
        ),
    }
    print(
        f'{"an epoch of":34}{"steps":>6}{"epoch, ms":>11}{"look, ms":>10}{"share":>8}{"compiled once, ms":>20}'
    )
    for name, (net, x, y, b) in cases.items():
        net.compile(
            keras.optimizers.Adam(1e-3), BatchTripletLoss('hard', margin=0.5), jit_compile=False
        )
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(b)
        net.fit(data, epochs=1, verbose=0)
        epoch = median(timed(lambda: net.fit(data, epochs=1, verbose=0), 5))
        d = CollapseMonitor((x, y))
        d.set_model(net)
        first = timed(d.on_train_begin, 1)[0]
        one = median(timed(d.look, 20))
        print(
            f'{name:34}{-(-len(x) // b):6}{1e3 * epoch:11.0f}{1e3 * one:10.1f}{one / epoch:8.1%}{1e3 * (first - one):20.0f}'
        )


if __name__ == '__main__':
    for part in sys.argv[1:] or ('check', 'resnet', 'monitor'):
        globals()[part]()
        print()
