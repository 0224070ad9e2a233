"""What both roles need to be watched: metrics, health, and what their child processes tell. No network in here."""
