"""MoCo pretraining: the algorithm (`moco`), its augmentation, recipes, training loop and checkpoints."""
