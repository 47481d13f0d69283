"""What work costs: from a step's shape to seconds and joules. Pure functions and frozen models; no clock."""
