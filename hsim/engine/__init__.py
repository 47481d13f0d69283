"""What happens: cores, replicas, pools, links and the life of a task. Knows no hardware and not whether time is real."""
