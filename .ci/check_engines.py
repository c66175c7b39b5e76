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
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
import numpy as np

from triplet_fashion.base_network import base_network
from triplet_fashion.engines import make_engine


def probe(engine):
    "Make `engine` and compute with it, in two threads that change hands often."
    sys.setswitchinterval(1e-6)
    net = base_network((32, 32, 3), 16, backbone='small')
    photos = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype('float32')
    made = []

    def one():
        made.append(make_engine(net, engine, photos)(photos))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(made) == 2 and np.array_equal(*made), [m.shape for m in made]


BUSY = """
import os, sys
while os.getppid() == int(sys.argv[1]): sum(range(100_000))   # until the parent is no more
"""


class Probe:
    "A process that has imported TensorFlow, which has no threads before its first call, and no engine."

    def __init__(self, engine, seconds):
        self.said, self.end = tempfile.TemporaryFile('w+'), time.monotonic() + seconds
        self.pid = os.fork()
        if self.pid:
            return
        for fd in 1, 2:
            os.dup2(self.said.fileno(), fd)
        try:
            probe(engine)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def outcome(self):
        "Return how it ended: 'right', 'hung', or its last line; None as long as it runs."
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid and time.monotonic() < self.end:
            return None
        if not pid:
            if shutil.which('py-spy'):
                subprocess.run(['py-spy', 'dump', '--native', '--pid', str(self.pid)])
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return 'hung'
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return 'right'
        self.said.seek(0)
        return self.said.read().strip().rpartition('\n')[2] or f'exit status {code}'


def outcomes(n, args):
    "Return how `n` fresh processes ended, some at a time."
    running, found = [], []
    while len(found) < n:
        while len(running) < args.at_once and len(running) + len(found) < n:
            running.append(Probe(args.engine, args.seconds))
        ended = {p: what for p in running if (what := p.outcome())}
        running = [p for p in running if p not in ended]
        found += ended.values()
        if not ended:
            time.sleep(0.02)
    return found


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--processes', type=int, default=200)
    p.add_argument('--at-once', type=int, default=2)
    p.add_argument('--engine', default='openvino')
    p.add_argument('--seconds', type=float, default=120)
    args = p.parse_args()
    half = args.processes // 2
    found = outcomes(args.processes - half, args)
    loops = [subprocess.Popen([sys.executable, '-c', BUSY, str(os.getpid())]) for _ in range(2)]
    try:
        found += outcomes(half, args)
    finally:
        for loop in loops:
            loop.kill()
    for what in sorted(set(found)):
        print(f'{found.count(what):4d} {what}')
    return int(set(found) != {'right'})


if __name__ == '__main__':
    sys.exit(main())
