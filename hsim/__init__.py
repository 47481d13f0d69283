"""hsim: a discrete-event simulator and capacity planner for language-model inference divided between CPUs and GPUs."""
