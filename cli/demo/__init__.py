"""`fedpath demo`: every role on one machine, through the same commands a real federation uses."""
