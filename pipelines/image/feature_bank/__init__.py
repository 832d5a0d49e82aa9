"""The feature bank of image streams: features of earlier frames that later frames attend to (StreamV2V)."""
