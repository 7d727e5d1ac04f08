"""One file a command: what it reads, what it does, what it prints and writes."""
