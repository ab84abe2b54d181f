"""TorchServe's image_classifier for 8 x 8 gray pixels, as its MNIST example adapts it."""

from torchvision import transforms
from ts.torch_handler.image_classifier import ImageClassifier


class DigitClassifier(ImageClassifier):  # type: ignore[misc]
    """TorchServe's handler with another transformation."""

    image_processing = transforms.Compose(
        [transforms.Grayscale(), transforms.Resize((8, 8)), transforms.ToTensor()]
    )
