"""Training: the loss, the batches, and a loop that knows neither."""
