"""What each next user of a model takes."""
