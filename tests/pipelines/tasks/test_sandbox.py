"""What a Jinja template may do, and how it is stopped."""

import pytest

from pipelines.errors import ConfigError
from pipelines.tasks import sandbox
from pipelines.tasks.sandbox import Choices, Program


def _render(source: str, seed: str = "s", **values: object) -> str:
    return Program(source, where="t").render(values, place="f:1", seed=seed)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ a }} {{ d.x }} {{ d['x'] }} {{ l[0] }} {{ l[-1] }}", "A 1 1 p q"),
        ("{% if a == 'A' and l != [] %}yes{% else %}no{% endif %}", "yes"),
        ("{% for x in l %}{{ loop.index }}{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}", "1p, 2q"),
        ("{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "x=1;"),
        ("{{ ', '.join(l) }} {{ l | join('/') }} {{ l | length }}", "p, q p/q 2"),
        ("{{ a ~ 1 ~ 'z' }} {{ a + 'b' }} {{ 3 - 1 }}", "A1z Ab 2"),
        ("{{ 'a_b' | replace('_', ' ') }} {{ 'x[y'.split('[')[1].upper() }} {{ ' q ' | trim }}", "a b Y q"),
        ("{{ ['u', 'v', 'u'] | most_frequent | join }}", "u"),
        ("{% set v = {'k': ''} %}{% for x in l %}{% set t = v.update({'k': x}) %}{% endfor %}{{ v['k'] }}", "q"),
        ("{{ 'yes' if d.x == 1 else 'no' }} {% if b is defined %}b{% endif %}", "yes "),
        ("{{ l }}", "['p', 'q']"),
    ],
)
def test_what_templates_do(source: str, text: str) -> None:
    assert _render(source, a="A", d={"x": 1}, l=["p", "q"]) == text


def test_choice_goes_by_the_seed() -> None:
    source = "{{ l | choice }}{{ l | choice }}{{ l | choice }}"
    letters = list("abcdefgh")
    assert _render(source, seed="1", l=letters) == _render(source, seed="1", l=letters)
    assert len({_render(source, seed=str(i), l=letters) for i in range(20)}) > 10


def test_the_record_itself_never_changes() -> None:
    record = {"d": {"k": ["old"]}}
    text = Program("{% set t = d.update({'k': 'new'}) %}{{ d.k }}", where="t").render(record, place="f:1", seed="")
    assert (text, record) == ("new", {"d": {"k": ["old"]}})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ ''.__class__ }}", "line 1: a template may not reach '__class__'"),
        ("\n{{ l.__init__.__globals__ }}", "line 2: a template may not reach"),
        ("{{ _budget }}", "may not reach '_budget'"),
        ("{{ 'a' * 3 }}", "may not use Jinja's Mul"),
        ("{{ 2 ** 99 }}", "may not use Jinja's Pow"),
        ("{{ '%9d' % 1 }}", "may not use Jinja's Mod"),
        ("{% macro m() %}{% endmacro %}", "may not use Jinja's Macro"),
        ("{% include 'x' %}", "may not use Jinja's Include"),
        ("{% for x in l recursive %}{% endfor %}", "may not use Jinja's For"),
        ("{{ l | random }}", "unknown filter 'random'; known: .*choice"),
        ("{{ a | _made }}", "unknown filter '_made'"),
        ("{{ a | attr('x') }}", "unknown filter 'attr'"),
        ("{{ a | replace(old='x', new='y') }}", "may not use Jinja's Keyword"),
        ("{{ a.split(**d) }}", "may not use Jinja's Call"),
        ("{{ a.split(sep='x') }}", "may not use Jinja's Keyword"),
        ("a\n{% if %}", "line 2: not valid Jinja"),
        ("{{ a | }}", "line 1: not valid Jinja"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
        ("x" * 20_001, "20,001 characters; a template has at most 20,000"),
    ],
)
def test_refused_before_anything_runs(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^t: .*{message}"):
        Program(source, where="t")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ b }}", "'b' is undefined; the template was given a, c, d, l"),
        ("{{ b.x }}", "'b' is undefined"),
        ("{{ d.y }}", "no attribute 'y'"),
        ("{{ d['__class__'] }}", "no attribute '__class__'"),
        ("{{ a.format(1) }}", "no attribute 'format'"),
        ("{{ a.encode('utf-8') }}", "no attribute 'encode'"),
        ("{{ l[7] }}", "no element 7"),
        ("{{ c[-1] }}", "answer_choices has no element -1"),
        ("{{ a.upper }}", "a method is written out"),
        ("{{ a() }}", "only methods of texts"),
        ("{{ range(3) }}", "'range' is undefined"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ a + 1 }}", "the template fails .TypeError"),
        ("{{ [] | choice }}", "the template fails .IndexError"),
        ("{% for x in 3 %}{% endfor %}", "the template fails .TypeError"),
    ],
)
def test_failures_name_the_record_and_the_template(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^f:1: t: .*{message}"):
        _render(source, a="A", d={"x": 1}, l=["p"], c=Choices(["no", "yes"]))


_DOUBLE = "{{% set x = {} %}}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in l %}{% for j in l %}{% for k in l %}{% endfor %}{% endfor %}{% endfor %}",
        "{% set x = 'ab' %}" + _DOUBLE.format("x + x") * 60,
        "{% set x = 'ab' %}" + _DOUBLE.format("x ~ x") * 60,
        "{% set x = 'ab' %}" + _DOUBLE.format("x.replace('', x)") * 60,
        "{% set x = 'ab' %}" + _DOUBLE.format("x.join([x, x, x])") * 60,
        "{% set x = ['ab'] %}" + _DOUBLE.format("[x, x]") * 60 + "{{ x }}",
        "{% set x = {} %}{% set t = x.update({'x': x}) %}{% set t = x.update({'x': x}) %}{{ x }}",
        "{% set x = {} %}" + _DOUBLE.format("{'a': x, 'b': x}") * 60,
    ],
)
def test_work_is_bounded(source: str) -> None:
    with pytest.raises(ConfigError, match=r"f:1: t: the template does more than 4,000,000 steps"):
        _render(source, l=list(range(200)))


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_OUTPUT", 999)
    source = "{% for x in l %}0123456789{% endfor %}"
    assert len(_render(source, l=list(range(99)))) == 990
    with pytest.raises(ConfigError, match="writes more than 999 characters"):
        _render(source, l=list(range(100)))


def test_only_plain_values_are_handed_over() -> None:
    with pytest.raises(ConfigError, match="f:1: t: a holds a bytes"):
        _render("{{ a }}", a=[b"x"])
    assert _render("{{ b }}", a=[b"x"], b="unused fields are not looked at") == "unused fields are not looked at"
