"""What a model learns from, and how good it is: samples, training, metrics."""
