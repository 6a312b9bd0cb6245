"""Search for a sampler's per-step settings."""
