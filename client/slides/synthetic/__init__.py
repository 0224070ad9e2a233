"""Hospitals for demos and tests: drawn slides with planted tumour nests. They look like tissue and prove nothing."""

from fedpath.client.slides.synthetic.hospital import make_hospital

__all__ = ["make_hospital"]
