"What the benchmarks of a trained head have in common: their arguments, and how a run begins."

import argparse
import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')


def arguments(doc, **more):
    """Return the parsed command line: two folders of photos, a backbone, and `more`.

    `more` holds the default of each further argument."""
    p = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('train')
    p.add_argument('validation')
    p.add_argument('--backbone', required=True)
    for name, default in more.items():
        p.add_argument(f'--{name}', type=type(default), default=default)
    return p.parse_args()
