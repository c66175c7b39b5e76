"""How long a training step takes, measured side by side on this machine.

    python .ci/bench_steps.py [--lite0 FILE.keras] [--peer PYTHON] [--rounds 3] [--only resnet lite0]

Every way runs in a process of its own, once a round, one after the other. first: seconds from the call to the end of the first step, graphs traced,
network already built. step: median of the steps after it. Ratios are medians of the ratios within a round. Photos of 224 x 224, in memory.

    resnet  ResNet50 with a head of 1,024 and 128, 16 triplets a step, lossless loss, Adam, gradients clipped to norm 5, everything learns
            seed      three towers in float32: the network called for anchors, positives and negatives, as in the seed's model, compiled plainly
            joint     one pass over all 48 photos (triplet_model, compile_triplet: BatchNorm fused, traced once), float32; joint bf16: mixed_bfloat16
            torch     PyTorch's own, float32, and bf16 under autocast (--peer: a Python that has torch; see torch_steps.py)
    lite0   the backbone in FILE.keras with a head of 1,024 and 128; its upper third learns, BatchNorm as it is; 8 products x 4 photos, batch-hard
            photos    from photos, through all layers
            cut       from the tensors at the cut, computed once (what fit's second stage does)
            torch     the same layers in PyTorch, from photos, the frozen ones without gradients
"""

import argparse, json, os, subprocess, sys, time
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

WAYS = {
    'resnet': ['seed', 'joint', 'joint bf16', 'torch', 'torch bf16'],
    'lite0': ['photos', 'cut', 'torch'],
}
ASKED = {
    'resnet': [
        ('first', 'joint', 'seed', '<= 0.55'),
        ('step', 'joint', 'seed', '<= 1'),
        ('step', 'joint bf16', 'seed', '<= 0.7'),
        ('step', 'joint', 'torch', ''),
        ('step', 'joint bf16', 'torch bf16', ''),
    ],
    'lite0': [('step', 'cut', 'photos', ''), ('step', 'cut', 'torch', '<= 0.5')],
}


def resnet(way):
    import keras, numpy as np
    from triplet_fashion.base_network import base_network
    from triplet_fashion.loss import LosslessTripletLoss
    from triplet_fashion.model import compile_triplet, triplet_model

    if way.endswith('bf16'):
        keras.config.set_dtype_policy('mixed_bfloat16')
    net = base_network((224, 224, 3), 128, 'ResNet50', weights=None)
    adam = keras.optimizers.Adam(1e-4, clipnorm=5.0)
    if way == 'seed':  # compiled as any Keras model
        model = triplet_model(net, joint=False)
        model.compile(adam, LosslessTripletLoss(), jit_compile=False)
    else:
        model = compile_triplet(triplet_model(net), optimizer=adam)
    x = [
        np.random.default_rng(i).integers(0, 256, (16, 224, 224, 3)).astype('float32')
        for i in range(3)
    ]
    return lambda: model.train_on_batch(x, np.zeros(16, 'float32'))


def lite0(way, path):
    import keras, numpy as np
    from triplet_fashion.base_network import base_network, unfreeze
    from triplet_fashion.cutting import cut_network
    from triplet_fashion.mining import BatchTripletLoss

    net = unfreeze(base_network((224, 224, 3), 128, path, activation='l2'), 1 / 3)
    x = np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3)).astype('float32')
    model = net
    if way == 'cut':
        lower, model = cut_network(net)
        x = np.asarray(lower.predict_on_batch(x))
    model.compile(
        keras.optimizers.Adam(1e-4), BatchTripletLoss(mining='hard', margin=0.5), jit_compile=False
    )
    return lambda: model.train_on_batch(x, np.arange(32) // 4)


def measure(which, way, args):
    "Seconds of the first step and those after it, in a process of its own."
    if way.startswith('torch'):
        run = [
            args.peer,
            HERE.with_name('torch_steps.py'),
            {'torch': which, 'torch bf16': f'{which}-bf16'}[way],
            '--photos',
            '48' if which == 'resnet' else '32',
            '--steps',
            str(args.steps),
        ]
    else:
        run = [
            sys.executable,
            HERE,
            '--way',
            way,
            '--only',
            which,
            '--steps',
            str(args.steps),
            *(['--lite0', args.lite0] if args.lite0 else []),
        ]
    return json.loads(
        subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )


def child(args):
    step, took = resnet(args.way) if args.only == ['resnet'] else lite0(args.way, args.lite0), []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        step()
        took.append(time.perf_counter() - start)
    print(json.dumps(took))


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--lite0')
    p.add_argument('--peer')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--steps', type=int, default=3)
    p.add_argument('--only', nargs='+', default=list(WAYS), choices=WAYS)
    p.add_argument('--way', help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.way:
        return child(args)
    import numpy as np

    for which in args.only:
        if which == 'lite0' and not args.lite0:
            print('lite0: give --lite0 FILE.keras')
            continue
        ways, got = [w for w in WAYS[which] if args.peer or not w.startswith('torch')], {}
        for _ in range(args.rounds):
            for w in ways:
                got.setdefault(w, []).append(measure(which, w, args))
        got = {
            w: {
                'first': np.array([t[0] for t in v]),
                'step': np.array([np.median(t[1:]) for t in v]),
            }
            for w, v in got.items()
        }
        print(
            f'\n{which}, {args.rounds} rounds'
            + ''.join(
                f'\n  {w:12} first {np.median(v["first"]):6.1f} s   step {np.median(v["step"]):6.2f} s'
                for w, v in got.items()
            )
        )
        for what, a, b, asked in ASKED[which]:
            if a in got and b in got:
                print(
                    f'  {what}, {a} / {b}: {np.median(got[a][what] / got[b][what]):.2f}'
                    + f'   (asked: {asked})' * bool(asked)
                )
        sys.stdout.flush()


if __name__ == '__main__':
    main()
