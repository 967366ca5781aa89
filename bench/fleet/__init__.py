"""What a fleet asks of the service, and how many replicas that takes: `make simulate-fleet`."""
