"""Runs a stranger's Jinja template as transformers would, but within a budget of steps and of characters.

Invariant: whatever loops or grows is charged before it happens. The template is rewritten once, after parsing: loops,
`~`, output, literals, comparisons and filter inputs pass through the budget; operators and calls are intercepted by
jinja2's sandbox; filters and text methods are a list of those that cannot grow, and three bounded ones.

Environment: transformers, utils/chat_template_utils.py, _cached_compile_jinja_template. Left out, and refused: `dict`,
`*`, `%` and `**` on text and lists, recursive loops, imports, formatting and padding filters.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deaios.primitives.errors import Invalid

STEPS_MAX = 200_000
"""Loop rounds, calls, filters and items of one rendering."""
CHARACTERS_MAX = 1 << 26
"""Characters that one rendering may touch or build, counted each time."""
INTEGER_BITS_MAX = 64
INDENT_MAX = 16
CALL_DEPTH_MAX = 24
"""Macros within macros: each level costs C stack, which Python's recursion limit does not guard."""
NESTING_MAX = 100
"""Depth of the parsed template; CPython's own compiler fails hard on deeper code."""

_FILTERS: Final = (
    *("capitalize", "count", "d", "default", "dictsort", "first", "int", "items", "last", "length", "lower", "map"),
    *("reject", "rejectattr", "reverse", "safe", "select", "selectattr", "sort", "string", "title", "trim"),
    *("unique", "upper"),
)
_TEXT_METHODS: Final = frozenset(
    (
        *("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdecimal", "isdigit", "islower"),
        *("isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace"),
        *("rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper"),
    )
)
_REFUSED_NODES: Final = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport, nodes.FilterBlock)


class InvalidTemplate(Invalid):
    """A chat template that does not compile, fails, or exceeds its budget."""


class TemplateRefusal(jinja2.TemplateError):
    """The template called raise_exception: it does not support what it was given."""


class _GenerationTag(Extension):
    """`{% generation %}`: transformers marks assistant text with it while training; here its body just renders."""

    tags = {"generation"}  # noqa: RUF012 # declared so on jinja2's base class

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """`namespace()` without names that could reach Python's internals."""

    def __init__(self, *items: Mapping[str, object], **named: object) -> None:
        values = dict(*items, **named)
        for name in values:
            _refuse_internal(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: object) -> None:
        _refuse_internal(name)
        super().__setitem__(name, value)


def _refuse_internal(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise InvalidTemplate(f"chat template: namespace attribute {str(name)[:40]!r} is refused")


class _Budget:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self.steps = STEPS_MAX
        self.characters = CHARACTERS_MAX
        self.depth = 0


_BUDGET: ContextVar[_Budget] = ContextVar("template budget")
"""A context variable, because renderings in several threads share one compiled template."""


@contextmanager
def grant_budget() -> Iterator[None]:
    """A fresh budget for one rendering."""
    token = _BUDGET.set(_Budget())
    try:
        yield
    finally:
        _BUDGET.reset(token)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment; render within `grant_budget`."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        # optimized=False: folding constants would run the template's arithmetic while it compiles.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_GenerationTag, loopcontrols]
        )
        self.filters = {name: item for name, item in self.filters.items() if name in _FILTERS}
        self.filters |= {"tojson": self._to_json, "join": self._join, "replace": self._replace, "list": self._list_of}
        self.filters |= {"_each": self._list_of, "_touch": self._touch, "_weigh": self._weigh, "_append": self._append}
        self.globals = {"range": self.globals["range"], "namespace": _Namespace, "raise_exception": _raise_refusal}

    def parse_metered(self, source: str) -> nodes.Template:
        """Parse a template and route everything that loops or grows through the budget.

        Raises:
            InvalidTemplate: it uses a part of the language that is left out.
            jinja2.TemplateError: it does not parse.
        """
        tree = self.parse(source)
        for kind in _REFUSED_NODES:
            if tree.find(kind) is not None:
                raise InvalidTemplate(f"chat template uses {kind.__name__}, which is refused")
        if any(item.name.startswith("_") for item in tree.find_all(nodes.Filter)):
            raise InvalidTemplate("chat template names a filter with an underscore, which is refused")
        if any(loop.recursive for loop in tree.find_all(nodes.For)):
            raise InvalidTemplate("chat template uses a recursive loop, which is refused")
        _refuse_deep(tree)
        # Each kind is collected before its nodes are changed, and filters come first: those added later are ours.
        for rewrite in (_meter_filters, _meter_loops, _meter_items, _meter_comparisons, _meter_literals, _meter_output):
            rewrite(tree)
        tree.set_environment(self)
        return tree

    def _charge(self, steps: int, characters: int = 0) -> None:
        budget = _BUDGET.get()
        budget.steps -= steps
        budget.characters -= characters
        if budget.steps < 0:
            raise InvalidTemplate(f"chat template exceeds {STEPS_MAX} steps")
        if budget.characters < 0:
            raise InvalidTemplate(f"chat template touches more than {CHARACTERS_MAX} characters")

    def _touch(self, value: Any) -> Any:  # Any here and below: a template's values have any type
        """Charge a value's own length, not what its items hold."""
        size = len(value) if isinstance(value, str | list | tuple | dict | range) else 1
        self._charge(1, size)
        return value

    def _weigh(self, value: Any) -> Any:
        """Charge a value with everything in it, as it would print; a value used twice counts twice."""
        pending = [value]
        while pending:
            item = pending.pop()
            if isinstance(item, str):
                self._charge(1, len(item))
            elif isinstance(item, Mapping):
                self._charge(1, len(item))
                pending += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                self._charge(1, len(item))
                pending += item
            elif isinstance(item, range):
                self._charge(1, len(item))
            else:
                self._charge(1, 32)
        return value

    def _list_of(self, values: Iterable[Any]) -> list[Any]:
        """A list, one step per item. Loops get one too, because `loop.last` needs a length."""
        items = []
        for value in values:
            self._charge(1)
            items.append(value)
        return items

    def _append(self, left: Any, right: Any) -> str:
        """The `~` operator."""
        self._weigh([left, right])
        return str(left) + str(right)

    def _replace(self, text: Any, old: str, new: str, count: int | None = None) -> str:
        whole, old, new = str(self._weigh(text)), str(old), str(new)
        found = whole.count(old)
        times = found if count is None or count < 0 else min(found, count)
        self._charge(1, len(whole) + times * len(new))
        return whole.replace(old, new, times)

    def _join(self, values: Iterable[Any], separator: Any = "", attribute: Any = None) -> str:
        texts = []
        for value in values:
            item = value if attribute is None else self.getitem(value, attribute)
            self._weigh([item, separator])
            texts.append(str(item))
        return str(separator).join(texts)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As transformers overrides it: no HTML escapes."""
        if indent is not None and (not isinstance(indent, int) or not 0 <= indent <= INDENT_MAX):
            raise InvalidTemplate(f"chat template: tojson indent {str(indent)[:40]}, 0 to {INDENT_MAX} allowed")
        self._weigh(value)
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        self._charge(1, len(text))
        return text

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Of text, only methods that cannot grow it or that are bounded in `call`; else the sandbox's own rule."""
        if isinstance(obj, str):
            return attr in _TEXT_METHODS
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Nothing: `format` is refused like any other method that is not listed, because of its widths."""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic on bounded numbers; text and lists only add up."""
        if operator == "+" and any(isinstance(left, kind) and isinstance(right, kind) for kind in (str, list, tuple)):
            self._weigh([left, right])
            return left + right
        if not isinstance(left, int | float) or not isinstance(right, int | float) or operator == "**":
            raise InvalidTemplate(f"chat template: {type(left).__name__} {operator} {type(right).__name__} is refused")
        self._charge(1)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > INTEGER_BITS_MAX:
            raise InvalidTemplate(f"chat template: an integer exceeds {INTEGER_BITS_MAX} bits")
        return result

    def call(self, context: Any, callee: Any, /, *arguments: Any, **named: Any) -> Any:
        """Every call is a step; text methods are charged, and those that grow text are replaced."""
        self._charge(1, sum(len(item) for item in arguments if isinstance(item, Sized)))
        owner, name = getattr(callee, "__self__", None), getattr(callee, "__name__", "")
        if isinstance(owner, str):
            if name == "replace":
                return self._replace(owner, *arguments, **named)
            if name == "join":
                (values,) = arguments
                return self._join(values, owner)
            self._charge(1, len(owner))
        budget = _BUDGET.get()
        if budget.depth >= CALL_DEPTH_MAX:
            raise InvalidTemplate(f"chat template calls deeper than {CALL_DEPTH_MAX}")
        budget.depth += 1
        try:
            return super().call(context, callee, *arguments, **named)
        finally:
            budget.depth -= 1


def _refuse_deep(tree: nodes.Template) -> None:
    level: list[nodes.Node] = [tree]
    for _ in range(NESTING_MAX):
        level = [child for node in level for child in node.iter_child_nodes()]
    if level:
        raise InvalidTemplate(f"chat template nests deeper than {NESTING_MAX}")


def _through(name: str, expression: nodes.Node) -> nodes.Filter:
    return nodes.Filter(expression, name, [], [], None, None)


def _meter_filters(tree: nodes.Template) -> None:
    for item in list(tree.find_all(nodes.Filter)):
        if item.node is not None:
            item.node = _through("_touch", item.node)


def _meter_loops(tree: nodes.Template) -> None:
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = _through("_each", loop.iter)


def _meter_items(tree: nodes.Template) -> None:
    for item in list(tree.find_all(nodes.Getitem)):
        item.node = _through("_touch", item.node)


def _meter_comparisons(tree: nodes.Template) -> None:
    for comparison in list(tree.find_all(nodes.Compare)):
        comparison.expr = _through("_weigh", comparison.expr)
        for operand in comparison.ops:
            operand.expr = _through("_weigh", operand.expr)


def _meter_literals(tree: nodes.Template) -> None:
    for items in list(tree.find_all(nodes.List)):
        items.items = [_through("_weigh", item) for item in items.items]
    for values in list(tree.find_all(nodes.Tuple)):
        if values.ctx == "load":
            values.items = [_through("_weigh", item) for item in values.items]
    for pair in list(tree.find_all(nodes.Pair)):
        pair.key, pair.value = _through("_weigh", pair.key), _through("_weigh", pair.value)


def _meter_output(tree: nodes.Template) -> None:
    for concat in list(tree.find_all(nodes.Concat)):
        first, *rest = concat.nodes
        for item in rest:
            first = nodes.Filter(first, "_append", [item], [], None, None)
        concat.nodes = [first]
    for output in list(tree.find_all(nodes.Output)):
        output.nodes = [_through("_weigh", _as_expression(item)) for item in output.nodes]


def _as_expression(item: nodes.Expr) -> nodes.Expr:
    return nodes.Const(item.data) if isinstance(item, nodes.TemplateData) else item


def _raise_refusal(message: object = "") -> NoReturn:
    raise TemplateRefusal(str(message)[:500])
