"""Make README.md from nbs/index.ipynb, in pure Python: the same bytes on every machine.

    python .ci/readme.py            # write it
    python .ci/readme.py --check    # say whether it is in step; the exit status too

Cells marked `#| hide` are left out and so are other directives. Stored outputs follow their cell: Markdown as it
is, text in a block, a stored picture as nbs/images/index-1.png and so on. Links to files of nbs/ are written from the top.
"""

import argparse
import base64
import difflib
import json
import posixpath
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
directive = re.compile(r'^\s*#\|\s*(.+?)\s*$')
ansi = re.compile(r'\x1b\[[0-9;]*[A-Za-z]')
target = re.compile(
    r'(!?\[[^\]]*\]\()([^()\s]+)(?=[)\s])|(<(?:img|a|source)\b[^>]*?\b(?:src|href|srcset)=")([^"]+)'
)
title = re.compile(r'^# (?P<name>.+?)\s*\n+> *(?P<line>.+?)\s*$', re.S)


class ReadmeError(ValueError):
    "A notebook that cannot become a README, and why."


def text(x):
    "A notebook's text, stored as a string or as lines."
    return x if isinstance(x, str) else ''.join(x)


def from_top(path, root):
    "A link as it reads from the top of the project, where README.md lies."
    bare = re.split('[#?]', path)[0]
    if not bare or re.match(r'[a-zA-Z][\w+.-]*:|//|/', bare):
        return path
    if (root / 'nbs' / bare).exists():
        return posixpath.normpath(f'nbs/{path}')
    if (root / bare).exists():
        return path
    raise ReadmeError(
        f'nbs/index.ipynb links to {path}: there is no such file in nbs/ nor at the top of the project'
    )


def links(md, root):
    "Rewrite the links of a piece of Markdown, code blocks left alone."

    def fix(m):
        return (m[1] or m[3]) + from_top(m[2] or m[4], root)

    parts = re.split(r'(^```.*?^```[ \t]*$)', md, flags=re.S | re.M)
    return ''.join(p if p.startswith('```') else target.sub(fix, p) for p in parts)


def fenced(body, lang=''):
    "A code block whose fence the body cannot close."
    fence = '`' * max(3, 1 + max(map(len, re.findall('`+', body)), default=0))
    return f'{fence}{lang}\n{body}\n{fence}'


def output(out, root, pictures):
    "One stored output as Markdown, or None."
    if out['output_type'] == 'stream':
        body = ansi.sub('', text(out['text'])).rstrip()
        return fenced(body) if body and out.get('name') != 'stderr' else None
    if out['output_type'] == 'error':
        raise ReadmeError(f'nbs/index.ipynb has a stored error: {out.get("ename")}')
    data = out.get('data', {})
    if 'text/markdown' in data:
        return links(text(data['text/markdown']).strip(), root)
    if 'image/png' in data:
        pictures.append(base64.b64decode(text(data['image/png'])))
        return f'![Output of the code above](nbs/images/index-{len(pictures)}.png)'
    return fenced(text(data['text/plain']).rstrip()) if 'text/plain' in data else None


def cell(c, root, pictures):
    "The Markdown blocks of one cell."
    src = text(c['source']).strip()
    if c['cell_type'] == 'markdown':
        if src.startswith('#') and src.endswith(' -'):
            return []  # as on the site
        src = title.sub(lambda m: f'# {m["name"]}\n\n{m["line"]}', src)
        return [links(src, root)] if src else []
    if c['cell_type'] != 'code':
        return []
    marks = [m[1] for m in map(directive.match, src.splitlines()) if m]
    told = {m.split(':')[0].split()[0]: m.partition(':')[2].strip() for m in marks}
    if {'hide', 'export', 'exporti', 'default_exp'} & told.keys() or told.get('include') == 'false':
        return []
    code = '\n'.join(l for l in src.splitlines() if not directive.match(l)).strip('\n')
    blocks = [fenced(code, 'python')] if code and told.get('echo') != 'false' else []
    if told.get('output') != 'false':
        blocks += [o for o in (output(o, root, pictures) for o in c['outputs']) if o]
    return blocks


def readme(root=root):
    "README.md as it should be, and the stored pictures it shows: bytes of nbs/images/index-1.png and so on."
    nb = json.loads((root / 'nbs' / 'index.ipynb').read_text(encoding='utf-8'))
    blocks = [
        '<!-- Made from nbs/index.ipynb by .ci/readme.py: edit that notebook, not this file. -->'
    ]
    pictures = []
    for c in nb['cells']:
        blocks += cell(c, root, pictures)
    return '\n\n'.join(blocks) + '\n', pictures


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--check', action='store_true', help='write nothing; fail when README.md is out of step'
    )
    args = parser.parse_args()
    path = root / 'README.md'
    try:
        new, pictures = readme()
    except ReadmeError as e:
        sys.exit(f'readme: {e}')
    files = {root / 'nbs' / 'images' / f'index-{i}.png': data for i, data in enumerate(pictures, 1)}
    if not args.check:
        for file, data in files.items():
            file.write_bytes(data)
        return path.write_text(new, encoding='utf-8', newline='\n')
    if stale := [f.name for f, data in files.items() if not f.exists() or f.read_bytes() != data]:
        sys.exit(
            f'nbs/images: {", ".join(stale)} out of step with nbs/index.ipynb: run python .ci/readme.py'
        )
    old = path.read_text(encoding='utf-8') if path.exists() else ''
    if old == new:
        return print('README.md is in step with nbs/index.ipynb')
    sys.stdout.writelines(
        difflib.unified_diff(
            old.splitlines(True), new.splitlines(True), 'README.md', 'nbs/index.ipynb'
        )
    )
    sys.exit('README.md is out of step with nbs/index.ipynb: run python .ci/readme.py')


if __name__ == '__main__':
    main()
