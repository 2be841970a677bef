"""Training: the step, the optimizer, checkpoints, logs and the loop over stages."""
