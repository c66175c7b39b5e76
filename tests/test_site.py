"The site: built, without faults, and right in a browser."

import functools
import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(
    p
    for p in (ROOT / 'nbs').rglob('*.ipynb')
    if not any(s[0] in '._' for s in p.relative_to(ROOT).parts)
)
CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))),
    None,
)


def tree():
    "What the checkout holds, by content; the work of other tools left out."
    skip = {'__pycache__', '_docs', 'build', 'dist', 'runs'}
    return {
        p.relative_to(ROOT).as_posix(): hashlib.sha1(p.read_bytes()).hexdigest()
        for p in ROOT.rglob('*')
        if p.is_file()
        and not any(
            s in skip or s[0] == '.' or s.endswith('.egg-info') for s in p.relative_to(ROOT).parts
        )
    }


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The site, what the builder said, and the checkout before it.

    `.ci/run` says where it wants the site."""
    for name in 'nbdev', 'smalldocs', 'ziamath':
        pytest.importorskip(
            name,
            reason=f"{name} is not installed: pip install -e '.[dev]' (smalldocs: Python 3.11)",
        )
    before = tree()
    out = Path(os.environ.get('TRIPLET_FASHION_SITE') or tmp_path_factory.mktemp('site') / '_docs')
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    call = [sys.executable, '.ci/docs.py', '--python', '--out', str(out)]
    return (
        out,
        subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True, errors='replace'),
        before,
    )


@pytest.fixture(scope='module')
def site(built):
    out, said, _ = built
    if not (out / 'index.html').exists():
        pytest.fail(said.stdout[-3000:] + said.stderr[-6000:], pytrace=False)
    return out


def test_builds_without_faults(built):
    _, said, _ = built
    assert said.returncode == 0, said.stdout[-6000:] + said.stderr[-6000:]
    assert ', 0 faults' in said.stdout


def test_leaves_the_checkout_alone(built):
    assert tree() == built[2]


def page_of(path):
    return (
        path.relative_to(ROOT / 'nbs')
        .with_name(re.sub(r'^\d+_', '', path.name))
        .with_suffix('.html')
        .as_posix()
    )


def test_every_notebook_has_its_page_in_order(site):
    start = (site / 'index.html').read_text(encoding='utf-8')
    bar = start[start.index('id="quarto-sidebar"') : start.index('id="quarto-sidebar-glass"')]
    listed = [re.sub(r'^\./', '', h) for h in re.findall(r'href="([^"#]+)"', bar)]
    rooms = [page_of(p) for p in NOTEBOOKS if re.match(r'\d\d_', p.name)]
    assert {page_of(p) for p in NOTEBOOKS} == set(listed), (
        'the sidebar in _quarto.yml and the notebooks differ'
    )
    assert [h for h in listed if h in rooms] == rooms
    assert (ROOT / '_quarto.yml').read_text() == (ROOT / 'nbs/_quarto.yml').read_text(), (
        'quarto reads one, nbdev the other'
    )


def test_source_links_lead_to_the_definition(site):
    seen = 0
    link = (
        r'href="(?:\.\./)?source/([\w/]+)\.html#L(\d+)" class="source-link"'
        r'.*?<h3[^>]*>([^<]+)<'
    )
    for path in (p for p in NOTEBOOKS if re.match(r'\d\d_', p.name)):
        text = (site / page_of(path)).read_text(encoding='utf-8')
        for file, line, name in re.findall(link, text, re.S):
            code = (
                (ROOT / 'triplet_fashion' / f'{file}.py').read_text(encoding='utf-8').splitlines()
            )
            assert re.search(
                rf'\b{re.escape(name.strip().split(".")[-1])}\b',
                '\n'.join(code[int(line) - 1 : int(line) + 4]),
            ), (path.name, name, line)
            seen += 1
    assert seen


def test_the_font_for_formulas_has_the_root_sign(site):
    "It stands in no formula's text: <msqrt> draws it, and without the glyph draws nothing."
    from fontTools.ttLib import TTFont

    pages = ''.join(p.read_text(encoding='utf-8') for p in site.glob('*.html'))
    assert '<msqrt' in pages and 0x221A in TTFont(site / 'math.woff').getBestCmap()


# ---- the checker itself


def checker():
    spec = importlib.util.spec_from_file_location('check_site', ROOT / '.ci' / 'check_site.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.check


GOOD = (
    '<html><head><title>{0}</title></head><body><main><h2 id="a">A</h2><a href="{1}">x</a>'
    '<svg></svg></main></body></html>'
)


def test_checker_is_content_with_a_good_site(tmp_path):
    (tmp_path / 'index.html').write_text(GOOD.format('one', 'two.html#a'))
    (tmp_path / 'two.html').write_text(GOOD.format('two', './#a'))
    assert checker()(tmp_path) == []


@pytest.mark.parametrize(
    'bad, says',
    [
        ('<a href="gone.html">x</a>', 'gone.html leads nowhere'),
        ('<a href="two.html#b">x</a>', 'two.html#b has no such anchor'),
        ('<a href="/two.html">x</a>', 'root of a host'),
        (
            '<a href="https://github.com/triplet-fashion/triplet_fashion/blob/main/x.py#LNone">x</a>',
            'need not exist',
        ),
        ('<img src="gone.png">', 'gone.png leads nowhere'),
        ('<script src="https://cdn.example/x.js"></script>', 'loads https://cdn.example/x.js'),
        ('<pre>Traceback (most recent call last): x</pre>', 'Traceback'),
        (r'<p>\(x^2\)</p>', 'a formula is not set'),
        ('<h2>Tests -</h2>', 'was to stay out'),
        ('<p id="a">x</p>', 'stands there twice'),
    ],
    ids=[
        'page',
        'anchor',
        'root',
        'foreign',
        'picture',
        'script',
        'traceback',
        'formula',
        'heading',
        'id',
    ],
)
def test_checker_finds(tmp_path, bad, says):
    (tmp_path / 'index.html').write_text(
        GOOD.format('one', 'two.html').replace('<svg>', bad + '<svg>')
    )
    (tmp_path / 'two.html').write_text(GOOD.format('two', 'index.html'))
    faults = checker()(tmp_path)
    assert len(faults) == 1 and says in faults[0]


def test_checker_finds_pages_that_show_nothing(tmp_path):
    (tmp_path / 'index.html').write_text(GOOD.format('one', '#a').replace('<svg></svg>', ''))
    (tmp_path / 'two.html').write_text(GOOD.format('one', 'index.html'))
    (tmp_path / 'x.css').write_text('@import url("//fonts.example/x.css");')
    said = ' '.join(checker()(tmp_path))
    for part in (
        'neither an output nor a picture',
        'the same title',
        'no page leads there',
        'fetches from the network',
    ):
        assert part in said


# ---- in a browser

PROBE = """<!doctype html><body><script>
const wait = ms => new Promise(done => setTimeout(done, ms));
async function open(page, width) {
  document.querySelectorAll('iframe').forEach(f => f.remove());
  const f = document.createElement('iframe');
  f.style = `width:${width}px;height:900px;border:0`;
  const loaded = new Promise(done => f.onload = done);
  f.src = page;
  document.body.append(f);
  await loaded;
  return f;
}
async function search(words) {
  const d = (await open('index.html', 1200)).contentDocument;
  const box = d.querySelector('#quarto-search input');
  box.focus(); box.value = words;
  box.dispatchEvent(new Event('input', {bubbles: true}));
  for (let i = 0; i < 50 && !d.querySelector('.search-result'); i++) await wait(100);
  const href = a => a.getAttribute('href') || a.querySelector('a')?.getAttribute('href');
  return [...d.querySelectorAll('.search-result')].map(href);
}
async function look() {
  const res = {wide: [], pictures: [], fetched: [], pages: 0};
  for (const page of PAGES) for (const width of [390, 1280]) {
    const f = await open(page, width), d = f.contentDocument;
    res.pages += 1;
    const clips = e => getComputedStyle(e).overflowX != 'visible';
    const scrolls = e => e.tagName != 'MAIN' && (clips(e) || scrolls(e.parentElement));
    for (const e of d.querySelectorAll('main *')) { // the page itself clips, so it never scrolls
      const beyond = e.getBoundingClientRect().right > width + 1;
      if (beyond && !scrolls(e.parentElement))
        res.wide.push([page, width, e.tagName, e.className]);
    }
    for (const img of d.images) {
      await img.decode().catch(() => 0);
      if (!img.naturalWidth) res.pictures.push([page, img.src.slice(0, 80)]);
    }
    for (const {name} of f.contentWindow.performance.getEntriesByType('resource')) {
      const own = name.startsWith(location.origin) || name.startsWith('data:');
      if (!own) res.fetched.push([page, name]);
    }
  }
  res.found = await search('WORDS');
  return res;
}
const tell = res => fetch('result', {method: 'POST', body: JSON.stringify(res)});
look().catch(e => ({error: String(e)})).then(tell);
</script>"""


class Server(http.server.ThreadingHTTPServer):
    "Serves a folder, and takes what the probe sends back."

    daemon_threads, result = True, None

    def __init__(self, folder):
        self.told = threading.Event()
        super().__init__(('127.0.0.1', 0), functools.partial(Handler, directory=folder))


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        self.server.result = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.send_response(204)
        self.end_headers()
        self.server.told.set()


@pytest.fixture(scope='module')
def seen(site, tmp_path_factory):
    "What a headless Chromium saw on every page, as a phone and as a desktop."
    if not CHROMIUM:
        pytest.skip('no Chromium on this machine: apt-get install chromium')
    pages = sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html'))
    copy = tmp_path_factory.mktemp('served') / 'site'
    shutil.copytree(site, copy)
    (copy / 'probe.html').write_text(
        PROBE.replace('PAGES', json.dumps(pages)).replace('WORDS', 'anchor positive negative')
    )
    server = Server(copy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    call = [
        CHROMIUM,
        '--headless=new',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-dev-shm-usage',
        '--no-first-run',
        '--window-size=1400,1000',
        f'--user-data-dir={tmp_path_factory.mktemp("profile")}',
        f'http://127.0.0.1:{server.server_port}/probe.html',
    ]
    log = (copy.parent / 'chromium.log').open('w+')
    browser = subprocess.Popen(call, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        if not server.told.wait(180):
            pytest.fail(
                f'nothing from Chromium in 180 s\n{log.seek(0) or log.read()[-2000:]}',
                pytrace=False,
            )
    finally:
        browser.terminate()
        browser.wait(20)
        server.shutdown()
        server.server_close()
    res = server.result
    assert 'error' not in res, res
    assert res['pages'] == 2 * len(pages)
    return res


def test_no_page_is_wider_than_its_window(seen):
    assert seen['wide'] == []


def test_every_picture_is_shown(seen):
    assert seen['pictures'] == []


def test_nothing_comes_from_the_network(seen):
    assert seen['fetched'] == []


def test_search_finds(seen):
    assert any('.html' in h for h in seen['found'])
