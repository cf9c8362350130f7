"""Where the packaged configs and models lie: inside the wheel, or in the checkout that this file belongs to."""

from __future__ import annotations

from pathlib import Path


class SourcedStr(str):
    """A string that remembers the folder of the YAML file it stood in, so that a relative path can be resolved
    against it."""

    base: Path | None = None

    @classmethod
    def of(cls, value: str, base: Path | None) -> SourcedStr:
        """`value`, found in a file that lies in `base`."""
        sourced = cls(value)
        sourced.base = base
        return sourced


def config_folder() -> Path:
    """The folder of the packaged configs."""
    here = Path(__file__).resolve().parent
    installed = here / "_assets" / "configs"
    return installed if installed.is_dir() else here.parent / "configs"


def packaged_configs() -> list[str]:
    """Names of the packaged configs, as `Pipeline.from_config` takes them."""
    root = config_folder()
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.yaml"))
