"""What a training step needs on a slice that is not there: memory, time, traffic."""
