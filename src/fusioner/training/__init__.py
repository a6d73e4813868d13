"""The training loop, its losses, schedules and checkpoints."""
