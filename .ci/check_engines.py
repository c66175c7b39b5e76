"""Whether the first calls of inference engines can hang: fresh processes whose threads change hands often, half of them on a busy machine.

    python .ci/check_engines.py [--processes 200] [--at-once 2] [--engine openvino] [--seconds 120]

A library that sets itself up in its first inference call may wait for Python's lock while another thread that has it waits for the library.
It happens once in many runs; a switch interval of a microsecond provokes it. In each process two threads make an engine each
and compute with it. The second half of the processes runs beside two loops that keep the processor busy. A process that takes longer than
`--seconds` is shown by py-spy, where that is installed, and counts as hung. Exit status 1 where one hung or failed.
"""
import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PROBE = """
import sys, threading
sys.setswitchinterval(1e-6)
import numpy as np
from triplet_fashion.base_network import base_network
from triplet_fashion.runtimes import runtime
net = base_network((32, 32, 3), 16, backbone='small')
photos = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype('float32')
made = []
threads = [threading.Thread(target=lambda: made.append(runtime(net, sys.argv[1], photos)(photos))) for _ in range(2)]
for t in threads: t.start()
for t in threads: t.join()
assert len(made) == 2 and np.array_equal(*made), [m.shape for m in made]
"""


BUSY = """
import os, sys
while os.getppid() == int(sys.argv[1]): sum(range(100_000))   # until the parent is no more
"""


def outcome(engine, seconds):
    "Return how one fresh process ended: 'right', 'hung', or its last line."
    env = os.environ | {'PYTHONPATH': str(ROOT), 'TF_CPP_MIN_LOG_LEVEL': '3'}
    job = subprocess.Popen([sys.executable, '-c', PROBE, engine], env=env, stdout=subprocess.DEVNULL,
                           stderr=subprocess.PIPE, text=True)
    try: said = job.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        if shutil.which('py-spy'): subprocess.run(['py-spy', 'dump', '--native', '--pid', str(job.pid)])
        job.kill()
        job.communicate()
        return 'hung'
    if job.returncode == 0: return 'right'
    return said.strip().splitlines()[-1] if said.strip() else f'exit status {job.returncode}'


def outcomes(n, args):
    "Return how `n` fresh processes ended, some at a time."
    with ThreadPoolExecutor(args.at_once) as pool:
        return list(pool.map(lambda _: outcome(args.engine, args.seconds), range(n)))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--processes', type=int, default=200)
    p.add_argument('--at-once', type=int, default=2)
    p.add_argument('--engine', default='openvino')
    p.add_argument('--seconds', type=float, default=120)
    args = p.parse_args()
    half = args.processes//2
    found = outcomes(args.processes - half, args)
    loops = [subprocess.Popen([sys.executable, '-c', BUSY, str(os.getpid())]) for _ in range(2)]
    try: found += outcomes(half, args)
    finally:
        for loop in loops: loop.kill()
    for what in sorted(set(found)): print(f'{found.count(what):4d} {what}')
    return int(set(found) != {'right'})


if __name__ == '__main__': sys.exit(main())
