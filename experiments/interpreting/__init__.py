"""What a finished run's scores depend on: the parts of `experiments.interpret`."""
