"""Data: Fashion-MNIST, image folders, sharded token caches. Batches are fetched by a list of indices."""

from mgen.data.base import ImageData, spread_batches
from mgen.data.cache import CACHE_VERSION, TokenCache, tokenizer_fingerprint, write_cache
from mgen.data.fashion_mnist import FASHION_CLASSES, FashionMNIST, find_fashion_mnist
from mgen.data.folder import IMAGE_SUFFIXES, ImageFolder, center_crop, list_images, load_image

__all__ = [
    "CACHE_VERSION",
    "FASHION_CLASSES",
    "IMAGE_SUFFIXES",
    "FashionMNIST",
    "ImageData",
    "ImageFolder",
    "TokenCache",
    "center_crop",
    "find_fashion_mnist",
    "list_images",
    "load_image",
    "spread_batches",
    "tokenizer_fingerprint",
    "write_cache",
]
