"""How large one agent may get, and what it costs then: `make bench-agent`."""
