"""Networks: the CIFAR zoo (registered with timm on import), taps into any network, weights files."""

from tutelage.models import zoo

__all__ = ["zoo"]
