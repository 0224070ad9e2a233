"""``fedpath train``: one hospital alone or pooled data, once or in folds, with a federation's settings."""
