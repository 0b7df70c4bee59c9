import json
from pathlib import Path

import pytest

from cupola_platform.errors import ConfigError
from cupola_platform.unshared import references

DIGEST = "a" * 64


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    (folder / "work/f/job").mkdir(parents=True)
    (folder / "work/f/prompts.jsonl").touch()
    return folder


def written(home: Path, job: object) -> references.Written:
    return references.write(json.dumps(job), home, home / "work/f/job")


def test_paths_of_the_workspace_mean_the_same_on_a_node_with_another_one(home: Path) -> None:
    job = {
        "output": str(home / "work/f/job"),
        "data": {"tokens": str(home / "cache" / DIGEST), "parts": [str(home / "store/artifacts" / DIGEST / "tokenizer")]},
        "prompts": str(home / "work/f/prompts.jsonl"),
        "sample_prompts": ["/", "/no/such/path", "artifact of mine"],
        "steps": 3,
    }  # fmt: skip
    sent = written(home, job)
    assert sent.artifacts == {DIGEST}
    assert sent.sent == {"work/f/prompts.jsonl"}
    assert str(home) not in sent.text
    assert references.artifacts_of(sent.text) == {DIGEST}
    assert json.loads(references.resolve(sent.text, Path("/there"))) == {
        "output": "/there/work/f/job",
        "data": {"tokens": f"/there/node-cache/{DIGEST}", "parts": [f"/there/node-cache/{DIGEST}/tokenizer"]},
        "prompts": "/there/work/f/prompts.jsonl",
        "sample_prompts": ["/", "/no/such/path", "artifact of mine"],
        "steps": 3,
    }


def test_a_file_outside_the_workspace_is_refused_by_name(home: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(ConfigError, match=r"The job reads .*/checkpoint, which nodes without a shared folder do not"):
        written(home, {"parent": str(tmp_path / "checkpoint")})
