"""One training job from its first step to its last: the loop, resuming, rollbacks, the watchdog, the logs."""
