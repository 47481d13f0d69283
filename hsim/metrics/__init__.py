"""Functions of a log: latency, the joule ledger, the result. Never touches the engine."""
