"""Run a training job: the loop, resuming, rollbacks, the watchdog, the logs."""
