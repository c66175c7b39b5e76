"""A Keras backbone and the same network as an ONNX file: scores, and how fast features are.

    python .ci/bench_backbone.py TRAIN VALIDATION --backbone FILE.keras [--seeds 3] [--size 224]

TRAIN and VALIDATION hold a folder of photos for each kind. FILE.keras, which takes RGB 0..255, is
written as ONNX. Recipe `strong` trains a head on the features of the last layer of either, with the
same seeds. A query is a photo of VALIDATION, searched among TRAIN; a hit is a photo of the same
kind: seen kinds, unseen photos. R@1: share of queries whose nearest photo is a hit.

Features: images/s of the network as `Encoder` computes it, photos in memory, beside bare ONNX
Runtime on the same file with batches of 32, medians over rounds one after the other in this
process; the ratio is the median of the ratios within a round.
"""

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
warnings.filterwarnings('ignore')

import keras
import numpy as np
from triplet_fashion.base_network import backbone_of, base_network
from triplet_fashion.catalog import Catalog
from triplet_fashion.encoder import Encoder
from triplet_fashion.engines import make_engine
from triplet_fashion.graphs import onnx_model
from triplet_fashion.metrics import retrieval_metrics
from triplet_fashion.photos.loading import Preprocessing, load_images
from triplet_fashion.training import fit


def names(catalog):
    return np.array([str(catalog.class_names[i]) for i in catalog.labels])


def score(net, train, valid):
    "Return R@1 of photos of `valid` searched among `train`."
    encoder = Encoder(net)
    found, searched = encoder.encode(valid), encoder.encode(train)
    return retrieval_metrics(found, names(valid), searched, names(train), ks=(1,))['R@1']


def scores(args, model, file, train, valid):
    """Print R@1 with the Keras backbone and with the ONNX file, seed by seed.

    The Keras backbone is given opened: to open a file draws random numbers; heads would differ."""
    how = dict(recipe='strong', size=args.size, stages='last', verbose=0)
    found = []
    for seed in range(args.seeds):
        row = []
        for given in dict(backbone=model), dict(backbone=file, rescale=Preprocessing()):
            keras.utils.set_random_seed(seed)
            row.append(score(fit(train, seed=seed, **how, **given).net, train, valid))
        found.append(row)
        print(f'seed {seed}: Keras {row[0]:.4f}, ONNX {row[1]:.4f}', flush=True)
    mean = np.mean(found, axis=0)
    print(f'R@1, mean of {args.seeds}: Keras {mean[0]:.4f}, ONNX {mean[1]:.4f}')


def rates(args, file, photos):
    "Print images/s of the backbone and of bare ONNX Runtime."
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = onnxruntime.InferenceSession(str(file), options, ['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    how = dict(rescale=Preprocessing(), trainable=False)
    net = backbone_of(base_network((args.size, args.size, 3), 8, file, **how))
    engine = make_engine(net, sample=photos[:4])

    def bare():
        floats = (photos[i : i + 32].astype('float32') for i in range(0, len(photos), 32))
        return np.concatenate([session.run(None, {name: x})[0] for x in floats])

    ways, seen = dict(ours=lambda: engine(photos), bare=bare), []
    for _ in range(args.rounds + 1):
        row = []
        for run in ways.values():
            start = time.perf_counter()
            run()
            row.append(len(photos) / (time.perf_counter() - start))
        seen.append(row)
    seen = np.array(seen[1:])
    ratio = np.median(seen[:, 0] / seen[:, 1])
    ours, alone = np.median(seen, axis=0)
    print(f'features, images/s: ours {ours:.1f}, bare ONNX Runtime {alone:.1f}, ratio {ratio:.3f}')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('train')
    parser.add_argument('validation')
    parser.add_argument('--backbone', required=True)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    train, valid = Catalog.from_dir(args.train), Catalog.from_dir(args.validation)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'backbone.onnx'
        model = keras.models.load_model(args.backbone, compile=False)
        made = onnx_model(model, (None, args.size, args.size, 3))
        file.write_bytes(made.SerializeToString())
        rates(args, file, load_images(valid.paths[:256], (args.size, args.size)))
        scores(args, model, file, train, valid)


if __name__ == '__main__':
    main()
