"""`fedpath simulate`: a federation of many hospitals on one machine or one cluster."""
