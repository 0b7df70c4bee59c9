"""The console shows a read-only workspace."""

import json
import subprocess
import sys
from typing import Any

DRAW = """
import json
from streamlit.testing.v1 import AppTest
found = {}
for view in ("runs", "checkpoints", "lineage", "corpus", "annotate", "launch"):
    script = f"from cupola_dashboards.views import {view}\\n{view}.page()\\n"
    page = AppTest.from_string(script, default_timeout=120).run()
    found[view] = [*(error.value for error in page.error), *(one.message for one in page.exception)]
print(json.dumps(found))
"""


def test_every_page_of_a_read_only_workspace_is_drawn(in_workspace: Any) -> None:
    root = str(in_workspace.workspace.root)
    bound = ["bwrap", "--dev-bind", "/", "/", "--ro-bind", root, root]
    done = subprocess.run(
        [*bound, sys.executable, "-c", DRAW], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    pages = ("runs", "checkpoints", "lineage", "corpus", "annotate", "launch")
    assert json.loads(done.stdout.splitlines()[-1]) == {page: [] for page in pages}
