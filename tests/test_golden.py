"What the package gives, compared with what is kept in golden/ (see CONTRIBUTING.md)."
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).with_name('golden')))
import make


@pytest.mark.parametrize('topic', make.KEPT)
def test_the_package_gives_what_it_gave(topic):
    kept = make.read_digests()[topic]
    lines = make.differences(kept, make.run_topic(topic), make.KEPT[topic])
    assert not lines, '\n'.join([*lines, f'If that is meant, renew what is kept: {make.RENEW}'])


@pytest.mark.parametrize('name', make.TEXTS)
def test_public_names_and_commands_are_those_of_the_text_files(name):
    kept = make.TEXTS[name].read_text(encoding='utf-8')
    lines = make.changed_lines(kept, make.current_texts()[name])
    assert not lines, '\n'.join([*lines, f'If that is meant, renew the text: {make.RENEW}'])


def test_a_difference_is_seen():
    kept = make.read_digests()['metrics']
    what = next(k for k, v in kept.items() if isinstance(v, list))
    other = kept | {what: [kept[what][0] + 1e-3, *kept[what][1:]]}
    assert not make.differences(kept, dict(kept), 2e-5)
    assert [line.split(':')[0] for line in make.differences(kept, other, 2e-5)] == [what]
    assert make.differences({'a': '1'}, {'b': '1'}) == ['a: gone', 'b: new']
    assert make.changed_lines('f\n    a', 'f\n    b')
    assert not make.changed_lines('f\n    a', 'f a\n')
