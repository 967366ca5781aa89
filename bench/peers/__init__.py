"""Meshmint beside OpenBao, a fork of Vault: the same work, the same load, one run."""
