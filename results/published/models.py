"""Which published names mean one model: sources write the same configuration with and without its method in front."""

from __future__ import annotations

import re
from dataclasses import dataclass

LETTERS_OF_A_METHOD = 3  # at least, in an abbreviation


@dataclass(frozen=True)
class ModelKey:
    """One model of one method; `config` is empty where a source names the method alone."""

    method: str
    config: str


def letters(text: str) -> str:
    """Lower-case letters and digits: what is left of a name when its punctuation is a matter of taste."""
    return re.sub(r"[\W_]+", "", text.lower())


def model_key(model: str) -> ModelKey:
    """Of a published `model`; that of `ODC/odc_resnet50_8xb64-steplr-440e_in1k` has the config `resnet50_8xb64-…`."""
    method, _, config = model.partition("/")
    return ModelKey(letters(method), bare_config(config, method))


def bare_config(config: str, method: str) -> str:
    """A configuration's name without the method in front, the data at the end, and the file's ending."""
    return without_method(re.sub(r"(_in1k)?(\.py)?$", "", config.strip()), method)


def without_method(config: str, method: str) -> str:
    """As it is where it does not begin with the method, or with an abbreviation of it."""
    for cut in reversed([found.start() for found in re.finditer(r"[-_]", config)]):
        prefix = letters(config[:cut])
        if len(prefix) >= LETTERS_OF_A_METHOD and letters(method).startswith(prefix):
            return config[cut + 1 :]
    return config
