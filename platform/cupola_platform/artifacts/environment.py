"""The versions that a result was made with, read without importing the packages."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("cupola", "torch", "megatron-core", "transformers", "tokenizers", "numpy")


@cache
def environment() -> dict[str, str]:
    """Versions of Python, the platform and the packages that affect a result. Never the machine's name."""
    versions = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
