"""No import cycles, between modules or between the packages of a folder. Imports inside functions count."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import grimp
import pytest

PACKAGES = ("cupola_platform", "cupola_trainer", "cupola_flows", "cupola_dashboards")
ROOT = Path(__file__).parents[2]
FOLDERS = ("platform", "trainer", "flows", "dashboards", "benchmarks", "tests")
MOST = 15
"""Maximum files in a folder."""


def circle(imported: Mapping[str, Iterable[str]]) -> list[str]:
    """One cycle, from a name back to itself, each imported by the next; empty if there is none."""
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def circle_of_modules(graph: grimp.ImportGraph) -> list[str]:
    return circle({module: graph.find_modules_directly_imported_by(module) for module in graph.modules})


def circles_of_rooms(graph: grimp.ImportGraph) -> dict[str, list[str]]:
    """For each folder whose packages form a cycle, the imports of one such cycle."""
    found = {}
    for folder in sorted(graph.modules):
        between = _imports_between(graph, graph.find_children(folder))
        imported = {room: {other for importer, other in between if importer == room} for room, _ in between}
        if names := circle(imported):
            found[folder] = [between[importer, other] for other, importer in pairwise(names)]
    return found


def _imports_between(graph: grimp.ImportGraph, rooms: Collection[str]) -> dict[tuple[str, str], str]:
    """One import for each pair of importing and imported package."""
    room_of = {module: room for room in rooms for module in (room, *graph.find_descendants(room))}
    return {
        (room, other): f"{importer} -> {imported}"
        for importer, room in sorted(room_of.items())
        for imported in sorted(graph.find_modules_directly_imported_by(importer))
        if (other := room_of.get(imported, room)) != room
    }


@pytest.fixture(scope="module", params=PACKAGES)
def imports(request: pytest.FixtureRequest) -> grimp.ImportGraph:
    return grimp.build_graph(request.param, cache_dir=None)


def test_no_modules_form_a_cycle(imports: grimp.ImportGraph) -> None:
    assert circle_of_modules(imports) == []


def test_no_packages_of_a_folder_form_a_cycle(imports: grimp.ImportGraph) -> None:
    assert circles_of_rooms(imports) == {}


def test_no_folder_has_too_many_files() -> None:
    counts = Counter(path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    assert {str(folder): count for folder, count in counts.items() if count > MOST} == {}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], grimp.ImportGraph]:
    """A function that builds the graph of a package `toy` from modules."""

    def build(modules: dict[str, str]) -> grimp.ImportGraph:
        for name, source in modules.items():
            path = tmp_path / "toy" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
            for folder in path.relative_to(tmp_path).parents[:-1]:
                (tmp_path / folder / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        return grimp.build_graph("toy", cache_dir=None)

    return build


def test_a_planted_cycle_of_modules_is_found(toy: Callable[[dict[str, str]], grimp.ImportGraph]) -> None:
    graph = toy(
        {"a": "import toy.b", "b": "def late():\n    from toy import c", "c": "import toy.a", "d": "import toy.a"}
    )
    found = circle_of_modules(graph)
    assert found[0] == found[-1]
    assert set(found) == {"toy.a", "toy.b", "toy.c"}


def test_a_planted_cycle_of_packages_is_found_without_one_of_modules(
    toy: Callable[[dict[str, str]], grimp.ImportGraph],
) -> None:
    modules = {
        "rooms/hall/door": "import toy.rooms.cellar.stairs",
        "rooms/hall/window": "",
        "rooms/cellar/stairs": "",
        "rooms/cellar/hatch": "import toy.rooms.hall.window",
        "roof": "import toy.rooms.hall.door, toy.rooms.cellar.hatch",
    }
    graph = toy(modules)
    assert circle_of_modules(graph) == []
    (folder, pairs), *others = circles_of_rooms(graph).items()
    assert (folder, others) == ("toy.rooms", [])
    assert set(pairs) == {
        "toy.rooms.hall.door -> toy.rooms.cellar.stairs",
        "toy.rooms.cellar.hatch -> toy.rooms.hall.window",
    }


def test_an_import_against_the_order_of_corpus_packages_is_found() -> None:
    graph = grimp.build_graph("cupola_platform", cache_dir=None)
    core, page = "cupola_platform.corpus.core.documents", "cupola_platform.corpus.report.page"
    graph.add_import(importer=core, imported=page)
    found = circles_of_rooms(graph)
    assert list(found) == ["cupola_platform.corpus"]
    assert f"{core} -> {page}" in found["cupola_platform.corpus"]
