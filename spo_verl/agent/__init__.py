"""Rewards and agent loops for verl: what a run names in its configuration, whatever its estimator."""
