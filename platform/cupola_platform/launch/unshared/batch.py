"""What a job's first node exchanges with the store around its ranks, if nodes share no folder."""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self

from cupola_platform.errors import StoreError
from cupola_platform.launch.unshared.launcher import is_ranks
from cupola_platform.unshared.contract import Contract, read_contract
from cupola_platform.unshared.files import LOG, REPORTS, RESULT, Files
from cupola_platform.unshared.parts import Parts
from cupola_platform.unshared.patience import insist

_insist = partial(insist, say=partial(print, flush=True))


class Exchange:
    """The files that the batch process of a job reads and writes."""

    def __init__(self, contract: Contract) -> None:
        objects = contract.objects()
        self.reports = Files(objects, contract.folder, lambda path: path in REPORTS)
        self.read = Files(objects, contract.folder, lambda path: path != LOG and path not in REPORTS)
        self.written = Files(objects, contract.folder, lambda path: not is_ranks(path) or path == "metrics.jsonl")
        self.log = Files(objects, contract.folder, lambda path: path == LOG)
        self.parts = Parts(objects, contract.section, contract.folder)

    @classmethod
    def of_this_job(cls) -> Self | None:
        """None if the nodes share a folder."""
        contract = read_contract()
        return cls(contract) if contract else None

    def bring(self) -> None:
        """Bring what the ranks of all nodes have sent, and how the job ended, if it has."""
        _insist(self.read.pull)
        _insist(lambda: self.reports.pull(exactly=True))

    def send(self) -> None:
        """Send what this process wrote."""
        _insist(self.written.push)

    def clear(self) -> None:
        """Remove the reports of an earlier start."""
        _insist(lambda: self.reports.remove(REPORTS - {RESULT}))

    def newest(self) -> str:
        """The newest checkpoint that is whole in the store."""
        return max((Path(each.folder).name for each in _insist(self.parts.whole)), default="")

    def send_log(self) -> None:
        """Send what the ranks printed since the last time."""
        with suppress(StoreError):  # the next one sends it too
            self.log.push()
