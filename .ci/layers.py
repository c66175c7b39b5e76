"Draw which module imports which, in CONTRIBUTING.md's layers; `--check`: is the picture current?"

import ast
import json
import re
import sys
from graphlib import TopologicalSorter
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIB, PICTURE = ROOT / 'triplet_fashion', ROOT / 'nbs/images/layers.svg'
FILES = {'.'.join(p.relative_to(LIB).with_suffix('').parts): p for p in LIB.rglob('[!_]*.py')}
COLORS = dict(storage='#f3d489', photos='#a5d8b3', runs='#cbbcf0', commands='#f2b8c2')
STYLE = '<style>text{font:13px Inter,system-ui,sans-serif}path{fill:none;stroke:#98a3b6}</style>'


def layers():
    "Return [(name of a layer, its modules)], bottom up."
    page = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    lines = re.findall(r'^\d+\. \*\*(.+?)\*\*: (.+)$', page, re.MULTILINE)
    return [(name, re.findall(r'`([\w.]+)`', line)) for name, line in lines]


def imports(module):
    "Return what a module needs to be imported itself; imports inside functions do not count."
    package, found = [LIB.name, *module.split('.')[:-1]], set()
    for node in ast.parse(FILES[module].read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = '.'.join([*above, *filter(None, [node.module])])
            found |= {source, *(f'{source}.{name.name}' for name in node.names)}
    return sorted({name.removeprefix(f'{LIB.name}.') for name in found} & set(FILES))


def settle(nodes, wanted, widths, left=150, right=1190):
    "Return {node: x} near what is wanted, in its order and without overlap."
    nodes = sorted(nodes, key=wanted.get)
    ends = list(accumulate(widths[n] for n in nodes))
    before = [end - widths[n] / 2 for n, end in zip(nodes, ends)]
    free = [min(max(wanted[n] - b, left), right - ends[-1]) for n, b in zip(nodes, before)]
    up, down = accumulate(free, max), list(accumulate(free[::-1], min))[::-1]
    return {n: (high + low) / 2 + b for n, high, low, b in zip(nodes, up, down, before)}


def place(layers, imports):
    "Return ({(module, row): x}, {module: its row}, y of each row, links from row to row)."
    level = {m: i for i, (_, modules) in enumerate(layers) for m in modules}
    below, step, links = {}, {}, {}
    for m in TopologicalSorter(imports).static_order():
        below[m] = set().union(*(below[o] | {*imports[o]} for o in imports[m]))
        step[m] = 1 + max((step[o] for o in imports[m] if level[o] == level[m]), default=-1)
    rows = sorted({(level[m], step[m]) for m in imports}, reverse=True)
    row = {m: rows.index((level[m], step[m])) for m in imports}
    near = {(m, r): [] for m, r in row.items()}
    for m, o in ((m, o) for m in imports for o in sorted({*imports[m]} - below[m])):
        way = [(m, row[m]), *((o, r) for r in range(row[m] + 1, row[o] + 1))]
        links |= dict.fromkeys(zip(way, way[1:]))
    for a, b in [*links, *(link[::-1] for link in links)]:
        near.setdefault(a, []).append(b)
    widths = {(m, r): 7.4 * len(m) + 52 if row[m] == r else 14 for m, r in near}
    x = dict.fromkeys(near, 670)
    for r in list(range(len(rows))) * 60:
        wanted = {n: sum(x[o] for o in near[n]) / max(1, len(near[n])) for n in near if n[1] == r}
        x |= settle(wanted, wanted, widths)
    return x, row, [46 * r + 18 * (len(layers) - i) + 14 for r, (i, _) in enumerate(rows)], links


def draw(layers, imports):
    "Return the picture as SVG; an arrow is left out where a longer way says the same."
    x, row, y, links = place(layers, imports)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1200 {y[-1] + 32}">{STYLE}']
    for i, (name, modules) in enumerate(layers):
        high, *_, low = sorted([y[row[m]] for m in modules] * 2)
        at, tall, shade = high - 32, low - high + 64, ('#f4f6f9', '#fff')[i % 2]
        out.append(f'<rect y="{at}" width="1200" height="{tall}" fill="{shade}"/>')
        out.append(f'<text x="16" y="{at + tall / 2 + 4}" style="font-weight:600">{name}</text>')
    lean = {a: min(40, max(-40, (x[b] - x[a]) / 3)) for a, b in links if row[a[0]] != a[1]}
    for a, b in links:
        start, end, middle = y[a[1]], y[b[1]], (y[a[1]] + y[b[1]]) / 2
        bend = f'{x[a] + lean.get(a, 0):.0f} {middle} {x[b] - lean.get(b, 0):.0f} {middle}'
        out.append(f'<path d="M{x[a]:.0f} {start}C{bend} {x[b]:.0f} {end}"/>')
    for m, r in row.items():
        mid, top, wide = round(x[m, r]), y[r] - 13, round(7.4 * len(m) + 20)
        box = f'x="{mid - wide / 2}" y="{top}" width="{wide}" height="26" rx="5"'
        out.append(f'<rect {box} fill="{COLORS.get(m.split(".")[0], "#bcd6f2")}"/>')
        out.append(f'<text x="{mid}" y="{top + 17}" text-anchor="middle">{m}</text>')
        if any(b == (m, r) for _, b in links):
            out.append(f'<path d="M{mid} {top}l-4 -6h8z" style="fill:#7c879b"/>')
    return '\n'.join(out)


if __name__ == '__main__':
    graph = [layers(), {module: imports(module) for module in sorted(FILES)}]
    shown = f'\n<!-- {json.dumps(graph)} -->\n</svg>\n'
    if '--check' in sys.argv[1:]:
        sys.exit(shown not in PICTURE.read_text() and f'{PICTURE}: run python .ci/layers.py')
    PICTURE.write_text(draw(*graph) + shown)
