"""What stands around coach in demos, tests and measurements: a provider, and students."""
