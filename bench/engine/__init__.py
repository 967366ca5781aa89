"""How rate and latency grow with workers, connections, roles, records, and the HSM's delay."""
