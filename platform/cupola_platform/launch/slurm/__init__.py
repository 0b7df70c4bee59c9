"""Jobs on a Slurm cluster: `launcher` submits them and `queued` follows them from this machine; `batch` runs them on
their first node, and `node` on each."""

FINGERPRINTED = False  # starts jobs
