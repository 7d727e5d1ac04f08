"""What a rewrite does, in integers."""
