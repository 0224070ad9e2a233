"""From slides to features: reader, tissue, patches, encoders."""
