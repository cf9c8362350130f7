"""The kinds of value that config blocks are made of: paths, model names, numbers in range, question files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

from pipelines.assets import SourcedStr


def _path(value: Any) -> Any:
    if isinstance(value, Path):
        return value.expanduser().absolute()
    if not isinstance(value, str) or not value:
        return value
    base = value.base if isinstance(value, SourcedStr) and value.base else Path.cwd()
    try:
        return Path(base, Path(value).expanduser()).resolve()
    except (OSError, RuntimeError) as error:  # no such user, a circle of links, too long
        raise ValueError(f"not a usable path: {error}") from error


def _model(value: Any) -> Any:
    """A local folder becomes an absolute path; anything else stays as it is: the id of a model on a hub."""
    if isinstance(value, Path):
        return str(value.absolute())
    if not isinstance(value, str) or not value:
        return value
    path = _path(value)
    try:
        local = value.startswith((".", "/", "~")) or path.is_dir()
    except OSError as error:
        raise ValueError(f"neither a folder nor a model's id: {error}") from error
    return str(path) if local else str(value)


def _param(value: Any) -> Any:
    """A value for a plug-in: plain data; text that begins with `./` or `../` is a path, relative to the YAML file."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("the keys of params are text")
        return {str(key): _param(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_param(inner) for inner in value]
    if isinstance(value, str):
        return str(_path(value)) if value.startswith(("./", "../")) else str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError(
        f"params hold plain data, got an object of type {type(value).__name__}; pass objects by keyword in Python"
    )


LocalPath = Annotated[Path, BeforeValidator(_path)]
ModelName = Annotated[str, Field(min_length=1), BeforeValidator(_model)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Params = Annotated[dict[str, Any], BeforeValidator(_param)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]
DType = Literal["auto", "float32", "bfloat16", "float16"]
AttnImplementation = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]


class Block(BaseModel):
    """A part of a config: no unknown keys, no silent conversions of type."""

    model_config = ConfigDict(
        extra="forbid", strict=True, protected_namespaces=(), validate_default=True, populate_by_name=True
    )


class Questions(Block):
    """A file of questions with answers. `qrels` (BEIR) adds the gold passages, and leaves only the questions that it
    judges. Of these the first `skip` are passed over and at most `limit` taken; `sample` draws that many of them,
    always the same ones."""

    path: LocalPath
    format: Literal["auto", "nq_open", "dpr_csv", "squad", "beir", "jsonl"] = "auto"
    qrels: LocalPath | None = None
    skip: Count = 0
    limit: Positive | None = None
    sample: Positive | None = None
