"""What the processes of a job are told by environment variables if its nodes share no folder."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cupola_platform.clusters import HOME
from cupola_platform.errors import ConfigError
from cupola_platform.settings import Settings, load_settings
from cupola_platform.store.local import LocalStore

if TYPE_CHECKING:
    from cupola_platform.store.plain import Objects

GIB = 1 << 30
CACHE_FOLDER = "node-cache"
"""Folder of a node's workspace that holds inputs, not all of them whole: no other part of Cupola reads it."""
SECTION = "CUPOLA_JOB_SECTION"
"""The job's name in the store. If it is set, every node has a folder of its own."""
FOLDER = "CUPOLA_JOB_FOLDER"
"""The job's folder, relative to the workspace of each node."""
CACHE = "CUPOLA_JOB_CACHE"
"""Most GiB of inputs that a node keeps on its disk."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A job whose nodes share no folder, as every process of it sees it."""

    settings: Settings
    """Those of the node: its workspace, and the store that all nodes reach."""
    section: str
    """The job's name in the store."""
    relative: str
    """The job's folder, relative to the workspace."""
    cache_gib: float

    @property
    def folder(self) -> Path:
        """The job's folder on this node."""
        return self.settings.home / self.relative

    @property
    def home(self) -> Path:
        """The workspace on this node."""
        return self.settings.home

    def top(self) -> "Objects":
        """Everything in the store.

        Raises:
            ConfigError: no `store_url` is set.
            StoreError: the store cannot be used.
        """
        from cupola_platform.store.s3 import S3Store  # boto3 takes a third of a second to import

        if self.settings.store_url is None:
            raise ConfigError(
                "Nodes without a shared folder need a store that all reach. Set store_url in cupola.toml."
            )
        return S3Store(
            self.settings.store_url,
            cache=LocalStore(self.home / "cache"),
            endpoint_url=self.settings.s3_endpoint_url,
            region=self.settings.s3_region,
        ).objects("")

    def objects(self) -> "Objects":
        """What belongs to the job in the store."""
        return self.top().under(self.section)

    def variables(self) -> dict[str, str]:
        """The environment variables that tell other processes of it, wherever they run."""
        settings = {
            HOME: str(self.settings.home),
            "CUPOLA_STORE_URL": self.settings.store_url,
            "CUPOLA_S3_ENDPOINT_URL": self.settings.s3_endpoint_url,
            "CUPOLA_S3_REGION": self.settings.s3_region,
        }
        job = {SECTION: self.section, FOLDER: self.relative, CACHE: str(self.cache_gib)}
        return {name: value for name, value in (settings | job).items() if value is not None}


def is_unshared() -> bool:
    """Whether this process belongs to a job whose nodes share no folder."""
    return SECTION in os.environ


def folder_on_nodes(environment: Mapping[str, str]) -> Path | None:
    """The job's folder on the nodes that get these variables; None if it is the same folder as here."""
    return Path(environment[HOME], environment[FOLDER]) if SECTION in environment else None


def section_of(relative: str) -> str:
    """A job's name in the store, from its folder below the workspace: the same on every machine."""
    return f"jobs/{relative}"


def read_contract(environment: Mapping[str, str] = os.environ) -> Contract | None:
    """The contract of this process; None if its nodes share a folder, or if it belongs to no job."""
    if SECTION not in environment:
        return None
    return Contract(
        settings=load_settings(),
        section=environment[SECTION],
        relative=environment[FOLDER],
        cache_gib=float(environment[CACHE]),
    )
