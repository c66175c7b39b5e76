"""How fast photos become embeddings, measured side by side on this machine.

    python .ci/bench_encode.py [FOLDER] [--lite0 FILE.keras] [--photos 128] [--rounds 5] [--only resnet lite0]

FOLDER holds photos in folders by product or class; drawn ones of 400 x 533 if absent. Every way runs once per round, one after the
other in the same process; the first round is not counted. images/s are medians over rounds, a ratio is the median of the ratios within
a round. Photos enter at 224 x 224. "bare" ways get decoded photos in memory, float32, in batches of 32, and do nothing but compute;
`encode` gets the files and decodes them meanwhile, "arrays" gets what bare gets, and "bare ... files" reads the files, batch after batch, before it computes. Building graphs and choosing an engine is not timed, except where it says so.

    resnet  base_network('ResNet50', weights=None): bare tf.function in float32 and bfloat16 (mixed_bfloat16), bare OpenVINO in bfloat16
            where installed, Keras' predict on one photo after the other from its file (the seed's way; a sixteenth of the photos)
    lite0   the backbone in FILE.keras with a head: bare tf.function, bare LiteRT (XNNPACK; batches of 32, and groups of four), bare OpenVINO
"""

import argparse, os, sys, tempfile, time, warnings
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
warnings.filterwarnings('ignore')

import numpy as np


def batches(run, x):
    return lambda: [np.asarray(run(x[i : i + 32])) for i in range(0, len(x), 32)]


def from_files(run, paths):
    from triplet_fashion.photos.loading import load_images

    return lambda: [
        run(load_images(paths[i : i + 32], (224, 224)).astype('float32'))
        for i in range(0, len(paths), 32)
    ]


def tf_bare(net):
    import tensorflow as tf

    call = tf.function(lambda a: net(a, training=False), autograph=False, jit_compile=False)
    return lambda a: call(a).numpy()


def litert_bare(net, b, threads):
    "One interpreter for batches of b, all threads on each layer."
    import tensorflow as tf
    from triplet_fashion.graphs import inference_graph, litert_function

    graph = inference_graph(net, (b, 224, 224, 3), frozen=True)
    content = tf.lite.TFLiteConverter.from_concrete_functions([graph]).convert()
    one = litert_function(content, threads)
    return lambda x: np.concatenate([one(x[i : i + b]) for i in range(0, len(x), b)])


def openvino_bare(net, b, threads, precision):
    "All threads on each layer of batches of b."
    import openvino as ov
    from triplet_fashion.graphs import openvino_model

    with openvino_model(net, (b, 224, 224, 3)) as made:
        made = ov.Core().compile_model(
            made,
            'CPU',
            {
                'PERFORMANCE_HINT': 'LATENCY',
                'INFERENCE_NUM_THREADS': threads,
                'INFERENCE_PRECISION_HINT': precision,
            },
        )
    request = made.create_infer_request()
    return lambda x: np.concatenate(
        [np.array(request.infer([x[i : i + b]])[0]) for i in range(0, len(x), b)]
    )


def predicts(net, paths):
    "One photo after the other, as item_to_encoding of the seed."
    import keras

    def one(path):
        return net.predict(
            np.asarray(keras.utils.load_img(path, target_size=(224, 224)), 'float32')[None],
            verbose=0,
        )

    return lambda: [one(p) for p in paths]


def ways_of(which, args, paths, x):
    "{name: (function, photos it does)}"
    import importlib.util, keras
    from triplet_fashion.base_network import base_network
    from triplet_fashion.encoder import encode
    from triplet_fashion.engines import compare_engines, make_engine

    keras.utils.set_random_seed(0)

    def make():
        return base_network(
            (224, 224, 3), 128, args.lite0 if which == 'lite0' else 'ResNet50', weights=None
        )

    net, n, cores = make(), len(x), len(os.sched_getaffinity(0))
    start = time.perf_counter()
    auto = make_engine(net, 'auto', x[:32])
    print(
        f'{which}: engine auto took {auto!r} (building and checking: {time.perf_counter() - start:.0f} s)'
    )
    print(compare_engines(net, x[:32]))
    ways = {
        'bare tf.function': (batches(tf_bare(net), x), n),
        'encode': (lambda: encode(paths, net), n),
        'encode auto': (lambda: encode(paths, net, engine=auto), n),
        'encode arrays': (lambda: encode(x, net), n),
    }
    openvino = importlib.util.find_spec('openvino')
    if which == 'resnet':
        keras.config.set_dtype_policy('mixed_bfloat16')
        half = make()
        keras.config.set_dtype_policy('float32')
        half.set_weights(net.get_weights())
        bf16 = make_engine(net, 'tf', x[:32], precision='bfloat16', tolerance=1.0)
        auto16 = make_engine(net, 'auto', x[:32], precision='bfloat16')
        print(f'{which}: with bfloat16 auto took {auto16!r}')
        print(compare_engines(net, x[:32], precision='bfloat16'))
        ways |= {
            'bare tf.function bf16': (batches(tf_bare(half), x), n),
            'encode bf16': (lambda: encode(paths, net, engine=bf16), n),
            'encode auto bf16': (lambda: encode(paths, net, engine=auto16), n),
            "seed's predict": (predicts(net, paths[: max(4, n // 16)]), max(4, n // 16)),
        }
        ways['encode arrays auto bf16'] = (lambda: encode(x, net, engine=auto16), n)
        if openvino:
            bare = openvino_bare(net, 32, cores, 'bf16')
            ways |= {
                'bare OpenVINO bf16': (batches(bare, x), n),
                'bare OpenVINO bf16 files': (from_files(bare, paths), n),
            }
    else:
        if n % 32:
            raise SystemExit('--photos: a multiple of 32')
        for b in 32, 4:
            ways[f'bare LiteRT, {b}'] = batches(litert_bare(net, b, cores), x), n
        if openvino:
            ways['bare OpenVINO'] = batches(openvino_bare(net, 32, cores, 'f32'), x), n
    return ways


ASKED = {
    'resnet': [
        ('encode', 'bare tf.function', 0.95),
        ('encode bf16', 'bare tf.function bf16', 0.95),
        ('encode', "seed's predict", 3.5),
        ('encode bf16', "seed's predict", 5.0),
        ('encode auto', "seed's predict", 3.5),
        ('encode auto bf16', "seed's predict", 5.0),
        ('encode arrays auto bf16', 'bare OpenVINO bf16', 1.0),
        ('encode auto bf16', 'bare OpenVINO bf16 files', 1.0),
        ('encode auto bf16', 'bare OpenVINO bf16', 1.0),
        ('encode auto', 'bare tf.function', 0.95),
    ],
    'lite0': [
        ('encode auto', 'bare LiteRT, 32', 0.95),
        ('encode auto', 'bare LiteRT, 4', 0.95),
        ('encode', 'bare tf.function', 0.95),
        ('encode auto', 'bare OpenVINO', 0.95),
    ],
}


def measure(which, args, paths, x):
    ways, got = ways_of(which, args, paths, x), {}
    for _ in range(args.rounds + 1):
        for name, (run, n) in ways.items():
            start = time.perf_counter()
            run()
            got.setdefault(name, []).append(n / (time.perf_counter() - start))
    got = {k: np.array(v[1:]) for k, v in got.items()}
    print(f'\n{which}: {len(x)} photos, {args.rounds} rounds')
    for k, v in got.items():
        print(f'  {k:24}{np.median(v):8.1f} images/s   ({v.min():.1f} to {v.max():.1f})')
    for a, b, asked in ASKED[which]:
        if a in got and b in got:
            print(f'  {a + " / " + b:48}{np.median(got[a] / got[b]):6.2f}   (asked: {asked})')
    sys.stdout.flush()


if __name__ == '__main__':
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('folder', nargs='?')
    p.add_argument('--lite0', help='a .keras file')
    p.add_argument('--photos', type=int, default=128)
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--only', nargs='*', default=['resnet', 'lite0'])
    args = p.parse_args()
    from triplet_fashion.catalog import Catalog
    from triplet_fashion.datasets import draw_catalog
    from triplet_fashion.photos.loading import load_images

    with tempfile.TemporaryDirectory() as temp:
        cat = (
            Catalog.from_dir(args.folder)
            if args.folder
            else draw_catalog(temp, n_products=-(-args.photos // 8), n_views=8, size=(533, 400))
        )
        paths = cat.sample(args.photos, seed=0).paths
        x = load_images(paths, (224, 224)).astype('float32')
        for which in args.only:
            if which == 'lite0' and not args.lite0:
                print('lite0: no --lite0 FILE.keras given')
            else:
                measure(which, args, paths, x)
