"""Golden tests: what the package gives, so that a change of its inside is seen to change nothing.

    python tests/golden/make.py                    compare with what is kept beside this file
    python tests/golden/make.py --write signatures help_texts
                                                   keep these as they are now
    python tests/golden/make.py --against COMMIT   compare with another commit on this machine

What is kept does not depend on the machine. `--against` compares more, to the last bit: weights
and histories of whole and of interrupted trainings, and every way to pixels. Exit status 1 where
anything differs.
"""

import argparse
import difflib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DIGESTS = HERE / 'digests.json'
TEXTS = {'signatures': HERE / 'signatures.txt', 'help_texts': HERE / 'help.txt'}
RENEW = 'python tests/golden/make.py --write'

# Topics: functions of topics.py, and how far numbers may be apart where they are kept
KEPT = {
    'positions': 0,
    'positions_with_unreadable': 0,
    'positions_of_input_triplet_gen': 0,
    'augmented': 0.05,  # levels of 255
    'pixels': 1,  # levels
    'ways': 1,  # levels
    'metrics': 2e-5,
    'files': 1e-4,
}
ONE_MACHINE = ['augmented_exactly', 'pixels_exactly', 'saved_model', 'recipes']


# ---- compare


def same(a, b, tolerance):
    "Tell whether two digests, or two lists of numbers, are the same."
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True)
    return a == b


def differences(old, new, tolerance=0):
    "Return a line for each entry of two topics that differs."
    nothing = object()
    lines = []
    for what in dict.fromkeys([*old, *new]):
        a, b = old.get(what, nothing), new.get(what, nothing)
        if b is nothing:
            lines.append(f'{what}: gone')
        elif a is nothing:
            lines.append(f'{what}: new')
        elif not same(a, b, tolerance):
            lines.append(f'{what}: was {brief(a)}, is {brief(b)}')
    return lines


def brief(value):
    "Return a digest or the first numbers of a list as text."
    return value if isinstance(value, str) else ', '.join(f'{v:.6g}' for v in value[:6])


# ---- run


def run_topic(name):
    "Return what the package gives for one topic."
    import topics

    return getattr(topics, name)()


def current_text(name):
    "Return a text about the public face of the package."
    import texts

    return getattr(texts, name)()


def changed_lines(old, new):
    "Return the lines of a diff of two texts; how lines are wrapped does not count."
    if old.split() == new.split():
        return []
    lines = old.splitlines(), new.splitlines()
    return list(difflib.unified_diff(*lines, 'kept', 'now', n=2, lineterm=''))


# ---- keep


def read_digests():
    return json.loads(DIGESTS.read_text(encoding='utf-8'))


def as_json(topics):
    "Return {topic: {what: value}} as JSON with one entry a line."

    def block(name, entries):
        lines = [f'  {json.dumps(k)}: {json.dumps(v)}' for k, v in entries.items()]
        return f'"{name}": {{\n' + ',\n'.join(lines) + '\n}'

    return '{\n' + ',\n'.join(block(*item) for item in topics.items()) + '\n}\n'


def write(names):
    "Keep what the package gives now for some topics."
    kept = read_digests() if DIGESTS.exists() else {}
    kept |= {name: run_topic(name) for name in KEPT if name in names}
    DIGESTS.write_text(as_json(kept), encoding='utf-8')
    for name, path in TEXTS.items():
        if name in names:
            path.write_text(current_text(name), encoding='utf-8')


def check(name):
    "Return what differs in one topic from what is kept, line by line."
    if name in TEXTS:
        return changed_lines(TEXTS[name].read_text(encoding='utf-8'), current_text(name))
    return differences(read_digests()[name], run_topic(name), KEPT[name])


# ---- two commits

ONE_THREAD = dict(TF_NUM_INTRAOP_THREADS='1', TF_NUM_INTEROP_THREADS='1', OMP_NUM_THREADS='1')


def results_of(tree, names):
    "Return {topic: what the package in the folder `tree` gives}, made by a process of its own."
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'results.json'
        env = os.environ | ONE_THREAD | dict(PYTHONPATH=str(tree), TRIPLET_FASHION_CACHE=folder)
        command = [sys.executable, __file__, '--results', out, '--topics', *names]
        subprocess.run(command, env=env, cwd=tree, check=True)
        return json.loads(out.read_text(encoding='utf-8'))


def against(commit, names):
    "Return what differs between a commit and the working tree, line by line."
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / 'tree.tar'
        subprocess.run(['git', '-C', ROOT, 'archive', '--output', packed, commit], check=True)
        with tarfile.open(packed) as tar:
            tar.extractall(folder, filter='data')
        old = results_of(folder, names)
    new = results_of(ROOT, names)
    return [f'{name}: {line}' for name in names for line in differences(old[name], new[name])]


def write_results(path, names):
    "Write what the package gives for some topics, as JSON."
    import triplet_fashion

    print(Path(triplet_fashion.__file__).parent, flush=True)
    found = {}
    for name in names:
        start = time.perf_counter()
        found[name] = run_topic(name)
        seconds = time.perf_counter() - start
        print(f'  {name}: {len(found[name])} entries, {seconds:.0f} s', flush=True)
    Path(path).write_text(json.dumps(found), encoding='utf-8')


def arguments():
    "Return the parsed arguments of the command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--write',
        nargs='+',
        choices=['all', *KEPT, *TEXTS],
        metavar='TOPIC',
        help=f'keep what the package gives now: all, {", ".join([*KEPT, *TEXTS])}',
    )
    parser.add_argument('--against', metavar='COMMIT', help='compare with this commit')
    parser.add_argument(
        '--topics',
        nargs='+',
        choices=[*KEPT, *ONE_MACHINE],
        metavar='TOPIC',
        default=[*KEPT, *ONE_MACHINE],
        help='with --against: these only',
    )
    parser.add_argument('--results', help=argparse.SUPPRESS)  # for the processes of --against
    return parser.parse_args()


def main():
    args = arguments()
    if args.results:
        return write_results(args.results, args.topics)
    if not args.against:
        sys.path.insert(0, str(ROOT))
    if args.write:
        return write([*KEPT, *TEXTS] if 'all' in args.write else args.write)
    if args.against:
        lines = against(args.against, args.topics)
    else:
        lines = [f'{name}: {line}' for name in (*KEPT, *TEXTS) for line in check(name)]
    print('\n'.join(lines) or 'nothing differs')
    return bool(lines)


if __name__ == '__main__':
    sys.exit(main())
