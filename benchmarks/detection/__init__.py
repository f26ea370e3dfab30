"""Object detection, instance masks and keypoints on the encoder, trained and measured by detectron2."""
