"""Fine-tuning of the whole network: semi-supervised on 1 % and 10 % of ImageNet's labels, and end to end on all."""
