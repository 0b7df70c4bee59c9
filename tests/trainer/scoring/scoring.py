"""Run by the tests as another user: scores responses from stdin, one JSON object per line, and reports peak memory."""

import json
import resource
import sys
from typing import Any

from cupola_platform.errors import ConfigError
from cupola_trainer.scoring.execution import passed

for line in sys.stdin:
    response, tests, seconds = json.loads(line)
    try:
        result: dict[str, Any] = {"score": passed(response, tests, timeout_seconds=seconds)}
    except ConfigError as error:
        result = {"error": str(error)}
    print(json.dumps(result | {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), flush=True)
