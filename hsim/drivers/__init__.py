"""What makes time pass: the simulated clock, and (later) the wall clock."""
