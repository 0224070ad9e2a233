"""What can be seen of a hospital's agent from outside: Prometheus metrics and health."""
