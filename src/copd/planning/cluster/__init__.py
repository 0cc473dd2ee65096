"""The seconds of a step on a cluster, from sizes and rates."""
