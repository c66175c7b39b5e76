"""Look for faults in a built site: python .ci/check_site.py [_docs]

Links and anchors that lead nowhere, pictures that are absent, tracebacks and warnings in stored outputs, anything
that is fetched from the network, formulas that were not set, headings meant to stay out, pages without a title, notebook pages that show
neither an output nor a picture, pages that no other page leads to.
"""

import posixpath
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

bad_text = re.compile(
    r'Traceback \(most recent call last\)|\bFutureWarning\b|\bUserWarning:|/tmp/\w|/home/\w|/root/|<ipython-input'
)
unset = re.compile(r'\\[(\[].+?\\[)\]]|\$\$')
broken_link = re.compile(r'\]\([^)\s]*\.(?:ipynb|html|md)[^)\s]*\)')
fetches = re.compile(r'@import\s+(?:url\()?["\']?(?:https?:)?//|url\(["\']?(?:https?:)?//')
loaded = {
    'script': 'src',
    'img': 'src',
    'iframe': 'src',
    'link': 'href',
    'source': 'src',
    'video': 'src',
}
skipped_text = {'script', 'style', 'math', 'pre', 'code', 'title'}


class Page(HTMLParser):
    "What a page holds: ids, links, what it loads, its text."

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.ids, self.links, self.loads, self.double = set(), [], [], set()
        self.title, self.prose, self.words = '', [], []
        self.outputs = self.pictures = 0
        self.stack, self.in_main, self.headings, self.heading = [], 0, [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'):
            if a['id'] in self.ids:
                self.double.add(a['id'])
            self.ids.add(a['id'])
        if tag == 'a' and a.get('name'):
            self.ids.add(a['name'])
        if tag == 'a' and a.get('href') is not None:
            self.links.append(a['href'])
        if tag in loaded and a.get(loaded[tag]):
            self.loads.append(a[loaded[tag]])
        if tag == 'main':
            self.in_main += 1
        if re.fullmatch('h[1-6]', tag):
            self.heading = True
            self.headings.append('')
        classes = (a.get('class') or '').split()
        if self.in_main:
            self.pictures += tag in ('img', 'svg', 'figure')
        self.outputs += 'cell-output' in classes or 'cell-output-display' in classes
        if tag in skipped_text:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if tag == 'main':
            self.in_main -= 1
        if re.fullmatch('h[1-6]', tag):
            self.heading = False
        if tag in self.stack:
            while self.stack.pop() != tag:
                pass

    def handle_data(self, data):
        if self.heading:
            self.headings[-1] += data
        if self.stack[-1:] == ['title']:
            self.title += data
        if self.stack[-1:] not in (['script'], ['style'], ['title']):
            self.words.append(data)
        if not self.stack:
            self.prose.append(data)


def check(site):
    "The faults of a built site, a line each."
    site = Path(site)
    pages = {
        p.relative_to(site).as_posix(): Page(p.read_text(encoding='utf-8'))
        for p in sorted(site.rglob('*.html'))
    }
    if 'index.html' not in pages:
        return [f'{site}: no index.html']
    faults, reached, titles = [], {'index.html', '404.html'}, {}

    def target(page, url):
        "The file that a link leads to, and its anchor; None for another site."
        parts = urlsplit(url)
        if parts.scheme or parts.netloc:
            return None
        path = unquote(parts.path)
        if path.startswith('/'):
            faults.append(f'{page}: {url} starts at the root of a host')
        to = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
        to = to.lstrip('/') or '.'
        if (site / to).is_dir():
            to = posixpath.normpath(posixpath.join(to, 'index.html'))
        return to, unquote(parts.fragment)

    for name, page in pages.items():
        for url in page.links + page.loads:
            if (t := target(name, url)) is None:
                if url in page.loads and not url.startswith('data:'):
                    faults.append(f'{name}: loads {url}')
                if re.search(
                    r'None$|\.invalid|github\.com/triplet-fashion|triplet-fashion\.github', url
                ):
                    faults.append(f'{name}: {url} leads to a place that need not exist')
                continue
            to, anchor = t
            if to != name:
                reached.add(to)
            if not (site / to).is_file():
                faults.append(f'{name}: {url} leads nowhere')
            elif anchor and to in pages and anchor not in pages[to].ids:
                faults.append(f'{name}: {url} has no such anchor')
        if name.startswith('source/'):
            continue
        for i in sorted(page.double):
            faults.append(f'{name}: id {i} stands there twice')
        for m in bad_text.finditer(''.join(page.words)):
            faults.append(f'{name}: the text has {m[0]!r}')
        no_links = broken_link.findall(''.join(page.prose))
        faults += [f'{name}: a link is not one: {m}' for m in no_links]
        for m in unset.finditer(''.join(page.prose)):
            faults.append(f'{name}: a formula is not set: {m[0][:60]}')
        for h in page.headings:
            if h.rstrip().endswith(' -'):
                faults.append(f'{name}: the heading {h.strip()!r} was to stay out')
        if not page.title.strip():
            faults.append(f'{name}: no title')
        elif page.title in titles:
            faults.append(f'{name}: the same title as {titles[page.title]}')
        titles[page.title] = name
        if (
            name not in ('404.html', 'CHANGELOG.html', 'CONTRIBUTING.html')
            and not page.outputs + page.pictures
        ):
            faults.append(f'{name}: neither an output nor a picture')
    for name in pages.keys() - reached:
        faults.append(f'{name}: no page leads there')
    for css in sorted(site.rglob('*.css')):
        if fetches.search(css.read_text(encoding='utf-8')):
            faults.append(f'{css.relative_to(site)}: fetches from the network')
    if (site / 'search.json').exists():
        for to, anchor in set(
            re.findall(
                r'"href": ?"([^"#]+)#?([^"]*)"', (site / 'search.json').read_text(encoding='utf-8')
            )
        ):
            if to not in pages or anchor and anchor not in pages[to].ids:
                faults.append(f'search.json: {to}#{anchor} leads nowhere')
    return faults


def main():
    site = Path(sys.argv[1] if len(sys.argv) > 1 else '_docs')
    faults = check(site)
    print(*faults, f'{len(faults)} faults in {site}', sep='\n')
    sys.exit(bool(faults))


if __name__ == '__main__':
    main()
