"""Where jobs run: the one place that chooses among launchers."""

from collections.abc import Sequence

from cupola_platform.clusters import LocalCluster, SlurmCluster
from cupola_platform.errors import ConfigError
from cupola_platform.launch.interface import Launcher
from cupola_platform.launch.kubernetes.launcher import KubernetesLauncher
from cupola_platform.launch.local import LocalLauncher, room
from cupola_platform.launch.slurm.launcher import SlurmLauncher
from cupola_platform.launch.unshared.launcher import UnsharedLauncher
from cupola_platform.nearest import did_you_mean
from cupola_platform.settings import Settings


def is_unshared(settings: Settings, cluster: str | None) -> bool:
    """Whether the nodes of a cluster do not see this machine's folders."""
    return cluster is not None and cluster in settings.clusters and not settings.clusters[cluster].shared


def make_launcher(settings: Settings, cluster: str | None = None, *, at_least: int = 0) -> Launcher:
    """The launcher of a cluster of `cupola.toml`.

    Args:
        cluster: None for this machine.
        at_least: ranks to allow on this machine even if the settings or the number of cores allow fewer.

    Raises:
        ConfigError: no cluster has that name.
    """
    if cluster is not None:
        if cluster not in settings.clusters:
            hint = did_you_mean(cluster, settings.clusters) or " cupola.toml has no [clusters.NAME]."
            raise ConfigError(f"No cluster is called {cluster!r}.{hint}")
        place = settings.clusters[cluster]
        if isinstance(place, LocalCluster):
            ranks = min(place.per_node, place.limit or place.per_node)
            return LocalLauncher(ranks, environment=place.environment)
        if isinstance(place, SlurmCluster):
            launcher: Launcher = SlurmLauncher(cluster, place)
        else:
            launcher = KubernetesLauncher(cluster, place, settings.home)
        return launcher if place.shared else UnsharedLauncher(launcher, cluster, place, settings)
    return LocalLauncher(max(room_here(settings), at_least))


def room_here(settings: Settings) -> int:
    """Ranks that this machine may run at once."""
    return settings.max_processes or room()[0]


def that_fit(launcher: Launcher, sizes: Sequence[int]) -> list[int]:
    """Positions of the sizes that a launcher has room for, in order. Raises ConfigError, for the first size, if it has
    room for none."""
    refusals: dict[int, ConfigError] = {}
    for position, processes in enumerate(sizes):
        try:
            launcher.check(processes)
        except ConfigError as error:
            refusals[position] = error
    if len(refusals) == len(sizes):
        raise refusals[0]
    return [position for position in range(len(sizes)) if position not in refusals]
