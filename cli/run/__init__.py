"""`fedpath run`: the coordinator's runs, in the queue and on disk."""
