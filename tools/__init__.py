"""Commands for a checkout: make a picture, run the tests. The standard library alone, so that they start anywhere."""
