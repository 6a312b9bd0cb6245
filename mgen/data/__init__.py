"""Data: Fashion-MNIST, image folders, sharded token caches. Every source fetches a batch by a list of indices."""

from mgen.data.cache import CACHE_VERSION, TokenCache, tokenizer_fingerprint, write_cache
from mgen.data.fashion_mnist import FASHION_CLASSES, FashionMNIST, find_fashion_mnist
from mgen.data.folder import IMAGE_SUFFIXES, ImageFolder, center_crop, list_images, load_image

__all__ = [
    "CACHE_VERSION",
    "FASHION_CLASSES",
    "IMAGE_SUFFIXES",
    "FashionMNIST",
    "ImageFolder",
    "TokenCache",
    "center_crop",
    "find_fashion_mnist",
    "list_images",
    "load_image",
    "tokenizer_fingerprint",
    "write_cache",
]
