"""What a step does beside its science: command line, locks, provenance, jobs in parallel."""
