"""Wheels for a machine that has torch and no network, and installing them there. The other machine needs only Python's
standard library and pip for it."""

import ast
import importlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST = 64 * 2**20
"""Bytes of all wheels together."""

ENTERED = (
    *(f"gpu_check.{name}" for name in ("parity", "leaks", "products", "memory", "generation", "speed", "probe")),
    "cupola_trainer.__main__",
    "cupola_trainer.training.loop",
    "cupola_trainer.generation.generation",
    "cupola_trainer.conversion.exporting",
    "cupola_trainer.jobs.probe",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2_moe.modeling_qwen2_moe",
)
"""Modules that a check imports, some only while it runs. What they load is what the other machine needs."""


class WheelError(Exception):
    """Wheels that cannot be made or used here. The message is a line for the user."""


def collect(folder: Path, python: str) -> None:
    """Build the project's wheel, and download those of another Python that the check needs besides torch.

    Args:
        python: version of the other machine's Python, such as 3.12.

    Raises:
        WheelError: a pin has no wheel for that Python, or all together are more than `MOST`.
    """
    if not re.fullmatch(r"3\.\d+", python) or not _supported(python):
        raise WheelError(f"--python {python}: Cupola runs on Python {_requires_python()}. Try --python 3.12.")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    _pip(
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        *_target(python),
        *pins(python),
    )
    size = sum(path.stat().st_size for path in folder.glob("*.whl"))
    print(f"{folder}: {len(list(folder.glob('*.whl')))} wheels for Python {python}, {size / 2**20:.1f} MiB")
    if size > MOST:
        largest = max(folder.glob("*.whl"), key=lambda path: path.stat().st_size)
        raise WheelError(
            f"{folder} holds {size / 2**20:.1f} MiB, more than {MOST / 2**20:.0f}. The largest is {largest.name}: "
            "leave it out if the other machine has that package."
        )


def pins(python: str) -> list[str]:
    """NAME==VERSION of each distribution that our modules import, and of all that these require; without torch and what
    torch requires."""
    needed = set(_closure(_imported(), python)) - set(_closure({"torch"}, python))
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {_normal(line.split("==")[0]): line for line in lines if "==" in line and not line.startswith("#")}
    return sorted(pinned[name] for name in needed if name in pinned)


def _imported() -> set[str]:
    """Distributions that those of our modules import which a check loads. What others load because it happens to be
    installed here, such as SciPy in transformers, is not needed."""
    from importlib.metadata import packages_distributions

    for name in ENTERED:
        importlib.import_module(name)
    files = [Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))]
    ours = [path for path in files if path.is_relative_to(ROOT) and "site-packages" not in path.parts]
    owners = packages_distributions()
    return {
        _normal(owner)
        for path in ours
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _names(node)
        if (top := name.split(".")[0]) in sys.modules  # not what a function imports for another purpose
        for owner in owners.get(top, ())
    } - {"torch", "cupola"}


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def _closure(names: set[str], python: str) -> Iterator[str]:
    """These distributions and those that they require on a Python, as far as they are installed here."""
    from importlib import metadata

    from packaging.requirements import Requirement

    seen, left = set(names), list(names)
    while left:
        name = left.pop()
        yield name
        try:
            requirements = [Requirement(text) for text in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue
        for each in requirements:
            wanted = each.marker is None or each.marker.evaluate({"python_version": python, "extra": ""})
            if wanted and (other := _normal(each.name)) not in seen:
                seen.add(other)
                left.append(other)


def run_installed(folder: Path, arguments: Sequence[str]) -> int:
    """Run this command with `arguments` in a new environment: the running Python's packages, and the wheels before them.
    Returns its exit status.

    Raises:
        WheelError: there is no wheel, one is of another Python or machine, or the project's is of other code.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise WheelError(f"{folder} holds no wheel. Make them where there is a network: gpu_check wheels --to {folder}")
    for wheel in wheels:
        _refuse_foreign(wheel.name)
        if wheel.name.startswith("cupola-"):
            _refuse_other_code(wheel)
    with tempfile.TemporaryDirectory(prefix="gpu-check-venv-") as place:
        python = _environment(Path(place))
        _pip(
            "--python", str(python), "install", "--quiet", "--no-index", "--no-deps", "--no-compile", *map(str, wheels)
        )
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run([python, Path(__file__).parent, *arguments], env=variables, check=False).returncode


def _environment(place: Path) -> Path:
    """The Python of a new environment that sees the running Python's packages. `--system-site-packages` alone shows
    those of the Python that an environment was made from, and the running one may itself be an environment."""
    venv.create(place, system_site_packages=True, with_pip=False)
    python = place / "bin" / "python"
    packages = next((place / "lib").glob("python*/site-packages"))
    outer = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "zz-outer.pth").write_text("\n".join(outer) + "\n")
    return python


def _refuse_foreign(name: str) -> None:
    """Raise WheelError unless a wheel of this name can be installed here (PEP 425's tags)."""
    *_, pythons, abi, machines = name.removesuffix(".whl").split("-")
    here = f"{sys.version_info[0]}{sys.version_info[1]}"
    limited = abi == "abi3" and any(
        int(tag[3:] or 0) <= int(here[1:]) for tag in pythons.split(".") if tag[:3] == "cp3"
    )
    fits = {"py3", f"cp{here}", f"py{here}"} & set(pythons.split("."))
    if not fits and not limited:
        raise WheelError(
            f"{name} is a wheel of another Python ({pythons}), and this is Python {platform.python_version()}. Make the "
            f"wheels again: gpu_check wheels --python {sys.version_info[0]}.{sys.version_info[1]}"
        )
    if machines != "any" and platform.machine() not in machines:
        raise WheelError(
            f"{name} is a wheel for another machine, and this is {platform.machine()}. Make the wheels on such a one."
        )


def _refuse_other_code(wheel: Path) -> None:
    """Raise WheelError unless the project's wheel holds the code of this tree."""
    folders = {"cupola_platform": "platform", "cupola_trainer": "trainer"}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            folder = folders.get(name.split("/")[0])
            if folder is None or not name.endswith(".py"):
                continue
            path = ROOT / folder / name
            if not path.is_file() or path.read_bytes() != archive.read(name):
                raise WheelError(f"{wheel.name} holds another {name} than this tree. Make the wheels again.")


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise WheelError(f"pip {arguments[0]}: {lines[-1] if lines else f'exit status {done.returncode}'}")


def _target(python: str) -> list[str]:
    """pip's options for the other Python on a Linux machine like this one."""
    machine = platform.machine()
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(39, 4, -1)]
    tags += [f"manylinux2014_{machine}", f"manylinux1_{machine}"]
    return ["--implementation=cp", f"--python-version={python}", *(f"--platform={tag}" for tag in tags)]


def _requires_python() -> str:
    text: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    return text


def _supported(python: str) -> bool:
    least, below = (int(bound.rpartition(".")[2]) for bound in _requires_python().split(","))
    return least <= int(python.rpartition(".")[2]) < below


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
