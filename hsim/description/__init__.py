"""What is asked: scenarios, hardware, models. Frozen data read from strict YAML; no clock, no arithmetic."""
