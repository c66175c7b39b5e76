"""What exports cost in Recall@1, size and speed, on a folder of photos.

    python .ci/bench_export.py TRAIN VALIDATION --backbone lite0.keras [--gallery 1000] [--seed 0]

A head is trained on TRAIN (recipe strong, backbone frozen) and exported in every format and
precision whose packages are installed. A query is a photo of VALIDATION, searched among --gallery
photos of TRAIN (drawn by --seed); a hit is one of the same class; R@1: the nearest photo is a hit.
change: of R@1, from Keras. difference: the largest, as a share of the largest number of Keras'
embeddings. images/s: 256 photos in memory, 32 at a time. int8 is calibrated on 200 photos of TRAIN.
"""

from bench_head import arguments  # first: it makes TensorFlow quiet
from triplet_fashion.catalog import Catalog
from triplet_fashion.export import export_report
from triplet_fashion.training import fit

COLUMNS = 'format', 'precision', 'MB', 'images/s', 'difference', 'R@1', 'change'
NUMBERS = dict(difference='{:.0e}', change='{:+.3f}') | {'R@1': '{:.3f}'}


def line(texts):
    print('|', ' | '.join(texts), '|', flush=True)


def main():
    args = arguments(__doc__, gallery=1000, seed=0)
    train = Catalog.from_dir(args.train)
    valid = Catalog.from_dir(args.validation, class_names=train.class_names)
    run = fit(train, backbone=args.backbone, seed=args.seed, verbose=0)
    line(COLUMNS)
    line(['---'] * len(COLUMNS))
    for row in export_report(run.net, valid, train, train.sample(args.gallery, seed=args.seed)):
        shown = [*COLUMNS[:2], 'problem'] if 'problem' in row else COLUMNS
        line(NUMBERS.get(name, '{}').format(row[name]) for name in shown)


if __name__ == '__main__':
    main()
