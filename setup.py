"""Metadata of the package; the tested versions are pinned in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """`mres.__version__`, read without importing the package."""
    lines = (ROOT / "mres" / "__init__.py").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("__version__")).split('"')[1]


MDS = ["mosaicml-streaming>=0.13.0"]  # to write MDS shards beside WebDataset tars
REMOTE = ["aiohttp>=3.9", "gcsfs>=2025.3", "s3fs>=2025.3"]  # shards on https://, gs://, s3://
LMDB = ["lmdb>=1.4"]  # to read the LMDBs that CRIS and its kin train on
HEIF = ["pillow-heif>=0.16"]  # to build from HEIC photographs, and predict on them
EXPORT = ["onnx>=1.18", "onnxruntime>=1.20", "onnxscript>=0.5"]  # tools/export.py --program onnx
DEV = [
    "flask>=3",  # moto's server needs it and flask-cors
    "flask-cors>=5",
    "hypothesis>=6.100",
    "moto[s3]>=5",  # an S3 server on loopback
    "mypy>=1.11",
    "pytest>=8",
    "pytest-xdist>=3.6",  # make test JOBS=2
    "ruff>=0.15",
    "transformers>=4.57",  # CLIPs as Hugging Face writes them
    "types-PyYAML",
]

setup(
    name="mres",
    version=version(),
    description="Referring-expression segmentation at every granularity, trained at any scale",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["mres", "mres.*"]),
    package_data={"": ["templates/*", "py.typed"]},
    install_requires=[
        "deepspeed>=0.19.8",
        "filelock<3.26",  # later ones refuse the lock that MDS readers inherit in forked data workers
        "fsspec>=2024.2",
        "imagehash>=4.3",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ninja>=1.11",
        "numpy>=2.0",
        "open_clip_torch>=3.0",
        "pillow>=10.1",
        "psutil>=5.9",
        "pycocotools>=2.0.8",
        "pydantic>=2.7",
        "pyyaml>=6",
        "rich>=13",
        "safetensors>=0.4",
        "simplejpeg>=1.8",
        "submitit>=1.5.2",
        "tensorboard>=2.16",
        "timm>=1.0.11",
        "torch>=2.6",
        "torchvision>=0.21",
        "webdataset>=1.0",
    ],
    extras_require={
        "mds": MDS,
        "remote": REMOTE,
        "lmdb": LMDB,
        "heif": HEIF,
        "export": EXPORT,
        "dev": DEV,
        "all": MDS + REMOTE + LMDB + HEIF + EXPORT + DEV,
    },
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
