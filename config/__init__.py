"""What did we decide? Settings, policies and the upstreams' limits."""
