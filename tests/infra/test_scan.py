"""Checkov passes infra/, and fails planted bad files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOV = Path(sys.prefix) / "tools" / "checkov" / "bin" / "checkov"
FRAMEWORKS = ("dockerfile", "terraform")
MOST_SKIPS = 20
BAD_TERRAFORM = """
resource "aws_db_instance" "open" {
  engine              = "postgres"
  publicly_accessible = true
}
"""
BAD_DOCKERFILE = "FROM python:latest\nUSER root\n"


@pytest.fixture(scope="module")
def verdicts(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Checkov's results by framework, on a copy of infra/ with two bad files planted."""
    if not CHECKOV.exists():
        pytest.fail("Checkov lives in an environment of its own, which `make test` makes.")
    copy = shutil.copytree(root / "infra", tmp_path_factory.mktemp("scan") / "infra")
    for name, text in {"planted/main.tf": BAD_TERRAFORM, "planted/Dockerfile": BAD_DOCKERFILE}.items():
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(text)
    command = [str(CHECKOV), "--directory", ".", "--framework", *FRAMEWORKS, "--output", "json", "--skip-download"]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    return {verdict["check_type"]: verdict["results"] for verdict in json.loads(result.stdout)}


@pytest.mark.parametrize(("framework", "fewest"), [("dockerfile", 10), ("terraform", 200)])
def test_checkov_passes_everything_except_the_planted_files(
    verdicts: dict[str, dict[str, Any]], framework: str, fewest: int
) -> None:
    verdict = verdicts[framework]
    assert verdict["parsing_errors"] == []
    assert len(verdict["passed_checks"]) >= fewest
    failed = {(check["file_path"], check["check_id"]) for check in verdict["failed_checks"]}
    assert {(path, check) for path, check in failed if not path.startswith("/planted/")} == set()
    assert failed


def test_skipped_checks_are_few_and_give_reasons(verdicts: dict[str, dict[str, Any]]) -> None:
    skipped = [check for verdict in verdicts.values() for check in verdict["skipped_checks"]]
    assert len(skipped) <= MOST_SKIPS
    for check in skipped:
        assert len(check["check_result"]["suppress_comment"]) >= len("The same."), check["check_id"]
