"""Data: Fashion-MNIST, image folders, tar shards, sharded token caches. Batches are fetched by a list of indices."""

from mgen.data.base import ImageData, StampedData, spread_batches
from mgen.data.cache import TokenCache
from mgen.data.fashion_mnist import FASHION_CLASSES, FashionMNIST, find_fashion_mnist
from mgen.data.folder import ImageFolder
from mgen.data.image_files import center_crop, load_image, open_image
from mgen.data.listing import list_images
from mgen.data.record import DataRecord, record_of
from mgen.data.webdataset import TarImages
from mgen.data.write_cache import write_cache

__all__ = [
    "FASHION_CLASSES",
    "DataRecord",
    "FashionMNIST",
    "ImageData",
    "ImageFolder",
    "StampedData",
    "TarImages",
    "TokenCache",
    "center_crop",
    "find_fashion_mnist",
    "list_images",
    "load_image",
    "open_image",
    "record_of",
    "spread_batches",
    "write_cache",
]
