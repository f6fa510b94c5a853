"""Which weights know the most of a task: scores without training, and an order with its doubts."""
