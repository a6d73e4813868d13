"""Many trainings and evaluations from one file, and the table they make."""
