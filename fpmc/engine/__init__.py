"""The sum over the source: a reference to read and test against, a streaming engine to use."""
