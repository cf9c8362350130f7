"""Templates of promptsource: Bach et al. 2022, "PromptSource: An Integrated Development Environment and Repository for
Natural Language Prompts", arXiv 2202.01279.

A `templates.yaml` holds many templates of one dataset, each with an id and a name. A template is Jinja; `|||` splits
what it writes into input and target, and a second small template lists the `answer_choices`, split likewise. A record
that gives an empty input or target is meant to be left out, as promptsource does. `choice` draws by the record, so the
same file reads the same every time (our choice; promptsource draws anew). See `sandbox.py` for what Jinja may do here.
"""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import ConfigError
from pipelines.suggest import did_you_mean
from pipelines.tasks.sandbox import Choices, Program

MAX_FILE_BYTES = 2**22
_SPLIT = "|||"


@dataclass(frozen=True)
class TemplateText:
    """One template as its file has it.

    where: file and name, for messages
    jinja: input and target, split by `|||`
    answer_choices: Jinja too; None for free text
    metrics: names as promptsource spells them
    original_task: whether it asks for what the dataset was made for
    choices_in_prompt: whether the input names the choices
    """

    id: str
    name: str
    where: str
    jinja: str
    answer_choices: str | None = None
    metrics: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    original_task: bool | None = None
    choices_in_prompt: bool | None = None
    reference: str = ""


@dataclass(frozen=True)
class Rendered:
    """What one record became. `choices` is empty for free text, else it holds `target`."""

    text: str
    target: str
    choices: tuple[str, ...] = ()


class PromptsourceTemplate:
    """A compiled template.

    Attributes:
        source: the template as its file has it.
        fields: the fields of a record that it reads.

    Raises:
        ConfigError: not Jinja, or Jinja that is not read here.
    """

    def __init__(self, source: TemplateText) -> None:
        self.source = source
        # No text can hold this mark, so a record's own `|||` stays text.
        self._mark = secrets.token_hex(16)
        self._program = self._compiled(source.jinja, source.where)
        choices = source.answer_choices
        self._choices = None if choices is None else self._compiled(choices, f"{source.where}, answer_choices")
        names = self._program.names | (self._choices.names if self._choices else frozenset())
        self.fields = tuple(sorted(names - {"answer_choices"}))

    def fixed_choices(self) -> tuple[str, ...] | None:
        """The answer choices, where they read nothing of a record; None for others, and for free text.

        Raises:
            ConfigError: the template fails.
        """
        if self._choices is None or self._choices.names:
            return None
        listed = self._parts(self._choices.render({}, place="no record", seed=self.source.id))
        return tuple(dict.fromkeys(listed))

    def _compiled(self, jinja: str, where: str) -> Program:
        return Program(jinja.replace(_SPLIT, self._mark), where=where)

    def render(self, record: Mapping[str, Any], *, where: str, seed: str) -> Rendered | None:
        """Input, target and choices for one record; None where the template has nothing to ask of it.

        where: the record's place, for messages
        seed: what `choice` draws by; the record's id, so that each draws for itself

        Raises:
            ConfigError: the template fails on the record, writes no or two `|||`, or a target that is no choice.
        """
        if "answer_choices" in record:
            raise ConfigError(f"{where}: the record's field 'answer_choices' hides the template's; leave it out")
        key = f"{seed}/{self.source.id}"
        values = dict(record)
        choices: tuple[str, ...] = ()
        if self._choices is not None:
            listed = self._parts(self._choices.render(values, place=where, seed=key))
            values["answer_choices"] = Choices(listed)
            choices = tuple(dict.fromkeys(listed))
        parts = self._parts(self._program.render(values, place=where, seed=key))
        if parts == [""]:
            return None
        if len(parts) != 2:
            raise ConfigError(
                f"{where}: {self.source.where} writes {len(parts) - 1} times {_SPLIT!r}; expected one between input "
                "and target"
            )
        text, target = parts
        if not text or not target:
            return None
        if choices and target not in choices:
            raise ConfigError(
                f"{where}: {self.source.where} writes the target {target[:60]!r}; expected one of its answer choices "
                f"{', '.join(map(repr, choices[:20]))}"
            )
        return Rendered(text, target, choices)

    def _parts(self, text: str) -> list[str]:
        return [part.strip() for part in text.split(self._mark)]


def read_templates(path: Path | str) -> list[TemplateText]:
    """All templates of a file, not compiled: one that is not read here does not stand in the way of the others.

    Raises:
        ConfigError: missing or unreadable file, not YAML, another tag than promptsource's, a template without a name
            or text.
    """
    path = Path(path).expanduser()
    templates = _loaded(path)
    if not isinstance(templates, dict) or not isinstance(templates.get("templates"), dict):
        raise ConfigError(f"{path}: expected a mapping with the key 'templates', as promptsource writes it")
    found = [_template(path, key, node) for key, node in templates["templates"].items()]
    if not found:
        raise ConfigError(f"{path} holds no template")
    return found


def load_template(path: Path | str, name: str) -> PromptsourceTemplate:
    """Read and compile one template, by its name or its id.

    Raises:
        ConfigError: no such template, or two of that name; as `read_templates` and `PromptsourceTemplate`.
    """
    templates = read_templates(path)
    named = [template for template in templates if name.strip() in (template.name.strip(), template.id)]
    if not named:
        hint = did_you_mean(name, [template.name for template in templates])
        raise ConfigError(f"{path} has no template named {name!r}{hint}")
    if len(named) > 1:
        ids = ", ".join(template.id for template in named)
        raise ConfigError(f"{path} has {len(named)} templates named {name!r}; give the id instead: {ids}")
    return PromptsourceTemplate(named[0])


class _Tagged(dict[str, Any]):
    """A mapping under one of promptsource's tags."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which knows promptsource's two tags and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _tagged(loader: _Loader, node: yaml.Node) -> _Tagged:
    if not isinstance(node, yaml.MappingNode):
        raise yaml.MarkedYAMLError(problem=f"{node.tag} is no mapping", problem_mark=node.start_mark)
    return _Tagged({str(key): value for key, value in loader.construct_mapping(node, deep=True).items()})


_Loader.add_constructor("!Template", _tagged)
_Loader.add_constructor("!TemplateMetadata", _tagged)


def _loaded(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} has more than {MAX_FILE_BYTES:,} bytes; is this a templates.yaml?")
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}); name a templates.yaml") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not a promptsource file: {error.problem}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a promptsource file: {str(error)[:200]}") from error


def _template(path: Path, key: Any, node: Any) -> TemplateText:
    where = f"{path}: template {str(key)[:80]}"
    if not isinstance(node, _Tagged):
        raise ConfigError(f"{where}: expected a !Template, got {type(node).__name__}")
    metadata = _member(where, node, "metadata", dict, None)
    name = _member(where, node, "name", str)
    return TemplateText(
        id=str(key),
        name=name,
        where=f"{path}: template {name!r}",
        jinja=_member(where, node, "jinja", str),
        answer_choices=_member(where, node, "answer_choices", str, None),
        reference=_member(where, node, "reference", str, ""),
        metrics=tuple(map(str, _member(where, metadata or {}, "metrics", list, []))),
        languages=tuple(map(str, _member(where, metadata or {}, "languages", list, []))),
        original_task=_member(where, metadata or {}, "original_task", bool, None),
        choices_in_prompt=_member(where, metadata or {}, "choices_in_prompt", bool, None),
    )


_REQUIRED = object()


def _member(where: str, node: Mapping[str, Any], key: str, kind: type, default: Any = _REQUIRED) -> Any:
    """What stands under a key; null and absent are `default`.

    Raises:
        ConfigError: another type, or nothing where something is required.
    """
    value = node.get(key)
    if value is None and default is not _REQUIRED:
        return default
    if not isinstance(value, kind) or (default is _REQUIRED and not str(value).strip()):
        raise ConfigError(f"{where}: {key!r} is {value!r:.60}, expected a {kind.__name__}")
    return value
