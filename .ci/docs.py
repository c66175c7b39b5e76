"""Build the site from the notebooks into _docs/, and check it.

    python .ci/docs.py                 # with Quarto where it is on PATH, in pure Python (smalldocs) where it is not
    python .ci/docs.py --python        # in pure Python in any case
    python .ci/docs.py --serve 8000    # build, then show it on http://localhost:8000

The work is done by nbdev's own `nbdev_docs`, in a copy of the project, so that the checkout stays as it is. Before
it, pages are added that show the package's source; after it, links to the documented names and to their source
are pointed at the site's own pages, and formulas become MathML: the site needs nothing from the network.
"""

import argparse
import base64
import configparser
import functools
import html
import http.server
import json
import os
import posixpath
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).parent))
from check_site import check

root = Path(__file__).resolve().parents[1]
lib = 'triplet_fashion'
pages = 'CHANGELOG.md', 'CONTRIBUTING.md'  # shown on the site as well
shim = """#!{python}
# Stands in for Quarto: nbdev calls `quarto render` in the folder of the processed notebooks.
import sys
from smalldocs.site import build
if sys.argv[1:2] != ['render'] or '-o' in sys.argv: sys.exit(f'no Quarto here, and smalldocs cannot do: {{sys.argv[1:]}}')
for w in build('.', quiet=True).warnings:
    if not any(s in w for s in ('output-file is not read', 'html-math-method is ignored')): print('smalldocs:', w)
"""


class DocsError(RuntimeError):
    "A site that could not be built, and why."


def short(name):
    "A page's name without its room number, as nbdev's own links have it."
    head, _, tail = name.rpartition('/')
    return posixpath.join(
        head, re.sub(r'^\d+[a-zA-Z0-9]*_', '', tail.lower()) if re.match(r'\d', tail) else tail
    )


# ---- before nbdev_docs: the copy and its extra pages


def copy_project(dest):
    "Copy what the site is made from."
    dest.mkdir()
    skip = shutil.ignore_patterns('.*', '__pycache__', '_proc', '_docs', 'sidebar.yml', 'nbdev.yml')
    for name in ('nbs', lib):
        shutil.copytree(root / name, dest / name, symlinks=True, ignore=skip)
    for name in ('settings.ini', '_quarto.yml', 'LICENSE', *pages):
        if (root / name).exists():
            shutil.copy(root / name, dest / name)
    if not (dest / 'nbs' / '_quarto.yml').exists():
        shutil.copy(root / '_quarto.yml', dest / 'nbs')
    for name in ('LICENSE', *pages):
        if not (dest / name).exists():
            continue
        text = (dest / name).read_text(encoding='utf-8')
        (dest / 'nbs' / name).write_text(re.sub(r'\]\((?:\./)?nbs/', '](', text), encoding='utf-8')
    info = dest / f'{lib}.dist-info'  # nbdev finds the documented names by entry point
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {lib}\nVersion: 0\n')
    (info / 'entry_points.txt').write_text(f'[nbdev]\n{lib} = {lib}._modidx:d\n')


def source_pages(nbs):
    "Add a page for every module of the package, its lines numbered and linkable, and one that lists them."
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    style = HtmlFormatter(style='friendly').get_style_defs('.source-code')
    (nbs / 'source').mkdir()
    rows = []
    for path in sorted((root / lib).rglob('*.py')):
        name, text = path.relative_to(root / lib).as_posix(), path.read_text(encoding='utf-8')
        if path.name.startswith('_'):
            continue
        stem = name.removesuffix('.py')
        lines = (
            highlight(text, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))
            .rstrip('\n')
            .split('\n')
        )
        body = '\n'.join(
            f'<span class="line" id="L{i}"><a class="nr" href="#L{i}" aria-label="line {i}">{i}</a>{s}</span>'
            for i, s in enumerate(lines, 1)
        )
        nb = re.search(r'File to edit: \.\./nbs/(\S+\.ipynb)', text)
        about = (
            f'Exported from the notebook [{stem}](../{nb[1]}).'
            if nb and (nbs / nb[1]).exists()
            else ''
        )
        page = (nbs / 'source' / name).with_suffix('.qmd')
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(
            f'---\ntitle: {lib}/{name}\nsearch: false\ntoc: false\npage-layout: full\n---\n\n{about}\n\n'
            f'```{{=html}}\n<style>{style}</style>\n<div class="source-code"><pre>{body}\n</pre></div>\n```\n',
            encoding='utf-8',
        )
        says = re.match(r'"""(.*?)"""', text, re.S)
        rows.append(f'| [{stem}]({stem}.qmd) | {says[1].strip() if says else ""} | {len(lines)} |')
    table = '\n'.join(['| module | what it is for | lines |', '|---|---|--:|', *rows])
    (nbs / 'source' / 'index.qmd').write_text(
        f'---\ntitle: Source\ndescription: The package, as exported from the notebooks\n'
        f'search: false\ntoc: false\n---\n\n{table}\n',
        encoding='utf-8',
    )


def nbdev_docs(project, bin, pure):
    "Run nbdev's own command on the copy."
    path = os.environ.get('PATH', '')
    if pure or not shutil.which('quarto'):
        try:
            import smalldocs  # noqa: F401, only whether it is there
        except ImportError:
            raise DocsError(
                "neither Quarto nor smalldocs is installed: pip install -e '.[dev]' (Python 3.11 or later)"
            )
        bin.mkdir()
        (bin / 'quarto').write_text(shim.format(python=sys.executable))
        (bin / 'quarto').chmod(0o755)
        path = f'{bin}{os.pathsep}{path}'
    env = {
        **os.environ,
        'PATH': path,
        'PYTHONPATH': str(project),
        'TF_CPP_MIN_LOG_LEVEL': '3',
        'MPLBACKEND': 'Agg',
        'PYTHONDONTWRITEBYTECODE': '1',
    }
    env.pop('IN_TEST', None)  # nbdev would leave its index of names unmade
    (project / 'README.md').touch()  # newer than index.ipynb: nbdev leaves it to .ci/readme.py
    call = [
        sys.executable,
        '-c',
        'from nbdev.quarto import nbdev_docs; nbdev_docs()',
        '--n_workers',
        '2',
    ]
    out = subprocess.run(
        call,
        cwd=project,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
    )
    said = [
        l
        for l in out.stdout.splitlines()
        if not re.match(r'WARNING: All log messages|[IWE]\d{4} ', l)
    ]  # TensorFlow's greetings
    if said:
        print(*said, sep='\n', flush=True)
    if out.returncode:
        raise DocsError(f'nbdev_docs ended with status {out.returncode}')
    if not (project / '_docs' / 'index.html').exists():
        raise DocsError('nbdev_docs made no index.html')


# ---- after it: links, formulas, titles


def mathml(m):
    "One formula that smalldocs wrote for KaTeX, as MathML."
    from latex2mathml.converter import convert

    tex = html.unescape(m['tex']).strip()
    try:
        ml = convert(tex, display='block' if m['kind'] == 'display' else 'inline')
    except Exception as e:
        raise DocsError(f'a formula that latex2mathml cannot read: {tex} ({type(e).__name__}: {e})')
    ml = re.sub(
        r'<mo>(?=&#x0(?:2016|2225|007C|230[89AB]|27E[89]);)', '<mo stretchy="false">', ml
    )  # \\lVert and its like
    return f'<span class="math {m["kind"]}">{ml}</span>'


def math_font(site):
    "Put the glyphs that the formulas use beside the pages: not every machine has a font for mathematics."
    try:
        import ziamath
        from fontTools import subset
    except ImportError:
        return  # a Quarto without the dev extra: the reader's own font
    text = ''.join(p.read_text(encoding='utf-8') for p in site.rglob('*.html'))
    used = set(
        html.unescape(re.sub('<[^>]*>', '', ''.join(re.findall('<math.*?</math>', text, re.S))))
    )
    used |= {
        c
        for c in map(chr, (0x210E, *range(0x1D400, 0x1D800)))
        if unicodedata.normalize('NFKC', c) in used
    }
    if re.search('<m(sqrt|root)', text):
        used.add('√')  # drawn by the element: the text of the formula has none
    if not used:
        return
    src = Path(ziamath.__file__).parent / 'fonts' / 'STIXTwoMath-Regular.ttf'
    subset.main(
        [
            str(src),
            '--flavor=woff',
            '--text=' + ''.join(sorted(used)),
            f'--output-file={site / "math.woff"}',
        ]
    )
    with open(site / 'styles.css', 'a') as f:
        f.write(
            '@font-face { font-family: "STIX Two Math"; src: url(math.woff) format("woff"); }\n'
        )


def inches(png):
    "How wide a PNG was drawn, or None where it does not say."
    head = base64.b64decode(png[:4000])
    at = head.find(b'pHYs')
    if head[:4] != b'\x89PNG' or at < 0:
        return None
    (width,), (per_metre,) = (
        struct.unpack('>I', head[16:20]),
        struct.unpack('>I', head[at + 4 : at + 8]),
    )
    return width / (per_metre * 0.0254)


def widths(nbs):
    "How wide the figures are to be shown: 100 pixels an inch, whatever resolution they are stored in."
    res = {}
    for path in nbs.rglob('*.ipynb'):
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            for out in cell.get('outputs', []):
                for mime, meta in out.get('metadata', {}).items():
                    data = ''.join(out['data'][mime]).strip()
                    if 'width' in meta:
                        res[data] = (
                            round(100 * w)
                            if mime == 'image/png' and (w := inches(data))
                            else meta['width']
                        )
    return res


class Pages:
    "The built pages of a site, put right."

    def __init__(self, site, cfg, widths):
        self.site, self.widths = site, widths
        self.docs = re.compile(
            re.escape(f'{cfg["doc_host"]}{cfg["doc_baseurl"]}/')
            + r'(?P<page>[^"#]*)#?(?P<name>[^"]*)'
        )
        self.code = re.compile(
            re.escape(f'{cfg["git_url"]}/blob/{cfg["branch"]}/{lib}/')
            + r'(?P<page>[^"#]*)\.py#?(?P<name>[^"]*)'
        )
        # nbdev writes its Markdown links into code as well: into the comments of a signature
        self.in_code = re.compile(
            r'\[(`[^`\]<]+`)\]\(('
            + re.escape(f'{cfg["doc_host"]}{cfg["doc_baseurl"]}/')
            + r'[^)\s<]*)\)'
        )
        self.title = cfg['title']
        for p in list(site.rglob('*.html')):  # smalldocs keeps the room numbers, Quarto does not
            new = short(p.relative_to(site).as_posix())
            if new != p.relative_to(site).as_posix():
                p.rename(site / new)
        self.text = {
            p.relative_to(site).as_posix(): p.read_text(encoding='utf-8')
            for p in sorted(site.rglob('*.html'))
        }
        self.ids = {
            k: set(map(html.unescape, re.findall(r'\sid="([^"]+)"', v)))
            for k, v in self.text.items()
        }

    def href(self, page, url):
        "A link as it should read on a page."

        def rel(to, name):
            return posixpath.relpath(to, posixpath.dirname(page) or '.') + (
                f'#{name}' if name else ''
            )

        if m := self.code.fullmatch(url):
            return rel(f'source/{m["page"]}.html', m['name'])
        if m := self.docs.fullmatch(url):  # a method without a heading: its class; else the page
            to, name = m['page'] or 'index.html', unquote(m['name'])
            ids = self.ids.get(to, ())
            return rel(to, next((n for n in (name, name.rpartition('.')[0]) if n in ids), ''))
        if re.match(r'[a-zA-Z][\w+.-]*:|//|#', url):
            return url
        file, mark, rest = re.match(r'([^#?]*)([#?]?)(.*)', url).groups()
        return short(file) + mark + rest if file.endswith('.html') else url

    def image(self, m):
        "A stored picture in the size it was drawn for."
        width = self.widths.get(html.unescape(m[2]).strip())
        return m[0] + (f' width="{width}"' if width else '')

    def put_right(self):
        "Rewrite every page, and what the search looks up."
        for page, text in self.text.items():
            text = self.in_code.sub(r'<a href="\2">\1</a>', text)
            text = re.sub(
                r'(?<=\shref=")[^"]*(?=")',
                lambda m: html.escape(self.href(page, html.unescape(m[0]))),
                text,
            )
            text = re.sub(
                r'(<a href="[^"]*source/\w+\.html#L\d+") target="_blank"',
                r'\1 class="source-link"',
                text,
            )
            text = re.sub(
                r'<span class="math (?P<kind>inline|display)">\\[(\[](?P<tex>.*?)\\[)\]]</span>',
                mathml,
                text,
                flags=re.S,
            )
            text = re.sub(
                r'\s*<(link|script)\b[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*>(</script>)?', '', text
            )
            text = re.sub(r'<img src="(data:image/\w+;base64,([^"]*))"', self.image, text)
            if says := re.search(r'<meta name="description" content="([^"]*)"', text):

                def name(m):
                    return m[1].split(' – ')[0].split(' - ')[0]

                tail = '' if page == 'index.html' else f' – {self.title}'
                text = re.sub(
                    '<title>(.*?)</title>',
                    lambda m: f'<title>{name(m)}: {says[1]}{tail}</title>',
                    text,
                    count=1,
                    flags=re.S,
                )
            (self.site / page).write_text(text, encoding='utf-8')
        for name in ('search.json', 'sitemap.xml'):
            if not (self.site / name).exists():
                continue
            text = (self.site / name).read_text(encoding='utf-8')
            text = re.sub(r'(?<=["/])[\w/.-]*\.html(?=["#<])', lambda m: short(m[0]), text)
            (self.site / name).write_text(text, encoding='utf-8')
        if (self.site / 'search.json').exists():
            self.search()

    def search(self):
        "Leave the source and the marks of formulas out of the search."
        path = self.site / 'search.json'
        rows = [
            r
            for r in json.loads(path.read_text(encoding='utf-8'))
            if not r['href'].startswith('source/')
        ]
        for r in rows:
            r['text'] = re.sub(r'\\[()\[\]]', '', r['text'])
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding='utf-8')


def build(out, pure=False):
    "Build the site into the folder `out`, which is replaced."
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(root / 'settings.ini', encoding='utf-8')
    with tempfile.TemporaryDirectory(prefix='docs') as tmp:
        project = Path(tmp).resolve() / lib
        copy_project(project)
        source_pages(project / 'nbs')
        nbdev_docs(project, project.parent / 'bin', pure)
        site = project / '_docs'
        (site / '.nojekyll').touch()
        Pages(site, cfg['DEFAULT'], widths(project / 'nbs')).put_right()
        math_font(site)
        part = out.with_name(out.name + '.part')
        shutil.rmtree(part, ignore_errors=True)
        shutil.move(site, part)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=root / '_docs',
        help='the folder to build, replaced (default: _docs)',
    )
    parser.add_argument(
        '--python', action='store_true', help='with smalldocs even where Quarto is installed'
    )
    parser.add_argument(
        '--serve', type=int, metavar='PORT', help='show the site on this port when it is built'
    )
    args = parser.parse_args()
    try:
        build(args.out.resolve(), args.python)
    except DocsError as e:
        sys.exit(f'docs: {e}')
    faults = check(args.out)
    for fault in faults:
        print(fault)
    n = len(list(args.out.rglob('*.html')))
    print(f'{n} pages in {args.out}, {len(faults)} faults', flush=True)
    if args.serve:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=args.out)
        http.server.ThreadingHTTPServer(('localhost', args.serve), handler).serve_forever()
    sys.exit(bool(faults))


if __name__ == '__main__':
    main()
