"""What a user gives: options, shapes, model files, and where results may be written."""
