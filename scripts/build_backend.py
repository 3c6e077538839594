"""The package's build backend: flit, after making mlbox/_host.pyz, which the wheel carries as data.

So `pip install .` works from a clean clone. An sdist carries the file itself and needs no package index.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_pyz import BuildError, build_host
from flit_core import buildapi

REPOSITORY = Path(__file__).resolve().parent.parent
Settings = Optional[dict[str, Any]]


def _make_host_part() -> None:
    is_sdist = (REPOSITORY / "PKG-INFO").is_file()
    if is_sdist and (REPOSITORY / "mlbox" / "_host.pyz").is_file():
        return
    try:
        build_host()
    except BuildError as error:
        raise SystemExit(f"build_backend: {error}") from None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return list(buildapi.get_requires_for_build_wheel(config_settings))


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings = None) -> str:
    return str(buildapi.prepare_metadata_for_build_wheel(metadata_directory, config_settings))


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    _make_host_part()
    return str(buildapi.build_wheel(wheel_directory, config_settings, metadata_directory))


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return list(buildapi.get_requires_for_build_editable(config_settings))


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: Settings = None) -> str:
    return str(buildapi.prepare_metadata_for_build_editable(metadata_directory, config_settings))


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    _make_host_part()
    return str(buildapi.build_editable(wheel_directory, config_settings, metadata_directory))


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    return list(buildapi.get_requires_for_build_sdist(config_settings))


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    _make_host_part()
    return str(buildapi.build_sdist(sdist_directory, config_settings))
