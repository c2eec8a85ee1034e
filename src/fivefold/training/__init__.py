"""One loop, and what it needs: schedules, optimizers, checkpoints, telemetry, several processes."""
