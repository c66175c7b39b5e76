"""How fast and how frugal the metrics are, beside FAISS and pytorch-metric-learning where they are installed.

    pip install -e '.[bench]'
    python .ci/bench_metrics.py                  # the size of the In-shop benchmark: 14,218 queries, 12,612 gallery photos
    python .ci/bench_metrics.py --large          # 100,000 x 1,000,000 as well, in about two minutes

Random unit vectors, float32, 128 numbers. Times: medians of runs taken in turns in one process. Memory, of a process of its own: the peak
resident size during the call, and how much of it came on top of the imports and the arrays. The system's peak (VmHWM) is reset right before
the call, as it would otherwise hold what making the arrays took. Both libraries multiply by an OpenBLAS of
their own, which picks its kernel by processor; FAISS' is older and may not know a new one, so the kernels are printed. OPENBLAS_CORETYPE=Haswell sets
them for both: compare under each setting.
"""

import argparse, importlib.util, json, os, re, subprocess, sys, time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
QUERIES, GALLERY, DIMS, CLASSES, K = 14_218, 12_612, 128, 3_985, 20


def arrays(n, m, d=DIMS):
    "Queries and gallery, products scattered round centres, and their labels."
    import numpy as np

    rng = np.random.default_rng(0)
    classes = min(CLASSES, n)
    centres = rng.standard_normal((classes, d), dtype=np.float32)

    def photos(count):
        y = np.arange(count) % classes
        x = centres[y]
        x += rng.standard_normal((count, d), dtype=np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x, y

    return *photos(n), *photos(m)


def there(name):
    return importlib.util.find_spec(name) is not None


def memory_of(what):
    "Resident size of this process, MB: VmRSS now, VmHWM at its peak since the last reset."
    return int(re.search(rf'{what}:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 1024


def reset_peak():
    "Begin the peak anew; what a parent process took does not count either."
    Path('/proc/self/clear_refs').write_text('5')


def one(way, n, m):
    "Run one `way` in this process: seconds, peak MB, and MB above imports and arrays."
    x, xl, g, gl = arrays(n, m)
    if way == 'nearest':
        from triplet_fashion.metrics import nearest

        def call():
            return nearest(x, g, k=K, verbose=True)
    elif way == 'retrieval_metrics':
        from triplet_fashion.metrics import retrieval_metrics

        def call():
            return retrieval_metrics(x, xl, g, gl)
    elif way == 'faiss':
        import faiss

        index = faiss.IndexFlatIP(DIMS)
        index.add(g)

        def call():
            return index.search(x, K)
    elif way == 'pytorch-metric-learning':
        import torch
        from pytorch_metric_learning.distances import CosineSimilarity
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
        from pytorch_metric_learning.utils.inference import CustomKNN

        calc = AccuracyCalculator(
            include=(
                'precision_at_1',
                'mean_average_precision_at_r',
                'r_precision',
                'mean_reciprocal_rank',
            ),
            k='max_bin_count',
            knn_func=None if there('faiss') else CustomKNN(CosineSimilarity()),
            device=torch.device('cpu'),
        )
        t = [torch.from_numpy(a) for a in (x, xl, g, gl)]

        def call():
            return calc.get_accuracy(*t)

    reset_peak()
    before, start = memory_of('VmRSS'), time.perf_counter()
    call()
    seconds, top = time.perf_counter() - start, memory_of('VmHWM')
    print(json.dumps(dict(seconds=seconds, peak=top, above=top - before)))


def apart(way, n, m, python):
    "`one` in a process of its own, None where a library is missing."
    out = subprocess.run(
        [python, __file__, '--one', way, '--queries', str(n), '--gallery', str(m)],
        capture_output=True,
        text=True,
    )
    return json.loads(out.stdout.splitlines()[-1]) if out.returncode == 0 else None


def turns(runs):
    "`nearest` and FAISS' flat indexes in turns on the same arrays."
    from triplet_fashion.metrics import nearest

    x, _, g, _ = arrays(QUERIES, GALLERY)
    ways = {
        'nearest, cosine': lambda: nearest(x, g, k=K),
        'nearest, euclidean': lambda: nearest(x, g, k=K, metric='euclidean'),
    }
    if there('faiss'):
        import faiss

        for name, kind in (
            ('FAISS IndexFlatIP', faiss.IndexFlatIP),
            ('FAISS IndexFlatL2', faiss.IndexFlatL2),
        ):
            index = kind(DIMS)
            index.add(g)
            ways[name] = lambda index=index: index.search(x, K)
    if there('threadpoolctl'):
        from threadpoolctl import threadpool_info

        print(
            'kernels:',
            ', '.join(
                f"{Path(o['filepath']).parent.name.split('.')[0]} {o['architecture']}"
                for o in threadpool_info()
                if o['user_api'] == 'blas'
            ),
        )
    took = {name: [] for name in ways}
    for i in range(runs + 1):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            if i:
                took[name].append(time.perf_counter() - start)  # the first round warms up
    print(
        f'{QUERIES:,} queries x {GALLERY:,} photos x {DIMS}, k={K}, {os.cpu_count()} cores: seconds, median of {runs} in turns'
    )
    for name, t in took.items():
        print(f'  {name:22}{median(t):7.3f}   {min(t):.3f} to {max(t):.3f}')
    if there('faiss'):
        for a, b in (
            ('nearest, cosine', 'FAISS IndexFlatIP'),
            ('nearest, euclidean', 'FAISS IndexFlatL2'),
        ):
            print(
                f'  {a} / {b}: {median(took[a]) / median(took[b]):.2f}, median of pairs {median(u / v for u, v in zip(took[a], took[b])):.2f}'
            )
    else:
        print("  FAISS is not installed: pip install -e '.[bench]'")


def memory(python):
    print(
        '\npeak memory of a process of its own, MB: all of it, and what came on top of imports and arrays'
    )
    found = {
        way: apart(way, QUERIES, GALLERY, python if way.startswith('py') else sys.executable)
        for way in ('nearest', 'retrieval_metrics', 'faiss', 'pytorch-metric-learning')
    }
    for way, o in found.items():
        print(
            f'  {way:26}'
            + (
                'not installed'
                if o is None
                else f"{o['peak']:7.0f}{o['above']:7.0f}   {o['seconds']:.1f} s"
            )
        )
    theirs = found['pytorch-metric-learning']
    if theirs:
        print(
            *(
                f"  retrieval_metrics / pytorch-metric-learning, {what}: {found['retrieval_metrics'][key] / theirs[key]:.2f}"
                for key, what in (('peak', 'all'), ('above', 'on top'))
            ),
            sep='\n',
        )


def large(part):
    n, m = 100_000, 1_000_000
    o = apart('nearest', part, m, sys.executable)
    print(
        f"\n{part:,} x {m:,}: {o['seconds']:.0f} s and {o['peak']:,.0f} MB in all"
        + f"; all {n:,} queries take about {o['seconds'] * n / part / 60:.0f} min" * (part < n)
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--runs', type=int, default=7, help='timed runs of each')
    parser.add_argument('--large', action='store_true', help='100,000 x 1,000,000 as well')
    parser.add_argument('--part', type=int, default=100_000, help='queries of --large')
    parser.add_argument(
        '--python', default=sys.executable, help='an interpreter that has pytorch-metric-learning'
    )
    parser.add_argument('--one', help=argparse.SUPPRESS)
    parser.add_argument('--queries', type=int, default=QUERIES, help=argparse.SUPPRESS)
    parser.add_argument('--gallery', type=int, default=GALLERY, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.queries, args.gallery)
    else:
        turns(args.runs)
        memory(args.python)
        if args.large:
            large(args.part)
