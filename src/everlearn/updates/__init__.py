"""Version updates: plans, schedules, data blocks and the executor of training paths."""
