"""What a model can do, beyond its loss."""

import warnings

# Of scikit-learn, where a set has one label only; what its metrics are then is known.
warnings.filterwarnings("ignore", "A single label was found")
