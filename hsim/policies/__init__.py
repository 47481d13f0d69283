"""Who goes next, and where: pure choices on views. A policy is a function and an entry in the dict below it."""
