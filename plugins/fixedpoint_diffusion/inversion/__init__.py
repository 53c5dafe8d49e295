"""The noise of images: by the inverse chain, and by optimisation."""
