"""What exports cost in Recall@1, size and speed, on a folder of photos.

    python .ci/bench_export.py TRAIN VALIDATION --backbone lite0.keras [--gallery 1000] [--seed 0]

A head is trained on TRAIN (recipe strong, backbone frozen) and exported in every format and precision whose packages are installed. A query is a photo of
VALIDATION, searched among --gallery photos of TRAIN (drawn by --seed); a hit is one of the same class; R@1: the nearest photo is a hit. change: of R@1, from Keras.
difference: the largest, as a share of the largest number of Keras' embeddings. images/s: 256 photos in memory, 32 at a time. int8 is calibrated on 200 photos of TRAIN.
"""

import argparse, os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
from triplet_fashion.catalog import Catalog
from triplet_fashion.export import export_report
from triplet_fashion.training import fit


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('train')
    p.add_argument('val')
    p.add_argument('--backbone', required=True)
    p.add_argument('--gallery', type=int, default=1000)
    p.add_argument('--seed', type=int, default=0)
    o = p.parse_args()
    train = Catalog.from_dir(o.train)
    val = Catalog.from_dir(o.val, class_names=train.class_names)
    run = fit(train, backbone=o.backbone, seed=o.seed, verbose=0)
    print(
        '| format | precision | MB | images/s | difference | R@1 | change |\n|---|---|---|---|---|---|---|'
    )
    for r in export_report(run.net, val, train, train.sample(o.gallery, seed=o.seed)):
        if 'problem' in r:
            print(f"| {r['format']} | {r['precision']} | {r['problem']} |")
        else:
            print(
                f"| {r['format']} | {r['precision']} | {r['MB']} | {r['images/s']} | {r['difference']:.0e} | {r['R@1']:.3f} | {r['change']:+.3f} |",
                flush=True,
            )


if __name__ == '__main__':
    main()
