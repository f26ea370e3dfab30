"""What the harnesses that train on images share: random views, batches, ranks, and the held-out part of train."""
