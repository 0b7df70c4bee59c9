"""Jobs on Kubernetes: `launcher` starts them, `job` watches one, `manifests` says what is created, `api` asks the
API server."""

FINGERPRINTED = False  # starts jobs
