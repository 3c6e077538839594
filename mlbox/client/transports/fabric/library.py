"""fabric and paramiko themselves, loaded when they are needed."""

from __future__ import annotations

import logging
from typing import Any

from mlbox import errors


def load() -> tuple[Any, Any]:
    """fabric and paramiko; 270 ms the first time."""
    try:
        import fabric
        import paramiko
    except ImportError as error:
        message = f'transport = "fabric" needs the Python package fabric, and it does not load here: {error}'
        raise errors.Usage(message, 'pip install fabric, or set transport = "openssh" in config.toml') from None
    # Without a handler logging prints paramiko's tracebacks on stderr; what they say comes as an error as well.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    return fabric, paramiko
