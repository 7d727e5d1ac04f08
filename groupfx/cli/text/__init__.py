"""What a user reads: tables, progress, reports."""
