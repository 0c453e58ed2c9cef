"""Chat templates that try to reach Python, or to take minutes or gigabytes, and any number of relatives of theirs."""

import random
import re
from collections.abc import Sequence

from jinja2 import Environment, TemplateError

# Published server-side template injections and their relatives. CMD stands for a shell command that writes a file.
PAYLOADS = """
{{ ''.__class__.__mro__[1].__subclasses__() }}
{{ ''.__class__.__base__.__subclasses__()[140]('CMD', shell=True) }}
{{ ''['__class__']['__mro__'][1]['__subclasses__']() }}
{{ ''|attr('__class__')|attr('__mro__')|last|attr('__subclasses__')() }}
{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}
{{ [].__class__.__base__.__subclasses__()[104].__init__.__globals__['sys'].modules['os'].system('CMD') }}
{{ self.__init__.__globals__.__builtins__.__import__('os').popen('CMD').read() }}
{{ self._TemplateReference__context.cycler.__init__.__globals__.os.popen('CMD').read() }}
{{ self._TemplateReference__context.joiner.__init__.__globals__.os.popen('CMD').read() }}
{{ self._TemplateReference__context.namespace.__init__.__globals__.os.popen('CMD').read() }}
{{ cycler.__init__.__globals__.os.popen('CMD').read() }}
{{ joiner.__init__.__globals__.os.popen('CMD').read() }}
{{ namespace.__init__.__globals__.os.popen('CMD').read() }}
{{ lipsum.__globals__['os'].popen('CMD').read() }}
{{ lipsum.__globals__.os.system('CMD') }}
{{ range.__globals__ }}
{{ dict.__base__.__subclasses__() }}
{{ dict.mro() }}
{{ raise_exception.__globals__['os'] }}
{{ raise_exception.__code__ }}
{{ strftime_now.func.__globals__ }}
{{ strftime_now.__self__ }}
{{ (strftime_now.args | first).__self__ }}
{{ messages.__class__.__init__.__globals__ }}
{{ messages.append('x') }}
{{ messages[0].update({'role': 'x'}) }}
{{ messages[0].clear() }}
{{ '{0.__class__.__mro__}'.format('') }}
{{ '{x.__class__.__init__.__globals__}'.format(x=cycler) }}
{{ '{0.__class__}'.format_map({'0': ''}) }}
{{ ('{0.__cl' ~ 'ass__}').format('') }}
{{ ('{0.__class__}' | safe).format('') }}
{{ [''.__class__] | map(attribute='__mro__') | list }}
{{ [messages] | map(attribute='__class__.__init__') | list }}
{{ ['{0.__class__}'] | map('format', '') | list }}
{{ 'x' | attr('format') }}
{{ ['a'] | map('attr', '__class__') | list }}
{{ [cycler] | sort(attribute='__init__.__globals__') }}
{% set x = namespace(__class__=1) %}{{ x.__class__ }}
{% set ns = namespace() %}{% set ns.__init__ = 1 %}{{ ns.__dict__ }}
{% macro m() %}{% endmacro %}{{ m._environment }}{{ m.__globals__ }}{{ m._func.__globals__ }}
{% for i in [1] %}{{ loop._iterator.gi_frame.f_globals }}{{ loop.__class__ }}{{ loop._iterator }}{% endfor %}
{% set g = messages | map('upper') %}{{ g.gi_frame.f_builtins }}{{ g.gi_code }}
{% include '/etc/passwd' %}
{% import 'os' as os %}{{ os.system('CMD') }}
{% extends '/etc/passwd' %}
{{ get_flashed_messages.__globals__.__builtins__.open('/etc/passwd').read() }}
{{ url_for.__globals__.os.system('CMD') }}
{{ config.items() }}{{ request.application.__globals__ }}
{{ __builtins__ }}{{ __import__('os').system('CMD') }}{{ open('/etc/passwd').read() }}
{{ environment }}{{ context }}{{ resolve }}{{ exec('CMD') }}{{ eval('1') }}
{{ 'os' | import }}
{{ x.__class__ }}{{ undefined_thing.__init__.__globals__ }}
{{ (1).__class__.__base__.__subclasses__() }}{{ none.__class__ }}{{ true.__class__.__mro__ }}
{{ 'a'.encode().__class__ }}{{ 'a'.translate({97: 'b'}) }}{{ {}.fromkeys([1]) }}
{{ messages[0].get.__self__ }}{{ ''.join.__self__ }}{{ ''.join.__objclass__ }}
""".strip().splitlines()
# What must not be in a prompt: a name that only Python's inside has. (None of the payloads spells one of these.)
INSIDES = (
    "<class '",
    "built-in function",
    "<module",
    "<code",
    "<frame",
    " object at 0x",
    "root:",
    "'sys'",
    "__build_class__",
)


def sixty(start: str, step: str, end: str = "") -> str:
    """A value `n.a` that is made into another sixty times."""
    return f"{{% set n = namespace(a={start}) %}}{{% for i in range(60) %}}{{% set n.a = {step} %}}{{% endfor %}}{end}"


def loops(body: str, times: int = 99_999) -> str:
    """Two loops, one in the other."""
    return f"{{% for i in range({times}) %}}{{% for j in range({times}) %}}{body}{{% endfor %}}{{% endfor %}}"


# Each takes minutes or gigabytes in a plain sandbox.
BOMBS = {
    "nested loops": "{% for i in range(2000) %}{% for j in range(2000) %}{% for k in range(2000) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "wide loops": loops("{% if j > i %}{% endif %}"),
    "loops that write": loops("xxxxxxxxxxxxxxxx"),
    "loops in a set block": "{% set x %}" + loops("x") + "{% endset %}",
    "recursive loop": "{% for i in range(900) recursive %}{{ loop(range(900)) if loop.depth < 9 }}{% endfor %}",
    "loop with filter": "{% for i in range(99999) if not range(99999) | list %}{% endfor %}",
    "loop over a string": "{% for c in 'x' * 8000000 %}{% for d in 'x' * 8000000 %}{% endfor %}{% endfor %}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro that grows": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% else %}xxxxxxxx{% endif %}"
    "{% endmacro %}{{ f(28) | length }}",
    "block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "times": "{{ 'x' * 300000000 }}",
    "times from the left": "{{ 300000000 * 'x' }}",
    "times, unused": "{% set x = 'x' * 300000000 %}",
    "times a list": "{{ [0] * 300000000 }}",
    "times of times": "{{ ('x' * 1000000) * 1000000 }}",
    "doubling": sixty("'xx'", "n.a + n.a", "{{ n.a | length }}"),
    "doubling with ~": sixty("'xx'", "n.a ~ n.a", "{{ n.a | length }}"),
    "doubling lists": sixty("[1]", "n.a + n.a"),
    "doubling in format": sixty("'xx'", "'{0}{0}'.format(n.a)"),
    "doubling in %": sixty("'xx'", "'%s%s' % (n.a, n.a)"),
    "doubling in join": sixty("'xx'", "[n.a, n.a] | join"),
    "doubling in replace": sixty("'xx'", "n.a.replace('x', 'xx')"),
    "lists of lists": sixty("[1]", "[n.a, n.a]", "{{ n.a }}"),
    "dicts of dicts": sixty("{}", "{'a': n.a, 'b': n.a}", "{{ n.a | tojson }}"),
    "dict() of dict()": sixty("{}", "dict(a=n.a, b=n.a)", "{{ n.a | string }}"),
    "views of views": sixty("{}", "{'a': n.a.items(), 'b': n.a.items()}", "{{ n.a }}"),
    "namespaces": sixty("1", "namespace(a=n.a, b=n.a)", "{{ n.a }}"),
    "equal trees": "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}"
    "{% set n.b = [n.b, n.b] %}"
    "{% endfor %}{{ n.a == n.b }}",
    "deep tuple": sixty("()", "(n.a,)", "{{ {n.a: 1} | length }}").replace("range(60)", "range(90000)"),
    "deep list": sixty("[]", "[n.a]", "{{ n.a }}").replace("range(60)", "range(90000)"),
    "power": "{{ 9 ** 99999999 }}",
    "power of power": "{{ ((9 ** 999) ** 999) ** 999 }}",
    "product": sixty("7", "n.a * n.a", "{{ n.a }}"),
    "join method": "{{ ('x' * 100000).join(range(99999) | map('string')) | length }}",
    "join filter": "{{ range(99999) | join('x' * 100000) | length }}",
    "join of copies": "{{ (['x' * 1000000] * 10000) | join | length }}",
    "join of a string": "{{ ('x' * 4000000) | join('yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy') | length }}",
    "replace method": "{{ ('x' * 100000).replace('x', 'y' * 100000) | length }}",
    "replace of nothing": "{{ ('x' * 100000).replace('', 'y' * 100000) | length }}",
    "replace filter": "{{ ('x' * 100000) | replace('x', 'y' * 100000) | length }}",
    "center": "{{ 'x' | center(999999999) | length }}",
    "center method": "{{ 'x'.center(999999999) | length }}",
    "ljust": "{{ 'x'.ljust(999999999) | length }}",
    "zfill": "{{ 'x'.zfill(999999999) | length }}",
    "expandtabs": "{{ '\\t'.expandtabs(999999999) | length }}",
    "expandtabs of many": "{{ ('\\t' * 99999).expandtabs(99999) | length }}",
    "indent": "{{ ('x\\n' * 99999) | indent(99999) | length }}",
    "indent by text": "{{ ('x\\n' * 99999) | indent('y' * 99999) | length }}",
    "wordwrap": "{{ ('x y ' * 99999) | wordwrap(1, wrapstring='y' * 99999) | length }}",
    "percent width": "{{ '%999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (999999999, 1) }}",
    "percent precision": "{{ '%.999999999f' % 1 }}",
    "percent of a mapping": "{{ ('%(a)s' * 99999) % {'a': 'x' * 99999} }}",
    "percent of copies": "{{ ('%s' * 99999) | format(*(['x' * 99999] * 99999)) }}",
    "format width": "{{ '{:999999999}'.format(1) }}",
    "format nested width": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "format precision": "{{ '{:.999999999f}'.format(1.0) }}",
    "format of copies": "{{ ('{0}' * 99999).format('x' * 99999) }}",
    "format_map": "{{ ('{a}' * 99999).format_map({'a': 'x' * 99999}) }}",
    "batch": "{{ [1] | batch(999999999, 0) | list | length }}",
    "slice": "{{ [1] | slice(999999999, 0) | list | length }}",
    "map center": "{{ range(99999) | map('center', 99999) | list | length }}",
    "map default": "{{ range(99999) | map(attribute='x', default='y' * 9999999) | list | sort | length }}",
    "sum of lists": "{{ ([[1]] * 99999) | sum(start=[]) | length }}",
    "list of a string": "{{ ('𝒳' * 4000000) | list | length }}",
    "split": "{{ ('x ' * 9000000).split() | length }}",
    "slices": "{% set x = 'x' * 4000000 %}{{ [" + "x[1:], " * 1500 + "] | length }}",
    "output of slices": "{% set x = 'x' * 4000000 %}{% set y %}" + "{{ x[1:] }}" * 1000 + "{% endset %}",
    "tojson indent": "{{ ([1] * 99999) | tojson(indent=999999) | length }}",
    "tojson separator": "{{ ([1] * 99999) | tojson(separators=('x' * 999999, ':')) | length }}",
    "tojson often": "{% set x = [1] * 99999 %}{% for i in range(99999) %}{% set y = x | tojson %}{% endfor %}",
    "sort often": "{% set x = range(99999) | list %}" + loops("{% set y = x | sort(reverse=true) %}"),
    "in a list, often": "{% set x = range(99999) | list %}{% for i in range(99999) %}{{ -1 in x }}{% endfor %}",
    "strftime": "{{ strftime_now('%999999999d' * 1000) }}",
    "lipsum": "{{ lipsum(n=9999999) }}",
    "pprint": sixty("[1]", "[n.a, n.a]", "{{ n.a | pprint }}"),
    "urlize": "{{ ('www.a.bc ' * 99999) | urlize(target='x' * 99999) }}",
    "xmlattr": "{{ {'a': 'x' * 9999999} | xmlattr }}",
    "escape": sixty("'&' * 99999", "n.a | forceescape", "{{ n.a | length }}"),
    "safe strings": sixty("'<' | safe", "n.a + n.a", "{{ n.a | length }}"),
    "safe join": "{{ (('<' * 9999) | safe).join(['<' * 999] * 999) | length }}",
    "generation": "{% generation %}" + loops("{{ 1 if j > i }}") + "{% endgeneration %}",
    "call block": "{% macro m() %}{% for i in range(99999) %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% call m() %}{{ 'x' * 9999 }}{% endcall %}",
    "filter block": "{% filter upper %}{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}{% endfilter %}",
    "cycler": "{% set c = cycler('x' * 999999) %}{% for i in range(99999) %}{{ c.next() }}{% endfor %}",
    "to_bytes": "{{ (1).to_bytes(999999999, 'big') | length }}",
    "translate": "{{ ('a' * 99999).translate({97: 'x' * 99999}) | length }}",
    "fromkeys": "{{ {}.fromkeys('x' * 9000000) }}",
    "rfind": "{{ ('a' * 4000000).rfind('b' ~ 'a' * 2000000) }}",
    "rsplit": "{{ ('a' * 4000000).rsplit('b' ~ 'a' * 2000000) | length }}",
    "strip": "{{ ('a' * 4000000).strip('b' * 2000000 ~ 'a') }}",
    "trim": "{{ ('a' * 4000000) | trim('b' * 2000000 ~ 'a') }}",
    "round": "{{ 1 | round(999999999, 'ceil') }}",
    "long integers": "{{ ('f' * 4000000) | int(base=16) is divisibleby ('f' * 2000000) | int(base=16) }}",
    "select": "{% set x = range(99999) | list %}{{ range(99999) | map('string') | select('in', x) | list }}",
    "reject": "{% set x = (range(99999) | list) + ['a'] %}{{ (['a'] * 99999) | reject('in', x) | list }}",
    "sum of a selection": "{% set x = range(99999) | list %}{{ (['a'] * 99999) | select('in', x) | first }}",
    "format of braces": "{{ ('{{' * 4000000).format() | length }}",
    "percents": "{{ ('%%' * 4000000) % () | length }}",
    "wordwrap of a word": "{{ ('x' * 4000000) | wordwrap(1) | length }}",
    "urlencode": "{{ ('&' * 9000000) | urlencode | length }}",
    "title": "{{ ('a ' * 9000000) | title | length }}",
    "wordcount": "{{ ('a ' * 9000000) | wordcount }}",
    "varargs, deep": "{% set n = namespace(a=()) %}{% macro f() %}{% set n.a = varargs %}{% endmacro %}"
    "{% for i in range(90000) %}{{ f(n.a) }}{% endfor %}{{ {n.a: 1} | length }}",
    "varargs, wide": "{% set n = namespace(a=()) %}{% macro f() %}{% set n.a = varargs %}{% endmacro %}"
    "{% for i in range(60) %}{{ f(n.a, n.a) }}{% endfor %}{{ {n.a: 1} | length }}",
    "kwargs": "{% set n = namespace(a={}, b={}) %}{% macro f() %}{% set n.a = kwargs %}{% endmacro %}"
    "{% for i in range(60) %}{{ f(a=n.a, b=n.a) }}{% endfor %}{{ n.a == 1 }}",
    "cycler's items": sixty("()", "cycler(n.a, n.a).items", "{{ {n.a: 1} | length }}"),
    "escape a list": "{{ (['<' * 999] * 9999) | escape | length }}",
}  # fmt: skip


_NUMBERS = ("7", "60", "2000", "99999", "1000000", "999999999", "9223372036854775807")
_TEXTS = ("'x'", "'𝒳'", "'<&'", "'{0}{0}'", "'%s%s'", "'a\\n\\t'")
_FILTERS = (
    "list", "string", "tojson", "sort", "join", "upper", "title", "trim", "escape", "wordcount", "length", "reverse",
    "unique", "indent", "center(9999)", "batch(3)", "replace('x', 'yy')", "map('string')", "select", "wordwrap(9)",
)  # fmt: skip
_AROUND = (
    "{% for z in range(3) %}BODY{% endfor %}",
    "{% macro g(z=1) %}BODY{% endmacro %}{{ g() }}{{ g() }}",
    "{% macro h() %}{{ caller() }}{{ caller() }}{% endmacro %}{% call h() %}BODY{% endcall %}",
    "{% set y %}BODY{% endset %}{{ y }}{{ y }}",
    "{% filter upper %}BODY{% endfilter %}",
    "{% generation %}BODY{% endgeneration %}",
    "{% for z in range(99999) %}{% if z < 2 %}BODY{% endif %}{% endfor %}",
    "{% set k = namespace(a='x') %}{% for z in range(999999) %}{% set k.a = k.a ~ k.a %}{% endfor %}BODY",
)


def mutated(count: int, seed: int = 1) -> list[str]:
    """Bombs and injections that are changed at random and still compile: other numbers, texts, filters and operators,
    one inside of another, two in a row."""
    rng = random.Random(seed)
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    # A block may be there once only; a template within another would have it twice.
    sources = [source for source in BOMBS.values() if "{% block" not in source]
    found: list[str] = []
    while len(found) < count:
        source = rng.choice(sources)
        for _ in range(rng.randint(1, 3)):
            source = _mutated_once(source, rng.choice([*sources, *PAYLOADS]), rng)
        try:
            environment.parse(re.sub("{% (end)?generation %}", "", source))
        except TemplateError:
            continue
        if len(source) < 4000 and not re.search("include|import|extends", source):
            found.append(source)
    return found


def _mutated_once(source: str, other: str, rng: random.Random) -> str:
    match rng.randrange(6):
        case 0:
            return re.sub(r"\b\d{2,}\b", lambda _: rng.choice(_NUMBERS), source)
        case 1:
            return re.sub(r"'x+'", lambda _: rng.choice(_TEXTS), source)
        case 2:
            return re.sub(r"\| \w+\b(?!\()", lambda _: f"| {rng.choice(_FILTERS)}", source)
        case 3:
            return re.sub(r" [+~] ", lambda _: rng.choice((" + ", " ~ ", " * ", ", ")), source)
        case 4:
            return rng.choice(_AROUND).replace("BODY", source)
        case _:
            return source + other


def as_one(sources: Sequence[str]) -> str:
    """A template that is the one of `sources` whose number is the first message."""
    branches = [f"{{% elif messages[0].content == '{number}' %}}{source}" for number, source in enumerate(sources)]
    return "{% if messages[0].content == 'Hi' %}Hi" + "".join(branches) + "{% endif %}"
