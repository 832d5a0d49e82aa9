"""Recorded inputs of the parts of a model, from which a recipe calibrates: eager engines run varied scenes.

VERSION changes whenever other inputs are recorded, so that what was calibrated with the old ones is built again.
"""

VERSION = 3
