"""What a role grants a caller. Pure: no I/O, no clock and no randomness of its own."""
