"""Tasks drawn before the run: arrivals, lengths, rounds, trace readers."""
