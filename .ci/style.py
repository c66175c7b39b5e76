"""Count what is left to tidy, and let no count rise.

`python .ci/style.py` compares ruff's findings (`ruff.toml`), rule by rule and folder by folder, and the figures of
`../shared/tools/house.py` where it is beside the checkout, with the ceilings in `.ci/style.json`. The exit status is 1
where one is passed. `--lower` writes today's counts into the file where they are lower: ceilings only fall.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CEILINGS = ROOT / '.ci/style.json'
HOUSE = ROOT.parent / 'shared/tools/house.py'
FOLDERS = 'triplet_fashion', 'nbs', 'tests', '.ci'
RULES = 'E501', 'E702', 'E731', 'C901', 'F'


def ruff_counts():
    "Return {'folder RULE': findings}; F stands for all of its rules."
    counts = Counter({f'{folder} {rule}': 0 for folder in FOLDERS for rule in RULES})
    for folder in FOLDERS:
        command = [
            sys.executable,
            '-m',
            'ruff',
            'check',
            '--no-cache',
            '--output-format=json',
            folder,
        ]
        out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if out.returncode not in (0, 1):
            sys.exit(f'ruff could not read {folder}: {out.stderr.strip()}')
        for finding in json.loads(out.stdout):
            code = finding['code'] or 'syntax'
            counts[f'{folder} {"F" if code[0] == "F" else code}'] += 1
    return dict(counts)


def house_figures():
    "Return {figure: value}, and which of them are floors; nothing where the script is absent."
    if not HOUSE.exists():
        return {}, set()
    out = subprocess.run([sys.executable, HOUSE, ROOT], capture_output=True, text=True)
    found = re.findall(r'^(?:ok|MISS) +(.+?): ([\d.]+) +at (most|least) ', out.stdout, re.MULTILINE)
    if not found:
        sys.exit(f'{HOUSE.name} printed no figures: {out.stderr.strip()}')
    figures = {name.split(' (')[0]: float(value) for name, value, _ in found}
    return figures, {name.split(' (')[0] for name, _, bound in found if bound == 'least'}


def main():
    figures, floors = house_figures()
    if not figures:
        print('the figures of house.py were not compared: it is not beside this checkout')
    today = ruff_counts() | figures
    ceilings = json.loads(CEILINGS.read_text()) if CEILINGS.exists() else {}
    worse = []
    for name, value in today.items():
        limit = ceilings.setdefault(name, value)
        passed = value < limit if name in floors else value > limit
        better = value > limit if name in floors else value < limit
        if passed:
            worse.append(
                f'{name}: {value:g}, and {limit:g} is the {"floor" if name in floors else "ceiling"}'
            )
        elif better and '--lower' in sys.argv[1:]:
            ceilings[name] = value
    if '--lower' in sys.argv[1:]:
        CEILINGS.write_text(json.dumps(ceilings, indent=1) + '\n')
    print('\n'.join(worse) or f'none of {len(today)} counts has risen')
    sys.exit(bool(worse))


if __name__ == '__main__':
    main()
