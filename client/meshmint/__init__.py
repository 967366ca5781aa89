"""Client of Meshmint: X.509 certificates with SPIFFE identities over gRPC."""
