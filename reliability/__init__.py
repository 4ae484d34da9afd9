"""What survives a crash, in Redis: queues, parked jobs, dead letters, gates."""
