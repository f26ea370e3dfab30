"""Training on images, shared by linear probes, fine-tuning, detection and segmentation."""
