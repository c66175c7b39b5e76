"Folders of every kind as catalogues, the audit, the drawn catalogue, and moving folders without losing a file."
import os, shutil, subprocess, sys, time, unicodedata
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from triplet_fashion import catalog as room
from triplet_fashion.catalog import Catalog, class_dict, draw_catalog, listdir_fullpath, sub_dir


def fill(root, *names, content=None):
    "Files by relative name, each with its own name as its content."
    for n in names:
        p = root/n
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(content if content is not None else n.encode())
    return root


def photos(root, *names):
    "Small real photos, all different."
    for i, n in enumerate(names):
        p = root/n
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 24, 3)).astype(np.uint8)).save(p)
    return root


def tree(root): return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob('*')) if p.is_file()}


# listing

def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    fill(tmp_path, *(f'p{k}/{j}.jpg' for k in (3, 1, 2) for j in (2, 0, 1)))
    want, real, scan = Catalog.from_dir(tmp_path), os.listdir, os.scandir
    monkeypatch.setattr(os, 'listdir', lambda d: real(d)[::-1])
    class Back(list):
        def __enter__(self): return self
        def __exit__(self, *a): pass
    monkeypatch.setattr(os, 'scandir', lambda d: Back(sorted(scan(d), key=lambda e: e.name[::-1], reverse=True)))
    assert Catalog.from_dir(tmp_path).paths == want.paths
    assert class_dict(tmp_path) == {0: 'p1', 1: 'p2', 2: 'p3'} == want.class_dict


def test_the_seeds_listing(tmp_path):
    fill(tmp_path, 'b/1.jpg', 'a/1.jpg', '.DS_Store', 'Thumbs.db', 'notes.txt')
    (tmp_path/'.git').mkdir()
    assert listdir_fullpath(tmp_path) == [str(tmp_path/n) for n in ('a', 'b', 'notes.txt')]
    assert sorted(listdir_fullpath(tmp_path, hidden=True)) == sorted(os.path.join(tmp_path, f) for f in os.listdir(tmp_path))
    assert class_dict(str(tmp_path)) == {0: 'a', 1: 'b'}


@pytest.mark.parametrize('layout,found', [('flat', ['a/1.jpg', 'a/2.PNG']), ('nested', ['a/a/3.jpg', 'b/b/4.webp']), ('auto', ['a/1.jpg', 'a/2.PNG', 'a/a/3.jpg', 'b/b/4.webp'])])
def test_layouts(layout, found, tmp_path):
    cat = Catalog.from_dir(fill(tmp_path, 'a/1.jpg', 'a/2.PNG', 'a/a/3.jpg', 'b/b/4.webp'), layout=layout)
    assert cat.ids == found and cat.class_names == ['a', 'b']


def test_what_is_left_out_is_counted_with_its_reason(tmp_path):
    fill(tmp_path, 'a/1.jpg', 'a/readme.txt', 'a/._1.jpg', 'a/sub/2.jpg', 'loose.jpg', '.DS_Store', 'b/x.heic', '__MACOSX/a/1.jpg')
    (tmp_path/'a/gone.jpg').symlink_to(tmp_path/'nowhere.jpg')
    os.mkfifo(tmp_path/'a/pipe.jpg')
    cat = Catalog.from_dir(tmp_path)
    assert cat.ids == ['a/1.jpg'] and cat.class_names == ['a', 'b'] and list(cat.products) == [0]
    reasons = {Path(p).relative_to(tmp_path).as_posix(): r for p, r in cat.skipped}
    assert reasons == {
        'a/readme.txt': 'not a photo by its name', 'a/._1.jpg': 'hidden or system file', 'a/sub': 'sub-folder', 'loose.jpg': 'photo outside any product folder',
        '.DS_Store': 'hidden or system file', '__MACOSX': 'hidden or system file', 'b/x.heic': 'not a photo by its name', 'b': 'product folder without photos',
        'a/gone.jpg': 'link that leads nowhere', 'a/pipe.jpg': 'not a regular file'}
    assert repr(cat) == f'{tmp_path.name}: 1 photos of 1 products, 7 other entries left out'
    assert 'not listed, not a photo by its name' in str(cat.audit())


@pytest.mark.parametrize('names,error,text', [
    ([], ValueError, 'is empty'), (['1.jpg', '2.jpg'], ValueError, 'holds 2 photos but no folders'), (['readme.txt'], ValueError, 'holds no folders'),
    (['a/readme.txt', 'b/x.txt'], ValueError, r'no photos in its 2 folders \(a, b\)'), (['men/tees/1/1.jpg'], ValueError, 'right above the products'),
    (['.git/a.jpg'], ValueError, 'holds no folders')])
def test_folders_that_are_no_catalogue(names, error, text, tmp_path):
    with pytest.raises(error, match=text) as e: Catalog.from_dir(fill(tmp_path, *names))
    assert str(tmp_path) in str(e.value)


def test_roots_that_are_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'): Catalog.from_dir(tmp_path/'nowhere')
    (tmp_path/'f').touch()
    with pytest.raises(NotADirectoryError, match='is a file'): Catalog.from_dir(tmp_path/'f')
    with pytest.raises(ValueError, match="layout must be one of auto, flat, nested, not 'deep'"): Catalog.from_dir(tmp_path, layout='deep')


def test_links_that_go_round(tmp_path):
    fill(tmp_path, 'a/1.jpg')
    (tmp_path/'self').symlink_to(tmp_path/'self')
    (tmp_path/'up').symlink_to(tmp_path, target_is_directory=True)
    (tmp_path/'a/a').symlink_to(tmp_path/'a', target_is_directory=True)
    cat = Catalog.from_dir(tmp_path)
    assert set(cat.ids) == {'a/1.jpg', 'a/a/1.jpg'}             # a photo found twice by name is found by the audit
    assert ('link that leads nowhere') in {r for _, r in cat.skipped}
    assert Catalog.from_dir(tmp_path, layout='flat').ids == ['a/1.jpg']


def test_names_in_two_unicode_forms_are_one_name(tmp_path):
    name = '여름 원피스 (파랑)'
    nfd = unicodedata.normalize('NFD', name)
    linux, mac = (Catalog.from_dir(fill(tmp_path/d, f'{n}/{n}/1.jpg', 'zz/1.jpg', 'aa/1.jpg')) for d, n in (('linux', name), ('mac', nfd)))
    assert len(linux) == len(mac) == 3 and list(linux.labels) == list(mac.labels)
    shared = Catalog.from_dir(tmp_path/'mac', class_names=linux)
    assert shared.class_names == linux.class_names and list(shared.labels) == list(linux.labels)


def test_names_that_are_not_text(tmp_path):
    folder = os.fsencode(tmp_path)+b'/a\xff'
    os.mkdir(folder)
    open(folder+b'/1.jpg', 'wb').close()
    cat = Catalog.from_dir(tmp_path)
    assert len(cat) == 1 and cat._repr_html_().encode() and cat.audit()._repr_html_().encode() and str(cat.audit())


def test_ids_shared_with_another_catalogue(tmp_path):
    train = Catalog.from_dir(fill(tmp_path/'train', 'a/1.jpg', 'b/1.jpg', 'd/1.jpg'))
    val = fill(tmp_path/'val', 'c/1.jpg', 'd/2.jpg', 'b/2.jpg')
    assert dict(zip(Catalog.from_dir(val).ids, Catalog.from_dir(val).labels)) == {'b/2.jpg': 0, 'c/1.jpg': 1, 'd/2.jpg': 2}
    shared = Catalog.from_dir(val, class_names=train.class_names)
    assert dict(zip(shared.ids, shared.labels)) == {'b/2.jpg': 1, 'd/2.jpg': 2, 'c/1.jpg': 3}
    assert shared.class_names == ['a', 'b', 'd', 'c'] and train.class_names == ['a', 'b', 'd']


def test_fifty_thousand_files_in_seconds(tmp_path):
    for c in range(500):
        (tmp_path/f'p{c}').mkdir()
        for k in range(100): os.close(os.open(f'{tmp_path}/p{c}/{k}.jpg', os.O_CREAT))
    start = time.process_time()
    cat = Catalog.from_dir(tmp_path)
    assert len(cat) == 50_000 and cat.num_classes == 500 and time.process_time()-start < 5


def test_listing_imports_no_tensorflow(tmp_path, root):
    fill(tmp_path, 'a/1.jpg', 'b/1.jpg')
    code = f"import sys; from triplet_fashion.catalog import Catalog; c = Catalog.from_dir({str(tmp_path)!r}); c.audit(); print(len(c), sorted({{'tensorflow', 'keras', 'matplotlib'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root, check=True).stdout == '2 []\n'


# the object

def test_wrong_columns_name_themselves():
    with pytest.raises(ValueError, match='2 paths but 1 labels'): Catalog(['a', 'b'], [0], ['x'])
    with pytest.raises(ValueError, match='labels run from 0 to 1, but there are 1'): Catalog(['a', 'b'], [0, 1], ['x'])
    with pytest.raises(ValueError, match='labels run from -1'): Catalog(['a'], [-1], ['x'])
    with pytest.raises(ValueError, match="holds 'x' twice"): Catalog(['a'], [0], ['x', 'x'])


def test_parts_keep_ids_and_empty_parts_work():
    cat = Catalog([f'{k}.jpg' for k in range(6)], [0, 0, 1, 2, 2, 2], list('abcd'))
    assert cat.labels.dtype == np.int32 and cat[-1] == ('5.jpg', 2)
    assert cat[1:3].paths == ['1.jpg', '2.jpg'] and cat[np.array([5, 0])].labels.tolist() == [2, 0]
    assert cat[cat.labels == 2].class_names == list('abcd')
    assert len(cat[[]]) == 0 and len(cat.subset(np.zeros(6, bool))) == 0 and list(cat[[]].products) == []
    assert cat.at_least(3).paths == ['3.jpg', '4.jpg', '5.jpg'] and len(cat.at_least(4)) == 0
    assert cat.exclude(['0.jpg', 'unknown.jpg']).paths == cat.paths[1:]
    assert len(cat.sample(99)) == 6 and cat.sample(3, seed=1).paths != cat.sample(3, seed=2).paths
    with pytest.raises(ValueError, match='a mask of 2 for 6'): cat.subset(np.array([True, False]))
    with pytest.raises(IndexError): cat.subset([6])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=12), valid=st.floats(.01, .99), by=st.sampled_from(['product', 'photo']), seed=st.integers(0, 99))
def test_splits_part_a_catalogue(sizes, valid, by, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    cat = Catalog([f'{k}.jpg' for k in range(len(labels))], labels, [f'c{k}' for k in range(len(sizes))])
    a, b = cat.split(valid, by, seed)
    assert sorted(a.paths+b.paths) == sorted(cat.paths) and a.class_names == b.class_names == cat.class_names
    assert cat.split(valid, by, seed)[1].paths == b.paths
    if by == 'product': assert len(a) and len(b) and not set(a.products) & set(b.products)
    else:
        assert set(a.products) == set(cat.products)
        assert all(abs((b.labels == c).sum() - valid*n) < 1+1e-9 or n == 1 for c, n in enumerate(sizes))


def test_split_errors():
    one = Catalog(['a', 'b'], [0, 0], ['x'])
    with pytest.raises(ValueError, match='1 product: nothing to hold out'): one.split()
    with pytest.raises(ValueError, match='between 0 and 1, not 1.5'): one.split(1.5)
    with pytest.raises(ValueError, match="by must be"): one.split(by='class')


def test_pictures(drawn):
    import matplotlib.pyplot as plt
    html = drawn._repr_html_()
    assert html.count('<img') == 8 and 'and 4 more' in html and len(html) < 100_000 and str(drawn.root) not in html
    ax = drawn.show(products=3, photos=4)
    assert [t.get_text() for t in ax.get_yticklabels()][0].startswith('(0000)') and len(ax.get_yticks()) == 3
    with pytest.raises(ValueError, match='nothing to show'): drawn[[]].show()
    plt.close('all')


def test_pictures_escape_names_and_survive_bad_photos(tmp_path):
    import matplotlib.pyplot as plt
    cat = Catalog.from_dir(fill(tmp_path, '<script>alert(1)</script>'.replace('/', '|')+'/1.jpg', 'b $x$/2.jpg'))
    assert '<script>' not in cat._repr_html_() and '<script>' not in cat.audit()._repr_html_()
    cat.show().figure.canvas.draw()
    plt.close('all')


# audit

def test_audit_finds_each_fault_once(tmp_path):
    photos(tmp_path, *(f'{c}/{k}.png' for c in 'abcde' for k in range(4)))
    fill(tmp_path, 'a/cut.png', content=(tmp_path/'a/0.png').read_bytes()[:500])
    fill(tmp_path, 'a/web.jpg', content=b'<html>')
    fill(tmp_path, 'b/none.jpg', content=b'')
    Image.new('RGB', (9, 40)).save(tmp_path/'b/dot.png')
    shutil.copy(tmp_path/'c/0.png', tmp_path/'d/twin.png')
    shutil.copy(tmp_path/'c/1.png', tmp_path/'c/twin.png')
    shutil.copy(tmp_path/'c/1.png', tmp_path/'c/twin2.png')
    for k in (1, 2, 3): (tmp_path/f'e/{k}.png').unlink()
    before, steps = tree(tmp_path), []
    cat = Catalog.from_dir(tmp_path)
    audit = cat.audit(progress=lambda done, n: steps.append((done, n)))
    assert {Path(o['path']).relative_to(tmp_path).as_posix(): o['problem'].split(':')[0] for o in audit.table} == {
        'a/cut.png': 'truncated', 'a/web.jpg': 'not an image', 'b/none.jpg': 'empty file', 'b/dot.png': 'too small', 'c/0.png': 'same file in two products',
        'd/twin.png': 'same file in two products', 'c/twin.png': 'same file twice in a product', 'c/twin2.png': 'same file twice in a product'}
    assert audit.counts['same file in two products'] == 2 and sum(audit.counts.values()) == 8
    assert 'd/twin.png' in next(o['problem'] for o in audit.table if o['path'].endswith('c/0.png'))
    assert len(audit.clean) == len(cat)-8 and not audit.clean.audit().table and audit.clean.num_classes == 5
    assert [cat.class_names[c] for c in audit.singles] == ['e'] and len(audit.emptied) == 0
    assert steps[-1] == (len(cat), len(cat)) and tree(tmp_path) == before
    assert 'truncated' in repr(audit) and '<table>' in audit._repr_html_()


def test_audit_of_a_product_with_nothing_left(tmp_path):
    audit = Catalog.from_dir(fill(photos(tmp_path, 'a/1.png', 'a/2.png'), 'b/1.jpg', 'b/2.jpg')).audit()
    assert [audit.catalog.class_names[c] for c in audit.emptied] == ['b'] and 'product with no photo left' in str(audit)


def test_audit_of_nothing(tmp_path): assert Catalog([], [], ['a']).audit().table == []


def test_audit_of_real_photos(clothing):
    audit = Catalog.from_dir(clothing/'validation').sample(120).audit()
    assert audit.counts.get('truncated', 0) == 0 and len(audit.clean) >= 110


# the drawn catalogue

def test_drawn_catalogue_is_the_same_byte_for_byte(tmp_path):
    a, b, c = (draw_catalog(tmp_path/n, 3, 2, seed=s, size=(32, 48)) for n, s in (('a', 4), ('b', 4), ('c', 5)))
    assert tree(tmp_path/'a') == tree(tmp_path/'b') and tree(tmp_path/'a') != tree(tmp_path/'c')
    assert len(a) == 6 and a.ids == b.ids and Image.open(a.paths[0]).size == (48, 32)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ['a', 'b', 'c'] and not a.audit().table
    part = draw_catalog(tmp_path/'more', 4, 3, seed=4, size=(32, 48))
    assert {k: v for k, v in tree(tmp_path/'a').items() if k.endswith('jpg')}.items() <= tree(tmp_path/'more').items() and len(part) == 12


def test_drawn_catalogue_is_complete_or_not_there(tmp_path, monkeypatch):
    real, calls = room.draw_photo, []
    def breaks(*a, **k):
        calls.append(1)
        if len(calls) > 3: raise RuntimeError('power cut')
        return real(*a, **k)
    monkeypatch.setattr(room, 'draw_photo', breaks)
    with pytest.raises(RuntimeError): draw_catalog(tmp_path/'d', 3, 3, size=(32, 32))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(room, 'draw_photo', real)
    (tmp_path/'d').mkdir()
    assert len(draw_catalog(tmp_path/'d', 3, 3, size=(32, 32))) == 9
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/tax.txt').touch()
    with pytest.raises(FileExistsError, match='mine is not empty'): draw_catalog(tmp_path/'mine', 3, 3)
    with pytest.raises(FileExistsError): draw_catalog(tmp_path/'d', 3, 4, size=(32, 32))
    with pytest.raises(ValueError, match='at least 1'): draw_catalog(tmp_path/'e', 0)


def test_an_incomplete_drawn_catalogue_is_not_taken_for_whole(tmp_path):
    cat = draw_catalog(tmp_path/'d', 2, 2, size=(32, 32))
    os.unlink(cat.paths[0])
    with pytest.raises(FileExistsError): draw_catalog(tmp_path/'d', 2, 2, size=(32, 32))


# one level deeper

def deeper(names): return {f'{n.split("/")[0]}/{n}': n.encode() for n in names}

FILES = ['a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'b/x/y.jpg', '여름 (파랑)/1.jpg']


def cross_device(monkeypatch, old, new):
    "Renames from `old` to `new` fail as between file systems."
    real = os.rename
    def rename(a, b, **k):
        if str(a).startswith(str(old)) and str(b).startswith(str(new)): raise OSError(18, 'Invalid cross-device link')
        return real(a, b, **k)
    monkeypatch.setattr(os, 'rename', rename)


@pytest.mark.parametrize('across', [False, True])
def test_sub_dir_moves_one_level_deeper(across, tmp_path, monkeypatch):
    old, new = fill(tmp_path/'old', *FILES, 'loose.txt', '.hidden/1.jpg'), tmp_path/'new'
    if across: cross_device(monkeypatch, old, new)
    plan = sub_dir(old, new, dry_run=True)
    assert plan == [(str(old/n), str(new/n/n)) for n in ('a', 'b', '여름 (파랑)')] and not new.exists()
    assert sub_dir(str(old), str(new)) == plan
    assert tree(new) == deeper(FILES) and tree(old) == {n: n.encode() for n in ('loose.txt', '.hidden/1.jpg')}
    assert sub_dir(old, new) == [] and len(Catalog.from_dir(new, layout='nested')) == 4      # b/x is a sub-folder


def test_sub_dir_across_real_file_systems(tmp_path):
    shm = Path('/dev/shm')
    if not shm.is_dir() or not os.access(shm, os.W_OK) or os.stat(shm).st_dev == os.stat(tmp_path).st_dev: pytest.skip('no second file system to write to')
    new = shm/f'sub_dir-{os.getpid()}'
    try:
        sub_dir(fill(tmp_path/'old', *FILES), new)
        assert tree(new) == deeper(FILES) and tree(tmp_path/'old') == {}
    finally: shutil.rmtree(new, ignore_errors=True)


@pytest.mark.parametrize('taken', ['b/b/1.jpg', 'b/b', 'b'])
def test_sub_dir_overwrites_nothing(taken, tmp_path):
    old, new = fill(tmp_path/'old', *FILES), fill(tmp_path/'new', taken, content=b'precious')
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match='nothing moved: 1 destinations'): sub_dir(old, new)
    with pytest.raises(FileExistsError): sub_dir(old, new, dry_run=True)
    assert tree(tmp_path) == before


def test_sub_dir_refuses_what_would_lose_files(tmp_path):
    old = fill(tmp_path/'old', *FILES)
    for new in (old, old/'new', tmp_path/'x/../old'):
        with pytest.raises(ValueError, match='lies inside'): sub_dir(old, new)
    (old/'link').symlink_to('a')
    with pytest.raises(ValueError, match='link is a link'): sub_dir(old, tmp_path/'new')
    with pytest.raises(FileNotFoundError, match='no such folder'): sub_dir(tmp_path/'gone', tmp_path/'new')
    with pytest.raises(NotADirectoryError): sub_dir(old/'a/1.jpg', tmp_path/'new')
    assert len(tree(old)) == len(FILES)+0 and not (tmp_path/'new').exists()


KILLER = '''
import os, shutil, sys
from pathlib import Path
from triplet_fashion.catalog import sub_dir
root, across = Path(sys.argv[1]), sys.argv[2] == 'across'
FILES = ['a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'b/x/y.jpg']
old, new = root/'old', root/'new'

def child(k):
    "Move, but die before system call number k, half of the file written where it is a copy."
    calls = [0]
    def dies(f, half=None):
        def g(*a, **kw):
            calls[0] += 1
            if calls[0] == k:
                if half: half(*a)
                os._exit(9)
            if across and f is rename and str(a[0]).startswith(str(old)): raise OSError(18, 'cross-device')
            return f(*a, **kw)
        return g
    rename = os.rename
    def half(src, dst, **kw): Path(dst).write_bytes(Path(src).read_bytes()[:3])
    os.mkdir, os.unlink, os.rmdir, os.rename = dies(os.mkdir), dies(os.unlink), dies(os.rmdir), dies(rename)
    shutil.copyfile = dies(shutil.copyfile, half)
    sub_dir(old, new)
    os._exit(0)

for k in range(1, 200):
    for d in (old, new): shutil.rmtree(d, ignore_errors=True)
    for n in FILES:
        (old/n).parent.mkdir(parents=True, exist_ok=True)
        (old/n).write_bytes(n.encode())
    for attempt, again in enumerate((k, k, 10**9)):   # killed at call k, killed at call k of the second try, then left alone
        pid = os.fork()
        if not pid: child(again)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for n in FILES:
            c = n.split('/')[0]
            copies = [p for p in (old/n, new/c/n) if p.exists()]
            assert copies and all(p.read_bytes() == n.encode() for p in copies), (k, n, copies)
        if code == 0: break
    assert code == 0, (k, code)
    assert {str(p.relative_to(new)) for p in new.rglob('*') if p.is_file()} == {f"{n.split('/')[0]}/{n}" for n in FILES}, k
    assert not list(old.iterdir()), k
    if not attempt: break                  # ran through without being killed: k is past the last call
print('killed', k-1)
'''


@pytest.mark.parametrize('how,least', [('rename', 5), ('across', 15)])
def test_sub_dir_killed_at_every_point_loses_nothing_and_goes_on(how, least, tmp_path, root):
    done = subprocess.run([sys.executable, '-c', KILLER, str(tmp_path), how], capture_output=True, text=True, cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) >= least


def test_ids_are_made_once(drawn):
    "A loop over `catalog.ids[i]` must not grow with the square of the photos."
    assert drawn.ids is drawn.ids
