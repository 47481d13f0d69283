"""The dashboard: pages on hsim's own API, for planners who never open YAML. It holds no model of anything."""
