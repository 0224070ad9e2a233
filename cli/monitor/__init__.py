"""The ports on which a process can be watched: HTTP for metrics and health, gRPC for health."""
