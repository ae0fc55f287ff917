"""What a step does around its science: command line, locks, provenance, jobs in parallel."""
