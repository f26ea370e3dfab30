"""The packages of a wheel. Installed, `scripts` is called `encoder_bench_scripts`: many projects have a `scripts`."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["pretrain*", "benchmarks*", "results*"]),
        "encoder_bench_scripts",
        "encoder_bench_scripts.speed",
    ],
    package_dir={"encoder_bench_scripts": "scripts", "encoder_bench_scripts.speed": "scripts/speed"},
)
