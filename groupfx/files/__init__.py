"""Files: written all or not at all, read without trust."""
