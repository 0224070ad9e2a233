"""What can be seen of a coordinator from outside: Prometheus metrics and health."""
