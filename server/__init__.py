"""The coordinator: joins, rounds, aggregation, records."""
