"""Studies of key-value caches."""
