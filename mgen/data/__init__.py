"""Data: Fashion-MNIST, image folders, sharded token caches. Batches are fetched by a list of indices."""

from mgen.data.base import ImageData, spread_batches
from mgen.data.cache import TokenCache, write_cache
from mgen.data.fashion_mnist import FASHION_CLASSES, FashionMNIST, find_fashion_mnist
from mgen.data.folder import ImageFolder, center_crop, list_images, load_image

__all__ = [
    "FASHION_CLASSES",
    "FashionMNIST",
    "ImageData",
    "ImageFolder",
    "TokenCache",
    "center_crop",
    "find_fashion_mnist",
    "list_images",
    "load_image",
    "spread_batches",
    "write_cache",
]
