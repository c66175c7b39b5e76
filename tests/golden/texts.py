"""The public face of the package as text, so that a change of it shows in review as a diff."""

import configparser
import contextlib
import importlib
import inspect
import io
import os
import pprint
import re
from pathlib import Path
from unittest import mock

from topics import PACKAGE, public

PLAIN = str, int, float, bool, tuple, list, dict, set, frozenset, type(None)
LONGEST = 40  # lines of a constant that is shown


# ---- signatures


def shown(value):
    "Return how a value is written, without addresses."
    return re.sub(' at 0x[0-9a-f]+', '', pprint.pformat(value, width=96, compact=True))


def type_name(annotation):
    "Return the name of a type without its module, which differs between versions of a library."
    if inspect.isclass(annotation):
        return annotation.__name__
    return str(annotation).replace('typing.', '')


def parameter(p):
    "Return one line: name, type and default of a parameter."
    text = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '') + p.name
    if p.annotation is not p.empty:
        text += f': {type_name(p.annotation)}'
    if p.default is not p.empty:
        text += f' = {shown(p.default)}'
    return text


def parameters(function):
    "Return a line for each parameter of a function, and one for what it returns."
    try:
        signature = inspect.signature(function)
    except ValueError:
        return ['as its base class']  # of a class written in C
    lines, starred = [], False
    for p in signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not starred:
            lines.append('*')
        starred |= p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        lines.append(parameter(p))
    back = signature.return_annotation
    return lines if back is signature.empty else [*lines, f'-> {type_name(back)}']


def member(cls, name):
    "Return one line for a public method or property of a class; None for anything else."
    kept, thing = vars(cls)[name], getattr(cls, name)
    if isinstance(kept, property) or hasattr(kept, 'attrname'):
        return f'.{name}'
    if not inspect.isroutine(thing):
        return None
    lines = parameters(thing)
    if inspect.isfunction(kept):
        lines = lines[1:]  # without self
    back = f' {lines.pop()}' if lines and lines[-1].startswith('->') else ''
    return f'.{name}({", ".join(lines)}){back}'


def members(cls):
    "Return a line for each public method and property that a class itself defines."
    names = sorted(n for n in vars(cls) if n == '__call__' or not n.startswith('_'))
    return [line for n in names if (line := member(cls, n))]


def constant(value):
    "Return the lines of a constant, or its type where it is long or not plain."
    lines = shown(value).splitlines()
    is_short = len(lines) <= (1 if isinstance(value, str) else LONGEST)
    return lines if isinstance(value, PLAIN) and is_short else [type(value).__name__]


def entry(name, module, thing):
    "Return the text for one public name."
    kind = 'class in ' if inspect.isclass(thing) else '' if callable(thing) else 'constant in '
    lines = parameters(thing) if callable(thing) else constant(thing)
    if inspect.isclass(thing):
        lines += members(thing)
    module = module.removeprefix(f'{PACKAGE}.')
    return '\n'.join([f'{name}   [{kind}{module}]', *(f'    {line}' for line in lines)])


def signatures():
    "Return the signatures of all public names of the package, in the order of the names."
    names = sorted(public().items(), key=lambda item: (item[0].lower(), item[0]))
    return '\n\n'.join(entry(name, *found) for name, found in names) + '\n'


# ---- commands


def help_of(main):
    "Return what a command prints when it is asked for help."
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(['--help'])
    return out.getvalue()


def commands():
    "Return {name: function} of the commands that the project's card promises."
    card = configparser.ConfigParser(delimiters=['='])
    root = Path(importlib.import_module(PACKAGE).__file__).parents[1]
    card.read(root / 'settings.ini', encoding='utf-8')
    found = {}
    for line in card['DEFAULT']['console_scripts'].split('\n'):
        name, place = line.split('=')
        module, path = place.split(':')
        found[name] = importlib.import_module(module)
        for step in path.split('.'):
            found[name] = getattr(found[name], step)
    return found


def help_texts():
    "Return the help of all commands."
    with mock.patch.dict(os.environ, COLUMNS='100', NO_COLOR='1'):
        return '\n'.join(f'$ {name} --help\n{help_of(main)}' for name, main in commands().items())
