# SPDX-License-Identifier: Apache-2.0
"""The example authentication service as a module; its file is a program outside of any package."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Final

from support.servers.proxy import ROOT

FOLDER: Final = ROOT / "deploy/examples/auth-service"
PROGRAM: Final = FOLDER / "auth.py"


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_auth_service", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


AUTH: Final = _module()
