"""What went wrong? Pure functions from an upstream's answer to a fact; no I/O."""
