"""How do we call? One file per upstream, all through `clients.http`; one try each, no loops."""
