"""How the runs of a Prefect server share the places where they run."""

from collections.abc import Iterable

from cupola_flows.execution.places import Place, place_of
from cupola_flows.runs.session import Session
from cupola_flows.servers.limits import PrefectLimits
from cupola_flows.servers.prefect_api import PrefectApi
from cupola_platform.errors import ServiceError
from cupola_platform.settings import Settings


def share_places(session: Session, api: PrefectApi) -> None:
    """Let a session count its ranks together with the other runs of a server."""
    limits = PrefectLimits(api, session.workspace.folder("leases"))
    try:
        _set(limits, {session.place(name) for name in session.names})
    except ServiceError as error:
        session.display.say(f"{error} This run does not count its ranks together with others.")
        return
    session.limits = limits


def set_all_limits(settings: Settings, api: PrefectApi) -> None:
    """Create or update the limits of this machine and of every cluster. Raises ServiceError."""
    limits = PrefectLimits(api, settings.home / "leases")
    _set(limits, {place_of(settings, cluster) for cluster in (None, *settings.clusters)})


def _set(limits: PrefectLimits, places: Iterable[Place]) -> None:
    for place in places:
        limits.set(place.limit, place.slots)
