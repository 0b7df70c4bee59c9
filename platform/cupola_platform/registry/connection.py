"""A registry's transactions."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from cupola_platform.errors import RegistryError
from cupola_platform.registry.database import PATIENCE, open_engine, patiently, refusals, writing
from cupola_platform.registry.read_only import read_only_file


class Connection:
    """The database at a SQLAlchemy URL. Its schema is migrated on open."""

    def __init__(self, url: str, patience: float = PATIENCE) -> None:
        """`patience`: seconds to keep retrying when the server does not respond."""
        self.url = url
        self.patience = patience
        self._engine = patiently(lambda: open_engine(url), patience)
        self._writing = writing(self._engine)
        self.read_only = read_only_file(url) is not None
        """Whether the registry cannot be written."""

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with refusals(self.url), Session(self._engine) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        if self.read_only:
            raise RegistryError(
                f"The registry {self.url} is read-only. Change the permissions of its folder, or use another workspace."
            )
        with refusals(self.url), Session(self._writing) as session, session.begin():
            yield session
