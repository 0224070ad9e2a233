"""What a hospital and the coordinator must agree on: data, models, training, updates. No network, no Flower."""
