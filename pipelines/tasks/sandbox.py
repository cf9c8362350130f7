"""Other people's Jinja templates, run so that a bad one ends in a clear error: no harm, no hang, no endless text.

Three fences stand on top of Jinja's own `ImmutableSandboxedEnvironment`. Only a short list of statements, filters and
methods is known, checked before anything is compiled. No Python attribute is ever reached: a dot means a mapping's key,
a loop's counter or a listed method. And whatever a template makes or walks through is paid from a budget of work, so
that nested loops and repeated doubling come to an end; a value's size is known before the value is made.

Our choice, unlike promptsource: a name that the record lacks is an error, not an empty text, and `answer_choices[-1]`
is too (-1 marks a record without a label; Python would take the last choice). `update` changes mappings made in the
template or copies of the record, never the record.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from pipelines.errors import ConfigError

MAX_SOURCE = 20_000
MAX_OUTPUT = 1_000_000
MAX_WORK = 4_000_000
_STEP, _ITEM = 100, 20
_BUDGET = "_budget"
_LOOP_ATTRIBUTES = frozenset({"index", "index0", "first", "last", "length"})
_STATEMENTS = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign)
_VALUES = (nodes.Name, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Slice)
_READING = (nodes.Getattr, nodes.Getitem, nodes.Filter, nodes.Test, nodes.Call)
_LOGIC = (nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.CondExpr)
_ARITHMETIC = (nodes.Add, nodes.Sub, nodes.Neg, nodes.Pos, nodes.Concat)
_KNOWN = frozenset(_STATEMENTS + _VALUES + _READING + _LOGIC + _ARITHMETIC)


class _Exhausted(Exception):
    """The budget is spent."""


class _Budget:
    """Work that one rendering may still do, in characters handled; a loop's step and a value count as more."""

    def __init__(self, rng: random.Random) -> None:
        self.left, self.rng = MAX_WORK, rng

    def pay(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise _Exhausted(f"does more than {MAX_WORK:,} steps of work; it loops or doubles too often")

    def pay_for(self, value: Any) -> Any:
        """`value`, once all of it is paid for, what it holds included."""
        waiting = [value]
        while waiting:
            item = waiting.pop()
            self.pay(_ITEM + (len(item) if isinstance(item, str) else 0))
            if isinstance(item, Mapping):
                waiting += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                waiting += item
        return value


class Choices(list[str]):
    """Answer choices as a template sees them: no index counts from the end."""


Function = Callable[..., Any]


class _Bound:
    """A listed method of one value."""

    def __init__(self, function: Function, subject: Any) -> None:
        self.function, self.subject = function, subject


def _replace(budget: _Budget, text: str, old: str, new: str) -> str:
    budget.pay(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


def _join(budget: _Budget, separator: str, items: Iterable[Any]) -> str:
    parts = [str(item) for item in budget.pay_for(list(items))]
    budget.pay(len(separator) * len(parts))
    return separator.join(parts)


def _update(budget: _Budget, mapping: dict[str, Any], other: Mapping[str, Any]) -> None:
    mapping.update(budget.pay_for(other))


def _choice(budget: _Budget, items: Sequence[Any]) -> Any:
    return budget.rng.choice(items)


def _most_frequent(budget: _Budget, items: Sequence[Any]) -> list[Any]:
    counts = Counter(budget.pay_for(list(items)))
    most = max(counts.values(), default=0)
    return [item for item, count in counts.items() if count == most]


def _same_size(function: Function) -> Function:
    """A function whose result is about as long as its first argument."""

    def paid(budget: _Budget, subject: Any, *arguments: Any) -> Any:
        budget.pay(1 + len(subject))
        return function(subject, *arguments)

    return paid


_CASE = {name: _same_size(getattr(str, name)) for name in ("lower", "upper", "title", "capitalize")}
_ENDS = {name: _same_size(getattr(str, name)) for name in ("split", "startswith", "endswith")}
_STRIP = {"strip": _same_size(lambda text: text.strip())}
_METHODS: dict[type, dict[str, Function]] = {
    str: {**_CASE, **_ENDS, **_STRIP, "replace": _replace, "join": _join},
    dict: {"update": _update} | {name: _same_size(getattr(dict, name)) for name in ("get", "items", "keys", "values")},
}
FILTERS: dict[str, Function] = {
    **_CASE,
    "choice": _choice,
    "most_frequent": _most_frequent,
    "replace": _replace,
    "trim": _STRIP["strip"],
    "length": lambda budget, items: len(items),
    "join": lambda budget, items, separator="": _join(budget, separator, items),
}
_INNER: dict[str, Function] = {
    "_made": lambda budget, value: budget.pay_for(value),
    "_walked": lambda budget, items: _walked(budget, list(items)),
    "_joined": lambda budget, items: _join(budget, "", items),
}


def _walked(budget: _Budget, items: list[Any]) -> list[Any]:
    budget.pay(_STEP * (1 + len(items)))
    return items


def _as_filter(function: Function) -> Function:
    @pass_context
    def called(context: Context, *arguments: Any) -> Any:
        return function(context[_BUDGET], *arguments)

    return called


@pass_context
def _printed(context: Context, value: Any) -> Any:
    if isinstance(value, _Bound):
        raise SecurityError("a method is written out where its result was meant; call it")
    return context[_BUDGET].pay_for(value)


def _check_defined(value: Any) -> None:
    if isinstance(value, Undefined):
        str(value)  # raises, with the name that is undefined


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja with nothing in it but what is listed above."""

    intercepted_binops = frozenset({"+"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, finalize=_printed, optimized=False, cache_size=0)
        self.globals.clear()
        self.filters = {name: _as_filter(function) for name, function in (FILTERS | _INNER).items()}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """What stands behind a dot."""
        _check_defined(obj)
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        if isinstance(obj, LoopContext) and attribute in _LOOP_ATTRIBUTES:
            return getattr(obj, attribute)
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind) and attribute in methods:
                return _Bound(methods[attribute], obj)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """What stands in brackets."""
        _check_defined(obj)
        if isinstance(obj, Choices) and isinstance(argument, int) and argument < 0:
            return self.undefined(f"answer_choices has no element {argument}")
        try:
            return obj[argument]
        except (LookupError, TypeError):
            return self.undefined(obj=obj, name=argument)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A listed method's result. `kwargs` holds only what Jinja adds itself: a template's own are refused."""
        _check_defined(obj)
        if not isinstance(obj, _Bound):
            raise SecurityError("only methods of texts and mappings can be called")
        return obj.function(context[_BUDGET], obj.subject, *args)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Left + right."""
        return context[_BUDGET].pay_for(left + right)


class _Paying(NodeTransformer):
    """Lets every loop, every made list or mapping and every joined text pay."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_walked")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_joined")

    def _literal(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _filtered(node, "_made")

    visit_List = visit_Dict = visit_Tuple = _literal


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class Program:
    """One compiled template.

    Attributes:
        where: what messages call it.
        names: the variables that it reads.

    Raises:
        ConfigError: not Jinja, too long, or with something that is not known here; the line is the template's.
    """

    def __init__(self, source: str, *, where: str) -> None:
        self.where = where
        if len(source) > MAX_SOURCE:
            raise ConfigError(f"{where}: {len(source):,} characters; a template has at most {MAX_SOURCE:,}")
        environment = _Environment()
        try:
            tree = environment.parse(source)
            for node in _walk(tree):
                _check(node, where)
            self.names = frozenset(find_undeclared_variables(tree))
            tree = _Paying().visit(tree)
            tree.set_environment(environment)
            self._template = environment.from_string(tree)
        except TemplateSyntaxError as error:
            raise ConfigError(f"{where}: line {error.lineno}: not valid Jinja: {error.message}") from error
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ConfigError(f"{where}: nested too deeply to compile; write it flat") from error

    def render(self, values: Mapping[str, Any], *, place: str, seed: str) -> str:
        """The text for one set of variables; equal seeds make equal choices.

        place: what the variables belong to, for messages

        Raises:
            ConfigError: the template fails, or does or writes too much.
        """
        where = f"{place}: {self.where}"
        used = {name: _copied(values[name], name, where) for name in self.names if name in values}
        pieces, size = [], 0
        try:
            for piece in self._template.generate({**used, _BUDGET: _Budget(random.Random(seed))}):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_OUTPUT:
                    raise _Exhausted(f"writes more than {MAX_OUTPUT:,} characters")
        except _Exhausted as error:
            raise ConfigError(f"{where}: the template {error}; simplify it") from error
        except TemplateError as error:
            known = ", ".join(sorted(values))
            raise ConfigError(f"{where}: {error.message}; the template was given {known}") from error
        except Exception as error:
            # Whatever a foreign program can raise: it is reported, never passed over.
            raise ConfigError(f"{where}: the template fails ({type(error).__name__}: {error})") from error
        return "".join(pieces)


def _walk(node: nodes.Node) -> Iterable[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _walk(child)


def _check(node: nodes.Node, where: str) -> None:
    """Refuse what is not on the lists."""
    line = f"{where}: line {node.lineno}"
    unusual = getattr(node, "dyn_kwargs", None) is not None or getattr(node, "recursive", False)
    if type(node) not in _KNOWN or unusual:
        raise ConfigError(f"{line}: a template may not use Jinja's {type(node).__name__} here")
    name = node.attr if isinstance(node, nodes.Getattr) else node.name if isinstance(node, nodes.Name) else ""
    if name.startswith("_"):
        raise ConfigError(f"{line}: a template may not reach {name!r}; names with an underscore in front are refused")
    if isinstance(node, nodes.Filter) and node.name not in FILTERS:
        raise ConfigError(f"{line}: unknown filter {node.name!r}; known: {', '.join(sorted(FILTERS))}")


def _copied(value: Any, name: str, where: str) -> Any:
    """A copy that a template may change, of plain values only."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return (Choices if isinstance(value, Choices) else list)(_copied(item, name, where) for item in value)
    if isinstance(value, Mapping):
        return {key: _copied(item, name, where) for key, item in value.items()}
    raise ConfigError(f"{where}: {name} holds a {type(value).__name__}; templates read texts, numbers, lists, mappings")
