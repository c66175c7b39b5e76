"The one writer under faults: killed writers, a full disk, two processes, links, hard names."

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from triplet_fashion.storage import folders
from triplet_fashion.storage.files import atomic_write, check_target, file_lock, sweep_leftovers


def write(path, content, **kw):
    with atomic_write(path, **kw) as part:
        part.write_bytes(content)


def names(folder):
    return sorted(p.name for p in Path(folder).iterdir())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    contents=st.lists(st.binary(max_size=200), min_size=1, max_size=4),
    breaks=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_a_file_is_what_the_last_whole_writer_wrote(contents, breaks, tmp_path_factory):
    folder = tmp_path_factory.mktemp('w')
    path, want = folder / 'f.bin', None
    for content, stops in zip(contents, breaks):
        try:
            with atomic_write(path) as part:
                part.write_bytes(content[: len(content) // 2] if stops else content)
                if stops:
                    raise RuntimeError('power cut')
            want = content
        except RuntimeError:
            pass
        assert (path.read_bytes() if path.exists() else None) == want and names(folder) == (
            [] if want is None else ['f.bin']
        )


WRITER = """
import sys, time
from triplet_fashion.storage.files import atomic_write
path, letter = sys.argv[1:]
print('go', flush=True)
while True:
    with atomic_write(path) as part:
        with open(part, 'w') as f:
            for _ in range(200): f.write(letter*1000)
"""


def started(code, *args):
    child = subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE)
    child.stdout.readline()
    return child


def test_two_writers_and_their_deaths_leave_one_whole_file(tmp_path):
    "Two processes write one file, one is killed: whoever reads finds the letters of one writer."
    path = tmp_path / 'f.txt'
    a, b = started(WRITER, path, 'a'), started(WRITER, path, 'b')
    seen = set()
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            if not path.exists():
                continue
            text = path.read_text()
            assert len(text) == 200_000 and len(set(text)) == 1
            seen.add(text[0])
        a.send_signal(signal.SIGKILL)
        a.wait()
    finally:
        for child in (a, b):
            child.kill()
            child.wait()
    assert seen == {'a', 'b'} and len(set(path.read_text())) == 1
    write(path, b'last')
    assert path.read_bytes() == b'last' and names(tmp_path) == [
        'f.txt'
    ]  # the dead writers' leftovers are swept


def test_the_leftovers_of_a_living_writer_stay(tmp_path):
    child = started(
        'import sys, time\nfrom triplet_fashion.storage.files import atomic_write\n'
        'with atomic_write(sys.argv[1]) as part:\n    print(1, flush=True)\n    time.sleep(99)',
        tmp_path / 'f',
    )
    try:
        assert sweep_leftovers(tmp_path) == [] and len(names(tmp_path)) == 1
        write(tmp_path / 'g', b'')
        assert len(names(tmp_path)) == 2
    finally:
        child.kill()
        child.wait()
    assert len(sweep_leftovers(tmp_path)) == 1 and names(tmp_path) == ['g']


def test_leftovers_of_another_machine_are_swept_when_old(tmp_path):
    old, young, mine = (
        tmp_path / n
        for n in ('.f.00000000-12-0123abcd.part', '.g.00000000-12-0123abcd.part.npz', 'notes.part')
    )
    for path in (old, young, mine):
        path.touch()
    os.utime(old, (1, 1))
    os.utime(mine, (1, 1))
    assert sweep_leftovers(tmp_path) == [old] and names(tmp_path) == sorted([young.name, mine.name])


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 1 MB."
    home = tmp_path / 'disk'
    home.mkdir()
    if sys.platform != 'linux' or os.geteuid() != 0:
        pytest.skip('a small disk is mounted by root on Linux')
    if subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(home)], capture_output=True
    ).returncode:
        pytest.skip('this machine mounts no tmpfs')
    yield home
    subprocess.run(['umount', '-l', str(home)], check=True)


@pytest.mark.parametrize('need', [0, 3_000_000])
def test_a_full_disk_keeps_the_old_file_and_says_what_to_do(need, small_disk):
    path = small_disk / 'index.npz'
    write(path, b'old')
    with pytest.raises(
        OSError,
        match='index.npz could not be written: the disk is full '
        '.*free in .*(needs 3.0 MB|needs more).*Make room',
    ) as e:
        write(path, b'x' * 3_000_000, need=need)
    assert (
        e.value.errno == errno.ENOSPC
        and path.read_bytes() == b'old'
        and names(small_disk) == ['index.npz']
    )
    write(path, b'new')
    assert path.read_bytes() == b'new'


def test_a_library_that_only_says_no_space_is_understood(tmp_path):
    with pytest.raises(OSError, match='f.h5 could not be written: the disk is full'):
        with atomic_write(tmp_path / 'f.h5', suffix='.weights.h5') as part:
            assert part.name.endswith('.weights.h5')
            raise RuntimeError(
                'Unable to write dataset (file write failed: errno = 28, '
                'error message = No space left on device)'
            )
    with pytest.raises(RuntimeError, match='another fault'):
        with atomic_write(tmp_path / 'f.h5'):
            raise RuntimeError('another fault')
    assert names(tmp_path) == []


def test_folders_that_meet_a_full_disk_say_so(small_disk, tmp_path):
    from triplet_fashion.catalog import sub_dir
    from triplet_fashion.datasets import draw_catalog

    with pytest.raises(OSError, match='shop could not be written: the disk is full .*Make room'):
        draw_catalog(small_disk / 'shop', 100, 4, size=(256, 256))
    assert names(small_disk) == []
    (tmp_path / 'old/a').mkdir(parents=True)
    (tmp_path / 'old/a/1.jpg').write_bytes(b'x' * 3_000_000)
    with pytest.raises(OSError, match='new/a/a could not be written: the disk is full'):
        sub_dir(tmp_path / 'old', small_disk / 'new')
    assert (tmp_path / 'old/a/1.jpg').stat().st_size == 3_000_000 and not [
        p for p in small_disk.rglob('*') if p.is_file()
    ]


def test_links_and_rights_stay(tmp_path):
    (tmp_path / 'real').mkdir()
    write(tmp_path / 'real/f', b'1')
    (tmp_path / 'link').symlink_to('real/f')
    os.chmod(tmp_path / 'real/f', 0o640)
    write(tmp_path / 'link', b'2')
    assert (
        (tmp_path / 'link').is_symlink()
        and (tmp_path / 'real/f').read_bytes() == b'2'
        and stat.S_IMODE((tmp_path / 'real/f').stat().st_mode) == 0o640
    )


@pytest.mark.parametrize('name', ['가' * 84 + '.x', 'a\udce9.npz', ' spaces .csv', '(1) {x}.txt'])
def test_names_that_are_hard_to_write(name, tmp_path):
    write(tmp_path / name, b'x')
    assert names(tmp_path) == [name]


@pytest.mark.parametrize(
    'place,error',
    [
        ('folder', IsADirectoryError),
        ('file/x', NotADirectoryError),
        ('file/x/y', NotADirectoryError),
        ('pipe', FileExistsError),
    ],
)
def test_places_that_cannot_be_written_are_found_first(place, error, tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').touch()
    os.mkfifo(tmp_path / 'pipe')
    before = names(tmp_path)
    with pytest.raises(error, match=f"out='.*{place}'"):
        check_target(tmp_path / place)
    with pytest.raises(error):
        write(tmp_path / place, b'x')
    assert names(tmp_path) == before
    assert (
        check_target(tmp_path / 'new/deep/f') == tmp_path / 'new/deep/f'
        and (tmp_path / 'new/deep').is_dir()
    )


LOCKER = (
    'import sys, time\nfrom triplet_fashion.storage.files import file_lock\n'
    'with file_lock(sys.argv[1], "taken"):\n    print(1, flush=True)\n    time.sleep(99)'
)


def test_a_lock_ends_with_its_process(tmp_path):
    child = started(LOCKER, tmp_path / 'lock')
    with pytest.raises(BlockingIOError, match='another run is at work'):
        with file_lock(tmp_path / 'lock', 'another run is at work'):
            pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    with file_lock(tmp_path / 'lock', 'another run is at work'):
        pass
    with pytest.raises(KeyError):
        with file_lock(tmp_path / 'lock', ''):
            raise KeyError('x')
    with file_lock(tmp_path / 'lock', ''):
        pass


# folders in the place of others


class Killed(BaseException):
    pass


@pytest.fixture(params=['exchange', 'two renames'])
def exchange(request, monkeypatch):
    "How a folder takes the place of another: in one step, or as on systems without it."
    if request.param == 'two renames':
        monkeypatch.setattr(folders, 'exchange_folders', lambda *a: False)
    elif not sys.platform.startswith('linux'):
        pytest.skip('needs Linux, which can exchange folders')
    return request.param


def write_page(folder, text):
    with folders.atomic_folder(folder) as part:
        (part / 'page').write_text(text)


@pytest.mark.parametrize('k', [1, 2])
def test_killed_between_two_renames_a_folder_stands_aside(k, tmp_path, monkeypatch):
    write_page(tmp_path / 'f', 'old')
    monkeypatch.setattr(folders, 'exchange_folders', lambda *a: False)
    with monkeypatch.context() as m, pytest.raises(Killed):
        real, count = os.replace, []

        def replace(a, b):
            count.append(b)
            if len(count) >= k:
                raise Killed  # and nothing after it
            real(a, b)

        m.setattr(os, 'replace', replace)
        write_page(tmp_path / 'f', 'new')
    assert (folders.standing_folder(tmp_path / 'f') / 'page').read_text() == 'old'
    write_page(tmp_path / 'f', 'newest')
    assert (tmp_path / 'f' / 'page').read_text() == 'newest' and [
        p.name for p in tmp_path.iterdir()
    ] == ['f']


def test_a_folder_takes_the_place_of_another(exchange, tmp_path):
    for text in 'one', 'two', 'three':
        write_page(tmp_path / 'f', text)
        assert (tmp_path / 'f' / 'page').read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ['f']


def test_an_error_keeps_the_old_folder(exchange, tmp_path):
    write_page(tmp_path / 'f', 'old')
    with pytest.raises(Killed), folders.atomic_folder(tmp_path / 'f') as part:
        (part / 'page').write_text('half')
        raise Killed
    assert (tmp_path / 'f' / 'page').read_text() == 'old' and [
        p.name for p in tmp_path.iterdir()
    ] == ['f']


def test_a_link_to_a_folder_stays_a_link(exchange, tmp_path):
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'f').symlink_to(tmp_path / 'disk' / 'f')
    for text in 'one', 'two':
        write_page(tmp_path / 'f', text)
    assert (tmp_path / 'f').is_symlink() and (tmp_path / 'disk' / 'f' / 'page').read_text() == 'two'


def test_a_process_killed_at_any_moment_leaves_a_whole_folder(fresh_python, tmp_path):
    code = '''
import itertools, os, random, signal, sys, time
from pathlib import Path
from triplet_fashion.storage.folders import atomic_folder, standing_folder
def write(folder, number):
    with atomic_folder(folder) as part:
        for name in 'ab': (part/name).write_text(str(number))
folder, r, before = Path(sys.argv[1])/'f', random.Random(0), 0
write(folder, 0)
for trial in range(40):
    pid = os.fork()
    if not pid:
        for i in itertools.count(before + 1): write(folder, i)
    time.sleep(r.uniform(0, .02))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    now = [int((standing_folder(folder)/name).read_text()) for name in 'ab']
    assert now[0] == now[1] >= before, (now, before)
    before = now[0]
assert before > 0
write(folder, 0)
assert os.listdir(sys.argv[1]) == ['f'], os.listdir(sys.argv[1])
'''
    done = fresh_python.run(code, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
