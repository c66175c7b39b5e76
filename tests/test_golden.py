"What the package gives, compared with what is kept in golden/ (see CONTRIBUTING.md)."

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).with_name('golden')))
import make


@pytest.mark.parametrize('topic', [*make.KEPT, *make.TEXTS])
def test_the_package_gives_what_it_gave(topic):
    lines = make.check(topic)
    assert not lines, '\n'.join([*lines, f'If that is meant: {make.RENEW} {topic}'])


def test_a_difference_is_seen():
    kept = make.read_digests()['metrics']
    what = next(k for k, v in kept.items() if isinstance(v, list))
    other = kept | {what: [kept[what][0] + 1e-3, *kept[what][1:]]}
    assert not make.differences(kept, dict(kept), 2e-5)
    assert [line.split(':')[0] for line in make.differences(kept, other, 2e-5)] == [what]
    assert make.differences({'a': '1'}, {'b': '1'}) == ['a: gone', 'b: new']
    assert make.changed_lines('f\n    a', 'f\n    b')
    assert not make.changed_lines('f\n    a', 'f a\n')
