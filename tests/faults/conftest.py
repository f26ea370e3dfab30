"""The pictures of pretraining's tests."""

from tests.pretrain.conftest import images as images  # a fixture
