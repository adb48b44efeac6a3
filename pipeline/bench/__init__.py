"""The bench: latency, pixels and host, knowing neither model nor runtime (numpy alone)."""
