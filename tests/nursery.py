"""Python processes that start at once: forked from one that has imported TensorFlow, no more.

TensorFlow has no threads before its first operation, so that each of them is as good as new.
What a process must not have imported, or what an import costs, is for `subprocess.run`.
"""

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = 'tensorflow', 'matplotlib.pyplot', 'nbdev.test'


class Nursery:
    "The process that others are forked from."

    def __init__(self):
        env = os.environ | dict(PYTHONPATH=str(ROOT), PYTHONHASHSEED='0')
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=env,
            bufsize=0,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, code, *args, cwd=ROOT, timeout=280, **env):
        "Run `code` in a process of its own; what `subprocess.run` returns, and as it does."
        with tempfile.TemporaryDirectory() as said:
            order = dict(code=code, args=[*map(str, args)], cwd=str(cwd), env=env, said=said)
            self.process.stdin.write(json.dumps(order).encode() + b'\n')
            pid = int(self.process.stdout.readline())
            ended = []
            try:
                ended = select.select([self.process.stdout], [], [], timeout)[0]
            finally:  # also where a test ends at its limit: the next one finds the nursery idle
                if not ended:
                    os.killpg(pid, signal.SIGKILL)
                status = int(self.process.stdout.readline())
            out, err = ((Path(said) / name).read_text(errors='replace') for name in ('out', 'err'))
        if not ended:
            raise subprocess.TimeoutExpired('a forked process', timeout, out, err)
        return subprocess.CompletedProcess(args, status, out, err)

    def end(self):
        self.process.kill()
        self.process.wait()


def obey(code, args, cwd, env, said):
    "Become the process that was asked for."
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for fd, name in (1, 'out'), (2, 'err'):
        os.dup2(os.open(os.path.join(said, name), os.O_WRONLY | os.O_CREAT), fd)
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv, sys.path[0] = ['-c', *args], ''
    main = sys.modules['__main__'] = types.ModuleType('__main__')
    exec(compile(code, '<string>', 'exec'), vars(main))


def main():
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except ImportError:
            pass
    gc.freeze()  # nothing of it is garbage; looking for some would copy its pages in each child
    orders = os.fdopen(os.dup(0), 'rb')
    while line := orders.readline():
        child = os.fork()
        if not child:
            return obey(**json.loads(line))
        os.write(1, b'%d\n' % child)
        os.write(1, b'%d\n' % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == '__main__':
    main()
